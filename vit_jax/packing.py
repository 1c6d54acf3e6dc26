"""Records -> the folder that shards.py reads: OUT.preparing, shard after shard, which gets its name by one rename.

A shard that is done has a note in OUT.preparing/done, so that the same plan goes on from there after any interruption.
"""

import collections
import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil

import numpy as np

from vit_jax import durable, guard, listing, shards, threads

SHARDS, EXAMPLES = 256, 1024  # at most so many of a split, of at least so many examples: a reader keeps a file open
AHEAD = 4  # records for each thread that are made before they are written


def per(part):
  """How many examples of a source a shard has."""
  return max(EXAMPLES, -(-len(part) // SHARDS))


@contextlib.contextmanager
def held(folder, out):
  """Makes and holds the folder that is being written: ValueError where another process does."""
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(guard.lock(folder))
    except ValueError:
      raise ValueError(f'{out} is being prepared by another process; wait for it, or name another OUT.') from None
    yield


def write(folder, out, parts, make, page, progress):
  """Writes the folder and gives it its name `out`; the whole content of its page.

  parts: {split: source}.   make(source, i) -> (record, label, None), or (b'', None, reason) of a missing one.
  page: what else the page says; where it or a source has changed, what an interrupted call has written is dropped.
  progress: (iterator, its length) -> the same iterator.

  Raises ValueError where not one record of a split can be made.
  """
  _begin(folder, page | {'splits': {split: [len(part), part.fingerprint()] for split, part in parts.items()}})
  total = sum(map(len, parts.values()))
  counted, said = progress(iter(range(total)), total), {}
  for split, part in parts.items():
    notes, count = [], -(-len(part) // per(part))
    for i in range(count):
      rows = range(i * per(part), min((i + 1) * per(part), len(part)))
      name = shards.shard(split, i, count)
      note = folder / 'done' / f'{name}.json'
      if note.is_file():
        collections.deque(itertools.islice(counted, len(rows)), maxlen=0)
      else:
        made = threads.each(lambda i, part=part: make(part, i), rows, ahead=AHEAD)
        _save(note, json.dumps(_shard(folder / name, zip(rows, made), part.labels() is None, counted)).encode())
      notes.append(json.loads(note.read_text(encoding='utf-8')))
    said[split] = _split(folder, split, part, notes)
  page = page | {'splits': said}
  _finish(folder, out, page)
  return page


def _begin(folder, plan):
  """Leaves in the folder what was done by the same plan, and nothing else."""
  path = folder / 'plan.json'
  with contextlib.suppress(OSError, ValueError):
    if json.loads(path.read_text(encoding='utf-8')) == plan:
      return
  for one in folder.iterdir():
    if one.name != 'lock':
      shutil.rmtree(one) if one.is_dir() else one.unlink()
  (folder / 'done').mkdir()
  _save(path, json.dumps(plan).encode())


def _shard(path, made, unknown, counted):
  """Writes a shard of (number, what make gave); {'bytes', 'sha256', 'unreadable': {number: reason}, 'labels'}.

  labels: [int] where they are unknown before they are read.
  """
  digest, unreadable, labels = hashlib.sha256(), {}, []
  writer = shards.library().ArrayRecordWriter(f'{path}.part', shards.WRITING)
  try:
    for (i, (data, label, reason)), _ in zip(made, counted):
      if reason is not None:
        unreadable[i] = reason
      labels += [0 if label is None else label] * unknown
      digest.update(hashlib.sha256(data).digest())
      writer.write(data)
  finally:
    writer.close()  # says that the disk is full, which write does not
  durable.sync(f'{path}.part')
  os.replace(f'{path}.part', path)
  return {'bytes': path.stat().st_size, 'sha256': digest.hexdigest(), 'unreadable': unreadable, 'labels': labels}


def _split(folder, split, part, notes):
  """Writes the arrays of a split; what the page says of it."""
  unreadable = {int(i): reason for one in notes for i, reason in one['unreadable'].items()}
  if len(unreadable) == len(part):
    raise ValueError(
      f'{part.title}: none of {len(part)} pictures can be read, such as {part.describe(0)}: {unreadable[0]}'
    )
  labels = part.labels()
  labels = np.array([label for one in notes for label in one['labels']], np.int32) if labels is None else labels
  names, file = listing.Names.pack([_name(part, i) for i in range(len(part))]), io.BytesIO()
  np.savez(file, labels=labels, names=names.block, ends=names.ends, missing=np.array(sorted(unreadable), np.int64))
  _save(folder / f'{split}.npz', file.getvalue())
  return {
    'examples': len(part), 'missing': len(unreadable), 'by_class': bool(part.by_class), 'classes': part.classes,
    'per': per(part), 'bytes': [one['bytes'] for one in notes],
    'sha256': hashlib.sha256(''.join(one['sha256'] for one in notes).encode()).hexdigest(),
    'source': part.fingerprint(), 'unreadable': [[part.describe(i), why] for i, why in sorted(unreadable.items())],
  }  # fmt: skip


def _name(part, i):
  """Where an example came from, without the folder of the data set, as UTF-8."""
  name, folder = part.describe(i), os.path.expanduser(part.title.rpartition('[')[0])
  for prefix in (folder, os.path.abspath(folder)):
    name = name.removeprefix(os.path.join(prefix, ''))
  return name.encode('utf-8', 'surrogateescape')


def _finish(folder, out, page):
  """Writes the page, removes what only an interrupted call would want, and gives the folder its name."""
  _save(folder / shards.PAGE, json.dumps(page, indent=1).encode())
  shutil.rmtree(folder / 'done')
  for name in ('plan.json', 'lock'):
    (folder / name).unlink(missing_ok=True)
  if os.path.lexists(out):
    raise ValueError(f'{out} has come to be meanwhile; what was prepared lies in {folder}.')
  os.rename(folder, out)
  durable.sync(out.parent)


def _save(path, data):
  """A file that is whole or not there."""
  with durable.replacing(path, f'{path}.part') as file:
    file.write(data)
