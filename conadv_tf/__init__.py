"""Adversarial examples as a regulariser for large-batch training.

`Trainer`, `attacks`, `methods` and `optimizers` are imported when first used,
so that the commands can answer `--help` without waiting for TensorFlow.
"""

import importlib
from typing import Any

__all__ = ["Trainer", "attacks", "methods", "optimizers"]


def __getattr__(name: str) -> Any:
  if name == "Trainer":
    return importlib.import_module("conadv_tf.training.trainer").Trainer
  if name in __all__:
    return importlib.import_module(f"conadv_tf.{name}")
  raise AttributeError(f"module 'conadv_tf' has no attribute {name!r}")
