import pytest

from conadv_tf import config
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


@pytest.mark.parametrize("pairs, said", [
    ("compression.bits=8,runtime.num_replicas=6",
     "compression: 8 bits, sign and 127 levels of the l2 norm of each tensor, "
     "1-sided, of each replica's gradient; an update sends 731.21 MiB among 6 "
     "replicas, 0.750 of float32's ring; gathered codes pay up to 7 replicas"),
    # 0.25 for codes, 1/512 for norms.
    ("compression.bits=8,compression.bucket=512,compression.sides=2,"
     "compression.exchange=scatter,runtime.num_replicas=6",
     "compression: 8 bits, sign and 127 levels of the l2 norm of each 512 "
     "numbers, 2-sided, of each replica's gradient; an update sends 245.64 MiB "
     "among 6 replicas, 0.252 of float32's ring"),
    ("compression.bits=5,compression.norm=max,runtime.num_replicas=1",
     "compression: 5 bits, sign and 15 levels of the max norm of each tensor, "
     "1-sided, of each replica's gradient; 1 replica, nothing on the wire"),
    ("compression.bits=5,compression.per=virtual_replica",
     "compression: 5 bits, sign and 15 levels of the l2 norm of each tensor, "
     "1-sided, of each virtual replica's gradient; float32 on the wire")])
def test_summary(pairs: str, said: str) -> None:
  found = traffic.summary(
      config.load([], f"runtime.strategy=multi_worker_mirrored,{pairs}"),
      _RESNET50, 161)
  assert found == said


def test_norms_count_in_where_gathered_codes_pay() -> None:
  # 2 bits of the code and 32 / 16 of a norm.
  found = traffic.summary(config.load(
      [], "runtime.strategy=multi_worker_mirrored,runtime.num_replicas=2,"
      "compression.bits=2,compression.bucket=16"), 1600, 3)
  assert found.endswith("gathered codes pay up to 15 replicas")
  for replicas, pays in ((15, True), (17, False)):
    sent = traffic.update_bytes(1600, replicas, "gather", 2, 100)
    assert (sent < traffic.update_bytes(1600, replicas)) == pays
