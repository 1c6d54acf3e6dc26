"""What a config's step needs of a device's memory, predicted before anything compiles, and what would make it fit.

The prediction is the state's arrays, exactly; what the forward pass keeps for the backward pass, as jax's
differentiation has it; and the working set of one layer where layers are computed anew. Compiled steps were within a
third of it, both ways: benchmarks/README.md.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax

from vit_jax import bench, models, optim, pretrained, sharding, signatures, state, tuning
from vit_jax import step as step_lib

GIB = 2**30
FILLED = 0.95  # of the memory: as much as what counts as fitting may take
SURE = 1.3  # times the memory: above it a run is refused before it compiles


class Need(NamedTuple):
  """Bytes of one device: the state between steps, what else parameters take in a step, activations."""

  state: float
  working: float
  activations: float

  @property
  def total(self):
    """All of it."""
    return self.state + self.working + self.activations


def model(config, options):
  """(function that makes the config's model, its shapes, its image size); ValueError for what cannot be built.

  options: a step.Step, which says how it is computed.
  """
  wanted = dict(config['model'])
  fixed = {key: wanted.pop(key) for key in signatures.signature(pretrained.create_model, ('seed',)) if key in wanted}
  made = pretrained.architecture_of(fixed['name'], fixed['pretrained']) | wanted
  execution = {key: getattr(options, key) for key in models.EXECUTION}
  classes = {} if fixed['num_classes'] is None else {'num_classes': fixed['num_classes']}
  shapes = models.abstract(pretrained.named(fixed['name'])[0], **made | classes, **execution)
  arguments = {**fixed, 'reset': tuple(fixed['reset']), 'seed': config['seed'], **wanted, **execution}
  return functools.partial(pretrained.create_model, **arguments), shapes, made['img_size']


class Predicted:
  """Predictions for a resolved config and changes of it: call it with {'step.remat': 'dots', ...}, get a Need.

  devices: those of a mesh; the changes may lay them out anew.   What is asked for twice is counted once.
  """

  def __init__(self, config, devices):
    self.config, self.devices = config, list(devices)
    self._activations, self._states = functools.cache(self._activations), functools.cache(self._states)

  def __call__(self, changes=None):
    config = changed(self.config, changes or {})
    options = step_lib.Step(**config['step'] | {'accumulate': config['step']['accumulate'] or 1})
    mesh = sharding.make_mesh(**config['mesh'], devices=self.devices).shape
    kept, params = self._states(tuple(config['mesh'].items()), config['optim']['accumulator_dtype'])
    rows = config['batch'] / (mesh['data'] * mesh['fsdp']) / options.accumulate
    activations = rows * self._activations(options.remat)
    whole = params * (1 if options.scan else mesh['fsdp'])  # gathered at once where layers are no loop
    grads = _width(options.grad_dtype) * params
    if not options.scan:  # gradients come to be as activations go
      grads = max(0, grads - activations)
    return Need(kept, _width(options.dtype) * whole + grads, activations)

  def picture(self):
    """Bytes of activations of one picture on a device."""
    return self._activations(self.config['step']['remat'])

  @property
  def cheap(self):
    """Whether a prediction takes a second or less, as of what is a stack of equal blocks."""
    return hasattr(self._model(), 'blocks')

  def _model(self, remat='none'):
    """The abstract model. Its layers are a loop, which keeps as much as layers one by one and is traced in a tenth."""
    options = step_lib.Step(**self.config['step'] | {'accumulate': 1, 'scan': True, 'remat': remat})
    return model(self.config, options)[1]

  def _activations(self, remat):
    """Bytes that a picture takes: what is kept of it, and where layers are computed anew, one layer of that."""
    shapes, size = self._model(remat), model(self.config, step_lib.Step())[2]
    how = optim.make(**self.config['optim'], total_steps=self.config['total_steps']).tuning
    split = functools.partial(tuning.split, tuning=how, key=jax.random.key(0))
    dtype = self.config['step']['dtype']
    measure = functools.partial(bench.activation_bytes, image_size=size, dtype=dtype, split=split)
    kept = measure(shapes)
    return kept if remat == 'none' else kept + measure(self._model()) / shapes.blocks.depth

  def _states(self, mesh, accumulator_dtype):
    """(bytes of the state, trained parameters) of one device, with tensors cut as the mesh has it."""
    _, params, rest = state.split(self._model())
    optimizer = optim.make(**self.config['optim'] | {'accumulator_dtype': accumulator_dtype},
                           total_steps=self.config['total_steps'])  # fmt: skip
    run = jax.eval_shape(functools.partial(step_lib.init, optimizer, seed=0), params, rest)
    places = sharding.shardings(sharding.make_mesh(**dict(mesh), devices=self.devices), run)
    here = jax.tree.map(lambda leaf, place: math.prod(place.shard_shape(leaf.shape)), run, places)
    sizes = jax.tree.map(lambda leaf, n: n * leaf.dtype.itemsize, run, here)
    return sum(jax.tree.leaves(sizes)), sum(jax.tree.leaves(here['params']))


def _width(dtype):
  """Bytes of a number."""
  return {'bfloat16': 2, 'float32': 4}[dtype]


def limit(mesh):
  """Bytes that a device of a mesh, which is here, gives to programs; None for a CPU, which does not say."""
  stats = mesh.local_devices[0].memory_stats()
  return stats and stats['bytes_limit']


def changed(config, changes):
  """A resolved config with {'a.b': value} put in."""
  for name, value in changes.items():
    section, _, key = name.partition('.')
    config = config | {section: config[section] | {key: value}}
  return config


def parts(config, mesh, picture, room):
  """The fewest micro-batches with which the activations of a config's batch fit, else the most that it allows.

  picture: bytes of one picture's.   room: bytes of a device for all of them.
  """
  copies = max(mesh.shape['data'] * mesh.shape['fsdp'], config['optim']['sam']['groups'])
  batch = config['batch']
  choices = [n for n in range(1, batch + 1) if batch % n == 0 and batch // n % copies == 0] or [1]
  return next((n for n in choices if batch / n / copies * picture <= room), choices[-1])


# -- what would make it fit


def cheapest(predicted, memory, most=3):
  """[{'step.remat': 'dots'}, ...]: up to `most` changes of a config that make it fit, the cheapest first.

  predicted: a Predicted.   memory: bytes of a device.   What costs: micro-batches next to nothing; a half-precise first
  moment and shards of the state little; computing layers anew an eighth (dots) or a third (full) of a step. A change
  that contains another one is not listed.
  """
  found = []
  for _, change in sorted(_choices(predicted.config, predicted.devices), key=lambda item: item[0]):
    if not any(contains(change, other) for other in found) and predicted(change).total <= FILLED * memory:
      found.append(change)
    if len(found) == most:
      break
  return found


def contains(change, other):
  """Whether a change does all that another one does, or more of it."""
  order = {'dots': 1, 'full': 2, 'bfloat16': 1}
  worth = lambda value: order.get(value, value)
  return all(key in change and worth(change[key]) >= worth(value) for key, value in other.items())


def _choices(config, devices):
  """(cost, change) of every combination of what can be changed."""
  step, n = config['step'], len(devices)
  mesh = sharding.make_mesh(**config['mesh'], devices=devices).shape
  rows, now = config['batch'] // (mesh['data'] * mesh['fsdp']), step['accumulate'] or 1
  several = [k for k in range(now + 1, rows + 1) if rows % k == 0 and rows // k >= 1]
  ways = {'step.accumulate': [(0.1 * math.log2(k), k) for k in several]}
  ways['step.remat'] = [(1.2, 'dots'), (3.3, 'full')][{'none': 0, 'dots': 1, 'full': 2}[step['remat']] :]
  whole = n // mesh['tensor']
  ways['mesh.fsdp'] = [(1.0, whole)] if mesh['fsdp'] < whole else []
  first = config['optim']['name'] in ('adamw', 'sgd', 'lamb', 'lion')
  ways['optim.accumulator_dtype'] = (
    [(0.9, 'bfloat16')] if first and config['optim']['accumulator_dtype'] is None else []
  )
  for picked in itertools.product(*([(0, None), *options] for options in ways.values())):
    change = {name: value for name, (_, value) in zip(ways, picked) if value is not None}
    if 'mesh.fsdp' in change and config['mesh']['data'] != -1:
      change['mesh.data'] = 1
    if change:
      yield sum(cost for cost, _ in picked) + 0.5 * len(change), change


def advice(predicted, memory):
  """A sentence with the cheapest changes that make a config fit, as flags; what else there is where none does."""
  found = cheapest(predicted, memory)
  flags = [' '.join(f'--config.{key}={value}' for key, value in change.items()) for change in found]
  if not flags:
    return 'No layout of it fits: choose more devices, a smaller model, or fewer pixels.'
  return f'What makes it fit, the cheapest first: {"; or ".join(flags)}.'


def check(predicted, memory, where):
  """Raises ValueError, one line with the three cheapest changes, for a config that cannot fit; gives its Need.

  memory: bytes of a device.   where: the machine, in words.
  """
  need = predicted()
  if need.total > SURE * memory:
    split = f'state {need.state / GIB:.1f}, activations {need.activations / GIB:.1f}'
    raise ValueError(
      f'This run needs about {need.total / GIB:.1f} GiB on each device ({split}), and {where} has '
      f'{memory / GIB:.1f}. {advice(predicted, memory)}'
    )
  return need
