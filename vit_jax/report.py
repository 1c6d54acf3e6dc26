"""One offline page of a run: what was trained and how well, by class, by confidence, picture by picture.

Every number about the test data comes from one pass over it, each example once, on all devices; what is drawn of it
is in sections.py and charts.py, the page around it in report.html. Nothing on the page is fetched from anywhere.
"""

import base64
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import re
import sys
import tempfile
import time

import numpy as np
from PIL import Image

import vit_jax
from vit_jax import checkpoint, draw, fetch, jobs, look, models, pretrained, sections, storage, transforms, watch
from vit_jax.found import evaluated

PICTURES = 24  # of the worst errors, and as many at random
SMALL, LARGE = 96, 224  # pixels: what is smaller is enlarged in the browser, what is larger is shrunk here


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run's folder holds. root: of the run.   opened: weights.Weights.   step: of these weights.
  record: run.json's content, {} where there is none.   training, evaluations: rows of metrics.jsonl.
  resumed: steps that a session began after.   seconds: of training in all.   model: None where it cannot be built.
  parameters: their count."""

  root: pathlib.Path
  opened: object
  step: int
  record: dict
  training: list
  evaluations: list
  resumed: list
  seconds: float
  model: object
  parameters: int


def write(workdir, *, data=None, split=None, out=None):
  """Writes the page of a run and gives its path; what the page must do without is one line on stderr each.

  workdir: the folder of a run, or one of its checkpoints/STEP.   data, split: as data.load takes them, None = the test
  split that the run evaluated on, where it can still be found.   out: the file, None = WORKDIR/report.html.

  Raises ValueError or FileNotFoundError, before anything is computed, for a folder that is no run or has no checkpoint,
  data that was asked for and is not there, and a file that cannot be written.
  """
  if out is None and storage.is_remote(workdir):
    raise ValueError(f'{workdir} is no local folder, where report.html would go: give --out=FILE.html.')
  storage.refuse(out or '', 'report.html')
  run = read(workdir)
  out = _writable(run.root / 'report.html' if out is None else pathlib.Path(out).expanduser())
  pictures, missing = _data(run, data, split)
  found, worst, some, note = None, None, None, None
  if pictures is not None:
    found = evaluated(run, *pictures)
    worst, some, note = samples(run, found)
    if found.unreadable:
      missing.append(f'{len(found.unreadable)} of {len(found.data.test)} pictures could not be read')
    if found.same is False:
      missing.append(f'{found.name}, {found.split} is other data than the run was evaluated on')
  for line in missing:
    print(f'{run.root.name}: {line}', file=sys.stderr)
  watch.write_text(out, page(run, found, worst, some, missing, note))
  return out


def read(workdir):
  """The Run in a folder; ValueError where there is none, or none with a checkpoint."""
  path = pathlib.Path(fetch.local(workdir)).expanduser().absolute()  # a folder, whatever its name
  folder, _ = checkpoint.find(path)
  root, opened = folder.parent.parent, pretrained.open_any(path)[0]
  file = root / 'run.json'
  try:
    record = json.loads(file.read_text()) if file.exists() else {}
  except ValueError as error:
    raise ValueError(f'{file} is damaged ({error}); restore it, or move it away to do without.') from None
  model = pretrained.filled(opened)[0] if opened.described['name'] else None
  parameters = models.count(model) if model else sum(map(math.prod, opened.arrays.shapes.values()))
  return Run(root, opened, int(folder.name), record, *history(root / 'metrics.jsonl'), model, parameters)


def history(path):
  """(rows of training, rows of evaluations, resumed steps, seconds of training) of a metrics.jsonl; seconds are counted
  from each session's beginning, and added up."""
  training, evaluations, resumed, seconds = [], [], [], [0.0]
  for row in watch.rows(path):
    if 'resumed' in row:
      resumed.append(row['resumed'])
      seconds.append(0.0)
    elif 'split' in row:
      evaluations.append(row)
    elif 'step' in row:
      training.append(row)
      seconds[-1] = row['seconds'] if 'seconds' in row else seconds[-1]
  return training, evaluations, resumed, sum(seconds)


def _writable(path):
  """The absolute path of a file that can be written; ValueError for one that cannot."""
  path = path.absolute()
  if path.is_dir() or not path.parent.is_dir():
    what = 'is a folder' if path.is_dir() else f'has no folder to lie in: there is no {path.parent}'
    raise ValueError(f'{path} {what}; give --out=FILE.html.')
  try:
    tempfile.TemporaryFile(dir=path.parent).close()
  except OSError as error:
    raise ValueError(f'Nothing can be written in {path.parent} ({error.strerror}); give --out=FILE.html.') from error
  return path


def _data(run, data, split):
  """((data.Data, name, split) or None, lines on what is missing): the data that was asked for, or that of the run."""
  if run.model is None:
    return None, ['the model was changed in Python and cannot be rebuilt: nothing is said about its answers']
  config = run.record['config'] if run.record else {}
  own = config['data'] if isinstance(config, dict) and 'data' in config else None
  options = {'max_unreadable': 1}  # they are counted and named on the page
  if data is not None:
    split = split or 'test'
    return (jobs.evaluation_data(run.opened.described, data, split, **options), data, split), []
  without = 'nothing is said about its answers; name the data by --data'
  if not isinstance(own, dict) or 'name' not in own:
    return None, [f'nobody noted which data it was trained on: {without}']
  split = split or own.get('test', 'test')
  if split is None:
    return None, [f'it was trained without a test split: {without} and --split']
  options |= {key: own[key] for key in ('holdout', 'threads', 'data_dir') if key in own}
  name = _place(own['name'], run)
  try:
    return (jobs.evaluation_data(run.opened.described, name, split, **options), own['name'], split), []
  except (ValueError, OSError) as error:
    return None, [f'its data cannot be opened ({" ".join(str(error).split())}): {without}']


def _place(name, run):
  """Where a run's data is now: a relative path counts from where the run was started, from here, or from a folder
  above the run's, whichever has it."""
  if name == 'digits' or name.startswith('tfds:') or os.path.isabs(os.path.expanduser(name)):
    return name
  folders = [pathlib.Path(run.record['folder']), pathlib.Path(), *run.root.parents]
  return next((str(folder / name) for folder in folders if (folder / name).exists()), name)


def samples(run, found):
  """(the worst errors, examples at random, a line where there is no attention to show), as lists of sections.Sample."""
  wrong = np.flatnonzero(found.rank > 0)
  worst = wrong[np.argsort(-np.nan_to_num(found.loss[wrong], nan=np.inf), kind='stable')][:PICTURES]
  count = len(found.ids)
  some = np.sort(np.random.default_rng(0).choice(count, min(PICTURES, count), replace=False))
  both = np.concatenate([worst, some])
  source, row, note = found.data.test, found.data.row, None
  if not len(both):
    return [], [], None
  pixels = np.stack([transforms.evaluation_image(source[int(i)]['image'], row) for i in found.ids[both]])
  maps = [None] * len(both)
  try:
    subject = look.Subject(run.model, run.opened.described)
    _, attention = subject.run(look.seen, pixels, batch=8)  # (n, layers, heads, rows * cols)
    maps = attention[:, -1].mean(1).reshape(-1, *look.grid(subject.model, pixels.shape[1:3]))
  except ValueError as error:
    note = str(error)
  shown = [
    sections.Sample(
      *_embedded(image, heat), source.describe(int(found.ids[i])),
      _named(found, found.labels[i]), None if np.isnan(found.confidence[i]) else _named(found, found.predicted[i]),
      float(found.own[i]), float(found.confidence[i]), float(found.loss[i]),
    )
    for i, image, heat in zip(both, pixels, maps)
  ]  # fmt: skip
  return shown[: len(worst)], shown[len(worst) :], note


def _named(found, told):
  """The name of a class, or the names of a set of them."""
  return found.names[told] if told.ndim == 0 else ', '.join(np.array(found.names)[told]) or 'nothing'


def _embedded(image, heat):
  """data: addresses of a picture, and of it under its attention or None; what is large is shrunk."""
  shrink = max(1, max(image.shape[:2]) / LARGE)
  if shrink > 1:
    size = [round(n / shrink) for n in image.shape[1::-1]]
    image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
  small = max(image.shape[:2]) < SMALL
  picture = draw.address(draw.png(image)) if small else _jpeg(image)
  if heat is None:
    return picture, None
  times = -(-SMALL // max(image.shape[:2])) if small else 1
  blocks = draw.enlarged(image, (image.shape[0] * times, image.shape[1] * times), smooth=False)
  return picture, _jpeg(draw.overlay(blocks, heat))


def _jpeg(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'jpeg', quality=85, optimize=True)
  return draw.address(file.getvalue(), 'jpeg')


def page(run, found, worst, some, missing, note):
  """The whole page, HTML. found None: without what needs the data."""
  numbers = None if found is None else found.summary()
  parts = [sections.summary(run, found, numbers), sections.curves(run)]
  if found is not None:
    parts += [sections.classes(found), sections.confusion(found), sections.calibration(found, numbers)]
    parts += [
      sections.pictures('Worst errors', 'worst', worst, note),
      sections.pictures('Random pictures', 'random', some, note),
    ]
  parts += [sections.throughput(run, found), sections.config(run), sections.origin(run, found)]
  template = pathlib.Path(__file__).with_name('report.html').read_text(encoding='utf-8')
  script = re.search(r'<script>(.*?)</script>', template, re.DOTALL)[1]
  words = {
    'hash': base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    'numbers': json.dumps(numbers).replace('<', '\\u003c'),
    'version': vit_jax.__version__,
    'written': time.strftime('%Y-%m-%d %H:%M'),
    **sections.frame(run, [part for part in parts if part], missing),
  }
  return re.sub(r'\{\{(\w+)\}\}', lambda match: words[match[1]], template)
