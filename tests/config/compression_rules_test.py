import pytest

from conadv_tf import config

_8 = 'compression.bits=8,'


@pytest.mark.parametrize('override, parts', [
    ('compression.bits=17', ['compression.bits: must be 2 to 16, or 32', '17']),
    ('compression.bits=1', ['compression.bits: must be 2 to 16', 'got 1']),
    ('compression.bits=33', ['compression.bits: must be 2 to 16', 'got 33']),
    ('compression.bits=8.0', ['compression.bits: expected an integer']),
    ('compression.bucket=-1', ['compression.bucket: must be 1 or more']),
    ('compression.norm=l1', ['compression.norm: expected one of l2, max']),
    ('compression.sides=3', ['compression.sides: expected one of 1, 2']),
    ('compression.exchange=ring', ['one of gather, scatter']),
    ('compression.per=worker', ['one of replica, virtual_replica']),
    (f'{_8}runtime.reduce_dtype=bfloat16',
     ['runtime.reduce_dtype: bfloat16', 'compression.bits=8']),
    (f'{_8}runtime.deterministic=true',
     ['compression.per: replica', 'runtime.deterministic=false']),
    (f'{_8}runtime.strategy=tpu,runtime.num_replicas=8',
     ['compression.per: replica', 'runtime.strategy=tpu']),
    (f'{_8}compression.exchange=scatter',
     ['compression.sides: 1', 'exchange=scatter', 'set 2']),
    (f'{_8}compression.exchange=scatter,compression.sides=2',
     ['compression.bucket: 0', 'exchange=scatter']),
    (f'{_8}compression.exchange=scatter,compression.sides=2,compression.bucket='
     '512,compression.per=virtual_replica', ['compression.per', 'set replica']),
    (f'{_8}compression.error_feedback=true',
     ['compression.bucket: 0', 'set 1 to 16128']),
    (f'{_8}compression.error_feedback=true,compression.bucket=16129',
     ['compression.bucket: 16129', 'set 1 to 16128']),
    ('compression.bits=2,compression.error_feedback=true,compression.bucket=1',
     ['compression.bucket: 1', 'set compression.bits=3 or more']),
    (f'{_8}compression.error_feedback=true,compression.bucket=64,growth.name='
     'scheduled,growth.max_batch_size=512,growth.epochs=[1],method.name=vanilla',
     ['compression.error_feedback: true', 'growth.name=scheduled'])])
def test_refusals(override: str, parts: list[str]) -> None:
  with pytest.raises(config.InputError) as raised:
    config.validate(config.load([], override))
  assert len(str(raised.value).splitlines()) == 1
  for part in parts:
    assert part in str(raised.value)


def test_legal_ones() -> None:
  for override in (
      f'{_8}runtime.deterministic=true,compression.per=virtual_replica',
      f'{_8}compression.error_feedback=true,compression.bucket=16128',
      'compression.bits=2', 'compression.bits=16,compression.sides=2'):
    config.validate(config.load([], override))


def test_keys_without_use_and_another_experiment() -> None:
  off = config.load([], 'compression.bucket=512')
  assert config.unused_keys(off) == ['compression.bucket']
  on = config.load([], f'{_8}compression.bucket=512')
  assert not config.unused_keys(on)
  # Other numbers: a run cannot go on with them.
  assert config.differences(off, on) == ['compression.bits: 32 -> 8']
