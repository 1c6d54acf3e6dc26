"""Self-training: a teacher labels pictures that have no labels, and a noised student learns from them too.

Noisy Student, Xie et al. 2019, arXiv:1911.04252. The teacher sees pictures as an evaluation does, without noise; those
that it is sure of are kept, and of each class as many, the surest first, again and again where a class has few
(section 2 and appendix A.1: 0.3, and 130,000 a class). The noise of the student is configs/noisy_student.py's:
RandAugment, dropout and stochastic depth. Labels are hard: the paper finds them about as good as soft ones.
"""

import csv
import io
import os
import pathlib
import sys
import types
from typing import NamedTuple

import numpy as np

from vit_jax import config, durable, inference, jobs, pretrained, storage, tables, watch


class Labelled(NamedTuple):
  """What a teacher says of pictures, all (n,): label int32, -1 for one that could not be read; confidence float32,
  0..1."""

  label: np.ndarray
  confidence: np.ndarray


def pictures(words, split='train'):
  """What words name: a list of files (see inference.paths), or for one FILE.npz or IDX file uint8 (n, h, w[, c]).

  split: of an .npz: its x_SPLIT. Raises ValueError or FileNotFoundError as inference.paths and tables.unlabelled do.
  """
  arrays = [word for word in map(str, words) if word.endswith('.npz') or 'idx3-ubyte' in os.path.basename(word)]
  if not arrays:
    return inference.paths(words)
  if len(words) > 1:
    raise ValueError(f'{arrays[0]} holds many pictures; give it alone, or files, folders and patterns.')
  return tables.unlabelled(arrays[0], split)


def label(predictor, items):
  """What a teacher says: (Labelled of all items, [a line about each that could not be read]).

  predictor: inference.Predictor.   items: of `pictures`.
  """
  labels, sure, bad = np.full(len(items), -1, np.int32), np.zeros(len(items), np.float32), []
  for i, (path, probabilities, reason) in enumerate(inference.each(predictor, items)):
    if reason is None:
      labels[i], sure[i] = probabilities.argmax(), probabilities.max()
    else:
      bad.append(f'{f"picture {i}" if isinstance(items, np.ndarray) else path}: {reason}')
  return Labelled(labels, sure), bad


def chosen(labelled, classes, *, confidence=0.3, balance=None):  # -> (m,)
  """Indices of the pictures to train on, ascending; one that stands for others comes several times.

  classes: how many.   confidence: only above it.   balance: so many of each class, the surest first, and from the first
  again where there are fewer; None = as many as a class has on average; 0 = all, as they come.

  A class that the teacher names nowhere stays empty. Raises ValueError where nothing is left.
  """
  sure = (labelled.label >= 0) & (labelled.confidence > confidence)
  if not sure.any():
    most = np.nan_to_num(labelled.confidence).max(initial=0)
    raise ValueError(f'Of no picture is the teacher surer than {confidence}; it is {most:.2f} sure at most.')
  if balance == 0:
    return np.flatnonzero(sure)
  balance = max(1, round(sure.sum() / classes)) if balance is None else balance
  order = np.argsort(-labelled.confidence, kind='stable')
  order = order[sure[order]]
  own = [order[labelled.label[order] == i] for i in range(classes)]
  return np.sort(np.concatenate([np.resize(index, balance) for index in own if len(index)]))


def write(out, items, labelled, index, classes):
  """Writes the pictures `index` with their labels, as data sets are read: path,label,confidence or an .npz of arrays.

  The file is there wholly or not at all. Raises ValueError for an OUT that does not end in what fits the items.
  """
  check_out(out, items)
  out = pathlib.Path(out)
  if not isinstance(items, np.ndarray):
    text, root = io.StringIO(), out.absolute().parent
    lines = csv.writer(text, lineterminator='\n')
    lines.writerow(['path', 'label', 'confidence'])
    for i in index:
      path = pathlib.Path(items[i]).absolute()
      path = path.relative_to(root) if path.is_relative_to(root) else path
      lines.writerow([path, classes[labelled.label[i]], f'{labelled.confidence[i]:.4f}'])
    watch.write_text(out, text.getvalue())
    return
  with durable.replacing(out) as file:
    np.savez(file, x_train=items[index], y_train=labelled.label[index], classes=np.array(classes),
             confidence=labelled.confidence[index])  # fmt: skip


def check_out(out, items):
  """Raises ValueError for an OUT that does not end in what fits the items, FileNotFoundError for one in no folder."""
  storage.refuse(out, 'Labels')
  suffix, kind = ('.npz', 'arrays') if isinstance(items, np.ndarray) else ('.csv', 'picture files')
  if pathlib.Path(out).suffix != suffix:
    raise ValueError(f'{out}: the labels of {kind} are written to a {suffix} file; give OUT{suffix}.')
  if not pathlib.Path(out).absolute().parent.is_dir():
    raise FileNotFoundError(f'{out}: there is no folder {pathlib.Path(out).absolute().parent}; make it first.')


def teach(opened, items, out, *, confidence=0.3, balance=None, batch=32):
  """Labels items by opened weights and writes OUT: [a line about each picture that could not be read].

  opened: as pretrained.open_any gives.   items: of `pictures`.   confidence, balance: see `chosen`.
  """
  check_out(out, items)
  predictor = inference.Predictor(*pretrained.filled(opened), batch=batch)
  labelled, bad = label(predictor, items)
  index = chosen(labelled, len(predictor.classes), confidence=confidence, balance=balance)
  write(out, items, labelled, index, predictor.classes)
  counts = np.bincount(labelled.label[index], minlength=len(predictor.classes))
  empty = [name for name, count in zip(predictor.classes, counts) if not count]
  print(f'{out}: {len(index):,} examples of {len(np.unique(index)):,} pictures (of {len(items):,}), the least sure '
        f'{labelled.confidence[index].min():.2f}; {counts[counts > 0].min():,} to {counts.max():,} a class'
        + f'; none of {", ".join(empty)}' * bool(empty), file=sys.stderr)  # fmt: skip
  return bad


def loop(
  teacher, labelled, words, workdir, *, split='train', generations=1, confidence=0.3, balance=None,
  overrides=types.MappingProxyType({}),
):  # fmt: skip
  """Labels and trains, the student teaching the next: WORKDIR/1/pseudo.csv (or .npz), WORKDIR/1/student, WORKDIR/2 ...

  teacher: what pretrained.open_any takes.   labelled: a data set, as configs/noisy_student.py's.   words, split: see
  `pictures`.   overrides: of that config, {'total_steps': '500'}.   What is finished is not done again, and an
  interrupted student goes on. Returns [the numbers of each student's evaluation].
  """
  if generations < 1:
    raise ValueError(f'generations={generations}: at least 1 is wanted.')
  storage.refuse(workdir, 'Generations of students')
  items, found = pictures(words, split), []
  for number in range(1, generations + 1):
    folder = pathlib.Path(workdir) / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f'pseudo{".npz" if isinstance(items, np.ndarray) else ".csv"}'
    if not out.exists():
      for line in teach(pretrained.open_any(teacher)[0], items, out, confidence=confidence, balance=balance):
        print(line, file=sys.stderr)
    loaded = config.load(f'noisy_student:{teacher},{labelled},{out}')
    found.append(jobs.run(config.resolve(loaded, overrides), str(folder / 'student')))
    teacher = str(folder / 'student')
  return found
