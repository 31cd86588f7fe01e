"""Certificates beside adversarial-robustness-toolbox's, where it is there."""

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import randomness
from conadv_tf.evaluation import certified
from conadv_tf.layers import network as networks

_WHY = 'needs adversarial-robustness-toolbox and statsmodels'
library = pytest.importorskip(
    'art.estimators.certification.randomized_smoothing.randomized_smoothing',
    reason=_WHY)
pytest.importorskip('statsmodels', reason=_WHY)


def _network() -> networks.Network:
  tf.keras.utils.set_random_seed(4)
  layers = tf.keras.layers
  return networks.Network(tf.keras.Sequential([
      layers.Input([4, 4, 1]), layers.Rescaling(1 / 127.5, offset=-1.0),
      layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(),
      layers.Flatten(), layers.Dense(3, kernel_initializer='normal')]),
      ('clean',))


def test_the_same_certificates_on_the_same_noise() -> None:
  smoothing = certified.Smoothing(0.25, n0=20, n=400, batch_size=100)
  network = _network()
  plain = network.merge()
  images = np.random.default_rng(0).uniform(
      0, 255, (12, 4, 4, 1)).astype(np.float32)
  ours = certified.Certifier(
      network, smoothing, tf.distribute.get_strategy(), 'clean', 0, (0., 255.))

  class Theirs(library.RandomizedSmoothingMixin):
    """Their algorithm on our network, and on our noise in place of NumPy's."""

    position = 0

    def _predict_classifier(self, x: np.ndarray, **kwargs: object
                            ) -> np.ndarray:
      del kwargs
      return plain(x, training=False).numpy()

    def _noisy_samples(self, x: np.ndarray, n: int | None = None
                       ) -> np.ndarray:
      n = n or self.sample_size
      noise = np.concatenate([randomness.normal(randomness.make_key(
          0, randomness.CERTIFICATION, self.position, int(n == 400), block),
          [100, 4, 4, 1]) for block in range(4)])[:n]
      return x + 255 * self.scale * noise

  theirs = Theirs(sample_size=20, scale=0.25, alpha=0.001)
  predictions = set()
  for position, image in enumerate(images):
    theirs.position = position
    (prediction,), (radius,) = theirs.certify(image[None], n=400)
    found = ours(image, 0, position)
    assert found.prediction == prediction
    assert found.radius == pytest.approx(radius, abs=1e-9)
    predictions.add(int(prediction))
  assert -1 in predictions and len(predictions) > 1
