"""The arguments of a command: argparse with errors of one line. Standard library only."""

import argparse
import difflib


class Parser(argparse.ArgumentParser):
  """An argument parser whose errors are one ValueError with the nearest right flag."""

  def __init__(self, command, description, **options):
    super().__init__(prog=f'vit_jax {command}', description=description, allow_abbrev=False, **options)

  def error(self, message):
    raise ValueError(f'{message}; {self.prog} --help shows what it takes.')

  def parse_args(self, argv):
    flags = [flag for action in self._actions for flag in action.option_strings]
    for word in argv:                                                # before argparse misses the flag that was meant
      if word.startswith('-') and word.partition('=')[0] not in flags:
        raise ValueError(f'{self.prog} has no flag {word}{nearest(word.partition("=")[0], flags)}.')
    return super().parse_args(argv)


def nearest(word, words):
  """' (did you mean X?)' for the nearest of words, or '' where none is near: the end of an error's first half."""
  near = difflib.get_close_matches(word, list(words), n=1)
  return f' (did you mean {near[0]}?)' if near else ''
