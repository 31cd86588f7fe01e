from collections.abc import Callable
import logging
import types
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods
from conadv_tf.training import feeding
from tests.methods import running

_X, _Y = running.IMAGES, running.LABELS
_FEED = dict(lookahead=0, micro_batches=1, pixel_range=(0., 1.),
             strategy=tf.distribute.get_strategy(), augments=False)


def _plain() -> tf.keras.Model:
  """Quicker to trace: for what feeds the model, not what is in it."""
  return running.small_network(0, False)


def _numbered(batches: int, rows: int = 4, remainder: int = 0
              ) -> tf.data.Dataset:
  """Batch i holds images of i and labels i % 5."""
  numbers = np.repeat(np.arange(batches + 1), rows)[:batches * rows + remainder]
  images = np.tile(numbers[:, None, None, None], (1, 8, 8, 3))
  return running.untuned(tf.data.Dataset.from_tensor_slices(
      (images.astype(np.float32) / 255, (numbers % 5).astype(np.int32))
      )).batch(rows)


def _trained(method: Any, data: tf.data.Dataset, micro_batches: int = 1,
             **options: Any) -> tuple[list[int], list[int], Any]:
  """Fits; returns the numbers of batches trained on, and attacked."""
  trained, attacked = [], []
  step, attack = method.step, getattr(method, 'make_perturbation', None)

  def number(image: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(image[0, 0, 0, 0] * 255), tf.int32)

  def spy_step(*args: Any) -> Any:
    result = step(*args)
    tf.py_function(lambda n: trained.append(int(n)),
                   [number(result.batch.image)], [])
    return result

  def spy_attack(ctx: Any, batch: Any, held: Any) -> Any:
    tf.py_function(lambda n: attacked.append(int(n)), [number(batch.image)], [])
    return attack(ctx, batch, held)

  method.step = spy_step
  if attack:
    method.make_perturbation = spy_attack
  trainer = running.make(method, options={'micro_batches': micro_batches},
                         model=_plain)
  trainer.fit(data, verbose=0, **options)
  return trained, attacked, trainer


@pytest.mark.parametrize('name, micro_batches', [
    ('vanilla', 1), ('disadv', 2), ('conadv', 1), ('conadv lag 3', 2),
    *(pytest.param(name, micro_batches, marks=pytest.mark.slow)
      for name, micro_batches in (('vanilla', 2), ('disadv', 1), ('conadv', 2),
                                  ('conadv lag 3', 1)))])
def test_every_batch_of_a_finite_dataset_is_trained_on_once_an_epoch(
    name: str, micro_batches: int) -> None:
  trained, attacked, trainer = _trained(
      running.METHODS[name](), _numbered(6), micro_batches, epochs=2)
  assert trained == [*range(6)] * 2
  if name == 'disadv':
    assert attacked == trained
  elif name != 'vanilla':
    # Concurrent: the extra batches at the end are attacked and discarded.
    assert attacked == trained + [*range(micro_batches)]
  assert int(trainer.step_counter) == 12 // micro_batches
  assert int(trainer.optimizer.iterations) == 12 // micro_batches


@pytest.mark.parametrize('lag, execution, micro_batches', [
    (0, 'concurrent', 1), (3, 'concurrent', 2), (2, 'sequential', 1),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (0, 'concurrent', 2), (1, 'concurrent', 1), (1, 'concurrent', 2),
        (2, 'concurrent', 1), (2, 'concurrent', 2), (3, 'concurrent', 1),
        (2, 'sequential', 2)))])
def test_a_repeated_dataset_makes_exactly_n_updates(
    lag: int, execution: str, micro_batches: int) -> None:
  method = methods.ConAdv(lag=lag, execution=execution)
  trained, _, trainer = _trained(
      method, _numbered(9).repeat(), micro_batches, steps_per_epoch=3,
      epochs=1)
  assert trained == [*range(3 * micro_batches)]
  assert int(trainer.step_counter) == 3
  assert int(trainer.optimizer.iterations) == 3


def test_epochs_over_a_repeated_dataset_go_on() -> None:
  trained, _, _ = _trained(methods.ConAdv(), _numbered(9).repeat(),
                           steps_per_epoch=2, epochs=3)
  assert trained == [*range(6)]


def test_a_finite_dataset_with_fewer_steps_an_epoch() -> None:
  for method in (methods.Vanilla(), methods.ConAdv()):
    trained, _, _ = _trained(method, _numbered(6), steps_per_epoch=3, epochs=2)
    assert trained == [*range(6)]


def test_initial_epoch_counts() -> None:
  trained, _, _ = _trained(methods.ConAdv(), _numbered(3), epochs=5,
                           initial_epoch=3)
  assert trained == [0, 1, 2] * 2


def test_a_shorter_last_batch_is_dropped_with_one_warning(
    caplog: pytest.LogCaptureFixture) -> None:
  with caplog.at_level(logging.WARNING):
    trained, _, _ = _trained(
        methods.ConAdv(), _numbered(3, remainder=2), epochs=2)
  assert trained == [0, 1, 2] * 2
  warnings = [r.getMessage() for r in caplog.records
              if 'dropping' in r.getMessage()]
  assert len(warnings) == 1 and '1 of 4 batches' in warnings[0]


def test_short_batches_inside_a_repeated_dataset_are_dropped() -> None:
  # Two full batches and a short one, three times over.
  data = _numbered(2, remainder=1).repeat(3)
  trained, _, _ = _trained(methods.ConAdv(), data)
  assert trained == [0, 1] * 3


def test_the_length_with_the_short_batch_still_means_an_epoch() -> None:
  data = _numbered(2, remainder=1)
  trained, _, _ = _trained(methods.Vanilla(), data, epochs=3,
                           steps_per_epoch=len(data))
  assert trained == [0, 1] * 3


def test_an_unknown_number_of_batches_suffices_with_look_ahead() -> None:
  data = _numbered(3).filter(lambda *_: True)
  trained, attacked, _ = _trained(methods.ConAdv(), data, steps_per_epoch=3)
  assert trained == [0, 1, 2] and attacked == [0, 1, 2, 0]


def test_a_wrong_pixel_range_is_noticed(
    caplog: pytest.LogCaptureFixture) -> None:
  data = tf.data.Dataset.from_tensors((_X[:4] * 255, _Y[:4]))
  with caplog.at_level(logging.WARNING):
    running.make(methods.ConAdv(), model=_plain).fit(data, verbose=0)
  assert sum('pixel_range' in r.getMessage() for r in caplog.records) == 1


def test_left_over_micro_batches_are_dropped_with_a_warning(
    caplog: pytest.LogCaptureFixture) -> None:
  with caplog.at_level(logging.WARNING):
    trained, _, _ = _trained(methods.Vanilla(), _numbered(5), 2, epochs=2)
  assert trained == [0, 1, 2, 3] * 2
  assert sum('dropping' in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize('make, message', [
    (lambda d: d.filter(lambda *_: True), 'unknown.*steps_per_epoch'),
    (lambda d: d.repeat(), 'infinite.*steps_per_epoch'),
    (lambda d: d.take(0), 'empty'),
    (lambda d: d.map(lambda x, y: {'x': x, 'y': y}), r'\(x, y\)'),
    (lambda d: d.map(lambda x, y: x), r'\(x, y\)'),
    (lambda d: d.map(lambda x, y: (tf.cast(x * 255, tf.uint8), y)),
     'uint8.*pixel_range')])
def test_data_that_cannot_be_fed_is_an_error(
    make: Callable[[tf.data.Dataset], tf.data.Dataset], message: str) -> None:
  with pytest.raises(ValueError, match=message):
    feeding.prepare(make(_numbered(3)), None, options={}, **_FEED)


def test_uint8_images_are_fine_with_their_range() -> None:
  trainer = running.make(
      methods.ConAdv(), options={'pixel_range': (0., 255.)},
      model=lambda: running.tf.keras.Sequential([
          tf.keras.layers.Rescaling(1 / 255, input_shape=(8, 8, 3)),
          running.small_network()]))
  images = (_X * 255).astype(np.uint8)
  history = trainer.fit(images, _Y, batch_size=32, verbose=0).history
  assert history['perturbation_linf'] == pytest.approx([16], abs=1e-3)


def test_batches_must_divide_among_the_replicas() -> None:
  with pytest.raises(ValueError, match='4 examples.*3 replicas'):
    feeding.prepare(_numbered(3), None, options={}, **{
        **_FEED, 'strategy': types.SimpleNamespace(num_replicas_in_sync=3)})


def test_too_few_micro_batches_are_an_error() -> None:
  with pytest.raises(ValueError, match='3 batches.*4 micro batches'):
    feeding.prepare(
        _numbered(3), None, options={}, **{**_FEED, 'micro_batches': 4})


def test_labels_without_images_or_lists_are_errors() -> None:
  for x, y in ((_X, None), ([1, 2], [3, 4])):
    with pytest.raises(ValueError, match='arrays x and y'):
      feeding.prepare(x, y, options={}, **_FEED)


@pytest.mark.parametrize('name', [
    'conadv', pytest.param('vanilla', marks=pytest.mark.slow)])
def test_arrays_equal_a_dataset(name: str) -> None:
  model = lambda: running.small_network(0)
  weight = np.linspace(0.1, 2, len(_X)).astype(np.float32)
  array = running.make(running.METHODS[name](), model=model)
  history = array.fit(_X, _Y, batch_size=32, epochs=2, shuffle=False, verbose=0,
                      sample_weight=weight, validation_split=0.2).history
  data = tf.data.Dataset.from_tensor_slices((_X, _Y, weight))
  other = running.make(running.METHODS[name](), model=model)
  expected = other.fit(
      data.take(128).batch(32), epochs=2, verbose=0,
      validation_data=data.skip(128).batch(32)).history
  assert running.distance(array, other) == 0
  assert history == expected
  assert int(array.step_counter) == 8


def test_shuffled_arrays_come_once_an_epoch_in_new_orders() -> None:
  feed = feeding.prepare(
      np.arange(40.).reshape(20, 2), np.arange(20), **_FEED,
      options={'batch_size': 5, 'epochs': 3})
  labels = np.concatenate([y.numpy() for _, y in feed.dataset])
  assert feed.steps_per_epoch == 4
  epochs = labels.reshape(3, 20)
  assert [sorted(e) for e in epochs.tolist()] == [[*range(20)]] * 3
  assert len({tuple(e) for e in epochs.tolist()}) == 3


def test_class_weights_are_sample_weights() -> None:
  class_weight = {0: 1., 1: 0., 2: 2., 3: .5, 4: 1.}
  each = np.array([class_weight[y] for y in _Y], np.float32)
  for name in ('vanilla', 'conadv'):
    a, b = (running.make(running.METHODS[name](), model=_plain)
            for _ in range(2))
    options = dict(batch_size=32, shuffle=False, verbose=0)
    a.fit(_X, _Y, class_weight=class_weight, **options)
    b.fit(_X, _Y, sample_weight=each, **options)
    assert running.distance(a, b) == 0


def test_float64_images_and_column_or_soft_labels_train() -> None:
  expected = running.make(methods.ConAdv(), model=_plain)
  options = dict(batch_size=32, shuffle=False, verbose=0)
  expected.fit(_X, _Y, **options)
  column = running.make(methods.ConAdv(), model=_plain)
  column.fit(_X.astype(np.float64), _Y[:, None].astype(np.int64), **options)
  assert running.distance(expected, column) == 0
  soft = running.make(methods.ConAdv(), model=_plain)
  soft.compile(
      tf.keras.optimizers.SGD(0.5, momentum=0.9),
      tf.keras.losses.CategoricalCrossentropy(from_logits=True))
  soft.fit(_X, np.eye(5, dtype=np.float32)[_Y], **options)
  assert running.distance(expected, soft) < 1e-5
