"""CPU seconds of inference, training and a start: vit_jax beside timm on PyTorch, and beside a trainer in Linen.

  python benchmarks/cpu.py --peers=PYTHON

PYTHON is an interpreter with torch and timm (and vit_jax's tensorflow-cpu, jax and flax for the start); see README.md.
Against timm, eager: ViT-B/16 inference and ViT-S/16 training at 224, float32, random data, each side in a process of
its own; they take turns, and a row has the median of each and of the ratios of neighbouring turns. A start is a process
from its first line to the end of its second step, because the reference compiles in its second step again: imports,
fresh ViT-Ti/16, data from memory, two steps of 8. Ours is vit_jax.fit with all that it does around a step, without and
with what an earlier run has compiled.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

import measure
import worker

CLASSES, BATCH, SIZE = 1000, 8, 224
MODELS = {  # timm's name: what side_torch.py is told of its size
  'vit_small_patch16_224': {'image': 224},
  'vit_base_patch16_224': {'image': 224},
}
# What: (model, batch, train, at most this share of timm's CPU seconds)
STEPS = {
  'inference of ViT-B/16, batch 1': ('vit_base_patch16_224', 1, False, 0.75),
  'inference of ViT-B/16, batch 16': ('vit_base_patch16_224', 16, False, 1.0),
  'training of ViT-S/16, batch 16': ('vit_small_patch16_224', 16, True, 1.0),
}
STARTS = {'start, nothing compiled': (False, 0.6), 'start, compiled by an earlier run': (True, 0.25)}


def steps(what, args):
  """A row: CPU seconds of a step of both sides."""
  name, batch, train, wanted = STEPS[what]
  flags = {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {args.flags}'.strip()}
  sides = {
    'vit_jax': (worker.Worker('side_jax.py', python=args.peers, env=flags), {'attention': 'xla'}),
    # passive: else its threads count CPU seconds while they wait for each other, the more the busier the machine is
    'timm': (worker.Worker('side_torch.py', python=args.peers, env={'OMP_WAIT_POLICY': 'PASSIVE'}),
             {'library': 'timm', 'sizes': MODELS[name], 'channels_last': False}),
  }  # fmt: skip
  try:
    ask = lambda side, do, **how: answer(side, sides[side][0].ask(do, timeout=600, **how))
    count = {}
    for side, (_, how) in sides.items():
      ask(side, 'build', name=name, batch=batch, train=train, dtype='float32', **how)
      count[side] = max(1, round(args.seconds / ask(side, 'run', steps=1)['seconds']))
    seconds = {side: [] for side in sides}
    for number in range(args.rounds):
      for side in list(sides) if number % 2 else reversed(sides):  # neither side always follows the other
        time.sleep(0.2)  # torch's threads look for work a little longer
        seconds[side].append(ask(side, 'run', steps=count[side])['cpu_seconds'] / count[side])
  finally:
    for process, _ in sides.values():
      process.close()
  return row(what, seconds['vit_jax'], seconds['timm'], wanted, 'timm, eager')


def answer(side, said):
  """What a side said; its failure ends this run."""
  if 'error' in said:
    sys.exit(f'{side} failed: {said["error"]}')
  return said


def starts(args):
  """Rows: CPU seconds to the end of the second step, of ours without and with a compilation cache."""
  if not args.starts:
    return []
  seconds = {key: [] for key in ('reference', *STARTS)}
  with tempfile.TemporaryDirectory() as kept:
    start('vit_jax', args, kept)  # the earlier run
    for _ in range(args.starts):
      seconds['reference'].append(start('reference', args, ''))
      for what, (warm, _) in STARTS.items():
        seconds[what].append(start('vit_jax', args, kept if warm else ''))
  reference = seconds.pop('reference')
  return [row(what, own, reference, STARTS[what][1], 'Linen + tf.data') for what, own in seconds.items()]


def start(side, args, kept):
  """CPU seconds that a process of a side took; kept: the cache folder of vit_jax, '' = nothing is kept."""
  command = [args.peers, __file__, '--child', side, f'--kept={kept}']
  return json.loads(measure.run(command)[0].splitlines()[-1])


def child(side, kept):
  """CPU seconds of this process when it has taken two steps."""
  from vit_jax import compilation

  if kept:
    os.environ['XDG_CACHE_HOME'] = kept
    compilation.keep()  # as vit_jax train does
  import numpy as np

  rng = np.random.default_rng(0)
  images, labels = rng.integers(0, 256, (4 * BATCH, SIZE, SIZE, 3), np.uint8), rng.integers(0, CLASSES, 4 * BATCH)
  if side == 'reference':
    import linen_train

    _, compiled = linen_train.train('tiny', images, labels, batch=BATCH, classes=CLASSES, steps=2)
    assert compiled == 2, compiled
  else:
    import vit_jax
    from vit_jax import data

    pictures = data.from_arrays((images, labels), classes=list(map(str, range(CLASSES))))
    model = vit_jax.create_model('vit_tiny_patch16_224', num_classes=CLASSES)
    vit_jax.fit(model, pictures, steps=2, batch=BATCH, optim={'lr': 1e-3, 'weight_decay': 0.05, 'clip': 1.0})
  return time.process_time()


def row(what, own, other, wanted, reference):
  """A row of the table; own, other: CPU seconds, one a round."""
  ratios = sorted(a / b for a, b in zip(own, other))
  return {
    'CPU seconds': what,
    'vit_jax': statistics.median(own),
    'beside': reference,
    'its': statistics.median(other),
    'ratio': statistics.median(ratios),
    'middle half': f'{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}',
    'wanted': f'at most {wanted:g}',
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--peers', default=sys.executable, metavar='PYTHON', help='default: this one')
  parser.add_argument('--rounds', type=int, default=9, help='turns of each side (default: %(default)s)')
  parser.add_argument('--seconds', type=float, default=1.5, help='of a turn (default: %(default)s)')
  parser.add_argument('--starts', type=int, default=3, help='processes of each kind; 0 leaves starts out')
  parser.add_argument('--only', nargs='*', default=list(STEPS), choices=list(STEPS), help='of the steps')
  parser.add_argument('--flags', default='', help='more XLA_FLAGS for our steps')
  parser.add_argument('--child', choices=['reference', 'vit_jax'], help='used by this script itself')
  parser.add_argument('--kept', default='', help='used by this script itself')
  args = parser.parse_args()
  if args.child:
    print(child(args.child, args.kept))
    return
  measure.warn_if_busy()
  machine = measure.machine()
  rows = []
  for found in [*(lambda what=what: [steps(what, args)] for what in args.only), lambda: starts(args)]:
    rows += found()
    print(json.dumps(rows[-1:]), file=sys.stderr, flush=True)
  measure.table(rows)
  measure.record('cpu', {**machine, 'flags': args.flags}, rows)


if __name__ == '__main__':
  main()
