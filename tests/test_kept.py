"""What stays in memory: as much as allowed, and never another picture for it."""

from concurrent.futures import ThreadPoolExecutor
import io
import pathlib

import numpy as np
from PIL import Image
import pytest

from vit_jax import data as data_lib
from vit_jax import kept, memory, transforms

PHOTO = Image.open(pathlib.Path(__file__).parent / 'goldens' / 'preproc' / 'china.png').convert('RGB')


def encoded(size, format='JPEG'):
  stream = io.BytesIO()
  PHOTO.resize(size).save(stream, format)
  return stream.getvalue()


class Source(list):
  """Examples that count how often they are read."""

  def __init__(self, images):
    super().__init__({'image': image, 'label': i} for i, image in enumerate(images))
    self.reads = []

  def __getitem__(self, i):
    self.reads.append(i)
    return super().__getitem__(i)


def test_pictures_are_kept_until_the_room_is_taken():
  source = Source([encoded((20, 10 + i)) for i in range(5)])
  sizes = [3 * 20 * (10 + i) for i in range(5)]
  store = kept.Kept(sum(sizes[:3]) + 10)
  for _ in range(2):
    for i in range(5):
      found = store.example(source, i)
      assert found['label'] == i
      np.testing.assert_array_equal(
        transforms.decode(found['image']), transforms.decode(list.__getitem__(source, i)['image'])
      )
  assert source.reads == [0, 1, 2, 3, 4, 3, 4] and store.bytes == sum(sizes[:3]) <= store.limit


def test_nothing_is_kept_without_room_or_of_pixels():
  for store, image in ((kept.Kept(), encoded((8, 8))), (kept.Kept(10**6), np.zeros((8, 8, 3), np.uint8))):
    source = Source([image])
    assert store.example(source, 0)['image'] is image and store.example(source, 0)['image'] is image
    assert source.reads == [0, 0] and store.bytes == 0


def test_no_more_is_kept_than_half_of_what_is_free(monkeypatch):
  monkeypatch.setattr(memory, 'free', lambda: 1000)
  assert kept.Kept(800).limit == 500 and kept.Kept(300).limit == 300
  monkeypatch.setattr(memory, 'free', lambda: None)
  assert kept.Kept(800).limit == 800


def test_threads_keep_each_picture_once():
  source = Source([encoded((30, 20), 'PNG')] * 3)
  store = kept.Kept(10**6)
  with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda i: store.example(source, i % 3), range(90)))
  assert store.bytes == 3 * 3 * 30 * 20


def test_a_damaged_picture_is_refused_and_not_kept():
  store = kept.Kept(10**6)
  with pytest.raises(transforms.Unreadable, match='truncated'):
    store.example(Source([encoded((60, 60))[:-99]]), 0)
  assert store.bytes == 0


def test_whether_all_fit_is_told_by_some_headers():
  small, large = encoded((10, 10)), encoded((100, 100), 'PNG')
  few = Source([small] * 1000)
  assert kept.fits(few, 1000 * 300) and not kept.fits(few, 1000 * 300 - 1)
  assert len(few.reads) == 2 * sum(kept.SAMPLES)  # both near the limit
  few.reads.clear()
  assert kept.fits(few, 10**9) and not kept.fits(few, 100) and len(few.reads) == 2 * kept.SAMPLES[0]
  mixed = Source([small, large] * 500)
  assert kept.fits(mixed, 500 * 36_000) and not kept.fits(mixed, 500 * 25_000)
  assert kept.fits(Source([small, b'no picture']), 600) and not kept.fits(Source([small, b'no picture']), 599)
  for none in ([b'no picture'], [np.zeros((4, 4), np.uint8)]):
    assert not kept.fits(Source(none), 10**9)


def test_a_huge_picture_is_not_decoded_to_know_its_size(monkeypatch):
  data = encoded((300, 200))
  monkeypatch.setattr('PIL.ImageFile.ImageFile.load', lambda self: pytest.exit('decoded'))
  assert kept.fits(Source([data]), 10**6)


@pytest.fixture
def folder(tmp_path):
  """Twelve pictures of two classes, large enough to be shrunk, some not JPEGs."""
  for i in range(12):
    exif = Image.Exif()
    exif[0x0112] = 1 + i % 8
    path = tmp_path / 'ab'[i % 2] / f'{i}.{("jpg", "png")[i % 5 == 0]}'
    path.parent.mkdir(exist_ok=True)
    PHOTO.rotate(i, expand=False).resize((120 + i, 90)).save(path, exif=exif)
  return str(tmp_path)


def batches(folder, cache, count, start=0, **options):
  data = data_lib.load(folder, size=16, train='all', test=None, cache=cache, threads=2, **options)
  made = data_lib.train_batches(data, batch=6, seed=3, start=start)
  found = [next(made)['image'].copy() for _ in range(count)]
  made.close()
  return np.stack(found), data


def test_a_training_sees_the_same_whether_pictures_were_kept_or_had_no_room(folder, monkeypatch):
  seen, data = batches(folder, 1, 6)
  assert not data.training['shrink'] and data.kept.bytes == sum(3 * (120 + i) * 90 for i in range(12))
  monkeypatch.setattr(memory, 'free', lambda: 200_000)  # room for three of them
  again, short = batches(folder, 1, 6)
  assert 0 < short.kept.bytes <= 100_000 and not short.training['shrink']
  np.testing.assert_array_equal(seen, again)
  later, _ = batches(folder, 1, 3, start=3)  # a resumed run: nothing is kept yet
  np.testing.assert_array_equal(seen[3:], later)


def test_what_does_not_fit_is_shrunk_and_not_kept(folder):
  seen, data = batches(folder, 1, 2)
  other, none = batches(folder, 0, 2)
  assert none.training['shrink'] and none.kept.bytes == 0
  assert 0 < abs(seen.astype(int) - other).mean() < 4
  again, _ = batches(folder, 1e-5, 2)
  np.testing.assert_array_equal(other, again)


@pytest.mark.parametrize('cache', [-1, float('inf'), float('nan')])
def test_a_cache_out_of_range_is_refused(cache, folder):
  with pytest.raises(ValueError, match='data.cache=.*GiB'):
    data_lib.load(folder, size=16, cache=cache)


def test_free_memory_is_no_more_than_a_container_leaves(monkeypatch):
  files = {'/proc/meminfo': 'MemTotal: 9 kB\nMemAvailable:    6 kB\n', '/sys/fs/cgroup/memory.max': '7000'}
  files['/sys/fs/cgroup/memory.current'] = '3000'

  def read(path):
    if str(path) not in files:
      raise FileNotFoundError(path)
    return files[str(path)]

  monkeypatch.setattr(pathlib.Path, 'read_text', read)
  assert memory.free() == 4000
  files['/sys/fs/cgroup/memory.max'] = 'max'
  assert memory.free() == 6 * 1024
  files.clear()
  assert memory.free() is None
