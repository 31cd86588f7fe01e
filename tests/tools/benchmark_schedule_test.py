"""Schedules of graphs that are small enough to be drawn by hand."""

import pytest

from tools import benchmark_schedule as schedules
from tools.benchmark_schedule import Graph, longest_chain, schedule


def test_a_chain_gains_nothing_from_processors() -> None:
  chain = Graph([1., 2., 3.], [[], [0], [1]])
  assert [schedule(chain, n) for n in (1, 2, 9)] == [6., 6., 6.]
  assert longest_chain(chain) == chain.work == 6.


def test_a_diamond() -> None:
  #     1 (5)
  # 0 (1)    3 (2)
  #     2 (4)
  diamond = Graph([1., 5., 4., 2.], [[], [0], [0], [1, 2]])
  assert schedule(diamond, 1) == 12.
  assert schedule(diamond, 2) == longest_chain(diamond) == 8.
  assert schedules.paths_to_end(diamond) == [8., 7., 6., 2.]


def test_the_longest_path_goes_first() -> None:
  # 2 and 0, then 3 and 1. In the order of their numbers they take 9.
  assert schedule(Graph([3., 3., 3., 3.], [[], [], [], [2]]), 2) == 6.


def test_what_ends_together_makes_way_for_the_more_urgent() -> None:
  # 0 and 1 end at 1. Both processors are free then: 3 -> 4 must start, since
  # 2, which has been waiting, is shorter.
  graph = Graph([1., 1., 2., 1., 4.], [[], [], [], [0, 1], [3]])
  assert schedule(graph, 2) == 6.


def test_costs_of_zero_and_nothing_at_all() -> None:
  assert schedule(Graph([0., 2., 0.], [[], [0], [1]]), 1) == 2.
  assert schedule(Graph([], []), 1) == longest_chain(Graph([], [])) == 0.


def test_a_cycle_is_refused() -> None:
  with pytest.raises(ValueError, match='cycle'):
    schedule(Graph([1., 1.], [[1], [0]]), 1)


# In F. Work: vanilla 3, attack 2, so DisAdv and ConAdv 8, recycled 6.
@pytest.mark.parametrize('method, one, two, chain', [
    ('vanilla', 3, 2, 2), ('disadv_joined', 8, 6, 6),
    ('disadv_separate', 8, 4, 4), ('conadv_joined', 8, 4, 4),
    ('conadv_separate', 8, 4, 2), ('recycled_lag0', 6, 4, 4),
    ('recycled_joined', 6, 4, 4), ('recycled_separate', 6, 3, 2)])
def test_passes(method: str, one: float, two: float, chain: float) -> None:
  graph = schedules.pass_graph(method)
  # A layer more or less on the second processor.
  tolerance = 2 / schedules.LAYERS
  assert schedule(graph, 1) == pytest.approx(one)
  assert schedule(graph, 2) == pytest.approx(two, abs=tolerance)
  assert longest_chain(graph) == pytest.approx(chain)


@pytest.mark.parametrize('processors, gain', [
    (2, 1.0), (3, 1.5), (4, 1.8), (100, 2.0)])
def test_conadv_over_disadv(processors: int, gain: float) -> None:
  disadv, conadv = (
      schedule(schedules.pass_graph(f'{method}_separate'), processors)
      for method in ('disadv', 'conadv'))
  assert disadv / conadv == pytest.approx(gain, abs=0.03)
