"""Steps of a run that is kept at an address -> local copies of them, and back. storage.py says what can be done there.

ADDRESS/checkpoints/40/...        a step, with the names and the manifest that it has in a local folder
ADDRESS/checkpoints/40.saving     there while step 40 is sent: without a manifest, it is what a killed process left
ADDRESS/checkpoints/40.removing   there while it is removed
ADDRESS/checkpoints/40.damaged-TIME/   see checkpoint.py

The manifest is sent last and removed first, so that a step counts when it is whole. It is an object of its own, which
appears whole or not at all. The copy of a step has a manifest of its own, for as much of it as is here.
"""

import pathlib
import sys

from vit_jax import checkpoint_seal as seal
from vit_jax import checkpoint_steps as folders
from vit_jax import guard, storage


class Steps:
  """The steps at an address, and the copies of some of them.

  Args:
    there: WORKDIR/checkpoints, of storage.path.   here: the local folder of copies.
    check: called before anything there is changed for good; raises where this process may not.
  """

  def __init__(self, there, here, check=lambda: None):
    self.there, self.here, self._check = there, pathlib.Path(here), check
    self._whole = set()

  def numbered(self):
    """The numbers of all that has the name of a step there, ascending; whole or not."""
    return folders.steps_of(name for name, folder in storage.entries(self.there).items() if folder)

  def counts(self, step):
    """Whether a step is sealed there."""
    return storage.exists(self.there / str(step) / seal.MANIFEST)

  def bring(self, step, within=None):
    """Copies what is below the names `within` of a step, None: all. 'FILE: reason' where it is not as it was written.

    Of all other files there, the names are compared.
    """
    there, here = self.there / str(step), self.here / str(step)
    if within is None and step in self._whole:
      return None
    try:
      found = seal.said(storage.read(there / seal.MANIFEST))
      seal.check_names(found, str(step), set(storage.files(there)))
    except FileNotFoundError:
      return seal.CUT_SHORT
    except ValueError as error:
      return str(error)

    def fetch(path):
      try:
        got = storage.download(there / path, here / path)
      except FileNotFoundError:
        return f'{path}: missing'
      return None if list(got) == found['files'][path] else f'{path}: other content'

    wanted = [path for path in found['files'] if within is None or path.partition('/')[0] in within]
    here.mkdir(parents=True, exist_ok=True)
    fault = next(filter(None, storage.each(fetch, wanted)), None)
    if fault is None:
      seal.keep(here, found, within)
      self._whole |= {step} if within is None else set()
    return fault

  def used(self, step):
    """The items of a step that are a model, as checkpoint_steps.used."""
    averaged = any(name.startswith('ema/') for name in storage.files(self.there / str(step)))
    return 'info', 'rest', 'frozen', 'ema' if averaged else 'params'

  def begin(self):
    """As checkpoint_steps.Here.begin. Of the newest step all is here afterwards, of the others the info."""
    names = storage.entries(self.there)
    for name in filter(folders.LEFTOVER.fullmatch, names):
      step = self.there / name.partition('.')[0]
      if names[name]:  # of a local folder that was copied there
        storage.remove_folder(self.there / name)
        continue
      if name.endswith('.removing') or not self.counts(step.name):
        storage.remove_folder(step)
      storage.remove(self.there / name)
    whole, damaged = [], {}
    for step in self.numbered()[::-1]:
      fault = self.bring(step, ('info',) if whole else None)
      if fault:
        damaged[step] = fault
        folders.delete(self.here / str(step))
      else:
        whole.append(step)
    if damaged:
      folders.tell(damaged, f'using {whole[0]}' if whole else 'starting from step 0')
      self._move_aside(damaged)
    return whole

  def _move_aside(self, steps):
    for step, name in folders.aside(steps).items():
      for file in storage.files(self.there / str(step)):
        storage.copy(self.there / str(step) / file, self.there / name / file)
      storage.remove_folder(self.there / str(step))
      print(f'moved to {self.there / name}; delete it when nothing in it is wanted', file=sys.stderr, flush=True)
    for name in folders.beyond(storage.entries(self.there)):
      storage.remove_folder(self.there / name)

  def send(self, step, latest):
    """Copies a whole step from here to there, and keeps only its info here. latest: the one that counts till then.

    Raises guard.Unreachable where it cannot be done; what is there counts as before.
    """
    there, here = self.there / str(step), self.here / str(step)
    found = seal.said((here / seal.MANIFEST).read_bytes())
    try:
      if storage.entries(there):  # somebody put it there since the run began
        self._move_aside([step])
      storage.write(self.there / f'{step}.saving', b'see checkpoint_remote.py')
      storage.each(lambda path: storage.upload(here / path, there / path), found['files'])
      self._check()
      storage.write(there / seal.MANIFEST, (here / seal.MANIFEST).read_bytes())
      storage.remove(self.there / f'{step}.saving')
    except guard.Unreachable as error:
      raise guard.Unreachable(
        f'Checkpoint {step} could not be sent to {self.there} ({error}); the steps before it are kept. Start the same '
        f'command again; it goes on from step {latest or 0}.'
      ) from error
    for one in here.iterdir():
      if one.name not in ('info', seal.MANIFEST):
        folders.delete(one)
    seal.keep(here, found, ('info',))

  def remove(self, steps):
    """Removes steps, there and here."""
    for step in steps:
      self._check()
      storage.write(self.there / f'{step}.removing', b'see checkpoint_remote.py')
      storage.remove(self.there / str(step) / seal.MANIFEST)
      storage.remove_folder(self.there / str(step))
      storage.remove(self.there / f'{step}.removing')
      folders.delete(self.here / str(step))
      self._whole.discard(step)

  def annotate(self, step, note):
    """Puts a JSON dict into the manifest of a step, here and there."""
    seal.annotate(self.here / str(step), note)
    self._check()
    path = self.there / str(step) / seal.MANIFEST
    storage.write(path, seal.annotated(storage.read(path), note))
