"""ART's attacks on a linear classifier, where the answer is known."""

import sys

from art.attacks.evasion import AutoProjectedGradientDescent
import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import config, experiment
from conadv_tf.data import pipeline
from conadv_tf.evaluation import attack_names, library_attacks
from conadv_tf.evaluation.library_attacks import (
  CrossEntropy,
  DifferenceOfLogitsRatio,
)
from tests import linear_models as linear

PIXELS = (0.0, 255.0)


@pytest.fixture(scope="module")
def built() -> experiment.Experiment:
  return linear.build("plain")


def evaluator(built: experiment.Experiment, name: str, branch: str = "clean",
              seed: int = 0) -> library_attacks.LibraryEvaluator:
  return library_attacks.LibraryEvaluator(
      built.trainer.network, attack_names.parse(name, 20.0), branch, seed,
      PIXELS)


def figures(built: experiment.Experiment, *arguments: object
            ) -> dict[str, float]:
  return evaluator(built, *arguments)(
      pipeline.evaluation_dataset(built.splits.validation, 25))


@pytest.mark.parametrize("name, radius", [
    ("apgd20", 6), ("apgd-dlr20", 14),
    *(pytest.param(name, radius, marks=pytest.mark.slow)
      for name, radius in (("apgd20", 14), ("apgd-dlr20", 6)))])
def test_a_gradient_attack_is_exact(
    built: experiment.Experiment, name: str, radius: int) -> None:
  expected = linear.exact(radius).mean()
  assert 0.1 < expected < 0.9
  assert figures(built, f"{name}@{radius}") == {
      "accuracy": expected, "examples": 60.0}


def test_square_does_harm_within_the_ball(
    built: experiment.Experiment) -> None:
  found = figures(built, "square60@14")["accuracy"]
  assert linear.exact(14).mean() <= found < 0.9
  assert found == figures(built, "square60@14")["accuracy"]
  assert figures(built, "square60@0")["accuracy"] == 1.0


def test_parts_are_made_in_turn_on_what_is_left(
    built: experiment.Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(attack_names, "_DEFAULT_STEPS", {
      "apgd": 2, "apgd-dlr": 10, "square": 30})
  shown = []
  made = library_attacks.LibraryEvaluator._survives

  def survives(self: object, attack: object, x: np.ndarray, y: np.ndarray
               ) -> np.ndarray:
    shown.append(len(x))
    return made(self, attack, x, y)

  monkeypatch.setattr(library_attacks.LibraryEvaluator, "_survives", survives)
  found = figures(built, "autoattack@10")
  after = [round(60 * found[f"accuracy_after_{part}"])
           for part in ("apgd", "apgd-dlr", "square")]
  assert 60 > after[0] >= after[1] >= after[2] == 60 * found["accuracy"]
  assert found["accuracy"] >= linear.exact(10).mean()
  assert [sum(shown[part::3]) for part in range(3)] == [60, *after[:2]]


def test_branches_and_gradients_are_the_networks_own(
    built: experiment.Experiment) -> None:
  network = built.trainer.network
  statistics = network.layer_variables[0]["adversarial"].moving_mean
  before = statistics.numpy()
  statistics.assign(before + 0.3)
  x = linear.IMAGES.astype(np.float32)
  y = np.eye(3, dtype=np.float32)[linear.LABELS]
  gradients = {}
  for branch in ("clean", "adversarial"):
    made = evaluator(built, "apgd", branch)
    ours = built.evaluator(branch)
    np.testing.assert_array_equal(
        made.classifier(CrossEntropy()).predict(x), ours.logits(x))
    with tf.GradientTape() as tape:
      images = tf.constant(x)
      tape.watch(images)
      loss = ours.summed_loss(
          tf.constant(linear.LABELS), images, tf.ones([60]))
    expected = tape.gradient(loss, images).numpy()
    found = made.classifier(CrossEntropy()).loss_gradient(x, y)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    gradients[branch] = found
  statistics.assign(before)
  assert np.abs(gradients["clean"] - gradients["adversarial"]).max() > 1e-5


@pytest.mark.parametrize("kind, loss", [
    ("cross_entropy", CrossEntropy()),
    ("difference_logits_ratio", DifferenceOfLogitsRatio())])
def test_losses_are_those_of_the_library(
    built: experiment.Experiment, kind: str, loss: CrossEntropy) -> None:
  made = evaluator(built, "apgd")
  theirs = AutoProjectedGradientDescent(
      made.classifier(CrossEntropy()), loss_type=kind).estimator
  x = linear.IMAGES[:12].astype(np.float32)
  y = np.eye(3)[np.roll(linear.LABELS[:12], 1)]  # some of them wrong
  np.testing.assert_allclose(
      made.classifier(loss).compute_loss(x, y, reduction="none"),
      theirs.compute_loss(x, y, reduction="none"), rtol=1e-5)
  # Theirs is the gradient of the mean.
  np.testing.assert_allclose(
      made.classifier(loss).loss_gradient(x, y),
      12 * theirs.loss_gradient(x, y), rtol=1e-4, atol=1e-7)


def test_what_is_not_a_number_does_not_count_as_fooled(
    built: experiment.Experiment) -> None:
  class Broken:
    def generate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
      return np.full_like(x, np.nan)

  class Cheat:
    def generate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
      return 255.0 - x  # far outside the ball of 0.001

  made = evaluator(built, "apgd@0.001")
  x = linear.IMAGES.astype(np.float32)
  for attack in (Broken(), Cheat()):
    assert made._survives(attack, x, linear.LABELS).all()


def test_numpys_own_generator_is_left_alone(
    built: experiment.Experiment) -> None:
  np.random.seed(3)
  expected = np.random.random()
  np.random.seed(3)
  figures(built, "apgd2@4")
  assert np.random.random() == expected


@pytest.mark.parametrize("name, shape, classes, message", [
    ("autoattack", (4, 4, 1), 2, "apgd-dlr in autoattack@20 needs 3 classes"),
    ("square", (1, 9, 1), 3, "images of 2x2 pixels or more")])
def test_what_does_not_fit(
    name: str, shape: tuple[int, ...], classes: int, message: str) -> None:
  with pytest.raises(config.InputError, match=message):
    library_attacks.check(attack_names.parse(name, 20.0), shape, classes)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(sys.modules, "art.attacks.evasion", None)
  with pytest.raises(config.InputError) as caught:
    library_attacks.check(attack_names.parse("apgd", 20.0), (4, 4, 1), 3)
  assert str(caught.value) == (
      "--attacks: apgd100@20 needs adversarial-robustness-toolbox; pip install "
      "-c constraints.txt -r requirements-extra.txt")
