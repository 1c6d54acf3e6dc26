"""Arrays and JSON of a step -> a folder, and back. Knows no model; orbax does the writing.

WORKDIR/checkpoints/40/params/, opt/, ...   one orbax item for each named tree, as a nested dict with string keys
WORKDIR/checkpoints/40/info/metadata        JSON {'info': the caller's, 'score': float or null, 'empty': [names]}
WORKDIR/checkpoints/40.orbax-checkpoint-tmp what is being written, or what a killed process left: never read

A step's folder gets its decimal name by one rename, after everything in it has been written.
"""

import json
import math
import pathlib
import types

import jax
import numpy as np


class Checkpoints:
  """The kept steps of one run: saved in the background, read back bit for bit.

  Args:
    workdir: the run's folder, may be relative; created when it is not there.
    every: a step is due every so many steps. The training loop asks for it; nothing here does.
    last: this many of the newest steps are kept.
    best: this many of the steps with the highest scores are kept as well; of two equal scores the later step is better.

  Raises:
    ValueError: a count is too small, or workdir is a file.
  """

  def __init__(self, workdir, *, every: int = 1000, last: int = 2, best: int = 1):
    if every < 1 or last < 1 or best < 0:
      raise ValueError(f'save: every={every} and last={last} must be at least 1 and best={best} at least 0.')
    import orbax.checkpoint as ocp

    self.every, self.folder = every, _checkpoints(workdir)
    if not all(p.is_dir() for p in (self.folder, *self.folder.parents) if p.exists()):
      raise ValueError(f'{workdir} is not a folder; give a workdir to write to.')
    self._scores = {step: _header(self.folder / str(step))['score'] for step in _steps(self.folder)}

    def should_preserve(steps, *, context):
      there = {one.step for one in steps}
      kept = _kept({step: score for step, score in self._scores.items() if step in there}, last=last, best=best)
      return [one.step in kept for one in steps]

    # The rule is orbax's to carry out: it deletes a step only after the newer one has been written.
    policy = types.SimpleNamespace(should_preserve=should_preserve)
    options = {'preservation_policy': policy, 'cleanup_tmp_directories': True, 'save_root_metadata': False}
    self._manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(**options))

  def save(self, step, arrays, info, score=None):
    """Starts to write a step; returns once the arrays may be donated. A step that is already kept is left as it is.

    Args:
      step: int.
      arrays: {name: pytree of arrays}; any pytree, e.g. an optax state. A tree without leaves is remembered as such.
      info: JSON dict.
      score: higher is better; None or NaN where the step was not evaluated.

    Raises:
      whatever went wrong in the background since the last call of save, wait or close.
    """
    import orbax.checkpoint as ocp

    assert self._manager, 'save after close'  # orbax would hang for minutes
    self.wait()
    if step in self.steps():
      return
    score = None if score is None or math.isnan(score) else float(score)
    flat = {name: _flatten(tree) for name, tree in arrays.items()}
    header = {'info': info, 'score': score, 'empty': [name for name in flat if not flat[name]]}
    # A jax.Array on a CPU is not copied: orbax holds a view, and XLA does not donate a buffer that is viewed (tested).
    # numpy arrays are copied by orbax.
    items = {name: ocp.args.PyTreeSave(_nest(leaves)) for name, leaves in flat.items() if leaves}
    self._scores[step] = score
    self._manager.save(step, args=ocp.args.Composite(info=ocp.args.JsonSave(header), **items), force=True)

  def wait(self):
    """Returns when the last save is on disk; raises what went wrong with it."""
    if self._manager:
      self._manager.wait_until_finished()

  def close(self):
    """Waits, then ends orbax's threads; nothing can be saved any more, but read. A second call does nothing."""
    manager, self._manager = self._manager, None
    if manager:
      manager.close()

  def steps(self) -> list[int]:
    """The steps that are wholly on disk, ascending; a save under way is not among them."""
    return _steps(self.folder)

  def latest(self) -> int | None:
    """The newest step on disk."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """The step on disk with the highest score, the later one of equals; None when none was evaluated."""
    return _best(self.folder)

  def info(self, step) -> dict:
    """The JSON dict that was saved with a step."""
    return _header(self._at(step))['info']

  def restore(self, step, like):
    """Target trees -> the same trees with the saved values, bit for bit, placed as the targets are.

    Args:
      step: one of steps().
      like: {name: pytree of jax.ShapeDtypeStruct with a sharding, or of concrete arrays}. A leaf without a sharding
        comes back as numpy. Names that are left out are not read. Devices may be others than those that saved.

    Raises:
      ValueError: an array is missing, left over, or has another shape or dtype; names all of them.
    """
    folder = self._at(step)
    _check(folder, like)
    return {name: _restore(folder, name, tree) for name, tree in like.items()}

  def _at(self, step):
    if step not in self.steps():
      raise ValueError(f'{self.folder} has no step {step}; it has {self.steps()}.')
    return self.folder / str(step)


def read(folder, names=('params',)) -> dict:
  """A step's folder, as find() gives it -> {name: nested dict of numpy arrays with string keys}, on any devices.

  Raises:
    ValueError: the folder is no saved step, or has not all of the names.
  """
  import orbax.checkpoint as ocp

  folder = pathlib.Path(folder).absolute()
  trees = {}
  for name in names:
    saved = _saved(folder, name)
    args = _nest({path: ocp.RestoreArgs(restore_type=np.ndarray) for path in saved})
    trees[name] = _read(folder / name, args) if saved else {}
  return trees


def find(path) -> tuple[pathlib.Path, str]:
  """WORKDIR or WORKDIR/checkpoints/STEP -> (folder of the step, which weights are meant there).

  which is 'best' where the run was evaluated, else 'last', or 'step 40' where the path says so; with ' EMA' behind it
  where the step has averaged weights, the item 'ema'.

  Raises:
    ValueError: there is no such folder, it is no workdir, or no step has been saved yet.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    raise ValueError(f'No folder {path}; give the workdir of a run, or one of its checkpoints/STEP.')
  if _complete(path):
    folder, which = path, f'step {path.name}'
  else:
    steps, best = _steps(_checkpoints(path)), _best(_checkpoints(path))
    if not steps:
      if _checkpoints(path).is_dir() or (path / 'run.json').exists():
        raise ValueError(f'{path} has no checkpoint yet; train on, with --workdir={path}, until one is saved.')
      raise ValueError(f'{path} is not the workdir of a run: it has no folder checkpoints.')
    folder = _checkpoints(path) / str(steps[-1] if best is None else best)
    which = 'last' if best is None else 'best'
  return folder, which + ' EMA' * (folder / 'ema').is_dir()


def _checkpoints(workdir):
  return pathlib.Path(workdir).absolute() / 'checkpoints'  # orbax takes no relative path


def _complete(folder):
  """Whether a folder is a step that may be read. A manifest of its files would be checked here."""
  return folder.name.isdecimal() and (folder / 'info' / 'metadata').is_file()


def _steps(folder):
  return sorted(int(one.name) for one in folder.iterdir() if _complete(one)) if folder.is_dir() else []


def _header(folder):
  return json.loads((folder / 'info' / 'metadata').read_text())


def _ranked(scores):
  """{step: score or None} -> the steps that have a score, the best one last."""
  return sorted((step for step in scores if scores[step] is not None), key=lambda step: (scores[step], step))


def _best(folder):
  ranked = _ranked({step: _header(folder / str(step))['score'] for step in _steps(folder)})
  return ranked[-1] if ranked else None


def _kept(scores, *, last, best):
  """{step: score or None} -> the steps to keep. The newest is one of them, however bad its score."""
  return {*sorted(scores)[-last:], *_ranked(scores)[::-1][:best]}


def _flatten(tree):
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

  if not _complete(folder):
    raise ValueError(f'{folder} is not the folder of a saved step.')
  if (folder / name).is_dir():
    return _flatten(ocp.PyTreeCheckpointHandler().metadata(folder / name).tree)
  empty = _header(folder)['empty']
  if name not in empty:
    there = sorted({one.name for one in folder.iterdir() if one.is_dir()} - {'info'} | set(empty))
    raise ValueError(f'{folder} has no {name!r}; it has {", ".join(there)}.')
  return {}


def _check(folder, like):
  """Raises one ValueError for all names, shapes and dtypes that differ: orbax would cast and cut silently."""
  faults = []
  for name, tree in like.items():
    saved, wanted = _saved(folder, name), _flatten(tree)
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

  wanted = _flatten(tree)
  values = _flatten(_read(folder / name, _nest({path: args(x) for path, x in wanted.items()}))) if wanted else {}
  return jax.tree.unflatten(jax.tree.structure(tree), [values[path] for path in wanted])


def _read(folder, args):
  import orbax.checkpoint as ocp

  return ocp.PyTreeCheckpointHandler().restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
