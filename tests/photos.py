"""The photographs of the preprocessing goldens, and what tests of pictures do with them."""

import io
import pathlib

import numpy as np
from PIL import Image

GOLDENS = pathlib.Path(__file__).parent / 'goldens' / 'preproc'
PHOTOS = {name: Image.open(GOLDENS / f'{name}.png').convert('RGB') for name in ('astronaut', 'china')}
PHOTO = PHOTOS['china'].crop((50, 60, 161, 133))  # 111 wide, 73 high
PIXELS = np.asarray(PHOTO)


def encode(image, format, **options):
  """The bytes of a picture in a format."""
  stream = io.BytesIO()
  image.save(stream, format, **options)
  return stream.getvalue()


def steps(a, b):
  """The largest difference of two uint8 arrays, in 8-bit steps."""
  return abs(a.astype(int) - b.astype(int)).max()
