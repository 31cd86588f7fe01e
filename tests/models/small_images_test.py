"""Networks of the ABSA paper: counts, order of layers, refusals."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conadv_tf import components, config

SLOW = pytest.mark.slow


def build(name: str, size: int, classes: int, **args: Any) -> tf.keras.Model:
  return components.build_model(
      config.ModelConfig(name=name, args=args), (size, size, 3), classes)


def images(count: int, size: int) -> np.ndarray:
  return np.random.uniform(0, 255, (count, size, size, 3)).astype(np.float32)


def count(model: tf.keras.Model) -> int:
  return sum(v.shape.num_elements() for v in model.trainable_variables)


# Model, pixels, classes, arguments, parameters. PyTorch, where the numbers
# come from, counts no moving statistics.
@pytest.mark.parametrize("name, size, classes, args, expected", [
    ("svhn_c1", 32, 10, {}, 1_756_682),
    ("resnet18_cifar", 32, 10, {}, 11_173_962),
    pytest.param("resnet18_cifar", 32, 100, {}, 11_220_132, marks=SLOW),
    pytest.param("preact_resnet18", 32, 10, {}, 11_171_146, marks=SLOW),
    ("preact_resnet18", 32, 10, {"final_norm": True}, 11_172_170),
    ("resnet20", 32, 10, {"shortcut": "projection"}, 272_474),
    ("wrn_16_4", 32, 10, {}, 2_748_890),
    pytest.param("wrn_16_4", 32, 100, {}, 2_772_020, marks=SLOW),
    pytest.param("wrn_28_10", 32, 10, {}, 36_479_194, marks=SLOW),
    ("squeezenext23", 32, 10, {}, 588_666),
    pytest.param("squeezenext23", 32, 100, {}, 600_276, marks=SLOW),
    pytest.param("squeezenext23", 32, 10, {"width": 2.0}, 2_313_962,
                 marks=SLOW),
    pytest.param("squeezenext23_v5", 32, 10, {}, 786_426, marks=SLOW),
    pytest.param("resnet50", 64, 200, {}, 23_917_832, marks=SLOW),
    pytest.param("resnet50", 224, 1000, {}, 25_557_032, marks=SLOW),
    ("alexnet", 224, 1000, {}, 61_100_840),
    ("resnet18", 224, 1000, {}, 11_689_512)])
def test_parameters(name: str, size: int, classes: int, args: dict[str, Any],
                    expected: int) -> None:
  assert count(build(name, size, classes, **args)) == expected


@pytest.mark.parametrize("name, norms", [
    ("svhn_c1", 2), ("resnet18_cifar", 20), ("wrn_16_4", 13),
    ("preact_resnet18", 16),
    # 21 blocks of 5, 4 shortcuts, both ends.
    pytest.param("squeezenext23", 111, marks=SLOW)])
def test_normalises_as_pytorch_does(name: str, norms: int) -> None:
  found = [layer for layer in build(name, 8, 10).layers
           if isinstance(layer, tf.keras.layers.BatchNormalization)]
  assert len(found) == norms
  # PyTorch's momentum of 0.1 is the share of the new statistics.
  assert {(n.momentum, n.epsilon) for n in found} == {(0.9, 1e-5)}


@pytest.mark.parametrize("name, layers, expected", [
    ("resnet18_cifar", ["stem_relu", *(
        f"stage{s}_block2_relu" for s in (1, 2, 3, 4))],
     [(32, 64), (32, 64), (16, 128), (8, 256), (4, 512)]),
    ("preact_resnet18", ["stem_conv", *(
        f"stage{s}_block2_add" for s in (1, 2, 3, 4))],
     [(32, 64), (32, 64), (16, 128), (8, 256), (4, 512)]),
    ("wrn_16_4", ["stem_conv", *(
        f"stage{s}_block2_add" for s in (1, 2, 3))],
     [(32, 16), (32, 64), (16, 128), (8, 256)]),
    pytest.param(
        "squeezenext23", ["stem_relu", *(
            f"stage{s}_block1_add" for s in (1, 2, 3, 4)), "last_relu"],
        [(32, 64), (32, 32), (16, 64), (8, 128), (4, 256), (4, 128)],
        marks=SLOW),
    ("svhn_c1", ["conv1_pool", "conv2_pool"], [(16, 64), (8, 64)])])
def test_shapes(name: str, layers: list[str],
                expected: list[tuple[int, int]]) -> None:
  model = build(name, 32, 10)
  assert [model.get_layer(layer).output_shape[1:] for layer in layers] == [
      (size, size, width) for size, width in expected]


def test_alexnet_s_maps_at_224_pixels() -> None:
  model = build("alexnet", 224, 10)
  assert [model.get_layer(f"conv{n}").output_shape[1:] for n in range(1, 6)
          ] == [(55, 55, 64), (27, 27, 192), (13, 13, 384), (13, 13, 256),
                (13, 13, 256)]
  assert model.get_layer("flatten").output_shape == (None, 6 * 6 * 256)


def test_alexnet_drops_only_in_training_and_only_if_asked() -> None:
  x = images(2, 63)
  model = build("alexnet", 63, 10)
  np.testing.assert_array_equal(model(x), model(x))
  assert np.abs(model(x, training=True) - model(x, training=True)).max() > 0
  model = build("alexnet", 63, 10, dropout=0.0)
  np.testing.assert_array_equal(model(x, training=True), model(x))


def test_alexnet_starts_uniform_within_the_root_of_its_fan_in() -> None:
  model = build("alexnet", 63, 10)
  for name, fan_in in (("conv2", 64 * 25), ("dense2", 4096)):
    kernel = model.get_layer(name).kernel.numpy()
    np.testing.assert_allclose(
        [kernel.min(), kernel.max(), kernel.std() * 3**0.5],
        np.array([-1, 1, 1]) * fan_in**-0.5, rtol=0.01)


def test_svhn_c1_normalises_after_the_relu() -> None:
  model = build("svhn_c1", 8, 10)
  taps = tf.keras.Model(model.input, [
      model.get_layer(f"conv1_{part}").output for part in ("relu", "bn")])
  before, after = taps(images(4, 8), training=True)
  expected = (before - np.mean(before, (0, 1, 2))) / np.sqrt(
      np.var(before, (0, 1, 2)) + 1e-5)
  assert np.min(before) == 0 and np.min(after) < -0.1
  np.testing.assert_allclose(after, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["wrn_16_4", "preact_resnet18"])
def test_a_block_projects_what_is_activated(name: str) -> None:
  model = build(name, 8, 10)
  block = "stage2_block1"
  taps = tf.keras.Model(model.input, [model.get_layer(name).output for name in (
      f"{block}_1_relu", f"{block}_2_conv", f"{block}_add")])
  activated, branch, total = (t.numpy() for t in taps(images(2, 8)))
  kernel = model.get_layer(f"{block}_shortcut_conv").kernel.numpy()[0, 0]
  np.testing.assert_allclose(
      total - branch, activated[:, ::2, ::2] @ kernel, rtol=1e-3, atol=1e-3)


def test_a_block_of_squeezenext_keeps_its_sum_positive() -> None:
  model = build("squeezenext23", 8, 10)
  taps = tf.keras.Model(model.input, [
      layer.output for layer in model.layers if layer.name.endswith("_add")])
  sums = taps(images(2, 8), training=True)
  assert len(sums) == 21
  assert min(float(tf.reduce_min(s)) for s in sums) >= 0


def test_projection_of_a_residual_network() -> None:
  model = build("resnet20", 8, 10, shortcut="projection")
  taps = tf.keras.Model(model.input, [
      model.get_layer("stage1_block3_relu").output,
      model.get_layer("stage2_block1_shortcut_conv").output])
  before, after = (t.numpy() for t in taps(images(2, 8)))
  kernel = model.get_layer("stage2_block1_shortcut_conv").kernel.numpy()[0, 0]
  np.testing.assert_allclose(
      after, before[:, ::2, ::2] @ kernel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, args, words", [
    ("resnet20", {"shortcut": "none"},
     "model.args.shortcut is 'none': it must be zeros or projection"),
    ("resnet18_cifar", {"stages": 3}, "model.args.stages"),
    ("preact_resnet18", {"final_norm": "yes"},
     "model.args.final_norm is 'yes': it must be true or false"),
    ("wrn_16_4", {"dropout": 1.0}, "model.args.dropout is 1.0"),
    ("wrn_16_4", {"widening": 8}, "model.args.widening"),
    ("squeezenext23", {"width": 0.1},
     "model.args.width is 0.1: it must be a number of 0.25 or more"),
    ("squeezenext23", {"blocks": 3}, "model.args.blocks"),
    ("svhn_c1", {"dropout": 0.5}, "model.args.dropout: svhn_c1 takes no such"),
    ("svhn_c1", {"batch_norm_momentum": 1.0}, "model.args.batch_norm_momentum"),
    ("alexnet", {"dropout": -0.5}, "model.args.dropout is -0.5"),
    ("alexnet", {}, "alexnet takes images of 63 pixels or more, the data has "
     "32x32; set data.image_size")])
def test_wrong_arguments(
    name: str, args: dict[str, Any], words: str) -> None:
  with pytest.raises(config.InputError) as error:
    build(name, 32, 10, **args)
  assert words in str(error.value)
