"""What data sets call the classes of a model, and other labels for the same pictures: ImageNet's evaluation sets.

  ImageNet-V2    folders named 0 to 999, numbers of classes (Recht et al. 2019, arXiv:1902.10811)
  ImageNet-A, -R folders named by WordNet id, of 200 classes, among which alone a model chooses (Hendrycks et al. 2021,
                 arXiv:1907.07174 and arXiv:2006.16241)
  ReaL           real.json, a list of class numbers for each picture of the validation set (Beyer et al. 2020, Are we
                 done with ImageNet?, arXiv:2006.07159): right is an answer that is on the picture's list, and a
                 picture whose list is empty does not count

Classes have the numbers of the 1,000 WordNet ids in their order; of a model that does not know these, its own order.
"""

import json
import re

from vit_jax import hub, listing, storage

NUMBERED = re.compile(r'_val_(\d{8})\.')


def words(described, own):
  """What to call each of a model's classes so that a data set's `own` classes are among them, [str]: by name, by
  WordNet id, or by number where the model knows the 1,000 or names none. None where the two cannot be matched."""
  names, ids = described['classes'], described['ids']
  for known in (names, ids):
    if known and set(own) <= set(known):
      return list(known)
  columns = numbers(described)
  if names and not knows(ids or names) or not set(own) <= {str(i) for i in range(len(columns))}:
    return None
  called = [f'output {i}' for i in range(described['architecture']['num_classes'])]  # of those beside the 1,000
  for i, column in enumerate(columns):
    called[column] = str(i)
  return called


def knows(names):
  """Whether the 1,000 WordNet ids are among names."""
  return set(hub.label_ids('imagenet-1k')) <= set(names)


def numbers(described):
  """The outputs that are the classes 0, 1, ... of data sets which number them, [int]."""
  known = described['ids'] or described['classes'] or ()
  if not knows(known):
    return list(range(described['architecture']['num_classes']))
  place = {name: i for i, name in enumerate(known)}
  return [place[name] for name in hub.label_ids('imagenet-1k')]


def accepted(path, source, described):
  """The outputs that a file like real.json accepts of each example of a source, [set of int].

  A picture named ILSVRC2012_val_00000001 has the first list; where no picture is named so, lists come in the order of
  the files' names. Raises ValueError for a file that is no such list or does not fit the source and the model,
  FileNotFoundError for one that is not there.
  """
  path = storage.fetched(storage.path(path))
  try:
    lists = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is no JSON file: {error}') from None
  whole = lambda one: isinstance(one, int) and not isinstance(one, bool)
  if not isinstance(lists, list) or not all(isinstance(one, list) and all(map(whole, one)) for one in lists):
    raise ValueError(f'{path} is not like real.json: wanted a list with a list of class numbers for each picture.')
  columns = numbers(described)
  every = [number for one in lists for number in one] or [0]
  if min(every) < 0 or max(every) >= len(columns):
    raise ValueError(
      f'{path} has class numbers from {min(every)} to {max(every)}, and {described["weights"]} tells {len(columns)} '
      'classes.'
    )
  return [{columns[number] for number in lists[i]} for i in _places(path, len(lists), source)]


def _places(path, count, source):
  """Which of `count` lists each example of a source has, [int]."""
  names = [re.split(r'[/\\:]', source.describe(i))[-1] for i in range(len(source))]
  found = [NUMBERED.search(name) for name in names]
  if all(found):
    places = [int(match[1]) - 1 for match in found]
    if max(places) >= count:
      raise ValueError(f'{path} has {count} lists, and {names[places.index(max(places))]} is among the pictures.')
    return places
  if not all(listing.is_picture(name.encode(), listing.suffixes()) for name in names):
    raise ValueError(f'{path} goes by the names of picture files, and {source.describe(0)} has none; unpack the data.')
  if len(names) != count or len(set(names)) < count:
    raise ValueError(
      f'{path} has {count} lists for {len(names)} pictures ({names[0]}, ...); wanted one each, or pictures named like '
      'ILSVRC2012_val_00000001.JPEG.'
    )
  order = {name: i for i, name in enumerate(sorted(names))}
  return [order[name] for name in names]
