"""Draws the cost model: `python -m tools.plot_scaling --output=FILE.png`.

Fits the model of conadv_tf/analysis/cost_model.py to the times that the ConAdv
paper prints, for each place where ConAdv's adversaries may have been made,
prints published and predicted numbers as Markdown and draws them. The result
is a model, not a measurement: nothing of it ran on those machines.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from absl import flags

from conadv_tf import command_line
from conadv_tf.analysis import cost_fit, cost_model
from conadv_tf.analysis import published_times as published
from tools import figures

_OUTPUT = flags.DEFINE_string("output", None, "PNG file.", required=True)

NOTICE = (
    "A model, fitted to published numbers and to step times of our CPUs; no "
    "measurement of the machines it speaks of: nothing here ran on a TPU.")
CORES = {"equal": "equal cores", "double": "double, half only attack",
         "double_even": "double, work spread evenly"}
OUTLIER = 1.25
_DENIED = "\N{DAGGER}"
_NAMES = {"vanilla": "vanilla", "disadv": "DisAdv", "conadv": "ConAdv"}
_COLOURS = {"vanilla": "C0", "disadv": "C3", "conadv": "C2"}
_STYLES = {"equal": ("-", "s"), "double": ("--", "^"),
           "double_even": (":", "v")}


def with_cores(run: cost_model.Run, cores: cost_model.Cores) -> cost_model.Run:
  """The same run with ConAdv's adversaries made there."""
  return dataclasses.replace(run, cores=cores)


def fit(cores: cost_model.Cores,
        points: Sequence[published.Point] = published.POINTS,
        network: cost_model.Network = published.TPU_V3) -> cost_model.Machine:
  """The machine that explains the points best."""
  return cost_fit.fit_pass_times(
      [with_cores(point.run, cores) for point in points],
      [point.step_seconds for point in points], network,
      published.GRADIENT_BYTES)


def predict(points: Sequence[published.Point], cores: cost_model.Cores,
            machine: cost_model.Machine) -> list[float]:
  """Seconds a step of each point."""
  return [cost_model.step_seconds(with_cores(point.run, cores), machine)
          for point in points]


def error(points: Sequence[published.Point], cores: cost_model.Cores,
          machine: cost_model.Machine) -> float:
  """The root mean square of log(predicted / published)."""
  return cost_fit.log_error(predict(points, cores, machine),
                            [point.step_seconds for point in points])


def report() -> str:
  """All tables, Markdown."""
  machines = {cores: fit(cores) for cores in CORES}
  return "\n\n".join([
      NOTICE, _table_of_points(machines), _table_of_ratios(machines),
      _table_of_fits(), _table_of_devices(machines)])


def _table_of_points(machines: dict[str, cost_model.Machine]) -> str:
  rows = []
  for number, point in enumerate(published.POINTS):
    row = [point.source, _NAMES[point.run.method],
           f"{point.run.batch // 1024}k", f"{point.run.devices:,}",
           f"{point.printed:,} {point.unit}" + (
               f" {_DENIED}" if point.contradicts else ""),
           f"{1e3 * point.step_seconds:.1f}"]
    for cores, machine in machines.items():
      seconds = predict(published.POINTS, cores, machine)[number]
      ratio = seconds / point.step_seconds
      row += [f"{1e3 * seconds:.1f}", f"{ratio:.2f}" + (
          " *" if max(ratio, 1 / ratio) > OUTLIER else "")]
    rows.append(row)
  rms = ["RMS of log ratios", "", "", "", "", ""]
  for cores, machine in machines.items():
    rms += ["", f"{error(published.POINTS, cores, machine):.3f}"]
  head = ["source", "method", "batch", "cores", "printed", "ms a step"]
  for name in CORES.values():
    head += [f"{name}: ms", "ratio"]
  return (figures.table(head, [*rows, rms])
          + "\n\nRatios are predicted / published "
          f"step times; * marks those off by more than a factor {OUTLIER}, "
          f"{_DENIED} points that others of the same table contradict.")


def _table_of_ratios(machines: dict[str, cost_model.Machine]) -> str:
  """What the figures are meant to show; the last was not fitted."""
  def run(method: cost_model.Method, thousands: int,
          devices: int) -> cost_model.Run:
    return cost_model.Run(method, 1024 * thousands, devices)

  limit = published.CORES_AT_THE_LIMIT
  lines = (
      ("DisAdv, 32k over 4k", "7.93", run("disadv", 32, 512),
       run("disadv", 4, 64)),
      ("ConAdv over DisAdv, 2k, limit", "1.98", run("conadv", 2, limit),
       run("disadv", 2, limit)),
      ("ConAdv over vanilla, 2k, limit", "0.94", run("conadv", 2, limit),
       run("vanilla", 2, limit)),
      ("ConAdv over DisAdv, 32k, Table 3", "1.76", run("conadv", 32, 512),
       run("disadv", 32, 512)),
      ("the same in Figure 4(a)'s text, not fitted", "about 1.5",
       run("conadv", 32, 512), run("disadv", 32, 512)))
  rows = []
  for name, number, above, below in lines:
    rows.append([name, number] + [
        f"{_throughput(above, *each) / _throughput(below, *each):.2f}"
        for each in machines.items()])
  return figures.table(["throughput", "published", *CORES.values()], rows)


def _throughput(run: cost_model.Run, cores: cost_model.Cores,
                machine: cost_model.Machine) -> float:
  """Images a millisecond."""
  return cost_model.images_per_second(with_cores(run, cores), machine) / 1000


def _table_of_fits() -> str:
  consistent = [point for point in published.POINTS if not point.contradicts]
  halved = [dataclasses.replace(point, run=dataclasses.replace(
      point.run, devices=point.run.devices // 2))
            if point.source == "Figure 4(b)" else point
            for point in published.POINTS]
  slow = cost_model.Network(published.TPU_V3.latency,
                            10 * published.TPU_V3.seconds_per_byte)
  variants = (
      ("all 13 points", published.POINTS, published.TPU_V3),
      (f"the 11 without {_DENIED}", consistent, published.TPU_V3),
      ("all, 512 cores at the limit", halved, published.TPU_V3),
      ("all, a tenth of the bandwidth", published.POINTS, slow))
  rows = []
  for name, points, network in variants:
    for cores, label in CORES.items():
      machine = fit(cores, points, network)
      rows.append([
          name, label, f"{1e3 * machine.passes.fixed:.1f}",
          f"{1e3 * machine.passes.per_image:.3f}",
          f"{error(points, cores, machine):.3f}"])
  return figures.table(
      ["fitted to", "ConAdv's devices", "ms a pass", "ms an image and pass",
       "RMS of log ratios"], rows)


def _table_of_devices(machines: dict[str, cost_model.Machine]) -> str:
  rows = []
  for devices in (1, 8, 64, 512, 4096):
    row = [f"{devices:,}"]
    for each in machines.items():
      row.append(" / ".join(
          f"{float(f'{_throughput(run, *each):.3g}'):,g}"
          for run in _normal_runs(devices)))
    rows.append(row)
  return (figures.table(["devices with 64 images each", *CORES.values()], rows)
          + "\n\nImages/ms of vanilla / DisAdv / ConAdv, fitted to all points; "
          "ConAdv with double cores has as many devices again.")


def _normal_runs(devices: int) -> list[cost_model.Run]:
  return [cost_model.Run(method, published.IMAGES_PER_CORE * devices, devices)
          for method in _NAMES]


def main() -> None:
  """Prints the tables and draws the picture."""
  import matplotlib
  matplotlib.use("Agg")
  from matplotlib import pyplot

  print(report())
  machines = {cores: fit(cores) for cores in CORES}
  figure, axes = pyplot.subplot_mosaic(
      "ab;ac", figsize=(14, 9), layout="constrained", width_ratios=(6, 5))
  _draw_throughput(axes["a"], machines)
  _draw_points(axes["b"], machines, "Figure 4(b)",
               lambda point, seconds: 1e3 * seconds)
  axes["b"].set(ylabel="ms a step", ylim=(0, 65),
                title="(b) step time at the limit, batch 2k on 1,024 cores")
  _draw_points(axes["c"], machines, "Table 3", _seconds_of_training)
  axes["c"].set(ylabel="seconds for 90 epochs", yscale="log", ylim=(200, 3000),
                title="(c) training time, 64 images a core")
  axes["c"].set_yticks([200, 300, 500, 1000, 2000, 3000])
  axes["c"].yaxis.set_major_formatter("{x:,.0f}")
  axes["c"].yaxis.set_minor_formatter("")
  axes["b"].legend()
  figure.suptitle(
      "ResNet-50 on TPU v3: what the ConAdv paper prints, and a model with two "
      "parameters fitted to it (not a measurement)\n"
      f"{_DENIED} contradicted by other points of the same table")
  try:
    figure.savefig(_OUTPUT.value, dpi=80)
  except (OSError, ValueError) as failure:
    with command_line.one_line_errors():
      from conadv_tf import config
      raise config.InputError(
          f"--output={_OUTPUT.value}: {failure}") from failure


def _seconds_of_training(point: published.Point, seconds: float) -> float:
  updates = published.EPOCHS * cost_model.IMAGENET_IMAGES / point.run.batch
  return updates * seconds


def _draw_throughput(axis: Any, machines: dict[str, cost_model.Machine]
                     ) -> None:
  """Figure 4(a): lines per device count, Table 3's points beside its own."""
  devices = [2 ** power for power in range(13)]

  def line(runs: Sequence[cost_model.Run], cores: cost_model.Cores,
           style: str) -> None:
    method = runs[0].method
    axis.plot(devices, [_throughput(run, cores, machines[cores])
                        for run in runs], style, color=_COLOURS[method],
              label=f"{_NAMES[method]}, " + (
                  "" if method == "conadv" else "fitted with ")
              + CORES[cores])

  vanilla, disadv, conadv = zip(*map(_normal_runs, devices))
  # Where ConAdv's adversaries are made moves these two through the fit only.
  line(vanilla, "double", "-")
  line(disadv, "double", "-")
  for cores in machines:
    line(conadv, cores, _STYLES[cores][0])
  for point in published.POINTS:
    if point.source != "Figure 4(b)":
      own = point.source == "Figure 4(a)"
      axis.plot(point.run.devices,
                point.run.batch / point.step_seconds / 1000,
                color=_COLOURS[point.run.method], marker="o" if own else "D",
                markersize=8, markeredgecolor="black", linestyle="", zorder=3)
      if point.contradicts:
        axis.annotate(_DENIED, (point.run.devices, point.run.batch
                                / point.step_seconds / 1000),
                      (8, -4), textcoords="offset points")
  for marker, label in (("o", "published, Figure 4(a)"),
                        ("D", "published, Table 3")):
    axis.plot([], [], marker=marker, color="white", markeredgecolor="black",
              linestyle="", label=label)
  axis.set(xscale="log", yscale="log", xlabel="devices with 64 images each",
           ylabel="clean images a ms", title="(a) throughput", xlim=(0.8, 5000),
           ylim=(0.15, 3000))
  axis.set_xticks([1, 8, 64, 512, 4096], ["1", "8", "64", "512", "4,096"])
  axis.grid(alpha=0.3)
  axis.legend(loc="upper left")


def _draw_points(axis: Any, machines: dict[str, cost_model.Machine],
                 source: str,
                 shown: Callable[[published.Point, float], float]) -> None:
  """Published points and the fits' predictions, side by side."""
  points = [point for point in published.POINTS if point.source == source]
  for place, point in enumerate(points):
    if place % 2:
      axis.axvspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
    axis.plot(place - 0.24, shown(point, point.step_seconds), "o",
              color="black", markersize=8,
              label=None if place else "published")
  for number, (cores, machine) in enumerate(machines.items()):
    axis.plot([place - 0.08 + 0.16 * number for place in range(len(points))],
              [shown(*pair) for pair in zip(
                  points, predict(points, cores, machine))],
              marker=_STYLES[cores][1], linestyle="", color=f"C{4 + number}",
              markersize=8, label=f"predicted, {CORES[cores]}")
  axis.set_xticks(range(len(points)), [
      f"{_NAMES[point.run.method]}\n{point.run.batch // 1024}k"
      + (f" {_DENIED}" if point.contradicts else "") for point in points])
  axis.set_xlim(-0.5, len(points) - 0.5)
  axis.grid(alpha=0.3)


if __name__ == "__main__":
  command_line.start(main)
