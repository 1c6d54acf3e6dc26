"""A finished folder -> manifest.json with the size and sha256 of its files, and back: whether it still is what it was.

{"sha256": of the rest, "name": "40", "files": {"params/d/8e8f62": [3895, "6f2c..."], ...}, "note": {...}}

A folder is whole where the manifest is there, every file of it is as it says, and nothing else is there. Without this
a flipped bit in a checkpoint is read as a weight (orbax notices 2 of 200), and half a copy passes for a whole one.
"""

import hashlib
import json
import os
import pathlib
import stat
import time

from vit_jax import durable

MANIFEST = 'manifest.json'
CUT_SHORT = 'no manifest: its save or its copy was cut short'

# What each file was when it was hashed -> its digest, so that a model that is found and then read is hashed once.
_DIGESTS = {}
_RESTS = 10**9  # nanoseconds; a younger file may be changed again without a new time, as clocks of file systems tick


def write(folder, name):
  """Writes the manifest of all files in a folder; name: that of the folder in the end, so that it cannot pass for
  another one. Files, folders and manifest are on the disk itself when this returns."""
  folder = pathlib.Path(folder)
  files, folders = _walk(folder)
  sums = {path: [info.st_size, _digest(folder / path, durable=True)] for path, info in sorted(files.items())}
  for one in folders:
    durable.sync(folder / one)
  _replace(folder, _text({'name': name, 'files': sums, 'note': {}}))


def annotate(folder, note):
  """Puts a JSON dict into the manifest of a whole folder: a change that is there or not, whenever the process dies."""
  folder = pathlib.Path(folder)
  _replace(folder, _text({**_said(folder), 'note': note}))


def annotated(raw, note):
  """The bytes of a manifest with another note; ValueError where they are no manifest."""
  return _text({**said(raw), 'note': note})


def check_names(found, name, there):
  """Raises ValueError where a manifest is not that of a folder of this name, in which the files `there` lie."""
  _expect(found['name'] == name, MANIFEST, f'is that of {found["name"]}')
  for path in found['files']:
    _expect(path in there, path, 'missing')
    _expect(not {'', '.', '..'} & set(path.split('/')), path, 'is no name of a file in a folder')
  for path in there:
    _expect(path in found['files'] or path == MANIFEST, path, 'unexpected file')


def keep(folder, found, within):
  """Seals a copy of a folder that has only what is below the names `within`, None: all, of what its manifest says."""
  files = {path: one for path, one in found['files'].items() if within is None or path.partition('/')[0] in within}
  _replace(pathlib.Path(folder), _text({**found, 'files': files}))


def note(folder):
  """The JSON dict that `annotate` put there, or {}; ValueError for a damaged manifest."""
  try:
    return _said(pathlib.Path(folder))['note']
  except _Fault as error:
    raise ValueError(f'{folder} is damaged ({error}).') from None


def fault(folder, within=None):
  """'FILE: reason' for the first thing that is wrong with a folder, or None where all is as it was written.

  within: names at the top of the folder. Only files below these are read and compared by content, all others by their
  presence and size; None = all files.   Raises PermissionError for what may not be read: that is no damage.
  """
  folder = pathlib.Path(folder)
  try:
    found = _said(folder)
    _expect(found['name'] == folder.name, MANIFEST, f'is that of {found["name"]}')
    files = found['files']
    there, folders = _walk(folder)
    del there[MANIFEST]
    _compare(files, there, folders)
    for path in files:
      if within is None or path.partition('/')[0] in within:
        _expect(_digest(folder / path) == files[path][1], path, 'other content')
  except _Fault as error:
    return str(error)
  except PermissionError:
    raise
  except OSError as error:  # a disk that fails to read is a damage like others
    return f'{os.path.relpath(error.filename or folder, folder)}: {error.strerror}'


class _Fault(ValueError):
  pass


def _expect(right, path, reason):
  if not right:
    raise _Fault(f'{path}: {reason}' if path else reason)


def _text(found):
  """The bytes of a manifest. Whatever reads as JSON but is not these bytes has been changed."""
  return json.dumps({'sha256': hashlib.sha256(json.dumps(found).encode()).hexdigest(), **found}).encode()


def _replace(folder, text):
  temporary = folder.with_name(f'{folder.name}.saving.{MANIFEST}')  # a file that is not known would be a fault inside
  with durable.replacing(folder / MANIFEST, temporary) as file:
    file.write(text)
  durable.sync(folder)


def _said(folder):
  """A folder -> {'name', 'files': {path: [size, sha256]}, 'note'} of its manifest."""
  _expect(folder.is_dir(), '', 'it is no folder')
  _expect(os.path.lexists(folder / MANIFEST), '', CUT_SHORT)
  _expect((folder / MANIFEST).is_file(), MANIFEST, 'is no plain file')
  return said((folder / MANIFEST).read_bytes())


def said(raw):
  """{'name', 'files': {path: [size, sha256]}, 'note'} of the bytes of a manifest; ValueError where they are none."""
  try:
    found = json.loads(raw)
    found = {key: found[key] for key in ('name', 'files', 'note')}
    typed = all(type(size) is int and type(digest) is str for size, digest in found['files'].values())
    found = found if typed and type(found['note']) is dict else None
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    found = None
  _expect(raw == _text(found or {}), MANIFEST, 'other content')
  return found


def _walk(folder):
  """({path below the folder: os.stat_result}, [paths of folders below it]); a link is a file and is not followed."""
  files, folders, waiting = {}, [], ['']
  while waiting:
    below = waiting.pop()
    with os.scandir(folder / below) as entries:
      for entry in entries:
        path = f'{below}/{entry.name}'.lstrip('/')
        if entry.is_dir(follow_symlinks=False):
          folders.append(path)
          waiting.append(path)
        else:
          files[path] = entry.stat(follow_symlinks=False)
  return files, folders


def _compare(files, there, folders):
  """Raises _Fault for the first file that is missing, of another kind or size, or there without being known."""
  for path, (size, _) in files.items():
    _expect(path in there, path, 'missing')
    _expect(stat.S_ISREG(there[path].st_mode), path, 'is no plain file')
    _expect(there[path].st_size == size, path, f'is {there[path].st_size} bytes of {size}')
  for path in sorted(there.keys() - files.keys()):
    _expect(False, path, 'unexpected file')
  known = {str(above) for path in files for above in pathlib.PurePosixPath(path).parents}
  for path in sorted(set(folders) - known):
    _expect(False, path, 'unexpected folder')


def _digest(path, durable=False):
  """sha256 of a file in hexadecimal; durable: its bytes are on the disk itself when this returns."""
  with path.open('rb') as file:
    if durable:
      os.fsync(file.fileno())
    info = os.fstat(file.fileno())
    key = info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
    if key in _DIGESTS:
      return _DIGESTS[key]
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  if not durable and time.time_ns() - max(info.st_mtime_ns, info.st_ctime_ns) > _RESTS:
    _DIGESTS[key] = digest
  return digest
