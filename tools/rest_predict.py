"""Answers requests of TensorFlow Serving's REST API from an export alone.

    python -I tools/rest_predict.py [--text] EXPORT [REQUEST.json ...]

reads requests as they are sent to `/v1/models/NAME:predict` (without a file,
one from stdin), maps each to the SavedModel's signature as TensorFlow Serving
does, and prints the response, one a line. No server runs and nothing of the
project is imported: what is answered here needs the export and TensorFlow only,
with --text also the package tensorflow_text.

The rules are those of TensorFlow Serving's `util/json_tensor.cc` and
`api_rest.md`. Left out: `classify` and `regress`, whose signatures exports do
not have.
"""

import argparse
import base64
from collections.abc import Mapping, Sequence
import json
import sys
from typing import Any

import tensorflow as tf

Response = dict[str, Any]
_DEFAULT = "serving_default"


def main(arguments: Sequence[str]) -> int:
  """Prints the responses; returns 1 if one of them is an error."""
  parser = argparse.ArgumentParser(
      description=(__doc__ or "").split("\n", maxsplit=1)[0])
  parser.add_argument("export", help="folder of the SavedModel")
  parser.add_argument("requests", nargs="*", help="JSON files; default stdin")
  parser.add_argument("--text", action="store_true",
                      help="import tensorflow_text first")
  flags = parser.parse_args(arguments)
  if flags.text:
    import tensorflow_text  # noqa: F401
  try:
    signatures = tf.saved_model.load(flags.export).signatures
  except (OSError, RuntimeError, tf.errors.OpError) as error:
    hint = "" if flags.text else "; exports of sentences need --text"
    parser.error(f"{flags.export} cannot be loaded: "
                 f"{str(error).splitlines()[0][:200]}{hint}")
  code = 0
  for path in flags.requests or [None]:
    try:
      text = sys.stdin.read() if path is None else _read(path)
      response = answer(signatures, json.loads(text))
    except (OSError, TypeError, ValueError, tf.errors.OpError) as error:
      response, code = {"error": str(error)}, 1
    print(json.dumps(response))
  return code


def answer(signatures: Mapping[str, Any], request: Mapping[str, Any]
           ) -> Response:
  """The response to one request.

  Args:
    signatures: of the SavedModel.
    request: `signature_name` (or none) and one of `instances` (row form) and
      `inputs` (column form).

  Raises:
    ValueError: if the request is not of this form.
    TypeError: if a value is not of its input's type.
  """
  if not _is_object(request):
    raise ValueError("a request is an object")
  name = request.get("signature_name", _DEFAULT)
  if name not in signatures:
    raise ValueError(f"no signature {name!r}; there are {sorted(signatures)}")
  if ("instances" in request) == ("inputs" in request):
    raise ValueError("send either 'instances' or 'inputs'")
  signature = signatures[name]
  specs = signature.structured_input_signature[1]
  rows = "instances" in request
  columns = (_from_rows(request["instances"], specs) if rows
             else _from_columns(request["inputs"], specs))
  outputs = signature(**{
      key: tf.constant(_decoded(columns[key]), spec.dtype)
      for key, spec in specs.items()})
  values = {key: _plain(value) for key, value in outputs.items()}
  if len(values) == 1:  # then TensorFlow Serving leaves the name out
    (found,) = values.values()
  elif rows:
    found = [dict(zip(values, row)) for row in zip(*values.values())]
  else:
    found = values
  return {"predictions" if rows else "outputs": found}


def _from_rows(instances: Any, specs: Mapping[str, Any]) -> dict[str, Any]:
  """One object an example, or its bare value where there is one input."""
  if not isinstance(instances, list) or not instances:
    raise ValueError("'instances' must be a list of one example or more")
  if not _is_object(instances[0]):
    return {_only(specs): instances}
  for instance in instances:
    if not _is_object(instance) or instance.keys() != specs.keys():
      raise ValueError(f"every instance needs the keys {sorted(specs)}")
  return {key: [instance[key] for instance in instances] for key in specs}


def _from_columns(inputs: Any, specs: Mapping[str, Any]) -> dict[str, Any]:
  """One object of all examples, or the bare value of the only input."""
  if not _is_object(inputs):
    return {_only(specs): inputs}
  missing = sorted(specs.keys() - inputs.keys())
  if missing:
    raise ValueError(f"'inputs' has no {missing[0]!r}")
  return inputs


def _only(specs: Mapping[str, Any]) -> str:
  if len(specs) > 1:
    raise ValueError(f"the inputs {sorted(specs)} must be named")
  return next(iter(specs))


def _is_object(value: Any) -> bool:
  """Whether it names inputs; {"b64": ...} is a value."""
  return isinstance(value, dict) and value.keys() != {"b64"}


def _decoded(value: Any) -> Any:
  """Replaces {"b64": "..."} by its bytes, at any depth."""
  if isinstance(value, dict):
    if _is_object(value):
      raise ValueError(f"an object with {sorted(value)} in place of a value")
    return base64.b64decode(value["b64"], validate=True)
  if isinstance(value, list):
    return [_decoded(item) for item in value]
  return value


def _plain(tensor: tf.Tensor) -> Any:
  """Nested lists; float32 with as many digits as tell it apart."""
  values = tensor.numpy()
  if tensor.dtype != tf.float32:
    return values.tolist()

  def shortened(value: Any) -> Any:
    if isinstance(value, list):
      return [shortened(item) for item in value]
    short = float(f"{value:.6g}")
    exact = values.dtype.type(short) == value
    return short if exact else float(f"{value:.9g}")

  return shortened(values.tolist())


def _read(path: str) -> str:
  with open(path, encoding="utf-8") as file:
    return file.read()


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
