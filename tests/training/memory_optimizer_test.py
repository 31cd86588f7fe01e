"""Loops of large tensors, which TensorFlow's memory optimizer breaks."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context as eager_context

from conadv_tf import attacks, components, methods, optimizers
from conadv_tf.training import memory_optimizer
from conadv_tf.training import trainer as trainers
from tests.methods import running


def _rewriting() -> Any:
  return eager_context.context().config.graph_options.rewrite_options


def test_other_options_stay_as_they_are() -> None:
  before = tf.config.optimizer.get_experimental_options()
  tf.config.optimizer.set_experimental_options({'remapping': True})
  try:
    memory_optimizer.disable()
    memory_optimizer.disable()
    found = _rewriting()
    assert found.memory_optimization == found.NO_MEM_OPT
    assert found.remapping == found.ON
    assert tf.config.optimizer.get_experimental_options()['remapping']
  finally:
    tf.config.optimizer.set_experimental_options(
        {'remapping': before.get('remapping', True)})


@pytest.mark.slow
def test_attack_of_several_steps_on_large_tensors() -> None:
  # Without `disable` the second or third update fails.
  random = np.random.default_rng(0)
  ids = random.integers(5, 50, (256, 96))
  tokens = np.stack([ids, np.zeros_like(ids)], -1).astype(np.int32)
  model = components.MODELS['bert'](
      (96, 2), 2, hidden_size=64, num_layers=2, num_heads=4,
      intermediate_size=128, vocab_size=50, max_positions=96)
  trainer = trainers.Trainer(
      model, methods.Scala(attacks.Perturbation(steps=3), lag=0))
  trainer.compile(optimizers.Lamb(1e-6), running.LOSS)
  data = running.untuned(tf.data.Dataset.from_tensors(
      (tokens, random.integers(0, 2, 256).astype(np.int32))))
  trainer.fit(data.repeat(), steps_per_epoch=8, verbose=0)
  assert int(trainer.step_counter) == 8
