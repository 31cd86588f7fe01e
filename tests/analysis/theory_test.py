"""The bounds hold where every constant is known; as printed they do not."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods
from conadv_tf.analysis import theory
from conadv_tf.attacks import gradient as attacks
from conadv_tf.training import trainer as trainers
from tests.reference import concave_game

norm = np.linalg.norm


def stale_distances(game: concave_game.Game, theta: np.ndarray, lag: int
                    ) -> np.ndarray:
  """|x*(theta_t) - x*(theta_(t-lag))| of a trajectory [T, ..., p]."""
  best = game.perturbation(theta)
  return norm(best[lag:] - best[:len(best) - lag], axis=-1)


@pytest.mark.parametrize("epsilon", [0.2, math.inf])
def test_lemma_1_bounds_stale_adversaries_along_training(epsilon: float
                                                         ) -> None:
  game, start = concave_game.sample(epsilon=0.2)
  constants = game.constants(start)
  free = dataclasses.replace(game, epsilon=epsilon)
  run = concave_game.train(game, start, rate=0.3, updates=60, lag=2, batch=2,
                           runs=8)
  assert norm(run.used, axis=-1).max() <= constants.gradient
  for lag in (1, 2, 4, 8):
    measured = stale_distances(free, run.theta, lag)
    moved = norm(run.theta[lag:] - run.theta[:-lag], axis=-1)
    # (12), first inequality, and (16): the weights move at most eta tau M.
    bound = theory.adversary_distance(constants, 1.0) * moved
    assert np.all(measured <= bound * (1 + 1e-9) + 1e-12)
    assert np.all(moved <= theory.weight_distance(constants, 0.3, lag))
    if epsilon == math.inf:  # the smallest such constant
      assert np.max(measured / bound) > 0.95


def test_stale_distance_grows_linearly_with_lag_and_rate() -> None:
  game, start = concave_game.sample(epsilon=math.inf)

  def distance(rate: float, lag: int) -> float:
    run = concave_game.train(game, start, rate=rate, updates=16, lag=lag)
    return float(stale_distances(game, run.theta, lag)[-1, 0])

  unit = distance(1e-4, 1)
  for lag in (2, 4, 8):
    assert distance(1e-4, lag) == pytest.approx(lag * unit, rel=5e-3)
  for times in (2, 4, 8):
    assert distance(times * 1e-4, 1) == pytest.approx(times * unit, rel=2e-2)
  assert distance(1e-4, 0) == 0.0


def test_lemma_2_smoothness() -> None:
  game, _ = concave_game.sample()
  smoothness = game.constants().smoothness
  random = np.random.default_rng(1)
  one, other = random.normal(size=(2, 2000, 3)) * 2.0
  difference = one - other
  moved = norm(difference, axis=1)
  change = norm(game.gradient(one) - game.gradient(other), axis=1)
  assert np.all(change <= smoothness * moved * (1 + 1e-12))
  # (19), mended: a quadratic upper bound.
  upper = (game.objective(other)
           + np.sum(game.gradient(other) * difference, axis=1)
           + smoothness / 2.0 * moved**2)
  assert np.all(game.objective(one) <= upper + 1e-12)
  # Inside the box, along the strongest direction, it is an equality: with
  # a = 1, |C| = 1 and mu = 2, L = 1 + 1 / 4.
  assert smoothness == pytest.approx(1.25)
  tiny = 1e-3 * np.linalg.svd(game.coupling)[0][:, 0]
  assert norm(game.gradient(tiny) - game.gradient(-tiny)) == pytest.approx(
      smoothness * 2e-3)


def test_the_objective_s_gradient_is_its_derivative() -> None:
  game, start = concave_game.sample()
  for direction in np.eye(3) * 1e-5:
    slope = (game.objective(start + direction)
             - game.objective(start - direction)) / 2e-5
    assert game.gradient(start) @ direction / 1e-5 == pytest.approx(
        slope, rel=1e-6)


@pytest.mark.parametrize("step", [None, 0.2])
def test_lemma_3_needs_the_term_of_the_lag(step: float | None) -> None:
  """(31) bounds the gradient's error, (23) does not."""
  game, start = concave_game.sample()
  rate, lag = 0.3, 3
  run = concave_game.train(game, start, rate=rate, updates=40, lag=lag,
                           batch=4, runs=8, step=step)
  constants = game.constants(start, inexactness=run.inexactness)
  error = norm(run.fresh - run.used, axis=-1)
  assert np.all(error <= theory.gradient_error(constants, rate, lag))
  if step is None:  # exact adversaries, only stale
    assert run.inexactness < 1e-15
    assert theory.printed_gradient_error(constants) < 1e-7 < error.max()
  else:  # (30): a short step's distance from the maximum
    assert run.inexactness > 0.01
    old = run.theta[np.maximum(0, np.arange(40) - lag)]
    assert np.all(norm(game.perturbation(old) - run.perturbation, axis=-1)
                  <= theory.attack_error(constants))


@pytest.mark.parametrize(("lag", "step"), [(0, None), (1, None), (4, 0.2)])
def test_corrected_theorem_1(lag: int, step: float | None) -> None:
  """Plain SGD, 256 runs for the expectation, lambda as measured."""
  game, start = concave_game.sample()
  updates, batch = 300, 2
  gap = float(game.objective(start)) - game.minimum()
  rate = theory.learning_rate(game.constants(start, batch), gap, updates)
  run = concave_game.train(game, start, rate=rate, updates=updates, lag=lag,
                           batch=batch, runs=256, step=step)
  constants = game.constants(start, batch, run.inexactness)
  assert 0 < rate < 1 / constants.smoothness
  mean = np.mean(norm(game.gradient(run.theta[:-1]), axis=-1)**2)
  bound = theory.mean_squared_gradient(constants, gap, updates, rate, lag)
  assert mean <= bound <= theory.theorem_1(constants, gap, updates, lag)
  # The variance is what Assumption 4 says, not more by chance.
  noise = run.fresh - game.gradient(run.theta[:-1])
  assert np.mean(np.sum(noise**2, axis=-1)) == pytest.approx(
      constants.deviation**2, rel=0.03)


def test_theorem_1_as_printed_is_violated() -> None:
  """sigma = 0, L_thetax = 0: it prints 0, the mean is |theta_0|^2 / T."""
  game, start = concave_game.sample()
  game = dataclasses.replace(game, coupling=np.zeros_like(game.coupling))
  updates, lag = 50, 2
  gap = float(game.objective(start)) - game.minimum()
  constants = game.constants(start)
  rate = theory.learning_rate(constants, gap, updates)
  assert rate == 1.0  # 1 / L = 1 / a: the minimum after one update
  run = concave_game.train(game, start, rate=rate, updates=updates, lag=lag)
  mean = np.mean(norm(game.gradient(run.theta[:-1]), axis=-1)**2)
  assert mean == pytest.approx(norm(start)**2 / updates)
  assert theory.printed_theorem_1(constants, gap, updates, lag) == 0.0
  # The corrected bound is met exactly: no smaller one holds.
  assert theory.theorem_1(constants, gap, updates, lag) == pytest.approx(mean)
  assert theory.mean_squared_gradient(
      constants, gap, updates, rate, lag) == pytest.approx(mean)


def test_closed_form_covers_both_branches_of_the_rate() -> None:
  """By hand: L = 2 + 3 * 4 / (2 * 3) = 4, Delta = 2, T = 8, tau = 2."""
  constants = theory.Constants(
      theta_theta=2.0, theta_x=4.0, x_theta=3.0, mu=3.0, gradient=5.0,
      deviation=2.0, inexactness=12.0)
  assert constants.smoothness == 4.0
  # sqrt(2 / (8 * 4 * 4)) = 1/8 < 1/4.
  rate = theory.learning_rate(constants, 2.0, 8)
  assert rate == pytest.approx(0.125)
  # Lemma 3: 4 / 2 * (1/8 * 2 * 5 * 3 / 3 + sqrt(12 / 3)) = 2 * 3.25.
  assert theory.gradient_error(constants, rate, 2) == pytest.approx(6.5)
  # 2 * 2 / (1/8 * 8) + 2 * 4 * 1/8 * 4 + 1.5 * 6.5^2.
  assert theory.mean_squared_gradient(
      constants, 2.0, 8, rate, 2) == pytest.approx(4 + 4 + 1.5 * 42.25)
  # At rate 1/4: 4 * 2 * 1 + 2 * 4 * 2 / 8 + 16 / 2 * (2 * 5 / 4 + 2)^2.
  assert theory.theorem_1(constants, 2.0, 8, 2) == pytest.approx(
      8 + 2 + 8 * 4.5**2)
  assert theory.printed_theorem_1(constants, 2.0, 8, 2) == pytest.approx(
      4 + 8 * 4.5**2)
  with pytest.raises(ValueError, match="1 / L = 0.25"):
    theory.mean_squared_gradient(constants, 2.0, 8, 0.3, 2)


# ---- The same on the project's own ConAdv.


class _Loss(tf.keras.layers.Layer):
  """Gives a/2 |theta|^2 + theta' C x and x itself, [b, 1 + d]."""

  def __init__(self, a: float, coupling: list[list[float]],
               start: list[float], **options: object):
    super().__init__(**options)
    self._arguments = dict(a=a, coupling=coupling, start=start)

  def get_config(self) -> dict[str, object]:
    return {**super().get_config(), **self._arguments}

  def build(self, shape: tf.TensorShape) -> None:
    del shape
    start = self._arguments["start"]
    self.theta = self.add_weight(
        name="theta", shape=[len(start)],
        initializer=tf.keras.initializers.Constant(start))

  def call(self, x: tf.Tensor) -> tf.Tensor:
    x = tf.reshape(x, [-1, x.shape[-1]])
    pull = tf.linalg.matvec(
        tf.constant(self._arguments["coupling"]), self.theta, transpose_a=True)
    value = (self._arguments["a"] / 2.0 * tf.reduce_sum(self.theta**2)
             + tf.linalg.matvec(x, pull))
    return tf.concat([value[:, None], x], axis=1)


class _Recorder(tf.keras.callbacks.Callback):
  """The weights before and after every update."""

  def on_train_begin(self, logs: object = None) -> None:
    self.theta = [self.model.network.trainable_variables[0].numpy()]

  def on_train_batch_end(self, batch: int, logs: object = None) -> None:
    self.theta.append(self.model.network.trainable_variables[0].numpy())


def _train_conadv(game: concave_game.Game, start: np.ndarray, *, rate: float,
                  updates: int, lag: int) -> np.ndarray:
  """Every update on all examples; theta of each, float64 [updates + 1, p].

  In a pixel range of width 255 a radius is in plain units, and a raw step of
  1 / (255 mu) moves by 1 / mu times the gradient: to the maximum.
  """
  inputs = tf.keras.Input([1, 1, game.centres.shape[1]])
  model = tf.keras.Model(inputs, _Loss(
      game.a, game.coupling.tolist(), start.tolist())(inputs))
  trainer = trainers.Trainer(
      model, methods.ConAdv(lag=lag), attacks.Pgd(
          radius=game.epsilon, step_size=1 / (255.0 * game.mu),
          direction="raw", random_start=0.0), pixel_range=(-127.5, 127.5))

  def loss(centre: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    return outputs[:, 0] - game.mu / 2.0 * tf.reduce_sum(
        (outputs[:, 1:] - centre)**2, axis=1)

  trainer.compile(tf.keras.optimizers.SGD(rate), loss)
  centres = game.centres.astype(np.float32)
  batch = tf.data.Dataset.from_tensors((centres[:, None, None], centres))
  recorder = _Recorder()
  trainer.fit(batch.repeat(), steps_per_epoch=updates, verbose=0,
              callbacks=[recorder])
  return np.float64(recorder.theta)


def _held(game: concave_game.Game, delta: np.ndarray) -> np.ndarray:
  """As perturbations wait for their update: bfloat16 shares of the radius."""
  share = tf.cast(tf.constant(delta / game.epsilon, tf.float32), tf.bfloat16)
  return game.epsilon * np.float64(tf.cast(share, tf.float32).numpy())


@pytest.mark.parametrize("lag", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_project_s_conadv_keeps_the_bounds(lag: int) -> None:
  game, start = concave_game.sample()
  rate, updates = 0.2, 30
  theta = _train_conadv(game, start, rate=rate, updates=updates, lag=lag)
  used = (theta[:-1] - theta[1:]) / rate
  old = theta[np.maximum(0, np.arange(updates) - lag)]
  best = game.perturbation(old)
  found = _held(game, best)
  # It trains on adversaries of these weights and of no others.
  np.testing.assert_allclose(
      used, game.weight_gradient(theta[:-1], found), atol=5e-5)
  # A lag that is missed by one would show.
  wrong = theta[np.maximum(0, np.arange(updates) - lag + 1)]
  assert np.abs(used - game.weight_gradient(
      theta[:-1], game.perturbation(wrong))).max() > 5e-3

  inexactness = theory.inexactness(
      best, found, game.example_gradient(old, found))
  assert 0 < inexactness < game.mu * 5 * (game.epsilon / 256)**2
  constants = game.constants(start, inexactness=inexactness)
  measured = norm(game.perturbation(theta[:-1]) - best, axis=-1)
  assert np.all(measured <= theory.adversary_distance(
      constants, 1.0) * norm(theta[:-1] - old, axis=-1) + 1e-12)
  assert np.all(norm(used - game.gradient(theta[:-1]), axis=-1)
                <= theory.gradient_error(constants, rate, lag))
  # All examples in every batch: sigma is 0, and no expectation to take.
  gap = float(game.objective(start)) - game.minimum()
  mean = np.mean(norm(game.gradient(theta[:-1]), axis=-1)**2)
  assert mean <= theory.mean_squared_gradient(
      constants, gap, updates, rate, lag)
