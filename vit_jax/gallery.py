"""`vit_jax look`: what look.py and attribution.py find, as PNG files and one arrays.npz in a folder."""

import pathlib
import sys

import numpy as np

from vit_jax import attribution, console, draw, look, storage, tasks, transforms

SIDE = 240  # pixels of the longer side of a picture in an overview; half of it in a sheet of all layers and heads
STEPS = 16  # of integrated gradients


def write(model, described, files, out):
  """Exit code after writing into the folder `out`, and printing the path of each file written.

  For each picture NAME: NAME_overview.png (the picture, class attention, rollout, relevance, integrated gradients) and
  NAME_layers.png (every layer and head); of the model distance.png, positions.png, filters.png and components.png; all
  numbers in arrays.npz. What a model does not have is left out, which a line on stderr says. Files of these names are
  overwritten, and no others touched. 1: some pictures could not be read; 2: none could, and nothing was written.

  model, described: as of pretrained.load.   files: paths of pictures.
  """
  storage.refuse(out, 'Pictures')
  out = pathlib.Path(out)
  if out.exists() and not out.is_dir():
    raise ValueError(f'{out} is a file; the last argument is the folder to write into.')
  subject = look.Subject(model, described)
  attends, classes = look.attends(subject.model), getattr(subject.model, 'head', None) is not None
  for known, missing in ((attends, 'no attention to look at'), (classes, 'no classes to attribute to pixels')):
    if not known:
      print(f'a {type(subject.model).__name__} like this has {missing}: that is left out', file=sys.stderr)
  found, bad = [], []
  for path, name in zip(files, _names(files)):
    try:
      pixels = subject.pixels(path)
    except transforms.Unreadable as reason:
      bad.append(f'{path}: {reason}')
      continue
    arrays = {'path': np.asarray(str(path)), 'pixels': pixels[0]}
    _picture(subject, arrays, pixels, attends=attends, classes=classes)
    _save(out, f'{name}_overview.png', overview(subject, arrays))
    if attends:
      _save(out, f'{name}_layers.png', sheet(arrays))
    found.append(arrays)
  code = console.unread(bad, len(files))
  if not found:
    return code
  arrays = {key: np.stack([picture[key] for picture in found]) for key in found[0]}
  _model(subject, arrays, out)
  np.savez_compressed(out / 'arrays.npz', **arrays)
  print(out / 'arrays.npz')
  return code


def _names(files):
  """The names of files without their endings, numbered where two are the same."""
  names = []
  for stem in (pathlib.Path(file).stem for file in files):
    tries = (stem if i == 1 else f'{stem}_{i}' for i in range(1, len(files) + 1))
    names.append(next(name for name in tries if name not in names))
  return names


def _picture(subject, arrays, pixels, *, attends, classes):
  """Adds to arrays what is found of one picture (1, h, w, 3)."""
  if attends:
    seen = look.attention(subject, pixels)
    arrays |= {'logits': seen.logits[0], 'layers': np.asarray(list(seen.layers)), 'maps': seen.maps()[0]}
    arrays |= {'rollout': seen.rollout()[0], 'distance': seen.distance()}
  if classes:
    if not attends:
      arrays['logits'] = subject.run(_logits, pixels, batch=1)[0]
    best = int(arrays['logits'].argmax())
    if attends:
      arrays['relevance'] = attribution.relevance(subject, pixels, classes=best)[0]
    arrays['integrated_gradients'] = attribution.integrated_gradients(subject, pixels, classes=best, steps=STEPS)[0]


def _logits(model, images):
  return model(images)


def overview(subject, arrays):
  """uint8 (h, w, 3): one picture beside what was found of it, above it its most probable classes."""
  pixels, side = _enlarged(arrays['pixels'], SIDE), {}
  side['what the model saw'] = pixels
  if 'maps' in arrays:
    side['attention, last layer'] = draw.overlay(pixels, arrays['maps'][-1].mean(0))
    side['rollout'] = draw.overlay(pixels, arrays['rollout'], low=None)
  title = pathlib.Path(str(arrays['path'])).name
  if 'integrated_gradients' in arrays:
    names = subject.described['classes'] or [str(i) for i in range(len(arrays['logits']))]
    task = tasks.make(loss=subject.described['loss'], classes=names)
    probabilities = np.asarray(task.decode(arrays['logits'][None]))[0]
    best = np.argsort(-probabilities)[:3]
    title += '\n' + ',  '.join(f'{names[i]} {probabilities[i]:.1%}' for i in best)
    if 'relevance' in arrays:
      side[f'relevance for {names[best[0]]}'] = draw.overlay(pixels, arrays['relevance'])
    strength = np.abs(arrays['integrated_gradients']).sum(-1)
    side['integrated gradients'] = draw.overlay(pixels, strength, high=np.quantile(strength, 0.99))
  return draw.tiles([list(side.values())], columns=list(side), title=title)


def sheet(arrays):
  """uint8 (h, w, 3): the class token's attention to one picture, a row for each layer, a column for each head."""
  pixels = _enlarged(arrays['pixels'], SIDE // 2)
  images = [[draw.overlay(pixels, head) for head in layer] for layer in arrays['maps']]
  title = 'each map from 0 (dark) to its own largest value (light)'
  columns = [f'head {i}' for i in range(len(images[0]))]
  return draw.tiles(images, rows=[str(path) for path in arrays['layers']], columns=columns, title=title)


def _enlarged(pixels, side):  # (h, w, 3)
  """A picture of which the longer side has `side` pixels; small ones in blocks, as they are."""
  h, w = pixels.shape[:2]
  size = tuple(max(1, round(n * side / max(h, w))) for n in (h, w))
  return draw.enlarged(pixels, size, smooth=max(h, w) >= side / 2)


def _model(subject, arrays, out):
  """Adds to arrays what is found of the model itself, and writes its pictures; distances become a mean of pictures."""
  if 'distance' in arrays:
    arrays['layers'], arrays['distance'] = arrays['layers'][0], arrays['distance'].mean(0)
    words = dict(x='layer', y='pixels, a dot for each head', title='mean attention distance')
    _save(out, 'distance.png', draw.dots(arrays['distance'], **words))
  try:
    arrays['positions'] = look.position_similarity(subject.model)
  except ValueError as missing:
    print(missing, file=sys.stderr)
  else:
    _save(out, 'positions.png', positions(arrays['positions']))
  arrays['filters'] = look.filters(subject.model)
  arrays['components'], arrays['variance'] = look.components(subject.model)
  title = f'{min(128, len(arrays["filters"]))} of {len(arrays["filters"])} filters that read the pixels'
  _save(out, 'filters.png', _grid(arrays['filters'][:128], 16, title))
  share = arrays['variance'].sum()
  title = f'their first {len(arrays["components"])} principal components: {share:.0%} of the variance'
  _save(out, 'components.png', _grid(arrays['components'], 7, title))


def positions(similarity):  # (rows, cols, rows, cols)
  """uint8 (h, w, 3): a tile for each patch, with the similarity of its position to all; of large grids every k-th."""
  rows, cols = similarity.shape[:2]
  every, side = -(-max(rows, cols) // 16), max(2, 96 // max(rows, cols))
  draw_one = lambda tile: draw.colours(draw.enlarged(tile, (side * rows, side * cols), smooth=False), -1, 1)
  images = [[draw_one(tile) for tile in row[::every]] for row in similarity[::every]]
  title = 'cosine similarity of position embeddings, from -1 (dark) to 1 (light): a tile for each patch'
  return draw.tiles(images, title=title, gap=3)


def _grid(kernels, across, title):  # (d, h, w, c)
  """uint8 (h, w, 3): kernels as small pictures, each with its own range of values around a middle grey."""
  images = []
  for kernel in kernels:
    kernel = kernel[..., :3] if kernel.shape[-1] >= 3 else kernel[..., :1].repeat(3, -1)
    grey = np.uint8(np.round(255 * draw.scaled(kernel, -np.abs(kernel).max(), np.abs(kernel).max())))
    images.append(draw.enlarged(grey, (48, 48 * grey.shape[1] // grey.shape[0]), smooth=False))
  return draw.tiles([images[i : i + across] for i in range(0, len(images), across)], title=title)


def _save(out, name, image):
  out.mkdir(parents=True, exist_ok=True)
  (out / name).write_bytes(draw.png(image))
  print(out / name)
