"""Decoded pictures that stay in memory, so that later epochs only crop them.

Whether all pictures of a source may stay is decided once, from the headers of some of them and a number of bytes, so a
run that goes on elsewhere decides the same. Where they may, every picture is decoded at its own scale, whether it has
found room or not: what is kept never changes what a training sees.
"""

import threading

import numpy as np

from vit_jax import crops, memory, order, transforms

SAMPLES = (16, 256)  # headers: the second where the first says no more than that it is near the limit
NEAR = 2  # times over or under


class Kept:
  """Examples of a source, as source[i] gives them, with pixels in place of encoded pictures while there is room.

  Attributes: bytes: of the pixels that are kept.   limit: how many may be; the half of the memory that is free at the
  start, if that is less.
  """

  def __init__(self, limit=0):
    free = memory.free() if limit else None
    self.bytes, self.limit = 0, int(limit if free is None else min(limit, free // 2))
    self._examples, self._lock, self._full = {}, threading.Lock(), not limit

  def example(self, source, i):
    """source[i], of always the same source; raises what that and crops.whole raise. For any number of threads."""
    found = self._examples.get(i)
    if found is None:
      found = source[i]
      if not self._full and isinstance(found['image'], (bytes, bytearray, memoryview)):
        found = found | {'image': crops.whole(found['image'], fast=True)}
        self._keep(i, found)
    return found

  def _keep(self, i, example):
    with self._lock:
      size = example['image'].nbytes
      self._full = self.bytes + size > self.limit
      if not self._full and i not in self._examples:  # another thread may have been sooner
        self._examples[i], self.bytes = example, self.bytes + size


def fits(source, limit):
  """Whether the encoded pictures of a source take at most `limit` bytes once decoded, by the headers of some of them.

  A source that gives pixels has none. Pictures that cannot be opened do not count.
  """
  for sample in SAMPLES:
    numbers = order.permutation(len(source), 0, 0)[:sample].tolist()  # no step that pictures of a kind may have too
    sizes = [size for size in (_size(source, i) for i in numbers) if size is not None]
    needed = len(source) * sum(sizes) / max(1, len(sizes))
    if not sizes or not limit / NEAR < needed < limit * NEAR:
      break
  return bool(sizes) and needed <= limit


def _size(source, i):
  """Bytes of pixels of example i, by its header; None where it is not encoded, or not to be opened."""
  try:
    image = source[i]['image']
    if isinstance(image, np.ndarray):
      return None
    w, h = transforms.opened(image, lambda header, _: header.size)
  except (transforms.Unreadable, OSError):
    return None
  return 3 * h * w
