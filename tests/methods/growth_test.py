"""When the batch grows: the rules, without training."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from conadv_tf.methods import absa, growth
from tests.reference import absa as reference

_random = np.random.default_rng(4)
_FAR = 10**9  # initial batches to the end of a run


def _controlled(eigenvalues: Sequence[float], largest: int = 64,
                left: int = _FAR, **options: Any) -> list[tuple[int, float]]:
  rule = absa.Controller(largest, **options)
  found = []
  for value in eigenvalues:
    rule.measured(value, left)
    assert rule.rate_factor == rule.ratio
    found.append((rule.ratio, rule.gamma))
  return found


def test_the_batch_grows_when_the_eigenvalue_halves() -> None:
  # The first is the reference; 5 is not below half of 10; 4.9 is, and then
  # the reference; 2.4 is below half of that.
  assert _controlled([10, 5, 4.9, 2.5, 2.4], gamma=0.2) == [
      (1, 0.2), (1, 0.2), (2, 0.1), (2, 0.1), (4, 0.05)]


def test_the_batch_grows_after_kappa_evaluations_without_a_fall() -> None:
  # 3 after the reference; growth starts the count again, and leaves gamma.
  assert _controlled([8] * 7 + [3, 3, 3, 3], kappa=3, gamma=0.4) == (
      3 * [(1, 0.4)] + 3 * [(2, 0.4)] + [(4, 0.4)] + 3 * [(8, 0.2)]
      + [(16, 0.2)])


def test_the_released_rule_shrinks_gamma_with_every_growth() -> None:
  found = _controlled([8] * 7, kappa=2, largest=8, gamma=0.4,
                      gamma_rule='released')
  assert found == [(1, 0.4), (1, 0.4), (2, 0.2), (2, 0.2), (4, 0.1), (4, 0.1),
                   (8, 0.0)]


def test_the_last_growth_is_cut_at_the_largest_batch() -> None:
  rule = absa.Controller(12, beta=5)
  for value in (16, 7, 3, 1):
    assert rule.measures == (rule.ratio < 12)
    rule.measured(value, _FAR)
  assert (rule.ratio, rule.rate_factor) == (12, pytest.approx(12))
  assert not rule.measures


def test_gamma_falls_at_the_largest_batch_too() -> None:
  rule = absa.Controller(2, gamma=0.4, vanishes=7)
  for value in (16, 7, 3, 1):
    assert rule.measures
    rule.measured(value, _FAR)
  assert (rule.ratio, rule.gamma) == (2, 0.05)
  rule.before_update(7, _FAR)
  assert not rule.measures
  released = absa.Controller(2, gamma=0.4, gamma_rule='released')
  for value in (16, 7):
    released.measured(value, _FAR)
  assert not released.measures


def test_negative_eigenvalues_keep_their_sign() -> None:
  # -1 is below half of 8, and only what is below -0.5 undercuts it.
  assert [ratio for ratio, _ in _controlled([8, -1, -0.4, -0.6])] == [
      1, 2, 2, 4]


def test_no_batch_is_larger_than_the_rest_of_the_run() -> None:
  assert [r for r, _ in _controlled([8, 3, 1, 0.4], left=3)] == [1, 2, 2, 2]
  rule = growth.Scheduled(8, [4], 8)
  rule.before_update(4, total=11)
  # The rate decays instead.
  assert (rule.ratio, rule.rate_factor) == (1, 1 / 8)


@pytest.mark.parametrize('seed', range(20))
def test_the_controller_agrees_with_its_twin(seed: int) -> None:
  random = np.random.default_rng(seed)
  values = np.exp(np.cumsum(random.normal(-0.1, 0.6, 60))).tolist()
  options = dict(beta=int(random.integers(2, 5)),
                 alpha=float(random.uniform(1.2, 3)),
                 kappa=int(random.integers(1, 6)), gamma=0.2,
                 omega=float(random.uniform(1, 3)))
  expected = reference.controlled(values, 50, **options)
  assert expected[-1][0] > 4
  assert _controlled(values, 50, **options) == expected


def test_off_is_no_growth_at_all() -> None:
  rule = growth.Growth()
  for position in range(50):
    rule.before_update(position, 50)
    rule.measured(1.0 / (1 + position), 50 - position)
  assert (rule.ratio, rule.rate_factor, rule.gamma) == (1, 1.0, 0.0)
  assert not rule.measures
  assert not absa.Controller(1).measures  # B_max = B


@pytest.mark.parametrize('make', [
    lambda **o: growth.Growth(1, **o), lambda **o: absa.Controller(8, **o),
    lambda **o: growth.Scheduled(8, [3], 2, **o)])
def test_gamma_vanishes_at_tau(make: Callable[..., growth.Growth]) -> None:
  rule, gammas = make(gamma=0.5, vanishes=4), []
  for position in range(6):
    rule.before_update(position, _FAR)
    gammas.append(rule.gamma)
  assert gammas == [0.5] * 4 + [0.0] * 2


# ---- GG.


def _updates(rule: growth.Growth, total: int) -> list[tuple[int, int, float]]:
  """(position, ratio, rate factor) of each update of a run."""
  found, position = [], 0
  while True:
    rule.before_update(position, total)
    if position + rule.ratio > total:
      return found
    found.append((position, rule.ratio, rule.rate_factor))
    position += rule.ratio


# Micro batches an epoch, epochs, those of growth, factor, counts by
# B_max / B: section 4 of the paper. Where the schedule's own factor does not
# reach B_max, the counts are those of the ceiling of its square root.
_C3 = (390, 200, (60, 120, 160), 5, {
    2: 50700, 4: 37050, 8: 31980, 16: 30030, 32: 29191, 64: 28947, 128: 28828})
_C1 = (390, 90, (30, 60, 80), 5, {
    5: 16380, 25: 14508, 40: 14449, 80: 14400, 125: 14383})  # and C2
_C4 = (390, 160, (80, 120), 10, {2: 46800, 4: 39000, 8: 35100, 16: 33735})
_I1 = (781, 120, (60, 90), 10, {
    2: 70290, 4: 58575, 8: 52717, 16: 50667, 32: 49935, 64: 49569})
_I1_LARGEST = (781, 120, (60, 90), 12, {128: 48995})
# The second count is printed as 45935.
_S1 = [(4149, 20, (10, 15), factor, {ratio: count})
       for factor, ratio, count in (
           (5, 4, 51862), (5, 16, 46935), (8, 64, 44407), (16, 256, 42867),
           (32, 1024, 42158))]
_PUBLISHED = [(*run, ratio, count)
              for *run, counts in (_C3, _C1, _C4, _I1, _I1_LARGEST, *_S1)
              for ratio, count in counts.items()]


@pytest.mark.parametrize(
    'epoch, epochs, boundaries, factor, ratio, count', _PUBLISHED)
def test_gg_makes_as_many_updates_as_published(
    epoch: int, epochs: int, boundaries: tuple[int, ...], factor: int,
    ratio: int, count: int) -> None:
  rule = growth.Scheduled(ratio, [e * epoch for e in boundaries], factor)
  made = _updates(rule, epoch * epochs)
  assert len(made) == count
  lengths = np.diff([0, *boundaries, epochs]) * epoch
  assert reference.scheduled_updates(lengths.tolist(), factor, ratio) == count
  assert epoch * epochs // ratio <= count <= epoch * epochs


def test_gg_decays_the_rate_by_what_the_batch_leaves() -> None:
  # Factor 4 up to ratio 6: 4, then 1.5 and a decay by 4 / 1.5, then by 4.
  rule = growth.Scheduled(6, [8, 16, 28], 4)
  rates = {position: (ratio, rate)
           for position, ratio, rate in _updates(rule, 60)}
  assert rates[7] == (1, 1.0)
  assert rates[8] == rates[12] == (4, 1.0)
  assert rates[16] == (6, pytest.approx(1.5 / 4))
  # 16, 22: the next would reach beyond 28 only from 28 on.
  assert rates[22] == (6, pytest.approx(1.5 / 4))
  assert rates[28] == rates[52] == (6, pytest.approx(1.5 / 16))
  assert sorted(rates) == [*range(8), 8, 12, *range(16, 60 - 5, 6)]


def test_an_update_across_a_boundary_is_a_grown_one() -> None:
  made = _updates(growth.Scheduled(9, [2, 4], 3), 20)
  # 2..4 would be 3 long and reach beyond 4: it grows at once, to 9.
  assert [(p, r) for p, r, _ in made] == [(0, 1), (1, 1), (2, 9), (11, 9)]


# ---- State.


@pytest.mark.parametrize('make', [
    lambda: absa.Controller(32, kappa=3, gamma=0.3, vanishes=20),
    lambda: growth.Scheduled(32, [4, 9, 30], 3)])
def test_a_rule_goes_on_from_its_state(
    make: Callable[[], growth.Growth]) -> None:
  values = np.exp(np.cumsum(_random.normal(-0.2, 0.6, 30)))

  def drive(rule: growth.Growth, start: int, end: int) -> None:
    for position in range(start, end):
      rule.before_update(position, 1000)
      rule.measured(float(values[position]), 1000 - position)

  straight, first, second = make(), make(), make()
  drive(straight, 0, 30)
  drive(first, 0, 11)
  assert first.state() != make().state() != straight.state()
  second.restore(first.state())
  drive(second, 11, 30)
  assert second.state() == straight.state()


@pytest.mark.parametrize('make, name', [
    (lambda: growth.Growth(0), 'max_ratio'),
    (lambda: growth.Growth(gamma=1.5), 'gamma'),
    (lambda: growth.Scheduled(4, [1], 1), 'factor'),
    (lambda: absa.Controller(4, beta=1), 'beta'),
    (lambda: absa.Controller(4, alpha=1.0), 'alpha'),
    (lambda: absa.Controller(4, kappa=0), 'kappa'),
    (lambda: absa.Controller(4, omega=0.5), 'omega'),
    (lambda: absa.Controller(4, gamma_rule='x'), 'gamma_rule'),
    (lambda: absa.Absa(gamma=-0.1), 'gamma'),
    (lambda: absa.Absa(lag=-1), 'lag')])
def test_bad_arguments_are_named(make: Callable[[], Any], name: str) -> None:
  with pytest.raises(ValueError, match=name):
    make()
