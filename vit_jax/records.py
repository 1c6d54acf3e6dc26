"""Examples that tensorflow-datasets prepared, as array_record or TFRecord, read at random and without TensorFlow.

array_record comes through tfds.data_source. TFRecord, which tfds reads with TensorFlow only, is framed records (u64
length, masked crc32c of the length, payload, masked crc32c of the payload; little-endian:
https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details), whose offsets are found once. The
lengths' checksums are checked then; the payloads' never, since a picture that does not decode is noticed anyway.
"""

import contextlib
import functools
import importlib
import json
import os
import pathlib
import re
import struct

import numpy as np

from vit_jax import listing, storage


def need(module, what):
  """An optional module, or one line that says how to install it."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ValueError(f"Reading {what} needs {error.name}; install it with pip install 'vit_jax[tfds]'.") from None


def span(path, offset, size):
  """Bytes of a part of a file; opened for each call, so that threads share nothing and 1,000 shards fit any limit."""
  with open(path, 'rb', buffering=0) as file:
    data = b''
    if 0 <= size <= os.fstat(file.fileno()).st_size - offset:  # before memory is taken
      file.seek(offset)
      data = file.read(size)
  if len(data) != size:
    raise OSError(f'{path} ends within the {size} bytes from {offset}')
  return data


class Prepared(dict):
  """{split: function -> Examples} of one prepared data set: its splits are its author's, none is held out."""


def named(name, data_dir):
  """The prepared data set of 'tfds:NAME[/CONFIG][:VERSION]' below data_dir."""
  match = re.fullmatch(r'tfds:(\w+)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?', name)
  if not match:
    raise ValueError(f'{name!r} is not of the form tfds:NAME[/CONFIG][:VERSION], like tfds:mnist or tfds:mnist:3.0.1.')
  dataset, config, version = match.groups()
  root = storage.path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')
  storage.refuse(root, 'What tfds prepared')
  if not (root / dataset).is_dir():
    tfds = need('tensorflow_datasets', 'tfds data sets')
    known = tfds.list_builders(with_community_datasets=False)
    here = listing.folders(root) if root.is_dir() else []
    if dataset not in known:
      raise ValueError(
        f'{name}: tfds has no data set {dataset!r}, nor is one prepared in {root}.'
        f'{listing.nearest(dataset, here + known)}'
      )
    raise FileNotFoundError(
      f'{name} is not prepared in {root}; in an environment of its own run: pip install tensorflow '
      f'tensorflow-datasets && tfds build {dataset} --data_dir={root} --file_format=array_record'
    )
  return prepared(_version(root / dataset, config, version, name), name)


def _version(folder, config, version, name):
  """The folder of one config and version: NAME/VERSION or NAME/CONFIG/VERSION."""
  inner = listing.folders(folder)
  versions = [word for word in inner if re.fullmatch(r'\d+\.\d+\.\d+', word)]
  configs = [word for word in inner if word not in versions and 'incomplete' not in word]
  if config or (not versions and len(configs) == 1):
    config = config or configs[0]
    if config not in configs:
      raise ValueError(
        f'{name} has no config {config!r} prepared; it has {", ".join(configs) or "none"}.'
        f'{listing.nearest(config, configs)}'
      )
    return _version(folder / config, None, version, name)
  if not versions:
    raise ValueError(
      f'{name}: {folder} holds '
      + (f'several configs, choose one: {", ".join(configs)}.' if configs else 'no prepared version; prepare it again.')
    )
  if version and version not in versions:
    raise ValueError(f'{name} has no version {version} prepared; it has {", ".join(versions)}.')
  return folder / (version or max(versions, key=lambda word: tuple(map(int, word.split('.')))))


def prepared(folder, name):
  """The splits of a folder with tfds' dataset_info.json and features.json."""
  tfds = need('tensorflow_datasets', 'data that tfds prepared')
  _check_features(pathlib.Path(folder) / 'features.json')
  try:
    builder = tfds.builder_from_directory(folder)
    paths = [path for split in builder.info.splits.values() for path in split.filepaths]
  except Exception as error:  # what the library raises is not documented
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(f'{folder} is not a prepared tfds data set: {reason}') from None
  outside = [path for path in paths if pathlib.Path(os.path.normpath(path)).parent != pathlib.Path(folder)]
  if outside:
    raise ValueError(f'{folder} is not a prepared tfds data set: it names {outside[0]}, which is not in it')
  return Prepared({split: lambda _, split=split: Examples(builder, split, name) for split in builder.info.splits})


def _check_features(path):
  """Raises ValueError for features of classes that are not tfds' own: it would import whatever module is named."""
  try:
    names = list(_classes(json.loads(path.read_bytes())))
  except (ValueError, RecursionError, OSError) as error:
    raise ValueError(f'{path} is damaged ({error}); copy or prepare the data again.') from None
  for name in names:
    if '.' in name and not name.startswith('tensorflow_datasets.core.features.'):
      raise ValueError(f'{path} names {name}, a program that tfds would run; prepare the data with features of tfds.')


def _classes(value):
  """The names of classes in the content of a features.json, also in the JSON texts that it holds."""
  if isinstance(value, str) and value.lstrip()[:1] in ('{', '['):
    yield from _classes(json.loads(value))
  elif isinstance(value, dict):
    named = (value.get(key) for key in ('pythonClassName', 'python_class_name', 'type'))
    yield from (name for name in named if isinstance(name, str))
  for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
    yield from _classes(inner)


class Examples:
  """One split of a prepared data set; labels are known only by reading."""

  by_class, labels = False, None

  def __init__(self, builder, split, name):
    import tensorflow_datasets as tfds

    self._features, self._info, self._name = builder.info.features, builder.info.splits[split], f'{name}[{split}]'
    self._title = f'{builder.info.full_name}[{split}]'  # without the folder, unlike the name
    self._image = self._key(tfds.features.Image, 'image')
    self._label = self._key(tfds.features.ClassLabel, 'label')
    self.classes = list(self._features[self._label].names)
    self._decoders = {
      key: tfds.decode.SkipDecoding()
      for key, feature in self._features.items()
      if isinstance(feature, tfds.features.Image)
    }
    kind = builder.info.file_format.value
    if kind == 'array_record':
      self._payloads = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    elif kind == 'tfrecord':
      self._payloads = Frames(self._info.filepaths, self._info.num_examples)
    else:
      raise ValueError(f'{name} is prepared as {kind}; prepare it with --file_format=array_record.')
    with contextlib.suppress(OSError):  # a damaged first example is one of many
      if len(self) and self.read(0)[1] < 0:
        raise ValueError(f'{self._name} has no labels (-1); choose a split that is labelled.')

  def _key(self, kind, usual):
    keys = [key for key, feature in self._features.items() if isinstance(feature, kind)]
    if not keys:
      raise ValueError(f'{self._name} has no {kind.__name__} feature; it has {", ".join(self._features)}.')
    return usual if usual in keys else keys[0]

  def __len__(self):
    return len(self._payloads)

  def where(self, i):
    return f'{self._name} #{i}'

  def read(self, i):
    try:
      example = self._features.deserialize_example_np(self._payloads[i], decoders=self._decoders)
      return bytes(example[self._image]), int(example[self._label])
    except Exception as error:  # what the two libraries raise is not documented
      raise OSError(f'{self.where(i)} cannot be read: {error}') from error

  def digest(self):
    return json.dumps([self._title, list(self._info.shard_lengths), self.classes]).encode()


class Frames:
  """Payloads of TFRecord files: frames[i] -> bytes."""

  def __init__(self, paths, count):
    self._paths = [os.fspath(path) for path in paths]
    found = listing.cached('tfrecord', '\0'.join(map(os.path.abspath, self._paths)), self._index)
    self._shard, self._offset, self._ends = found['shard'], found['offset'], found['ends']
    if len(self) != count:
      raise ValueError(
        f'{self._paths[0]} and its {len(self._paths) - 1} sisters hold {len(self)} records; '
        f'dataset_info.json says {count}. Copy or prepare them again.'
      )

  def _index(self):
    watched = [(os.path.abspath(path), listing.stamp(path)) for path in self._paths]
    spans = [np.array(list(frames(path)), np.int64).reshape(-1, 2) for path in self._paths]
    offset, size = np.concatenate(spans).T
    shard = np.repeat(np.arange(len(spans), dtype=np.int32), [len(part) for part in spans])
    return {'shard': shard, 'offset': offset, 'ends': offset + size}, watched

  def __len__(self):
    return len(self._ends)

  def __getitem__(self, i):
    return span(self._paths[self._shard[i]], int(self._offset[i]), int(self._ends[i] - self._offset[i]))


def frames(path):
  """(offset, length) of each payload in a TFRecord file."""
  total, offset = os.path.getsize(path), 0
  with open(path, 'rb', buffering=0) as file:
    while offset < total:
      file.seek(offset)
      head = file.read(12)
      size, check = struct.unpack('<QI', head) if len(head) == 12 else (total, 0)
      if _masked_crc(head[:8]) != check or offset + 16 + size > total:
        raise ValueError(f'{path} is damaged at byte {offset}: no whole TFRecord frame begins there.')
      yield offset + 12, size
      offset += 16 + size


@functools.cache
def _crc_table():
  table = []
  for value in range(256):
    for _ in range(8):
      value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli's polynomial, bits reversed
    table.append(value)
  return table


def _masked_crc(data):
  """TFRecord's masked crc32c of a few bytes."""
  table, crc = _crc_table(), 0xFFFFFFFF
  for byte in data:
    crc = crc >> 8 ^ table[(crc ^ byte) & 255]
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
