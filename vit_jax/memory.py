"""Host memory: where XLA wants an array to begin, and what malloc does with what is given back."""

import ctypes

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
