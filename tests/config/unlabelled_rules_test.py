"""Which configurations may mix unlabelled images in."""

import pytest

from conadv_tf import config

_ON = 'data.name=npz,data.unlabelled_path=more.npz,method.name=vanilla'


@pytest.mark.parametrize('base, pairs, parts', [
    ('', 'data.unlabelled_fraction=0.5',
     ['data.unlabelled_fraction: 0.5 needs data.unlabelled_path']),
    ('', 'data.unlabelled_fraction=null', ['null needs data.unlabelled_path']),
    (_ON, 'data.unlabelled_fraction=1',
     ['data.unlabelled_fraction: must be at least 0 and below 1, got 1']),
    (_ON, 'data.unlabelled_fraction=-0.1', ['at least 0 and below 1']),
    (_ON, 'data.unlabelled_fraction=0.5,data.name=tfds',
     ['data.name=tfds', 'it mixes digits, npz, synthetic, image_folder']),
    (_ON, 'data.unlabelled_fraction=null,data.name=image_folder',
     ['null and data.name=image_folder', 'it mixes digits, npz, synthetic']),
    (_ON, 'data.unlabelled_fraction=0.5,data.name=image_folder,'
     'data.preprocessing=imagenet', ['data.preprocessing: imagenet', 'resize']),
    (_ON, 'data.unlabelled_fraction=0.5',
     ['method.name: vanilla needs a label for every row',
      'set dat, or data.pseudo_labels=true']),
    (_ON, 'data.unlabelled_fraction=0.5,method.name=dat,data.mixup=0.2',
     ['data.mixup: 0.2 makes soft labels', 'data.pseudo_labels=true']),
    (_ON, 'data.unlabelled_fraction=0.5,method.name=dat,'
     'objective.label_smoothing=0.1', ['objective.label_smoothing: 0.1']),
])
def test_refuses(base: str, pairs: str, parts: list[str]) -> None:
  with pytest.raises(config.InputError) as raised:
    config.validate(config.load([], [base, pairs] if base else [pairs]))
  message = str(raised.value)
  assert '\n' not in message
  for part in parts:
    assert part in message


@pytest.mark.parametrize('fraction, rows, count', [
    (0.5, 128, 64), (0.3, 8, 2), (0.9, 10, 9), (0.05, 20, 1)])
def test_rows(fraction: float, rows: int, count: int) -> None:
  assert config.unlabelled_rows(fraction, rows) == count
  loaded = config.load([], [
      _ON, f'data.unlabelled_fraction={fraction},data.pseudo_labels=true,'
      f'data.global_batch_size={rows}'])
  config.check_batch(loaded)
  resolved = config.resolve(loaded, 100 * rows)
  # Epochs are those of the labelled images alone.
  assert resolved.derived.steps_per_epoch == 100
  assert config.describe_unlabelled(resolved) == [
      f'unlabelled: images of more.npz fill {count} of the {rows} rows of '
      'every virtual replica (pseudo-labels)']


@pytest.mark.parametrize('fraction, count', [(0.05, 0), (0.95, 8)])
def test_both_kinds_need_a_row(fraction: float, count: int) -> None:
  loaded = config.load([], [
      _ON, f'data.unlabelled_fraction={fraction},data.pseudo_labels=true,'
      'data.global_batch_size=16,runtime.micro_batches=2'])
  with pytest.raises(config.InputError, match=(
      f'{fraction} of the 8 rows of a virtual replica are {count}, ')):
    config.check_batch(loaded)


def test_what_is_not_used_is_said() -> None:
  assert config.unused_keys(config.load([], [
      _ON, 'data.pseudo_labels=true,model.replace_head=true'])) == [
          'data.unlabelled_path', 'data.pseudo_labels', 'model.replace_head']
  assert config.unused_keys(config.load([], [
      _ON, 'data.pseudo_labels=true,data.unlabelled_fraction=0.5,'
      'model.initial_weights=x,model.replace_head=true'])) == []
