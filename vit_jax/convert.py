"""The arrays of a model and those of a file: which is which, and how one is laid out as the other, both ways.

An Entry is plain data, so that reading, writing, checking and listing a format are one table and not four functions.
Every change is a permutation of numbers (reshape, transpose, stack): no bit of a weight is touched in either direction.
PyTorch lays a dense layer out as (out, in), a convolution as (out, in, h, w); ours are (in, out) and (h, w, in, out).
"""

import collections
from collections.abc import Mapping
import math
from typing import NamedTuple

from flax import nnx
import jax
import numpy as np

from vit_jax import memory, state


class Entry(NamedTuple):
  """Where one array of the model is in a file.

  path, shape: ours.   keys: the file's; several are slices of ours along `axis`, a None among them is a slice of zeros
  that the file does not hold.   file_shape: of each key.   order: ours is file.transpose(order).reshape(...).
  cuts: (axis of the file's array, (start, stop) for each key), where not the whole array is ours; the cuts then follow
  one another along `axis`. What no entry covers of an array is zero, both read and written.
  """

  path: str
  shape: tuple[int, ...]
  keys: tuple[str | None, ...]
  file_shape: tuple[int, ...]
  order: tuple[int, ...]
  axis: int | None = None
  cuts: tuple[int, tuple[tuple[int, int], ...]] | None = None

  @property
  def parts(self):
    """(shape of the part of ours, slices of the file's array that it is, shape of these) for each key."""
    if self.cuts is None:
      shape = self.shape if self.axis is None else self.shape[: self.axis] + self.shape[self.axis + 1 :]
      return [(shape, (), self.file_shape)] * len(self.keys)
    along, cuts = self.cuts
    out = []
    for start, stop in cuts:
      resized = lambda shape, axis, n=stop - start: shape if axis is None else (*shape[:axis], n, *shape[axis + 1 :])
      where = (slice(None),) * along + (slice(start, stop),)
      out.append((resized(self.shape, self.axis), where, resized(self.file_shape, along)))
    return out


def read(entry, arrays):
  """Ours from the numpy arrays of entry.keys (None for a slice that no file holds), as a jax array."""
  parts = []
  for (shape, where, _), a in zip(entry.parts, arrays, strict=True):
    ours = np.zeros(shape, np.float32) if a is None else _permuted(np.asarray(a)[where], entry.order)
    parts.append(ours.reshape(shape))
  if entry.axis is None:
    return jax.device_put(parts[0])
  return jax.device_put(np.stack(parts, entry.axis) if entry.cuts is None else np.concatenate(parts, entry.axis))


def _permuted(a, order):
  """a.transpose(order), contiguous; an array that is laid out so already is not copied.

  numpy moves a matrix element by element. Sixteen rows at a time fill a cache line of the result, which is four to six
  times cheaper, and cheaper than XLA, which would also compile a program for each shape.
  """
  if order == tuple(range(len(order))):
    return np.ascontiguousarray(a)
  if a.ndim != 2:
    return a.transpose(order).copy()  # also where that is contiguous: `a` may be lent
  out = memory.aligned(a.nbytes).view(a.dtype).reshape(a.shape[::-1])
  for i in range(0, len(a), 16):
    out[:, i : i + 16] = a[i : i + 16].T
  return out


def written(entries, arrays):
  """(key, array) of a whole file from {path: array} of ours, one at a time.

  Raises ValueError where numbers would be lost, because the file has no place for them.
  """
  left = collections.Counter(key for entry in entries for key in entry.keys)
  held = {}  # arrays of which a part is still to come
  for entry in entries:
    for key, where, part in _placed(entry, np.asarray(arrays[entry.path])):
      left[key] -= 1
      if not where:
        yield key, part
        continue
      held.setdefault(key, np.zeros(entry.file_shape, part.dtype))[where] = part
      if not left[key]:
        yield key, held.pop(key)


def _placed(entry, array):
  """(key, slices of the file's array, what goes there) for each part of ours."""
  if entry.axis is None:
    parts = [array]
  elif entry.cuts is None:
    parts = [np.take(array, i, entry.axis) for i in range(len(entry.keys))]
  else:
    parts = np.split(array, np.cumsum([stop - start for start, stop in entry.cuts[1]])[:-1], entry.axis)
  for key, part, (_, where, shape) in zip(entry.keys, parts, entry.parts, strict=True):
    if key is None:
      if part.any():
        raise ValueError(f'{entry.path} is not zero, and this format has no place for it; choose another format.')
      continue
    permuted = tuple(shape[i] for i in entry.order)
    yield key, where, np.ascontiguousarray(part.reshape(permuted).transpose(np.argsort(entry.order)))


def gaps(entries):
  """{key: [slices]} of what no entry covers of a file's arrays, which must be zero."""
  covered = collections.defaultdict(list)
  for entry in entries:
    for key, cut in zip(entry.keys, entry.cuts[1] if entry.cuts else ()):
      if key is not None:
        covered[key, entry.cuts[0], entry.file_shape[entry.cuts[0]]].append(cut)
  out = {}
  for (key, along, size), cuts in covered.items():
    ends = [0, *(end for cut in sorted(cuts) for end in cut), size]
    free = [(a, b) for a, b in zip(ends[::2], ends[1::2]) if a < b]
    if free:
      out[key] = [(slice(None),) * along + (slice(*cut),) for cut in free]
  return out


def modules(module, path=''):
  """(path, module) of a module and all in it (nnx.iter_modules is not in flax 0.12.0)."""
  yield path, module
  for name, value in vars(module).items():
    if isinstance(value, nnx.Module):
      yield from modules(value, f'{path}/{name}' if path else name)


def layouts(model):
  """{path: (shape, PyTorch's shape, order)} of every parameter and statistic of a model, abstract or not."""
  found = {}
  for where, module in modules(model):
    inputs = getattr(module, 'inputs', 1)  # of layers.HeadDense: how many leading axes of its kernel are inputs
    kind = 'conv' if isinstance(module, (nnx.Conv, nnx.ConvTranspose)) else 'dense'
    found[where] = kind, inputs
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
  found = [path for path, module in modules(model) if isinstance(module, nnx.BatchNorm)]
  return [timm_key(f'{path}/num_batches_tracked') for path in found]


def differences(entries, shapes, ignored=lambda key: False):
  """Lines that say what is missing, extra or misshapen in a file of {key: shape}; none if it is what entries want.

  ignored: whether a key may be there although no entry wants it.
  """
  want = {key: entry.file_shape for entry in entries for key in entry.keys if key is not None}
  return state.differences(want, {key: shape for key, shape in shapes.items() if key in want or not ignored(key)})


class Converted(Mapping):
  """{path: array in our layout} of a file's {key: array}: each is read when it is asked for, and none is kept."""

  def __init__(self, entries, arrays):
    self._entries = {entry.path: entry for entry in entries}
    self._arrays = arrays
    self._gaps = gaps(entries)

  def __iter__(self):
    return iter(self._entries)

  def __len__(self):
    return len(self._entries)

  def __getitem__(self, path):
    entry = self._entries[path]
    copied = len(entry.keys) == 1 and entry.order != tuple(range(len(entry.order)))  # by read, before the next
    get = self._arrays.lent if copied and hasattr(self._arrays, 'lent') else self._arrays.__getitem__
    given = [None if key is None else get(key) for key in entry.keys]
    for key, array in zip(entry.keys, given, strict=True):
      if any(array[where].any() for where in self._gaps.get(key, ())):
        raise ValueError(f'{key} holds numbers for which this architecture has no place; take the one it was made for.')
    return read(entry, given)

  def shapes(self):
    """{path: shape} without reading an array."""
    return {path: entry.shape for path, entry in self._entries.items()}
