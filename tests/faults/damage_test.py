"""No single flipped bit of a checkpoint goes unnoticed.

What a whole run does with damaged checkpoints is in tests/runs_test.py.
"""

import logging
import pathlib

import numpy as np
import pytest

from conadv_tf.training import checkpoint

_EXTRA = {'seconds': 1.5, 'num_examples': 24,
          'pending': {'loss': 0.1, 'accuracy': 0.25}}


def _state(step: int) -> dict[str, np.ndarray]:
  return {'network/00000': np.arange(6, dtype=np.float32) * step,
          'step/00000': np.int64(step)}


@pytest.mark.parametrize('name', ['manifest.json', 'state.npz'])
def test_every_bit_counts(tmp_path: pathlib.Path, name: str,
                          caplog: pytest.LogCaptureFixture) -> None:
  caplog.set_level(logging.CRITICAL)
  checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=9)
  for step in (3, 6):
    checkpoints.save(step, _state(step), _EXTRA)
  path = tmp_path / 'step-00000006' / name
  original = path.read_bytes()
  noticed = 0
  for position in range(len(original)):
    damaged = bytearray(original)
    damaged[position] ^= 1 << position % 8
    path.write_bytes(damaged)
    latest = checkpoints.latest()
    noticed += latest.step == 3
    # A blank of the JSON that became a tab, for instance, changes nothing.
    assert latest.extra == _EXTRA
    for key, value in _state(latest.step).items():
      np.testing.assert_array_equal(latest.state[key], value)
  assert noticed > (0.7 if name == 'manifest.json' else 0.999) * len(original)


def test_a_manifest_without_a_checksum_is_still_read(
    tmp_path: pathlib.Path) -> None:
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  checkpoints.save(3, _state(3), _EXTRA)
  path = tmp_path / 'step-00000003' / 'manifest.json'
  lines = path.read_text('utf-8').splitlines()
  (own,) = [i for i, line in enumerate(lines)
            if line.startswith('  "sha256": ')]
  lines[own - 1] = lines[own - 1].rstrip(',')
  del lines[own]
  path.write_text('\n'.join(lines), 'utf-8')
  assert checkpoints.latest().extra == _EXTRA
