"""Exports a run: `conadv-export --model_dir=DIR --output_dir=DIR`."""

from absl import flags

from conadv_tf import command_line

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Directory of the run.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Directory for the SavedModel; an earlier export there "
    "is replaced.")
_BRANCH = flags.DEFINE_enum(
    "branch", "clean", ["clean", "augmented", "adversarial"],
    "Whose batch normalisation is merged into the model.")


def main() -> None:
  """Merges the newest checkpoint into a plain model and writes it."""
  # Imported late: --help must not wait for TensorFlow.
  with command_line.one_line_errors():
    from conadv_tf import config, saved_runs
    for flag, what in ((_MODEL_DIR, "a run's directory"),
                       (_OUTPUT_DIR, "a directory for the SavedModel")):
      if not flag.value:
        raise config.InputError(f"--{flag.name} is missing; name {what}")
    experiment, checkpoint = saved_runs.restore(_MODEL_DIR.value)
    saved_runs.export(experiment, checkpoint.step, _OUTPUT_DIR.value,
                      _BRANCH.value)
    print(f"exported update {checkpoint.step} to {_OUTPUT_DIR.value}")


def run() -> None:
  """Console script."""
  command_line.start(main)


if __name__ == "__main__":
  run()
