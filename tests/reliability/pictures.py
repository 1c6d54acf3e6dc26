"""Plants faults among healthy pictures, and counts those that `vit_jax check` finds.

  python tests/reliability/pictures.py --faults=200 [--healthy=400] [--seed=0] [--data=cifar10.npz] [--folder=DIR]

Healthy are pieces of photographs in every form that a data set may hold, hard ones among them (HEALTHY). Each fault is
a fresh piece, spoilt by one of FAULTS. A fault counts as found if the JSON of the command names it under its path and
its kind, a false alarm is whatever else it names. The healthy ones are checked alone first. With --folder they stay.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import pathlib
import random
import shutil
import struct
import sys
import tempfile
import zlib

import numpy as np
from PIL import Image, ImageCms

from vit_jax import cli

ROOT = pathlib.Path(__file__).absolute().parent.parent
PHOTOGRAPHS = [ROOT / 'chelsea.jpg', *sorted((ROOT / 'goldens' / 'preproc').glob('*.png'))]
CLASSES = [f'class {i:02}' for i in range(40)]


@functools.cache
def photographs():
  """The RGB pictures that pieces are cut from."""
  return [Image.open(path).convert('RGB') for path in PHOTOGRAPHS]


class Pieces:
  """Pieces of photographs, no two alike: `piece()` -> RGB PIL.Image; with a file of arrays its pictures too."""

  def __init__(self, rng, data=None):
    self.rng = rng
    self.more = np.load(data)['x_train'] if data else ()
    self.taken = set()

  def __call__(self, low=24, high=150):
    rng = self.rng
    if len(self.more) and rng.random() < 0.3:
      number = rng.randrange(len(self.more))
      if number not in self.taken:
        self.taken.add(number)
        return Image.fromarray(self.more[number]).convert('RGB')
    photograph = rng.choice(photographs())
    left, top = (rng.uniform(0, side * 0.5) for side in photograph.size)
    box = left, top, left + rng.uniform(0.3, 0.5) * photograph.width, top + rng.uniform(0.3, 0.5) * photograph.height
    return photograph.resize((rng.randint(low, high), rng.randint(low, high)), Image.Resampling.BICUBIC, box)


def encode(image, format, **options):
  """The bytes of a file."""
  stream = io.BytesIO()
  image.save(stream, format, **options)
  return stream.getvalue()


def exif(image, thumbnail=True):
  """EXIF with an orientation and, as cameras write it, a JPEG in it, whose marks are none of the file's."""
  tags = Image.Exif()
  tags[0x0112], tags[0x010F] = 6, 'A camera'
  small = encode(image.resize((16, 12)), 'JPEG')
  return tags.tobytes() + (small if thumbnail else b'')


def chunk(kind, data):
  """A chunk of a PNG."""
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(size, depth, colour, rows, *, interlaced=0, pieces=1):
  """A PNG of filtered rows, for what Pillow does not write; its pixels in so many IDAT chunks."""
  data = zlib.compress(rows)
  cut = -(-len(data) // pieces)
  header = struct.pack('>IIBBBBB', *size, depth, colour, 0, 0, interlaced)
  body = b''.join(chunk(b'IDAT', data[i : i + cut]) for i in range(0, len(data), cut))
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + body + chunk(b'IEND', b'')


def interlaced_png(image):
  """An Adam7 PNG."""
  pixels, rows = np.asarray(image), b''
  for dx, dy, x, y in (
    (8, 8, 0, 0),
    (8, 8, 4, 0),
    (4, 8, 0, 4),
    (4, 4, 2, 0),
    (2, 4, 0, 2),
    (2, 2, 1, 0),
    (1, 2, 0, 1),
  ):
    part = pixels[y::dy, x::dx]
    rows += b''.join(b'\0' + line.tobytes() for line in part) if part.size else b''
  return png(image.size, 8, 2, rows, interlaced=1)


def wide(image):
  """16-bit values of a picture, with a low byte that says something."""
  return np.asarray(image, np.uint16) * 256 + np.arange(image.width, dtype=np.uint16)[None, :, None] % 251


def colour_png(image):
  """A PNG of 16 bits a channel."""
  return png(image.size, 16, 2, b''.join(b'\0' + row.astype('>u2').tobytes() for row in wide(image)), pieces=3)


def indexed(image):
  return image.convert('P', palette=Image.Palette.ADAPTIVE)


def frames(image, count=3):
  return dict(save_all=True, append_images=[image.rotate(90 * i) for i in range(1, count)])


def clear(image):
  """The picture with an alpha channel."""
  image = image.convert('RGBA')
  image.putalpha(image.convert('L').point(lambda v: 255 * (v > 90)))
  return image


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()

# suffix and what makes the bytes; the tests and the fuzzer use them too
PLAIN = {
  'jpg': lambda p: encode(p, 'JPEG'),
  'png': lambda p: encode(p, 'PNG'),
  'gif': lambda p: encode(indexed(p), 'GIF'),
  'webp': lambda p: encode(p, 'WEBP'),
  'bmp': lambda p: encode(p, 'BMP'),
  'tif': lambda p: encode(p, 'TIFF'),
}
HEALTHY = [
  *PLAIN.items(),
  ('JPG', lambda p: encode(p, 'JPEG', exif=exif(p))),
  ('jpeg', lambda p: encode(p, 'JPEG', progressive=True, icc_profile=PROFILE)),
  ('JPEG', lambda p: encode(p, 'JPEG', optimize=True, subsampling=0, comment=b'\xff\xd8\xff\xda\xff\xd9')),
  ('jpg', lambda p: encode(p.convert('L'), 'JPEG', quality=98)),
  ('jpg', lambda p: encode(p.convert('CMYK'), 'JPEG')),
  ('jpg', lambda p: encode(p.convert('CMYK'), 'JPEG', progressive=True)),
  ('jpg', lambda p: encode(p, 'JPEG', restart_marker_rows=1)),
  ('jfif', lambda p: encode(p, 'JPEG', restart_marker_blocks=3, progressive=True, subsampling=1)),
  ('jpg', lambda p: encode(p, 'JPEG', quality=5)),
  ('jpg', lambda p: encode(p, 'JPEG') + encode(p.resize((20, 20)), 'JPEG')),
  ('jpg', lambda p: encode(p, 'JPEG') + bytes(1000)),
  ('jpg', lambda p: encode(p, 'MPO', **frames(p))),
  ('jpg', lambda p: encode(p.resize((2, 2)).resize(p.size, 0), 'JPEG', optimize=True)),
  ('PNG', lambda p: encode(indexed(p), 'PNG', transparency=bytes(range(100)))),
  ('png', lambda p: encode(p.convert('1'), 'PNG')),
  ('png', lambda p: encode(clear(p), 'PNG', exif=exif(p, False), icc_profile=PROFILE)),
  ('png', lambda p: encode(clear(p).convert('LA'), 'PNG')),
  ('png', lambda p: encode(Image.fromarray(wide(p)[..., 1].copy()), 'PNG')),
  ('png', colour_png),
  ('png', interlaced_png),
  ('png', lambda p: encode(p, 'PNG', **frames(p))),
  ('png', lambda p: encode(p, 'PNG') + b'\0' * 7),
  ('gif', lambda p: encode(indexed(p), 'GIF', **frames(p), duration=40, loop=0)),
  ('GIF', lambda p: encode(p.convert('L'), 'GIF', transparency=7, comment=b'; a comment ;')),
  ('webp', lambda p: encode(clear(p), 'WEBP', lossless=True, exact=True)),
  ('webp', lambda p: encode(p, 'WEBP', **frames(p))),
  ('WebP', lambda p: encode(clear(p), 'WEBP', exif=exif(p, False), icc_profile=PROFILE)),
  ('bmp', lambda p: encode(indexed(p), 'BMP')),
  ('bmp', lambda p: encode(p.convert('1'), 'BMP')),
  ('BMP', lambda p: encode(clear(p), 'BMP')),
  ('tiff', lambda p: encode(p, 'TIFF', compression='tiff_lzw')),
  ('tif', lambda p: encode(p, 'TIFF', compression='tiff_adobe_deflate', exif=exif(p, False))),
  ('tif', lambda p: encode(p, 'TIFF', compression='jpeg')),
  ('TIF', lambda p: encode(p.convert('1'), 'TIFF', compression='group4')),
  ('tif', lambda p: encode(p, 'TIFF', **frames(p))),
  ('tif', lambda p: encode(Image.fromarray(wide(p)[..., 0].copy()), 'TIFF')),
  ('tif', lambda p: encode(p.convert('CMYK'), 'TIFF', big_tiff=True)),
  ('ppm', lambda p: encode(p, 'PPM')),
  ('tga', lambda p: encode(p, 'TGA')),
  ('ico', lambda p: encode(p.resize((48, 48)), 'ICO', sizes=[(48, 48)])),
  ('jp2', lambda p: encode(p, 'JPEG2000')),
]


def tiny(colour, suffix):
  """A picture of one pixel."""
  format = {'jpg': 'JPEG', 'tif': 'TIFF'}.get(suffix, suffix.upper())
  return encode(Image.new('RGB', (1, 1), colour), format)


def truncated(piece, rng):
  suffix = rng.choice(list(PLAIN))
  data = PLAIN[suffix](piece)
  least = {'png': 12, 'bmp': 1}.get(suffix, 1)  # cut by no more than this, a file lacks nothing but its end mark
  cut = len(data) - least if rng.random() < 0.2 else rng.randint(20, len(data) - least)
  return suffix, data[:cut]


def flipped(piece, rng):
  """A bit of a PNG: each chunk has its checksum."""
  data = bytearray(encode(piece, 'PNG'))
  data[rng.randrange(37, len(data) - 12)] ^= 1 << rng.randrange(8)
  return 'png', bytes(data)


def zeroed(piece, rng):
  data = bytearray(encode(piece, 'PNG'))
  start = rng.randrange(60, len(data) - 100)
  data[start : start + 64] = bytes(64)
  return 'png', bytes(data)


def without_code(piece, rng):
  """A baseline JPEG, of whose code a few hundred bytes are missing."""
  data = encode(piece.resize((120, 120)), 'JPEG', quality=90)
  start = data.index(b'\xff\xda') + 200
  count = rng.randint(300, 600)
  return 'jpg', data[:start] + data[start + count :]


def without_restart(piece, rng):
  """A JPEG of which everything between two restart marks is missing."""
  data = encode(piece.resize((120, 120)), 'JPEG', restart_marker_rows=1)
  number = rng.randrange(5)
  start, end = data.index(bytes([0xFF, 0xD0 + number])), data.index(bytes([0xFF, 0xD1 + number]))
  return 'jpg', data[:start] + data[end:]


def foreign(piece, rng):
  """A block of another file in a progressive JPEG, as a broken disk leaves it."""
  data, other = encode(piece, 'JPEG', progressive=True, quality=95), encode(piece.rotate(90), 'JPEG')
  middle = len(data) // 2
  return 'jpg', data[:middle] + other[:700] + data[middle + 700 :]


def segment(piece, rng):
  """A JPEG in whose head a segment has lost its mark or its length."""
  data = bytearray(encode(piece, 'JPEG'))
  start = data.index(rng.choice([b'\xff\xdb', b'\xff\xc0', b'\xff\xc4', b'\xff\xda']))
  at = start + rng.choice([0, 2])
  data[at : at + 2] = b'\0\0'
  return 'jpg', bytes(data)


def without_chunk(piece, rng):
  """A PNG that lacks one of its IDAT chunks, the others being right."""
  rows = b''.join(b'\0' + row.tobytes() for row in np.asarray(piece))
  data = png(piece.size, 8, 2, rows, pieces=4)
  starts = [i for i in range(len(data)) if data[i : i + 4] == b'IDAT']
  one = rng.randrange(3)
  return 'png', data[: starts[one] - 4] + data[starts[one + 1] - 4 :]


def nonsense(piece, rng):
  """No picture at all, by a picture's name."""
  suffix = rng.choice(['jpg', 'png', 'gif', 'tif', 'webp'])
  page = b'<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>'
  return suffix, rng.choice([page, b'PK\x03\x04' + bytes(100), rng.randbytes(3000), bytes(5000)])


def blocks(piece, rng):
  """A GIF, WebP, BMP or TIFF whose numbers lead nowhere."""
  suffix = rng.choice(['gif', 'webp', 'bmp', 'tif'])
  data = bytearray(PLAIN[suffix](piece))
  if suffix == 'gif':  # the block behind its colour table
    data[13 + 3 * 2 ** ((data[10] & 7) + 1)] = 0x77
  elif suffix == 'webp':
    data[16:20] = struct.pack('<I', len(data))
  elif suffix == 'bmp':
    data[10:14] = struct.pack('<I', 20)
  else:  # strip byte counts become none
    [at] = struct.unpack_from('<I', data, 4)
    for place in range(at + 2, at + 2 + 12 * struct.unpack_from('<H', data, at)[0], 12):
      if struct.unpack_from('<H', data, place)[0] == 279:
        struct.pack_into('<H', data, place, 65001)
  return suffix, bytes(data)


def huge(piece, rng):
  """A header that announces more pixels than anybody wants, or more scans than a decoder gets through."""
  suffix = rng.choice([*PLAIN, 'scans'])
  if suffix == 'scans':
    data = encode(piece, 'JPEG', progressive=True)
    last = data[data.rindex(b'\xff\xda') : -2]
    return 'jpg', data[:-2] + last * 600 + data[-2:]
  if suffix == 'png':
    return suffix, png((rng.randint(20_000, 60_000), 20_000), 8, 2, bytes(1000))
  if suffix == 'webp':
    data = bytearray(encode(clear(piece), 'WEBP', icc_profile=PROFILE))
    data[24:30] = (16_382).to_bytes(3, 'little') * 2
    return suffix, bytes(data)
  data = bytearray(PLAIN[suffix](piece))
  if suffix == 'jpg':
    at = data.index(b'\xff\xc0')
    data[at + 5 : at + 9] = struct.pack('>HH', 60_000, 60_000)
  elif suffix == 'gif':
    data[6:10] = b'\xff' * 4
  elif suffix == 'bmp':
    data[18:26] = struct.pack('<ii', 30_000, 30_000)
  else:
    [at] = struct.unpack_from('<I', data, 4)
    for place in range(at + 2, at + 2 + 12 * struct.unpack_from('<H', data, at)[0], 12):
      if struct.unpack_from('<H', data, place)[0] in (256, 257):
        struct.pack_into('<HII', data, place + 2, 4, 1, 100_000)
  return suffix, bytes(data)


def misnamed(piece, rng):
  inside = rng.choice(list(PLAIN))
  name = rng.choice([suffix for suffix in [*PLAIN, 'JPEG', 'txt', 'part', 'jpg_large'] if suffix != inside and not (
    inside == 'jpg' and suffix == 'JPEG' or inside == 'bmp' and suffix in ('txt', 'part', 'jpg_large'))])  # fmt: skip
  return name, PLAIN[inside](piece)


def unreadable(piece, rng):
  return 'tif', encode(Image.fromarray(np.asarray(piece.convert('L'), np.float32) / 255), 'TIFF')


def same_pixels(piece, rng):
  """Two files of one picture whose bytes differ: (suffix, bytes), (suffix, bytes)."""
  if rng.random() < 0.4:
    plain = encode(piece, 'JPEG')
    return ('jpg', plain), ('jpg', plain[:2] + b'\xff\xfe\0\x08a note' + plain[2:])
  lossless = [
    ('png', encode(piece, 'PNG')), ('bmp', encode(piece, 'BMP')), ('webp', encode(piece, 'WEBP', lossless=True)),
    ('tif', encode(piece, 'TIFF', compression='tiff_lzw')), ('png', encode(piece, 'PNG', compress_level=1, dpi=(9, 9))),
  ]  # fmt: skip
  return tuple(rng.sample(lossless, 2))


def same_bytes(piece, rng):
  one = rng.choice(list(PLAIN.items()))
  data = one[1](piece)
  return (one[0], data), (one[0], data)


# kind of a file's fault: what spoils a piece -> (suffix, bytes)
FILES = {
  'empty': [lambda piece, rng: (rng.choice(list(PLAIN)), b'')],
  'truncated': [truncated] * 3,
  'corrupt': [
    flipped, zeroed, without_code, without_restart, foreign, segment, without_chunk, nonsense, blocks,
  ],
  'huge': [huge] * 2,
  'suffix': [misnamed] * 2,
  'unreadable': [unreadable],
}  # fmt: skip
KINDS = [(kind, make) for kind, makers in FILES.items() for make in makers]
KINDS += [(kind, make) for kind in ('duplicate', 'leak') for make in (same_bytes, same_pixels)]
KINDS += [('class', None), ('unreadable', None)]


def write(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def healthy(folder, pieces, count):
  """Writes at least `count` healthy pictures: train/CLASS/ and test/CLASS/, each class in both; -> how many."""
  rng, number = pieces.rng, 0
  for number in range(max(count, 2 * len(CLASSES))):
    suffix, make = HEALTHY[number % len(HEALTHY)]
    split, name = ('train', 'test')[number // len(CLASSES) % 2], CLASSES[number % len(CLASSES)]
    inner = rng.choice(['', '', '', 'below/'])
    stem = rng.choice(['IMG_{}', 'ein Bild {}', 'été.{}.small', '图{}', "it's {}"]).format(number)
    write(folder / split / name / f'{inner}{stem}.{suffix}', make(pieces()))
  for i, suffix in enumerate(['jpg', 'png', 'gif', 'bmp', 'tif', 'webp']):
    write(folder / 'train' / CLASSES[0] / f'tiny {i}.{suffix}', tiny((40 * i, 255 - 40 * i, 90 * (i % 3)), suffix))
  write(folder / 'train' / CLASSES[1] / 'notes.txt', b'These are no pictures.\n')
  write(folder / 'train' / CLASSES[1] / '.DS_Store', bytes(8))
  return number + 1 + 6


def plant(folder, pieces, count):
  """Plants faults of all kinds in turn; -> {(kind, path or both paths of a pair)}."""
  rng, planted = pieces.rng, set()
  for number in range(count):
    kind, make = KINDS[number % len(KINDS)]
    split, name = rng.choice(['train', 'test']), rng.choice(CLASSES)
    place = f'{split}/{name}/fault {number}'
    if make in (same_bytes, same_pixels):
      other = {'train': 'test', 'test': 'train'}[split] if kind == 'leak' else split
      names = []
      for i, (suffix, data) in enumerate(make(pieces(), rng)):
        names.append(f'{(split, other)[i]}/{name}/fault {number} {i}.{suffix}')
        write(folder / names[-1], data)
      planted.add((kind, '|'.join(sorted(names))))
    elif kind == 'class' and number % 2:
      (folder / split / f'no pictures {number}').mkdir()
      planted.add((kind, f'{split}/no pictures {number}'))
    elif kind == 'class':
      write(folder / 'test' / f'untrained {number}' / 'fine.png', encode(pieces(), 'PNG'))
      planted.add((kind, f'test/untrained {number}'))
    elif make is None:
      link = folder / f'{place}.jpg'
      (os.mkfifo if number % 2 else lambda path: os.symlink('nowhere', path))(link)
      planted.add((kind, f'{place}.jpg'))
    else:
      suffix, data = make(pieces(), rng)
      write(folder / f'{place}.{suffix}', data)
      planted.add((kind, f'{place}.{suffix}'))
  return planted


def check(folder):
  """({(kind, path or paths)} that `vit_jax check --json` names, its exit code)."""
  with contextlib.redirect_stdout(io.StringIO()) as out:
    code = cli.main(['check', str(folder), '--json'])
  found = json.loads(out.getvalue())
  names = {(fault['kind'], fault['path']) for fault in found['faults']}
  names |= {(group['kind'], '|'.join(sorted(group['paths']))) for group in found['duplicates']}
  return names, code


def trial(folder, *, faults, healthy_count=400, seed=0, data=None, say=print):
  """(found, planted, false alarms, healthy) of one folder that is written and checked."""
  pieces = Pieces(random.Random(seed), data)
  whole = healthy(folder, pieces, healthy_count)
  alarms, code = check(folder)
  for alarm in sorted(alarms):
    say('false alarm:', *alarm)
  assert code == bool(alarms)
  planted = plant(folder, pieces, faults)
  found, code = check(folder)
  assert code == bool(found)
  for fault in sorted(planted - found):
    say('not found:', *fault, sorted(kind for kind, name in found if name == fault[1]))
  for alarm in sorted(found - planted - alarms):
    say('false alarm among faults:', *alarm)
  return len(planted & found), len(planted), len(alarms | (found - planted)), whole


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--faults', type=int, default=200)
  parser.add_argument('--healthy', type=int, default=400)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--data', help='an .npz with x_train, whose pictures are taken too')
  parser.add_argument('--folder', type=pathlib.Path, help='where to write; is emptied first')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    folder = args.folder or pathlib.Path(scratch) / 'pictures'
    shutil.rmtree(folder, ignore_errors=True)
    found, planted, alarms, whole = trial(
      folder, faults=args.faults, healthy_count=args.healthy, seed=args.seed, data=args.data
    )
  print(f'{found} of {planted} planted faults found, {alarms} false alarms among {whole} healthy files')
  return int(found < planted or alarms > 0)


if __name__ == '__main__':
  sys.exit(main())
