"""A disk that is full, or would be -> one line that says so, whoever met it and however it was told.

orbax raises ENOSPC as a ValueError with RESOURCE_EXHAUSTED in it, one call late, after it has logged it three times.
"""

import errno
import functools
import logging
import os
import shutil
import sys

# No space, the user's quota, and the largest file of the file system or of `ulimit -f`.
ERRORS = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


class DiskFull(OSError):
  """Something was not written because it has no room; str() is the line for the user. The run ends with exit code 1."""

  def __init__(self, line):
    super().__init__(errno.ENOSPC, line)

  def __str__(self):
    return self.strerror


def free(folder):
  """Bytes that this user may still write in a folder; quotas are not seen."""
  return shutil.disk_usage(folder).free


def cause(error):
  """'No space left on device' or the like where an exception, or one that it came from, says so; else None."""
  while error is not None:
    for number in ERRORS:
      if isinstance(error, OSError) and error.errno == number or os.strerror(number) in str(error):
        return os.strerror(number)
    error = error.__cause__ or error.__context__
  return None


def text(count):
  """'1.23 GB' of a number of bytes."""
  power = next((power for power in (1, 2, 3) if count < 999.5 * 1000**power), 4)
  return f'{count / 1000**power:.3g} {"kMGT"[power - 1]}B'


@functools.cache
def quiet():
  """From now on hides what orbax and tensorstore print of a save that failed, beside raising it: 70 lines an array.

  They go on to print when it has long failed and its folder NAME.saving is gone, so there is no end to it. All else is
  shown as before.
  """
  before = sys.unraisablehook

  def hook(unraisable):  # of a write that nobody waits for any more, once another one has failed
    if str(unraisable.exc_value) != 'Event loop is closed':
      before(unraisable)

  def shown(record):
    error = record.exc_info[1] if record.exc_info else None
    ours = '.saving' in record.getMessage() or '.saving' in str(error) or cause(error)
    return record.levelno < logging.WARNING or not ours

  sys.unraisablehook = hook
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(shown)
