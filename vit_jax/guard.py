"""What stands beside a run: signals, the watchdog, and the lock of its folder. Standard library only.

A run says where it is (`at`) and whether there is something that an orderly end would still save (`unsaved`). From
that follows what a signal does:

nothing to save yet           the process ends at once, also while XLA compiles, when Python's handlers do not run, and
                              without an exception, by which libraries that are being imported have crashed
waiting for data, evaluating  Stopped is raised there; the loop saves the last completed step
elsewhere                     the loop asks after each step (`requested`), saves, and raises Stopped

Handlers are Python's and belong to the process, so what they share lives in this module, as NOW.
"""

import contextlib
import errno
import faulthandler
import fcntl
import os
import select
import signal
import socket
import sys
import threading
import time
import types

NUMBERS = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
TIDY = 5  # seconds for the main thread to close files after it has saved
NOW = types.SimpleNamespace(  # raised: whether Stopped has been; a second one would disturb the saving
  phase='start', step=None, since=time.monotonic(), unsaved=False, several=False, signal=0, raised=False, failure=None
)
_LEAVING = threading.Lock()  # of two threads that would end the process, one says why


class Stopped(BaseException):
  """A signal asked the run to end. When this leaves train.fit, what there was to save has been saved."""

  def __init__(self, number, saved=None):
    super().__init__(number, saved)
    self.number, self.saved = number, saved

  def __str__(self):
    what = 'nothing new to save' if self.saved is None else f'step {self.saved} is saved'
    return f'stopped by {signal.Signals(self.number).name}: {what}; the same command goes on from there'


class Failed(RuntimeError):
  """The run cannot go on, for a reason that one line explains: exit code 1, without a traceback."""


class Unreachable(Failed):
  """What is kept elsewhere cannot be read or written there; str() is the line for the user."""


def at(phase, step=None):
  """Says what the run does now: 'start', 'compile', 'data', 'step', 'evaluation', 'save' or 'end'. It is progress."""
  NOW.phase, NOW.step = phase, NOW.step if step is None else step
  NOW.since = time.monotonic()


def requested():
  """The number of the signal that asked the run to end, 0 when none did. Raises Failed where `fail` was told why."""
  if NOW.failure:
    raise Failed(NOW.failure)
  return NOW.signal


def fail(line):
  """Has the run end after its next step, with a line and without saving; to be called by any thread."""
  NOW.failure = line


@contextlib.contextmanager
def run(*, hosts=1):
  """Around the part of a run that has something to save; hosts: how many processes must agree about its end."""
  at('start')  # again, after a run that has ended
  NOW.failure = None
  NOW.several = NOW.unsaved = hosts > 1  # of several processes, none ends by itself
  try:
    yield
  finally:
    at('end')  # first: the listener must not take the run for one that has not begun
    NOW.unsaved, NOW.several = False, False


# -- signals


@contextlib.contextmanager
def signals():
  """Inside, SIGTERM, SIGINT and SIGUSR1 end the run in order, and a second SIGINT at once.

  Outside the main thread, where Python takes no handlers, it does nothing.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  NOW.signal, NOW.raised = 0, False
  read, write = socket.socketpair()
  write.setblocking(False)
  old = {number: signal.signal(number, _handle) for number in NUMBERS}
  old_fd = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
  listener = threading.Thread(target=_listen, args=(read,), name='vit_jax.signals', daemon=True)
  listener.start()
  try:
    yield
    if NOW.signal:
      raise Stopped(NOW.signal, NOW.step)
  finally:
    signal.set_wakeup_fd(old_fd)
    for number, handler in old.items():
      signal.signal(number, handler)
    write.close()  # the listener reads the end of its stream
    listener.join()
    read.close()


def reinstall():
  """Puts the handlers back where another library has put its own over them, if they were there."""
  if signal.getsignal(signal.SIGTERM) is _handle:
    for number in NUMBERS:
      signal.signal(number, _handle)


def _handle(number, frame):
  """Python's handler, between two bytecodes of the main thread. The listener has seen the signal already, or will."""
  NOW.signal = NOW.signal or number
  if not NOW.unsaved and NOW.phase != 'end':
    _leave(Stopped(NOW.signal), NOW.signal)
  if not NOW.raised and NOW.phase in ('data', 'evaluation') and not NOW.several:  # several end at one step, by its flag
    NOW.raised = True
    raise Stopped(NOW.signal)


def _listen(stream):
  """The thread that hears of a signal at once, whatever the main thread does, and ends a process that cannot."""
  interrupts, deadline = 0, None
  while True:
    if select.select([stream], [], [], None if deadline is None else 0.05)[0]:
      heard = stream.recv(64)
      if not heard:
        return
      interrupts += heard.count(signal.SIGINT)
      NOW.signal = NOW.signal or next((number for number in heard if number in NUMBERS), 0)
      if interrupts > 1:
        _leave('interrupted twice: ended at once', signal.SIGINT)
    if NOW.signal and not NOW.unsaved and NOW.phase != 'end':
      _leave(Stopped(NOW.signal), NOW.signal)
    if NOW.signal:
      if NOW.unsaved or deadline is None:  # the deadline counts from when all is saved
        deadline = time.monotonic() + TIDY
      elif time.monotonic() > deadline:
        _leave(Stopped(NOW.signal, NOW.step), NOW.signal)


def _leave(why, number):
  """Ends the process now, with a line; no Python file is used, whose lock the interrupted code may hold."""
  if not _LEAVING.acquire(blocking=False):
    time.sleep(1)  # the other thread ends the process meanwhile
  shown = '\x1b[?25h' * os.isatty(2)  # a progress bar may have hidden the cursor
  with contextlib.suppress(OSError):
    os.write(2, f'{shown}{why}\n'.encode())
  os._exit(128 + number)


# -- watchdog


@contextlib.contextmanager
def watchdog(seconds, stream=None):
  """Inside, a run without progress for so many seconds shows its phase and the stacks of all threads; None: never.

  stream: a file with a descriptor, None = sys.stderr. Where a library holds the interpreter's lock, so that no thread
  of Python runs, the stacks come without the phase, after twice the time.
  """
  stream = stream or sys.stderr
  try:
    stream.fileno()
  except (OSError, ValueError, AttributeError):
    seconds = None  # a notebook's stderr: nothing could write a stack there
  if seconds is None:
    yield
    return
  ended = threading.Event()
  watcher = threading.Thread(target=_watch, args=(seconds, stream, ended), name='vit_jax.watchdog', daemon=True)
  at(NOW.phase)
  watcher.start()
  try:
    yield
  finally:
    ended.set()
    watcher.join()


def _watch(seconds, stream, ended):
  shown = None
  while True:
    faulthandler.dump_traceback_later(2 * seconds, file=stream)  # by a thread of C, which needs no lock
    if ended.wait(min(seconds / 4, 5)):
      break
    since, waited = NOW.since, time.monotonic() - NOW.since
    if waited > seconds and shown != since:
      shown = since
      where = f'phase {NOW.phase}' + ('' if NOW.step is None else f', step {NOW.step}')
      print(f'no progress for {waited:.0f} s ({where}); all threads:', file=stream, flush=True)
      faulthandler.dump_traceback(stream)
  faulthandler.cancel_dump_traceback_later()


# -- lock


@contextlib.contextmanager
def lock(folder):
  """Holds FOLDER/lock, which is made, as the folder is. None: there is nothing to hold.

  The lock is the kernel's (flock), so it ends with the process, however that ends; a file that a killed process left
  behind blocks nobody.

  Raises ValueError, with pid and host, where it is held already.
  """
  if folder is None:
    yield
    return
  path = os.path.join(os.path.realpath(folder), 'lock')
  os.makedirs(os.path.dirname(path), exist_ok=True)
  descriptor = _acquire(path, folder)
  try:
    yield
  finally:
    if descriptor is not None:
      with contextlib.suppress(OSError):
        os.unlink(path)  # while it is held: who opened it before sees that it is gone, and makes another
      os.close(descriptor)


def refuse(folder):
  """Raises ValueError where another process holds FOLDER/lock; takes and makes nothing. It needs no jax, so it answers
  before a second run has imported what it would train with."""
  try:
    descriptor = os.open(os.path.join(os.path.realpath(folder), 'lock'), os.O_RDWR)
  except OSError:
    return
  try:
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    raise ValueError(_in_use(descriptor, folder)) from None
  except OSError:  # no locks here
    pass
  finally:
    os.close(descriptor)


def _in_use(descriptor, folder):
  holder = os.pread(descriptor, 200, 0).decode(errors='replace') or 'another process'
  return f'{folder} is in use by {holder}; wait for it to end, stop it, or choose another --workdir.'


def _acquire(path, folder):
  """The descriptor of the lock file, held; None on a file system that has no locks."""
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f'process {os.getpid()} on {socket.gethostname()}'.encode(), 0)
        return descriptor
      os.close(descriptor)  # its owner has just removed it
    except BlockingIOError:
      line = _in_use(descriptor, folder)
      os.close(descriptor)
      raise ValueError(line) from None
    except OSError as error:
      os.close(descriptor)
      if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
        raise
      print(f'{folder}: this file system has no locks; a second run there would not be refused', file=sys.stderr)
      return None
