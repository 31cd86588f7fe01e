"""Reading all means with one all-reduce."""

import pytest
import tensorflow as tf

from conadv_tf.distribute import strategies
from conadv_tf.training import means


class _Own(tf.keras.metrics.Mean):
  """A mean that shows something else."""

  def result(self) -> tf.Tensor:
    return 10.0 * super().result()


def test_results_are_keras_s_and_the_sums_one_message(
    mirrored: tf.distribute.Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(strategies, 'has_workers', lambda _: True)
  reduced = []
  reduce = mirrored.reduce
  monkeypatch.setattr(mirrored, 'reduce', lambda *args, **kwargs: (
      reduced.append(args[1]), reduce(*args, **kwargs))[1])
  with mirrored.scope():
    metrics = [
        tf.keras.metrics.Mean('loss'), tf.keras.metrics.Sum('sum'),
        tf.keras.metrics.Mean('double', dtype='float64'), _Own('own'),
        tf.keras.metrics.SparseCategoricalAccuracy('accuracy'),
        tf.keras.metrics.Mean('empty')]

  def update() -> None:
    replica = tf.cast(tf.distribute.get_replica_context(
        ).replica_id_in_sync_group, tf.float32)
    for metric in metrics[:4]:
      metric.update_state(1.0 + 2.0 * replica, 1.0 + replica)
    metrics[4].update_state([0, 1], [[1.0, 0.0], [replica, 0.5]])

  @tf.function(autograph=False)
  def step() -> dict[str, tf.Tensor]:
    mirrored.run(update)
    return means.results(metrics, mirrored)

  found = step()
  # (1 * 1 + 2 * 3) / 3; three of four predictions are right.
  assert list(found) == [metric.name for metric in metrics]
  assert {name: float(value) for name, value in found.items()
          } == pytest.approx({
              'loss': 7 / 3, 'sum': 7.0, 'double': 7 / 3, 'own': 70 / 3,
              'accuracy': 0.75, 'empty': 0.0})
  assert [value.values[0].shape for value in reduced if hasattr(
      value, 'values') and value.values[0].shape.rank == 2] == [(3, 2)]
