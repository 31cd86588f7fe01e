import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from conadv_tf import config
from conadv_tf.training import hyperparameters, summaries
from tests import events


def _pictures(path: pathlib.Path, clean: np.ndarray, adversarial: np.ndarray,
              pixel_range: tuple[float, float] = (0.0, 255.0)
              ) -> list[np.ndarray]:
  written = summaries.Summaries(str(path))
  written.pictures(5, tf.constant(clean), tf.constant(adversarial), pixel_range)
  written.close()
  return events.pictures(path / 'train').get(5, [])


def test_scalars(tmp_path: pathlib.Path) -> None:
  written = summaries.Summaries(str(tmp_path))
  assert list(tmp_path.iterdir()) == []  # opened when first used
  written.scalars('train', 3, {'loss': 0.5, 'accuracy': 0.25})
  written.scalars('train', 6, {'loss': 0.125})
  written.scalars('validation', 6, {'loss': 1.0})
  written.close()
  assert events.scalars(tmp_path / 'train') == {
      'loss': {3: 0.5, 6: 0.125}, 'accuracy': {3: 0.25}}
  assert events.scalars(tmp_path / 'validation') == {'loss': {6: 1.0}}


def test_pictures_show_clean_perturbation_and_adversarial(
    tmp_path: pathlib.Path) -> None:
  clean = np.zeros([2, 64, 64, 1], np.uint8)
  clean[1] = 100
  adversarial = clean.astype(np.float32)
  adversarial[0, :32] += 10
  adversarial[1, :32] += 5
  adversarial[1, 32:] -= 10
  first, second = _pictures(tmp_path, clean, adversarial)
  assert first.shape == second.shape == (64, 192, 1)
  columns = first[0, [0, 64, 128], 0], second[0, [0, 64, 128], 0]
  # The largest component, 10, becomes 127.5 above or below grey.
  np.testing.assert_allclose(columns[0], [0, 255, 10], atol=1)
  np.testing.assert_allclose(columns[1], [100, 127.5 + 63.75, 105], atol=1)
  np.testing.assert_allclose(second[63, [0, 64, 128], 0], [100, 0, 90], atol=1)
  np.testing.assert_allclose(first[63, [0, 64, 128], 0], [0, 127.5, 0], atol=1)


def test_small_pictures_are_enlarged_and_ranges_scaled(
    tmp_path: pathlib.Path) -> None:
  clean = np.full([1, 8, 8, 3], -1, np.float32)
  image, = _pictures(tmp_path, clean, clean + 1, (-1.0, 1.0))
  assert image.shape == (32, 96, 3)
  np.testing.assert_allclose(image[0, [0, 32, 64], 0], [0, 255, 127.5], atol=1)


def test_what_is_no_picture_is_left_out(tmp_path: pathlib.Path) -> None:
  images: Any = np.zeros([1, 8, 8, 2], np.float32)
  assert _pictures(tmp_path, images, images) == []


def test_hyperparameters_stand_beside_validation_figures(
    tmp_path: pathlib.Path) -> None:
  values = {'method.name': 'conadv', 'attack.radius': 4.0}
  written = summaries.Summaries(str(tmp_path), hyperparameters=values)
  written.scalars('train', 1, {'loss': 0.5})
  for step in (2, 3):
    written.scalars('validation', step, {'loss': 1.0, 'examples': 9.0})
  written.close()
  assert events.hyperparameters(tmp_path / 'train') == []
  assert events.hyperparameters(tmp_path / 'validation') == [
      (str(tmp_path), values)]
  assert set(events.scalars(tmp_path / 'validation')) == {'loss'}


def test_hyperparameters_are_a_few_and_what_is_no_default() -> None:
  loaded = config.load([], ['method.name=vanilla,optimizer.nesterov=true,'
                            'data.name=synthetic,data.global_batch_size=8'])
  found = hyperparameters.of(config.resolve(loaded, 24))
  assert found == {
      'seed': 0, 'data.name': 'synthetic', 'data.global_batch_size': 8,
      'model.name': loaded.model.name, 'method.name': 'vanilla',
      'optimizer.nesterov': True, 'schedule.epochs': loaded.schedule.epochs,
      'schedule.peak_lr': loaded.schedule.peak_lr,
      'derived.virtual_replicas': 1}
  loaded.method.name = 'conadv'
  attacked = hyperparameters.of(config.resolve(loaded, 24))
  assert attacked.keys() - found.keys() == {
      'method.lag', 'attack.radius', 'attack.steps'}
