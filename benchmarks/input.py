"""Images per CPU second of the host's part of training: JPEGs to uint8 batches of 224x224 random resized crops.

  python benchmarks/input.py --photos=FOLDER

FOLDER holds a few photographs; crops of them become JPEGs of 500x375, and, made larger, of 4000x3000, in a temporary
folder. Every loader does the same work: shuffle, read the file, decode, random resized crop (area 8 to 100 %, ratio 3/4
to 4/3), stack to uint8 (32, 224, 224, 3). Two kinds of bilinear are in use, so ours comes twice: Pillow's, which
averages where it shrinks, as the torch loader; tf.image.resize's, which does not, as tf.data. Ours keeps nothing in
memory (cache=0). Of large pictures the averaging one decodes at a scale that the crop allows, which the other must not.
The loaders run in processes of their own, in turn, round after round; the table has the medians, also of each round's
ratio to the two peers.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import math
import os
import pathlib
import random
import statistics
import tempfile
import time

import measure
import numpy as np
from PIL import Image

SIZE, BATCH = 224, 32
SETS = {'500x375': ((500, 375), 1024), '4000x3000': ((4000, 3000), 64)}  # name: size, how many
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def make_jpegs(photos, folder, count, size):
  """Writes COUNT JPEGs into folder/train/{0,1} and two into folder/test; gives their mean size in bytes."""
  width, height = size
  names = sorted(p for p in pathlib.Path(photos).iterdir() if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))
  if not names:
    raise SystemExit(f'{photos} holds no .jpg or .png photograph.')
  originals = [Image.open(name).convert('RGB') for name in names]
  rng, sizes = random.Random(0), []
  for i in range(count + 2):
    photo = originals[i % len(originals)]
    widest = min(photo.width, photo.height * width / height)
    w = rng.uniform(0.7, 1.0) * widest
    h = w * height / width
    left, top = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
    image = photo.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    path = pathlib.Path(folder) / ('train' if i < count else 'test') / str(i % 2) / f'{i:05d}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=rng.randint(85, 95))
    sizes.append(path.stat().st_size)
  return statistics.mean(sizes)


def ours(folder, threads, interpolation):
  """Epochs of our training batches."""
  from vit_jax import data, memory

  memory.keep_freed()  # as vit_jax train does
  options = dict(interpolation=interpolation, threads=threads, cache=0)
  loaded = data.load(folder, size=SIZE, scale=SCALE, ratio=RATIO, **options)
  batches = iter(data.train_batches(loaded, batch=BATCH, seed=0))
  steps = len(loaded.train) // BATCH

  def epoch():
    for _ in range(steps):
      yield next(batches)['image']

  return epoch


def sample_box(rng, width, height):
  """(left, top, right, bottom) of a random resized crop, as Szegedy et al., arXiv:1409.4842, draw it."""
  for _ in range(10):
    area = width * height * rng.uniform(*SCALE)
    ratio = math.exp(rng.uniform(*map(math.log, RATIO)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left, top = rng.randint(0, width - w), rng.randint(0, height - h)
      return left, top, left + w, top + h
  return 0, 0, width, height


def torch_pillow(folder, threads):
  """Epochs of a torch DataLoader whose worker processes use Pillow, which is what torchvision does for PIL images."""
  import torch

  class Folder(torch.utils.data.Dataset):
    def __init__(self):
      self.paths = sorted(pathlib.Path(folder, 'train').rglob('*.jpg'))

    def __len__(self):
      return len(self.paths)

    def __getitem__(self, i):
      with Image.open(self.paths[i]) as file:
        image = file.convert('RGB')
      image = image.crop(sample_box(random, *image.size)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
      return torch.from_numpy(np.array(image))

  torch.set_num_threads(1)  # the parent only collates
  loader = torch.utils.data.DataLoader(Folder(), BATCH, shuffle=True, num_workers=threads, drop_last=True)
  return lambda: iter(loader)


def tf_data(folder, threads):
  """Epochs of a tf.data pipeline that decodes only the crop."""
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'  # else a page about absent CUDA libraries
  import tensorflow as tf

  def load(path):
    data = tf.io.read_file(path)
    shape = tf.io.extract_jpeg_shape(data)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      shape,
      tf.zeros((1, 0, 4)),
      min_object_covered=0.0,
      area_range=SCALE,
      aspect_ratio_range=RATIO,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
    return tf.cast(tf.round(tf.image.resize(image, (SIZE, SIZE))), tf.uint8)

  paths = sorted(map(str, pathlib.Path(folder, 'train').rglob('*.jpg')))
  dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).map(load, threads, deterministic=False)
  dataset = dataset.batch(BATCH, drop_remainder=True).prefetch(2)
  return lambda: dataset.as_numpy_iterator()


LOADERS = {  # name -> (maker of epochs, package it needs)
  'vit_jax, bilinear': (functools.partial(ours, interpolation='bilinear'), 'vit_jax'),
  'torch + Pillow': (torch_pillow, 'torch'),
  'vit_jax, tf_bilinear': (functools.partial(ours, interpolation='tf_bilinear'), 'vit_jax'),
  'tf.data': (tf_data, 'tensorflow'),
}


def measure_loader(name, folder, threads):
  """Images per CPU second and per second over one epoch, after one that warms up."""
  epoch = LOADERS[name][0](folder, threads)
  for _ in epoch():
    pass
  count, cpu, wall = 0, measure.cpu_seconds(), time.perf_counter()
  for images in epoch():
    assert tuple(images.shape) == (BATCH, SIZE, SIZE, 3), images.shape
    count += len(images)
  return {'per_cpu_second': count / (measure.cpu_seconds() - cpu), 'per_second': count / (time.perf_counter() - wall)}


def table(runs):
  """A row for each loader and set of runs {(set, loader): [what measure_loader gave, one a round]}."""
  rows = []
  for (name, loader), found in runs.items():
    each = [run['per_cpu_second'] for run in found]
    row = {'pictures': name, 'loader': loader, 'images per CPU second': statistics.median(each)}
    row |= {'lowest': min(each), 'highest': max(each)}
    for peer in ('torch + Pillow', 'tf.data'):
      theirs = [run['per_cpu_second'] for run in runs.get((name, peer), ())]
      row[f'/ {peer}'] = statistics.median(a / b for a, b in zip(each, theirs)) if theirs else ''
    rows.append(row | {'images per second': statistics.median(run['per_second'] for run in found)})
  return rows


def main():
  """Compares, or, as a child of itself, measures one loader once."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--photos', help='folder of a few photographs')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2, help='threads (torch: processes) of each loader')
  parser.add_argument('--sets', default=','.join(SETS), help='default: %(default)s')
  parser.add_argument('--child', nargs=2, metavar=('LOADER', 'FOLDER'), help='used by this script itself')
  args = parser.parse_args()
  if args.child:
    print(json.dumps(measure_loader(*args.child, args.threads)))
    return
  if not args.photos:
    parser.error('--photos=FOLDER is needed')
  measure.warn_if_busy()
  machine = measure.machine()
  loaders = [name for name, (_, package) in LOADERS.items() if importlib.util.find_spec(package)]
  sizes, runs = {}, {}
  with tempfile.TemporaryDirectory() as folder:
    for name in args.sets.split(','):
      sizes[name] = make_jpegs(args.photos, f'{folder}/{name}', SETS[name][1], SETS[name][0])
    for _ in range(args.rounds):
      for name, loader in itertools.product(sizes, loaders):
        made = measure.child('--child', loader, f'{folder}/{name}', f'--threads={args.threads}')[0]
        runs.setdefault((name, loader), []).append(made)
  told = ', '.join(f'{SETS[name][1]:,} JPEGs of {size / 1e3:.0f} kB' for name, size in sizes.items())
  print(f'{told}; {args.threads} threads, {args.rounds} rounds')
  rows = table(runs)
  measure.table(rows)
  measure.record('input', machine, rows)


if __name__ == '__main__':
  main()
