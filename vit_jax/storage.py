"""What lies at an address (gs://BUCKET/NAME, s3://, az://, any that epath knows) -> bytes, names, local copies.

All that the package does at such an address is done here, through etils.epath, by what every object store can do: an
object is read, or written whole, or removed, and names are listed. Nothing is renamed, appended to or flushed. What
fails is tried again and is then one line. A path of a local file system never comes here, and imports nothing.
"""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
import time
import uuid

from vit_jax import caches, diskfull, guard, threads

SCHEME = re.compile(r'([A-Za-z][\w+.-]*)://')
WAITS = 1, 4  # seconds before what failed is tried again
CHUNK = 1 << 23  # bytes
STREAMS = 16  # requests at once: each waits for the network, not for a CPU
INSTALL = {'gs': "pip install 'vit_jax[gcs]'", 's3': 'pip install s3fs', 'az': 'pip install adlfs'}
_SHOWN = {}  # local copy -> its address


def is_remote(path):
  """Whether a path is an address, SCHEME://..., and not one of a local file system."""
  return SCHEME.match(os.fspath(path)) is not None


def path(name):
  """The path of a name: an epath.Path of an address, else a pathlib.Path with ~ expanded.

  Raises ValueError for a scheme that nobody has registered.
  """
  name = os.fspath(name)
  if not is_remote(name):
    return pathlib.Path(name).expanduser()
  _uncached()
  from etils import epath

  try:
    return epath.Path(name.rstrip('/'))
  except KeyError:
    scheme = name.partition('://')[0]
    raise ValueError(f'{name}: there is no {scheme}://; wanted a local path, gs://, s3://, az:// or hf://.') from None


@functools.cache
def _uncached():
  """Has fsspec ask each time what is there: it would remember listings, and others write there too."""
  import fsspec.config

  for scheme in ('gs', 'gcs', 's3', 's3a', 'az', 'abfs', 'hf'):
    fsspec.config.conf.setdefault(scheme, {}).setdefault('use_listings_cache', False)


def refuse(path, what):
  """Raises ValueError where a path is an address, at which `what` cannot be done."""
  if is_remote(path):
    raise ValueError(f'{what} cannot be at {path}: name a local place, and copy it (gcloud storage cp -r, aws s3 cp).')


def _tried(done, path, function):
  """function(), again where it fails; then guard.Unreachable. done: what was to be 'read', 'written', 'listed'.

  FileNotFoundError is an answer. Raises ValueError where the library that would ask is not installed.
  """
  waits = list(WAITS)
  while True:
    try:
      return function()
    except (FileNotFoundError, guard.Failed):
      raise
    except ImportError as error:
      how = INSTALL.get(os.fspath(path).partition('://')[0], 'install it')
      raise ValueError(f'{path} needs a library that is not here ({" ".join(str(error).split())}): {how}.') from None
    except Exception as error:  # each store has its own
      if not waits or isinstance(error, (PermissionError, NotImplementedError)):
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise guard.Unreachable(f'{path} cannot be {done}: {reason}') from error
    time.sleep(waits.pop(0))


def read(path, most=None):
  """The bytes of an object, or of its first `most`; or of a local file. FileNotFoundError where there is none."""
  if not is_remote(path):
    with open(path, 'rb') as file:
      return file.read() if most is None else file.read(most)

  def get():
    with path.open('rb') as file:
      return file.read() if most is None else file.read(most)

  return _tried('read', path, get)


def write(path, data):
  """Bytes -> an object, which is the old one or wholly the new one."""

  def put():
    path.parent.mkdir(parents=True, exist_ok=True)  # no more than a name in an object store
    with path.open('wb') as file:
      file.write(data)

  _tried('written', path, put)


def upload(local, path):
  """A local file -> an object; of a file that grows meanwhile, what it had at the beginning."""

  def put():
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(local, 'rb') as source, path.open('wb') as file:
      left = os.fstat(source.fileno()).st_size
      while left and (some := source.read(min(CHUNK, left))):
        file.write(some)
        left -= len(some)

  _tried('written', path, put)


def download(path, local):
  """An object -> a local file, which appears when it is whole; gives its size and sha256.

  Raises diskfull.DiskFull where it has no room.
  """
  local = pathlib.Path(local)
  local.parent.mkdir(parents=True, exist_ok=True)
  part = local.with_name(f'{local.name}.{os.getpid()}.part')

  def get():
    digest, size = hashlib.sha256(), 0
    with path.open('rb') as file, open(part, 'wb') as target:
      while some := file.read(CHUNK):
        digest.update(some)
        size += len(some)
        with _roomy(local):
          target.write(some)
    return size, digest.hexdigest()

  try:
    found = _tried('read', path, get)
    os.replace(part, local)
  finally:
    part.unlink(missing_ok=True)
  return found


@contextlib.contextmanager
def _roomy(local):
  try:
    yield
  except OSError as error:
    raise _full(local, error.strerror) from error


def _full(local, why):
  line = f'{local} has no room for what is fetched ({why}): free some, or name another folder by VIT_JAX_CACHE.'
  return guard.Failed(line)


def copy(path, other):
  """An object -> another one, with the same bytes."""

  def put():
    other.parent.mkdir(parents=True, exist_ok=True)
    path.copy(other, overwrite=True)

  _tried('copied', path, put)


def each(function, items):
  """[function(item)] by several threads; the first exception is raised when none of them is at work any more."""
  return list(threads.each(function, items, workers=STREAMS))


def stat(path):
  """(size in bytes, time of the last change in seconds by the store's clock, 0 where it does not tell) of an object."""
  found = _tried('read', path, path.stat)
  return found.length, found.mtime or 0


def exists(path):
  """Whether there is an object, or a folder, of that name."""
  try:
    stat(path)  # fsspec's exists says no where nobody answers
  except FileNotFoundError:
    return False
  return True


def entries(folder):
  """{name: whether it is a folder} of what lies in a folder; {} where there is none."""
  _, folders, files = next(_walk(folder), (None, (), ()))
  return {name.rstrip('/'): True for name in folders} | dict.fromkeys(files, False)


def files(folder):
  """The names below a folder of all files in it, sorted; [] where there is none."""
  out = []
  for below, _, names in _walk(folder):
    out += [f'{below}/{name}' if below else name for name in names]
  return sorted(out)


def _walk(folder):
  """(name below the folder, [folders], [files]) of a folder and all those in it."""

  def failed(error):
    if not isinstance(error, FileNotFoundError):
      raise error

  top, waiting = os.fspath(folder), ['']
  while waiting:
    below = waiting.pop()
    here = folder / below if below else folder
    listed = _tried('listed', here, lambda here=here: next(here.walk(on_error=failed), None))
    if listed is None:
      continue
    _, folders, names = listed  # the path given is not asked: fsspec's has no scheme
    folders = sorted(name.rstrip('/') for name in folders)
    yield below, folders, [name for name in names if name and os.fspath(here / name) != top]
    waiting += [f'{below}/{name}' if below else name for name in folders]


def remove(path):
  """Removes an object, if it is there."""
  _tried('removed', path, lambda: path.unlink(missing_ok=True))


def remove_folder(path):
  """Removes a folder and all in it, if it is there."""
  _tried('removed', path, lambda: path.rmtree(missing_ok=True))


def clock(folder):
  """The time by the clock of a folder's store, in seconds, 0 where it does not tell.

  Raises guard.Unreachable where one may not write there.
  """
  probe = folder / f'.vit_jax-{uuid.uuid4().hex}'
  write(probe, b'?')
  try:
    return stat(probe)[1]
  finally:
    remove(probe)


def check(name):
  """Raises ValueError unless one can write at an address that is to be a workdir; leaves nothing there."""
  try:
    clock(path(name))
  except guard.Unreachable as error:
    raise ValueError(f'--workdir={name}: {error}') from error


# -- local copies


def cache():
  """The folder of local copies."""
  return caches.folder() / 'remote'


def fetched(path):
  """A local copy of a file at an address, of the same name; it is kept for as long as size and time there are the same.

  A file of a local file system is given back. Raises FileNotFoundError where there is none.
  """
  if not is_remote(path):
    return pathlib.Path(path)
  try:
    size, changed = stat(path)
  except FileNotFoundError:
    raise FileNotFoundError(f'There is no {path}.') from None
  words = hashlib.sha256(f'{path}\0{size}\0{changed}'.encode()).hexdigest()[:24]
  local = cache() / 'files' / words / path.name
  if not local.exists() or not changed:
    local.parent.mkdir(parents=True, exist_ok=True)
    if size > (room := diskfull.free(local.parent)):
      raise _full(local, f'{diskfull.text(size)}, and {diskfull.text(room)} are free')
    download(path, local)
  _SHOWN[os.fspath(local)] = os.fspath(path)
  return local


def place(name):
  """The local folder of this process for a copy of what lies at an address; it has the same last word."""
  name = os.fspath(name)
  local = _room() / hashlib.sha256(name.encode()).hexdigest()[:12] / (name.rpartition('/')[2] or 'root')
  _SHOWN[os.fspath(local)] = name
  local.mkdir(parents=True, exist_ok=True)
  return local


def shown(text):
  """A path, or a line that has paths in it, with the addresses of local copies in place of these."""
  text = str(text)
  for local, name in _SHOWN.items():
    text = text.replace(local, name)
  return text


@functools.cache
def _room():
  """A new folder for this process, removed at its end; and those of processes that were killed are."""
  root = cache()
  root.mkdir(parents=True, exist_ok=True)
  for old in root.glob('process-*'):
    with contextlib.suppress(OSError), open(old / 'lock') as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(old)
  made = pathlib.Path(tempfile.mkdtemp(prefix='new-', dir=root))
  held = open(made / 'lock', 'w')  # noqa: SIM115  for as long as the process lives
  fcntl.flock(held, fcntl.LOCK_EX)
  folder = made.rename(made.with_name(made.name.replace('new-', 'process-')))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  atexit.register(held.close)
  return folder
