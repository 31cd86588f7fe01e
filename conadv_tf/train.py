"""Trains a model: `conadv-train --config_file=FILE --model_dir=DIR`."""


from absl import flags

from conadv_tf import command_line

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
_QUIET = flags.DEFINE_bool("quiet", False, "Print warnings and errors only.")


def main() -> None:
  """Loads the configuration and runs it."""
  # Imported late: --help must not wait for TensorFlow.
  with command_line.one_line_errors():
    from conadv_tf import config as config_lib
    config = config_lib.load(_CONFIG_FILE.value, _PARAMS_OVERRIDE.value)
    from conadv_tf import description, runs
    if _MODE.value == "describe":
      print(description.describe_config(config))
      return
    if not _MODEL_DIR.value:
      raise config_lib.InputError("--model_dir is missing; name a directory "
                                  "for the run")
    results = runs.run(
        config, _MODEL_DIR.value, evaluates=_MODE.value == "train_and_eval",
        quiet=_QUIET.value)
    if not _QUIET.value:
      print(f"validation accuracy {results['validation/accuracy']:.4f}; "
            f"results in {_MODEL_DIR.value}/results.json")


def run() -> None:
  """Console script."""
  command_line.start(main)


if __name__ == "__main__":
  run()
