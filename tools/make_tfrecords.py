"""A folder of images as TFRecords, for `data.name: tfrecord`.

    python -m tools.make_tfrecords --input=FOLDER --output=DIR

FOLDER holds train/<class>/* and validation/<class>/* (or val/, test/), as for
`data.name: image_folder`. DIR gets train-00000-of-..., validation-... with
the keys of the usual ImageNet converter, and index.json with the names of the
classes and the number of records in each file.

    python -m tools.make_tfrecords --index_only --path=DIR

only counts the records of files that are there already, from whatever
converter, and writes their index.json.
"""

from absl import flags

from conadv_tf import command_line

_INPUT = flags.DEFINE_string("input", None, "Folder of images.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory for the records.")
_TRAIN_SHARDS = flags.DEFINE_integer(
    "train_shards", None, "Training files; by default one for 1,250 images, "
    "at least 16 (ImageNet: 1,024).", lower_bound=1)
_VALIDATION_SHARDS = flags.DEFINE_integer(
    "validation_shards", None, "Validation files; by default one for 390 "
    "images, at least 4 (ImageNet: 128).", lower_bound=1)
_THREADS = flags.DEFINE_integer(
    "threads", 16, "Images read and checked at a time.", lower_bound=1)
_MAX_BAD = flags.DEFINE_integer(
    "max_bad", 0, "Files that may be left out since they are no images or "
    "broken; each is named.", lower_bound=0)
_INDEX_ONLY = flags.DEFINE_bool(
    "index_only", False, "Only write index.json for the files in --path.")
_PATH = flags.DEFINE_string("path", None, "Directory for --index_only.")


def main() -> None:
  """Converts, or writes the index."""
  # Imported late: --help must not wait for TensorFlow.
  with command_line.one_line_errors():
    from conadv_tf.config import InputError
    needed = ("path",) if _INDEX_ONLY.value else ("input", "output")
    unused = ("input", "output") if _INDEX_ONLY.value else ("path",)
    for name in needed:
      if not flags.FLAGS[name].value:
        raise InputError(f"--{name} is missing; --help explains the flags")
    for name in unused:
      if flags.FLAGS[name].value:
        raise InputError(f"--{name} has no use here; --help explains the flags")
    from tools import tfrecord_conversion
    if _INDEX_ONLY.value:
      tfrecord_conversion.write_index(_PATH.value)
      return
    tfrecord_conversion.convert(
        _INPUT.value, _OUTPUT.value,
        shards={"train": _TRAIN_SHARDS.value,
                "validation": _VALIDATION_SHARDS.value},
        threads=_THREADS.value, max_bad=_MAX_BAD.value)


if __name__ == "__main__":
  command_line.start(main)
