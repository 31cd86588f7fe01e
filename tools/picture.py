"""Draws a run: `python -m tools.picture --model_dir=DIR --output=FILE.png`.

Left: training images, their perturbation (amplified) and the adversarial
images under the run's final weights. Right, without --images_only: accuracy
over the epochs.
"""

from typing import Any

from absl import app, flags

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Directory of the run.",
                                 required=True)
_OUTPUT = flags.DEFINE_string("output", None, "PNG file.", required=True)
_DATA_PATH = flags.DEFINE_string(
    "data_path", None, "Where the data are now; default: the run's data.path.")
_IMAGES_ONLY = flags.DEFINE_bool("images_only", False, "Leave accuracy out.")
_IMAGES = flags.DEFINE_integer("images", 4, "How many.", lower_bound=1)
_CURVES = {"validation/accuracy": "validation",
           "train/accuracy": "training, clean",
           "train/adversarial_accuracy": "training, adversarial"}


def main(argv: list[str]) -> None:
  """Restores the run and writes the picture."""
  del argv
  from conadv_tf import command_line
  with command_line.one_line_errors():
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from conadv_tf import saved_runs
    from conadv_tf.training import run_directory
    from tools import adversarial_images
    command_line.check_output(_OUTPUT.value)
    experiment, checkpoint = saved_runs.restore(
        _MODEL_DIR.value, _DATA_PATH.value)
    images = adversarial_images.make(experiment, _IMAGES.value)
    records = run_directory.RunDirectory(_MODEL_DIR.value).metrics()

  count = len(images.clean)
  more = 0 if _IMAGES_ONLY.value else 5
  figure = pyplot.figure(figsize=(1.1 * (count + more), 4))
  grid = figure.add_gridspec(3, count + more)
  adversarial_images.draw(figure, grid, images)
  config = experiment.config
  title = (f"{config.method.name} on {config.data.name}, batch "
           f"{config.data.global_batch_size}, update {checkpoint.step}")
  if not _IMAGES_ONLY.value:
    curves(figure.add_subplot(grid[:, count + 1:]), records, title)
  figure.savefig(_OUTPUT.value, dpi=100, bbox_inches="tight")


def curves(axis: Any, records: list[dict[str, Any]], title: str) -> None:
  """Accuracies over the epochs, from metrics.jsonl."""
  epochs = [record["epoch"] for record in records]
  for key, label in _CURVES.items():
    if key in records[-1]:
      axis.plot(epochs, [record[key] for record in records], marker=".",
                label=label)
  axis.set(xlabel="epoch", ylabel="accuracy", ylim=(None, 1.01), title=title)
  axis.legend(loc="lower right")
  axis.grid(alpha=0.3)


if __name__ == "__main__":
  app.run(main)
