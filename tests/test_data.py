"""The batches of a run, the share of each process, exact evaluation, and pictures that cannot be read."""

import dataclasses
import itertools
import subprocess
import sys
import threading

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
from PIL import Image
import pytest

from vit_jax import data, order, sources, transforms

SIZE = (6, 4)


class Memory:
  """A source of arrays that can be had at once."""

  classes = list('0123456789')

  def __init__(self, pictures):
    self.pictures = pictures

  def __len__(self):
    return len(self.pictures)

  def __getitem__(self, i):
    return {'image': self.pictures[i], 'label': i}

  def images(self):
    return self.pictures

  def labels(self):
    return np.arange(len(self.pictures), dtype=np.int32)


class Pictures:
  """A source of n different pictures, read one by one; those in `bad` cannot be."""

  classes = ['even', 'odd']

  def __init__(self, n, bad=()):
    self.pictures = np.random.default_rng(n).integers(0, 256, (n, 9, 7, 3), np.uint8)
    self.bad, self.reads = set(bad), []

  def __len__(self):
    return len(self.pictures)

  def __getitem__(self, i):
    self.reads.append(i)
    if i in self.bad:
      raise transforms.Unreadable('cut off\nafter 100 bytes')
    return {'image': self.pictures[i], 'label': i % 2}

  def describe(self, i):
    return f'picture {i}'

  def labels(self):
    return np.arange(len(self)) % 2

  def fingerprint(self):
    return 'abc'


def make(n=10, bad=(), **options):
  options = {'size': SIZE, 'crop': 'random', 'threads': 2} | options
  return data.from_arrays(Pictures(n, bad), Pictures(n, bad), **options)


def take(d, steps, *, batch=4, seed=0, **options):
  """The next batches as one: {'image', 'label', 'id'}."""
  batches = data.train_batches(d, batch=batch, seed=seed, **options)
  taken = list(itertools.islice(batches, steps))
  batches.close()
  return {name: np.concatenate([one[name] for one in taken]) for name in taken[0]}


def evaluate(d, source, batch, **options):
  taken = list(data.eval_batches(d, source, batch=batch, **options))
  return {name: np.concatenate([one[name] for one in taken]) for name in taken[0]}


def check_equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# -- the batches


def test_batch_is_typed_and_labelled():
  d = make(10)
  out = take(d, 3)
  assert out['image'].shape == (12, *SIZE, 3)
  assert {name: array.dtype.name for name, array in out.items()} == {'image': 'uint8', 'label': 'int32', 'id': 'int64'}
  assert (out['label'] == out['id'] % 2).all()


@pytest.mark.parametrize('n, batch, steps', [(10, 4, 15), (3, 8, 3)])
def test_every_epoch_has_every_example_once_in_the_run_s_order(n, batch, steps):
  ids = take(make(n), steps, batch=batch, seed=5)['id']
  np.testing.assert_array_equal(ids, order.walk(np.arange(batch * steps), n, 5))
  whole = ids[: len(ids) // n * n].reshape(-1, n)
  assert len(whole) > 5 and (np.sort(whole) == np.arange(n)).all()


def test_run_resumed_at_any_step_goes_on_bit_for_bit():
  whole = take(make(10), 7)
  check_equal(take(make(10), 3, start=4), {name: array[16:] for name, array in whole.items()})


def test_start_costs_nothing():
  d = make(10)
  d.train.reads.clear()  # of headers, for data.cache
  take(d, 1, start=10**9)
  assert len(d.train.reads) <= 4 * (1 + data.AHEAD)


def test_crops_differ_from_epoch_to_epoch_and_row_to_row():
  d = data.from_arrays(Pictures(1), size=SIZE, crop='random')
  pictures = take(d, 2, batch=8)['image']
  assert len(np.unique(pictures, axis=0)) > 12


def test_number_of_threads_changes_nothing():
  check_equal(take(make(10, bad=[3], threads=1), 6), take(make(10, bad=[3], threads=5), 6))


@pytest.mark.parametrize('crop', ['random', 'none'])
def test_repeated_examples_come_in_each_batch_with_crops_of_their_own(crop):
  source = Pictures(10) if crop == 'random' else Memory(np.random.default_rng(0).integers(0, 256, (10, *SIZE, 3), 'u1'))
  d = data.from_arrays(source, size=SIZE, crop=crop, repeats=3)
  out = take(d, 10, batch=6, seed=5)
  ids = out['id'].reshape(10, 3, 2)  # step, copy, example
  assert (ids == ids[:, :1]).all()
  np.testing.assert_array_equal(ids[:, 0].ravel(), order.walk(np.arange(20), 10, 5))  # each once before any again
  pictures = out['image'].reshape(10, 3, 2, -1)
  same = (pictures == pictures[:, :1]).all(-1)[:, 1:]
  assert same.mean() < 0.1 if crop == 'random' else same.all()
  check_equal(take(d, 3, batch=6, seed=5, start=7), {name: array[42:] for name, array in out.items()})


def test_repeats_of_one_are_none():
  check_equal(take(make(10, repeats=1), 5), take(make(10), 5))


def test_evaluation_knows_no_repeats():
  d, plain = make(10, repeats=2), make(10)
  check_equal(evaluate(d, d.test, 4), evaluate(plain, plain.test, 4))


@pytest.mark.parametrize('repeats, words', [(0, 'data.repeats=0'), (8, 'batch=8 has no room for more than one')])
def test_repeats_that_make_no_batch_are_refused(repeats, words):
  with pytest.raises(ValueError, match=words):
    data.train_batches(make(repeats=repeats), batch=8, seed=0)


@pytest.mark.parametrize('repeats', [1, 2])
@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_the_batches_of_one(count, repeats):
  d = make(10, bad=[7], max_unreadable=0.1, repeats=repeats)
  whole = list(itertools.islice(data.train_batches(d, batch=8, seed=3, start=1), 4))
  parts = [data.train_batches(d, batch=8, seed=3, start=1, process_index=p, process_count=count) for p in range(count)]
  for one in whole:
    local = [next(part) for part in parts]
    check_equal(one, {name: np.concatenate([part[name] for part in local]) for name in one})


@pytest.mark.parametrize('batch, count', [(6, 4), (0, 1)])
def test_batch_that_does_not_split_is_refused_at_once(batch, count):
  with pytest.raises(ValueError, match=f'batch of {batch} does not split over {count} process'):
    data.train_batches(make(), batch=batch, seed=0, process_count=count)


# -- pictures that cannot be read


def test_one_unreadable_picture_changes_exactly_one_row_of_an_epoch():
  good, bad = take(make(10), 5), take(make(10, bad=[3]), 5)  # two epochs
  changed = (good['id'] != bad['id']).nonzero()[0]
  assert (good['id'][changed] == 3).all() and len(changed) == 2
  epochs = good['id'].reshape(2, 10)
  following = [np.roll(epoch, -1)[epoch.tolist().index(3)] for epoch in epochs]  # the next of the same permutation
  assert bad['id'][changed].tolist() == following
  assert (bad['label'] == bad['id'] % 2).all()
  rest = np.delete(np.arange(20), changed)
  check_equal({name: array[rest] for name, array in good.items()}, {name: array[rest] for name, array in bad.items()})


def test_one_corrupt_file_of_a_folder_is_named_and_replaced(tmp_path, caplog):
  pictures = Pictures(24).pictures
  for i, picture in enumerate(pictures):
    path = tmp_path / ('train', 'test')[i % 2] / ('cat', 'dog')[i // 2 % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
  before = data.load(str(tmp_path), size=SIZE)
  good, tested = take(before, 3), evaluate(before, before.test, 5)
  assert not caplog.records and tested['mask'].sum() == 12
  for path in (tmp_path / 'train' / 'cat' / '0.png', tmp_path / 'test' / 'dog' / '3.png'):
    path.write_bytes(path.read_bytes()[:100])
  after = data.load(str(tmp_path), size=SIZE)
  bad, tested = take(after, 3), evaluate(after, after.test, 5)
  changed = (good['image'] != bad['image']).any((1, 2, 3))
  assert changed.sum() == 1 and (changed == (good['id'] != bad['id'])).all()
  assert tested['mask'].sum() == 11 and len(data.unreadable(after, after.test)) == 1
  lines = [record.getMessage() for record in caplog.records]
  assert len(lines) == 2 and '/train/cat/0.png: ' in lines[0] and '/test/dog/3.png: ' in lines[1]


def test_unreadable_picture_is_named_once_and_then_left_alone():
  lines = []
  d = dataclasses.replace(make(10, bad=[3]), report=lines.append)
  first = take(d, 5)
  assert lines == ['unreadable, left out: picture 3: cut off after 100 bytes']
  assert data.unreadable(d, d.train) == {3: 'cut off after 100 bytes'}
  d.train.reads.clear()
  check_equal(take(d, 5), first)  # knowing changes nothing but the work
  assert 3 not in d.train.reads and len(lines) == 1


def test_picture_that_two_threads_meet_at_once_is_named_once():
  lines, meet = [], threading.Barrier(2, timeout=20)

  class Meeting(Pictures):
    def __getitem__(self, i):
      if i == 0 and not lines:
        meet.wait()
      return super().__getitem__(i)

  d = dataclasses.replace(make(2, max_unreadable=0.5), train=Meeting(2, bad=[0]), report=lines.append)
  assert (take(d, 1, batch=4)['id'] == 1).all()  # two epochs, and a thread for each
  assert len(lines) == 1


def test_file_that_vanished_counts_as_unreadable():
  class Vanished(Pictures):
    def __getitem__(self, i):
      raise FileNotFoundError(2, 'No such file or directory', f'{i}.png')

  d = dataclasses.replace(make(threads=1), train=Vanished(10))
  with pytest.raises(ValueError, match=r'2 of 10 examples are unreadable, 1 allowed: picture \d, picture \d'):
    take(d, 5)


def test_run_stops_past_the_limit():
  take(make(10, bad=[3], max_unreadable=0.01), 5)  # one is always allowed
  take(make(10, bad=[3, 4, 5], max_unreadable=0.3), 5)
  with pytest.raises(ValueError, match=r'3 of 10 .* 2 allowed: picture .* raise data.max_unreadable=0.2'):
    take(make(10, bad=[3, 4, 5], max_unreadable=0.2), 5)
  with pytest.raises(ValueError, match='1 of 10 .* 0 allowed'):
    take(make(10, bad=[3], max_unreadable=0), 5)


def test_nothing_readable_stops_under_any_limit():
  d = make(4, bad=range(4), max_unreadable=1)
  for _ in range(2):  # also when all is known
    with pytest.raises(ValueError, match='4 of 4 examples are unreadable'):
      take(d, 1)


# -- evaluation


@pytest.mark.parametrize('batch', [1, 4, 5, 10, 64])
@pytest.mark.parametrize('count', [1, 2])
def test_evaluation_has_every_example_once(batch, count):
  batch *= count
  d = make(10, bad=[3])
  parts = [evaluate(d, d.test, batch, process_index=p, process_count=count) for p in range(count)]
  assert len({len(part['id']) for part in parts}) == 1  # as many batches in every process
  out = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  assert sorted(out['id'][out['id'] >= 0]) == list(range(10))
  assert out['mask'].dtype == np.float32 and out['mask'].sum() + len(data.unreadable(d, d.test)) == 10
  assert sorted(out['id'][out['mask'] == 1]) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
  assert not out['image'][out['mask'] == 0].any()
  wanted = np.stack([transforms.evaluation_image(picture, d.row) for picture in d.test.pictures])
  real = out['mask'] == 1
  np.testing.assert_array_equal(out['image'][real], wanted[out['id'][real]])
  np.testing.assert_array_equal(out['label'][real], out['id'][real] % 2)


def test_processes_share_the_evaluation_of_one():
  d = make(10)
  whole = list(data.eval_batches(d, d.test, batch=4))
  parts = [data.eval_batches(d, d.test, batch=4, process_index=p, process_count=2) for p in range(2)]
  for one in whole:
    local = [next(part) for part in parts]
    check_equal(one, {name: np.concatenate([part[name] for part in local]) for name in one})


def test_evaluation_stops_past_the_limit():
  d = make(10, bad=[3, 4])
  with pytest.raises(ValueError, match='2 of 10 examples are unreadable'):
    evaluate(d, d.test, 4)


# -- arrays in memory


@pytest.mark.parametrize('shape', [(10, 6, 4), (10, 6, 4, 1), (10, 6, 4, 3)])
@pytest.mark.parametrize('crop_pct', [1.0, 0.5])
def test_arrays_of_the_right_size_are_batched_as_if_read_one_by_one(shape, crop_pct, monkeypatch):
  source = Memory(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
  d = data.from_arrays(source, source, size=SIZE, crop_pct=crop_pct)
  gather = lambda: [take(d, 6), evaluate(d, source, 4), evaluate(d, source, 32)]
  at_once = gather()
  assert data._ready(source, SIZE) is not None and data._ready(source, (6, 5)) is None
  monkeypatch.setattr(data, '_ready', lambda source, size: None)
  for fast, slow in zip(at_once, gather(), strict=True):
    check_equal(fast, slow)
  pictures = np.broadcast_to(source.pictures.reshape(10, 6, 4, -1), (10, 6, 4, 3))
  np.testing.assert_array_equal(at_once[0]['image'], pictures[at_once[0]['id']])


def test_arrays_of_another_size_are_resized_and_cropped():
  images = np.random.default_rng(0).integers(0, 256, (10, 12, 12), np.uint8)
  d = data.from_arrays((images, np.arange(10)), size=SIZE, crop='none')
  assert take(d, 1)['image'].shape == (4, *SIZE, 3)
  padded = take(data.from_arrays((images, np.arange(10)), size=12, crop='pad'), 5)
  assert (padded['image'] != images[padded['id']][..., None]).any()


# -- threads and devices


def test_threads_work_at_the_same_time():
  d = make(8, threads=4)
  met = threading.Event()
  meet = threading.Barrier(4, timeout=20, action=met.set)  # breaks unless four wait in it together

  class Waiting(Pictures):
    def __getitem__(self, i):
      if not met.is_set():
        meet.wait()
      return super().__getitem__(i)

  take(dataclasses.replace(d, train=Waiting(8)), 1, batch=4)


def test_error_in_a_thread_reaches_the_caller_and_ends_the_threads():
  d = make(10)
  d.train.pictures = None
  with pytest.raises(TypeError):
    take(d, 1)
  assert not [t for t in threading.enumerate() if t.name.startswith('vit_jax')]


def test_batches_arrive_on_all_devices_in_order(devices):
  mesh = jax.make_mesh(
    (4, 2, 1), ('data', 'fsdp', 'tensor'), devices=devices[:8], axis_types=(jax.sharding.AxisType.Auto,) * 3
  )
  sharding = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
  d = make(30)
  for depth in (1, 2, 9):
    placed = list(data.to_device(data.eval_batches(d, d.test, batch=16), sharding, depth=depth))
    for (ids, batch), wanted in zip(placed, data.eval_batches(d, d.test, batch=16), strict=True):
      assert isinstance(ids, np.ndarray) and batch.keys() == {'image', 'label', 'mask'}
      assert all(array.sharding == sharding for array in batch.values())
      check_equal({'id': ids} | {name: np.asarray(array) for name, array in batch.items()}, wanted)


def test_closing_ends_the_threads(devices):
  held = data.train_batches(make(), batch=4, seed=0)
  batches = data.to_device(held, jax.sharding.SingleDeviceSharding(devices[0]))
  next(batches)
  assert [t for t in threading.enumerate() if t.name.startswith('vit_jax')]
  batches.close()
  assert not [t for t in threading.enumerate() if t.name.startswith('vit_jax')]


def test_program_ends_although_batches_are_left():
  code = (
    'import numpy as np; from vit_jax import data\n'
    'd = data.from_arrays((np.zeros((9, 8, 8), np.uint8), np.zeros(9, int)), crop="pad")\n'
    'batches = data.train_batches(d, batch=4, seed=0); next(batches)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60)


# -- opening


def test_load_opens_both_splits_with_the_classes_of_train(monkeypatch):
  opened = []

  def open_source(name, split, *, classes, holdout, data_dir):
    opened.append((name, split, classes, holdout))
    return Pictures(4)

  monkeypatch.setattr(sources, 'open_source', open_source)
  d = data.load('flowers', size=8, train='train[:50%]', holdout=0.2)
  assert opened == [('flowers', 'train[:50%]', None, 0.2), ('flowers', 'test', ['even', 'odd'], 0.2)]
  assert d.row == transforms.preprocessing(8) and d.training['size'] == (8, 8) and d.threads >= 1
  assert data.fingerprint(d) == {
    'train': {'examples': 4, 'fingerprint': 'abc'},
    'test': {'examples': 4, 'fingerprint': 'abc'},
    'classes': 2,
  }
  d = data.load('flowers', size=(8, 6), train=None, classes=['a', 'b'])
  assert d.train is None and opened[2:] == [('flowers', 'test', ['a', 'b'], 0.1)]
  assert d.row['size'] == [8, 6] and data.fingerprint(d)['train'] is None


def test_empty_split_and_impossible_limit_are_refused():
  with pytest.raises(ValueError, match='no examples'):
    make(0)
  with pytest.raises(ValueError, match='no examples'):
    data.load('digits', size=8, train=None, test=None)
  with pytest.raises(ValueError, match='max_unreadable=5'):
    make(max_unreadable=5)
