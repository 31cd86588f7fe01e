import functools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from tests.layers import small_models

_CLEAN, _ADVERSARIAL = routing.CLEAN, routing.ADVERSARIAL
_TRAIN, _PROBE, _EVAL = (
    routing.Mode.TRAIN, routing.Mode.PROBE, routing.Mode.EVAL)

# Batch normalisations of each model, counted by hand or from the papers.
_NORMS = {
    'plain': 3, 'nested': 3, 'custom': 3, 'subclassed': 3, 'configured': 4,
    'frozen_layer': 2, 'frozen_backbone': 3, 'inference_backbone': 3,
    'frozen_inside': 2, 'shared': 1, 'resnet50': 53, 'efficientnet': 49,
    'mobilenet': 52, 'keras_cv_efficientnet': 6, 'model_garden_resnet': 21}
# Those that normalise with batch statistics in training.
_LIVE = {**_NORMS, 'frozen_layer': 1, 'frozen_backbone': 1,
         'inference_backbone': 1, 'frozen_inside': 1}
_SMALL = sorted(name for name in _NORMS if _NORMS[name] <= 4)
# A large one that is built of other people's layers is always run.
_MODELS = [pytest.param(
    name, marks=[] if name in (*_SMALL, 'keras_cv_efficientnet')
    else [pytest.mark.slow]) for name in sorted(_NORMS)]


@functools.cache
def _converted(name: str) -> tuple[tf.keras.Model, networks.Network]:
  model = small_models.randomise(getattr(small_models, name)())
  return model, networks.convert(model)


def _values(variables: list[tf.Variable]) -> list[np.ndarray]:
  return [v.numpy() for v in variables]


def _assert_bits(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
  assert len(actual) == len(expected)
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', _MODELS)
def test_every_built_batch_norm_is_converted(name: str) -> None:
  model, net = _converted(name)
  assert sum('moving_mean' in w.name for w in model.weights) == _NORMS[name]
  assert len(net.layers) == _NORMS[name]
  assert len(net._called) == _LIVE[name]
  assert len({id(v) for v in net.variables}) == len(net.variables)
  # Each branch brings 2 moving statistics, gamma and beta where there are.
  own = sum(len(v[_CLEAN].trainable()) + 2 for v in net.layer_variables)
  assert len(net.variables) == len(model.weights) + own


@pytest.mark.parametrize('name', _MODELS)
def test_evaluation_is_bit_equal_in_both_branches_and_merged(name: str) -> None:
  model, net = _converted(name)
  x = small_models.images(model, 4)
  expected = model(x, training=False).numpy()
  assert np.abs(expected).max() > 0
  for segments in (((_CLEAN, 4),), ((_ADVERSARIAL, 4),), ((_CLEAN, -1),)):
    np.testing.assert_array_equal(net.logits(x, segments, _EVAL), expected)
  for branch in (_CLEAN, _ADVERSARIAL):
    merged = net.merge(branch)
    np.testing.assert_array_equal(merged(x, training=False), expected)
    assert type(merged) is type(model)
    assert [w.shape for w in merged.weights] == [w.shape for w in model.weights]
    assert len(merged.trainable_weights) == len(model.trainable_weights)


@pytest.mark.parametrize('name', _MODELS)
def test_no_pass_assigns_a_variable(name: str) -> None:
  model, net = _converted(name)
  x = small_models.images(model, 4)
  original, before = _values(model.weights), _values(net.variables)
  for segments in (((_CLEAN, 4),), ((_CLEAN, 2), (_ADVERSARIAL, 2))):
    net.logits(x, segments, _PROBE)
    net.logits(x, segments, _EVAL)
    _, packed = net.logits(x, segments, _TRAIN, tf.constant([0, 1]))
    assert packed.shape == [net.statistics_size(segments)]
    assert packed.dtype == tf.float32
  _assert_bits(_values(net.variables), before)
  _assert_bits(_values(model.weights), original)


@pytest.mark.parametrize('name', _SMALL + ['keras_cv_efficientnet'])
def test_a_clean_training_pass_gives_what_keras_gives(name: str) -> None:
  model, net = _converted(name)
  x = small_models.images(model, 6)
  copy = networks.clone(model)
  expected = copy(x, training=True).numpy()
  actual, packed = net.logits(x, ((_CLEAN, 6),), _TRAIN, tf.constant([0, 1]))
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
  # Synchronised norms compute the variance in another way.
  np.testing.assert_allclose(
      net.logits(x, ((_CLEAN, 6),), _PROBE), actual, atol=1e-6)
  other = net.copy()
  other.update_statistics(packed, ((_CLEAN, 6),))
  if name == 'shared':
    return  # Keras takes two steps, the network one with the mean
  for a, b in zip(other.model.weights, copy.weights, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Keras's own .keras files lose sublayers in lists of custom layers.
@pytest.mark.parametrize('name, form', [
    ('plain', 'model.keras'), ('nested', 'model.keras'),
    ('nested', 'saved_model'), ('custom', 'saved_model'),
    *(pytest.param(name, 'saved_model', marks=pytest.mark.slow)
      for name in ('plain', 'subclassed'))])
def test_a_merged_model_survives_saving(
    name: str, form: str, tmp_path: pathlib.Path) -> None:
  model, net = _converted(name)
  x = small_models.images(model, 4)
  net.merge().save(tmp_path / form)
  loaded = tf.keras.models.load_model(tmp_path / form, custom_objects={
      'Block': small_models.Block, 'Subclassed': small_models.Subclassed})
  np.testing.assert_array_equal(
      loaded(x, training=False), model(x, training=False))


def test_merge_takes_the_branch_that_is_asked_for() -> None:
  model, _ = _converted('plain')
  net = networks.convert(model)
  for variables in net.layer_variables:
    for v in variables[_ADVERSARIAL].trainable():
      v.assign_add(tf.ones_like(v))
    variables[_ADVERSARIAL].moving_mean.assign_add([1., 2., 3., 4.])
  x = small_models.images(model, 4)
  clean, adversarial = (net.merge(b)(x) for b in (_CLEAN, _ADVERSARIAL))
  np.testing.assert_array_equal(clean, model(x, training=False))
  np.testing.assert_array_equal(
      adversarial, net.logits(x, ((_ADVERSARIAL, 4),), _EVAL))
  assert np.abs(clean - adversarial).max() > 0.1
  with pytest.raises(ValueError, match='augmented'):
    net.merge('augmented')


def test_the_converted_network_is_a_copy() -> None:
  model, _ = _converted('plain')
  before = _values(model.weights)
  net = networks.convert(model)
  other = net.copy()
  for v in net.variables:
    v.assign_add(tf.ones_like(v))
  _assert_bits(_values(model.weights), before)
  _assert_bits(_values(other.model.weights), before)
  other.assign(net.variables)
  _assert_bits(_values(other.variables), _values(net.variables))


def test_frozen_flags_survive_conversion_and_merge() -> None:
  for name in ('frozen_layer', 'frozen_backbone', 'frozen_inside'):
    model, net = _converted(name)
    expected = [w.shape for w in model.trainable_weights]
    assert [v.shape for v in net.model.trainable_variables] == expected
    merged = net.merge()
    assert [w.shape for w in merged.trainable_weights] == expected
    # One live norm: gamma and beta of the other branch.
    assert len(net.trainable_variables) == len(expected) + 2


def test_a_frozen_norm_uses_moving_statistics_in_every_mode() -> None:
  for name in ('frozen_layer', 'frozen_backbone', 'inference_backbone',
               'frozen_inside'):
    model, net = _converted(name)
    x = small_models.images(model, 4)
    segments = ((_CLEAN, 4),)
    assert net.statistics_size(segments) == 8, name
    expected = networks.clone(model)(x, training=True)
    np.testing.assert_allclose(
        net.logits(x, segments, _PROBE), expected, rtol=1e-5, atol=1e-5)


def test_a_model_that_was_not_built_or_cannot_be_rebuilt_is_refused() -> None:
  with pytest.raises(ValueError, match='lazy.*not built'):
    networks.convert(tf.keras.Sequential([tf.keras.layers.Dense(2)], 'lazy'))

  class Opaque(tf.keras.Model):

    def __init__(self, layer: tf.keras.layers.Layer):
      super().__init__(name='opaque')
      self.layer = layer

    def get_config(self) -> dict[str, object]:
      raise NotImplementedError

    def call(self, x: tf.Tensor) -> tf.Tensor:
      return self.layer(x)

  model = Opaque(tf.keras.layers.Dense(2))
  model(tf.zeros([1, 3]))
  with pytest.raises(ValueError, match='opaque.*get_config'):
    networks.convert(model)


def test_a_frozen_layer_inside_a_custom_one_keeps_its_own_weights() -> None:
  # Freezing changes the order of `weights` of a composite layer.
  model, net = _converted('frozen_inside')
  block = next(l for l in model.layers
               if isinstance(l, small_models.FrozenInside))
  for number, layer in enumerate(block.norms):
    own = net.layer_variables[number][_CLEAN]
    for actual, expected in zip(
        own.trainable() + own.moving(),
        [layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance],
        strict=True):
      np.testing.assert_array_equal(actual, expected)


def test_regularisers_of_every_branch_count_once() -> None:
  i = tf.keras.Input((4,))
  x = tf.keras.layers.Dense(2, kernel_initializer='ones',
                            kernel_regularizer=tf.keras.regularizers.L2(0.5))(i)
  x = small_models.BatchNorm(
      gamma_regularizer=tf.keras.regularizers.L2(0.25))(x)
  net = networks.convert(tf.keras.Model(i, x))
  net.layer_variables[0][_ADVERSARIAL].gamma.assign([2., 3.])
  net.logits(tf.random.normal([4, 4]), ((_CLEAN, 2), (_ADVERSARIAL, 2)), _TRAIN,
             tf.constant([0, 0]))
  # 0.5 * 8 ones, 0.25 * (1 + 1), 0.25 * (4 + 9)
  assert float(net.regularisation()) == 4 + 0.5 + 3.25


def test_mixed_bfloat16_models_convert() -> None:
  tf.keras.mixed_precision.set_global_policy('mixed_bfloat16')
  try:
    model = small_models.randomise(small_models.plain())
    net = networks.convert(model)
    x = small_models.images(model, 4)
    actual = net.logits(x, ((_CLEAN, 2), (_ADVERSARIAL, 2)), _EVAL)
    assert actual.dtype == tf.float32
    np.testing.assert_array_equal(
        actual, tf.cast(model(x, training=False), tf.float32))
    logits, packed = net.logits(x, ((_CLEAN, 4),), _TRAIN, tf.constant([0, 0]))
    assert logits.dtype == packed.dtype == tf.float32
    assert np.isfinite(packed).all()
    assert all(v.dtype == tf.float32 for v in net.variables)
    np.testing.assert_array_equal(
        tf.cast(net.merge()(x, training=False), tf.float32), actual)
  finally:
    tf.keras.mixed_precision.set_global_policy('float32')


class _Forgetful(tf.keras.Model):
  """Its config cannot say which activation it has."""

  def __init__(self, activation: object = tf.nn.tanh) -> None:
    super().__init__()
    self.dense = tf.keras.layers.Dense(3)
    self.activation = activation

  def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    del training
    return self.activation(self.dense(x))


def test_a_lossy_config_is_refused() -> None:
  model = _Forgetful(tf.nn.sigmoid)
  model(tf.zeros([2, 4]))
  with pytest.raises(ValueError, match='get_config'):
    networks.convert(model)


def test_several_outputs_are_refused() -> None:
  x = tf.keras.Input([4])
  layer = tf.keras.layers.Dense(2)
  with pytest.raises(ValueError, match='one output'):
    networks.convert(tf.keras.Model(x, [layer(x), layer(x)]))


def test_a_norm_over_folded_steps_is_split_by_example() -> None:
  x = tf.keras.Input([3, 4])
  y = tf.keras.layers.TimeDistributed(tf.keras.layers.BatchNormalization(
      epsilon=0.0))(x)
  net = networks.convert(tf.keras.Model(x, tf.keras.layers.Flatten()(y)))
  images = tf.random.stateless_normal([6, 3, 4], [0, 1])
  outputs, _ = net.logits(images, (('clean', 2), ('adversarial', 4)),
                          routing.Mode.TRAIN, tf.constant([0, 0]))
  for rows in (slice(0, 2), slice(2, 6)):
    part = np.reshape(outputs[rows], [-1, 4])
    np.testing.assert_allclose(part.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(part.std(0), 1.0, atol=1e-4)


def test_a_frozen_container_freezes_all_branches() -> None:
  inner = tf.keras.Sequential([
      tf.keras.Input([4]), tf.keras.layers.BatchNormalization()])
  inner.trainable = False
  inner.layers[0]._trainable = True
  net = networks.convert(tf.keras.Sequential(
      [tf.keras.Input([4]), inner, tf.keras.layers.Dense(2)]))
  assert len(net.trainable_variables) == 2
