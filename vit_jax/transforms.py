"""One picture on the host: encoded bytes, a path, a Pillow image or an array -> uint8 (h, w, 3), cropped and resized.

What a file means: EXIF orientation is applied; grey gives three equal channels; alpha is dropped, as by convert('RGB')
in timm and Hugging Face, with which the published accuracies were measured; palette and 1-bit become colours; 16-bit
channels keep their high byte (Pillow's own conversion of 16-bit grey clips at 255); CMYK, Adobe's inverted one too,
becomes RGB as in Pillow; the first frame of an animation counts. Floating point, which has no defined range, truncated
files, those of more than MAX_PIXELS, and programs (PostScript) are Unreadable.

What an evaluation sees is a *row* (`preprocessing`), saved beside the weights. 'bilinear' and 'bicubic' are Pillow's
antialiased filters, 'tf_bilinear' is tf.image.resize's (half-pixel centres, no antialiasing, rounded), 'bv_bilinear'
and 'bv_area' the same library's as big_vision uses them (cut down to 8 bits, sides rounded). The geometry is timm's
create_transform(is_training=False). What a training sees is drawn in crops.py.
"""

import contextlib
import io
import math
import os
import pathlib
import threading
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from vit_jax import markers

MAX_PIXELS = 178_956_970  # where Pillow itself refuses: half a gigabyte once decoded
EVALUATION_CROPS = ('center', 'center_floor', 'squash', 'border')
INTERPOLATIONS = ('bilinear', 'bicubic', 'tf_bilinear', 'bv_bilinear', 'bv_area')

_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}  # EXIF orientation: what puts the picture upright


class Unreadable(ValueError):
  """A picture that cannot be decoded; the message is the reason, one line that does not name the file."""


def decode(data):  # -> (h, w, 3)
  """uint8 (h, w, 3), C-contiguous, possibly read-only, for a picture in any form; see the top of this file.

  Args:
    data: bytes in any format that Pillow reads, str or Path of such a file, PIL.Image, or uint8 array (h, w),
      (h, w, 1), (h, w, 3) or (h, w, 4).

  Raises:
    Unreadable: the file is missing, damaged, truncated, too large, or has no 8-bit meaning.
    ValueError: an array of another dtype or shape, or a value of another type.
  """
  return np.ascontiguousarray(opened(data))


def preprocessing(
  size, *, crop='center', crop_pct=0.875, interpolation='bicubic', mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
):
  """The row that says how a picture is prepared for evaluation: a JSON-able dict of the arguments, size as [h, w].

  Args:
    size: pixels, an int or (h, w).
    crop: 'center' scales the picture until floor(size / crop_pct) is just covered and takes the middle; half a pixel
      is rounded to even (timm), or down with 'center_floor' (Hugging Face). 'squash' resizes to floor(size / crop_pct)
      whatever the aspect and takes the middle: with crop_pct=1 it is the plain resize. 'border' scales the picture
      until it just fits into that size, and fills what is missing of the middle with the mean's colour.
    crop_pct: over 0, at most 1.
    interpolation: one of INTERPOLATIONS, see the top of this file.
    mean, std: of each channel, in units of pixel / 255.

  Raises ValueError where one of them is out of range.
  """
  height, width = size if isinstance(size, (tuple, list)) and len(size) == 2 else (size, size)
  if not all(isinstance(n, (int, np.integer)) and n > 0 for n in (height, width)):
    raise ValueError(f'size={size!r}: wanted a positive number of pixels or a pair (height, width).')
  check('crop', crop, EVALUATION_CROPS)
  check('interpolation', interpolation, INTERPOLATIONS)
  if not 0 < crop_pct <= 1:
    raise ValueError(f'crop_pct={crop_pct!r}: wanted the share of a side that is kept, over 0 and at most 1.')
  mean, std = [float(m) for m in mean], [float(s) for s in std]
  if (len(mean), len(std)) != (3, 3) or not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
    raise ValueError(f'mean={mean}, std={std}: wanted three numbers each, of pixels scaled to 0..1 (divide by 255).')
  return {
    'size': [int(height), int(width)],
    'crop': crop,
    'crop_pct': float(crop_pct),
    'interpolation': interpolation,
    'mean': mean,
    'std': std,
  }


def evaluation_image(image, row):  # -> (size_h, size_w, 3)
  """uint8 (size_h, size_w, 3) for a picture in any form that `decode` takes, prepared as the row says.

  Equal in every bit to timm's and Hugging Face's 8-bit (Pillow) pipelines, whatever else is installed. A picture of the
  row's size passes unchanged only if crop_pct is 1. Raises as `decode`, and Unreadable for a picture so narrow that the
  resize would make it larger than MAX_PIXELS.
  """
  picture = opened(image)
  (h, w), (height, width) = size_of(picture), row['size']
  target = math.floor(height / row['crop_pct']), math.floor(width / row['crop_pct'])
  target = target if row['crop'] == 'squash' else _scaled(h, w, target, row)
  if target[0] * target[1] > MAX_PIXELS:
    raise Unreadable(f'{w}x{h} pixels are too narrow: resized, it would be {target[1]}x{target[0]}')
  picture = resized(picture, target, row['interpolation'])
  if target[0] < height or target[1] < width:
    fill = [round(255 * m) for m in row['mean']] if row['crop'] == 'border' else [0, 0, 0]
    picture = _padded(np.asarray(picture), (height, width), fill)
    target = picture.shape[:2]
  half = math.floor if row['crop'] == 'center_floor' else round
  left, top = half((target[1] - width) / 2), half((target[0] - height) / 2)
  return np.ascontiguousarray(cut(picture, (left, top, left + width, top + height)))


class _Hush(threading.local):
  """A pattern for a warning filter that matches in the threads that are inside `with`: silences Pillow's remarks.

  warnings.catch_warnings is for one thread: where two overlap, the last to leave restores the other's filters.
  """

  inside = False

  def match(self, text):
    return self.inside

  def __enter__(self):
    if _HUSHED not in warnings.filters:  # whoever resets the filters, as pytest does, removes it
      warnings.filters.insert(0, _HUSHED)
    self.inside = True

  def __exit__(self, *error):
    self.inside = False


_HUSH = _Hush()
_HUSHED = ('ignore', _HUSH, Warning, None, 0)  # the form of an entry of warnings.filters


def opened(data, read=lambda image, data: None):
  """An upright RGB PIL.Image, or a uint8 array (h, w, 3), for whatever `decode` takes, with its errors.

  Below, either is a picture: pixels cross between Pillow and numpy late, when they are few.
  read: (PIL.Image, bytes) -> what takes the place of an encoded picture of which no more than the header was looked
    at, or None.
  """
  if isinstance(data, np.ndarray):
    return _three_channels(data)
  if not isinstance(data, (bytes, bytearray, memoryview, str, os.PathLike, Image.Image)):
    raise ValueError(f'A picture is encoded bytes, a path, a PIL image or a uint8 array, not {type(data).__name__}.')
  try:
    with _HUSH:
      if isinstance(data, Image.Image):
        return _upright(_checked(data))
      data = pathlib.Path(data).read_bytes() if isinstance(data, (str, os.PathLike)) else data
      data = bytes(data)
      kind = ('JPEG',) if data.startswith(b'\xff\xd8\xff') else None  # else Pillow asks a dozen formats first
      image = _checked(Image.open(io.BytesIO(data), formats=kind))
      if (found := read(image, data)) is not None:
        return found
      if image.format in ('JPEG', 'MPO'):
        markers.check_scans(data, image.width * image.height, MAX_PIXELS)
      return _upright(image)
  except UnidentifiedImageError as error:
    raise Unreadable('not a picture in a format that Pillow reads' if len(data) else 'an empty file') from error
  except Exception as error:  # a format's parser raises whatever damaged bytes lead it to
    reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    raise Unreadable(reason.splitlines()[0]) from error


def orientation(image):
  """The Image.Transpose that puts a PIL.Image upright, or None. A PNG may say it behind its pixels: load() it first."""
  with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
    return _TURNS.get(image.getexif().get(0x0112))
  return None


def _checked(image):
  """A PIL.Image that may be decoded, by its header."""
  if not 0 < image.width * image.height <= MAX_PIXELS:
    raise Unreadable(f'{image.width}x{image.height} pixels: wanted 1 to {MAX_PIXELS:,}')
  if image.format == 'EPS':
    raise Unreadable('PostScript is a program, and is not run')
  return image


def _upright(image):
  """An upright RGB PIL.Image for one of any mode that may not be loaded yet."""
  image.load()
  turn = orientation(image)
  image = image if image.mode == 'RGB' else _eight_bit(image).convert('RGB')
  return image if turn is None else image.transpose(turn)


def _eight_bit(image):
  """A PIL.Image that convert('RGB') does not clip."""
  if image.mode == 'F':
    raise Unreadable('floating-point pixels have no defined range; save them with 8 or 16 bits')
  if not image.mode.startswith('I'):
    return image
  values = np.asarray(image)  # 32-bit 'I' is also how a 16-bit PGM, or PNG in older Pillows, arrives
  if values.min() < 0 or values.max() > 65535:
    raise Unreadable('32-bit integer pixels have no defined range; save them with 8 or 16 bits')
  return Image.fromarray((values >> 8).astype(np.uint8))


def _three_channels(array):  # -> (h, w, 3)
  if array.dtype != np.uint8 or array.ndim < 2 or array.shape[2:] not in ((), (1,), (3,), (4,)) or not array.size:
    raise ValueError(
      'A picture as an array is uint8, 0 to 255, of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), '
      f'not {array.dtype} {array.shape}.'
    )
  array = array[..., None] if array.ndim == 2 else array
  return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]


def size_of(picture):  # -> (h, w)
  """Rows and columns of a picture."""
  return picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size[::-1]


def cut(picture, box):
  """The part of a picture in a box (left, top, right, bottom) of whole pixels."""
  left, top, right, bottom = box
  return picture[top:bottom, left:right] if isinstance(picture, np.ndarray) else picture.crop(box)


def _scaled(h, w, target, row):
  """(h, w) scaled, aspect kept, until it just covers the target, or fits into it for 'border'; rounded as peers do."""
  if row['crop'] == 'border':  # timm's ResizeKeepRatio(longest=1)
    factor = max(h / target[0], w / target[1])
  elif row['interpolation'].startswith('bv_'):
    factor = np.float32(min(h, w)) / np.float32(min(target))
  elif target[0] == target[1]:  # torchvision's Resize(int): what the long side has over is cut off
    return (target[0], target[0] * w // h) if h <= w else (target[0] * h // w, target[0])
  else:
    factor = min(h / target[0], w / target[1])  # timm's ResizeKeepRatio
  return round(h / factor), round(w / factor)


def _padded(array, size, fill):  # (h, w, 3) -> at least size
  """A uint8 array with a border of one colour where it is smaller than size; an odd pixel is below or to the right."""
  (h, w), (height, width) = array.shape[:2], size
  out = np.empty((max(h, height), max(w, width), 3), np.uint8)
  out[:] = fill
  top, left = max(height - h, 0) // 2, max(width - w, 0) // 2
  out[top : top + h, left : left + w] = array
  return out


def resized(picture, size, interpolation, box=None):
  """The picture, or a box (left, top, right, bottom) of it that may end within a pixel, at size (h, w).

  interpolation: one of INTERPOLATIONS; with a box one of Pillow's.
  """
  h, w = size_of(picture)
  if box is None and (h, w) == tuple(size):
    return picture
  if interpolation in _OF_TENSORFLOW:
    share, to_8_bits = _OF_TENSORFLOW[interpolation]
    return to_8_bits(share(np.asarray(picture), size)).astype(np.uint8)
  picture = Image.fromarray(np.ascontiguousarray(picture)) if isinstance(picture, np.ndarray) else picture
  return picture.resize(size[::-1], Image.Resampling[interpolation.upper()], box)


def _tf_bilinear(array, size):  # (h, w, 3) -> (size_h, size_w, 3)
  for axis in (1, 0):
    old, new = array.shape[axis], size[axis]
    at = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
    low = np.floor(at).astype(int)
    share = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
    a, b = (array.take(np.clip(i, 0, old - 1), axis).astype(np.float32) for i in (low, low + 1))
    array = a + (b - a) * share
  return array


def _tf_area(array, size):  # (h, w, 3) -> (size_h, size_w, 3)
  """Each new pixel is the mean of the old ones under it, by the share of each that it covers; float32 throughout and
  added up in TensorFlow's order, because cutting down to 8 bits shows the last bit."""
  steps = [np.float32(old / new) for old, new in zip(array.shape, size)]
  array = array.astype(np.float32)
  for axis in (1, 0):
    old, step = array.shape[axis], steps[axis]
    start = np.arange(size[axis], dtype=np.float32) * step
    stop = np.arange(1, size[axis] + 1, dtype=np.float32) * step
    first, total = np.floor(start).astype(int), np.float32(0)
    for i in range(int(np.ceil(step)) + 1):
      cover = np.clip(np.minimum(stop, first + np.float32(i + 1)) - np.maximum(start, first + np.float32(i)), 0, 1)
      taken = array.take(np.minimum(first + i, old - 1), axis)
      total = total + taken * cover.astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
    array = total
  return array * (np.float32(1) / (steps[0] * steps[1]))


# what tf.image.resize gives, in float32, and how it becomes 8 bits
_OF_TENSORFLOW = {
  'tf_bilinear': (_tf_bilinear, np.rint),
  'bv_bilinear': (_tf_bilinear, np.floor),
  'bv_area': (_tf_area, np.floor),
}


def check(what, given, known):
  """Raises ValueError unless an argument is one of those known."""
  if given not in known:
    raise ValueError(f'{what}={given!r}: wanted one of {", ".join(known)}.')
