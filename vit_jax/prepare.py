"""`vit_jax prepare DATA OUT`: a data set with its pictures upright, RGB and small, once, so that training decodes less.

Pictures are decoded as training decodes them and scaled by Pillow's bicubic filter, which averages where it shrinks,
until the short side has so many pixels; smaller ones are not enlarged. As JPEG they have Pillow's usual halved colour
(4:2:0), and a JPEG that is small, upright and RGB already stays as it is, byte for byte; raw ones are pixels.

OUT appears when it is whole (packing.py); shards.py says what it holds. A command that was interrupted goes on from the
shards that are done, unless the list of pictures, the labels, what is asked for or a version has changed.
"""

import contextlib
import importlib.metadata
import io
import os
import pathlib

import numpy as np
from PIL import Image

from vit_jax import console, diskfull, packing, records, shards, sources, storage, threads, transforms

SAMPLE = 32  # pictures that say how much room is needed
EDGE = 2**17  # bytes of a shard beside its records
QUALITY = 95
PACKAGES = 'vit_jax', 'pillow', 'numpy', 'array_record'
RESAMPLING = "Pillow's bicubic, antialiased; never enlarged"


def command(argv):
  """Writes a data set once more, with small upright pictures, that trains by the same words and is read faster."""
  parser = console.Parser('prepare', command.__doc__)
  parser.add_argument('data', metavar='DATA', help='DIR, tfds:NAME, FILE.csv, ...: see vit_jax list datasets')
  parser.add_argument('out', metavar='OUT', help='the folder to write; must not exist')
  parser.add_argument('--short_side', type=int, default=256, help='pixels, of larger pictures (default: %(default)s)')
  parser.add_argument(
    '--format', choices=shards.KINDS, default='jpeg', help='raw needs no decoder (default: %(default)s)'
  )
  parser.add_argument('--quality', type=int, help=f'of jpeg, 1 to 100 (default: {QUALITY})')
  parser.add_argument('--split', action='append', metavar='SPLIT', help='train, test[:500], ...; may be given again '
                      '(default: all that there are)')  # fmt: skip
  args = parser.parse_args(argv)
  made = run(args.data, args.out, short_side=args.short_side, kind=args.format, quality=args.quality,
             splits=args.split,
             progress=lambda items, total: console.progress(items, 'prepare', total))  # fmt: skip
  bad = [f'{name}: {reason}' for one in made['splits'].values() for name, reason in one['unreadable']]
  total = sum(one['examples'] for one in made['splits'].values())
  size = sum(sum(one['bytes']) for one in made['splits'].values())
  told = ', '.join(f'{one["examples"] - one["missing"]:,} {split}' for split, one in made['splits'].items())
  print(f'{args.out}: {told} pictures, {diskfull.text(size)}')
  return console.unread(bad, total)


def run(name, out, *, short_side=256, kind='jpeg', quality=None, splits=None, progress=lambda items, total: items):
  """Writes a data set that sources.open_source knows as a folder `out` that it knows too; the content of its page.

  short_side: pixels.   kind: 'jpeg' or 'raw'.   quality: of JPEG, None = 95.   splits: of the data set, with slices if
  need be; None = all, each under its name, and what is not split stays so.   progress: (iterator, its length)
  -> the same iterator.

  Raises ValueError or FileNotFoundError, in one line and before anything is written, for what is not there or does not
  fit, or where `out` is there; diskfull.DiskFull where the disk is too small; ValueError where no picture is readable.
  """
  storage.refuse(out, 'Prepared data')
  out = pathlib.Path(os.path.abspath(pathlib.Path(out).expanduser()))
  quality = _checked(name, out, short_side=short_side, kind=kind, quality=quality)
  shards.library()
  parts, whole = _parts(os.fspath(name), splits)
  page = {
    'format': shards.FORMAT, 'kind': kind, 'short_side': short_side, 'quality': quality, 'resampling': RESAMPLING,
    'source': os.fspath(name), 'whole': whole, 'versions': _versions(),
  }  # fmt: skip
  folder = out.with_name(f'{out.name}.preparing')

  def make(part, i):
    try:
      example = part[i]
      return record(example['image'], short_side=short_side, kind=kind, quality=quality), example['label'], None
    except (transforms.Unreadable, OSError) as error:  # what training leaves out
      return b'', None, ' '.join(str(error).split())

  _check_room(parts, make, out, folder)
  try:
    with packing.held(folder, out):
      return packing.write(folder, out, parts, make, page, progress)
  except Exception as error:
    reason = diskfull.cause(error)
    if reason is None:
      raise
    raise diskfull.DiskFull(f'{folder} is not whole ({reason}): make room, and the same command goes on.') from error


def record(image, *, short_side, kind, quality):
  """The record (shards.py) of a picture in any form that transforms.decode takes; raises as it does."""
  pixels = transforms.decode(image)
  h, w = pixels.shape[:2]
  if min(h, w) > short_side:
    scale = short_side / min(h, w)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
  elif kind == 'jpeg' and isinstance(image, bytes) and _plain_jpeg(image):
    return image
  if kind == 'raw':
    return shards.raw(pixels)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'JPEG', quality=quality)
  return file.getvalue()


def _plain_jpeg(data):
  """Whether encoded bytes, which can be decoded, are a JPEG of three colours that needs no turning."""
  with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:  # damaged EXIF raises anything
    return image.format == 'JPEG' and image.mode == 'RGB' and image.getexif().get(0x0112, 1) == 1
  return False


def _checked(name, out, *, short_side, kind, quality):
  """The quality; ValueError for arguments that are out of range or do not go together, or a place that is taken."""
  if short_side < 1:
    raise ValueError(f'--short_side={short_side}: a number of pixels from 1 is wanted.')
  if kind not in shards.KINDS:
    raise ValueError(f'--format={kind}: choose from {", ".join(shards.KINDS)}.')
  if kind == 'raw' and quality is not None:
    raise ValueError(f'--quality={quality} is of JPEG, and --format=raw keeps pixels as they are; leave it out.')
  quality = QUALITY if quality is None and kind == 'jpeg' else quality
  if quality is not None and not 1 <= quality <= 100:
    raise ValueError(f'--quality={quality}: 1 to 100 is wanted.')
  if os.path.lexists(out):
    raise ValueError(f'{out} is there already; name another OUT, or remove it.')
  data = os.path.realpath(os.path.expanduser(name))
  if os.path.isdir(data) and os.path.realpath(out).startswith(os.path.join(data, '')):
    raise ValueError(f'{out} lies in {name} and would be taken for a part of it; name an OUT elsewhere.')
  return quality


def _versions():
  """{package: version} of what made the pictures."""
  installed = {one.metadata['Name'].lower(): one.version for one in importlib.metadata.distributions()}
  return {name: installed[name] for name in PACKAGES if name in installed}


def _parts(name, splits):
  """({name of a split: source}, whether a test split may still be held out of the one that there is)."""
  if splits is None and name == 'digits':
    splits = ['train', 'test']  # which are fixed
  if splits is not None:
    parts = {}
    for split in splits:
      key = split.partition('[')[0]
      if key in parts:
        raise ValueError(f'--split={split}: there is a split {key!r} already, and OUT has one of each name.')
      classes = next(iter(parts.values())).classes if parts else None
      parts[key] = sources.open_source(name, split, classes=classes)
    whole = False
  else:
    found, parts = sources.containers(name), {}
    for split in sorted(found, key=lambda split: split not in sources.TRAIN):  # others may count in its classes
      rows = found[split](next(iter(parts.values())).classes if parts else None)
      if rows.labels is not None and rows.labels.min(initial=0) < 0:
        raise ValueError(f'{name}[{split}] has examples without a label (-1); name others by --split.')
      parts[split] = sources.Source(rows, np.arange(len(rows)), rows.classes, f'{name}[{split}]')
    whole = not isinstance(found, records.Prepared)
  for split, part in parts.items():
    if not shards.NAME.fullmatch(split):
      raise ValueError(f'{name} has a split {split!r}, and a file cannot be called so; name others by --split.')
    if not len(part):
      raise ValueError(f'{name}: split {split!r} has no examples.')
  return parts, whole


def _check_room(parts, make, out, folder):
  """Raises diskfull.DiskFull where some of the pictures say that all will not find room, less what is there already."""
  place = next(parent for parent in out.parents if parent.is_dir())
  there = sum(file.stat().st_size for file in folder.glob('*')) if folder.is_dir() else 0
  needed = 0
  for part in parts.values():
    some = np.unique(np.linspace(0, len(part) - 1, SAMPLE).astype(int)).tolist()
    made = threads.each(lambda i, part=part: make(part, i), some, ahead=packing.AHEAD)
    sizes = [len(data) for data, _, reason in made if reason is None]
    needed += len(part) * (sum(sizes) / max(1, len(sizes)) + 64) + EDGE * -(-len(part) // packing.per(part))
  free = diskfull.free(place)
  if needed > there + free:
    raise diskfull.DiskFull(
      f'{out} needs about {diskfull.text(needed)}, and {diskfull.text(free)} are free in {place}; choose another disk, '
      'a smaller --short_side, or --format=jpeg.'
    )
