"""What a training sees of a picture: a random view, of which no more is decoded than it needs.

Crops are drawn as Inception does (Szegedy et al., 2014, section 6) in the form of torchvision's RandomResizedCrop: ten
tries, then the largest centred crop of an allowed aspect. The box is drawn from the size in the header, so what is
drawn is the same whatever is then decoded (jpegs.py).

With the extra `fast` other libraries than Pillow do the work (host_decoder). Measured by benchmarks/input.py, and found
too slow or unfit: OpenCV's decoder (as fast as simplejpeg, but writes what it finds damaged to stderr), libvips (a part
without the rest, but twice the time for a picture of 500x375), jpegli (twice), INTER_AREA of OpenCV (no bilinear).
"""

import functools
import math
import threading

import numpy as np
from PIL import Image

from vit_jax import jpegs, transforms

CROPS = ('random', 'pad', 'none')
PADDING = 4  # pixels on each side: the CIFAR recipe of He et al., 2015, section 4.2
SHRUNK = ('bilinear', 'bicubic')  # which average where they shrink, so that decoding may do a part of it

_BACK = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
_OWN = threading.local()  # of each thread: a Resizer works for one at a time


def training_image(
  image,
  rng,
  *,
  size,
  crop='random',
  scale=(0.08, 1.0),
  ratio=(3 / 4, 4 / 3),
  interpolation='bilinear',
  shrink=False,
  fast=False,
):  # -> (size_h, size_w, 3)
  """uint8 (size_h, size_w, 3), a random view of a picture in any form that `transforms.decode` takes, with its errors.

  Args:
    rng: numpy Generator, the only source of randomness; what is drawn from it does not depend on `shrink` and `fast`.
    size: pixels, an int or (h, w).
    crop: 'random' = random_box, then resize; 'pad' = resize, 4 zero pixels around, a random window; 'none' = resize.
    scale, ratio: see random_box.
    interpolation: one of transforms.INTERPOLATIONS. Only SHRUNK heed `shrink`.
    shrink: a JPEG whose crop is at least 2, 4 or 8 times the size is decoded at 1/2, 1/4 or 1/8, as libjpeg does:
      other means of the same pixels. Without it, encoded pictures give what their decoded pixels give, to the bit.
    fast: the libraries of host_decoder() may work: the same but for single 8-bit steps, bicubic at hard edges for more.
  """
  transforms.check('crop', crop, CROPS)
  transforms.check('interpolation', interpolation, transforms.INTERPOLATIONS)
  height, width = (size, size) if isinstance(size, int) else size
  draw = _everything
  if crop == 'random':
    draw = functools.cache(lambda h, w: random_box(h, w, rng, scale=scale, ratio=ratio))  # once, whatever fails
  smallest = (height, width) if shrink and interpolation in SHRUNK else None
  picture, box = _part(image, draw, smallest, fast)
  picture = _resized(picture, (height, width), interpolation, box, fast)
  if crop == 'pad':
    padded = np.zeros((height + 2 * PADDING, width + 2 * PADDING, 3), np.uint8)  # np.pad takes four times as long
    padded[PADDING : PADDING + height, PADDING : PADDING + width] = picture
    left, top = int(rng.integers(2 * PADDING + 1)), int(rng.integers(2 * PADDING + 1))
    picture = padded[top : top + height, left : left + width]
  return np.ascontiguousarray(picture)


def whole(image, fast=False):  # -> (h, w, 3)
  """uint8 (h, w, 3), what transforms.decode gives, by the decoder that training_image has with this `fast`."""
  return np.ascontiguousarray(_part(image, _everything, None, fast)[0])


def random_box(height, width, rng, *, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
  """(left, top, right, bottom), a random box in an image of height x width pixels.

  scale: the share of the area, uniform, at most 1. ratio: width / height, uniform in the logarithm.
  """
  if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
    raise ValueError(f'scale={scale}, ratio={ratio}: wanted (low, high) with 0 < low <= high, and scale at most 1.')
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
      return left, top, left + w, top + h
  w = min(width, max(1, round(height * ratio[1])))  # max: a line one pixel wide still has a box
  h = min(height, max(1, round(width / ratio[0])))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


@functools.cache
def host_decoder():
  """What training_image(fast=True) uses beside Pillow, for run.json: names joined by ' + ', or 'pillow'.

  'simplejpeg' decodes JPEGs, 'cykooz_resizer' resizes by the filters of Pillow, 'opencv' where nothing is averaged:
  each where it is installed and does as Pillow does to one 8-bit step.
  """
  small = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)

  def agrees(resize, size):
    try:
      mine = resize(small, size, 'bilinear').astype(int)
    except ImportError:
      return False
    return abs(mine - np.asarray(transforms.resized(small, size, 'bilinear'))).max() <= 1

  found = {
    'simplejpeg': jpegs.agrees(),
    'cykooz_resizer': agrees(_by_cykooz, (41, 60)) and agrees(_by_cykooz, (4, 7)),
    'opencv': agrees(_by_opencv, (41, 60)),
  }
  return ' + '.join(name for name, there in found.items() if there) or 'pillow'


def _everything(h, w):
  return 0, 0, w, h


def _part(image, draw, size, fast):
  """(a picture that holds the box draw(h, w) of an upright one, the box in it or None where it is all of it).

  size: (h, w) that the box still has if the picture is decoded at less than its own scale; None keeps that.
  """

  def read(header, data):
    frame = jpegs.frame(data)
    if frame is None or (header.mode, *header.size) != ('RGB', frame.width, frame.height):
      return None
    turn, (w, h) = transforms.orientation(header), header.size
    across = turn is not None and turn.name in ('TRANSPOSE', 'ROTATE_270', 'TRANSVERSE', 'ROTATE_90')
    upright = (w, h) if across else (h, w)
    box = draw(*upright)
    shrink = jpegs.scale(box, size) if size else 1
    stored = box if turn is None else _turned(box, upright, _BACK.get(turn, turn))
    found = jpegs.part(data, frame, stored, shrink, fast and 'simplejpeg' in host_decoder())
    if found is None:
      return None
    picture, place = found
    if turn is not None:
      place = _turned(place, transforms.size_of(picture), turn)
      picture = Image.fromarray(np.asarray(picture)).transpose(turn)
    return picture, place if shrink > 1 else None

  found = transforms.opened(image, read)
  if isinstance(found, tuple):
    return found
  return transforms.cut(found, draw(*transforms.size_of(found))), None


def _turned(box, size, turn):
  """Where a box of a picture of size (h, w) is after an Image.Transpose."""
  (left, top, right, bottom), (h, w) = box, size
  name = turn.name
  if name in ('FLIP_LEFT_RIGHT', 'ROTATE_180', 'ROTATE_90', 'TRANSVERSE'):
    left, right = w - right, w - left
  if name in ('FLIP_TOP_BOTTOM', 'ROTATE_180', 'ROTATE_270', 'TRANSVERSE'):
    top, bottom = h - bottom, h - top
  if name in ('TRANSPOSE', 'ROTATE_90', 'ROTATE_270', 'TRANSVERSE'):
    return top, left, bottom, right
  return left, top, right, bottom


def _resized(picture, size, interpolation, box, fast):
  """transforms.resized, by the fastest that may do it."""
  h, w = transforms.size_of(picture)
  if not fast or box is None and (h, w) == tuple(size):
    return transforms.resized(picture, size, interpolation, box)
  # where nothing shrinks, nothing is antialiased, and the two kinds of bilinear are one
  plain = interpolation == 'tf_bilinear' or interpolation == 'bilinear' and h <= size[0] and w <= size[1]
  if plain and box is None and 'opencv' in host_decoder():
    return _by_opencv(picture, size, interpolation)
  if interpolation in SHRUNK and 'cykooz_resizer' in host_decoder():
    return _by_cykooz(picture, size, interpolation, box)
  return transforms.resized(picture, size, interpolation, box)


def _by_opencv(picture, size, interpolation):
  """The picture by bilinear interpolation between four pixels, whichever of the two it is."""
  import cv2

  return cv2.resize(np.asarray(picture), size[::-1], interpolation=cv2.INTER_LINEAR)


def _by_cykooz(picture, size, interpolation, box=None):
  """What Pillow's filter gives; its two passes are rounded and clipped in another order."""
  import cykooz_resizer as library

  if not hasattr(_OWN, 'resizer'):
    _OWN.resizer = library.Resizer()
  options = _options(interpolation)
  if box is not None:
    options = options.copy()
    options.crop_box = library.CropBox(box[0], box[1], box[2] - box[0], box[3] - box[1])
  h, w = transforms.size_of(picture)
  given = library.ImageData(w, h, library.PixelType.U8x3, picture.tobytes())
  made = library.ImageData(size[1], size[0], library.PixelType.U8x3)
  _OWN.resizer.resize(given, made, options)
  return np.frombuffer(made.get_buffer(), np.uint8).reshape(*size, 3)


@functools.cache
def _options(interpolation):
  import cykooz_resizer as library

  kind = {'bilinear': library.FilterType.bilinear, 'bicubic': library.FilterType.catmull_rom}[interpolation]
  return library.ResizeOptions(resize_alg=library.ResizeAlg.convolution(kind), use_alpha=False)
