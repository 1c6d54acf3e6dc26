"""Images per CPU second that training reads, of originals and of what `vit_jax prepare` makes of them.

  python benchmarks/prepare.py --photos=FOLDER

FOLDER holds a few photographs; crops of them become JPEGs of 500x375, and, made larger, of 4000x3000, in a temporary
folder, where each set is prepared as JPEG and as pixels. Training batches (random resized crop, uint8 224x224) are read
from each by a process of its own, in turn, round after round; the table has the medians. All files are in the page
cache and no picture is kept decoded, so this is the processor's part; a disk gains as the files shrink. What remains at
best is crop and resize: pixels in memory (`decoded`), cut in the same way.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

import input as jpegs
import measure
import numpy as np

SETS = {'500x375': ((500, 375), 512), '4000x3000': ((4000, 3000), 64)}  # name: size, how many
FORMS = 'original', 'jpeg', 'raw'
BATCH = 32
ENOUGH = 2  # CPU seconds of one measurement, in whole epochs


def make(photos, folder):
  """{(set, form): path, bytes of a picture, images per CPU second of making it} of all that is compared."""
  made = {}
  for name, (size, count) in SETS.items():
    original = pathlib.Path(folder, name)
    made[name, 'original'] = {'path': str(original), 'bytes': jpegs.make_jpegs(photos, original, count, size)}
    for form in FORMS[1:]:
      path = f'{original}-{form}'
      command = [sys.executable, '-m', 'vit_jax', 'prepare', original, path, '--short_side=256', f'--format={form}']
      _, cpu, _ = measure.run(command)
      page = json.loads(pathlib.Path(path, 'prepared.json').read_text())
      whole = sum(sum(one['bytes']) for one in page['splits'].values())
      made[name, form] = {'path': path, 'bytes': whole / (count + 2), 'prepared': (count + 2) / cpu}
    made[name, 'decoded'] = {'path': f'{original}-decoded', 'bytes': made[name, 'raw']['bytes']}
  return made


def read(path, threads):
  """Images per CPU second and per second of training batches, over whole epochs after one that warms up."""
  from vit_jax import data, memory

  memory.keep_freed()  # as vit_jax train does
  if path.endswith('-decoded'):
    loaded = decoded(path.removesuffix('-decoded') + '-raw', threads)
  else:
    loaded = data.load(path, size=jpegs.SIZE, interpolation='bilinear', threads=threads, cache=0)
  batches, steps = data.train_batches(loaded, batch=BATCH, seed=0), len(loaded.train) // BATCH
  for _ in range(steps):
    next(batches)
  count, cpu, wall = 0, measure.cpu_seconds(), time.perf_counter()
  while not count or measure.cpu_seconds() - cpu < ENOUGH:
    for _ in range(steps):
      count += len(next(batches)['image'])
  found = count / (measure.cpu_seconds() - cpu), count / (time.perf_counter() - wall)
  batches.close()
  return dict(zip(('per_cpu_second', 'per_second'), found))


def decoded(path, threads):
  """The pixels of a prepared set as arrays in memory."""
  from vit_jax import data, sources

  source = sources.open_source(path, 'train')
  images = np.stack([source[i]['image'] for i in range(len(source))])
  return data.load(((images, source.labels()), None), size=jpegs.SIZE, interpolation='bilinear', threads=threads)


def main():
  """Compares, or, as a child of itself, measures one form once."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--photos', help='folder of a few photographs')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--child', metavar='FOLDER', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    print(json.dumps(read(args.child, args.threads)))
    return
  if not args.photos:
    parser.error('--photos=FOLDER is needed')
  measure.warn_if_busy()
  machine = measure.machine()
  with tempfile.TemporaryDirectory() as folder:
    made = make(args.photos, folder)
    runs = {key: [] for key in made}
    for _ in range(args.rounds):
      for key, one in made.items():
        runs[key].append(measure.child('--child', one['path'], f'--threads={args.threads}')[0])
  middle = lambda key, what: statistics.median(run[what] for run in runs[key])
  rows = [
    {
      'pictures': key[0],
      'read from': key[1],
      'kB a picture': one['bytes'] / 1e3,
      'images per CPU second': middle(key, 'per_cpu_second'),
      'ratio': statistics.median(
        mine['per_cpu_second'] / its['per_cpu_second'] for mine, its in zip(runs[key], runs[key[0], 'original'])
      ),
      'images per second': middle(key, 'per_second'),
      'prepared per CPU second': one.get('prepared', ''),
    }
    for key, one in made.items()
  ]
  print(f'{args.threads} threads, {args.rounds} rounds')
  measure.table(rows)
  measure.record('prepare', machine, rows)


if __name__ == '__main__':
  main()
