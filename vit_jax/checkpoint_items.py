"""Named trees of arrays -> the items of a step's folder, and back bit for bit, on any devices; orbax does the writing.

FOLDER/params/, opt/, ...  one orbax item for each tree, as a nested dict with string keys; one without leaves has none
FOLDER/info/metadata       JSON {'info': the caller's, 'score': float or null, 'empty': [names of trees without leaves]}
"""

import json
import math

import jax
import numpy as np

from vit_jax import checkpoint_seal as seal
from vit_jax import npz


def arguments(arrays, info, score):
  """What orbax's Composite handler saves, of {name: pytree of arrays} and a JSON dict.

  A jax.Array on a CPU is not copied: orbax holds a view, and XLA does not donate a buffer that is viewed (tested).
  numpy arrays are copied by orbax.
  """
  import orbax.checkpoint as ocp

  flat = {name: flatten(tree) for name, tree in arrays.items()}
  header = {'info': info, 'score': score, 'empty': [name for name in flat if not flat[name]]}
  items = {name: ocp.args.PyTreeSave(_nest(leaves)) for name, leaves in flat.items() if leaves}
  return ocp.args.Composite(info=ocp.args.JsonSave(header), **items)


def writer(*, alone):
  """What writes such a step in the background; alone: without the other processes of a run."""
  import orbax.checkpoint as ocp

  if not alone:
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
  own = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix='alone')
  handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=own))
  return ocp.AsyncCheckpointer(handler, multiprocessing_options=own)


def gathered(arrays, *, keep):
  """{name: pytree of jax.Arrays on the devices of several processes} -> of numpy arrays, or where not keep of None.

  All processes call it. One array after the other lies whole on a device of each.
  """
  from jax.experimental import multihost_utils

  def whole(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      x = x.addressable_data(0) if x.is_fully_replicated else multihost_utils.process_allgather(x, tiled=True)
    return np.array(x) if keep else None

  return jax.tree.map(whole, arrays)


def size(arrays):
  """Bytes that {name: pytree of arrays or ShapeDtypeStructs} needs on disk, at most: orbax compresses weights by 7 %.

  Its own files are 20 of a block each and half a KB for each array (measured; see tests/test_checkpoint.py).
  """
  leaves = [leaf for tree in arrays.values() for leaf in flatten(tree).values()]
  return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in leaves) + (len(leaves) << 10) + (1 << 17)


def header(folder):
  """{'info', 'score', 'empty'} of a step's folder; info and score as they were last said, in the note of its seal."""
  return json.loads((folder / 'info' / 'metadata').read_text()) | seal.note(folder)


def read(folder, names):
  """A step's folder -> {name: nested dict of numpy arrays with string keys}; ValueError for a name that it lacks."""
  import orbax.checkpoint as ocp

  trees = {}
  for name in names:
    saved = _saved(folder, name)
    _check_size(folder / name, saved)
    args = _nest({path: ocp.RestoreArgs(restore_type=np.ndarray) for path in saved})
    trees[name] = _read(folder / name, args) if saved else {}
  return trees


def restore(folder, like):
  """A step's folder, {name: target tree} -> the same trees with the saved values; see Checkpoints.restore."""
  _check(folder, like)
  return {name: _restore(folder, name, tree) for name, tree in like.items()}


def flatten(tree):
  """Any pytree -> {('0', 'trace', 'head', 'kernel'): array}; what is no jax.Array becomes numpy."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  flat = {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}
  assert len(flat) == len(leaves), 'two leaves have one name'
  return {path: x if hasattr(x, 'dtype') and hasattr(x, 'shape') else np.asarray(x) for path, x in flat.items()}


def _nest(flat):
  """{('a', 'b'): leaf} -> {'a': {'b': leaf}}."""
  nested = {}
  for path, leaf in flat.items():
    node = nested
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = leaf
  return nested


def _saved(folder, name):
  """A step's folder and an item -> {path: orbax's metadata of the array}, without reading an array."""
  import orbax.checkpoint as ocp

  if (folder / name).is_dir():
    return flatten(ocp.PyTreeCheckpointHandler().metadata(folder / name).tree)
  empty = header(folder)['empty']
  if name not in empty:
    there = sorted({one.name for one in folder.iterdir() if one.is_dir()} - {'info'} | set(empty))
    raise ValueError(f'{folder} has no {name!r}; it has {", ".join(there)}.')
  return {}


def _check_size(folder, saved):
  """Raises ValueError for arrays that cannot lie in a folder of its size: what nobody wrote would be read as zeros."""
  there = sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
  wanted = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in saved.values())
  if npz.bursts(there, wanted):
    raise ValueError(f'{folder} is of {there:,} bytes, and would hold arrays of {wanted:,}.')


def _check(folder, like):
  """Raises one ValueError for all names, shapes and dtypes that differ: orbax would cast and cut silently."""
  faults = []
  for name, tree in like.items():
    saved, wanted = _saved(folder, name), flatten(tree)
    for path in sorted(saved | wanted):
      theirs, ours = _kind(saved.get(path)), _kind(wanted.get(path))
      if theirs != ours:
        faults.append(f'{name}/{"/".join(path)}: saved {theirs}, wanted {ours}')
  if faults:
    raise ValueError(f'{folder} does not fit; {len(faults)} arrays differ: {"; ".join(faults)}.')


def _kind(x):
  return 'none' if x is None else f'{np.dtype(x.dtype)}{list(x.shape)}'


def _restore(folder, name, tree):
  import orbax.checkpoint as ocp

  def args(x):
    if getattr(x, 'sharding', None) is None:
      return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)

  wanted = flatten(tree)
  values = flatten(_read(folder / name, _nest({path: args(x) for path, x in wanted.items()}))) if wanted else {}
  return jax.tree.unflatten(jax.tree.structure(tree), [values[path] for path in wanted])


def _read(folder, args):
  import orbax.checkpoint as ocp

  return ocp.PyTreeCheckpointHandler().restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
