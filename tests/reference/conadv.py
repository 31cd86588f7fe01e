"""ConAdv, DisAdv and plain training of a two-layer network in NumPy float64.

  hidden = tanh(normalise(x w1 + b1)),  logits = hidden w2 + b2

`normalise` is the identity or batch normalisation with a scale, a shift and
moving statistics per branch. All gradients are derived by hand.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

Weights = dict[str, np.ndarray]
# (name, weight, slot, gradient) -> (new weight, new slot)
Update = Callable[[str, np.ndarray, np.ndarray, np.ndarray],
                  tuple[np.ndarray, np.ndarray]]

CLEAN = 'clean'
AUGMENTED = 'augmented'
ADVERSARIAL = 'adversarial'
EPSILON = 1e-3  # Keras's default


def momentum_update(learning_rate: float, momentum: float) -> Update:
  """As `tf.keras.optimizers.SGD`."""
  def update(name: str, w: np.ndarray, m: np.ndarray,
             g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    del name
    m = momentum * m - learning_rate * g
    return w + m, m
  return update


def _batch_norm_backward(dy: np.ndarray, normalised: np.ndarray,
                         scale: np.ndarray,
                         deviation: np.ndarray) -> np.ndarray:
  # x_hat = (z - mean(z)) / s: d/dz removes the parts of dx_hat that shift
  # the mean and stretch the variance.
  d = dy * scale
  return (d - d.mean(0) - normalised * (d * normalised).mean(0)) / deviation


def gradients(weights: Weights, x: np.ndarray, labels: np.ndarray,
              row_weights: np.ndarray, branches: list[tuple[str, int]],
              normalise: bool,
              coupled: Callable[[np.ndarray], np.ndarray] | None = None
              ) -> tuple[Weights, np.ndarray, Weights]:
  """Gradients of sum_i row_weights[i] * cross entropy_i.

  Args:
    weights: w1, b1, w2, b2 and, with `normalise`, gamma_*, beta_* per branch.
    x: [b, features].
    labels: [b].
    row_weights: [b].
    branches: (branch, rows), in order.
    normalise: whether there is batch normalisation.
    coupled: logits -> gradient to them of one more loss.

  Returns:
    (gradients of the weights, gradient of x, batch statistics mean_* and
    variance_* of the branches).
  """
  z = x @ weights['w1'] + weights['b1']
  statistics = {}
  normalised, deviation, y = np.zeros_like(z), {}, z.copy()
  pieces = []
  start = 0
  for branch, rows in branches:
    pieces.append((branch, slice(start, start + rows)))
    start += rows
  if normalise:
    for branch, rows in pieces:
      mean, variance = z[rows].mean(0), z[rows].var(0)
      statistics[f'mean_{branch}'] = mean
      statistics[f'variance_{branch}'] = variance
      deviation[branch] = np.sqrt(variance + EPSILON)
      normalised[rows] = (z[rows] - mean) / deviation[branch]
      y[rows] = (normalised[rows] * weights[f'gamma_{branch}']
                 + weights[f'beta_{branch}'])
  hidden = np.tanh(y)
  logits = hidden @ weights['w2'] + weights['b2']
  exponentials = np.exp(logits - logits.max(1, keepdims=True))
  dlogits = exponentials / exponentials.sum(1, keepdims=True)
  dlogits[np.arange(len(labels)), labels] -= 1  # softmax minus one-hot
  dlogits *= row_weights[:, None]
  if coupled:
    dlogits = dlogits + coupled(logits)
  dy = dlogits @ weights['w2'].T * (1 - hidden**2)
  result = {name: np.zeros_like(w) for name, w in weights.items()}
  dz = dy.copy()
  if normalise:
    for branch, rows in pieces:
      result[f'gamma_{branch}'] = (dy[rows] * normalised[rows]).sum(0)
      result[f'beta_{branch}'] = dy[rows].sum(0)
      dz[rows] = _batch_norm_backward(
          dy[rows], normalised[rows], weights[f'gamma_{branch}'],
          deviation[branch])
  result.update(w1=x.T @ dz, b1=dz.sum(0), w2=hidden.T @ dlogits,
                b2=dlogits.sum(0))
  return result, dz @ weights['w1'].T, statistics


@dataclasses.dataclass
class Twin:
  """A run; `weights` and `moving` change in place.

  Attributes:
    weights: see `gradients`.
    moving: mean_* and variance_* of each branch.
    update: the optimizer.
    normalise: whether there is batch normalisation.
    lag: None is plain training, 0 is DisAdv.
    radius: of the linf ball, in units of the images, which span 0..1.
    adversarial_weight: w of (1 - w) * clean + w * adversarial.
    fraction: share of the rows that are attacked.
    shared: normalises clean and adversarial rows together (one branch).
    momentum: of the moving statistics.
    every: batches from one attack to the next; those between take the signs
      of the last perturbation.
  """

  weights: Weights
  moving: Weights
  update: Update
  normalise: bool
  lag: int | None = None
  radius: float = 0.0
  adversarial_weight: float = 0.5
  fraction: float = 1.0
  shared: bool = False
  momentum: float = 0.99
  every: int = 1

  def __post_init__(self) -> None:
    self._slots = {n: np.zeros_like(w) for n, w in self.weights.items()}
    self._history = [dict(self.weights)]  # theta_0, theta_1, ...

  def _attack(self, weights: Weights, x: np.ndarray,
              labels: np.ndarray) -> np.ndarray:
    # FGSM on the sum of losses; sign(g) * radius, clipped to pixels.
    branch = CLEAN if self.shared else ADVERSARIAL
    gradient = gradients(weights, x, labels, np.ones(len(x)),
                         [(branch, len(x))], self.normalise)[1]
    return np.clip(x + self.radius * np.sign(gradient), 0, 1)

  def step(self, x: np.ndarray, labels: np.ndarray,
           augmented: np.ndarray | None = None) -> None:
    """Update t on batch t, and on a second view of it where there is one."""
    rows = len(x)
    row_weights = np.full(rows, 1 / rows)
    branches = [(CLEAN, rows)]
    if self.lag is not None:
      copies = max(1, round(self.fraction * rows))
      time = max(0, len(self._history) - 1 - self.lag)
      if (len(self._history) - 1) % self.every == 0:
        adversary = self._attack(self._history[time], x[:copies],
                                 labels[:copies])
        self._signs = np.sign(adversary - x[:copies])
      else:
        adversary = np.clip(x[:copies] + self.radius * self._signs, 0, 1)
      views, view_labels = [x], [labels]
      if augmented is not None:
        views.append(augmented)
        view_labels.append(labels)
        branches.append((AUGMENTED, rows))
      natural = (1 - self.adversarial_weight) / len(views)
      row_weights = np.concatenate(
          [np.full(rows, natural / rows)] * len(views)
          + [np.full(copies, self.adversarial_weight / copies)])
      x = np.concatenate([*views, adversary])
      labels = np.concatenate([*view_labels, labels[:copies]])
      branches = ([(CLEAN, rows + copies)] if self.shared
                  else [*branches, (ADVERSARIAL, copies)])
    changes, _, statistics = gradients(
        self.weights, x, labels, row_weights, branches, self.normalise)
    self._apply(changes, statistics)

  def _apply(self, changes: Weights, statistics: Weights) -> None:
    for name, value in statistics.items():
      self.moving[name] = (self.momentum * self.moving[name]
                           + (1 - self.momentum) * value)
    for name, w in self.weights.items():
      self.weights[name], self._slots[name] = self.update(
          name, w, self._slots[name], changes[name])
    self._history.append(dict(self.weights))


@dataclasses.dataclass
class TwoViewsTwin(Twin):
  """Plain training on clean and augmented rows, half of the loss each."""

  def step(self, x: np.ndarray, labels: np.ndarray,
           augmented: np.ndarray | None = None) -> None:
    """Update t on both views of batch t."""
    rows = len(x)
    changes, _, statistics = gradients(
        self.weights, np.concatenate([x, augmented]), np.tile(labels, 2),
        np.full(2 * rows, 1 / (2 * rows)),
        [(CLEAN, 2 * rows)] if self.shared
        else [(CLEAN, rows), (AUGMENTED, rows)], self.normalise)
    self._apply(changes, statistics)


@dataclasses.dataclass
class NextBatchTwin(Twin):
  """Trains on the clean batch t and the adversary of batch t - 1.

  Attributes:
    recycled: the adversary comes from the clean rows of the training pass,
      not from an attack; with lag 0 it is trained on in the same update, and
      `shared` normalises its rows on their own, with the clean branch's
      variables, whose moving statistics take the mean of both.
  """

  recycled: bool = False

  def __post_init__(self) -> None:
    super().__post_init__()
    self._waiting: tuple[np.ndarray, np.ndarray] | None = None

  def step(self, x: np.ndarray, labels: np.ndarray,
           augmented: np.ndarray | None = None) -> None:
    """Update t on batch t, and on a second view of it where there is one."""
    rows = len(x)
    copies = max(1, round(self.fraction * rows))
    views = [(CLEAN, x)]
    if augmented is not None:
      views.append((AUGMENTED, augmented))
    share = 1 - self.adversarial_weight
    if self._waiting is None and self.lag:
      share = 1.0  # nothing to train on beside it
    changes, dx, statistics = gradients(
        self.weights, np.concatenate([v for _, v in views]),
        np.concatenate([labels] * len(views)),
        np.full(rows * len(views), share / rows / len(views)),
        [(branch, rows) for branch, _ in views], self.normalise)
    if self.recycled:
      adversary = np.clip(
          x[:copies] + self.radius * np.sign(dx[:copies]), 0, 1)
    else:
      time = max(0, len(self._history) - self.lag)
      gradient = gradients(
          self._history[time], x[:copies], labels[:copies], np.ones(copies),
          [(ADVERSARIAL, copies)], self.normalise)[1]
      adversary = np.clip(x[:copies] + self.radius * np.sign(gradient), 0, 1)
    made = (adversary, labels[:copies])
    trained = self._waiting if self.lag else made
    self._waiting = made
    if trained is not None:
      more, _, own = gradients(
          self.weights, *trained,
          np.full(copies, self.adversarial_weight / copies),
          [(CLEAN if self.shared else ADVERSARIAL, copies)], self.normalise)
      changes = {name: g + more[name] for name, g in changes.items()}
      for name, value in own.items():
        statistics[name] = (
            (statistics[name] + value) / 2 if self.shared else value)
    self._apply(changes, statistics)
