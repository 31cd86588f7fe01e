"""Runs with layer-wise rates: resumed, on two devices, in half precision."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from conadv_tf import description, runs
from tests import tiny

_SETTINGS = (
    'optimizer.name=lamb,optimizer.scope=layer,optimizer.trust_clip=[0,10],'
    'optimizer.weight_decay=0.01,schedule.peak_lr=0.05,schedule.end_lr=0,'
    'runtime.micro_batches=2,checkpoint.keep=99,checkpoint.every_epochs=0.01')
_VANILLA = 'method.name=vanilla'  # Fewer traces.
_LAST = 'checkpoints/step-00000006'


def _assert_same_end(one: pathlib.Path, other: pathlib.Path) -> None:
  with np.load(one / _LAST / 'state.npz') as expected, np.load(
      other / _LAST / 'state.npz') as actual:
    assert expected.files == actual.files
    # Two moments of each of 6 tensors, besides everything else.
    assert len(expected.files) > 18
    for name in expected.files:
      np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


@pytest.mark.slow
def test_resumes_bit_for_bit_on_one_device_and_on_two(
    tmp_path: pathlib.Path) -> None:
  whole = tmp_path / 'whole'
  runs.run(tiny.load(_SETTINGS, _VANILLA), str(whole), quiet=True)
  for name, arrangement in (('one', ''), ('two', (
      'runtime.strategy=mirrored,runtime.num_replicas=2,'
      'runtime.micro_batches=1'))):
    resumed = tmp_path / name
    shutil.copytree(whole, resumed)
    for step in (4, 5, 6):
      shutil.rmtree(resumed / f'checkpoints/step-{step:08d}')
    (resumed / 'results.json').unlink()
    runs.run(tiny.load(_SETTINGS, _VANILLA, arrangement), str(resumed),
             quiet=True)
    _assert_same_end(whole, resumed)
  lines = (whole / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
  ratios = [json.loads(line)['train/trust_ratio'] for line in lines]
  # |w| / |u|: u of some numbers a tensor is of size 1 each, weights are less.
  assert all(0.01 < ratio < 2 for ratio in ratios)


@pytest.mark.slow
def test_half_precision_on_two_devices_stays_near_one_in_float32(
    tmp_path: pathlib.Path) -> None:
  losses = [
      runs.run(tiny.load(_SETTINGS, _VANILLA, pairs), str(tmp_path / name),
               quiet=True)['validation/loss']
      for name, pairs in (('float32', ''), ('float16', (
          'runtime.precision=mixed_float16,runtime.strategy=mirrored,'
          'runtime.num_replicas=2,runtime.micro_batches=1')))]
  assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize('pairs, line', [
    ('', 'take scaling and decay; ratios by layer; |w| within [0, 10]'),
    ('optimizer.scale_vectors=false,optimizer.trust_clip=null',
     'take no scaling and decay; ratios by layer'),
    ('optimizer.scope=none,optimizer.weight_decay=0,optimizer.trust_clip=null',
     'take no scaling and no decay; ratios by none'),
    ('optimizer.scope=tensor,optimizer.decay_vectors=false',
     'take scaling and no decay; ratios by tensor; |w| within [0, 10]')])
def test_describe_says_what_is_left_out(pairs: str, line: str) -> None:
  described = description.describe_config(
      tiny.load(_SETTINGS, pairs)).splitlines()
  assert ('lamb: 6 of 8 tensors (rank <= 1: batch normalisation and biases) '
          f'{line}') in described
