"""Every picture of a data set, read once by all CPUs: what is damaged, what is there twice, and how many of each class.

A picture is read, its skeleton compared with itself (markers.py), decoded as training decodes it, and forgotten but
for two digests: of its bytes, and of its pixels as training sees them. MAX_BYTES and BUDGET bound what all threads hold
at a time; a picture that needs more than BUDGET by itself is decoded alone.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import stat
import threading
import warnings

import numpy as np
from PIL import Image

from vit_jax import listing, markers, sources, storage, threads, transforms

KINDS = ('empty', 'truncated', 'corrupt', 'huge', 'unreadable', 'suffix', 'labels')  # of one file's faults
MAX_BYTES = 2**30  # of a file, and of the files in all threads
BUDGET = 2**31  # bytes of the pixels in all threads, unless one picture needs more
PIXEL = 14  # bytes that a pixel takes at most: CMYK and RGB in Pillow, an array, and the pieces it is made of
TAIL, AHEAD = 4, 9  # bytes of a JPEG's code: its last ones, and more than the 8 that libjpeg looks ahead

_ALIKE = {'MPO': 'JPEG', 'DIB': 'BMP'}  # formats that go by each other's suffix
_STARTS = {b'\xff\xd8\xff': 'JPEG', b'\x89PNG\r\n\x1a\n': 'PNG', b'GIF8': 'GIF', b'II*\0': 'TIFF', b'MM\0*': 'TIFF'}


@dataclasses.dataclass
class Part:
  """The pictures of one split: names[i] -> bytes, labels[i] -> number of a class or -1, and load(i).

  split is '' outside of the splits. folder is True where names are those of files: load gives a path, and suffixes say
  something. Elsewhere names are texts, and load gives encoded bytes or a uint8 array.
  """

  split: str
  names: object
  labels: object  # int (n,)
  classes: list
  load: object
  folder: bool = True

  def name(self, i):
    return os.fsdecode(self.names[i]) if self.folder else self.names[i]


@dataclasses.dataclass
class Found:
  """What a scan found. Rows count the pictures of all parts in turn.

  Attributes:
    parts: [Part].   size: bytes of all pictures.   others: how many files are no pictures by their names.
    faults: [(row, kind, reason)] in order.   strays: [(name, kind, reason)] of other files.
    same_bytes, same_pixels: uint64 (n, 2), a digest for each row; 0 where it has a fault other than its suffix.
  """

  parts: list
  strays: list
  others: int
  same_bytes: np.ndarray
  same_pixels: np.ndarray
  size: int = 0
  faults: list = dataclasses.field(default_factory=list)

  def __post_init__(self):
    self._ends = np.cumsum([len(part.names) for part in self.parts])

  def __len__(self):
    return int(self._ends[-1])

  def place(self, row):
    """(Part, number in it) of a row."""
    number = int(np.searchsorted(self._ends, row, 'right'))
    return self.parts[number], int(row) - int(self._ends[number]) + len(self.parts[number].names)

  def name(self, row):
    """What a picture is called: a path relative to the folder, or where it lies in an archive."""
    part, i = self.place(row)
    return part.name(i)

  def twins(self):
    """[(rows, whether their bytes are equal too)] of pictures with equal pixels, in order; a row is in one at most."""
    group, counts = np.unique(self.same_pixels, axis=0, return_inverse=True, return_counts=True)[1:]
    group = group.reshape(-1)  # numpy 2.0 gives it another shape
    rows = np.flatnonzero((counts[group] > 1) & self.same_pixels.any(1))
    groups = collections.defaultdict(list)
    for row in rows.tolist():
      groups[int(group[row])].append(row)
    return [(some, len(np.unique(self.same_bytes[some], axis=0)) == 1) for some in sorted(groups.values())]


def run(name, progress=lambda items, total: items):
  """A Found for a data set: a folder of pictures in any layout, or of archives, or a file that lists or holds them.

  progress: (iterator, its length) -> the same iterator, for a line about how far it is.

  Raises ValueError or FileNotFoundError, in one line, for what is not there or holds no pictures.
  """
  parts, strays, others = _opened(os.fspath(name))
  total = sum(len(part.names) for part in parts)
  found = Found(parts, strays, others, *np.zeros((2, total, 2), np.uint64))
  with warnings.catch_warnings():  # of the whole process: Pillow's remarks, in every thread
    warnings.simplefilter('ignore')
    answers = threads.each(lambda row: _looked_at(*found.place(row)), range(total))
    for row, (faults, *digests, size) in progress(enumerate(answers), total):
      found.faults += [(row, *fault) for fault in faults]
      found.same_bytes[row], found.same_pixels[row] = (np.frombuffer(digest, np.uint64) for digest in digests)
      found.size += size
  return found


def _opened(name):
  """([Part], [(name, kind, reason)] of other files with a fault, how many more there are)."""
  storage.refuse(name, 'What is checked')
  path = pathlib.Path(name).expanduser()
  if path.is_dir():
    names, others = _walk(path)
    if names:
      strays = [(os.fsdecode(other), 'suffix', reason) for other in others if (reason := _stray(path, other))]
      left = len(others) - len(strays)
      return list(_of_folder(path, names, strays)), strays, left
  parts = []
  for split, opened in sources.containers(name).items():
    rows = opened(None)
    names = _Lazy(len(rows), lambda i, rows=rows, split=split: rows.where(i) or f'{name}[{split}] #{i}')
    one = np.ndim(rows.labels) == 1  # else any number of labels, or none that can be had without reading
    labels, classes = (rows.labels, list(rows.classes)) if one else (np.full(len(rows), -1, np.int32), [])
    parts.append(Part(split, names, labels, classes, lambda i, rows=rows: rows.read(i)[0], folder=False))
  return parts, [], 0


class _Lazy:
  """A sequence of texts that are made when they are asked for."""

  def __init__(self, length, make):
    self._length, self._make = length, make

  def __len__(self):
    return self._length

  def __getitem__(self, i):
    return self._make(i)


def _walk(root):
  """(names of pictures, names of other files) as bytes, sorted, of the visible files under a folder."""
  known, base, stack, seen, pictures, others = listing.suffixes(), os.fsencode(root), [b''], set(), [], []
  while stack:
    folder = stack.pop()
    status = os.stat(os.path.join(base, folder))
    if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
      continue
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(os.path.join(base, folder)) as entries:
      for entry in entries:
        if not entry.name.startswith((b'.', b'__MACOSX')):
          name = folder + b'/' * bool(folder) + entry.name
          (stack if entry.is_dir() else pictures if listing.is_picture(name, known) else others).append(name)
  return sorted(pictures), sorted(others)


def _stray(root, name):
  """Why a file whose name is no picture's should have one, or None."""
  path = os.path.join(os.fsencode(root), name)
  with contextlib.suppress(OSError):
    if stat.S_ISREG(os.stat(path).st_mode):
      with open(path, 'rb') as file:
        start = file.read(12)
      kinds = [kind for mark, kind in _STARTS.items() if start.startswith(mark)]
      kinds += ['WEBP'] if start[:4] == b'RIFF' and start[8:] == b'WEBP' else []
      if kinds:
        return f'a {kinds[0]} file whose name does not say so: training does not see it'
  return None


def _of_folder(root, names, strays):
  """The parts of a folder of picture files: its splits, and what lies outside; a bad mapping file is a stray."""
  inner = root
  for _ in range(3):
    if not sources.split_folders(inner):
      inner = sources.inner_folder(inner)
  splits = sources.split_folders(inner) or {'all': inner}
  train = next((splits[word] for word in sources.TRAIN if word in splits), None)
  owned = 0
  for split, folder in sorted(splits.items(), key=lambda item: (item[0] not in sources.TRAIN, item[0])):
    prefix = b'' if folder == root else os.fsencode(folder.relative_to(root)) + b'/'
    own = [name for name in names if name.startswith(prefix)]
    owned += len(own)
    yield _part(root, split, folder, own, len(prefix), train, strays)
  if owned < len(names):
    heads = tuple(os.fsencode(folder.relative_to(root)) + b'/' for folder in splits.values())
    yield _part(root, '', None, [name for name in names if not name.startswith(heads)], 0, None, strays)


def _part(root, split, folder, names, skip, train, strays):
  """A Part of picture files whose class is the folder under the split's, or what a mapping file says of flat ones."""
  classes = listing.folders(folder) if folder else []
  maps = listing.mapping_files(folder, split) if split in sources.TEST and train else []
  if maps and (maps[0].parent == folder or not classes):
    classes, labels = listing.folders(train), np.full(len(names), -1, np.int32)
    try:
      labels = listing.read_mapping(maps[0], [name[skip:] for name in names], classes)
    except (ValueError, OSError) as error:
      strays.append((os.path.relpath(maps[0], root), 'labels', str(error)))
  else:
    number = {os.fsencode(name): i for i, name in enumerate(classes)}
    found = (number.get(name[skip:].partition(b'/')[0] if b'/' in name[skip:] else b'', -1) for name in names)
    labels = np.fromiter(found, np.int32, len(names))
  packed, base = listing.Names.pack(names), os.fsencode(root)
  return Part(split, packed, labels, classes, lambda i: os.path.join(base, packed[i]))


class _Budget:
  """Waits until so many bytes may be held: `with budget(n)`. Whoever asks for more than there is waits to be alone."""

  def __init__(self, limit):
    self._limit, self._held, self._freed = limit, 0, threading.Condition()

  @contextlib.contextmanager
  def __call__(self, count):
    with self._freed:
      self._freed.wait_for(lambda: not self._held or self._held + count <= self._limit)
      self._held += count
    try:
      yield
    finally:
      with self._freed:
        self._held -= count
        self._freed.notify_all()


_FILES, _PIXELS = _Budget(MAX_BYTES), _Budget(BUDGET)
_NONE = bytes(16)


def _looked_at(part, i):
  """([(kind, reason)], digest of its bytes, of its pixels, how many bytes) of a part's picture."""
  suffix, size = pathlib.PurePath(part.name(i)).suffix if part.folder else None, 0
  try:
    loaded = part.load(i)
    if isinstance(loaded, np.ndarray):  # pixels that lie in memory
      digest = _digest(loaded, transforms.decode(loaded).shape)
      return [], digest, digest, loaded.nbytes
    if not part.folder:
      return look(io.BytesIO(loaded), len(loaded), suffix)
    status = os.stat(loaded)
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
      return [('unreadable', 'not a file that holds bytes')], _NONE, _NONE, size
    with open(loaded, 'rb') as file:
      return look(file, size, suffix)
  except OSError as error:
    return [('unreadable', error.strerror or str(error))], _NONE, _NONE, size


def look(file, size, suffix=None):
  """([(kind, reason)], digest of its bytes, of its pixels, size) of an open file of `size` bytes, whatever it holds.

  suffix: '.jpg', what its name ends with, or None where that says nothing. The digests are zeros where it has a fault
  other than its suffix.
  """
  try:
    if size > MAX_BYTES:
      raise markers.Fault('huge', f'{size:,} bytes, more than {MAX_BYTES:,}')
    with _FILES(size):
      data = file.read()
      found = markers.check(data, transforms.MAX_PIXELS)
      pixels, mode = _head(data)
      with _PIXELS(PIXEL * pixels):  # whoever has these waits for no file, so all come to their end
        picture, format = _decoded(data, mode, found.get('scan_end'))
        digests = _digest(data), _digest(picture, picture.shape)
  except markers.Fault as fault:
    return [(fault.kind, str(fault))], _NONE, _NONE, size  # not itself: its traceback would keep the pixels
  except MemoryError:
    return [('huge', 'more than the memory that there is')], _NONE, _NONE, size
  wanted = Image.registered_extensions().get((suffix or '').lower())
  alike = wanted is None or _ALIKE.get(wanted, wanted) == _ALIKE.get(format, format)
  return [] if alike else [('suffix', f'{format} inside, {wanted} by its name')], *digests, size


def _head(data):
  """(pixels, mode) that a picture's header announces; no pixels where they are too many to be decoded."""
  try:
    image = Image.open(io.BytesIO(data))
  except Exception:  # a format's parser raises whatever damaged bytes lead it to; `_decoded` will say what is wrong
    return 0, ''
  pixels = image.width * image.height
  return pixels * (pixels <= transforms.MAX_PIXELS), image.mode


def _decoded(data, mode, scan_end):  # -> (h, w, 3), format
  """A file's pixels as training sees them, and Pillow's name of its format. Raises markers.Fault."""
  image = None
  try:
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > transforms.MAX_PIXELS:
      raise Image.DecompressionBombError
    told = _watched(image, data, scan_end) if scan_end and image.width > 3 else {}
    picture = transforms.decode(image)
  except Image.DecompressionBombError:
    raise markers.Fault('huge', f'more than {transforms.MAX_PIXELS:,} pixels') from None
  except Image.UnidentifiedImageError:
    raise markers.Fault('corrupt', 'not a picture in a format that Pillow reads') from None
  except Exception as error:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    kind = 'unreadable' if mode[:1] in ('F', 'I') or getattr(image, 'format', None) == 'EPS' else 'corrupt'
    raise markers.Fault('truncated' if 'truncated' in reason else kind, reason) from None
  finally:
    getattr(image, '__dict__', {}).pop('load_read', None)  # `_watched` has made a circle, which would keep the pixels
  for where in (where for where, true in told.items() if true):
    raise markers.Fault('corrupt', f'its pixels end {where} their code does: bytes of it are damaged or missing')
  return picture, image.format


def _watched(image, data, end):
  """A dict that says, once the image is loaded, whether a baseline JPEG's pixels end before their code does, or after.

  libjpeg is silent where damage has made it read too little or too much: it makes up what is missing and skips what is
  left. So the file is handed to it in pieces, and before each a look at the last row shows whether it is decoded.
  """
  row = (0, image.height - 1, image.width, image.height)
  noise = hashlib.shake_128(b'no row of pixels').digest(image.width * len(image.getbands()))
  mark, tail = Image.frombytes(image.mode, (image.width, 1), noise).im, data[end - TAIL : end]
  done = lambda: image.im.crop(row).chop_difference(mark).getbbox() is not None
  told = {'before': True, 'after': False}

  def pieces():
    image.im.paste(mark, row)
    yield data[: end - TAIL]
    told['before'] = done()
    yield tail
    yield b'\xaa' * AHEAD  # neither a mark nor, by itself, an end
    told['after'] = not done()
    yield data[end:]

  rest = pieces()
  image.load_read = lambda _: next(rest, b'')
  return told if len(set(tail)) > 1 else {}  # padding, as some cameras write it


def _digest(data, shape=()):
  digest = hashlib.blake2b(repr(shape).encode(), digest_size=16)
  digest.update(data)
  return digest.digest()
