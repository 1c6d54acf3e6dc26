"""The arrays of an .npz file, which may come from anybody: {name: what and where}, and one array at a time.

All that a zip file and the headers in it say is held against the file's size before memory is taken or a byte unpacked:
members that lie over one another, packings that numpy never writes, sizes that do not agree, and bombs. Nothing is
unpickled. Sources: numpy.lib.format, PKWARE's APPNOTE, and D. Fifield, A better zip bomb (WOOT 2019).
"""

import contextlib
import math
import os
import struct
import tokenize
import zipfile
import zlib

import ml_dtypes
import numpy as np

NUMBERS = 'biufc'  # kinds of numpy's dtypes
RATIO = 64  # of a file to all that it unpacks to, over ALLOWANCE: weights shrink by a tenth, pictures of digits tenfold
ALLOWANCE = 2**29  # bytes
ERRORS = (
  zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError,
  SyntaxError, TypeError, LookupError, OverflowError, MemoryError, tokenize.TokenError,  # a header is parsed as Python
)  # fmt: skip


@contextlib.contextmanager
def refusing():
  """Has whatever damaged bytes raise become a ValueError of one line."""
  try:
    yield
  except ERRORS as error:
    raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from None


def bursts(size, whole, allowance=ALLOWANCE):
  """Whether a file of `size` bytes would unpack to so much that it must be a bomb."""
  return whole > RATIO * size + allowance


def members(path, kinds=NUMBERS):
  """{name: (shape, dtype, where)} of an .npz; nothing but headers is read.

  kinds: of dtypes that may be there; 'U', text, beside numbers.   Raises ValueError with the reason, without the path.
  """
  table = {}
  with refusing(), zipfile.ZipFile(path) as archive:
    _check(archive.infolist(), os.path.getsize(path))
    for info in archive.infolist():
      name = info.filename.removesuffix('.npy')
      if name in table:
        raise ValueError(f'it holds {name} twice')
      with archive.open(info) as file:
        table[name] = _header(file, info, kinds)
  return table


def read(path, name, shape, dtype, where):
  """The array of a member, as `members` describes it. Raises ValueError with the reason, without the path."""
  info, begin, given, fortran = where
  with refusing():
    with zipfile.ZipFile(path) as archive, archive.open(info.filename) as file:
      flat, at = np.empty(info.file_size, np.uint8), 0
      while chunk := file.read(1 << 20):  # the last one checks the crc of all
        flat[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
        at += len(chunk)
    if at != info.file_size:
      raise ValueError(f'it ends after {at:,} of {info.file_size:,} bytes')
    array = flat[begin:].view(given).reshape(shape, order='F' if fortran else 'C')
    return array if given == dtype else array.view(dtype) if given.kind == 'V' else array.astype(dtype)


def _check(infos, size):
  """Raises ValueError for a directory that does not fit a file of `size` bytes."""
  for info in infos:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise ValueError(f'{info.filename} is packed by another method than deflate')
    if info.file_size > 1100 * info.compress_size + 1100:  # deflate packs to no less than a 1032nd
      raise ValueError(f'{info.filename} would unpack {info.compress_size:,} bytes to {info.file_size:,}')
  packed, whole = (sum(getattr(info, word) for info in infos) for word in ('compress_size', 'file_size'))
  if packed > size:
    raise ValueError(f'its members would take {packed:,} of its {size:,} bytes: they lie over one another')
  if bursts(size, whole):
    raise ValueError(f'it would unpack {size:,} bytes to {whole:,}; if you trust it, write it again unpacked: np.savez')


def _header(file, info, kinds):
  """(shape, dtype, (info, where data begin, dtype as written, column-major)) of a member; nothing else is read."""
  version = np.lib.format.read_magic(file)
  if version not in ((1, 0), (2, 0)):
    raise ValueError(f'{info.filename} is written in version {version} of the .npy format')
  lib = np.lib.format
  shape, fortran, given = (lib.read_array_header_1_0 if version == (1, 0) else lib.read_array_header_2_0)(file)
  if given.hasobject:
    raise ValueError(f'{info.filename} holds Python objects, which would have to be unpickled')
  bits = given.kind == 'V' and given.itemsize == 2 and given.names is None  # how numpy writes a bfloat16
  if given.kind not in kinds and not bits:
    raise ValueError(f'{info.filename} holds {given}, not numbers')
  begin = file.tell()
  if info.file_size != begin + math.prod(shape) * given.itemsize or any(n < 0 for n in shape):
    raise ValueError(f'{info.filename} would have {given} {shape}, in {info.file_size - begin:,} bytes')
  dtype = np.dtype(ml_dtypes.bfloat16) if bits else given.newbyteorder('=')
  return tuple(shape), dtype, (info, begin, given, fortran)
