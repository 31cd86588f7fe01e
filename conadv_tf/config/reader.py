"""Reads configurations from YAML, JSON and `a.b=1` pairs, and writes YAML."""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
import re
from typing import Any

import yaml

from conadv_tf.config import checks
from conadv_tf.config.resolution import resolve
from conadv_tf.config.schema import ExperimentConfig, InputError, show


def load(
    config_files: Sequence[str],
    params_override: None | str | Sequence[str] = None,
) -> ExperimentConfig:
  """Returns the defaults, overridden by each source in turn.

  Args:
    config_files: YAML or JSON files; later ones win.
    params_override: one or several sources that win over all files, each a
      YAML or JSON file or `a.b=1,c.d=[2,3]`.

  Returns:
    A checked configuration, not resolved yet.

  Raises:
    InputError: if any source is unreadable, unknown, ill-typed or illegal.
  """
  if isinstance(config_files, str):
    config_files = [config_files]
  if isinstance(params_override, str):
    params_override = [params_override]
  sources = [(path, _read_file(path)) for path in config_files]
  for text in params_override or ():
    if not text.strip():
      continue
    if os.path.exists(text) or '=' not in text:
      sources.append((text, _read_file(text)))
    else:
      sources.append(('--params_override', _read_pairs(text)))
  merged = {}
  for where, tree in sources:
    tree.pop('derived', None)
    _merge(merged, checks.as_typed(tree, ExperimentConfig, '', where))
  config = ExperimentConfig()
  config.override(merged)
  checks.validate(config)
  return config


def load_resolved(path: str) -> ExperimentConfig:
  """Returns a configuration as it was when `save` wrote it, resolved.

  Neither data nor devices are needed.

  Args:
    path: YAML file that holds what a run derived.

  Raises:
    InputError: as `load`, or if it does not.
  """
  derived = _read_file(path).get('derived')
  examples = derived.get('num_examples') if isinstance(derived, dict) else None
  if not isinstance(examples, int) or examples < 1:
    raise InputError(
        f'{path}: holds no derived.num_examples; give the params.yaml of a '
        'run that has begun')
  return resolve(load([path]), examples)


def save(config: ExperimentConfig, path: str) -> None:
  """Writes YAML that `load` takes again, whole or not at all."""
  text = yaml.dump(config.as_dict(), Dumper=_Dumper, sort_keys=False,
                   allow_unicode=True)
  folder = os.path.dirname(path)
  if folder:
    os.makedirs(folder, exist_ok=True)
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    file.write(text)
  os.replace(path + '.tmp', path)


def _merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
  for name, value in tree.items():
    if isinstance(value, Mapping) and isinstance(into.get(name), dict):
      _merge(into[name], value)
    else:
      into[name] = value


_RESOLVERS = (
    ('bool', r'true|True|TRUE|false|False|FALSE', 'tTfF'),
    ('int', r'[-+]?[0-9]+', '-+0123456789'),
    ('float', r'[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?'
              r'|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)', '-+.0123456789'),
    ('null', r'~|null|Null|NULL|', ['~', 'n', 'N', '']),
    ('merge', r'<<', '<'),
)


class _Loader(yaml.SafeLoader):
  """Reads numbers, booleans and null; all else (no, on, dates) is a string."""
  yaml_implicit_resolvers = {}

  def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
    node = super().compose_mapping_node(anchor)
    seen = set()
    for key, _ in node.value:
      if isinstance(key, yaml.ScalarNode):
        if key.value in seen:
          raise yaml.constructor.ConstructorError(
              None, None, f'duplicate key {key.value!r}', key.start_mark)
        seen.add(key.value)
    return node


class _Dumper(yaml.SafeDumper):
  """Quotes what `_Loader`, or any YAML 1.1 reader, would not take as text."""


for _tag, _pattern, _first in _RESOLVERS:
  for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        f'tag:yaml.org,2002:{_tag}', re.compile(f'^(?:{_pattern})$'),
        list(_first))
# The stock constructor takes 010 for octal.
_Loader.add_constructor(
    'tag:yaml.org,2002:int', lambda loader, node: int(node.value, 10))


def _parse(text: str, where: str) -> Any:
  try:
    tree = yaml.load(text, Loader=_Loader)
    json.dumps(tree)  # Refuses what YAML has and we cannot walk: cycles, sets.
    return tree
  except yaml.MarkedYAMLError as error:
    line = error.problem_mark.line + 1 if error.problem_mark else 1
    raise InputError(
        f'{where}: line {line}: {error.problem}; correct the YAML') from error
  except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
    raise InputError(f'{where}: not YAML: {error}; correct it') from error


def _read_file(path: str) -> dict[str, Any]:
  try:
    with open(path, encoding='utf-8') as file:
      text = file.read()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, 'strerror', None) or 'not a UTF-8 text file'
    raise InputError(
        f'{path}: cannot read it: {reason}; give a YAML or JSON file (or '
        'key=value pairs to --params_override)') from error
  tree = _parse(text, path)
  if not isinstance(tree, dict):
    raise InputError(
        f'{path}: expected groups of keys such as "method: {{lag: 1}}", got '
        f'{show(tree)}')
  return tree


def _read_pairs(text: str) -> dict[str, Any]:
  """Reads `a.b=1,c.d=[2,3]` into nested groups."""
  where = '--params_override'
  tree = {}
  for pair in _split(text):
    key, equals, value = (part.strip() for part in pair.partition('='))
    if not equals or not re.fullmatch(r'\w+(\.\w+)*', key):
      raise InputError(f'{where}: expected key=value, got {show(pair)}; '
                       'write a.b=1,c.d=[2,3]')
    *groups, name = key.split('.')
    if groups[:1] == ['derived'] or key == 'derived':
      raise InputError(f'{key}: is computed from the other keys; leave it out '
                       f'of {where}')
    node = tree
    for group in groups:
      node = node.setdefault(group, {})
      if not isinstance(node, dict):
        raise InputError(f'{key}: {group} is given a value too, in {where}')
    if name in node:
      raise InputError(f'{key}: duplicate key in {where}; give it once')
    node[name] = _parse(value, f'{where}: {key}')
  return tree


def _split(text: str) -> Iterator[str]:
  """Splits at commas outside quotes, [] and {}."""
  depth, quote, start, before = 0, '', 0, '='
  for i, letter in enumerate(text):
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '"\'' and before in '=,:[{':
      quote = letter
    elif letter in '[{':
      depth += 1
    elif letter in ']}':
      depth -= 1
    elif letter == ',' and depth <= 0:
      yield text[start:i]
      start = i + 1
    before = letter if letter != ' ' else before
  yield text[start:]
