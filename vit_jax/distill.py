"""A teacher for the training step: any model that tells the student's classes -> logits of the pictures of a batch.

Touvron et al., Training data-efficient image transformers & distillation through attention, arXiv:2012.12877. What the
student makes of the logits is tasks.Distilled. At the 'step' the teacher sees the very pictures that the student sees,
augmented, in the same program. 'ahead' it has seen each picture once, before the run, as an evaluation would show it,
and its logits come with the batch.
"""

import collections
import dataclasses
import hashlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import augment, durable, pretrained, sharding, state, tasks
from vit_jax import data as data_lib


def check(task, teacher, augmentation):
  """Raises ValueError unless a task, a teacher (a model, a word, or None) and Step.augment go together."""
  distilled = isinstance(task, tasks.Distilled)
  if distilled and teacher is None:
    raise ValueError(
      f'task.distillation={task.distillation!r} needs a teacher: task.teacher=WORKDIR, FILE or NAME; '
      'in Python fit(teacher=MODEL).'
    )
  if teacher is not None and not distilled:
    raise ValueError("There is a teacher, and task.distillation is 'none'; choose 'hard' or 'soft', or leave it out.")
  mixing = [key for key in ('mixup', 'cutmix') if augmentation.get(key)]
  if distilled and task.teacher_at == 'ahead' and mixing:
    raise ValueError(
      f"task.teacher_at='ahead' knows single pictures, and step.augment.{mixing[0]} blends two; choose 'step' or no "
      'blending.'
    )


class Teacher:
  """(weights, images (b, h, w, c), 0..255) -> logits float32 (b, k) of the student's classes, to be jitted.

  Attributes: weights: {'params', 'rest'} that a call is given, the parameters in the dtype of the step.   row: how
  pictures are prepared for it.   dtype: of the step.   record: which model it is, for run.json.
  """

  def __init__(self, model, task, *, size, dtype):
    """model: with a description (see pretrained.described).   size: (h, w) of the student's pictures.

    Raises ValueError for a model that tells other classes, or that is shown pictures of a size it cannot take.
    """
    said = pretrained.described(model)
    self.row, self.dtype, self._terms = pretrained.row(said), dtype, (said['loss'], task.loss_name)
    self._graphdef, params, rest = state.split(model)
    self.weights = {'params': state.cast(params, dtype), 'rest': rest}
    shown = size if task.teacher_at == 'step' else self.row['size']
    self._columns = columns(said, self._count(shown, said['weights'] or said['name'] or 'a model'), task.classes)
    known = {'name': said['name'], 'weights': said['weights'], 'architecture': said['architecture'], 'row': self.row}
    self.record = {'model': task.teacher, 'name': said['name'], 'weights': said['weights']}
    self.record |= {'fingerprint': _fingerprint(known | {'loss': said['loss']}, params, rest)}

  def __call__(self, weights, images):  # (b, h, w, c) -> (b, k)
    images = augment.normalise(images, self.row['mean'], self.row['std'], self.dtype)
    logits = state.merge(self._graphdef, **weights)(images).astype(jnp.float32)
    return in_terms(logits if self._columns is None else logits[:, self._columns], *self._terms)

  def in_parts(self, weights, images, parts):  # (b, h, w, c) -> (b, k)
    """The same, of equal parts of the batch one after another: rows i::parts, which lie on every device alike."""
    if parts == 1:
      return self(weights, images)
    cut = images.reshape(images.shape[0] // parts, parts, *images.shape[1:]).swapaxes(0, 1)
    logits = jax.lax.map(lambda part: self(weights, part), cut)  # (parts, b / parts, k)
    return logits.swapaxes(0, 1).reshape(images.shape[0], -1)

  def placed(self, mesh):
    """The weights on a mesh, cut as a student's are."""
    return jax.device_put(self.weights, sharding.shardings(mesh, self.weights))

  def _count(self, size, name):
    """How many classes it tells of pictures of a size."""
    run = lambda weights, images: state.merge(self._graphdef, **weights)(images)
    try:
      shape = jax.eval_shape(run, self.weights, jax.ShapeDtypeStruct((1, *size, 3), self.dtype)).shape
    except (ValueError, TypeError) as error:
      wanted, given = ('x'.join(map(str, one)) for one in (self.row['size'], size))
      raise ValueError(
        f'The teacher ({name}) takes pictures of {wanted}, not of {given}: train at that img_size, or let it look '
        f"ahead, at its own size (task.teacher_at='ahead'). {str(error).splitlines()[0]}"
      ) from None
    if len(shape) != 2:
      raise ValueError(f'The teacher ({name}) tells no classes, its output is {shape}; name a model with a head.')
    return shape[1]


def columns(said, count, classes):
  """Which of a teacher's `count` outputs are the student's classes, in their order; None = just these.

  said: the teacher's description. By name or by WordNet id; by order where nobody named the teacher's classes. A
  teacher may know more classes: its distribution is then the one over those that are asked for.

  Raises ValueError for a class that the teacher does not know.
  """
  who = said['weights'] or said['name'] or 'a model'
  if not said['classes']:
    if count != len(classes):
      raise ValueError(f'The teacher ({who}) tells {count} classes, and the data has {len(classes)}: name another.')
    return None
  for known in filter(None, (said['ids'], said['classes'])):
    if list(known) == list(classes):
      return None
    times = collections.Counter(known)
    if all(times[name] == 1 for name in classes):
      place = {name: i for i, name in enumerate(known)}
      return np.array([place[name] for name in classes])
  lost = [name for name in classes if name not in said['classes']] or classes
  raise ValueError(
    f'The teacher ({who}) does not know {len(lost)} of the {len(classes)} classes of the data: {", ".join(lost[:3])}'
    f'{", ..." * (len(lost) > 3)}; it knows {", ".join(said["classes"][:3])}, ...'
  )


def in_terms(logits, taught, wanted):  # (b, k) -> (b, k)
  """Logits of a teacher trained with the loss `taught`, as those of the loss `wanted` with the same probabilities.

  What sigmoids say of each class is divided by their sum to become a distribution.
  """
  if taught == wanted:
    return logits
  if wanted == 'softmax':
    return jax.nn.log_sigmoid(logits)
  certain = jnp.minimum(jax.nn.log_softmax(logits), -1e-6)  # a probability of 1 has no finite logit
  return certain - jnp.log(-jnp.expm1(certain))


def joined(batches, teacher, data, **where):
  """The batches of data.train_batches with 'teacher' float32 (b, k), the logits of their examples; `where` as ahead."""
  try:
    logits = ahead(teacher, data, **where)
    for batch in batches:
      yield {**batch, 'teacher': np.asarray(logits[batch['id']])}
  finally:
    batches.close()


def ahead(teacher, data, *, batch, mesh, folder):
  """Logits of every training picture, float32 (n, k), prepared as for an evaluation of the teacher.

  batch: a multiple of the devices.   folder: of a run, which keeps them (teacher-FINGERPRINT.npy), so that it goes on
  with what it was begun with; None keeps nothing. Pictures that could not be read are NaN, and are left out of the run.
  """
  words = teacher.record['fingerprint'], data.train.fingerprint(), teacher.dtype
  path = folder and os.path.join(folder, f'teacher-{hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]}.npy')
  if path and os.path.exists(path):
    logits = np.load(path, mmap_mode='r')
  else:
    data.report(f'the teacher looks at {len(data.train):,} pictures, once')
    logits = _looked(teacher, data, batch=batch, mesh=mesh)
    if path and jax.process_index() == 0:
      with durable.replacing(path) as file:
        np.save(file, logits)
  known = data_lib.unreadable(data, data.train)
  for i in np.flatnonzero(np.isnan(logits[:, 0])):
    known.setdefault(int(i), 'the teacher could not read it')
  return logits


def _looked(teacher, data, *, batch, mesh):
  """The logits for `ahead`, computed on all devices; every process has those of all."""
  weights, parts = teacher.placed(mesh), []
  look = lambda weights, batch: jnp.where(batch['mask'][:, None] > 0, teacher(weights, batch['image']), jnp.nan)
  look = jax.jit(look, out_shardings=sharding.replicated(mesh))
  seen = dataclasses.replace(data, row=teacher.row)
  batches = data_lib.eval_batches(seen, data.train, batch=batch, process_index=jax.process_index(),
                                  process_count=jax.process_count())  # fmt: skip
  for _, one in data_lib.to_device(batches, sharding.batch(mesh)):
    parts.append(np.asarray(look(weights, one)))
  return np.concatenate(parts)[: len(data.train)]


def _fingerprint(said, *trees):
  """sha256 of a model: of what is said of it and of all its arrays."""
  found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
  for tree in trees:
    for path, leaf in sorted(state.flatten(tree).items()):
      found.update(f'{path} {leaf.dtype} {leaf.shape}'.encode())
      found.update(np.asarray(leaf).tobytes())
  return found.hexdigest()
