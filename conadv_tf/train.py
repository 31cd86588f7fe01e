"""Trains a model: `conadv-train --config_file=FILE --model_dir=DIR`."""

from typing import TYPE_CHECKING

from absl import flags

from conadv_tf import command_line

if TYPE_CHECKING:
  from conadv_tf.distribute import strategies

_CONFIG_FILE = flags.DEFINE_multi_string(
    "config_file", [], "YAML file with the experiment; may be repeated, later "
    "ones win.")
_PARAMS_OVERRIDE = flags.DEFINE_multi_string(
    "params_override", [], "A YAML or JSON file, or key=value pairs such as "
    "method.lag=2,data.global_batch_size=512; wins over the files.")
_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "Directory of the run; the same command resumes it.")
_MODE = flags.DEFINE_enum(
    "mode", "train_and_eval", ["train_and_eval", "train", "describe"],
    "train evaluates at the end only; describe prints what would run.")
_WORKER_HOSTS = flags.DEFINE_list(
    "worker_hosts", [], "host:port of every worker, the chief first; for "
    "runtime.strategy=multi_worker_mirrored. Wins over TF_CONFIG.")
_TASK_INDEX = flags.DEFINE_integer(
    "task_index", None, "Which of them this process is, from 0.")
_PEER_TIMEOUT = flags.DEFINE_float(
    "peer_timeout", 300.0, "Seconds to wait for the other workers at the "
    "start.", lower_bound=0.0)
_TPU = flags.DEFINE_string(
    "tpu", None, "TPU for runtime.strategy=tpu: local, or a name.")
_TPU_ZONE = flags.DEFINE_string("tpu_zone", None, "Zone of a named TPU.")
_TPU_PROJECT = flags.DEFINE_string(
    "tpu_project", None, "Project of a named TPU.")
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "a:b writes a TensorBoard profile of updates a to "
    "b; python -m tools.step_time prints it.")
_PROFILER_PORT = flags.DEFINE_integer(
    "profiler_port", None, "Lets TensorBoard capture profiles of worker 0 at "
    "this port, which has no authentication.", lower_bound=1, upper_bound=65535)
_QUIET = flags.DEFINE_bool("quiet", False, "Print warnings and errors only.")


def _machines() -> "strategies.Machines":
  """What the flags and TF_CONFIG say."""
  from conadv_tf.config import InputError
  from conadv_tf.distribute import cluster, strategies  # noqa: F811
  for flag in (_TPU_ZONE, _TPU_PROJECT):
    if flag.value and _TPU.value in (None, "local"):
      raise InputError(f"--{flag.name}={flag.value} is of a named TPU; add "
                       "--tpu=NAME, or leave it out")
  if _WORKER_HOSTS.value or _TASK_INDEX.value is not None:
    workers = cluster.from_flags(_WORKER_HOSTS.value, _TASK_INDEX.value)
  else:
    workers = cluster.from_environment()
  return strategies.Machines(workers, _TPU.value, _TPU_ZONE.value,
                             _TPU_PROJECT.value)


def main() -> None:
  """Loads the configuration and runs it."""
  # Imported late: --help must not wait for TensorFlow.
  with command_line.one_line_errors():
    from conadv_tf import config as config_lib
    config = config_lib.load(_CONFIG_FILE.value, _PARAMS_OVERRIDE.value)
    machines = _machines()
    from conadv_tf import components, description, runs
    from conadv_tf.training import profiling
    profile = _PROFILE_STEPS.value and profiling.parse_steps(
        _PROFILE_STEPS.value)
    if _MODE.value == "describe":
      print(description.describe_config(config, machines))
      return
    if not _MODEL_DIR.value:
      raise config_lib.InputError("--model_dir is missing; name a directory "
                                  "for the run")
    results = runs.run(
        config, _MODEL_DIR.value, evaluates=_MODE.value == "train_and_eval",
        quiet=_QUIET.value, machines=machines,
        peer_timeout=_PEER_TIMEOUT.value, profile_steps=profile,
        profiler_port=_PROFILER_PORT.value)
    if not _QUIET.value and machines.is_chief:
      metric = components.metrics(config)[0]
      print(f"validation {metric} {results[f'validation/{metric}']:.4f}; "
            f"results in {_MODEL_DIR.value}/results.json")


def run() -> None:
  """Console script."""
  command_line.start(main)


if __name__ == "__main__":
  run()
