"""Files that mean harm, each written into a folder of its own: weights, configs, runs, archives, tables, pictures.

A maker takes a Room and returns attempts: what a user would do with the file, as a list of words after `vit_jax` or as
a function. MALICE names them all; HARMLESS are those that may be used and run nothing; DOORS need an explicit word.
"""

import io
import json
import os
import pathlib
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).absolute().parent.parent))

import hostile  # noqa: E402
from test_formats import F32, header, lie, member  # noqa: E402

TINY = dict(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=10)
NAME = 'vit_tiny_patch16_224'
TIB = 2**42  # four of them
DEEP = 100_000  # brackets in each other
BLOCK = 1 << 24


class Room:
  """Where one case lives: folder (the user's current one, with the file), out (may be written to), sentinel.

  good: {'timm', 'hf', 'run', 'npz'}: what an honest model looks like.   command: what a payload would run.
  """

  def __init__(self, root, good):
    self.root, self.good = pathlib.Path(root), good
    self.folder, self.out, self.sentinel = self.root / 'folder', self.root / 'out', self.root / 'sentinel'
    self.folder.mkdir(parents=True)
    self.out.mkdir()
    self.command = f'touch {self.sentinel}'

  def write(self, name, content):
    """The path of a file with these bytes, this text or this JSON."""
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content if isinstance(content, (bytes, str)) else json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path

  def copy(self, kind, **changed):
    """A copy of an honest folder in which JSON files have other values: {'config_json': change(content)}."""
    for file in self.good[kind].rglob('*'):
      if file.is_file():
        self.write(f'model/{file.relative_to(self.good[kind])}', file.read_bytes())
    for name, change in changed.items():
      path = self.folder / 'model' / f'{name.removesuffix("_json")}.json'
      content = change(json.loads(path.read_text()))
      path.write_text(content if isinstance(content, str) else json.dumps(content))
    return self.folder / 'model'


# ---- what is done with them


def weights(room, path, *words):
  """The ways in which weights are used."""
  import vit_jax

  flags = [f'--model={path}', *words]
  unsafe = '--unsafe' in words
  return [
    lambda: vit_jax.load(path, unsafe=unsafe),
    lambda: vit_jax.create_model(NAME, pretrained=path, unsafe=unsafe, **TINY),
    ['evaluate', *flags, '--data=digits'],
    ['predict', *flags, str(room.good['picture'])],
    ['show', str(path), *words],
    ['export', *flags, '--to=timm', str(room.out / 'exported')],
    ['hub', 'push', *flags, 'ann/evil', '--dry_run', f'--out={room.out / "hub"}'],
  ]


def data(room, path, split='train'):
  """The ways in which a data set is used: it is opened, evaluated, trained on."""
  from vit_jax import data as data_lib
  from vit_jax import transforms

  def load():
    loaded = data_lib.load(str(path), size=8, train=split, test=None)
    for i in range(len(loaded.train)):
      transforms.decode(loaded.train[i]['image'])

  model = f'--model={room.good["timm"]}'
  train = f'--config=folder:{room.good["timm"]},{path}'
  return [
    load,
    ['evaluate', model, f'--data={path}', f'--split={split}'],
    ['train', train, '--config.total_steps=2', f'--config.data.train={split}', f'--workdir={room.out / "run"}'],
  ]


def pictures(room, *paths):
  """The ways in which a picture is used."""
  import vit_jax

  model = str(room.good['timm'])
  return [['predict', f'--model={model}', *map(str, paths)], *(lambda p=p: vit_jax.predict(model, p) for p in paths)]


# ---- pickles


class Call:
  """Pickled as a call of a function."""

  def __init__(self, function, *arguments):
    self.what = function, arguments

  def __reduce__(self):
    return self.what


def system(room, protocol=2):
  """A pickle that runs a command."""
  return pickle.dumps(Call(os.system, room.command), protocol)


def execute(room):
  """A pickle that runs Python."""
  return pickle.dumps(Call(exec, f'import os; os.system({room.command!r})'), 2)


def scalar(room):
  """A pickle of a numpy scalar, as many state dicts hold them, whose value is a call."""
  return pickle.dumps(Call(np._core.multiarray.scalar, np.dtype(object), Call(os.system, room.command)), 2)


def torch_zip(room):
  """A file as torch.save writes it, with a data.pkl that runs a command."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    archive.writestr('archive/data.pkl', system(room))
    archive.writestr('archive/version', '3\n')
    archive.writestr('archive/data/0', bytes(64))
  return out.getvalue()


def objects(room, name='a.npy'):
  """An .npz of an array of objects, one of which runs a command."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive, archive.open(name, 'w') as file:
    np.lib.format.write_array(file, np.array([Call(os.system, room.command)], object), allow_pickle=True)
  return out.getvalue()


def pickled(suffix, payload, *words):
  """The maker of a case with a pickle under a name with this suffix."""
  return lambda room: weights(room, room.write(f'w{suffix}', payload(room)), *words)


def pickled_folder(room):
  room.write('model/pytorch_model.bin', torch_zip(room))
  room.write('model/config.json', (room.good['hf'] / 'config.json').read_text())
  return weights(room, room.folder / 'model')


def pickled_data(name):
  """The maker of a case with arrays of objects as a data set."""

  def make(room):
    split = {'x_train': np.zeros((4, 8, 8), np.uint8), 'y_train': np.arange(4), 'classes': np.array(list('0123'))}
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
      for key, array in split.items():
        with archive.open(f'{key}.npy', 'w') as file:
          evil = np.array([Call(os.system, room.command)] * 4, object) if key == name else array
          np.lib.format.write_array(file, evil, allow_pickle=True)
    return data(room, room.write('d.npz', out.getvalue()))

  return make


def no_data(suffix, payload):
  """The maker of a case with a file that is no data set."""
  return lambda room: data(room, room.write(f'd{suffix}', payload(room)))


# ---- .npz: headers that lie, bombs, zip files that no honest program writes

ONE = np.zeros(12345)
LIES = {
  'a header that claims 4 TiB': lie(b'(12345,)', b'(%d,)' % (TIB // 8)),
  'a negative shape': lie(b'(12345,)', b'(-1,)'),
  'two negative sizes': lie(b'(12345,)', b'(-5,-2469)'),
  'a size of 60 digits': lie(b'(12345,), }' + b' ' * 50, b'(1' + b'0' * 50 + b',), }'),
  'a shape of text': lie(b'(12345,)', b"('a',)"),
  'a header that is a call': lie(b"{'descr': '<f8', 'fortran_order': False, 'shape'", b"__import__('os').system('id')"),
  'a header of minus signs': lambda data: npy(b'-' * 9000 + b'1'),
  'a header of brackets': lambda data: npy(b'[' * 9000),
  'a dtype of 4 TiB': lambda data: npy(b"{'descr': '|V%d', 'fortran_order': False, 'shape': (1,)}" % (2**31 - 1)),
  'a header longer than the file': lambda data: b'\x93NUMPY\x02\x00' + struct.pack('<I', 2**32 - 1) + b'{',
}


def npy(text):
  """An .npy with this header, and no data."""
  return b'\x93NUMPY\x02\x00' + struct.pack('<I', len(text) + 1) + text + b'\n'


def lying_weights(change):
  """The maker of weights whose header lies."""
  return lambda room: weights(room, room.write('w.npz', member(ONE, raw=change)))


def lying_data(change):
  """The maker of a data set whose header lies."""

  def make(room):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as archive:
      for name, array in (('x_train', ONE), ('y_train', np.arange(4))):
        raw = io.BytesIO()
        np.save(raw, array)
        archive.writestr(f'{name}.npy', change(raw.getvalue()) if name == 'x_train' else raw.getvalue())
    return data(room, room.write('d.npz', out.getvalue()))

  return make


def deflated(head, size):
  """(deflate data of `head` and then `size` zeros, how long they are, their crc); quick, because blocks repeat."""
  squeeze, block = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(BLOCK)
  out = squeeze.compress(head) + squeeze.flush(zlib.Z_FULL_FLUSH)
  packed = squeeze.compress(block) + squeeze.flush(zlib.Z_FULL_FLUSH)
  return out + packed * (size // BLOCK) + squeeze.flush(), len(head) + size // BLOCK * BLOCK


def bomb(name, dtype, shape):
  """A member for raw_zip: an array of zeros, packed as tight as deflate can; its crc is wrong, for nobody to see."""
  text = io.BytesIO()
  np.lib.format.write_array_header_1_0(text, {'descr': dtype, 'fortran_order': False, 'shape': shape})
  packed, size = deflated(text.getvalue(), int(np.prod(shape)) * np.dtype(dtype).itemsize)
  return f'{name}.npy', packed, size


def raw_zip(members, others=()):
  """A zip file of (name, deflate data, size that is claimed), and of arrays."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    for name, array in others:
      with archive.open(f'{name}.npy', 'w') as file:
        np.lib.format.write_array(file, array)
    for name, packed, size in members:
      info = zipfile.ZipInfo(name)
      info.header_offset, info.compress_type, info.flag_bits = out.tell(), zipfile.ZIP_DEFLATED, 0
      info.file_size, info.compress_size, info.CRC = size, len(packed), 0
      out.write(info.FileHeader(zip64=True) + packed)
      archive.filelist.append(info)
      archive.NameToInfo[name] = info
      archive.start_dir, archive._didModify = out.tell(), True
  return out.getvalue()


def bomb_weights(room):
  """20 GB of zeros for a head of 27 million classes, in a Google .npz that is right in all else."""
  with np.load(room.good['npz']) as file:
    arrays = [(name, file[name]) for name in file.files if name != 'head/kernel']
  classes = 20 * 10**9 // 4 // 16 // 2**20 * 2**20
  arrays = [(name, array) for name, array in arrays if name != 'head/bias']
  packed = [bomb('head/kernel', '<f4', (16, classes)), bomb('head/bias', '<f4', (classes,))]
  return weights(room, room.write('w.npz', raw_zip(packed, arrays)))


def bomb_data(room):
  """16 GB of black pictures in 16 MB."""
  n = 16 * 2**30 // 64
  path = room.write('d.npz', raw_zip([bomb('x_train', '|u1', (n, 8, 8))], [('y_train', np.zeros(4, np.int64))]))
  return data(room, path)


def overlapping(room):
  """A thousand members that are one and the same, as in Fifield's bombs."""
  out = io.BytesIO()
  raw = io.BytesIO()
  np.save(raw, np.zeros(2**20))
  with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('a.npy', raw.getvalue())
    [info] = archive.filelist
    for i in range(1000):
      other = zipfile.ZipInfo(f'a{i}.npy')
      for key in ('header_offset', 'compress_type', 'file_size', 'compress_size', 'CRC'):
        setattr(other, key, getattr(info, key))
      archive.filelist.append(other)
  return weights(room, room.write('w.npz', out.getvalue()))


def packed_otherwise(method):
  """The maker of an .npz whose member is packed by bzip2 or lzma, whose decoders take what a header asks for."""

  def make(room):
    out, raw = io.BytesIO(), io.BytesIO()
    np.save(raw, np.zeros(2**24))
    with zipfile.ZipFile(out, 'w', method) as archive:
      archive.writestr('a.npy', raw.getvalue())
    return weights(room, room.write('w.npz', out.getvalue()))

  return make


def climbing_zip(room):
  """Members that would lie outside."""
  out, raw = io.BytesIO(), io.BytesIO()
  np.save(raw, np.zeros(3))
  with zipfile.ZipFile(out, 'w') as archive:
    for name in ('../../escaped.npy', f'{room.root}/absolute.npy', '..\\escaped.npy'):
      archive.writestr(name, raw.getvalue())
  return weights(room, room.write('w.npz', out.getvalue()))


# ---- .safetensors and folders


def tensors(content):
  """The maker of a .safetensors with these bytes."""
  return lambda room: weights(room, room.write('w.safetensors', content() if callable(content) else content))


SAFETENSORS = {
  'a header of 4 TiB': lambda: struct.pack('<Q', TIB) + b'{}' + bytes(100),
  'a header of 100 MB of objects': lambda: header(b'{"a":[' + b'{},' * 33_000_000 + b'{}]}'),
  'a header in itself 100,000 times': lambda: header(b'{"a":' * DEEP),
  'overlapping arrays': lambda: header({'a': F32, 'b': F32 | {'data_offsets': [4, 12]}}, bytes(12)),
  'an array outside of the file': lambda: header({'a': F32 | {'data_offsets': [2**40, 2**40 + 8]}}, bytes(8)),
  'an array of 4 TiB': lambda: header({'a': F32 | {'shape': [TIB // 4], 'data_offsets': [0, TIB]}}, bytes(8)),
  'a size of 5,000 digits': lambda: header(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % (b'9' * 5000)),
  'an array twice': lambda: header(b'{"a": %s, "a": %s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
  'metadata that are no text': lambda: header({'__metadata__': [1], 'a': F32}, bytes(8)),
  'metadata 100,000 deep': lambda: header({'__metadata__': {'model_args': '[' * DEEP}, 'a': F32}, bytes(8)),
  'a name that moves the cursor': lambda: header({'\x1b[2J\x1b[Hfine\r\n': F32}, bytes(8)),
}


def sharded(where):
  """The maker of shards that lie elsewhere."""

  def make(room):
    (room.root / 'outside.safetensors').write_bytes((room.good['timm'] / 'model.safetensors').read_bytes())
    content = where(room) if callable(where) else where
    return weights(room, room.write('model.safetensors.index.json', content))

  return make


def mapped(shard):
  """The maker of shards in a file of this name."""
  return sharded(lambda room: {'weight_map': {'norm.bias': shard.replace('ROOT', str(room.root))}})


def folder(kind, **changed):
  """The maker of a folder of weights whose JSON files say something else."""
  return lambda room: weights(room, room.copy(kind, **changed))


def custom_code(room):
  """A Hugging Face folder with code of its own, and a config that asks for it."""
  path = room.copy(
    'hf',
    config_json=lambda config: (
      config
      | {'model_type': 'evil', 'auto_map': {'AutoConfig': 'modeling_evil.Evil', 'AutoModel': 'modeling_evil.Evil'}}
    ),
  )
  for name in ('modeling_evil.py', 'config.py', '__init__.py', 'conftest.py'):
    (path / name).write_text(f'import os\nos.system({room.command!r})\nclass Evil: pass\n')
  return weights(room, path)


def planted(room, *folders):
  """Writes programs under names that somebody might import, into folders of a room."""
  for folder in folders:
    for name in PLANTED:
      room.write(f'{folder}/{name}.py', f'import os\nos.system({room.command!r})\n')


PLANTED = ('jax', 'numpy', 'flax', 'ml_collections', 'json', 'csv', 'argparse', 'sitecustomize', 'usercustomize',
           'conftest', 'setup', 'config', 'digits', 'configs/digits', '__init__', 'modeling_evil')  # fmt: skip


def used_beside(room):
  """Honest weights, in three forms, with programs beside them and in the current folder."""
  planted(room, '.', 'model')
  room.write('data/0/jax.py', (room.folder / 'jax.py').read_bytes())
  hf = room.copy(
    'hf',
    config_json=lambda c: (
      c
      | {
        'auto_map': {'AutoConfig': 'modeling_evil.Evil', 'AutoModel': 'modeling_evil.Evil'},
        'architectures': 5,
        'transformers_version': '__import__("os")',
        'custom_pipelines': {'evil': {'impl': 'modeling_evil.Evil'}},
      }
    ),
  )
  room.write('data/0/1.png', PNG)
  import vit_jax

  return [
    lambda: vit_jax.load(hf), ['predict', f'--model={hf}', str(room.folder / 'data/0/1.png')],
    ['evaluate', f'--model={room.good["timm"]}', f'--data={room.folder / "data"}', '--split=all'],
    ['show', str(hf)], ['show', 'digits'], ['list', 'configs'], ['list', 'models', 'vit_tiny*'],
  ]  # fmt: skip


def torn(room):
  """A run whose metrics.jsonl has a line of 100,000 brackets: like one that a kill tore apart, it counts for none."""
  path = room.copy('run')
  room.write('model/metrics.jsonl', '{"step": ' + '[' * DEEP + '\n')
  return [['evaluate', f'--model={path}', '--data=digits']]


def asked_for(room):
  """A config that the user names by its path: it is a Python program, and runs."""
  room.write('mine.py', f'import os\nos.system({room.command!r})\n')
  return [['train', '--config=mine.py']]


def args(**changed):
  """A change of timm's config.json: other arguments of the model."""
  return lambda config: config | {'model_args': config['model_args'] | changed}


def made(**changed):
  """A change of a run's model.json: another architecture."""
  return lambda said: said | {'architecture': said['architecture'] | changed}


def hole(name, size=TIB):
  """The maker of an honest folder in which one file is a hole of 4 TiB."""

  def make(room):
    path = room.copy('hf')
    os.truncate(path / name, size)
    return weights(room, path)

  return make


def sealed(change):
  """The maker of a run whose step was changed by one who wrote its manifest again: change(folder of the step, room)."""

  def make(room):
    from vit_jax import checkpoint_seal as seal

    step = room.copy('run') / 'checkpoints' / '1'
    (step / 'manifest.json').unlink()
    after = change(step, room)
    seal.write(step, '1')
    if callable(after):
      after()
    return weights(room, room.folder / 'model')

  return make


def climbs(step, room):
  """Arrays whose names would lie outside."""
  path = step / 'params' / '_METADATA'
  path.write_text(path.read_text().replace('"norm"', '"../../../../../outside"'))


def links(step, room):
  """Arrays that are a link to elsewhere."""

  def move():
    (step / 'params').rename(room.root / 'outside')
    (step / 'params').symlink_to(room.root / 'outside')

  return move


def hollow(step, room):
  """A head of 4 TiB of which nothing was written: its fill value is all there is."""
  import tensorstore

  where = {'driver': 'ocdbt', 'base': f'file://{step}/params/', 'path': 'head.kernel/'}
  zarr = tensorstore.open({'driver': 'zarr', 'kvstore': where}).result()
  said = zarr.spec().to_json()['metadata'] | {'shape': [TIB // 40, 10]}
  tensorstore.open({'driver': 'zarr', 'kvstore': where, 'metadata': said, 'create': True,
                    'delete_existing': True}).result()  # fmt: skip


FOLDERS = {
  'config.json in itself 100,000 times': folder('hf', config_json=lambda _: '[' * DEEP),
  'config.json that is a list': folder('hf', config_json=lambda _: ['model_type']),
  'config.json of 4 TiB': hole('config.json'),
  'preprocessor_config.json in itself': folder('hf', preprocessor_config_json=lambda _: '{"a":' * DEEP),
  'a billion layers, Hugging Face': folder('hf', config_json=lambda c: c | {'num_hidden_layers': 10**9}),
  'a width of 10^12': folder('hf', config_json=lambda c: c | {'hidden_size': 10**12}),
  'a picture of 10^9 pixels a side': folder('hf', config_json=lambda c: c | {'image_size': 10**9}),
  'patches of nothing': folder('hf', config_json=lambda c: c | {'patch_size': 0}),
  'heads of text': folder('hf', config_json=lambda c: c | {'num_attention_heads': '__import__("os")'}),
  'a width of NaN': folder('hf', config_json=lambda c: json.dumps(c | {'hidden_size': float('nan')})),
  'labels that are no table': folder('hf', config_json=lambda c: c | {'id2label': 5}),
  'a preprocessor of 10^6 pixels a side': folder(
    'hf', preprocessor_config_json=lambda c: c | {'size': {'height': 10**6, 'width': 10**6}}
  ),
  'a preprocessor without numbers': folder('hf', preprocessor_config_json=lambda c: c | {'image_mean': 'os'}),
  'a billion layers, timm': folder('timm', config_json=args(depth=10**9)),
  'a model called os.system': folder('timm', config_json=lambda c: c | {'architecture': 'os.system'}),
  'a model called {}': folder('timm', config_json=lambda c: c | {'architecture': {}}),
  'arguments that are internals': folder('timm', config_json=args(__class__='os.system', rngs='x')),
  'arguments that are text': folder('timm', config_json=lambda c: c | {'model_args': 'import os'}),
  'a mean that is text': folder(
    'timm', config_json=lambda c: c | {'pretrained_cfg': c['pretrained_cfg'] | {'mean': 'x'}}
  ),
  'model.json in itself': folder('pushed', model_json=lambda _: '[' * DEEP),
  'model.json with a layer count of 10^9': folder('pushed', model_json=made(depth=10**9)),
  'model.json with a picture of 10^6 pixels a side': folder(
    'pushed', model_json=lambda s: s | {'preprocessing': s['preprocessing'] | {'size': [10**6, 10**6]}}
  ),
  'model.json of format {}': folder('pushed', model_json=lambda s: s | {'format': {}}),
  'model.json of a version that is a number': folder('pushed', model_json=lambda s: s | {'version': 5}),
  'model.json with a path for a name': folder('pushed', model_json=lambda s: s | {'name': '../../../etc/passwd'}),
  'model.json with a list for a name': folder('pushed', model_json=lambda s: s | {'name': ['os', 'system']}),
  'model.json whose architecture is text': folder('pushed', model_json=lambda s: s | {'architecture': '__import__'}),
  'model.json whose classes are a number': folder('pushed', model_json=lambda s: s | {'classes': 5}),
  'a run of a billion layers': folder('run', model_json=made(depth=10**9)),
  'a run whose name imports': folder('run', model_json=lambda s: s | {'name': '__import__("os").system'}),
  'a run that is a list': folder('run', model_json=lambda _: ['name', 'architecture']),
  'a run whose run.json is in itself': lambda room: (
    [['evaluate', f'--model={room.copy("run")}', '--data=digits']] * bool(room.write('model/run.json', '[' * DEEP))
  ),
  'a checkpoint with names called ../': sealed(climbs),
  'a checkpoint with a link out of it': sealed(links),
  'a checkpoint of 4 TiB that nobody wrote': sealed(hollow),
  'a checkpoint whose manifest is in itself': sealed(
    lambda step, room: (step / 'info' / 'metadata').write_text('[' * DEEP)
  ),
}


# ---- archives and tables


def tar(room, *members, form=tarfile.PAX_FORMAT, name='d.tar'):
  """The path of a tar file of (TarInfo, bytes)."""
  path = room.folder / name
  with tarfile.open(path, 'w', format=form) as file:
    for info, content in members:
      if info.size == 0:
        info.size = len(content)
      file.addfile(info, io.BytesIO(content + bytes(max(0, info.size - len(content)) if info.size < 2**20 else 0)))
  return path


def info(name, **values):
  """A TarInfo."""
  made = tarfile.TarInfo(name)
  for key, value in values.items():
    setattr(made, key, value)
  return made


PNG = hostile.photograph('PNG')


def tar_of(*infos, **how):
  """The maker of a tar whose members are these, each with a picture."""
  return lambda room: data(room, tar(room, *((one, PNG if one.isreg() else b'') for one in infos), **how))


def sized(size, kind=tarfile.REGTYPE):
  """The maker of a tar with a header that claims `size` bytes, by a pax record or in base 256."""

  def make(room):
    head = info('0/1.png', size=8, type=kind).tobuf(tarfile.GNU_FORMAT)
    field = struct.pack('>BBBB', 0x80 if size >= 0 else 0xFF, *(3 * [0 if size >= 0 else 0xFF]))
    field += (size % 2**64).to_bytes(8, 'big')
    head = bytearray(head)
    head[124:136], head[148:156] = field, b' ' * 8
    head[148:156] = b'%06o\0 ' % sum(head)
    return data(room, room.write('d.tar', bytes(head) + PNG + bytes(-len(PNG) % 512 + 1024)))

  return make


def pax_size(size):
  """The maker of a tar whose pax record claims `size` bytes."""

  def make(room):
    record = b' size=%d\n' % size
    record = b'%d' % (len(record) + len(str(len(record) + 2))) + record
    head = info('pax', type=tarfile.XHDTYPE, size=len(record)).tobuf(tarfile.USTAR_FORMAT)
    body = head + record + bytes(-len(record) % 512) + info('0/1.png', size=len(PNG)).tobuf(tarfile.USTAR_FORMAT)
    return data(room, room.write('d.tar', body + PNG + bytes(-len(PNG) % 512 + 1024)))

  return make


def sparse(room):
  """A member of 4 TiB of holes, as GNU tar writes it."""
  one = bytearray(info('0/1.png', type=tarfile.GNUTYPE_SPARSE, size=512).tobuf(tarfile.GNU_FORMAT))
  one[386:410] = b'%011o\0%011o\0' % (0, 512)
  one[483:495] = b'\x80' + TIB.to_bytes(11, 'big')
  one[148:156] = b' ' * 8
  one[148:156] = b'%06o\0 ' % sum(one)
  return data(room, room.write('d.tar', bytes(one) + bytes(512 + 1024)))


def tars_in_tars(room):
  """A tar in a tar, 600 times."""
  content = b''
  for i in range(600):
    name = f'{i}.tar' if i else '1.png'
    head = info(name, size=len(content)).tobuf(tarfile.USTAR_FORMAT)
    content = head + content + bytes(-len(content) % 512)
  return data(room, room.write('d.tar', content + bytes(1024)))


def zipped_tar(room):
  """A tar of 4 GiB in 4 MiB, under a name that says so and under one that does not."""
  packed, size = deflated(info('0/1.png', size=BLOCK * 256).tobuf(), BLOCK * 256)
  content = b'\x1f\x8b\x08' + bytes(7) + packed + struct.pack('<II', 0, size % 2**32)
  return data(room, room.write('d.tar.gz', content)) + data(room, room.write('e.tar', content))


def zipped(room):
  """A zip of pictures with members that would lie outside: not unpacked at all."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    archive.writestr('../../escaped.png', PNG)
  return data(room, room.write('d.zip', out.getvalue()))


def deep_mark(room):
  """A label in a .json that is 100,000 brackets."""
  return data(room, tar(room, (info('1.png'), PNG), (info('1.json'), b'[' * DEEP)))


def parquet(change):
  """The maker of a parquet file: change(pyarrow, path)."""

  def make(room):
    import pyarrow
    import pyarrow.parquet

    path = room.folder / 'd.parquet'
    change(pyarrow, path)
    return data(room, path)

  return make


def many_rows(arrow, path):
  """Rows of one label and one picture, 200 million times in a few kilobytes."""
  image = arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(2 * 10**6, np.int8)), arrow.array([PNG]))
  table = arrow.table({'image': image, 'label': np.zeros(2 * 10**6, np.int64)})
  with arrow.parquet.ParquetWriter(path, table.schema, compression='zstd', store_schema=False) as writer:
    for _ in range(50):
      writer.write_table(table)


def large_cells(arrow, path):
  """Pictures of zeros, 2 GB of them in a few kilobytes."""
  image = arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(16, np.int8)), arrow.array([bytes(2**27)]))
  table = arrow.table({'image': image, 'label': np.arange(16) % 10})
  arrow.parquet.write_table(table, path, compression='zstd', store_schema=False)


def outside_cells(arrow, path):
  """Pictures that are paths to elsewhere."""
  cells = [{'bytes': None, 'path': '../../../../../../etc/passwd'}, {'bytes': None, 'path': '/dev/zero'}]
  arrow.parquet.write_table(arrow.table({'image': cells, 'label': [0, 1]}), path)


def deep_metadata(arrow, path):
  """Metadata that are 100,000 brackets."""
  table = arrow.table({'image': [PNG], 'label': [0]}).replace_schema_metadata({'huggingface': '[' * DEEP})
  arrow.parquet.write_table(table, path)


def other_metadata(arrow, path):
  """Metadata of another form."""
  table = arrow.table({'image': [PNG], 'label': [0]}).replace_schema_metadata({'huggingface': '[1]'})
  arrow.parquet.write_table(table, path)


def cut_parquet(arrow, path):
  """A parquet file whose pages are noise."""
  deep_metadata(arrow, path)
  table = arrow.table({'image': [PNG] * 9, 'label': list(range(9))})
  arrow.parquet.write_table(table, path)
  content = bytearray(path.read_bytes())
  at = content.index(PNG[:8])
  content[4:at] = b'\xff' * (at - 4)
  content[at + len(PNG) : at + len(PNG) + 40] = b'\xff' * 40
  path.write_bytes(content)


def table(name, text):
  """The maker of a table; PIPE in it is a pipe that nobody writes to, HUGE a picture of 4 TiB."""

  def make(room):
    os.mkfifo(room.root / 'pipe')
    (room.root / 'huge.png').write_bytes(PNG)
    os.truncate(room.root / 'huge.png', TIB)
    words = {'PIPE': str(room.root / 'pipe'), 'HUGE': '../huge.png', 'UP': '../' * 20}
    said = text() if callable(text) else text
    for word, path in words.items():
      said = said.replace(word, path)
    return data(room, room.write(name, said))

  return make


def linked_pictures(room):
  """A folder of classes whose pictures are links to what has no end, or never begins."""
  for i, target in enumerate(('/dev/zero', '/dev/stdin', '/proc/self/mem', room.root / 'pipe')):
    (room.folder / 'd' / str(i)).mkdir(parents=True)
    (room.folder / 'd' / str(i) / '1.png').symlink_to(target)
  os.mkfifo(room.root / 'pipe')
  return data(room, room.folder / 'd')


def mapping(content, name='val.txt', extra=()):
  """The maker of a flat validation folder with a mapping file."""

  def make(room):
    for label in '01':
      room.write(f'd/train/{label}/1.png', PNG)
    room.write('d/val/ILSVRC2012_val_00000001.png', PNG)
    room.write(f'd/val/{name}', content)
    for other, data_of in extra:
      room.write(f'd/val/{other}', data_of)
    return data(room, room.folder / 'd', 'val')

  return make


def idx(head, tail=b'', packed=False):
  """The maker of MNIST's files with another head."""

  def make(room):
    content = head + tail
    if packed:
      body, size = deflated(head, 2**32)
      content = b'\x1f\x8b\x08' + bytes(7) + body + struct.pack('<II', 0, size % 2**32)
    suffix = '.gz' if packed else ''
    room.write(f'd/train-images-idx3-ubyte{suffix}', content)
    room.write('d/train-labels-idx1-ubyte', b'\0\0\x08\x01' + struct.pack('>I', 4) + bytes(4))
    return data(room, room.folder / 'd')

  return make


def prepared(features=None, splits=None):
  """The maker of a folder that tfds is said to have prepared."""

  def make(room):
    usual = {'pythonClassName': 'tensorflow_datasets.core.features.features_dict.FeaturesDict', 'featuresDict': {
      'features': {'image': {'pythonClassName': 'tensorflow_datasets.core.features.image_feature.Image', 'image': {
        'shape': {'dimensions': ['8', '8', '3']}, 'dtype': 'uint8', 'encodingFormat': 'png'}},
        'label': {'pythonClassName': 'tensorflow_datasets.core.features.class_label_feature.ClassLabel',
                  'classLabel': {'numClasses': '10'}}}}}  # fmt: skip
    said = {
      'name': 'evil',
      'version': '1.0.0',
      'fileFormat': 'tfrecord',
      'splits': [
        splits or {'name': 'train', 'shardLengths': ['1'], 'numBytes': '1', 'filepathTemplate': '{DATASET}-{SPLIT}'}
      ],
    }
    room.write('d/features.json', features or usual)
    room.write('d/dataset_info.json', said)
    room.write('evil_features.py', f'import os\nos.system({room.command!r})\n')
    return data(room, room.folder / 'd')

  return make


def real(content):
  """The maker of a file of other right answers."""
  return lambda room: [['evaluate', f'--model={room.good["timm"]}', '--data=digits',
                        f'--labels={room.write("real.json", content)}']]  # fmt: skip


# ---- pictures


def picture(name, content):
  """The maker of a picture."""
  return lambda room: pictures(room, room.write(name, content() if callable(content) else content))


def postscript(room):
  """A program in PostScript under a picture's name; a Ghostscript of the sentinel's stands in the path."""
  gs = room.write('bin/gs', f'#!/bin/sh\n{room.command}\nexit 1\n')
  gs.chmod(0o755)
  os.environ['PATH'] = f'{gs.parent}:{os.environ["PATH"].removeprefix(str(gs.parent) + ":")}'
  text = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n(x) print\n%%EOF\n'
  return pictures(room, room.write('1.png', text), room.write('2.eps', text))


# ---- a hub that lies


def hub(files, out='pulled'):
  """The maker of a repository: {path of the request, COMMIT for the commit: bytes, a status or a function}."""

  def make(room):
    from test_download import Server

    commit = '0' * 40
    answers = {path.replace('COMMIT', commit): answer for path, answer in files.items()}

    def answer(handler):
      found = answers.get(handler.path, 404)
      found = found(handler) if callable(found) else found
      if isinstance(found, int):
        handler.send(found)
      elif found is not None:
        handler.send(200, found if isinstance(found, bytes) else json.dumps(found).encode())

    server = Server(answer)
    os.environ |= {'HF_ENDPOINT': server.url, 'VIT_JAX_OFFLINE': '', 'VIT_JAX_CACHE': str(room.out / 'cache')}
    return [['hub', 'pull', 'ann/evil', str(room.out / out)], ['show', 'hf_hub:ann/evil'],
            lambda: __import__('vit_jax').create_model('hf_hub:ann/evil', pretrained=True)]  # fmt: skip

  return make


REVISION = '/api/models/ann/evil/revision/main'
FILES = '/ann/evil/resolve/{}/{}'


def repository(**files):
  """{path of the request: answer} of a repository at a commit and at main; WEIGHTS_json is the index."""
  names = {'config': 'config.json', 'index': 'model.safetensors.index.json', 'weights': 'model.safetensors'}
  out = {REVISION: {'sha': '0' * 40}}
  for name, content in ({'config': {'model_type': 'vit'}} | files).items():
    for commit in ('COMMIT', 'main'):
      out[FILES.format(commit, names[name])] = content
  return out


def endless(handler):
  """Bytes until nobody listens."""
  import contextlib

  handler.send_response(200)
  handler.end_headers()
  with contextlib.suppress(OSError):
    for _ in range(4096):
      handler.wfile.write(b' ' * 2**20)


def elsewhere(handler):
  handler.send(302, Location='file:///etc/passwd')


# ---- all of them

HARMLESS = {'programs beside honest weights and in the current folder': used_beside, 'a torn metrics.jsonl': torn}
DOORS = {'--config=FILE.py runs that file': asked_for}

ROUND = {  # by the round in which they are counted
  'pickles': {
    'os.system in .pth': pickled('.pth', system),
    'exec in .bin': pickled('.bin', execute),
    "numpy's scalar in .pt": pickled('.pt', scalar),
    "torch's zip in .pt": pickled('.pt', torch_zip),
    "torch's zip in .pth.tar": pickled('.pth.tar', torch_zip),
    'a pickle in .ckpt': pickled('.ckpt', system),
    'a pickle in .pkl': pickled('.pkl', lambda room: system(room, 4)),
    'a pickle called .safetensors': pickled('.safetensors', system),
    'a pickle called .npz': pickled('.npz', lambda room: system(room, 0)),
    "torch's zip called .npz": pickled('.npz', torch_zip),
    'os.system in .pth, --unsafe': pickled('.pth', system, '--unsafe'),
    "torch's zip in .pt, --unsafe": pickled('.pt', torch_zip, '--unsafe'),
    'pytorch_model.bin in a folder': pickled_folder,
    'objects in .npz': pickled('.npz', objects),
    'pictures that are objects': pickled_data('x_train'),
    'labels that are objects': pickled_data('y_train'),
    'class names that are objects': pickled_data('classes'),
    'a data set in .pkl': no_data('.pkl', system),
    'a data set in .npy': no_data('.npy', objects),
  },
  'weights': {
    **{f'.npz: {name}': lying_weights(change) for name, change in LIES.items()},
    '.npz: 20 GB of zeros in 20 MB': bomb_weights,
    '.npz: a thousand members in one place': overlapping,
    '.npz: bzip2': packed_otherwise(zipfile.ZIP_BZIP2),
    '.npz: lzma': packed_otherwise(zipfile.ZIP_LZMA),
    '.npz: members called ../': climbing_zip,
    **{f'.safetensors: {name}': tensors(content) for name, content in SAFETENSORS.items()},
    'shards called ../': mapped('../outside.safetensors'),
    'shards by an absolute path': mapped('ROOT/outside.safetensors'),
    'a shard called ..': mapped('..'),
    'an index in itself': sharded('{"weight_map":' * DEEP),
    'an index of numbers': sharded({'weight_map': {'a': 5}}),
    'custom code (auto_map)': custom_code,
    **FOLDERS,
  },
  'data': {
    **{f'pictures, {name}': lying_data(change) for name, change in LIES.items()},
    '16 GB of black pictures in 16 MB': bomb_data,
    'tar: ../ members': tar_of(info('../0/1.png'), info('../1/1.png')),
    'tar: absolute members': tar_of(info('/tmp/0/1.png'), info('/tmp/1/1.png')),
    'tar: symbolic links': tar_of(info('0/1.png', type=tarfile.SYMTYPE, linkname='/etc/passwd')),
    'tar: hard links': tar_of(info('0/1.png', type=tarfile.LNKTYPE, linkname='../../etc/passwd')),
    'tar: devices and pipes': tar_of(info('0/1.png', type=tarfile.CHRTYPE, devmajor=1, devminor=5),
                                     info('0/2.png', type=tarfile.FIFOTYPE)),
    'tar: a member of 4 TiB': sized(TIB),
    'tar: a member of -512 bytes': sized(-512),
    'tar: a pax record of 4 TiB': pax_size(TIB),
    'tar: a pax record of -2048 bytes': pax_size(-2048),
    'tar: a pax header of 4 TiB': sized(TIB, tarfile.XHDTYPE),
    'tar: a long name of 4 TiB': sized(TIB, tarfile.GNUTYPE_LONGNAME),
    'tar: a pax header of -512 bytes': sized(-512, tarfile.XHDTYPE),
    'tar: 4 TiB of holes': sparse,
    'tar: 600 in each other': tars_in_tars,
    'tar: a label 100,000 deep': deep_mark,
    'tar.gz: 4 GiB in 4 MiB': zipped_tar,
    'zip: ../ members': zipped,
    'parquet: 100 million rows in kilobytes': parquet(many_rows),
    'parquet: 2 GB of zeros in kilobytes': parquet(large_cells),
    'parquet: paths to elsewhere': parquet(outside_cells),
    'parquet: metadata 100,000 deep': parquet(deep_metadata),
    'parquet: metadata of another form': parquet(other_metadata),
    'parquet: pages of noise': parquet(cut_parquet),
    'csv: /dev/zero, a pipe, 4 TiB': table('d.csv', 'path,label\n/dev/zero,0\nPIPE,1\nHUGE,2\n'),
    'csv: a path of a megabyte': table('d.csv', lambda: 'path,label\n' + 'a/' * 2**16 + 'UP,0\n'),
    'csv: a field of a megabyte': table('d.csv', lambda: 'path,label\n"' + 'a' * 2**20 + '",0\n'),
    'csv: a null byte': table('d.csv', 'path,label\na\0b.png,0\n'),
    'jsonl: 100,000 deep': table('d.jsonl', '[' * DEEP + '\n'),
    'jsonl: a number of 5,000 digits': table('d.jsonl', '{"path": "x.png", "label": ' + '9' * 5000 + '}\n'),
    'jsonl: a path with a null byte': table('d.jsonl', '{"path": "x\\u0000.png", "label": 0}\n'),
    'links to /dev/zero and pipes': linked_pictures,
    'mapping: noise': mapping(b'\xff\xfe\0\0' * 99),
    'mapping: a field of a megabyte': mapping('"' + 'a' * 2**20 + '",0\n', 'val.csv'),
    'mapping: meta.mat of noise': mapping('77\n', 'ILSVRC2012_validation_ground_truth.txt', [
      ('meta.mat', b'MATLAB 5.0 MAT-file'.ljust(124, b'\0') + b'\0\1IM\x0f\0\0\0\xff\xff\xff\x7f' + b'x\x9c' * 99)]),
    'IDX: 255 dimensions': idx(b'\0\0\x08\xff' + b'\xff' * 1020),
    'IDX: 4 TiB': idx(b'\0\0\x08\x03' + struct.pack('>III', 2**20, 2**11, 2**11)),
    'IDX: 4 GiB in 4 MiB': idx(b'\0\0\x08\x03' + struct.pack('>III', 4, 8, 8), packed=True),
    'tfds: features that import a module': prepared({'pythonClassName': 'evil_features.Features', 'featuresDict': {}}),
    'tfds: features 100,000 deep': prepared('{"a":' * DEEP),
    'tfds: shards called ../': prepared(splits={
      'name': 'train', 'shardLengths': ['1'], 'numBytes': '1', 'filepathTemplate': '../../{DATASET}-{SPLIT}'}),
    'real.json 100,000 deep': real('[' * DEEP),
    'real.json of 5,000 digits': real('[[' + '9' * 5000 + ']]'),
  },
  'pictures': {
    'PNG: 481 kB -> 661 MB': picture('1.png', lambda: hostile.bomb(14841, 14841, 14841)),
    'PNG: 2^31 pixels a side': picture('1.png', lambda: hostile.bomb(2**31 - 1, 2**31 - 1)),
    'PostScript called .png': postscript,
    'a pickle called .png': lambda room: pictures(room, room.write('1.png', system(room))),
  },
  'hub': {
    'a commit called ..': hub({REVISION: {'sha': '..'}, '/ann/evil/resolve/../config.json': {}}),
    'a commit that is a list': hub({REVISION: [1]}),
    'a revision 100,000 deep': hub({REVISION: b'[' * DEEP}),
    'an index of shards called ../': hub(repository(index={'weight_map': {'a': '../../../escaped.safetensors'}})),
    'an index of a shard called ..': hub(repository(index={'weight_map': {'a': '..'}})),
    'an index of a shard that is a program': hub(repository(index={'weight_map': {'a': 'sitecustomize.py'}})),
    'an index that is a list': hub(repository(index=['weight_map'])),
    'an index of numbers from a hub': hub(repository(index={'weight_map': {'a': 5}})),
    'a config.json without an end': hub(repository(config=endless)),
    'a config.json 100,000 deep': hub(repository(config=b'[' * DEEP)),
    'a redirect to a file': hub(repository(weights=elsewhere, config=elsewhere)),
  },
}  # fmt: skip
