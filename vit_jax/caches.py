"""Where the package keeps what it can make or fetch again."""

import os
import pathlib


def folder():
  """The folder, which may not be there yet: $VIT_JAX_CACHE, else $XDG_CACHE_HOME/vit_jax, else ~/.cache/vit_jax."""
  own = os.environ.get('VIT_JAX_CACHE')
  return pathlib.Path(own or pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'vit_jax').expanduser()
