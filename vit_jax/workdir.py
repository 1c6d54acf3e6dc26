"""What a run keeps in its folder, so that it can be resumed and its model used without the config.

The folder is a local one, or at an address (gs://BUCKET/NAME, ...): then see mirror.py.

WORKDIR/run.json      config, versions, devices, data fingerprint, git state; those of earlier sessions in 'earlier'
WORKDIR/model.json    what the weights are: name, architecture, preprocessing, class names
WORKDIR/lock          while a process has the run: see guard.lock; at an address LOCK.json, see lease.py
WORKDIR/checkpoints/  see checkpoint.py; a file has a name for each layer, also where a run stacks its layers (scan)
"""

import contextlib
import functools
import json
import os
import sys

import jax
import jax.numpy as jnp

from vit_jax import checkpoint, crops, guard, mirror, pretrained, sharding, state, storage, watch, weights
from vit_jax import config as config_lib
from vit_jax import data as data_lib

# A resumed run must give what the uninterrupted one would have given, so these may not change.
FIXED = ('seed', 'batch', 'total_steps', 'model', 'data', 'task', 'teacher', 'optim', 'step')
FREE = {'data': ('threads', 'max_unreadable'), 'step': ('remat', 'scan', 'attention'), 'model': ()}


class Workdir:
  """The folder of a run. With path None nothing is read or written.

  Attributes: path: absolute, where it is written.   name: where it is in the end.   first: the step to continue after,
  0 for a new run.   steps: how many there will be.   begun: how many there were to be when the run was last started,
  None for a new one.   skipped: how many steps before `first` were left out (step.skip_nonfinite).   newest: the last
  step that was given to save, or `first`.
  """

  def __init__(self, path, config, *, model, data, steps, save, extend):
    self.name, self.steps = path, steps
    self.path = path and os.path.abspath(path)
    self.first, self.begun, self.checkpoints, self.skipped, self.newest = 0, None, None, 0, 0
    if self.path is None:
      return
    watch.check_workdir(path)
    config, fingerprint = json.loads(json.dumps(config)), data_lib.fingerprint(data)
    self._decoder = crops.host_decoder() + (', at a scale for the crop' if data.training.get('shrink') else '')
    with contextlib.ExitStack() as held:
      if storage.is_remote(path):
        there = held.enter_context(mirror.opened(path, primary=jax.process_index() == 0))
        self.path = os.fspath(there.folder)
        self._open(config, fingerprint, model, save | {'elsewhere': there.steps}, extend)
        if jax.process_index() == 0:
          there.sync()
      else:
        self.name = self.path
        held.enter_context(guard.lock(self.path if jax.process_index() == 0 else None))
        self._open(config, fingerprint, model, save, extend)
      self._held = held.pop_all()

  def _open(self, config, fingerprint, model, save, extend):
    old = _read_json(os.path.join(self.path, 'run.json'))
    if old is not None:
      _check_resume(self.name, old, config, fingerprint, extend=extend)
      self.begun = old['config']['total_steps']
    self.checkpoints = checkpoint.Checkpoints(self.path, **save)
    self.first = self.newest = self.checkpoints.latest() or 0
    self.skipped = self.checkpoints.info(self.first).get('skipped', 0) if self.first else 0
    if not self.finished and jax.process_index() == 0:
      watch.write_json(os.path.join(self.path, 'model.json'), weights.stamped(pretrained.described(model)))
      new = watch.run_record(config, fingerprint, {'decoder': self._decoder})
      if old is not None and old.get('decoder') != self._decoder:
        print(f'{self.name}: pictures were decoded by {old.get("decoder")} so far, and are now by {self._decoder}; '
              'they differ by some 8-bit steps, so the run goes on, but not to the bit.', file=sys.stderr)  # fmt: skip
      earlier = [] if old is None else [*old.pop('earlier'), old]
      watch.write_json(os.path.join(self.path, 'run.json'), new | {'earlier': earlier})

  @property
  def finished(self):
    """Whether the workdir already is at the last step."""
    return self.first == self.steps

  def say_finished(self):
    """Says on stderr that there is nothing to do; of several processes, the first one does."""
    if jax.process_index() == 0:
      print(f'{self.name} is finished, at step {self.steps} of {self.steps}; --extend with a larger total_steps '
            'continues it.', file=sys.stderr)  # fmt: skip

  def restore(self, like):
    """The run's state at step `first`, bit for bit, placed as `like` says; like: ShapeDtypeStructs with shardings."""
    like = {name: tree for name, tree in like.items() if name != 'step'}
    mesh = jax.tree.leaves(like['params'])[0].sharding.mesh
    files = jax.eval_shape(_map_layers(state.unstack), like)
    files = sharding.abstract(files, sharding.shardings(mesh, files))
    saved = self.checkpoints.restore(self.first, files)
    if jax.tree.structure(saved) != jax.tree.structure(like):
      saved = jax.jit(_map_layers(state.stack), out_shardings=jax.tree.map(lambda a: a.sharding, like))(saved)
    return saved | {'step': jax.device_put(jnp.int32(self.first), sharding.replicated(mesh))}

  def check_room(self, like):
    """Raises diskfull.DiskFull where the disk cannot hold the checkpoints of a state; like: as restore's."""
    if self.checkpoints is not None and not self.finished:
      self.checkpoints.check_room({name: tree for name, tree in like.items() if name != 'step'})

  @property
  def every(self):
    """Steps between two saves; None where nothing is saved."""
    return self.checkpoints and self.checkpoints.every

  def save(self, step, run, metrics, score, *, skipped=0):
    """Starts to write a step in the background. metrics, score: of its evaluation, both None where there was none."""
    if self.checkpoints is not None:
      arrays = _map_layers(state.unstack)({name: tree for name, tree in run.items() if name != 'step'})
      info = {'step': step, 'position': step, 'metrics': metrics, 'skipped': skipped}
      self.checkpoints.save(step, arrays, info, score)
      self.newest = step

  def evaluated(self, metrics, score):
    """Writes down the evaluation of step `first`, which was saved before it could be made."""
    self.checkpoints.evaluated(self.first, metrics, score)

  def metrics(self):
    """What the evaluation of step `first` found, or None."""
    return self.checkpoints.info(self.first)['metrics']

  def wait(self):
    """Waits until everything is on disk."""
    self.checkpoints.wait()

  def close(self):
    """Waits until everything is on disk, and lets go of the folder."""
    if self.checkpoints is not None:
      with self._held:
        self.checkpoints.close()


def begun(path):
  """The config that the run in a folder was begun with; None where there is no run."""
  record = _read_json(storage.path(path) / 'run.json')
  return record and record['config']


def _map_layers(convert):
  """`convert` on every nested dict of a tree, also on those inside an optimizer's state."""
  return functools.partial(jax.tree.map, lambda x: convert(x) if isinstance(x, dict) else x,
                           is_leaf=lambda x: isinstance(x, dict) and not x.keys() & {'params', 'opt'})  # fmt: skip


def _read_json(path):
  try:
    return json.loads(storage.read(path))
  except FileNotFoundError:
    return None
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is damaged ({error}); restore it, or choose another --workdir.') from None


def _check_resume(path, old, new, fingerprint, *, extend):
  """Raises ValueError that names what may not differ between a run and its continuation, and does."""
  lines = _differences(old['config'], new)
  begun, wanted = old['config']['total_steps'], new['total_steps']
  longer = f'total_steps: {begun!r} -> {wanted!r}'
  if longer in lines and wanted > begun:
    if extend:
      lines.remove(longer)
    elif lines == [longer]:
      raise ValueError(
        f'{path} was begun with {longer}: add --extend to continue it with the schedule of {wanted} steps.'
      )
  if old['data'] != fingerprint:
    lines.append('the data itself: other files, labels or classes than at the start')
  if lines:
    raise ValueError(
      f'{path} was begun with other settings ({"; ".join(lines)}); restore them or choose another --workdir.'
    )


def _differences(old, new):
  """['a.b: old -> new', ...] for the fixed keys of two configs; a key that one does not have has its default there."""
  flat = lambda config: state.flatten({key: config[key] for key in FIXED if key in config})
  old, new = flat(old), flat(new)
  free = {f'{section}.{key}' for section, keys in FREE.items() for key in keys}
  paths = {path: path.replace('/', '.') for path in sorted(old.keys() | new.keys())}
  usual = config_lib.defaults() if new.keys() != old.keys() else {}
  both = {name: [side.get(path, usual.get(name)) for side in (old, new)] for path, name in paths.items()}
  return [f'{name}: {was!r} -> {now!r}' for name, (was, now) in both.items() if name not in free and was != now]
