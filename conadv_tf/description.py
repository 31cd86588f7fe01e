"""What a run will do, in words and numbers."""

from collections.abc import Sequence
import dataclasses
import functools
import json
import math

import tensorflow as tf

from conadv_tf import attacks, components, counts, method_lines, optimizers
from conadv_tf import config as config_lib
from conadv_tf import experiment as experiments
from conadv_tf.analysis import traffic
from conadv_tf.config import mlperf_rules
from conadv_tf.distribute import strategies
from conadv_tf.layers import routed_embedding, split_batch_norm
from conadv_tf.methods import method as method_lib
from conadv_tf.training import placement, stopping

# Section 4.2 of the ConAdv paper: fewer make batch statistics inaccurate.
_IMAGES_PER_CORE = 64


@dataclasses.dataclass(frozen=True)
class _ModelFigures:
  """Sizes of a plain model; `branch_*` is what one further branch adds."""

  parameters: int  # trainable numbers
  numbers: int  # trainable or not
  tensors: int  # trainable
  excluded: int  # of the trainable tensors, those of rank <= 1
  norms: int  # batch normalisations
  branch_numbers: int
  branch_tensors: int
  embedding_width: int


def describe(experiment: experiments.Experiment) -> str:
  """What an experiment will run, a line for each aspect."""
  train = experiment.splits.train
  return "\n".join(_lines(
      experiment.config,
      counts.Counts(experiment.splits.num_training,
                    experiment.splits.validation.num_examples,
                    train.image_shape, train.num_classes),
      _measure(experiment.trainer.network.model), experiment.trainer.method,
      experiment.trainer.attack, experiment.schedule))


def describe_config(config: config_lib.ExperimentConfig,
                    machines: strategies.Machines = strategies.ALONE
                    ) -> str:
  """What a configuration would run: `describe`, and the keys it ignores.

  Nothing is trained, no device is set up, and where `counts.of_config` finds
  the figures in the configuration the data need not be there.

  Args:
    config: loaded, not resolved.
    machines: that would take part besides this process.

  Raises:
    InputError: as building the experiment would.
  """
  found, config = plan(config, machines)
  try:
    method = components.METHODS[config.method.name](config)
    attack = method.default_attack(components.attack(config.attack))
    figures = _model_figures(
        config.model.name, json.dumps(config.model.args),
        found.image_shape, found.num_classes)
  except ValueError as error:
    raise config_lib.InputError(error) from error
  lines = _lines(config, found, figures, method, attack, schedule(config))
  unused = config_lib.unused_keys(config)
  if unused:
    lines.append(f"set but not used: {', '.join(unused)}")
  return "\n".join(lines)


def plan(config: config_lib.ExperimentConfig,
         machines: strategies.Machines = strategies.ALONE
         ) -> tuple[counts.Counts, config_lib.ExperimentConfig]:
  """Returns what is known of the data, and the resolved configuration."""
  components.check_names(config)
  strategies.plan(config.runtime, machines)
  config_lib.check_batch(config)  # before the data are loaded
  found = counts.of_config(config)
  stopping.check(config.evaluation, found.num_classes,
                 components.metrics(config))
  return found, config_lib.resolve(config, found.train)


def schedule(config: config_lib.ExperimentConfig) -> components.Schedule:
  """The learning rates of a resolved configuration."""
  return components.SCHEDULES[config.schedule.name](
      config.schedule, config.derived)


def evaluation_updates(config: config_lib.ExperimentConfig) -> list[int]:
  """After which updates a run evaluates, if executions are single updates.

  Args:
    config: resolved.

  Returns:
    Numbers of finished updates, increasing; the last is the end of the run.
  """
  options, derived = config.evaluation, config.derived
  steps, total = derived.steps_per_epoch, derived.total_steps
  points = []
  epoch = options.offset_epochs or options.every_epochs
  while epoch * steps < total:
    points.append(max(1, math.ceil((epoch - 1e-9) * steps)))
    epoch += options.every_epochs
  return sorted({*points, total})


@functools.lru_cache(maxsize=None)
def _model_figures(name: str, args: str, image_shape: tuple[int, int, int],
                   num_classes: int) -> _ModelFigures:
  config = config_lib.ModelConfig(name=name, args=json.loads(args))
  return _measure(components.build_model(config, image_shape, num_classes))


def _measure(model: tf.keras.Model) -> _ModelFigures:
  """Counts; raises ValueError if the model's normalisation cannot be split."""
  trainable = {id(v) for v in model.trainable_variables}
  norms, added, added_tensors = 0, 0, 0
  for layer in model._flatten_layers():  # pylint: disable=protected-access
    split_batch_norm.check_supported(layer)
    if isinstance(layer, split_batch_norm.BATCH_NORMS) and layer.built:
      own = split_batch_norm.own_variables(layer)
      norms += 1
      added += _size(own.trainable() + own.moving())
      added_tensors += sum(id(v) in trainable for v in own.trainable())
  variables = model.trainable_variables
  return _ModelFigures(
      _size(variables), _size(model.variables), len(variables),
      len(optimizers.Lars().excluded_names(variables)), norms, added,
      added_tensors, routed_embedding.width(routed_embedding.find(model)))


def _lines(config: config_lib.ExperimentConfig, found: counts.Counts,
           figures: _ModelFigures, method: method_lib.Method,
           attack: attacks.Pgd, rates: components.Schedule) -> list[str]:
  """Every aspect of a resolved configuration."""
  work, chain = method.passes(attack)
  norms = (f"{figures.norms} batch normalisations in branches "
           f"{', '.join(method.branches)}" if figures.norms
           else "no batch normalisation")
  lines = [
      counts.line(config, found),
      f"model: {config.model.name}, {figures.parameters:,} trainable "
      f"parameters, {norms}",
      f"method: {_method_name(config)}, lag {method.lag}; forward passes F a "
      f"step: {work:g} in all, {chain:g} in a row (vanilla: 3 and 2)",
  ]
  if method.attacks:
    lines.append(
        f"attack: radius {attack.radius:g}, {attack.steps} step(s) of "
        f"{attack.resolved_step_size:g}, all in 1/255 ({attack.norm}, "
        f"{attack.direction})")
  if method.perturbs:
    lines.append(method_lines.perturbation(method))
  lines += _batch_lines(config, method, figures.norms > 0)
  lines += config_lib.describe_unlabelled(config)
  if config.growth.name != "none":
    lines.append(method_lines.growth(config))
  lines += [_rate_line(config, rates), _evaluation_line(config)]
  if config.optimizer.name in ("lars", "lamb"):
    further = (len(method.branches) - 1) * figures.branch_tensors
    lines.append(_ratio_line(config.optimizer, figures.excluded + further,
                             figures.tensors + further))
  if config.compression.bits != 32:
    added = len(method.branches) - 1
    # Of a branch's numbers half are trained, half moving statistics.
    lines.append(traffic.summary(
        config, figures.parameters + added * figures.branch_numbers // 2,
        figures.tensors + added * figures.branch_tensors))
  lines += _memory_lines(config, found, figures, method, attack)
  if config.mlperf.log:
    conflicts = mlperf_rules.conflicts(config)
    lines.append("mlperf: " + (
        "not legal in the closed division: " + "; ".join(conflicts)
        if conflicts else "legal hyper-parameters for the closed division"))
  return lines


def _ratio_line(optimizer: config_lib.OptimizerConfig, vectors: int,
                tensors: int) -> str:
  """Which tensors layer-wise rates leave out; `vectors` have rank <= 1."""
  is_lamb, clip = optimizer.name == "lamb", optimizer.trust_clip
  scales = is_lamb and optimizer.scope != "none" and optimizer.scale_vectors
  decays = is_lamb and optimizer.weight_decay > 0 and optimizer.decay_vectors
  line = (f"{optimizer.name}: {vectors} of {tensors} tensors (rank <= 1: batch "
          f"normalisation and biases) take {'' if scales else 'no '}scaling "
          f"and {'' if decays else 'no '}decay")
  if is_lamb:
    line += f"; ratios by {optimizer.scope}"
  return line + (f"; |w| within [{clip[0]:g}, {clip[1]:g}]" if clip else "")


def _method_name(config: config_lib.ExperimentConfig) -> str:
  method, said = config.method, [config.method.name]
  if method.augmented_stream != "off":
    said.append("augmented images beside clean ones")
  if method.name == "conadv" and method.adversary == "recycled":
    said.append("recycled adversaries")
  elif method.name == "conadv" and method.pairing == "next_batch":
    said.append("beside the next batch")
  if method.name != "vanilla" and method.attack_every > 1:
    said.append(f"attacking every {method.attack_every} batches")
  return ", ".join(said)


def _batch_lines(config: config_lib.ExperimentConfig,
                 method: method_lib.Method, normalises: bool) -> list[str]:
  derived, runtime = config.derived, config.runtime
  batch, rows = config.data.global_batch_size, derived.replica_batch_size
  group = config.bn.group_size or runtime.num_replicas
  segments = method.segments(rows)
  mixed = (method.attacks or method.augments) and len(segments) == 1
  images = ", ".join(f"{n * group} {'mixed' if mixed else branch}"
                     for branch, n in segments)
  # Of the paper's hardware, where a run is for it.
  cores = (f"; at {_IMAGES_PER_CORE} images a core, "
           f"{math.ceil(batch / _IMAGES_PER_CORE):,} TPU core(s)"
           if runtime.strategy == "tpu" or config.data.name == "tfrecord"
           else "")
  lines = [
      f"updates: {derived.total_steps:,} of {batch:,} examples, "
      f"{derived.steps_per_epoch:g} an epoch, for {config.schedule.epochs:g} "
      f"epochs; the first {derived.warmup_steps:,} are warm-up",
      f"batch: {batch:,} = {derived.virtual_replicas} virtual replica(s) of "
      f"{rows} = {config_lib.training_replicas(runtime)} replica(s) x "
      f"{runtime.micro_batches} micro batch(es){cores}",
  ]
  if normalises:
    lines.append(f"batch statistics: over {images} images, {group} replica(s) "
                 "together")
  return lines


def _rate_line(config: config_lib.ExperimentConfig,
               rates: components.Schedule) -> str:
  derived = config.derived
  total = derived.total_steps
  # Of names for one update, in a short run, the last one stays.
  points = {total // 4: "1/4", total // 2: "1/2", 3 * total // 4: "3/4",
            total - 1: "last", 0: "first"}
  if 0 < derived.warmup_steps < total:
    points[derived.warmup_steps] = "warm-up ends"
  said = [
      f"{points[step]} (update {step:,}, epoch "
      f"{step / derived.steps_per_epoch:.4g}) {float(rates(step)):.5g}"
      for step in sorted(points)]
  return f"learning rate, {config.schedule.name}: {'; '.join(said)}"


def _evaluation_line(config: config_lib.ExperimentConfig) -> str:
  updates = evaluation_updates(config)
  epochs = [f"{u / config.derived.steps_per_epoch:.4g}" for u in updates]
  text = (f"evaluation: {len(updates)} time(s), every "
          f"{config.evaluation.every_epochs} epoch(s), after epoch "
          f"{', '.join(epochs[:2])}")
  if len(epochs) > 3:
    text += ", ..."
  if len(epochs) > 2:
    text += f", {epochs[-1]}"
  target = config.evaluation.target_accuracy
  return text if target is None else (
      f"{text}; stops at accuracy {target:g}")


def _memory_lines(config: config_lib.ExperimentConfig, found: counts.Counts,
                  figures: _ModelFigures, method: method_lib.Method,
                  attack: attacks.Pgd) -> list[str]:
  """Bytes held between updates, over all virtual replicas."""
  lines = []
  method.embedding_width = figures.embedding_width
  held = method.held_spec(_batch_spec(config, found, method), attack)
  if method.holds:
    def size(part: object) -> int:
      return config.derived.virtual_replicas * sum(
          spec.shape.num_elements() * spec.dtype.size
          for spec in tf.nest.flatten(part))

    images = size([held.batch.image, held.batch.augmented])
    perturbations = size(held.perturbation)
    rest = size([held.batch.label, held.batch.weight])
    share = ((images + perturbations + rest)
             / config_lib.training_replicas(config.runtime))
    lines.append(
        f"held: {'tokens' if config_lib.is_text(config) else 'images'} "
        f"{_bytes(images)} "
        f"({held.batch.image.dtype.name}), perturbations "
        f"{_bytes(perturbations)} ({held.perturbation.dtype.name}), labels "
        f"and weights {_bytes(rest)}; {_bytes(share)} a replica")
  if config.runtime.placement == "split":
    lines.append(_placement_line(config, held.perturbation))
  if method.lagged_copies:
    numbers = figures.numbers + (
        len(method.branches) - 1) * figures.branch_numbers
    lines.append(f"lagged copies: {method.lagged_copies} weight set(s) of "
                 f"{_bytes(4 * numbers)} on every replica")
  return lines


def _placement_line(config: config_lib.ExperimentConfig,
                    perturbation: tf.TensorSpec) -> str:
  runtime = config.runtime
  trainers = config_lib.training_replicas(runtime)
  crossing = 4 * placement.words(perturbation) * trainers
  return (
      f"placement: replicas 0 to {trainers - 1} train, {trainers} to "
      f"{runtime.num_replicas - 1} attack, each for "
      f"{trainers // runtime.attack_replicas}; a step sums "
      f"{_bytes(runtime.micro_batches * crossing)} of perturbations over all "
      f"replicas, {_bytes(crossing)} a micro batch")


def _batch_spec(config: config_lib.ExperimentConfig, found: counts.Counts,
                method: method_lib.Method) -> method_lib.Batch:
  """One virtual replica's slice of a batch, as the pipeline makes it."""
  rows = config.derived.replica_batch_size
  image = tf.TensorSpec([rows, *found.image_shape], tf.int32 if (
      config_lib.is_text(config)) else tf.uint8)
  label = (tf.TensorSpec([rows, found.num_classes], tf.float32)
           if experiments.has_soft_labels(config)
           else tf.TensorSpec([rows], tf.float32 if found.num_classes == 1
                              else tf.int32))
  return method_lib.Batch(image, label, tf.TensorSpec([rows], tf.float32),
                          image if method.augments else ())


def _size(variables: Sequence[tf.Variable]) -> int:
  return sum(v.shape.num_elements() for v in variables)


def _bytes(number: float) -> str:
  if number < 1e6:
    return f"{number:,.0f} bytes"
  return (f"{number / 1e9:,.2f} GB" if number >= 1e9
          else f"{number / 1e6:,.1f} MB")
