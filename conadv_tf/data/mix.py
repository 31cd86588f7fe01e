"""MixUp and CutMix: examples mixed with others of their batch.

Zhang et al., "mixup: beyond empirical risk minimization" (ICLR 2018), and Yun
et al., "CutMix: regularization strategy to train strong classifiers with
localizable features" (ICCV 2019). Both make labels soft.
"""

from collections.abc import Mapping

import tensorflow as tf

from conadv_tf import randomness

# A batch of images, or several versions of one batch.
Images = tf.Tensor | Mapping[str, tf.Tensor]


def mix_batch(
    image: Images, label: tf.Tensor, weight: tf.Tensor, key: randomness.Key,
    number: tf.Tensor | int, mixup: float, cutmix: float, num_classes: int,
    slices: int = 1,
) -> tuple[Images, tf.Tensor, tf.Tensor]:
  """Mixes every example with a partner in its slice of the batch.

  Partners are a random permutation of the slice, and every example draws its
  own share, as in keras-cv's layers. MixUp takes lambda ~ Beta(alpha, alpha)
  of an example's pixels and the rest of its partner's, rounded to whole
  pixels. CutMix replaces a box whose sides are sqrt(1 - lambda) of the
  image's and whose centre is a uniform pixel; lambda is then the share of
  the image that was kept, counted without what of the box lies outside (where
  keras-cv counts the whole box). Labels are mixed by the same lambda. With
  both on, a slice takes one of them, each with probability 1/2.

  An example of weight 0 is padding: it neither changes nor is a partner, and
  the example that would get it stays as it is.

  Args:
    image: uint8 [b, h, w, c], or a mapping to several such tensors, which are
      mixed alike. Static shapes.
    label: int [b].
    weight: float32 [b].
    key: int32 [2].
    number: index of the batch. All draws depend on (key, slice of the run)
      alone, where batch `number` holds the slices `number * slices` and up.
    mixup: alpha of MixUp, 0 is off.
    cutmix: alpha of CutMix, 0 is off.
    num_classes: width of the mixed labels.
    slices: equal parts of the batch that do not mix: its virtual replicas,
      so that other arrangements of as many virtual replicas mix the same.

  Returns:
    (image as it came, label float32 [b, num_classes], weight). With both off
    the arguments, label int [b] included.
  """
  if not mixup and not cutmix:
    return image, label, weight
  versions = dict(image) if isinstance(image, Mapping) else {"": image}
  rows = weight.shape[0] // slices
  label = tf.one_hot(label, num_classes)
  parts = []
  for part in range(slices):
    own = slice(part * rows, (part + 1) * rows)
    part_key = randomness.fold(
        key, tf.cast(number, tf.int64) * slices + part)
    shape = next(iter(versions.values())).shape
    parts.append(_mix_slice(
        {name: x[own] for name, x in versions.items()}, label[own],
        weight[own], _own_share(part_key, (rows, *shape[1:3]), mixup, cutmix),
        tf.argsort(randomness.uniform(randomness.fold(part_key, 0), [rows]))))
  mixed = {name: tf.concat([images[name] for images, _ in parts], axis=0)
           for name in versions}
  label = tf.concat([labels for _, labels in parts], axis=0)
  if not isinstance(image, Mapping):
    return mixed[""], label, weight
  return mixed, label, weight


def _mix_slice(
    versions: dict[str, tf.Tensor], label: tf.Tensor, weight: tf.Tensor,
    share: tuple[tf.Tensor, tf.Tensor], partner: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
  """Mixes rows with the rows `partner`.

  Args:
    versions: uint8 [b, h, w, c] each.
    label: float32 [b, classes].
    weight: float32 [b].
    share: from `_own_share`.
    partner: int32 [b].
  """
  is_mixed = (weight > 0) & (tf.gather(weight, partner) > 0)
  pixels = tf.where(is_mixed[:, None, None, None], share[0], 1.0)
  lam = tf.where(is_mixed, share[1], 1.0)[:, None]
  images = {}
  for name, x in versions.items():
    other = tf.cast(tf.gather(x, partner), tf.float32)
    mixed = pixels * tf.cast(x, tf.float32) + (1.0 - pixels) * other
    images[name] = tf.ensure_shape(
        tf.cast(tf.round(mixed), x.dtype), x.shape)
  return images, lam * label + (1.0 - lam) * tf.gather(label, partner)


def _own_share(
    key: randomness.Key, shape: tuple[int, int, int], mixup: float,
    cutmix: float) -> tuple[tf.Tensor, tf.Tensor]:
  """How much of itself an example keeps.

  Args:
    key: int32 [2]; draw 0 is the partners'.
    shape: rows, height, width.
    mixup: alpha.
    cutmix: alpha.

  Returns:
    Share of each pixel, float32 [b, h, w, 1] (MixUp alone: [b, 1, 1, 1]), and
    its mean over the image, float32 [b].
  """
  shares = []
  if mixup:
    lam = _beta(randomness.fold(key, 1), shape[0], mixup)
    shares.append((lam[:, None, None, None], lam))
  if cutmix:
    lam = _beta(randomness.fold(key, 2), shape[0], cutmix)
    outside = 1.0 - _box(randomness.fold(key, 3), shape, lam)
    shares.append((outside, tf.reduce_mean(outside, axis=[1, 2, 3])))
  if len(shares) == 1:
    return shares[0]
  is_mixup = randomness.uniform(randomness.fold(key, 4), []) < 0.5
  by_mixup, by_cutmix = shares
  return (tf.where(is_mixup, by_mixup[0], by_cutmix[0]),
          tf.where(is_mixup, by_mixup[1], by_cutmix[1]))


def _box(key: randomness.Key, shape: tuple[int, int, int], lam: tf.Tensor
         ) -> tf.Tensor:
  """1 in a box of area 1 - lam around a random pixel; float32 [b, h, w, 1]."""
  inside = []
  for axis, side in enumerate(shape[1:]):
    size = tf.floor(tf.sqrt(1.0 - lam) * side)
    centre = tf.cast(randomness.integer(
        randomness.fold(key, axis), [shape[0]], side), tf.float32)
    pixel = tf.range(side, dtype=tf.float32)[None]
    inside.append((pixel >= (centre - size / 2)[:, None])
                  & (pixel < (centre + size / 2)[:, None]))
  rows, columns = inside
  return tf.cast(rows[:, :, None, None] & columns[:, None, :, None],
                 tf.float32)


def _beta(key: randomness.Key, rows: int, alpha: float) -> tf.Tensor:
  """Draws float32 [rows] from Beta(alpha, alpha)."""
  # A gamma variate is one of alpha + 1 times u**(1/alpha) (Marsaglia and
  # Tsang, 2000, section 6). In logarithms none is 0, as many are for small
  # alpha, where Beta would be 0/0.
  logs = []
  for number in range(2):
    own = randomness.fold(key, number)
    gamma = tf.random.stateless_gamma(
        [rows], randomness.fold(own, 0), alpha=alpha + 1.0)
    u = 1.0 - randomness.uniform(randomness.fold(own, 1), [rows])
    logs.append(tf.math.log(gamma) + tf.math.log(u) / alpha)
  return tf.sigmoid(logs[0] - logs[1])
