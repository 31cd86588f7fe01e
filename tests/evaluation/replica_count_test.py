"""Every validation example counts once, whatever the arrangement."""

import json
import pathlib
import subprocess
import sys

import pytest

_EXAMPLES = 50_000  # ImageNet's validation set
_CODE = f'''
import json, sys
import numpy as np
from conadv_tf.distribute import strategies
replicas = int(sys.argv[1])
strategies.make_logical_cpus(replicas)
import tensorflow as tf
from conadv_tf.data import pipeline, source
from conadv_tf.evaluation import clean
from conadv_tf.layers import network
from conadv_tf.objectives import per_example

random = np.random.default_rng(0)
data = source.ArraySource(
    random.integers(0, 256, ({_EXAMPLES}, 2, 2, 1), np.uint8),
    random.integers(0, 10, {_EXAMPLES}))
strategy = strategies.get(
    'mirrored' if replicas > 1 else 'one_device', replicas)
with strategy.scope():
  tf.keras.utils.set_random_seed(0)
  net = network.convert(tf.keras.Sequential([
      tf.keras.layers.Flatten(input_shape=(2, 2, 1)),
      tf.keras.layers.Dense(10)]))
evaluator = clean.Evaluator(net, per_example.per_example_loss(
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)), strategy)
weights = [w.numpy().astype(np.float64) for w in net.model.weights]
images = data._images.numpy().reshape(-1, 4).astype(np.float64)
logits = images @ weights[0] + weights[1]
correct = (logits.argmax(1) == data._labels.numpy()).sum()
results = [int(correct)]
for batch in (4096, 1000, 777):
  figures = evaluator(pipeline.evaluation_dataset(data, batch))
  results.append([figures['examples'],
                  round(figures['accuracy'] * {_EXAMPLES})])
print(json.dumps(results))
'''


@pytest.mark.slow
@pytest.mark.parametrize('replicas', [1, 2, 3])
def test_50000_examples_count_once(replicas: int) -> None:
  # In processes of their own: other numbers of devices. None of the batches
  # divides 50,000 and 3 replicas alike, and 777 divides among no 2.
  result = subprocess.run(
      [sys.executable, '-c', _CODE, str(replicas)], check=True, text=True,
      capture_output=True, cwd=pathlib.Path(__file__).resolve().parents[2])
  correct, *counts = json.loads(result.stdout.strip().splitlines()[-1])
  assert 4000 < correct < 6000  # a tenth, by chance
  for examples, right in counts:
    assert examples == _EXAMPLES
    # Ties of logits in float32 aside.
    assert abs(right - correct) <= 2
