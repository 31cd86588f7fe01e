"""Trains every method in one arrangement of six virtual replicas.

    python -m tests.distribute.arrangements \\
      FOLDER NAME STRATEGY REPLICAS COMMUNICATION CASES

writes FOLDER/NAME.json, or with several workers (TF_CONFIG) the chief does.
"""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

from conadv_tf import config as config_lib
from conadv_tf import experiment as experiments
from conadv_tf import methods, optimizers, Trainer
from conadv_tf.distribute import cluster, strategies
from tests import tiny

VIRTUAL_REPLICAS = 6
UPDATES = 3
# Rounding differs between arrangements: no determinism here but in the last.
CASES = {
    "vanilla": "method.name=vanilla",
    "disadv": "method.name=disadv,attack.steps=2",
    "conadv": "method.name=conadv",
    "conadv lag 2": "method.lag=2,method.adversarial_fraction=0.5",
    "conadv sequential": "method.lag=1,method.execution=sequential",
    "recycled": "method.adversary=recycled",
    "shared statistics": "method.bn_branches=1,attack.target=random",
    "three branches": (
        "method.bn_branches=3,data.augment=randaugment,data.mixup=0.2,"
        "data.image_size=16"),
    "moving statistics": "method.lag=2,attack.mode=moving,attack.norm=l2,"
                         "attack.direction=l2",
    "skipping": "runtime.on_nan=skip_step,method.lag=2",
    "deterministic": "method.lag=2,runtime.deterministic=true",
}


# Of two or three replicas the last only attacks; on one device none does.
SPLIT = {
    "split": "method.lag=2,method.adversarial_fraction=0.5,"
             "runtime.placement=split",
    "split deterministic": "runtime.placement=split,"
                           "runtime.deterministic=true",
}
PYTHON_API = "python api"
METHODS = ["vanilla", "disadv", "conadv", "three branches", "deterministic"]
ALL = [PYTHON_API, *CASES]


def _run(case: str, strategy: str, communication: str,
         machines: strategies.Machines) -> dict[str, object]:
  """Three updates and an exact evaluation, under attack too."""
  config = tiny.load(
      "runtime.deterministic=false,data.global_batch_size=24,"
      "data.num_examples=48,schedule.epochs=1.5,schedule.peak_lr=0.1,"
      "evaluation.batch_size=7,optimizer.name=sgd,"
      f"runtime.strategy={strategy},runtime.communication={communication}",
      case, "runtime.placement=together"
      if strategy == "one_device" else "")
  if machines.cluster is None and strategy == "mirrored":
    config.runtime.num_replicas = 2
  strategies.plan(config.runtime, machines)
  config.runtime.micro_batches = (
      VIRTUAL_REPLICAS // config_lib.training_replicas(config.runtime))
  experiment = experiments.build(config, machines=machines)
  trainer = experiment.trainer
  trainer.fit(experiment.train_dataset(0), steps_per_epoch=UPDATES, verbose=0)
  figures = experiment.evaluate(
      ["pgd2@8" if config.attack.norm == "l2" else "pgd2"])
  if case == "deterministic":
    figures["top_eigenvalue"] = experiment.curvature(
        examples=10, iterations=5)["top_eigenvalue"]
  return {"weights": _flat(trainer.network.variables), "figures": figures}


def _python_api(strategy: tf.distribute.Strategy) -> dict[str, object]:
  """An ordinary dataset of global batches, in the strategy's scope."""
  micro_batches = VIRTUAL_REPLICAS // strategy.num_replicas_in_sync
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (48, 4, 4, 3)).astype(np.float32) / 255
  dataset = tf.data.Dataset.from_tensor_slices(
      (images, random.integers(0, 3, 48))).batch(24 // micro_batches)
  with strategy.scope():
    tf.keras.utils.set_random_seed(0)
    trainer = Trainer(tiny.model((4, 4, 3), 3), methods.ConAdv(lag=1),
                      micro_batches=micro_batches)
    trainer.compile(
        optimizers.Lars(0.1), tf.keras.losses.SparseCategoricalCrossentropy(
            from_logits=True), metrics=["accuracy"])
    history = trainer.fit(dataset, epochs=2, verbose=0).history
    accuracy = trainer.evaluate(dataset, verbose=0, return_dict=True)
  return {"weights": _flat(trainer.network.variables),
          "figures": {"fit": history["loss"][-1], **accuracy}}


def _flat(variables: list[tf.Variable]) -> list[float]:
  values = [getattr(v, "values", (v,))[0].numpy().ravel() for v in variables]
  return np.concatenate(values).astype(float).tolist()


def main(folder: str, name: str, strategy: str, replicas: str,
         communication: str, *cases: str) -> None:
  """Runs some of the cases."""
  tf.get_logger().setLevel("ERROR")  # about tracing again and again
  machines = strategies.Machines(cluster.from_environment())
  if machines.cluster:
    cluster.meet(machines.cluster, "arrangements", 60)
  made = strategies.get(strategy, int(replicas), communication, machines)
  results = {}
  for case in cases:
    results[case] = (_python_api(made) if case == PYTHON_API else
                     _run({**CASES, **SPLIT}[case], strategy, communication,
                          machines))
    tf.keras.backend.clear_session()
  if machines.is_chief:
    pathlib.Path(folder, f"{name}.json").write_text(json.dumps(results))


if __name__ == "__main__":
  main(*sys.argv[1:])
