"""The run, top to bottom: build, restore, step, evaluate, save. One step serves every kind of training.

The state of a run is one dict of arrays: step, params, rest, opt, with averaged weights ema, and where some parameters
are not trained, these as frozen. It holds no random state, because keys and pictures are pure functions of
(seed, step), so a resumed run repeats lost steps bit for bit.
"""

import contextlib
import dataclasses
import functools
import os
import time
from typing import NamedTuple

from flax import nnx
import jax
import numpy as np
import optax

from vit_jax import data as data_lib
from vit_jax import diskfull, distill, guard, health, hlo, pretrained, sam, sharding, state, tasks
from vit_jax import metrics as metrics_lib
from vit_jax import optim as optim_lib
from vit_jax import step as step_lib
from vit_jax import watch as watch_lib
from vit_jax.models import attention, placement
from vit_jax.workdir import Workdir

# Of an evaluation, in metrics.jsonl, as far as its task has them.
LOGGED = 'loss', 'top1', 'top5', 'map', 'f1_micro', 'f1_macro', 'exact', 'examples', 'seconds'


class Result(NamedTuple):
  """What fit gives: the trained model (averaged weights if any), the last evaluation, the last step."""

  model: nnx.Module
  metrics: dict
  step: int


class Evaluator:
  """Evaluates parameters on a source: every example once, whatever the batch size and the number of devices."""

  def __init__(self, graphdef, task, data, source, *, mesh, batch, dtype):
    sharding.check_batch(mesh, batch_eval=batch)
    self.task, self.data, self.source, self.mesh, self.batch = task, data, source, mesh, batch
    step = step_lib.make_eval_step(graphdef, task, data.row, dtype, mesh)
    self.step = jax.jit(step, out_shardings=sharding.replicated(mesh))

  def __call__(self, params, rest):
    """The task's finished metrics, 'unreadable' (how many pictures could not be read) and 'seconds'."""
    start = time.perf_counter()
    batches = data_lib.eval_batches(self.data, self.source, batch=self.batch, process_index=jax.process_index(),
                                    process_count=jax.process_count())  # fmt: skip
    sums = []
    for _, batch in data_lib.to_device(batches, sharding.batch(self.mesh)):
      guard.at('evaluation')
      sums.append(self.step(params, rest, batch))
      jax.block_until_ready(sums[-2:-1])  # few batches lie in memory, and a signal is heard between two
    done = self.task.finish(metrics_lib.add(jax.device_get(sums)))
    unreadable = len(self.source) - done['examples']
    return {**done, 'unreadable': unreadable, 'seconds': time.perf_counter() - start}


def evaluate(model, data, *, task=None, batch=128, dtype='float32', mesh=None):
  """Metrics of a model on data.test: loss, top1, top5 (fractions), ece, examples, per_class, unreadable, seconds; of
  'multilabel' map, f1_micro, f1_macro, exact in place of top1, top5, ece (see metrics.finish_multilabel).

  model: an NNX module, images (b, h, w, c) -> logits (b, k).   data: see data.load.   task: see tasks.make, None = what
  the labels ask for.   batch: a multiple of the devices.   dtype: of the computation.   mesh: see sharding.make_mesh.
  """
  mesh = mesh or sharding.make_mesh()
  graphdef, params, rest = state.split(model)
  task = task if isinstance(task, tasks.Judged) else tasks.suited(task, data)
  evaluator = Evaluator(graphdef, task, data, data.test, mesh=mesh, batch=batch, dtype=dtype)
  placed = {'params': params, 'rest': rest}
  placed = jax.device_put(placed, sharding.shardings(mesh, placed))
  return evaluator(placed['params'], placed['rest'])


def fit(
  model, data, *, steps, task=None, teacher=None, optim=None, step=None, save=None, mesh=None, batch=128,
  batch_eval=None, seed=0, log_every=50, eval_every=None, profile=None, workdir=None, config=None, extend=False,
  watchdog=None, predicted=None,
):  # fmt: skip
  """Trains a model: a Result with the trained model, which is the given one with new weights.

  model: any NNX module, (images (b, h, w, c), key=None) -> logits (b, k).   data: of data.load or data.from_arrays.
  steps: how many in all.   task: of tasks.make, None = by the labels.   teacher: a model for a task with distillation,
  of load or fit.   optim: keyword arguments of optim.make, or an optax transformation.   step, save, mesh: keyword
  arguments of Step, checkpoint.Checkpoints and sharding.make_mesh.
  batch, batch_eval: pictures a step, over all devices.   log_every, eval_every: in steps; None = at the end only.
  profile: (first, last) step of a jax.profiler trace.   workdir: where to write, and what to resume, a folder or an
  address such as gs://BUCKET/NAME; None = nothing is written.   config: what run.json records and a resumed run is
  compared with, None = these arguments.
  extend: allow a larger `steps` than the workdir was begun with.   watchdog: seconds without progress after which the
  stacks of all threads are shown.   predicted: bytes of a device's memory that a step is expected to take, which are
  then shown beside what it takes.

  Raises ValueError, before anything is compiled, for arguments that do not fit together or do not fit the workdir, or
  where another process has the workdir; guard.Failed where the loss, the gradient or the weights are not finite.
  """
  options, devices = step_lib.Step(**step or {}), sharding.make_mesh(**mesh or {})
  batch_eval = batch if batch_eval is None else batch_eval
  check_counts(devices, options, batch=batch, batch_eval=batch_eval, log_every=log_every, eval_every=eval_every)
  _check_run(data, steps=steps, batch=batch, profile=profile, workdir=workdir)
  task = tasks.suited(task, data)
  distill.check(task, teacher, options.augment)
  check_mixing(task, options.augment)
  optimizer = _optimizer(optim, steps)
  sam.check(optimizer.sam, devices, batch=batch, accumulate=options.accumulate)
  config = config or _as_config(optim, options, batch=batch, seed=seed, total_steps=steps)
  taught = {}
  if teacher is not None:
    teacher = distill.Teacher(teacher, task, size=data.row['size'], dtype=options.dtype)
    taught = {'teacher': teacher.record}

  pretrained.remember(model, preprocessing=data.row, classes=list(data.classes), ids=None, loss=task.loss_name,
                      **taught)  # fmt: skip
  graphdef, params, rest = state.split(model)
  optimizer = optim_lib.tuned(optimizer, params)
  looking = teacher if teacher is not None and task.teacher_at == 'step' else None
  program = step_lib.jitted(graphdef, params, rest, optimizer, task, data.row, seed=seed, options=options, mesh=devices,
                            teacher=looking)  # fmt: skip
  hosts = dict(process_index=jax.process_index(), process_count=jax.process_count())
  with guard.run(hosts=jax.process_count()), guard.watchdog(watchdog), contextlib.ExitStack() as stack:
    folder = Workdir(workdir, config | taught, model=model, data=data, steps=steps, save=save or {}, extend=extend)
    stack.callback(folder.close)
    folder.check_room(program.shapes)
    run = folder.restore(program.shapes) if folder.first else program.init(params, rest)
    if folder.finished and (data.test is None or folder.metrics()):
      folder.say_finished()
      state.update(model, *step_lib.weights(run))
      return Result(model, folder.metrics() or {}, steps)

    watch = watch_lib.Watch(folder.path, total_steps=steps, start=folder.first, primary=jax.process_index() == 0)
    stack.callback(watch.close)
    if folder.begun not in (None, steps) and optimizer.schedule:
      _note_extended(watch, folder, optimizer.schedule, _optimizer(optim, folder.begun).schedule)
    data = dataclasses.replace(data, report=watch.warn)
    train_step = Ahead(program.step, watch.note, predicted)
    test = None if data.test is None else Evaluator(graphdef, task, data, data.test, mesh=devices, batch=batch_eval,
                                                    dtype=options.dtype)  # fmt: skip
    batches = data_lib.train_batches(data, batch=batch, seed=seed, start=folder.first, **hosts)
    if looking is not None:
      train_step = functools.partial(train_step, weights=teacher.placed(devices))
    elif teacher is not None:
      batches = distill.joined(batches, teacher, data, batch=batch_eval, mesh=devices, folder=folder.path)
    placed = data_lib.to_device(batches, sharding.batch(devices))
    stack.callback(placed.close)
    run, metrics = _loop(run, train_step, placed, test, watch, folder, batch=batch, log_every=log_every, mesh=devices,
                         eval_every=eval_every, profile=profile, best=task.best,
                         allowed=options.skip_nonfinite)  # fmt: skip
  state.update(model, *step_lib.weights(run))
  return Result(model, metrics, steps)


def _note_extended(watch, folder, new, old):
  """Says what a larger total_steps makes of the learning rate; new, old: schedules."""
  first, begun = folder.first, folder.begun
  watch.note(f'total_steps {begun} -> {folder.steps}: the learning rate of step {first + 1} is now {new(first):.3g}; '
             f'it ended at {old(begun - 1):.3g}.')  # fmt: skip


def _loop(run, train_step, placed, test, watch, folder, *, batch, log_every, mesh, eval_every, profile, best, allowed):
  """(the run's state, the last evaluation's metrics) after the last step."""
  due = lambda step, every: step == folder.steps or every is not None and step % every == 0
  several = jax.process_count() > 1  # then a step's end is awaited: all must know in time whether it was the last
  speed, metrics, number = Speed(batch), {}, folder.first  # of the last step that was done
  seen = health.Health(allowed=allowed, skipped=folder.skipped, note=watch.note, ahead=0 if several else 1)

  def evaluate():
    guard.at('evaluation', number)
    metrics = test(*step_lib.weights(run))
    watch.evaluation(number, {'split': 'test', **{key: metrics[key] for key in LOGGED if key in metrics}})
    speed.pause(number)
    return metrics

  def save(metrics=None):
    seen.look()
    guard.at('save', number)
    folder.save(number, run, metrics, metrics and metrics[best], skipped=seen.skipped)

  try:
    if test is not None and folder.first and due(folder.first, eval_every) and not folder.metrics():
      metrics = evaluate()  # a signal had come in between
      folder.evaluated(metrics, metrics[best])
    while number < folder.steps:
      guard.at('data', number)
      ids, pictures = next(placed)
      guard.at('compile' if number == folder.first else 'step', number)
      pictures = pictures | _flag(mesh) if several else pictures
      with _trace(profile, number + 1, folder.path) as waiting:
        run, values = waiting(train_step(run, pictures))
      number, guard.NOW.unsaved = number + 1, True
      guard.at('step', number)
      seen.add(number, ids, values)
      if due(number, log_every) or number == folder.first + 1:
        numbers = {key: float(value) for key, value in values.items() if key not in ('finite', 'stop')}  # waits
        watch.train(number, {'loss': None, 'lr': None, **numbers, **speed(number)})
      asked = int(values['stop']) if several else guard.requested()
      if asked:
        raise guard.Stopped(asked)
      evaluated = test is not None and due(number, eval_every)
      if evaluated:
        seen.look()
        metrics = evaluate()
      if evaluated or due(number, folder.every):  # evaluated first: its line is kept
        save(metrics if evaluated else None)
  except (ValueError, OSError, KeyboardInterrupt, guard.Stopped, guard.Unreachable) as end:
    # What ends a run while it waits for data or evaluates leaves the last step whole: nothing of it is lost. Several
    # processes agree on a stop, but not on what befell one of them.
    if isinstance(end, guard.Stopped) or guard.NOW.phase in ('data', 'evaluation') and not several:
      if folder.every and number > folder.newest:
        save()
        folder.wait()
      end.saved = number if folder.every and number > folder.first else None
    raise
  return run, metrics


def _flag(mesh):
  """{'stop': the number of the signal that this process got, 0 for none, on each of its rows}."""
  rows = mesh.shape['data'] * mesh.shape['fsdp'] // jax.process_count()
  local = np.full(rows, guard.requested(), np.int32)
  return {'stop': jax.make_array_from_process_local_data(sharding.batch(mesh), local)}


class Ahead:
  """A jitted step, compiled at its first call, when it says what it takes of a device's memory.

  note: takes that line.   predicted: bytes that the caller had expected, shown beside it; None = it says nothing.
  """

  def __init__(self, step, note, predicted):
    self.step, self.note, self.predicted, self.made = step, note, predicted, None

  def __call__(self, run, batch, **weights):
    if self.made is None:
      self.made = self.step.lower(run, batch, **weights).compile()
      taken = self.predicted and hlo.peak(self.made)
      if taken:
        taken, predicted = diskfull.text(taken), diskfull.text(self.predicted)
        self.note(f"the step takes {taken} of a device's memory as compiled, {predicted} predicted")
    return self.made(run, batch, **weights)


class Speed:
  """Seconds since the beginning, and images a second between two calls; pauses for an evaluation are not counted."""

  def __init__(self, batch):
    self.batch, self.begun, self.since = batch, time.perf_counter(), None

  def pause(self, step):
    """Starts the clock anew after step `step`."""
    self.since = step, time.perf_counter()

  def __call__(self, step):
    """{'images_per_second', 'seconds'}; no speed at the first call, whose step compiled."""
    since = self.since
    self.pause(step)
    speed = None if since is None else (step - since[0]) * self.batch / (self.since[1] - since[1])
    return {'images_per_second': speed, 'seconds': self.since[1] - self.begun}


@contextlib.contextmanager
def _trace(profile, step, folder):
  """A jax.profiler trace around the steps profile = (first, last); gives what to call on the step's result."""
  first, last = profile or (None, None)
  if step == first:
    jax.profiler.start_trace(os.path.join(folder, 'profile'))
  yield jax.block_until_ready if step == last else lambda result: result
  if step == last:
    jax.profiler.stop_trace()


def check_counts(devices, options, *, batch, batch_eval, log_every=1, eval_every=None):
  """Raises ValueError for counts that are too small or do not divide, and for what these devices cannot do."""
  with placement.on(devices):
    attention.check(options.attention, placement.platform(), options.dtype)
  if log_every < 1 or eval_every is not None and eval_every < 1:
    raise ValueError(
      f'log_every={log_every} and eval_every={eval_every} count steps from 1; eval_every=None is once, last.'
    )
  if options.accumulate is None:
    raise ValueError('step.accumulate=None is for a config, which jobs.py completes; say how many micro-batches.')
  if batch % options.accumulate:
    raise ValueError(f'batch={batch} does not split into step.accumulate={options.accumulate} micro-batches.')
  sharding.check_batch(
    devices, batch=batch, batch_eval=batch_eval, **{'batch / step.accumulate': batch // options.accumulate}
  )


def _check_run(data, *, steps, batch, profile, workdir):
  """Raises ValueError where there is nothing to do, nothing to do it with, or no place for what was asked for."""
  if steps < 1:
    raise ValueError(f'steps={steps}: at least 1 is wanted.')
  if data.train is None:
    raise ValueError('There is no training data; give data.train.')
  if profile and workdir is None:
    raise ValueError(f'profile={profile} needs a workdir, where the trace is written.')
  data_lib.check_repeats(data.repeats, batch)


def check_mixing(task, augmentation):
  """Raises ValueError where Step.augment would make targets that mean nothing for a task."""
  if isinstance(task, tasks.MultiLabel) and augmentation.get('cutmix'):
    raise ValueError(
      "step.augment.cutmix may cut out what one of several labels of task.name='multilabel' stands for, and its share "
      'of the area does not say which; choose step.augment.mixup.'
    )


def _as_config(optim, options, **run):
  """What a run is resumed by where its caller has no config: the arguments, as far as JSON can hold them."""
  own = optim if isinstance(optim, dict) or optim is None else 'an optax transformation'
  return run | {'step': dataclasses.asdict(options), 'optim': own}


def _optimizer(optim, steps):
  """An Optimizer of keyword arguments or of an optax transformation."""
  if isinstance(optim, optax.GradientTransformation):
    return optim_lib.make(total_steps=steps)._replace(tx=optim, schedule=None)
  return optim_lib.make(**optim or {}, total_steps=steps)
