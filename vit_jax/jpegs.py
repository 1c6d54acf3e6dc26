"""JPEGs of which a part is wanted: no row below it is decoded, and all at the scale that the part allows.

A JPEG's rows come from its top to its bottom, and its header says how many there are. With a smaller number written
there, a decoder stops where the part ends, and all above is the same to the bit, as long as a row of blocks below the
part is left for the colours, which are interpolated. The inverse cosine transform gives 1/2, 1/4 or 1/8 of the size as
cheaply as it can be: each pixel then is about the mean of those that it stands for (ITU T.81 says nothing of it; IJG's
library has it since 1994).

Done so are the JPEGs of cameras and of the web: baseline or extended Huffman code, 8 bits, three components in one
scan, and the mark of their end at the end, and no other before it. Pillow refuses files that are cut off or have a mark
where none belongs, and accepts any other of these, as there are no checksums: with the marks looked for, the rows left
out hide nothing that it would have seen.
Decoded by simplejpeg where that is installed (libjpeg-turbo without Pillow's fourth byte for each pixel: 1.4 times as
fast), else by Pillow.
"""

import io
import math
import re
import struct
import typing

import numpy as np
from PIL import Image

SCALES = (8, 4, 2)  # that all of libjpeg's kin have, and Pillow's draft() knows
_HUFFMAN = (0xC0, 0xC1)  # frames of one scan: baseline, extended
_MARK = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')  # not a byte of the code, a restart, or filling
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class Frame(typing.NamedTuple):
  """What the header of a JPEG says: the offset of its height, its size, and how many rows a row of blocks is."""

  at: int
  height: int
  width: int
  rows: int


def frame(data):
  """The Frame of a JPEG whose parts can be decoded alone, else None; data: bytes of a file, maybe damaged."""
  if data[:2] != b'\xff\xd8' or data[-2:] != b'\xff\xd9':
    return None
  found, at = None, 2
  try:
    while data[at] == 0xFF:
      mark, [length] = data[at + 1], struct.unpack_from('>H', data, at + 2)
      if mark in _FRAMES:
        bits, height, width, count = struct.unpack_from('>BHHB', data, at + 4)
        if found or mark not in _HUFFMAN or (bits, count) != (8, 3) or not height or not width:
          return None
        most = max(data[at + 11 + 3 * i] & 15 for i in range(count))
        found = Frame(at + 5, height, width, 8 * most)
      elif mark == 0xDA:
        code, end = at + 2 + length, len(data) - 1
        # Pillow refuses most of what has a mark there
        return found if data[at + 4] == 3 and code < end and not _MARK.search(data, code, end) else None
      elif length < 2 or 0xD0 <= mark <= 0xD9 or mark == 0xFF:
        return None
      at += 2 + length
  except (IndexError, ValueError, struct.error):
    pass
  return None


def scale(box, size):
  """The largest of 8, 4, 2 and 1 at which a box (left, top, right, bottom) still has size (h, w), or more."""
  left, top, right, bottom = box
  room = min((bottom - top) / size[0], (right - left) / size[1])
  return next((one for one in SCALES if one <= room), 1)


def part(data, found, box, shrink=1, fast=False):  # -> (h, w, 3)
  """(uint8 (h, w, 3), or an RGB PIL.Image, that holds a box of a JPEG; the box in it), or None for a damaged one.

  Args:
    data: bytes.   found: its frame(data).
    box: (left, top, right, bottom), whole pixels as they are stored, not turned upright.
    shrink: 1, 2, 4 or 8: what comes out is so many times smaller, and the box in it may begin and end within a pixel.
    fast: by simplejpeg, which has to be there.
  """
  lowest = -(-(box[3] + 2 * shrink) // found.rows) * found.rows
  rows = min(found.height, lowest)
  if rows < found.height:
    data = b''.join((data[: found.at], rows.to_bytes(2, 'big'), data[found.at + 2 :]))
  size = -(-rows // shrink), -(-found.width // shrink)
  picture = (_simplejpeg if fast else _pillow)(data, size, shrink)
  if picture is None:
    return None
  left, top, right, bottom = (side / shrink for side in box)
  x, y, across, down = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
  cut = picture.crop((x, y, across, down)) if isinstance(picture, Image.Image) else picture[y:down, x:across]
  return cut, (left - x, top - y, right - x, bottom - y)


def _simplejpeg(data, size, shrink):
  import simplejpeg

  try:
    array = simplejpeg.decode_jpeg(data, 'RGB', min_height=size[0], min_width=size[1], min_factor=shrink, strict=False)
  except ValueError:  # damaged beyond what libjpeg only warns of
    return None
  return array if array.shape == (*size, 3) else None


def _pillow(data, size, shrink):
  try:
    image = Image.open(io.BytesIO(data))
    if shrink > 1:
      image.draft('RGB', (image.width // shrink, image.height // shrink))
    image.load()
  except Exception:  # a format's parser raises whatever damaged bytes lead it to
    return None
  return image if (image.mode, image.size[::-1]) == ('RGB', size) else None


def agrees():
  """Whether simplejpeg is installed and decodes as Pillow does, at each scale, to one 8-bit step."""
  try:
    import simplejpeg  # noqa: F401
  except ImportError:
    return False
  stream = io.BytesIO()
  rough = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
  Image.fromarray(rough).resize((104, 72), Image.Resampling.BICUBIC).save(stream, 'JPEG', quality=90)
  data = stream.getvalue()
  for shrink in (1, *SCALES):
    size = 72 // shrink, 104 // shrink
    mine, pillows = (decode(data, size, shrink) for decode in (_simplejpeg, _pillow))
    if mine is None or abs(mine.astype(int) - np.asarray(pillows)).max() > 1:
      return False
  return True
