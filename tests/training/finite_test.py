import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import experiment as experiments
from conadv_tf.layers import network as networks
from conadv_tf.training import means
from tests import tiny


def _trained(updates: int, *overrides: str) -> experiments.Experiment:
  experiment = experiments.build(tiny.load(
      'runtime.deterministic=false,schedule.epochs=20,'
      'schedule.warmup_epochs=0', *overrides))
  experiment.trainer.fit(
      experiment.train_dataset(0), steps_per_epoch=updates, verbose=0)
  return experiment


@pytest.mark.parametrize('updates, least, most', [
    (24, 15, 18), pytest.param(8, -1, -1, marks=pytest.mark.slow)])
def test_loss_scaling_may_overflow_but_not_for_ever(
    updates: int, least: int, most: int) -> None:
  """Weights that are too large: every update overflows, at any scale."""
  trainer = _trained(updates, 'runtime.precision=mixed_float16',
                     'schedule.peak_lr=1e30,optimizer.name=sgd').trainer
  # The scale starts at 2^15 and is halved with each; it ends at 1.
  assert least <= int(trainer.nonfinite.first) <= most
  # No such update has left anything behind, moving statistics neither.
  for variable in trainer.network.variables:
    assert np.isfinite(networks.read(variable)).all(), variable.name


@pytest.mark.parametrize('precision', [
    'mixed_float16', pytest.param('float32', marks=pytest.mark.slow)])
def test_finite_updates_are_not_counted(precision: str) -> None:
  trainer = _trained(4, f'runtime.precision={precision}').trainer
  assert int(trainer.nonfinite.first) == -1
  assert int(trainer.nonfinite.count) == 0


def test_means_leave_out_the_term_that_is_not_finite() -> None:
  shown = means.Means(tf.keras.optimizers.SGD(), skip_nonfinite=True)
  shown._by_name['other'] = tf.keras.metrics.Mean('other')
  three, one = tf.constant(3.0), tf.constant(1.0)
  shown.add_terms({'loss': (tf.constant(np.nan), three),
                   'other': (tf.constant(2.0), three)})
  shown.add_terms({'loss': (tf.constant(1.0), one),
                   'other': (tf.constant(4.0), one)})
  assert float(shown.loss.result()) == 1.0
  assert float(shown._by_name['other'].result()) == 2.5
