"""A disk that fills up while a step is saved: python tests/reliability/full_disk.py --tries=200 [--runs=3] [--out=FILE]

Each try saves steps on a small file system of its own (a tmpfs; needs root, says so and exits with 0 elsewhere), which
another thread fills at a random moment of the third save, wholly or but for a few blocks. The save then is complete or
raises DiskFull with one line and logs nothing; all steps before it are whole and come back bit for bit, nothing else is
in the folder, the next save says before it writes anything that it has no room, and once there is room one works.
Each of --runs is `vit_jax train` in a process of its own on such a disk: it ends with exit code 1 and one line, or is
done, and the same command finishes once there is room. The last line printed is the figure.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path[:0] = [str(pathlib.Path(__file__).absolute().parent.parent.parent)]

import numpy as np  # noqa: E402

from vit_jax import checkpoint, diskfull  # noqa: E402
from vit_jax import checkpoint_items as items  # noqa: E402
from vit_jax import checkpoint_seal as seal  # noqa: E402

COUNT = 1 << 17  # float32 values of one array; three arrays are a step of 1.5 MB
SIZE = 6 << 20  # bytes of the file system: two steps, the one being saved, and some


class NoDisk(Exception):
  """Why no small file system can be had here."""


@contextlib.contextmanager
def small_disk(folder, size=SIZE):
  """A new file system of `size` bytes at a folder, while it is open."""
  folder = pathlib.Path(folder)
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
  try:
    subprocess.run(command, check=True, capture_output=True, text=True)
  except FileNotFoundError:
    raise NoDisk('there is no command mount') from None
  except subprocess.CalledProcessError as error:
    raise NoDisk(f'a tmpfs cannot be mounted: {error.stderr.strip()}') from None
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(path, left=0):
  """Writes a file until the disk is full, then gives `left` bytes of it back."""
  with contextlib.suppress(OSError), path.open('wb', buffering=0) as file:
    while True:
      file.write(b'x' * 4096)
  os.truncate(path, max(0, path.stat().st_size - left))


def arrays(step):
  """What a step holds: random bits, which no compression makes smaller."""
  rng = np.random.default_rng(step)
  return {'params': {str(i): rng.integers(1 << 23, 1 << 30, COUNT, np.int32).view(np.float32) for i in range(3)}}


def sound(keep):
  """What is wrong with the steps of a folder and with what else is there."""
  wrong = []
  for step in keep.steps():
    fault = seal.fault(keep.folder / str(step))
    wrong += [f'step {step}: {fault}'] if fault else []
    given, wanted = keep.restore(step, arrays(step))['params'], arrays(step)['params']
    wrong += [f'step {step}: other bits'] if any(given[i].tobytes() != wanted[i].tobytes() for i in wanted) else []
  there = sorted(one.name for one in keep.folder.iterdir())
  return wrong + ([] if there == sorted(map(str, keep.steps())) else [f'it holds {there}'])


def saved(keep, step):
  """'' where a save was done, else the one line of DiskFull."""
  try:
    keep.save(step, arrays(step), {'step': step})
    keep.wait()
  except diskfull.DiskFull as full:
    return str(full)
  return ''


def attempt(seed, number, disk):
  """One try in a process that goes on, as a JSON dict with 'how' it ended and a 'verdict', '' where all is right."""
  rng, wrong, said = np.random.default_rng([seed, number]), [], io.StringIO()
  keep = checkpoint.Checkpoints(disk / 'run', last=2, best=0)
  begun = time.monotonic()
  wrong += [f'no room for step {step}: {line}' for step in (1, 2) if (line := saved(keep, step))]
  moment = float(rng.uniform(0, (time.monotonic() - begun) / 2))
  left = int(rng.choice([0, rng.integers(1 << 20)]))
  filler = threading.Thread(target=lambda: (time.sleep(moment), fill(disk / 'filler', left)))
  filler.start()
  log = logging.StreamHandler(said)
  log.setLevel(logging.WARNING)
  logging.getLogger().addHandler(log)
  with contextlib.redirect_stderr(said):
    third = saved(keep, 3)
  filler.join()
  wrong += sound(keep)
  wanted = [1, 2] if third else [2, 3]
  wrong += [] if keep.steps() == wanted else [f'steps {keep.steps()}, not {wanted}']
  room = diskfull.free(disk)
  fourth = saved(keep, 4)
  how = 'before' if ' needs ' in third else 'while' if third else 'done'
  early = items.size(arrays(4)) > room
  wrong += [] if early == (' needs ' in fourth) and '\n' not in third + fourth else [f'said {third!r}, {fourth!r}']
  wrong += sound(keep)
  (disk / 'filler').unlink()
  wrong += [f'no room for step 5: {line}' for line in (saved(keep, 5),) if line]
  keep.close()
  again = checkpoint.Checkpoints(disk / 'run', last=2, best=0)
  wrong += sound(again) + ([] if again.latest() == 5 else [f'{again.latest()} is the newest, not 5'])
  again.close()
  logging.getLogger().removeHandler(log)
  wrong += [f'on stderr: {said.getvalue()}'] if said.getvalue() else []
  return {'seed': seed, 'number': number, 'how': how, 'line': third, 'verdict': '; '.join(wrong)}


def command(seed, number, disk):
  """One try with `vit_jax train` as a process, filled at a random moment after its first step; as attempt gives it."""
  rng = np.random.default_rng([seed, number, 1])
  argv = [sys.executable, '-m', 'vit_jax.main', '--config=digits', f'--workdir={disk}/run', '--config.total_steps=60',
          '--config.model.embed_dim=16', '--config.model.depth=1', '--config.model.num_heads=2',
          '--config.save.every=5', '--config.eval_every=20', '--config.log_every=1']  # fmt: skip
  run = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  # Two processes may not fill each other's pipes: both ends are read by communicate, in a thread.
  outcome = []
  reader = threading.Thread(target=lambda: outcome.extend(run.communicate()))
  reader.start()
  while reader.is_alive() and not list((disk / 'run' / 'checkpoints').glob('[0-9]*')):
    time.sleep(0.02)
  time.sleep(float(rng.uniform(0, 2)))
  fill(disk / 'filler')
  reader.join()
  errors = [line for line in outcome[1].splitlines() if line.startswith('error: ')]
  wrong = [f'a traceback: {outcome[1]}'] if 'Traceback' in outcome[1] else []
  if run.returncode:
    wrong += [] if run.returncode == 1 and len(errors) == 1 else [f'exit code {run.returncode}, {errors}']
  (disk / 'filler').unlink()
  again = subprocess.run(argv, capture_output=True, text=True)
  wrong += [f'again: {again.stderr}'] if again.returncode or 'damaged' in again.stderr else []
  names = sorted(one.name for one in (disk / 'run' / 'checkpoints').iterdir())
  wrong += [] if all(name.isdecimal() for name in names) and '60' in names else [f'it holds {names}']
  how = ['a run was done', 'a run ended'][run.returncode != 0]
  return {'seed': seed, 'number': number, 'how': how, 'line': ' '.join(errors), 'verdict': '; '.join(wrong)}


def attempts(options, lines):
  """The rows of all tries, those that a file has already among them."""
  old = [row for row in map(json.loads, lines) if row['seed'] == options.seed]
  for function, count in ((attempt, options.tries), (command, options.runs)):
    is_run = function is command
    there = [row for row in old if row['how'].startswith('a run') == is_run][:count]
    yield from ((row, False) for row in there)
    for number in range(len(there), count):
      with tempfile.TemporaryDirectory() as folder:
        with small_disk(pathlib.Path(folder) / 'disk', 2 * SIZE if is_run else SIZE) as disk:
          yield function(options.seed, number, disk), True


def main():
  """Runs the tries that the file has not yet, and prints what was found."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--tries', type=int, default=50, help='in this process')
  parser.add_argument('--runs', type=int, default=0, help='with vit_jax train as a process')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', type=pathlib.Path, help='a file of JSON lines that is continued')
  options = parser.parse_args()
  rows = []
  try:
    with options.out.open('a+') if options.out else contextlib.nullcontext(io.StringIO()) as file:
      file.seek(0)
      for row, new in attempts(options, file.read().splitlines()):
        rows.append(row)
        if new:
          print(json.dumps(row), file=file, flush=True)
        if row['verdict']:
          print(json.dumps(row))
  except NoDisk as reason:
    print(f'skipped: {reason}')
    return 0
  how = sorted({row['how'] for row in rows})
  print(', '.join(f'{sum(row["how"] == one for row in rows)} {one}' for one in how))
  print(f'{len(rows)} full disks: {sum(bool(row["verdict"]) for row in rows)} with anything lost, left over or unclear')
  return int(any(row['verdict'] for row in rows))


if __name__ == '__main__':
  sys.exit(main())
