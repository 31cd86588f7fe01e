"""An export answers TensorFlow Serving's requests without the project."""

import base64
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.evaluation import saved_models, serving

_SCRIPT = pathlib.Path(__file__).parents[2] / "tools" / "rest_predict.py"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  tf.keras.utils.set_random_seed(1)
  model = tf.keras.Sequential([
      tf.keras.layers.Input([3, 3, 1]), tf.keras.layers.Rescaling(1 / 255),
      tf.keras.layers.Flatten(), tf.keras.layers.Dense(2)])
  path = tmp_path_factory.mktemp("served") / "model" / "1"
  serving.export(model, str(path), class_names=("no", "yes"), card={},
                 image_shape=(3, 3, 1))
  return path


def _ask(folder: pathlib.Path, export: pathlib.Path, *requests: Any
         ) -> tuple[int, list[dict[str, Any]]]:
  """Answers of a process that cannot import the project."""
  files = []
  for number, request in enumerate(requests):
    files.append(folder / f"{number}.json")
    files[-1].write_text(json.dumps(request), "utf-8")
  done = subprocess.run(
      [sys.executable, "-I", str(_SCRIPT), str(export), *map(str, files)],
      cwd=folder, capture_output=True, text=True, check=False,
      env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
  assert done.stdout, done.stderr
  return done.returncode, [json.loads(line)
                           for line in done.stdout.splitlines()]


def test_rows_columns_and_bytes_give_the_golden_outputs(
    tmp_path: pathlib.Path, export: pathlib.Path) -> None:
  golden = dict(np.load(export / saved_models.GOLDEN))
  images = golden["images"].tolist()
  encoded = [
      {"b64": base64.b64encode(tf.io.encode_png(image).numpy()).decode()}
      for image in golden["images"]]
  code, answers = _ask(
      tmp_path, export, {"instances": images},
      {"instances": [{"images": image} for image in images]},
      {"signature_name": "serving_bytes", "instances": encoded},
      {"inputs": images}, {"inputs": {"images": images}},
      {"signature_name": "serving_bytes", "inputs": {"image_bytes": encoded}})
  assert code == 0
  names = {"logits", "probabilities", "classes"}
  for answer in answers[:3]:
    assert answer.keys() == {"predictions"}
    assert [row.keys() for row in answer["predictions"]] == [names] * 4
  by_name = [{name: [row[name] for row in answer["predictions"]]
              for name in names} for answer in answers[:3]]
  for answer in answers[3:]:
    assert answer.keys() == {"outputs"}
    by_name.append(answer["outputs"])
  for outputs in by_name:
    assert outputs.keys() == names
    for name in names:
      assert outputs[name] == by_name[0][name]
      np.testing.assert_allclose(
          outputs[name], golden[name], rtol=1e-6, atol=1e-6)


def test_requests_of_another_form_are_errors(
    tmp_path: pathlib.Path, export: pathlib.Path) -> None:
  image = [[[1]] * 3] * 3
  code, answers = _ask(
      tmp_path, export, {"instances": [image], "inputs": [image]},
      {"instances": []}, {"instances": [{"image": image}]},
      {"inputs": {"image": [image]}}, {"instances": [[[[0.5]] * 3] * 3]},
      {"signature_name": "other", "instances": [image]}, [image],
      {"inputs": {"images": [{"b46": ""}]}})
  assert code == 1
  for answer, part in zip(answers, (
      "either 'instances' or 'inputs'", "a list of one example", "['images']",
      "no 'images'", "", "no signature 'other'", "a request is an object",
      "['b46'] in place of a value"), strict=True):
    assert answer.keys() == {"error"} and part in answer["error"]
