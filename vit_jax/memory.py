"""Host memory: where XLA wants an array to begin, what malloc does with what is given back, and how much is left."""

import contextlib
import ctypes
import pathlib

import numpy as np


def aligned(size):
  """`size` bytes, uninitialised, that begin where XLA wants an array: it takes them over without a copy.

  Large ones begin on a huge page, of which the kernel clears one at a time where it would clear 512 small ones.
  """
  boundary = 2**21 if size >= 2**21 else 64
  room = np.empty(size + boundary, np.uint8)
  start = -room.ctypes.data % boundary
  return room[start : start + size]


def keep_freed():
  """Has malloc keep what a step frees for the next one; whether it could (glibc can, others are left alone).

  XLA on a CPU allocates a step's buffers afresh, and the kernel clears every page that was given back to it: a fifth
  of the CPU seconds of configs/mnist.py, for 0.3 GB more resident memory.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False
  trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
  return all([mallopt(trim_threshold, 2**31 - 1), mallopt(top_pad, 2**26), mallopt(mmap_threshold, 2**30)])


def free():
  """Bytes that can still be taken before the machine, or the container of this process, runs short; None = unknown."""
  found = []
  with contextlib.suppress(OSError, StopIteration, ValueError):
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
    found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:')))
  with contextlib.suppress(OSError, ValueError):  # 'max' where there is no limit
    limit, used = (int(pathlib.Path(f'/sys/fs/cgroup/memory.{name}').read_text()) for name in ('max', 'current'))
    found.append(max(0, limit - used))
  return min(found, default=None)
