"""The experiment's dataclasses: every key, its type and its default."""

from collections.abc import Iterator, Mapping
import copy
import dataclasses
import json
import typing
from typing import Any, Literal

from official.modeling.hyperparams import base_config

from conadv_tf.config.text_schema import PerturbationConfig, TextConfig

# The base class takes list[str] for a class on Python 3.10, and fails.
_List = typing.List  # noqa: UP006, UP035


class InputError(ValueError):
  """Bad user input; the message is one line: what, where, what to do."""

  def __init__(self, message: object) -> None:
    super().__init__(
        ' '.join(line.strip() for line in str(message).splitlines()))


@dataclasses.dataclass
class DataConfig(base_config.Config):
  """What is trained on; `builder` is the TFDS name, null means no limit.

  `train_split` is the builder's split to train on.

  `num_examples` keeps a part of the training set; `train_examples` and
  `validation_examples` say how many there must be. A stream's files are read
  in `input_shards` parts, so that a worker need not read all of them.

  Of every virtual replica's rows `unlabelled_fraction` come from
  `unlabelled_path`, with label -1 or its `pseudo_labels`; null makes one pool
  of both.
  """
  name: str = 'digits'
  path: str | None = None
  builder: str | None = None
  train_split: str = 'train'
  global_batch_size: int = 256
  image_size: int | None = None
  num_classes: int | None = None
  preprocessing: Literal['resize', 'imagenet'] = 'resize'
  augment: Literal['none', 'crop_flip', 'autoaugment', 'randaugment'] = 'none'
  mixup: float = 0.0
  cutmix: float = 0.0
  cache: bool = True
  num_examples: int | None = None
  train_examples: int | None = None
  validation_examples: int | None = None
  label_offset: int = 1
  max_bad_examples: int = 0
  shuffle_buffer: int = 10000
  deterministic: bool = True
  input_shards: int = 1
  unlabelled_path: str | None = None
  unlabelled_fraction: float | None = 0.0
  pseudo_labels: bool = False


@dataclasses.dataclass
class ModelConfig(base_config.Config):
  """Which network; `args` go to its constructor and stay a plain dict.

  With `replace_head` the last layer with weights does not take its
  `initial_weights`.
  """
  # The base class would turn `args` into a Config, whose methods shadow keys.
  IMMUTABLE_TYPES = base_config.Config.IMMUTABLE_TYPES + (dict,)

  name: str = 'resnet20'
  args: dict | None = None
  initial_weights: str | None = None
  replace_head: bool = False

  def _set(self, k: str, v: Any) -> None:
    if k == 'args':
      self.__dict__[k] = copy.deepcopy(v)
    else:
      super()._set(k, v)

  def _override(
      self, override_dict: Mapping[str, Any], is_strict: bool = True) -> None:
    rest = dict(override_dict)
    if 'args' in rest:
      self._set('args', rest.pop('args'))
    super()._override(rest, is_strict)


@dataclasses.dataclass
class ObjectiveConfig(base_config.Config):
  """What is minimised."""
  label_smoothing: float = 0.0


@dataclasses.dataclass
class MethodConfig(base_config.Config):
  """How clean and adversarial examples are combined, and how stale.

  Null `adversarial_weight` gives every stream the same weight. The keys with
  `gamma` are of `name: absa`: share of adversarial rows, what divides it when
  the batch grows, and the epoch from which it is 0 (null: never). The four
  from `clean_weight` on are of `name: dat`; `trades_start_std` is in 1/255.
  `sigma` (a share of the pixel range, not in 1/255) and `noise_copies` are the
  noise of `name: smooth_at`. `augmented_stream` is of `name: vanilla`: trains
  on augmented images beside the clean ones, not in their place.
  """
  name: str = 'conadv'
  lag: int = 1
  execution: Literal['concurrent', 'sequential'] = 'concurrent'
  adversary: Literal['fresh', 'recycled'] = 'fresh'
  adversarial_fraction: float = 1.0
  adversarial_weight: float | None = None
  pairing: Literal['same_batch', 'next_batch'] = 'same_batch'
  attack_every: int = 1
  bn_branches: Literal[1, 2, 3] = 2
  rebalance_branch_gradients: bool = False
  gamma: float = 0.2
  gamma_decay: float = 2.0
  gamma_epochs: float | None = None
  gamma_rule: Literal['paper', 'released'] = 'paper'
  clean_weight: float = 0.0
  regularizer: Literal['cross_entropy', 'trades'] = 'cross_entropy'
  trades_weight: float = 6.0
  trades_start_std: float = 0.255
  sigma: float = 0.25
  noise_copies: int = 2
  augmented_stream: Literal['off', 'shared', 'split'] = 'off'


@dataclasses.dataclass
class AttackConfig(base_config.Config):
  """How an adversary is made; radius and step_size are in 1/255.

  Null `step_size` means radius for 1 step, else 2.5 * radius / steps; null
  `random_start`, `branch` and `mode` mean the method's own default.
  """
  radius: float = 4.0
  step_size: float | None = None
  steps: int = 1
  norm: Literal['linf', 'l2'] = 'linf'
  direction: Literal['sign', 'raw', 'l2'] = 'sign'
  random_start: float | None = None
  target: Literal['none', 'random'] = 'none'
  branch: Literal['adversarial', 'clean'] | None = None
  mode: Literal['batch', 'moving'] | None = None


@dataclasses.dataclass
class GrowthConfig(base_config.Config):
  """How the batch grows from `data.global_batch_size` to `max_batch_size`.

  By `factor` at each of `epochs` (`scheduled`, in place of a decay of the
  learning rate), or where the Hessian's largest eigenvalue falls by `decrease`
  or has not done so in `patience` evaluations (`curvature`).
  """
  name: Literal['none', 'scheduled', 'curvature'] = 'none'
  max_batch_size: int | None = None
  factor: int = 2
  epochs: _List[float] = dataclasses.field(default_factory=list)
  decrease: float = 2.0
  patience: int = 10


@dataclasses.dataclass
class CurvatureConfig(base_config.Config):
  """The estimate during training of the Hessian's largest eigenvalue.

  Every `every_samples` examples (0: an epoch), on so many random training
  `examples`, of all layers or the `last_layers` with weights. `monitor`
  estimates it also where nothing depends on it.
  """
  monitor: bool = False
  every_samples: int = 0
  examples: int = 128
  last_layers: int = 0
  iterations: int = 10
  tolerance: float = 1e-2


@dataclasses.dataclass
class CompressionConfig(base_config.Config):
  """How gradients are quantised between replicas; 32 bits: not at all.

  A norm for each tensor, or for each `bucket` numbers. `sides: 2` quantises
  the sum too. `per: virtual_replica` computes what as many workers would, but
  sends no less.
  """
  bits: int = 32
  bucket: int = 0
  norm: Literal['l2', 'max'] = 'l2'
  sides: Literal[1, 2] = 1
  exchange: Literal['gather', 'scatter'] = 'gather'
  per: Literal['replica', 'virtual_replica'] = 'replica'
  error_feedback: bool = False


@dataclasses.dataclass
class BatchNormConfig(base_config.Config):
  """Replicas that share batch statistics in training; 0 means all."""
  group_size: int = 1


@dataclasses.dataclass
class OptimizerConfig(base_config.Config):
  """Null `epsilon` means the optimizer's own default, other nulls off.

  `trust_clip` bounds |w| in the trust ratios of lars and lamb; the keys after
  it are lamb's: where epsilon and decay are, what shares a ratio (`none`:
  no ratios), and whether tensors of rank 1 or less have ratios and decay.
  """
  name: Literal['lars', 'sgd', 'adamw', 'lamb'] = 'lars'
  momentum: float = 0.9
  nesterov: bool = False
  weight_decay: float = 1e-4
  eeta: float = 1e-3
  epsilon: float | None = None
  beta_1: float = 0.9
  beta_2: float = 0.999
  clipnorm: float | None = None
  clipvalue: float | None = None
  global_clipnorm: float | None = None
  ema_momentum: float | None = None
  trust_clip: _List[float] | None = None
  bias_correction: bool = True
  epsilon_placement: Literal['outside_root', 'inside_root'] = 'outside_root'
  decay_placement: Literal[
      'inside_update', 'outside_update'] = 'inside_update'
  scope: Literal['tensor', 'layer', 'none'] = 'tensor'
  scale_vectors: bool = True
  decay_vectors: bool = True


@dataclasses.dataclass
class ScheduleConfig(base_config.Config):
  """Learning rate over time, in epochs; `values` are factors of peak_lr.

  At `decay_epochs` the rate reaches end_lr and stays; null: at the end.

  `convention: mlperf` counts as the MLPerf reference does: whole updates an
  epoch (N // B), and a decay that is one update longer than the run;
  `whole_passes`: an epoch's last micro batch counts as a whole one.
  """
  name: Literal[
      'polynomial', 'piecewise', 'cosine', 'cyclic', 'constant'] = 'polynomial'
  epochs: float = 20.0
  peak_lr: float = 2.0
  warmup_epochs: float = 0.0
  power: float = 2.0
  end_lr: float = 1e-4
  decay_epochs: float | None = None
  boundaries: _List[float] = dataclasses.field(default_factory=list)
  values: _List[float] = dataclasses.field(default_factory=list)
  convention: Literal[
      'exact', 'mlperf', 'whole_passes'] = 'exact'


@dataclasses.dataclass
class RuntimeConfig(base_config.Config):
  """Where and how it runs; changes no result beyond rounding.

  Null `num_replicas` takes every device (of CPUs, one a process), null
  `stall_seconds` waits for ever, null `training_pass` is the method's own.
  `placement: split` makes adversaries on `attack_replicas` of the replicas,
  which do not train. `on_nan: skip_step` leaves the weights as they are where
  an update is not finite. Replicas sum their gradients in pieces of
  `reduce_pack_mib` MiB, 0: in one.
  """
  strategy: Literal[
      'one_device', 'mirrored', 'multi_worker_mirrored', 'tpu'] = 'one_device'
  num_replicas: int | None = None
  communication: Literal['auto', 'ring', 'nccl'] = 'auto'
  micro_batches: int = 1
  precision: Literal['float32', 'mixed_bfloat16', 'mixed_float16'] = 'float32'
  reduce_dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32'
  reduce_pack_mib: float = 8.0
  deterministic: bool = False
  jit_compile: bool = False
  training_pass: Literal['joined', 'separate'] | None = None
  placement: Literal['together', 'split'] = 'together'
  attack_replicas: int = 1
  steps_per_execution: int = 1
  on_nan: Literal['stop', 'skip_step'] = 'stop'
  stall_seconds: float | None = 1800.0


@dataclasses.dataclass
class CheckpointConfig(base_config.Config):
  """How often a run can be resumed from, and how many are kept."""
  every_epochs: float = 1.0
  every_minutes: float | None = None
  keep: int = 3


@dataclasses.dataclass
class EvaluationConfig(base_config.Config):
  """`train_examples` are evaluated for the generalisation gap; 0 is off.

  `target_accuracy` stops the run where validation accuracy reaches it,
  `patience` after so many evaluations without a better `monitor`.
  """
  every_epochs: int = 1
  offset_epochs: int = 0
  batch_size: int = 256
  attacks: _List[str] = dataclasses.field(default_factory=list)
  train_examples: int = 0
  target_accuracy: float | None = None
  patience: int | None = None
  monitor: str = 'accuracy'


@dataclasses.dataclass
class MlperfConfig(base_config.Config):
  """A compliant log at model_dir/mlperf.log; what its head names.

  `cache_cleared` is the submitter's word that the launcher did so.
  """
  log: bool = False
  organization: str = 'none'
  platform: str = 'none'
  division: Literal['closed', 'open'] = 'closed'
  status: Literal['cloud', 'onprem', 'preview', 'research'] = 'research'
  cache_cleared: bool = False


@dataclasses.dataclass
class DerivedConfig(base_config.Config):
  """Filled by `resolve`; ignored where a configuration is loaded."""
  num_examples: int = 0
  total_steps: int = 0
  warmup_steps: int = 0
  decay_steps: int = 0
  steps_per_epoch: float = 0.0
  micro_batch_size: int = 0
  replica_batch_size: int = 0
  virtual_replicas: int = 0
  step_size: float = 0.0


def _group(config_type: type) -> Any:
  return dataclasses.field(default_factory=config_type)


@dataclasses.dataclass
class ExperimentConfig(base_config.Config):
  """Everything a run depends on."""
  seed: int = 0
  data: DataConfig = _group(DataConfig)
  text: TextConfig = _group(TextConfig)
  model: ModelConfig = _group(ModelConfig)
  objective: ObjectiveConfig = _group(ObjectiveConfig)
  method: MethodConfig = _group(MethodConfig)
  attack: AttackConfig = _group(AttackConfig)
  perturbation: PerturbationConfig = _group(PerturbationConfig)
  growth: GrowthConfig = _group(GrowthConfig)
  curvature: CurvatureConfig = _group(CurvatureConfig)
  compression: CompressionConfig = _group(CompressionConfig)
  bn: BatchNormConfig = _group(BatchNormConfig)
  optimizer: OptimizerConfig = _group(OptimizerConfig)
  schedule: ScheduleConfig = _group(ScheduleConfig)
  runtime: RuntimeConfig = _group(RuntimeConfig)
  checkpoint: CheckpointConfig = _group(CheckpointConfig)
  evaluation: EvaluationConfig = _group(EvaluationConfig)
  mlperf: MlperfConfig = _group(MlperfConfig)
  derived: DerivedConfig = _group(DerivedConfig)


def training_replicas(runtime: RuntimeConfig) -> int:
  """Returns how many replicas train, all where none only attacks."""
  attacking = runtime.attack_replicas if runtime.placement == 'split' else 0
  return (runtime.num_replicas or 1) - attacking


def flatten(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Yields (dotted key, value) for every key of every group."""
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from ((f'{name}.{inner}', v) for inner, v in value.items())
    else:
      yield name, value


def show(value: Any) -> str:
  """Returns a value as messages print it."""
  return json.dumps(value, default=str, ensure_ascii=False)
