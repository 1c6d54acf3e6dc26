"""kill -9 at any moment, and the run ends with the numbers of one that nobody disturbed, in every bit.

  python tests/reliability/chaos.py --kills=100 [--steps=2000] [--work=FOLDER] [--seed=0]

A tiny ViT learns the embedded digits, saves every 10 steps in the background, and is killed at random: while it starts,
compiles, trains, saves, evaluates or ends. Every loss that it ever logged is compared with that of the uninterrupted
run, the weights at the end too. A run that reached its end before all kills were spent is followed by another.
FOLDER/lives.jsonl has a line for each life, so a proof that was stopped goes on. The last line printed is the figure.
"""

import argparse
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import lives

EVERY = 10  # steps between two saves


def flags_of(steps):
  """The config's flags."""
  return {'total_steps': steps, 'log_every': 1, 'save.every': EVERY, 'eval_every': 250, 'save.last': 2}


def live(number, workdir, steps, reference, cache, rng):
  """The row of one life: begun, killed at a random moment unless it ended before, and compared."""
  shared, known = set(os.listdir('/dev/shm')), max(lives.losses(workdir)[0], default=0)
  sessions = len(lives.losses(workdir)[1])
  life = lives.Life(workdir, 'digits', flags_of(steps), cache=cache)
  try:
    if rng.random() < 0.25:  # while it starts, wherever it is after so long
      moment = time.monotonic() + rng.uniform(0, 4)
      life.until(lambda: time.monotonic() > moment)
    else:  # after so many new steps, and a little
      wanted = rng.randint(1, 60)
      life.until(lambda: progress(workdir, sessions) >= wanted)
      time.sleep(rng.uniform(0, 0.05))
    killed = life.send(signal.SIGKILL)
  finally:
    life.send(signal.SIGKILL)
    code = life.ended()
  found, resumed, _ = lives.losses(workdir)
  return {
    'life': number, 'workdir': workdir.name, 'killed': killed and code == -signal.SIGKILL,
    'logged': len(found), 'differing': lives.differing(found, reference), 'last': max(found, default=0),
    'redone': known - resumed[-1] if len(resumed) > sessions else 0, 'orphans': len(life.orphans()),
    'shared': len(set(os.listdir('/dev/shm')) - shared), 'code': code, 'said': life.stderr()[-300:],
  }  # fmt: skip


def progress(workdir, sessions):
  """Steps that the newest session has logged; 0 until it is there."""
  found, resumed, _ = lives.losses(workdir)
  if len(resumed) > sessions:
    return max(found, default=0) - resumed[-1]
  return 0 if sessions or resumed else max(found, default=0)


def finished(workdir, reference_folder, steps, reference, cache):
  """How many losses and arrays of a run that is let go on to its end differ from the uninterrupted one's."""
  life = lives.Life(workdir, 'digits', flags_of(steps), cache=cache)
  code = life.ended(3600)
  assert code == 0, life.stderr()
  missing = set(reference) - set(lives.losses(workdir)[0])
  differing = lives.differing(lives.losses(workdir)[0], reference) + len(missing)
  differing += lives.rest_of(workdir) != lives.rest_of(reference_folder)
  from vit_jax import checkpoint, state

  ours, theirs = (state.flatten(checkpoint.read(folder / 'checkpoints' / str(steps), ('params', 'opt')))
                  for folder in (workdir, reference_folder))  # fmt: skip
  return differing + sum((ours[name] != theirs[name]).any() for name in theirs)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=100, help='(default: %(default)s)')
  parser.add_argument('--steps', type=int, default=2000, help='of a run (default: %(default)s)')
  parser.add_argument('--work', type=pathlib.Path, help='where runs and lives.jsonl are kept; default: a new folder')
  parser.add_argument('--seed', type=int, default=0, help='of the moments (default: %(default)s)')
  args = parser.parse_args()
  work = (args.work or pathlib.Path(tempfile.mkdtemp(prefix='chaos'))).absolute()
  work.mkdir(parents=True, exist_ok=True)
  ledger, cache = lives.Ledger(work / 'lives.jsonl'), work / 'cache'
  reference = lives.uninterrupted(work / 'reference', 'digits', flags_of(args.steps), cache=cache)
  assert len(reference) == args.steps, len(reference)
  done = lambda: sum(row.get('killed', False) for row in ledger.rows)
  while done() < args.kills:
    number = len(ledger.rows)
    workdir = work / f'run{sum(row.get("code") == 0 for row in ledger.rows)}'
    ledger.add(live(number, workdir, args.steps, reference, cache, random.Random(args.seed * 10**6 + number)))
    row = ledger.rows[-1]
    print(f'life {number}: {"killed" if row["killed"] else row["code"]} at step {row["last"]}', file=sys.stderr)
    if row['code'] not in (0, -signal.SIGKILL):
      sys.exit(f'it did not start: {row["said"]}')
  rows = ledger.rows
  last = finished(
    work / f'run{sum(row["code"] == 0 for row in rows)}', work / 'reference', args.steps, reference, cache
  )
  figures = {
    'kills': done(), 'failed restarts': sum(row['code'] not in (0, -signal.SIGKILL) for row in rows),
    'losses compared': sum(row['logged'] for row in rows), 'differing': sum(row['differing'] for row in rows) + last,
    'steps redone at most': max(row['redone'] for row in rows), 'save interval': EVERY,
    'orphans': sum(row['orphans'] for row in rows), 'shared memory files': sum(row['shared'] for row in rows),
    'lives': len(rows), 'steps': args.steps,
  }  # fmt: skip
  print(', '.join(f'{value} {name}' for name, value in figures.items()))
  wrong = ('failed restarts', 'differing', 'orphans', 'shared memory files')
  return int(figures['steps redone at most'] > 2 * EVERY or any(figures[key] for key in wrong))


if __name__ == '__main__':
  sys.exit(main())
