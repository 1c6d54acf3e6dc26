"""`vit_jax check DIR`: what is wrong with the pictures of a data set, as text for a person or JSON for a script.

A scan (scan.py) becomes one JSON-able dict, whose shape is written down in docs/data.md, and the text is made of that.
"""

import collections
import contextlib
import json
import os
import sys

from vit_jax import console, diskfull

FORMAT = 1  # of the JSON document; a new key leaves it as it is
LINES = 10  # of each kind of fault, and classes one by one, unless all are wanted
UNEVEN = 10  # times as many pictures as another class has: worth a note

MEANING = {
  'empty': 'no bytes',
  'truncated': 'cut off',
  'corrupt': 'damaged, or no picture',
  'huge': 'a picture too large to decode, or endless work',
  'unreadable': 'not to be opened, or of pixels without a range',
  'suffix': 'another format than the name says',
  'labels': 'a mapping file that does not fit',
  'class': 'classes without pictures, or of the test set alone',
  'leak': 'the same picture in several splits: tested on what was trained on',
  'duplicate': 'the same picture more than once in a split',
}  # kind: what it means, in the order of the text


def command(argv):
  """Lists damaged, empty, huge, misnamed and duplicate pictures of a data set, and how many each class has."""
  parser = console.Parser('check', command.__doc__)
  parser.add_argument(
    'data', metavar='DIR', help='a folder of pictures in any layout; or tar, parquet, CSV, .npz files'
  )
  parser.add_argument('--json', action='store_true', help='one JSON document instead of text')
  parser.add_argument('--all', action='store_true', help='every fault and class, however many there are')
  args = parser.parse_args(argv)
  with _quiet() as terminal:
    from vit_jax import scan

    found = told(args.data, scan.run(args.data, lambda items, total: console.progress(items, 'check', total, terminal)))
  if args.json:
    print(json.dumps(found, indent=1))
  else:
    print('\n'.join(text(found, every=args.all)))
  return 0 if found['ok'] else 1


def told(name, found):
  """The JSON-able dict of a scan.Found; docs/data.md says what each key holds."""
  lost = {row for row, kind, _ in found.faults if kind != 'suffix'}
  faults = [{'path': found.name(row), 'kind': kind, 'reason': reason} for row, kind, reason in found.faults]
  faults += [{'path': name, 'kind': kind, 'reason': reason} for name, kind, reason in found.strays]
  splits = _splits(found, lost)
  faults += _of_classes(splits)
  duplicates = [_group(found, rows, same) for rows, same in found.twins()]
  counts = collections.Counter(fault['kind'] for fault in faults)
  counts.update(group['kind'] for group in duplicates)
  return {
    'format': FORMAT,
    'path': os.fspath(name),
    'pictures': len(found),
    'bytes': found.size,
    'ok': not counts,
    'counts': {kind: counts[kind] for kind in MEANING},
    'faults': sorted(faults, key=lambda fault: (list(MEANING).index(fault['kind']), fault['path'])),
    'duplicates': sorted(duplicates, key=lambda group: (group['kind'] != 'leak', group['paths'])),
    'splits': splits,
    'notes': _notes(found, splits, duplicates),
  }


def _splits(found, lost):
  """{split: {'pictures', 'loose' (in no class), 'classes': {name: pictures}, 'readable': {name: pictures}}}."""
  out, row = {}, 0
  for part in found.parts:
    counts, good = [0] * len(part.classes), [0] * len(part.classes)
    for label in part.labels.tolist():
      if label >= 0:
        counts[label] += 1
        good[label] += row not in lost
      row += 1
    names = list(map(str, part.classes))
    out[part.split] = {
      'pictures': len(part.names),
      'loose': (len(part.names) - sum(counts)) * part.folder,
      'classes': dict(zip(names, counts)),
      'readable': dict(zip(names, good)),
    }
  return out


def _of_classes(splits):
  """The faults of classes: those without a picture that can be read, and those of a test set that training lacks."""
  faults = []
  train = next((splits[word] for word in ('train', 'training') if word in splits), None)
  for split, one in splits.items():
    for name, count in one['classes'].items():
      path = name if split in ('all', '') else f'{split}/{name}'
      if not one['readable'][name]:
        reason = f'none of its {count:,} pictures can be read' if count else 'a class without pictures'
        faults.append({'path': path, 'kind': 'class', 'reason': reason})
      elif train and train['classes'] and name not in train['classes']:
        faults.append({'path': path, 'kind': 'class', 'reason': 'a class that the training set lacks'})
  return faults


def _group(found, rows, same):
  """A group of equal pictures: its kind, paths, what is equal, and the splits and classes it lies in."""
  places = [found.place(row) for row in rows]
  splits = sorted({part.split for part, _ in places})
  classes = {str(part.classes[part.labels[i]]) for part, i in places if part.labels[i] >= 0}
  return {
    'kind': 'leak' if len(set(splits) - {''}) > 1 else 'duplicate',
    'same': 'bytes' if same else 'pixels',
    'paths': [part.name(i) for part, i in places],
    'splits': splits,
    'classes': sorted(classes),
  }


def _notes(found, splits, duplicates):
  """Lines about what is no fault, but good to know."""
  notes = []
  for split, one in splits.items():
    counts = {name: count for name, count in one['classes'].items() if count}
    most, least = (choose(counts, key=counts.get, default=None) for choose in (max, min))
    if most and counts[most] >= UNEVEN * counts[least]:
      times = counts[most] // counts[least]
      notes.append(
        f'{split}: {most} has {counts[most]:,} pictures, {times} times as many as {least} ({counts[least]:,})'
      )
    if one['loose'] and (one['classes'] or split != 'all'):
      where = split or 'outside of the splits'
      notes.append(f'{where}: {_count(one["loose"], "picture")} in no class, which training leaves')
  trained = {name for word in ('train', 'training') if word in splits for name in splits[word]['classes']}
  tested = {name for word in splits if word not in ('train', 'training', 'all') for name in splits[word]['classes']}
  if trained and tested and trained - tested:
    some = sorted(trained - tested)
    notes.append(
      f'not tested: {_count(len(some), "class", "classes")} of the training set, {", ".join(some[:5])}'
      + ', ...' * (len(some) > 5)
    )
  if duplicates and list(splits) == ['all']:
    notes.append('no split is given: what is held out for a test may have its duplicate in what is trained on')
  mixed = sum(len(group['classes']) > 1 for group in duplicates)
  if mixed:
    notes.append(f'with more than one class: {_count(mixed, "group")} of the same picture')
  if found.others:
    notes.append(f'not looked at: {_count(found.others, "other file")}')
  return notes


def text(found, *, every=False):
  """Lines for a person, the summary first: of a dict that `told` gave; `every` shows all faults and classes."""
  faults, groups = len(found['faults']), len(found['duplicates'])
  splits = ', '.join(f'{one["pictures"]:,} {split or "outside"}' for split, one in found['splits'].items())
  size = diskfull.text(found['bytes'])
  yield f'{console.clean(found["path"])}: {_count(found["pictures"], "picture")} ({splits}), {size}'
  leaks = f', {found["counts"]["leak"]:,} of them in several splits' * bool(found['counts']['leak'])
  counted = f'{_count(faults, "fault")}, {_count(groups, "group")} of the same picture{leaks}'
  yield 'No faults.' if found['ok'] else counted
  width = max(map(len, MEANING))
  yield from (f'  {kind:<{width}} {count:>7,}  {MEANING[kind]}' for kind, count in found['counts'].items() if count)
  for kind in MEANING:
    lines = [f'{fault["path"]}: {fault["reason"]}' for fault in found['faults'] if fault['kind'] == kind]
    lines += [_twins(group) for group in found['duplicates'] if group['kind'] == kind]
    yield from _listed(f'{kind} ({len(lines):,})', lines, every)
  yield from _listed('notes', found['notes'], True)
  yield from _listed('classes', list(_class_lines(found['splits'])), every)


def _listed(title, lines, every):
  """A title with lines under it, not too many; nothing where there are none."""
  if not lines:
    return
  yield ''
  yield title
  shown = lines if every or len(lines) <= LINES + 1 else lines[:LINES]
  yield from (f'  {console.clean(line)}' for line in shown)
  if len(shown) < len(lines):
    yield f'  and {len(lines) - len(shown):,} more; --all shows them'


def _twins(group):
  words = f'same {group["same"]}' + f'; {" and ".join(group["classes"])}' * (len(group['classes']) > 1)
  paths = group['paths'] if len(group['paths']) <= 4 else [*group['paths'][:3], f'{len(group["paths"]) - 3} more']
  return f'{" = ".join(paths)} ({words})'


def _class_lines(splits):
  """One line for each class with its pictures in each split."""
  splits = {split: one for split, one in splits.items() if one['classes']}
  names = sorted({name for one in splits.values() for name in one['classes']})
  width = min(40, max(map(len, names), default=0))
  for name in names:
    counts = [f'{one["classes"].get(name, 0):>9,} {split}' for split, one in splits.items()]
    yield f'{name:<{width}} {" ".join(counts)}'


def _count(number, word, words=None):
  return f'{number:,} {word if number == 1 else words or word + "s"}'


@contextlib.contextmanager
def _quiet():
  """A stream to the terminal, while what C libraries write on stderr is dropped: libtiff remarks on damaged files."""
  sys.stderr.flush()
  kept, void = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(void, 2)
  try:
    with os.fdopen(os.dup(kept), 'w') as terminal:
      yield terminal
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(void)
