"""kill -9 at any moment of a run whose workdir is gs://, and it ends with the numbers of one in a folder, in every bit.

  pip install 'vit_jax[gcs]' gcp-storage-emulator
  python tests/reliability/buckets.py --kills=20 [--steps=400] [--work=FOLDER] [--seed=0]

The bucket is an emulator of Google's store in this process, which the run reaches by gcsfs and a socket. A tiny ViT
learns the embedded digits, saves every 20 steps in the background, and is killed at random: while it starts, trains,
sends a checkpoint, removes one, or ends. Each next process takes the lock over, since the last one is gone. All losses
are compared with those of an uninterrupted run in a folder, and at the end all arrays. The last line is the figure.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import socketserver
import sys
import tempfile
import time

import lives

sys.path.insert(0, str(lives.ROOT))

EVERY, RUN = 20, 'gs://b/run'  # steps between two saves


def flags_of(steps):
  """The config's flags."""
  return {'total_steps': steps, 'log_every': 1, 'save.every': EVERY, 'eval_every': 100, 'save.last': 2}


def bucket():
  """Starts the emulator, and points this process and its children to it."""
  import logging

  from gcp_storage_emulator.server import create_server

  logging.disable(logging.CRITICAL)
  socketserver.BaseServer.handle_error = lambda *_: None  # who asked was killed
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  create_server('localhost', port, in_memory=True, default_bucket='b').start()
  os.environ |= {'STORAGE_EMULATOR_HOST': f'http://localhost:{port}', 'GOOGLE_CLOUD_PROJECT': 'p'}


def metrics(work):
  """A folder with a copy of the metrics.jsonl that lies in the bucket, for `lives`."""
  from vit_jax import storage

  with (work / 'metrics.jsonl').open('wb') as file:
    with contextlib.suppress(FileNotFoundError):
      file.write(storage.read(storage.path(RUN) / 'metrics.jsonl'))
  return work


def live(number, work, steps, reference, rng):
  """The row of one life, which is killed at a random moment unless it ended before."""
  life = lives.Life(RUN, 'digits', flags_of(steps), cache=work / 'cache', log=work / 'run.log')
  moment = time.monotonic() + rng.uniform(0, 25)
  life.until(lambda: time.monotonic() > moment)
  killed = life.send(signal.SIGKILL)
  code = life.ended()
  found, resumed, _ = lives.losses(metrics(work))
  return {
    'life': number, 'killed': killed and code == -signal.SIGKILL, 'code': code, 'last': max(found, default=0),
    'differing': lives.differing(found, reference), 'logged': len(found), 'resumed': resumed[-1:],
    'taken over': 'taken over from process' in life.stderr(), 'said': life.stderr()[-300:],
  }  # fmt: skip


def finished(work, steps, reference):
  """How many losses, lines and arrays of the run, which is let go on to its end, differ from those in the folder."""
  from vit_jax import checkpoint, checkpoint_remote, state, storage

  life = lives.Life(RUN, 'digits', flags_of(steps), cache=work / 'cache', log=work / 'run.log')
  assert life.ended(3600) == 0, life.stderr()
  found = lives.losses(metrics(work))[0]
  differing = lives.differing(found, reference) + len(set(reference) - set(found))
  differing += lives.rest_of(work) != lives.rest_of(work / 'reference')
  here = work / 'copy' / 'checkpoints'
  fault = checkpoint_remote.Steps(storage.path(RUN) / 'checkpoints', here).bring(steps)
  assert fault is None, fault
  ours, theirs = (state.flatten(checkpoint.read(one / str(steps), ('params', 'opt')))
                  for one in (here, work / 'reference' / 'checkpoints'))  # fmt: skip
  left = {name.partition('/')[0] for name in storage.files(storage.path(RUN) / 'checkpoints')}
  assert left <= {str(steps - EVERY), str(steps), *map(str, range(100, steps, 100))}, f'left behind: {left}'
  return differing + sum((ours[name] != theirs[name]).any() for name in theirs)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=20, help='(default: %(default)s)')
  parser.add_argument('--steps', type=int, default=400, help='of a run (default: %(default)s)')
  parser.add_argument('--work', type=pathlib.Path, help='where the reference and the log are; default: a new folder')
  parser.add_argument('--seed', type=int, default=0, help='of the moments (default: %(default)s)')
  args = parser.parse_args()
  work = (args.work or pathlib.Path(tempfile.mkdtemp(prefix='buckets'))).absolute()
  work.mkdir(parents=True, exist_ok=True)
  os.environ['VIT_JAX_CACHE'] = str(work / 'own')
  flags = flags_of(args.steps)
  reference = lives.uninterrupted(work / 'reference', 'digits', flags, cache=work / 'cache')
  bucket()
  rows, rng = [], random.Random(args.seed)
  while sum(row['killed'] for row in rows) < args.kills:
    rows.append(live(len(rows), work, args.steps, reference, rng))
    print(json.dumps({key: value for key, value in rows[-1].items() if key != 'said'}), file=sys.stderr)
    if rows[-1]['code'] not in (0, -signal.SIGKILL):
      sys.exit(f'it did not start: {rows[-1]["said"]}')
    if rows[-1]['code'] == 0:  # it came to its end before: another one
      from vit_jax import storage

      storage.remove_folder(storage.path(RUN))
  last = finished(work, args.steps, reference)
  figures = {
    'kills': sum(row['killed'] for row in rows), 'locks taken over': sum(row['taken over'] for row in rows),
    'losses compared': sum(row['logged'] for row in rows) + args.steps,
    'differing': sum(row['differing'] for row in rows) + last, 'lives': len(rows),
  }  # fmt: skip
  print(', '.join(f'{value} {name}' for name, value in figures.items()))
  return int(figures['differing'] > 0)


if __name__ == '__main__':
  sys.exit(main())
