"""Files that are the old ones or wholly the new ones, whenever a process or machine stops. Standard library only."""

import contextlib
import os


@contextlib.contextmanager
def replacing(path, temporary=None):
  """A binary file to write, which takes the place of `path` at the end, when its bytes are on the disk itself; after an
  error nothing is left of it. temporary: its name meanwhile, on the same file system; None is `path` with '.tmp'."""
  temporary = temporary or f'{os.fspath(path)}.tmp'
  try:
    with open(temporary, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise


def sync(path):
  """Returns when a file's bytes, or the names in a folder, are on the disk itself."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
