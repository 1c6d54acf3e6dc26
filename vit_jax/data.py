"""Sources -> batches of uint8 pictures, in an order that is a pure function of (seed, step).

The global batch of step s is positions s * batch to (s + 1) * batch of the walk in order.py (fewer with repeats),
which any number of processes cut into contiguous rows. So the step is all that a resumed run has to know.

Threads, not worker processes: decoding leaves the interpreter's lock, and a thread holds no state that a resumed run
would miss. All threads work on one batch, each on rows of its own, so few batches lie in memory at once. Not grain:
it takes 0.9 s to import, and for the same order four times the CPU seconds on arrays in memory (the same on JPEGs).
"""

import collections
from collections.abc import Callable
import concurrent.futures
import dataclasses
import functools
import itertools
import logging
import threading
from typing import Literal

import jax
import numpy as np

from vit_jax import crops, order, sources, transforms
from vit_jax import kept as kept_lib
from vit_jax import threads as threads_lib

AHEAD = 2  # batches decoded before they are asked for: enough to smooth out a few large pictures
LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Data:
  """What a run reads: `load` or `from_arrays` makes it, `train_batches` and `eval_batches` read it.

  Attributes:
    train, test: sources (see sources.py); None where there is none.
    classes: names, in the order of the labels.
    row: preprocessing of an evaluation picture, transforms.preprocessing's; saved with the model.
    training: keyword arguments of crops.training_image.
    repeats: how many rows of a training batch one example has, each with a crop and an augmentation of its own.
    threads: how many decode at once.
    max_unreadable: the fraction of a source's examples that may turn out unreadable before the run stops. Unless it is
      0, one is always allowed, so that 1 bad picture of 50 does not stop a small run at 0.01.
    report: called with one line for each example found unreadable.
    unreadable: {id(source): (source, {index: reason})}, filled while running; `unreadable(data, source)` reads it.
    kept: of train, what has been decoded and stays in memory.
  """

  train: object
  test: object
  classes: list
  row: dict
  training: dict
  threads: int
  max_unreadable: float
  repeats: int = 1
  report: Callable = logging.getLogger('vit_jax').warning
  unreadable: dict = dataclasses.field(default_factory=dict)
  kept: kept_lib.Kept = dataclasses.field(default_factory=kept_lib.Kept)


def load(
  name: str,
  *,
  size,
  train: str | None = 'train',
  test: str | None = 'test',
  holdout=0.1,
  crop: Literal['random', 'pad', 'none'] = 'random',
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  repeats=1,
  eval_crop: Literal['center', 'center_floor', 'squash', 'border'] = 'center',
  crop_pct=0.875,
  interpolation: Literal['bilinear', 'bicubic', 'tf_bilinear', 'bv_bilinear', 'bv_area'] = 'bicubic',
  mean: tuple[float, ...] = (0.5, 0.5, 0.5),
  std: tuple[float, ...] = (0.5, 0.5, 0.5),
  threads: int | None = None,
  cache=2.0,
  max_unreadable=0.01,
  data_dir: str | None = None,
  classes: list[str] | None = None,
  extra: str | None = None,
):
  """Data of a name that sources.open_source knows, or of a pair (train, test) of sources or of (images, labels).

  Args:
    name: 'digits', a folder, 'tfds:NAME', a file, or the pair (either may be None).
    size: of the pictures that come out, int or (height, width).
    train, test: splits, with slices such as 'train[:98%]'; None opens none. holdout: the fraction for test where a
      source has only one split.
    crop, scale, ratio: training: crops.training_image. repeats: in training, see Data.
    eval_crop, crop_pct: evaluation: transforms.preprocessing. interpolation, mean, std: both.
    threads: None is one for each CPU this process may use. max_unreadable: see Data. data_dir: where tfds keeps data.
    cache: GiB of memory that decoded training pictures may take. Where all would fit, they are decoded whole and stay;
      else large JPEGs are decoded at the scale that a crop allows (crops.training_image's shrink), and none stays.
    classes: names that the labels must follow, as of a saved model; None takes them from train, else from test.
    extra: a data set whose training examples are trained on too, in train's classes: what `vit_jax label` wrote.

  Raises ValueError or FileNotFoundError, in one line, for what is not there or does not fit.
  """
  if not 0 <= max_unreadable <= 1:
    raise ValueError(f'data.max_unreadable={max_unreadable} is not a fraction; 0.01 allows one example in a hundred.')
  if not 0 <= cache < float('inf'):
    raise ValueError(f'data.cache={cache} is no number of GiB; 0 keeps no decoded pictures in memory.')
  if repeats < 1:
    raise ValueError(f'data.repeats={repeats}: an example comes at least once; 1 is no repetition.')
  resampling = dict(interpolation=interpolation)
  row = transforms.preprocessing(size, crop=eval_crop, crop_pct=crop_pct, mean=mean, std=std, **resampling)
  training = dict(size=tuple(row['size']), crop=crop, scale=scale, ratio=ratio, fast=True, **resampling)
  limit = int(cache * 2**30)

  def source(number, split, classes):
    if isinstance(name, str):
      return split and sources.open_source(name, split, classes=classes, holdout=holdout, data_dir=data_dir)
    given = name[number]
    return sources.arrays(*given, classes=classes) if isinstance(given, (tuple, list)) else given

  train = source(0, train, classes)
  test = source(1, test, classes or (train and train.classes))
  if extra is not None:
    if train is None:
      raise ValueError(f'data.extra={extra!r} joins training examples, and there are none; name data.train.')
    train = sources.Joined([train, sources.open_source(extra, 'train', classes=train.classes, holdout=0)])
  opened = [source for source in (train, test) if source is not None]
  if not all(map(len, opened)) or not opened:
    raise ValueError('There are no examples in the chosen splits; name data.train or data.test, with a larger slice.')
  stays = train is not None and limit > 0 and kept_lib.fits(train, limit)
  return Data(
    train=train,
    test=test,
    classes=list(opened[0].classes),
    row=row,
    training=training | {'shrink': not stays},
    threads=threads or threads_lib.cpus(),
    max_unreadable=max_unreadable,
    repeats=repeats,
    kept=kept_lib.Kept(limit if stays else 0),
  )


def from_arrays(train, test=None, *, size=None, crop='none', crop_pct=1.0, **options):
  """Data of arrays in memory: uint8 images (n, h, w[, 1 or 3]) with int labels (n,), taken as they are by default.

  Args:
    train, test: (images, labels), or sources; None for none.
    size: int or (height, width); None is that of the images.
    crop, crop_pct, options: keyword arguments of load.
  """
  size = size or np.shape((train or test)[0])[1:3]
  return load((train, test), size=size, crop=crop, crop_pct=crop_pct, **options)


def fingerprint(data):
  """What was read, for run.json: {'train': {'examples', 'fingerprint'}, 'test': {...}, 'classes': how many}."""
  describe = lambda source: source and {'examples': len(source), 'fingerprint': source.fingerprint()}
  return {'train': describe(data.train), 'test': describe(data.test), 'classes': len(data.classes)}


def train_batches(data, *, batch, seed, start=0, process_index=0, process_count=1):
  """Endless training batches from step `start` on, of this process's share of each global batch.

  Yields {'image': uint8 (b, h, w, 3), 'label': int32 (b,), 'id': int64 (b,)}, b = batch / process_count: process p has
  rows p * b ... (p + 1) * b. id is the index of the example in data.train. Where pictures have any number of labels,
  'label' is uint8 (b, k) of 0 and 1; where they have distributions, float32 (b, k).

  In each epoch every example comes once, or data.repeats times (order.positions); a batch may span two epochs. Crops
  are drawn from (seed, step, row of the global batch). An unreadable example's row gets the next readable example of
  the same permutation.

  Raises ValueError: process_count does not divide batch, data.repeats fills it; too many examples are unreadable (see
  Data.max_unreadable).
  """
  check_repeats(data.repeats, batch)
  place = functools.partial(order.positions, batch=batch, repeats=data.repeats)
  source, size = data.train, data.training['size']
  ready = _ready(source, size) if data.training['crop'] == 'none' else None
  share = _share(batch, process_index, process_count)
  _check_unreadable(data, source)

  def fill(step, rows, out):
    if ready is not None:
      _gather(ready, order.walk(place(step, rows), len(source), seed), out)
      return
    stream = order.streams(seed, step)
    for i, (row, position) in enumerate(zip(rows, place(step, rows))):
      make = lambda image: crops.training_image(image, stream(row), **data.training)  # noqa: B023  used at once
      _first_readable(data, source, order.following(position, len(source), seed), make, i, out)

  threads = 1 if ready is not None else data.threads
  return _batches(fill, itertools.count(start), share, size, _label_of(source), threads)


def eval_batches(data, source, *, batch, process_index=0, process_count=1):
  """The batches of one evaluation: every example once, in order; the last batch is filled up with masked rows.

  Yields {'image': uint8 (b, h, w, 3), 'label': int32 (b,), 'id': int64 (b,), 'mask': float32 (b,)}, as many in every
  process, b = batch / process_count, rows as in train_batches. mask is 1 where there is an example. Padding has id -1.
  An unreadable example keeps its id, has mask 0 and a black image: examples listed = sum of mask + unreadable ones.
  Raises as train_batches does.
  """
  size, n = tuple(data.row['size']), len(source)
  ready = _ready(source, size) if data.row['crop_pct'] == 1 else None
  share = _share(batch, process_index, process_count)
  _check_unreadable(data, source)
  make = lambda image: transforms.evaluation_image(image, data.row)

  def fill(step, rows, out):
    rows = range(step * batch + rows.start, min(step * batch + rows.stop, n))
    if ready is not None:
      out = {name: array[: len(rows)] for name, array in out.items()}
      _gather(ready, np.array(rows, np.int64), out)
      out['mask'][:] = 1
      return
    for i, index in enumerate(rows):
      out['mask'][i] = _first_readable(data, source, (index,), make, i, out)
      out['id'][i] = index

  threads = 1 if ready is not None else data.threads
  return _batches(fill, range(-(-n // batch)), share, size, _label_of(source), threads, mask=True)


def to_device(batches, sharding, *, depth=2):
  """(ids, device batch) of each batch of this process, `depth` of them on their way to the devices at a time.

  Args:
    batches: a generator of train_batches or eval_batches; closed with this one.
    sharding: of the first axis, such as NamedSharding(mesh, P(('data', 'fsdp'))).

  'id' stays the numpy array it was; the others are global arrays. Copies are asynchronous, so no thread is needed.
  """
  waiting = collections.deque()
  try:
    for batch in batches:
      ids = batch.pop('id')
      waiting.append((ids, {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}))
      if len(waiting) >= depth:
        yield waiting.popleft()
    yield from waiting
  finally:
    batches.close()


def unreadable(data, source):
  """{index: reason} of the examples of a source that this process has found unreadable so far."""
  return data.unreadable.setdefault(id(source), (source, {}))[1]  # the source is held, so its id stays its own


def check_repeats(repeats, batch):
  """Raises ValueError where a training batch would be copies of one example."""
  if repeats > 1 and repeats >= batch:
    raise ValueError(f'batch={batch} has no room for more than one example with data.repeats={repeats}.')


def _share(batch, process_index, process_count):
  """The rows of the global batch that this process has, as a range."""
  if batch < 1 or batch % process_count:
    raise ValueError(f'A batch of {batch} does not split over {process_count} processes; choose a multiple.')
  b = batch // process_count
  return range(process_index * b, (process_index + 1) * b)


def _ready(source, size):
  """(images uint8 (n, h, w, 1 or 3), labels) where all pictures lie in memory at this size already, else None: a batch
  is then one indexing, ten times as fast as one picture after the other."""
  images = source.images() if hasattr(source, 'images') else None
  if images is None or images.shape[1:3] != tuple(size) or images.shape[3:] not in ((), (1,), (3,)):
    return None
  return images.reshape(*images.shape[:3], -1), source.labels()


def _gather(ready, ids, out):
  """Writes the examples `ids`, whose pictures are ready, into a batch."""
  images, labels = ready
  out['image'][:], out['label'][:], out['id'][:] = images[ids], labels[ids], ids


def _first_readable(data, source, indices, make, i, out):
  """Writes the first of these examples that can be read into row i of a batch; whether there was one."""
  known = unreadable(data, source)
  for index in indices:
    if index in known:
      continue
    try:
      example = data.kept.example(source, index) if source is data.train else source[index]
      out['image'][i], out['label'][i], out['id'][i] = make(example['image']), example['label'], index
      return True
    except (transforms.Unreadable, OSError) as error:
      _note_unreadable(data, source, index, str(error))
  return False


def _note_unreadable(data, source, index, reason):
  """Names and counts an unreadable example, once; raises ValueError where there are too many."""
  known = unreadable(data, source)
  with LOCK:  # two threads may have met the same example
    if index not in known:
      known[index] = ' '.join(reason.split())
      data.report(f'unreadable, left out: {source.describe(index)}: {known[index]}')
  _check_unreadable(data, source)


def _check_unreadable(data, source):
  """Raises ValueError where a source has more unreadable examples than data.max_unreadable allows."""
  known, n = list(unreadable(data, source)), len(source)
  allowed = min(max(int(data.max_unreadable * n), 1 if data.max_unreadable else 0), n - 1)
  if len(known) > allowed:
    first = ', '.join(source.describe(i) for i in known[:3])
    raise ValueError(
      f'{len(known)} of {n} examples are unreadable, {allowed} allowed: {first}...; repair or remove '
      f'them, or raise data.max_unreadable={data.max_unreadable}.'
    )


def _label_of(source):
  """(shape, dtype) of an example's label: one class, or a row of classes where the source's labels are such."""
  labels = source.labels()
  return ((), np.int32) if np.ndim(labels) < 2 else (labels.shape[1:], labels.dtype)


def _batches(fill, steps, share, size, label, threads, mask=False):
  """A batch for each step, in order, made AHEAD of being asked for.

  fill(step, rows, out) is called by several threads at once: `rows` is a range of the global batch's rows, `out` the
  views of the batch's arrays that belong to them.
  """
  b, part, (shape, dtype) = len(share), -(-len(share) // threads), label

  def begin(step):
    out = {'image': np.zeros((b, *size, 3), np.uint8), 'label': np.zeros((b, *shape), dtype)}
    out['id'] = np.full(b, -1, np.int64)
    if mask:
      out['mask'] = np.zeros(b, np.float32)
    return out, [
      pool.submit(fill, step, share[i : i + part], {k: v[i : i + part] for k, v in out.items()})
      for i in range(0, b, part)
    ]

  def finish(out, jobs):
    for job in jobs:
      job.result()  # raises what the thread raised
    return out

  pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix='vit_jax.data')
  waiting = collections.deque()
  try:
    for step in steps:
      waiting.append(begin(step))
      if len(waiting) > AHEAD:
        yield finish(*waiting.popleft())
    while waiting:
      yield finish(*waiting.popleft())
  finally:
    pool.shutdown(cancel_futures=True)
