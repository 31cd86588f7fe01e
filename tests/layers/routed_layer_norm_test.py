"""Layer normalisation by single operations is Keras's."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.layers import routed_layer_norm, routing


@pytest.mark.parametrize("options", [
    {}, {"epsilon": 1e-12}, {"axis": [1, 2]}, {"axis": 1, "scale": False},
    {"center": False, "epsilon": 1e-5}])
def test_it_changes_nothing(options: dict) -> None:
  random = np.random.default_rng(0)
  x = tf.constant(random.normal(size=(3, 4, 5)), tf.float32)
  layer = tf.keras.layers.LayerNormalization(**options)
  layer.build(x.shape)
  layer.set_weights([random.normal(size=w.shape) for w in layer.get_weights()])
  expected = layer(x)
  routed_layer_norm.route(layer)
  np.testing.assert_array_equal(layer(x), expected)
  for fused in (True, False):
    with routing.routing(routing.Route(
        (("clean", 3),), routing.Mode.EVAL, fused=fused)):
      found = layer(x)
    np.testing.assert_allclose(found, expected, atol=0 if fused else 3e-6)
