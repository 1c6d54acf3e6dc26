"""The training step and the evaluation step, pure functions of dicts of arrays; one step serves every kind of training.

What a kind of training adds is a wrapper: of the pictures (augment.py), of the gradient function (accumulate), of the
optimizer (optim.py), of the parameters (tuning.py).
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax import augment, sam, sharding, state, tuning
from vit_jax import optim as optim_lib
from vit_jax.models import placement


@dataclasses.dataclass(frozen=True)
class Step:
  """How a training step is computed.

  dtype: of activations and products, 'float32' or 'bfloat16'; parameters are float32.   grad_dtype: in which gradients
  of micro-batches are added up and given to the optimizer.   accumulate: micro-batches a batch is cut into; None is for
  configs, whose runs then take as few as fit into memory.   remat, scan, attention: what jobs.py gives the model's
  constructor; fit takes its model as it is.
  augment: keyword arguments of augment.make.   skip_nonfinite: how many steps of a run whose loss, gradient or update
  is not finite are left out, as if the optimizer had not seen their pictures; at one more the run stops.
  """

  dtype: str = 'float32'
  grad_dtype: str = 'float32'
  accumulate: int | None = 1
  remat: str = 'none'
  scan: bool = False
  attention: str = 'auto'
  augment: dict = dataclasses.field(default_factory=dict)
  skip_nonfinite: int = 0

  def __post_init__(self):
    augment.make(**self.augment)  # refuses what it cannot do
    for key in ('dtype', 'grad_dtype'):
      if getattr(self, key) not in ('float32', 'bfloat16'):
        raise ValueError(f"step.{key} is {getattr(self, key)!r}; choose 'float32' or 'bfloat16'.")
    if self.accumulate is not None and self.accumulate < 1:
      raise ValueError(f'step.accumulate is {self.accumulate}; it must be at least 1.')
    if self.skip_nonfinite < 0:
      raise ValueError(f'step.skip_nonfinite is {self.skip_nonfinite}; 0 leaves no step out.')


def init(optimizer, params, rest, *, seed):
  """The state of a run before its first step."""
  params, frozen = tuning.split(params, optimizer.tuning, jax.random.key(seed))
  run = {'step': jnp.zeros((), jnp.int32), 'params': params, 'rest': rest, 'opt': optimizer.tx.init(params)}
  run |= {'frozen': frozen} if frozen else {}
  return run if optimizer.ema is None else run | {'ema': params}


def weights(run):
  """(params, rest) to evaluate: all the model's parameters, averaged where there are averages."""
  return tuning.merged(run.get('ema', run['params']), run.get('frozen', {})), run['rest']


def accumulate(grad_fn, micro_batches, dtype):
  """grad_fn over equal parts of the batch, one after another: mean loss, mean gradient, the last part's rest.

  Part i is rows i::micro_batches, which lie on every device alike, and gets a key of its own.
  """

  def accumulated(trainable, frozen, rest, batch, key):
    cut = lambda a: a.reshape(a.shape[0] // micro_batches, micro_batches, *a.shape[1:]).swapaxes(0, 1)

    def part(carry, xs):
      rest, total = carry
      i, batch = xs
      (loss, rest), grads = grad_fn(trainable, frozen, rest, batch, jax.random.fold_in(key, i))
      return (rest, jax.tree.map(jnp.add, total, (loss, state.cast(grads, dtype)))), None

    zero = jnp.zeros(()), jax.tree.map(lambda a: jnp.zeros(a.shape, dtype), trainable)
    parts = jnp.arange(micro_batches), jax.tree.map(cut, batch)
    (rest, (loss, grads)), _ = jax.lax.scan(part, (rest, zero), parts)
    return (loss / micro_batches, rest), jax.tree.map(lambda g: g / micro_batches, grads)

  def single(trainable, frozen, rest, batch, key):
    out, grads = grad_fn(trainable, frozen, rest, batch, jax.random.fold_in(key, 0))
    return out, state.cast(grads, dtype)

  return single if micro_batches == 1 else accumulated


def make_step(graphdef, optimizer, task, row, *, seed, options, mesh=None, teacher=None):
  """train_step(run, batch[, weights of the teacher]) -> (run, {'loss', 'lr', 'grad_norm', 'finite'}), to be jitted.

  finite: bool, whether loss, gradient and new parameters are; where not and options.skip_nonfinite says so, the run
  is the old one but for its step.

  run: {'step', 'params', 'rest', 'opt'[, 'ema'][, 'frozen']}.   batch: 'image' uint8 (b, h, w, c), 'label' int32 (b,).
  mesh: the devices it is for, None = jax's default one.   teacher: a distill.Teacher that looks at each batch, None
  where there is none or the batch has its logits.
  """
  augmented = augment.make(**options.augment)

  def loss_fn(trainable, frozen, rest, batch, key):
    params = state.cast(tuning.merged(trainable, frozen['model']), options.dtype)
    model = state.merge(graphdef, params, rest)
    outputs = task.outputs(model, batch['image'], key)
    return task.loss(outputs, batch).mean(), state.split(model)[2]

  grad_fn = accumulate(jax.value_and_grad(loss_fn, has_aux=True), options.accumulate, options.grad_dtype)
  grad_fn = sam.wrapped(grad_fn, optimizer.sam, optimizer.share, mesh)

  def train_step(run, batch, weights=None):
    with placement.on(mesh):
      return one(run, batch, weights)

  def one(run, batch, weights):
    key = jax.random.fold_in(jax.random.key(seed), run['step'])
    augment_key, model_key = jax.random.split(key)
    batch = augmented(augment_key, {**batch, 'target': task.target(batch)}, row)
    if teacher is not None:
      batch['teacher'] = teacher.in_parts(weights, batch['image'], options.accumulate)
    batch['image'] = augment.normalise(batch['image'], row['mean'], row['std'], options.dtype)
    frozen = {'model': run.get('frozen', {})}
    (values, rest), grads = grad_fn(run['params'], frozen, run['rest'], batch, model_key, run['step'])
    updates, opt = optimizer.tx.update(grads, run['opt'], run['params'])
    params = optax.apply_updates(run['params'], updates)
    new = run | {'step': run['step'] + 1, 'params': params, 'rest': rest, 'opt': opt}
    if optimizer.ema is not None:
      new['ema'] = optim_lib.average(run['ema'], new['params'], optimizer.ema, run['step'])
    rate = {} if optimizer.schedule is None else {'lr': optimizer.schedule(run['step'])}
    size = sam.norm(grads)
    finite = jnp.isfinite(values['loss']) & jnp.isfinite(size) & jnp.isfinite(sam.norm(params))
    if options.skip_nonfinite:
      new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, run) | {'step': new['step']}
    return new, {**values, **rate, 'grad_norm': size, 'finite': finite}

  return train_step


class Program(NamedTuple):
  """A training step for a mesh, with what it reads.

  init: (params, rest) -> the state of a run, jitted.   places: the sharding of each array of that state.   shapes: it
  as ShapeDtypeStructs with these shardings.   step: the jitted make_step, which takes over the state it is given; of
  several processes it is `together`.
  """

  init: Callable
  places: Any
  shapes: Any
  step: Callable


def jitted(graphdef, params, rest, optimizer, task, row, *, seed, options, mesh, teacher=None):
  """The Program of make_step with these arguments; params and rest may be shapes. Nothing is compiled yet."""
  start = functools.partial(init, optimizer, seed=seed)
  run = jax.eval_shape(start, params, rest)
  places = sharding.shardings(mesh, run)
  step = make_step(graphdef, optimizer, task, row, seed=seed, options=options, mesh=mesh, teacher=teacher)
  step = together(step) if jax.process_count() > 1 else step
  # The state is placed by the step's own shardings from the start, so that the step is compiled once.
  outputs = places, sharding.replicated(mesh)
  return Program(
    jax.jit(start, out_shardings=places), places, sharding.abstract(run, places),
    jax.jit(step, donate_argnums=0, out_shardings=outputs),
  )  # fmt: skip


def together(train_step):
  """The train_step of several processes: the largest 'stop' of the batch, int32, is among the values of each.

  So all of them hear of a signal that one of them got, and in the same step.
  """

  def step(run, batch, **weights):
    rest = {name: array for name, array in batch.items() if name != 'stop'}
    run, values = train_step(run, rest, **weights)
    return run, values | {'stop': batch['stop'].max()}

  return step


def make_eval_step(graphdef, task, row, dtype, mesh=None):
  """eval_step(params, rest, batch) -> sums of the task's metrics, to be jitted. batch has a 'mask' float32 (b,)."""

  def eval_step(params, rest, batch):
    images = augment.normalise(batch['image'], row['mean'], row['std'], dtype)
    with placement.on(mesh):
      outputs = state.merge(graphdef, state.cast(params, dtype), rest)(images).astype(jnp.float32)
    return task.metrics(outputs, batch)

  return eval_step
