"""Bytes of weights: read is what was written, in every form, and what is wrong is one line that names the file."""

import io
import json
import os
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vit_jax import formats


def arrays():
  rng = np.random.default_rng(0)
  return {
    'blocks.0.weight': rng.standard_normal((3, 5), np.float32),
    'count': np.array(7),
    'half': rng.standard_normal((4,)).astype(np.float16),
    'brain': rng.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
    'empty': np.zeros((0, 4), np.float32),
    'bytes': np.arange(3, dtype=np.int8),
    'true': np.array([True, False]),
  }


def same(found, wanted):
  assert set(found) == set(wanted)
  for name, array in wanted.items():
    assert found.shapes[name] == array.shape and found.dtypes[name] == array.dtype
    assert found[name].shape == array.shape and found[name].dtype == array.dtype
    assert found[name].tobytes() == array.tobytes()


def one_line(error, *words):
  text = str(error.value)
  assert '\n' not in text
  for word in words:
    assert word in text, text


def test_what_is_written_is_read_to_the_bit(tmp_path):
  given = arrays()
  formats.save_npz(tmp_path / 'a.npz', given.items())
  same(formats.open_arrays(tmp_path / 'a.npz'), given)
  formats.save_safetensors(tmp_path / 'a.safetensors', iter(given.items()), {'format': 'pt'})
  found = formats.open_arrays(str(tmp_path / 'a.safetensors'))
  same(found, given)
  assert found.metadata == {'format': 'pt'} and found.path == str(tmp_path / 'a.safetensors')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.npz', 'a.safetensors']


def test_safetensors_are_those_of_the_library(tmp_path):
  library = pytest.importorskip('safetensors.numpy')
  given = arrays() | {'view': np.arange(12, dtype=np.float32).reshape(3, 4).T}
  library.save_file({k: np.array(v, order='C') for k, v in given.items()}, tmp_path / 'b.safetensors', {'ü': 'é'})
  formats.save_safetensors(tmp_path / 'a.safetensors', given.items(), {'ü': 'é'})
  same(formats.open_arrays(tmp_path / 'b.safetensors'), given)
  assert (tmp_path / 'a.safetensors').read_bytes() == (tmp_path / 'b.safetensors').read_bytes()


def test_numpy_reads_our_npz_and_we_numpys(tmp_path):
  given = arrays()
  formats.save_npz(tmp_path / 'a.npz', given.items())
  with np.load(tmp_path / 'a.npz') as theirs:
    assert theirs['brain'].view(ml_dtypes.bfloat16).tobytes() == given['brain'].tobytes()
    np.testing.assert_array_equal(theirs['blocks.0.weight'], given['blocks.0.weight'])
  odd = {'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)), 'big': np.arange(4, dtype='>f4'),
         'opt/target/a': np.ones(2, np.float32)}  # fmt: skip
  np.savez_compressed(tmp_path / 'b.npz', **odd)
  found = formats.open_arrays(tmp_path / 'b.npz')
  assert found.dtypes['big'] == np.dtype('<f4') == found['big'].dtype
  for name, array in odd.items():
    np.testing.assert_array_equal(found[name], array)


def shards(folder, split, where=None):
  given = arrays()
  names = {file: list(given)[part] for file, part in split.items()}
  for file, some in names.items():
    formats.save_safetensors(folder / file, [(name, given[name]) for name in some], {'format': 'pt'})
  where = where or {name: file for file, some in names.items() for name in some}
  path = folder / 'model.safetensors.index.json'
  path.write_text(json.dumps({'metadata': {'total_size': 1}, 'weight_map': where}))
  return path, where


SPLIT = {'model-1.safetensors': slice(0, 3), 'model-2.safetensors': slice(3, None)}


def test_shards_are_one_file(tmp_path):
  path, _ = shards(tmp_path, SPLIT)
  same(formats.open_arrays(path), arrays())
  assert formats.open_arrays(path).metadata == {'format': 'pt'}


def test_shards_that_miss_or_repeat_something_are_named(tmp_path):
  path, where = shards(tmp_path, SPLIT)
  os.rename(tmp_path / 'model-2.safetensors', tmp_path / 'x')
  with pytest.raises(FileNotFoundError) as error:
    formats.open_arrays(path)
  one_line(error, 'model-2.safetensors', str(path))
  path, _ = shards(tmp_path, {'model-1.safetensors': slice(0, 4), 'model-2.safetensors': slice(3, None)}, where)
  with pytest.raises(ValueError) as error:
    formats.open_arrays(path)
  one_line(error, 'brain', 'model-1.safetensors', 'model-2.safetensors')
  path, _ = shards(tmp_path, SPLIT, {name: file for name, file in where.items() if name != 'half'})
  with pytest.raises(ValueError) as error:
    formats.open_arrays(path)
  one_line(error, 'half')
  for wrong in ('{', '[]', '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": 3}}'):
    path.write_text(wrong)
    with pytest.raises(ValueError) as error:
      formats.open_arrays(path)
    one_line(error, str(path))


def header(entries, data=b'', length=None):
  text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
  return struct.pack('<Q', len(text) if length is None else length) + text + data


F32 = dict(dtype='F32', shape=[2], data_offsets=[0, 8])


@pytest.mark.parametrize(
  'content, word',
  [
    (b'', '0 bytes'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
    (b'<!DOCTYPE html><html>', 'web page'),
    (header({}, length=2**62), str(2**62)),
    (header(b'{"a": '), 'header'),
    (header(b'[' * 100_000), 'header'),
    (header(b'\xff\xfe  '), 'header'),
    (header([1]), 'header'),
    (header({'a': F32}, bytes(7)), '7 are there'),
    (header({'a': F32}, bytes(9)), '9 are there'),
    (header({'a': F32 | {'shape': [3]}}, bytes(8)), '12'),
    (header({'a': F32 | {'shape': [-1, -2]}}, bytes(8)), 'shape'),
    (header({'a': F32 | {'shape': [1.5]}}, bytes(8)), 'shape'),
    (header({'a': F32 | {'dtype': 'F6_E2M3'}}, bytes(8)), 'F6_E2M3'),
    (header({'a': F32, 'b': F32}, bytes(8)), 'b begins at byte 0'),
    (header({'a': F32 | {'data_offsets': [4, 12]}}, bytes(12)), 'a begins at byte 4'),
    (header({'a': {'dtype': 'F32'}}), 'shape'),
    (header(b'{"a": %s, "a": %s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)), 'a twice'),
  ],
)
def test_a_damaged_safetensors_is_refused_by_name(tmp_path, content, word):
  path = tmp_path / 'w.safetensors'
  path.write_bytes(content)
  with pytest.raises(ValueError) as error:
    formats.open_arrays(path)
  one_line(error, str(path), word)


def test_a_file_cut_while_it_is_open_is_an_error_and_no_crash(tmp_path):
  path = tmp_path / 'w.safetensors'
  formats.save_safetensors(path, arrays().items())
  found = formats.open_arrays(path)
  os.truncate(path, os.path.getsize(path) - 40)
  with pytest.raises(ValueError) as error:
    dict(found)
  one_line(error, str(path), 'ends early')


def member(array, name='a.npy', raw=None, **options):
  """The bytes of an .npz of one array; raw replaces those of the member."""
  data = io.BytesIO()
  np.save(data, array, **options)
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr(name, data.getvalue() if raw is None else raw(data.getvalue()))
  return out.getvalue()


def lie(old, new):
  return lambda data: data.replace(old, new + b' ' * (len(old) - len(new)))


@pytest.mark.parametrize(
  'content, word',
  [
    (b'', 'a.npz'),
    (b'\x93NUMPY', 'a.npz'),
    (member(np.array([{}, 1], object), allow_pickle=True), 'objects'),
    (member(np.zeros(2, [('x', 'f4')])), 'not numbers'),
    (member(np.array(['a'])), 'not numbers'),
    (member(np.zeros(12345), raw=lie(b'(12345,)', b'(99999,)')), '99999'),
    (member(np.zeros(12345), raw=lie(b'(12345,)', b'(-1234,)')), '-1234'),
    (member(np.zeros(12345), raw=lambda data: data[:-8]), '12345'),
    (member(np.zeros(2), raw=lambda data: b'x'), 'a.npz'),
    (member(np.zeros(2), raw=lambda data: data.replace(b'descr', b'xescr')), 'a.npz'),
    (member(np.zeros(12345))[:-30], 'a.npz'),
  ],
)
def test_a_damaged_npz_is_refused_by_name(tmp_path, content, word):
  path = tmp_path / 'a.npz'
  path.write_bytes(content)
  with pytest.raises(ValueError) as error:
    formats.open_arrays(path)
  one_line(error, str(path), word)


def test_a_member_that_was_altered_or_bursts_is_refused_by_name(tmp_path):
  path = tmp_path / 'a.npz'
  formats.save_npz(path, [('layer/kernel', np.arange(1000.0))])
  content = bytearray(path.read_bytes())
  content[4000] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError) as error:
    formats.open_arrays(path)['layer/kernel']
  one_line(error, str(path), 'layer/kernel', 'CRC')
  # a central directory that claims more than deflate can hold; the header of the array agrees with it
  content = member(np.zeros(10), raw=lie(b'(10,), }            ', b'(1000000000,), }'))
  size = struct.pack('<I', 80 + 128)
  assert content.count(size) == 2
  path.write_bytes(content.replace(size, struct.pack('<I', 8_000_000_128 % 2**32)))
  with pytest.raises(ValueError) as error:
    formats.open_arrays(path)
  one_line(error, str(path))


def test_what_is_no_file_of_weights(tmp_path):
  (tmp_path / 'a.txt').write_text('')
  with pytest.raises(ValueError) as error:
    formats.open_arrays(tmp_path / 'a.txt')
  one_line(error, 'a.txt', '.safetensors')
  for path in (tmp_path / 'missing.npz', tmp_path):
    with pytest.raises(FileNotFoundError) as error:
      formats.open_arrays(path)
    one_line(error, str(path))


class Tensor:
  """As much of a torch.Tensor as a state dict needs."""

  def __init__(self, array, dtype=None):
    self.array, self.shape, self.dtype = array, array.shape, f'torch.{dtype or array.dtype}'

  def detach(self):
    return self

  contiguous = detach

  def numpy(self):
    return self.array

  def view(self, dtype):
    return Tensor(self.array.view(dtype))


def test_a_pickle_is_read_on_demand_only_and_by_torch(tmp_path, monkeypatch):
  path = tmp_path / 'a.pth'
  path.write_bytes(b'x')
  with pytest.raises(ValueError) as error:
    formats.open_arrays(path)
  one_line(error, str(path), 'unsafe=True', '--unsafe')
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(ValueError) as error:
    formats.open_arrays(path, unsafe=True)
  one_line(error, 'pip install torch')

  weights = {'module.a': Tensor(np.ones(3, np.float32)), 'module.b': Tensor(np.ones(2, np.uint16), 'bfloat16')}
  calls = []

  def load(path, **options):
    calls.append(options)
    return {'epoch': 3, 'model': {'state_dict': weights | {'module.step': 3}}}

  torch = types.SimpleNamespace(load=load, Tensor=Tensor, int16=np.int16)
  monkeypatch.setitem(sys.modules, 'torch', torch)
  found = formats.open_arrays(path, unsafe=True)
  assert calls == [{'map_location': 'cpu', 'weights_only': True, 'mmap': False}]
  assert found.shapes == {'a': (3,), 'b': (2,)} and found.dtypes['b'] == ml_dtypes.bfloat16 == found['b'].dtype
  np.testing.assert_array_equal(found['a'], np.ones(3, np.float32))

  torch.load = lambda path, **options: (_ for _ in ()).throw(RuntimeError('Unsupported\nmore'))
  with pytest.raises(ValueError) as error:
    formats.open_arrays(path, unsafe=True)
  one_line(error, str(path), 'Unsupported')
  torch.load = lambda path, **options: [1]
  with pytest.raises(ValueError) as error:
    formats.open_arrays(path, unsafe=True)
  one_line(error, 'no tensors')


@pytest.mark.peer
def test_a_real_pickle(tmp_path):
  torch = pytest.importorskip('torch')
  given = {'a': torch.arange(6.0).reshape(2, 3).T, 'b': torch.ones(2, dtype=torch.bfloat16)}
  torch.save({'model': given}, tmp_path / 'a.pth')
  torch.save({'state_dict': given}, tmp_path / 'b.bin', _use_new_zipfile_serialization=False)
  torch.save({'model': given, 'args': types.SimpleNamespace(a=1)}, tmp_path / 'c.pt')
  for name in ('a.pth', 'b.bin'):
    found = formats.open_arrays(tmp_path / name, unsafe=True)
    np.testing.assert_array_equal(found['a'], given['a'].numpy())
    np.testing.assert_array_equal(found['b'].astype(np.float32), np.ones(2))
  with pytest.raises(ValueError) as error:
    formats.open_arrays(tmp_path / 'c.pt', unsafe=True)
  one_line(error, 'c.pt')


@pytest.mark.parametrize('save', [formats.save_safetensors, formats.save_npz])
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, save):
  path = tmp_path / ('w.npz' if save is formats.save_npz else 'w.safetensors')
  save(path, [('old', np.ones(3))])

  def broken():
    yield 'a', np.ones(100_000)
    raise RuntimeError

  for wrong, kind in ((broken(), RuntimeError), ([('a', np.ones(1)), ('a', np.ones(1))], ValueError),
                      ([('a', np.array([{}]))], ValueError)):  # fmt: skip
    with pytest.raises(kind):
      save(path, wrong)
  assert list(formats.open_arrays(path)) == ['old']
  assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_nothing_behind(tmp_path):
  import resource

  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  for save, name in ((formats.save_safetensors, 'w.safetensors'), (formats.save_npz, 'w.npz')):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
      with pytest.raises(OSError) as error:
        save(tmp_path / name, [('a', np.ones(100_000))])
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, old)
    one_line(error, 'nothing was written', name)
  assert not list(tmp_path.iterdir())


def test_one_array_is_in_memory_at_a_time(tmp_path):
  import tracemalloc

  size = 1 << 20
  path = tmp_path / 'w.safetensors'
  tracemalloc.start()
  formats.save_safetensors(path, ((str(i), np.full(size // 4, i, np.float32)) for i in range(16)))
  found = formats.open_arrays(path)
  total = sum(float(found[name][0]) for name in found)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert total == sum(range(16)) and peak < 4 * size  # the file's 16 would be 16 * size
