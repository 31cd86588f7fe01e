"""Encoded sources, their orders, and the count of bad examples."""

import io

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.config import InputError
from conadv_tf.data import encoded, pipeline, source

KEY = randomness.make_key(0, randomness.ORDER)


def _png(value: int, size: int = 4) -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (size, size), (value, value, value)).save(file, 'PNG')
  return file.getvalue()


def _numbered(count: int, **more: object) -> encoded.IndexedSource:
  return encoded.IndexedSource(
      [b'%d' % i for i in range(count)], np.arange(count), image_size=4,
      num_classes=count, **more)


def _labels(dataset: tf.data.Dataset) -> list[int]:
  return [int(example.label) for example in dataset]


@pytest.mark.parametrize('shards', [1, 2, 3])
def test_shards_together_are_one_pipeline(shards: int) -> None:
  data = _numbered(10)
  whole = _labels(data.training_examples(
      KEY, 0, 60, encoded.Shard(), 1, True))
  for epoch in range(6):
    assert sorted(whole[epoch * 10:][:10]) == list(range(10))
  # Elements of 6 rows, of which each shard makes its own; two are a batch.
  rows = 6 // shards
  parts = [_labels(data.training_examples(
      KEY, 0, 5, encoded.Shard(i, shards, rows, elements=2), 1, True))
           for i in range(shards)]
  together = np.array(parts).reshape(shards, 10, rows).swapaxes(0, 1)
  np.testing.assert_array_equal(together.ravel(), whole)


def test_resumes_anywhere() -> None:
  data = _numbered(10)
  whole = _labels(data.training_examples(
      KEY, 0, 90, encoded.Shard(), 1, True))
  for start in (1, 9, 10, 64, 77):
    assert whole[start:] == _labels(data.training_examples(
        KEY, start, 90 - start, encoded.Shard(), 1, True))


def test_a_shard_knows_its_rows() -> None:
  shard = encoded.Shard(1, 3, rows=2, elements=2)
  assert shard.batch == 12
  np.testing.assert_array_equal(np.flatnonzero(shard.own()), [2, 3, 8, 9])
  # The same rows, of batch 5.
  own = tf.range(20, 24, dtype=tf.int64)
  np.testing.assert_array_equal(shard.position(own), [62, 63, 68, 69])


def test_evaluation_has_each_example_once_in_order() -> None:
  data = _numbered(70)
  assert _labels(data.evaluation_examples()) == list(range(70))


def test_selected_keeps_the_same_rows_of_every_batch() -> None:
  kept = encoded.selected(
      _numbered(11).evaluation_examples(), np.array([False, True, True, False]))
  assert _labels(kept) == [1, 2, 5, 6, 9, 10]
  everything = _numbered(3).evaluation_examples()
  assert encoded.selected(everything, np.array([True])) is everything


def test_examples_carry_content_boxes_and_name() -> None:
  boxes = [np.zeros([0, 4]), np.array([[0, .25, .5, 1], [.1, .2, .3, .4]])]
  data = encoded.IndexedSource(
      [b'a', b'b'], np.array([0, 1]), image_size=4, boxes=boxes,
      where='mine')
  first, second = data.evaluation_examples()
  assert (first.content, first.name) == (b'a', b'mine, example 0')
  assert first.boxes.shape == (0, 4)
  np.testing.assert_array_equal(second.boxes, np.float32(boxes[1]))
  files = encoded.IndexedSource(
      ['x.png'], np.array([0]), image_size=4, from_files=True)
  assert next(iter(files.evaluation_examples())).name == 'x.png'


def test_subsets_of_subsets() -> None:
  part = _numbered(10).subset(np.array([1, 4, 5, 9])).subset(np.array([0, 2]))
  assert part.num_examples == 2
  assert part.num_classes == 10
  assert _labels(part.evaluation_examples()) == [1, 5]
  assert sorted(_labels(part.training_examples(
      KEY, 0, 2, encoded.Shard(), 1, True))) == [1, 5]
  kept = source.truncate(_numbered(100), 40)
  labels = _labels(kept.evaluation_examples())
  assert len(set(labels)) == 40
  assert sorted(labels) == labels


def test_refuses() -> None:
  with pytest.raises(InputError, match='image_size=0: must be at least 1'):
    encoded.IndexedSource([b'x'], np.array([0]), image_size=0)
  with pytest.raises(InputError, match='1 images but 2 labels'):
    encoded.IndexedSource([b'x'], np.array([0, 1]), image_size=4)
  for label in (2, -1, 2**32):
    with pytest.raises(InputError, match=f'example 0: its label is {label}, '
                       r'outside 0 \.\. 1; replace'):
      encoded.IndexedSource(
          [b'x'], np.array([label]), image_size=4, num_classes=2)


def test_bad_examples_are_counted_once_and_named() -> None:
  bad = encoded.BadExamples(1, 'here')
  for _ in range(3):
    bad.add('a', 'it is empty')
  bad.check()
  bad.add('b', 'too')
  with pytest.raises(InputError, match='here: 2 bad examples, more than data.'
                     'max_bad_examples=1; .* a: it is empty; b: too$'):
    bad.check()
  for i in range(9):
    bad.add(str(i), 'x')
  with pytest.raises(InputError, match=r'11 bad .* 2: x; \.\.\.$'):
    bad.check()


def _broken(limit: int) -> encoded.IndexedSource:
  """Ten images, numbers 2 to 6 bad in a way each."""
  contents = [_png(10 * i) for i in range(10)]
  contents[2] = b''
  contents[3] = contents[3][:40]
  contents[4] = b'just some text'
  jpeg = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(
      0, 256, (40, 50, 3), np.uint8)).save(jpeg, 'JPEG')
  contents[5] = jpeg.getvalue()[:len(jpeg.getvalue()) // 2]
  labels = np.arange(10)
  labels[6] = 10
  return encoded.IndexedSource(
      contents, labels, image_size=4, num_classes=10, where='set',
      preprocessing='imagenet', bad=encoded.BadExamples(limit, 'set'))


def test_evaluation_leaves_bad_examples_out() -> None:
  data = _broken(5)
  images, labels, weights = (np.concatenate(part) for part in zip(
      *pipeline.evaluation_dataset(data, 4).as_numpy_iterator(), strict=True))
  np.testing.assert_array_equal(
      weights, [1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0])
  # Their rows are copies of the first good one of their batch.
  expected = np.array([0, 1, 0, 0, 7, 7, 7, 7, 8, 9, 8, 8])
  np.testing.assert_array_equal(labels, expected)
  np.testing.assert_array_equal(
      images, np.broadcast_to(10 * expected[:, None, None, None],
                              images.shape))
  reasons = {int(name[-1]): why for name, why in data.bad.names.items()}
  assert sorted(reasons) == [2, 3, 4, 5, 6]
  assert reasons[2] == 'it is empty'
  assert reasons[4].startswith('cannot be read as a JPEG, PNG, GIF or BMP')
  assert reasons[6] == 'its label is 10, outside 0 .. 9'
  assert '[Op' not in ''.join(reasons.values())


def test_training_keeps_every_other_row_in_its_place() -> None:
  good = encoded.IndexedSource(
      [_png(10 * i) for i in range(10)], np.arange(10), image_size=4,
      preprocessing='imagenet')
  options = dict(global_batch_size=5, num_steps=4)
  for (image, label, weight), (clean_image, clean_label, _) in zip(
      pipeline.train_dataset(_broken(5), **options),
      pipeline.train_dataset(good, **options), strict=True):
    is_good = ~np.isin(clean_label, [2, 3, 4, 5, 6])
    np.testing.assert_array_equal(weight, is_good)
    np.testing.assert_array_equal(image[is_good], clean_image[is_good])
    np.testing.assert_array_equal(label[is_good], clean_label[is_good])
    if is_good.any():
      assert np.isin(label, [0, 1, 7, 8, 9]).all()


def test_a_batch_of_bad_examples_is_zeros() -> None:
  data = encoded.IndexedSource(
      [b''] * 3, np.array([0, 1, 1]), image_size=4,
      bad=encoded.BadExamples(3, ''))
  (image, label, weight), = pipeline.evaluation_dataset(data, 4)
  assert not image.numpy().any() and not weight.numpy().any()
  assert image.shape == (4, 4, 4, 3)
  np.testing.assert_array_equal(label, [0] * 4)


@pytest.mark.parametrize('limit', [1, 4])
def test_stops_past_the_limit(limit: int) -> None:
  data = _broken(limit)
  with pytest.raises(tf.errors.InvalidArgumentError):
    for _ in pipeline.evaluation_dataset(data, 10):
      pass
  with pytest.raises(InputError, match=f'set: {limit + 1} bad examples, more '
                     f'than data.max_bad_examples={limit}'):
    data.check()


def test_draws_are_decoded_as_in_evaluation() -> None:
  """Not as in training, which crops at random."""
  random = np.random.default_rng(0)
  contents = [tf.io.encode_png(random.integers(
      0, 256, (9, 12, 3), np.uint8)).numpy() for _ in range(10)]
  data = encoded.IndexedSource(
      contents, np.arange(10), image_size=4, preprocessing='imagenet')
  images, _, _ = pipeline.evaluation_dataset(data, 10).get_single_element()
  image, label, weight = pipeline.drawn_dataset(
      data, 10, seed=0, number=1).get_single_element()
  np.testing.assert_array_equal(np.sort(label), np.arange(10))
  assert (label.numpy() != np.arange(10)).any()
  np.testing.assert_array_equal(weight, 1.0)
  np.testing.assert_array_equal(image, images.numpy()[label])


def test_draws_leave_bad_examples_out() -> None:
  _, label, weight = pipeline.drawn_dataset(
      _broken(5), 10, seed=0, number=0).get_single_element()
  np.testing.assert_array_equal(
      np.sort(label.numpy()[weight.numpy() > 0]), [0, 1, 7, 8, 9])
