"""Keys of text tasks, and of what perturbs word embeddings."""

import dataclasses
import typing
from typing import Literal

from official.modeling.hyperparams import base_config

_List = typing.List  # noqa: UP006, UP035, as in schema


@dataclasses.dataclass
class TextConfig(base_config.Config):
  """What `data.name: glue` reads and how sentences become tokens.

  `vocabulary` is a vocab.txt or the folder of an encoder; null is that of
  `model.initial_weights`. `lower_case`: null is what the encoder says.
  `length_buckets`: shorter lengths, to which a batch whose longest sentence
  fits is cut; rising, empty is off.
  """
  task: str = 'sst2'
  vocabulary: str | None = None
  lower_case: bool | None = None
  sequence_length: int = 128
  length_buckets: _List[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class PerturbationConfig(base_config.Config):
  """How `scala` and `freelb` perturb word embeddings, in their own units.

  `steps: 0` leaves the random start as it is; `target: labels` ascends and
  trains on the labels' loss in place of the distance to the clean outputs;
  `weight` is of that loss. Until `delay_epochs` nothing is perturbed.
  `start_size` is a standard deviation (normal), a bound (uniform) or
  FreeLB's magnitude of the sentence (sentence).
  """
  radius: float = 1e-5
  norm: Literal['linf', 'l2'] = 'linf'
  steps: int = 1
  step_size: float = 1e-4
  direction: Literal['linf', 'sign', 'raw', 'l2'] = 'linf'
  start: Literal['normal', 'uniform', 'sentence', 'zero'] = 'normal'
  start_size: float = 1e-5
  target: Literal['outputs', 'labels'] = 'outputs'
  weight: float = 1.0
  delay_epochs: float = 0.0
  dropout_masks: Literal['independent', 'shared'] = 'independent'
