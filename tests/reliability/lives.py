"""What the proofs by killing share: a run started as a user starts it, its losses as they stand in metrics.jsonl, and
what a process leaves behind. Standard library only."""

import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class Life:
  """One process of a run, in a session of its own; its stderr goes to WORKDIR.log, or the file `log`."""

  def __init__(self, workdir, config, flags, env=None, cache=None, log=None):
    self.workdir, self.log = pathlib.Path(workdir), pathlib.Path(log or f'{workdir}.log')
    words = [f'--config.{key}={value}' for key, value in flags.items()]
    command = [sys.executable, '-m', 'vit_jax.main', f'--config={config}', f'--workdir={workdir}', *words]
    # one device, whatever the caller emulates
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT), **(env or {})}
    if cache:
      env |= {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    self.said = self.log.stat().st_size if self.log.exists() else 0
    with self.log.open('ab') as log:
      self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=ROOT, start_new_session=True)

  def until(self, there, timeout=300):
    """Waits until there() is true or the process has ended; whether it was."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and self.process.poll() is None:
      if there():
        return True
      time.sleep(0.002)
    return there()

  def stderr(self):
    """What this process has said so far."""
    with self.log.open('rb') as log:
      log.seek(self.said)
      return log.read().decode(errors='replace')

  def send(self, number):
    """Sends a signal to the process alone; whether it was still there."""
    if self.process.poll() is not None:
      return False
    self.process.send_signal(number)
    return True

  def ended(self, timeout=120):
    """The exit code; the process is killed, and the code is None, where it takes longer than timeout seconds."""
    try:
      return self.process.wait(timeout)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
      return None

  def orphans(self):
    """The ids of processes of this life's session that are still there."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
      try:
        fields = path.read_text().rpartition(')')[2].split()
      except OSError:
        continue  # it has just ended
      if int(fields[3]) == self.process.pid and fields[0] != 'Z':
        found.append(int(path.parent.name))
    return found


def losses(workdir):
  """({step: loss}, [step each session resumed from], number of evaluations) of a run's metrics.jsonl, torn lines left
  out; a loss is its text, so that equal means equal in every bit."""
  path, found, resumed, evaluations = pathlib.Path(workdir) / 'metrics.jsonl', {}, [], 0
  for line in path.read_text(errors='replace').splitlines(keepends=True) if path.exists() else []:
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if 'resumed' in row:
      resumed.append(row['resumed'])
    elif 'grad_norm' in row:
      found[row['step']] = repr(row['loss'])
    else:
      evaluations += 1
  return found, resumed, evaluations


def rest_of(workdir, skipped=('seconds', 'images_per_second')):
  """The lines of metrics.jsonl without the fields that time decides, and without those about resuming."""
  lines = [json.loads(line) for line in (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if k not in skipped} for line in lines if 'resumed' not in line]


def differing(found, reference):
  """How many steps have another loss than in the reference, or one that it has not."""
  return sum(reference.get(step) != loss for step, loss in found.items())


def uninterrupted(workdir, config, flags, **options):
  """The losses of a run that nobody disturbs, which is made unless it is there."""
  if not (pathlib.Path(workdir) / 'done').exists():
    life = Life(workdir, config, flags, **options)
    code = life.ended(3600)
    assert code == 0, life.stderr()
    (pathlib.Path(workdir) / 'done').touch()
  return losses(workdir)[0]


class Ledger:
  """Rows of JSON in a file; what is in it is not done again."""

  def __init__(self, path):
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self.rows = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

  def add(self, row):
    """Appends a row."""
    self.rows.append(row)
    with self.path.open('a') as file:
      file.write(json.dumps(row) + '\n')
