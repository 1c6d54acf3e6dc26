"""What the commands take: evaluate, predict, probe, label, selftrain, look, report, ...

Each takes its arguments, prints its result on stdout and all else on stderr, and returns an exit code. What it needs is
imported after its arguments were read, so that --help and a misspelt flag are answered at once.
"""

import contextlib
import csv
import json
import os
import sys

from vit_jax import console, guard

FORMATS = ('table', 'csv', 'json', 'jsonl')


def evaluate(argv):
  """Prints one JSON line: loss, top1, top5, ece and more of a model on one split of a data set."""
  parser = console.Parser('evaluate', evaluate.__doc__)
  add_model(parser)
  parser.add_argument('--data', required=True, help='DIR, tfds:NAME, FILE.csv, ...: see vit_jax list datasets')
  parser.add_argument(
    '--split', default='test', help='which part, slices too: test, train[:10%%] (default: %(default)s)'
  )
  parser.add_argument(
    '--batch', type=int, default=64, help='examples at once; changes no result (default: %(default)s)'
  )
  among = 'choose among all classes of the model, or those that the data has, as for ImageNet-A and -R'
  parser.add_argument('--among', choices=['model', 'data'], default='model', help=f'{among} (default: %(default)s)')
  parser.add_argument('--labels', metavar='FILE', help='more right answers: real.json of ImageNet ReaL, or one like it')
  args = parser.parse_args(argv)
  from vit_jax import card, hosts, jobs

  hosts.start()  # several share the work
  _hint()
  weights = opened(args)
  task = card.record(weights.path)['config'].get('task') if weights.form == 'run' else None
  jobs.evaluate(weights, args.data, args.split, batch=args.batch, task=task, among=args.among, labels=args.labels)
  return 0


def predict(argv):
  """Prints the most probable classes of pictures: a table, or with --format csv, json or jsonl."""
  parser = console.Parser('predict', predict.__doc__)
  add_model(parser)
  parser.add_argument('pictures', nargs='+', metavar='PICTURE', help="a file, a folder, or a pattern such as '*.png'")
  parser.add_argument('--top', type=int, default=5, help='how many classes of each picture (default: %(default)s)')
  parser.add_argument('--format', choices=FORMATS, help='default: table on a terminal, else csv')
  parser.add_argument(
    '--batch', type=int, default=32, help='pictures at once; changes no result (default: %(default)s)'
  )
  args = parser.parse_args(argv)
  if args.top < 1:
    raise ValueError(f'--top={args.top}: at least 1 is wanted.')
  from vit_jax import inference, pretrained

  files = inference.paths(args.pictures)
  predictor = inference.Predictor(*pretrained.filled(opened(args)), batch=args.batch)
  top, bad = min(args.top, len(predictor.classes)), []
  form = args.format or ('table' if sys.stdout.isatty() else 'csv')
  with _WRITERS[form](top) as write:
    for path, probabilities, reason in console.progress(inference.each(predictor, files), 'predict', len(files)):
      if reason is not None:
        bad.append(f'{path}: {reason}')
      write(str(path), reason, None if reason is not None else predictor.top(probabilities[None], top)[0])
  return console.unread(bad, len(files))


@contextlib.contextmanager
def _table(top):
  """Writes a table to the terminal when all rows are there."""
  import rich.console
  import rich.table

  table = rich.table.Table(box=None, pad_edge=False)
  table.add_column('picture', overflow='fold')
  for i in range(top):
    table.add_column(f'{i + 1}')

  def write(path, reason, classes):
    if reason is None:
      table.add_row(rich.markup.escape(path), *(f'{rich.markup.escape(name)} {p:.1%}' for name, p in classes))

  yield write
  if table.row_count:
    rich.console.Console().print(table)


@contextlib.contextmanager
def _csv(top):
  """Writes path,top1,prob1,...: one line for each picture that could be read, at once."""
  lines = csv.writer(sys.stdout, lineterminator='\n')
  lines.writerow(['path', *(f'{word}{i + 1}' for i in range(top) for word in ('top', 'prob'))])

  def write(path, reason, classes):
    if reason is None:
      lines.writerow([path, *(value for name, p in classes for value in (name, f'{p:.6g}'))])

  yield write


def _record(path, reason, classes):
  """A picture as JSON: {'path', 'classes': [{'name', 'probability'}, ...]} or {'path', 'error'}."""
  if reason is not None:
    return json.dumps({'path': path, 'error': reason}, ensure_ascii=False)
  found = [{'name': name, 'probability': float(f'{p:.6g}')} for name, p in classes]
  return json.dumps({'path': path, 'classes': found}, ensure_ascii=False)


@contextlib.contextmanager
def _jsonl(top):
  yield lambda *answer: print(_record(*answer))


@contextlib.contextmanager
def _json(top):
  records = []
  yield lambda *answer: records.append(_record(*answer))
  print('[' + ',\n '.join(records) + ']')


_WRITERS = {'table': _table, 'csv': _csv, 'json': _json, 'jsonl': _jsonl}


def probe(argv):
  """Prints how well a model's features tell classes apart: few-shot, linear and kNN probes, as one table."""
  parser = console.Parser('probe', probe.__doc__)
  add_model(parser)
  parser.add_argument('--data', required=True, help='DIR, tfds:NAME, FILE.csv, ...: see vit_jax list datasets')
  parser.add_argument('--train', default='train', help='the split to learn from (default: %(default)s)')
  parser.add_argument('--test', default='test', help='the split to be measured on (default: %(default)s)')
  parser.add_argument('--shots', help='pictures of each class, such as 1,5 (default: those of 1,5,10,25 that all have)')
  parser.add_argument('--methods', default='fewshot,ridge,linear,knn', help='default: %(default)s')
  parser.add_argument('--tune', default='', metavar='head,lora', help='train these too, by gradient descent; slow')
  parser.add_argument('--steps', type=int, default=500, help='of --tune (default: %(default)s)')
  parser.add_argument('--batch', type=int, default=64, help='pictures at once; changes no probe (default: %(default)s)')
  parser.add_argument('--format', choices=['table', 'json'], default='table', help='default: %(default)s')
  args = parser.parse_args(argv)
  shots = args.shots and args.shots.split(',')
  if shots and not all(map(str.isdecimal, shots)) or args.batch < 1 or args.steps < 1:
    raise ValueError(f'--shots={args.shots} --batch={args.batch} --steps={args.steps}: numbers from 1 are wanted.')
  from vit_jax import probe as probing

  methods = probing.listed(args.methods, probing.METHODS, '--methods')
  tune = probing.listed(args.tune, probing.TUNED, '--tune')
  _hint()
  found = probing.run(
    opened(args), args.data, splits=(args.train, args.test), shots=shots and list(map(int, shots)), methods=methods,
    tune=tune, steps=args.steps, batch=args.batch,
  )  # fmt: skip
  print(probing.written(found, args.format))
  return 0


def label(argv):
  """Labels pictures by a teacher, and writes those it is sure of, as many of each class, as a data set to train on."""
  parser = console.Parser('label', label.__doc__)
  add_model(parser)
  parser.add_argument('pictures', nargs='+', metavar='PICTURE', help='files, folders, patterns; FILE.npz; an IDX file')
  parser.add_argument('out', metavar='OUT', help='a FILE.csv to write (path,label,confidence), or of arrays a FILE.npz')
  _add_choice(parser)
  parser.add_argument('--batch', type=int, default=32, help='pictures at once (default: %(default)s)')
  args = parser.parse_args(argv)
  _check_choice(args)
  if os.path.exists(args.out):
    raise ValueError(f'{args.out} is there already; name another OUT, or remove it.')
  from vit_jax import selftrain

  items = selftrain.pictures(args.pictures, args.split)
  _hint()
  choice = {'confidence': args.confidence, 'balance': args.balance}
  return console.unread(selftrain.teach(opened(args), items, args.out, **choice, batch=args.batch), len(items))


def selftrain(argv):
  """Noisy Student: a teacher labels pictures, a noised student learns from them too, and teaches the next one."""
  from vit_jax import main

  argv, overrides = main.split_overrides(argv)
  parser = console.Parser('selftrain', selftrain.__doc__)
  parser.add_argument('--model', required=True, help='the teacher: WORKDIR, FILE or NAME')
  parser.add_argument('--data', required=True, help='the labelled data set, with what to test on')
  parser.add_argument('pictures', nargs='+', metavar='PICTURE', help='without labels: as of vit_jax label')
  parser.add_argument('--workdir', required=True, help='where 1/pseudo.csv, 1/student, 2/... go, and what is continued')
  parser.add_argument('--generations', type=int, default=1, help='how many students (default: %(default)s)')
  _add_choice(parser)
  args = parser.parse_args(argv)
  _check_choice(args)
  with guard.signals():
    from vit_jax import selftrain as training

    training.loop(
      args.model, args.data, args.pictures, args.workdir, split=args.split, generations=args.generations,
      confidence=args.confidence, balance=args.balance, overrides=overrides,
    )  # fmt: skip
  return 0


def _add_choice(parser):
  parser.add_argument('--split', default='train', help='of a FILE.npz: its x_SPLIT (default: %(default)s)')
  parser.add_argument('--confidence', type=float, default=0.3, help='what a label needs (default: %(default)s)')
  parser.add_argument(
    '--balance', type=int, help='pictures of each class, the surest first, repeated where a class has fewer; 0: all '
    'there are (default: as many as a class has on average)',
  )  # fmt: skip


def _check_choice(args):
  if not 0 <= args.confidence < 1 or (args.balance or 0) < 0:
    raise ValueError(f'--confidence={args.confidence} --balance={args.balance}: 0 to 1 and a number from 0 are wanted.')


def look(argv):
  """Writes pictures and arrays of what a model looks at into OUT: attention, rollout, attribution, filters."""
  parser = console.Parser('look', look.__doc__)
  add_model(parser)
  parser.add_argument('pictures', nargs='+', metavar='PICTURE', help="a file, a folder, or a pattern such as '*.png'")
  parser.add_argument('out', metavar='OUT', help='the folder to write into')
  args = parser.parse_args(argv)
  from vit_jax import gallery, inference, pretrained

  return gallery.write(*pretrained.filled(opened(args)), inference.paths(args.pictures), args.out)


def augment(argv):
  """Writes sheets of pictures into OUT: every operation and option of augmentation, and what a config trains on."""
  parser = console.Parser('augment', augment.__doc__)
  parser.add_argument('pictures', nargs='+', metavar='PICTURE', help="a file, a folder, or a pattern such as '*.png'")
  parser.add_argument('out', metavar='OUT', help='the folder to write into')
  parser.add_argument('--config', action='append', default=[], metavar='NAME', help='a config; may be given again')
  args = parser.parse_args(argv)
  from vit_jax import inference, sheet

  return sheet.write(inference.paths(args.pictures), args.out, args.config)


def report(argv):
  """Writes one report.html of a run that needs nothing else: curves, classes, confusion, calibration, errors."""
  parser = console.Parser('report', report.__doc__)
  parser.add_argument('workdir', metavar='WORKDIR', help='the folder of a run')
  parser.add_argument('--data', help='the data set, where it is not where the run found it')
  parser.add_argument('--split', help="which part of it (default: the run's test split)")
  parser.add_argument('--out', metavar='FILE', help='where to write (default: WORKDIR/report.html)')
  args = parser.parse_args(argv)
  from vit_jax import report as reporting

  print(reporting.write(args.workdir, data=args.data, split=args.split, out=args.out))
  return 0


def serve(argv):
  """Serves a model: a page to drop pictures on, and the same as JSON; on this machine only unless --host says more."""
  parser = console.Parser('serve', serve.__doc__)
  add_model(parser)
  parser.add_argument('--host', default='127.0.0.1', help='address to listen at (default: %(default)s)')
  parser.add_argument('--port', type=int, default=8000, help='default: %(default)s; 0 takes any that is free')
  parser.add_argument('--batch', type=int, default=16, help='most pictures computed at once (default: %(default)s)')
  for flag, kind, default, words in (
    ('--max_bytes', int, 16 * 2**20, 'of a picture as it is sent'),
    ('--max_pixels', int, 50_000_000, 'of a picture'),
    ('--timeout', float, 30.0, 'seconds that a request may take'),
    ('--concurrency', int, 64, 'requests for pictures at once; more are answered 503'),
  ):
    parser.add_argument(flag, type=kind, default=default, help=f'{words} (default: %(default)s)')
  parser.add_argument('--any_origin', action='store_true', help='on loopback, answer other names and other sites too')
  parser.add_argument('--verbose', action='store_true', help='one line about each request on stderr')
  args = parser.parse_args(argv)
  from vit_jax import serve as serving

  weights = ('model', 'arch', 'numerics', 'unsafe')
  flags = {key: value for key, value in vars(args).items() if key not in weights}
  return serving.main(lambda: opened(args), **flags)


def bench(argv):
  """Measures inference, a table on stderr and one JSON line on stdout; `vit_jax bench input` measures reading."""
  if argv[:1] == ['input']:
    from vit_jax import bench_input

    return bench_input.command(argv[1:])
  parser = console.Parser('bench', bench.__doc__)
  add_model(parser)
  parser.add_argument('--batch', type=int, default=32, help='images at once (default: %(default)s)')
  parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'], help='default: %(default)s')
  parser.add_argument('--seconds', type=float, default=5, help='how long to measure (default: %(default)s)')
  args = parser.parse_args(argv)
  from vit_jax import bench as benchmark
  from vit_jax import hub, models, pretrained

  if pretrained.is_path(args.model) or args.model.startswith(hub.PREFIX):
    model, described = pretrained.filled(opened(args))
    size = described['architecture']['img_size']
  else:
    model, size = pretrained.create_model(args.model), models.architecture(pretrained.named(args.model)[0])['img_size']
  _hint()
  benchmark.report(model, size, batch=args.batch, dtype=args.dtype, seconds=args.seconds)
  return 0


def export(argv):
  """Writes a model for use elsewhere: its weights (timm, hf, npz), or a program that needs no vit_jax."""
  parser = console.Parser('export', export.__doc__)
  add_model(parser)
  formats = {
    'timm': 'a folder for timm', 'hf': 'a folder for transformers', 'npz': "Google's file",
    'stablehlo': 'a folder with a program for jax on CPU, GPU and TPU', 'onnx': 'a file for onnxruntime',
  }  # fmt: skip
  listed = ', '.join(f'{name} ({what})' for name, what in formats.items())
  parser.add_argument('--to', required=True, choices=list(formats), help=listed, metavar='FORMAT')
  parser.add_argument('out', metavar='OUT', help='the folder or file to write; must not exist')
  parser.add_argument('--dtype', default='float32', help='of a stablehlo program, or bfloat16 (default: %(default)s)')
  parser.add_argument('--verify', action='store_true', help='read it back, compare bits and outputs, and say so')
  parser.add_argument('--images', metavar='DIR', help='pictures for --verify (default: the embedded digits)')
  args = parser.parse_args(argv)
  from vit_jax import exports

  checks = exports.export(
    args.model, to=args.to, out=args.out, arch=args.arch, numerics=args.numerics, unsafe=args.unsafe,
    dtype=args.dtype, verify=args.verify or args.images is not None, images=args.images,
  )  # fmt: skip
  for words, figure in checks.items():
    print(f'{words}: {figure}', file=sys.stderr)
  print(args.out)
  return 0


def add_model(parser, *, positional=False):
  """Adds --model (or MODEL) and what says how a file is to be understood, to a command that takes any weights."""
  told = 'WORKDIR, FILE, FOLDER, NAME or hf_hub:ORG/REPOSITORY'
  if positional:
    parser.add_argument('model', metavar='NAME', help=f'{told}; or a config, or a data set')
  else:
    parser.add_argument('--model', required=True, help=told)
  parser.add_argument(
    '--arch', help='architecture of a FILE that does not say what it is, such as vit_base_patch16_224'
  )
  parser.add_argument('--numerics', choices=['google', 'timm'], help='how a Google .npz is to be understood')
  parser.add_argument('--unsafe', action='store_true', help='read .pth and .bin, by torch and without its pickle')


def opened(args):
  """The weights.Weights that add_model's arguments mean."""
  from vit_jax import pretrained

  return pretrained.open_any(args.model, arch=args.arch, numerics=args.numerics, unsafe=args.unsafe)[0]


def _hint():
  """Says on stderr what to install where an accelerator lies idle."""
  import jax

  hint = console.accelerator_hint(jax.default_backend())
  if hint:
    print(hint, file=sys.stderr)
