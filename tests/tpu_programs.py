"""Looks through traced programs for what a TPU could not run.

Programs are traced under `tests.fake_tpu`. The ops that go to the cores are
compared with a committed list, their types with what XLA's kernels take, and
their shapes must be static; the host may do no more than loop and count.
"""

from collections.abc import Iterator
import functools
import pathlib
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.framework import kernels

_LIST = pathlib.Path(__file__).resolve().parent / 'reference/tpu_ops.txt'
_CORE = '_tpu_replicate'  # an attribute of the ops that go to the cores

# Only between cores, so the wheel, which has no TPU, has no kernels for them.
# On other devices an all-reduce is a CollectiveReduceV2; here it is traced as
# the CrossReplicaSum that it is on a TPU.
CROSS_REPLICA = frozenset({'AllToAll', 'CollectivePermute', 'CrossReplicaSum'})

# All that the host may do between two updates: take the next batch, loop,
# count and, at the end, read the metrics.
HOST = frozenset({
    'IteratorGetNext', 'TPUReplicatedInput', 'TPUReplicatedOutput',
    'TPUCompilationResult', 'While', 'StatelessWhile', 'Placeholder', 'Const',
    'Identity', 'NoOp', 'Less', 'LogicalAnd', 'AddV2', 'ReadVariableOp',
    'AssignAddVariableOp', 'DivNoNan',
    # Sizes of the replicas' slices of a batch, for TPUStrategy's padding to
    # the largest: constants, since all are equal.
    'Pack', 'Max'})
# An evaluation also adds up the replicas' sums.
HOST_OF_EVALUATION = HOST | {'AddN', 'Cast'}

# kTpuAllTypes (see the list) without the quantised and 8 bit float types. A
# resource is a variable; a variant is a TensorList, an array for XLA.
_TYPES = frozenset({
    tf.bool, tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16,
    tf.uint32, tf.uint64, tf.bfloat16, tf.float16, tf.float32, tf.float64,
    tf.complex64, tf.resource, tf.variant})


class Node(NamedTuple):
  """An op and where it is.

  Attributes:
    op: the op.
    on_core: whether it goes to the TPU's cores; the host runs all others.
    where: the calls that lead to it; empty in the function itself.
  """

  op: tf.Operation
  on_core: bool
  where: str


def listed() -> list[str]:
  """The names of the committed list."""
  lines = _LIST.read_text(encoding='utf-8').splitlines()
  return [line for line in lines if line and line[0] != '#']


_SUPPORTED = frozenset(listed())


@tf.function(jit_compile=True, autograph=False)
def _register_kernels() -> tf.Tensor:
  return tf.constant(0)  # the first use of XLA registers all of them


@functools.cache
def kernels_of(kind: str) -> list[Any]:
  """XLA's kernels of an op, with the types that they take."""
  _register_kernels()
  found = kernels.get_registered_kernels_for_op(kind).kernel
  return [k for k in found if k.device_type == 'XLA_CPU_JIT']


def _takes(kernel: Any, op: tf.Operation) -> bool:
  """Whether a kernel has been registered for an op's types."""
  for constraint in kernel.constraint:
    types = op.get_attr(constraint.name)
    allowed = constraint.allowed_values.list.type
    for dtype in types if isinstance(types, list) else [types]:
      if dtype.as_datatype_enum not in allowed:
        return False
  return True


def nodes(graph: tf.Graph, on_core: bool = False,
          where: str = '') -> Iterator[Node]:
  """All ops of a graph and of the functions that it calls."""
  for op in graph.get_operations():
    core = on_core or _CORE in op.node_def.attr
    yield Node(op, core, where)
    for attr in op.node_def.attr.values():
      for function in (attr.func, *attr.list.func):
        if function.name:
          inner = graph._get_function(function.name).graph  # pylint: disable=protected-access
          yield from nodes(inner, core, f'{where}{op.name}/')


def _has_shape(tensor: tf.Tensor) -> bool:
  """Whether a shape is static, where it matters."""
  op = tensor.op
  if op.type == 'ZerosLike':  # the gradient of an output that nothing uses
    tensor, op = op.inputs[0], op.inputs[0].op
  # Scratch space between two cuDNN kernels: nothing on other devices.
  if op.type == 'FusedBatchNormV3' and tensor.value_index == 5:
    return True
  return tensor.shape.is_fully_defined()


def _faults_on_core(op: tf.Operation) -> Iterator[str]:
  if op.type not in _SUPPORTED:
    yield 'is no op of a TPU'
  elif op.type not in CROSS_REPLICA and not any(
      _takes(kernel, op) for kernel in kernels_of(op.type)):
    yield 'has no kernel for its types'
  for tensor in op.outputs:
    if tensor.dtype not in _TYPES:
      yield f'makes a {tensor.dtype.name}'
    if not _has_shape(tensor):
      yield f'has the shape {tensor.shape}'


def faults(function: Any, phase: str,
           host: frozenset[str] = HOST) -> list[str]:
  """What a TPU would refuse, or would wait for the host for; a line each.

  Args:
    function: concrete, that calls `strategy.run`.
    phase: what to call it.
    host: ops that may stay on the host.

  Returns:
    Lines of the phase, the op's type, its place and what is wrong.
  """
  found = []
  for op, on_core, where in nodes(function.graph):
    if not on_core:
      here = [] if op.type in host else ['keeps the host busy']
    elif op.type == 'TPUReplicateMetadata' or where and (
        op.type == 'Placeholder'):  # the cores' number, arguments
      here = []
    else:
      here = _faults_on_core(op)
    found += [f'{phase}: {op.type} {where}{op.name} {fault}'
              for fault in here]
  return found


def types_on_core(function: Any) -> set[tf.DType]:
  """Types of all that the cores compute in a concrete function."""
  return {tensor.dtype for op, on_core, _ in nodes(function.graph)
          if on_core for tensor in op.outputs}
