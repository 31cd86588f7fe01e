import pytest

from conadv_tf.analysis import traffic

_RESNET50 = 25_557_032


@pytest.mark.parametrize("bits, sides, printed", [
    (32, 1, 2924), (16, 1, 1462), (8, 1, 731), (8, 2, 244)])
def test_table_4_of_the_dat_paper(bits: int, sides: int, printed: int) -> None:
  found = traffic.published_mib(_RESNET50, 6, bits, sides)
  assert found == pytest.approx(printed, abs=1)


@pytest.mark.parametrize("bits, workers", [(8, 8), (16, 4), (4, 16)])
def test_from_where_on_gathered_codes_save_nothing(
    bits: int, workers: int) -> None:
  assert traffic.gather_pays_below(bits) == workers
  ring = traffic.update_bytes(1000, workers)
  assert traffic.update_bytes(1000, workers, "gather", bits) == ring
  assert traffic.update_bytes(1000, workers - 1, "gather", bits) < (
      traffic.update_bytes(1000, workers - 1))
  for n in (2, workers, 100):
    assert traffic.update_bytes(1000, n, "scatter", bits) == pytest.approx(
        bits / 32 * traffic.update_bytes(1000, n))


def test_two_workers_by_hand() -> None:
  # A ring of 2: each sends half of 4 * 1000 bytes, and half of the sum.
  assert traffic.update_bytes(1000, 2) == 8000
  # Each sends 1000 codes of 8 bits and 2 norms to the other.
  assert traffic.update_bytes(1000, 2, "gather", 8, norms=2) == 2 * 1008
  assert traffic.update_bytes(1000, 1) == 0


def test_refusals() -> None:
  with pytest.raises(ValueError, match="needs workers, got 0"):
    traffic.update_bytes(10, 0)
  with pytest.raises(ValueError, match="none of all_reduce, gather, scatter"):
    traffic.update_bytes(10, 2, "tree")
