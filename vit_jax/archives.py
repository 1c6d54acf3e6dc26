"""Pictures packed many to a file: tar shards and parquet files, read at random from any number of threads.

Tar shards follow the WebDataset convention (KEY.jpg with KEY.cls or KEY.json, https://github.com/webdataset/webdataset)
or hold class folders, or a tar for each class as ImageNet's do.
"""

import collections
import contextlib
import json
import os
import re
import tarfile
import threading

import numpy as np

from vit_jax import listing, npz, records, tables

IMAGE, LABEL = ('image', 'img', 'picture'), ('label', 'labels', 'fine_label', 'cls', 'class', 'target')
SPLITS = {'train': 'train', 'training': 'train', 'test': 'test', 'val': 'val', 'validation': 'val', 'valid': 'val'}
CACHED_BYTES = 2**30  # of decoded parquet row groups
DEPTH = 2  # of tars in tars
ROWS = 8  # of parquet that are decoded at once
PAGES = 2**26  # bytes that a small parquet file may unpack to: pictures are packed already


def _by_split(paths):
  """{split: [path]} by the word in each file's name ('train-00000-of-00004', 'ILSVRC2012_img_val'), else 'all'."""
  parts = {}
  for path in paths:
    words = [SPLITS[word] for word in re.split('[^a-z]+', path.stem.lower()) if word in SPLITS]
    parts.setdefault(words[0] if words else 'all', []).append(path)
  return parts


def tars(paths):
  """{split: ...} of tar shards."""
  return {split: lambda classes, some=some: Tar(some, classes) for split, some in _by_split(paths).items()}


def parquets(paths):
  """{split: ...} of parquet files as hubs keep them: train-00000-of-00002.parquet, ..."""
  return {split: lambda _, some=some: Parquet(some) for split, some in _by_split(paths).items()}


class Tar:
  """Pictures in plain tar files: KEY.jpg with KEY.cls or KEY.json, CLASS/1.jpg, CLASS.tar within, or flat + mapping."""

  by_class = True

  def __init__(self, paths, classes=None):
    self.paths = paths
    found = listing.cached('tar', '\0'.join(os.path.abspath(path) for path in paths), self._index)
    self._shard, self._offset, self._size = found['shard'], found['offset'], found['size']
    self.names = listing.Names(found['block'], found['ends'])
    self.labels = found['labels']
    table = listing.Names(found['classes'], found['class_ends'])
    self.classes = [table[i].decode() for i in range(len(table))]
    if not self.classes:
      self.labels, self.classes = self._mapped(classes)

  def _index(self):
    known, rows, marks = listing.suffixes(), [], {}
    watched = [(os.path.abspath(path), listing.stamp(path)) for path in self.paths]
    for shard, path in enumerate(self.paths):
      for name, offset, size in _members(path):
        folder, _, base = name.rpartition('/')
        key, _, kind = base.partition('.')
        if kind in ('cls', 'json'):
          marks[shard, f'{folder}/{key}'] = _mark(records.span(path, offset, size), kind, f'{path}:{name}')
        elif listing.is_picture(base.encode(), known):
          rows.append((shard, name, offset, size))
    if marks:  # KEY.seg.png is not KEY's picture
      rows = [row for row in rows if row[1].rpartition('/')[2].count('.') == 1]
    if not rows:
      raise ValueError(f'{self.paths[0]} holds no pictures.')
    labels, classes = self._labels(rows, marks)
    names, table = (
      listing.Names.pack([word.encode('utf-8', 'surrogateescape') for word in words])
      for words in ([row[1] for row in rows], classes)
    )
    return {
      'block': names.block,
      'ends': names.ends,
      'labels': labels,
      'classes': table.block,
      'class_ends': table.ends,
      'shard': np.array([row[0] for row in rows], np.int32),
      'offset': np.array([row[2] for row in rows], np.int64),
      'size': np.array([row[3] for row in rows], np.int64),
    }, watched

  def _labels(self, rows, marks):
    """Labels and classes by what tells them: marks beside the pictures, else folders, else the shards' names."""
    if marks:
      keys = [
        (shard, '/'.join((name.rpartition('/')[0], name.rpartition('/')[2].partition('.')[0])))
        for shard, name, *_ in rows
      ]
      bare = next((i for i, key in enumerate(keys) if key not in marks), None)
      if bare is not None:
        raise ValueError(f'{self.paths[rows[bare][0]]}:{rows[bare][1]} has no .cls or .json with a label beside it.')
      return listing.number([marks[key] for key in keys])
    paths = [name.split('/') for _, name, *_ in rows]
    # Folders that all pictures share (ILSVRC/train/) name no class, but the last one above a picture always does.
    depth = next(
      (d for d in range(min(map(len, paths)) - 1) if len({path[d] for path in paths}) > 1),
      max(0, min(map(len, paths)) - 2),
    )
    if min(map(len, paths)) > 1:
      labels, classes = listing.number([path[depth].removesuffix('.tar') for path in paths])
      if set(map(str.lower, classes)) <= SPLITS.keys():
        raise ValueError(f'{self.paths[0]} holds several splits ({", ".join(classes)}); unpack it into a folder.')
      return labels, classes
    if len(self.paths) > 1:  # one tar a class, as ImageNet's train tar unpacks
      return listing.number([self.paths[shard].stem for shard, *_ in rows])
    return np.zeros(len(rows), np.int32), []

  def _mapped(self, classes):
    path = self.paths[0]
    split = next(iter(_by_split([path])))
    maps = listing.mapping_files(path.parent, split) if split != 'all' else []
    if not maps or not classes:
      raise ValueError(
        f'{path} does not say the classes of its pictures; wanted CLASS/1.jpg, or 1.jpg with 1.cls, or '
        f'a training set beside it and a file {split}.txt with lines `NAME LABEL`.'
      )
    names = [self.names[i] for i in range(len(self))]
    order = sorted(range(len(names)), key=names.__getitem__)  # files with one label a line count in name order
    labels = np.empty(len(names), np.int32)
    labels[order] = listing.read_mapping(maps[0], [names[i] for i in order], classes)
    return labels, classes

  def __len__(self):
    return len(self.names)

  def where(self, i):
    return f'{self.paths[self._shard[i]]}:{self.names[i].decode("utf-8", "replace")}'

  def read(self, i):
    return records.span(self.paths[self._shard[i]], int(self._offset[i]), int(self._size[i])), self.labels[i]

  def digest(self):
    return self.names.block.tobytes() + self._size.astype('<i8').tobytes() + self.labels.astype('<i4').tobytes()


def _members(path):
  """(name, offset, size) of each file in a tar file; those of a tar in it as OUTER.tar/name."""

  def walk(tar, prefix, start, depth):
    at = -1
    while (member := tar.next()) is not None:
      if member.offset_data <= at or member.size < 0 or depth > DEPTH:
        raise tarfile.ReadError(f'{member.name!r} leads back, or too deep')
      tar.members.clear()  # it keeps every member it ever saw
      at, name = member.offset_data, f'{prefix}{member.name.removeprefix("./")}'
      if name.startswith('/') or '..' in name.split('/'):
        raise tarfile.ReadError(f'{name!r} would lie outside of it')
      if member.isreg() and not member.issparse() and not name.rpartition('/')[2].startswith('.'):
        if name.endswith('.tar'):
          with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner:
            yield from walk(inner, f'{name}/', start + member.offset_data, depth + 1)
        else:
          yield name, start + member.offset_data, member.size

  try:
    with tarfile.open(path, 'r:') as tar:
      yield from walk(tar, '', 0, 0)
  except (tarfile.TarError, ValueError, OSError, MemoryError, OverflowError) as error:  # of sizes that nothing has
    reason = str(error) or type(error).__name__
    raise ValueError(f'{path} is not a whole, uncompressed tar file: {reason}') from None


def _mark(data, kind, where):
  """The label that a .cls or .json member holds."""
  try:
    text = data.decode().strip()
    found = json.loads(text) if kind == 'json' else {'label': text}
    return str(found['label'] if 'label' in found else found['cls'])
  except (ValueError, KeyError, TypeError, RecursionError):
    raise ValueError(f'{where} holds no label; wanted a class in .cls, or {{"label": ...}} in .json.') from None


@contextlib.contextmanager
def _whole(path):
  """Has what pyarrow raises for a damaged file become a ValueError of one line."""
  try:
    yield
  except (ValueError, NotImplementedError, MemoryError, OSError) as error:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise ValueError(reason if str(path) in reason else f'{path} is not a whole parquet file: {reason}') from None


def _check_size(path, meta):
  """Raises ValueError for metadata of more than can be in a file of its size."""
  size = os.path.getsize(path)
  unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
  if meta.num_rows > size or npz.bursts(size, unpacked, PAGES):
    raise ValueError(f'it would hold {meta.num_rows:,} rows, or unpack beyond all measure, in {size:,} bytes')


def _cells(path, meta, column, groups=None):
  """The array of a column, of some row groups or all; ValueError for more than can be in a file of its size.

  A value that a page says once may stand in any number of rows, so what is decoded is counted on the way.
  """
  import pyarrow.parquet

  size, parts, total = os.path.getsize(path), [], 0
  with pyarrow.parquet.ParquetFile(path, metadata=meta) as opened:
    for batch in opened.iter_batches(ROWS, row_groups=groups, columns=[column]):
      parts.append(batch.column(0))
      total += batch.nbytes
      if npz.bursts(size, total):
        raise ValueError(f'its {column} column unpacks to more than {total:,} bytes, out of {size:,}')
    kind = opened.schema_arrow.field(column).type
  return pyarrow.chunked_array(parts, kind).combine_chunks()


class Parquet:
  """Rows of parquet files: an image column of struct{bytes, path} or bytes, and labels that are integers or words.

  A row group is the least that parquet can decode, so the last ones (1 GB) are kept. Data larger than that is read at
  the cost of a row group for each picture: turn it into tar shards or array_record for training.
  """

  by_class = False

  def __init__(self, paths):
    parquet = records.need('pyarrow.parquet', 'parquet files')
    self.paths, self._metas, values = paths, [], []
    for path in paths:
      with _whole(path):
        self._metas.append(parquet.read_metadata(path))
        _check_size(path, self._metas[-1])
    with _whole(paths[0]):
      schema = parquet.read_schema(paths[0])
    self._image, label = (self._column(schema, names) for names in (IMAGE, LABEL))
    for path, meta in zip(paths, self._metas):
      with _whole(path):
        values += _cells(path, meta, label).to_pylist()
    self.labels, self.classes = self._numbered(values, schema, label)
    groups = [
      (file, group, meta.row_group(group).num_rows)
      for file, meta in enumerate(self._metas)
      for group in range(meta.num_row_groups)
    ]
    self._groups, self._ends = [pair[:2] for pair in groups], np.cumsum([pair[2] for pair in groups])
    self._kept, self._locks = collections.OrderedDict(), [threading.Lock() for _ in groups]
    self._lock = threading.Lock()

  def _column(self, schema, names):
    for name in names:
      if name in schema.names:
        return name
    raise ValueError(f'{self.paths[0]} has columns {", ".join(schema.names)}; wanted one of {", ".join(names)}.')

  def _numbered(self, values, schema, label):
    if None in values:
      raise ValueError(f'{self.paths[0]}: column {label!r} has rows without a label.')
    try:
      hub = json.loads((schema.metadata or {}).get(b'huggingface', b'{}')).get('info', {}).get('features', {})
      classes = list(hub.get(label, {}).get('names') or [])
      fits = not classes or min(values) >= -1 and max(values) < len(classes)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
      raise ValueError(f'{self.paths[0]} has metadata of no data set: {error}') from None
    if not fits:
      raise ValueError(f'{self.paths[0]}: labels go to {max(values)}, and there are {len(classes)} classes.')
    return (np.array(values, np.int32), classes) if classes else listing.number(values)

  def __len__(self):
    return int(self._ends[-1]) if len(self._ends) else 0

  def where(self, i):
    file = self._groups[np.searchsorted(self._ends, i, 'right')][0]
    return f'{self.paths[file]} row {i - sum(meta.num_rows for meta in self._metas[:file])}'

  def read(self, i):
    group = int(np.searchsorted(self._ends, i, 'right'))
    with self._locks[group]:  # two threads must not decode the same one
      with self._lock:
        column = self._kept.get(group)
        if column is not None:
          self._kept.move_to_end(group)
      if column is None:
        column = self._decode(group)
    value = column[i - (int(self._ends[group - 1]) if group else 0)].as_py()
    if isinstance(value, dict) and value.get('bytes') is None and value.get('path'):
      folder = self.paths[self._groups[group][0]].absolute().parent
      path = os.path.normpath(folder / value['path'])
      if not path.startswith(f'{folder}{os.sep}'):
        raise OSError(f'{self.where(i)} names {value["path"]}, which does not lie beside the file')
      return tables.whole(path), self.labels[i]
    value = value['bytes'] if isinstance(value, dict) else value
    if not isinstance(value, bytes):
      raise OSError(f'{self.where(i)} holds no picture')
    return value, self.labels[i]

  def _decode(self, group):
    file, inner = self._groups[group]
    try:
      column = _cells(self.paths[file], self._metas[file], self._image, [inner])
    except (ValueError, NotImplementedError, MemoryError, OSError) as error:  # pyarrow's exceptions are these too
      raise OSError(f'{self.paths[file]}: row group {inner} cannot be read: {error}') from error
    with self._lock:
      self._kept[group] = column
      while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > CACHED_BYTES:
        self._kept.popitem(last=False)
    return column

  def digest(self):
    sizes = [(path.name, meta.num_rows, meta.serialized_size) for path, meta in zip(self.paths, self._metas)]
    return json.dumps(sizes).encode() + self.labels.astype('<i4').tobytes()
