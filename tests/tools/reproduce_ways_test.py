"""Ways that stand for several, their configurations and what they cost."""

from collections.abc import Mapping
import pathlib
from typing import Any

import pytest

from conadv_tf import config
from tools import reproduce_suite as suites
from tools import reproduce_ways, suite_costs


def test_each_value_is_a_way() -> None:
  tree = {
      'plain': None,
      'a_{n}': {'each': {'n': [1, '2k']}, 'config': ['c/{n}.yaml'],
                'set': ['x={n}', 'y={z: 1}'], 'seeds': [3],
                'paper': {'accuracy': [7.5, None]}}}
  assert dict(reproduce_ways.expanded('f', tree)) == {
      'plain': {},
      'a_1': {'config': ['c/1.yaml'], 'set': ['x=1', 'y={z: 1}'], 'seeds': [3],
              'paper': {'accuracy': 7.5}},
      'a_2k': {'config': ['c/2k.yaml'], 'set': ['x=2k', 'y={z: 1}'],
               'seeds': [3], 'paper': {}}}


@pytest.mark.parametrize(('settings', 'message'), [
    ({'each': {'n': [1, 2]}}, 'f, way a: stands twice'),
    ({'each': [1]}, 'write one name with a list'),
    ({'each': {'n': [1], 'm': [1]}}, 'write one name with a list'),
    ({'each': {'n': [1]}, 'paper': {'x': 3}}, 'for each of 1 values'),
    ({'each': {'n': [1]}, 'paper': {'x': [1, 2]}}, 'for each of 1 values')])
def test_each_that_cannot_be(settings: Mapping[str, Any],
                             message: str) -> None:
  with pytest.raises(config.InputError, match=message):
    list(reproduce_ways.expanded('f', {'a': settings}))


def test_patterns_name_ways_in_their_order() -> None:
  ways = ['b_1k', 'b_aa_1k', 'b_1k_p0', 'c']
  named = reproduce_ways.named
  assert named('f', ['c', 'b_[0-9]*k', 'b_*'], ways) == [
      'c', 'b_1k', 'b_aa_1k', 'b_1k_p0']
  with pytest.raises(config.InputError, match='f: d[*] is no way'):
    named('f', ['d*'], ways)


def test_the_published_tables_are_all_declared() -> None:
  suite = suites.load('conadv-imagenet')
  assert len(suite.ways) == 9 + 9 + 7 + 7 + 7 + 6 * 11
  sweep, = (f for f in suite.figures if f['x'] == 'attack.radius')
  for line, names in sweep['lines'].items():
    files = {suite.ways[name].config for name in names}
    assert len(names) == 12 and len(files) == 1, line
  way = suite.ways['conadv_aa_64k_p12']
  assert way.paper == {'accuracy': 77.1}
  loaded = config.load([*suite.config, *way.config],
                       [*suite.overrides, *way.overrides])
  assert (loaded.attack.radius, loaded.data.global_batch_size,
          loaded.data.augment, loaded.schedule.peak_lr) == (
              12, 65536, 'autoaugment', 41)
  assert suite.ways['vanilla_96k'].paper == {'accuracy': 74.3, 'gap': 4.6}


def test_costs(tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'two.yaml'
  path.write_text("""
title: Two
config: configs/imagenet/conadv.yaml
seeds: [0, 1]
set: [data.train_examples=65536, schedule.epochs=50]
ways:
  plain: {set: [method.name=vanilla], seeds: [0]}
  conadv: {}
  fraction: {set: [method.adversarial_fraction=0.2]}
""")
  found = suite_costs.costs(suites.load(str(path)))
  images = 50 * 65536
  # 3 passes F, 8, and 3 + 5 * 0.2.
  assert found == {
      'plain': ('vanilla', suite_costs.Cost(1, 100, images, 3 * images)),
      'conadv': ('conadv', suite_costs.Cost(2, 200, 2 * images, 16 * images)),
      'fraction': ('conadv', suite_costs.Cost(
          2, 200, 2 * images, pytest.approx(8 * images)))}
  summed = suite_costs.by_method(found)
  assert summed['conadv'].runs == 4
  assert summed['vanilla'].hours(1000) == images / 1000 / 3600
  rate, _ = suite_costs.published_rate()
  assert rate == pytest.approx(90 * 1281167 / 622 / 512)


@pytest.fixture(scope='module')
def shipped() -> dict[str, tuple[str, suite_costs.Cost]]:
  """Every way of conadv-imagenet, loaded and resolved without data."""
  return suite_costs.costs(suites.load('conadv-imagenet'))


def test_every_way_on_imagenet_resolves(
    shipped: dict[str, tuple[str, suite_costs.Cost]]) -> None:
  assert {method for method, _ in shipped.values()} == {
      'vanilla', 'vanilla + autoaugment', 'disadv', 'conadv',
      'conadv + autoaugment'}
  for name, (method, cost) in shipped.items():
    assert cost.passes / cost.images == (3 if 'vanilla' in method else 8), name
    assert cost.images == pytest.approx(90 * 1281167, rel=0.02), name


def test_the_shipped_cost_is_the_command_s(
    shipped: dict[str, tuple[str, suite_costs.Cost]]) -> None:
  path = pathlib.Path('results/conadv-imagenet/cost.md')
  assert path.read_text(encoding='utf-8') == suite_costs.page(
      suites.load('conadv-imagenet'), None, each=False, found=shipped)
