"""Draws a run: `python -m tools.picture --model_dir=DIR --output=FILE.png`.

Left: training images, their perturbation (amplified) and the adversarial
images under the run's final weights. Right: accuracy over the epochs.
"""

from absl import app, flags

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Directory of the run.",
                                 required=True)
_OUTPUT = flags.DEFINE_string("output", None, "PNG file.", required=True)
_IMAGES = 4


def main(argv: list[str]) -> None:
  """Restores the run and writes the picture."""
  del argv
  from conadv_tf import command_line
  with command_line.one_line_errors():
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    import numpy as np

    from conadv_tf import saved_runs
    from conadv_tf.training import perturbation, run_directory
    experiment, checkpoint = saved_runs.restore(_MODEL_DIR.value)
    images, labels, _ = next(iter(experiment.evaluation_dataset("train")))
    clean = images[:_IMAGES].numpy().astype(np.float32)
    adversarial = perturbation.Perturb(experiment.trainer)(
        images[:_IMAGES], labels[:_IMAGES]).numpy()
    records = run_directory.RunDirectory(_MODEL_DIR.value).metrics()

  delta = adversarial - clean
  delta = 127.5 + 127.5 * delta / max(np.abs(delta).max(), 1e-6)
  figure = pyplot.figure(figsize=(10, 4))
  grid = figure.add_gridspec(3, _IMAGES + 5)
  for row, (title, values) in enumerate((
      ("clean", clean), ("perturbation", delta),
      ("adversarial", adversarial))):
    for column in range(_IMAGES):
      axis = figure.add_subplot(grid[row, column])
      axis.imshow(np.squeeze(values[column] / 255.0), cmap="gray", vmin=0,
                  vmax=1)
      axis.set_xticks([])
      axis.set_yticks([])
      if column == 0:
        axis.set_ylabel(title)
  axis = figure.add_subplot(grid[:, _IMAGES + 1:])
  epochs = [record["epoch"] for record in records]
  for key, label in (("validation/accuracy", "validation"),
                     ("train/accuracy", "training, clean"),
                     ("train/adversarial_accuracy", "training, adversarial")):
    if key in records[-1]:
      axis.plot(epochs, [record[key] for record in records], label=label)
  config = experiment.config
  axis.set(xlabel="epoch", ylabel="accuracy", ylim=(None, 1.01),
           title=f"{config.method.name} on {config.data.name}, batch "
                 f"{config.data.global_batch_size}, update {checkpoint.step}")
  axis.legend(loc="lower right")
  axis.grid(alpha=0.3)
  figure.savefig(_OUTPUT.value, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
  app.run(main)
