"""Certificates: published values, a classifier known exactly, files."""

import dataclasses
import pathlib

import numpy as np
import pytest
from scipy import stats
import tensorflow as tf

from conadv_tf import config, randomness
from conadv_tf.evaluation import certified, certified_file
from conadv_tf.layers import network as networks

PIXELS = (0.0, 255.0)
Smoothing = certified.Smoothing
DEFAULT = tf.distribute.get_strategy


@pytest.mark.parametrize('count, n, bound, radius', [
    (99_000, 100_000, .988989, .57250), (990, 1000, .976036, .49450)])
def test_bounds_of_the_released_code(
    count: int, n: int, bound: float, radius: float) -> None:
  smoothing = Smoothing(0.25, n=n)
  assert smoothing.bound(count) == pytest.approx(bound, abs=1e-6)
  assert smoothing.radius(count) == pytest.approx(radius, abs=1e-5)


@pytest.mark.parametrize('sigma, largest', [(0.12, .4574), (0.25, .9529)])
def test_no_radius_exceeds_that_of_full_agreement(
    sigma: float, largest: float) -> None:
  smoothing = Smoothing(sigma)
  assert smoothing.largest_radius == pytest.approx(largest, abs=5e-5)
  # Its closed form: all of n agree with probability p^n = alpha.
  assert smoothing.largest_radius == pytest.approx(
      sigma * stats.norm.ppf(0.001 ** 1e-5), rel=1e-9)


def test_abstention() -> None:
  # 0.001^(1/10) = 0.501: of 10 copies all must agree, 9 are never enough.
  # (That 10 always abstain holds for the two-sided test by which Cohen et al.
  # predict, 2 * 0.5^10 > 0.001, and not for their certificate.)
  assert Smoothing(0.25, n0=1, n=9).radius(9) is None
  assert Smoothing(0.25, n0=1, n=9).largest_radius == 0
  assert Smoothing(0.25, n0=1, n=10).radius(9) is None
  assert Smoothing(0.25, n0=1, n=10).radius(10) == pytest.approx(
      0.25 * stats.norm.ppf(0.001 ** 0.1))
  assert Smoothing(0.25).radius(0) is None
  assert Smoothing(0.25).radius(50_000) is None


@pytest.mark.parametrize('options, part', [
    (dict(sigma=0.0), 'sigma=0.0 must be above 0'),
    (dict(sigma=-0.25), 'sigma=-0.25 must be above 0'),
    (dict(sigma=64.0), 'not in 1/255'),
    (dict(sigma=float('nan')), 'sigma=nan'),
    (dict(n=100), 'n=100 must be above n0=100'),
    (dict(n0=0), 'n0=0 must be at least 1'),
    (dict(alpha=0.0), 'alpha'), (dict(alpha=1.0), 'alpha'),
    (dict(skip=0), 'skip'), (dict(batch_size=0), 'batch_size')])
def test_bad_settings_are_named(options: dict, part: str) -> None:
  with pytest.raises(config.InputError) as raised:
    Smoothing(**{'sigma': 0.25, **options})
  assert part in str(raised.value)


_WEIGHTS = np.array([0.5, -1.0, 2.0, 0.25], np.float32)


def linear() -> networks.Network:
  """Class 1 where w x > 128, for 4 pixels x in 0..255."""
  inputs = tf.keras.Input([2, 2, 1])
  dense = tf.keras.layers.Dense(2)
  model = tf.keras.Model(inputs, dense(tf.keras.layers.Flatten()(inputs)))
  dense.set_weights([np.stack([-_WEIGHTS, _WEIGHTS], 1),
                     np.array([128, -128], np.float32)])
  return networks.Network(model, ('clean',))


IMAGE = np.array([[[40.], [10.]], [[70.], [20.]]], np.float32)
# w x - 128 = 20 - 10 + 140 + 5 - 128 = 27: so far from the border in l2, with
# pixels 0..1, and so far smoothing leaves it, which is linear as well.
MARGIN = 27 / np.linalg.norm(_WEIGHTS) / 255


def certifier(smoothing: Smoothing,
              strategy: tf.distribute.Strategy | None = None,
              seed: int = 0) -> certified.Certifier:
  strategy = strategy or DEFAULT()
  with strategy.scope():
    network = linear()
  return certified.Certifier(network, smoothing, strategy, 'clean', seed,
                             PIXELS)


def test_a_linear_classifier_is_certified_up_to_its_margin() -> None:
  smoothing = Smoothing(0.05, n=20_000)
  make = certifier(smoothing)
  found = make(IMAGE, 1, 7)
  assert (found.position, found.label, found.prediction) == (7, 1, 1)
  assert found.is_correct
  # Its true p is Phi(margin / sigma): 0.819.
  true = stats.norm.cdf(MARGIN / 0.05)
  deviation = np.sqrt(true * (1 - true) / 20_000)
  assert abs(found.count / 20_000 - true) < 4 * deviation
  assert 0.95 * MARGIN < found.radius < MARGIN
  wrong = make(IMAGE, 0, 7)
  assert not wrong.is_correct and wrong.radius == found.radius


def test_the_border_abstains_and_radii_are_seldom_too_large() -> None:
  # 40 images with margin 27: with alpha 0.2 about 8 certificates may be wrong,
  # at 0.001 none.
  for alpha, most in ((0.001, 0), (0.2, 16)):
    make = certifier(Smoothing(0.05, n0=10, n=300, alpha=alpha, batch_size=300))
    radii = [make(IMAGE, 1, position).radius for position in range(40)]
    wrong = sum(radius > MARGIN for radius in radii)
    assert wrong <= most and (alpha < 0.1 or wrong >= 2)
  border = IMAGE - np.array([[[0.], [0.]], [[13.5], [0.]]], np.float32)
  found = make(border, 1, 0)  # w x = 128
  assert (found.prediction, found.radius) == (certified.ABSTAINED, 0.0)
  assert not found.is_correct


def test_noise_is_not_clipped_and_belongs_to_the_position() -> None:
  # The counts of a block are those of noise drawn here, added to the image.
  make = certifier(Smoothing(0.5, n=200, batch_size=50), seed=3)
  for position, phase in ((0, 0), (0, 1), (20, 1)):
    noisy = np.concatenate([
        IMAGE + 127.5 * randomness.normal(randomness.make_key(
            3, randomness.CERTIFICATION, position, phase, block), [50, 2, 2, 1])
        for block in range(3)])[:120]
    assert noisy.min() < -50 and noisy.max() > 300
    ones = int((noisy.reshape(120, 4) @ _WEIGHTS > 128).sum())
    assert make.counts(IMAGE, position, phase, 120).tolist() == [
        120 - ones, ones]


def test_replicas_share_the_copies(mirrored: tf.distribute.Strategy) -> None:
  smoothing = Smoothing(0.1, n0=30, n=730, batch_size=100)
  alone, shared = certifier(smoothing), certifier(smoothing, mirrored)
  for position in (0, 1):
    counts = alone.counts(IMAGE, position, 1, 730)
    assert counts.sum() == 730 and counts.min() > 50
    np.testing.assert_array_equal(
        shared.counts(IMAGE, position, 1, 730), counts)
  assert shared(IMAGE, 1, 0) == alone(IMAGE, 1, 0)


def test_outputs_that_are_not_finite_count_for_no_class() -> None:
  make = certifier(Smoothing(0.1, n=200, batch_size=100))
  make._network.model.layers[-1].set_weights(
      [np.full([4, 2], np.nan), np.zeros(2)])
  assert make.counts(IMAGE, 0, 1, 200).tolist() == [0, 0]
  found = make(IMAGE, 0, 0)
  assert (found.prediction, found.count) == (certified.ABSTAINED, 0)


CERTIFICATES = [certified.Certificate(*row) for row in (
    (0, 3, 3, 0.57250, 990), (20, 1, 2, 0.4, 980), (40, 1, -1, 0.0, 510),
    (60, 5, 5, 0.1, 700), (80, 7, 7, 0.30000000000000004, 950))]


def test_figures() -> None:
  found = certified.figures(CERTIFICATES, Smoothing(0.25, n=1000),
                            (0.0, 0.1, 0.3, 0.5, 0.6))
  assert found['certified_accuracy'] == [0.6, 0.6, 0.4, 0.2, 0.0]
  assert (found['images'], found['abstained'], found['accuracy']) == (5, 1, .6)
  assert found['mean_radius'] == pytest.approx((.5725 + .1 + .3) / 5)
  assert found['largest_radius'] == Smoothing(0.25, n=1000).radius(1000)
  lines = certified.table(found).splitlines()
  assert 'sigma 0.25 of the pixel range' in lines[0]
  assert lines[-1].split() == ['0.6', '0.0000']


def test_a_stopped_file_goes_on(tmp_path: pathlib.Path) -> None:
  path = str(tmp_path / 'a.tsv')
  settings = {'step': 5, **dataclasses.asdict(Smoothing(0.25))}
  assert certified_file.known(path, settings) == []

  def stopped() -> object:
    yield from CERTIFICATES[:3]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    certified_file.write(path, settings, [], stopped(), 5)
  with open(path, 'a') as file:
    file.write('60\t5\t5\t0.')  # cut off half way through a row
  known = certified_file.known(path, settings)
  assert known == CERTIFICATES[:3]
  certified_file.write(path, settings, known, iter(CERTIFICATES[3:]), 5)
  assert certified_file.read(path) == (settings, CERTIFICATES)
  with pytest.raises(config.InputError, match='was made with n=100000, not 9'):
    certified_file.known(path, {**settings, 'n': 9})


def test_a_digest_tells_values_apart() -> None:
  one = certified_file.digest([np.zeros(3, np.float32), np.ones(2)])
  assert one == certified_file.digest(iter([np.zeros(3, np.float32),
                                            np.ones(2)]))
  assert one != certified_file.digest([np.zeros(3, np.float32),
                                       np.array([1, 1.0000001])])
  assert len(one) == 16


@pytest.mark.parametrize('text', ['', 'a\n', '# {}\nx\ty\n', '{\n\n\n',
    '# 5\nposition\tlabel\tprediction\tradius\tcount\n',
    '# {}\nposition\tlabel\tprediction\tradius\tcount\n'])
def test_a_file_that_is_none(tmp_path: pathlib.Path, text: str) -> None:
  path = tmp_path / 'a.tsv'
  path.write_text(text)
  with pytest.raises(config.InputError, match='holds no certificates'):
    certified_file.read(str(path))
