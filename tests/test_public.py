"""What the outside sees: the public list, that it is lazy, and that the README's words and snippets are true."""

import importlib
import os
import pathlib
import pkgutil
import re
import shlex
import subprocess
import sys

import pytest

import vit_jax
from vit_jax import cli

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
FUNCTIONS = ['create_model', 'evaluate', 'export', 'fit', 'list_models', 'load']


def blocks(language):
  return re.findall(rf'^```{language}\n(.*?)^```', README, re.MULTILINE | re.DOTALL)


def python(source, cwd, **environment):
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''} | environment
  run = [sys.executable, '-W', 'error', '-c', source]
  return subprocess.run(run, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600)


def test_the_public_list_is_frozen():
  assert sorted(vit_jax.__all__) == sorted([*FUNCTIONS, 'models'])
  assert set(vit_jax.__all__) <= set(dir(vit_jax))
  with pytest.raises(AttributeError, match='create_modle'):
    vit_jax.create_modle  # noqa: B018


def test_importing_the_package_imports_nothing_else(tmp_path):
  heavy = "{'jax', 'flax', 'numpy', 'optax', 'orbax', 'grain', 'PIL'}"
  run = python(f'import sys, vit_jax; print(*({heavy} & set(sys.modules)))', tmp_path)
  assert (run.stdout.strip(), run.stderr) == ('', '')


def test_each_function_stays_callable_after_every_command_is_imported():
  for name in FUNCTIONS:
    assert callable(getattr(vit_jax, name))
  for module in pkgutil.walk_packages(vit_jax.__path__, 'vit_jax.'):
    if not module.name.endswith('__main__'):
      importlib.import_module(module.name)
  for name in FUNCTIONS:
    assert callable(getattr(vit_jax, name)), name
    assert getattr(vit_jax, name) is getattr(vit_jax, name)
  assert vit_jax.models.list_models() == vit_jax.list_models()


@pytest.mark.slow
def test_the_package_adds_little_to_importing_jax(tmp_path):
  clock = 'import time; print(time.process_time())'
  cost = lambda source: min(float(python(f'{source}; {clock}', tmp_path).stdout) for _ in range(5))
  bare = cost('pass')
  stack = cost('import jax, flax.nnx, optax') - bare
  ours = cost('import jax, flax.nnx, optax; import vit_jax; vit_jax.create_model') - bare
  assert ours < 1.3 * stack


def test_the_readme_python_runs(tmp_path):
  assert blocks('python')
  run = python('\n'.join(blocks('python')), tmp_path)
  assert run.returncode == 0, run.stderr


def test_the_readme_commands_exist():
  """Every `vit_jax COMMAND --flag` of a shell block is one, and every config that it names is shipped."""
  from vit_jax import config

  text = '\n'.join(blocks('sh')).replace('\\\n', ' ').replace('python -m vit_jax.main', 'vit_jax train')
  lines = [shlex.split(line, comments=True) for line in text.splitlines()]
  commands = [line for line in lines if line and line[0] == 'vit_jax']
  assert {line[1] for line in commands} == set(cli.COMMANDS)
  for word in (word for line in commands for word in line if word.startswith('--config=')):
    assert config.find(word.removeprefix('--config='))[0].is_file()


def test_the_readme_starts_with_the_two_commands():
  first, second, *_ = blocks('sh')
  assert 'pip install' in first and 'python -m vit_jax.main' in first
  assert 'pip install' in second and '[dev]' in second and 'pytest' in second


def test_the_version_is_written_once():
  assert re.fullmatch(r'\d+\.\d+\.\d+', vit_jax.__version__)
  holders = [
    p
    for p in [*ROOT.glob('*.*'), *ROOT.glob('vit_jax/*.py')]
    if p.is_file()
    and p.suffix != '.md'
    and re.search(rf"version(__)? = '?{re.escape(vit_jax.__version__)}", p.read_text(errors='ignore'))
  ]
  assert [p.name for p in holders] == ['__init__.py']
