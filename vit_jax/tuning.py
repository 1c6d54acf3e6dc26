"""What of a model is trained, and how fast: frozen parts, low-rank adapters, rates that fall towards the input.

Pure functions over nested dicts of parameters; no model knows of them. A run holds what is trained in `params` and the
rest in `frozen`, and `merged` gives the parameters that a model, an evaluation and an export want.

Sources: LoRA, Hu et al. 2021, arXiv:2106.09685 (equation 3); layer-wise decay of the rate, Bao et al. 2021,
arXiv:2106.08254 (BEiT), and He et al. 2021, arXiv:2111.06377 (MAE, appendix A.1).
"""

import difflib
import fnmatch
import math
import re
from typing import NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import state

HEADS = ('head', 'head_dist')
# First parts of the paths before the first block, which is layer 1; all that is neither is after the last block.
INPUTS = ('cls_token', 'dist_token', 'reg_token', 'mask_token', 'pos_embed', 'patch_embed', 'norm_pre', 'stem')
BLOCK = re.compile(r'(?:stages/(\d+)/)?blocks/(\d+)/')
ADAPTED = re.compile(r'(?:^|/)attn/(?:qkv|kv|q|k|v|q_proj|k_proj|v_proj|proj)/kernel$')


class Tuning(NamedTuple):
  """How a run trains its parameters; optim.make says what each value means, and what trains everything alike."""

  freeze: tuple
  body_lr: float
  layer_decay: float
  lora: int | None
  lora_alpha: float


def check(tuning):
  """Raises ValueError for values that are out of range or exclude each other, whatever the model."""
  if not tuning.body_lr > 0:
    raise ValueError(f"optim.body_lr is {tuning.body_lr}; it must be above 0; optim.freeze='body' trains no body.")
  if not 0 < tuning.layer_decay <= 1:
    raise ValueError(f'optim.layer_decay is {tuning.layer_decay}; it must be above 0 and at most 1 (0.75 is usual).')
  if tuning.lora is not None and (tuning.lora < 1 or not tuning.lora_alpha > 0):
    raise ValueError(f'optim.lora={tuning.lora}, lora_alpha={tuning.lora_alpha}: a rank from 1 and a number above 0.')
  if tuning.lora is not None and tuning.freeze:
    raise ValueError('optim.lora already freezes all but its adapters and the head; leave optim.freeze out.')


def split(params, tuning, key):
  """(trainable, frozen) of a model's parameters; without freeze and lora all of them, and none.

  With lora the trainable ones are the head and, beside each attention kernel, lora_a, drawn from `key` with variance
  1 / inputs, and lora_b, zero: at the start `merged` gives the very weights. lora_scale is among the frozen.

  Raises ValueError for a pattern that matches nothing, and where nothing is left to train or to adapt.
  """
  leaves = state.flatten(params)
  if tuning.lora is not None:
    fixed = {path for path in leaves if not _is_head(path)}
    adapters, scales = _adapters(leaves, tuning, key)
  elif tuning.freeze:
    fixed, adapters, scales = _frozen(leaves, tuning.freeze), {}, {}
  else:
    return params, {}
  trainable = {path: leaf for path, leaf in leaves.items() if path not in fixed} | adapters
  if not trainable:
    raise ValueError(f'optim.freeze={list(tuning.freeze)} freezes everything; leave something to train.')
  frozen = {path: leaf for path, leaf in leaves.items() if path in fixed} | scales
  return state.unflatten(trainable), state.unflatten(frozen)


def merged(trainable, frozen):
  """The model's parameters of what split gave: both, and kernel + lora_scale * lora_a lora_b for each adapter."""
  if not frozen:
    return trainable
  leaves = state.flatten(state.combine(frozen, trainable))
  for kernel in [path[: -len('lora_a')] + 'kernel' for path in leaves if path.endswith('/lora_a')]:
    a, b, scale = (leaves.pop(kernel[: -len('kernel')] + f'lora_{name}') for name in ('a', 'b', 'scale'))
    product = lambda a, b, scale: scale * jnp.tensordot(a, b, 1, precision='highest')
    leaves[kernel] = leaves[kernel] + (jax.vmap(product) if _is_stacked(kernel) else product)(a, b, scale)
  return state.unflatten(leaves)


def scaled(tx, params, tuning):
  """The optax transformation `tx` with each parameter's update multiplied by its rate; params: all, of any shape."""
  if tuning.body_lr == 1 and tuning.layer_decay == 1:
    return tx
  factors = rates(params, body_lr=tuning.body_lr, layer_decay=tuning.layer_decay)

  def update(updates, params):
    return state.unflatten({path: leaf * factors[path] for path, leaf in state.flatten(updates).items()})

  return optax.chain(tx, optax.stateless(update))


def rates(params, *, body_lr=1.0, layer_decay=1.0):
  """{path: what its learning rate is multiplied by}: layer_decay^(blocks + 1 - layer), and body_lr but for the head.

  Layer 0 is what is before the blocks, which are layers 1, 2, ...; what follows them has the full rate. Numbers are
  float32; of stacked layers they are an array (depth, 1, ...).
  """
  leaves = state.flatten(params)
  layer, last = _layers([name for path, leaf in leaves.items() for name in _names(path, leaf)])
  if not last - 1 and layer_decay != 1:
    raise ValueError(f'optim.layer_decay={layer_decay} goes by blocks, and this model has none; leave it out.')
  rate = lambda name: np.float32(layer_decay ** (last - layer[name]) * (1 if _is_head(name) else body_lr))
  factors = {}
  for path, leaf in leaves.items():
    found = [rate(name) for name in _names(path, leaf)]
    factors[path] = np.reshape(found, (-1, *[1] * (leaf.ndim - 1))) if _is_stacked(path) else found[0]
  return factors


def _layers(names):
  """({path: its layer}, the layer after all blocks) of every path of a model."""
  place = lambda match: tuple(int(number or 0) for number in match.groups())  # (stage, block)
  found = {name: place(match) for name in names if (match := BLOCK.match(name))}
  number = {block: i + 1 for i, block in enumerate(sorted(set(found.values())))}
  last = len(number) + 1
  other = lambda name: 0 if name.split('/')[0] in INPUTS else last
  return {name: number[found[name]] if name in found else other(name) for name in names}, last


def _is_head(path):
  return path.split('/')[0] in HEADS


def _is_stacked(path):
  return 'stacked' in path.split('/')


def _names(path, leaf):
  """The paths that an array has in a file: one, or of stacked layers one each."""
  return [path.replace('stacked', str(i), 1) for i in range(leaf.shape[0])] if _is_stacked(path) else [path]


def _frozen(leaves, patterns):
  """The paths that patterns select: 'body', a path, its first parts, or these with * and ?."""
  names = {path: _names(path, leaf) for path, leaf in leaves.items()}
  chosen = set()
  for pattern in patterns:
    fits = lambda name, p=pattern: not _is_head(name) if p == 'body' else any(
      fnmatch.fnmatchcase(name, end) for end in (p, f'{p}/*'))  # fmt: skip
    new = {name for given in names.values() for name in given if fits(name)}
    if not new:
      firsts = {'/'.join(name.split('/')[:n]) for given in names.values() for name in given for n in (1, 2, 3)}
      near = difflib.get_close_matches(pattern, sorted(firsts | {'body'}), 1, 0.3) or ['body']
      raise ValueError(f'optim.freeze names {pattern!r}, which matches no parameter; did you mean {near[0]!r}?')
    chosen |= new
  torn = [path for path, given in names.items() if chosen & set(given) and set(given) - chosen]
  if torn:
    raise ValueError(f'optim.freeze takes some layers of {torn[0]}, which step.scan trains as one array; scan=False.')
  return {path for path, given in names.items() if chosen & set(given)}


def _adapters(leaves, tuning, key):
  """({path of lora_a and lora_b: array}, {path of lora_scale: array}) for the attention kernels."""
  adapters, scales, kernels = {}, {}, {path: leaf for path, leaf in leaves.items() if ADAPTED.search(path)}
  if not kernels:
    raise ValueError('optim.lora adapts attention kernels, and this model has none; leave it out.')
  for path, kernel in kernels.items():
    parent, names = path.removesuffix('kernel'), _names(path, kernel)
    shape = kernel.shape[1:] if _is_stacked(path) else kernel.shape
    axes = len(shape) - 1 if parent.endswith('/proj/') else 1  # of the input: proj's are the heads and their numbers
    inputs, outputs = shape[:axes], shape[axes:]
    most = min(math.prod(inputs), math.prod(outputs))
    if tuning.lora > most:
      raise ValueError(f'optim.lora={tuning.lora} is more than {path} has dimensions; choose at most {most}.')
    keys = [jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names]
    stacked = jnp.stack if _is_stacked(path) else lambda parts: parts[0]
    drawn = [jax.random.normal(one, (*inputs, tuning.lora)) for one in keys]
    adapters[f'{parent}lora_a'] = stacked(drawn) * math.prod(inputs) ** -0.5
    adapters[f'{parent}lora_b'] = stacked([jnp.zeros((tuning.lora, *outputs)) for _ in keys])
    scales[f'{parent}lora_scale'] = stacked([jnp.float32(tuning.lora_alpha / tuning.lora) for _ in keys])
  return adapters, scales
