from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.layers import network as networks
from conadv_tf.layers import routing
from tests.layers import small_models

_TRAIN, _PROBE = routing.Mode.TRAIN, routing.Mode.PROBE
_KEY = (0, 0)


def _only(layer: tf.keras.layers.Layer,
          shape: tuple[int, ...]) -> tf.keras.Model:
  i = tf.keras.Input(shape)
  return tf.keras.Model(i, layer(i))


@pytest.mark.parametrize('shape', [(5, 3, 2), (7,), (5, 2)])
@pytest.mark.parametrize('synchronised', [False, True])
def test_every_segment_is_normalised_alone(
    shape: tuple[int, ...], synchronised: bool) -> None:
  layer = small_models.BatchNorm(epsilon=0.0, synchronized=synchronised)
  net = networks.convert(_only(layer, shape))
  random = np.random.default_rng(0)
  # The fused kernel adds 1e-5 to the variance at least: make it vanish.
  x = 300 * random.normal(size=(13,) + shape) + 7
  x[:6] = 5 * x[:6] - 1000
  segments = (('clean', 6), ('adversarial', 7))
  y, packed = net.logits(tf.constant(x, tf.float32), segments, _TRAIN, _KEY)
  probed = net.logits(tf.constant(x, tf.float32), segments, _PROBE)
  channels = shape[-1]
  fused = len(shape) == 3 and not synchronised
  packed = packed.numpy().reshape(4, channels)
  for number, rows in enumerate((slice(0, 6), slice(6, 13))):
    for output in (y, probed):
      flat = output.numpy()[rows].reshape(-1, channels)
      np.testing.assert_allclose(flat.mean(0), 0, atol=2e-4)
      np.testing.assert_allclose(flat.var(0), 1, atol=2e-4)
    source = x[rows].reshape(-1, channels)
    np.testing.assert_allclose(
        packed[2 * number], source.mean(0), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(
        packed[2 * number + 1], source.var(0, ddof=int(fused)), rtol=2e-3)


@pytest.mark.parametrize('branch', ['clean', 'adversarial'])
def test_single_operations_equal_the_fused_kernel(branch: str) -> None:
  net = networks.convert(_only(small_models.BatchNorm(), (3, 2, 4)))
  for variables in net.layer_variables[0].values():
    variables.moving_mean.assign([1.0, -2.0, 3.0, 0.0])
    variables.moving_variance.assign([1e-6, 4.0, 1e-4, 1.0])
  x = tf.constant(np.random.default_rng(0).normal(size=(5, 3, 2, 4)))
  one, other = (
      net.logits(x, ((branch, 5),), routing.Mode.EVAL, fused=fused)
      for fused in (True, False))
  np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_branches_have_their_own_scale_and_shift() -> None:
  net = networks.convert(_only(small_models.BatchNorm(), (4,)))
  (variables,) = net.layer_variables
  variables['clean'].gamma.assign([2.] * 4)
  variables['adversarial'].beta.assign([9.] * 4)
  x = tf.random.stateless_normal([8, 4], [0, 0])
  y = net.logits(x, (('clean', 4), ('adversarial', 4)), _PROBE).numpy()
  np.testing.assert_allclose(y[:4].std(0), 2, rtol=1e-2)
  np.testing.assert_allclose(y[:4].mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(y[4:].mean(0), 9, atol=1e-5)


def test_gradients_reach_each_branch_from_its_rows_alone() -> None:
  net = networks.convert(_only(small_models.BatchNorm(), (4,)))
  (variables,) = net.layer_variables
  x = tf.random.stateless_normal([8, 4], [0, 0])
  own = [variables[b].beta for b in ('clean', 'adversarial')]
  with tf.GradientTape() as tape:
    y = net.logits(x, (('clean', 3), ('adversarial', 5)), _PROBE)
    loss = tf.reduce_sum(y * tf.range(8.0)[:, None])
  # d/d beta = sum of the rows' factors: 0 + 1 + 2 and 3 + ... + 7.
  np.testing.assert_allclose(tape.gradient(loss, own), [[3.] * 4, [25.] * 4])


@pytest.mark.parametrize('name', ['fused', 'unfused'])
def test_statistics_move_as_in_keras(name: str) -> None:
  model = small_models.randomise(_only(
      small_models.BatchNorm(momentum=0.93, name=name),
      (6, 5, 3) if name == 'fused' else (5,)))
  net = networks.convert(model)
  for seed in range(3):
    x = tf.random.stateless_normal([9] + model.input.shape[1:], [seed, 0])
    expected = model(x, training=True)
    for branch in net.branches:
      segments = ((branch, 9),)
      y, packed = net.logits(x, segments, _TRAIN, _KEY)
      np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
      net.update_statistics(packed, segments)
    for branch in net.branches:
      for actual, own in zip(net.layer_variables[0][branch].moving(),
                             model.non_trainable_weights, strict=True):
        # Keras's fused kernel averages (1 - f) * old + f * new by itself.
        np.testing.assert_allclose(
            actual, own, rtol=3e-7 if name == 'fused' else 0, atol=1e-7 * (
                name == 'fused'))


def test_a_shared_norm_reports_the_mean_of_its_calls() -> None:
  model = small_models.randomise(small_models.shared())
  net = networks.convert(model)
  x = small_models.images(model, 5)
  _, packed = net.logits(x, (('clean', 5),), _TRAIN, _KEY)
  # The two calls, one after the other, in NumPy.
  convolution, layer = net.model.layers[1], net.layers[0]
  first = convolution(x).numpy().reshape(-1, 4)
  y = ((first - first.mean(0)) / np.sqrt(first.var(0) + layer.epsilon)
       * layer.gamma.numpy() + layer.beta.numpy())
  second = np.maximum(y, 0) * 2 + 1
  np.testing.assert_allclose(
      packed[:4], (first.mean(0) + second.mean(0)) / 2, rtol=1e-4)
  np.testing.assert_allclose(
      packed[4:], (first.var(0, ddof=1) + second.var(0, ddof=1)) / 2,
      rtol=1e-4)
  before = layer.moving_mean.numpy()
  net.update_statistics(packed, (('clean', 5),))
  np.testing.assert_allclose(  # momentum 0.5, one step
      layer.moving_mean, (before + packed[:4]) / 2, rtol=1e-6)


def test_masked_rows_do_not_enter_the_statistics() -> None:
  i = tf.keras.Input((4, 3))
  x = tf.keras.layers.Masking(0.0)(i)
  net = networks.convert(tf.keras.Model(i, small_models.BatchNorm()(x)))
  data = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
  data[:, 2:] = 0
  _, packed = net.logits(data, (('clean', 2), ('adversarial', 4)), _TRAIN, _KEY)
  parts = [data[:2, :2].reshape(-1, 3), data[2:, :2].reshape(-1, 3)]
  expected = np.concatenate([f(0) for p in parts for f in (p.mean, p.var)])
  np.testing.assert_allclose(packed, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('option', [
    {'renorm': True}, {'virtual_batch_size': 2}])
def test_unsupported_options_are_errors_that_name_the_layer(
    option: dict[str, object]) -> None:
  layer = tf.compat.v1.keras.layers.BatchNormalization(name='odd_one', **option)
  with pytest.raises(ValueError, match=f'odd_one.*{next(iter(option))}'):
    networks.convert(_only(layer, (4, 4, 2)))


def test_a_home_made_batch_norm_is_an_error_that_names_the_layer() -> None:
  class HomeMade(tf.keras.layers.Layer):

    def build(self, shape: tf.TensorShape) -> None:
      self.moving_mean = self.add_weight('m', shape[1:], trainable=False)
      self.moving_variance = self.add_weight('v', shape[1:], trainable=False)

    def call(self, x: tf.Tensor) -> tf.Tensor:
      return x - self.moving_mean

  with pytest.raises(ValueError, match='my_own.*HomeMade'):
    networks.convert(_only(HomeMade(name='my_own'), (4,)))


class _Box:
  """A plain Python object: Keras does not look inside."""

  def __init__(self, layer: tf.keras.layers.Layer):
    self.layers = [layer]


class _Boxing(tf.keras.layers.Layer):

  def __init__(self, **kwargs: object):
    super().__init__(**kwargs)
    self.box = _Box(small_models.BatchNorm(name='in_a_box'))

  def call(self, x: tf.Tensor) -> tf.Tensor:
    return self.box.layers[0](x)


class _Closing(tf.keras.layers.Layer):

  def __init__(self, **kwargs: object):
    super().__init__(**kwargs)
    layer = small_models.BatchNorm(name='in_a_closure')
    self.function = lambda x: layer(x)

  def call(self, x: tf.Tensor) -> tf.Tensor:
    return self.function(x)


@pytest.mark.parametrize('kind, name', [
    (_Boxing, 'in_a_box'), (_Closing, 'in_a_closure')])
@pytest.mark.parametrize('shape', [(4, 4, 2), (3,)])
def test_a_norm_that_cannot_be_reached_is_an_error_that_names_it(
    kind: type, name: str, shape: tuple[int, ...]) -> None:
  with pytest.raises(ValueError, match=name):
    networks.convert(_only(kind(), shape))


def test_an_unknown_branch_is_an_error_that_names_the_layer() -> None:
  net = networks.convert(_only(small_models.BatchNorm(name='bn'), (4,)))
  with pytest.raises(ValueError, match="'bn'.*'augmented'"):
    net.logits(tf.zeros([2, 4]), (('augmented', 2),), _PROBE)


@pytest.mark.parametrize('make', [
    small_models.SyncBatchNorm,
    lambda: small_models.BatchNorm(synchronized=True)],
    ids=['SyncBatchNormalization', 'synchronized=True'])
def test_a_synchronised_norm_talks_in_training_and_not_in_attacks(
    make: Callable[[], tf.keras.layers.Layer],
    mirrored: tf.distribute.Strategy) -> None:
  with mirrored.scope():
    net = networks.convert(_only(make(), (3,)))
  x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)

  def replica() -> tuple[tf.Tensor, tf.Tensor]:
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    rows = tf.constant(x)[4 * number:4 * number + 4]
    y, _ = net.logits(rows, (('clean', 4),), _TRAIN, _KEY)
    return net.logits(rows, (('clean', 4),), _PROBE), y

  probed, trained = tf.function(lambda: mirrored.run(replica))()
  gather = lambda v: np.stack(  # [replica, row, channel]
      [t.numpy() for t in mirrored.experimental_local_results(v)])
  np.testing.assert_allclose(gather(probed).mean(1), 0, atol=1e-5)
  np.testing.assert_allclose(gather(trained).mean((0, 1)), 0, atol=1e-5)
  assert np.abs(gather(trained).mean(1)).max() > 1e-2
