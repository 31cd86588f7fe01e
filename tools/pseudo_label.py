"""Labels images with a trained run, for `data.pseudo_labels`.

    python -m tools.pseudo_label --model_dir=RUN --data=FILE.npz \
        --output=FILE.npz [--min_confidence=0.9]

--data holds images as x_train, uint8 [n, h, w, c]; labels in it are ignored.
--output gets the same images, the run's clean predictions as y_train and their
probabilities as confidence, float32 [n]. Training takes it as
data.unlabelled_path (docs/unlabelled.md).
"""

import os

from absl import flags

from conadv_tf import command_line

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Directory of the run.")
_DATA = flags.DEFINE_string("data", None, "An .npz file with x_train.")
_OUTPUT = flags.DEFINE_string("output", None, "The .npz file to write.")
_MIN_CONFIDENCE = flags.DEFINE_float(
    "min_confidence", 0.0, "Leaves out images whose predicted class is less "
    "probable; 0 keeps all.", lower_bound=0.0, upper_bound=1.0)


def main() -> None:
  """Restores, labels, writes, and says how many."""
  with command_line.one_line_errors():
    # Imported late: --help must not wait for TensorFlow.
    from conadv_tf import saved_runs
    from conadv_tf.config import InputError
    from tools import pseudo_labels
    for name in ("model_dir", "data", "output"):
      if not flags.FLAGS[name].value:
        raise InputError(f"--{name} is missing; --help explains the flags")
    data, output = _DATA.value, _OUTPUT.value
    if os.path.realpath(data) == os.path.realpath(output):
      raise InputError(f"--output={output} is --data; name another file")
    command_line.check_output(output)
    experiment, _ = saved_runs.restore(_MODEL_DIR.value)
    kept, found = pseudo_labels.label(
        experiment, data, output, _MIN_CONFIDENCE.value)
    print(f"{output}: {kept:,} of {found:,} images with pseudo-labels")


if __name__ == "__main__":
  command_line.start(main)
