"""A number that is not finite, put in at a random step and place: the run stops, and every checkpoint is finite.

  python tests/reliability/nonfinite.py --injections=20 [--seed=0] [--out=FILE.jsonl]

NaN and Infinity are put into the gradient before the optimizer or into its update after it, or the rate is too high, in
float32 and bfloat16. After each the message must name the step, gradient norm and examples, all arrays of the newest
checkpoint must be finite, and a run without the poison must go on from it. FILE has a line for each; what is in it is
not done again. The last line printed is the figure.
"""

import argparse
import pathlib
import random
import re
import sys
import tempfile

import lives

sys.path.insert(0, str(lives.ROOT))
STEPS, EVERY = 12, 2
VALUES = {'nan': float('nan'), 'inf': float('inf'), '-inf': float('-inf')}


def poisoned(place, value, at):
  """AdamW; in step `at`, from 0, one entry of its gradient or of its update is `value`."""
  import jax
  import jax.numpy as jnp
  import optax

  def spoil(updates, state, params=None):
    leaves, tree = jax.tree.flatten(updates)
    leaves[-1] = jnp.where(state == at, leaves[-1].at[(0,) * leaves[-1].ndim].set(value), leaves[-1])
    return jax.tree.unflatten(tree, leaves), state + 1

  spoiler = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), spoil)
  adamw = optax.adamw(1e-3)
  return optax.chain(*((spoiler, adamw) if place == 'gradient' else (adamw, spoiler)))


def inject(number, seed, work):
  """The row of one injection."""
  import jax
  import numpy as np

  import vit_jax
  from vit_jax import checkpoint, guard
  from vit_jax import data as data_lib

  rng = random.Random(seed * 10**6 + number)
  place, word, at = rng.choice(['gradient', 'update', 'rate']), rng.choice(list(VALUES)), rng.randrange(STEPS)
  dtype = rng.choice(['float32', 'bfloat16'])
  draw = np.random.default_rng(number)
  pictures = draw.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), draw.integers(0, 3, 40)
  tiny = dict(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3)
  folder = work / str(number)

  def fit(optim):
    model = vit_jax.create_model('vit_tiny_patch16_224', **tiny)
    return vit_jax.fit(model, data_lib.from_arrays(pictures), steps=STEPS, batch=8, log_every=1, optim=optim,
                       save=dict(every=EVERY, last=2), workdir=folder, step=dict(dtype=dtype))  # fmt: skip

  row = {'place': place, 'value': word, 'at': at + 1, 'dtype': dtype, 'said': None}
  try:
    if place == 'rate':
      fit(dict(name='adamw', lr=1e38, schedule='constant', warmup=0))
    else:
      fit(poisoned(place, VALUES[word], at))
  except guard.Failed as failure:
    row['said'] = str(failure)
  newest = checkpoint.Checkpoints(folder).latest()
  row['newest'], row['finite'] = newest, True
  if newest:
    kept = checkpoint.read(folder / 'checkpoints' / str(newest), ('params', 'rest', 'opt'))
    row['finite'] = all(bool(np.isfinite(np.asarray(a, np.float32)).all()) for a in jax.tree.leaves(kept))
  shape = r'step (\d+) is not finite: loss \S+,( learning rate \S+,)? gradient norm .*; examples \d+'
  told = re.match(shape, row['said'] or '')
  row['named'] = bool(told) and (place == 'rate' or int(told[1]) == at + 1)
  row['went on'] = place == 'rate' or fit(poisoned(place, 0.0, STEPS)).step == STEPS
  return row


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--injections', type=int, default=20, help='(default: %(default)s)')
  parser.add_argument('--seed', type=int, default=0, help='of the steps and places (default: %(default)s)')
  parser.add_argument('--out', type=pathlib.Path, help='where a line for each is kept')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as work:
    ledger = lives.Ledger(args.out or pathlib.Path(work) / 'rows.jsonl')
    while len(ledger.rows) < args.injections:
      ledger.add(inject(len(ledger.rows), args.seed, pathlib.Path(work)))
      print(ledger.rows[-1], file=sys.stderr)
  good = {key: sum(row[key] for row in ledger.rows) for key in ('named', 'finite', 'went on')}
  n = len(ledger.rows)
  print(f'{n} injections: newest checkpoint finite {good["finite"]} of {n}, step named {good["named"]} of {n}, '
        f'gone on from it {good["went on"]} of {n}')  # fmt: skip
  return int(any(count < n for count in good.values()))


if __name__ == '__main__':
  sys.exit(main())
