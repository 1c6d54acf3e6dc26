"""What was compiled is kept for the next process, in a folder for this kind of CPU that does not grow for ever."""

import os
import subprocess
import sys

import pytest

from vit_jax import compilation

NAMES = (
  'VIT_JAX_CACHE', 'JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
)  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
  """An empty cache folder of a user, whose environment says nothing of jax's cache."""
  monkeypatch.setattr(os, 'environ', {k: v for k, v in os.environ.items() if k not in NAMES})
  monkeypatch.delitem(sys.modules, 'jax', raising=False)
  os.environ['XDG_CACHE_HOME'] = str(tmp_path)
  return tmp_path


def test_it_is_in_the_users_cache_folder_unless_the_user_says_otherwise(home):
  folder = compilation.keep()
  assert folder.parent == home / 'vit_jax' / 'compiled' and folder.is_dir()
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == str(folder)
  assert compilation.keep() is None  # a folder is named now
  del os.environ['JAX_COMPILATION_CACHE_DIR']
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'False'
  assert compilation.keep() is None and 'JAX_COMPILATION_CACHE_DIR' not in os.environ


def test_where_nothing_can_be_kept_nothing_is(home):
  (home / 'vit_jax').write_text('a file')
  assert compilation.keep() is None and 'JAX_COMPILATION_CACHE_DIR' not in os.environ


def test_the_oldest_go_first(tmp_path):
  for i in range(5):
    path = tmp_path / f'{i}-cache'
    path.write_bytes(bytes(100))
    os.utime(path, (1000 - i, 1000 - i))
  compilation._shorten(tmp_path, 250)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['0-cache', '1-cache']


PROGRAM = """
import sys
from vit_jax import compilation
assert compilation.keep() and 'jax' not in sys.modules
import jax, jax.numpy as jnp
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))[0, 0], sum('cache_hits' in event for event in seen))
"""


def test_a_second_process_loads_what_the_first_one_compiled(home):
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  command = [sys.executable, '-W', 'error', '-c', PROGRAM]
  first, second = (subprocess.run(command, env=os.environ, capture_output=True, text=True) for _ in range(2))
  assert (first.returncode, first.stderr, second.stderr) == (0, '', '')
  (value, none), (same, some) = first.stdout.split(), second.stdout.split()
  assert value == same and int(none) == 0 and int(some) > 0
