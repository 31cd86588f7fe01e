"""Lines of a description that some methods and rules have."""

from conadv_tf import config as config_lib
from conadv_tf.analysis import update_counts
from conadv_tf.methods import method as method_lib


def perturbation(method: method_lib.Method) -> str:
  """How word embeddings are perturbed, and from which update on."""
  p = method.perturbation
  line = (f"perturbation: radius {p.radius:g} ({p.norm}), {p.steps} step(s) of "
          f"{p.step_size:g} ({p.direction}), start {p.start} {p.start_size:g}, "
          "of word embeddings in their own units")
  if not method.delay:
    return line + "; from the first update on"
  plain = method_lib.Method
  return line + (
      f"; from update {method.delay:,} on, before it {plain.passes_per_step:g} "
      f"passes F and {plain.longest_chain:g} in a row, as plain training")


def growth(config: config_lib.ExperimentConfig) -> str:
  """How the batch grows, and how many updates that makes."""
  rule, derived = config.growth, config.derived
  batch, epochs = config.data.global_batch_size, config.schedule.epochs
  if rule.name == "scheduled":
    when = f"at epochs {', '.join(f'{e:g}' for e in rule.epochs)}"
    count = update_counts.growing(
        derived.steps_per_epoch, epochs,
        [min(epoch, epochs) for epoch in rule.epochs], rule.factor,
        rule.max_batch_size / batch)
    updates = f"about {count:,}"
  else:
    every = config.curvature.every_samples
    layers = config.curvature.last_layers
    when = (f"where the largest eigenvalue"
            f"{f' of the last {layers} layers' if layers else ''}, estimated "
            f"every {f'{every:,} examples' if every else 'epoch'} on "
            f"{config.curvature.examples:,}, has fallen by "
            f"{rule.decrease:g} or has not in {rule.patience} estimates")
    least, most = update_counts.bounds(
        derived.total_steps, rule.max_batch_size // batch)
    updates = f"{least:,} to {most:,}"
  return (f"growth: from {batch:,} to {rule.max_batch_size:,} examples, by "
          f"{rule.factor} {when}; {updates} updates")
