"""Ops fall in the right phase; profiles hold the steps that they should."""

from collections import Counter
from collections.abc import Iterator
import json
import logging
import os
import pathlib
import socket

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import attacks, methods
from conadv_tf.config import InputError
from conadv_tf.methods import method as method_lib
from conadv_tf.training import profiling
from conadv_tf.training import trainer as trainers
from tests.methods import running
from tools import step_time

LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _model(size: int = 6) -> tf.keras.Model:
  inputs = tf.keras.Input((size, size, 3))
  x = tf.keras.layers.Conv2D(4, 3, name="update")(inputs)
  x = tf.keras.layers.BatchNormalization(synchronized=True)(x)
  x = tf.keras.layers.GlobalAveragePooling2D()(tf.nn.relu(x))
  return tf.keras.Model(inputs, tf.keras.layers.Dense(3)(x))


def _data(size: int = 6, rows: int = 4) -> tf.data.Dataset:
  images = np.random.default_rng(0).random((rows, size, size, 3), np.float32)
  return running.untuned(tf.data.Dataset.from_tensors(
      (images, np.zeros(rows, np.int32)))).repeat()


def _names(graph: tf.Graph) -> Iterator[tuple[str, str]]:
  """(type, name) of all ops, those of calls and loops as they are traced."""
  definition = graph.as_graph_def()
  library = {f.signature.name: f.node_def for f in definition.library.function}

  def walk(nodes: object, prefix: str) -> Iterator[tuple[str, str]]:
    for node in nodes:
      yield node.op, prefix + node.name
      for value in node.attr.values():
        for function in [value.func, *value.list.func]:
          if function.name in library:
            yield from walk(library[function.name], f"{prefix}{node.name}/")

  return walk(definition.node, "")


def _phases(trainer: trainers.Trainer, updates: int = 1
            ) -> dict[str, Counter[str]]:
  """Phases of convolutions, their gradients, collectives and assignments."""
  strategy = trainer.distribute_strategy
  trainer.fit(_data(), steps_per_epoch=updates, verbose=0)
  iterator = iter(strategy.experimental_distribute_dataset(_data()))
  loop = trainer._loop
  graph = (loop.one.get_concrete_function(iterator) if updates == 1 else
           loop._many.get_concrete_function(iterator, tf.constant(2))).graph
  found: dict[str, Counter[str]] = {}
  for kind, name in _names(graph):
    if kind.startswith("Collective"):
      kind = "Collective"
    if kind.startswith("Assign"):
      kind = "Assign"
    if kind in ("Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput",
                "Collective", "Assign"):
      found.setdefault(kind, Counter())[profiling.phase(name)] += 1
  return found


def _trainer(method: method_lib.Method, optimizer: object = "sgd",
             steps: int = 1, **options: int) -> trainers.Trainer:
  trainer = trainers.Trainer(
      _model(), method, attacks.Pgd(radius=8, steps=steps), **options)
  trainer.compile(optimizer, LOSS)
  return trainer


# A tape asks for both gradients of a convolution, whichever is used.
_TRAINS = {"Conv2D": {"forward": 1}, "Conv2DBackpropFilter": {"backward": 1},
           "Conv2DBackpropInput": {"backward": 1}}
_ATTACKS = {kind: {"attack": 1, **phases} for kind, phases in _TRAINS.items()}


@pytest.mark.parametrize("method, steps, micro_batches, updates", [
    (methods.Vanilla(), 1, 1, 1),
    (methods.DisAdv(), 3, 2, 1),
    pytest.param(methods.ConAdv(lag=1), 1, 1, 2, marks=pytest.mark.slow),
    (methods.ConAdv(lag=2), 3, 2, 2),
])
def test_every_op_is_in_its_phase(
    method: method_lib.Method, steps: int, micro_batches: int, updates: int
) -> None:
  trainer = _trainer(method, steps=steps, micro_batches=micro_batches)
  found = _phases(trainer, updates)
  assigned = found.pop("Assign")
  assert found == (_ATTACKS if method.attacks else _TRAINS)
  assert set(assigned) == {"update", "other"}
  # Sums of the metrics, but for the gradient's norm, which the update adds,
  # the accumulator and its reset.
  metrics = [v for m in trainer.metrics for v in m.variables
             if m.name != "gradient_norm"]
  assert assigned["other"] == len(metrics) + 2 * (micro_batches > 1)
  # At least every weight and statistic, its lagged copies and two counters.
  assert assigned["update"] >= 2 + len(trainer.network.variables) * (
      1 + method.lagged_copies)


def test_scaling_the_loss_moves_no_op() -> None:
  trainer = _trainer(methods.ConAdv(), tf.keras.mixed_precision
                     .LossScaleOptimizer(tf.keras.optimizers.SGD(0.1)))
  found = _phases(trainer)
  assert set(found.pop("Assign")) == {"update", "other"}
  assert found == _ATTACKS


def test_replicas_reduce_in_their_phase(
    mirrored: tf.distribute.Strategy) -> None:
  with mirrored.scope():
    trainer = _trainer(methods.ConAdv(lag=2), bn_group_size=0)
  found = _phases(trainer)
  collectives, assigned = found.pop("Collective"), found.pop("Assign")
  assert found == {kind: {phase: 2 for phase in phases}
                   for kind, phases in _ATTACKS.items()}
  # One vector; normalisation shares statistics, never in an attack.
  assert collectives["reduction"] == 2
  assert set(collectives) == {"reduction", "forward", "backward"}
  assert set(assigned) == {"update", "other"}


@pytest.mark.parametrize("name, phase", [
    ("forward/update/Conv2D", "forward"),
    ("gradient_tape/replica_1/forward/update/Conv2D", "backward"),
    ("while/body/_1/gradient_tape/while/forward/Relu", "backward"),
    ("backward/AddN_1", "backward"),
    ("gradient_tape/attack/Conv2D/Conv2DBackpropInput", "attack"),
    ("attack/while/body/_7/gradient_tape/attack/while/Relu", "attack"),
    ("while/body/_1/while/reduction_1/concat", "reduction"),
    ("update_1/AssignAddVariableOp", "update"),
    ("attacker/Relu", "other"), ("forward2/x", "other"), ("Cast", "other")])
def test_phases_of_names(name: str, phase: str) -> None:
  assert profiling.phase(name) == phase


def test_steps_are_read_or_refused_in_one_line() -> None:
  assert profiling.parse_steps("101:110") == (101, 110)
  assert profiling.parse_steps("7:7") == (7, 7)
  for text in ("", "5", "9:3", "0:4", "-1:4", "a:b", "1:2:3", "1.0:2"):
    with pytest.raises(InputError, match="write first:last") as refusal:
      profiling.parse_steps(text)
    assert "\n" not in str(refusal.value)


def test_a_profiler_port_that_is_taken(
    monkeypatch: pytest.MonkeyPatch) -> None:
  started = []
  monkeypatch.setattr(
      tf.profiler.experimental.server, "start", started.append)
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(InputError) as refusal:
      profiling.serve(port)
  assert str(refusal.value).startswith(
      f"port {port} of --profiler_port is in use by process {os.getpid()} (")
  assert "\n" not in str(refusal.value) and not started
  profiling.serve(port)
  assert started == [port]
  with socket.create_server(("", port)):  # is free for TensorFlow's server
    pass


class _Profiles(tf.keras.callbacks.Callback):
  """What a run does around executions of `count` updates."""

  def __init__(self, profiler: profiling.StepProfiler, count: int):
    super().__init__()
    self._profiler, self._count, self._step = profiler, count, 0

  def on_train_begin(self, logs: object = None) -> None:
    self._profiler.begin(self._step, self._count)

  def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
    self._profiler.before(self._step, self._count)

  def on_train_batch_end(self, batch: int, logs: object = None) -> None:
    self._profiler.after(self._step, self._count)
    self._step += self._count

  def on_train_end(self, logs: object = None) -> None:
    self._profiler.close()


def _profile(folder: pathlib.Path, first: int, last: int, updates: int,
             count: int) -> str:
  """Profiles a training run whose ops are large enough to be traced."""
  trainer = trainers.Trainer(_model(24), methods.ConAdv(),
                             attacks.Pgd(radius=8, steps=2))
  trainer.compile("sgd", LOSS, steps_per_execution=count)
  profiler = profiling.StepProfiler(str(folder), first, last)
  trainer.fit(_data(24, 64), steps_per_epoch=updates, verbose=0,
              callbacks=[_Profiles(profiler, count)])
  return step_time.newest(str(folder))


def _steps_in_tensorboard(path: str) -> list[str]:
  convert = pytest.importorskip(
      "tensorboard_plugin_profile.convert.raw_to_tool_data",
      reason="tensorboard-plugin-profile is not installed")
  text, _ = convert.xspace_to_tool_data([path], "overview_page^", {})
  steps = next(table for table in json.loads(text) if
               [c["id"] for c in table.get("cols", [])][:1] == ["stepnum"])
  return [row["c"][0]["v"] for row in steps["rows"]]


def test_whole_executions_are_profiled_and_marked_as_steps(
    tmp_path: pathlib.Path) -> None:
  # Executions of two: updates 4 to 7 lie in those of 3-4, 5-6 and 7-8.
  path = _profile(tmp_path, 4, 7, updates=12, count=2)
  trace = step_time.gather(step_time.read(path))
  assert step_time.updates_of(path) == [2, 2, 2]
  assert len(trace.marks) == 3
  report = step_time.breakdown(trace, [2, 2, 2])
  assert (report["executions"], report["updates"]) == (3, 6)
  for phase in ("attack", "forward", "backward"):
    assert report["phases"][phase]["covered_ms"] > 0
  assert report["phases"]["reduction"]["busy_ms"] == 0
  # There are loops in these steps: of updates, and of the attack.
  assert _steps_in_tensorboard(path) == ["train 2", "train 4", "train 6"]


def test_a_run_may_end_inside_or_begin_inside(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
  path = _profile(tmp_path, 1, 100, updates=3, count=1)
  assert len(step_time.gather(step_time.read(path)).marks) == 3
  assert step_time.updates_of(path) == [1, 1, 1]
  assert "holds the first execution" in caplog.text
  assert _steps_in_tensorboard(path) == ["train 0", "train 1", "train 2"]


def _drive(profiler: profiling.StepProfiler, updates: int) -> None:
  profiler.begin(0, 1)
  for step in range(updates):
    profiler.before(step, 1)
    profiler.after(step, 1)
  profiler.close()
  profiler.close()


def test_what_fails_is_one_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
  file = tmp_path / "file"
  file.write_text("")
  _drive(profiling.StepProfiler(str(file), 2, 3), 5)  # no folder can be made
  _drive(profiling.StepProfiler(str(tmp_path / "late"), 9, 10), 5)
  tf.profiler.experimental.start(str(tmp_path / "other"))
  try:
    _drive(profiling.StepProfiler(str(tmp_path / "second"), 2, 3), 5)
  finally:
    tf.profiler.experimental.stop(save=False)
  assert not (tmp_path / "second").exists()
  warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
  assert len(warned) == 3 and all(w.startswith("no profile") for w in warned)
  assert "updates 9 to 10 were not made" in warned[1]
  assert "Another profiler is running" in warned[2]
