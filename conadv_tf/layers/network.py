"""A Keras model whose batch normalisations know several branches."""

from collections.abc import Mapping
import logging
import types

import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.layers import (
  cloning,
  group_statistics,
  routed_dropout,
  routed_embedding,
  routed_layer_norm,
  routing,
  split_batch_norm,
  trimming,
)
from conadv_tf.layers import outputs as output_lib

_ASSIGNMENTS = frozenset({
    "AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"})
_STATEFUL_RANDOM = frozenset({
    "RandomUniform", "RandomUniformInt", "RandomStandardNormal",
    "TruncatedNormal", "Multinomial", "RandomGamma", "RandomShuffle",
    "RngReadAndSkip", "StatefulUniform", "StatefulStandardNormalV2"})


clone, read, values = cloning.clone, cloning.read, cloning.values


class Network(tf.Module):
  """Owns a converted clone of a model and the extra branches' variables.

  Attributes:
    model: the converted clone, a Keras model; its own batch normalisations
      are the clean branch.
    branches: names of the branches, clean first.
    group_size: replicas that share batch statistics in TRAIN; 0 means all.
    layers: the converted batch normalisations in the model's order.
    layer_variables: for each of them, branch -> BranchVariables.
    output_shape: of the model, [2, classes].
    word_embeddings: the layer that `logits_from` stands in for, or None.
    pad_id: the token that is padding: the model's attribute of this name,
      else 0.
    length_buckets: lengths to which batches of tokens are cut, the smallest
      that loses no more than padding: the model's attribute of this name,
      else () for none. Padding must add nothing to the model's outputs.
  """

  def __init__(self, model: tf.keras.Model, branches: tuple[str, ...],
               group_size: int = 1):
    """Clones and converts a model; the original stays as it is.

    Args:
      model: any built Keras model with one input, of floats or (where it
        has word embeddings) of token ids, and one output.
      branches: from `routing.BRANCHES`.
      group_size: neighbouring replicas that share batch statistics in TRAIN;
        0 means all, 1 none. PROBE is always local.

    Raises:
      ValueError: naming the layer, if a batch normalisation cannot be
        converted or is not reached, the model cannot be cloned, or the
        groups do not divide the replicas.
    """
    super().__init__(name="network")
    group_statistics.check(
        group_size, model.distribute_strategy.num_replicas_in_sync)
    self.branches = branches
    self.group_size = group_size
    for layer in model._flatten_layers():  # pylint: disable=protected-access
      split_batch_norm.check_supported(layer)
    self.model = clone(model)
    cloning.check_same_function(model, self.model)
    self.layers: list[tf.keras.layers.Layer] = []
    self.layer_variables: list[
        dict[str, split_batch_norm.BranchVariables]] = []
    self._extra: list[tf.Variable] = []
    self._extra_trainable: list[tf.Variable] = []
    self.word_embeddings = routed_embedding.find(self.model)
    self.pad_id = getattr(model, "pad_id", 0)
    self.length_buckets = tuple(getattr(model, "length_buckets", ()))
    self._convert()
    self._called = self._discover()

  def _convert(self) -> None:
    # A frozen container wins over a layer inside that is not.
    trainable = {id(v) for v in self.model.trainable_variables}
    for position, layer in enumerate(
        self.model._flatten_layers(include_self=False)):  # pylint: disable=protected-access
      if layer is self.word_embeddings:
        routed_embedding.route(layer)
      if not isinstance(layer, split_batch_norm.BATCH_NORMS):
        routed_dropout.route(layer, position)
        routed_layer_norm.route(layer)
        continue
      if not layer.built:
        continue  # a built model never called it: it has no variables
      variables = {self.branches[0]: split_batch_norm.own_variables(layer)}
      for branch in self.branches[1:]:
        copy = split_batch_norm.copy_variables(layer, branch)
        variables[branch] = copy
        self._extra += copy.trainable() + copy.moving()
        own = split_batch_norm.own_variables(layer).trainable()
        self._extra_trainable += [
            mine for mine, cleans in zip(copy.trainable(), own)
            if id(cleans) in trainable]
      split_batch_norm.route(layer, len(self.layers), variables)
      self.layers.append(layer)
      self.layer_variables.append(variables)

  def _discover(self) -> frozenset[int]:
    """Traces one TRAIN pass; returns the layers that report statistics.

    The trace also shows what would break the promises of `logits`: a layer
    that assigns a variable, and stateful random ops.
    """
    example = cloning.example_inputs(self.model, rows=2)
    if not example.dtype.is_floating and self.word_embeddings is None:
      raise ValueError(
          f"model {self.model.name!r} takes {example.dtype.name} images, so no "
          "gradient reaches them; give it a float input")
    self._input_dtype = (
        tf.float32 if example.dtype.is_floating else example.dtype)
    called: set[int] = set()

    def trace(images: tf.Tensor) -> tf.Tensor:
      segments = tuple((branch, 1) for branch in (self.branches * 2)[:2])
      route = routing.Route(segments, routing.Mode.TRAIN,
                            tf.constant([0, 0]))
      with routing.routing(route):
        logits = self.model(images, training=True)
      called.update(index for index, _ in route.statistics)
      return logits

    with tf.init_scope():
      traced = tf.function(trace, autograph=False).get_concrete_function(
          tf.TensorSpec(example.shape, example.dtype))
    if tf.nest.is_nested(traced.structured_outputs):
      raise ValueError(f"model {self.model.name!r} must have one output, got "
                       f"{traced.structured_outputs}")
    self.output_shape = traced.structured_outputs.shape
    graph = traced.graph
    operations = [(op.type, op.name) for op in graph.get_operations()]
    for function in graph.as_graph_def().library.function:
      operations += [(node.op, node.name) for node in function.node_def]
    for kind, name in operations:
      if kind in _ASSIGNMENTS:
        raise ValueError(
            f"layer {name.rsplit('/', 1)[0]!r} assigns a variable during the "
            "forward pass: a batch normalisation that was not reached (keep "
            "it as an attribute of its layer), or another stateful layer")
    drawing = [name for kind, name in operations if kind in _STATEFUL_RANDOM]
    if drawing:
      logging.warning(
          "%s draws stateful random numbers: resume and other arrangements of "
          "replicas will not be exact", drawing[0])
    return frozenset(called)

  @property
  def exchanges_statistics(self) -> bool:
    """Whether replicas share batch statistics in TRAIN."""
    return self.group_size != 1 or any(
        getattr(layer, "synchronized", False) for layer in self.layers)

  @property
  def trainable_variables(self) -> list[tf.Variable]:
    """The model's, then gamma and beta of the other branches."""
    return self.model.trainable_variables + self._extra_trainable

  def trainable_branches(self) -> list[str | None]:
    """For each trainable variable the branch that alone uses it, or None."""
    owner = {}
    for variables in self.layer_variables:
      for branch, branch_variables in variables.items():
        for variable in branch_variables.trainable():
          owner[id(variable)] = branch
    return [owner.get(id(v)) for v in self.trainable_variables]

  @property
  def variables(self) -> list[tf.Variable]:
    """All weights and statistics of all branches, in a fixed order."""
    return self.model.variables + self._extra

  def logits(
      self, images: tf.Tensor, segments: routing.Segments,
      mode: routing.Mode, key: randomness.Key | None = None, *,
      fused: bool = True
  ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
    """Runs the model; assigns nothing.

    Args:
      images: [b, h, w, c], any real dtype, in the model's pixel range; or
        tokens, as in `embed`.
      segments: static ((branch, rows), ...) that cover the b rows in order.
      mode: TRAIN, PROBE or EVAL.
      key: int32 [2], for the dropout masks of TRAIN.
      fused: False normalises (with moving statistics, and layers) by single
        operations, whose second derivatives are right and cost less.

    Returns:
      The model's output [b, classes] as float32; in TRAIN also the packed
      batch statistics, float32 [n], for `update_statistics`.
    """
    return self._run(images, routing.Route(
        segments, mode, key, self.group_size, fused))

  def _run(self, inputs: tf.Tensor, route: routing.Route
           ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
    # Eagerly, Keras would check the model's own length.
    if self.length_buckets and not tf.executing_eagerly():
      length = trimming.length(self.token_mask(inputs), self.length_buckets)
      inputs = inputs[:, :length]
      if route.embeddings is not None:
        route.embeddings = route.embeddings[:, :length]
    with routing.routing(route):
      outputs = self.model(tf.cast(inputs, self._input_dtype),
                           training=route.mode is not routing.Mode.EVAL)
    outputs = output_lib.as_float32(outputs)
    if route.mode is not routing.Mode.TRAIN:
      return outputs
    return outputs, self._pack(route)

  def check_embeddings(self, attacks_images: bool, perturbs: bool) -> int:
    """The width d of word embeddings, 0 without; refuses what cannot be.

    Args:
      attacks_images: whether inputs must be images.
      perturbs: whether there must be word embeddings.

    Raises:
      ValueError: that says what is needed.
    """
    if attacks_images and self._input_dtype.is_integer:
      raise ValueError(
          f"model {self.model.name!r} takes token ids, which no attack on "
          "images can change; use vanilla, scala or freelb")
    if perturbs:
      routed_embedding.check(self.word_embeddings, self.model)
    return routed_embedding.width(self.word_embeddings)

  def embed(self, tokens: tf.Tensor) -> tf.Tensor:
    """Looks up word embeddings, before positions and types are added.

    Args:
      tokens: the model's input, [b, L] token ids, or [b, L, 2] with the ids
        in [..., 0] and types in [..., 1].

    Returns:
      float32 [b, L, d].
    """
    return self.word_embeddings(_token_ids(tokens))

  def token_mask(self, tokens: tf.Tensor) -> tf.Tensor:
    """1 for real tokens and 0 for padding (`pad_id`), float32 [b, L, 1]."""
    ids = _token_ids(tokens)
    real = tf.not_equal(ids, tf.cast(self.pad_id, ids.dtype))
    return tf.cast(real, tf.float32)[..., None]

  def logits_from(
      self, embeddings: tf.Tensor, tokens: tf.Tensor,
      segments: routing.Segments, mode: routing.Mode,
      key: randomness.Key | None = None
  ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
    """As `logits(tokens, ...)`, with these in place of the looked up ones.

    Args:
      embeddings: float32 [b, L, d]; of `embed(tokens)` it is `logits` bit
        for bit.
      tokens: as in `embed`; masks and types come from them.
      segments: as in `logits`.
      mode: as in `logits`.
      key: as in `logits`.
    """
    return self._run(tokens, routing.Route(
        segments, mode, key, self.group_size, embeddings=embeddings))

  def _pack(self, route: routing.Route) -> tf.Tensor:
    values = []
    for index, branch in self._slots(route.segments):
      calls = route.statistics[index, branch]
      for moment in zip(*calls):
        # A layer called several times contributes the mean of its calls.
        mean = tf.add_n(moment) / len(moment) if len(moment) > 1 else moment[0]
        values.append(tf.reshape(tf.cast(mean, tf.float32), [-1]))
    return tf.concat(values, axis=0) if values else tf.zeros([0])

  def _slots(self, segments: routing.Segments) -> list[tuple[int, str]]:
    branches = list(dict.fromkeys(branch for branch, _ in segments))
    # Branch by branch: a pass of each branch on its own packs the same.
    return [(index, branch) for branch in branches
            for index in sorted(self._called)]

  def statistics_size(self, segments: routing.Segments) -> int:
    """Length of the packed statistics of a TRAIN pass."""
    return sum(v.shape.num_elements()
               for index, branch in self._slots(segments)
               for v in self.layer_variables[index][branch].moving())

  def regularisation(self) -> tf.Tensor:
    """The model's own losses of the last TRAIN pass, a float32 scalar."""
    losses = [tf.cast(loss, tf.float32) for loss in self.model.losses]
    for layer, variables in zip(self.layers, self.layer_variables):
      for branch in self.branches[1:]:
        for name in ("gamma", "beta"):
          regularizer = getattr(layer, f"{name}_regularizer", None)
          value = getattr(variables[branch], name)
          if regularizer is not None and value is not None:
            losses.append(regularizer(value))
    return tf.add_n(losses) if losses else tf.zeros([])

  def update_statistics(
      self, packed: tf.Tensor, segments: routing.Segments,
      idle: Mapping[str, tf.Tensor] = types.MappingProxyType({})) -> None:
    """Moves the moving statistics one step towards batch statistics.

    Args:
      packed: float32 [n], from `logits` with the same segments, averaged over
        virtual replicas.
      segments: those of the TRAIN pass.
      idle: branch -> bool [], whether its statistics stay as they are.
    """
    position = 0
    for index, branch in self._slots(segments):
      momentum = self.layers[index].momentum
      for moving in self.layer_variables[index][branch].moving():
        size = moving.shape.num_elements()
        value = tf.reshape(packed[position:position + size], moving.shape)
        change = (moving - tf.cast(value, moving.dtype)) * (1.0 - momentum)
        if branch in idle:
          change = tf.where(idle[branch], tf.zeros_like(change), change)
        moving.assign_sub(change)
        position += size

  def merge(self, branch: str = routing.CLEAN) -> tf.keras.Model:
    """A plain Keras model with one branch's weights, in new variables.

    Raises:
      ValueError: if there is no such branch.
    """
    if branch not in self.branches:
      raise ValueError(f"no branch {branch!r}; there are {self.branches}")
    model = clone(self.model)
    norms = [layer for layer in model._flatten_layers(include_self=False)  # pylint: disable=protected-access
             if isinstance(layer, split_batch_norm.BATCH_NORMS)
             and layer.built]
    for layer, variables in zip(norms, self.layer_variables):
      source = variables[branch]
      target = split_batch_norm.own_variables(layer)
      for from_, to in zip(source.trainable() + source.moving(),
                           target.trainable() + target.moving()):
        to.assign(read(from_))
    return model

  def copy(self) -> "Network":
    """Another network with the same values in variables of its own."""
    other = Network(self.model, self.branches, self.group_size)
    other.assign(self.variables)
    return other

  def assign(self, values: list[tf.Variable]) -> None:
    """Copies values (in `variables` order) into this network, eagerly."""
    for target, value in zip(self.variables, values):
      target.assign(read(value) if isinstance(value, tf.Variable) else value)


def _token_ids(tokens: tf.Tensor) -> tf.Tensor:
  return tokens[..., 0] if tokens.shape.rank == 3 else tokens


def convert(model: tf.keras.Model,
            branches: tuple[str, ...] = routing.BRANCHES[2]) -> Network:
  """Converts any Keras model to split batch normalisation (a clone of it)."""
  return Network(model, branches)
