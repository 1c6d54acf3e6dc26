"""Views for training: their distribution, what is decoded of a JPEG, and the libraries that may do it."""

import sys

import numpy as np
from photos import PHOTO, PHOTOS, PIXELS, encode, steps
from PIL import Image
import pytest

from vit_jax import crops, jpegs, transforms
from vit_jax.crops import random_box, training_image

LIBRARIES = {'simplejpeg': 'simplejpeg', 'cykooz_resizer': 'cykooz_resizer', 'opencv': 'cv2'}  # host_decoder's: module

needs = lambda name: pytest.mark.skipif(name not in crops.host_decoder(), reason=f'{name} is missing or differs')


def test_random_boxes_have_the_asked_distribution():
  rng, n = np.random.default_rng(0), 4000
  # up to half of a square no box is rejected (the widest is 0.82 of a side), so both are exactly uniform
  left, top, right, bottom = np.array([random_box(1000, 1000, rng, scale=(0.1, 0.5)) for _ in range(n)]).T
  w, h = right - left, bottom - top
  assert left.min() >= 0 and top.min() >= 0 and right.max() <= 1000 and bottom.max() <= 1000
  ranks = {
    'area': (w * h / 1e6 - 0.1) / 0.4,
    'aspect': (np.log(w / h) - np.log(3 / 4)) / np.log(16 / 9),
    'left': (left + 0.5) / (1001 - w),
    'top': (top + 0.5) / (1001 - h),
  }
  for name, rank in ranks.items():
    distance = abs(np.sort(rank) - (np.arange(n) + 0.5) / n).max()  # Kolmogorov and Smirnov's
    assert distance < 1.95 / np.sqrt(n), name  # 0.1 % level
  assert abs(np.corrcoef(np.array(list(ranks.values()))) - np.eye(4)).max() < 0.06


@pytest.mark.parametrize(
  'height, width, box',
  [
    (30, 900, (430, 0, 470, 30)),  # wider than 4/3: 40 x 30 in the middle
    (900, 30, (0, 430, 30, 470)),  # narrower than 3/4: 30 x 40
    (1, 1, (0, 0, 1, 1)),
    (1, 1000, (499, 0, 500, 1)),
    (1000, 1, (0, 499, 1, 500)),
  ],
)
def test_a_box_that_never_fits_is_the_centred_one(height, width, box):
  assert random_box(height, width, np.random.default_rng(0), scale=(1, 1)) == box


@pytest.mark.parametrize('bad', [dict(scale=(0, 1)), dict(scale=(0.5, 0.1)), dict(scale=(8, 100)), dict(ratio=(0, 1))])
def test_a_box_refuses_impossible_ranges(bad):
  with pytest.raises(ValueError, match='wanted'):
    random_box(8, 8, np.random.default_rng(0), **bad)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_training_crops_the_box_and_resizes_it(interpolation):
  for seed in range(6):
    got = training_image(encode(PHOTO, 'PNG'), np.random.default_rng(seed), size=(32, 48), interpolation=interpolation)
    box = random_box(73, 111, np.random.default_rng(seed))
    want = PHOTO.crop(box).resize((48, 32), Image.Resampling[interpolation.upper()])
    np.testing.assert_array_equal(got, np.asarray(want))
    np.testing.assert_array_equal(
      got, training_image(PIXELS, np.random.default_rng(seed), size=(32, 48), interpolation=interpolation)
    )


def test_training_crop_none_is_the_plain_resize():
  rng = np.random.default_rng(0)
  got = training_image(PIXELS, rng, size=32, crop='none')
  np.testing.assert_array_equal(got, np.asarray(PHOTO.resize((32, 32), Image.Resampling.BILINEAR)))
  np.testing.assert_array_equal(training_image(PIXELS, rng, size=(73, 111), crop='none'), PIXELS)
  assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn


def test_training_crop_pad_shifts_by_up_to_four_zeros():
  image, seen = np.arange(1, 193, dtype=np.uint8).reshape(8, 8, 3), set()
  for seed in range(400):
    got = training_image(image, np.random.default_rng(seed), size=8, crop='pad')
    assert got.shape == (8, 8, 3) and got.flags.c_contiguous
    places = [
      (y, x)
      for y in range(9)
      for x in range(9)
      if np.array_equal(got, np.pad(image, ((4, 4), (4, 4), (0, 0)))[y : y + 8, x : x + 8])
    ]
    assert len(places) == 1
    seen.update(places)
  assert len(seen) > 75  # of 81; 80.4 are expected
  assert training_image(PIXELS, np.random.default_rng(0), size=(8, 12), crop='pad').shape == (8, 12, 3)


def test_training_refuses_unknown_words():
  for bad in ({'crop': 'inception'}, {'interpolation': 'lanczos'}):
    with pytest.raises(ValueError, match='wanted one of'):
      training_image(PIXELS, np.random.default_rng(0), size=8, **bad)


# What is decoded


@pytest.fixture
def parts(monkeypatch):
  """Lists (scale, rows decoded) of the JPEGs that are decoded in part."""
  seen, real = [], jpegs.part

  def part(data, found, box, shrink=1, fast=False):
    seen.append(shrink)
    return real(data, found, box, shrink, fast)

  monkeypatch.setattr(jpegs, 'part', part)
  return seen


def turned(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  return encode(PHOTOS['china'], 'JPEG', quality=95, exif=exif)


@pytest.mark.parametrize('fast', [False, pytest.param(True, marks=needs('simplejpeg'))])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_jpeg_gives_what_its_decoded_pixels_give(orientation, fast, parts):
  data = turned(orientation)
  pixels = transforms.decode(data)
  np.testing.assert_array_equal(crops.whole(data, fast), pixels)
  for crop in crops.CROPS:
    for seed in range(4):
      views = [
        training_image(x, np.random.default_rng(seed), size=(40, 60), crop=crop, fast=fast) for x in (data, pixels)
      ]
      np.testing.assert_array_equal(*views)
  assert set(parts) == {1} and len(parts) == 13


@pytest.mark.parametrize('fast', [False, pytest.param(True, marks=needs('simplejpeg'))])
@pytest.mark.parametrize('interpolation', crops.SHRUNK)
@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_shrunk_jpeg_gives_nearly_what_its_decoded_pixels_give(orientation, interpolation, fast, parts):
  data, differences = turned(orientation), []
  for seed in range(12):
    height, width = size = ((24, 16), (48, 32))[seed % 2]
    options = dict(size=size, interpolation=interpolation, fast=fast)
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    near, exact = (training_image(data, rng, shrink=s, **options) for rng, s in zip(rngs, (True, False)))
    assert rngs[0].random() == rngs[1].random()  # the same was drawn
    differences.append(abs(near.astype(int) - exact).ravel())
    box = random_box(*transforms.decode(data).shape[:2], np.random.default_rng(seed))
    room = min((box[3] - box[1]) / height, (box[2] - box[0]) / width)
    assert parts[-2:] == [max(s for s in (1, 2, 4, 8) if s == 1 or s <= room), 1]
  assert {2, 4, 8} <= set(parts)
  # other weights of the same pixels: 1.4 and 1.6 of 255 on average, 10 for one in a hundred, most at hard edges
  differences = np.concatenate(differences)
  assert differences.mean() < 2 and np.quantile(differences, 0.99) < 13


def test_only_what_averages_is_shrunk(parts):
  for interpolation in transforms.INTERPOLATIONS:
    training_image(turned(1), np.random.default_rng(0), size=8, interpolation=interpolation, shrink=True)
    assert (parts.pop() > 1) == (interpolation in crops.SHRUNK)


FORMS = {
  'progressive': lambda: encode(PHOTOS['china'], 'JPEG', progressive=True),
  'grey': lambda: encode(PHOTOS['china'].convert('L'), 'JPEG'),
  'cmyk': lambda: encode(PHOTOS['china'].convert('CMYK'), 'JPEG'),
  'followed': lambda: turned(1) + b'a film of a telephone',
  'png': lambda: encode(PHOTOS['china'].resize((150, 100)), 'PNG'),
}


@pytest.mark.parametrize('form', FORMS)
def test_other_forms_are_decoded_whole(form, parts):
  data = FORMS[form]()
  pixels = transforms.decode(data)
  for shrink in (False, True):
    views = [training_image(x, np.random.default_rng(3), size=16, shrink=shrink, fast=False) for x in (data, pixels)]
    np.testing.assert_array_equal(*views)
  assert not parts


@pytest.mark.parametrize('shrink', [False, True])
@pytest.mark.parametrize('fast', [False, pytest.param(True, marks=needs('simplejpeg'))])
def test_what_is_refused_whole_is_refused_in_part(shrink, fast):
  whole, rng, refused = np.frombuffer(turned(6), np.uint8), np.random.default_rng(7), 0
  for trial in range(60):
    data = whole.copy()
    head = len(data) if trial % 2 else 700  # headers hold the traps
    data[rng.integers(2, head, 3)] = rng.integers(0, 256, 3)
    data = data[: rng.integers(1, len(data))] if trial % 4 == 0 else data
    outcomes = []
    for view in (
      lambda d: training_image(d, np.random.default_rng(0), size=24, shrink=shrink, fast=fast),
      transforms.decode,
    ):
      try:
        outcomes.append(bool(view(data.tobytes()).size))
      except transforms.Unreadable:
        outcomes.append(False)
    assert outcomes[0] == outcomes[1], trial
    refused += not outcomes[0]
  assert 15 < refused < 50


def test_a_bomb_is_refused_by_its_header(monkeypatch):
  data = bytearray(turned(1))
  found = jpegs.frame(bytes(data))
  data[found.at : found.at + 4] = b'\xff\xff\xff\xff'
  monkeypatch.setattr(jpegs, 'part', lambda *args: pytest.exit('decoded a bomb'))
  with pytest.raises(transforms.Unreadable, match='pixels'):
    training_image(bytes(data), np.random.default_rng(0), size=8, shrink=True)


# The libraries


@pytest.fixture
def resizes(monkeypatch):
  """Lists the sizes that OpenCV is asked for."""
  cv2, sizes = pytest.importorskip('cv2'), []
  crops.host_decoder()  # its own call is not listed
  real = cv2.resize
  monkeypatch.setattr(cv2, 'resize', lambda image, size, **k: (sizes.append(size), real(image, size, **k))[1])
  return sizes


@needs('opencv')
@pytest.mark.parametrize('crop', crops.CROPS)
@pytest.mark.parametrize('size', [16, (60, 200), 128])
@pytest.mark.parametrize('interpolation', transforms.INTERPOLATIONS)
def test_fast_pictures_are_equal_to_one_step(interpolation, size, crop, resizes):
  small, jpeg = np.asarray(PHOTOS['astronaut'].resize((32, 32))), encode(PHOTOS['china'], 'JPEG')
  differences = []
  for image in (PHOTO, small, small[..., 0], jpeg):
    for seed in range(3):
      options = dict(size=size, crop=crop, interpolation=interpolation)
      exact, fast = (training_image(image, np.random.default_rng(seed), fast=f, **options) for f in (False, True))
      assert fast.shape == exact.shape and fast.flags.c_contiguous
      differences.append(steps(fast, exact))
  # bicubic overshoots at edges, and is cut off at 0 and 255 after each of two passes, which come in another order
  assert max(differences) <= (12 if interpolation == 'bicubic' else 1)
  # shrinking takes antialiasing that OpenCV's bilinear does not have
  assert bool(resizes) == (interpolation == 'tf_bilinear' or interpolation == 'bilinear' and size != 16)


@needs('opencv')
@pytest.mark.parametrize('interpolation, other', [('bilinear', 'tf_bilinear'), ('tf_bilinear', 'bilinear')])
def test_resampling_is_the_rows_also_where_it_is_fast(interpolation, other):
  view = lambda interpolation, fast: training_image(
    PHOTOS['china'], None, size=50, crop='none', fast=fast, interpolation=interpolation
  )
  assert steps(view(interpolation, True), view(interpolation, False)) <= 1
  assert steps(view(interpolation, True), view(other, False)) > 30


@pytest.fixture
def fresh():
  """Has host_decoder look again, before and after."""
  crops.host_decoder.cache_clear()
  yield
  crops.host_decoder.cache_clear()


def test_without_libraries_fast_is_pillow(monkeypatch, fresh):
  for module in LIBRARIES.values():
    monkeypatch.setitem(sys.modules, module, None)
  assert crops.host_decoder() == 'pillow'
  data = turned(1)
  for interpolation in ('bilinear', 'bicubic', 'tf_bilinear'):
    options = dict(size=40, shrink=True, interpolation=interpolation)
    np.testing.assert_array_equal(*(training_image(data, np.random.default_rng(1), fast=f, **options) for f in (0, 1)))


@pytest.mark.parametrize('name', LIBRARIES)
def test_a_library_that_differs_from_pillow_is_not_used(name, monkeypatch, fresh):
  module = pytest.importorskip(LIBRARIES[name])
  if name == 'simplejpeg':
    monkeypatch.setattr(
      module, 'decode_jpeg', lambda *_, min_height, min_width, **__: np.zeros((min_height, min_width, 3), np.uint8)
    )
  elif name == 'opencv':
    monkeypatch.setattr(module, 'resize', lambda image, size, **_: np.zeros((*size[::-1], 3), np.uint8))
  else:
    monkeypatch.setattr(module.ImageData, 'get_buffer', lambda self: bytes(self.width * self.height * 3))
  assert name not in crops.host_decoder()
