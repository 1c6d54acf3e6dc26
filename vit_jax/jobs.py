"""What config.job names, done for a resolved config: train, evaluate, inference_time.

What can be refused is refused in this order, before anything compiles: mesh and batch, model, data, workdir.
"""

import functools
import json
import os
import shlex
import sys

import jax

from vit_jax import bench, console, models, pretrained, sharding, tasks, train
from vit_jax import data as data_lib


def run(config, workdir, *, extend=False):
  """Does the job of a resolved config (config.resolve) and returns its numbers as a dict."""
  if config['deterministic']:  # read when the backend starts; a CPU needs nothing
    os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_deterministic_ops=true'
  devices, options = sharding.make_mesh(**config['mesh']), train.Step(**config['step'])
  hint = console.accelerator_hint(jax.default_backend())
  if hint:
    print(hint, file=sys.stderr)
  train.check_counts(devices, options, batch=config['batch'], batch_eval=config['batch_eval'])
  if config['job'] == 'evaluate':
    if workdir is None:
      raise ValueError("job 'evaluate' needs --workdir=DIR, the folder of a run.")
    wanted = {key: config['data'][key] for key in ('holdout', 'threads', 'max_unreadable', 'data_dir')}
    name, split = config['data']['name'], config['data']['test']
    return evaluate(workdir, name, split, batch=config['batch_eval'], task=config['task'], mesh=devices, **wanted)
  create, size = _model(config, options)
  if config['job'] == 'inference_time':
    return bench.report(create(), size, batch=config['batch'], dtype=options.dtype)
  return _train(config, workdir, create, size, devices, extend=extend)


def evaluate(path, name, split, *, batch, task=None, mesh=None, **data):
  """Evaluates the weights of a run on a split of a data set, as one JSON line on stdout; returns its content.

  path: WORKDIR or WORKDIR/checkpoints/STEP.   name, split, data: as data.load.   task: keyword arguments of tasks.make.
  """
  model, described = pretrained.load(path)
  row = dict(described['preprocessing'])
  pictures = data_lib.load(
    name, train=None, test=split, eval_crop=row.pop('crop'), classes=described['classes'], **row, **data
  )
  print(f'{path}: {described["weights"]} weights; {name}, {split}: {len(pictures.test)} pictures', file=sys.stderr)
  found = train.evaluate(
    model, pictures, task=tasks.make(**task or {}, classes=pictures.classes), batch=batch, mesh=mesh
  )
  per_class = dict(zip(described['classes'], found.pop('per_class')))
  asked = {'model': str(path), 'weights': described['weights'], 'data': name, 'split': split}
  print(json.dumps({**asked, **found, 'per_class': per_class}))
  return found


def _model(config, options):
  """(function that makes the config's model, its image size); raises ValueError for what cannot be built."""
  wanted = dict(config['model'])
  fixed = {key: wanted.pop(key) for key in ('name', 'pretrained', 'num_classes', 'reset', 'numerics')}
  made = pretrained.architecture_of(fixed['name'], fixed['pretrained']) | wanted
  execution = {key: getattr(options, key) for key in models.EXECUTION}
  models.abstract(fixed['name'], **made, **execution)
  arguments = {**fixed, 'reset': tuple(fixed['reset']), 'seed': config['seed'], **wanted, **execution}
  return functools.partial(pretrained.create_model, **arguments), made['img_size']


def _train(config, workdir, create, size, devices, *, extend):
  name, num_classes = config['model']['name'], config['model']['num_classes']
  data = data_lib.load(**config['data'], size=size)
  if num_classes not in (None, len(data.classes)):
    raise ValueError(f'model.num_classes is {num_classes}, and the data has {len(data.classes)}; leave it None.')
  model = create(num_classes=len(data.classes))
  counts = [f'{models.count(model):,} parameters', f'{len(data.train):,} pictures to train on']
  counts += [] if data.test is None else [f'{len(data.test):,} to test']
  counts += [f'{len(data.classes)} classes', f'{devices.size} x {devices.devices.flat[0].device_kind}']
  print(f'{name} on {config["data"]["name"]}: {", ".join(counts)}', file=sys.stderr)
  same = {key: config[key] for key in ('batch', 'batch_eval', 'seed', 'log_every', 'eval_every', 'profile')}
  same |= {key: config[key] for key in ('optim', 'step', 'save', 'mesh')}
  task = tasks.make(**config['task'], classes=data.classes)
  result = train.fit(
    model, data, steps=config['total_steps'], task=task, workdir=workdir, config=config, extend=extend, **same
  )
  _conclude(result, config, workdir)
  return result.metrics


def _conclude(result, config, workdir):
  """Prints what a person wants to know after a run: the accuracy, where everything is, what to do next."""
  where, found = shlex.quote(workdir), result.metrics
  following = f'vit_jax show {where}'
  if found:
    seen, lost = found['examples'], found['unreadable']
    listed = f'{seen} + {lost} unreadable = {seen + lost} listed'
    print(f'top-1 accuracy {found["top1"]:.2%} on {seen} pictures ({listed}) after step {result.step}')
    name, split = shlex.quote(config['data']['name']), shlex.quote(config['data']['test'])
    following = f'vit_jax evaluate --model={where} --data={name} --split={split}'
  print(f'written to {workdir}: checkpoints/ model.json metrics.jsonl run.json tensorboard/')
  print(f'next: {following}')
