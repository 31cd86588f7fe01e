"""Attacks that make adversarial examples."""

from conadv_tf.attacks.embeddings import Perturbation
from conadv_tf.attacks.gradient import Pgd

__all__ = ["Perturbation", "Pgd"]
