from collections.abc import Iterator
import functools
import itertools
import json
import pathlib
from typing import Any

import numpy as np
from official.modeling.optimization import lamb as tfm_lamb
import pytest
import tensorflow as tf

from conadv_tf import components, config
from conadv_tf.optimizers import lamb, schedules
from tests.optimizers import updating
from tests.reference import lamb as reference

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# Two layers; the norms of their weights lie on both sides of 10.
_SHAPES = {'conv/kernel': (3, 3, 4, 8), 'conv/bias': (8,),
           'dense/kernel': (6, 5), 'dense/bias': (5,)}
_LAYERS = (slice(0, 2), slice(2, 4))
_RATE = 0.05
_SETTINGS = dict(
    beta_1=0.9, beta_2=0.99, epsilon=1e-3, weight_decay=0.1, trust_clip=None,
    bias_correction=True, epsilon_placement='outside_root',
    decay_placement='inside_update', scope='tensor', scale_vectors=True,
    decay_vectors=True)
# Each option on its own, then together.
_CHANGES = (
    {}, {'bias_correction': False}, {'epsilon_placement': 'inside_root'},
    {'decay_placement': 'outside_update'}, {'scope': 'layer'},
    {'scope': 'none'}, {'scale_vectors': False}, {'decay_vectors': False},
    {'trust_clip': (5.0, 10.0)},
    {'scope': 'layer', 'scale_vectors': False, 'decay_vectors': False,
     'decay_placement': 'outside_update'},
    {'scope': 'layer', 'epsilon_placement': 'inside_root', 'weight_decay': 0.0,
     'trust_clip': (0.0, 10.0)})


_variables = functools.partial(updating.variables, _SHAPES)
_gradients = functools.partial(updating.gradients, _SHAPES)
_run = functools.partial(updating.run, _SHAPES)


def _run_twin(gradients: updating.Gradients, **settings: Any
              ) -> list[np.ndarray]:
  start = [v.numpy() for v in _variables()]
  twin = reference.Lamb([start[layer] for layer in _LAYERS], **settings)
  for values in gradients:
    twin.update([values[layer] for layer in _LAYERS])
  return [w for layer in twin.layers for w in layer]


@pytest.mark.parametrize('changes', _CHANGES, ids=str)
def test_twenty_updates_agree_with_the_twin(changes: dict[str, Any]) -> None:
  settings = {**_SETTINGS, **changes}
  gradients = _gradients(20)
  updating.assert_close(_run(lamb.Lamb(_RATE, **settings), gradients),
                        _run_twin(gradients, learning_rate=_RATE, **settings))


def test_every_option_of_the_twin_changes_something() -> None:
  gradients = _gradients(3)
  ends = [_run_twin(gradients, learning_rate=_RATE, **{**_SETTINGS, **changes})
          for changes in _CHANGES]
  for one, other in itertools.combinations(ends, 2):
    assert max(np.abs(a - b).max() for a, b in zip(one, other)) > 1e-4


def test_one_update_by_hand_of_a_layer() -> None:
  kernel = tf.Variable([[3.0, 4.0]], name='dense/kernel')
  bias = tf.Variable([0.0, 12.0], name='dense/bias')
  other = tf.Variable([[2.0]], name='other/kernel')
  optimizer = lamb.Lamb(0.5, 0.0, 0.0, epsilon=0.0, scope='layer',
                        trust_clip=(4.0, 6.5))
  optimizer.build([kernel, bias, other])
  gradients = [tf.constant([[8.0, -1.0]]), tf.constant([0.0, 0.25]),
               tf.constant([[5.0]])]
  # u is the gradient's sign. |w| = sqrt(9 + 16 + 144) = 13, cut to 6.5, and
  # |u| = sqrt(1 + 1 + 0 + 1); the other layer's |w| of 2 is raised to 4.
  ratio = 6.5 / np.sqrt(3.0)
  np.testing.assert_allclose(
      optimizer.trust_ratios(gradients, [kernel, bias, other]).numpy(),
      [ratio, 4.0], rtol=1e-6)
  optimizer.apply_gradients(
      zip(gradients, [kernel, bias, other], strict=True))
  updating.assert_close([kernel, bias, other], [
      [[3 - ratio / 2, 4 + ratio / 2]], [0.0, 12 - ratio / 2], [[0.0]]])


def _oracles() -> Iterator[tuple[str, Any, dict[str, Any]]]:
  """Others' LAMB with what they can leave out, and the same of ours."""
  # Seconds to import.
  from tensorflow_addons import optimizers as tfa  # pylint: disable=g-import-not-at-top
  for name, kind, decay in (('tfa', tfa.LAMB, 'weight_decay'),
                            ('tfm', tfm_lamb.LAMB, 'weight_decay_rate')):
    common = {decay: 0.1, 'beta_2': 0.99, 'epsilon': 1e-3}
    yield name, kind(_RATE, **common), {}
    yield (name, kind(_RATE, exclude_from_weight_decay=['bias'], **common),
           {'scale_vectors': False, 'decay_vectors': False})
    yield (name, kind(_RATE, exclude_from_layer_adaptation=['bias'], **common),
           {'scale_vectors': False})


def test_agrees_with_addons_and_model_garden_where_options_coincide() -> None:
  gradients = _gradients(20)
  for name, oracle, changes in _oracles():
    ours = _run(lamb.Lamb(_RATE, **{**_SETTINGS, **changes}), gradients)
    variables = _variables()
    for values in gradients:
      oracle.apply_gradients(
          [(tf.constant(g), v) for g, v in zip(values, variables)])
    for a, b in zip(ours, variables, strict=True):
      np.testing.assert_allclose(
          a, b, rtol=1e-6, atol=1e-6, err_msg=f'{name} {changes}')


def test_without_ratios_it_is_adam_and_adamw() -> None:
  gradients = _gradients(20)
  # Keras's epsilon weighs more in the first updates; here it is nothing.
  options = {**_SETTINGS, 'scope': 'none', 'epsilon': 1e-12}
  adam = dict(learning_rate=1e-2, beta_2=0.99, epsilon=1e-12)
  plain = lamb.Lamb(1e-2, **{**options, 'weight_decay': 0.0})
  updating.assert_close(_run(plain, gradients),
                        _run(tf.keras.optimizers.Adam(**adam), gradients))
  # Keras decays first, so that the decay acts on the same weights.
  decoupled = lamb.Lamb(
      1e-2, **{**options, 'decay_placement': 'outside_update'})
  updating.assert_close(_run(decoupled, gradients), _run(
      tf.keras.optimizers.AdamW(weight_decay=0.1, **adam), gradients))
  # A decay of 0 is none, so that `adamw` serves for Adam.
  updating.assert_equal(
      _run(tf.keras.optimizers.AdamW(1e-2, weight_decay=0.0), gradients),
      _run(tf.keras.optimizers.Adam(1e-2), gradients))


def test_off_values_change_nothing() -> None:
  gradients = _gradients(5)
  vanilla = _run(lamb.Lamb(_RATE, **_SETTINGS), gradients)
  wide = _run(lamb.Lamb(
      _RATE, **{**_SETTINGS, 'trust_clip': (0.0, 1e30)}), gradients)
  updating.assert_equal(wide, vanilla)
  # Without decay neither its place nor its tensors matter.
  none = {**_SETTINGS, 'weight_decay': 0.0}
  updating.assert_equal(_run(lamb.Lamb(_RATE, **none), gradients), _run(
      lamb.Lamb(_RATE, **{**none, 'decay_placement': 'outside_update',
                          'decay_vectors': False}), gradients))
  # Without vectors a layer here is one tensor.
  matrices = {**_SETTINGS, 'scale_vectors': False}
  updating.assert_equal(_run(lamb.Lamb(_RATE, **matrices), gradients), _run(
      lamb.Lamb(_RATE, **{**matrices, 'scope': 'layer'}), gradients))


def _preset(name: str) -> lamb.Lamb:
  path = _REPOSITORY / f'configs/optimizer/lamb_dat_{name}.yaml'
  loaded = config.load([str(path)])
  return components.OPTIMIZERS[loaded.optimizer.name](loaded.optimizer, _RATE)


def test_steps_of_the_released_preset_have_the_length_of_the_weights() -> None:
  optimizer, variables = _preset('released'), _variables()
  optimizer.build(variables)
  for values in _gradients(3):
    before = [v.numpy() for v in variables]
    optimizer.apply_gradients(zip(values, variables, strict=True))
    for old, new in zip(before, variables):
      np.testing.assert_allclose(
          np.linalg.norm(new.numpy() - old),
          _RATE * min(np.linalg.norm(old), 10.0), rtol=1e-5)


@pytest.mark.parametrize('name, settings', [
    ('released', dict(bias_correction=False, epsilon=1e-6, scope='tensor',
                      epsilon_placement='outside_root')),
    ('paper', dict(bias_correction=True, epsilon=1e-12, scope='layer',
                   epsilon_placement='inside_root'))])
def test_presets_are_what_paper_and_code_say(
    name: str, settings: dict[str, Any]) -> None:
  gradients = _gradients(20)
  expected = _run_twin(
      gradients, learning_rate=_RATE, beta_1=0.9, beta_2=0.999,
      weight_decay=1e-4, trust_clip=(0.0, 10.0), scale_vectors=True,
      decay_vectors=True, decay_placement='inside_update', **settings)
  # Unlike the other settings these keep float32's rounding of 1 - beta_2.
  for a, b in zip(_run(_preset(name), gradients), expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_zero_weights_and_zero_gradients_give_finite_updates() -> None:
  w = tf.Variable(tf.zeros([2, 2]))
  optimizer = lamb.Lamb(0.5, 0.0, 0.0, epsilon=0.0, trust_clip=(3.0, 10.0))
  optimizer.build([w])
  optimizer.apply_gradients([(tf.zeros([2, 2]), w)])
  assert not w.numpy().any()
  # The ratio of weights of 0 is 1, whatever c_l.
  optimizer.apply_gradients([(tf.fill([2, 2], 7.0), w)])
  np.testing.assert_array_equal(w.numpy(), np.full((2, 2), -0.5, np.float32))


def test_updates_in_a_graph_and_compiled_as_on_a_gpu_are_the_same() -> None:
  settings = {**_SETTINGS, 'scope': 'layer'}
  gradients = _gradients(3)
  compiled = lamb.Lamb(_RATE, **settings)
  compiled.jit_compile = True  # Keras turns it off where there is no GPU.
  eager = _run(lamb.Lamb(_RATE, **settings), gradients)
  updating.assert_close(_run(compiled, gradients, jit_compile=False), eager)
  graph = _run(lamb.Lamb(_RATE, **settings), gradients, jit_compile=False)
  updating.assert_close(graph, eager)


def test_config_round_trip() -> None:
  optimizer = lamb.Lamb(
      schedules.Constant(0.1), beta_1=0.8, beta_2=0.95, epsilon=1e-4,
      weight_decay=0.01, trust_clip=[0, 10], bias_correction=False,
      epsilon_placement='inside_root', decay_placement='outside_update',
      scope='layer', scale_vectors=False, decay_vectors=False, clipnorm=1.5)
  made = optimizer.get_config()
  assert made['trust_clip'] == [0, 10] and made['clipnorm'] == 1.5
  assert json.loads(json.dumps(made)) == made
  serialized = tf.keras.optimizers.serialize(optimizer)
  assert serialized['registered_name'] == 'conadv_tf>Lamb'
  copy = tf.keras.optimizers.deserialize(serialized)
  assert isinstance(copy, lamb.Lamb) and copy.get_config() == made
  gradients = _gradients(2)
  updating.assert_equal(_run(copy, gradients), _run(optimizer, gradients))


def test_loss_scaling_of_layers_changes_nothing() -> None:
  settings = {**_SETTINGS, 'scope': 'layer'}
  gradients = _gradients(2)
  plain = _run(lamb.Lamb(_RATE, **settings), gradients)
  scaled = tf.keras.mixed_precision.LossScaleOptimizer(
      lamb.Lamb(_RATE, **settings), dynamic=True, initial_scale=1024.0)
  variables = _variables()
  scaled.build(variables)
  for values in gradients:
    unscaled = scaled.get_unscaled_gradients(
        [tf.constant(g * 1024.0) for g in values])
    scaled.apply_gradients(zip(unscaled, variables, strict=True))
  updating.assert_close(variables, plain)
  before = [v.numpy() for v in variables]
  scaled.apply_gradients([(tf.fill(v.shape, np.inf), v) for v in variables])
  updating.assert_equal(before, variables)


def test_sparse_gradient_equals_its_dense_form() -> None:
  sparse = tf.IndexedSlices(
      tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
      tf.constant([2, 0, 2]), tf.constant([4, 2]))
  results = []
  for gradient in (sparse, tf.convert_to_tensor(sparse)):
    table = tf.Variable(tf.reshape(tf.range(8.0), [4, 2]))
    optimizer = lamb.Lamb(_RATE, **{**_SETTINGS, 'scope': 'layer'})
    optimizer.build([table])
    for _ in range(3):
      optimizer.apply_gradients([(gradient, table)])
    results.append(table.numpy())
  np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


@pytest.mark.parametrize('scope', [
    pytest.param('tensor', marks=pytest.mark.slow), 'layer'])
def test_two_devices_equal_one(
    scope: str, mirrored: tf.distribute.Strategy) -> None:
  gradients = _gradients(3)
  settings = {**_SETTINGS, 'scope': scope}
  expected = _run(lamb.Lamb(_RATE, **settings), gradients)
  with mirrored.scope():
    variables, optimizer = _variables(), lamb.Lamb(_RATE, **settings)
    optimizer.build(variables)

  def apply(values: list[tf.Tensor]) -> tf.Tensor:
    # A replica's part of the sum.
    replica = tf.distribute.get_replica_context()
    first = replica.replica_id_in_sync_group == 0
    shares = [tf.where(first, 0.75 * g, 0.25 * g) for g in values]
    optimizer.apply_gradients(zip(shares, variables, strict=True))
    return optimizer.trust_ratios(values, variables)

  run = tf.function(lambda values: mirrored.run(apply, (values,)))
  for values in gradients:
    ratios = run([tf.constant(g) for g in values])
  one, other = mirrored.experimental_local_results(ratios)
  np.testing.assert_array_equal(one, other)
  for variable, value in zip(variables, expected, strict=True):
    for replica in mirrored.experimental_local_results(variable):
      np.testing.assert_allclose(replica.numpy(), value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('arguments, message', [
    ({'learning_rate': -0.1}, 'learning_rate must be >= 0, got -0.1'),
    ({'beta_1': 1.0}, r'beta_1 must be in \[0, 1\), got 1.0'),
    ({'beta_2': float('nan')}, 'beta_2 must be'),
    ({'epsilon': -1.0}, 'epsilon must be >= 0, got -1.0'),
    ({'weight_decay': -1.0}, 'weight_decay must be >= 0, got -1.0'),
    ({'trust_clip': (2.0, 1.0)}, r'trust_clip must be \[c_l, c_u\]'),
    ({'trust_clip': (1.0,)}, r'got \[1.0\]'),
    ({'trust_clip': (0.0, 0.0)}, 'c_u > 0'),
    ({'scope': 'block'}, "scope must be one of tensor, layer, none, got 'bl"),
    ({'epsilon_placement': 'x'}, 'one of outside_root, inside_root'),
    ({'decay_placement': 'x'}, 'one of inside_update, outside_update'),
])
def test_illegal_arguments(arguments: dict[str, Any], message: str) -> None:
  with pytest.raises(ValueError, match=message):
    lamb.Lamb(**arguments)
