"""Every kind of source, found by what it is; splits, slices, classes, the listing cache, and one line for bad input."""

import concurrent.futures
import gzip
import io
import json
import os
import re
import struct
import tarfile

import numpy as np
from PIL import Image
import pytest

from vit_jax import guard, listing, sources


def picture(value=0, kind='PNG'):
  file = io.BytesIO()
  Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file, kind)
  return file.getvalue()


def tree(root, **classes):
  """Class folders: tree(root, cat=3) makes root/cat/0.png ... 2.png."""
  for name, count in classes.items():
    (root / name).mkdir(parents=True)
    for i in range(count):
      (root / name / f'{i}.png').write_bytes(picture(i))
  return root


def names(source):
  return [os.path.basename(source.describe(i)) for i in range(len(source))]


def refused(*args, **kwargs):
  """The one line that a bad request gets."""
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    sources.open_source(*map(str, args), **kwargs)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path_factory.mktemp('listings')))


# ---- the embedded digits, splits and slices


def test_digits_are_split_once_and_for_all():
  train, test = (sources.open_source('digits', split) for split in ('train', 'test'))
  assert (len(train), len(test)) == (1437, 360)
  assert train.classes == test.classes == [str(i) for i in range(10)]
  counts = np.bincount(sources.open_source('digits', 'all').labels())
  np.testing.assert_allclose(np.bincount(test.labels()), counts * 360 / 1797, atol=1)
  pictures = {s[i]['image'].tobytes() for s in (train, test) for i in range(len(s))}
  assert len(pictures) == 1797
  image = train[0]['image']
  assert image.dtype == np.uint8 and image.shape == (8, 8)
  assert max(s[i]['image'].max() for s in (train, test) for i in range(len(s))) == 255
  # The split is part of every published result: a change of numpy or of the code must not move it.
  assert train.fingerprint() == '2f804b36726bd2c961cbcdee046c559863474219e23c525f1d4a28e45ce97773'
  assert test.fingerprint() == '7d68ffd218311ff34dc7a7ea570d197f5e6ca993125eed880d3cdd10d85284bf'


@pytest.mark.parametrize('slices', [('[:98%]', '[98%:]'), ('[:500]', '[500:]'), ('[:-33%]', '[-33%:]')])
@pytest.mark.parametrize('kind', ['digits', 'folder'])
def test_slices_share_nothing_and_miss_nothing(slices, kind, tmp_path):
  name = 'digits' if kind == 'digits' else str(tree(tmp_path / 'data', cat=20, dog=7))
  whole, *parts = (sources.open_source(name, 'train' + cut) for cut in ('', '[:10]', '[10:]'))
  if kind == 'digits':
    parts = [sources.open_source(name, 'train' + cut) for cut in slices]
  chosen = [part._index for part in parts]
  assert sorted(np.concatenate(chosen)) == sorted(whole._index)


def test_slices_of_a_folder_keep_all_classes(tmp_path):
  tree(tmp_path, cat=40, dog=40)
  assert set(sources.open_source(str(tmp_path), 'all[:50%]').labels()) == {0, 1}


def test_a_percentage_of_few_examples_from_the_end_is_empty_and_not_everything():
  images = np.zeros((3, 2, 2), np.uint8)
  index = np.arange(len(images))
  assert len(sources._cut(index, ('-10%', ''), 'x', shuffled=False)) == 0
  assert len(sources._cut(index, ('', '-10%'), 'x', shuffled=False)) == 3


@pytest.mark.parametrize(
  'split, says',
  [
    ('trian', "Did you mean 'train'"),
    ('train[5]', 'no split'),
    ('train[:x]', 'no bound'),
    ('train[2000:]', 'no examples'),
  ],
)
def test_bad_splits(split, says):
  assert says in refused('digits', split)


def test_bad_names(tmp_path):
  tree(tmp_path / 'flowers', rose=1)
  assert "Did you mean 'digits'" in refused('digts', 'train')
  assert "Did you mean 'flowers'" in refused(tmp_path / 'flower', 'train')
  (tmp_path / 'x.zip').write_bytes(b'')
  assert 'unpack' in refused(tmp_path / 'x.zip', 'train')
  assert 'fraction' in refused('digits', 'train', holdout=1.0)


# ---- folders


def test_split_folders(tmp_path):
  tree(tmp_path / 'train', cat=3, dog=2)
  tree(tmp_path / 'Validation', dog=1)
  train = sources.open_source(str(tmp_path), 'train')
  test = sources.open_source(str(tmp_path), 'test', classes=train.classes)
  assert names(train) == ['0.png', '1.png', '2.png', '0.png', '1.png']
  assert train.labels().tolist() == [0, 0, 0, 1, 1] and train.labels().dtype == np.int32
  assert [test[i]['label'] for i in range(len(test))] == [1] == test.labels().tolist()
  assert train[2]['image'] == picture(2)
  assert train.describe(4) == str(tmp_path / 'train' / 'dog' / '1.png')


def test_a_train_folder_alone_gives_its_test_split(tmp_path):
  tree(tmp_path / 'train', cat=10, dog=10)
  assert [len(sources.open_source(str(tmp_path), s)) for s in ('train', 'test', 'all')] == [18, 2, 20]


def test_held_out_examples_of_one_folder(tmp_path):
  tree(tmp_path, ant=1, bee=2, cat=30)
  train, test, whole = (sources.open_source(str(tmp_path), split, holdout=0.2) for split in ('train', 'test', 'all'))
  assert np.bincount(train.labels()).tolist() == [1, 1, 24]
  assert np.bincount(test.labels()).tolist() == [0, 1, 6]
  paths = [{s.describe(i) for i in range(len(s))} for s in (train, test, whole)]
  assert paths[0] | paths[1] == paths[2] and not paths[0] & paths[1]
  assert len(sources.open_source(str(tmp_path), 'train', holdout=0)) == 33
  assert 'holdout' in refused(tmp_path, 'test', holdout=0)


def test_what_counts_as_a_picture(tmp_path):
  tree(tmp_path, cat=1)
  cat = tmp_path / 'cat'
  for name in ('._0.png', '.hidden.jpg', 'notes.txt', 'b.JPEG', 'a.WebP', 'c.tif', 'é.png', 'Z.png'):
    (cat / name).write_bytes(b'x')
  (tmp_path / '.git').mkdir()
  (cat / 'deep' / 'er').mkdir(parents=True)
  (cat / 'deep' / 'er' / '1.bmp').write_bytes(b'x')
  outside = tree(tmp_path.parent / 'elsewhere', dog=1)
  (tmp_path / 'dog').symlink_to(outside / 'dog')
  (cat / 'up').symlink_to(cat)  # a loop must end
  source = sources.open_source(str(tmp_path), 'all')
  assert source.classes == ['cat', 'dog']
  assert names(source) == ['0.png', 'Z.png', 'a.WebP', 'b.JPEG', 'c.tif', '1.bmp', 'é.png', '0.png']


def test_train_can_be_a_class(tmp_path):
  tree(tmp_path, bus=2, train=2)
  assert sources.open_source(str(tmp_path), 'all').classes == ['bus', 'train']


def test_bad_folders(tmp_path):
  tree(tmp_path / 'ok' / 'train', cat=2, dog=2)
  tree(tmp_path / 'ok' / 'test', cat=1, dgo=1)
  line = refused(tmp_path / 'ok', 'test', classes=['cat', 'dog'])
  assert 'dgo' in line and "Did you mean 'dog'" in line
  assert "Did you mean 'train'" in refused(tmp_path / 'ok', 'trian')
  (tree(tmp_path / 'hollow', cat=1) / 'dog').mkdir()
  assert 'dog: no picture' in refused(tmp_path / 'hollow', 'train')
  (tmp_path / 'empty').mkdir()
  assert 'no class folders' in refused(tmp_path / 'empty', 'train')
  (tmp_path / 'loose').mkdir()
  (tmp_path / 'loose' / '1.png').write_bytes(picture())
  assert 'no class folders' in refused(tmp_path / 'loose', 'train')


def test_a_vanished_file_is_an_os_error(tmp_path):
  source = sources.open_source(str(tree(tmp_path, cat=2)), 'all')
  (tmp_path / 'cat' / '1.png').unlink()
  assert source[0]['image'] == picture(0)
  with pytest.raises(OSError, match=r'1\.png'):
    source[1]


def test_fingerprint_knows_names_and_labels_but_not_the_place(tmp_path):
  prints = [
    sources.open_source(str(tree(tmp_path / at, **what)), 'all').fingerprint()
    for at, what in [('a', dict(x=2)), ('b', dict(x=2)), ('c', dict(x=3)), ('d', dict(y=2))]
  ]
  assert prints[0] == prints[1] and len(set(prints)) == 3


# ---- the listing cache


def settled(root, when=1e9):
  """Dates a tree's folders back: what changed within the last two seconds is never cached."""
  for folder, *_ in os.walk(root):
    os.utime(folder, (when, when))
  return root


def test_the_listing_of_a_big_folder_is_kept_until_a_folder_changes(tmp_path, monkeypatch):
  settled(tree(tmp_path / 'data', cat=3, dog=2))
  monkeypatch.setattr(listing, 'CACHE_FROM', 5)
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'kept'))
  walks, walk = [], listing._walk
  monkeypatch.setattr(listing, '_walk', lambda *args: walks.append(args) or walk(*args))
  read = lambda: sources.open_source(str(tmp_path / 'data'), 'all')
  first = read()
  assert len(walks) == 2
  again = read()
  assert len(walks) == 2 and names(again) == names(first) and again.fingerprint() == first.fingerprint()
  (tmp_path / 'data' / 'dog' / 'new.png').write_bytes(picture())
  assert names(read())[-1] == 'new.png' and len(walks) == 4
  read()
  assert len(walks) == 6  # changed just now: not kept
  settled(tmp_path / 'data', 1.1e9)
  read()
  read()
  assert len(walks) == 8
  [file] = (tmp_path / 'kept' / 'listings').iterdir()
  file.write_bytes(file.read_bytes()[:-50])
  assert len(read()) == 6 and len(walks) == 10  # a damaged copy is as good as none
  assert [f.suffix for f in (tmp_path / 'kept' / 'listings').iterdir()] == ['.npz']


def test_small_folders_and_unwritable_caches_are_listed_each_time(tmp_path, monkeypatch):
  settled(tree(tmp_path / 'data', cat=3))
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'kept'))
  assert len(sources.open_source(str(tmp_path / 'data'), 'all')) == 3
  assert not (tmp_path / 'kept').exists()
  monkeypatch.setattr(listing, 'CACHE_FROM', 1)
  (tmp_path / 'kept').write_bytes(b'a file where the folder should be')
  assert len(sources.open_source(str(tmp_path / 'data'), 'all')) == 3


# ---- at an address


@pytest.fixture
def both(tmp_path, bucket):
  """A function that puts a file below a local folder and below gs://b; and the two."""

  def put(name, data):
    bucket.put(f'gs://b/{name}', data)
    (tmp_path / 'd' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'd' / name).write_bytes(data)

  put.places = str(tmp_path / 'd'), 'gs://b'
  return put


def test_data_at_an_address_is_that_of_a_disk(both):
  for split, i in ((split, i) for split in ('train', 'val') for i in range(3)):
    both(f'folders/{split}/cat/{i}.png', picture(i))
    both(f'folders/{split}/dog/deep/{i}.png', picture(i + 50))
  both('folders/train/cat/.hidden.png', b'')
  both('folders/train/notes.txt', b'')
  both('zip/zip/cat/1.png', picture(1))
  both('zip/zip/dog/1.png', picture(2))
  for name in ('flat/train/cat/1.png', 'flat/train/dog/1.png', 'flat/val/1.png', 'flat/val/2.png'):
    both(name, picture(len(name)))
  both('flat/val.txt', b'1.png dog\n2.png cat\n')
  both('table/t.csv', b'path,label\na/1.png,x\na/2.png,y\n')
  both('table/a/1.png', picture(5))
  both('table/a/2.png', picture(6))
  file = io.BytesIO()
  np.savez(file, x_train=np.zeros((4, 8, 8), np.uint8), y_train=np.arange(4))
  both('arrays/d.npz', file.getvalue())
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as tar:
    for name in ('a/1.png', 'b/1.png'):
      member = tarfile.TarInfo(name)
      member.size = len(picture(3))
      tar.addfile(member, io.BytesIO(picture(3)))
  both('tars/train-0.tar', file.getvalue())
  known = {'classes': ['cat', 'dog']}
  for name, split, options in (
    ('folders', 'train', {}), ('folders', 'val', {}), ('zip', 'all', {}), ('flat', 'val', known),
    ('table/t.csv', 'all', {}), ('arrays/d.npz', 'train', {}), ('tars', 'train', {}), ('tars/train-0.tar', 'train', {}),
  ):  # fmt: skip
    local, there = (sources.open_source(f'{place}/{name}', split, holdout=0, **options) for place in both.places)
    assert there.fingerprint() == local.fingerprint() and there.classes == local.classes, name
    np.testing.assert_array_equal(there.labels(), local.labels())
    for i in range(len(local)):
      np.testing.assert_array_equal(there[i]['image'], local[i]['image'])


def test_what_is_wrong_at_an_address_is_said_as_on_a_disk(both):
  both('folders/train/cat/1.png', picture(1))
  both('folders/train/empty/notes.txt', b'')
  both('loose/1.png', picture(1))
  both('table.csv', b'path,label\nnone.png,x\n')
  both('notes.txt', b'')
  for name in ('none', 'folders', 'loose', 'table.csv', 'notes.txt'):
    local, there = (refused(f'{place}/{name}', 'all') for place in both.places)
    assert there == local.replace(both.places[0], both.places[1]), name
  for page in ('dataset_info.json', 'prepared.json'):
    both(f'{page[:4]}/{page}', b'{}')
    assert 'copy it to a local disk first (gcloud storage cp' in refused(f'gs://b/{page[:4]}', 'train')
  assert 'name a local place' in refused('tfds:mnist', 'train', data_dir='gs://b/tfds')


def test_a_picture_that_is_gone_is_unreadable_and_a_store_that_is_gone_ends_the_run(both, bucket):
  for i in range(3):
    both(f'd/cat/{i}.png', picture(i))
  pictures = sources.open_source('gs://b/d', 'all')
  bucket.fs.rm('gs://b/d/cat/1.png')
  with pytest.raises(OSError, match=r'1\.png'):
    pictures[1]
  bucket.fail = lambda what, path: OSError('the network is gone')
  with pytest.raises(guard.Unreachable, match=r'gs://b/d/cat/0.png cannot be read: the network is gone'):
    pictures[0]


# ---- ImageNet's flat validation folder

WNIDS = ['n01440764', 'n01443537', 'n02119789']


def imagenet(root, **files):
  """train/WNID/, val/ with three loose pictures, and text files; the second and first class come first in val."""
  tree(root / 'train', **dict.fromkeys(WNIDS, 2))
  (root / 'val').mkdir()
  for i in (1, 2, 3):
    (root / 'val' / f'v_{i}.JPEG').write_bytes(picture(i))
  for name, text in files.items():
    (root / name.replace('__', '.')).write_text(text)
  return root


@pytest.mark.parametrize(
  'name, text',
  [
    ('val__txt', 'v_1.JPEG 1\nv_3.JPEG 2\nv_2.JPEG 0\n'),
    ('val_labels__txt', f'v_1.JPEG {WNIDS[1]}\nv_2.JPEG {WNIDS[0]}\nv_3.JPEG {WNIDS[2]}\n'),
    ('val_map__csv', f'name,label\nv_1,{WNIDS[1]}\nv_2,{WNIDS[0]}\nv_3,{WNIDS[2]}\n'),
    (
      'LOC_val_solution__csv',
      f'ImageId,PredictionString\nv_3,{WNIDS[2]} 1 2 3 4 {WNIDS[2]} 5 6 7 8\n'
      f'v_1,{WNIDS[1]} 1 2 3 4 \nv_2,{WNIDS[0]} 0 0 1 1\n',
    ),
    ('imagenet_2012_validation_synset_labels__txt', f'{WNIDS[1]}\n{WNIDS[0]}\n{WNIDS[2]}\n'),
  ],
)
def test_flat_validation_folder(tmp_path, name, text):
  imagenet(tmp_path, **{name: text})
  for split, classes in (('val', None), ('test', WNIDS)):
    source = sources.open_source(str(tmp_path), split, classes=classes)
    assert source.labels().tolist() == [1, 0, 2] and source.classes == WNIDS
    assert source[2]['image'] == picture(3)


def test_mapping_file_inside_the_split_folder(tmp_path):  # Tiny ImageNet's layout
  imagenet(tmp_path)
  (tmp_path / 'val' / 'images').mkdir()
  for file in (tmp_path / 'val').glob('*.JPEG'):
    file.rename(file.parent / 'images' / file.name)
  (tmp_path / 'val' / 'val_annotations.txt').write_text(
    ''.join(f'v_{i}.JPEG\t{WNIDS[i - 1]}\t0\t0\t9\t9\n' for i in (1, 2, 3))
  )
  assert sources.open_source(str(tmp_path), 'val').labels().tolist() == [0, 1, 2]


def test_ground_truth_in_ilsvrc_order(tmp_path):
  imagenet(tmp_path, ILSVRC2012_validation_ground_truth__txt='3\n1\n2\n')
  assert 'ILSVRC order' in refused(tmp_path, 'val')
  (tmp_path / 'map_clsloc.txt').write_text(f'{WNIDS[2]} 1 kit_fox\n{WNIDS[0]} 2 tench\n{WNIDS[1]} 3 goldfish\n')
  assert sources.open_source(str(tmp_path), 'val').labels().tolist() == [1, 2, 0]
  (tmp_path / 'map_clsloc.txt').unlink()
  from scipy.io import savemat

  synsets = np.array([(1, WNIDS[2]), (2, WNIDS[0]), (3, WNIDS[1])], [('ILSVRC2012_ID', 'i4'), ('WNID', 'O')])
  savemat(tmp_path / 'meta.mat', {'synsets': synsets})
  assert sources.open_source(str(tmp_path), 'val').labels().tolist() == [1, 2, 0]


@pytest.mark.parametrize(
  'files, says',
  [
    ({}, 'no class folders'),
    ({'val__txt': 'v_1.JPEG 1\nv_2.JPEG 0\n'}, 'v_3.JPEG (1 of 3 missing)'),
    ({'val__txt': 'v_1.JPEG 1\nv_2.JPEG 3\nv_3.JPEG 0\n'}, 'val.txt:2'),
    ({'val__txt': 'v_1.JPEG n01440765\n'}, "Did you mean 'n01440764'"),
    ({'val__txt': 'n01440764\n'}, '1 labels for 3 pictures'),
  ],
)
def test_bad_mappings(tmp_path, files, says):
  assert says in refused(imagenet(tmp_path, **files), 'val')


# ---- tables


def test_csv(tmp_path):
  tree(tmp_path / 'a', cat=6)
  lines = ['\ufeffpath,label', *(f'a/cat/{i}.png,' + ('dog' if i % 2 else '"a, cat"') for i in range(6))]
  (tmp_path / 'x.csv').write_text('\n'.join(lines), encoding='utf-8')
  source = sources.open_source(str(tmp_path / 'x.csv'), 'all')
  assert source.classes == ['a, cat', 'dog'] and source.labels().tolist() == [0, 1] * 3
  assert source[3]['image'] == picture(3)
  assert len(sources.open_source(str(tmp_path / 'x.csv'), 'test')) == 2  # one of each class
  assert sources.open_source(str(tmp_path / 'x.csv'), 'all[2:4]')[0]['image'] == picture(2)


def test_csv_with_a_split_column_and_numbers(tmp_path):
  tree(tmp_path, d=4)
  (tmp_path / 'x.csv').write_text('label,split,path\n10,train,d/0.png\n9,train,d/1.png\n10,val,d/2.png\n')
  train = sources.open_source(str(tmp_path / 'x.csv'), 'train')
  test = sources.open_source(str(tmp_path / 'x.csv'), 'test', classes=train.classes)
  assert train.classes == ['9', '10'] and train.labels().tolist() == [1, 0] and test.labels().tolist() == [1]


def test_jsonl(tmp_path):
  tree(tmp_path, d=3)
  rows = [{'path': f'd/{i}.png', 'label': i % 2, 'other': None} for i in range(3)]
  (tmp_path / 'x.jsonl').write_text('\n\n'.join(map(json.dumps, rows)))
  source = sources.open_source(str(tmp_path / 'x.jsonl'), 'all')
  assert source.classes == ['0', '1'] and source.labels().tolist() == [0, 1, 0]


@pytest.mark.parametrize(
  'name, text, says',
  [
    ('x.csv', 'file,label\n', 'x.csv:1: the header'),
    ('x.csv', 'path,label\nd/0.png,a\nd/0.png\n', 'x.csv:3: 1 columns'),
    ('x.csv', 'path,label\nd/0.png,\n', "x.csv:2: path 'd/0.png', label ''"),
    ('x.csv', 'path,label\nd/9.png,a\n', 'x.csv:2: there is no'),
    ('x.csv', 'path,label\n', 'names no pictures'),
    ('x.jsonl', '{"path": "d/0.png", "label": 1}\n{"path": "d/0.png"}\n', 'x.jsonl:2'),
    ('x.jsonl', '{"path": "d/0.png", "label": 1.5}\n', 'x.jsonl:1'),
    ('x.jsonl', '[1]\n', 'x.jsonl:1'),
    ('x.csv', 'path,label\nd/0.png,a;a\n', "x.csv:2: labels 'a;a'; wanted names that come once"),
    ('x.csv', 'path,label\nd/0.png,a;;b\n', "x.csv:2: labels 'a;;b'"),
    ('x.csv', 'path,label\nd/0.png,a;b\nd/0.png,b\n', 'x.csv:3: d/0.png is in line 2 already'),
    ('x.csv', 'path,labels\nd/0.png,\n', 'no picture has a label'),
    ('x.jsonl', '{"path": "d/0.png", "label": ["a", 1.5]}\n', "x.jsonl:1: path 'd/0.png', label ['a', 1.5]"),
  ],
)
def test_bad_tables(tmp_path, name, text, says):
  tree(tmp_path, d=1)
  (tmp_path / name).write_text(text)
  assert says in refused(tmp_path / name, 'train')


def test_any_number_of_labels(tmp_path):
  tree(tmp_path, d=5)
  (tmp_path / 'x.csv').write_text('path,label,split\nd/0.png,cat; dog,train\nd/1.png,,train\nd/2.png,ant,train\n'
                                  'd/3.png,dog,test\n')  # fmt: skip
  train = sources.open_source(str(tmp_path / 'x.csv'), 'train')
  assert train.classes == ['ant', 'cat', 'dog'] and train.labels().dtype == np.uint8
  assert train.labels().tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]] and train[0]['label'].tolist() == [0, 1, 1]
  test = sources.open_source(str(tmp_path / 'x.csv'), 'test', classes=train.classes)
  assert test.labels().tolist() == [[0, 0, 1]] and test[0]['label'].tolist() == [0, 0, 1]
  assert 'x.csv[train] has classes that the training set lacks: cat. Did you mean' in refused(
    tmp_path / 'x.csv', 'train', classes=['ant', 'cta', 'dog']
  )
  labels = {'labels': ['b', 'a']}, {'labels': []}, {'label': 'a'}
  rows = [{'path': f'd/{i}.png', **row} for i, row in enumerate(labels)]
  (tmp_path / 'x.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  assert sources.open_source(str(tmp_path / 'x.jsonl'), 'all').labels().tolist() == [[1, 1], [0, 0], [1, 0]]
  (tmp_path / 'one.csv').write_text('path,labels\nd/0.png,b\nd/1.png,a\nd/2.png,a\n')  # one each, and still sets
  every = sources.open_source(str(tmp_path / 'one.csv'), 'all')
  assert every.labels().tolist() == [[0, 1], [1, 0], [1, 0]]
  test, train = (sources.open_source(str(tmp_path / 'one.csv'), split, holdout=0.34) for split in ('test', 'train'))
  assert len(test) == 1 and len(train) == 2


# ---- arrays


def test_arrays_of_sets_and_of_probabilities(tmp_path):
  images, sets = np.zeros((3, 2, 2), np.uint8), np.array([[True, False], [True, True], [False, False]])
  source = sources.arrays(images, sets, classes=['a', 'b'])
  assert source.labels().dtype == np.uint8 and source.labels().tolist() == sets.tolist()
  assert source.fingerprint() != sources.arrays(images, ~sets, classes=['a', 'b']).fingerprint()
  assert source.fingerprint() != sources.arrays(images, sets * 0.3, classes=['a', 'b']).fingerprint()
  soft = sources.arrays(images, np.array([[0.25, 0.75], [1, 0], [0, 1]])).labels()
  assert soft.dtype == np.float32 and soft[0].tolist() == [0.25, 0.75]
  assert sources.arrays(images, sets, classes=['a', 'b'])[1]['label'].tolist() == [1, 1]
  for wrong, says in (2 * sets, 'go from 0 to 2; wanted 0 to 1'), (sets[:2], 'wanted integers (3,), or 0'):
    with pytest.raises(ValueError, match=re.escape(says)):
      sources.arrays(images, wrong)
  with pytest.raises(ValueError, match='and there are 3 classes'):
    sources.arrays(images, sets, classes=['a', 'b', 'c'])


def test_arrays():
  images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1)
  source = sources.arrays(images, np.array([[0], [2], [1], [1], [0]]))
  assert source.classes == ['0', '1', '2'] and source.labels().tolist() == [0, 2, 1, 1, 0]
  np.testing.assert_array_equal(source[3]['image'], images[3])
  assert source[3]['label'] == 1 and source.describe(3) == 'arrays #3'
  assert source.fingerprint() != sources.arrays(images[::-1], source.labels()).fingerprint()


@pytest.mark.parametrize(
  'images, labels, classes, says',
  [
    (np.zeros((2, 4, 4)), [0, 1], None, 'uint8'),
    (np.zeros((2, 4, 4, 2), np.uint8), [0, 1], None, 'wanted uint8'),
    (np.zeros((2, 4, 4), np.uint8), [0, 1, 1], None, 'wanted integers'),
    (np.zeros((2, 4, 4), np.uint8), [0.0, 1.0], None, 'float64'),
    (np.zeros((2, 4, 4), np.uint8), [0, -1], None, '-1'),
    (np.zeros((2, 4, 4), np.uint8), [0, 2], ['a', 'b'], '0 to 1'),
  ],
)
def test_bad_arrays(images, labels, classes, says):
  with pytest.raises(ValueError, match=says):
    sources.arrays(images, np.array(labels), classes=classes)


def test_npz(tmp_path):
  images, labels = np.arange(40, dtype=np.uint8).reshape(10, 2, 2), np.arange(10) % 3
  np.savez(tmp_path / 'x.npz', x_train=images[:7], y_train=labels[:7], x_test=images[7:], y_test=labels[7:])
  train, test = (sources.open_source(str(tmp_path / 'x.npz'), split) for split in ('train[:5]', 'test'))
  assert (len(train), len(test)) == (5, 3) and train.classes == ['0', '1', '2']
  np.testing.assert_array_equal(test[0]['image'], images[7])
  np.savez(tmp_path / 'other.npz', images=images)
  assert 'x_train' in refused(tmp_path / 'other.npz', 'train')
  np.savez(tmp_path / 'objects.npz', x_train=np.array([images, None], object), y_train=labels)
  assert 'Python objects' in refused(tmp_path / 'objects.npz', 'train')
  (tmp_path / 'broken.npz').write_bytes((tmp_path / 'x.npz').read_bytes()[:100])
  assert 'not an .npz' in refused(tmp_path / 'broken.npz', 'train')


@pytest.mark.parametrize('pack, suffix', [(bytes, ''), (gzip.compress, '.gz')])
def test_idx(tmp_path, pack, suffix):
  images, labels = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3), np.array([0, 1, 2, 1, 0], np.uint8)
  for split, some in (('train', slice(3)), ('t10k', slice(3, 5))):
    x, y = images[some], labels[some]
    for name, array in ((f'{split}-images-idx3-ubyte', x), (f'{split}-labels-idx1-ubyte', y)):
      head = bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape)
      (tmp_path / (name + suffix)).write_bytes(pack(head + array.tobytes()))
  train = sources.open_source(str(tmp_path), 'train')
  test = sources.open_source(str(tmp_path), 'test', classes=train.classes)
  np.testing.assert_array_equal(test[0]['image'], images[3])
  assert train.labels().tolist() == [0, 1, 2] and test.labels().tolist() == [1, 0]
  file = tmp_path / f'train-images-idx3-ubyte{suffix}'
  file.write_bytes(file.read_bytes()[:-4])
  assert 'IDX' in refused(tmp_path, 'train')
  (tmp_path / f'train-labels-idx1-ubyte{suffix}').unlink()
  assert 'train-labels' in refused(tmp_path, 'train')


def test_threads_read_what_one_thread_reads(tmp_path):
  source = sources.open_source(str(tree(tmp_path, cat=20, dog=20)), 'all')
  alone = [source[i] for i in range(len(source))]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(source.__getitem__, list(range(40)) * 5)) == alone * 5
