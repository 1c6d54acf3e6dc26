"""Pictures in, classes out: what a trained model says of files, bytes, Pillow images and arrays, on all devices.

A picture is prepared as the weights' preprocessing row says, so the answer is the one that an evaluation would count.
"""

import contextlib
import functools
import glob
import itertools
import os
import pathlib

import jax
import numpy as np

from vit_jax import augment, listing, pretrained, sharding, state, storage, tasks, threads, transforms

AHEAD = 4  # batches decoded before they are asked for


def predict(model, pictures, *, top=5, batch=32):
  """[(class name, probability), ...], the `top` most probable first, of a picture; a list of these for a list.

  Args:
    model: a model of load, create_model or fit, or what load takes: the folder of a run, a file, a name.
    pictures: a path, encoded bytes, a Pillow image or a uint8 array (h, w[, 1 | 3 | 4]), of any size; or a list, tuple
      or uint8 array (n, h, w, c) of them.
    batch: how many are computed at once; changes no result.

  Class names are the numbers of the classes where the model has no names. Raises transforms.Unreadable, a ValueError,
  for a picture that cannot be read, and ValueError for a model that does not tell classes.
  """
  predictor = Predictor(*pretrained.with_description(model), batch=batch)
  several = isinstance(pictures, (list, tuple)) or isinstance(pictures, np.ndarray) and pictures.ndim == 4
  images = [prepared(picture, predictor.row) for picture in (pictures if several else [pictures])]
  found = predictor.top(predictor(np.stack(images)), top) if images else []
  return found if several else found[0]


def prepared(picture, row):  # -> (h, w, 3)
  """transforms.evaluation_image, whose error names the file where the picture is one."""
  try:
    return transforms.evaluation_image(picture, row)
  except transforms.Unreadable as reason:
    if isinstance(picture, (str, os.PathLike)):
      raise transforms.Unreadable(f'{picture}: {reason}') from reason
    raise


class Predictor:
  """Prepared pictures -> probabilities; compiled once for each number of pictures that is a power of two.

  Attributes: classes: names, in the order of the outputs.   row: of transforms.py.   batch: most pictures at once, a
  multiple of the devices.   mesh: the devices.
  """

  def __init__(self, model, described=None, *, batch=32, mesh=None):
    """described: as pretrained.load gives it, None = what the model remembers.   mesh: None = of all devices."""
    described = pretrained.described(model) if described is None else described
    if batch < 1:
      raise ValueError(f'batch={batch}: at least 1 is wanted.')
    self.row, self.mesh = pretrained.row(described), mesh or sharding.make_mesh()
    n = self.mesh.size
    self.batch, self._least = -(-batch // n) * n, n
    graphdef, params, rest = state.split(model)
    k = _outputs(functools.partial(state.merge, graphdef), params, rest, self.row['size'], described)
    self.classes = described['classes'] or [str(i) for i in range(k)]
    if len(self.classes) != k:
      raise ValueError(f'{len(self.classes)} class names for {k} outputs; load the model anew, or name its classes.')
    task, places = tasks.make(loss=described['loss'], classes=self.classes), sharding.batch(self.mesh)

    def run(params, rest, images):  # uint8 (b, h, w, 3) -> float32 (b, k)
      images = augment.normalise(images, self.row['mean'], self.row['std'], 'float32')
      return task.decode(state.merge(graphdef, params, rest)(images))

    weights = {'params': params, 'rest': rest}
    weights = jax.device_put(weights, sharding.shardings(self.mesh, weights))
    program = jax.jit(run, out_shardings=sharding.replicated(self.mesh))
    self._run = lambda images: np.asarray(program(**weights, images=jax.device_put(images, places)))

  def prepare(self, picture):  # -> (h, w, 3)
    """uint8 (h, w, 3) of a picture in any form: upright, resized and cropped as the weights want it."""
    return transforms.evaluation_image(picture, self.row)

  def __call__(self, images):  # (n, h, w, 3) -> (n, k)
    """Probabilities, float32 (n, k), of prepared pictures, uint8 (n, h, w, 3), for any n."""
    out = np.empty((len(images), len(self.classes)), np.float32)
    for start in range(0, len(images), self.batch):
      part = images[start : start + self.batch]
      padded = np.zeros((self.bucket(len(part)), *part.shape[1:]), np.uint8)
      padded[: len(part)] = part
      out[start : start + len(part)] = self._run(padded)[: len(part)]
    return out

  def bucket(self, n):
    """How many pictures a program computes that is given n <= batch: few sizes, so that few programs are compiled."""
    size = self._least
    while size < n:
      size *= 2
    return min(size, self.batch)

  def top(self, probabilities, k):  # (n, k)
    """[[(class name, probability), ...], ...]: the k most probable classes of each row, the best first."""
    best = np.argsort(-probabilities, axis=1, kind='stable')[:, :k]
    return [[(self.classes[i], float(row[i])) for i in order] for row, order in zip(probabilities, best)]


def _outputs(merge, params, rest, size, described):
  """How many classes a model tells; ValueError where it tells none."""
  images = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
  shape = jax.eval_shape(lambda params, rest, images: merge(params, rest)(images), params, rest, images).shape
  if len(shape) != 2 or described['architecture'] and not described['architecture']['num_classes']:
    raise ValueError(
      f'{described["weights"] or "The model"} tells no classes (its output is {shape}); fine-tune it first: '
      'vit_jax train --config=finetune:MODEL,PICTURES.'
    )
  return shape[1]


def paths(words):
  """Files that words name: a file, a folder (all its pictures, its folders' too), or a pattern such as '*.png'.

  Raises FileNotFoundError for a word that names nothing, ValueError for a folder or pattern without pictures.
  """
  found = []
  for word in map(str, words):
    storage.refuse(word, 'Pictures')
    path = pathlib.Path(word).expanduser()
    if path.is_dir():
      own = sorted(
        p for p in path.rglob('*') if listing.is_picture(p.name.encode(), listing.suffixes()) and p.is_file()
      )
      if not own:
        raise ValueError(f'{word} holds no pictures; give another folder, or name the files.')
    elif path.exists():
      own = [path]
    elif glob.has_magic(word):
      own = sorted(p for p in map(pathlib.Path, glob.glob(str(path), recursive=True)) if p.is_file())
      if not own:
        raise ValueError(f'No file matches {word!r}; give another pattern, a folder, or files.')
    else:
      raise FileNotFoundError(f'There is no {word}; give pictures, folders or patterns.')
    found += own
  return list(dict.fromkeys(found))


def each(predictor, paths):
  """Yields (path, probabilities float32 (k,), None) or (path, None, reason) for each path, in order.

  A few batches are decoded ahead, by a thread for each CPU; memory does not grow with the paths.
  """

  def answered(path):
    try:
      return path, predictor.prepare(path), None
    except transforms.Unreadable as reason:
      return path, None, str(reason)

  ahead = -(-AHEAD * predictor.batch // threads.cpus())
  with contextlib.closing(threads.each(answered, paths, ahead=ahead)) as made:
    while batch := list(itertools.islice(made, predictor.batch)):
      good = [image for _, image, _ in batch if image is not None]
      answers = iter(predictor(np.stack(good)) if good else ())
      for path, image, reason in batch:
        yield path, None if image is None else next(answers), reason
