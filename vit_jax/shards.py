"""What `vit_jax prepare` wrote -> examples: array_record files, read at random, with a page that says what they are.

FOLDER/prepared.json   what was done to what (prepare.py), and for each split {'examples', 'missing', 'by_class',
                       'classes', 'per', 'bytes': of each shard, 'sha256': of all records in order, 'source': the
                       fingerprint of what was read}
FOLDER/SPLIT.npz       labels (n,) or (n, classes); names, one block of UTF-8 with ends; missing, the numbers of
                       examples whose picture could not be read
FOLDER/SPLIT-00000-of-00004.array_record   `per` examples each, the last one fewer. A record is a JPEG file; or a
                       picture's height and width, uint32, and its pixels, uint8 (h, w, 3); or nothing for a missing one

An example has the number that it had in the source, so that splits and slices choose the same pictures; open_source
leaves the missing ones. Records are not packed, and array_record compares the digest of each that it reads.
"""

import functools
import hashlib
import json
import os
import pathlib
import re
import struct
import threading

import numpy as np

from vit_jax import listing, npz, records

PAGE, FORMAT = 'prepared.json', 1
KINDS = ('jpeg', 'raw')
SIZE = struct.Struct('<II')
NAME = re.compile(r'\w[\w.-]*')
READING = 'readahead_buffer_size:0,max_parallelism:0'  # one record at a time, by the thread that asks
BUFFER = 2**16  # bytes
WRITING = 'group_size:1,uncompressed'


def library():
  """The module of array_record, which is there without TensorFlow, or one line that says how to install it."""
  return records.need('array_record.python.array_record_module', 'and writing array_record files')


def shard(split, i, count):
  """The name of shard i of a split."""
  return f'{split}-{i:05d}-of-{count:05d}.array_record'


def raw(pixels):  # uint8 (h, w, 3)
  """The record of a picture as pixels."""
  return SIZE.pack(*pixels.shape[:2]) + pixels.tobytes()


def is_prepared(folder):
  """Whether a folder is one of these."""
  return os.path.isfile(os.path.join(folder, PAGE))


def opened(folder):
  """{split: function -> Examples} of a prepared folder; a records.Prepared where its splits are all there are.

  Raises ValueError where the folder is not whole: what its page says is compared with what lies there.
  """
  page = _page(pathlib.Path(folder))
  parts = {split: functools.partial(_examples, folder, page, split) for split in page['splits']}
  return parts if page['whole'] else records.Prepared(parts)


def _page(folder):
  """The content of prepared.json, once it is what is wanted in all that is used of it."""
  number = lambda one: isinstance(one, int) and not isinstance(one, bool) and one >= 0
  try:
    page = json.loads((folder / PAGE).read_text(encoding='utf-8'))
    if page['format'] != FORMAT or page['kind'] not in KINDS:
      raise ValueError(f'its format is {page["format"]!r} {page["kind"]!r}; this vit_jax reads {FORMAT} {KINDS}')
    if not isinstance(page['whole'], bool) or not page['splits']:
      raise ValueError('it does not say what its splits are')
    for split, one in page['splits'].items():
      texts = [split, one['sha256'], *one['classes']]
      numbers = [one['examples'], one['missing'], one['per'], int(one['by_class']), *one['bytes']]
      if not (all(isinstance(text, str) for text in texts) and all(map(number, numbers)) and NAME.fullmatch(split)):
        raise ValueError(f'what it says of {split!r} has no meaning')
      if len(one['bytes']) != -(-one['examples'] // max(1, one['per'])):
        raise ValueError(f'{one["examples"]} examples of {split} are not in {len(one["bytes"])} shards of {one["per"]}')
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
    reason = f'it lacks {error}' if isinstance(error, KeyError) else error
    raise ValueError(f'{folder / PAGE} is damaged ({reason}); copy the folder or prepare the data again.') from None
  return page


def _examples(folder, page, split, _=None):
  return Examples(folder, page['kind'], split, page['splits'][split])


class Examples:
  """One split; `missing` are the numbers of the examples that have no picture, int64, in order."""

  def __init__(self, folder, kind, split, said):
    self._folder, self._kind, self._said = os.fspath(folder), kind, said
    self._per, self.classes, self.by_class = max(1, said['per']), list(said['classes']), bool(said['by_class'])
    count = len(said['bytes'])
    self._paths = [os.path.join(self._folder, shard(split, i, count)) for i in range(count)]
    for path, size in zip(self._paths, said['bytes']):
      there = os.path.getsize(path) if os.path.isfile(path) else None
      if there != size:
        found = 'is not there' if there is None else f'has {there:,} bytes'
        raise ValueError(f'{path} {found}; wanted {size:,} bytes: copy the folder or prepare the data again.')
    path = os.path.join(self._folder, f'{split}.npz')
    try:
      self.labels, self.missing = self._read(path, said['examples'])
    except (ValueError, KeyError, OSError) as error:
      raise ValueError(f'{path} is damaged ({error}); copy the folder or prepare the data again.') from None
    self._reader, self._readers, self._lock = library().ArrayRecordReader, {}, threading.Lock()

  def _read(self, path, n):
    """(labels, missing) of a split's arrays, which are compared with its classes; keeps the names."""
    there = npz.members(path)
    held = {name: npz.read(path, name, *there[name]) for name in ('labels', 'names', 'ends', 'missing')}
    labels, missing, ends = held['labels'], held['missing'].astype(np.int64), held['ends'].astype(np.int64)
    top = len(self.classes) - 1 if labels.ndim == 1 else 1
    shaped = labels.shape in ((n,), (n, len(self.classes))) and labels.dtype in (np.int32, np.uint8, np.float32)
    if not shaped or not ((labels >= 0) & (labels <= top)).all():
      raise ValueError(f'labels {labels.dtype} {labels.shape} do not fit {n} examples of {len(self.classes)} classes')
    if ends.shape != (n,) or (np.diff(ends, prepend=0) < 0).any() or ends.max(initial=0) > held['names'].size:
      raise ValueError('its names do not fit')
    if missing.shape != (self._said['missing'],) or ((missing < 0) | (missing >= n)).any():
      raise ValueError('its missing examples do not fit')
    self._names = listing.Names(held['names'].astype(np.uint8), ends)
    return labels, missing

  def __len__(self):
    return len(self.labels)

  def where(self, i):
    return f'{self._paths[i // self._per]}:{self._names[i].decode("utf-8", "replace")}'

  def read(self, i):
    number, place = divmod(i, self._per)
    try:
      [record] = self._opened(number).read([place])
    except Exception as error:  # what the library raises is not documented
      raise OSError(f'{self.where(i)} cannot be read: {error}') from error
    if not record:
      raise OSError(f'{self.where(i)} could not be read when it was prepared')
    return (record if self._kind == 'jpeg' else self._pixels(record, i)), self.labels[i]

  def _opened(self, number):
    """The reader of a shard, one for all threads; a file stays open when it was asked for once."""
    reader = self._readers.get(number)
    if reader is None:
      with self._lock:
        if number not in self._readers:
          path = self._paths[number]
          self._readers[number] = self._reader(path, READING, file_reader_buffer_size=BUFFER)
        reader = self._readers[number]
    return reader

  def _pixels(self, record, i):  # -> uint8 (h, w, 3), read-only
    h, w = SIZE.unpack_from(record) if len(record) > SIZE.size else (0, 0)
    if len(record) != SIZE.size + h * w * 3:
      raise OSError(f'{self.where(i)} has {len(record):,} bytes for {h}x{w} pixels')
    return np.frombuffer(record, np.uint8, offset=SIZE.size).reshape(h, w, 3)

  def digest(self):
    labels = hashlib.sha256(self.labels.tobytes()).hexdigest()
    return json.dumps([self._kind, self._said['sha256'], len(self), str(self.labels.dtype), labels]).encode()
