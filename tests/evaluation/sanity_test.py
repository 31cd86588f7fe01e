import pytest

from conadv_tf.evaluation import attack_names, sanity


def failed(**accuracies: float) -> list[str]:
  """Failed checks; names are written `pgd10_8` for pgd10@8."""
  rows = []
  for key, accuracy in accuracies.items():
    name = key.replace("_", "@")
    attack = attack_names.parse(name.replace("x", "-"), 8.0)
    rows.append(sanity.Row(attack.name, attack, accuracy, 400))
  return [check.name for check in sanity.checks(rows) if not check.passed]


# Two standard errors of a difference at 0.5 and 400 examples: 0.0707.
@pytest.mark.parametrize("accuracies, expected", [
    (dict(fgsm_8=0.6, pgd10_8=0.5, pgd40_8=0.48, pgd10_16=0.3, square200_8=0.7,
          pgd20x0_255=0.0), []),
    (dict(pgd20x0_255=0.02), ["unbounded"]),
    (dict(pgd10x0_255=0.5, pgd20_255=0.5), []),  # too few steps, or noise
    (dict(pgd10_8=0.5, pgd40_8=0.57), []),
    (dict(pgd10_8=0.5, pgd40_8=0.575), ["steps"]),
    (dict(pgd10_8=0.5, pgd10_16=0.575), ["radius"]),
    (dict(pgd10_8=0.5, pgd20_16=0.9), []),  # two things differ
    (dict(fgsm_8=0.4, fgsm_16=0.9), []),
    (dict(fgsm_8=0.4, pgd10_8=0.5), ["one_step"]),
    (dict(fgsm_8=0.4, pgd9_8=0.5), []),
    (dict(square200_8=0.4, apgd_8=0.5), ["black_box"]),
    (dict(noise20_8=0.4, pgd10_8=0.5, apgd_8=0.3), []),
    (dict(noise20_8=0.4, pgd10_16=0.5), []),
])
def test_checks(accuracies: dict[str, float], expected: list[str]) -> None:
  assert failed(**accuracies) == expected


@pytest.mark.parametrize("library", [True, False])
def test_the_battery_feeds_every_check(library: bool) -> None:
  rows = [sanity.Row(name, attack_names.parse(name, 0.0), 0.0, 10)
          for name in sanity.battery(16.0, library)]
  assert {check.name for check in sanity.checks(rows)} == {
      "unbounded", "radius", "steps", "one_step", "black_box"}
