"""Files of weights as {name: array}, and back: NumPy's .npz, .safetensors alone or in shards, and PyTorch's .pth.

A file is open_arrays(path): names, shapes and dtypes are known at once, an array is read when it is asked for and none
is kept. Nothing in a file is run: a .npz with objects is refused, and a .pth, which is a pickle, is read by torch's
restricted reader and only when asked for. A header is held against the size of its file before memory is taken.
Sources: github.com/huggingface/safetensors (format), numpy.lib.format and the zip format of PKWARE's APPNOTE.
"""

from collections.abc import Mapping
import contextlib
import functools
import json
import math
import os
import zipfile

import ml_dtypes
import numpy as np

from vit_jax import memory, npz

# safetensors' words for numbers, in the order in which it writes them: the widest first
DTYPES = {
  'U64': np.uint64, 'I64': np.int64, 'F64': np.float64, 'C64': np.complex64, 'F32': np.float32, 'U32': np.uint32,
  'I32': np.int32, 'BF16': ml_dtypes.bfloat16, 'F16': np.float16, 'U16': np.uint16, 'I16': np.int16,
  'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_,
}  # fmt: skip
WORDS = {np.dtype(dtype): word for word, dtype in DTYPES.items()}
JSON_BYTES = 10_000_000  # of a header or a config: 80,000 arrays; as Python's objects it may take 40 times as many
INDEX = '.safetensors.index.json'
PICKLES = ('.pth', '.pt', '.bin', '.pth.tar')
KINDS = f'.npz, .safetensors, {INDEX}, .pth, .pt or .bin'
WRAPPERS = ('state_dict', 'model', 'model_state', 'model_ema', 'module')  # under which a .pth may keep the weights


class Arrays(Mapping):
  """{name: numpy array} of a file: each is read when it is asked for, and none is kept.

  shapes, dtypes: {name: ...} without reading.   metadata: {str: str} of a .safetensors, else {}.   path: of the file.
  """

  def __init__(self, path, table, read, metadata=None, lend=None):
    """table: {name: (shape, dtype, where)}.   read, lend: (name, shape, dtype, where) -> array; see lent."""
    self.path, self.metadata, self._table, self._read, self._lend = path, metadata or {}, table, read, lend or read
    self.shapes = {name: shape for name, (shape, _, _) in table.items()}
    self.dtypes = {name: np.dtype(dtype) for name, (_, dtype, _) in table.items()}

  def __iter__(self):
    return iter(self.shapes)

  def __len__(self):
    return len(self.shapes)

  def __getitem__(self, name):
    return self._read(name, *self._table[name])

  def lent(self, name):
    """The array where the next lent one may lie, for who copies it at once: fresh memory costs more than reading."""
    return self._lend(name, *self._table[name])


def open_arrays(path, *, unsafe=False, name=None):
  """The Arrays of a file of weights, by the ending of its name.

  unsafe: whether a PyTorch file (.pth, .pt, .bin) may be read, a pickle, through torch.load(weights_only=True).
  name: what the file will be called, where it has another name yet.

  Raises FileNotFoundError, and a ValueError of one line for a file that is damaged, truncated or none of these.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f'{path} is {"a folder" if os.path.isdir(path) else "missing"}; wanted a file {KINDS}.')
  name = name or path
  if name.endswith('.npz'):
    return _npz(path)
  if name.endswith('.safetensors'):
    return _safetensors(path)
  if name.endswith(INDEX):
    return _sharded(path)
  if name.endswith(PICKLES):
    return _torch(path, unsafe)
  raise ValueError(f'{path} is no file of weights by its name; wanted {KINDS}.')


def _safetensors(path):
  size = os.path.getsize(path)
  with open(path, 'rb') as file:
    start = file.read(8)
    length = int.from_bytes(start, 'little')
    if not 2 <= length <= min(size - 8, JSON_BYTES):
      raise _damaged(path, _looks_like(start) or f'{size} bytes, of a header that would have {length}')
    header = file.read(length)
  try:
    entries = json.loads(header.decode(), object_pairs_hook=_once)
    metadata = entries.pop('__metadata__', {})
    if not all(isinstance(word, str) for word in metadata.values()):
      raise ValueError('metadata that are no text')
    table = {name: _spot(name, entry) for name, entry in entries.items()}
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise _damaged(path, f'its header says {error}') from None
  at = 0
  for name, (_, _, (begin, end)) in sorted(table.items(), key=lambda item: item[1][2]):
    if begin != at:
      raise _damaged(path, f'{name} begins at byte {begin} of the data, not at {at}')
    at = end
  if at != size - 8 - length:
    raise _damaged(path, f'its arrays take {at:,} bytes, and {size - 8 - length:,} are there')

  def read(name, shape, dtype, where, room=None):
    # read(2) into memory: a map of the file would end the process if someone truncated the file under it
    given = memory.aligned(where[1] - where[0]) if room is None else room[: where[1] - where[0]]
    with open(path, 'rb') as file:
      file.seek(8 + length + where[0])
      if file.readinto(given) != given.size:
        raise _damaged(path, f'{name} ends early')
    return given.view(dtype).reshape(shape)

  @functools.cache
  def room():
    return memory.aligned(max(end - begin for _, _, (begin, end) in table.values()))

  return Arrays(path, table, read, metadata, lambda *spot: read(*spot, room()))


def _once(pairs):
  """The dict of a JSON object's pairs; a name that comes twice is an error."""
  names = sorted(name for name, _ in pairs)
  for name, following in zip(names, names[1:]):
    if name == following:
      raise ValueError(f'{name} twice')
  return dict(pairs)


def _spot(name, entry):
  """(shape, dtype, (begin, end)) of one array of a safetensors header."""
  shape, (begin, end) = tuple(entry['shape']), entry['data_offsets']
  if entry['dtype'] not in DTYPES:
    raise ValueError(f'{name} is {entry["dtype"]}, a kind of number that numpy does not have')
  if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
    raise ValueError(f'{name} has shape {shape} in bytes {begin} to {end}')
  wanted = math.prod(shape) * np.dtype(DTYPES[entry['dtype']]).itemsize
  if end - begin != wanted:
    raise ValueError(f'{name} {entry["dtype"]} {shape} is {end - begin:,} bytes, not {wanted:,}')
  return shape, DTYPES[entry['dtype']], (begin, end)


def is_shard(name):
  """Whether what an index calls a shard is the name of a .safetensors file beside it."""
  return isinstance(name, str) and os.path.basename(name) == name and name.endswith('.safetensors')


def read_json(path, pairs=dict):
  """The content of a JSON file of at most JSON_BYTES; pairs: makes an object of its (name, value) pairs.

  Raises ValueError, in one line, for what is no JSON, too long or too deep, FileNotFoundError where there is none.
  """
  with open(path, 'rb') as file:
    text = file.read(JSON_BYTES + 1)
  if len(text) > JSON_BYTES:
    raise ValueError(f'{path} has more than {JSON_BYTES:,} bytes; wanted a JSON file that is shorter.')
  try:
    return json.loads(text, object_pairs_hook=pairs)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is damaged ({error}); fetch it again.') from None


def _sharded(path):
  try:
    where = dict(read_json(path, _once)['weight_map'])
    names = sorted(set(where.values()))
    if not all(map(is_shard, names)):
      raise ValueError('shards that are no names of .safetensors files beside it')
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _damaged(path, f'as an index it says {error}') from None
  folder = os.path.dirname(path)
  missing = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
  if missing:
    raise FileNotFoundError(f'{path} misses its shards {", ".join(missing)}; put all of them into one folder.')
  shards = {name: _safetensors(os.path.join(folder, name)) for name in names}
  found = {}
  for file, arrays in shards.items():
    for name in arrays:
      if name in found:
        raise ValueError(f'{path}: {name} is both in {found[name]} and in {file}; download the shards again.')
      found[name] = file
  wrong = sorted({name for name, _ in where.items() ^ found.items()})
  if wrong:
    raise ValueError(f'{path} and its shards differ in where {", ".join(wrong)} are; download index and shards again.')
  table = {name: (shards[file].shapes[name], shards[file].dtypes[name], shards[file]) for name, file in where.items()}
  metadata, lend = next(iter(shards.values())).metadata, lambda name, *_: table[name][2].lent(name)
  return Arrays(path, table, lambda name, *_: table[name][2][name], metadata, lend)


def _npz(path):
  try:
    table = npz.members(path)
  except ValueError as error:
    with open(path, 'rb') as file:
      raise _damaged(path, _looks_like(file.read(8)) or error) from None

  def read(name, *spot):
    try:
      return npz.read(path, name, *spot)
    except ValueError as error:
      raise _damaged(path, f'{name}: {error}') from None

  return Arrays(path, table, read)


def _torch(path, unsafe):
  if not unsafe:
    raise ValueError(
      f'{path} is a PyTorch file, which can hold programs; prefer a .safetensors of the same weights, or give '
      'unsafe=True (--unsafe) to read it with torch.load(weights_only=True).'
    )
  try:
    import torch
  except ImportError:
    raise ValueError(f'{path} needs PyTorch to be read (pip install torch); a .safetensors does not.') from None
  import pickle

  legacy = not zipfile.is_zipfile(path)  # files from before torch 1.6 cannot be mapped
  try:
    given = torch.load(path, map_location='cpu', weights_only=True, mmap=not legacy)
  except (pickle.UnpicklingError, *npz.ERRORS, AttributeError) as error:
    reason = str(error).partition('\n')[0].partition('. ')[0]
    raise ValueError(f'torch.load does not read {path} ({type(error).__name__}: {reason}).') from None
  while isinstance(given, Mapping) and (word := next((w for w in WRAPPERS if isinstance(given.get(w), Mapping)), None)):
    given = given[word]
  pairs = given.items() if isinstance(given, Mapping) else ()
  tensors = {name: value for name, value in pairs if isinstance(value, torch.Tensor)}
  if not tensors:
    raise ValueError(f'{path} holds no tensors by name; wanted a state dict.')
  strip = 'module.' if all(name.startswith('module.') for name in tensors) else ''
  table = {
    name.removeprefix(strip): (tuple(t.shape), _numpy_dtype(path, name, str(t.dtype)), t.detach())
    for name, t in tensors.items()
  }

  def read(name, shape, dtype, where):
    if dtype == ml_dtypes.bfloat16:  # which torch does not hand to numpy
      return where.contiguous().view(torch.int16).numpy().view(dtype).copy()
    return where.numpy().copy()

  return Arrays(path, table, read)


def _numpy_dtype(path, name, word):
  """numpy's dtype of torch's ('torch.float32')."""
  try:
    return np.dtype(ml_dtypes.bfloat16 if word == 'torch.bfloat16' else word.removeprefix('torch.'))
  except TypeError:
    raise ValueError(f'{path}: {name} is {word}, a kind of number that numpy does not have.') from None


def _damaged(path, reason):
  return ValueError(f'{path} is damaged or no {os.path.splitext(path)[1]} ({reason}); download or copy it again.')


def _looks_like(start):
  """What the first bytes of a file say it is instead, or None."""
  kinds = {b'version ': 'a Git LFS pointer to the weights', b'<': 'a web page'}
  return next((kind for mark, kind in kinds.items() if start.startswith(mark)), None)


def save_safetensors(path, arrays, metadata=None):
  """Writes (name, array) pairs as one .safetensors file, whole or not at all; to the bit what the library writes.

  arrays: an iterable; one array is in memory at a time. They wait in a file beside `path`, because the header, which
  comes first, has the shapes of all.   metadata: {str: str}.   Raises ValueError, and OSError where the disk is full.
  """
  with _replacing(path) as file, _replacing(path, keep=False) as spool:
    spots = {}
    for name, array in arrays:
      array = np.asarray(array)
      if array.dtype not in WORDS or name in spots:
        raise ValueError(f'{name} {"comes twice" if name in spots else array.dtype}: no .safetensors can hold it.')
      spots[name] = WORDS[array.dtype], array.shape, spool.tell(), array.nbytes
      spool.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    names = sorted(spots, key=lambda name: ([*DTYPES].index(spots[name][0]), name))  # widest first: all are aligned
    header, at = {'__metadata__': metadata} if metadata else {}, 0
    for name in names:
      word, shape, _, size = spots[name]
      header[name] = {'dtype': word, 'shape': list(shape), 'data_offsets': [at, at + size]}
      at += size
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
    text += b' ' * (-len(text) % 8)
    file.write(len(text).to_bytes(8, 'little') + text)
    for name in names:
      _, _, begin, size = spots[name]
      spool.seek(begin)
      for at in range(0, size, 1 << 22):
        file.write(spool.read(min(size - at, 1 << 22)))


def save_npz(path, arrays):
  """Writes (name, array) pairs as one .npz file (stored, not packed), whole or not at all, one array at a time.

  A bfloat16 is written as numpy does, as 2 bytes without a name. Raises OSError where the disk is full.
  """
  names = set()
  with _replacing(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
    for name, array in arrays:
      array = np.ascontiguousarray(array).reshape(np.shape(array))
      if array.dtype.hasobject or name in names:
        raise ValueError(f'{name} {"comes twice" if name in names else "holds objects"}: no .npz of ours can hold it.')
      names.add(name)
      member = zipfile.ZipInfo(f'{name}.npy')  # dated 1980: the same arrays give the same bytes
      with archive.open(member, 'w', force_zip64=True) as target:
        array = array.view('V2') if array.dtype == ml_dtypes.bfloat16 else array
        np.lib.format.write_array(target, array, allow_pickle=False)


@contextlib.contextmanager
def _replacing(path, keep=True):
  """A file beside `path` to write and read, which takes its place at the end; after an error nothing is left."""
  path = os.fspath(path)
  temporary = f'{path}.{os.getpid()}.{"tmp" if keep else "spool"}'
  try:
    with open(temporary, 'w+b') as file:
      yield file
      if keep:
        file.flush()
        os.fsync(file.fileno())
    if keep:
      os.replace(temporary, path)
  except OSError as error:
    if error.filename:
      raise
    raise OSError(error.errno, f'{error.strerror}; nothing was written', path) from None
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(temporary)
