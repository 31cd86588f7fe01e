"""The cost model by hand-computed cases, and what it makes of the paper."""

import ast
import dataclasses
import math
import pathlib
import sys

import numpy as np
import pytest

from conadv_tf.analysis import cost_fit, cost_model
from conadv_tf.analysis import published_times as published

_CORES = ('equal', 'double', 'double_even')
_ALGORITHMS = ('ring', 'tree', 'halving_doubling')
_NETWORK = cost_model.Network(latency=1e-3, seconds_per_byte=1e-6)
_MACHINE = cost_model.Machine(
    cost_model.PassTimes(fixed=0.01, per_image=0.001), _NETWORK,
    gradient_bytes=8000, algorithm='ring')


def test_it_needs_numpy_only() -> None:
  """It answers without the seconds that TensorFlow takes to import."""
  tops = set()
  for module in (cost_fit, cost_model, published):
    tree = ast.parse(pathlib.Path(module.__file__).read_text('utf-8'))
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        tops |= {alias.name.split('.')[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        tops.add(node.module.split('.')[0])
  assert tops - set(sys.stdlib_module_names) == {'conadv_tf', 'numpy'}


@pytest.mark.parametrize('algorithm, devices, seconds', [
    # 2 (p - 1) a + 2 (p - 1) / p b n
    ('ring', 4, 6e-3 + 1.5 * 8e-3),
    # 2 log2 p (a + b n)
    ('tree', 4, 4e-3 + 4 * 8e-3),
    ('tree', 5, 6e-3 + 6 * 8e-3),
    # 2 a log2 p + 2 (p - 1) / p b n
    ('halving_doubling', 4, 4e-3 + 1.5 * 8e-3),
    *((algorithm, 1, 0.0) for algorithm in _ALGORITHMS),
])
def test_all_reduce_by_hand(algorithm: str, devices: int,
                            seconds: float) -> None:
  assert cost_model.all_reduce_seconds(
      8000, devices, _NETWORK, algorithm) == pytest.approx(seconds)


def test_appendix_c() -> None:
  """ResNet-18, 512 processes: 1.5E-2 s in its Table 3."""
  size = 4 * 11_689_512
  network = cost_model.Network(2e-6, 1 / 6e9)
  seconds = cost_model.all_reduce_seconds(size, 512, network)
  assert seconds == pytest.approx(0.01559, abs=1e-5)
  gibi = cost_model.Network(2e-6, 1 / (6 * 2 ** 30))
  assert cost_model.all_reduce_seconds(size, 512, gibi) == pytest.approx(
      0.01452, abs=1e-5)
  # As printed, bits over Gb/s, it would be eight times the table.
  assert cost_model.all_reduce_seconds(8 * size, 512, network) == pytest.approx(
      0.1245, abs=1e-4)
  # Equation 16, within 2 a log2 p = 36 us and 1/512.
  assert seconds == pytest.approx(2 * size / 6e9, abs=36e-6)
  assert 2 * 2e-6 * math.log2(512) == pytest.approx(36e-6)


@pytest.mark.parametrize('method, cores, seconds, devices', [
    ('vanilla', 'equal', 2 * 0.01 + 3 * 0.016, 4),
    ('disadv', 'equal', 4 * 0.01 + 8 * 0.016, 4),
    ('disadv', 'double', 4 * 0.01 + 8 * 0.016, 4),
    ('conadv', 'equal', 2 * 0.01 + 8 * 0.016, 4),
    ('conadv', 'double', 2 * 0.01 + 6 * 0.016, 8),
    ('conadv', 'double_even', 2 * 0.01 + 4 * 0.016, 8),
])
def test_a_step_by_hand(method: str, cores: str, seconds: float,
                        devices: int) -> None:
  run = cost_model.Run(method, batch=64, devices=4, cores=cores)
  assert run.all_devices == devices
  reduction = 2 * (devices - 1) * 1e-3 + 2 * (devices - 1) / devices * 8e-3
  step = cost_model.step_seconds(run, _MACHINE)
  assert step == pytest.approx(seconds + reduction)
  assert cost_model.images_per_second(run, _MACHINE) == pytest.approx(64 / step)
  assert cost_model.training_seconds(
      run, _MACHINE, epochs=2, images=640) == pytest.approx(20 * step)


def test_limits() -> None:
  """The chain decides with few images a device, the work with many."""
  def ratios(machine: cost_model.Machine) -> list[float]:
    runs = [cost_model.Run(*arguments) for arguments in (
        ('vanilla', 4096, 512), ('disadv', 4096, 512), ('conadv', 4096, 512),
        ('conadv', 4096, 512, 'double'), ('conadv', 4096, 512, 'double_even'))]
    times = [cost_model.step_seconds(run, machine) for run in runs]
    return [time / times[0] for time in times]

  alone = cost_model.Network(0.0, 0.0)
  chain = cost_model.Machine(cost_model.PassTimes(1.0, 0.0), alone, 10 ** 8)
  work = cost_model.Machine(cost_model.PassTimes(0.0, 1.0), alone, 10 ** 8)
  assert ratios(chain) == pytest.approx([1, 2, 1, 1, 1])
  assert ratios(work) == pytest.approx([1, 8 / 3, 8 / 3, 2, 4 / 3])


@pytest.mark.parametrize('cores', _CORES)
@pytest.mark.parametrize('method', ('vanilla', 'disadv', 'conadv'))
def test_from_1_to_4096_devices(method: str, cores: str) -> None:
  counts = [2 ** power for power in range(13)]
  machine = cost_model.Machine(cost_model.PassTimes(0.01, 0.001),
                               published.TPU_V3, published.GRADIENT_BYTES)

  def steps(batches: list[int]) -> np.ndarray:
    return np.array([cost_model.step_seconds(
        cost_model.Run(method, batch, devices, cores), machine)
                     for batch, devices in zip(batches, counts)])

  weak = steps([64 * devices for devices in counts])
  strong = steps([65536] * 13)
  assert np.all(np.diff(weak) > 0)  # by the all-reduce alone
  assert weak[-1] - weak[0] < 1.4e-3
  # More devices help, but less than in proportion.
  assert np.all(np.diff(strong) < 0) and np.all(np.diff(
      strong * counts) > 0)
  for algorithm in _ALGORITHMS:
    times = [cost_model.all_reduce_seconds(
        1e8, devices, published.TPU_V3, algorithm) for devices in counts]
    assert np.all(np.diff(times) > 0)


def test_the_sources_own_arithmetic() -> None:
  """What the paper prints, in the other unit: where it contradicts itself."""
  assert 90 * 1_281_167 / 81_700 == pytest.approx(1411.3, abs=0.1)  # not 1191
  steps = [1000 * point.step_seconds for point in published.POINTS]
  assert np.round(steps, 1).tolist() == [
      397.7, 401.1, 56.7, 28.7, 27.1, 169.7, 176.8, 235.4, 338.5, 336.5,
      181.5, 192.4, 129.0]
  # ConAdv's step at 64k undercuts vanilla's at the same 64 images a core.
  assert steps[12] < min(steps[5], steps[6])
  assert [point.run.batch // point.run.devices
          for point in published.POINTS] == [64] * 2 + [2] * 3 + [64] * 8
  assert [number for number, point in enumerate(published.POINTS)
          if point.contradicts] == [7, 12]
  # 64 images in 169.7 ms, 377 images/s a core.
  assert 64 / 0.1697 == pytest.approx(377.1, abs=0.1)


def _fit(cores: str, points: list[published.Point]) -> tuple[
    cost_model.Machine, np.ndarray]:
  """The machine and predicted / published, [points]."""
  runs = [dataclasses.replace(point.run, cores=cores) for point in points]
  seconds = [point.step_seconds for point in points]
  machine = cost_fit.fit_pass_times(runs, seconds, published.TPU_V3,
                                    published.GRADIENT_BYTES)
  predicted = [cost_model.step_seconds(run, machine) for run in runs]
  ratios = np.array(predicted) / seconds
  assert cost_fit.log_error(predicted, seconds) == pytest.approx(
      np.sqrt(np.mean(np.log(ratios) ** 2)))
  return machine, ratios


@pytest.mark.parametrize('cores, fixed, per_image, error, outliers', [
    ('equal', 12.36, 0.461, 0.330, [0, 1, 5, 6, 10, 11, 12]),
    ('double', 11.76, 0.518, 0.249, [0, 1, 5, 6, 7, 12]),
    ('double_even', 11.42, 0.595, 0.177, [6, 7, 12]),
])
def test_fits_of_the_published_points(
    cores: str, fixed: float, per_image: float, error: float,
    outliers: list[int]) -> None:
  machine, ratios = _fit(cores, list(published.POINTS))
  passes = machine.passes
  assert [1e3 * passes.fixed, 1e3 * passes.per_image] == pytest.approx(
      [fixed, per_image], rel=2e-3)
  logs = np.log(ratios)
  assert np.sqrt(np.mean(logs ** 2)) == pytest.approx(error, abs=1e-3)
  assert np.flatnonzero(np.abs(logs) > np.log(1.25)).tolist() == outliers
  # Least squares: no small step in either direction is better.
  seconds = [point.step_seconds for point in published.POINTS]
  for factors in ((1.01, 1), (0.99, 1), (1, 1.01), (1, 0.99)):
    moved = dataclasses.replace(machine, passes=cost_model.PassTimes(
        passes.fixed * factors[0], passes.per_image * factors[1]))
    worse = [cost_model.step_seconds(
        dataclasses.replace(point.run, cores=cores), moved)
             for point in published.POINTS]
    assert cost_fit.log_error(worse, seconds) > np.sqrt(np.mean(logs ** 2))


def test_without_the_contradicted_points() -> None:
  points = [point for point in published.POINTS if not point.contradicts]
  errors = [np.sqrt(np.mean(np.log(_fit(cores, points)[1]) ** 2))
            for cores in _CORES]
  assert errors == pytest.approx([0.261, 0.173, 0.086], abs=1e-3)


def test_a_fit_finds_what_made_the_times() -> None:
  runs = [cost_model.Run(method, batch, 4, 'double') for method in (
      'vanilla', 'disadv', 'conadv') for batch in (16, 256)]
  seconds = [cost_model.step_seconds(run, _MACHINE) for run in runs]
  found = cost_fit.fit_pass_times(runs, seconds, _NETWORK, 8000, 'ring')
  assert found.passes.fixed == pytest.approx(0.01, rel=1e-6)
  assert found.passes.per_image == pytest.approx(0.001, rel=1e-6)
  # Costs that are zero are found as next to nothing.
  bare = dataclasses.replace(_MACHINE, passes=cost_model.PassTimes(0.0, 0.001))
  seconds = [cost_model.step_seconds(run, bare) for run in runs]
  found = cost_fit.fit_pass_times(runs, seconds, _NETWORK, 8000, 'ring')
  assert found.passes.fixed < 1e-9
  assert found.passes.per_image == pytest.approx(0.001, rel=1e-6)


def test_three_step_times_and_two_parameters() -> None:
  runs = [cost_model.Run(method, 256, 1)
          for method in ('vanilla', 'conadv', 'disadv')]
  machine = cost_fit.fit_pass_times(runs, [0.811, 2.110, 2.199],
                                    cost_model.Network(0.0, 0.0), 0)
  predicted = [1e3 * cost_model.step_seconds(run, machine) for run in runs]
  assert np.round(predicted).tolist() == [820, 2124, 2161]
  assert 1e3 * machine.passes.fixed == pytest.approx(18.3, abs=0.1)
  assert 1e3 * machine.passes.per_image == pytest.approx(1.019, abs=0.001)


def test_a_network_is_found_from_all_reduces() -> None:
  sizes = [1e3, 1e5, 1e7]
  for algorithm in _ALGORITHMS:
    seconds = [cost_model.all_reduce_seconds(size, 2, _NETWORK, algorithm)
               for size in sizes]
    found = cost_fit.fit_network(sizes, seconds, 2, algorithm)
    assert found.latency == pytest.approx(1e-3)
    assert found.seconds_per_byte == pytest.approx(1e-6)
  # Twice the bytes in more than twice the time: no latency is negative.
  found = cost_fit.fit_network([100, 200], [1.0, 2.2], 2)
  assert found.latency == 0.0
  assert found.seconds_per_byte == pytest.approx(0.01045, rel=1e-2)
  found = cost_fit.fit_network([100, 200], [1.0, 0.9], 2)
  assert found.seconds_per_byte == 0.0
  assert 2 * found.latency == pytest.approx(0.945, abs=0.005)


def test_two_workers_from_one() -> None:
  # 2 a + b n = 2 ms + 8 ms
  two = cost_model.predict_two_workers(0.5, 8000, _NETWORK)
  assert two.all_reduce_seconds == pytest.approx(0.010)
  assert two.weak_seconds == pytest.approx(0.510)
  assert two.strong_seconds == pytest.approx(0.260)
  assert two.weak_efficiency == pytest.approx(0.5 / 0.51)
  assert two.strong_speedup == pytest.approx(0.5 / 0.26)
  two = cost_model.predict_two_workers(0.5, 8000, _NETWORK, fixed_seconds=0.1,
                                       slowdown=1.2, algorithm='tree')
  # 2 (a + b n) = 18 ms; half of the 0.4 s that are not fixed.
  assert two.weak_seconds == pytest.approx(0.618)
  assert two.strong_seconds == pytest.approx(1.2 * 0.3 + 0.018)
  free = cost_model.predict_two_workers(0.5, 8000, cost_model.Network(0., 0.))
  assert (free.weak_efficiency, free.strong_speedup) == (1.0, 2.0)


def test_two_workers_are_the_steps_of_two_devices() -> None:
  one = cost_model.step_seconds(cost_model.Run('disadv', 64, 1), _MACHINE)
  two = cost_model.predict_two_workers(one, 8000, _NETWORK,
                                       fixed_seconds=4 * 0.01)
  for batch, seconds in ((128, two.weak_seconds), (64, two.strong_seconds)):
    assert cost_model.step_seconds(
        cost_model.Run('disadv', batch, 2), _MACHINE) == pytest.approx(seconds)


@pytest.mark.parametrize('call, part', [
    (lambda: cost_model.Run('abs', 8, 1), "'abs' is none of vanilla"),
    (lambda: cost_model.Run('conadv', 8, 1, 'half'), "'half' is none of equal"),
    (lambda: cost_model.Run('vanilla', 8, 16), 'batch of 8 cannot be divided'),
    (lambda: cost_model.Run('vanilla', 8, 0), 'among 0 devices'),
    (lambda: cost_model.Network(-1.0, 0.0), 'at least 0, got -1.0'),
    (lambda: cost_model.PassTimes(0.0, float('nan')), 'got 0.0 and nan'),
    (lambda: cost_model.all_reduce_seconds(1, 2, _NETWORK, 'star'),
     "'star' is none of ring"),
    (lambda: cost_model.all_reduce_seconds(1, 0, _NETWORK), 'got 0'),
    (lambda: cost_model.predict_two_workers(0.1, 1, _NETWORK,
                                            fixed_seconds=0.2),
     'a part of 0.2 s cannot be fixed'),
    (lambda: cost_model.predict_two_workers(0.1, 1, _NETWORK, slowdown=0.0),
     'slowdown is a factor above 0'),
    (lambda: cost_fit.fit_network([1, 1], [1.0, 1.0], 2), 'two sizes or more'),
    (lambda: cost_fit.fit_pass_times([cost_model.Run('vanilla', 8, 1)], [1.0],
                                     _NETWORK, 1), 'two runs or more'),
    (lambda: cost_fit.fit_pass_times([cost_model.Run('vanilla', 8, 1)] * 2,
                                     [1.0, 1.0], _NETWORK, 1),
     'cannot tell fixed costs'),
])
def test_wrong_arguments(call: object, part: str) -> None:
  with pytest.raises(ValueError, match=part):
    call()
