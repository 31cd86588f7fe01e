"""In ConAdv's graph the attack and the update do not wait for each other."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import attacks, methods
from conadv_tf.methods import method as method_lib
from conadv_tf.training import trainer as trainers


def _model() -> tf.keras.Model:
  inputs = tf.keras.Input((6, 6, 3))
  x = tf.keras.layers.Conv2D(4, 3)(inputs)
  x = tf.keras.layers.BatchNormalization()(x)
  x = tf.keras.layers.GlobalAveragePooling2D()(tf.nn.relu(x))
  return tf.keras.Model(inputs, tf.keras.layers.Dense(3)(x))


def _step_graph(method: method_lib.Method) -> tf.Graph:
  """The graph of one whole update on one device."""
  trainer = trainers.Trainer(_model(), method, attacks.Pgd(radius=8))
  trainer.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(
      from_logits=True))
  data = tf.data.Dataset.from_tensors(
      (np.zeros((4, 6, 6, 3), np.float32), np.zeros(4, np.int32))).repeat()
  trainer.fit(data, steps_per_epoch=1, verbose=0)
  return trainer._loop.one.get_concrete_function(iter(data)).graph


def _ancestors(graph: tf.Graph, scope: str) -> set[str]:
  """Names of all ops that the ops of a scope wait for."""
  waiting = [op for op in graph.get_operations()
             if op.name.startswith(scope + "/") and op.type != "Placeholder"]
  assert waiting, f"no op in scope {scope}"
  seen = {op.name for op in waiting}
  while waiting:
    op = waiting.pop()
    for parent in [t.op for t in op.inputs] + list(op.control_inputs):
      # A captured variable's handle is named after its first reader.
      if parent.type != "Placeholder" and parent.name not in seen:
        seen.add(parent.name)
        waiting.append(parent)
  return seen


def _within(names: set[str], scope: str) -> list[str]:
  return sorted(n for n in names if n.startswith(scope + "/"))


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_attack_and_update_are_independent(lag: int) -> None:
  graph = _step_graph(methods.ConAdv(lag=lag))
  for phase in ("forward", "gradient_tape/forward", "backward", "update"):
    assert not _within(_ancestors(graph, "attack"), phase)
  for phase in ("forward", "gradient_tape/forward"):
    assert not _within(_ancestors(graph, phase), "attack")


@pytest.mark.parametrize("method", [
    methods.DisAdv(), methods.ConAdv(lag=1, execution="sequential")])
def test_the_update_of_sequential_methods_waits_for_the_attack(
    method: method_lib.Method) -> None:
  # The check above can fail: here it would.
  graph = _step_graph(method)
  assert _within(_ancestors(graph, "forward"), "attack")


def test_an_attack_holds_no_collective(
    mirrored: tf.distribute.Strategy) -> None:
  with mirrored.scope():
    inputs = tf.keras.Input((6, 6, 3))
    x = tf.keras.layers.Conv2D(4, 3)(inputs)
    x = tf.keras.layers.BatchNormalization(synchronized=True)(x)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(3)(x))
    trainer = trainers.Trainer(model, methods.ConAdv(), attacks.Pgd(radius=8))
    trainer.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(
        from_logits=True))
  data = tf.data.Dataset.from_tensors(
      (np.random.rand(4, 6, 6, 3).astype(np.float32),
       np.zeros(4, np.int32))).repeat()
  trainer.fit(data, steps_per_epoch=1, verbose=0)
  iterator = iter(mirrored.experimental_distribute_dataset(data))
  graph = trainer._loop.one.get_concrete_function(iterator).graph
  collectives = [op.name for op in graph.get_operations()
                 if "Collective" in op.type]
  assert collectives  # synchronised training and the reduction
  assert not [name for name in collectives if "attack" in name]
