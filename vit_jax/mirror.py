"""A run whose workdir is an address: it works in a local folder, from which all it writes is carried there.

Steps go by checkpoint_remote.py. Every other file, metrics.jsonl and TensorBoard's among them, is sent whole when it
has changed: each SECONDS, before each step is, so that what a step's metrics are when it is resumed does not depend on
where the run was kept, and at the end. So a process that is killed loses what a local one would have lost, and the
lines of at most SECONDS since. The local folder is removed at the end, and that of a killed process by the next one.
"""

import contextlib
import os
import shutil
import threading

from vit_jax import checkpoint_remote, checkpoint_steps, guard, lease, storage

SECONDS = 30
KEPT = 'run.json', 'metrics.jsonl'  # what a run goes on with, beside its steps and teacher-*.npy


class Mirror:
  """A run at an address. folder: the local one.   steps: its checkpoint_remote.Steps."""

  def __init__(self, name, check):
    self.folder, self._there = storage.place(name), storage.path(name)
    shutil.rmtree(self.folder)  # of an earlier run of this process
    self.folder.mkdir()
    self.steps = checkpoint_remote.Steps(self._there / 'checkpoints', checkpoint_steps.place(self.folder), self.sync)
    self._check, self._sent, self._lock, self._ended = check, {}, threading.Lock(), threading.Event()
    for one, folder in storage.entries(self._there).items():
      if not folder and (one in KEPT or one.startswith('teacher-')):
        storage.download(self._there / one, self.folder / one)
        self._sent[one] = _stamp(self.folder / one)

  def sync(self):
    """Sends every file that has changed, but for the steps.

    Raises guard.Failed where another process has taken the run over, guard.Unreachable where a file cannot be sent.
    """
    with self._lock:
      self._check()
      for path, stamp in self._files():
        if self._sent.get(path) != stamp:
          storage.upload(self.folder / path, self._there / path)
          self._sent[path] = stamp

  def _files(self):
    """(path below the folder, stamp) of all files but those of steps and those that are being written."""
    for folder, folders, names in os.walk(self.folder):
      below = os.path.relpath(folder, self.folder)
      if below == '.':
        folders[:] = [one for one in folders if one != 'checkpoints']
      for name in names:
        path = os.path.normpath(os.path.join(below, name))
        with contextlib.suppress(FileNotFoundError):
          if not name.endswith('.tmp'):
            yield path, _stamp(self.folder / path)

  def keep(self):
    """Sends what changes until `end`; to be called once."""
    self._thread = threading.Thread(target=self._carry, name='vit_jax.mirror', daemon=True)
    self._thread.start()

  def _carry(self):
    while not self._ended.wait(SECONDS):
      with contextlib.suppress(guard.Failed, OSError):  # it is tried again, and the next step says what is wrong
        self.sync()

  def end(self):
    """Ends the thread."""
    self._ended.set()
    self._thread.join()


def _nothing():
  raise AssertionError('only the first process sends')


def _stamp(path):
  found = os.stat(path)
  return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def opened(name, *, primary=True):
  """The Mirror of a run at an address, whose lock is held; at the end all that it wrote is there.

  primary: False in all processes of a run but one, which have a copy of what is there, and send nothing.

  Raises ValueError where another run has the address, guard.Unreachable where one cannot write there.
  """
  with contextlib.ExitStack() as stack:
    held = stack.enter_context(lease.held(storage.path(name))) if primary else None
    mirror = Mirror(name, held.check if primary else _nothing)
    stack.callback(shutil.rmtree, mirror.folder, ignore_errors=True)
    if not primary:
      yield mirror
      return
    mirror.keep()
    stack.callback(mirror.end)
    try:
      yield mirror
    except BaseException:
      with contextlib.suppress(guard.Failed, OSError):  # what ended the run is said, not this
        mirror.sync()
      raise
    mirror.sync()
