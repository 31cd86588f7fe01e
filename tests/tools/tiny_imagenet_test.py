"""A miniature of the published zip file, arranged and read."""

import pathlib
import zipfile

import numpy as np
import pytest

from conadv_tf.config import DataConfig, InputError
from conadv_tf.data import image_folder, pipeline
from tests import commands, record_files
from tools import tiny_imagenet_files

_TOP = "tiny-imagenet-200"
_CLASSES = ("n00000003", "n00000001")  # not in the order of their names
_ANNOTATIONS = f"{_TOP}/val/val_annotations.txt"


def _members() -> dict[str, bytes]:
  """3 training and 2 validation images of 2 classes, of the class's colour."""
  members = {f"{_TOP}/wnids.txt": b"\n".join(c.encode() for c in _CLASSES)}
  lines = []
  for number, name in enumerate(_CLASSES):
    color = record_files.jpeg(100 * (number + 1), (64, 64))
    members[f"{_TOP}/train/{name}/{name}_boxes.txt"] = b"box"
    for i in range(3):
      members[f"{_TOP}/train/{name}/images/{name}_{i}.JPEG"] = color
    for i in range(2):
      image = f"val_{2 * i + number}.JPEG"
      members[f"{_TOP}/val/images/{image}"] = color
      lines.append(f"{image}\t{name}\t0\t0\t63\t63\n")
  members[f"{_TOP}/test/images/test_0.JPEG"] = color
  members[_ANNOTATIONS] = "".join(lines).encode()
  return members


def _zip(path: pathlib.Path, members: dict[str, bytes]) -> str:
  with zipfile.ZipFile(path, "w") as file:
    for name, content in members.items():
      file.writestr(name, content)
  return str(path)


def test_becomes_a_folder_that_is_read(tmp_path: pathlib.Path) -> None:
  archive = _zip(tmp_path / "tiny.zip", _members())
  output = tmp_path / "deep" / "images"
  assert tiny_imagenet_files.arrange(archive, str(output)) == {
      "train": 6, "validation": 4}
  assert len(list(output.rglob("*.JPEG"))) == 10
  assert not list(tmp_path.rglob("*.partial"))
  splits = image_folder.load(DataConfig(
      name="image_folder", path=str(output), image_size=64, num_classes=2,
      train_examples=6, validation_examples=4))
  assert splits.train.class_names == tuple(sorted(_CLASSES))
  for split in (splits.train, splits.validation):
    (images, labels, _), = pipeline.evaluation_dataset(
        split, split.num_examples).as_numpy_iterator()
    # The second class by its name is the first of the list, with colour 100.
    np.testing.assert_allclose(
        images.mean(axis=(1, 2, 3)), np.where(labels == 1, 100, 200), atol=2)


def test_the_command(tmp_path: pathlib.Path) -> None:
  archive = _zip(tmp_path / "tiny.zip", _members())
  flags = (f"--zip={archive}", f"--output={tmp_path / 'images'}")
  done = commands.run("tools.tiny_imagenet", *flags)
  assert done.code == 0
  assert done.out == (
      f"{tmp_path / 'images'}: 6 training and 4 validation images\n")
  again = commands.run("tools.tiny_imagenet", *flags).refusal()
  assert "is there already; remove it" in again
  assert "--output is missing" in commands.run(
      "tools.tiny_imagenet", flags[0]).refusal()


@pytest.mark.parametrize("changes, words", [
    ({_ANNOTATIONS: None}, "has no train/<class>/images, val/images or"),
    ({_ANNOTATIONS: b"val_0.JPEG\tn00000003\n"}, "has no class for val_"),
    ({_ANNOTATIONS: b"val_0.JPEG\tn00000009\n"}, "names no class of the"),
    ({_ANNOTATIONS: b"val_0.JPEG"}, "names no class of the"),
    ({_ANNOTATIONS: b"\xff"}, "utf-8")])
def test_refuses_other_contents(
    changes: dict[str, bytes | None], words: str, tmp_path: pathlib.Path
) -> None:
  members = {name: content for name, content in (_members() | changes).items()
             if content is not None}
  archive = _zip(tmp_path / "tiny.zip", members)
  with pytest.raises(InputError, match=words):
    tiny_imagenet_files.arrange(archive, str(tmp_path / "images"))
  assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.zip"]


def test_refuses_what_is_no_zip_file_and_a_damaged_one(
    tmp_path: pathlib.Path) -> None:
  with pytest.raises(InputError, match="No such file"):
    tiny_imagenet_files.arrange(
        str(tmp_path / "no.zip"), str(tmp_path / "images"))
  path = tmp_path / "tiny.zip"
  path.write_bytes(b"no zip file")
  with pytest.raises(InputError, match="not a zip file"):
    tiny_imagenet_files.arrange(str(path), str(tmp_path / "images"))
  _zip(path, _members())
  record_files.flip_bit(path, path.read_bytes().index(b"\xff\xd8\xff") + 20)
  with pytest.raises(InputError, match="Bad CRC-32"):
    tiny_imagenet_files.arrange(str(path), str(tmp_path / "images"))
  assert not (tmp_path / "images").exists()
  assert not list(tmp_path.rglob("*.partial"))
