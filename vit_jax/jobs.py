"""What config.job names, done for a resolved config: train, evaluate, inference_time.

What can be refused is refused in this order, before anything compiles: mesh and batch, model, data, workdir.
"""

import functools
import json
import os
import shlex
import sys

import jax
import numpy as np

from vit_jax import (
  bench,
  console,
  distill,
  footprint,
  guard,
  imagenet,
  models,
  pretrained,
  sam,
  sharding,
  storage,
  tasks,
  train,
)
from vit_jax import data as data_lib
from vit_jax import step as step_lib
from vit_jax import workdir as workdir_lib

ROOM = 4 * 2**30  # bytes that activations may take on a CPU
WORTH = 10**6  # parameters from which on a run says what memory its step takes


def run(config, workdir, *, extend=False):
  """Does the job of a resolved config (config.resolve) and returns its numbers as a dict."""
  if config['deterministic']:  # read when the backend starts; a CPU needs nothing
    os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_deterministic_ops=true'
  devices = sharding.make_mesh(**config['mesh'])
  predicted = footprint.Predicted(config, devices.devices.flat)
  config = predicted.config = _accumulated(config, workdir, devices, predicted)
  options = step_lib.Step(**config['step'])
  hint = console.accelerator_hint(jax.default_backend())
  if hint:
    _say(hint)
  train.check_counts(devices, options, batch=config['batch'], batch_eval=config['batch_eval'])
  data_lib.check_repeats(config['data']['repeats'], config['batch'])
  if config['job'] == 'evaluate':
    if workdir is None:
      raise ValueError("job 'evaluate' needs --workdir=DIR, the folder of a run.")
    wanted = {key: config['data'][key] for key in ('holdout', 'threads', 'max_unreadable', 'data_dir')}
    name, split = config['data']['name'], config['data']['test']
    wanted |= {'batch': config['batch_eval'], 'task': config['task'], 'mesh': devices}
    return evaluate(pretrained.open_any(workdir)[0], name, split, **wanted)
  if config['job'] == 'inference_time':
    create, _, size = footprint.model(config, options)
    return bench.report(create(), size, batch=config['batch'], dtype=options.dtype)
  sam.check(sam.Sam(**config['optim']['sam']), devices, batch=config['batch'], accumulate=options.accumulate)
  memory = footprint.limit(devices)
  if memory:
    footprint.check(predicted, memory, devices.devices.flat[0].device_kind)
  try:
    return _train(config, workdir, devices, predicted, extend=extend)
  except jax.errors.JaxRuntimeError as error:
    if not memory or 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    said = ' '.join(str(error).split())[:160]
    enough = min(memory, 0.8 * predicted().total)  # a prediction below what there is was too low
    raise guard.Failed(f'out of memory ({said}). {footprint.advice(predicted, enough)}') from error


def _say(text, file=None):
  """Prints a line, on stderr where no file is given; of several processes, the first one does."""
  if jax.process_index() == 0:
    print(text, file=file or sys.stderr)


def evaluate(opened, name, split, *, batch, task=None, mesh=None, among='model', labels=None, **data):
  """Evaluates weights on a split of a data set, as one JSON line on stdout; returns its content.

  opened: as pretrained.open_any gives.   name, split, data: as data.load.   task: keyword arguments of tasks.make, None
  = by the labels, with the loss of the weights.   among: the answer is any class of the 'model', or one of those that
  the 'data' has.   labels: a file of other right answers, see imagenet.accepted.
  """
  described, columns = pretrained.SAID | opened.described, None
  pictures = evaluation_data(described, name, split, **data)
  if among == 'data':
    columns = _present(pictures.test)
    own = [pictures.classes[i] for i in columns]
    pictures = evaluation_data(described, name, split, classes=own, **data)
  accepted = None if labels is None else imagenet.accepted(labels, pictures.test, described)
  how = task and tasks.make(**task, classes=pictures.classes)
  judged = tasks.Judged(tasks.suited(how, pictures, loss=described['loss']), columns=columns, accepted=accepted)
  model, described = pretrained.filled(opened)
  shown = f'{described["weights"]} weights; {name}, {split}: {len(pictures.test)} pictures'
  _say(f'{storage.shown(opened.path)}: {shown}')
  found = train.evaluate(model, pictures, task=judged, batch=batch, mesh=mesh)
  names = _distinct(described['classes'] or pictures.classes, described['ids'])
  names = names if columns is None or not described['classes'] else [names[i] for i in columns]
  per_class = dict(zip(names, found.pop('per_class')))
  asked = {'model': storage.shown(opened.path), 'weights': described['weights'], 'data': name, 'split': split}
  _say(json.dumps({**asked, **found, 'per_class': per_class}), file=sys.stdout)
  return found


def _present(source):
  """The classes of a source that occur in it, int, in order."""
  labels = source.labels()
  if labels is None:
    raise ValueError('--among=data: these labels are known only by reading the examples; use a folder or a file.')
  return np.flatnonzero(tasks.counts(labels, len(source.classes)))


def evaluation_data(described, name, split, *, classes=None, **data):
  """The data.Data whose test is a split of a data set, prepared and labelled as described weights want it.

  name, split, data: as data.load.   classes: to count labels in, None = the weights'.

  Raises ValueError where the weights cannot tell the set's classes.
  """
  row = dict(pretrained.row(described))
  wanted = dict(train=None, test=split, eval_crop=row.pop('crop'), **row, **data)
  classes = classes or _classes(described, functools.partial(data_lib.load, name, **wanted))
  return data_lib.load(name, **wanted, classes=classes)


def _distinct(names, ids):
  """Names that come once each: ImageNet has two cranes."""
  return [f'{name} ({ids[i]})' if ids and names.count(name) > 1 else name for i, name in enumerate(names)]


def _classes(described, load):
  """The model's classes in the words of a data set: see imagenet.words, or by order where nobody names them.

  load: opens the data set as it is. Raises ValueError where the model cannot tell the set's classes.
  """
  names, ids = described.get('classes'), described.get('ids')
  if names and not ids and not imagenet.knows(names):
    return names
  own, n = load().classes, described['architecture']['num_classes']
  found = imagenet.words(pretrained.SAID | described, own)
  if found is not None:
    return found
  if len(own) != n or names:
    raise ValueError(
      f'The data has {len(own)} classes ({", ".join(own[:3])}, ...), and {described["weights"]} tells {n} others'
      f'{f" ({names[0]!r}, {ids[0]}, ...)" if names else ""}; name the folders by class or by WordNet id.'
    )
  _say(f'{described["weights"]} does not name its {n} classes: taken in the order of the data')
  return own


def _accumulated(config, workdir, devices, predicted):
  """The config with step.accumulate as a number: what its run began with, else the fewest parts that fit into memory.

  On a CPU, which would rather swap than refuse, ROOM bytes of activations are taken to fit.
  """
  if config['step']['accumulate'] is not None:
    return config
  begun = workdir and workdir_lib.begun(workdir)
  if config['job'] != 'train' or begun:
    return footprint.changed(config, {'step.accumulate': begun['step']['accumulate'] if begun else 1})
  memory, picture = footprint.limit(devices), predicted.picture()
  if memory:
    need = predicted()
    room = footprint.FILLED * memory - need.state - need.working
  else:
    picture, room = 1.5 * picture, ROOM / devices.size
  parts, batch = footprint.parts(config, devices, picture, room), config['batch']
  if parts > 1:
    needs = f'a picture takes about {picture / 2**20:,.1f} MB of activations, and {room / 2**20:,.0f} MB are there'
    _say(f'batches of {batch} in {parts} parts of {batch // parts}: {needs}')
  return footprint.changed(config, {'step.accumulate': parts})


def _unbalance(source):
  """A line about the smallest and the largest class of a source where they differ by more than a factor of two."""
  labels = source.labels()
  if labels is None:
    return None
  counts = tasks.counts(labels, len(source.classes))
  few, many = int(counts.argmin()), int(counts.argmax())
  if counts[many] <= 2 * counts[few]:
    return None
  return (f'classes are uneven: {source.classes[few]} has {counts[few]:,.0f} pictures to train on, '
          f'{source.classes[many]} {counts[many]:,.0f}')  # fmt: skip


def _patience(config, shapes, size):
  """A line with the hours that a run on a CPU will take, where these are some; the recipe stays as it is."""
  pictures = config['batch'] * config['total_steps']
  if models.count(shapes) * pictures < 1e12:  # an hour or so at worst: not worth asking XLA
    return None
  passes = 2 if config['optim']['sam']['rho'] else 1
  work = 3 * passes * bench.forward_gflops(shapes, size) * pictures
  hours = work / bench.cpu_gflops() / 3600
  if hours < 1:
    return None
  return (f'this will take about {hours:,.0f} hours here: {pictures:,} pictures are {work / 1e6:,.1f} PFLOP; a GPU, '
          'fewer --config.total_steps, a smaller model or img_size help')  # fmt: skip


def _teacher(config):
  """The model that config.task.teacher names, None where there is none; ValueError for what does not go together."""
  word, augmentation = config['task']['teacher'], config['step']['augment']
  task = tasks.make(**config['task'], classes=['no', 'yes'])
  distill.check(task, word, augmentation)
  train.check_mixing(task, augmentation)
  return word and pretrained.load(word)[0]


def _train(config, workdir, devices, predicted, *, extend):
  create, shapes, size = footprint.model(config, step_lib.Step(**config['step']))
  name, num_classes = config['model']['name'], config['model']['num_classes']
  teacher = _teacher(config)
  data = data_lib.load(**config['data'], size=size)
  task = tasks.suited(tasks.make(**config['task'], classes=data.classes), data)
  if num_classes not in (None, len(data.classes)):
    raise ValueError(f'model.num_classes is {num_classes}, and the data has {len(data.classes)}; leave it None.')
  model = create(num_classes=len(data.classes))
  counts = [f'{models.count(model):,} parameters', f'{len(data.train):,} pictures to train on']
  counts += [] if data.test is None else [f'{len(data.test):,} to test']
  counts += [f'{len(data.classes)} classes', f'{devices.size} x {devices.devices.flat[0].device_kind}']
  _say(f'{name} on {config["data"]["name"]}: {", ".join(counts)}')
  on_cpu = devices.devices.flat[0].platform == 'cpu'
  for line in (_unbalance(data.train), _patience(config, shapes, size) if on_cpu else None):
    if line:
      _say(line)
  same = {key: config[key] for key in ('batch', 'batch_eval', 'seed', 'log_every', 'eval_every', 'profile', 'watchdog')}
  same |= {key: config[key] for key in ('optim', 'step', 'save', 'mesh')}
  same |= {'task': task, 'teacher': teacher, 'predicted': _expected(predicted, model)}
  result = train.fit(model, data, steps=config['total_steps'], workdir=workdir, config=config, extend=extend, **same)
  _conclude(result, config, workdir)
  return result.metrics


def _expected(predicted, model):
  """Bytes that a step should take of a device; None for a small model, whose memory is no question, and for one whose
  prediction takes its time."""
  return predicted().total if models.count(model) >= WORTH and predicted.cheap else None


def _conclude(result, config, workdir):
  """Prints what a person wants to know after a run: the accuracy, where everything is, what to do next."""
  where, found = shlex.quote(workdir), result.metrics
  following = f'vit_jax show {where}'
  if found:
    seen, lost = found['examples'], found['unreadable']
    listed = f'{seen} + {lost} unreadable = {seen + lost} listed'
    score = f'mean average precision {found["map"]:.2%}' if 'map' in found else f'top-1 accuracy {found["top1"]:.2%}'
    _say(f'{score} on {seen} pictures ({listed}) after step {result.step}', file=sys.stdout)
    name, split = shlex.quote(config['data']['name']), shlex.quote(config['data']['test'])
    following = f'vit_jax evaluate --model={where} --data={name} --split={split}'
  _say(f'written to {workdir}: checkpoints/ model.json metrics.jsonl run.json tensorboard/', file=sys.stdout)
  _say(f'next: {following}', file=sys.stdout)
