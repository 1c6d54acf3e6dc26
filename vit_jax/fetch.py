"""Weights at an address, a run's or others -> a local copy of as much of them as a model needs, verified on the way."""

import json
import os

from vit_jax import checkpoint_remote, checkpoint_steps, formats, storage

BESIDE = 'config.json', 'preprocessor_config.json', 'model.json'  # what is said of a file of weights
OF_RUN = 'model.json', 'run.json', 'metrics.jsonl'
WEIGHTS = '.npz', '.safetensors', '.json', '.pth', '.pt', '.bin'


def local(path):
  """What load takes -> the same in the local file system; a local path is given back as it is.

  A WORKDIR at an address becomes a folder with what describes the run and the weights of its best step, else its last;
  WORKDIR/checkpoints/STEP one with that step; a folder or file of weights one with what lies beside it.

  Raises ValueError or FileNotFoundError, as for a local path, for what is not there or damaged.
  """
  if not storage.is_remote(path):
    return path
  there = storage.path(path)
  if there.name.isdecimal() and there.parent.name == 'checkpoints':
    return _step(there)
  inside = storage.entries(there)
  if not inside and not storage.exists(there):
    raise FileNotFoundError(f'There is no {there}: give the workdir of a run, or a folder or file of weights.')
  if not inside:
    return _files(there.parent, [there.name, *BESIDE]) / there.name
  if 'checkpoints' in inside or 'run.json' in inside:
    return _run(there, inside)
  names = [name for name, folder in inside.items() if not folder and name.endswith(WEIGHTS)]
  if not names:
    raise ValueError(
      f'{there} holds no weights, and no run: give the workdir of a run, or a folder or file of weights.'
    )
  return _files(there, names)


def _run(there, inside):
  here = _described(there, inside)
  steps = checkpoint_remote.Steps(there / 'checkpoints', checkpoint_steps.place(here))
  numbers = steps.numbered()
  for name in checkpoint_steps.numbered(steps.here):  # of an earlier call, when there were others
    checkpoint_steps.delete(steps.here / str(name))
  steps.here.mkdir(exist_ok=True)
  bring, used = (lambda folder, within: steps.bring(int(folder.name), within)), lambda one: steps.used(int(one.name))
  chosen, _ = checkpoint_steps.choose(here, name=there, steps=numbers, fault=bring, used=used)
  for name in checkpoint_steps.numbered(steps.here):
    if str(name) != chosen.name:  # what is left is the choice of who looks here
      checkpoint_steps.delete(steps.here / str(name))
  return here


def _step(there):
  root = there.parent.parent
  here = _described(root, storage.entries(root))
  steps = checkpoint_remote.Steps(there.parent, checkpoint_steps.place(here))
  fault = steps.bring(int(there.name), steps.used(int(there.name)))
  if fault:
    raise ValueError(f'{there} is damaged ({fault}): give its workdir, where another step may be whole.')
  return steps.here / there.name


def _described(there, inside):
  """The local folder of a run, with the files that say what it is."""
  here = storage.place(there)
  for name in OF_RUN:
    if name in inside:
      storage.download(there / name, here / name)
  return here


def _files(folder, names):
  """A local folder with those of some files of a folder that are there; and the shards that an index names."""
  here = storage.place(folder)
  for name in names:
    if _linked(folder / name, here / name) and name.endswith(formats.INDEX):
      said = json.loads((here / name).read_bytes())
      shards = set(said['weight_map'].values()) if isinstance(said, dict) and 'weight_map' in said else ()
      for shard in filter(formats.is_shard, shards):
        _linked(folder / shard, here / shard)
  return here


def _linked(path, local):
  """Whether an object is there; then `local` leads to a copy of it."""
  try:
    copy = storage.fetched(path)
  except FileNotFoundError:
    return False
  local.unlink(missing_ok=True)
  os.symlink(copy, local)
  return True
