"""In ConAdv's graph the attack and the update do not wait for each other."""

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import attacks, methods
from conadv_tf.training import trainer as trainers
from tests.methods import running


def _model() -> tf.keras.Model:
  inputs = tf.keras.Input((6, 6, 3))
  x = tf.keras.layers.Conv2D(4, 3)(tf.keras.layers.Conv2D(4, 1)(inputs))
  x = tf.keras.layers.BatchNormalization()(x)
  x = tf.keras.layers.GlobalAveragePooling2D()(tf.nn.relu(x))
  return tf.keras.Model(inputs, tf.keras.layers.Dense(3)(x))


_METHODS = {
    "vanilla": methods.Vanilla,
    "disadv": methods.DisAdv,
    **{f"lag {lag}": functools.partial(methods.ConAdv, lag=lag)
       for lag in (1, 2, 3)},
    "sequential": functools.partial(methods.ConAdv, execution="sequential"),
    "next batch": functools.partial(methods.ConAdv, pairing="next_batch"),
    "recycled": methods.Recycled,
    "recycled, lag 0": functools.partial(methods.Recycled, lag=0)}


@functools.cache  # a trace costs seconds; without the function, no graph
def _update(name: str, training_pass: str) -> Any:
  """One whole update on one device, traced."""
  trainer = trainers.Trainer(_model(), _METHODS[name](), attacks.Pgd(radius=8),
                             training_pass=training_pass)
  trainer.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(
      from_logits=True))
  data = running.untuned(tf.data.Dataset.from_tensors(
      (np.zeros((4, 6, 6, 3), np.float32), np.zeros(4, np.int32)))).repeat()
  trainer.fit(data, steps_per_epoch=1, verbose=0)
  return trainer._loop.one.get_concrete_function(iter(data))


def _step_graph(name: str, training_pass: str = "joined") -> tf.Graph:
  return _update(name, training_pass).graph


def _ancestors(graph: tf.Graph, scope: str) -> set[str]:
  """Names of all ops that the ops of a scope wait for."""
  inside = [op for op in graph.get_operations()
            if op.name.startswith(scope + "/") and op.type != "Placeholder"]
  assert inside, f"no op in scope {scope}"
  return {op.name for op in _with_ancestors(inside)}


def _with_ancestors(operations: list[tf.Operation]) -> list[tf.Operation]:
  """Ops and all that they wait for."""
  found = {op.name: op for op in operations}
  waiting = list(operations)
  while waiting:
    op = waiting.pop()
    for parent in [t.op for t in op.inputs] + list(op.control_inputs):
      # A captured variable's handle is named after its first reader.
      if parent.type != "Placeholder" and parent.name not in found:
        found[parent.name] = parent
        waiting.append(parent)
  return list(found.values())


def _within(names: set[str], scope: str) -> list[str]:
  return sorted(n for n in names if n.startswith(scope + "/"))


@pytest.mark.parametrize("lag", [
    1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_attack_and_update_are_independent(lag: int) -> None:
  graph = _step_graph(f"lag {lag}")
  for phase in ("forward", "gradient_tape/forward", "backward", "update"):
    assert not _within(_ancestors(graph, "attack"), phase)
  for phase in ("forward", "gradient_tape/forward"):
    assert not _within(_ancestors(graph, phase), "attack")


@pytest.mark.parametrize("name", ["disadv", "sequential"])
def test_the_update_of_sequential_methods_waits_for_the_attack(
    name: str) -> None:
  # The check above can fail: here it would.
  graph = _step_graph(name)
  assert _within(_ancestors(graph, "forward"), "attack")


# Of two convolutions, a pass needs the gradient to the input of the second; to
# that of the first only where images are what it is for.
@pytest.mark.parametrize("name, training_pass, filters, inputs", [
    ("vanilla", "joined", 2, 1),
    ("disadv", "joined", 2, 1 + 2),
    ("disadv", "separate", 4, 2 + 2),
    ("lag 1", "joined", 2, 1 + 2),
    pytest.param("lag 2", "separate", 4, 2 + 2, marks=pytest.mark.slow),
    pytest.param("next batch", "joined", 2, 1 + 2, marks=pytest.mark.slow),
    ("recycled", "joined", 2, 2),
    ("recycled", "separate", 4, 2 + 1),
    ("recycled, lag 0", "joined", 4, 2 + 1)])
def test_no_gradient_is_computed_that_nobody_needs(
    name: str, training_pass: str, filters: int, inputs: int) -> None:
  graph = _step_graph(name, training_pass)
  # What neither a variable nor a result waits for is pruned before it runs.
  needed = _with_ancestors([t.op for t in graph.outputs] + [
      op for op in graph.get_operations() if "Assign" in op.type
      or op.type == "ResourceScatterUpdate"])
  by_type = {kind: [op.name for op in needed if op.type == kind]
             for kind in ("Conv2DBackpropFilter", "Conv2DBackpropInput")}
  assert len(by_type["Conv2DBackpropFilter"]) == filters
  assert len(by_type["Conv2DBackpropInput"]) == inputs
  assert not [n for n in by_type["Conv2DBackpropFilter"] if "attack" in n]


@pytest.mark.parametrize("name", [
    "disadv", "recycled", pytest.param("lag 1", marks=pytest.mark.slow)])
def test_separate_passes_do_not_wait_for_each_other(name: str) -> None:
  # The clean pass beside the attack: what DisAdv's joined pass cannot do.
  graph = _step_graph(name, "separate")
  clean, *_ = [op for op in graph.get_operations() if op.type == "Conv2D"
               and op.name.startswith("forward/")]
  assert not _within({op.name for op in _with_ancestors([clean])}, "attack")


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
