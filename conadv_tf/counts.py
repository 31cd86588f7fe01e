"""What a description needs of the data, read where that is cheap."""

import dataclasses

from conadv_tf import components
from conadv_tf import config as config_lib
from conadv_tf.data import glue


@dataclasses.dataclass(frozen=True)
class Counts:
  """Sizes of the data.

  Attributes:
    train: number of training examples.
    validation: number of validation examples; None where it is not known.
    image_shape: (height, width, channels), or (tokens, 2).
    num_classes: number of classes, 1 for regression.
  """

  train: int
  validation: int | None
  image_shape: tuple[int, ...]
  num_classes: int


def of_config(config: config_lib.ExperimentConfig) -> Counts:
  """Reads the figures in the configuration; loads the data without them.

  They are there with data.train_examples, image_size and num_classes, for data
  that are held to them and have 3 channels. Sentences are counted, not
  tokenised, and where they are not there the published numbers are taken.

  Raises:
    InputError: if data that are needed are not usable.
  """
  data = config.data
  if config_lib.is_text(config):
    return Counts(*glue.sizes(config), (config.text.sequence_length, 2),
                  glue.TASKS[config.text.task].num_classes)
  held = data.name in ("tfrecord", "image_folder") or (
      data.name == "tfds" and data.preprocessing == "imagenet")
  if held and data.train_examples and data.image_size and data.num_classes:
    train = data.num_examples or data.train_examples
    if train > data.train_examples:
      raise config_lib.InputError(
          f"data.num_examples={train}: must lie in 1 .. "
          f"{data.train_examples}, the size of the training set")
    return Counts(train, data.validation_examples,
                  (data.image_size, data.image_size, 3), data.num_classes)
  splits = components.load_data(config)
  return Counts(splits.num_training, splits.validation.num_examples,
                splits.train.image_shape, splits.train.num_classes)


def line(config: config_lib.ExperimentConfig, counts: Counts) -> str:
  """The data in words."""
  validation = ("unknown" if counts.validation is None
                else f"{counts.validation:,}")
  if config_lib.is_text(config):
    name = f"{config.data.name} {config.text.task}"
    kind = f"sentences of {counts.image_shape[0]} tokens"
  else:
    name = config.data.name
    kind = f"images {'x'.join(map(str, counts.image_shape))}"
  labels = ("labels are numbers" if counts.num_classes == 1
            else f"{counts.num_classes} classes")
  return (f"data: {name}, {counts.train:,} training and {validation} "
          f"validation {kind}, {labels}")
