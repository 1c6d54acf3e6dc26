"""vit_jax prepare: pictures, labels, order, classes and splits of a prepared data set are those of its source."""

import errno
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from vit_jax import cli, data, diskfull, imagenet, packing, prepare, records, shards, sources, transforms

ROOT = pathlib.Path(__file__).parent.parent
PHOTO = Image.open(ROOT / 'tests' / 'chelsea.jpg').convert('RGB')  # 300 x 451


def encoded(image, form='PNG', **options):
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def photo(i, width=60, height=45):
  return PHOTO.crop((i % 40, 2 * i, i % 40 + width, 2 * i + height))


@pytest.fixture
def pictures(tmp_path):
  """Class folders in two splits, of pictures of several sizes; one is no picture."""
  for split, count in (('train', 6), ('test', 3)):
    for c, name in enumerate(('cat', 'dog')):
      (tmp_path / 'pictures' / split / name).mkdir(parents=True)
      for i in range(count):
        photo(10 * i + c, 60 + i, 45 + 2 * i).save(tmp_path / 'pictures' / split / name / f'{i}.png')
  (tmp_path / 'pictures' / 'train' / 'cat' / '1.png').write_bytes(b'no picture')
  return tmp_path / 'pictures'


def told(capsys, *argv):
  """(exit code, lines of stdout, lines of stderr) of vit_jax prepare."""
  code = cli.main(['prepare', *map(str, argv)])
  out, err = capsys.readouterr()
  return code, out.splitlines(), err.splitlines()


def scaled(image, short_side):
  w, h = image.size
  scale = short_side / min(w, h)
  return np.asarray(image.resize((round(w * scale), round(h * scale)), Image.Resampling.BICUBIC))


def test_a_folder_keeps_labels_order_classes_and_splits_and_leaves_out_what_is_bad(pictures, tmp_path, capsys):
  code, out, err = told(capsys, pictures, tmp_path / 'out', '--short_side=30', '--format=raw')
  assert code == 1 and out[0].startswith(f'{tmp_path / "out"}: 11 train, 6 test pictures, ')
  assert err == [f'{pictures}/train/cat/1.png: not a picture in a format that Pillow reads',
                 '1 of 18 pictures could not be read']  # fmt: skip
  for split in ('train', 'test', 'train[:50%]', 'train[50%:]', 'test[1:4]'):
    old, new = (sources.open_source(str(name), split) for name in (pictures, tmp_path / 'out'))
    good = [i for i in range(len(old)) if not old.describe(i).endswith('train/cat/1.png')]
    assert new.classes == old.classes == ['cat', 'dog']
    assert new.labels().tolist() == old.labels()[good].tolist() == [new[i]['label'] for i in range(len(new))]
    assert len(new) == len(good)
    shard = f'{tmp_path}/out/{split.partition("[")[0]}-00000-of-00001.array_record'
    for i, j in enumerate(good):
      picture = Image.open(io.BytesIO(old[j]['image']))
      np.testing.assert_array_equal(new[i]['image'], scaled(picture, 30))
      assert new.describe(i) == f'{shard}:{pathlib.Path(old.describe(j)).relative_to(pictures)}'
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
    'prepared.json', 'test-00000-of-00001.array_record', 'test.npz', 'train-00000-of-00001.array_record', 'train.npz',
  ]  # fmt: skip
  page = json.loads((tmp_path / 'out' / 'prepared.json').read_text())
  assert (page['kind'], page['short_side'], page['source']) == ('raw', 30, str(pictures))
  assert page['splits']['train']['source'] == sources.open_source(str(pictures), 'train').fingerprint()
  assert {'vit_jax', 'pillow', 'array_record'} <= set(page['versions'])


def test_training_and_evaluation_see_what_they_would_of_pictures_scaled_beforehand(tmp_path):
  for name in ('large', 'small'):
    for c in ('cat', 'dog'):
      (tmp_path / name / c).mkdir(parents=True)
      for i in range(10):
        image = photo(7 * i + (c == 'dog'), 80, 50 + i)
        image = image if name == 'large' else Image.fromarray(scaled(image, 32))
        image.save(tmp_path / name / c / f'{i}.png')
  prepare.run(tmp_path / 'large', tmp_path / 'out', short_side=32, kind='raw')
  small, out = (data.load(str(tmp_path / name), size=24, threads=2) for name in ('small', 'out'))
  assert len(out.train) == 18 and len(out.test) == 2  # held out alike: it has no splits
  batches = [itertools.islice(data.train_batches(one, batch=6, seed=3), 5) for one in (small, out)]
  for a, b in zip(*batches, strict=True):
    for key in ('image', 'label', 'id'):
      np.testing.assert_array_equal(a[key], b[key])
  for a, b in zip(data.eval_batches(small, small.test, batch=2), data.eval_batches(out, out.test, batch=2)):
    np.testing.assert_array_equal(a['image'], b['image'])


def test_jpeg_is_of_the_wanted_quality_and_small_upright_files_stay_as_they_are(tmp_path):
  (tmp_path / 'pics' / 'x').mkdir(parents=True)
  exif = Image.Exif()
  exif[0x0112] = 6
  images = {
    'a_large.png': encoded(photo(0, 90, 60)),
    'b_small.jpg': encoded(photo(1, 40, 31), 'JPEG', quality=60),
    'c_turned.jpg': encoded(photo(2, 40, 31), 'JPEG', quality=60, exif=exif),
    'd_grey.jpg': encoded(photo(3, 40, 31).convert('L'), 'JPEG'),
    'e_large.jpg': encoded(photo(4, 70, 50), 'JPEG', exif=exif),
  }
  for name, content in images.items():
    (tmp_path / 'pics' / 'x' / name).write_bytes(content)
  made = {}
  for quality in (50, 95):
    prepare.run(tmp_path / 'pics', tmp_path / f'q{quality}', short_side=32, quality=quality)
    source = sources.open_source(str(tmp_path / f'q{quality}'), 'all')
    made[quality] = [source[i]['image'] for i in range(5)]
  small = list(images.values())[1]
  assert made[50][1] == made[95][1] == small
  assert all(len(a) < len(b) for a, b in zip(made[50], made[95]) if b != small)
  sizes = [transforms.decode(one).shape for one in made[95]]
  assert sizes == [(32, 48, 3), (31, 40, 3), (40, 31, 3), (31, 40, 3), (45, 32, 3)]  # never larger
  assert not any(Image.open(io.BytesIO(one)).getexif() for one in made[95])
  reference = encoded(Image.fromarray(scaled(photo(0, 90, 60), 32)), 'JPEG', quality=95)
  assert made[95][0] == reference


@pytest.mark.parametrize('kind', ['one', 'several', 'soft'])
def test_labels_of_every_kind_survive(kind, tmp_path):
  rng = np.random.default_rng(0)
  labels = {
    'one': rng.integers(0, 3, 20),
    'several': rng.integers(0, 2, (20, 3)),
    'soft': rng.dirichlet(np.ones(3), 20).astype(np.float32),
  }[kind]
  images = rng.integers(0, 256, (20, 9, 12, 3), np.uint8)
  np.savez(tmp_path / 'set.npz', x_train=images[:14], y_train=labels[:14], x_test=images[14:], y_test=labels[14:],
           classes=np.array(['a', 'b', 'c']))  # fmt: skip
  prepare.run(tmp_path / 'set.npz', tmp_path / 'out', short_side=64, kind='raw')
  for split in ('train', 'test'):
    old, new = (sources.open_source(str(tmp_path / name), split) for name in ('set.npz', 'out'))
    assert new.labels().dtype == old.labels().dtype and new.classes == ['a', 'b', 'c']
    np.testing.assert_array_equal(new.labels(), old.labels())
    for i in range(len(old)):
      np.testing.assert_array_equal(new[i]['image'], old[i]['image'])
      np.testing.assert_array_equal(new[i]['label'], old[i]['label'])


def test_labels_that_only_reading_tells_are_known_afterwards(tmp_path, monkeypatch):
  class Rows:
    """As records.Examples."""

    by_class, labels, classes = False, None, ['a', 'b', 'c']

    def __len__(self):
      return 9

    def read(self, i):
      if i == 4:
        raise OSError('damaged')
      return encoded(photo(i)), i % 3

    def where(self, i):
      return f'rows #{i}'

    def digest(self):
      return b'rows'

  monkeypatch.setattr(packing, 'EXAMPLES', 5)
  monkeypatch.setattr(sources, 'containers', lambda name, data_dir=None: records.Prepared(train=lambda _: Rows()))
  page = prepare.run('tfds:rows', tmp_path / 'out')
  assert page['splits']['train']['unreadable'] == [['rows #4', 'damaged']]
  monkeypatch.undo()
  source = sources.open_source(str(tmp_path / 'out'), 'train')
  assert source.labels().tolist() == [0, 1, 2, 0, 2, 0, 1, 2]  # and none is held out
  with pytest.raises(ValueError, match="no split 'test'"):
    sources.open_source(str(tmp_path / 'out'), 'test')


def test_chosen_splits_keep_their_pictures_and_nothing_more_is_held_out(tmp_path):
  prepare.run('digits', tmp_path / 'both', kind='raw')
  prepare.run('digits', tmp_path / 'some', kind='raw', splits=['test[:50]', 'train[10:30]'])
  for name, split, was in (('both', 'test', 'test'), ('some', 'test', 'test[:50]'), ('some', 'train', 'train[10:30]')):
    old, new = sources.open_source('digits', was), sources.open_source(str(tmp_path / name), split)
    np.testing.assert_array_equal(new.labels(), old.labels())
    np.testing.assert_array_equal(new[7]['image'][..., 0], old[7]['image'])
  with pytest.raises(ValueError, match='a split'):
    prepare.run('digits', tmp_path / 'twice', splits=['train[:5]', 'train[9:]'])
  with pytest.raises(ValueError, match="no split 'all'"):
    sources.open_source(str(tmp_path / 'both'), 'all')


def test_shards_hold_their_share_and_threads_may_read_them(tmp_path, monkeypatch):
  monkeypatch.setattr(packing, 'EXAMPLES', 7)
  images = np.arange(30 * 8 * 8 * 3, dtype=np.int64).astype(np.uint8).reshape(30, 8, 8, 3)
  np.savez(tmp_path / 'set.npz', x_train=images, y_train=np.arange(30) % 4)
  prepare.run(tmp_path / 'set.npz', tmp_path / 'out', kind='raw')
  assert len(list((tmp_path / 'out').glob('train-*-of-00005.array_record'))) == 5
  pictures = data.load(str(tmp_path / 'out'), size=8, crop='none', threads=4, test=None, holdout=0)
  for batch, _ in zip(data.train_batches(pictures, batch=10, seed=0), range(20)):
    np.testing.assert_array_equal(batch['image'], images[batch['id']])
  monkeypatch.setattr(packing, 'SHARDS', 2)
  assert packing.per(range(30)) == 15  # files stay few


def interrupted(name, out, after, monkeypatch):
  """Runs prepare until so many records were made, as if Ctrl-C had come then; (how many were made, the exception)."""
  made, record = [], prepare.record

  def stopping(image, **how):
    if len(made) >= after:
      raise KeyboardInterrupt
    made.append(image)
    return record(image, **how)

  monkeypatch.setattr(prepare, 'record', stopping)
  monkeypatch.setattr(prepare, '_check_room', lambda *args: None)
  try:
    prepare.run(name, out, short_side=6, kind='raw')
  except KeyboardInterrupt as end:
    return len(made), end
  finally:
    monkeypatch.setattr(prepare, 'record', record)
  return len(made), None


def test_an_interrupted_command_leaves_nothing_under_the_name_and_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(packing, 'EXAMPLES', 10)
  images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
  np.savez(tmp_path / 'set.npz', x_train=images, y_train=np.arange(60) % 4)
  prepare.run(tmp_path / 'set.npz', tmp_path / 'whole', short_side=6, kind='raw')
  out = tmp_path / 'out'
  first, end = interrupted(tmp_path / 'set.npz', out, 35, monkeypatch)
  assert end is not None and not out.exists() and (tmp_path / 'out.preparing').is_dir()
  second, end = interrupted(tmp_path / 'set.npz', out, 1000, monkeypatch)
  assert end is None and first + second < 90 and second <= 40  # three shards were done
  assert not (tmp_path / 'out.preparing').exists()
  files = sorted(path.name for path in out.iterdir())
  assert files == sorted(path.name for path in (tmp_path / 'whole').iterdir())
  for name in files:
    if not name.endswith('.npz'):  # which hold the time
      assert (out / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
  assert sources.open_source(str(out), 'train').fingerprint() == \
         sources.open_source(str(tmp_path / 'whole'), 'train').fingerprint()  # fmt: skip


def test_another_plan_starts_again(tmp_path, monkeypatch):
  monkeypatch.setattr(packing, 'EXAMPLES', 10)
  images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
  np.savez(tmp_path / 'set.npz', x_train=images, y_train=np.arange(40) % 4)
  interrupted(tmp_path / 'set.npz', tmp_path / 'out', 25, monkeypatch)
  prepare.run(tmp_path / 'set.npz', tmp_path / 'out', short_side=4, kind='raw')
  source = sources.open_source(str(tmp_path / 'out'), 'train')
  assert {source[i]['image'].shape for i in range(len(source))} == {(4, 4, 3)}


def test_a_killed_process_leaves_what_the_next_one_finishes(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)
  np.savez(tmp_path / 'set.npz', x_train=images, y_train=np.arange(30) % 4)
  killed = (
    'import os, sys; from vit_jax import packing, prepare; packing.EXAMPLES = 10; real = packing._split\n'
    'packing._split = lambda *args: os._exit(9)\n'
    'prepare.run(*sys.argv[1:], kind="raw")'
  )
  run = [sys.executable, '-c', killed, str(tmp_path / 'set.npz'), str(tmp_path / 'out')]
  assert subprocess.run(run, env=os.environ | {'PYTHONPATH': str(ROOT)}, timeout=120, check=False).returncode == 9
  assert not (tmp_path / 'out').exists() and len(list((tmp_path / 'out.preparing' / 'done').iterdir())) == 3
  prepare.run(tmp_path / 'set.npz', tmp_path / 'out', kind='raw')
  source = sources.open_source(str(tmp_path / 'out'), 'train', holdout=0)
  np.testing.assert_array_equal(np.stack([source[i]['image'] for i in range(30)]), images)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(pictures, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(diskfull, 'free', lambda folder: 1000)
  code, _, err = told(capsys, pictures, tmp_path / 'out')
  assert code == 1 and len(err) == 1
  assert err[0].startswith(f'error: {tmp_path / "out"} needs about 2') and '1 kB are free' in err[0]
  assert sorted(path.name for path in tmp_path.iterdir()) == ['pictures']


def test_a_disk_that_fills_up_is_one_line(pictures, tmp_path, capsys, monkeypatch):
  class Writer:
    def __init__(self, path, options):
      pass

    def write(self, data):
      pass

    def close(self):
      raise RuntimeError(f'write() failed: {os.strerror(errno.ENOSPC)}; writing x')

  monkeypatch.setattr(shards, 'library', lambda: type('Library', (), {'ArrayRecordWriter': Writer}))
  code, _, err = told(capsys, pictures, tmp_path / 'out')
  assert code == 1 and len(err) == 1 and 'No space left on device' in err[0] and not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'arguments, wanted',
  [
    ('--short_side=0', '--short_side=0'),
    ('--quality=0', '1 to 100'),
    ('--format=raw --quality=90', 'leave it out'),
    ('--format=webp', 'webp'),
    ('--split=trian', "no split 'trian'"),
    ('--splti=train', 'did you mean --split?'),
  ],
)
def test_wrong_arguments_get_one_line(arguments, wanted, pictures, tmp_path, capsys):
  code, _, err = told(capsys, pictures, tmp_path / 'out', *arguments.split())
  assert code == 2 and len(err) == 1 and wanted in err[0]
  assert sorted(path.name for path in tmp_path.iterdir()) == ['pictures']


def test_wrong_places_get_one_line(pictures, tmp_path, capsys):
  for out in (pictures, pictures / 'out', pictures / 'train' / 'out'):
    code, _, err = told(capsys, pictures, out)
    assert code == 2 and len(err) == 1 and ('there already' in err[0] or 'lies in' in err[0])
  code, _, err = told(capsys, tmp_path / 'none', tmp_path / 'out')
  assert code == 2 and 'none: no such folder' in err[0]
  for path in pictures.glob('test/*/*'):
    path.write_bytes(b'')
  code, _, err = told(capsys, pictures, tmp_path / 'out')
  assert code == 2 and 'none of 6 pictures can be read' in err[0] and not (tmp_path / 'out').exists()


def test_two_commands_do_not_write_at_once(pictures, tmp_path):
  with packing.held(tmp_path / 'out.preparing', tmp_path / 'out'):
    other = [sys.executable, '-m', 'vit_jax', 'prepare', str(pictures), str(tmp_path / 'out')]
    run = subprocess.run(other, capture_output=True, text=True, timeout=120, check=False,
                         env=os.environ | {'PYTHONPATH': str(ROOT)})  # fmt: skip
  assert run.returncode == 2 and run.stderr.count('\n') == 1 and 'by another process' in run.stderr


def damaged(folder, spoil):
  """The one line that opening a spoilt folder gives."""
  spoil(folder)
  with pytest.raises(ValueError) as error:
    sources.open_source(str(folder), 'train')
  assert '\n' not in str(error.value)
  return str(error.value)


def page(change):
  def spoil(folder):
    said = json.loads((folder / 'prepared.json').read_text())
    change(said)
    (folder / 'prepared.json').write_text(json.dumps(said))

  return spoil


@pytest.mark.parametrize(
  'spoil, wanted',
  [
    (lambda folder: (folder / 'train-00000-of-00001.array_record').unlink(), 'is not there'),
    (lambda folder: os.truncate(folder / 'train-00000-of-00001.array_record', 1000), 'has 1,000 bytes'),
    (lambda folder: os.truncate(folder / 'train.npz', 500), 'train.npz is damaged'),
    (lambda folder: (folder / 'train.npz').unlink(), 'train.npz is damaged'),
    (lambda folder: (folder / 'prepared.json').write_text('{'), 'prepared.json is damaged'),
    (page(lambda said: said.update(format=2)), 'this vit_jax reads 1'),
    (page(lambda said: said.pop('whole')), 'whole'),
    (page(lambda said: said['splits'].update({'../x': said['splits']['train']})), 'no meaning'),
    (page(lambda said: said['splits']['train'].update(classes=['a', 'b'])), 'do not fit 11 examples of 2'),
    (page(lambda said: said['splits']['train'].update(per=2)), 'not in 1 shards'),
    (page(lambda said: said['splits']['train'].update(missing=1)), 'missing examples'),
  ],
)
def test_a_folder_that_is_not_whole_is_one_line(spoil, wanted, tmp_path):
  np.savez(tmp_path / 'set.npz', x_train=np.zeros((11, 8, 8), np.uint8), y_train=np.arange(11) % 3)
  prepare.run(tmp_path / 'set.npz', tmp_path / 'out', kind='raw')
  assert wanted in damaged(tmp_path / 'out', spoil)


def test_a_flipped_bit_is_an_unreadable_picture(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), np.uint8)
  np.savez(tmp_path / 'set.npz', x_train=images, y_train=np.arange(4) % 2)
  prepare.run(tmp_path / 'set.npz', tmp_path / 'out', kind='raw')
  path = tmp_path / 'out' / 'train-00000-of-00001.array_record'
  content = bytearray(path.read_bytes())
  at = content.index(images[2].tobytes()[:64]) + 40
  content[at] ^= 1
  path.write_bytes(content)
  source = sources.open_source(str(tmp_path / 'out'), 'train', holdout=0)
  np.testing.assert_array_equal(source[1]['image'], images[1])
  with pytest.raises(OSError, match='#2 cannot be read'):
    source[2]


def test_without_array_record_one_line_says_what_to_install(pictures, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'array_record.python.array_record_module', None)
  code, _, err = told(capsys, pictures, tmp_path / 'out')
  assert code == 2 and "pip install 'vit_jax[tfds]'" in err[0] and not list(tmp_path.glob('out*'))


def test_names_still_say_which_picture_of_imagenet_it_is(tmp_path):
  (tmp_path / 'val' / 'val' / 'x').mkdir(parents=True)
  for number in (1, 2, 3):
    photo(number).save(tmp_path / 'val' / 'val' / 'x' / f'ILSVRC2012_val_{number:08d}.JPEG')
  (tmp_path / 'real.json').write_text('[[0], [], [1]]')
  prepare.run(tmp_path / 'val', tmp_path / 'out', short_side=20)
  described = {'classes': None, 'ids': None, 'weights': 'w', 'architecture': {'num_classes': 2}}
  source = sources.open_source(str(tmp_path / 'out'), 'val')
  assert imagenet.accepted(tmp_path / 'real.json', source, described) == [{0}, set(), {1}]


def test_show_and_check_know_a_prepared_folder(tmp_path, capsys):
  prepare.run('digits', tmp_path / 'out', kind='raw', splits=['train[:30]', 'test[:10]'])
  assert cli.main(['show', str(tmp_path / 'out')]) == 0
  assert '30 train, 10 test' in capsys.readouterr().out
  cli.main(['check', str(tmp_path / 'out'), '--json'])
  found = json.loads(capsys.readouterr().out)
  assert found['pictures'] == 40 and found['counts']['unreadable'] == found['counts']['corrupt'] == 0
  assert cli.main(['list', 'datasets', 'PREPARED']) == 0
  assert 'vit_jax prepare' in capsys.readouterr().out
