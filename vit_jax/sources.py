"""Where examples come from: the embedded digits, folders, tables, archives, prepared data sets, arrays in memory.

A source is a sequence that any number of threads may read:
  len(s), s[i] -> {'image': bytes (an encoded picture) or uint8 (h, w[, c]), 'label': int, or a row of s.labels()}
  s.describe(i) -> where example i lies, for messages
  s.classes     -> [class name], in the order of the labels
  s.labels()    -> int32 (n,); uint8 (n, k) of 0 and 1 where pictures have any number of labels, float32 (n, k) where
                   they have probabilities; None where only reading the examples would tell (tfds)
  s.fingerprint() -> sha256 of names, labels and sizes: equal on every machine that holds the same data
An example that cannot be read raises OSError (a vanished file, a cut archive); decoding is left to the caller.

The embedded digits are the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository, doi 10.24432/C50P49, CC BY 4.0: 1,797 pictures of 8x8 with values 0 to 16, here 0 to 255.
"""

import functools
import hashlib
import os
import re

import numpy as np

from vit_jax import archives, listing, records, shards, storage, tables

TRAIN, TEST = ('train', 'training'), ('test', 'testing', 'val', 'validation', 'valid')
SEED = 0  # of every split and slice: they belong to the data
KNOWN = {'tfds:imagenet2012': ('train', 'validation', 1_281_167)}  # what splits says without looking


class Source:
  """Rows `index` of a container, with labels counted in `classes`; see the module's docstring.

  Containers (Files, Arrays in tables.py; Tar, Parquet in archives.py; Examples in records.py) have len, read(i) ->
  (image, label), where(i) -> str, labels (as a source's), classes, digest() -> bytes, and by_class: whether the order
  of their rows may follow the classes. Those of shards.py have `missing`, the rows that have no picture.
  """

  def __init__(self, rows, index, classes, title):
    self.classes, self.title, self._rows, self._index = list(classes), title, rows, index
    self.by_class = rows.by_class
    place = {name: i for i, name in enumerate(self.classes)}
    used = range(len(rows.classes)) if rows.labels is None else _used(rows.labels[index])
    lost = [rows.classes[i] for i in used if rows.classes[i] not in place]
    if lost:
      more = f' and {len(lost) - 5} more' if len(lost) > 5 else ''
      raise ValueError(
        f'{title} has classes that the training set lacks: {", ".join(lost[:5])}{more}.'
        f'{listing.nearest(lost[0], self.classes)}'
      )
    self._label = np.array([place.get(name, -1) for name in rows.classes], np.int32)

  def __len__(self):
    return len(self._index)

  def __getitem__(self, i):
    image, label = self._rows.read(int(self._index[i]))
    return {'image': image, 'label': int(self._label[label]) if np.ndim(label) == 0 else self._row(label)}

  def describe(self, i):
    return self._rows.where(int(self._index[i])) or f'{self.title} #{i}'

  def labels(self):
    if self._rows.labels is None:
      return None
    labels = self._rows.labels[self._index]
    return self._label[labels] if labels.ndim == 1 else self._row(labels)

  def images(self):
    """uint8 (n, h, w[, c]) where the pictures lie in memory at one size, else None: a batch is then one indexing."""
    images = getattr(self._rows, 'images', None)
    return None if images is None else images[self._index]

  def fingerprint(self):
    parts = self._rows.digest(), self._index.astype('<i8').tobytes(), '\0'.join(self.classes).encode()
    return hashlib.sha256(b''.join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

  def _row(self, label):  # (..., the container's classes) -> (..., classes)
    here = self._label >= 0
    row = np.zeros((*label.shape[:-1], len(self.classes)), label.dtype)
    row[..., self._label[here]] = label[..., here]
    return row


class Joined:
  """The examples of several sources, one source after the other; all count labels in the same classes.

  Raises ValueError where some have one label a picture, and others a row of them.
  """

  def __init__(self, parts):
    self.classes, self._parts = parts[0].classes, list(parts)
    self._ends = np.cumsum([len(part) for part in parts])
    if len({labels.dtype for part in parts if (labels := part.labels()) is not None}) > 1:
      raise ValueError(f'{parts[0].title} and {parts[-1].title} have labels of different kinds; give them the same.')

  def __len__(self):
    return int(self._ends[-1])

  def __getitem__(self, i):
    part, i = self._place(i)
    return part[i]

  def describe(self, i):
    part, i = self._place(i)
    return part.describe(i)

  def labels(self):
    labels = [part.labels() for part in self._parts]
    if len({np.ndim(one) for one in labels if one is not None}) > 1:
      raise ValueError('data.extra has one label for each picture and data.name any number, or the other way round.')
    return None if any(one is None for one in labels) else np.concatenate(labels)

  def images(self):
    images = [part.images() for part in self._parts]
    alike = images[0] is not None and all(one is not None and one.shape[1:] == images[0].shape[1:] for one in images)
    return np.concatenate(images) if alike else None

  def fingerprint(self):
    return hashlib.sha256(' '.join(part.fingerprint() for part in self._parts).encode()).hexdigest()

  def _place(self, i):
    """(the source that holds example i, its number there)."""
    number = int(np.searchsorted(self._ends, i, 'right'))
    part = self._parts[number]
    return part, i - int(self._ends[number]) + len(part)


def open_source(name, split, *, classes=None, holdout=0.1, data_dir=None):
  """The examples of one split of a data set.

  Args:
    name: 'digits'; a folder: class folders in split folders (train/cat/1.jpg), class folders alone, ImageNet's flat
      val/ with a mapping file, tar shards, parquet files, MNIST's IDX files or what tfds prepared; a FILE.csv or .jsonl
      (columns path, label and maybe split; paths relative to it), .npz (x_train, y_train, x_test, y_test), .tar or
      .parquet; 'tfds:NAME[/CONFIG][:VERSION]'. Folder and file may be at an address such as gs://BUCKET/NAME: pictures
      are then read there, and archives copied into the cache.
    split: a name with an optional slice: 'train', 'test', 'val[:10%]', 'train[5000:]'. Where there is no 'test', 'val'
      is taken, and the other way round. Data that is not split gives 'train', 'test' (held out) and 'all'. Slices
      count in the stored order, as tfds does, but where that follows the classes (folders, tars) in a fixed shuffled
      one: 'train[:90%]' and 'train[90%:]' always share nothing and miss nothing.
    classes: class names to count labels in (the training set's), default: the split's own.
    holdout: fraction held out for 'test' of data that is not split: seeded, the same of every class, at least one
      example of each class that has two; of pictures with any number of labels, the same of all. The digits' 1,437 and
      360 are fixed.
    data_dir: where tfds keeps prepared data; default $TFDS_DATA_DIR or ~/tensorflow_datasets.

  Raises ValueError or FileNotFoundError, in one line, for what is not there or does not fit.
  """
  name = os.fspath(name)
  if not 0 <= holdout < 1:
    raise ValueError(f'holdout={holdout} is not a fraction of the data; it must be at least 0 and below 1.')
  match = re.fullmatch(r'([^\[\]]+)(?:\[([^:\]]*):([^:\]]*)\])?', split)
  if not match:
    raise ValueError(f'{split!r} is no split; write it like train, train[:98%] or train[500:1000].')
  wanted, *bounds = match.groups()
  parts = containers(name, data_dir)
  if name == 'digits':
    holdout = 360 / 1797
  part, side = _choose(parts, wanted, name, splittable=not isinstance(parts, records.Prepared))
  rows = parts[part](classes)
  title = f'{name}[{wanted}]'
  if rows.labels is not None and rows.labels.min(initial=0) < 0:
    raise ValueError(f'{title} has examples without a label (-1); choose a split that is labelled.')
  index = np.arange(len(rows)) if side is None else held_out(rows.labels, holdout, side, name)
  index = _cut(index, bounds, split, shuffled=rows.by_class)
  index = np.setdiff1d(index, getattr(rows, 'missing', ()), assume_unique=True)  # only now: splits are the source's
  if not len(index):
    raise ValueError(f'{name}: split {split!r} has no examples.')
  return Source(rows, index, rows.classes if classes is None else classes, title)


def splits(name):
  """(name of the training split, of the test split, how many pictures the first has) of a data set, for configs.

  A tfds without 'test' is cut in 90 and 10 %; others hold out a tenth by themselves. Raises as open_source does.
  """
  if name in KNOWN:
    return KNOWN[name]
  train, test = 'train', 'test'
  pictures = open_source(name, train)
  if name.startswith('tfds:'):
    try:
      open_source(name, test, classes=pictures.classes)
    except ValueError:
      train, test = 'train[:90%]', 'train[90%:]'
      pictures = open_source(name, train)
  return train, test, len(pictures)


def arrays(images, labels, classes=None, name='arrays'):  # uint8 (n, h, w[, 1|3|4]), (n,) or (n, k) -> Source
  """Examples that are in memory; class names default to '0', '1', ..."""
  rows = tables.Arrays(images, labels, name=name, classes=classes)
  return Source(rows, np.arange(len(rows)), rows.classes, name)


def held_out(labels, fraction, side, name):  # int32 (n,) or (n, k) -> int64 (m,), sorted
  """Indices of the 'train' or 'test' side of labelled data, each class split by the same fraction."""
  if labels.ndim > 1:
    labels = np.zeros(len(labels), np.int32)
  if not fraction:
    if side == 'test':
      raise ValueError(f'{name} has no test split and holdout=0 holds nothing out of it; set holdout=0.1.')
    return np.arange(len(labels))
  counts = np.bincount(labels)
  share = counts * fraction
  test = share.astype(np.int64)
  # Largest remainders get what rounding down left over, so that the total is right too.
  rest = round(share.sum()) - test.sum()
  test[np.argsort(test - share, kind='stable')[:rest]] += 1
  test = np.minimum(np.maximum(test, 1), np.maximum(counts - 1, 0))
  order = np.lexsort((np.random.default_rng(SEED).random(len(labels)), labels))
  rank = np.empty(len(labels), np.int64)  # place of each example in its class's lottery
  rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
  return np.flatnonzero((rank < test[labels]) == (side == 'test'))


def _used(labels):  # (n,) or (n, k)
  """The classes that occur in labels."""
  return np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(0))


def _choose(parts, wanted, name, *, splittable):
  """(key of parts, side of the hold-out or None) for the split that was asked for."""
  group = next((group for group in (TRAIN, TEST) if wanted in group), ())
  only = next(iter(parts)) if len(parts) == 1 else None
  whole = splittable and only is not None and only not in TEST  # one set, from which a test split can be held out
  if whole and wanted == 'all':
    return only, None
  if whole and group:
    return only, group[0]
  for word in (wanted, *group):
    if word in parts:
      return word, None
  known = ['train', 'test', 'all'] if whole else sorted(parts)
  hint = f" Slices split it: '{only}[:90%]' and '{only}[90%:]'." if only and not whole else ''
  hint = hint or listing.nearest(wanted, known)
  raise ValueError(f'{name} has no split {wanted!r}; it has {", ".join(known)}.{hint}')


def _cut(index, bounds, split, *, shuffled):
  """The part of an index that a slice's two bounds (None, '', '500', '-500', '12.5%') select."""

  def count(bound):
    if not bound:
      return None
    if not re.fullmatch(r'-?\d+(\.\d+)?%|-?\d+', bound):
      raise ValueError(f'{bound!r} in split {split!r} is no bound; write a count (500) or a percentage (98%).')
    value = round(float(bound[:-1]) * len(index) / 100) if bound.endswith('%') else int(bound)
    # -10% of 3 examples is 0 examples counted from the end, and not position 0.
    return len(index) if bound.startswith('-') and value == 0 else value

  low, high = map(count, bounds)
  if shuffled:
    return index[np.sort(np.random.default_rng(SEED).permutation(len(index))[low:high])]
  return index[low:high]


def containers(name, data_dir=None):
  """{split: function of the wanted class list -> container} of everything that a name holds."""
  if name == 'digits':
    return {'all': tables.digits}
  if name.startswith('tfds:'):
    return records.named(name, data_dir)
  path = storage.path(name)
  kinds = {
    '.csv': tables.table,
    '.jsonl': tables.table,
    '.npz': tables.npz,
    '.tar': archives.tars,
    '.parquet': archives.parquets,
  }
  if storage.is_remote(path):
    if listing.entries(path):
      return _folder(path)
  elif path.is_dir():
    return _folder(path)
  if not (storage.exists(path) if storage.is_remote(path) else path.exists()):
    near = os.listdir(path.parent) if path.parent.is_dir() and not storage.is_remote(path) else []
    raise FileNotFoundError(
      f"{name}: no such folder or file; a data set is 'digits', a folder, tfds:NAME or a file "
      f'with suffix {" ".join(kinds)}.{listing.nearest(path.name, ["digits", *near])}'
    )
  if path.suffix.lower() not in kinds:
    raise ValueError(f'{name} is no data set: a file has one of the suffixes {" ".join(kinds)}; unpack others first.')
  kind = kinds[path.suffix.lower()]
  return kind([path] if kind is tables.table else _copies([path]))  # a table's pictures lie beside it


def _copies(files):
  """Local copies of files at addresses, for what reads parts of them; local ones as they are."""
  return [storage.fetched(file) for file in files]


def _folder(path):
  """{split: function -> container} of a folder, whose kind shows in what lies in it."""
  files = listing.files(path)
  if storage.is_remote(path) and {'dataset_info.json', shards.PAGE} & {file.name for file in files}:
    raise ValueError(f'{path} was prepared, and its records are read at random: copy it to a local disk first (gcloud '
                     'storage cp -r, aws s3 cp --recursive).')  # fmt: skip
  if {'dataset_info.json', 'features.json'} <= {file.name for file in files}:
    return records.prepared(path, str(path))
  if shards.is_prepared(path):
    return shards.opened(path)
  if splits := split_folders(path):
    return {name: functools.partial(_leaf, inner, name, splits) for name, inner in splits.items()}
  for suffix, kind in (('.parquet', archives.parquets), ('.tar', archives.tars)):
    if found := [file for file in files if file.suffix.lower() == suffix]:
      return kind(_copies(found))
  if found := tables.idx([storage.fetched(file) if 'ubyte' in file.name else file for file in files]):
    return found
  if (inner := inner_folder(path)) != path:
    return _folder(inner)
  return {'all': functools.partial(_leaf, path, 'all', {})}


def split_folders(path):
  """{'train': path, 'val': path, ...} of a folder that holds splits, {} of any other."""
  folders = listing.folders(path)
  splits = {name.lower(): path / name for name in folders if name.lower() in TRAIN + TEST}
  # 'train' may also be a class (of vehicles): then it has no folders of its own, and sisters that are no splits.
  return splits if len(splits) == len(folders) or any(map(_is_nested, splits.values())) else {}


def inner_folder(path):
  """The one folder in a folder that is the data set: data/ of a hub's, NAME/NAME/ of a zip; else the folder itself."""
  folders = listing.folders(path)
  return path / folders[0] if len(folders) == 1 and _is_nested(path / folders[0]) else path


def _is_nested(path):
  """Whether a folder holds more than loose pictures."""
  return any(folder or name.endswith(('.parquet', '.tar')) for name, folder in listing.entries(path).items())


def _leaf(path, split, splits, classes):
  """The container of one split's folder: archives, tables, class folders, or loose pictures and a mapping file."""
  for suffix, kind in (('.parquet', archives.Parquet), ('.tar', archives.Tar)):
    if found := [file for file in listing.files(path) if file.suffix.lower() == suffix]:
      return kind(_copies(found))
  train = next((splits[word] for word in TRAIN if word in splits), None)
  maps = listing.mapping_files(path, split) if split in TEST else []
  if maps and (maps[0].parent == path or not listing.folders(path)):
    classes = classes if classes is not None else listing.folders(train) if train else []
    names = listing.flat_folder(path)
    if not classes:
      raise ValueError(f'{path}: {maps[0].name} needs the class list of a training set; keep train/ beside it.')
    return tables.Files(path, listing.Names.pack(names), listing.read_mapping(maps[0], names, classes), classes)
  if not listing.folders(path):
    wanted = f'{path}/CLASS/1.jpg' + (f', or a file {split}.txt with lines `NAME LABEL` beside it' * (split in TEST))
    raise ValueError(f'{path} has no class folders; wanted {wanted}.')
  return tables.Files(path, *listing.class_folders(path), by_class=True)
