"""The commands that need no module of their own: evaluate, list, show, bench.

Each takes its arguments, prints its result on stdout and all else on stderr, and returns an exit code. What it needs is
imported after its arguments were read, so that --help and a misspelt flag are answered at once.
"""

import ast
import fnmatch
import json
import os
from pathlib import Path
import sys
import textwrap

from vit_jax import console

DATASETS = """\
digits                1,797 handwritten digits of 8x8 pixels, inside the package
DIR                   folders of pictures: train/CLASS/x.jpg, or CLASS/x.jpg to be split; IDX, parquet or tar files
FILE.csv  FILE.jsonl  columns path, label and, if you like, split
FILE.npz              arrays x_train, y_train, x_test, y_test
FILE.parquet          a column image and a column label
FILE.tar              shards with KEY.jpg and KEY.cls
tfds:NAME             a set that tensorflow_datasets has prepared on this machine"""


def evaluate(argv):
  """Prints one JSON line: loss, top1, top5 and examples of a model on one split of a data set."""
  parser = console.Parser('evaluate', evaluate.__doc__)
  parser.add_argument('--model', required=True, help='WORKDIR, FILE or NAME')
  parser.add_argument('--data', required=True, help='DIR, tfds:NAME, FILE.csv, ...: see vit_jax list datasets')
  parser.add_argument(
    '--split', default='test', help='which part, slices too: test, train[:10%%] (default: %(default)s)'
  )
  parser.add_argument(
    '--batch', type=int, default=64, help='examples at once; changes no result (default: %(default)s)'
  )
  args = parser.parse_args(argv)
  from vit_jax import jobs

  _hint()
  task = _trained(args.model).get('task') if _is_path(args.model) else None
  jobs.evaluate(args.model, args.data, args.split, batch=args.batch, task=task)
  return 0


def list_(argv):
  """Lists models, configs or data sets, one a line."""
  kinds = {'models': model_lines, 'configs': config_lines, 'datasets': dataset_lines}
  parser = console.Parser('list', list_.__doc__)
  parser.add_argument('kind', nargs='?', default='models', help='models (default), configs or datasets')
  parser.add_argument('pattern', nargs='?', default='*', help="part of a name, or a pattern such as 'vit_*_224'")
  args = parser.parse_args(argv)
  if args.kind not in kinds:
    raise ValueError(f'vit_jax list {args.kind}: choose from {", ".join(kinds)}{console.nearest(args.kind, kinds)}.')
  pattern = args.pattern if set(args.pattern) & set('*?[') else f'*{args.pattern}*'
  lines = [line for line in kinds[args.kind]() if fnmatch.fnmatchcase(line.split()[0], pattern)]
  if not lines:
    names = [line.split()[0] for line in kinds[args.kind]()]
    raise ValueError(
      f'Of {len(names)} {args.kind} none matches {args.pattern!r}{console.nearest(args.pattern, names)}.'
    )
  print('\n'.join(lines))
  return 0


def show(argv):
  """Shows what a model is: parameters, image, tokens, GFLOPs, architecture; of a workdir also how it was trained."""
  parser = console.Parser('show', show.__doc__)
  parser.add_argument('model', help='NAME or WORKDIR')
  word = parser.parse_args(argv).model
  from vit_jax import bench, models
  from vit_jax.models import vit

  described = _run(word) if _is_path(word) else {'name': word, 'architecture': models.architecture(word)}
  name, made = models.canonical(described.pop('name')), described.pop('architecture')
  model = models.abstract(name, **made)
  h, w = vit.pair(made['img_size'])
  tokens, width = bench.tokens(model, (h, w))
  rows = {
    'model': f'{name} ({type(model).__name__})',
    'parameters': f'{models.count(model):,}',
    'image': f'{h} x {w} pixels',
    'tokens': f'{tokens} of {width} numbers',
    'GFLOPs': f'{bench.forward_gflops(model, (h, w)):.3g} forward, one image (a multiply-add counts 2)',
    **described,
    'architecture': ' '.join(f'{key}={value}' for key, value in made.items()),
  }
  console.table(rows)
  return 0


def bench(argv):
  """Measures inference: images/s, compile time, FLOPs and memory, as a table on stderr and one JSON line on stdout."""
  parser = console.Parser('bench', bench.__doc__)
  parser.add_argument('--model', required=True, help='NAME or WORKDIR')
  parser.add_argument('--batch', type=int, default=32, help='images at once (default: %(default)s)')
  parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'], help='default: %(default)s')
  parser.add_argument('--seconds', type=float, default=5, help='how long to measure (default: %(default)s)')
  args = parser.parse_args(argv)
  from vit_jax import bench as benchmark
  from vit_jax import models, pretrained

  if _is_path(args.model):
    model, described = pretrained.load(args.model)
    size = described['architecture']['img_size']
  else:
    model, size = pretrained.create_model(args.model), models.architecture(args.model)['img_size']
  _hint()
  benchmark.report(model, size, batch=args.batch, dtype=args.dtype, seconds=args.seconds)
  return 0


def model_lines():
  """The canonical names of all architectures."""
  from vit_jax import models

  return models.list_models()


def config_lines():
  """'name  first line of its docstring' for every shipped config; none is run."""
  from vit_jax import config

  paths = [config.folder() / f'{name}.py' for name in config.names()]
  docs = [ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '' for path in paths]
  return [f'{path.stem:<16} {doc.partition(chr(10))[0]}'.rstrip() for path, doc in zip(paths, docs)]


def dataset_lines():
  """The spellings of --data, then what tensorflow_datasets has prepared here (read from its folders' names)."""
  home = Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
  found = [*home.glob('*/*/features.json'), *home.glob('*/*/*/features.json')]  # NAME[/CONFIG]/VERSION
  prepared = sorted({path.parent.parent.relative_to(home).as_posix() for path in found})
  return [*DATASETS.splitlines(), *(f'tfds:{name}' for name in prepared)]


def _is_path(model):
  """Whether --model=WORKDIR|FILE|NAME is no name: it exists, or is written like a path."""
  return os.path.exists(model) or os.sep in model


def _trained(path):
  """The config of the run that a workdir, or one of its checkpoints, is of; {} where only the weights were copied."""
  from vit_jax import checkpoint

  record = checkpoint.find(path)[0].parent.parent / 'run.json'
  return json.loads(record.read_text())['config'] if record.exists() else {}


def _run(path):
  """{'name', 'architecture', ...} of a workdir, and rows that say what it was trained on and how well it did."""
  from vit_jax import checkpoint, pretrained

  folder, which = checkpoint.find(path)
  described, trained = pretrained.describe(folder), _trained(path)
  if described['name'] is None:
    raise ValueError(f'{path} holds a model that was changed in Python; only its weights are here.')
  classes = f'{len(described["classes"])}: {", ".join(described["classes"])}'
  rows = {'weights': f'{which}: {folder}', 'classes': textwrap.shorten(classes, 100)}
  if trained:
    name = trained.get('data', {}).get('name', 'arrays')
    rows['trained on'] = f'{name}, {trained["total_steps"]} steps of {trained["batch"]} pictures'
  log = folder.parent.parent / 'metrics.jsonl'
  whole = log.read_text().split('\n')[:-1] if log.exists() else []  # a killed run may have torn its last line
  evaluations = [line for line in map(json.loads, whole) if 'top1' in line]
  if evaluations:
    best = max(evaluations, key=lambda line: line['top1'])
    rows['best'] = f'top-1 {best["top1"]:.4f} of {best["examples"]} pictures at step {best["step"]}'
  return {'name': described['name'], 'architecture': described['architecture']} | rows


def _hint():
  """Says on stderr what to install where an accelerator lies idle."""
  import jax

  hint = console.accelerator_hint(jax.default_backend())
  if hint:
    print(hint, file=sys.stderr)
