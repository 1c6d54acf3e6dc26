"""What commands read and print: arguments with errors of one line, tables, hints. Standard library only."""

import argparse
import difflib
import os
import shutil
import sys
import textwrap


class Parser(argparse.ArgumentParser):
  """An argument parser whose errors are one ValueError with the nearest right flag."""

  def __init__(self, command, description, **options):
    super().__init__(prog=f'vit_jax {command}', description=description, allow_abbrev=False, **options)

  def error(self, message):
    raise ValueError(f'{message}; {self.prog} --help shows what it takes.')

  def parse_args(self, argv):
    flags = [flag for action in self._actions for flag in action.option_strings]
    for word in argv:  # before argparse misses the flag that was meant
      if word.startswith('-') and word.partition('=')[0] not in flags:
        raise ValueError(f'{self.prog} has no flag {word}{nearest(word.partition("=")[0], flags)}.')
    return self.parse_intermixed_args(argv)  # flags may stand between the words


def nearest(word, words):
  """' (did you mean X?)' for the nearest of words, or '' where none is near: the end of an error's first half."""
  near = difflib.get_close_matches(word, list(words), n=1)
  return f' (did you mean {near[0]}?)' if near else ''


def table(rows, stream=None):
  """Prints {word: value} to a stream (None: stdout), one a line, long values folded to the terminal between words."""
  width = max(map(len, rows)) + 2
  columns = max(40, min(100, shutil.get_terminal_size((100 + width, 24)).columns - width))
  for word, value in rows.items():
    fold = lambda line: textwrap.wrap(line, columns, break_on_hyphens=False, break_long_words=False) or ['']
    lines = [part for line in str(value).split('\n') for part in fold(line)]
    print(f'{word:<{width}}' + ('\n' + ' ' * width).join(lines), file=stream)


def clean(line):
  """A line that a terminal takes as text: the name of a file may hold anything, also what moves the cursor."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape', 'surrogatepass').decode() for c in line)


def progress(items, word, total, stream=None):
  """The items, with a bar, a word and the time left where a stream (None: stderr) is a terminal."""
  stream = stream or sys.stderr
  if not stream.isatty():
    return items
  import rich.console
  import rich.progress

  return rich.progress.track(items, word, total, console=rich.console.Console(file=stream), transient=True)


def unread(lines, total):
  """The exit code of a command on `total` pictures, after the lines about those that could not be read: 0 where there
  are none, 1 for some, 2 for all."""
  for line in lines:
    print(line, file=sys.stderr)
  if lines:
    print(f'{len(lines)} of {total} pictures could not be read', file=sys.stderr)
  return 0 if not lines else 2 if len(lines) == total else 1


def accelerator_hint(platform, paths=('/dev/nvidia0', '/dev/accel0', '/dev/vfio/0')):
  """One line that says what to install where jax runs on `platform` 'cpu' beside an accelerator, else None."""
  found = next((path for path in paths if platform == 'cpu' and os.path.exists(path)), None)
  if not found or os.environ.get('JAX_PLATFORMS') == 'cpu':
    return None
  if 'nvidia' in os.path.basename(found):
    return (
      f"{found} is here, but jax sees only the CPU: pip install -U 'jax[cuda13]' (drivers before 580: 'jax[cuda12]')"
    )
  return f"{found} is here, but jax sees only the CPU: on a TPU machine, pip install -U 'jax[tpu]'"
