"""A bucket in memory behind gs://, so that what is kept at an address is tested without a network.

epath's own classes are between: its gs:// paths and its fsspec backend, over a file system of fsspec that holds bytes
by name, knows no folders but by the names of what lies in them, and can neither rename nor append.
"""

import contextlib
import datetime
from unittest import mock

from etils.epath import backend, gpath
from fsspec.implementations import dirfs, local, memory


class _Store(memory.MemoryFileSystem):
  """One bucket; see Bucket."""

  cachable, protocol = False, 'gs'

  def __init__(self, owner, **_):
    super().__init__()
    self.owner, self.store, self.pseudo_dirs = owner, {}, ['']

  @classmethod
  def _strip_protocol(cls, path):
    return '/' + str(path).removeprefix('gs://').strip('/')

  def open(self, path, mode='rb', **_):
    assert mode in ('rb', 'wb'), f'{mode}: no store can do that'
    self.owner.met(mode, path)
    return super().open(path, mode)

  def info(self, path, **_):
    self.owner.met('info', path)
    found = super().info(path)
    if 'created' in found and self.owner.clock:
      found['mtime'] = self.owner.clock() if self.owner.clock is not True else self.store[found['name']].modified
    return found

  def ls(self, path, detail=True, **_):
    self.owner.met('ls', path)
    return super().ls(path, detail)

  def rm(self, path, recursive=False, **_):
    self.owner.met('rm', path)
    if recursive and not self.exists(path):
      raise FileNotFoundError(path)
    super().rm(path, recursive)

  def mkdir(self, path, create_parents=True, **_):
    pass

  def makedirs(self, path, exist_ok=False):
    pass

  def mv(self, *_, **__):
    raise AssertionError('no store can rename')

  rename = move = mv


class Bucket:
  """What lies behind gs://. objects: {'gs://b/run/run.json': bytes}.   fail: (what, path) -> an exception to raise, or
  None.   asked: every request, (what, path).   clock: True, the store tells when an object was written; None, not."""

  def __init__(self):
    self.fail, self.asked, self.clock = lambda what, path: None, [], True
    self.fs = _Store(self)

  def met(self, what, path):
    """Called at each request."""
    self.asked.append((what, str(path)))
    error = self.fail(what, str(path))
    if error:
      raise error

  @property
  def objects(self):
    """A copy of all that lies there."""
    return {f'gs:/{name}': one.getvalue() for name, one in self.fs.store.items()}

  def put(self, name, data):
    """Puts an object there, as somebody else."""
    with self.fs.open(name, 'wb') as file:
      file.write(data)

  def age(self, name, seconds):
    """Makes an object that old."""
    one = self.fs.store[self.fs._strip_protocol(name)]
    one.modified = one.created = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)


class _Backend(backend._FileSystemSpecBackend):
  def __init__(self, bucket):
    self.bucket = bucket

  def fs(self, path):
    return self.bucket.fs


class _Shared(backend._FileSystemSpecBackend):
  """One in a folder, for several processes: what a bucket can do is not watched."""

  def __init__(self, folder):
    self._fs = dirfs.DirFileSystem(folder, local.LocalFileSystem(auto_mkdir=True))
    self._fs._strip_protocol = lambda path: str(path).removeprefix('gs://').strip('/')
    join = self._fs._join
    self._fs._join = lambda path: join(self._fs._strip_protocol(path) if isinstance(path, str) else path)

  def fs(self, path):
    return self._fs


@contextlib.contextmanager
def opened(folder=None):
  """Inside, gs:// is a new Bucket, which is given; or what lies in a folder."""
  bucket = Bucket()
  with mock.patch.dict(gpath._PREFIX_TO_BACKEND, gs=_Shared(str(folder)) if folder else _Backend(bucket)):
    yield bucket
