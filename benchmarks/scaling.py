"""What training takes of up to 256 chips that are not here: memory, exchange, the largest batch. Compiled, not run.

  python benchmarks/scaling.py            # plans what results/scaling.jsonl lacks; 40 CPU minutes
  python benchmarks/scaling.py --table    # prints the table of what is there

Needs pip install 'vit_jax[plan]'. This file is also the config of all rows: ViT with tanh GELU at 224 pixels, AdamW, in
bfloat16, layers as a loop (scan). 'data': each chip has the whole state, and products are kept for the backward pass
(remat dots). 'fsdp': the state is cut over all chips, and layers are computed anew (remat full); 'fsdp16': over 16 of
them, and each 16 have all of it. On GPUs attention is cuDNN's, on TPUs the plain one. One step of the batch per chip
that is shown, no more than fits with 5 % room.
"""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import sys

from ml_collections import ConfigDict

RESULTS = pathlib.Path(__file__).parent / 'results' / 'scaling.jsonl'
NAMES = {
  'B/16': 'vit_base_patch16_224', 'L/16': 'vit_large_patch16_224', 'H/14': 'vit_huge_patch14_224',
  'g/14': 'vit_giant_patch14_224',
}  # fmt: skip
ROWS = [  # model, layout, batch a chip, machines with a search for the largest batch, and without
  ('H/14', 'fsdp', 8, ('h200x8',), ()),
  ('g/14', 'fsdp', 8, ('h200x8',), ()),
  ('B/16', 'data', 64, ('h200', 'h200x8', 'v5e-2x2'), ()),
  ('L/16', 'fsdp', 16, ('h200x8',), ('v5e-16x16',)),
  ('g/14', 'fsdp', 8, (), ('v6e-4x4',)),
  ('H/14', 'fsdp', 8, (), ('v6e-2x4',)),
  ('B/16', 'data', 64, (), ('v5e-16x16', 'v6e-16x16')),
  ('L/16', 'fsdp16', 16, (), ('v5e-16x16', 'v6e-16x16')),
  ('H/14', 'fsdp16', 8, (), ('v5e-16x16', 'v6e-16x16')),
  ('L/16', 'fsdp', 16, (), ('v6e-16x16',)),
  ('H/14', 'fsdp', 8, (), ('v5e-16x16', 'v6e-16x16')),
  ('g/14', 'fsdp', 8, (), ('v5e-8x8',)),
  ('L/16', 'fsdp', 16, ('v5e-2x4',), ()),
  ('H/14', 'fsdp', 8, ('v5e-4x4',), ()),
]


def get_config(args):
  """The config of a row; args: MODEL,LAYOUT,BATCH,CHIPS,ATTENTION."""
  model, layout, batch, chips, attention = args.split(',')
  fsdp = 1 if layout == 'data' else int(layout.removeprefix('fsdp') or chips)
  return ConfigDict({
    'total_steps': 1000,
    'batch': int(batch) * int(chips),
    'model': {'name': NAMES[model], 'num_classes': 1000, 'act_layer': 'gelu_tanh'},
    'data': {'name': 'imagenet'},
    'optim': {'lr': 1e-3, 'weight_decay': 0.1},
    'step': {
      'dtype': 'bfloat16',
      'scan': True,
      'remat': 'dots' if layout == 'data' else 'full',
      'attention': attention,
    },
    'mesh': {'data': -1, 'fsdp': fsdp},
  })  # fmt: skip


def planned(model, layout, batch, name, *, largest):
  """The row of a model on a machine; largest: whether the largest batch is searched."""
  from vit_jax import machines, plan

  machine = machines.named(name)
  attention = 'cudnn' if machine.chip.platform == 'cuda' else 'xla'
  spec = f'{pathlib.Path(__file__)}:{model},{layout},{batch},{machine.chips},{attention}'
  found = plan.made(spec, name, largest_batch=largest)
  sent = lambda rows, ops: sum(row['mib'] for row in rows if row['op'] in ops)
  ways = {
    'gathered': ('all-gather', 'ring gather'), 'scattered': ('reduce-scatter', 'ring scatter'),
    'summed': ('all-reduce',), 'moved about': ('all-to-all', 'collective-permute'),
  }  # fmt: skip
  return {
    'model': model, 'layout': layout, 'machine': name, 'chips': machine.chips, 'batch_per_chip': batch,
    'peak_gib': found['peak_gib'], 'predicted_gib': found['predicted_gib'], 'memory_gib': found['memory_gib'],
    **{f'{word}_mib': sent(found['collectives'], ops) for word, ops in ways.items()},
    'sent_mib': sum(row['moved_mib'] for row in found['collectives']),
    'least_mib': sum(row['moved_mib'] for row in found['minimum']),
    'tflop': found['gflops'] / 1e3, 'compile_seconds': found['compile_seconds'],
    'largest': found.get('largest_batch'),
  }  # fmt: skip


def table(rows):
  """Prints the rows as a Markdown table."""
  print('| model | layout | machine | chips | batch a chip | peak (predicted) of GiB | gathered, scattered, summed, '
        'moved about, MiB | a chip sends (at least), MiB | largest batch a chip (GiB) |')  # fmt: skip
  print('|' + ' --- |' * 9)
  for row in rows:
    about = ', '.join(f'{row[f"{word}_mib"]:,.0f}' for word in ('gathered', 'scattered', 'summed', 'moved about'))
    most = f'{row["largest"]["per_chip"]:,} ({row["largest"]["peak_gib"]:.2f})' if row['largest'] else ''
    print(f'| {row["model"]} | {row["layout"]} | {row["machine"]} | {row["chips"]} | {row["batch_per_chip"]} '
          f'| {row["peak_gib"]:.2f} ({row["predicted_gib"]:.2f}) of {row["memory_gib"]:.1f} | {about} '
          f'| {row["sent_mib"]:,.0f} ({row["least_mib"]:,.0f}) '
          f'| {most} |')  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--table', action='store_true', help='plan nothing, print what is there')
  args = parser.parse_args()
  lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
  found = [json.loads(line) for line in lines]
  known = {(row['model'], row['layout'], row['machine']) for row in found}
  for model, layout, batch, searched, others in () if args.table else ROWS:
    for name in (*searched, *others):
      if (model, layout, name) in known:
        continue
      versions = {word: importlib.metadata.version(word) for word in ('jax', 'libtpu', 'jax-cuda13-plugin')}
      try:
        row = planned(model, layout, batch, name, largest=name in searched)
      except ValueError as error:  # libtpu fails on some
        print(f'{model} {layout} on {name}: {error}', file=sys.stderr)
        continue
      row |= {'date': datetime.date.today().isoformat(), 'versions': versions}
      found.append(row)
      with RESULTS.open('a') as file:
        file.write(json.dumps(row) + '\n')
      table([row])
  table(found)


if __name__ == '__main__':
  main()
