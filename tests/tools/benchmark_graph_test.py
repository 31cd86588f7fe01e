"""Work counted by hand, and times on the graph that runs."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from tools import benchmark_graph, benchmark_rows


def _concrete(function: Callable, *shapes: list[int]) -> tf.Graph:
  return tf.function(function, autograph=False).get_concrete_function(
      *(tf.TensorSpec(shape) for shape in shapes)).graph


def _convolution(padded: bool, stride: int, to: tuple[str, ...]) -> tf.Graph:
  """Gradients of sum(conv(x, k)^2); x is [2, 8, 8, 3], k [3, 3, 3, 4]."""
  def step(x: tf.Tensor, k: tf.Tensor) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
      tape.watch([x, k])
      pads = [[0, 0], [1, 1], [1, 1], [0, 0]]
      y = tf.nn.conv2d(tf.pad(x, pads) if padded else x, k, stride, 'VALID')
      loss = tf.reduce_sum(tf.square(y))
    gradients = tape.gradient(loss, {'x': x, 'k': k})
    return [loss, *(gradients[name] for name in to)]
  return _concrete(step, [2, 8, 8, 3], [3, 3, 3, 4])


@pytest.mark.parametrize('padded, stride, side', [
    (False, 1, 6), (True, 1, 8), (True, 2, 4)])
def test_work_of_a_convolution_and_its_gradients(
    padded: bool, stride: int, side: int) -> None:
  pixels = 2 * side * side * 4
  forward = 2 * pixels * 3 * 3 * 3  # multiply-adds count twice
  # Square, sum (one addition less than numbers), 2 * y, and times that of the
  # sum.
  elementwise = pixels + (pixels - 1) + pixels + pixels
  for to, passes in ((('k',), 2), (('x',), 2), (('x', 'k'), 3)):
    # What differentiation makes and nobody asks for does not count.
    work, chain = benchmark_graph.work_and_chain(
        _convolution(padded, stride, to))
    assert work == passes * forward + elementwise
    assert chain == 2 * forward + 2 * pixels


def test_loops_and_branches_count_with_what_is_in_them() -> None:
  def step(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    x = tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x @ w),
                      (tf.constant(0), x))[1]
    return tf.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x)
  graph = _concrete(step, [4, 5], [5, 5])
  product = 2 * 4 * 5 * 5
  work, chain = benchmark_graph.work_and_chain(graph, loops=3)
  # Each round two counters go up by one; the condition is a comparison.
  assert work == 3 * (product + 2) + 2 * product + 1
  assert chain == 5 * product + 1


def test_forward_pass() -> None:
  model = tf.keras.Sequential([tf.keras.layers.Dense(7, input_shape=(5,))])
  assert benchmark_graph.forward_flops(model, (3, 5)) == 2 * 3 * 5 * 7 + 3 * 7


def test_times_are_those_of_the_graph_that_runs() -> None:
  size = 700
  data = tf.data.Dataset.from_tensors(
      np.ones((size, size), np.float32)).repeat()

  def step(iterator: object) -> dict[str, tf.Tensor]:
    value = next(iterator)
    return {'sum': tf.reduce_sum(tf.linalg.matmul(value, value, name='big'))}

  row, graph = benchmark_graph.build(
      lambda: benchmark_rows.row(tf.function(step, autograph=False), data))
  steps = [benchmark_graph.trace(lambda: float(row.step()['sum']), graph)
           for _ in range(3)]
  timed, coverage = benchmark_graph.timed_graph(graph, steps)
  names = [node.name for node in graph.node]
  big = timed.costs[names.index('big')]
  assert 0.5 * timed.work < big <= timed.work
  assert 0.1 < coverage <= 1.0
  assert all(step.seconds['big'] < step.wall for step in steps)
  # The sum waits for the product.
  sums, = (i for i, node in enumerate(graph.node) if node.op == 'Sum')
  assert names.index('big') in timed.inputs[sums]


def test_the_way_back_of_a_loop_is_no_input() -> None:
  graph = tf.compat.v1.GraphDef()
  for name, op, inputs in (
      ('enter', 'Enter', []), ('merge', 'Merge', ['enter', 'next']),
      ('body', 'Neg', ['merge:0', '^enter']),
      ('next', 'NextIteration', ['body'])):
    graph.node.add(name=name, op=op, input=inputs)
  step = benchmark_graph.TracedStep({'body': 3.0, 'merge': 1.0}, 5.0)
  quick = benchmark_graph.TracedStep({'body': 1.0, 'merge': 1.0}, 4.0)
  timed, coverage = benchmark_graph.timed_graph(graph, [step, quick, quick])
  assert timed.costs == [0.0, 1.0, 1.0, 0.0]
  assert timed.inputs == [[], [0], [0, 1], [2]]
  assert coverage == 0.5
