"""Draws learning rates: `python -m tools.plot_schedule --config_file=FILE`.

`--config_file` may be repeated, later ones win, as in training. `--compare`
takes further experiments, each the files of one joined by "+", and draws their
rates into the same picture:

  python -m tools.plot_schedule --config_file=configs/imagenet/conadv.yaml \
      --compare=configs/imagenet/mlperf_32768.yaml --output=rates.png

The data need not be there where the configuration states their numbers.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from conadv_tf import command_line

_CONFIG_FILE = flags.DEFINE_multi_string(
    "config_file", None, "YAML file with the experiment; may be repeated, "
    "later ones win.", required=True)
_PARAMS_OVERRIDE = flags.DEFINE_multi_string(
    "params_override", [], "As in training; applies to all experiments.")
_COMPARE = flags.DEFINE_multi_string(
    "compare", [], "Files of another experiment, joined by +; may be "
    "repeated.")
_LOG = flags.DEFINE_bool("log", False, "Whether rates are drawn on a "
                         "logarithmic axis.")
_OUTPUT = flags.DEFINE_string("output", None, "PNG file.", required=True)
_POINTS = 1500


def main() -> None:
  """Draws the picture."""
  with command_line.one_line_errors():
    from conadv_tf import config as config_lib
    from conadv_tf import description
    loaded = [config_lib.load(files, _PARAMS_OVERRIDE.value) for files in (
        _CONFIG_FILE.value, *(text.split("+") for text in _COMPARE.value))]
    figure = _figure([description.plan(config)[1] for config in loaded])
    try:
      figure.savefig(_OUTPUT.value, dpi=100)
    except (OSError, ValueError) as error:
      raise config_lib.InputError(
          f"--output={_OUTPUT.value}: {error}") from error


def _figure(configs: Sequence[Any]) -> Any:
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
  for number, config in enumerate(configs):
    _draw(axis, config, f"C{number}", len(configs) > 1)
  axis.set(xlabel="epoch", ylabel="learning rate", title=(
      "Learning rates" if len(configs) > 1 else _title(configs[0])))
  if _LOG.value:
    axis.set_yscale("log")
  else:
    axis.set_ylim(bottom=0)
  axis.set_xlim(left=0)
  axis.grid(alpha=0.3)
  figure.legend(loc="outside lower center", frameon=False,
                ncols=1 if len(configs) > 1 else 3)
  return figure


def _title(config: Any) -> str:
  return (f"{config.method.name}, {config.model.name}, {config.data.name}, "
          f"batch {config.data.global_batch_size:,}: "
          f"{config.derived.total_steps:,} updates")


def _draw(axis: Any, config: Any, colour: str, several: bool) -> None:
  """One experiment's rates, its phases and its evaluations."""
  import numpy as np

  from conadv_tf import description
  derived = config.derived
  total, warmup = derived.total_steps, derived.warmup_steps
  rates = description.schedule(config)

  def epoch(updates: np.ndarray | int) -> np.ndarray:
    return np.asarray(updates) / derived.steps_per_epoch

  updates = np.unique(np.append(
      np.linspace(0, total, _POINTS).astype(int), [warmup]))
  drawn = rates(updates).numpy()
  if _LOG.value:
    updates, drawn = updates[drawn > 0], drawn[drawn > 0]
  axis.plot(epoch(updates), drawn, color=colour, label=(
      _title(config) if several else f"{config.schedule.name}, peak "
      f"{config.schedule.peak_lr:g}, last {float(rates(total - 1)):.3g}"))
  ends = np.array(description.evaluation_updates(config))
  axis.plot(epoch(ends), rates(ends).numpy(), linestyle="", marker="o",
            markersize=3.5, color=colour,
            label=None if several else f"{len(ends)} evaluations")
  if warmup and not several:
    axis.axvspan(0, epoch(warmup), color="0.93", zorder=0, label=(
        f"warm-up: {epoch(warmup):.4g} epochs, {warmup:,} updates"))


if __name__ == "__main__":
  command_line.start(main)
