"""Every architecture by name: one dict of variants, and how to look one up and build it."""

import difflib
import fnmatch
import inspect
import math

from flax import nnx
import jax

from vit_jax.models import beit, deit, eva, hybrid, mae, mixer, resnet, vit_variants

VARIANTS = {
  **vit_variants.VARIANTS,
  **deit.VARIANTS,
  **beit.VARIANTS,
  **eva.VARIANTS,
  **mae.VARIANTS,
  **mixer.VARIANTS,
  **resnet.VARIANTS,
  **hybrid.VARIANTS,
}
ALIASES = {**vit_variants.ALIASES, **mae.ALIASES, **mixer.ALIASES, **resnet.ALIASES, **hybrid.ALIASES}
# Keyword arguments that say how a model is computed, not what it is: the same weights serve all their values.
EXECUTION = ('scan', 'remat', 'attention')
# What a description may ask for, which may be a stranger's: no published model comes near.
DEPTHS, LAYERS, NUMBER = ('depth', 'num_blocks', 'decoder_depth', 'layers'), 1000, 10**8


def list_models(pattern='*'):
  """The canonical names that match a shell pattern, sorted: list_models('vit_base*')."""
  return sorted(fnmatch.filter(VARIANTS, pattern))


def is_name(name):
  """Whether `name` is an architecture's canonical name or alias."""
  return isinstance(name, str) and (name in VARIANTS or name in ALIASES)


def canonical(name):
  """The canonical name of an architecture; raises ValueError with the three nearest for an unknown one."""
  if not is_name(name):
    lowered = {known.lower(): known for known in (ALIASES if '-' in str(name) else VARIANTS)}
    near = [lowered[n] for n in difflib.get_close_matches(str(name).lower(), lowered, 3, 0.4)]
    hint = f'did you mean {", ".join(near)}?' if near else '`vit_jax list models` shows all names.'
    raise ValueError(f'There is no model {name!r}; {hint}')
  return ALIASES.get(name, name)


def variant(name):
  """(class, its keyword arguments) of an architecture by canonical name or alias."""
  return VARIANTS[canonical(name)]


def arguments(cls):
  """{name: default} of the architecture arguments of a class."""
  return {
    key: parameter.default
    for key, parameter in inspect.signature(cls.__init__).parameters.items()
    if key not in ('self', 'rngs', *EXECUTION)
  }


def nearest(cls, made):
  """The variant of a class in which the fewest arguments differ from those of `made`, for weights that bear no name."""
  defaults = arguments(cls)
  rows = {name: row for name, (kind, row) in VARIANTS.items() if kind is cls}

  def distance(name):  # of two that differ as much, the one that says more
    row = defaults | rows[name]
    return sum(row[key] != value for key, value in made.items()), -sum(made.get(k) == v for k, v in rows[name].items())

  return min(rows, key=distance)


def architecture(name, **overrides):
  """Every architecture argument of a model by name, as plain values: the class's defaults, the row's, the overrides.

  Raises ValueError for an argument the class does not take, with the nearest that it does, and for absurd numbers.
  """
  cls, row = variant(name)
  known = arguments(cls)
  for key, value in overrides.items():
    numbers = [n for n in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(n, int)]
    if sum(numbers) > (LAYERS if key in DEPTHS else NUMBER):
      raise ValueError(f'{key}={value} is more than any model has; at most {LAYERS if key in DEPTHS else NUMBER:,}.')
    if key not in known:
      near = difflib.get_close_matches(key, known, 1)
      raise ValueError(
        f'{cls.__name__} has no argument {key!r}; '
        + (f'did you mean {near[0]!r}?' if near else f'it has {list(known)}.')
      )
  return known | row | overrides


def build(name, *, rngs, num_classes=None, scan=False, remat='none', attention='auto', **overrides):
  """A freshly drawn model by name; num_classes None keeps the row's number."""
  cls, _ = variant(name)
  if num_classes is not None:
    overrides['num_classes'] = num_classes
  return cls(**architecture(name, **overrides), scan=scan, remat=remat, attention=attention, rngs=rngs)


class _NoKeys:
  """Stands in for nnx.Rngs where shapes are all that is wanted; tracing real draws would take five times as long."""

  def params(self):
    """No key: the initializers of layers.py then give zeros."""


def abstract(name, **arguments):
  """The model as build(name, **arguments) gives it, with shapes and dtypes in place of arrays: nothing is computed."""
  return nnx.eval_shape(lambda: build(name, rngs=_NoKeys(), **arguments))


def count(model):
  """How many numbers the parameters of a model (abstract or not) hold."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
