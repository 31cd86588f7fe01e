"""A rebuilt model shares nothing with the one it was built from."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf.layers import rebuilding
from tests.layers import small_models

keras = tf.keras


class _Holder(keras.layers.Layer):
  """Its config holds layers, in a list and a dict."""

  def __init__(self, parts: list[keras.layers.Layer],
               named: dict[str, keras.layers.Layer]) -> None:
    super().__init__()
    self.parts, self.named = parts, named

  def call(self, x: tf.Tensor) -> tf.Tensor:
    return self.named["last"](self.parts[0](x))

  def get_config(self) -> dict[str, object]:
    return {"parts": self.parts, "named": self.named}

  @classmethod
  def from_config(cls, config: dict[str, object]) -> "_Holder":
    return cls(**config)


def _with_holder() -> keras.Model:
  nested = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
  return keras.Sequential([
      keras.Input((4,)),
      _Holder([nested], {"last": keras.layers.Dense(2)})])


@pytest.mark.parametrize("build", [
    _with_holder, small_models.model_garden_resnet, small_models.nested])
def test_nothing_is_shared(build: Callable[[], keras.Model]) -> None:
  model = build()
  copy = rebuilding.rebuild(model)
  assert type(copy) is type(model)
  assert [v.shape for v in copy.weights] == [v.shape for v in model.weights]
  assert copy.weights
  assert not {id(v) for v in copy.weights} & {id(v) for v in model.weights}
  ours, theirs = (
      {id(layer) for layer in m._flatten_layers()} for m in (copy, model))
  assert not ours & theirs
  copy.set_weights(model.get_weights())
  x = np.ones((2, *model.input_shape[1:]), np.float32)
  np.testing.assert_array_equal(copy(x), model(x))
