"""WORKDIR/checkpoints/ -> which of its steps are whole; the others are named, moved aside or passed over.

Renaming is all that makes a step count or not count any more, so that a process may die between any two calls.
"""

import contextlib
import datetime
import os
import pathlib
import re
import shutil
import sys

from vit_jax import checkpoint_items as items
from vit_jax import checkpoint_seal as seal
from vit_jax import durable

LEFTOVER = re.compile(r'\d+(\.saving.*|\.removing|\.orbax-checkpoint-tmp.*)')  # of a process that is gone
ASIDE = 3  # as many damaged steps are kept as a run keeps by default, so that one accident removes none of them
_TOLD = set()  # what `choose` has said: a command may look for its model more than once


class Here:
  """The steps of a run in a local folder, `there`; of one that is kept elsewhere it is checkpoint_remote.Steps."""

  def __init__(self, folder):
    self.there = folder

  def begin(self):
    """The steps a run counts on, newest first; leftovers of a killed process go, damaged steps are moved aside.

    The newest is whole in every byte, of older ones names, sizes and score were compared. stderr names the damaged.
    """
    for one in self.there.iterdir():
      if LEFTOVER.fullmatch(one.name):
        delete(one)
    whole, damaged = [], {}
    for step in numbered(self.there)[::-1]:
      fault = seal.fault(self.there / str(step), ('info',) if whole else None)
      if fault:
        damaged[step] = fault
      else:
        whole.append(step)
    if damaged:
      tell(damaged, f'using {whole[0]}' if whole else 'starting from step 0')
      move_aside(self.there, damaged)
    return whole

  def counts(self, step):
    """Whether a step is there, and so whole."""
    return (self.there / str(step)).is_dir()

  def bring(self, step, within=None):
    """None: all of a step is where it was written."""

  def send(self, step, latest):
    """Nothing: a step is where it is to be."""

  def annotate(self, step, note):
    """Puts a JSON dict into the manifest of a step, in place of the one before."""
    seal.annotate(self.there / str(step), note)

  def remove(self, steps):
    """Removes steps, each under another name, so that no half of one is left under its own if the process dies."""
    for step in steps:
      with contextlib.suppress(FileNotFoundError):  # somebody else removed it
        os.rename(self.there / str(step), self.there / f'{step}.removing')
    if steps:
      durable.sync(self.there)
    for step in steps:
      delete(self.there / f'{step}.removing')


def place(workdir):
  """The folder of a run's steps."""
  return pathlib.Path(workdir).absolute() / 'checkpoints'  # orbax takes no relative path


def numbered(folder):
  """The numbers of all that has the name of a step, ascending; whole or not."""
  return steps_of(one.name for one in folder.iterdir()) if folder.is_dir() else []


def steps_of(names):
  """The numbers of those names that are of steps, ascending."""
  return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def is_step(folder):
  """Whether a path is meant as a step of a run, whole or not."""
  known = folder.parent.name == 'checkpoints' or (folder / seal.MANIFEST).exists() or (folder / 'info').is_dir()
  return known and folder.name.isdecimal()


def used(folder):
  """The items of a step that are a model: what is read of it, and so compared byte by byte."""
  return 'info', 'rest', 'frozen', 'ema' if (folder / 'ema').is_dir() else 'params'


def verify(folder, names):
  """Raises ValueError where a step is damaged; only files below `names` are compared byte by byte."""
  fault = seal.fault(folder, names)
  if fault:
    raise ValueError(f'{folder} is damaged ({fault}): give its workdir, where another step may be whole.')


def choose(workdir, *, name=None, steps=None, fault=seal.fault, used=used):
  """(folder of the best step that is whole in what a model needs, whether it has a score), else of the newest.

  Of a run that is elsewhere, and has its copies in workdir: name, where it is; steps, ascending; fault and used, as
  seal's and as here, which bring what they look at.
  """
  folder, damaged, there, name = place(workdir), {}, {}, workdir if name is None else name
  for step in (numbered(folder) if steps is None else steps)[::-1]:
    found = fault(folder / str(step), ('info',))
    with contextlib.suppress(FileNotFoundError):  # a run that goes on here may remove steps meanwhile
      (folder / str(step)).lstat()
      if found:
        damaged[step] = found
      else:
        there[step] = items.header(folder / str(step))['score']
  scored = ranked(there)[::-1]
  for step in scored + sorted(there.keys() - set(scored), reverse=True):
    found = fault(folder / str(step), used(folder / str(step)))
    if not found:
      tell({s: f for s, f in damaged.items() if (folder, s, f) not in _TOLD}, f'using {step}')
      _TOLD.update((folder, *one) for one in damaged.items())
      return folder / str(step), step in scored
    damaged[step] = found
  if damaged:
    listed = '; '.join(f'{step} ({found})' for step, found in damaged.items())
    raise ValueError(f'{name} has no checkpoint that is whole: {listed}.')
  if folder.is_dir() or (workdir / 'run.json').exists():
    raise ValueError(f'{name} has no checkpoint yet; train on, with --workdir={name}, until one is saved.')
  raise ValueError(f'{name} is not the workdir of a run: it has no folder checkpoints.')


def tell(damaged, then):
  """Says {step: fault} on stderr, newest first."""
  for step in sorted(damaged, reverse=True):
    print(f'checkpoint {step} is damaged ({damaged[step]}): {then}', file=sys.stderr, flush=True)


def move_aside(folder, steps):
  """Renames steps to names that are never read; all but the newest ASIDE such folders are removed."""
  for step, name in aside(steps).items():
    os.rename(folder / str(step), folder / name)
    print(f'moved to {folder / name}; delete it when nothing in it is wanted', file=sys.stderr, flush=True)
  durable.sync(folder)
  for name in beyond(one.name for one in folder.iterdir()):
    delete(folder / name)


def aside(steps):
  """{step: a new name that is never read} for steps that are moved out of the way now."""
  now = datetime.datetime.now().strftime('%Y%m%dT%H%M%S.%f')
  return {step: f'{step}.damaged-{now}' for step in steps}


def beyond(names):
  """Those of some names that steps were moved aside to, but for the newest ASIDE, oldest first."""
  there = [name for name in names if re.fullmatch(r'\d+\.damaged-.*', name)]
  return sorted(there, key=lambda name: (name.partition('-')[2], int(name.partition('.')[0])))[:-ASIDE]


def delete(path):
  """Removes a file or a folder, if it is there."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def ranked(scores):
  """{step: score or None} -> the steps that have a score, the best one last."""
  return sorted((step for step in scores if scores[step] is not None), key=lambda step: (scores[step], step))


def kept(scores, *, last, best):
  """{step: score or None} -> the steps to keep. The newest is one of them, however bad its score."""
  return {*sorted(scores)[-last:], *ranked(scores)[::-1][:best]}
