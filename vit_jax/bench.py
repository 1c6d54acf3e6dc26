"""How fast a model computes here: compile time, images/s, FLOPs and memory of its forward pass."""

import json
import math
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from vit_jax import console, models, pretrained, state, tuning
from vit_jax.models import vit


def inference_time(model, *, image_size, batch: int = 32, dtype: str = 'float32', seconds: float = 5.0):
  """What a model (an NNX module) takes to turn batches of normalised images into outputs, as a dict of plain numbers.

  Arguments: image_size int or (h, w), pixels; batch images at once; dtype 'float32' or 'bfloat16', of parameters and
  images; seconds of measuring, after one warm-up call. Nothing but the forward pass is timed: images lie on the device.

  Returns {'device', 'dtype', 'batch', 'image_size', 'parameters', 'images_per_second' (median of the rounds),
  'milliseconds' (per batch), 'compile_seconds', 'gflops' (per image, a multiply-add counts 2, from the unoptimised
  program), 'memory_mb' (parameters, images, outputs and temporaries of the compiled program), 'predicted_mb' (the same
  before it was compiled, see working_bytes)}.

  Raises ValueError for a batch below 1 or another dtype.
  """
  if batch < 1 or dtype not in ('float32', 'bfloat16'):
    raise ValueError(f'batch={batch}, dtype={dtype!r}: a batch of at least 1 and float32 or bfloat16 are wanted.')
  h, w = vit.pair(image_size)
  graphdef, params, rest = state.split(model)
  params = state.cast(params, dtype)
  images = jax.random.normal(jax.random.key(0), (batch, h, w, 3), dtype)

  forward = lambda params, rest, images: state.merge(graphdef, params, rest)(images)
  given = sum(leaf.nbytes for leaf in jax.tree.leaves((params, rest, images)))
  predicted = given + working_bytes(forward, params, rest, images)
  started = time.perf_counter()
  lowered = jax.jit(forward).lower(params, rest, images)
  compiled = lowered.compile()
  compile_seconds = time.perf_counter() - started
  per_batch = statistics.median(_rounds(lambda: compiled(params, rest, images), seconds))
  memory = compiled.memory_analysis()
  return {
    'device': images.device.device_kind,
    'dtype': dtype,
    'batch': batch,
    'image_size': [h, w],
    'parameters': models.count(model),
    'images_per_second': batch / per_batch,
    'milliseconds': 1000 * per_batch,
    'compile_seconds': compile_seconds,
    'gflops': lowered.cost_analysis()['flops'] / batch / 1e9,
    'memory_mb': memory and (memory.argument_size_in_bytes + memory.output_size_in_bytes
                             + memory.temp_size_in_bytes) / 2**20,
    'predicted_mb': predicted / 2**20,
  }  # fmt: skip


def report(model, image_size, **options):
  """inference_time(model, image_size=image_size, **options), also shown: a table on stderr, a JSON line on stdout."""
  made = pretrained.origin(model)
  result = {'model': made and made['name'], **inference_time(model, image_size=image_size, **options)}
  console.table(
    {key: f'{value:.4g}' if isinstance(value, float) else value for key, value in result.items()}, sys.stderr
  )
  print(json.dumps(result))
  return result


def forward_gflops(model, image_size):
  """GFLOPs of one image's forward pass (a multiply-add counts 2); compiles nothing, and the model needs no arrays."""
  forward, *shapes = _shapes(model, image_size)
  return jax.jit(forward).lower(*shapes).cost_analysis()['flops'] / 1e9


def activation_bytes(model, image_size, *, dtype='float32', split=lambda params: (params, {})):
  """What the forward pass of one more image keeps for the backward pass, in bytes; compiles and computes nothing.

  model: abstract or not.   dtype: of the computation.   split: params -> (trainable, frozen), as of tuning.split.
  XLA was seen to take 1.2 times as much in float32.
  """
  graphdef, params, rest = state.split(model)
  key, (h, w) = jax.random.key(0), vit.pair(image_size)

  def kept(trainable, frozen, rest, images):
    def forward(trainable):
      params = state.cast(tuning.merged(trainable, frozen), dtype)
      return state.merge(graphdef, params, rest)(images, key=key)

    return jax.vjp(forward, trainable)[1]  # a pytree whose leaves are what it has kept

  def size(n):
    images = jax.ShapeDtypeStruct((n, h, w, 3), dtype)
    leaves = jax.tree.leaves(jax.eval_shape(kept, *jax.eval_shape(split, params), rest, images))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

  return size(2) - size(1)


def working_bytes(function, *arrays):
  """The most that a function's intermediate arrays and outputs hold at once, computed one after another, in bytes.

  arrays: its arguments, or their shapes; these are not counted. Nothing is computed. XLA keeps less where it fuses
  operations, and more where it reorders them; on a CPU it computes bfloat16 in float32, of copies.
  """
  return _alive(jax.make_jaxpr(function)(*arrays).jaxpr)


def _alive(program):
  """working_bytes of a jaxpr: each array lives from the operation that makes it to the last that reads it."""
  named = lambda variables: [v for v in variables if not hasattr(v, 'val')]  # others are constants
  size = lambda v: math.prod(v.aval.shape) * v.aval.dtype.itemsize
  last = {v: i for i, operation in enumerate(program.eqns) for v in named(operation.invars)}
  last |= dict.fromkeys(named(program.outvars), len(program.eqns))
  alive = most = 0
  made = set()
  for i, operation in enumerate(program.eqns):
    values = [x for value in operation.params.values() for x in (value if isinstance(value, tuple) else (value,))]
    inner = [_alive(x) for x in (getattr(value, 'jaxpr', value) for value in values) if hasattr(x, 'eqns')]
    results = [v for v in operation.outvars if v in last]
    most = max(most, alive + max([sum(map(size, results)), *inner]))
    made |= set(results)
    gone = {v for v in named(operation.invars) if last[v] == i} & made
    alive += sum(map(size, results)) - sum(map(size, gone))
  return most


def cpu_gflops():
  """What this CPU computes in a second in a large product of float32 matrices, in GFLOP."""
  a = jnp.ones((1024, 1024))
  product = jax.jit(lambda a: a @ a)
  return 2 * 1024**3 / 1e9 / min(_rounds(lambda: product(a), 0.1))


def tokens(model, image_size):
  """(n, d): how many tokens of how many numbers a model makes of one image; computes nothing."""
  forward, *shapes = _shapes(model, image_size, 'features')
  return jax.eval_shape(forward, *shapes).shape[1:]


def _shapes(model, image_size, method='__call__'):
  """(function of variables and images, shapes of both) for one image through a method of a model."""
  graphdef, params, rest = state.split(model)
  variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, rest))
  forward = lambda variables, images: getattr(state.merge(graphdef, *variables), method)(images)
  return forward, variables, jax.ShapeDtypeStruct((1, *vit.pair(image_size), 3), jnp.float32)


def _rounds(call, seconds):
  """Seconds per call, one number a round; rounds of about a fifth of a second, so that waiting costs nothing."""
  jax.block_until_ready(call())
  rounds, calls, began = [], 1, time.perf_counter()
  while len(rounds) < 3 or time.perf_counter() - began < seconds:
    started = time.perf_counter()
    for _ in range(calls):
      out = call()
    jax.block_until_ready(out)
    rounds.append((time.perf_counter() - started) / calls)
    calls = max(1, min(1000, int(0.2 / rounds[-1])))
  return rounds
