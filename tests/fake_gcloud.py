"""A stand-in for `gcloud` that records, and the TPU VM launcher before it."""

import json
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

HERE = ['--name=t', '--zone=europe-west4-a', '--project=p']
V3_8 = [*HERE, '--accelerator_type=v3-8']
POD = [*HERE, '--accelerator_type=v3-256']
TRAIN = ['--', 'conadv-train', '--config_file=c.yaml',
         '--model_dir=/mnt/run/a']
WATCH = ['--watch', '--mount=sudo mount /mnt/run', '--poll_seconds=0']
# For scripts that are meant for a TPU VM. The launcher finds the stand-in and
# nothing else.
SYSTEM_PATH = '/usr/local/bin:/usr/bin:/bin'
PLACE = ['--zone=europe-west4-a', '--project=p']

# Appends its arguments to `recorded`; ends as `answers` says, one entry of the
# kind after the other, else with 0. With REMOTE it runs scripts for worker 0.
_GCLOUD = """#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
script = [w.partition("=")[2] for w in words if w.startswith("--command=")]
kind = ("ask" if words[2:4] == ["queued-resources", "describe"] else
        words[3] if not script else
        "start" if "setsid" in script[0] else
        "follow" if "tail" in script[0] else
        "install" if "pip" in script[0] else
        "prepare" if "mkdir ~/conadv_source" in script[0] else "mount")
with open("{folder}/recorded", "a") as file:
  file.write(json.dumps([kind, "gcloud", *words]) + "\\n")
with open("{folder}/answers") as file:
  answers = json.load(file)
default = {{"describe": [0, "READY", ""], "ask": [0, "ACTIVE", ""]}}
code, out, err = (answers[kind].pop(0) if answers.get(kind) else
                  default.get(kind, [0, "", ""]))
with open("{folder}/answers", "w") as file:
  json.dump(answers, file)
print(out)
print(err, file=sys.stderr)
if code == 0 and script and "REMOTE" in os.environ:
  if kind == "follow":
    subprocess.run(["bash", "-c", os.environ["REMOTE"]])
  code = subprocess.run(["bash", "-c", script[0]]).returncode
sys.exit(code)
"""


def script(words: list[str]) -> str:
  """The one remote script of a gcloud command."""
  scripts = [w.partition('=')[2] for w in words if w.startswith('--command=')]
  assert len(scripts) == 1
  return scripts[0]


class Launcher:
  """`python -m tools.tpu_vm` with the stand-in on PATH."""

  def __init__(self, folder: pathlib.Path) -> None:
    self.folder = folder
    self.home = folder / 'home'
    (folder / 'bin').mkdir()
    self.home.mkdir()
    gcloud = folder / 'bin/gcloud'
    gcloud.write_text(_GCLOUD.format(python=sys.executable, folder=folder))
    gcloud.chmod(0o755)
    self.environment = {
        'PATH': str(folder / 'bin'), 'HOME': str(self.home),
        'PYTHONPATH': str(REPOSITORY)}

  def __call__(self, *arguments: str, **answers: list) -> tuple[int, str, str]:
    """Runs it; returns code, stdout and stderr."""
    (self.folder / 'answers').write_text(json.dumps(answers))
    (self.folder / 'recorded').write_text('')
    done = subprocess.run(
        [sys.executable, '-m', 'tools.tpu_vm', *arguments], cwd=self.folder,
        env=self.environment, capture_output=True, text=True, timeout=60,
        check=False)
    assert 'Traceback' not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr

  def add_system_path(self) -> None:
    """Lets the stand-in, and what is run beside it, find bash and the like."""
    self.environment['PATH'] += f':{SYSTEM_PATH}'

  @property
  def recorded(self) -> list[list[str]]:
    """Kind and words of every gcloud command of the last run."""
    return [json.loads(line) for line
            in (self.folder / 'recorded').read_text().splitlines()]

  @property
  def kinds(self) -> list[str]:
    return [line[0] for line in self.recorded]
