"""Batches of decoded images in which broken ones leave a row of weight 0."""

from collections.abc import Callable
import os

import numpy as np
import tensorflow as tf

from conadv_tf.data import checks
from conadv_tf.data.encoded import EncodedSource, Example

# Versions of an image, and its row's number and label.
Images = tf.Tensor | dict[str, tf.Tensor]
Decode = Callable[[tf.Tensor, Example], Images]
Draw = Callable[[tf.Tensor], tf.Tensor]
Batch = tuple[Images, tf.Tensor, tf.Tensor]  # Image, label, weight.

_ELEMENTS = 2  # Made at a time, so that threads find work at their seams.
# Nothing here branches on tensors in plain Python, and converting takes
# longer than tracing.
_as_it_is = tf.autograph.experimental.do_not_convert


def batches(
    source: EncodedSource, examples: tf.data.Dataset, decode: Decode,
    draw: Draw, rows: int, deterministic: bool = True,
    slices: int = 1) -> tf.data.Dataset:
  """Decodes examples and puts each `rows` of them into an element.

  An example that cannot be decoded, or whose label is out of range, is
  reported to `source.bad`, which counts those of this process. Its row has
  weight 0 and holds a copy of another row of its slice (of zeros, if there is
  none), as do the rows after the last example.

  Args:
    source: where the examples come from.
    examples: elements `Example`.
    decode: makes images, statically shaped, of a row of what `draw` returns
      and an example; it may raise.
    draw: returns [b, w], w at least 1, of an element's number, int64 [].
    rows: b.
    deterministic: whether the rows of an element come in the order of the
      examples; the elements do.
    slices: equal parts of an element that do not copy from each other: its
      virtual replicas, so that other arrangements of them hold the same.

  Returns:
    Elements (images [b, ...], label int32 [b], weight float32 [b]),
    statically shaped. Iterating raises `tf.errors.InvalidArgumentError` once
    there are more bad examples than are allowed; `source.check` says so too.
  """

  def one(row: tf.Tensor, drawn: tf.Tensor, example: Example
          ) -> tuple[tf.Tensor, Images, tf.Tensor]:
    return row, decode(drawn, example), example.label

  @_as_it_is
  def element(number: tf.Tensor, window: Example) -> Batch:
    known = tf.data.Dataset.zip((
        tf.data.Dataset.range(rows),
        tf.data.Dataset.from_tensor_slices(draw(number)),
        tf.data.Dataset.zip(window)))
    # Errors are dropped example by example but paid for once a batch: a try
    # around each example costs a fifth of the throughput.
    good = known.map(
        _as_it_is(one), num_parallel_calls=os.cpu_count(),
        deterministic=deterministic).ignore_errors().batch(rows)
    nothing = tf.nest.map_structure(
        lambda spec: tf.zeros([0, *spec.shape[1:]], spec.dtype),
        good.element_spec)
    row, images, label = good.concatenate(
        tf.data.Dataset.from_tensors(nothing)).take(1).get_single_element()
    return _completed(source, known, row, images, label, rows, slices)

  return examples.window(rows).enumerate().map(
      element, num_parallel_calls=_ELEMENTS, deterministic=True)


def _completed(
    source: EncodedSource, known: tf.data.Dataset, row: tf.Tensor,
    images: Images, label: tf.Tensor, rows: int, slices: int) -> Batch:
  """Makes an element of the m rows that were decoded, see `batches`.

  Args:
    source: where bad examples are reported.
    known: the element's examples, by row.
    row: int64 [m], which row each one is.
    images: [m, ...] each.
    label: int32 [m].
    rows: b.
    slices: parts that do not copy from each other.
  """
  usable = (label >= 0) & (label < source.num_classes)

  def whole() -> Batch:
    return images, label, tf.ones([rows])

  def repaired() -> Batch:
    kept = tf.boolean_mask(row, usable)
    found = tf.scatter_nd(kept[:, None], tf.ones_like(kept), [rows]) > 0
    with tf.control_dependencies([_report(source, known, found)]):
      return _filled(row, images, label, usable, found, slices)

  batch = tf.cond(
      tf.equal(tf.math.count_nonzero(usable), rows), whole, repaired)
  return tf.nest.map_structure(
      lambda x: tf.ensure_shape(x, [rows, *x.shape[1:]]), batch)


def _report(
    source: EncodedSource, known: tf.data.Dataset, found: tf.Tensor
) -> tf.Tensor:
  """Reports the examples of a window whose rows were not found."""

  def add(content: bytes, label: np.ndarray, name: bytes) -> np.int64:
    known_as = name.decode(errors='replace')
    if known_as not in source.bad.names:
      example = Example(tf.constant(content), tf.constant(label),
                        tf.zeros([0, 4]), tf.constant(name))
      source.bad.add(known_as, _reason(source, example))
    # The error that this becomes on its way through TensorFlow is unreadable,
    # but whoever catches it asks `source.check` for the cause.
    source.bad.check()
    return np.int64(1)

  def report(total: tf.Tensor, item: tuple) -> tf.Tensor:
    _, _, example = item
    return total + tf.ensure_shape(tf.numpy_function(
        add, [example.content, example.label, example.name], tf.int64), [])

  return known.filter(
      _as_it_is(lambda row, drawn, example: ~found[row])).reduce(
          tf.constant(0, tf.int64),
          _as_it_is(lambda total, item: report(total, item)))


def _reason(source: EncodedSource, example: Example) -> str:
  """Says why an example cannot be used."""
  try:
    content = source.content(example)
    if not len(content.numpy()):
      return source.empty
    tf.io.decode_image(content, expand_animations=False)
  except tf.errors.OpError as error:
    return ('cannot be read as a JPEG, PNG, GIF or BMP image '
            f'({checks.first_line(error)})')
  if not 0 <= int(example.label) < source.num_classes:
    return checks.label_reason(int(example.label), source.num_classes)
  return f'cannot be decoded to {source.image_shape[-1]} channels'


def _filled(
    row: tf.Tensor, images: Images, label: tf.Tensor, usable: tf.Tensor,
    found: tf.Tensor, slices: int) -> Batch:
  """Spreads m decoded rows over b, with copies where there is none.

  Args:
    row: int64 [m], which row each one is.
    images: [m, ...] each.
    label: int32 [m].
    usable: bool [m].
    found: bool [b], whether a row is among the usable ones.
    slices: equal parts of the rows that do not copy from each other.
  """
  kept = tf.boolean_mask(tf.range(tf.size(row)), usable)
  place = tf.scatter_nd(
      tf.gather(row, kept)[:, None], kept, tf.shape(found, tf.int64))
  # With nothing to copy, the row of zeros that is added behind the others.
  place = tf.reshape(tf.where(found, place, tf.size(row)), [slices, -1])
  first = tf.reduce_min(place, axis=1, keepdims=True)
  place = tf.where(tf.reshape(found, place.shape), place, first)
  place = tf.reshape(place, [-1])

  def spread(x: tf.Tensor) -> tf.Tensor:
    padded = tf.concat([x, tf.zeros([1, *x.shape[1:]], x.dtype)], 0)
    return tf.gather(padded, place)

  return (tf.nest.map_structure(spread, images), spread(label),
          tf.cast(found, tf.float32))
