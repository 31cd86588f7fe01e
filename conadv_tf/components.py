"""What the names of a configuration stand for.

The dictionaries here are the only places where names become code.
"""

from collections.abc import Callable
import dataclasses
import difflib
from typing import Any

import tensorflow as tf

from conadv_tf import attacks, methods, optimizers
from conadv_tf import config as config_lib
from conadv_tf.data import (
  digits,
  glue,
  image_folder,
  npz,
  synthetic,
  tfds_source,
  tfrecord,
  unlabelled,
)
from conadv_tf.data import source as sources
from conadv_tf.distribute import compression as compressions
from conadv_tf.evaluation import attack_names, robust
from conadv_tf.methods import absa
from conadv_tf.methods import growth as growth_lib
from conadv_tf.methods import method as method_lib
from conadv_tf.models import (
  alexnet,
  applications,
  encoder,
  preact_resnet,
  pretrained,
  resnet,
  resnet_cifar,
  squeezenext,
  user,
  wide_resnet,
)

DATASETS: dict[
    str, Callable[[config_lib.ExperimentConfig], sources.Splits]] = {
        "digits": lambda c: digits.load(c.data),
        "glue": glue.load,
        "image_folder": lambda c: image_folder.load(c.data),
        "npz": lambda c: npz.load(c.data),
        "synthetic": lambda c: synthetic.load(c.data),
        "tfds": lambda c: tfds_source.load(c.data),
        "tfrecord": lambda c: tfrecord.load(c.data),
    }

MODELS: dict[str, Callable[..., tf.keras.Model]] = {
    "resnet8": resnet_cifar.resnet8,
    "resnet20": resnet_cifar.resnet20,
    "resnet32": resnet_cifar.resnet32,
    "resnet56": resnet_cifar.resnet56,
    "resnet18_cifar": resnet_cifar.resnet18_cifar,
    "preact_resnet18": preact_resnet.preact_resnet18,
    "wrn_16_4": wide_resnet.wrn_16_4,
    "wrn_28_10": wide_resnet.wrn_28_10,
    "squeezenext23": squeezenext.squeezenext23,
    "squeezenext23_v5": squeezenext.squeezenext23_v5,
    "svhn_c1": alexnet.svhn_c1,
    "alexnet": alexnet.alexnet,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    **{name: encoder.builder(name) for name in encoder.PRESETS},
}


def _adversarial_options(method: config_lib.MethodConfig) -> dict[str, Any]:
  return dict(adversarial_fraction=method.adversarial_fraction,
              adversarial_weight=method.adversarial_weight,
              bn_branches=method.bn_branches,
              attack_every=method.attack_every,
              rebalance_branch_gradients=method.rebalance_branch_gradients)


def _conadv(m: config_lib.MethodConfig) -> method_lib.Method:
  if m.adversary == "recycled":
    return methods.Recycled(lag=m.lag, **_adversarial_options(m))
  return methods.ConAdv(lag=m.lag, execution=m.execution, pairing=m.pairing,
                        **_adversarial_options(m))


def _perturbation(p: config_lib.PerturbationConfig) -> attacks.Perturbation:
  return attacks.Perturbation(**{
      field.name: getattr(p, field.name)
      for field in dataclasses.fields(attacks.Perturbation)})


def _scala(config: config_lib.ExperimentConfig) -> method_lib.Method:
  p = config.perturbation
  return methods.Scala(
      _perturbation(p), weight=p.weight, target=p.target,
      delay=config_lib.perturbation_delay(
          config, config.derived.steps_per_epoch),
      dropout_masks=p.dropout_masks, lag=config.method.lag,
      execution=config.method.execution)


# Of resolved configurations.
METHODS: dict[
    str, Callable[[config_lib.ExperimentConfig], method_lib.Method]] = {
    "absa": lambda c: methods.Absa(gamma=c.method.gamma, lag=c.method.lag),
    "dat": lambda c: methods.Dat(
        lag=c.method.lag, execution=c.method.execution,
        clean_weight=c.method.clean_weight, regularizer=c.method.regularizer,
        trades_weight=c.method.trades_weight,
        trades_start_std=c.method.trades_start_std),
    "vanilla": lambda c: methods.Vanilla(c.method.augmented_stream),
    "disadv": lambda c: methods.DisAdv(**_adversarial_options(c.method)),
    "conadv": lambda c: _conadv(c.method),
    "smooth_at": lambda c: methods.SmoothAt(
        c.method.sigma, c.method.noise_copies),
    "scala": _scala,
    "freelb": lambda c: methods.FreeLb(
        _perturbation(c.perturbation), delay=config_lib.perturbation_delay(
            c, c.derived.steps_per_epoch),
        dropout_masks=c.perturbation.dropout_masks),
}


def _scheduled(c: config_lib.ExperimentConfig, **gamma: Any
               ) -> growth_lib.Growth:
  boundaries = [round(epoch * c.derived.steps_per_epoch)
                for epoch in c.growth.epochs]
  return growth_lib.Scheduled(
      _max_ratio(c), boundaries, c.growth.factor, **gamma)


def _curvature(c: config_lib.ExperimentConfig, **gamma: Any
               ) -> growth_lib.Growth:
  return absa.Controller(
      _max_ratio(c), beta=c.growth.factor, alpha=c.growth.decrease,
      kappa=c.growth.patience, omega=c.method.gamma_decay,
      gamma_rule=c.method.gamma_rule, **gamma)


def _max_ratio(c: config_lib.ExperimentConfig) -> int:
  return c.growth.max_batch_size // c.data.global_batch_size


GROWTHS: dict[str, Callable[..., growth_lib.Growth]] = {
    "none": lambda c, **gamma: growth_lib.Growth(1, **gamma),
    "scheduled": _scheduled,
    "curvature": _curvature,
}


def growth(config: config_lib.ExperimentConfig) -> growth_lib.Growth:
  """The rule of a resolved configuration, at the start of its run."""
  method, vanishes = config.method, None
  if method.name == "absa" and method.gamma_epochs is not None:
    vanishes = round(method.gamma_epochs * config.derived.steps_per_epoch)
  return GROWTHS[config.growth.name](
      config, gamma=method.gamma if method.name == "absa" else 0.0,
      vanishes=vanishes)


def _keras_options(o: config_lib.OptimizerConfig) -> dict[str, Any]:
  """What every Keras optimizer can do: clip gradients, average weights."""
  options = {name: getattr(o, name)
             for name in ("clipnorm", "clipvalue", "global_clipnorm")}
  if o.ema_momentum is not None:
    options.update(use_ema=True, ema_momentum=o.ema_momentum)
  return options


OPTIMIZERS: dict[str, Callable[..., tf.keras.optimizers.Optimizer]] = {
    "lars": lambda o, lr: optimizers.Lars(
        lr, momentum=o.momentum, weight_decay=o.weight_decay, eeta=o.eeta,
        epsilon=o.epsilon or 0.0, nesterov=o.nesterov,
        trust_clip=o.trust_clip, **_keras_options(o)),
    "sgd": lambda o, lr: tf.keras.optimizers.SGD(
        lr, momentum=o.momentum, nesterov=o.nesterov,
        weight_decay=o.weight_decay or None, **_keras_options(o)),
    "adamw": lambda o, lr: tf.keras.optimizers.AdamW(
        lr, weight_decay=o.weight_decay, beta_1=o.beta_1, beta_2=o.beta_2,
        epsilon=1e-7 if o.epsilon is None else o.epsilon,
        **_keras_options(o)),
    "lamb": lambda o, lr: optimizers.Lamb(
        lr, epsilon=1e-6 if o.epsilon is None else o.epsilon,
        **{key: getattr(o, key) for key in (
            "beta_1", "beta_2", "weight_decay", "trust_clip",
            "bias_correction", "epsilon_placement", "decay_placement", "scope",
            "scale_vectors", "decay_vectors")}, **_keras_options(o)),
}

Schedule = tf.keras.optimizers.schedules.LearningRateSchedule

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "polynomial": lambda s, d: optimizers.Polynomial(
        s.peak_lr, d.decay_steps + (s.convention == "mlperf"), d.warmup_steps,
        s.power, s.end_lr),
    "cosine": lambda s, d: optimizers.Cosine(
        s.peak_lr, d.decay_steps, d.warmup_steps, s.end_lr),
    "cyclic": lambda s, d: optimizers.Cyclic(s.peak_lr, d.total_steps),
    "constant": lambda s, d: optimizers.Constant(s.peak_lr, d.warmup_steps),
    "piecewise": lambda s, d: optimizers.Piecewise(
        s.peak_lr, [round(b * d.steps_per_epoch) for b in s.boundaries],
        s.values, d.warmup_steps),
}


def _known(kind: str, table: dict[str, Any], name: str) -> Any:
  if name in table:
    return table[name]
  near = difflib.get_close_matches(name, table, n=1)
  hint = f"; did you mean {near[0]}?" if near else ""
  raise config_lib.InputError(
      f"{kind}={name}: unknown; known are {', '.join(table)}{hint}")


def _model_builder(name: str) -> Callable[..., tf.keras.Model]:
  if ":" in name:
    return user.builder(name)
  if name in MODELS:
    return MODELS[name]
  if name in applications.names():
    return applications.builder(name)
  everything = dict.fromkeys([*MODELS, *applications.names()])
  return _known("model.name", everything, name)


def load_data(config: config_lib.ExperimentConfig) -> sources.Splits:
  """Loads what a configuration names, its unlabelled images as well.

  Raises:
    InputError: if the data are not usable.
  """
  return unlabelled.add(DATASETS[config.data.name](config), config.data)


def metrics(config: config_lib.ExperimentConfig) -> tuple[str, ...]:
  """Figures of an evaluation besides the loss, the main one first."""
  return (glue.TASKS[config.text.task].metrics if config_lib.is_text(config)
          else ("accuracy",))


def build_model(model: config_lib.ModelConfig,
                image_shape: tuple[int, ...], num_classes: int
                ) -> tf.keras.Model:
  """The plain Keras model that a configuration names, not trained.

  Args:
    model: its name and arguments.
    image_shape: of one example: (h, w, c) of an image, (L, 2) of tokens.
    num_classes: number of outputs.
  """
  return _model_builder(model.name)(
      image_shape, num_classes, **(model.args or {}))


def with_sizes(config: config_lib.ExperimentConfig,
               saved: config_lib.ExperimentConfig | None = None
               ) -> config_lib.ExperimentConfig:
  """Writes a pre-trained encoder's sizes into `model.args`, in a copy.

  Args:
    config: loaded.
    saved: that of the run which goes on. It knows the sizes, so that the
      checkpoint is not needed again.

  Raises:
    InputError: if the sizes cannot be found or are not those of the model.
  """
  model, args = config.model, config.model.args or {}
  if model.initial_weights is None or model.name not in encoder.PRESETS:
    return config
  known = {}
  if saved and saved.model.initial_weights == model.initial_weights:
    known = pretrained.known(saved.model.args or {})
  args = {**known, **args} if known else pretrained.arguments(
      model.name, args, model.initial_weights)
  return config.replace(model={"args": args})


def check_names(config: config_lib.ExperimentConfig) -> None:
  """Looks up every name of the configuration; loads and builds nothing.

  Raises:
    InputError: that lists the known names.
  """
  _known("data.name", DATASETS, config.data.name)
  if config_lib.is_text(config):
    _known("text.task", glue.TASKS, config.text.task)
    glue.check(config)
    if config.text.length_buckets and config.model.name not in encoder.PRESETS:
      raise config_lib.InputError(
          f"text.length_buckets: model.name={config.model.name} may let "
          "padding count, and must not be cut; leave it out, or name one of "
          f"{', '.join(encoder.PRESETS)}")
  _model_builder(config.model.name)
  _known("method.name", METHODS, config.method.name)
  for name in config.evaluation.attacks:
    robust.named_attack(name, attack_names.run_radius(config.attack))


def attack(config: config_lib.AttackConfig) -> attacks.Pgd:
  """The attack that a configuration describes."""
  return attacks.Pgd(**{field.name: getattr(config, field.name)
                        for field in dataclasses.fields(attacks.Pgd)})


def compression(config: config_lib.CompressionConfig
                ) -> compressions.Compression:
  """How a configuration compresses gradients."""
  return compressions.Compression(**config.as_dict())
