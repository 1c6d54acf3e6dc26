"""Archives and prepared data sets: the pictures and labels that went in come out, by index and from threads."""

import concurrent.futures
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image
import pytest

from vit_jax import archives, listing, records, sources


def picture(value=0):
  file = io.BytesIO()
  Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file, 'PNG')
  return file.getvalue()


def refused(*args, **kwargs):
  """The one line that a bad request gets."""
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    sources.open_source(*map(str, args), **kwargs)
  assert '\n' not in str(error.value)
  return str(error.value)


def labels(source):
  """What reading gives, checked against what the listing said."""
  read = [source[i]['label'] for i in range(len(source))]
  assert source.labels() is None or source.labels().tolist() == read
  return read


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path_factory.mktemp('listings')))


# ---- tar


def tar_of(path, members):
  """Writes a tar file of {name: bytes}; gives its bytes."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w') as file:
    for name, data in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      file.addfile(member, io.BytesIO(data))
  return path.read_bytes()


def test_webdataset_shards(tmp_path):
  for shard in range(3):
    tar_of(
      tmp_path / f'pets-train-{shard:06d}.tar',
      {
        f'{shard}_{i}.{kind}': data
        for i in range(4)
        for kind, data in (
          ('jpg', picture(4 * shard + i)),
          ('seg.png', b'a mask, no picture'),
          ('cls', f'{i % 3}\n'.encode()),
        )
      },
    )
  tar_of(tmp_path / 'pets-val-000000.tar', {'a.jpg': picture(99), 'a.json': b'{"label": 2, "by": "me"}'})
  train = sources.open_source(str(tmp_path), 'train')
  assert [train[i]['image'] for i in range(12)] == [picture(i) for i in range(12)]
  assert labels(train) == [0, 1, 2, 0] * 3 and train.classes == ['0', '1', '2']
  assert train.describe(5).endswith('pets-train-000001.tar:1_1.jpg')
  test = sources.open_source(str(tmp_path), 'test', classes=train.classes)
  assert labels(test) == [2] and test[0]['image'] == picture(99)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda i: train[i]['image'], list(range(12)) * 9)) == [picture(i) for i in range(12)] * 9


@pytest.mark.parametrize('prefix', ['', './', 'images/train/'])
def test_class_folders_in_a_tar(tmp_path, prefix):
  tar_of(tmp_path / 'x.tar', {f'{prefix}{name}/{i}.JPEG': picture(i) for name in ('n02', 'n01') for i in range(10)})
  source = sources.open_source(str(tmp_path / 'x.tar'), 'all')
  assert source.classes == ['n01', 'n02'] and labels(source) == [1] * 10 + [0] * 10
  assert source[13]['image'] == picture(3)
  assert [len(sources.open_source(str(tmp_path / 'x.tar'), split)) for split in ('train', 'test')] == [18, 2]
  assert set(labels(sources.open_source(str(tmp_path / 'x.tar'), 'all[:50%]'))) == {0, 1}


def test_imagenets_tar_of_class_tars(tmp_path):
  inner = {
    name: tar_of(tmp_path / 'inner' / name, {f'{name[:3]}_{i}.JPEG': picture(10 * c + i) for i in range(3)})
    for c, name in enumerate(('n01.tar', 'n02.tar'))
  }
  tar_of(tmp_path / 'ILSVRC2012_img_train.tar', inner)
  tar_of(tmp_path / 'ILSVRC2012_img_val.tar', {'v_2.JPEG': picture(52), 'v_1.JPEG': picture(51)})
  train = sources.open_source(str(tmp_path), 'train')
  assert train.classes == ['n01', 'n02'] and labels(train) == [0, 0, 0, 1, 1, 1]
  assert [train[i]['image'] for i in range(6)] == [picture(v) for v in (0, 1, 2, 10, 11, 12)]
  assert 'val.txt' in refused(tmp_path, 'val', classes=train.classes)
  (tmp_path / 'val.txt').write_text('v_1.JPEG 1\nv_2.JPEG 0\n')
  val = sources.open_source(str(tmp_path), 'val', classes=train.classes)
  assert labels(val) == [0, 1] and val[1]['image'] == picture(51)
  (tmp_path / 'val.txt').write_text('n02\nn01\n')  # one a line: in the order of names
  assert labels(sources.open_source(str(tmp_path), 'val', classes=train.classes)) == [0, 1]


def test_a_folder_of_class_tars(tmp_path):
  for name in ('n02', 'n01'):
    tar_of(tmp_path / 'train' / f'{name}.tar', {f'{i}.JPEG': picture(i) for i in range(2)})
  tar_of(tmp_path / 'val' / 'n02.tar', {'n02/1.JPEG': picture()})
  train = sources.open_source(str(tmp_path), 'train', holdout=0)
  assert train.classes == ['n01', 'n02'] and labels(train) == [0, 0, 1, 1]
  assert labels(sources.open_source(str(tmp_path), 'val', classes=train.classes)) == [1]


def test_the_index_of_a_big_tar_is_kept(tmp_path, monkeypatch):
  tar_of(tmp_path / 'x.tar', {f'{c}/{i}.png': picture(i) for c in 'ab' for i in range(3)})
  os.utime(tmp_path / 'x.tar', (1e9, 1e9))
  monkeypatch.setattr(listing, 'CACHE_FROM', 6)
  first = sources.open_source(str(tmp_path / 'x.tar'), 'all')
  monkeypatch.setattr(archives, '_members', None)  # reading the tar again would fail
  again = sources.open_source(str(tmp_path / 'x.tar'), 'all')
  assert again.fingerprint() == first.fingerprint() and again[4] == first[4]


@pytest.mark.parametrize(
  'members, says',
  [
    ({'a.jpg': b'x', 'a.cls': b'1', 'b.jpg': b'x'}, 'b.jpg has no .cls'),
    ({'a.jpg': b'x', 'a.json': b'{"caption": "cat"}'}, 'a.json holds no label'),
    ({'a.jpg': b'x', 'a.json': b'[1'}, 'a.json holds no label'),
    ({'a.txt': b'x'}, 'no pictures'),
    ({'a.jpg': b'x'}, 'does not say the classes'),
    ({'train/cat/a.jpg': b'x', 'val/cat/a.jpg': b'x'}, 'several splits (train, val)'),
  ],
)
def test_bad_tars(tmp_path, members, says):
  tar_of(tmp_path / 'x.tar', members)
  assert says in refused(tmp_path / 'x.tar', 'all')


def test_a_cut_tar(tmp_path):
  data = tar_of(tmp_path / 'x.tar', {f'{c}/{i}.png': bytes(2000) for c in 'ab' for i in range(3)})
  source = sources.open_source(str(tmp_path / 'x.tar'), 'all')
  (tmp_path / 'x.tar').write_bytes(data[:6000])
  with pytest.raises(OSError, match=r'x\.tar ends'):
    source[5]
  assert 'x.tar is not a whole' in refused(tmp_path / 'x.tar', 'all')
  (tmp_path / 'x.tar').write_bytes(b'\x1f\x8b' + bytes(2000))
  assert 'uncompressed' in refused(tmp_path / 'x.tar', 'all')


# ---- parquet


def parquet(path, images, values, *, names=None, column='label', group=3, image='image'):
  arrow, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
  table = arrow.table({image: images, column: values})
  if names:
    info = {'info': {'features': {column: {'names': names, '_type': 'ClassLabel'}, image: {'_type': 'Image'}}}}
    table = table.replace_schema_metadata({'huggingface': json.dumps(info)})
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(table, path, row_group_size=group)


def rows(values):
  return [{'bytes': picture(value), 'path': f'{value}.png'} for value in values]


@pytest.mark.parametrize('folder', ['', 'data', 'plain_text'])
def test_parquet_as_hubs_keep_it(tmp_path, folder, monkeypatch):
  monkeypatch.setattr(archives, 'CACHED_BYTES', 1)  # one row group at a time
  parquet(tmp_path / folder / 'train-00000-of-00002.parquet', rows(range(8)), [0, 1] * 4, names=['dog', 'cat'])
  parquet(tmp_path / folder / 'train-00001-of-00002.parquet', rows(range(8, 12)), [1] * 4, names=['dog', 'cat'])
  parquet(tmp_path / folder / 'test-00000-of-00001.parquet', rows([50]), [1], names=['dog', 'cat'])
  train, test = (sources.open_source(str(tmp_path), split) for split in ('train', 'test'))
  assert train.classes == ['dog', 'cat'] and labels(train) == [0, 1] * 4 + [1] * 4
  assert [train[i]['image'] for i in range(12)] == [picture(i) for i in range(12)]
  assert train.describe(9).endswith('train-00001-of-00002.parquet row 1')
  assert test[0] == {'image': picture(50), 'label': 1}
  assert labels(sources.open_source(str(tmp_path), 'train[8:]')) == [1] * 4
  order = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 20)).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda i: train[i]['image'], order)) == [picture(i) for i in order]
  assert len(train._rows._kept) == 1


def test_parquet_of_bytes_and_words(tmp_path):
  parquet(tmp_path / 'x.parquet', [picture(i) for i in range(4)], ['b', 'a', 'b', 'a'], column='class', image='img')
  source = sources.open_source(str(tmp_path / 'x.parquet'), 'all')
  assert source.classes == ['a', 'b'] and labels(source) == [1, 0, 1, 0] and source[3]['image'] == picture(3)


def test_bad_parquet(tmp_path):
  parquet(tmp_path / 'a.parquet', rows([1]), [0], column='caption')
  assert 'columns image, caption' in refused(tmp_path / 'a.parquet', 'all')
  parquet(tmp_path / 'b.parquet', rows([1]), [-1], names=['dog', 'cat'])
  assert all('without a label' in refused(tmp_path / 'b.parquet', split) for split in ('all', 'train'))
  parquet(tmp_path / 'c.parquet', [{'bytes': None, 'path': 'gone.png'}, {'bytes': None, 'path': None}], [0, 1])
  source = sources.open_source(str(tmp_path / 'c.parquet'), 'all')
  for i in range(2):
    with pytest.raises(OSError):
      source[i]
  parquet(tmp_path / 'e.parquet', rows(range(6)), [0] * 6)
  source = sources.open_source(str(tmp_path / 'e.parquet'), 'all')
  damaged = bytearray((tmp_path / 'e.parquet').read_bytes())
  damaged[4:104] = b'\xff' * 100  # the head of the first page
  (tmp_path / 'e.parquet').write_bytes(damaged)
  with pytest.raises(OSError, match='row group 0'):
    source[0]
  assert source[3]['image'] == picture(3)
  (tmp_path / 'd.parquet').write_bytes(b'PAR1 no')
  assert 'd.parquet is not a whole' in refused(tmp_path / 'd.parquet', 'all')


# ---- tfds

IMAGES, NAMES = 12, ['cat', 'dog']


@pytest.fixture(scope='module')
def array_records(tmp_path_factory):
  """A data set that tfds itself prepared as array_record, without TensorFlow."""
  tfds = pytest.importorskip('tensorflow_datasets')

  class Tiny(tfds.core.GeneratorBasedBuilder):
    """Twelve pictures to train on, four to test on, three without labels."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = {
        'id': np.int64,
        'picture': tfds.features.Image(shape=(4, 4, 3)),
        'label': tfds.features.ClassLabel(names=NAMES),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {
        'train': self._generate_examples(IMAGES),
        'validation': self._generate_examples(4),
        'unlabelled': self._generate_examples(3, -1),
      }

    def _generate_examples(self, count, label=None):
      for i in range(count):
        yield i, {'id': i, 'picture': picture(i), 'label': i % 2 if label is None else label}

  root = tmp_path_factory.mktemp('tfds')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('tempfile.tempdir', str(root))  # tfds leaves an empty folder there
    Tiny(data_dir=root, file_format='array_record').download_and_prepare()
  return root


@pytest.fixture
def tf_records(array_records, tmp_path):
  """The same data set as TFRecord, in three files, framed here: {split: its payloads}, and the root."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(array_records / 'tiny' / '1.0.0')
  folder = tmp_path / 'tiny' / '1.0.0'
  folder.mkdir(parents=True)
  info = json.loads((array_records / 'tiny' / '1.0.0' / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  for split in info['splits']:
    raw = builder.as_data_source(split['name'], deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    shards = [[raw[i] for i in part] for part in np.array_split(range(len(raw)), 3)]
    split['shardLengths'] = [str(len(shard)) for shard in shards]
    for i, shard in enumerate(shards):
      (folder / f'tiny-{split["name"]}.tfrecord-{i:05d}-of-00003').write_bytes(b''.join(map(frame, shard)))
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  for name in ('features.json', 'label.labels.txt'):
    (folder / name).write_bytes((array_records / 'tiny' / '1.0.0' / name).read_bytes())
  return tmp_path


def frame(payload):
  length = struct.pack('<Q', len(payload))
  masked = lambda data: struct.pack('<I', ((crc32c(data) >> 15 | crc32c(data) << 17) + 0xA282EAD8) & 0xFFFFFFFF)
  return length + masked(length) + payload + masked(payload)


def crc32c(data):
  """Bit by bit, as the definition has it: a second way to what records.py does with a table."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
  return crc ^ 0xFFFFFFFF


def test_the_checksum_is_crc32c():
  assert crc32c(b'123456789') == 0xE3069283  # the check value of its definition
  for data in (b'123456789', bytes(8), struct.pack('<Q', 123456)):
    crc = crc32c(data)
    assert records._masked_crc(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize('form', ['array_records', 'tf_records'])
def test_prepared_data(form, request, monkeypatch):
  root = request.getfixturevalue(form)
  monkeypatch.setenv('TFDS_DATA_DIR', str(root))
  train = sources.open_source('tfds:tiny', 'train')
  assert train.classes == NAMES and len(train) == IMAGES and train.labels() is None
  both = sorted((train[i]['image'], train[i]['label']) for i in range(IMAGES))
  assert both == sorted((picture(i), i % 2) for i in range(IMAGES))
  assert train.describe(3) == 'tfds:tiny[train] #3'
  parts = [sources.open_source('tfds:tiny:1.0.0', f'train{cut}', data_dir=str(root)) for cut in ('[:75%]', '[75%:]')]
  assert [part[i]['image'] for part in parts for i in range(len(part))] == [train[i]['image'] for i in range(IMAGES)]
  assert len(parts[1]) == 3
  assert len(sources.open_source('tfds:tiny', 'test', classes=NAMES[::-1])) == 4  # falls back to validation
  swapped = sources.open_source('tfds:tiny', 'train', classes=['dog', 'cat'])
  assert [swapped[i]['label'] for i in range(IMAGES)] == [1 - train[i]['label'] for i in range(IMAGES)]
  folder = sources.open_source(str(root / 'tiny' / '1.0.0'), 'train')
  assert folder[5] == train[5] and folder.fingerprint() == train.fingerprint()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    order = list(range(IMAGES)) * 10
    assert list(pool.map(train.__getitem__, order)) == [train[i] for i in order]


def test_both_forms_hold_the_same(array_records, tf_records):
  one, other = (sources.open_source('tfds:tiny', 'train', data_dir=str(root)) for root in (array_records, tf_records))
  assert [one[i] for i in range(IMAGES)] == [other[i] for i in range(IMAGES)]


@pytest.mark.parametrize(
  'name, split, says',
  [
    ('tfds:tiny', 'trian', "Did you mean 'train'"),
    ('tfds:tiny', 'all', 'no split'),
    ('tfds:tiny', 'unlabelled', 'no labels'),
    ('tfds:tiny:2.0.0', 'train', '1.0.0'),
    ('tfds:tiny/big', 'train', "no config 'big'"),
    ('tfds:tinny', 'train', "Did you mean 'tiny'"),
    ('tfds:mnits', 'train', "Did you mean 'mnist'"),
    ('tfds:mnist', 'train', 'tfds build mnist'),
    ('tfds:', 'train', 'tfds:NAME'),
  ],
)
def test_bad_tfds_names(array_records, name, split, says):
  assert says in refused(name, split, data_dir=str(array_records))


def test_configs_and_versions(array_records, tmp_path):
  for place in ('a/1.0.0', 'a/2.0.0', 'a/10.0.0', 'b/1.0.0'):
    (tmp_path / 'tiny' / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'tiny' / place).symlink_to(array_records / 'tiny' / '1.0.0')
  assert 'choose one: a, b' in refused('tfds:tiny', 'train', data_dir=str(tmp_path))
  folder = records._version(tmp_path / 'tiny', 'a', None, 'tfds:tiny')
  assert folder == tmp_path / 'tiny' / 'a' / '10.0.0'
  assert len(sources.open_source('tfds:tiny/a:2.0.0', 'train', data_dir=str(tmp_path))) == IMAGES


@pytest.mark.parametrize(
  'damage, says',
  [
    (lambda data: data[:8] + b'\xff' + data[9:], r'00000-of-00003 is damaged at byte 0'),
    (lambda data: data[:-5], r'is damaged at byte [1-9]'),
    (lambda data: data + b'\0\0\0', r'is damaged at byte [1-9]'),
    (lambda data: data + data, r'hold 16 records; dataset_info.json says 12'),
  ],
)
def test_damaged_tfrecords(tf_records, damage, says):
  [file] = (tf_records / 'tiny' / '1.0.0').glob('*train*00000-of-00003')
  file.write_bytes(damage(file.read_bytes()))
  assert re.search(says, refused('tfds:tiny', 'train', data_dir=str(tf_records)))


@pytest.mark.parametrize('form', ['array_records', 'tf_records'])
def test_a_damaged_payload_is_an_os_error(form, request, tmp_path):
  root = request.getfixturevalue(form)
  folder = tmp_path / 'copy' / 'tiny' / '1.0.0'
  shutil.copytree(root / 'tiny' / '1.0.0', folder)
  source = sources.open_source(str(folder), 'train')
  for file in folder.glob('*train*'):
    data = bytearray(file.read_bytes())
    at = data.index(b'PNG') - 30 if form == 'array_records' else 14  # past the frame's head
    data[at : at + 20] = b'\xff' * 20
    file.write_bytes(data)
  fresh = sources.open_source(str(folder), 'train')
  for damaged in (source, fresh):
    bad = 0
    for i in range(IMAGES):
      try:
        damaged[i]
      except OSError as error:
        assert 'train] #' in str(error)
        bad += 1
    assert bad


def test_tensorflow_is_never_imported(array_records, tf_records):
  code = f"""
import sys
from vit_jax import sources
assert not {{'tensorflow_datasets', 'pyarrow', 'PIL'}} & set(sys.modules)
for root in {str(array_records)!r}, {str(tf_records)!r}:
  source = sources.open_source('tfds:tiny', 'train', data_dir=root)
  assert len(source) == {IMAGES} and source[0]['image']
assert 'tensorflow' not in sys.modules
"""
  done = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_a_missing_library_is_one_line(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
  (tmp_path / 'x.parquet').write_bytes(b'PAR1')
  assert "pip install 'vit_jax[tfds]'" in refused(tmp_path / 'x.parquet', 'all')
