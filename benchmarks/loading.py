"""Loading ViT-L/16 beside safetensors' own reader: python benchmarks/loading.py (about 2 CPU minutes, 1.3 GB of disk).

Each side runs in fresh processes that take turns; imports are not counted. Ours reads, transposes and fills a model, so
it ends with arrays that a jitted step takes; `safetensors.numpy.load_file` ends with numpy arrays as they lie in the
file. Memory is the peak of the process's anonymous pages (RssAnon: the pages of a mapped file do not count) above what
it had after its imports.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import threading
import time

import measure

MODEL = 'vit_large_patch16_224'
SIDES = {'safetensors': 'safetensors.numpy.load_file', 'vit_jax': 'vit_jax.create_model(pretrained=FILE)'}


def anonymous():
  """Bytes of anonymous memory of this process."""
  with open('/proc/self/status') as file:
    return 1024 * next(int(line.split()[1]) for line in file if line.startswith('RssAnon'))


class Peak(threading.Thread):
  """Watches the anonymous memory of the process between start and stop."""

  def __init__(self):
    super().__init__(daemon=True)
    self.before = self.peak = anonymous()
    self.going = True

  def run(self):
    while self.going:
      self.peak = max(self.peak, anonymous())
      time.sleep(0.002)

  def stop(self):
    """Bytes above those at the start."""
    self.going = False
    self.join()
    return max(self.peak, anonymous()) - self.before


def once(side, path):
  """Prints CPU seconds, seconds and peak bytes of one side reading the file at path."""
  if side == 'vit_jax':
    import jax

    import vit_jax
    from vit_jax import pretrained, state  # noqa: F401  (create_model is lazy)

    jax.numpy.zeros(()).block_until_ready()  # the backend starts with the first array
    load = lambda: jax.block_until_ready(state.split(vit_jax.create_model(MODEL, pretrained=path))[1])
  else:
    from safetensors.numpy import load_file

    load = lambda: load_file(path)
  watch = Peak()
  watch.start()
  cpu, wall = measure.cpu_seconds(), time.perf_counter()
  kept = load()
  cpu, wall = measure.cpu_seconds() - cpu, time.perf_counter() - wall
  print(json.dumps({'CPU seconds': cpu, 'seconds': wall, 'peak': watch.stop(), 'kept': len(kept)}))


def main():
  """Compares, or, as a child of itself, measures one side once."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=7, help='turns of each side (default: %(default)s)')
  parser.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    once(*args.child)
  else:
    compare(args.rounds)


def compare(rounds):
  """Prints the table of both sides taking turns and appends it to results/loading.jsonl."""
  measure.warn_if_busy()
  with tempfile.TemporaryDirectory() as folder:
    measure.run([sys.executable, '-c', f'import vit_jax; vit_jax.export(vit_jax.create_model({MODEL!r}), to="timm", '
                                       f'out={folder + "/model"!r})'])  # fmt: skip
    path = pathlib.Path(folder, 'model', 'model.safetensors')
    size, runs = path.stat().st_size, {side: [] for side in SIDES}
    for side in SIDES:
      measure.child('--child', side, str(path))  # the file is in the page cache for all that follow
    for _ in range(rounds):
      for side in SIDES:
        runs[side].append(measure.child('--child', side, str(path))[0])
  middle = lambda side, what: statistics.median(run[what] for run in runs[side])
  rows = [
    {
      'reader': name,
      'CPU seconds': middle(side, 'CPU seconds'),
      'ratio': statistics.median(
        mine['CPU seconds'] / theirs['CPU seconds'] for mine, theirs in zip(runs[side], runs['safetensors'])
      ),
      'seconds': middle(side, 'seconds'),
      'peak memory / weights': middle(side, 'peak') / size,
    }
    for side, name in SIDES.items()
  ]
  measure.table(rows)
  measure.record('loading', measure.machine() | {'weights': size}, rows)


if __name__ == '__main__':
  main()
