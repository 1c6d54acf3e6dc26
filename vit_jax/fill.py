"""A model filled with weights, strictly: whatever does not fit is one error, and what may differ is named."""

import re

from flax import nnx
import jax
import jax.numpy as jnp

from vit_jax import models, state
from vit_jax.models import positions


def filled(opened, name, made, *, reset=(), seed=0, **execution):
  """The model `name` of every architecture argument in `made`, with the arrays of weights.Weights put in, in float32.

  Arrays are read and converted one at a time. Positions follow the model's image size; a norm before pooling serves as
  one after it, or the reverse; rows of positions go with the tokens that `reset` leaves out.
  reset: first parts of paths that stay freshly drawn from `seed`, and may be missing, extra or of other shapes.
  execution: see models.EXECUTION.

  Raises a ValueError that lists every other difference.
  """
  same = (name, made) == (opened.described['name'], opened.described['architecture'])
  model = opened.model if same else models.abstract(name, **made)
  want, arrays = shapes(model), opened.converted()
  have = _renamed(arrays.shapes(), want)
  resampled = _resampled(opened.model, model, have, want)
  _check(opened, name, have, want, reset, resampled)
  leaves = _fresh(name, made, reset, seed, want)
  for path in want.keys() - leaves.keys():
    leaf = arrays[have[path][0]]
    leaf = leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    leaves[path] = resampled[path](leaf) if path in resampled else leaf
  if execution:
    model = models.abstract(name, **made, **execution)
  values = state.unflatten(leaves)
  nnx.update(model, state.stack(values) if execution.get('scan') else values)
  return model


def shapes(model):
  """{path: shape} of all arrays of a model, a name for each layer."""
  tree = _tree(model)
  leaves = state.flatten(tree)
  if any('stacked' in path.split('/') for path in leaves):
    leaves = state.flatten(jax.eval_shape(lambda: state.unstack(tree)))
  return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def _tree(model):
  _, params, rest = state.split(model)
  return state.combine(params, rest)


def _under(path, parts):
  return any(path == part or path.startswith(f'{part}/') for part in parts)


def _renamed(given, want):
  """{path as in the model: (path in the file, shape)}."""
  have = {path: (path, shape) for path, shape in given.items()}
  for ours, theirs in (('norm', 'fc_norm'), ('fc_norm', 'norm')):
    if f'{ours}/scale' in want and f'{ours}/scale' not in have and f'{theirs}/scale' not in want:
      for path in [path for path in have if _under(path, [theirs])]:
        have[ours + path.removeprefix(theirs)] = have.pop(path)
  return have


def _resampled(file, model, have, want):
  """{path: function} for tables of positions that have another grid in the model, or other rows before it."""
  if not hasattr(model, 'grid') or not hasattr(file, 'grid'):
    return {}
  old, new, out = tuple(file.grid), tuple(model.grid), {}
  for path in want.keys() & have.keys():
    was, shape = have[path][1], want[path]
    if (old, was) == (new, shape) or was[-1] != shape[-1]:
      continue
    if path == 'pos_embed':
      prefix, kept = was[1] - old[0] * old[1], shape[1] - new[0] * new[1]
      if 0 <= kept <= prefix:
        out[path] = lambda table, prefix=prefix, kept=kept: _kept(
          positions.resize_table(table, old, new, prefix=prefix, method=model.pos_resize), prefix, kept
        )
    elif path.endswith('relative_position_bias_table'):
      out[path] = lambda table: positions.resize_relative_positions(table, old, new, model.rel_pos_resize)
  return out


def _kept(table, prefix, kept):  # (1, prefix + n, d) -> (1, kept + n, d)
  return table if kept == prefix else jnp.concatenate([table[:, :kept], table[:, prefix:]], axis=1)


def _check(opened, name, have, want, reset, resampled):
  """Raises a ValueError that lists every difference which `reset` does not name."""
  for part in reset:
    if not any(_under(path, [part]) for path in {*have, *want}):
      tops = ', '.join(dict.fromkeys(path.split('/')[0] for path in want))
      raise ValueError(f'reset names {part!r}, which neither model nor weights have; the model has {tops}.')
  masked = 'decoder_embed/kernel' in have and 'decoder_embed/kernel' not in want  # an encoder out of MAE
  loose = lambda path: _under(path, reset) or masked and path.startswith(('decoder', 'mask_token'))
  lines = state.differences(
    {path: shape for path, shape in want.items() if not loose(path) and path not in resampled},
    {path: shape for path, (_, shape) in have.items() if not loose(path) and path not in resampled},
  )
  if lines:
    hint = "; reset=('head',) gives a fresh head" if all(re.search(r'\bhead(_dist)?/', line) for line in lines) else ''
    raise ValueError(
      f'The weights of {opened.path} do not fit {name} as it was asked for ({len(lines)} differences): '
      f'{"; ".join(lines)}{hint}'
    )


def _fresh(name, made, reset, seed, want):
  """{path: array} of the parts that stay freshly drawn: XLA computes nothing else of the whole draw."""
  wanted = [path for path in want if _under(path, reset)]

  def draw():
    leaves = state.flatten(_tree(models.build(name, rngs=nnx.Rngs(seed), **made)))
    return {path: leaves[path] for path in wanted}

  return dict(jax.jit(draw)()) if wanted else {}
