"""What the outside sees: the public list, that it is lazy, and that the README's words and snippets are true."""

import importlib.util
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
# name: text of each page that a user reads
PAGES = {
  path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8')
  for path in (ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')), ROOT / 'CONTRIBUTING.md')
}
BLOCK = re.MULTILINE | re.DOTALL
FUNCTIONS = ['attention', 'create_model', 'evaluate', 'export', 'fit', 'list_models', 'load', 'predict']


def blocks(language, *pages):
  return [block for page in pages or PAGES for block in re.findall(rf'^```{language}\n(.*?)^```', PAGES[page], BLOCK)]


def python(cwd, *arguments):
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  run = [sys.executable, '-W', 'error', *arguments]
  return subprocess.run(run, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600)


def test_the_public_list_is_frozen():
  assert sorted(vit_jax.__all__) == sorted([*FUNCTIONS, 'models'])
  assert set(vit_jax.__all__) <= set(dir(vit_jax))
  with pytest.raises(AttributeError, match='create_modle'):
    vit_jax.create_modle  # noqa: B018


def test_importing_the_package_imports_nothing_else(tmp_path):
  heavy = "{'jax', 'flax', 'numpy', 'optax', 'orbax', 'grain', 'PIL'}"
  run = python(tmp_path, '-c', f'import sys, vit_jax; print(*({heavy} & set(sys.modules)))')
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


def test_the_package_adds_little_to_importing_jax(tmp_path):
  """Its own modules and Pillow; by a count, for CPU seconds depend on what else a machine does (it was 2 % of them)."""
  before = 'import sys, jax, flax.nnx, optax; before = set(sys.modules); import vit_jax; vit_jax.create_model'
  count = 'print(*{name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)'
  assert set(python(tmp_path, '-c', f'{before}; {count}').stdout.split()) == {'vit_jax', 'PIL'}


def test_the_python_of_every_page_runs(tmp_path):
  assert blocks('python', 'README.md') and blocks('python', 'docs/inside.md')
  run = python(tmp_path, str(ROOT / 'tests' / 'snippets.py'), *(str(ROOT / page) for page in PAGES))
  assert run.returncode == 0, run.stderr


def commands():
  """[words after vit_jax] of each line of a shell block and each `vit_jax ...` within a sentence."""
  text = '\n'.join(blocks('sh')).replace('\\\n', ' ').replace('python -m vit_jax.main', 'vit_jax train')
  within = [words for page in PAGES.values() for words in re.findall('`(vit_jax [a-z][^`]*)`', page)]
  split = [shlex.split(line, comments=True) for line in [*text.splitlines(), *within]]
  return [words[1:] for words in split if words and words[0] == 'vit_jax']


def test_the_commands_and_flags_of_every_page_exist(capsys):
  helps = {}

  def flags(*command):
    if command not in helps:
      assert cli.main([*command, '--help']) == 0, command
      helps[command] = set(re.findall(r'--\w+', capsys.readouterr().out))
    return helps[command]

  used = commands()
  assert {name for name, *_ in used} == set(cli.COMMANDS)
  for command, *words in used:
    given = {word.partition('=')[0] for word in words if word.startswith('--') and not word.startswith('--config.')}
    if given:
      known = flags(command, words[0]) if command == 'hub' or words[0] == 'input' else flags(command)
      assert given <= known, (command, given - known)


def test_the_configs_and_keys_of_every_page_exist():
  from vit_jax import config

  for word in (word for words in commands() for word in words if word.startswith('--config=')):
    name = word.removeprefix('--config=')
    assert name.partition(':')[0] == 'mine.py' or config.find(name)[0].is_file()
  digits = config.load('digits')
  keys = {**config.flat(config.resolve(digits)), **dict.fromkeys(config.functions())}
  for page, line in ((page, line) for page, text in PAGES.items() for line in text.splitlines()):
    found = re.findall(r'--config\.([a-z][\w.]*\w)(=?)([^\s`]*)', line)
    config.resolve(digits, {key: value for key, equals, value in found if equals})  # some go together
    for key, equals, _ in found:
      assert equals or key in keys, (page, key)


def test_the_recipes_are_the_shipped_configs():
  from vit_jax import config

  part = PAGES['README.md'].partition('## Recipes')[2].partition('\n## ')[0]
  assert sorted(re.findall(r'^\| `(\w+)', part, re.MULTILINE)) == sorted(config.names())


def test_the_counts_of_the_zoo_are_right():
  from vit_jax import hub

  found = re.search(r'(\d+) architectures .* (\d+) sets of published weights', PAGES['README.md'])
  there = [row for row in hub.rows().values() if hub.places(row)]
  assert [int(count) for count in found.groups()] == [len(vit_jax.list_models()), len(there)]


def test_links_lead_somewhere():
  """Every relative link of every page names a file or folder, and its #part a heading of it."""
  anchor = lambda title: re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
  for page, text in PAGES.items():
    for link in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', re.sub(r'^```.*?^```', '', text, flags=BLOCK)):
      path, _, part = ''.join(link).partition('#')
      if '://' in path:
        continue
      target = (ROOT / page).parent / path if path else ROOT / page
      assert target.exists(), (page, path)
      if part:
        headings = re.findall(r'^#+ (.*)', target.read_text(encoding='utf-8'), re.MULTILINE)
        assert part in map(anchor, headings), (page, part)


def test_names_of_the_package_exist():
  """Every vit_jax.NAME of a page is a public name or a module."""
  for page, text in PAGES.items():
    for name in set(re.findall(r'\bvit_jax\.([a-z_]+)', text)):
      assert name in vit_jax.__all__ or importlib.util.find_spec(f'vit_jax.{name}'), (page, name)


def test_the_readme_starts_with_the_two_commands():
  first, second, *_ = blocks('sh', 'README.md')
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
