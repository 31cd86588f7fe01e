"""TensorFlow's memory optimizer, which breaks loops of large tensors."""

import tensorflow as tf

# Public calls set Grappler's other options, not this one.
from tensorflow.python.eager import context as eager_context


def disable() -> None:
  """Switches it off in this process; other options stay as they are.

  Where a graph is expected to need most of a device's memory (of a CPU, that
  means 256 MB) it computes sums of three and more tensors in temporary
  variables. Inside of a loop, such as an attack's steps, one of these can
  outlive its update, and the next update fails with AlreadyExistsError
  (github.com/tensorflow/tensorflow/issues/23780, open). It does nothing else
  by default.
  """
  # pylint: disable=protected-access
  context = eager_context.context()
  config = tf.compat.v1.ConfigProto()
  if context._config is not None:
    config.CopyFrom(context._config)
  rewriting = config.graph_options.rewrite_options
  if rewriting.memory_optimization == rewriting.NO_MEM_OPT:
    return
  rewriting.memory_optimization = rewriting.NO_MEM_OPT
  context._config = config
  # What functions were given before is forgotten here.
  tf.config.optimizer.set_experimental_options({})
