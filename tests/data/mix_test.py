"""MixUp and CutMix against arithmetic, keras-cv and statistics."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.data import mix

CLASSES = 5
KEY = randomness.make_key(3, randomness.MIXING)


def batch(rows: int, side: int = 6) -> tuple[tf.Tensor, ...]:
  generator = np.random.default_rng(0)
  return (
      tf.constant(generator.integers(0, 256, (rows, side, side + 1, 3)),
                  tf.uint8),
      tf.constant(generator.integers(0, CLASSES, rows), tf.int32),
      tf.ones([rows]))


def mixed(data: tuple[Any, ...], number: int = 0, mixup: float = 0.0,
          cutmix: float = 0.0, slices: int = 1) -> tuple[Any, ...]:
  return mix.mix_batch(
      *data, KEY, number, mixup, cutmix, CLASSES, slices)


def draws(rows: int, kind: str, side: int = 6, number: int = 0
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Partners, pixel shares and lambdas that `mixed` uses."""
  key = randomness.fold(KEY, number)
  pixels, lam = mix._own_share(
      key, (rows, side, side + 1), float(kind == "mixup"),
      float(kind == "cutmix"))
  partner = tf.argsort(randomness.uniform(randomness.fold(key, 0), [rows]))
  return partner.numpy(), pixels.numpy(), lam.numpy()


def test_off_leaves_everything_as_it_is() -> None:
  data = batch(4)
  image, label, weight = mixed(data)
  assert image is data[0] and label is data[1] and weight is data[2]
  assert label.dtype == tf.int32


def test_mixup_by_hand() -> None:
  image, label, weight = batch(8)
  partner, _, lam = draws(8, "mixup")
  assert sorted(partner) == list(range(8)) and 0 < lam.min() < lam.max() < 1
  new_image, new_label, new_weight = mixed((image, label, weight), mixup=1.0)
  assert new_image.dtype == tf.uint8 and new_label.dtype == tf.float32
  x = image.numpy().astype(np.float64)
  for row in range(8):
    expected = lam[row] * x[row] + (1 - lam[row]) * x[partner[row]]
    # Whole pixels: half of one is lost at most.
    assert np.abs(new_image[row].numpy() - expected).max() <= 0.5 + 1e-4
    one_hot = np.zeros(CLASSES)
    one_hot[label[row]] += lam[row]
    one_hot[label[partner[row]]] += 1 - lam[row]
    np.testing.assert_allclose(new_label[row], one_hot, atol=1e-6)
  np.testing.assert_array_equal(new_weight, weight)


def test_cutmix_by_hand() -> None:
  data = batch(16)
  image, label, _ = data
  partner, pixels, lam = draws(16, "cutmix")
  new_image, new_label, _ = mixed(data, cutmix=1.0)
  heights, widths = set(), set()
  for row in range(16):
    keeps = pixels[row, :, :, 0].astype(bool)
    np.testing.assert_array_equal(
        new_image[row], np.where(keeps[..., None], image[row],
                                 image[partner[row]]))
    cut = ~keeps
    if cut.any():  # a box: the product of its rows and columns
      rows, columns = cut.any(1), cut.any(0)
      np.testing.assert_array_equal(cut, rows[:, None] & columns)
      heights.add(rows.sum())
      widths.add(columns.sum())
    assert lam[row] == pytest.approx(keeps.mean(), abs=1e-6)
    one_hot = np.zeros(CLASSES)
    one_hot[label[row]] += keeps.mean()
    one_hot[label[partner[row]]] += cut.mean()
    np.testing.assert_allclose(new_label[row], one_hot, atol=1e-6)
  assert len(heights) > 2 and len(widths) > 2


def test_keras_cv_gives_the_same_for_the_same_draws(
    monkeypatch: pytest.MonkeyPatch) -> None:
  import keras_cv

  # Its layers ask for one, and none is made once determinism is on.
  tf.random.set_global_generator(tf.random.Generator.from_seed(0))
  image, label, _ = batch(8)
  inputs = {"images": tf.cast(image, tf.float32),
            "labels": tf.one_hot(label, CLASSES)}
  key = randomness.fold(KEY, 0)
  partner, _, lam = draws(8, "mixup")
  monkeypatch.setattr(tf.random, "shuffle", lambda *_, **__: partner)
  layer = keras_cv.layers.MixUp(alpha=1.0)
  monkeypatch.setattr(layer, "_sample_from_beta", lambda *_: lam)
  expected = layer(inputs)
  actual = mixed(batch(8), mixup=1.0)
  np.testing.assert_array_equal(
      actual[0], np.round(expected["images"]).astype(np.uint8))
  np.testing.assert_allclose(actual[1], expected["labels"], atol=1e-6)

  # Where no box leaves the image, keras-cv's area is the true one.
  side, drawn = 6, np.full(8, 0.9, np.float32)
  monkeypatch.setattr(mix, "_beta", lambda *_: tf.constant(drawn))
  layer = keras_cv.layers.CutMix(alpha=1.0)
  monkeypatch.setattr(layer, "_sample_from_beta", lambda *_: drawn)
  centre_key = randomness.fold(key, 3)
  centres = iter([
      randomness.integer(randomness.fold(centre_key, axis), [8], length)
      for axis, length in enumerate((side, side + 1))])
  monkeypatch.setattr(tf.random, "uniform", lambda **_: next(centres))
  expected = layer({name: tf.identity(x) for name, x in inputs.items()})
  actual = mixed(batch(8), cutmix=1.0)
  np.testing.assert_array_equal(actual[0], expected["images"])
  _, pixels, _ = draws(8, "cutmix")
  cut = np.sum(pixels == 0, axis=(1, 2, 3))
  whole = cut == int(side * 0.1**0.5) * int((side + 1) * 0.1**0.5)
  assert whole.sum() >= 4
  np.testing.assert_allclose(
      actual[1][whole], expected["labels"][whole], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
  lam = mix._beta(KEY, 20_000, alpha).numpy().astype(np.float64)
  assert np.isfinite(lam).all() and lam.min() >= 0 and lam.max() <= 1
  assert lam.mean() == pytest.approx(0.5, abs=0.012)
  assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
  # The fourth moment around 1/2, from the kurtosis of Beta(alpha, alpha).
  fourth = 3 * (2 * alpha + 1) / (2 * alpha + 3) * lam.var()**2
  assert ((lam - 0.5)**4).mean() == pytest.approx(fourth, rel=0.06)


def test_draws_depend_on_the_number_alone() -> None:
  data = batch(8)
  first = mixed(data, 0, mixup=0.2, cutmix=1.0)
  # Without autograph, as in the pipeline: converting takes seconds.
  elements = list(tf.data.Dataset.range(3).map(
      tf.autograph.experimental.do_not_convert(
          lambda n: mixed(data, n, mixup=0.2, cutmix=1.0))))
  np.testing.assert_array_equal(elements[0][0], first[0])
  np.testing.assert_array_equal(elements[0][1], first[1])
  assert np.any(elements[1][0] != first[0])
  np.testing.assert_array_equal(
      mixed(data, 2, mixup=0.2, cutmix=1.0)[1], elements[2][1])
  assert elements[0][0].shape == data[0].shape


def test_with_both_on_about_half_the_batches_take_each() -> None:
  data = batch(4)
  shares = tf.data.Dataset.range(200).map(
      tf.autograph.experimental.do_not_convert(
          lambda number: mix._own_share(
              randomness.fold(KEY, number), (4, 6, 7), 0.2, 1.0)[0]))
  is_cutmix = [set(np.unique(pixels)) <= {0, 1} for pixels in shares]
  assert 80 < sum(is_cutmix) < 120
  one, other = is_cutmix.index(True), is_cutmix.index(False)
  np.testing.assert_array_equal(
      mixed(data, one, mixup=0.2, cutmix=1.0)[0],
      mixed(data, one, cutmix=1.0)[0])
  np.testing.assert_array_equal(
      mixed(data, other, mixup=0.2, cutmix=1.0)[0],
      mixed(data, other, mixup=0.2)[0])


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_rows_of_weight_0_take_no_part(options: dict[str, float]) -> None:
  image, label, _ = batch(8)
  weight = tf.constant([1., 0, 1, 1, 0, 0, 1, 1])
  absent = weight.numpy() == 0
  new_image, new_label, new_weight = mixed((image, label, weight), **options)
  np.testing.assert_array_equal(new_image[absent], image[absent])
  np.testing.assert_array_equal(
      new_label, new_label / np.sum(new_label, axis=1, keepdims=True))
  partner, _, _ = draws(8, next(iter(options)))
  alone = ~absent & absent[partner]
  assert alone.any() and (~absent & ~alone).any()
  np.testing.assert_array_equal(new_image[alone], image[alone])
  np.testing.assert_array_equal(
      new_label[alone], tf.one_hot(label, CLASSES)[alone])
  # What stands in the absent rows is of no consequence to the others.
  other = tf.where(absent[:, None, None, None], 255 - image, image)
  np.testing.assert_array_equal(
      mixed((other, label, weight), **options)[0][~absent],
      new_image[~absent])
  np.testing.assert_array_equal(new_weight, weight)


def test_all_versions_of_an_image_are_mixed_alike() -> None:
  image, label, weight = batch(8)
  versions = {"image": image, "augmented": 255 - image}
  for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
    both, labels, _ = mixed((versions, label, weight), **options)
    assert set(both) == {"image", "augmented"}
    alone = mixed((image, label, weight), **options)
    np.testing.assert_array_equal(both["image"], alone[0])
    np.testing.assert_array_equal(labels, alone[1])
    other = mixed((255 - image, label, weight), **options)
    np.testing.assert_array_equal(both["augmented"], other[0])


def test_arrangements_of_the_same_slices_mix_the_same() -> None:
  image, label, weight = batch(8)
  whole = mixed((image, label, weight), 5, mixup=0.4, cutmix=1.0, slices=2)
  halves = [
      mixed((image[4 * h:4 * h + 4], label[4 * h:4 * h + 4],
             weight[4 * h:4 * h + 4]), 10 + h, mixup=0.4, cutmix=1.0)
      for h in range(2)]
  for index in (0, 1):
    np.testing.assert_array_equal(
        whole[index], np.concatenate([half[index] for half in halves]))


def test_the_mean_image_and_the_mean_label_agree() -> None:
  """Where pixels are the class, the label's expectation is the pixel's."""
  label = tf.constant([0, 1] * 32)
  image = tf.cast(250 * label, tf.uint8)[:, None, None, None] * tf.ones(
      [1, 9, 9, 1], tf.uint8)
  for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
    new_image, new_label, _ = mixed((image, label, tf.ones([64])), **options)
    np.testing.assert_allclose(
        np.mean(new_image, axis=(1, 2, 3)) / 250, new_label[:, 1], atol=2e-3)
