"""Steps that the benchmarks have in common; no flags."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

import conadv_tf as ca
from conadv_tf.methods import method as methods
from conadv_tf.training import placement

Step = Callable[[], dict[str, tf.Tensor]]

_PAPER = ca.attacks.Pgd(radius=4)
_FGSM = ca.attacks.Pgd(radius=4, random_start=0.0)
_RANDOM_START = ca.attacks.Pgd(radius=4, random_start=1.0)


class Row(NamedTuple):
  """A step that is measured.

  Attributes:
    step: runs it; its result is there when it has been read.
    function: the `tf.function` that does the work.
    iterator: its argument.
    trainer: whose step it is; None for others'.
  """

  step: Step
  function: Any
  iterator: Any
  trainer: ca.Trainer | None = None


def row(function: Any, data: Any) -> Row:
  """A `tf.function` of an iterator."""
  iterator = iter(data)
  return Row(lambda: function(iterator), function, iterator)


def optimizer() -> tf.keras.optimizers.Optimizer:
  """LARS with a rate at which random labels do no harm."""
  return ca.optimizers.Lars(1e-3, momentum=0.9, weight_decay=1e-4)


def loss() -> tf.keras.losses.Loss:
  """Cross entropy of logits and integer labels."""
  return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit_function(model: tf.keras.Model, data: Any) -> Any:
  """What `fit` calls for an execution, of an iterator; makes one update.

  Args:
    model: compiled, a plain Keras model or a trainer.
    data: endless, of batches.
  """
  functions = []

  class Capture(tf.keras.callbacks.Callback):
    """Takes the function out of a running `fit`."""

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
      del batch, logs
      functions.append(self.model.train_function)

  model.fit(data, steps_per_epoch=1, verbose=0, callbacks=[Capture()])
  return functions[0]


def fit_row(model: tf.keras.Model, data: Any,
            jit_compile: bool | None = None) -> Row:
  """What `fit` calls for an execution of one update.

  Args:
    model: a plain Keras model or a trainer, not compiled; under a strategy
      this is called in its scope.
    data: endless, of batches.
    jit_compile: as in `compile`.
  """
  model.compile(optimizer(), loss(), metrics=["accuracy"],
                jit_compile=jit_compile)
  made = row(fit_function(model, data), data)
  if isinstance(model, ca.Trainer):
    loop = model._loop  # pylint: disable=protected-access
    made = made._replace(function=loop.one, trainer=model)
  return made


def fit_step(model: tf.keras.Model, data: Any) -> Step:
  """The step of `fit_row`."""
  return fit_row(model, data).step


def trainer(method: methods.Method, model: tf.keras.Model,
            attack: ca.attacks.Pgd = _PAPER, **options: Any) -> ca.Trainer:
  """A trainer for images of 0 to 255, by default with the paper's attack."""
  return ca.Trainer(model, method, attack, pixel_range=(0., 255.), **options)


def split_trainer(model: tf.keras.Model) -> placement.TrainerWithAttackers:
  """ConAdv of lag 1 whose last replica attacks for all others."""
  return placement.TrainerWithAttackers(
      model, ca.methods.ConAdv(), _PAPER, pixel_range=(0., 255.))


class _Ours(NamedTuple):
  """A row of ours: its method, form (None: the regime's) and attack."""

  method: Callable[[], methods.Method]
  training_pass: str | None = None
  attack: ca.attacks.Pgd = _PAPER
  jit_compile: bool | None = None


def _fractions() -> dict[str, _Ours]:
  made = {}
  for name, method in (("conadv", ca.methods.ConAdv),
                       ("recycled", ca.methods.Recycled)):
    for share, form in ((0.2, "joined"), (0.2, "separate"), (0.5, None),
                        (0.6, None)):
      row_name = f"{name}_fraction_{share}" + (f"_{form}" if form else "")
      made[row_name] = _Ours(
          lambda method=method, share=share: method(
              adversarial_fraction=share), form)
  return made


OURS = {
    "vanilla": _Ours(ca.methods.Vanilla),
    "disadv_joined": _Ours(ca.methods.DisAdv, "joined"),
    "disadv_separate": _Ours(ca.methods.DisAdv, "separate"),
    "conadv_joined": _Ours(ca.methods.ConAdv, "joined"),
    "conadv_separate": _Ours(ca.methods.ConAdv, "separate"),
    "conadv_sequential": _Ours(
        lambda: ca.methods.ConAdv(execution="sequential")),
    "conadv_lag2": _Ours(lambda: ca.methods.ConAdv(lag=2)),
    "recycled_lag0": _Ours(lambda: ca.methods.Recycled(lag=0)),
    "recycled_joined": _Ours(ca.methods.Recycled, "joined"),
    "recycled_separate": _Ours(ca.methods.Recycled, "separate"),
    **_fractions(),
    "conadv_attack_every_4": _Ours(lambda: ca.methods.ConAdv(attack_every=4)),
    "vanilla_jit": _Ours(ca.methods.Vanilla, jit_compile=True),
    "conadv_jit": _Ours(ca.methods.ConAdv, jit_compile=True),
    "vanilla_bfloat16": _Ours(ca.methods.Vanilla),
    "conadv_bfloat16": _Ours(ca.methods.ConAdv),
    "recycled_shared": _Ours(
        lambda: ca.methods.Recycled(lag=0, bn_branches=1)),
    "disadv_shared": _Ours(
        lambda: ca.methods.DisAdv(bn_branches=1), attack=_FGSM),
    "disadv_shared_random_start": _Ours(
        lambda: ca.methods.DisAdv(bn_branches=1), attack=_RANDOM_START),
}


def ours(name: str, model: tf.keras.Model, data: Any, *, training_pass: str,
         micro_batches: int = 1) -> Row:
  """A row of `OURS`.

  Args:
    name: of the row.
    model: a plain Keras model.
    data: endless, of micro batches.
    training_pass: of a row that names none.
    micro_batches: of an update.
  """
  kind = OURS[name]
  return fit_row(trainer(
      kind.method(), model, kind.attack, micro_batches=micro_batches,
      training_pass=kind.training_pass or training_pass), data,
                 kind.jit_compile)
