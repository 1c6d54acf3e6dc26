"""scan.py: layouts, classes, twins; a JPEG whose code and pixels part; threads that share memory and end on Ctrl-C."""

import gc
import io
import pathlib
import random
import sys
import tarfile
import threading
import time
import weakref

import numpy as np
from PIL import Image
import pytest

from vit_jax import scan

sys.path.insert(0, str(pathlib.Path(__file__).parent / 'reliability'))

import pictures  # noqa: E402

PIECES = pictures.Pieces(random.Random(1))


def write(folder, *names):
  """A fresh healthy picture under each name."""
  for name in names:
    suffix = name.rpartition('.')[2].lower()
    pictures.write(folder / name, pictures.PLAIN[suffix](PIECES()))


def shape(found):
  """{split: {class or None: pictures}}."""
  out = {}
  for part in found.parts:
    names = [part.classes[label] if label >= 0 else None for label in part.labels.tolist()]
    out[part.split] = {name: names.count(name) for name in dict.fromkeys([*part.classes, *names])}
  return out


LAYOUTS = {
  'classes': (['cat/1.jpg', 'cat/deep/2.PNG', 'dog/3.gif'], {'all': {'cat': 2, 'dog': 1}}),
  'splits': (
    ['train/cat/1.jpg', 'train/dog/2.jpg', 'val/cat/3.bmp', 'loose.png'],
    {'train': {'cat': 1, 'dog': 1}, 'val': {'cat': 1}, '': {None: 1}},
  ),
  'a folder within': (['data/Train/cat/1.jpg', 'data/Test/cat/2.jpg'], {'train': {'cat': 1}, 'test': {'cat': 1}}),
  'a class named train': (['train/1.jpg', 'car/2.jpg', 'bus/3.jpg'], {'all': {'bus': 1, 'car': 1, 'train': 1}}),
  'loose': (['1.jpg', '2.png'], {'all': {None: 2}}),
  'beside classes': (['1.jpg', 'cat/2.png'], {'all': {'cat': 1, None: 1}}),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts_are_those_of_training(layout, tmp_path):
  names, wanted = LAYOUTS[layout]
  write(tmp_path, *names)
  found = scan.run(tmp_path)
  assert shape(found) == wanted and not found.faults and not found.strays
  assert sorted(found.name(row) for row in range(len(found))) == sorted(names)
  assert found.size == sum((tmp_path / name).stat().st_size for name in names)


def test_flat_pictures_have_the_classes_of_their_mapping_file(tmp_path):
  write(tmp_path, 'train/cat/1.jpg', 'train/dog/2.jpg', 'val/a.jpg', 'val/b.jpg', 'val/c.jpg')
  (tmp_path / 'val.txt').write_text('a.jpg dog\nb.jpg dog\nc.jpg cat\n')
  assert shape(scan.run(tmp_path))['val'] == {'cat': 1, 'dog': 2}
  (tmp_path / 'val.txt').write_text('a.jpg dog\nb.jpg bird\nc.jpg cat\n')
  found = scan.run(tmp_path)
  assert shape(found)['val'] == {'cat': 0, 'dog': 0, None: 3}
  assert [(name, kind) for name, kind, _ in found.strays] == [('val.txt', 'labels')] and 'bird' in found.strays[0][2]


def test_archives_and_arrays_are_looked_into(tmp_path):
  whole = pictures.encode(PIECES(), 'JPEG')
  with tarfile.open(tmp_path / 'train.tar', 'w') as tar:
    for name, data in {'cat/1.jpg': whole, 'cat/2.jpg': whole[:-40], 'dog/3.jpg': whole}.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  found = scan.run(tmp_path)
  assert shape(found) == {'train': {'cat': 2, 'dog': 1}}
  assert [(found.name(row), kind) for row, kind, _ in found.faults] == [
    (f'{tmp_path}/train.tar:cat/2.jpg', 'truncated')
  ]
  assert found.twins() == [([0, 2], True)]
  images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
  images[5] = images[1]
  file = tmp_path / 'arrays.npz'
  np.savez(file, x_train=images[:4], y_train=np.arange(4) % 2, x_test=images[4:], y_test=np.arange(2))
  found = scan.run(file)
  assert found.twins() == [([1, 5], True)] and found.name(5) == f'{file}[test] #1' and found.size == images.nbytes


def test_twins_are_of_equal_pixels_and_identical_ones_of_equal_bytes(tmp_path):
  one, other = PIECES(), PIECES()
  pictures.write(tmp_path / 'a.png', pictures.encode(one, 'PNG'))
  pictures.write(tmp_path / 'b.png', pictures.encode(one, 'PNG'))
  pictures.write(tmp_path / 'c.bmp', pictures.encode(other, 'BMP'))
  pictures.write(tmp_path / 'd.webp', pictures.encode(other, 'WEBP', lossless=True))
  pictures.write(tmp_path / 'e.png', pictures.encode(one.resize((one.width, one.height + 1)), 'PNG'))
  for name in ('f.png', 'g.png'):  # the same damage twice is damage, and no twin
    pictures.write(tmp_path / name, pictures.encode(one, 'PNG')[:-30])
  found = scan.run(tmp_path)
  assert found.twins() == [([0, 1], True), ([2, 3], False)]
  assert [kind for _, kind, _ in found.faults] == ['truncated'] * 2


def test_pictures_whose_names_hide_them_and_other_files(tmp_path):
  write(tmp_path, 'cat/1.jpg', 'cat/2.png')
  (tmp_path / 'cat' / '2.png').rename(tmp_path / 'cat' / '2.part')
  (tmp_path / 'cat' / 'README').write_text('RIFF, but no picture')
  (tmp_path / 'cat' / '.hidden.jpg').write_bytes(b'')
  (tmp_path / 'cat' / 'up').symlink_to(tmp_path)  # a circle
  found = scan.run(tmp_path)
  assert len(found) == 1 and found.others == 1
  assert found.strays == [('cat/2.part', 'suffix', 'a PNG file whose name does not say so: training does not see it')]


def look(data, suffix=None):
  """'kind: reason' of each fault."""
  return [f'{kind}: {reason}' for kind, reason in scan.look(io.BytesIO(data), len(data), suffix)[0]]


def test_a_jpeg_whose_code_and_pixels_part_is_seen():
  """Where libjpeg itself is silent; and of many whole ones, none is suspected."""
  piece = PIECES().resize((150, 120))
  for options in ({}, {'subsampling': 0}, {'optimize': True, 'quality': 95}):
    data = pictures.encode(piece, 'JPEG', **options)
    start = data.index(b'\xff\xda') + 300
    shorter, longer = data[:start] + data[start + 200 :], data[:start] + data[start : start + 200] + data[start:]
    assert look(data) == []
    with Image.open(io.BytesIO(shorter)) as silent:
      silent.load()
    assert look(shorter) == ['corrupt: its pixels end after their code does: bytes of it are damaged or missing']
    assert look(longer) == ['corrupt: its pixels end before their code does: bytes of it are damaged or missing']
  rng = random.Random(0)
  for _ in range(60):
    options = {'quality': rng.randint(1, 100), 'subsampling': rng.randrange(3), 'optimize': rng.random() < 0.5}
    assert look(pictures.encode(PIECES(1, 90), 'JPEG', **options)) == []
  padded = pictures.encode(piece, 'JPEG')
  assert look(padded[:-2] + bytes(50) + padded[-2:]) == []  # as some cameras write it


@pytest.mark.parametrize('damage', ['none', 'code', 'tiff'])
def test_pixels_are_forgotten_at_once(damage, monkeypatch):
  """Without the garbage collector: what was decoded must not wait for it in a circle, nor in an error's traceback."""
  kept, real = [], Image.open
  monkeypatch.setattr(Image, 'open', lambda *args: [kept.append(weakref.ref(one := real(*args))), one][1])
  data = pictures.encode(PIECES().resize((150, 120)), 'TIFF' if damage == 'tiff' else 'JPEG')
  if damage == 'tiff':
    data = pictures.encode(PIECES(), 'TIFF', compression='tiff_lzw')
    data = data[:200] + bytes(60) + data[260:]
  start = data.find(b'\xff\xda') + 300
  data = data[:start] + data[start + 200 :] if damage == 'code' else data
  gc.disable()
  try:
    answer = scan.look(io.BytesIO(data), len(data))
    assert bool(answer[0]) == (damage != 'none') and len(kept) > 1 and not any(one() for one in kept)
  finally:
    gc.enable()


def test_what_decoders_say_has_a_kind(monkeypatch):
  assert look(b'') == ['empty: an empty file']
  assert look(b'<html>') == ['corrupt: not a picture in a format that Pillow reads']
  assert look(pictures.unreadable(PIECES(), None)[1])[0].startswith('unreadable: floating-point')
  assert look(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n') == [
    'unreadable: PostScript is a program, and is not run'
  ]
  assert look(pictures.encode(PIECES(), 'PPM')[:-9])[0].startswith('truncated: image file is truncated')
  assert look(b'P6 20000 20000 255\n') == ['huge: more than 178,956,970 pixels']
  assert look(b'P6 13000 13800 255\n') == ['huge: more than 178,956,970 pixels']
  assert look(pictures.encode(PIECES(), 'PNG'), '.JPG') == ['suffix: PNG inside, JPEG by its name']
  assert look(pictures.encode(PIECES(), 'MPO', **pictures.frames(PIECES())), '.JPG') == []
  monkeypatch.setattr(scan, 'MAX_BYTES', 10)
  assert look(bytes(11)) == ['huge: 11 bytes, more than 10']


def test_what_is_no_file_is_not_waited_for(tmp_path):
  (tmp_path / 'a.jpg').symlink_to('nowhere')
  pictures.os.mkfifo(tmp_path / 'b.jpg')
  (tmp_path / 'c.jpg').mkdir()
  write(tmp_path, 'd.jpg')
  found = scan.run(tmp_path)
  assert [(found.name(row), kind, reason) for row, kind, reason in found.faults] == [
    ('a.jpg', 'unreadable', 'No such file or directory'),
    ('b.jpg', 'unreadable', 'not a file that holds bytes'),
  ]


def test_threads_hold_no_more_than_the_budget_and_who_wants_more_is_alone():
  budget, held, most, lock = scan._Budget(100), [], [], threading.Lock()

  def take(count):
    with budget(count):
      with lock:
        held.append(count)
        most.append(list(held))
      time.sleep(0.002)
      with lock:
        held.remove(count)

  threads = [threading.Thread(target=take, args=[count]) for count in [40, 60, 10, 500, 30, 30, 500, 90] * 4]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(10)
  assert not held and len(most) == 32 and all(sum(some) <= 100 or some == [500] for some in most)
  assert any(len(some) > 1 for some in most)


def test_an_interrupted_scan_ends_its_threads(tmp_path):
  write(tmp_path, *(f'{i}.jpg' for i in range(200)))
  begun = threading.active_count()

  def interrupted(items, total):
    for number, item in enumerate(items):
      if number == 5:
        raise KeyboardInterrupt
      yield item

  with pytest.raises(KeyboardInterrupt):
    scan.run(tmp_path, interrupted)
  assert threading.active_count() == begun
