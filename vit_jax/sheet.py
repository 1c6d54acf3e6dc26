"""`vit_jax augment`: every operation, policy and mixing on pictures, and what a config's training sees, as PNGs."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import augment, config, console, crops, draw, operations, order, policies, storage, transforms

SIDE, PICTURES, STEPS = 112, 8, 4  # pixels of a tile, pictures in a row, steps of a config
MAGNITUDES = {
  'randaugment': (0, 2.5, 5, 7.5, 10, 15, 20),
  'randaugment_timm': (0, 2, 4, 6, 8, 10),
  'trivialaugment': (0, 5, 10, 15, 20, 25, 30),
  'three_augment': (0, 0.25, 0.5, 0.75, 1),
}
MIXED = {'mixup': 0.8, 'cutmix': 1.0}
OPTIONS = {  # what it is called beside its row: keyword arguments of augment.make
  'as they are': {},
  'flip': {'flip': True},
  'randaugment': {'policy': 'randaugment', 'layers': 2, 'magnitude': 10.0},
  'randaugment_timm': {'policy': 'randaugment_timm', 'layers': 2, 'magnitude': 9.0, 'magnitude_std': 0.5},
  'trivialaugment': {'policy': 'trivialaugment'},
  'three_augment': {'policy': 'three_augment'},
  'jitter': {'jitter': 0.3},
  'erasing': {'erasing': 1.0},
  **{f'mixup or cutmix {i}': MIXED for i in range(1, 7)},
}
ROW = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}


def write(files, out, configs=()):
  """Exit code after writing into the folder `out`, and printing the path of each file written.

  POLICY.png: each operation of a policy, on the first picture, from its weakest to its strongest magnitude.
  options.png: each option of step.augment, on the first pictures.   CONFIG.png: the first steps of a shipped or own
  config, cropped and augmented as its training would. Files of these names are overwritten, and no others touched.
  1: some pictures could not be read; 2: none could, and nothing was written.

  files: paths of pictures.   configs: words as of --config.
  """
  storage.refuse(out, 'Pictures')
  out = pathlib.Path(out)
  if out.exists() and not out.is_dir():
    raise ValueError(f'{out} is a file; the last argument is the folder to write into.')
  resolved = {_name(spec): config.resolve(config.load(spec)) for spec in configs}
  pictures, bad = [], []
  for path in files:
    try:
      pictures.append(transforms.decode(path))
    except transforms.Unreadable as reason:
      bad.append(f'{path}: {reason}')
    if len(pictures) == PICTURES:
      break
  if pictures:
    out.mkdir(parents=True, exist_ok=True)
    for name, image in _sheets(pictures, resolved):
      (out / f'{name}.png').write_bytes(draw.png(image))
      print(out / f'{name}.png', flush=True)
  if len(pictures) + len(bad) < len(files):
    print(f'shown are {PICTURES} of {len(files)} pictures', file=sys.stderr)
  return console.unread(bad, len(files))


def _name(spec):
  """What a --config is called in a file's name."""
  return '_'.join(pathlib.Path(part).name for part in spec.replace('.py', '').replace(',', ':').split(':'))


def _sheets(pictures, resolved):
  """Yields (name, uint8 (h, w, 3)) of each sheet."""
  row = transforms.preprocessing(SIDE, crop_pct=1.0)
  squares = np.stack([transforms.evaluation_image(picture, row) for picture in pictures])
  for name, magnitudes in MAGNITUDES.items():
    yield name, of_policy(squares[0], name, magnitudes)
  yield 'options', of_options(squares)
  for name, settings in resolved.items():
    yield name, of_config(pictures, name, settings)


def of_policy(picture, name, magnitudes):  # (h, w, 3)
  """uint8 (h, w, 3): a row for each operation of a policy, a column for each magnitude, signs as they are positive."""
  policy, magnitude = policies.one_of(name), jnp.asarray(magnitudes, jnp.float32)
  count, across, names = len(policy.space), len(magnitudes), tuple(policy.space)
  sides = magnitude, jnp.ones(across), *picture.shape[:2]
  arguments = jnp.stack([argument(*sides) for argument in policy.space.values()])  # (count, across)
  how = dict(choice=jnp.arange(count).repeat(across), resampling=policy.resampling, fill=policy.fill)
  apply = jax.jit(lambda key, *given: operations.apply(*given, names=names, key=key, **how))
  copies = np.broadcast_to(picture, (count * across, *picture.shape))
  images = np.asarray(apply(jax.random.key(0), copies, arguments.ravel())).reshape(count, across, *picture.shape)
  columns = [f'{value:g}' for value in magnitudes]
  title = f'{name}: a row for each operation, a column for each magnitude'
  return draw.tiles(list(images), rows=list(names), columns=columns, title=title)


def of_options(pictures):  # (n, h, w, 3)
  """uint8 (h, w, 3): a row for each of OPTIONS, as step.augment takes them, flip off unless it says so."""
  images = []
  for i, options in enumerate(OPTIONS.values()):
    images.append(_augmentation({'flip': False} | options, ROW)(jax.random.fold_in(jax.random.key(10), i), pictures))
  return draw.tiles(images, rows=list(OPTIONS), title='options of config.step.augment')


def of_config(pictures, name, settings):
  """uint8 (h, w, 3): a row for each of the first STEPS steps of a run of a resolved config on these pictures."""
  model, data, images = settings['model'], settings['data'], []
  made = config.architecture(model['name'], model['pretrained'])
  size = model['img_size'] if 'img_size' in model else made['img_size'][1]
  training = {key: data[key] for key in ('crop', 'scale', 'ratio', 'interpolation')}
  run = _augmentation(settings['step']['augment'], data)
  for step in range(STEPS):
    stream, key = order.streams(settings['seed'], step), jax.random.fold_in(jax.random.key(settings['seed']), step)
    cropped = [crops.training_image(p, stream(i), size=size, **training) for i, p in enumerate(pictures)]
    seen = run(jax.random.split(key)[0], np.stack(cropped))
    images.append([draw.enlarged(image, (SIDE, SIDE), smooth=len(image) >= SIDE) for image in seen])
  rows = [f'step {step}' for step in range(STEPS)]
  return draw.tiles(images, rows=rows, title=f'{name}: pictures as training sees them')


@functools.cache
def _compiled(options):
  """(key, uint8 (n, h, w, 3), mean, std) -> the pictures after these (name, value) pairs of step.augment."""
  augmented = augment.make(**dict(options))

  def run(key, images, mean, std):
    batch = {'image': images, 'target': jnp.eye(len(images))}
    return augmented(key, batch, {'mean': mean, 'std': std})['image']

  return jax.jit(run)


def _augmentation(options, row):
  """(key, uint8 (n, h, w, 3)) -> the same after a step's augmentation; noise that no screen can show is cut off."""
  run = functools.partial(_compiled(tuple(options.items())), mean=np.float32(row['mean']), std=np.float32(row['std']))
  return lambda key, images: np.uint8(np.clip(np.round(run(key, images)), 0, 255))
