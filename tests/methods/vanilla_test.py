"""Plain training, alone and on clean and augmented images."""

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods, runs
from conadv_tf.layers import routing
from conadv_tf.methods import method as methods_base
from conadv_tf.methods import passes
from tests import tiny
from tests.methods import running


class _Plain(methods_base.Method):
  """The whole of plain training."""

  def step(self, ctx: methods_base.Context, batch: methods_base.Batch,
           held: Any) -> methods_base.StepResult:
    """One gradient on the clean batch."""
    run = passes.train(ctx, [passes.Stream(
        'clean', batch.image, batch.label, batch.weight, 1.0)],
        ((routing.CLEAN, batch.image.shape[0]),))
    return methods_base.StepResult(
        run.gradients, run.statistics, (), run.terms, run.outputs, batch)


def test_off_is_plain_training_bit_for_bit() -> None:
  method = methods.Vanilla('off')
  assert (method.terms, method.passes_per_step, method.branches,
          method.segments(8), method.augments) == (
              ('loss', 'clean_loss'), 3, ('clean',), (('clean', 8),), False)
  assert running.distance(running.train(method), running.train(_Plain())) == 0


def test_what_two_views_ask_for() -> None:
  shared, split = methods.Vanilla('shared'), methods.Vanilla('split')
  assert shared.segments(8) == (('clean', 16),)
  assert split.segments(8) == (('clean', 8), ('augmented', 8))
  assert (shared.branches, split.branches) == (
      ('clean',), ('clean', 'augmented'))
  for method in (shared, split):
    assert (method.passes_per_step, method.longest_chain) == (6, 2)
    assert not method.holds and method.behind(5) == 0
  with pytest.raises(ValueError, match="'off' or 'shared' or 'split'"):
    methods.Vanilla('joined')


def test_shared_is_plain_training_on_both_views_as_one_batch() -> None:
  model = lambda: running.small_network(0)
  joined = running.make(methods.Vanilla(), model=model)
  both = running.dataset(32).map(
      lambda x, y: (tf.concat([x, x[:, :, ::-1]], 0), tf.concat([y, y], 0)))
  expected = joined.fit(both, steps_per_epoch=4, verbose=0).history
  trainer = running.make(methods.Vanilla('shared'), model=model)
  history = trainer.fit(running.dataset(32, method=trainer.method),
                        steps_per_epoch=4, verbose=0).history
  assert running.distance(trainer, joined) < 1e-6
  assert history['loss'] == pytest.approx(expected['loss'], rel=1e-6)
  # Half of each; and they are not the same images.
  clean, augmented = history['clean_loss'][0], history['augmented_loss'][0]
  assert history['loss'][0] == pytest.approx(
      (clean + augmented) / 2, rel=1e-6)
  assert abs(clean - augmented) > 1e-4


def _on_images() -> tf.keras.Model:
  return tf.keras.Sequential([
      tf.keras.layers.BatchNormalization(momentum=0.0,
                                         input_shape=(8, 8, 3)),
      tf.keras.layers.Flatten(), tf.keras.layers.Dense(5)])


@pytest.mark.parametrize('stream, expected', [
    ('shared', {'clean': 0.75}), ('split', {'clean': 1, 'augmented': 0.5})])
def test_which_moving_statistics_move(
    stream: str, expected: dict[str, float]) -> None:
  # Momentum 0: they are the batch's own. Augmented images are half as bright.
  trainer = running.make(methods.Vanilla(stream), model=_on_images)
  images = running.IMAGES[:32]
  data = running.untuned(tf.data.Dataset.from_tensors((
      {'image': images, 'augmented': images / 2}, running.LABELS[:32])))
  trainer.fit(data, verbose=0)
  (layer,) = trainer.network.layer_variables
  assert layer.keys() == expected.keys()
  mean = images.mean((0, 1, 2), np.float64)
  for branch, brightness in expected.items():
    np.testing.assert_allclose(
        layer[branch].moving_mean, mean * brightness, rtol=1e-5)
  # Predictions are those of the clean branch.
  np.testing.assert_allclose(
      trainer.predict(images, verbose=0), trainer.network.logits(
          images, (('clean', 32),), routing.Mode.EVAL), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('stream', ['shared', 'split'])
def test_resuming_at_3_equals_straight_to_6(stream: str) -> None:
  first, second, straight = (
      running.make(methods.Vanilla(stream)) for _ in range(3))
  data = running.dataset(32, method=first.method)
  first.fit(data, steps_per_epoch=3, verbose=0)
  straight.fit(data, steps_per_epoch=6, verbose=0)
  for target, source in zip(_state(second), _state(first), strict=True):
    target.assign(source)
  second.fit(running.dataset(32, 96, method=first.method), steps_per_epoch=3,
             verbose=0)
  assert running.distance(second, straight) == 0


def _state(trainer: Any) -> list[tf.Variable]:
  return [*trainer.network.variables, *trainer.optimizer.variables,
          trainer.step_counter]


@pytest.mark.slow
@pytest.mark.parametrize('pairs', [
    '', 'growth.name=scheduled,growth.max_batch_size=16,growth.epochs=[0.67]',
    'data.mixup=0.2,runtime.micro_batches=2'])
def test_runs(pairs: str, tmp_path: pathlib.Path) -> None:
  results = runs.run(tiny.load(
      'method.name=vanilla,method.augmented_stream=split,'
      'data.augment=randaugment', pairs), str(tmp_path), quiet=True)
  assert results['epoch'] == 2
  # With growth 2 updates of 8 examples, then 2 of 16.
  assert results.get('updates', 6) == (4 if 'growth' in pairs else 6)
  assert results['train/loss'] == pytest.approx(
      (results['train/clean_loss'] + results['train/augmented_loss']) / 2,
      rel=1e-5)
  assert np.isfinite(results['validation/loss'])
