"""What was compiled is kept for the next run: jax's persistent compilation cache, in the user's cache folder."""

import contextlib
import hashlib
import os
import platform
import re
import sys

from vit_jax import caches

LIMIT = 4 * 2**30  # bytes that are kept
SHORTEST = 0.2  # seconds of compilation that are worth a file


def keep():
  """Has jax keep what it compiles: the folder, or None where there is none. It does nothing once jax is imported.

  JAX_COMPILATION_CACHE_DIR names another folder, and JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing; then nothing is done
  here. What has been there longest goes where there is more than LIMIT.
  """
  if 'jax' in sys.modules or os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return None
  if _no(os.environ.get('JAX_ENABLE_COMPILATION_CACHE', '1')):
    return None
  try:
    folder = caches.folder() / 'compiled' / _machine()
    folder.mkdir(parents=True, exist_ok=True)
    _shorten(folder, LIMIT)
  except (OSError, RuntimeError):  # no home, or none that may be written
    return None
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', str(SHORTEST))
  return folder


def _no(text):
  return text.lower() in ('0', 'false', 'no', 'off', 'n', 'f')


def _machine():
  """A name for the kind of CPU: a program for one that can do more would end with an illegal instruction on another.

  A home is often shared by many machines, and jax's own key does not have it.
  """
  said = platform.machine()
  with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
    text = file.read()
    said += ' '.join(
      ''.join(re.findall(rf'^{key}\s*:(.*)$', text, re.M)[:1]) for key in ('model name', 'flags', 'Features')
    )
  return hashlib.sha256(said.encode()).hexdigest()[:16]


def _shorten(folder, limit):
  """Removes the oldest files of a folder until the others have at most `limit` bytes."""
  found = []
  for entry in os.scandir(folder):
    with contextlib.suppress(FileNotFoundError):  # another process removes them too
      said = entry.stat()
      found.append((said.st_mtime, said.st_size, entry.path))
  total = sum(size for _, size, _ in found)
  for _, size, path in sorted(found):
    if total <= limit:
      return
    with contextlib.suppress(FileNotFoundError):
      os.remove(path)
    total -= size
