"""SIGTERM, SIGINT and SIGUSR1 at any moment: the last completed step is saved, and the run goes on from it exactly.

  python tests/reliability/signals.py --signals=50 [--work=FOLDER] [--seed=0]

A tiny ViT learns photographs that take longer to be decoded than to be learnt. It gets one signal in each life, in turn
while it starts, compiles, trains, evaluates and waits for data. Measured are: the exit code (128 + the number of the
signal); the step that was saved, at most one after the last that was logged when the signal was sent; how long the
process took to end; and every loss against the run that nobody disturbed, in every bit. In every tenth life a second
SIGINT follows, and the process must end at once. FOLDER/signals.jsonl has a line for each, so a proof that was stopped
goes on. The last line printed is the figure.
"""

import argparse
import pathlib
import random
import signal
import sys
import tempfile
import time

import lives

PHASES = 'start', 'compile', 'step', 'evaluation', 'data'
NUMBERS = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
EVERY = 20  # steps between two evaluations; nothing is saved in between but for a signal
STEPS = 240


def pictures(folder):
  """A folder of two classes, photographs in content, for training 24, large ones, and 60 to test."""
  import numpy as np
  from PIL import Image

  if (folder / 'done').exists():
    return folder
  photo = Image.open(lives.ROOT / 'tests' / 'chelsea.jpg')
  rng = np.random.default_rng(0)
  for split, n, size in (('train', 24, 600), ('test', 60, 64)):
    for i in range(n):
      place = folder / split / ('left', 'right')[i % 2] / f'{i}.png'
      place.parent.mkdir(parents=True, exist_ok=True)
      turned = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i % 2 else photo
      turned.rotate(float(rng.uniform(-20, 20))).resize((size, size)).save(place, compress_level=1)
  (folder / 'done').touch()
  return folder


def flags_of():
  """The config's flags: few pictures a step, decoded by one thread, so that the step waits for them."""
  return {
    'total_steps': STEPS, 'log_every': 1, 'batch': 4, 'batch_eval': 2, 'eval_every': EVERY, 'save.every': 10_000,
    'data.threads': 1, 'model.img_size': 32, 'model.patch_size': 4, 'model.embed_dim': 48, 'model.depth': 2,
    'model.num_heads': 3, 'optim.lr': 1e-3,
  }  # fmt: skip


def moment(life, phase, before, rng):
  """Waits for a random moment of a phase of this life, as far as one can see it from outside."""
  logged = lambda: lives.losses(life.workdir)[0]
  last = max(before, default=0)
  if phase == 'start':  # from when there are handlers: what Python itself does before, nobody can change
    life.until(lambda: handled(life.process.pid))
    time.sleep(rng.uniform(0, 1.5))
  elif phase == 'compile':  # begins a little after the line that says what is trained
    life.until(lambda: 'pictures to train on' in life.stderr())
    time.sleep(rng.uniform(0.5, 2))
  elif phase == 'evaluation':
    life.until(lambda: any(step > last and step % EVERY == 0 for step in logged()))
    time.sleep(rng.uniform(0, 0.2))
  else:  # decoding takes most of the time of a step, so most moments between two steps are waiting for data
    wanted = last + rng.randint(1, 6)
    life.until(lambda: max(logged(), default=0) >= wanted)
    time.sleep(rng.uniform(0, 0.02) if phase == 'step' else rng.uniform(0.02, 0.12))


def handled(pid):
  """Whether a process has a handler for SIGUSR1, for which Python has none of its own."""
  try:
    status = pathlib.Path(f'/proc/{pid}/status').read_text()
  except OSError:
    return False
  return bool(int(status.partition('SigCgt:')[2].split()[0], 16) >> (signal.SIGUSR1 - 1) & 1)


def live(number, workdir, data, reference, cache, rng):
  """The row of one life that gets one signal, or two."""
  phase, word = PHASES[number % len(PHASES)], NUMBERS[number % len(NUMBERS)]
  twice = number % 10 == 9
  word = signal.SIGINT if twice else word
  before, resumed, _ = lives.losses(workdir)
  sessions = len(resumed)
  kept = newest(workdir)
  life = lives.Life(
    workdir, f'folder:vit_tiny_patch16_224,{data}', flags_of(), cache=None if phase == 'compile' else cache
  )
  try:
    moment(life, phase, before, rng)
    first = logged(workdir, sessions)
    begun, there = time.monotonic(), life.send(word)
    if twice:
      time.sleep(0.05)
      life.send(word)
    last = logged(workdir, sessions)  # the signal came when this was the last step, or `first`, or one between
    code = life.ended()
    there = there and not (code == 0 and newest(workdir) == STEPS)  # it had come to its end
  finally:
    life.send(signal.SIGKILL)
    life.ended()
  seconds = time.monotonic() - begun
  found, resumed, _ = lives.losses(workdir)
  saved = newest(workdir)
  return {
    'phase': phase, 'signal': int(word), 'twice': twice, 'code': code, 'there': there, 'seconds': round(seconds, 2),
    'saved': saved, 'sent between': [first, last], 'logged': max(found, default=0),
    # nothing is lost, and at most one step is done after the signal; a second SIGINT asks for no saving
    'wrong step': not twice and not max(first, kept) <= saved <= max(last + 1, kept),
    'wrong code': there and code != 128 + word, 'differing': lives.differing(found, reference),
    'said': life.stderr().splitlines()[-1:],
  }  # fmt: skip


def logged(workdir, sessions):
  """The last step that the newest session has logged, 0 before its first; `sessions` resumed before it."""
  found, resumed, _ = lives.losses(workdir)
  return max(found, default=0) if len(resumed) > sessions or not resumed else 0


def newest(workdir):
  """The newest step on disk that has its manifest, 0 without one."""
  return max((int(path.parent.name) for path in workdir.glob('checkpoints/*/manifest.json')
              if path.parent.name.isdecimal()), default=0)  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--signals', type=int, default=50, help='(default: %(default)s)')
  parser.add_argument('--work', type=pathlib.Path, help='where all is kept; default: a new folder')
  parser.add_argument('--seed', type=int, default=0, help='of the moments (default: %(default)s)')
  args = parser.parse_args()
  work = (args.work or pathlib.Path(tempfile.mkdtemp(prefix='signals'))).absolute()
  work.mkdir(parents=True, exist_ok=True)
  ledger, cache, data = lives.Ledger(work / 'signals.jsonl'), work / 'cache', pictures(work / 'pictures')
  reference = lives.uninterrupted(work / 'reference', f'folder:vit_tiny_patch16_224,{data}', flags_of(), cache=cache)
  while sum(row['there'] for row in ledger.rows) < args.signals:
    number = len(ledger.rows)
    workdir = work / f'run{sum(row["code"] == 0 for row in ledger.rows)}'  # another one where one came to its end
    ledger.add(live(number, workdir, data, reference, cache, random.Random(args.seed * 10**6 + number)))
    print(ledger.rows[-1], file=sys.stderr)
  rows = [row for row in ledger.rows if row['there']]
  slow = max(rows, key=lambda row: row['seconds'])
  wrong = {key: sum(bool(row[key]) for row in rows) for key in ('wrong code', 'wrong step', 'differing')}
  phases = ', '.join(f'{sum(row["phase"] == phase for row in rows)} {phase}' for phase in PHASES)
  print(f'{len(rows)} signals ({phases}): {", ".join(f"{n} {key}" for key, n in wrong.items())}; '
        f'ended within {slow["seconds"]} s (phase {slow["phase"]})')  # fmt: skip
  return int(any(wrong.values()))


if __name__ == '__main__':
  sys.exit(main())
