"""Which pictures a folder holds: ordered, compact in memory, remembered on disk.

A listing of ImageNet has 1.28 M names. As Python strings they would take 120 MB for the whole run, and listing them
takes seconds on a local disk and minutes on a network one. So names live in one block of bytes, and the listing of a
big folder is kept in the user's cache folder for as long as no directory under it changes. A folder at an address
(gs://BUCKET/NAME) is listed each time.
"""

import contextlib
import csv
import difflib
import hashlib
import os
import re
import tempfile
import time
import zipfile

import numpy as np

from vit_jax import caches, storage

CACHE_FROM = 10_000  # names; listing fewer is as fast as looking it up


class Names:
  """n byte strings in one block; `names[i]` -> bytes."""

  def __init__(self, block, ends):  # uint8 (bytes,), int64 (n,)
    self.block, self.ends = block, ends

  @classmethod
  def pack(cls, names):
    ends = np.cumsum(np.fromiter(map(len, names), np.int64, len(names)), dtype=np.int64)
    return cls(np.frombuffer(b''.join(names), np.uint8), ends)

  def __len__(self):
    return len(self.ends)

  def __getitem__(self, i):
    return self.block[self.ends[i - 1] if i else 0 : self.ends[i]].tobytes()


def nearest(word, options):
  """' Did you mean X?' for the option closest to a word, '' where none is close."""
  close = difflib.get_close_matches(word, [str(option) for option in options], n=1, cutoff=0.6)
  return f' Did you mean {close[0]!r}?' if close else ''


def number(values):  # [str or int] -> int32 (n,), [class names]
  """Labels and class names for label values: numeric order where all are integers, else alphabetic."""
  words = [str(value) for value in values]
  distinct = set(words)
  whole = all(re.fullmatch(r'0|-?[1-9]\d*', word) for word in distinct)  # '007' is a name, not a number
  classes = sorted(distinct, key=int if whole else None)
  place = {word: i for i, word in enumerate(classes)}
  return np.fromiter((place[word] for word in words), np.int32, len(words)), classes


def number_sets(sets):  # [[str or int]] -> uint8 (n, k), [class names]
  """What `number` gives for any number of labels each: 1 where a row has the class."""
  flat, classes = number([value for row in sets for value in row])
  out = np.zeros((len(sets), len(classes)), np.uint8)
  out[np.repeat(np.arange(len(sets)), list(map(len, sets))), flat] = 1
  return out, classes


def suffixes():
  """Every suffix that Pillow opens, as lower-case bytes with the dot."""
  from PIL import Image

  return frozenset(suffix.encode() for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def is_picture(name, known):  # name: bytes
  """Whether a file's name is a visible picture's: dot files and macOS's '._x' are not."""
  base = name.rpartition(b'/')[2]
  return not base.startswith(b'.') and b'.' + base.rpartition(b'.')[2].lower() in known


def folders(path):
  """Names of the visible folders in a folder, in byte order."""
  names = [name for name, folder in entries(path).items() if folder and not name.startswith('__MACOSX')]
  return sorted(names, key=os.fsencode)


def entries(path):
  """{name: whether it is a folder} of the visible folders and files in a folder."""
  if storage.is_remote(path):
    return {name: folder for name, folder in storage.entries(path).items() if not name.startswith('.')}
  with os.scandir(path) as found:
    return {e.name: e.is_dir() for e in found if not e.name.startswith('.') and (e.is_dir() or e.is_file())}


def files(path):
  """The visible files in a folder, sorted."""
  return sorted(path / name for name, folder in entries(path).items() if not folder)


def class_folders(path):
  """(names, labels int32 (n,), class names) of the pictures in DIR/CLASS/**, ordered by the bytes of CLASS/**."""
  known = suffixes()
  if storage.is_remote(path):
    return _remote_classes(path, known)
  path = os.path.abspath(path)

  def build():
    watched, parts, classes = [(path, stamp(path))], [], folders(path)
    for name in classes:
      parts.append(_walk(path, name, known, watched))
      if not parts[-1]:
        raise ValueError(f'{os.path.join(path, name)}: no picture in this class folder; add some or remove the folder.')
    labels = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    names = Names.pack([name for part in parts for name in part])
    table = Names.pack([os.fsencode(name) for name in classes])
    return {
      'block': names.block,
      'ends': names.ends,
      'labels': labels,
      'classes': table.block,
      'class_ends': table.ends,
    }, watched

  found = cached('classes', path, build)
  table = Names(found['classes'], found['class_ends'])
  classes = [os.fsdecode(table[i]) for i in range(len(table))]
  return Names(found['block'], found['ends']), found['labels'], classes


def _remote_classes(path, known):
  """What class_folders gives of a folder at an address; nothing there tells whether an earlier listing still holds."""
  classes = folders(path)
  parts = storage.each(lambda name: _remote(path, name, known), classes)
  for name, part in zip(classes, parts):
    if not part:
      raise ValueError(f'{path / name}: no picture in this class folder; add some or remove the folder.')
  labels = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
  return Names.pack([name for part in parts for name in part]), labels, classes


def _remote(root, top, known):
  """What _walk gives of a folder at an address."""
  names = [os.fsencode(f'{top}/{name}') for name in storage.files(root / top) if not re.search(r'(^|/)\.', name)]
  return sorted(name for name in names if is_picture(name, known))


def _walk(root, top, known, watched):
  """Sorted relative names (bytes) of the pictures under root/top; every directory seen joins `watched`."""
  names, stack, seen = [], [os.fsencode(top)], set()
  base = os.fsencode(root)
  while stack:
    folder = stack.pop()
    full = os.path.join(base, folder)
    status = os.stat(full)  # before listing: a later change must not pass as seen
    if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
      continue
    seen.add((status.st_dev, status.st_ino))
    watched.append((os.fsdecode(full), (status.st_mtime_ns, status.st_size)))
    inner = []
    with os.scandir(full) as entries:
      for entry in entries:
        name = entry.name
        if name.startswith(b'.'):
          continue
        if entry.is_dir():
          inner.append(folder + b'/' + name)
        elif b'.' + name.rpartition(b'.')[2].lower() in known:
          names.append(folder + b'/' + name)
    stack.extend(sorted(inner, reverse=True))
  return sorted(names)


def stamp(path):
  """(mtime_ns, size) of a path: what `cached` compares."""
  status = os.stat(path)
  return status.st_mtime_ns, status.st_size


def cached(kind, key, build):
  """`build()`'s dict of arrays, or the copy kept from an earlier start if no path that build() watched has changed.

  build: () -> ({name: array}, [(path, (mtime_ns, size))]); its 'ends' has one entry for each name. Kept as .npz (its
  checksums make a damaged copy void) in the cache folder.
  """
  folder = caches.folder() / 'listings'
  words = f'1\0{kind}\0{key}\0{sorted(suffixes())}'
  file = folder / f'{hashlib.sha256(os.fsencode(words)).hexdigest()[:32]}.npz'
  if (found := _recall(file)) is not None:
    return found
  start = time.time_ns()
  arrays, watched = build()
  newest = max(stamp[0] for _, stamp in watched)
  # A file system may stamp two changes within one tick alike: what changed just now is not trusted to stay.
  if len(arrays['ends']) >= CACHE_FROM and newest < start - 2_000_000_000:
    with contextlib.suppress(OSError):  # a full or read-only disk costs the next start only
      _keep(file, arrays, watched)
  return arrays


def _recall(file):
  try:
    with open(file, 'rb') as raw, np.load(raw, allow_pickle=False) as data:  # np.load alone leaks a damaged file
      found = {name: data[name] for name in data.files}
    paths, stamps = Names(found.pop('watched'), found.pop('watched_ends')), found.pop('stamps')
    same = all(stamp(os.fsdecode(paths[i])) == (then, size) for i, (then, size) in enumerate(stamps.tolist()))
  except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile):
    return None
  return found if same and len(found['ends']) else None


def _keep(file, arrays, watched):
  paths = Names.pack([os.fsencode(path) for path, _ in watched])
  file.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=file.parent, suffix='.part', delete=False) as part:
    try:
      np.savez(
        part,
        watched=paths.block,
        watched_ends=paths.ends,
        stamps=np.array([stamp for _, stamp in watched], np.int64),
        **arrays,
      )
      part.close()
      os.replace(part.name, file)
    except BaseException:
      part.close()
      os.unlink(part.name)
      raise


def flat_folder(path):
  """Names (bytes, sorted) of the pictures in a folder and below, relative to it."""
  if storage.is_remote(path):
    return [name[len(os.fsencode(path.name)) + 1 :] for name in _remote(path.parent, path.name, suffixes())]
  watched = []
  return [name[2:] for name in _walk(path, '.', suffixes(), watched)]


def mapping_files(path, split):
  """Text files in a split's folder or beside it that may say which class each of its pictures has, best first."""
  word = next(word for word in ('train', 'test', 'val') if split.startswith(word))
  found = [
    file
    for folder in (path, path.parent)
    if storage.is_remote(folder) == storage.is_remote(path)  # above a bucket there is nothing
    for file in files(folder)
    if file.suffix.lower() in ('.txt', '.csv') and word in file.name.lower()
  ]
  return sorted(found, key=lambda file: 'ground_truth' in file.name.lower())  # stable: these come last


def read_mapping(file, names, classes):  # names: [bytes] -> int32 (n,)
  """Labels of pictures by a mapping file: lines `NAME LABEL`, one LABEL a line, or Kaggle's LOC_val_solution.csv.

  LABEL is a class name or an index into the sorted class names. ILSVRC's ground-truth file counts classes in another
  order and needs meta.mat or map_clsloc.txt beside it.
  """
  place, labels = {name: i for i, name in enumerate(classes)}, {}
  try:
    with open(storage.fetched(file), encoding='utf-8-sig', newline='') as lines:
      split = csv.reader(lines) if file.suffix.lower() == '.csv' else map(str.split, lines)
      rows = [(number, row) for number, row in enumerate(split, 1) if row]
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f'{file} is no text with lines `NAME LABEL`: {error}') from None
  if rows and len(rows[0][1]) == 1:
    return _one_a_line(file, rows, names, place)
  for line, row in rows:
    word = (row[1].split() or [''])[0] if len(row) > 1 else ''
    label = place.get(word, int(word) if word.isdecimal() else -1)
    if not 0 <= label < len(classes):
      if line == 1 and file.suffix.lower() == '.csv':  # a header
        continue
      raise ValueError(
        f'{file}:{line}: {word!r} is neither a class of the training set nor an index below '
        f'{len(classes)} into its sorted classes.{nearest(word, classes)}'
      )
    labels[_stem(os.fsencode(row[0]))] = label
  lost = [name for name in names if _stem(name) not in labels]
  if lost:
    raise ValueError(f'{file} does not say the class of {os.fsdecode(lost[0])} ({len(lost)} of {len(names)} missing).')
  return np.fromiter((labels[_stem(name)] for name in names), np.int32, len(names))


def _stem(name):
  """A picture's name without folders and suffix: mapping files differ in whether they write them."""
  base = name.rpartition(b'/')[2]
  return base.rpartition(b'.')[0] or base


def _one_a_line(file, rows, names, place):
  if len(rows) != len(names):
    raise ValueError(f'{file} has {len(rows)} labels for {len(names)} pictures; it needs one a line, or `NAME LABEL`.')
  words = [row[0] for _, row in rows]
  if words[0].isdecimal() and words[0] not in place:
    wnids = _ilsvrc_order(file)
    words = [wnids.get(int(word), word) if word.isdecimal() else word for word in words]
  wrong = [i for i, word in enumerate(words) if word not in place]
  if wrong:
    raise ValueError(f'{file}:{rows[wrong[0]][0]}: {words[wrong[0]]!r} is not a class of the training set.')
  return np.fromiter((place[word] for word in words), np.int32, len(words))


def _ilsvrc_order(file):
  """{ILSVRC id: wnid} from the development kit's files beside its ground truth."""
  if (table := file.with_name('map_clsloc.txt')).exists():
    return {int(row[1]): row[0] for row in map(str.split, table.read_text('utf-8').splitlines()) if row}
  if (table := file.with_name('meta.mat')).exists():
    from scipy.io import loadmat

    try:
      synsets = loadmat(storage.fetched(table), squeeze_me=True)['synsets']
      return {int(row['ILSVRC2012_ID']): str(row['WNID']) for row in synsets}
    except Exception as error:  # what a parser raises for damaged bytes is not documented
      raise ValueError(f'{table} is not that of the development kit ({type(error).__name__}: {error}).') from None
  raise ValueError(
    f'{file} counts classes in ILSVRC order, which is not that of sorted wnids; put meta.mat or '
    f'map_clsloc.txt of the development kit beside it, or a file with lines `NAME WNID`.'
  )
