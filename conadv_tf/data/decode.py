"""From an encoded image to uint8 [s, s, c], one at a time, inside tf.data.

What cannot be detected: TensorFlow's decoder reports files that end early and
headers that make no sense, and nothing else. Bytes that were changed inside
the compressed data of a JPEG decode to wrong pixels without any error.
"""

import tensorflow as tf

WORDS = 4  # Random words that `distorted` takes.

# The MLPerf reference's numbers.
_MIN_OBJECT_COVERED = 0.1
_ASPECT_RATIOS = (0.75, 1.33)
_AREAS = (0.05, 1.0)
_MAX_ATTEMPTS = 100
_SIZE, _SHORT_SIDE = 224, 256
_END_OF_JPEG = b'\xff\xd9'


def whole(content: tf.Tensor, size: int, channels: int) -> tf.Tensor:
  """Decodes an image and resizes all of it to a square.

  The aspect ratio is not kept; bilinear, rounded.

  Args:
    content: string [], JPEG, PNG, GIF (first frame) or BMP.
    size: s, pixels.
    channels: c, 3 (RGB) or 1 (grey).

  Returns:
    uint8 [s, s, c].

  Raises:
    tf.errors.OpError: when run, for content that cannot be decoded.
  """
  return resized(_decoded(content, channels), [size, size])


def central(content: tf.Tensor, size: int, channels: int) -> tf.Tensor:
  """Decodes an image for evaluation: its centre, with the aspect ratio kept.

  The short side is resized to round(size * 256 / 224), the long side in
  proportion (rounded down), bilinear; of that, the middle size x size, the
  upper left one of two. The MLPerf reference does this for 224, but computes
  the sizes in float32 and so ends at a short side of 255 for some shapes (376
  x 500, say); here it is always 256.

  Args:
    content: as in `whole`.
    size: s, pixels.
    channels: c, 3 or 1.

  Returns:
    uint8 [s, s, c].

  Raises:
    tf.errors.OpError: when run, for content that cannot be decoded.
  """
  image = _decoded(content, channels)
  shape = tf.shape(image)[:2]
  # Integers: in float32, 1 / 3 * 3 may end below 1 and lose a pixel.
  target = shape * short_side(size) // tf.reduce_min(shape)
  top, left = tf.unstack((target - size) // 2)
  image = resized(image, target)[top:top + size, left:left + size]
  return tf.ensure_shape(image, [size, size, channels])


def short_side(size: int) -> int:
  """Returns what the short side is resized to for a crop of `size`."""
  return round(size * _SHORT_SIDE / _SIZE)


def distorted(
    content: tf.Tensor, boxes: tf.Tensor, bits: tf.Tensor, size: int,
    channels: int) -> tf.Tensor:
  """Decodes a random window of an image for training, flipped or not.

  The window is `sample_distorted_bounding_box` with the MLPerf reference's
  numbers: it covers at least a tenth of one of the boxes, has an aspect ratio
  of 0.75 to 1.33 and 5 % to 100 % of the area. It is resized, bilinear, to a
  square, and mirrored for every second draw. Of a complete JPEG only the
  window is decoded; a file that ends early is always decoded whole, so that
  it is found however the window lies.

  Args:
    content: as in `whole`.
    boxes: float32 [n, 4] in 0..1; the whole image if n is 0.
    bits: uint32 [WORDS], uniform.
    size: s, pixels.
    channels: c, 3 or 1.

  Returns:
    uint8 [s, s, c].

  Raises:
    tf.errors.OpError: when run, for content that cannot be decoded.
  """
  def jpeg() -> tf.Tensor:
    box = window(tf.io.extract_jpeg_shape(content), boxes, bits)
    return tf.io.decode_and_crop_jpeg(content, box, channels=channels)

  def other() -> tf.Tensor:
    image = _decoded(content, channels)
    top, left, height, width = tf.unstack(
        window(tf.shape(image), boxes, bits))
    return image[top:top + height, left:left + width]

  # A few sound files have bytes after the end; they only take longer.
  complete = tf.strings.substr(content, -2, 2) == _END_OF_JPEG
  image = tf.cond(
      tf.io.is_jpeg(content) & complete, jpeg, other)
  image.set_shape([None, None, channels])
  image = resized(image, [size, size])
  return tf.cond(
      tf.bitcast(bits[2], tf.int32) >= 0,
      lambda: tf.reverse(image, [1]), lambda: image)


def window(
    shape: tf.Tensor, boxes: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
  """Draws the window of `distorted`.

  Args:
    shape: int32 [3], height, width and channels.
    boxes: float32 [n, 4] in 0..1.
    bits: uint32 [>= 2].

  Returns:
    int32 [4]: top, left, height, width, in pixels.
  """
  begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
      shape, tf.clip_by_value(boxes, 0.0, 1.0)[None],
      seed=tf.bitcast(bits[:2], tf.int32),
      min_object_covered=_MIN_OBJECT_COVERED,
      aspect_ratio_range=_ASPECT_RATIOS, area_range=_AREAS,
      max_attempts=_MAX_ATTEMPTS, use_image_if_no_bounding_boxes=True)
  return tf.concat([begin[:2], extent[:2]], 0)


def _decoded(content: tf.Tensor, channels: int) -> tf.Tensor:
  """Decodes any kind of image: string [] to uint8 [h, w, channels]."""
  image = tf.io.decode_image(
      content, channels=channels, expand_animations=False)
  image.set_shape([None, None, channels])
  return image


def resized(
    image: tf.Tensor, size: tf.Tensor | list[int]) -> tf.Tensor:
  """Resizes uint8 [h, w, c] or [b, h, w, c], bilinear and rounded."""
  return tf.cast(tf.round(tf.image.resize(image, size)), tf.uint8)
