"""The benchmark of quantised gradients: its arithmetic, and that it runs."""

import json
import pathlib

import pytest

from tests import commands
from tools import benchmark_compression_rows as benchmark
from tools import traffic_rows


def test_the_speed_below_which_codes_pay() -> None:
  row = benchmark.Timed('net', 1000, 8, 0, encode=0.5, decode=0.25,
                        message=1000)
  # Of 2 workers each sends 4000 bytes in a ring, 1000 in codes; 0.5 + 2/4 s.
  assert row.pays_below(2) == 3000
  # Of 8 each sends 7000 either way.
  assert row.pays_below(8) == 0
  assert '| net | 1,000 | 8 | tensor | 500 | 250 | 0.00 | 0 | 0 |' in (
      benchmark.table([row]))


def test_traffic_is_compared_with_the_first_row() -> None:
  rows = [traffic_rows.Counted('float32', 8400.0, 8000.0, 0.5),
          traffic_rows.Counted('8_bits', 2100.0, 2000.0, 0.25)]
  assert ('| 8_bits | 2,100 | 0.250 | 2,000 | 0.250 | 0.250 |'
          in traffic_rows.table(rows, 2))
  # 100 numbers in 2 tensors: 100 bytes of codes and 2 norms, both ways.
  assert traffic_rows.formula('8_bits', 2, [60, 40]) == 2 * 108
  assert traffic_rows.formula('bfloat16', 2, [60, 40]) == 400


@pytest.mark.slow
def test_quick(tmp_path: pathlib.Path) -> None:
  output = tmp_path / 'figures.json'
  done = commands.run(
      'tools.benchmark_compression', '--quick', f'--output={output}')
  assert done.code == 0, done.err
  rows = json.loads(output.read_text())['rows']
  assert [(row['bits'], row['bucket']) for row in rows] == list(
      map(tuple, benchmark.SETTINGS))
  # 272,474 codes in whole words; 60 norms, or one for each 512 numbers.
  assert rows[1]['message'] == 272_476 + 4 * 60
  assert rows[2]['message'] == 272_476 + 4 * 533
  assert all(row['encode'] > 0 and row['decode'] > 0 for row in rows)
