import pytest

from conadv_tf import config
from conadv_tf.evaluation import attack_names
from conadv_tf.evaluation.attack_names import Attack


@pytest.mark.parametrize("name, expected", [
    ("fgsm", Attack("fgsm", 4.0, 1, 0)),
    ("pgd20", Attack("pgd", 4.0, 20)),
    ("pgd50-10@8/2", Attack("pgd", 8.0, 50, 10, 2.0)),
    ("pgd7-0", Attack("pgd", 4.0, 7, 0)),
    ("pgd7/1.5", Attack("pgd", 4.0, 7, 1, 1.5)),
    ("noise9@2", Attack("noise", 2.0, 9)),
    ("apgd", Attack("apgd", 4.0, 100)),
    ("apgd-dlr20@255", Attack("apgd-dlr", 255.0, 20)),
    ("square", Attack("square", 4.0, 5000)),
    ("autoattack@0", Attack("autoattack", 0.0, 0)),
])
def test_names(name: str, expected: Attack) -> None:
  found = attack_names.parse(name, 4.0)
  assert found == expected
  assert attack_names.parse(found.name, 9.0) == expected
  assert found.passes > 0


@pytest.mark.parametrize("name", [
    "pgd", "pgd0", "pgd20-", "noise", "fgsm3", "fgsm-2", "square-2", "apgd/2",
    "apgd0", "autoattack5", "fab", "pgd20/2@8/3", "pgd-20"])
def test_an_unknown_name_is_told_the_known_ones(name: str) -> None:
  with pytest.raises(config.InputError) as caught:
    attack_names.parse(name, 4.0, "evaluation.attacks")
  message = str(caught.value)
  assert message.startswith("evaluation.attacks: ") and repr(name) in message
  if "@" not in name:
    assert all(known in message for known in (
        "fgsm", "pgd<steps>", "noise", "apgd", "square", "autoattack"))


@pytest.mark.parametrize("name, radius, message", [
    ("pgd20@256", 4.0, "the radius of 'pgd20@256' must be a number from 0 to "
     "255, in 1/255"),
    ("apgd@-1", 4.0, "the radius"), ("fgsm@", 4.0, "the radius"),
    ("pgd3/x", 4.0, "the step size of 'pgd3/x'"),
    ("pgd3/nan", 4.0, "the step size"),
    ("pgd20", 400.0, "the run's radius 400 is no linf radius"),
    ("pgd20", attack_names.run_radius(config.AttackConfig(
        radius=63.75, norm="l2")), "radius in l2 is no linf radius")])
def test_sizes_outside_the_pixel_range(
    name: str, radius: float, message: str) -> None:
  with pytest.raises(config.InputError, match=message):
    attack_names.parse(name, radius)


def test_a_radius_in_l2_is_none_of_names() -> None:
  made = config.AttackConfig(radius=63.75, norm="l2")
  radius = attack_names.run_radius(made)
  assert attack_names.parse("pgd20@8", radius).radius == 8
  assert list(attack_names.sweep(["pgd20"], radius, [8])) == ["pgd20@8"]
  assert attack_names.run_radius(config.AttackConfig(radius=4.0)) == 4


def test_sweeps() -> None:
  assert list(attack_names.sweep(["pgd20", "fgsm@2"], 4.0)) == [
      "pgd20", "fgsm@2"]
  found = attack_names.sweep(["pgd20/2", "fgsm"], 4.0, [2, 8], [10, 50])
  assert found == {
      f"{name}@{radius}{step}": attack_names.parse(
          f"{name}@{radius}{step}", 0.0)
      for name, radius, step in (
          ("pgd10", 2, "/2"), ("pgd50", 2, "/2"), ("pgd10", 8, "/2"),
          ("pgd50", 8, "/2"), ("fgsm", 2, ""), ("fgsm", 8, ""))}
  assert list(attack_names.sweep(["pgd5"], 4.0, (), [1, 2])) == [
      "pgd1@4", "pgd2@4"]
  assert list(attack_names.sweep(["autoattack", "square9"], 4.0, [2, 8])) == [
      "autoattack@2", "autoattack@8", "square9@2", "square9@8"]
  for arguments, message in (
      ((["pgd5@2"], 4.0, [8]), "has a radius of its own"),
      ((["pgd5"], 4.0, [300]), "--radii: the radius"),
      ((["pgd5"], 4.0, [], [0]), "--steps: must be at least 1, got 0")):
    with pytest.raises(config.InputError, match=message):
      attack_names.sweep(*arguments)
