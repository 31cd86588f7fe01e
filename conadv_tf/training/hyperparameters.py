"""What TensorBoard's tab HParams shows of a run."""

from typing import Any

from conadv_tf import config as config_lib

# Shown in any case, so that runs can be sorted by them.
_ALWAYS = (
    "seed", "data.global_batch_size", "model.name", "method.name",
    "schedule.epochs", "schedule.peak_lr", "derived.virtual_replicas")
_ATTACKED = ("method.lag", "attack.radius", "attack.steps")
# Change no figure of a run, or follow from the others.
_LEFT_OUT = (
    "checkpoint.", "derived.", "evaluation.", "mlperf.",
    "runtime.num_replicas")


def of(config: config_lib.ExperimentConfig
       ) -> dict[str, bool | int | float | str]:
  """The keys by which runs are told apart.

  A few always, and whatever is not at its default: all of a configuration
  would be more than a hundred columns.

  Args:
    config: resolved.

  Returns:
    Key -> value, in the configuration's order; what is no number, bool or
    string is written out.
  """
  default = dict(config_lib.flatten(config_lib.ExperimentConfig().as_dict()))
  always = set(_ALWAYS)
  if config_lib.attacks_images(config):
    always.update(_ATTACKED)
  return {
      key: _plain(value)
      for key, value in config_lib.flatten(config.as_dict())
      if key in always or (value != default.get(key)
                           and not key.startswith(_LEFT_OUT))}


def _plain(value: Any) -> bool | int | float | str:
  return value if isinstance(value, (bool, int, float, str)) else str(value)
