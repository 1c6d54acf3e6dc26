"""Builds every architecture of timm's that is ours to have, without memory, and compares it: python tests/listing.py.

A line for each name that is missing, does not build, or whose number of parameters or list of keys and shapes is not
timm's; last `N of M`. Exit code 1 where N < M. The facts are in goldens/timm_archs.json.gz: {name: [parameters, sha256
of the sorted lines 'key AxBxC' of the state dict]} as timm 1.0.31 builds them.
"""

import gzip
import hashlib
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from vit_jax import convert, models

FACTS = json.loads(gzip.decompress((pathlib.Path(__file__).parent / 'goldens/timm_archs.json.gz').read_bytes()))


def listing(model):
  """The sha256 of the keys and shapes of a model's file in timm's format."""
  shapes = {key: entry.file_shape for entry in convert.timm(model) for key in entry.keys}
  shapes |= dict.fromkeys(convert.counters(model), ())
  lines = sorted(f'{key} {"x".join(map(str, shape))}' for key, shape in shapes.items())
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def problem(name):
  """What is wrong with an architecture, or None."""
  if name not in models.VARIANTS:
    return 'missing'
  try:
    model = models.abstract(name)
  except ValueError as error:
    return str(error)
  params, keys = FACTS[name]
  if models.count(model) != params:
    return f'has {models.count(model):,} parameters, timm {params:,}'
  return None if listing(model) == keys else 'has other keys or shapes than timm'


def main():
  """Prints the comparison; gives the exit code."""
  problems = {name: problem(name) for name in FACTS}
  for name, wrong in problems.items():
    if wrong:
      print(f'{name} {wrong}')
  good = sum(wrong is None for wrong in problems.values())
  print(f'{good} of {len(FACTS)}')
  return int(good < len(FACTS))


if __name__ == '__main__':
  sys.exit(main())
