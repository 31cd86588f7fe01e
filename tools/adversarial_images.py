"""A run's adversarial images under its final weights, drawn; no flags."""

from typing import Any, NamedTuple

import numpy as np

from conadv_tf import config as config_lib


class Images(NamedTuple):
  """Images before and after a run's attack.

  Attributes:
    clean: float32 [n, h, w, c], 0 to 255.
    adversarial: likewise.
  """

  clean: np.ndarray
  adversarial: np.ndarray


def make(experiment: Any, count: int) -> Images:
  """Attacks the first training images as the run's training does.

  Args:
    experiment: restored, see `conadv_tf.saved_runs`.
    count: of images, at most.

  Raises:
    InputError: if its data are no images, or its method attacks none.
  """
  from conadv_tf.training import perturbation
  if config_lib.is_text(experiment.config):
    raise config_lib.InputError(
        "adversarial images: the data of this run are sentences")
  if not experiment.trainer.method.attacks:
    raise config_lib.InputError(
        f"adversarial images: method.name={experiment.config.method.name} "
        "makes none")
  images, labels, _ = next(iter(experiment.evaluation_dataset("train")))
  images, labels = images[:count], labels[:count]
  adversarial = perturbation.Perturb(experiment.trainer)(images, labels)
  return Images(images.numpy().astype(np.float32), adversarial.numpy())


def rows(images: Images) -> list[tuple[str, np.ndarray]]:
  """What is shown: titles and float [n, h, w, c] of 0 to 1.

  The perturbation is amplified: grey is none, black and white its largest,
  which the title names.
  """
  delta = images.adversarial - images.clean
  most = np.abs(delta).max()
  return [("clean", images.clean / 255),
          (f"perturbation\n(up to {most:.1f}/255)",
           0.5 + 0.5 * delta / max(most, 1e-6)),
          ("adversarial", images.adversarial / 255)]


def draw(figure: Any, grid: Any, images: Images) -> None:
  """Draws the rows into the first places of a figure's grid."""
  for row, (title, values) in enumerate(rows(images)):
    if values.shape[-1] not in (1, 3):  # no colours
      values = values.mean(-1, keepdims=True)
    for column, value in enumerate(values):
      axis = figure.add_subplot(grid[row, column])
      axis.imshow(np.squeeze(value), cmap="gray", vmin=0, vmax=1)
      axis.set_xticks([])
      axis.set_yticks([])
      if column == 0:
        axis.set_ylabel(title)
