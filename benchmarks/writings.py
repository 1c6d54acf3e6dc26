"""What each way to write the training step of a ViT costs on one H200, compiled ahead of time for it and not run.

  python benchmarks/writings.py [--model=B/16]     # plans what results/writings.jsonl lacks, 1 minute each; the table

The first row is the package as it is, with 197 tokens given to cuDNN, which jax does not let run yet; each other row
changes one thing: by config, or (those marked *) by putting back what was tried and given up. Bytes are those that
kernels read and write in a step, without caches; peak is of the compiler. Needs pip install 'vit_jax[plan]'.
"""

import argparse
import contextlib
import json
import os
import sys
from unittest import mock

import measure

KEPT = measure.RESULTS / 'writings.jsonl'
MACHINE, FIRST = 'h200', 'as it is'
MODELS = {'B/16': ('vit_base_patch16_224', 256), 'L/16': ('vit_large_patch16_224', 128)}
CONFIGS = {  # name -> changes of the config
  FIRST: {},
  'padded to 200 tokens, as jax wants it': {},
  'exact GELU': {'model.act_layer': 'gelu'},
  "attention='xla'": {'step.attention': 'xla'},
  'scan': {'step.scan': 'True'},
  "scan, remat='full'": {'step.scan': 'True', 'step.remat': 'full'},
  "scan, remat='dots'": {'step.scan': 'True', 'step.remat': 'dots'},
  "remat='dots'": {'step.remat': 'dots'},
  "remat='full'": {'step.remat': 'full'},
  "optim.accumulator_dtype='bfloat16'": {'optim.accumulator_dtype': 'bfloat16'},
}


def get_config(args):
  """The config of all rows; args: MODEL."""
  from ml_collections import ConfigDict

  name, batch = MODELS[args]
  return ConfigDict({
    'total_steps': 1000,
    'batch': batch,
    'model': {'name': name, 'num_classes': 1000, 'act_layer': 'gelu_tanh'},
    'data': {'name': 'imagenet'},
    'optim': {'lr': 1e-3, 'weight_decay': 0.1},
    'step': {'dtype': 'bfloat16', 'attention': 'cudnn', 'accumulate': 1},
  })  # fmt: skip


def one_product(self, x):
  """HeadDense.slices by one product, cut into q, k and v."""
  y = self(x)
  return [y[:, i] for i in range(y.shape[1])]


def bias_by_head(self, x):
  """HeadDense.slices with biases added to (b, heads, head_dim)."""
  import jax.numpy as jnp

  parts = [jnp.tensordot(x, self.kernel[...][:, i], 1) for i in range(self.kernel.shape[1])]
  return [part + self.bias[...][i] for i, part in enumerate(parts)]


GIVEN_UP = (
  '* norm without a barrier', '* q, k, v by one product', '* biases of q, k, v by head',
  '* GELU without jax.checkpoint',
)  # fmt: skip


def given_up(name):
  """A context in which the package writes a part of the step in a way that was given up."""
  import jax

  from vit_jax.models import layers

  plain = {key: each.__wrapped__ for key, each in layers.ACTIVATIONS.items() if hasattr(each, '__wrapped__')}
  return dict(zip(GIVEN_UP, (
    mock.patch.object(jax.lax, 'optimization_barrier', lambda x: x),
    mock.patch.object(layers.HeadDense, 'slices', one_product),
    mock.patch.object(layers.HeadDense, 'slices', bias_by_head),
    mock.patch.dict(layers.ACTIVATIONS, plain),
  ))).get(name, contextlib.nullcontext())  # fmt: skip


def planned(model, name):
  """What the plan of a row says, in the environment of machines.environment."""
  from vit_jax import planned

  request = {
    'config': f'{__file__}:{model}', 'overrides': CONFIGS.get(name, {}), 'machine': MACHINE, 'largest_batch': False,
    'kernels': 10_000, 'odd_tokens': not name.startswith('padded'),
  }  # fmt: skip
  with given_up(name):
    found = planned.plan(request)
  kinds = {}
  for kind, _, _, count, size, flops in found['groups']:
    sums = kinds.setdefault(kind, [0, 0, 0])
    kinds[kind] = [sums[0] + count, sums[1] + size / 1e9, sums[2] + flops / 1e12]
  said = {key: found[key] for key in ('gigabytes', 'kernels', 'peak_gib', 'gflops', 'milliseconds')}
  return said | ({'kinds': kinds} if name == FIRST else {})


def rows():
  """The rows that are there."""
  return [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', choices=MODELS, help='default: both')
  parser.add_argument('--row', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.row:
    print(json.dumps(planned(*args.row)))
    return
  from vit_jax import machines

  os.environ |= machines.environment(machines.named(MACHINE))
  models, there = [args.model] if args.model else list(MODELS), {(row['model'], row['writing']) for row in rows()}
  for model in models:
    for name in (*CONFIGS, *GIVEN_UP):
      if (model, name) not in there:
        found, _, _ = measure.child('--row', model, name)
        with open(KEPT, 'a') as file:
          file.write(json.dumps({'model': model, 'writing': name, **found, **measure.machine()}) + '\n')
  measure.table([
    {'model': row['model'], 'writing': row['writing'], 'GB': row['gigabytes'], 'kernels': row['kernels'],
     'peak GiB': row['peak_gib']} for row in rows() if row['model'] in models
  ])  # fmt: skip
  print('\nwhere the bytes and the FLOPs of the first rows go')
  measure.table([
    {'model': row['model'], 'kind of kernel': kind, 'launches': count, 'GB': size, 'TFLOP': flops}
    for row in rows() if row['writing'] == FIRST and row['model'] in models
    for kind, (count, size, flops) in sorted(row['kinds'].items(), key=lambda item: -item[1][1]) if size > 0.05
  ])  # fmt: skip


if __name__ == '__main__':
  sys.exit(main())
