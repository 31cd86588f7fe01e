"""Optimizers and learning-rate schedules for very large batches."""

from conadv_tf.optimizers.lamb import Lamb
from conadv_tf.optimizers.lars import Lars
from conadv_tf.optimizers.schedules import (
    Constant,
    Cosine,
    Cyclic,
    Piecewise,
    Polynomial,
)

__all__ = [
    'Constant', 'Cosine', 'Cyclic', 'Lamb', 'Lars', 'Piecewise', 'Polynomial']
