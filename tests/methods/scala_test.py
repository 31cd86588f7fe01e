"""ScaLA and FreeLB: their updates in NumPy, what they degenerate to."""

from collections.abc import Callable
import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import attacks, methods, optimizers, randomness
from conadv_tf.layers import network as networks
from conadv_tf.methods import method as methods_base
from conadv_tf.training import loop as loops
from conadv_tf.training import phases as phases_lib
from conadv_tf.training import trainer as trainers
from tests import tiny_text
from tests.methods import running
from tests.reference import freelb, scala

Scala, FreeLb = methods.Scala, methods.FreeLb
Perturbation = attacks.Perturbation
_ROWS, _RATE = 16, 0.5
_TARGETS = np.cos(tiny_text.LABELS).astype(np.float32)  # of a regression


def _key(t: int) -> randomness.Key:
  return randomness.make_key(0, randomness.ATTACK_NOISE, t, 0)


def _shape() -> tf.Tensor:
  return tf.zeros([_ROWS, tiny_text.LENGTH, tiny_text.WIDTH])


def _compare(method: methods_base.Method, make_twin: Any, *, classes: int = 3,
             updates: int = 4) -> None:
  model = tiny_text.model(0.0, classes)
  names = ('table', 'w1', 'b1', 'w2', 'b2')
  values = [w.astype(np.float64) for w in model.get_weights()]
  twin = make_twin(dict(zip(names, values, strict=True)))
  trainer = trainers.Trainer(model, method)
  trainer.compile(tf.keras.optimizers.SGD(_RATE),
                  running.LOSS if classes > 1 else 'mse')
  labels = tiny_text.LABELS if classes > 1 else _TARGETS
  data = running.untuned(tf.data.Dataset.from_tensor_slices(
      (tiny_text.TOKENS, labels))).batch(_ROWS)
  trainer.fit(data.repeat(), steps_per_epoch=updates, verbose=0)
  for t in range(updates):
    rows = slice(t * _ROWS, (t + 1) * _ROWS)
    twin.step(tiny_text.TOKENS[rows], labels[rows])
  actual = dict(zip(names, trainer.network.model.get_weights()))
  assert np.abs(actual['w1'] - values[1]).max() > 1e-3
  for name, value in twin.weights.items():
    np.testing.assert_allclose(actual[name], value, rtol=0, atol=2e-6,
                               err_msg=name)


@pytest.mark.parametrize('options, steps, classes', [
    (dict(weight=5.0), 1, 3),  # the paper's, but for lambda
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (dict(lag=1, delay=2, weight=5.0), 1, 3), (dict(weight=5.0), 3, 3),
        (dict(weight=5.0), 1, 1), (dict(target='labels'), 1, 3),
        (dict(weight=5.0), 0, 3)))])
def test_scala_agrees_with_numpy(options: dict[str, Any], steps: int,
                                 classes: int) -> None:
  perturbation = dataclasses.replace(running.VISIBLE, steps=steps)
  assert perturbation.start == 'normal'
  _compare(Scala(perturbation, **options), lambda weights: scala.ScalaTwin(
      weights, _RATE, 0.1, 0.2,
      lambda t: 0.1 * randomness.normal(_key(t), _shape().shape).numpy(), steps,
      options.get('weight', 1.0), options.get('target') == 'labels',
      options.get('lag', 0), options.get('delay', 0)), classes=classes)


def test_freelb_agrees_with_numpy() -> None:
  perturbation = Perturbation(radius=0.15, steps=3, step_size=0.1,
                              start='sentence', start_size=0.1)
  _compare(FreeLb(perturbation), lambda weights: freelb.FreeLbTwin(
      weights, _RATE, 0.15, 0.1,
      lambda t: 2.0 * randomness.uniform(_key(t), _shape().shape).numpy() - 1,
      0.1, 3))


# ---- The perturbation that it finds.


def _first(method: methods_base.Method, dropout: float
           ) -> tuple[methods_base.Context, methods_base.Batch]:
  """What the first update sees of a network with dropout."""
  trainer = running.make(method, model=lambda: tiny_text.model(dropout))
  batch = methods_base.Batch(
      tf.constant(tiny_text.TOKENS[:_ROWS]),
      tf.constant(tiny_text.LABELS[:_ROWS]), tf.ones([_ROWS]))
  ctx = methods_base.Context(
      network=trainer.network, attack_network=trainer.network,
      attack=trainer.attack, loss=trainer._per_example_loss, seed=0,
      step=tf.constant(0), batch_index=tf.constant(0),
      virtual_replica=tf.constant(0), pixel_range=(0., 1.))
  return ctx, batch


def _perturbation(method: Scala, dropout: float = 0.0
                  ) -> tuple[np.ndarray, np.ndarray]:
  """(y_T, mask) on the first sentences."""
  ctx, batch = _first(method, dropout)
  return (method._perturb(ctx, batch).numpy(),
          ctx.network.token_mask(batch.image).numpy())


def test_at_equality_the_gradient_is_exactly_0() -> None:
  zero = Perturbation(start='zero')
  y, _ = _perturbation(Scala(zero, dropout_masks='shared'), 0.5)
  assert not y.any()
  # Independent masks make the outputs differ, and labels have a gradient.
  assert _perturbation(Scala(zero), 0.5)[0].any()
  assert _perturbation(Scala(zero, target='labels'))[0].any()


def test_perturbations_stay_within_omega_and_off_the_padding() -> None:
  y, mask = _perturbation(Scala())  # the paper's sizes
  assert 0 < mask.mean() < 1
  assert not (y * (1 - mask)).any()
  assert np.abs(y).max() == np.float32(1e-5)
  clipped = (np.abs(y) == np.float32(1e-5)).sum() / (mask.sum() * 4)
  assert clipped > 0.6  # normalised, a step is ten times the radius
  raw, _ = _perturbation(Scala(Perturbation(direction='raw')))
  start, _ = _perturbation(Scala(Perturbation(steps=0)))
  # Without, it does not leave the start: 1e-4 times a tiny gradient.
  assert np.abs(raw - np.clip(start, -1e-5, 1e-5)).max() < 1e-8


# ---- Dropout masks of an update's passes.


_Step = Callable[[methods_base.Method], methods_base.StepResult]


@pytest.fixture(scope='module')
def first_step() -> _Step:
  """What methods make of the same weights, batch and keys; assigns none."""
  ctx, batch = _first(Scala(), 0.5)
  return lambda method: method.step(ctx, batch, ())


def test_scala_has_its_masks_shared_or_new_in_each_pass(
    first_step: _Step) -> None:
  still = lambda steps: Perturbation(start='zero', steps=steps, step_size=0.0)
  plain = first_step(methods.Vanilla())
  r = {}
  for masks, steps in (('shared', 0), ('shared', 1), ('independent', 0),
                       ('independent', 1)):
    result = first_step(Scala(still(steps), dropout_masks=masks))
    r[masks, steps] = float(result.terms['perturbed_loss'][0])
    # The clean pass has those of plain training.
    assert result.terms['clean_loss'][0] == plain.terms['loss'][0]
    np.testing.assert_array_equal(result.outputs, plain.outputs)
  assert r['shared', 0] == r['shared', 1] == 0
  # The training pass has not those of the attack's step either.
  assert 0 < r['independent', 0] != r['independent', 1] > 0


def test_freelb_has_its_masks_shared_or_new_in_each_step(
    first_step: _Step) -> None:
  def gradients(method: methods_base.Method) -> np.ndarray:
    return np.concatenate([tf.convert_to_tensor(g).numpy().ravel()
                           for g in first_step(method).gradients])

  make = lambda steps, masks='independent': FreeLb(
      Perturbation(start='zero', steps=steps, step_size=0.0),
      dropout_masks=masks)
  one, two, three = (gradients(make(k)) for k in (1, 2, 3))
  np.testing.assert_array_equal(one, gradients(methods.Vanilla()))
  np.testing.assert_array_equal(gradients(make(2, 'shared')), one)
  # Their mean is what is returned; no two of the three are equal.
  second, third = 2 * two - one, 3 * three - 2 * two
  for a, b in ((one, second), (one, third), (second, third)):
    assert np.abs(a - b).max() > 1e-3


# ---- What it degenerates to.


@pytest.mark.parametrize('method', [
    Scala(weight=0.0, lag=1),
    pytest.param(Scala(Perturbation(radius=0.0)), marks=pytest.mark.slow),
    FreeLb(Perturbation(radius=0.0))])
def test_off_is_plain_training_of_any_model(
    method: methods_base.Method) -> None:
  # The same passes, metrics and state: it is the same code.
  assert not method.perturbs and not method.holds and not method.lagged_copies
  assert (method.passes_per_step, method.longest_chain) == (3, 2)
  assert method.terms == methods.Vanilla().terms
  if isinstance(method, Scala) and method.weight:
    assert running.distance(running.train(method),
                            running.train(methods.Vanilla())) == 0


def _train(method: methods_base.Method, updates: int = 4,
           **options: Any) -> trainers.Trainer:
  trainer = running.make(method, model=tiny_text.model, **options)
  trainer.fit(running.dataset(_ROWS, method=Scala()), steps_per_epoch=updates,
              verbose=0)
  return trainer


def test_freelb_of_one_step_from_zero_is_plain_training() -> None:
  trainer = _train(FreeLb(Perturbation(start='zero')))
  assert running.distance(trainer, _train(methods.Vanilla())) == 0


def test_rows_of_weight_0_do_not_count() -> None:
  # y_0 is zero: its bits depend on the number of rows.
  method = lambda: Scala(dataclasses.replace(running.VISIBLE, start='zero'),
                         target='labels')
  trained = []
  for rows in (16, 12):
    trainer = running.make(method(), model=lambda: tiny_text.model(0.0))
    weight = (np.arange(rows) < 12).astype(np.float32)
    data = tf.data.Dataset.from_tensors(
        (tiny_text.TOKENS[:rows], tiny_text.LABELS[:rows], weight)).repeat()
    history = trainer.fit(data, steps_per_epoch=2, verbose=0).history
    trained.append((running.values(trainer), history))
  np.testing.assert_allclose(*(values for values, _ in trained), atol=1e-6)
  for key in ('loss', 'perturbed_loss', 'perturbation_l2'):
    assert trained[0][1][key] == pytest.approx(trained[1][1][key], rel=1e-5)


# ---- Delay: two traces.


def _delayed(lag: int = 1, **options: Any) -> Scala:
  return Scala(running.VISIBLE, delay=3, weight=5.0, lag=lag, **options)


class _Watch(tf.keras.callbacks.Callback):
  """Weights and logs after each execution."""

  def on_train_begin(self, logs: Any = None) -> None:
    self.values, self.logs = [], []

  def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
    self.values.append(running.values(self.model))
    self.logs.append(logs)


def _watch(method: methods_base.Method, **options: Any) -> _Watch:
  trainer, watch = running.make(
      method, model=tiny_text.model, **options), _Watch()
  trainer.fit(running.dataset(_ROWS, method=Scala()), steps_per_epoch=5,
              verbose=0, callbacks=[watch])
  return watch


def _watched(method: methods_base.Method, **options: Any
             ) -> list[np.ndarray]:
  return _watch(method, **options).values


def _lamb() -> tf.keras.optimizers.Optimizer:
  """The paper's."""
  return optimizers.Lamb(0.05, trust_clip=(0, 10))


@pytest.fixture(scope='module')
def concurrent() -> _Watch:
  return _watch(_delayed(), optimizer=_lamb)


def test_before_its_delay_it_is_lamb_bit_for_bit(concurrent: _Watch) -> None:
  plain = _watched(methods.Vanilla(), optimizer=_lamb)
  for t in range(5):
    assert np.array_equal(concurrent.values[t], plain[t]) == (t < 3), t


@pytest.mark.slow
def test_the_switch_cuts_an_execution_in_two(concurrent: _Watch) -> None:
  (at_once,) = _watched(_delayed(), optimizer=_lamb, steps_per_execution=5)
  np.testing.assert_array_equal(at_once, concurrent.values[-1])


def test_its_terms_count_from_the_delay_on(concurrent: _Watch) -> None:
  own = {'perturbed_loss', 'perturbation_linf', 'perturbation_l2'}
  for t, logs in enumerate(concurrent.logs):
    assert own & set(logs) == (own if t >= 3 else set()), t
    assert {'loss', 'clean_loss', 'accuracy', 'trust_ratio'} < set(logs)
    if t >= 3:  # a step is twice the radius
      assert logs['perturbation_linf'] == pytest.approx(0.1), t


@pytest.mark.parametrize('begun, shows', [(0, False), (1, True)])
def test_terms_are_shown_once_the_delay_has_ended(begun: int,
                                                  shows: bool) -> None:
  # A delay of 1 with lookahead: one loop, whose first update is plain.
  step = tf.Variable(begun, dtype=tf.int64)
  phases = phases_lib.Phases(Scala(running.VISIBLE, lag=1, delay=1), step)
  results = {'loss': 1.0, 'perturbed_loss': 2.0}
  parts = loops.Parts(print, print, print, print)
  phases.make(lambda _: types.SimpleNamespace(run=lambda *_: results), parts)
  phases.begin()
  assert ('perturbed_loss' in phases.run(None, 1)) == shows
  assert phases.run(None, 1) == results


@pytest.mark.slow
@pytest.mark.parametrize('method, first', [
    (lambda: _delayed(0), 3), (_delayed, 3), (lambda: _delayed(2), 3),
    (lambda: FreeLb(delay=3), 3)])
def test_other_methods_wait_too(method: Any, first: int) -> None:
  plain, waited = _watched(methods.Vanilla()), _watched(method())
  for t in range(5):
    assert np.array_equal(waited[t], plain[t]) == (t < first), t


@pytest.mark.slow
@pytest.mark.parametrize('lag', [1, 2])
def test_both_executions_agree(lag: int) -> None:
  # A delay of 1 with lookahead: no update is traced as delayed.
  for delay in (0, 1, 3):
    a, b = (_train(Scala(running.VISIBLE, lag=lag, delay=delay, weight=5.0,
                         execution=execution))
            for execution in ('concurrent', 'sequential'))
    assert running.distance(a, b) == 0


@pytest.mark.slow
@pytest.mark.parametrize('lag, resumed', [(1, 1), (1, 2), (1, 3), (2, 2),
                                          (0, 3)])
def test_resuming_on_either_side_is_exact(lag: int, resumed: int) -> None:
  make = lambda: running.make(_delayed(lag), model=tiny_text.model)
  first, second, straight = make(), make(), _train(_delayed(lag), 6)
  data = running.dataset(_ROWS, method=first.method)
  snapshot = tf.keras.callbacks.LambdaCallback(
      on_train_batch_begin=lambda batch, logs: setattr(
          first, 'snapshot_next', batch == resumed - 1))
  first.fit(data, steps_per_epoch=resumed, verbose=0, callbacks=[snapshot])
  for a, b in zip(_state(second), _state(first), strict=True):
    a.assign(b)
  second.staleness.restore_snapshot(first.staleness.snapshot)
  second.fit(data.skip(resumed), steps_per_epoch=6 - resumed, verbose=0)
  assert running.distance(second, straight) == 0


def _state(trainer: trainers.Trainer) -> list[tf.Variable]:
  copies = trainer.staleness.lagged.sets if trainer.staleness.lagged else []
  return [*trainer.network.variables, *(v for copy in copies for v in copy),
          *trainer.optimizer.variables, trainer.step_counter]


def _multiplications(trainer: trainers.Trainer, is_delayed: bool) -> int:
  """Matrix products in an update's graph: each pass has its own."""
  loop = trainer.phases._delayed if is_delayed else trainer.phases.active
  data = iter(running.dataset(_ROWS, method=Scala()))
  graph = loop.one.get_concrete_function(data).graph
  return sum(op.type in ('MatMul', 'BatchMatMulV2')
             for op in graph.get_operations())


def test_no_pass_is_built_that_a_phase_does_not_need() -> None:
  trainer, plain = _train(_delayed(), 1), _train(methods.Vanilla(), 1)
  expected = _multiplications(plain, False)
  assert _multiplications(trainer, True) == expected
  assert _multiplications(trainer, False) > 2 * expected


# ---- What is refused.


@pytest.mark.parametrize('make, message', [
    (lambda: Scala(weight=-1.0), 'weight must be at least 0'),
    (lambda: Scala(target='all'), "'outputs' or 'labels'"),
    (lambda: Scala(delay=1.5), 'delay must be an integer'),
    (lambda: Scala(dropout_masks='no'), 'independent'),
    (lambda: Perturbation(direction='up'), 'direction must be one of'),
    (lambda: FreeLb(Perturbation(steps=0)), 'steps must be at least 1'),
    (lambda: running.make(Scala(), model=running.small_network),
     'no word embeddings.*word_embeddings'),
    (lambda: running.make(Scala(), options=dict(grows=True)), 'growing batch'),
    (lambda: running.make(methods.DisAdv(), model=tiny_text.model),
     'token ids.*no attack on images')])
def test_bad_options_are_refused(make: Any, message: str) -> None:
  with pytest.raises(ValueError, match=message):
    make()


def test_embeddings_of_half_precision_are_refused() -> None:
  tokens = tf.keras.Input((6,), dtype=tf.int32)
  x = tf.keras.layers.Embedding(5, 4, dtype='mixed_bfloat16', name='e')(tokens)
  x = tf.keras.layers.Dense(3)(x[:, 0])
  network = networks.convert(tf.keras.Model(tokens, x))
  assert network.word_embeddings.name == 'e'
  with pytest.raises(ValueError, match="'e' computes in bfloat16"):
    network.check_embeddings(False, True)
