"""Adversarial examples as a regulariser for large-batch training."""

from conadv_tf import attacks
from conadv_tf import methods
from conadv_tf import optimizers
from conadv_tf.training.trainer import Trainer

__all__ = ["Trainer", "attacks", "methods", "optimizers"]
