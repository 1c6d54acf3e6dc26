"""The scripts in benchmarks/ as modules, for their tests."""

import importlib
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent.parent / 'benchmarks'


def benchmark(name):
  """The module of a script."""
  sys.path.insert(0, str(FOLDER))
  try:
    return importlib.import_module(name)
  finally:
    sys.path.remove(str(FOLDER))
