"""Tiny ImageNet as folders of classes, for `data.name: image_folder`.

    python -m tools.tiny_imagenet --zip=tiny-imagenet-200.zip --output=DIR

The published file has validation images in one folder and their classes in
val_annotations.txt. DIR, which must not be there yet, gets train/<class>/* and
validation/<class>/*; the test images, which have no labels, are left out.
"""

from absl import flags

from conadv_tf import command_line

_ZIP = flags.DEFINE_string("zip", None, "The published zip file.")
_OUTPUT = flags.DEFINE_string("output", None, "New folder for the images.")


def main() -> None:
  """Arranges and says what there is now."""
  with command_line.one_line_errors():
    # Imported late: --help must not wait for TensorFlow.
    from conadv_tf.config import InputError
    from tools import tiny_imagenet_files
    for name in ("zip", "output"):
      if not flags.FLAGS[name].value:
        raise InputError(f"--{name} is missing; --help explains the flags")
    counts = tiny_imagenet_files.arrange(_ZIP.value, _OUTPUT.value)
    print(f"{_OUTPUT.value}: {counts['train']:,} training and "
          f"{counts['validation']:,} validation images")


if __name__ == "__main__":
  command_line.start(main)
