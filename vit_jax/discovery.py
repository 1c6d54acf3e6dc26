"""What there is: `vit_jax list` models, configs and data sets, and `vit_jax show` one of them, or a run.

Text for a person, or --format=json for a script. Nothing is drawn or read that only names and shapes are wanted of.
"""

import ast
import fnmatch
import json
import os
import pathlib
import shutil
import sys
import textwrap

from vit_jax import commands, console, storage

DATASETS = {
  'digits': '1,797 handwritten digits of 8x8 pixels, inside the package',
  'DIR': 'folders of pictures: train/CLASS/x.jpg, or CLASS/x.jpg to be split; IDX, parquet or tar files',
  'FILE.csv': 'columns path, label and, if you like, split; FILE.jsonl holds the same as objects',
  'FILE.npz': 'arrays x_train, y_train, x_test, y_test',
  'FILE.parquet': 'a column image and a column label',
  'FILE.tar': 'shards with KEY.jpg and KEY.cls',
  'PREPARED': 'a folder that `vit_jax prepare DATA PREPARED` wrote: small upright pictures, read faster',
  'tfds:NAME': 'a set that tensorflow_datasets has prepared on this machine',
}
DATA_FILES = ('.csv', '.jsonl', '.tar', '.parquet')
WEIGHTS = ('.npz', '.safetensors', '.safetensors.index.json', '.pth', '.pt', '.bin')
OF_A_MODEL = ('checkpoints', 'config.json', 'model.json', 'run.json', 'info')  # what no folder of pictures holds


def list_(argv):
  """Lists models, configs or data sets, one a line."""
  parser = console.Parser('list', list_.__doc__)
  parser.add_argument('kind', nargs='?', default='models', help='models (default), configs or datasets')
  parser.add_argument('pattern', nargs='?', default='*', help="part of a name, or a pattern such as 'vit_*_224'")
  parser.add_argument('--tags', action='store_true', help='of models: one line for each set of pretrained weights')
  parser.add_argument('--format', default='table', choices=['table', 'json'], help='default: %(default)s')
  args = parser.parse_args(argv)
  if args.kind not in KINDS:
    raise ValueError(f'vit_jax list {args.kind}: choose from {", ".join(KINDS)}{console.nearest(args.kind, KINDS)}.')
  tagged = args.kind == 'models' and (args.tags or '.' in args.pattern)
  rows, line = ([] if tagged else _fitting(KINDS[args.kind][0](), args.pattern)), KINDS[args.kind][1]
  if args.kind == 'models' and not rows:  # Google's names, too, are those of weights
    rows, line = _fitting(weights(), args.pattern), _weights_line
  if not rows:
    raise ValueError(_nothing(args.kind, args.pattern))
  if args.format == 'json':
    print(json.dumps(rows, indent=1))
    return 0
  width = max(len(row['name']) for row in rows)
  columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
  for row in rows:
    print(textwrap.fill(line(row, width), columns, subsequent_indent=' ' * min(width + 2, 24), break_on_hyphens=False))
  return 0


def _fitting(rows, pattern):
  pattern = pattern if set(pattern) & set('*?[') else f'*{pattern}*'
  return [row for row in rows if fnmatch.fnmatchcase(row['name'], pattern)]


def _nothing(kind, pattern):
  """The error of a list without lines: the nearest names, and where else the pattern would find something."""
  names = [row['name'] for row in KINDS[kind][0]()]
  fitting = [other for other in KINDS if other != kind and _fitting(KINDS[other][0](), pattern)]
  others = [f'`vit_jax list {other} {pattern}`' for other in fitting]
  hint = f'; see {" and ".join(others)}' if others else console.nearest(pattern, names)
  return f'Of {len(names)} {kind} none matches {pattern!r}{hint}.'


def models():
  """[{name, parameters, image_size, pretrained: count, licences, where}] of every architecture."""
  from vit_jax import hub

  families = {}
  for row in hub.rows().values():
    families.setdefault(row['arch'], []).append(row)
  out = []
  for name, rows in sorted(families.items()):
    rows = [row for row in rows if row['name'].partition('.')[0] == name]  # Google's have lines of their own
    had = [row for row in rows if hub.is_row(row['name'])]
    first = {'name': name, 'parameters': rows[0]['parameters'], 'image_size': rows[0]['preprocessing']['size'][0]}
    licences = list(dict.fromkeys(row['licence'] or 'no licence' for row in had))
    where = list(dict.fromkeys(word for row in had for word in hub.places(row)))
    out.append(first | {'pretrained': len(had), 'licences': licences, 'where': where})
  return out


def _model_line(row, width):
  line = f'{row["name"]:<{width}} {row["parameters"] / 1e6:>7.1f} M {row["image_size"]:>4} px'
  told = f' {row["pretrained"]:>2} pretrained: {", ".join(row["licences"])} ({", ".join(row["where"])})'
  return line + told if row['pretrained'] else line


def weights():
  """[{name, parameters, image_size, classes, top1, numerics, licence, where}] of all sets of pretrained weights."""
  from vit_jax import hub

  kept = ('name', 'parameters', 'top1', 'numerics', 'licence')
  return [
    {key: row[key] for key in kept}
    | {'image_size': row['preprocessing']['size'][0], 'classes': row['num_classes'], 'where': where}
    for row in hub.rows().values()
    if (where := hub.places(row))
  ]


def _weights_line(row, width):
  top1 = f'{row["top1"]:>5.1f}%' if row['top1'] else f'{"-":>6}'  # published, on ImageNet-1k
  size = f'{row["parameters"] / 1e6:>7.1f} M {row["image_size"]:>4} px {row["classes"]:>6} classes'
  told = f'{row["numerics"]:<6} {row["licence"] or "no licence"} ({", ".join(row["where"])})'
  return f'{row["name"]:<{width}} {size} {top1}  {told}'


def configs():
  """[{name, summary}], the first line of its docstring, of every shipped config; none is run."""
  from vit_jax import config

  return [{'name': name, 'summary': _docstring(name).partition('\n')[0]} for name in config.names()]


def datasets():
  """[{name, summary}]: the spellings of --data, then what tfds has prepared here (read from its folders' names)."""
  home = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
  found = [*home.glob('*/*/features.json'), *home.glob('*/*/*/features.json')]  # NAME[/CONFIG]/VERSION
  prepared = sorted({path.parent.parent.relative_to(home).as_posix() for path in found})
  told = DATASETS | {f'tfds:{name}': 'prepared here' for name in prepared}
  return [{'name': name, 'summary': summary} for name, summary in told.items()]


def _summary_line(row, width):
  return f'{row["name"]:<{width}}  {row["summary"]}'.rstrip()


KINDS = {
  'models': (models, _model_line), 'configs': (configs, _summary_line), 'datasets': (datasets, _summary_line),
}  # fmt: skip


def show(argv):
  """Shows what a model is: size, image, GFLOPs, licence, where its weights are; or a run, a config, a data set."""
  parser = console.Parser('show', show.__doc__)
  commands.add_model(parser, positional=True)
  parser.add_argument('--format', default='table', choices=['table', 'json'], help='default: %(default)s')
  args = parser.parse_args(argv)
  found = _found(args)
  if args.format == 'json':
    print(json.dumps(found, indent=1))
    return 0
  text = found.pop('docstring', None)
  if text:
    print(f'{text}\n')
  console.table({word: _TEXT[word](value) if word in _TEXT else value for word, value in found.items()})
  return 0


def _found(args):
  """{word: value} of what a word names: a model or its weights first, then a config, then a data set."""
  from vit_jax import config, hub, pretrained
  from vit_jax import models as models_lib

  word = args.model
  configured = word.partition(':')[0] in config.names() and not os.path.exists(word)
  if not configured and pretrained.is_path(word) and _pictures(pathlib.Path(word)):
    return _dataset(word)
  if not configured and pretrained.is_path(word) or word.startswith(hub.PREFIX):
    return _model(*_of_weights(commands.opened(args)))
  if models_lib.is_name(word) or hub.is_row(word):
    name, given = pretrained.named(word)
    return _model(name, models_lib.architecture(name, **given), _published(word))
  out = _config(word) if configured else {}
  if word == 'digits' or word.startswith('tfds:'):
    out |= _dataset(word)
  if out:
    return out
  stem = word.partition('.')[0]
  if models_lib.is_name(stem):
    hub.row(word)  # says which tags there are
  names = [*models_lib.list_models(), *hub.rows(), *config.names(), *DATASETS]
  near = console.nearest(word, names)
  raise ValueError(f'There is no model, config or data set {word!r}{near}; `vit_jax list` shows what there is.')


def _model(name, made, rows):
  """What a model is, counted without computing, with rows that say more of its weights."""
  from vit_jax import bench
  from vit_jax import models as models_lib
  from vit_jax.models import vit

  model, size = models_lib.abstract(name, **made), vit.pair(made['img_size'])
  tokens, width = bench.tokens(model, size)
  return {
    'model': models_lib.canonical(name),
    'class': type(model).__name__,
    'parameters': models_lib.count(model),
    'image': list(size),
    'tokens': [tokens, width],
    'GFLOPs': float(f'{bench.forward_gflops(model, size):.4g}'),
    **rows,
    'architecture': made,
  }


def _published(name):
  """Rows on the weights that a name can be had with, if any."""
  from vit_jax import hub

  if not hub.is_row(name):
    return {}
  row = hub.row(name)
  here = hub.here(row)
  others = [other['name'] for other in hub.rows().values() if other['arch'] == row['arch'] and other != row]
  return {
    'weights': row['name'],
    'classes': f'{row["num_classes"]}' + (f' of {row["labels"]}' if row['labels'] else ''),
    'licence': row['licence'],
    **({'top-1': row['top1']} if row['top1'] else {}),
    'sources': hub.published(row),
    **({'here': str(here)} if here else {}),
    'preprocessing': row['preprocessing'],
    **({'others': others} if others else {}),
  }


def _of_weights(opened):
  """(name, architecture, rows) of weights; the rows say what they were trained on and how well that did."""
  described = opened.described
  if described['name'] is None:
    raise ValueError(f'{opened.path} holds a model that was changed in Python; only its weights are here.')
  opened.converted()  # refuses what is not as it is described
  rows = {'weights': f'{described["weights"]}: {storage.shown(opened.path)}'}
  if described.get('classes'):
    classes = f'{len(described["classes"])}: {", ".join(described["classes"])}'
    rows['classes'] = textwrap.shorten(classes, 100, placeholder=' ...')
  rows |= {key: described[key] for key in ('licence', 'preprocessing') if described.get(key)}
  trained = _history(opened.path) if opened.form == 'run' else {}
  return described['name'], described['architecture'], rows | trained


def _history(path):
  """Rows on how a run was trained and the best that it did."""
  from vit_jax import card

  found = card.record(path)
  about, rows = found['config'], {}
  if about:
    name = about.get('data', {}).get('name', 'arrays')
    rows['trained on'] = f'{name}, {about["total_steps"]} steps of {about["batch"]} pictures'
  key, words = ('map', 'mean average precision') if any('map' in line for line in found['rows']) else ('top1', 'top-1')
  evaluations = [line for line in found['rows'] if key in line]
  if evaluations:
    best = max(evaluations, key=lambda line: line[key])
    rows['best'] = f'{words} {best[key]:.4f} of {best["examples"]} pictures at step {best["step"]}'
  return rows


def _docstring(spec):
  from vit_jax import config

  return ast.get_docstring(ast.parse(config.find(spec)[0].read_text(encoding='utf-8'))) or ''


def _config(spec):
  """The docstring of a config and, where it needs no argument or was given it, the values that it sets."""
  from vit_jax import config

  out = {'docstring': _docstring(spec), 'config': str(config.find(spec)[0])}
  try:
    out['values'] = config.flat(config.load(spec).to_dict())
  except ValueError:
    if ':' in spec:
      raise
  return out


def _pictures(path):
  """Whether a path is rather a data set than a model."""
  if path.is_dir():
    names = [file.name for file in path.iterdir()]
    model = any(name in OF_A_MODEL or name.endswith(WEIGHTS) for name in names)
    return bool(names) and ('prepared.json' in names or not model)
  return path.suffix in DATA_FILES


def _dataset(name):
  """Splits and classes of a data set, as a training on it would open them."""
  from vit_jax import sources

  opened, problem = {}, None
  for split in ('train', 'test'):
    try:
      opened[split] = sources.open_source(name, split)
    except (ValueError, FileNotFoundError) as error:
      problem = problem or error
  if not opened:
    raise problem
  classes = list(next(iter(opened.values())).classes)
  told = f'{len(classes)}: {", ".join(classes)}'
  return {
    'data set': name,
    'pictures': {split: len(source) for split, source in opened.items()},
    'classes': textwrap.shorten(told, 400, placeholder=' ...'),
  }


def _pairs(row):
  return ' '.join(f'{key}={value}' for key, value in row.items())


_TEXT = {  # how a person is told the values of `show`
  'parameters': '{:,}'.format,
  'image': lambda size: f'{size[0]} x {size[1]} pixels',
  'tokens': lambda shape: f'{shape[0]} of {shape[1]} numbers',
  'GFLOPs': lambda count: f'{count:.3g} forward, one image (a multiply-add counts 2)',
  'licence': lambda word: word or 'none is known',
  'top-1': lambda percent: f"{percent:g} % of ImageNet-1k's validation pictures, as published",
  'sources': lambda found: '\n'.join(f'{word}: {address}' for word, address in found.items()),
  'preprocessing': _pairs,
  'others': ' '.join,
  'architecture': _pairs,
  'values': lambda values: '\n'.join(f'{key} = {value!r}' for key, value in values.items()),
  'pictures': lambda counts: ', '.join(f'{count:,} {split}' for split, count in counts.items()),
}
