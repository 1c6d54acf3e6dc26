"""The arrays of a model and those of a file: which is which, and how one is laid out as the other, both ways.

An Entry is plain data, so that reading, writing, checking and listing a format are one table and not four functions.
Every change is a permutation of numbers (reshape, transpose, stack): no bit of a weight is touched in either direction.
PyTorch lays a dense layer out as (out, in) and a convolution as (out, in, h, w); ours are (in, out) and (h, w, in, out).
"""

from collections.abc import Mapping
import math
from typing import NamedTuple

from flax import nnx
import jax.numpy as jnp
import numpy as np

from vit_jax import state


class Entry(NamedTuple):
  """Where one array of the model is in a file.

  path, shape: ours.   keys: the file's; several are slices of ours along `axis`, a None among them is a slice of zeros
  that the file does not hold.   file_shape: of each key.   order: ours is file.transpose(order).reshape(...).
  """

  path: str
  shape: tuple[int, ...]
  keys: tuple[str | None, ...]
  file_shape: tuple[int, ...]
  order: tuple[int, ...]
  axis: int | None = None

  @property
  def part(self):
    """Shape of one slice of ours: the whole where there is one key."""
    return self.shape if self.axis is None else self.shape[: self.axis] + self.shape[self.axis + 1 :]


def read(entry, arrays):
  """Ours from the arrays of entry.keys (None for a slice that no file holds), numpy or jax."""
  given = [a for a in arrays if a is not None]
  xp = jnp if any(not isinstance(a, np.ndarray) for a in given) else np
  parts = [
    xp.zeros(entry.part, given[0].dtype if given else np.float32) if a is None
    else a.transpose(entry.order).reshape(entry.part)
    for a in arrays
  ]  # fmt: skip
  return parts[0] if entry.axis is None else xp.stack(parts, entry.axis)


def write(entry, array):
  """[(key, array)] of the file from ours; a ValueError where numbers would be lost, because the file has no place."""
  array = np.asarray(array)
  parts = [array] if entry.axis is None else [np.take(array, i, entry.axis) for i in range(len(entry.keys))]
  out = []
  permuted = tuple(entry.file_shape[i] for i in entry.order)
  for key, part in zip(entry.keys, parts, strict=True):
    if key is None:
      if part.any():
        raise ValueError(f'{entry.path} is not zero, and this format has no place for it; choose another format.')
      continue
    out.append((key, np.ascontiguousarray(part.reshape(permuted).transpose(np.argsort(entry.order)))))
  return out


def layouts(model):
  """{path: (shape, PyTorch's shape, order)} of every parameter and statistic of a model, abstract or not."""
  found = {}
  for where, module in nnx.iter_modules(model):
    inputs = getattr(module, 'inputs', 1)  # of layers.HeadDense: how many leading axes of its kernel are inputs
    kind = 'conv' if isinstance(module, (nnx.Conv, nnx.ConvTranspose)) else 'dense'
    found['/'.join(map(str, where))] = kind, inputs
  out = {}
  _, params, rest = state.split(model)
  for path, leaf in state.flatten(state.combine(params, rest)).items():
    parent, _, name = path.rpartition('/')
    kind, inputs = found[parent]
    shape = tuple(leaf.shape)
    if name == 'kernel' and kind == 'conv':
      out[path] = shape, (shape[3], shape[2], *shape[:2]), (2, 3, 1, 0)
    elif name == 'kernel':
      out[path] = shape, (math.prod(shape[inputs:]), math.prod(shape[:inputs])), (1, 0)
    else:
      flat = (math.prod(shape),) if name == 'bias' else shape  # a HeadDense keeps its heads' axes in the bias too
      out[path] = shape, flat, tuple(range(len(flat)))
  return out


RENAMED = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}


def timm_key(path):
  """timm's name of one of our paths: the same words, with PyTorch's for the leaves."""
  *parents, leaf = path.split('/')
  return '.'.join([*parents, RENAMED.get(leaf, leaf)])


def timm(model):
  """The entries of timm's format."""
  return [
    Entry(path, shape, (timm_key(path),), file_shape, order)
    for path, (shape, file_shape, order) in layouts(model).items()
  ]


def counters(model):
  """Keys under which PyTorch's batch norms count their batches: a () int64 that no output depends on."""
  found = ['/'.join(map(str, path)) for path, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]
  return [timm_key(f'{path}/num_batches_tracked') for path in found]


def differences(entries, shapes):
  """Lines that say what is missing, extra or misshapen in a file of {key: shape}; none if it is what entries want."""
  want = {key: entry.file_shape for entry in entries for key in entry.keys if key is not None}
  lines = [f'missing {key} {want[key]}' for key in sorted(want.keys() - shapes.keys())]
  lines += [f'extra {key} {tuple(shapes[key])}' for key in sorted(shapes.keys() - want.keys())]
  both = sorted(want.keys() & shapes.keys())
  return lines + [f'{k} is {tuple(shapes[k])}, wanted {want[k]}' for k in both if tuple(shapes[k]) != want[k]]


class Converted(Mapping):
  """{path: array in our layout} of a file's {key: array}: each is read when it is asked for, and none is kept."""

  def __init__(self, entries, arrays):
    self._entries = {entry.path: entry for entry in entries}
    self._arrays = arrays

  def __iter__(self):
    return iter(self._entries)

  def __len__(self):
    return len(self._entries)

  def __getitem__(self, path):
    entry = self._entries[path]
    # jnp: XLA transposes large kernels two to three times cheaper than numpy
    given = [None if key is None else jnp.asarray(self._arrays[key]) for key in entry.keys]
    return read(entry, given)

  def shapes(self):
    """{path: shape} without reading an array."""
    return {path: entry.shape for path, entry in self._entries.items()}
