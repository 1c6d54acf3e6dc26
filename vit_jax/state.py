"""The seam: a model on one side, nested dicts of arrays on the other.

Everything that crosses a transform (jit, grad, a checkpoint) is a pure dict; modules exist only inside the function
that merges them. A path is the keys joined by '/': 'blocks/0/attn/qkv/kernel'.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np


def split(model):
  """(graphdef, params, rest) of a model: its static part, its parameters, all other variables, both as nested dicts."""
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def merge(graphdef, params, rest):
  """The model of what split gave."""
  return nnx.merge(graphdef, combine(params, rest))


def cast(tree, dtype):
  """The tree with every floating-point array in `dtype`; integers and keys stay."""
  return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def combine(first, second):
  """One nested dict with the leaves of two that share no leaf."""
  out = dict(first)
  for key, value in second.items():
    out[key] = combine(out[key], value) if key in out else value
  return out


def flatten(tree, prefix=''):
  """{path: leaf} of a nested dict; an empty dict leaves nothing."""
  out = {}
  for key, value in tree.items():
    path = f'{prefix}{key}'
    out |= flatten(value, f'{path}/') if isinstance(value, dict) else {path: value}
  return out


def unflatten(leaves):
  """The nested dict of {path: leaf}; all keys are strings."""
  out = {}
  for path, leaf in leaves.items():
    *parents, last = path.split('/')
    node = out
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return out


def stack(params):
  """Parameters with the layers of every `blocks` dict ('0', '1', ...) stacked as `stacked`: the form of scan=True.

  What is under `patch_embed` stays: the stages of a hybrid's backbone are numbered too, but their blocks differ.
  """
  if not isinstance(params, dict):
    return params
  if '0' in params and all(str(i) in params for i in range(len(params))):
    blocks = [params[str(i)] for i in range(len(params))]
    return {'stacked': jax.tree.map(lambda *a: np.stack(a) if isinstance(a[0], np.ndarray) else jnp.stack(a), *blocks)}
  return {key: value if key == 'patch_embed' else stack(value) for key, value in params.items()}


def unstack(params):
  """The inverse of stack: one dict for each layer, the form of every file."""
  if not isinstance(params, dict):
    return params
  if set(params) == {'stacked'}:
    depth = jax.tree.leaves(params)[0].shape[0]
    return {str(i): jax.tree.map(lambda a, i=i: a[i], params['stacked']) for i in range(depth)}
  return {key: unstack(value) for key, value in params.items()}


def update(model, params, rest=None):
  """Puts arrays into a model, in place; raises ValueError that lists every path missing, extra or misshapen.

  params, rest: nested dicts as split gives; rest None keeps the model's own.
  """
  _, own, own_rest = split(model)
  check(own, params)
  values = combine(params, own_rest if rest is None else rest)
  nnx.update(model, jax.tree.map(jnp.asarray, values))


def differences(want, given):
  """Lines that say what {name: shape} misses, has too much or in another shape; none if it is what is wanted."""
  lines = [f'missing {name} {tuple(want[name])}' for name in sorted(want.keys() - given.keys())]
  lines += [f'extra {name} {tuple(given[name])}' for name in sorted(given.keys() - want.keys())]
  both = [name for name in sorted(want.keys() & given.keys()) if tuple(want[name]) != tuple(given[name])]
  return lines + [f'{name} is {tuple(given[name])}, wanted {tuple(want[name])}' for name in both]


def check(want, given, what='weights'):
  """None if two nested dicts have the same paths and shapes, else a ValueError that lists all differences."""
  shapes = lambda tree: {path: leaf.shape for path, leaf in flatten(tree).items()}
  lines = differences(shapes(want), shapes(given))
  if lines:
    raise ValueError(f'The {what} do not fit the model ({len(lines)} differences): {"; ".join(lines)}')
