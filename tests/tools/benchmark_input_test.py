"""The input benchmark's own arithmetic and pictures."""

import pathlib

from absl import flags
from absl.testing import flagsaver
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from conadv_tf.config import InputError
from tools import benchmark_input


def test_made_images_are_jpegs_of_500_by_375(tmp_path: pathlib.Path) -> None:
  paths = benchmark_input.made(str(tmp_path))
  assert len(paths) == 64
  with Image.open(paths[5]) as image:
    assert (image.format, image.size) == ('JPEG', (500, 375))
  (tmp_path / 'inner').mkdir()
  (tmp_path / 'inner/x.JPEG').write_bytes(b'')
  assert len(benchmark_input.files(str(tmp_path))) == 65
  with pytest.raises(InputError, match='holds no .jpg'):
    benchmark_input.files(str(tmp_path / 'gone'))


def test_ratios_are_round_by_round() -> None:
  table = benchmark_input.summarise(
      {'a': [(1., 2.), (2., 2.), (4., 4.)],
       'b': [(2., 1.), (2., 4.), (2., 4.)]}, count=8)
  assert [row['images_per_second'] for row in table] == [4.0, 4.0]
  assert (table[0]['ratio'], table[1]['ratio']) == (1.0, 1.0)
  assert table[1]['ratio_quartiles'] == [0.75, 1.5]
  assert table[1]['cpu_ratio'] == 1.0


def test_rows_see_the_same_files(tmp_path: pathlib.Path) -> None:
  path = str(tmp_path / 'a.jpg')
  Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(path)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['test'])
  with flagsaver.flagsaver(image_size=8, batch_size=2):
    bare = next(iter(benchmark_input.bare([path])))
    image, _, weight = next(iter(benchmark_input.pipeline([path], 'none')))
    streamed, *_ = next(iter(benchmark_input.stream([path])))
  np.testing.assert_allclose(streamed, 90, atol=2)
  assert (bare.shape, bare.dtype) == ((2, 8, 8, 3), tf.float32)
  np.testing.assert_allclose(bare, 90, atol=2)
  np.testing.assert_allclose(image, 90, atol=2)
  np.testing.assert_array_equal(weight, 1)
