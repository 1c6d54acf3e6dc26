"""The other side of `vit_jax plan`: compiles a config's training step for a machine that is not here, and reads it.

Run in the environment of machines.environment only: it changes what jax believes of its device.
"""

import functools
import json
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import (
  bench,
  console,
  exchange,
  footprint,
  hlo,
  kernels,
  machines,
  models,
  optim,
  sam,
  sharding,
  state,
  tasks,
  train,
  transforms,
)
from vit_jax import config as config_lib
from vit_jax import step as step_lib
from vit_jax.models import attention

GIB = 2**30


def devices(machine):
  """The devices of a machines.Machine, to compile for."""
  from jax.experimental import topologies

  if machine.chip.platform == 'cuda':
    _believe_in_cudnn()
  return topologies.get_topology_desc(**machines.arguments(machine)).devices


def _believe_in_cudnn():
  """Has jax compile attention of cuDNN 9.10 for a GPU of compute capability 9.0, after which it would ask both.

  Up to 0.10.2 jax also refuses an odd number of tokens, by a rule for attention with a bias that it takes for given.
  """
  import jax._src.cudnn.fused_attention_stablehlo as cudnn

  cudnn.check_cudnn_version = lambda: 91000
  cudnn.check_compute_capability = lambda capability: float(capability) <= 9.0
  cudnn.is_cuda_compute_capability_equal = lambda capability: capability == '9.0'
  cudnn.check_is_flash_attention = lambda *_, **__: None


class Step:
  """The training step of a config for a mesh, to be compiled for any batch.

  Attributes: options, optimizer, shapes (the abstract model), pixels (h, w), classes (how many it tells).
  """

  def __init__(self, config, mesh):
    """config: resolved.   Raises ValueError for what does not go together, as a run would."""
    self.mesh, self.config, self.options = mesh, config, step_lib.Step(**config['step'])
    train.check_counts(mesh, self.options, batch=config['batch'], batch_eval=config['batch_eval'])
    _, self.shapes, size = footprint.model(config, self.options)
    self.pixels = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    self.graphdef, self.params, self.rest = state.split(self.shapes)
    self.optimizer = optim.tuned(optim.make(**config['optim'], total_steps=config['total_steps']), self.params)
    sam.check(self.optimizer.sam, mesh, batch=config['batch'], accumulate=self.options.accumulate)
    images = jax.ShapeDtypeStruct((1, *self.pixels, 3), self.options.dtype)
    told = lambda images, params, rest: state.merge(self.graphdef, state.cast(params, images.dtype), rest)(images)
    self.classes = jax.eval_shape(told, images, self.params, self.rest).shape[-1]

  @functools.cached_property
  def program(self):
    """The step_lib.Program."""
    given = self.config['data']
    row = transforms.preprocessing(self.pixels, mean=given['mean'], std=given['std'])
    return step_lib.jitted(self.graphdef, self.params, self.rest, self.optimizer, self.task, row,
                           seed=self.config['seed'], options=self.options, mesh=self.mesh)  # fmt: skip

  @functools.cached_property
  def task(self):
    """The config's task; weights of classes, which its data would give, are ones."""
    task = tasks.make(**self.config['task'], classes=range(self.classes))
    if getattr(task, 'teacher_at', None) == 'step':
      raise ValueError(
        'A plan knows no teacher that looks at each step: --config.task.distillation=none leaves it out.'
      )
    if task.class_weights is not None:
      task.weights = np.ones(self.classes, np.float32)
    return task

  def compiled(self, batch):
    """(the compiled step for a batch, seconds that it took to compile)."""
    began = time.perf_counter()
    made = self.program.step.lower(self.program.shapes, self._batch(batch)).compile()
    return made, time.perf_counter() - began

  def _batch(self, batch):
    place = lambda shape, dtype: jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=sharding.batch(self.mesh))
    label = place((self.classes,), jnp.uint8) if isinstance(self.task, tasks.MultiLabel) else place((), jnp.int32)
    arrays = {'image': place((*self.pixels, 3), jnp.uint8), 'label': label}
    return arrays | ({'teacher': place((self.classes,), jnp.float32)} if isinstance(self.task, tasks.Distilled) else {})


def plan(wanted):
  """The plan that a request asks for, as plain numbers; wanted: what plan.command sends.

  Bytes, FLOPs and kernels are those of one chip and step.
  """
  machine = machines.named(wanted['machine'])
  attention.ODD_TOKENS = wanted['odd_tokens']
  config = config_lib.resolve(config_lib.load(wanted['config']), wanted['overrides'])
  mesh = sharding.make_mesh(**config['mesh'], devices=devices(machine))
  memory, predicted = machine.chip.memory * GIB, footprint.Predicted(config, mesh.devices.flat)
  if config['step']['accumulate'] is None:
    need = predicted()
    room = footprint.FILLED * memory - need.state - need.working
    parts = footprint.parts(config, mesh, predicted.picture(), room)
    config = predicted.config = footprint.changed(config, {'step.accumulate': parts})
  step = Step(config, mesh)
  need = footprint.check(predicted, memory, f'a {machine.chip.words}')
  found = {
    'config': wanted['config'], 'changes': wanted['overrides'], 'machine': machine.name, 'chips': machine.chips,
    'mesh': dict(mesh.shape), 'model': config['model']['name'], 'parameters': models.count(step.shapes),
    'image_size': list(step.pixels), 'batch': config['batch'], 'accumulate': config['step']['accumulate'],
    'memory_gib': machine.chip.memory, 'predicted_gib': need.total / GIB,
  }  # fmt: skip
  found |= _compiled(step, machine, config['batch'], wanted['kernels'])
  if not found['fits']:
    found['advice'] = footprint.advice(predicted, memory)
  if wanted['largest_batch']:
    found['largest_batch'] = largest(step, machine, config, predicted, found)
  return found


def _compiled(step, machine, batch, groups):
  """What a compilation of the step tells."""
  chip = machine.chip
  try:
    made, seconds = step.compiled(batch)
  except jax.errors.JaxRuntimeError as error:
    return {'fits': False, 'peak_gib': _exceeded(error)}
  text = made.as_text()
  rows, sent = kernels.listed(text), hlo.collectives(text)
  bound = kernels.seconds(rows, chip)
  flops = kernels.total(rows, 'flops')
  least = exchange.minimum(step.program.shapes, step.mesh, step.options, **_tokens(step, batch))
  return {
    'fits': hlo.peak(made) <= chip.memory * GIB,
    'peak_gib': hlo.peak(made) / GIB,
    'compile_seconds': seconds,
    'gflops': flops / 1e9,
    'gigabytes': kernels.total(rows, 'bytes') / 1e9,
    'kernels': kernels.total(rows, 'count'),
    'collectives': exchange.summary(sent),
    'minimum': least,
    'milliseconds': bound * 1e3,
    'exchange_milliseconds': exchange.moved(sent) / chip.link * 1e3,
    'images_per_second': batch / bound,
    'flops_of_peak': flops / bound / chip.flops,
    'groups': [[*key, *value] for key, value in list(kernels.groups(rows).items())[:groups]],
  }


def _exceeded(error):
  """GiB that a TPU's compiler wanted in vain, of its message; another error is raised again."""
  asked = re.search(r'\(([\d.]+)([KMG])\) exceeds available HBM', str(error)) or re.search(
    r'Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm', str(error)
  )
  if not asked:
    raise error
  return float(asked[1]) / {'K': 2**20, 'M': 2**10, 'G': 1}[asked[2]]


def _tokens(step, batch):
  """What exchange.minimum wants to know of the activations between layers."""
  rows = batch // (step.mesh.shape['data'] * step.mesh.shape['fsdp'])
  blocks = getattr(step.shapes, 'blocks', None)
  if step.mesh.shape['tensor'] == 1 or blocks is None:
    return {}
  count, width = bench.tokens(step.shapes, step.pixels)
  return {'numbers': rows * count * width, 'layers': blocks.depth}


# -- the largest batch


def largest(step, machine, config, predicted, found):
  """{'per_chip', 'batch', 'peak_gib', 'compiled': {batch per chip: GiB}}: the largest batch that fits, with room.

  A line through two compilations, of which one is the plan's own where it fits; then a third at its end, and more where
  that one does not fit.   found: the plan.
  """
  copies = step.mesh.shape['data'] * step.mesh.shape['fsdp'] * step.options.accumulate
  limit, own = footprint.FILLED * machine.chip.memory, config['batch'] // copies
  seen = {own: found['peak_gib']}

  def gib(batch):
    if batch not in seen:
      try:
        seen[batch] = hlo.peak(step.compiled(batch * copies)[0]) / GIB
      except jax.errors.JaxRuntimeError as error:
        seen[batch] = _exceeded(error)
    return seen[batch]

  need = predicted()
  guess = max(2, int((limit * GIB - need.state - need.working) / predicted.picture()))
  low = own if own <= guess / 2 and found['fits'] else max(1, guess // 8)
  high = max(low + 1, guess // 2 if low < guess // 4 else guess)
  while gib(high) > limit and high > low + 1:
    high = (low + high) // 2
  slope = max((gib(high) - gib(low)) / (high - low), 1e-9)
  best = max(1, int(low + (limit - gib(low)) / slope))
  while gib(best) > limit and best > 1:  # a line from the largest that fits
    under = max((n for n in seen if n < best and seen[n] <= limit), default=0)
    least = seen[under] if under else need.state / GIB
    share = (limit - least) / (gib(best) - least)
    best = max(1, under + min(best - under - 1, int(share * (best - under))))
  fits = gib(best) <= limit
  return {
    'per_chip': best * step.options.accumulate if fits else 0, 'batch': best * copies if fits else 0,
    'peak_gib': gib(best), 'compiled': {str(n): seen[n] for n in sorted(seen)},
  }  # fmt: skip


# -- what a person sees


def show(found):
  """Prints a plan."""
  layout = ', '.join(f'{axis}={size}' for axis, size in found['mesh'].items())
  fits = 'fits' if found['fits'] else 'DOES NOT FIT'
  parts = f' in {found["accumulate"]} parts' if found['accumulate'] > 1 else ''
  size = 'x'.join(map(str, found['image_size']))
  rows = {
    'plan': f'{found["model"]} on {found["machine"]}, {found["chips"]} chips ({layout}): compiled, not run',
    'parameters': f'{found["parameters"]:,}',
    'batch': f'{found["batch"]} pictures of {size}{parts}',
    'memory': f'{found["peak_gib"]:.2f} GiB of the {found["memory_gib"]:.2f} of a chip: {fits} '
              f'(predicted {found["predicted_gib"]:.2f})',
  }  # fmt: skip
  if found['machine'].startswith('h200') and found['peak_gib'] > 0.75 * found['memory_gib']:
    rows['memory'] += '; jax takes 75 % unless XLA_PYTHON_CLIENT_MEM_FRACTION says more'
  if 'gflops' in found:
    rows |= {
      'FLOPs': f'{found["gflops"] / 1e3:.2f} TFLOP in products, a chip and step',
      'bytes': f'{found["gigabytes"]:.1f} GB through a chip\'s memory',
      'kernels': f'{found["kernels"]:,}',
      'exchange': exchange.words(found['collectives']),
      'at least': exchange.words(found['minimum']),
      'estimate': f'no less than {found["milliseconds"]:.1f} ms by FLOPs and bytes at the data sheet\'s rates: '
                  f'{found["images_per_second"]:,.0f} images/s, {found["flops_of_peak"]:.0%} of the peak; exchange '
                  f'{found["exchange_milliseconds"]:.1f} ms, which may overlap',
      'compiled in': f'{found["compile_seconds"]:.0f} s',
    }  # fmt: skip
  if 'advice' in found:
    rows['advice'] = found['advice']
  if 'largest_batch' in found:
    largest = found['largest_batch']
    rows['largest batch'] = (
      f'{largest["batch"]:,}, {largest["per_chip"]:,} a chip: {largest["peak_gib"]:.2f} GiB, compiled'
    )
  console.table(rows)
  for kind, shape, source, count, size, flops in found.get('groups', []):
    print(f'{size / 1e9:8.2f} GB {flops / 1e12:7.2f} TFLOP {count:5}  {kind}  {shape}  {source}')


def main():
  """Exit code of `python -m vit_jax.planned REQUEST`: prints the plan; 1 where it does not fit."""
  wanted = json.loads(sys.argv[1])
  found = plan(wanted)
  if wanted['json']:
    print(json.dumps(found))
  else:
    show(found)
  return 0 if found['fits'] or wanted['json'] else 1


if __name__ == '__main__':
  from vit_jax import cli, planned  # by its name: an error of __main__ would be a stranger's

  sys.exit(cli.guarded(planned.main))
