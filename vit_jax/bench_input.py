"""`vit_jax bench input`: how many pictures the host reads, decodes and crops for training, and whether that is enough.

Alone it counts images per second and per CPU second (of all threads, user and system). With a model its training step
is measured on a batch that lies on the device, and then with batches as they come; waiting is the time between the end
of a step and the arrival of the next batch. Nothing is kept in memory: every picture is decoded, as in a first epoch.
"""

import itertools
import json
import statistics
import sys
import time

from vit_jax import console

READY = 6  # batches that may have been read while none was asked for
KEEPS_UP = 0.05  # of a step's time, at most, spent waiting


def command(argv):
  """Measures the host's part of training: images/s, also per CPU second, and with --model the share spent waiting."""
  parser = console.Parser('bench input', command.__doc__)
  parser.add_argument('--data', required=True, help='DIR, tfds:NAME, FILE.csv, ...: see vit_jax list datasets')
  parser.add_argument('--split', default='train', help='default: %(default)s')
  parser.add_argument('--size', type=int, default=224, help='of the crops, pixels (default: %(default)s)')
  parser.add_argument('--batch', type=int, default=128, help='default: %(default)s')
  parser.add_argument('--threads', type=int, help='that decode (default: one for each CPU)')
  parser.add_argument('--interpolation', default='bicubic', help='of the crops (default: %(default)s)')
  parser.add_argument('--seconds', type=float, default=5, help='of each measurement (default: %(default)s)')
  parser.add_argument('--model', metavar='NAME', help='an architecture to train, such as vit_small_patch16_224')
  parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'], help='default: %(default)s')
  args = parser.parse_args(argv)
  if min(args.size, args.batch, args.threads or 1) < 1 or args.seconds <= 0:
    raise ValueError(
      f'--size={args.size} --batch={args.batch} --threads={args.threads} --seconds={args.seconds:g}: numbers above 0 '
      'are wanted.'
    )
  from vit_jax import data, memory

  memory.keep_freed()  # as a training does
  loaded = data.load(args.data, size=args.size, train=args.split, test=None, threads=args.threads,
                     interpolation=args.interpolation, cache=0)  # fmt: skip
  model = args.model and _model(args.model, loaded, args.size)
  result = {'data': args.data, 'pictures': len(loaded.train), 'size': args.size, 'batch': args.batch,
            'threads': loaded.threads, **rate(loaded, batch=args.batch, seconds=args.seconds)}  # fmt: skip
  if model:
    found = beside(model, loaded, batch=args.batch, seconds=args.seconds, dtype=args.dtype)
    result |= {'model': args.model, 'dtype': args.dtype, **found}
  shown = {key: f'{value:.4g}' if isinstance(value, float) else value for key, value in result.items()}
  console.table(shown, sys.stderr)
  print(json.dumps(result))
  return 0


def rate(data, *, batch, seconds=5.0):
  """{'images_per_second', 'images_per_cpu_second'} of data.train_batches alone.

  data: of data.load.   batch: pictures at once.   seconds: how long, after the first batches; at least one is counted.
  """
  from vit_jax import data as data_lib

  batches = data_lib.train_batches(data, batch=batch, seed=0)
  try:
    for _ in range(data_lib.AHEAD + 1):  # which were begun together
      next(batches)
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while not count or time.perf_counter() - wall < seconds:
      count += len(next(batches)['image'])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  finally:
    batches.close()
  return {'images_per_second': count / wall, 'images_per_cpu_second': count / cpu}


def beside(model, data, *, batch, seconds=5.0, dtype='float32'):
  """{'step_milliseconds', 'step_images_per_second', 'waiting', 'keeps_up'} of training a model on data, with AdamW.

  model: an NNX module.   waiting: the share of the time in which the device has nothing to do, 0 to 1; keeps_up:
  whether that is below 5 %.   step_*: on a batch that lies on the device, so without waiting.
  Raises ValueError for a batch that does not split over the devices.
  """
  import jax

  from vit_jax import data as data_lib
  from vit_jax import sharding

  mesh = sharding.make_mesh()
  sharding.check_batch(mesh, batch=batch)
  run, step = _step(model, data, mesh, dtype)
  placed = data_lib.to_device(data_lib.train_batches(data, batch=batch, seed=0), sharding.batch(mesh))
  try:
    run, _ = jax.block_until_ready(step(run, next(placed)[1]))  # compiles
    pictures = next(placed)[1]
    run, alone, _ = _timed(run, step, itertools.repeat((None, pictures)), seconds)
    run, _, _ = _timed(run, step, itertools.islice(placed, READY), seconds)  # was read while nobody asked
    _, together, waits = _timed(run, step, placed, seconds)
  finally:
    placed.close()
  milliseconds = 1000 * statistics.median(alone)
  waiting = sum(waits) / (sum(waits) + sum(together))
  return {
    'step_milliseconds': milliseconds, 'step_images_per_second': 1000 * batch / milliseconds, 'waiting': waiting,
    'keeps_up': waiting < KEEPS_UP,
  }  # fmt: skip


def _timed(run, step, batches, seconds):
  """(the state, seconds of each step, seconds of waiting for each batch) until the time is over, or the batches are."""
  import jax

  steps, waits, began = [], [], time.perf_counter()
  while not steps or time.perf_counter() - began < seconds:
    asked = time.perf_counter()
    item = next(batches, None)
    if item is None:
      break
    got = time.perf_counter()
    run, _ = jax.block_until_ready(step(run, item[1]))
    waits.append(got - asked)
    steps.append(time.perf_counter() - got)
  return run, steps, waits


def _step(model, data, mesh, dtype):
  """(the state of a run, its jitted training step) as train.fit makes them, without augmentation."""
  from vit_jax import optim, state, tasks
  from vit_jax import step as step_lib

  graphdef, params, rest = state.split(model)
  program = step_lib.jitted(graphdef, params, rest, optim.make(total_steps=1_000_000), tasks.suited(None, data),
                            data.row, seed=0, options=step_lib.Step(dtype=dtype), mesh=mesh)  # fmt: skip
  return program.init(params, rest), program.step


def _model(name, data, size):
  """A fresh model for the classes and the size of the data."""
  from vit_jax import models, pretrained

  made = models.architecture(pretrained.named(name)[0])
  sized = {} if made['img_size'] == size else {'img_size': size}
  return pretrained.create_model(name, num_classes=len(data.classes), **sized)
