"""Damages to a run's checkpoints: python tests/reliability/damage.py --damages=1000 [--seed=0] [--out=FILE]

A tiny ViT is trained and saved at three steps. Each try takes fresh copies of that run, damages one step (in one try of
five, more of them) in one of the ways of DAMAGES, and then
- resumes: the newest whole step must be used, each damaged newer one named on stderr and moved aside, the state be
  that of the whole run bit for bit, and an older damaged step refused when it is asked for,
- loads for use, by the workdir and by the damaged step: weights must be those of the step that is named, bit for bit.
What is used though it differs, or passed over without a word, is silent. What raises anything but one line is a crash.
A damage that changes no byte is drawn again. With --out each try is a line of JSON in a file, and a second call goes on
after the last one. The last line printed is the figure.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path[:0] = [str(pathlib.Path(__file__).absolute().parent.parent.parent)]

import jax  # noqa: E402
import numpy as np  # noqa: E402

from vit_jax import checkpoint, weights  # noqa: E402


def train(workdir):
  """A run of six steps in a folder, saved at steps 2, 4 and 6 with a score and averaged weights."""
  import vit_jax
  from vit_jax import data

  rng = np.random.default_rng(0)
  pictures, labels = rng.integers(0, 256, (24, 8, 8, 3), np.uint8), rng.integers(0, 4, 24)
  shapes = dict(num_classes=4, img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2)
  vit_jax.fit(
    vit_jax.create_model('vit_tiny_patch16_224', **shapes),
    data.from_arrays((pictures, labels), (pictures[:8], labels[:8]), interpolation='bilinear'),
    steps=6, batch=8, eval_every=2, log_every=6, workdir=workdir,
    optim=dict(name='adamw', lr=1e-3, ema=0.9), save=dict(every=2, last=3),
  )  # fmt: skip


class Run:
  """A sound run: root, its workdir; whole, {step: {item: nested dict of arrays}}; used, {step: {'params', 'rest'}}."""

  def __init__(self, root):
    self.root, self.folder = pathlib.Path(root), pathlib.Path(root) / 'checkpoints'
    self.steps = sorted(int(one.name) for one in self.folder.iterdir())
    at = {step: self.folder / str(step) for step in self.steps}
    names = sorted({one.name for one in at[self.steps[0]].iterdir() if one.is_dir()} - {'info'})
    self.whole = {step: checkpoint.read(at[step], names) for step in self.steps}
    self.used = {step: weights.run_arrays(at[step]) for step in self.steps}

  def copy(self, place):
    """A copy of the run in a new folder."""
    shutil.copytree(self.root, place)
    return pathlib.Path(place)


def same(ours, theirs):
  """Whether two trees have the same keys, dtypes and bits."""
  return jax.tree.structure(ours) == jax.tree.structure(theirs) and all(
    a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
  )


def files(step):
  """The files of a step's folder, sorted."""
  return sorted(path for path in step.rglob('*') if path.is_file())


def _changed(step, rng, change):
  """Changes the bytes of one file, picked by chance or by its size; what it did."""
  there = [path for path in files(step) if path.stat().st_size]
  sizes = np.array([path.stat().st_size for path in there], float)
  while True:
    path = there[rng.choice(len(there), p=sizes / sizes.sum() if rng.random() < 0.5 else None)]
    before = path.read_bytes()
    after = change(bytearray(before), rng)
    if after != before:
      path.unlink()  # a new file: no cache may know it as the one before
      path.write_bytes(after)
      return f'{path.relative_to(step)}: {len(before)} -> {len(after)} bytes'


def flip(step, rng):
  """One bit of one file."""

  def change(data, rng):
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return data

  return _changed(step, rng, change)


def truncate(step, rng):
  """A file loses its end, or all."""
  return _changed(step, rng, lambda data, rng: data[: rng.integers(len(data))])


def zero(step, rng):
  """A block of up to 4,096 bytes of a file becomes zeros."""

  def change(data, rng):
    size = min(len(data), 1 << rng.integers(13))
    at = rng.integers(len(data) - size + 1)
    data[at : at + size] = bytes(int(size))
    return data

  return _changed(step, rng, change)


def delete(step, rng):
  """A file is gone."""
  path = rng.choice(files(step))
  path.unlink()
  return f'{path.relative_to(step)} deleted'


def stray(step, rng):
  """A file too many, or one that lies in another place too."""
  folders = [step, *(path for path in step.rglob('*') if path.is_dir())]
  other = rng.choice(files(step))
  name = rng.choice(['notes.txt', '.DS_Store', f'{other.name} (copy)', f'{other.name}.part', 'core', 'd0', '0'])
  path = rng.choice(folders) / str(name)
  if path.exists():
    return stray(step, rng)
  path.write_bytes(other.read_bytes() if rng.random() < 0.5 else rng.bytes(int(rng.integers(1, 999))))
  return f'{path.relative_to(step)} added'


def half(step, rng):
  """A copy that was broken off: only some files are there, in any order, and the last of them is cut."""
  there = files(step)
  order = there if rng.random() < 0.5 else [there[i] for i in rng.permutation(len(there))]
  count = int(rng.integers(len(order)))
  for path in order[count + 1 :]:
    path.unlink()
  cut = order[count].stat().st_size
  os.truncate(order[count], int(rng.integers(max(cut, 1))))
  for folder in sorted((path for path in step.rglob('*') if path.is_dir()), reverse=True):
    if not any(folder.iterdir()) and rng.random() < 0.5:
      folder.rmdir()
  return f'{count} of {len(there)} files'


def empty(step, rng):
  """A folder with the name of a step and nothing in it, or nothing but folders."""
  for path in files(step):
    path.unlink()
  if rng.random() < 0.5:
    shutil.rmtree(step)
    step.mkdir()
  return 'no file'


def exchanged(step, rng):
  """Another step of the same run under this one's name: whole, but not what it says it is."""
  others = [one for one in step.parent.iterdir() if one.name.isdecimal() and one != step and files(one)]
  if not others:
    return empty(step, rng)
  shutil.rmtree(step)
  shutil.copytree(rng.choice(others), step)
  return 'content of another step'


DAMAGES = {one.__name__: one for one in (flip, truncate, zero, delete, stray, half, empty, exchanged)}
NEW = {'half', 'empty', 'exchanged'}  # also as a step that the run never had


def damage(place, run, rng):
  """Damages a copy of a run: {step: what was done}; a step above all others may be new."""
  done, folder = {}, place / 'checkpoints'
  count = 1 if rng.random() < 0.8 else int(rng.integers(2, len(run.steps) + 1))
  for step in rng.permutation(run.steps)[:count]:
    name = str(rng.choice(list(DAMAGES)))
    if name in NEW and rng.random() < 0.5:
      shutil.copytree(folder / str(step), folder / str(step := max(run.steps) + 1 + len(done)))
    done[int(step)] = f'{name} {DAMAGES[name](folder / str(step), rng)}'
  return done


def resumed(place, run, done):
  """What is wrong with resuming a damaged copy, '' where nothing is; and what it said."""
  said, whole = io.StringIO(), [step for step in run.steps if step not in done]
  wanted = max(whole, default=None)
  with contextlib.redirect_stderr(said):
    keep = checkpoint.Checkpoints(place, last=len(run.steps))
  lines, wrong = said.getvalue(), []
  then = f'using {wanted}' if wanted else 'starting from step 0'
  for step in done:
    named = re.search(rf'^checkpoint {step} is damaged \(.+\): {then}$', lines, re.M)
    if step > (wanted or 0) and (not named or (keep.folder / str(step)).exists()):
      wrong.append(f'silent: nothing was said of {step}')
    if step in keep.steps():
      like = run.whole[run.steps[0]]
      with contextlib.suppress(ValueError):
        if step not in run.steps or not same(keep.restore(step, like), run.whole[step]):
          wrong.append(f'silent: {step} was restored')
  if keep.latest() != wanted:
    wrong.append(f'silent: {keep.latest()} is the newest, not {wanted}')
  elif wanted and not same(keep.restore(wanted, run.whole[wanted]), run.whole[wanted]):
    wrong.append(f'silent: {wanted} is not what was saved')
  if set(whole) - set(keep.steps()) or keep.best() not in (None, *keep.steps()):
    wrong.append('refused: a whole step')
  keep.close()
  return '; '.join(wrong), lines


def loaded(place, run, done):
  """What is wrong with the weights that a damaged copy gives, '' where nothing is; and what it said."""
  said, wrong, best = io.StringIO(), [], checkpoint.find(run.root)[0].name
  for path in (place, *(place / 'checkpoints' / str(step) for step in done)):
    try:
      with contextlib.redirect_stderr(said):
        step = int(checkpoint.find(path)[0].name)
        given = weights.run_arrays(place / 'checkpoints' / str(step))
    except ValueError as error:
      if path == place and set(run.steps) - set(done) or '\n' in str(error):
        wrong.append(f'refused: {error}')
      said.write(f'{error}\n')
      continue
    if step not in run.steps or not same(given, run.used[step]):
      wrong.append(f'silent: other weights than those of {step}')
    if path == place and step != int(best) and f'checkpoint {best} is damaged (' not in said.getvalue():
      wrong.append(f'silent: {step} in the place of {best}')
  return '; '.join(wrong), said.getvalue()


def attempt(run, seed, number, folder):
  """One try, as a JSON dict: {'seed', 'number', 'damages', 'said', 'verdict'}; verdict '' is as it should be."""
  rng = np.random.default_rng([seed, number])
  places = [run.copy(pathlib.Path(folder) / f'{number}_{use}') for use in ('resume', 'load')]
  done, verdict, said = {}, [], []
  try:
    done = damage(places[0], run, rng)
    shutil.rmtree(places[1])
    shutil.copytree(places[0], places[1])
    for use, place in zip((resumed, loaded), places, strict=True):
      wrong, lines = use(place, run, done)
      verdict += [wrong] if wrong else []
      said += lines.replace(str(folder), '').splitlines()
  except Exception as error:
    verdict.append(f'crash: {type(error).__name__}: {error}')
  for place in places:
    shutil.rmtree(place)
  return {'seed': seed, 'number': number, 'damages': done, 'said': said, 'verdict': '; '.join(verdict)}


def figure(rows):
  """The line that is printed last, of the rows of all tries."""
  count = lambda word: sum(word in row['verdict'] for row in rows)
  return (
    f'{len(rows)} damages: {count("silent")} silent, {count("crash")} crashes, {count("refused")} whole steps refused'
  )


def main():
  """Runs the tries that the file has not yet, and prints what was found."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--damages', type=int, default=100, help='how many')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', type=pathlib.Path, help='a file of JSON lines that is continued')
  options = parser.parse_args()
  lines = options.out.read_text().splitlines() if options.out and options.out.exists() else []
  rows = [row for row in map(json.loads, lines) if row['seed'] == options.seed][: options.damages]
  with tempfile.TemporaryDirectory() as folder:
    train(pathlib.Path(folder) / 'run')
    run = Run(pathlib.Path(folder) / 'run')
    with options.out.open('a') if options.out else contextlib.nullcontext() as file:
      for number in range(len(rows), options.damages):
        rows.append(attempt(run, options.seed, number, folder))
        if file:
          print(json.dumps(rows[-1]), file=file, flush=True)
        if rows[-1]['verdict']:
          print(json.dumps(rows[-1]))
  kinds = collections.Counter(what.split()[0] for row in rows for what in row['damages'].values())
  print(', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items())))
  print(figure(rows))
  return int(any(row['verdict'] for row in rows))


if __name__ == '__main__':
  sys.exit(main())
