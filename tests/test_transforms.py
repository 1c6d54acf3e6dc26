"""Pictures on the host: what files mean, and what an evaluation sees, against timm, Hugging Face and TensorFlow."""

from concurrent.futures import ThreadPoolExecutor
import io
import json
import struct
import sys
import warnings
import zlib

import numpy as np
from photos import GOLDENS, PHOTO, PHOTOS, PIXELS, encode, steps
from PIL import Image, ImageFile
import pytest

from vit_jax import transforms
from vit_jax.transforms import Unreadable, decode, evaluation_image, preprocessing

# What a file means


def test_decode_reads_bytes_paths_pictures_and_arrays(tmp_path):
  data = encode(PHOTO, 'PNG')
  (tmp_path / 'a.png').write_bytes(data)
  for form in (data, bytearray(data), memoryview(data), tmp_path / 'a.png', str(tmp_path / 'a.png'), PHOTO, PIXELS):
    got = decode(form)
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, PIXELS)
  grey = PIXELS[..., :1]
  for form in (grey, grey[..., 0]):
    np.testing.assert_array_equal(decode(form), np.repeat(grey, 3, axis=2))
  four = decode(np.concatenate([PIXELS, grey], axis=2))
  assert four.flags.c_contiguous
  np.testing.assert_array_equal(four, PIXELS)


@pytest.mark.parametrize(
  'bad', [PIXELS / 255, PIXELS.astype(np.int32), PIXELS[None], PIXELS[..., :2], PIXELS[:0], np.uint8(3), 7, None, [[1]]]
)
def test_decode_refuses_other_values_as_the_callers_mistake(bad):
  with pytest.raises(ValueError, match='uint8') as caught:
    decode(bad)
  assert not isinstance(caught.value, Unreadable)


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_decode_applies_orientation(format, orientation):
  # for each value, EXIF's table (2.3, 4.6.4 A) of what the stored rows and columns are in the upright picture
  upright = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = np.asarray(Image.open(io.BytesIO(encode(PHOTO, format))).convert('RGB'))
  data = encode(PHOTO, format, exif=exif)
  got = decode(data)
  assert got.flags.c_contiguous
  np.testing.assert_array_equal(got, upright(stored))


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('exif', [b'not a TIFF', b'II*\0', b'MM\0*\0\0\0\x08' + b'\xff\xff\x01\x12\0\x03\xff\xff'])
def test_damaged_exif_leaves_the_picture_alone(exif, format):
  np.testing.assert_array_equal(decode(encode(PHOTO, format, exif=b'Exif\0\0' + exif)), decode(encode(PHOTO, format)))


def test_alpha_is_dropped():
  rgba = PHOTO.convert('RGBA')
  rgba.putalpha(PHOTO.convert('L').point(lambda v: 255 * (v > 90)))
  np.testing.assert_array_equal(decode(encode(rgba, 'PNG')), PIXELS)
  np.testing.assert_array_equal(decode(encode(rgba, 'WEBP', lossless=True, exact=True)), PIXELS)
  la = rgba.convert('LA')
  np.testing.assert_array_equal(decode(encode(la, 'PNG')), np.repeat(np.asarray(la)[..., :1], 3, axis=2))


def test_palettes_become_their_colours():
  indexed = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), 'L').convert('P')
  indexed.putpalette([255, 0, 0, 0, 255, 0, 9, 8, 7])
  colours = np.array([[[255, 0, 0], [0, 255, 0], [9, 8, 7]], [[9, 8, 7], [0, 255, 0], [255, 0, 0]]], np.uint8)
  np.testing.assert_array_equal(decode(encode(indexed, 'PNG')), colours)
  np.testing.assert_array_equal(decode(encode(indexed, 'GIF')), colours)
  # transparency, of which Pillow warns where it is bytes, takes no colour away
  np.testing.assert_array_equal(decode(encode(indexed, 'PNG', transparency=b'\0\x80\xff')), colours)
  np.testing.assert_array_equal(decode(encode(indexed, 'PNG', transparency=1)), colours)
  np.testing.assert_array_equal(decode(indexed.convert('PA')), colours)


def test_one_bit_and_grey_give_three_equal_channels():
  bits = np.array([[1, 0, 0], [0, 1, 1]], np.uint8)
  for format in ('PNG', 'TIFF', 'BMP'):
    np.testing.assert_array_equal(
      decode(encode(Image.fromarray(bits * 255).convert('1'), format)), np.repeat(bits[..., None] * 255, 3, axis=2)
    )
  grey = PHOTO.convert('L')
  np.testing.assert_array_equal(decode(encode(grey, 'PNG')), np.repeat(np.asarray(grey)[..., None], 3, axis=2))


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'big-endian', 'PGM', 'I'])
def test_sixteen_bit_grey_keeps_its_high_byte(kind):
  values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  if kind == 'PGM':
    data = b'P5 256 256 65535\n' + values.astype('>u2').tobytes()
  elif kind == 'I':
    data = Image.fromarray(values.astype(np.int32))
  elif kind == 'big-endian':
    data = Image.fromarray(values.astype('>u2'))
  else:
    data = encode(Image.fromarray(values), kind)
  np.testing.assert_array_equal(decode(data), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def png(width, height, depth, colour, pixels):
  """A PNG file, for what Pillow does not write."""
  chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0))
    + chunk(b'IDAT', zlib.compress(pixels))
    + chunk(b'IEND', b'')
  )


def test_sixteen_bit_colour_keeps_its_high_byte():
  values = np.random.default_rng(0).integers(0, 65536, (4, 5, 3)).astype('>u2')
  rows = b''.join(b'\0' + row.tobytes() for row in values)
  np.testing.assert_array_equal(decode(png(5, 4, 16, 2, rows)), values >> 8)


def test_cmyk_is_read_with_adobes_inversion():
  # Pillow writes what Adobe does: inverted inks and an APP14 marker. White paper is no ink; full cyan takes all red.
  inks = np.zeros((16, 32, 4), np.uint8)
  inks[:, 16:, 0] = 255
  data = encode(Image.fromarray(inks, 'CMYK'), 'JPEG', quality=100)
  assert b'Adobe' in data
  got = decode(data)
  assert steps(got[:, :8], np.array([255, 255, 255])) <= 2 and steps(got[:, 24:], np.array([0, 255, 255])) <= 2
  np.testing.assert_array_equal(
    decode(encode(Image.fromarray(inks, 'CMYK'), 'TIFF'))[0, [0, 31]], [[255, 255, 255], [0, 255, 255]]
  )


@pytest.mark.parametrize('format', ['GIF', 'PNG', 'WEBP', 'TIFF', 'MPO'])
def test_the_first_frame_of_an_animation_counts(format):
  red, blue = (Image.new('RGB', (16, 16), colour) for colour in ((255, 0, 0), (0, 0, 255)))
  got = decode(encode(red, format, save_all=True, append_images=[blue, blue]))
  assert got.shape == (16, 16, 3) and steps(got, np.array([255, 0, 0])) <= 3


def test_pixels_without_a_defined_range_are_unreadable():
  values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
  with pytest.raises(Unreadable, match='floating'):
    decode(encode(Image.fromarray(values), 'TIFF'))
  for outside in (-1, 65536):
    with pytest.raises(Unreadable, match='32-bit'):
      decode(encode(Image.fromarray(np.full((2, 2), outside, np.int32)), 'TIFF'))


def test_a_picture_given_as_pil_is_not_changed():
  exif = Image.Exif()
  exif[0x0112] = 6
  image = Image.open(io.BytesIO(encode(PHOTO.convert('P'), 'PNG', exif=exif, transparency=b'\0' * 9)))
  before = image.mode, image.size, dict(image.info)
  assert decode(image).shape == (111, 73, 3)
  assert (image.mode, image.size, dict(image.info)) == before


# Damage


def test_what_cannot_be_read_says_why_in_one_line(tmp_path):
  whole = encode(PHOTO, 'JPEG')
  cases = {
    'missing': (tmp_path / 'no.jpg', 'No such file'),
    'folder': (tmp_path, 'directory'),
    'empty': (b'', 'empty'),
    'text': (b'<html>not found</html>', 'format'),
    'cut': (whole[: len(whole) // 2], 'truncated'),
    'header': (whole[:30], '.'),
    'png': (encode(PHOTO, 'PNG')[:-400], 'truncated'),
  }
  for name, (data, words) in cases.items():
    with pytest.raises(Unreadable, match=words) as caught:
      decode(data)
    assert not [part for part in ('\n', '0x', str(tmp_path)) if part in str(caught.value)], name


def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
  monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.exit('decoded a bomb'))
  with pytest.raises(Unreadable, match='400000000 pixels'):  # Pillow's own words
    decode(png(20_000, 20_000, 8, 2, b''))
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)  # as many a script does
  with pytest.raises(Unreadable, match='20000x20000 pixels.*178,956,970'):
    decode(png(20_000, 20_000, 8, 2, b''))


def test_no_warning_escapes_and_none_of_others_is_lost():
  indexed = Image.fromarray(PIXELS[..., 0]).convert('P')
  data = encode(indexed, 'PNG', transparency=bytes(range(200)))
  large = png(9_500, 9_500, 1, 0, b'')  # Pillow warns from 89 megapixels on
  with pytest.warns(Image.DecompressionBombWarning):
    Image.open(io.BytesIO(large))
  with ThreadPoolExecutor(4) as pool:
    list(pool.map(decode, [data] * 40))
    with pytest.raises(Unreadable, match='truncated'):
      pool.submit(decode, large).result()
    with pytest.raises(UserWarning, match='mine'):
      pool.submit(warnings.warn, 'mine').result()
  with pytest.raises(UserWarning, match='Palette'):
    Image.open(io.BytesIO(data)).convert('RGB')


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'TGA', 'ICO'])
def test_damaged_files_are_read_or_unreadable_and_nothing_else(format):
  rng = np.random.default_rng(5)
  whole = np.frombuffer(encode(PHOTO, format), np.uint8)
  outcomes = []
  for trial in range(40):
    data = whole.copy()
    head = len(data) if trial % 2 else 200  # headers hold the traps
    data[rng.integers(0, head, 3)] = rng.integers(0, 256, 3)
    data = data[: rng.integers(1, len(data))] if trial % 4 == 0 else data
    try:
      outcomes.append(decode(data.tobytes()).shape[2] == 3)
    except Unreadable as error:
      assert str(error) and '\n' not in str(error)
      outcomes.append(None)
  assert None in outcomes and False not in outcomes


# Evaluation


ROWS = {
  'timm_imagenet_bicubic_224': preprocessing(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
  'timm_vit_augreg_224': preprocessing(224, crop_pct=0.9),
  'hf4_vit': preprocessing(224, crop='squash', crop_pct=1.0, interpolation='bilinear'),
  'hf4_clip': preprocessing(
    (224, 224),
    crop='center_floor',
    crop_pct=1.0,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
  ),
  'tf_bilinear_224': preprocessing(224, crop='squash', crop_pct=1.0, interpolation='tf_bilinear'),
}


@pytest.mark.parametrize('photo', PHOTOS)
@pytest.mark.parametrize('name', ROWS)
def test_evaluation_equals_the_peers(name, photo):
  row, edges = ROWS[name], [0, 1, 222, 223]
  got = evaluation_image(GOLDENS / f'{photo}.png', row)
  assert got.shape == (224, 224, 3) and got.dtype == np.uint8 and got.flags.c_contiguous
  with np.load(GOLDENS / f'{name}.npz') as golden:
    parts = {'grid': got[::4, ::4], 'rows': got[edges], 'cols': got[:, edges]}
    for part, mine in parts.items():
      want = (golden[f'{photo}.{part}'] * np.float64(row['std']) + row['mean']) * 255
      # the peers' 8 bits to float32's last digit; TensorFlow's floats to the half step of our rounding
      assert abs(mine - want).max() < (0.5001 if name.startswith('tf') else 1e-4), part
    normalised = (got / 255 - row['mean']) / row['std']
    if not name.startswith('tf'):
      np.testing.assert_allclose([normalised.sum(), abs(normalised).sum()], golden[f'{photo}.sums'], atol=0.01)
      if f'{photo}.u8' in golden:
        np.testing.assert_array_equal(got, golden[f'{photo}.u8'])


def test_goldens_were_made_with_these_rows():
  for name in ('timm_imagenet_bicubic_224', 'timm_vit_augreg_224'):
    args = json.loads((GOLDENS / f'{name}.json').read_text())['args']
    assert {k: args[k] for k in ('interpolation', 'crop_pct', 'mean', 'std')} == {
      k: ROWS[name][k] for k in ('interpolation', 'crop_pct', 'mean', 'std')
    }


def test_the_middle_is_taken_as_timm_and_as_hugging_face_round_it():
  # columns count up, so the first value of the crop is where it begins; crop_pct=1 leaves the short side as it is
  for width, timm, hugging_face in ((101, 0, 0), (103, 2, 1), (105, 2, 2), (107, 4, 3)):
    image = np.repeat(np.arange(width, dtype=np.uint8)[None, :, None], 100, axis=0)
    for crop, left in (('center', timm), ('center_floor', hugging_face)):
      assert evaluation_image(image, preprocessing(100, crop=crop, crop_pct=1))[0, 0, 0] == left
      tall = evaluation_image(image.transpose(1, 0, 2), preprocessing(100, crop=crop, crop_pct=1))
      assert tall[0, 0, 0] == left


@pytest.mark.parametrize(
  'crop, crop_pct, size, resized',
  [
    # timm 1.0.31: floor(size / crop_pct); equal sides: int() of the long one; unequal: ResizeKeepRatio's round()
    ('center', 0.875, (64, 64), (73, 111)),  # 73x111 as it is: floor(64 / 0.875) = 73
    ('center', 0.9, (96, 96), (106, 161)),  # 106 * 111 / 73 = 161.2
    ('center', 0.95, (100, 100), (105, 159)),  # 105 * 111 / 73 = 159.7, cut off
    ('center', 0.875, (64, 96), (73, 111)),  # (73, 109): height decides
    ('center', 0.9, (48, 100), (73, 111)),  # (53, 111): width decides, 111 / 111 = 1
    ('center', 0.875, (80, 96), (91, 138)),  # (91, 109): height decides, 138.4
    ('center', 0.9, (40, 90), (66, 100)),  # (44, 100): width decides, 65.8 rounded
    ('squash', 0.95, (60, 60), (63, 63)),
    ('squash', 0.9, (60, 90), (66, 100)),
  ],
)
def test_evaluation_sizes_are_timms(crop, crop_pct, size, resized):
  row = preprocessing(size, crop=crop, crop_pct=crop_pct)
  want = np.asarray(PHOTO.resize(resized[::-1], Image.Resampling.BICUBIC))
  top, left = (round((r - s) / 2) for r, s in zip(resized, size))
  np.testing.assert_array_equal(evaluation_image(PHOTO, row), want[top : top + size[0], left : left + size[1]])


def test_a_picture_of_the_right_size_passes_unchanged():
  row = preprocessing((73, 111), crop_pct=1.0)
  np.testing.assert_array_equal(evaluation_image(PHOTO, row), PIXELS)
  np.testing.assert_array_equal(evaluation_image(PIXELS, row), PIXELS)


def test_tf_bilinear_has_half_pixel_centres_and_no_antialiasing():
  row = preprocessing((1, 2), crop='squash', crop_pct=1, interpolation='tf_bilinear')
  line = np.array([[0, 10, 20, 30, 40, 50, 60, 250]], np.uint8)
  np.testing.assert_array_equal(evaluation_image(line, row)[0, :, 0], [15, 55])  # halfway from 10 to 20, from 50 to 60
  row = preprocessing((1, 4), crop='squash', crop_pct=1, interpolation='tf_bilinear')
  np.testing.assert_array_equal(evaluation_image(np.array([[0, 100]], np.uint8), row)[0, :, 0], [0, 25, 75, 100])


def test_a_line_of_pixels_is_not_enlarged_into_memory():
  with pytest.raises(Unreadable, match='1x20000 pixels are too narrow'):
    evaluation_image(np.zeros((20_000, 1), np.uint8), preprocessing(224))


def test_evaluation_never_uses_opencv(monkeypatch):
  monkeypatch.setitem(sys.modules, 'cv2', None)  # importing it would fail
  for interpolation in transforms.INTERPOLATIONS:
    evaluation_image(encode(PHOTO, 'JPEG'), preprocessing(32, interpolation=interpolation))


def test_a_row_survives_json():
  row = preprocessing((np.int64(24), 32), crop='squash', crop_pct=1, mean=np.full(3, 0.5), std=(1, 1, 1))
  assert (
    json.loads(json.dumps(row))
    == row
    == {
      'size': [24, 32],
      'crop': 'squash',
      'crop_pct': 1.0,
      'interpolation': 'bicubic',
      'mean': [0.5] * 3,
      'std': [1.0] * 3,
    }
  )


@pytest.mark.parametrize(
  'bad, words',
  [
    ({'size': 0}, 'size=0'),
    ({'size': (3, 4, 5)}, 'size='),
    ({'size': 8.5}, 'size='),
    ({'crop': 'centre'}, 'center'),
    ({'interpolation': 'nearest'}, 'bicubic'),
    ({'crop_pct': 87.5}, 'crop_pct'),
    ({'crop_pct': 0}, 'crop_pct'),
    ({'mean': (127.5,) * 3}, '255'),
    ({'std': (0.5, 0.5)}, 'three'),
    ({'std': (0, 1, 1)}, 'std'),
  ],
)
def test_a_row_out_of_range_is_refused(bad, words):
  with pytest.raises(ValueError, match=words):
    preprocessing(**{'size': 8, **bad})


def test_a_program_is_not_run_and_endless_work_is_not_begun(monkeypatch):
  monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.exit('decoded it'))
  monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', lambda *args: pytest.exit('ran it'))
  with pytest.raises(Unreadable, match='PostScript is a program'):
    decode(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n')
  data = encode(PHOTO, 'JPEG', progressive=True)
  scan = data[data.rindex(b'\xff\xda') : -2]
  for form in (bytes, bytearray, memoryview):
    with pytest.raises(Unreadable, match='501 scans of 111x73 pixels or more: endless work'):
      decode(form(data[:-2] + scan * 1000 + data[-2:]))
