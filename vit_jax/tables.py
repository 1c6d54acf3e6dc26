"""Pictures named in a file or held in arrays: class folders' files, CSV and JSON lines, .npz, MNIST's IDX, digits."""

import csv
import gzip
import json
import math
import os
import pathlib
import re
import stat
import zlib

import numpy as np

from vit_jax import listing, storage
from vit_jax import npz as npz_lib

PICTURE_BYTES = 2**30


class Files:
  """Picture files by name; `read` gives the bytes, so that a vanished file shows here, as OSError."""

  def __init__(self, root, names, labels, classes, by_class=False):  # names: listing.Names, labels: int32 (n,)
    self.root, self.names, self.labels, self.classes, self.by_class = os.fspath(root), names, labels, classes, by_class

  def __len__(self):
    return len(self.names)

  def where(self, i):
    return os.path.join(self.root, os.fsdecode(self.names[i]))

  def read(self, i):
    return whole(self.where(i)), self.labels[i]

  def digest(self):
    return self.names.block.tobytes() + self.names.ends.astype('<i8').tobytes() + self.labels.astype('<i4').tobytes()


def whole(path):
  """The bytes of a picture's file; OSError for what is no plain file, which may have no end, and for over a GiB.

  Of one at an address, where nobody answers, guard.Unreachable: that is no fault of a picture.
  """
  if storage.is_remote(path):
    data = storage.read(storage.path(path), PICTURE_BYTES + 1)
    if len(data) > PICTURE_BYTES:
      raise OSError(f'{path} has more than the {PICTURE_BYTES:,} bytes that a picture may have')
    return data
  with open(path, 'rb', buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
    status = os.fstat(file.fileno())  # not blocking: a pipe would be waited for until somebody writes to it
    if not stat.S_ISREG(status.st_mode):
      raise OSError(f'{path} is no plain file')
    if status.st_size > PICTURE_BYTES:
      raise OSError(f'{path} has {status.st_size:,} bytes; a picture has at most {PICTURE_BYTES:,}')
    return file.read()


class Arrays:
  """Pictures in memory; labels count from 0, and class names default to '0', '1', ...

  labels: int (n,) or (n, 1); bool or int (n, k), 0 or 1, of pictures with any number of labels; float (n, k),
  probabilities from 0 to 1, which are distributions where each row's sum is 1.
  """

  by_class = False

  def __init__(self, images, labels, classes=None, *, name):  # uint8 (n, h, w[, 1|3|4]), (n,) or (n, k)
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
      raise ValueError(
        f'{name}: images are {images.dtype} {images.shape}; wanted uint8 (n, h, w) or (n, h, w, 1|3|4) '
        f'with values 0 to 255.'
      )
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras keeps CIFAR's
      labels = labels[:, 0]
    if labels.ndim == 2 and len(labels) == len(images):
      self.images, self.labels = images, _rows(labels, classes, name)
      self.classes = [str(i) for i in range(labels.shape[1])] if classes is None else list(classes)
      return
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
      raise ValueError(f'{name}: labels are {labels.dtype} {labels.shape}; wanted integers ({len(images)},), or 0 '
                       f'and 1 ({len(images)}, classes).')  # fmt: skip
    labels = labels.astype(np.int64)
    top = int(labels.max(initial=-1)) + 1
    if labels.min(initial=0) < 0 or (classes is not None and top > len(classes)):
      raise ValueError(
        f'{name}: labels go from {labels.min()} to {labels.max()}; wanted 0 to '
        f'{len(classes) - 1 if classes is not None else "the number of classes - 1"}.'
      )
    self.images, self.labels = images, labels.astype(np.int32)
    self.classes = [str(i) for i in range(top)] if classes is None else list(classes)

  def __len__(self):
    return len(self.images)

  def where(self, i):
    return ''

  def read(self, i):
    return self.images[i], self.labels[i]

  def digest(self):
    some = self.images[:: max(1, self.images.nbytes >> 24)]  # of big data a sample of 16 MB
    labels = self.labels.astype('<i4' if self.labels.ndim == 1 else self.labels.dtype)
    return f'{self.images.shape}'.encode() + some.tobytes() + labels.tobytes()


def _rows(labels, classes, name):  # (n, k)
  """uint8 of 0 and 1, or float32 of probabilities, of labels that are rows; ValueError for anything else."""
  if classes is not None and len(classes) != labels.shape[1]:
    raise ValueError(f'{name}: labels are {labels.shape}, and there are {len(classes)} classes; wanted a column each.')
  kind = np.float32 if np.issubdtype(labels.dtype, np.floating) else np.uint8
  if not ((labels >= 0) & (labels <= 1)).all():
    raise ValueError(f'{name}: labels {labels.shape} go from {labels.min()} to {labels.max()}; wanted 0 to 1.')
  return labels.astype(kind)


def digits(_=None):
  """All 1,797 digits, uint8 (8, 8), in the file's order."""
  with gzip.open(pathlib.Path(__file__).with_name('digits.csv.gz'), 'rt') as file:
    values = np.loadtxt(file, delimiter=',', dtype=np.uint8)  # (1797, 65): 64 values from 0 to 16, the label
  images = np.round(values[:, :64] * (255 / 16)).astype(np.uint8)
  return Arrays(images.reshape(-1, 8, 8), values[:, 64], name='digits')


def npz(paths):
  """{'train': x_train with y_train, ...} of an .npz as Keras keeps MNIST; `classes`, if there, names the labels."""
  [path] = paths
  there = _members(path)
  splits = [name[2:] for name in there if name.startswith('x_') and f'y_{name[2:]}' in there]
  if not splits:
    raise ValueError(f'{path} holds {", ".join(there) or "nothing"}; wanted x_train, y_train and x_test, y_test.')
  held = {name: _member(path, name, there) for name in there if name[2:] in splits or name == 'classes'}
  classes = held['classes'].tolist() if 'classes' in held else None
  return {
    split: lambda _, split=split: Arrays(held[f'x_{split}'], held[f'y_{split}'], classes, name=f'{path}[{split}]')
    for split in splits
  }


def unlabelled(path, split):  # -> uint8 (n, h, w[, c])
  """The pictures x_SPLIT of an .npz, or those of a file of MNIST's IDX format, with or without labels."""
  path = pathlib.Path(path)
  if path.suffix != '.npz':
    return _idx_array(path)
  there = _members(path)
  splits = [name[2:] for name in there if name.startswith('x_')]
  if split not in splits:
    raise ValueError(f'{path} has no split {split!r}; it has {", ".join(splits) or "no x_train"}.')
  return _member(path, f'x_{split}', there)


def _members(path):
  """The members of an .npz, as npz.members gives them; ValueError where it is none of plain arrays."""
  try:
    return npz_lib.members(path, npz_lib.NUMBERS + 'U')
  except ValueError as error:
    raise ValueError(f'{path} is not an .npz of plain arrays: {error}') from None


def _member(path, name, there):
  """One array of an .npz."""
  try:
    return npz_lib.read(path, name, *there[name])
  except ValueError as error:
    raise ValueError(f'{path} is not an .npz of plain arrays: {name}: {error}') from None


def idx(files):
  """{'train': ..., 'test': ...} of MNIST's IDX files in a folder's list of files, {} where there are none."""
  found = {}
  for file in files:
    if match := re.fullmatch(r'(train|t10k|test)-images([-.])idx3-ubyte(\.gz)?', file.name):
      labels = [other for other in files if re.fullmatch(rf'{match[1]}-labels[-.]idx1-ubyte(\.gz)?', other.name)]
      if not labels:
        raise FileNotFoundError(f'{file} has no labels beside it; wanted {match[1]}-labels-idx1-ubyte.')
      found['train' if match[1] == 'train' else 'test'] = lambda _, pair=(file, labels[0]): Arrays(
        _idx_array(pair[0]), _idx_array(pair[1]), name=str(pair[0])
      )
  return found


def _idx_array(path):  # magic 0 0 8 ndim, big-endian sizes, bytes
  most = os.path.getsize(path) * (1100 if path.suffix == '.gz' else 1)  # what deflate can hold
  try:
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
      head = file.read(4)
      shape = np.frombuffer(file.read(4 * head[3]), '>u4').tolist()
      size = math.prod(shape)
      data = file.read(size + 1) if len(shape) == head[3] < 5 and size <= most else b''
      if head[:3] != b'\0\0\x08' or len(data) != size:
        raise ValueError('its head does not fit its length')
  except (ValueError, IndexError, EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(f'{path} is not a whole IDX file of bytes: {error}') from None
  return np.frombuffer(data, np.uint8).reshape(shape)


def table(paths):
  """{split: ...} of a CSV file with a header or a JSON-lines file, with path, label and maybe split in each line.

  Where any label is several, `cat;dog` or in JSON a list, or the column is called `labels`, all are sets of labels.
  """
  [path] = paths
  with open(storage.fetched(path), encoding='utf-8-sig', newline='') as file:
    try:
      rows = list((_csv_rows if path.suffix.lower() == '.csv' else _json_rows)(file, path))
    except UnicodeDecodeError as error:
      raise ValueError(f'{path} is not UTF-8 text: {error}') from None
    except csv.Error as error:
      raise ValueError(f'{path} is no table: {error}') from None
  if not rows:
    raise ValueError(f'{path} names no pictures.')
  line, first, *_ = rows[0]
  there = storage.exists if storage.is_remote(path) else os.path.exists  # pathlib's raises for a name that is too long
  if not there(path.parent / first):
    raise FileNotFoundError(f'{path}:{line}: there is no {path.parent / first}; paths are relative to {path.parent}.')
  several = any(isinstance(label, list) for *_, label, _ in rows)
  if several:
    _check_sets(path, rows)
  parts = {}
  for number, picture, label, split in rows:
    if label == '' and not several:
      raise _unwanted(path, number, picture, label, split)
    label = label if isinstance(label, list) or not several else [label] * (label != '')
    parts.setdefault(split.lower(), []).append((os.fsencode(picture), label))

  def files(_, chosen):
    labels, classes = (listing.number_sets if several else listing.number)([label for _, label in chosen])
    return Files(path.parent, listing.Names.pack([name for name, _ in chosen]), labels, classes)

  return {split: lambda _, chosen=chosen: files(_, chosen) for split, chosen in parts.items()}


def _check_sets(path, rows):
  """Raises ValueError for a label without a name or twice in a line, and for a picture in two lines."""
  seen = {}
  for line, picture, labels, _ in rows:
    if picture in seen:
      raise ValueError(f'{path}:{line}: {picture} is in line {seen[picture]} already; one line has all its labels.')
    seen[picture], words = line, [str(label) for label in labels] if isinstance(labels, list) else []
    if '' in words or len(set(words)) < len(words):
      raise ValueError(f'{path}:{line}: labels {";".join(words)!r}; wanted names that come once, as in cat;dog.')
  if not any(labels for _, _, labels, _ in rows):
    raise ValueError(f'{path}: no picture has a label.')


def _csv_rows(file, path):
  """(line number, path, label or list of labels, split or 'all') of each row."""
  reader = csv.reader(file)
  head = [name.strip().lower() for name in next(reader, [])]
  column = next((name for name in ('labels', 'label') if name in head), None)
  if 'path' not in head or column is None:
    raise ValueError(f'{path}:1: the header is {",".join(head)!r}; wanted columns path,label (and maybe split).')
  where = [head.index('path'), head.index(column), head.index('split') if 'split' in head else None]
  for row in reader:
    if row and len(row) != len(head):
      raise ValueError(f'{path}:{reader.line_num}: {len(row)} columns where the header has {len(head)}.')
    if row:
      picture, label, split = (row[i].strip() if i is not None else 'all' for i in where)
      yield _checked(path, reader.line_num, picture, _parted(label, column), split)


def _json_rows(file, path):
  for line, text in enumerate(file, 1):
    if not text.strip():
      continue
    try:
      row = json.loads(text)
      column = 'labels' if 'labels' in row else 'label'
      picture, label = row['path'], row[column]
    except (ValueError, KeyError, TypeError, RecursionError):
      raise ValueError(f'{path}:{line}: wanted an object like {{"path": "cat/1.jpg", "label": "cat"}}.') from None
    label = _parted(label, column) if isinstance(label, str) else label
    yield _checked(path, line, picture, label, row.get('split', 'all'))


def _parted(label, column):
  """The list of labels in `cat;dog`, or in any text of a column `labels`; else the label itself."""
  if ';' not in label and column != 'labels':
    return label
  return [word.strip() for word in label.split(';')] if label else []


def _checked(path, line, picture, label, split):
  good = lambda one: isinstance(one, (str, int)) and not isinstance(one, bool)
  labels = label if isinstance(label, list) else [label]
  if not (isinstance(picture, str) and picture and all(map(good, labels)) and isinstance(split, str) and split):
    raise _unwanted(path, line, picture, label, split)
  return line, picture, label, split


def _unwanted(path, line, picture, label, split):
  return ValueError(
    f'{path}:{line}: path {picture!r}, label {label!r}, split {split!r}; wanted a path and a label '
    f'that is a word or an integer; a column `labels` has any number of words, as in cat;dog.'
  )
