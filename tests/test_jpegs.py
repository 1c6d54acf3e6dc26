"""JPEGs of which a part is decoded: the same bits as of the whole, and which files they are."""

import io
import pathlib
import sys

import numpy as np
from PIL import Image
import pytest

from vit_jax import jpegs

PHOTO = (
  Image.open(pathlib.Path(__file__).parent / 'goldens' / 'preproc' / 'china.png').convert('RGB').resize((203, 157))
)
WAYS = [False, pytest.param(True, marks=pytest.mark.skipif(not jpegs.agrees(), reason='simplejpeg is missing'))]


def encode(**options):
  stream = io.BytesIO()
  PHOTO.save(stream, 'JPEG', **options)
  return stream.getvalue()


@pytest.mark.parametrize('fast', WAYS)
@pytest.mark.parametrize('shrink', [1, 2, 4, 8])
@pytest.mark.parametrize(
  'options',
  [{'subsampling': '4:4:4'}, {'subsampling': '4:2:2'}, {'subsampling': '4:2:0'}, {'restart_marker_rows': 1}],
  ids=lambda options: str(*options.values()),
)
def test_a_part_has_the_bits_of_the_whole(options, shrink, fast):
  data = encode(quality=90, **options)
  header, found = Image.open(io.BytesIO(data)), jpegs.frame(data)
  header.draft('RGB', (203 // shrink, 157 // shrink))
  whole, rng = np.asarray(header), np.random.default_rng(0)
  for _ in range(12):
    left, right = np.sort(rng.choice(204, 2, replace=False))
    top, bottom = np.sort(rng.choice(158, 2, replace=False))
    box = int(left), int(top), int(right), int(bottom)
    part, place = jpegs.part(data, found, box, shrink, fast)
    y, x = top // shrink, left // shrink
    wanted = whole[y : -(-bottom // shrink), x : -(-right // shrink)]
    np.testing.assert_array_equal(np.asarray(part), wanted)
    assert place == tuple(n / shrink - origin for n, origin in zip(box, (x, y, x, y)))


def test_rows_below_a_part_are_not_decoded(monkeypatch):
  data, heights = encode(), []
  real = Image.open
  monkeypatch.setattr(Image, 'open', lambda stream: (heights.append((image := real(stream)).height), image)[1])
  for bottom in (1, 14, 15, 100, 157):
    jpegs.part(data, jpegs.frame(data), (0, 0, 5, bottom))
  assert heights == [16, 16, 32, 112, 157]  # two rows more, for the colours, in whole blocks of 16


@pytest.mark.parametrize('size, scale', [((10, 10), 8), ((11, 10), 4), ((10, 12), 4), ((20, 40), 2), ((60, 10), 1)])
def test_the_scale_leaves_at_least_the_size(size, scale):
  assert jpegs.scale((7, 3, 7 + 90, 3 + 80), size) == scale


def test_frames():
  data = encode(exif=Image.Exif().tobytes() or b'')
  assert jpegs.frame(data)[1:] == (157, 203, 16)
  assert data[jpegs.frame(data).at :][:4] == bytes([0, 157, 0, 203])
  assert jpegs.frame(encode(subsampling='4:4:4')).rows == 8
  stream = io.BytesIO()
  PHOTO.convert('L').save(stream, 'JPEG')
  for other in (b'', data[:2], data[:-2], data[:-1], data + b'more', encode(progressive=True), stream.getvalue()):
    assert jpegs.frame(other) is None
  middle = len(data) - 700
  for mark, there in ((0xD3, True), (0xFF, True), (0xBB, False), (0xD9, False), (0xC0, False)):
    assert (jpegs.frame(data[:middle] + bytes([0xFF, mark, 0]) + data[middle:]) is not None) == there
  scan = data.index(bytes([0xFF, 0xDA]))  # its header says that it is longer than the file, or ends with it
  for length in (0xFFFF, len(data) - scan - 2, len(data) - scan - 3):
    assert jpegs.frame(data[: scan + 2] + length.to_bytes(2, 'big') + data[scan + 4 :]) is None
  for length in range(0, 700, 3):  # cut off in its header, with an end mark all the same
    assert jpegs.frame(data[:length] + b'\xff\xd9') in (None, jpegs.frame(data))


def test_a_decoder_that_is_missing_or_another_does_not_agree(monkeypatch):
  monkeypatch.setitem(sys.modules, 'simplejpeg', None)
  assert not jpegs.agrees()
