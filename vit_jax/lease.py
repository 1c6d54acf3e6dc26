"""The lock of a folder at an address: an object that says who has it, written anew every BEAT seconds by a thread.

FOLDER/LOCK.json  {"owner": of this process and run, "process", "host", "machine", "time"}

Who finds one that was written less than STALE seconds ago, by the clock of the store, is refused; an older one, or that
of a process which is known to be gone, is taken over. etils.epath cannot create an object only where there is none, so
two that begin within the same moment both write, wait, and look again: the one that wrote last has it. Where even that
fails, as by a network that holds a write back for longer than SETTLE, the first to see another owner's name ends
without writing more: before each checkpoint is sealed, and at each beat.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid

from vit_jax import guard, storage

NAME = 'LOCK.json'
BEAT, STALE, SETTLE = 20, 120, 2  # seconds
_PROCESS = uuid.uuid4().hex  # in containers, pids come again


class Lease:
  """One that is held; `lost` is None, or the line that says who has taken it over."""

  def __init__(self, folder):
    self.lost, self._path, self._folder = None, folder / NAME, folder
    self._mine = f'{_PROCESS}.{uuid.uuid4().hex}'
    self._ended = threading.Event()
    self._beating = threading.Thread(target=self._beat, name='vit_jax.lease', daemon=True)

  def check(self):
    """Raises guard.Failed where another process has taken it over."""
    self._look()
    if self.lost:
      raise guard.Failed(self.lost)

  def _look(self):
    """Whether it is still held, or its object has vanished."""
    said = _said(self._path)
    if said and said['owner'] != self._mine:
      self.lost = f'{self._folder} was taken over by {_who(said)}: this run ends, and writes nothing more there.'
    return not self.lost

  def _write(self):
    text = {'owner': self._mine, 'process': os.getpid(), 'host': socket.gethostname(), 'machine': _machine()}
    storage.write(self._path, json.dumps(text | {'time': time.time()}).encode())

  def _beat(self):
    while not self._ended.wait(BEAT):
      with contextlib.suppress(guard.Unreachable):  # it may come back before anybody takes it for dead
        if not self._look():
          guard.fail(self.lost)
          return
        self._write()


@contextlib.contextmanager
def held(folder):
  """Holds the lock of a folder, a path of storage.path; gives the Lease.

  Raises ValueError where another process holds it, guard.Unreachable where one cannot write there.
  """
  refuse(folder, taking=True)
  lease = Lease(folder)
  lease._write()
  time.sleep(SETTLE)
  if not lease._look():
    raise ValueError(_in_use(folder, _said(lease._path)))
  lease._beating.start()
  try:
    yield lease
  finally:
    lease._ended.set()
    lease._beating.join()
    with contextlib.suppress(guard.Failed):  # nobody is kept out for longer than STALE
      lease.check()
      storage.remove(lease._path)


def refuse(folder, *, taking=False):
  """Raises ValueError where another process holds the lock of a folder; takes nothing.

  taking: whether to say on stderr from whom it will be taken over.
  """
  now, path = storage.clock(folder), folder / NAME
  said = _said(path)
  if said is None:
    return
  with contextlib.suppress(FileNotFoundError):  # it is let go of just now
    changed = storage.stat(path)[1]
    age = now - changed if now and changed else time.time() - said['time']
    if age < STALE and not _gone(said):
      raise ValueError(_in_use(folder, said))
    if taking:
      print(f'{folder}: taken over from {_who(said)}, which gave its last sign {age:.0f} s ago', file=sys.stderr)


def _said(path):
  """The content of a lock, None where there is none."""
  try:
    said = json.loads(storage.read(path, 10_000))
    return {'time': float(said['time']), **{key: said[key] for key in ('owner', 'process', 'host', 'machine')}}
  except FileNotFoundError:
    return None
  except (ValueError, LookupError, TypeError):
    return dict(owner='', process='?', host='?', machine='', time=0.0)


def _who(said):
  return f'process {said["process"]} on {said["host"]}'


def _in_use(folder, said):
  return (f'{folder} is in use by {_who(said)}; wait for it to end, stop it, or choose another --workdir. One that was '
          f'killed counts as gone after {STALE} s.')  # fmt: skip


def _gone(said):
  """Whether a process is known to have ended: it was on this machine, and is not there."""
  if not said['machine'] or said['machine'] != _machine() or not isinstance(said['process'], int):
    return False
  if said['process'] == os.getpid():
    return not str(said['owner']).startswith(_PROCESS)
  try:
    os.kill(said['process'], 0)
  except ProcessLookupError:
    return True
  except OSError:
    return False
  return False


def _machine():
  """What tells this machine, since it was started, from all others, and so its processes; '' where nothing does."""
  try:
    with open('/proc/sys/kernel/random/boot_id') as file:
      return f'{file.read().strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return ''
