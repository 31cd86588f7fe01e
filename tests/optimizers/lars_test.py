from collections.abc import Sequence
import functools
import json
import pathlib
from typing import Any

import numpy as np
from official.modeling.optimization import lars as tfm_lars
import pytest
import tensorflow as tf

from conadv_tf.optimizers import lars, schedules
from tests.optimizers import updating
from tests.reference import lars as reference

_SHAPES = {'conv/kernel': (3, 3, 2, 4), 'dense/kernel': (6, 5), 'bias': (5,)}
_SETTINGS = dict(learning_rate=2.0, momentum=0.9, weight_decay=0.05, eeta=0.02,
                 epsilon=0.0, nesterov=False)


_variables = functools.partial(updating.variables, _SHAPES)
_gradients = functools.partial(updating.gradients, _SHAPES)
_run = functools.partial(updating.run, _SHAPES)


def _run_twin(gradients: updating.Gradients,
              excluded: Sequence[str] = ('bias',),
              **settings: Any) -> list[np.ndarray]:
  weights = [v.numpy().astype(np.float64) for v in _variables()]
  velocities = [np.zeros_like(w) for w in weights]
  for values in gradients:
    for i, (name, g) in enumerate(zip(_SHAPES, values, strict=True)):
      weights[i], velocities[i] = reference.update(
          weights[i], velocities[i], g.astype(np.float64),
          excluded=name in excluded, **settings)
  return weights


@pytest.mark.parametrize('changes', [
    {}, {'nesterov': True}, {'momentum': 0.0}, {'weight_decay': 0.0},
    {'epsilon': 0.5}, {'learning_rate': 0.3, 'eeta': 0.1},
    {'nesterov': True, 'momentum': 0.5, 'epsilon': 1e-3}])
@pytest.mark.parametrize('jit_compile', [None, False, True])
def test_twenty_updates_agree_with_the_twin(
    changes: dict[str, Any], jit_compile: bool | None) -> None:
  settings = {**_SETTINGS, **changes}
  gradients = _gradients(20)
  actual = _run(lars.Lars(**settings), gradients, jit_compile)
  expected = _run_twin(gradients, **settings)
  updating.assert_close(actual[:2], expected[:2])
  # The excluded bias moves by about 40, the scaled tensors by about 1.
  updating.assert_close(actual[2:], expected[2:], atol=2e-5)


def test_one_update_by_hand() -> None:
  w = tf.Variable([[3.0], [4.0]])
  optimizer = lars.Lars(1.0, 0.5, weight_decay=0.4, eeta=0.1, epsilon=1.0)
  optimizer.build([w])
  # |w| = 5, |g| = 2: trust = 0.1 * 5 / (2 + 0.4 * 5 + 1) = 0.1, and
  # m = 0.1 * ([0, 2] + 0.4 * [3, 4]) = [0.12, 0.36].
  optimizer.apply_gradients([(tf.constant([[0.0], [2.0]]), w)])
  np.testing.assert_allclose(w.numpy(), [[2.88], [3.64]], rtol=1e-6)
  velocity, = optimizer.momentums
  np.testing.assert_allclose(velocity.numpy(), [[0.12], [0.36]], rtol=1e-6)


def test_the_clip_bounds_the_weights_above_the_line() -> None:
  w = tf.Variable([[3.0], [4.0]])
  optimizer = lars.Lars(
      1.0, 0.0, weight_decay=0.5, eeta=0.1, trust_clip=(0.0, 2.0))
  optimizer.build([w])
  # |w| = 5, |g| = 2: trust = 0.1 * min(5, 2) / (2 + 0.5 * 5).
  gradient = tf.constant([[0.0], [2.0]])
  np.testing.assert_allclose(
      optimizer.trust_ratios([gradient], [w]).numpy(), [0.2 / 4.5], rtol=1e-6)
  optimizer.apply_gradients([(gradient, w)])
  np.testing.assert_allclose(
      w.numpy(), [[3 - 1.5 * 0.2 / 4.5], [4 - 4 * 0.2 / 4.5]], rtol=1e-6)


@pytest.mark.parametrize('trust_clip', [None, (0.0, 1e30)])
def test_without_a_clip_bits_are_those_of_the_formula(
    trust_clip: tuple[float, float] | None) -> None:
  gradients = _gradients(5)
  ours = _run(lars.Lars(**_SETTINGS, trust_clip=trust_clip), gradients)
  variables = _variables()
  velocities = [tf.zeros_like(v) for v in variables]
  for values in gradients:
    for i, (w, g) in enumerate(zip(variables, values, strict=True)):
      step = 2.0 * tf.constant(g)
      if w.shape.rank > 1:
        trust = 0.02 * tf.norm(w) / (tf.norm(g) + 0.05 * tf.norm(w) + 0.0)
        step = 2.0 * trust * (g + 0.05 * w)
      velocities[i] = 0.9 * velocities[i] + step
      w.assign_sub(velocities[i])
  updating.assert_equal(ours, variables)


def test_nesterov_by_hand() -> None:
  w = tf.Variable([1.0])
  optimizer = lars.Lars(0.5, momentum=0.5, nesterov=True)
  optimizer.build([w])
  # step = 0.5, m = 0.5, w -= 0.5 * 0.5 + 0.5; then m = 0.25 + 0.5 = 0.75 and
  # w -= 0.375 + 0.5.
  for expected in (0.25, -0.625):
    optimizer.apply_gradients([(tf.constant([1.0]), w)])
    assert w.numpy() == [expected]


def test_learning_rate_is_inside_the_velocity() -> None:
  w = tf.Variable([0.0])
  optimizer = lars.Lars(1.0, momentum=0.5)
  optimizer.build([w])
  optimizer.apply_gradients([(tf.constant([1.0]), w)])
  optimizer.learning_rate = 0.0
  # A rate of 0 stops new gradients, not the velocity of 1.
  optimizer.apply_gradients([(tf.constant([8.0]), w)])
  assert w.numpy() == [-1.5]


def test_the_scale_of_the_gradient_cancels_in_scaled_tensors() -> None:
  gradients = _gradients(5)
  large = [[8.0 * g for g in values] for values in gradients]
  settings = {**_SETTINGS, 'weight_decay': 0.0}
  one = _run(lars.Lars(**settings), gradients)
  eight = _run(lars.Lars(**settings), large)
  np.testing.assert_allclose(one[0], eight[0], rtol=1e-5, atol=1e-6)
  start = _variables()[2].numpy()
  np.testing.assert_allclose(8 * (one[2] - start), eight[2] - start, rtol=1e-5)


def test_zero_weights_and_zero_gradients_give_finite_updates() -> None:
  w = tf.Variable(tf.zeros([2, 2]))
  optimizer = lars.Lars(0.5, momentum=0.0, weight_decay=0.1)
  optimizer.build([w])
  optimizer.apply_gradients([(tf.ones([2, 2]), w)])
  np.testing.assert_array_equal(w.numpy(), np.full((2, 2), -0.5, np.float32))
  optimizer.apply_gradients([(tf.zeros([2, 2]), w)])
  np.testing.assert_allclose(w.numpy(), np.full((2, 2), -0.475), rtol=1e-6)


@pytest.mark.parametrize(
    'momentum, nesterov', [(0.0, False), (0.9, False), (0.9, True)])
def test_with_everything_excluded_it_is_keras_sgd(
    momentum: float, nesterov: bool) -> None:
  gradients = _gradients(10)
  ours = _run(lars.Lars(
      0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.3,
      exclude_from_scaling=['.']), gradients)
  keras = _run(tf.keras.optimizers.SGD(
      0.1, momentum=momentum, nesterov=nesterov), gradients)
  if nesterov:  # The two add in another order.
    updating.assert_close(ours, keras)
  else:
    updating.assert_equal(ours, keras)


@pytest.mark.parametrize('nesterov', [False, True])
def test_model_garden_agrees_where_the_formulas_coincide(
    nesterov: bool) -> None:
  gradients = _gradients(10)
  ours = _run(lars.Lars(2.0, eeta=0.02, nesterov=nesterov), gradients)
  oracle = tfm_lars.LARS(
      2.0, eeta=0.02, nesterov=nesterov, exclude_from_weight_decay=['bias'])
  variables = _variables()
  for values in gradients:
    oracle.apply_gradients(zip(values, variables, strict=True))
  updating.assert_close(ours, [v.numpy() for v in variables], atol=2e-6)


def test_exclusion_by_rank_and_by_name() -> None:
  optimizer = lars.Lars(exclude_from_scaling=['^dense/'], **_SETTINGS)
  assert optimizer.excluded_names(_variables()) == ['dense/kernel:0', 'bias:0']
  assert lars.Lars().excluded_names(_variables()) == ['bias:0']
  gradients = _gradients(5)
  expected = _run_twin(gradients, ('dense/kernel', 'bias'), **_SETTINGS)
  updating.assert_close(_run(optimizer, gradients), expected, atol=1e-5)


def test_the_schedule_is_read_at_the_update_s_index() -> None:
  w = tf.Variable([0.0])
  optimizer = lars.Lars(schedules.Constant(1.0, warmup_steps=2), momentum=0.0)
  optimizer.build([w])
  # Rates 0, 0.5, 1.
  for expected in (0.0, -0.5, -1.5):
    optimizer.apply_gradients([(tf.constant([1.0]), w)])
    assert w.numpy() == [expected]


def test_config_round_trip() -> None:
  optimizer = lars.Lars(
      schedules.Polynomial(3.0, 100, 10), momentum=0.8, weight_decay=0.01,
      eeta=0.002, epsilon=1e-5, nesterov=True, exclude_from_scaling=['bn'],
      trust_clip=(0.0, 10.0),
      clipnorm=1.5, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=7,
      jit_compile=False, name='mine')
  config = optimizer.get_config()
  assert (config['weight_decay'], config['eeta']) == (0.01, 0.002)
  assert config['exclude_from_scaling'] == ['bn']
  assert config['clipnorm'] == 1.5 and config['ema_overwrite_frequency'] == 7
  assert json.loads(json.dumps(config)) == config
  assert lars.Lars.from_config(optimizer.get_config()).get_config() == config
  serialized = tf.keras.optimizers.serialize(optimizer)
  assert serialized['registered_name'] == 'conadv_tf>Lars'
  copy = tf.keras.optimizers.deserialize(serialized)
  assert isinstance(copy, lars.Lars) and copy.get_config() == config
  gradients = _gradients(3)
  updating.assert_equal(_run(copy, gradients), _run(optimizer, gradients))


def test_checkpoint_continues_bit_for_bit(tmp_path: pathlib.Path) -> None:
  gradients = _gradients(6)
  straight = _run(lars.Lars(**_SETTINGS), gradients)
  variables, optimizer = _variables(), lars.Lars(**_SETTINGS)
  optimizer.build(variables)
  for values in gradients[:3]:
    optimizer.apply_gradients(zip(values, variables, strict=True))
  path = str(tmp_path / 'c')
  tf.train.Checkpoint(v=variables, o=optimizer).write(path)
  variables, optimizer = _variables(), lars.Lars(**_SETTINGS)
  optimizer.build(variables)
  tf.train.Checkpoint(v=variables, o=optimizer).read(path).assert_consumed()
  for values in gradients[3:]:
    optimizer.apply_gradients(zip(values, variables, strict=True))
  assert optimizer.iterations.numpy() == 6
  updating.assert_equal(straight, variables)


def test_loss_scaling_changes_nothing_and_skips_infinite_gradients() -> None:
  gradients = _gradients(4)
  plain = _run(lars.Lars(**_SETTINGS), gradients)
  scaled = tf.keras.mixed_precision.LossScaleOptimizer(
      lars.Lars(**_SETTINGS), dynamic=True, initial_scale=1024.0)
  variables = _variables()
  scaled.build(variables)
  for values in gradients:
    unscaled = scaled.get_unscaled_gradients(
        [tf.constant(g * 1024.0) for g in values])
    scaled.apply_gradients(zip(unscaled, variables, strict=True))
  updating.assert_equal(plain, variables)
  scaled.apply_gradients([(tf.fill(v.shape, np.inf), v) for v in variables])
  updating.assert_equal(plain, variables)
  assert scaled.loss_scale.numpy() == 512.0


def test_mixed_precision_layers_keep_float32_weights_and_velocities() -> None:
  layer = tf.keras.layers.Dense(2, dtype='mixed_float16')
  optimizer = lars.Lars(1e-3, momentum=0.0, weight_decay=0.0, eeta=0.1)
  x = tf.ones([4, 3])
  layer.build(x.shape)
  start = layer.kernel.numpy()
  optimizer.build(layer.trainable_variables)
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(tf.cast(layer(x), tf.float32))
  gradients = tape.gradient(loss, layer.trainable_variables)
  optimizer.apply_gradients(
      zip(gradients, layer.trainable_variables, strict=True))
  assert {m.dtype for m in optimizer.momentums} == {tf.float32}
  # Every gradient is 4; a float16 weight would lose a step this small.
  ratio = 0.1 * np.linalg.norm(start) / np.linalg.norm(np.full((3, 2), 4.0))
  np.testing.assert_allclose(
      layer.kernel.numpy(), start - 1e-3 * ratio * 4.0, rtol=0, atol=1e-7)


def test_sparse_gradient_equals_its_dense_form() -> None:
  sparse = tf.IndexedSlices(
      tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
      tf.constant([2, 0, 2]), tf.constant([4, 2]))
  results = []
  for gradient in (sparse, tf.convert_to_tensor(sparse)):
    table = tf.Variable(tf.reshape(tf.range(8.0), [4, 2]))
    optimizer = lars.Lars(**_SETTINGS)
    optimizer.build([table])
    for _ in range(3):
      optimizer.apply_gradients([(gradient, table)])
    results.append(table.numpy())
  np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


def test_clipping_and_averaging_are_the_base_class_s() -> None:
  w = tf.Variable([0.0])
  optimizer = lars.Lars(1.0, 0.0, clipvalue=0.5, use_ema=True, ema_momentum=0.5)
  optimizer.build([w])
  optimizer.apply_gradients([(tf.constant([9.0]), w)])
  assert w.numpy() == [-0.5]
  optimizer.finalize_variable_values([w])
  assert w.numpy() == [-0.25]


@pytest.mark.parametrize('arguments, message', [
    ({'learning_rate': -0.1}, 'learning_rate must be >= 0, got -0.1'),
    ({'momentum': 1.0}, r'momentum must be in \[0, 1\), got 1.0'),
    ({'weight_decay': -1e-4}, 'weight_decay must be >= 0, got -0.0001'),
    ({'weight_decay': float('nan')}, 'weight_decay must be >= 0, got nan'),
    ({'eeta': 0.0}, 'eeta must be > 0, got 0.0'),
    ({'epsilon': -1.0}, 'epsilon must be >= 0, got -1.0'),
    ({'trust_clip': (2.0, 1.0)}, r'trust_clip must be \[c_l, c_u\]'),
    ({'exclude_from_scaling': 'bn'}, "got the string 'bn'"),
    ({'exclude_from_scaling': ['(']}, r"got '\('"),
])
def test_illegal_arguments(arguments: dict[str, Any], message: str) -> None:
  with pytest.raises(ValueError, match=message):
    lars.Lars(**arguments)
