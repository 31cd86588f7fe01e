import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import methods
from conadv_tf.layers import network as networks
from conadv_tf.training import trainer as trainers
from tests.methods import running

keras = tf.keras
_X, _Y = running.IMAGES, running.LABELS


def _keras(model: keras.Model, **options: Any) -> keras.Model:
  options = {'loss': running.LOSS, **options}
  model.compile(keras.optimizers.SGD(0.5, momentum=0.9), metrics=['accuracy'],
                **options)
  return model


def test_vanilla_is_plain_keras() -> None:
  model = lambda: running.small_network(0)
  plain = _keras(model())
  expected = plain.fit(running.dataset(32), steps_per_epoch=4, epochs=2,
                       verbose=0, validation_data=(_X, _Y)).history
  trainer = running.make(methods.Vanilla(), model=model)
  history = trainer.fit(running.dataset(32), steps_per_epoch=4, epochs=2,
                        verbose=0, validation_data=(_X, _Y)).history
  for a, b in zip(trainer.merge().get_weights(), plain.get_weights(),
                  strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
  for key, values in expected.items():
    np.testing.assert_allclose(history[key], values, rtol=1e-5, err_msg=key)


def test_vanilla_is_plain_keras_with_a_saturated_softmax_head() -> None:
  # Keras takes the softmax's logits; a clipped probability has no gradient.
  def model() -> keras.Model:
    base = running.small_network(0)
    scaled = keras.layers.Rescaling(60.)(base.output)
    return keras.Model(base.input, keras.layers.Softmax()(scaled))

  loss = 'sparse_categorical_crossentropy'
  plain = _keras(model(), loss=loss)
  expected = plain.fit(running.dataset(32), steps_per_epoch=2, verbose=0)
  trainer = running.make(methods.Vanilla(), model=model)
  trainer.compile(keras.optimizers.SGD(0.5, momentum=0.9), loss)
  history = trainer.fit(running.dataset(32), steps_per_epoch=2, verbose=0)
  np.testing.assert_allclose(
      history.history['loss'], expected.history['loss'], rtol=1e-4)
  for a, b in zip(trainer.merge().get_weights(), plain.get_weights(),
                  strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_a_models_own_losses_count_once_an_update() -> None:
  def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.layers.Flatten(input_shape=(8, 8, 3)),
        keras.layers.Dense(5, kernel_regularizer=keras.regularizers.L2(0.1))])

  plain = _keras(model())
  expected = plain.fit(running.dataset(32), steps_per_epoch=4, verbose=0)
  for micro_batches in (1, 2):
    trainer = running.train(
        methods.Vanilla(), model=model, micro_batches=micro_batches)
    for a, b in zip(trainer.merge().get_weights(), plain.get_weights(),
                    strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
  assert expected.history['loss'][0] > 0


def test_the_original_model_is_left_alone() -> None:
  model = running.small_network()
  before = model.get_weights()
  trainer = running.train(methods.ConAdv(), model=lambda: model)
  for a, b in zip(model.get_weights(), before, strict=True):
    np.testing.assert_array_equal(a, b)
  merged = trainer.merge()
  assert np.abs(merged.get_weights()[0] - before[0]).max() > 1e-3


def test_evaluation_and_prediction_are_those_of_the_merged_model() -> None:
  trainer = running.train(methods.ConAdv())
  before = running.values(trainer)
  plain = _keras(trainer.merge())
  np.testing.assert_array_equal(
      trainer.predict(_X, batch_size=48, verbose=0),
      plain.predict(_X, batch_size=48, verbose=0))
  np.testing.assert_array_equal(
      trainer(_X, training=True), plain(_X, training=False))
  weight = np.linspace(0, 1, len(_X))
  for options in ({}, {'sample_weight': weight}):
    actual = trainer.evaluate(_X, _Y, verbose=0, return_dict=True, **options)
    expected = plain.evaluate(_X, _Y, verbose=0, return_dict=True, **options)
    assert actual.keys() == expected.keys()
    assert actual['accuracy'] == pytest.approx(expected['accuracy'])
    if not options:  # Keras divides by rows, not by weight
      assert actual['loss'] == pytest.approx(expected['loss'], rel=1e-5)
  np.testing.assert_array_equal(running.values(trainer), before)


def test_save_writes_a_plain_model(tmp_path: pathlib.Path) -> None:
  trainer = running.train(methods.ConAdv(), updates=2)
  expected = trainer.predict(_X, verbose=0)
  for name in ('model.keras', 'saved_model', 'model.h5'):
    trainer.save(tmp_path / name)
    loaded = keras.models.load_model(tmp_path / name)
    np.testing.assert_array_equal(
        loaded.predict(_X, verbose=0), expected, err_msg=name)


@pytest.mark.parametrize('name, replicas', [
    ('w.weights.h5', 1),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('w.weights.h5', 2), ('weights', 1), ('weights', 2)))])
def test_weights_are_loaded_into_every_branch(
    name: str, replicas: int, tmp_path: pathlib.Path,
    mirrored: tf.distribute.Strategy) -> None:
  trainer = running.train(methods.ConAdv(lag=2), updates=2)
  trainer.save_weights(tmp_path / name)
  other = running.make(methods.ConAdv(lag=2),
                       strategy=mirrored if replicas == 2 else None)
  other.load_weights(tmp_path / name)
  np.testing.assert_array_equal(
      other.predict(_X, verbose=0), trainer.predict(_X, verbose=0))
  for layer in other.network.layer_variables:
    for a, b in zip(layer['clean'].trainable() + layer['clean'].moving(),
                    layer['adversarial'].trainable()
                    + layer['adversarial'].moving(), strict=True):
      np.testing.assert_array_equal(networks.read(a), networks.read(b))
  plain = running.small_network()
  plain.load_weights(tmp_path / name)
  np.testing.assert_array_equal(
      plain.predict(_X, verbose=0), trainer.predict(_X, verbose=0))


@pytest.mark.parametrize('method', [
    methods.DisAdv, pytest.param(methods.Vanilla, marks=pytest.mark.slow)])
def test_a_second_fit_continues(method: Any) -> None:
  # A method without lag; the others start every fit from its own weights.
  once = running.train(method(), updates=4)
  twice = running.make(method())
  for start in (0, 2):
    twice.fit(running.dataset(32, 32 * start), steps_per_epoch=2, verbose=0)
  assert running.distance(once, twice) == 0
  twice.fit(running.dataset(16), steps_per_epoch=2, verbose=0)
  assert int(twice.step_counter) == 6


@pytest.mark.parametrize('name', [
    'conadv', pytest.param('conadv lag 2', marks=pytest.mark.slow)])
def test_compiling_again_between_fits(name: str) -> None:
  trainer = running.train(running.METHODS[name](), updates=2)
  trainer.compile(keras.optimizers.SGD(0.1), running.LOSS, metrics=['accuracy'])
  history = trainer.fit(running.dataset(32), steps_per_epoch=2, verbose=0)
  assert history.history['perturbation_linf'] == pytest.approx([16], abs=.01)
  assert int(trainer.step_counter) == 4


@pytest.mark.parametrize('replicas', [
    1, pytest.param(2, marks=pytest.mark.slow)])
def test_model_checkpoint(replicas: int, mirrored: tf.distribute.Strategy,
                          tmp_path: pathlib.Path) -> None:
  weights, whole = tmp_path / 'm.weights.h5', tmp_path / 'm.keras'
  trainer = running.make(methods.ConAdv(),
                         strategy=mirrored if replicas == 2 else None)
  trainer.fit(running.dataset(32), steps_per_epoch=2, epochs=3, verbose=0,
              validation_data=(_X, _Y), callbacks=[
                  keras.callbacks.ModelCheckpoint(
                      str(weights), save_weights_only=True),
                  keras.callbacks.ModelCheckpoint(str(whole))])
  model = running.small_network()
  model.load_weights(weights)
  for saved in (model, keras.models.load_model(whole)):
    for a, b in zip(saved.get_weights(), trainer.merge().get_weights(),
                    strict=True):
      np.testing.assert_array_equal(a, b)


def test_early_stopping_restores_the_best_weights() -> None:
  seen = []

  class Spy(keras.callbacks.Callback):

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
      seen.append(running.values(self.model))

  trainer = running.make(methods.ConAdv(),
                         model=lambda: running.small_network(0, False),
                         optimizer=lambda: keras.optimizers.SGD(3.0))
  stop = keras.callbacks.EarlyStopping(
      monitor='step_like', mode='max', patience=1, restore_best_weights=True)

  class Falling(keras.callbacks.Callback):
    """Makes epoch 0 the best."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
      logs['step_like'] = -epoch

  trainer.fit(running.dataset(32), steps_per_epoch=2, epochs=5, verbose=0,
              callbacks=[Spy(), Falling(), stop])
  assert stop.stopped_epoch == 1 and len(seen) == 2
  assert np.abs(seen[0] - seen[1]).max() > 1e-3
  np.testing.assert_array_equal(running.values(trainer), seen[0])


def test_get_and_set_weights_cover_the_network() -> None:
  trainer = running.train(methods.ConAdv(lag=2), updates=2)
  saved, before = trainer.get_weights(), running.values(trainer)
  trainer.fit(running.dataset(32), steps_per_epoch=2, verbose=0)
  assert np.abs(running.values(trainer) - before).max() > 1e-3
  trainer.set_weights(saved)
  np.testing.assert_array_equal(running.values(trainer), before)


def test_learning_rate_scheduler_and_tensorboard(
    tmp_path: pathlib.Path) -> None:
  rates = {0: 0.0, 1: 0.5}
  trainer = running.make(methods.ConAdv(), model=lambda: running.small_network(
      0, normalise=False))
  start = running.values(trainer)
  changes = []

  class Spy(keras.callbacks.Callback):

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
      changes.append(float(np.abs(running.values(trainer) - start).max()))

  trainer.fit(running.dataset(32), steps_per_epoch=2, epochs=2, verbose=0,
              callbacks=[keras.callbacks.LearningRateScheduler(rates.get),
                         Spy(), keras.callbacks.TensorBoard(str(tmp_path))])
  assert changes[0] == 0 and changes[1] > 1e-3
  assert list(tmp_path.rglob('events*'))


def test_terms_of_a_step() -> None:
  history = running.make(
      methods.ConAdv(), model=lambda: running.small_network(0, False)).fit(
          running.dataset(32), steps_per_epoch=3, verbose=0).history
  assert set(history) == {
      'loss', 'accuracy', 'clean_loss', 'adversarial_loss', 'gradient_norm',
      'adversarial_accuracy', 'perturbation_linf', 'perturbation_l2'}
  np.testing.assert_allclose(
      history['loss'][0], (history['clean_loss'][0]
                           + history['adversarial_loss'][0]) / 2, rtol=1e-5)


def test_bad_arguments_are_errors() -> None:
  model = running.small_network()
  with pytest.raises(ValueError, match='pixel_range.*1.*0'):
    trainers.Trainer(model, pixel_range=(1., 0.))
  with pytest.raises(ValueError, match='micro_batches'):
    trainers.Trainer(model, micro_batches=0)
  trainer = trainers.Trainer(model)
  with pytest.raises(ValueError, match='legacy'):
    trainer.compile(keras.optimizers.legacy.SGD(0.1), running.LOSS)
  with pytest.raises(ValueError, match='loss'):
    trainer.compile('sgd')
  trainer.compile('sgd', running.LOSS)
  with pytest.raises(NotImplementedError, match='fit'):
    trainer.train_on_batch(_X[:4], _Y[:4])


def test_jit_compile_on_several_cpu_replicas_is_refused(
    mirrored: tf.distribute.Strategy) -> None:
  with pytest.raises(ValueError, match='jit_compile'):
    running.make(methods.Vanilla(), strategy=mirrored, jit_compile=True)
