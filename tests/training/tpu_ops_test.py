"""Every step is something that a TPU could run, as far as a trace tells.

No TPU is needed: the steps are traced under a TPUStrategy (`tests.fake_tpu`),
so what is looked at is what TensorFlow would send to a core, with a TPU's own
variables and reductions. `tests.tpu_programs` does the looking.
"""

from collections.abc import Callable
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import components
from conadv_tf import config as config_lib
from conadv_tf.attacks import gradient
from conadv_tf.distribute import compression
from conadv_tf.evaluation import clean, robust
from conadv_tf.methods import method as methods_base
from conadv_tf.objectives import per_example
from conadv_tf.training import checkpoint, perturbation
from conadv_tf.training import trainer as trainers
from tests import fake_tpu, tpu_programs
from tests.methods import running


def test_the_list_fits_this_tensorflow() -> None:
  names = tpu_programs.listed()
  assert len(names) == len(set(names)) > 300
  wheel = set(names) - tpu_programs.CROSS_REPLICA
  assert len(names) - len(wheel) == 3
  assert not [name for name in wheel if not tpu_programs.kernels_of(name)]
  assert not set(names) & {
      'PyFunc', 'EagerPyFunc', 'Print', 'PrintV2', 'StringFormat', 'Assert',
      'CheckNumerics', 'WriteSummary', 'ScalarSummary', 'IteratorGetNext',
      'MapDataset', 'DecodeJpeg', 'AsString', 'Where', 'Unique',
      'CollectiveReduceV2'}


# ---- Traced steps.


@pytest.fixture(scope='module', name='tpu')
def _tpu() -> tf.distribute.Strategy:
  return fake_tpu.strategy(4)


def _dataset(batch_size: int, method: methods_base.Method
             ) -> tf.data.Dataset:
  """(uint8 images, int64 labels, weights), as the pipeline makes them."""
  def element(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return (tf.cast(x * 255, tf.uint8), tf.cast(y, tf.int64),
            tf.ones([batch_size]))

  if method.perturbs:
    return running.dataset(batch_size, method=method).map(
        lambda x, y: (x, y, tf.ones([batch_size])))
  return running.with_views(
      running.dataset(batch_size).map(element), method)


def _traced(trainer: trainers.Trainer, monkeypatch: pytest.MonkeyPatch,
            several: bool = False) -> dict[str, Any]:
  """What `fit` would run, by name: traced in the middle of a real `fit`.

  Args:
    trainer: compiled.
    monkeypatch: undone after the test.
    several: adds the loop over several updates, around the same update.
  """
  traced = {}

  def execute(self: trainers.Trainer, iterator: Any) -> dict[str, float]:
    loop = self._loop
    traced['update'] = loop.one.get_concrete_function(iterator)
    if several:
      traced['updates'] = loop._many.get_concrete_function(
          iterator, tf.constant(3))
    if self.method.holds:
      traced['prime'] = loop.prime.get_concrete_function(
          iterator, tf.constant(1))
    return {'loss': 0.0}

  monkeypatch.setattr(trainers.Trainer, '_execute', execute)
  trainer.fit(_dataset(16, trainer.method), steps_per_epoch=1, verbose=0)
  assert len(traced) == (
      1 + several + trainer.method.holds)
  return traced


class _Case(NamedTuple):
  """A way to train.

  Attributes:
    method: fields of the method's configuration.
    attack: fields of the attack.
    options: of the trainer.
    optimizer: fields of the optimizer's configuration.
    precision: Keras's policy.
    several: whether to look at a loop of several updates.
  """

  method: dict[str, Any]
  attack: dict[str, Any] = {}
  options: dict[str, Any] = {}
  optimizer: dict[str, Any] = {'name': 'lars'}
  precision: str = 'float32'
  several: bool = False

  def trainer(self, strategy: tf.distribute.Strategy | None = None,
              **options: Any) -> trainers.Trainer:
    """A compiled trainer."""
    optimizer = config_lib.OptimizerConfig(**self.optimizer)
    tf.keras.mixed_precision.set_global_policy(self.precision)
    return running.make(
        components.METHODS[self.method['name']](
            config_lib.ExperimentConfig(
                method=config_lib.MethodConfig(**self.method))),
        strategy=strategy,
        optimizer=lambda: components.OPTIMIZERS[optimizer.name](
            optimizer, 0.1),
        attack=gradient.Pgd(**{'radius': 16.0, **self.attack}),
        options={'deterministic': False, 'pixel_range': (0.0, 255.0),
                 **self.options}, **options)


_PGD = dict(steps=3, norm='l2', direction='l2', target='random',
            mode='moving', random_start=0.8)
_BITS = compression.Compression(
    8, bucket=16, sides=2, per='virtual_replica', error_feedback=True)
_CASES = {
    'vanilla': _Case(dict(name='vanilla'), several=True),
    'vanilla, 2 streams': _Case(dict(name='vanilla', augmented_stream='split')),
    'disadv, every option': _Case(
        dict(name='disadv', bn_branches=1, adversarial_fraction=0.5), _PGD,
        dict(bn_group_size=2), dict(name='adamw', ema_momentum=0.99)),
    'conadv, micro batches in bfloat16': _Case(
        dict(name='conadv'), dict(steps=2),
        dict(micro_batches=2, reduce_dtype='bfloat16'), dict(name='sgd'),
        'mixed_bfloat16', several=True),
    'conadv, lag 2, 3 streams': _Case(
        dict(name='conadv', lag=2, bn_branches=3,
             rebalance_branch_gradients=True)),
    'conadv, sequential, deterministic': _Case(
        dict(name='conadv', lag=2, execution='sequential'),
        dict(direction='raw', norm='l2'), dict(deterministic=True)),
    'conadv, lag 0': _Case(dict(name='conadv', lag=0)),
    'conadv, next batch, separate': _Case(
        dict(name='conadv', lag=2, pairing='next_batch'),
        options=dict(training_pass='separate')),
    'recycled': _Case(dict(name='conadv', adversary='recycled')),
    'absa, growing': _Case(
        dict(name='absa', lag=1), options=dict(grows=True), several=True),
    'vanilla, 8 bits': _Case(
        dict(name='vanilla'), options=dict(compression=_BITS)),
    'dat, trades, lamb': _Case(
        dict(name='dat', lag=1, regularizer='trades', clean_weight=1.0),
        dict(steps=2), optimizer=dict(name='lamb', trust_clip=[0.0, 10.0])),
    'scala, lag 1': _Case(
        dict(name='scala'), optimizer=dict(name='lamb'), several=True),
    'freelb, bfloat16': _Case(
        dict(name='freelb'), precision='mixed_bfloat16',
        options=dict(deterministic=True)),
    'smooth_at': _Case(
        dict(name='smooth_at', noise_copies=3),
        dict(steps=2, norm='l2', direction='l2')),
    'recycled, lag 0': _Case(
        dict(name='conadv', adversary='recycled', lag=0), several=True),
}
_SLOW = ('conadv, lag 2, 3 streams', 'conadv, sequential, deterministic',
         'conadv, lag 0', 'conadv, next batch, separate', 'recycled',
         'recycled, lag 0', 'vanilla, 8 bits')
_ALL = pytest.mark.parametrize('case', [
    pytest.param(case, id=name,
                 marks=[pytest.mark.slow] if name in _SLOW else [])
    for name, case in _CASES.items()])


def test_every_method_has_a_case() -> None:
  assert {case.method['name'] for case in _CASES.values()} == set(
      components.METHODS)


@_ALL
def test_a_tpu_could_run_the_updates(
    case: _Case, tpu: tf.distribute.Strategy,
    monkeypatch: pytest.MonkeyPatch) -> None:
  traced = _traced(case.trainer(tpu), monkeypatch, case.several)
  host = tpu_programs.HOST
  if 'grows' in case.options:
    host |= {'Mul'}  # micro batches of an initial batch, by the ratio
  for phase, function in traced.items():
    assert not tpu_programs.faults(function, phase, host)
    # A TPU has 32 bits at most and makes do: only where it was asked for.
    uses_float64 = tf.float64 in tpu_programs.types_on_core(function)
    assert uses_float64 == (phase != 'prime' and case.options.get(
        'deterministic', False))
    # One vector is summed over the cores (two, where gradients travel in
    # another type), and none by an attack. Scalars: metrics.
    sums = [op for op, _, _ in tpu_programs.nodes(function.graph)
            if op.type == 'CrossReplicaSum']
    assert not [op.name for op in sums if 'attack' in op.name]
    vectors = [op for op in sums if op.outputs[0].shape.rank == 1]
    assert len(vectors) == (phase != 'prime') * (
        1 + bool({'reduce_dtype', 'compression'} & set(case.options)))


def test_held_batches_are_read_before_they_are_replaced(
    tpu: tf.distribute.Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
  # They are raw ops on handles; nothing but the trace orders them.
  traced = _traced(_CASES['conadv, lag 0']._replace(
      method=dict(name='conadv')).trainer(tpu), monkeypatch)
  operations = traced['update'].graph.get_operations()
  reads = {op.inputs[0].name: op for op in operations
           if op.type == 'ResourceGather'}
  writes = {op.inputs[0].name: op for op in operations
            if op.type == 'ResourceScatterUpdate'}
  assert reads.keys() == writes.keys() and len(reads) == 4
  for name, read in reads.items():
    before, todo = set(), [writes[name]]
    while todo:
      op = todo.pop()
      if op not in before:
        before.add(op)
        todo += [tensor.op for tensor in op.inputs] + op.control_inputs
    assert read in before


def test_a_tpu_could_make_the_pictures(tpu: tf.distribute.Strategy) -> None:
  perturb = perturbation.Perturb(_CASES['conadv, lag 0'].trainer(tpu))
  function = perturb._run.get_concrete_function(
      tf.zeros([4, 8, 8, 3], tf.uint8), tf.zeros([4], tf.int64))
  assert not tpu_programs.faults(function, 'pictures')


@pytest.mark.parametrize('attack', ['', 'pgd3'])
def test_a_tpu_could_run_the_evaluation(
    attack: str, tpu: tf.distribute.Strategy) -> None:
  trainer = _CASES['vanilla'].trainer(tpu)
  loss = per_example.per_example_loss(running.LOSS)
  evaluator = clean.Evaluator(trainer.network, loss, tpu)
  if attack:
    evaluator = robust.RobustEvaluator(
        trainer.network, loss, robust.named_attack(attack, 4.0), tpu, 'clean',
        0, (0.0, 255.0))
  traced = []

  def step(totals: Any, element: Any) -> Any:
    traced.append(evaluator_step.get_concrete_function(totals, element))
    return tf.constant([1, 1, 1], tf.int64), tf.zeros([], tf.float64)

  evaluator_step, evaluator._step = evaluator._step, step
  evaluator(_dataset(16, trainer.method).take(1))
  assert len(traced) == 1
  assert not tpu_programs.faults(
      traced[0], 'evaluation', tpu_programs.HOST_OF_EVALUATION)


# ---- What must be found.


def _with_python(x: tf.Tensor) -> tf.Tensor:
  y = tf.py_function(lambda v: v, [x], tf.float32)
  y.set_shape(x.shape)
  return y


def _with_print(x: tf.Tensor) -> tf.Tensor:
  with tf.control_dependencies([tf.print(x)]):
    return tf.identity(x)


def _with_assertion(x: tf.Tensor) -> tf.Tensor:
  with tf.control_dependencies([tf.debugging.Assert(x[0] < 9, [x])]):
    return tf.identity(x)


def _in_a_loop(x: tf.Tensor) -> tf.Tensor:
  return tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, _with_print(x)),
                       (0, x))[1]


@pytest.mark.parametrize('step, fault', [
    (_with_python, 'EagerPyFunc .*is no op of a TPU'),
    (_with_print, 'PrintV2 .*is no op of a TPU'),
    (_in_a_loop, 'PrintV2 while/.*is no op of a TPU'),
    (_with_assertion, 'Assert .*is no op of a TPU'),
    (lambda x: tf.debugging.check_numerics(x, 'x'),
     'CheckNumerics .*is no op of a TPU'),
    (lambda x: tf.where(x > 0), r'Where .*has the shape \(None, 1\)'),
    (lambda x: tf.boolean_mask(x, x > 0), r'has the shape \(None,\)'),
    (lambda x: tf.strings.length(tf.constant('x')), 'makes a string'),
    (lambda x: tf.math.real(tf.cast(x, tf.complex128)), 'makes a complex128'),
    (lambda x: tf.cumsum(tf.cast(x, tf.uint8)),
     'Cumsum .*has no kernel for its types')])
def test_what_a_tpu_cannot_run_is_found(
    step: Callable[[tf.Tensor], tf.Tensor], fault: str,
    tpu: tf.distribute.Strategy) -> None:
  def good(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(x * x)

  def bad(x: tf.Tensor) -> tf.Tensor:
    return good(x) + tf.reduce_sum(tf.cast(step(x), tf.float32))

  def faults(part: Callable[[tf.Tensor], tf.Tensor]) -> list[str]:
    @tf.function(autograph=False)
    def run() -> Any:
      return tpu.run(part, args=(tf.zeros([8]),))
    return tpu_programs.faults(run.get_concrete_function(), 'step')

  assert not faults(good)
  assert [line for line in faults(bad) if re.match(f'step: .*{fault}', line)]


def test_a_bad_method_and_work_for_the_host_are_found(
    tpu: tf.distribute.Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
  trainer = _CASES['vanilla'].trainer(tpu)
  step, run = trainer.method.step, tpu.run

  def broken(*args: Any) -> methods_base.StepResult:
    result = step(*args)
    return result._replace(statistics=_with_print(result.statistics))

  def chatty(*args: Any, **kwargs: Any) -> Any:
    tf.print('another update')
    return run(*args, **kwargs)

  trainer.method.step = broken
  monkeypatch.setattr(tpu, 'run', chatty)
  for phase, function in _traced(trainer, monkeypatch, True).items():
    faults = '\n'.join(tpu_programs.faults(function, phase))
    assert re.search(f'{phase}: PrintV2 .*is no op of a TPU', faults)
    assert re.search(f'{phase}: PrintV2 .*keeps the host busy', faults)


# ---- Between updates.


def test_state_comes_back_on_every_core(tpu: tf.distribute.Strategy) -> None:
  case = _CASES['conadv, lag 2, 3 streams']._replace(
      optimizer=dict(name='adamw', ema_momentum=0.99))
  trainer = case.trainer(tpu)
  state = checkpoint.capture(trainer)
  assert len(state) > 60
  random = np.random.default_rng(0)
  changed = {name: (value + random.integers(1, 9, value.shape)).astype(
      value.dtype) for name, value in state.items()}
  checkpoint.restore(trainer, changed)
  trainer.staleness.lagged.reset(trainer.network)
  for name, variable in checkpoint._variables(trainer).items():
    expected = changed[name.replace('lagged0', 'network')]
    for value in variable.values:  # one a core
      np.testing.assert_array_equal(value.numpy(), expected)


# ---- XLA on this machine.


@pytest.mark.slow
@pytest.mark.parametrize('case', [
    pytest.param(case, id=name) for name, case in _CASES.items()])
def test_xla_compiles_the_updates(case: _Case) -> None:
  alone = {**case.options, 'bn_group_size': 1}
  trainer = case._replace(options=alone).trainer(jit_compile=True)
  before = running.values(trainer)
  trainer.fit(_dataset(16, trainer.method), steps_per_epoch=2, verbose=0)
  values = running.values(trainer)
  assert np.isfinite(values).all()
  assert np.abs(values - before).max() > 1e-4
