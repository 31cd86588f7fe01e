"""Runs on sentences, from files to results."""

import json
import pathlib

import pytest

from conadv_tf import config, description, robustness, runs, saved_runs
from tests import events, sentences


def test_classification(tmp_path: pathlib.Path,
                        capsys: pytest.CaptureFixture) -> None:
  keys = sentences.make(tmp_path, 'cola')
  run = tmp_path / 'run'
  results = runs.run(sentences.load(
      keys, 'evaluation.patience=9,evaluation.monitor=matthews,'
      'evaluation.train_examples=16,evaluation.every_epochs=2'), str(run))
  # One word of six tells the label: 16 updates suffice.
  assert results['validation/matthews'] == 1.0
  assert results['validation/accuracy'] == 1.0
  assert results['validation/generalization_gap'] == 0.0
  assert results['validation/examples'] == 6
  assert results['train/accuracy'] > 0.5
  assert results['best_step'] in range(2, 17, 2)
  written = json.loads((run / 'results.json').read_text())
  assert written['validation/matthews'] == 1.0
  assert events.scalars(run / 'validation')['matthews'][16] == 1.0
  output = capsys.readouterr().out
  assert ('data: glue cola, 16 training and 6 validation sentences of 8 tokens,'
          ' 2 classes') in output
  assert 'validation matthews 1.0000' in output
  restored, _ = saved_runs.restore(str(run))
  figures = restored.evaluate()
  assert figures['matthews'] == 1.0
  assert figures['loss'] == pytest.approx(
      min(json.loads(line)['validation/loss'] for line in
          (run / 'metrics.jsonl').read_text().splitlines()
          if json.loads(line)['step'] == results['best_step']), rel=1e-6)
  with pytest.raises(config.InputError, match='--attacks change pixels'):
    robustness.plan(restored, ['fgsm'], branch='clean')
  with pytest.raises(config.InputError, match='fgsm: changes pixels'):
    restored.evaluator('clean', 'fgsm')
  with pytest.raises(config.InputError, match='--certify adds noise to pixels'):
    next(restored.certificates(None, 'clean'))


def test_regression(tmp_path: pathlib.Path) -> None:
  keys = sentences.make(tmp_path, 'stsb')
  results = runs.run(sentences.load(keys),
                     str(tmp_path / 'run'), quiet=True)
  # The labels are 0.5 and 2, and the two kinds of rows all alike.
  assert results['validation/pearson'] == pytest.approx(1.0)
  assert results['validation/spearman'] == pytest.approx(1.0)
  assert results['validation/loss'] < 2.0
  assert not [key for key in results if 'accuracy' in key]


@pytest.mark.slow
def test_records_hold_no_terms_before_the_delay_ends(
    tmp_path: pathlib.Path) -> None:
  keys = sentences.make(tmp_path, 'cola')
  results = runs.run(sentences.load(
      keys, 'method.name=scala,perturbation.delay_epochs=2,'
      'evaluation.every_epochs=1'), str(tmp_path / 'run'), quiet=True)
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert all('train/clean_loss' in record for record in records)
  shown = ['train/perturbed_loss' in record for record in records]
  # The update before the delay's end, which is an epoch's, counts nothing.
  assert shown == [record['epoch'] > 2 for record in records]
  assert False in shown and shown[-1]
  for record in (*records[-1:], results):
    assert record['train/perturbation_linf'] == pytest.approx(1e-5, rel=1e-4)


def test_described_without_the_files(tmp_path: pathlib.Path) -> None:
  text = description.describe_config(sentences.load(
      f'data.path={tmp_path}/absent,text.task=mnli,data.num_examples=null'))
  assert ('data: glue mnli, 392,702 training and 9,815 validation sentences of '
          '8 tokens, 3 classes') in text


@pytest.mark.parametrize('pairs, message', [
    ('data.augment=crop_flip', 'data.augment: "crop_flip" and data.name=glue'),
    ('data.mixup=0.2', 'data.mixup: 0.2 and data.name=glue exclude'),
    ('data.image_size=8', 'text.sequence_length is the length of sentences'),
    ('evaluation.attacks=[pgd20]', r'evaluation.attacks: \["pgd20"\] and'),
    ('method.name=conadv', 'conadv perturbs pixels'),
    ('text.task=sst', 'text.task=sst: unknown; known are sst2, cola, mrpc, '
     'rte, stsb, mnli, mnli_mismatched, qnli, qqp; did you mean sst2'),
    ('text.length_buckets=[6,4]', r'\[6, 4\] must rise and stay below text'),
    ('text.length_buckets=[4,8]', r'\[4, 8\] must rise and stay below .*=8'),
    ('text.length_buckets=[0]', 'text.length_buckets: must be at least 1'),
    ('text.length_buckets=[4],runtime.jit_compile=true',
     'runtime.jit_compile=true exclude each other'),
    ('text.length_buckets=[4],runtime.strategy=tpu',
     'runtime.strategy=tpu exclude each other'),
    ('text.length_buckets=[4]', 'text.length_buckets: model.name=.* may let'),
    ('data.builder=glue/sst2:2.0.0,text.task=cola',
     'data.builder=glue/sst2:2.0.0: text.task=cola is in glue/cola; set'),
    ('data.builder=glue/mrpc,text.task=mnli_mismatched', 'is in glue/mnli'),
    ('data.builder=glue,text.task=sst2',
     '=glue: text.task=sst2 is in glue/sst2'),
    ('text.task=stsb,objective.label_smoothing=0.1', 'its labels are numbers'),
    ('text.task=stsb,evaluation.target_accuracy=0.9', 'has no accuracy'),
    ('evaluation.patience=1,evaluation.monitor=f1',
     "'f1' is no figure of this run's evaluations, which are accuracy, loss"),
])
def test_refused(pairs: str, message: str) -> None:
  with pytest.raises(config.InputError, match=message):
    description.plan(sentences.load(pairs))


def test_keys_of_text_are_of_text_alone() -> None:
  options = sentences.load('data.cache=false')
  assert config.unused_keys(options) == ['data.cache']
  options.data.name = 'digits'
  assert config.unused_keys(options) == ['text.sequence_length']
