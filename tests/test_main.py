"""The command line of a run: what is taken, what is refused, and in which order, with a fake jobs.run behind it."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from vit_jax import cli, config, main, memory

CONFIG = """
from ml_collections import ConfigDict

def get_config(args=''):
  return ConfigDict({'total_steps': 10, 'job': args or 'train'})
"""


def top_level_only(loaded, overrides):
  """config.resolve without the sections."""
  given = config.override(loaded, overrides).to_dict()
  return config.top_level(**config._section('', given, {'': config.top_level}, overrides))


@pytest.fixture
def runs(tmp_path, monkeypatch):
  """The calls of jobs.run, in an empty folder that holds mine.py; only the keys of the top level exist."""
  calls = []
  fake = types.ModuleType('vit_jax.jobs')
  fake.run = lambda resolved, workdir, *, extend=False: calls.append((resolved, workdir, extend))
  monkeypatch.setitem(sys.modules, 'vit_jax.jobs', fake)
  monkeypatch.setattr('vit_jax.jobs', fake, raising=False)
  monkeypatch.setattr(config, 'resolve', top_level_only)
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text(CONFIG)
  return calls


def test_a_run_gets_the_resolved_config_and_the_workdir(runs):
  argv = ['--config=mine.py', '--workdir', 'out', '--config.total_steps=1e3', '--config.batch', '32', '--extend']
  assert main.main(argv) == 0
  assert main.main(['--config=mine.py', '--workdir=out']) == 0
  (first, workdir, extend), (second, _, again) = runs
  assert (first['total_steps'], first['batch'], workdir, extend) == (1000, 32, 'out', True)
  assert (second['total_steps'], second['batch'], again) == (10, 128, False), 'no flag outlives its call'
  assert os.listdir() == ['mine.py'], 'the folder is made by the run, not by the check'


def test_without_flags_the_digits_go_to_a_folder_of_their_own(runs, monkeypatch):
  seen = []
  monkeypatch.setattr(config, 'load', lambda spec: seen.append(spec) or config.ConfigDict({'total_steps': 1}))
  assert main.main([]) == 0
  assert seen == ['digits']
  assert runs[0][1].startswith('runs/digits_20')


@pytest.mark.parametrize(
  ('spec', 'name'),
  [('digits', 'digits'), ('configs/vit.py:ViT-B_16,a/b.py', 'vit'), ('mnist:a/b', 'mnist'), ('/x/my.py', 'my')],
)
def test_the_default_workdir_is_named_after_the_config(spec, name):
  assert main.default_workdir(spec).startswith(f'runs/{name}_')


def test_jobs_that_do_not_train_write_only_where_they_are_told(runs):
  assert main.main(['--config=mine.py:inference_time']) == 0
  assert main.main(['--config=mine.py', '--config.job=evaluate', '--workdir=out']) == 0
  assert [(resolved['job'], workdir) for resolved, workdir, _ in runs] == [
    ('inference_time', None),
    ('evaluate', 'out'),
  ]


def test_the_last_of_two_overrides_wins():
  rest, overrides = main.split_overrides(['--config.a.b=1', '--workdir=w', '--config.a.b', '-2', '--config.c=x=y'])
  assert (rest, overrides) == (['--workdir=w'], {'a.b': '-2', 'c': 'x=y'})


@pytest.mark.parametrize(
  ('argv', 'words'),
  [
    (['--config=mine.py', 'out'], "'out' is no flag"),
    (['--', '--config=mine.py'], 'is no flag'),
    (['--wrkdir=x'], 'There is no flag --wrkdir; did you mean --workdir?'),
    (['--zzzzzz'], 'There is no flag --zzzzzz; --help lists them.'),
    (['--batch=3'], 'There is no flag --batch'),
    (['--workdir'], '--workdir'),
    (['--extend=perhaps'], '--extend=perhaps'),
    (['--config=mine.py', '--config.batch'], '--config.batch wants a value'),
    (['--config.batch', '--workdir=w'], '--config.batch wants a value'),
    (['--config.=3'], 'names no key'),
    (['--config.a..b=3'], 'names no key'),
    (['--config=nothing.py'], "There is no config 'nothing.py'. Shipped: augreg, cifar10, deit, deit3, digits"),
    (['--config=digit'], "There is no config 'digit'; did you mean 'digits'? Shipped: augreg"),
    (['--config='], "There is no config ''"),
    (['--config=mine.py', '--config.bacth=3'], 'did you mean config.batch?'),
    (['--config=mine.py', '--config.batch=0'], 'at least 1'),
    (['--config=mine.py', '--workdir='], '--workdir is empty'),
    (['--config=mine.py', '--workdir=mine.py'], 'mine.py is a file; give a folder'),
    (['--config=mine.py', '--workdir=mine.py/a/b'], 'mine.py is a file; give a folder'),
    (['--config=mine.py', '--workdir=/proc/nothing/here'], 'nothing can be written in /proc'),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(runs, capsys, argv, words):
  assert cli.guarded(main.main, argv) == 2
  printed = capsys.readouterr()
  assert words in printed.err
  assert printed.err.startswith('error: ')
  assert printed.err.count('\n') == 1
  assert printed.out == ''
  assert runs == []
  assert os.listdir() == ['mine.py']


def test_the_config_is_checked_before_the_workdir(runs, capsys):
  assert cli.guarded(main.main, ['--config=mine.py', '--config.batch=0', '--workdir=mine.py']) == 2
  assert 'config.batch' in capsys.readouterr().err


def test_print_config_shows_and_does_nothing_else(runs, capsys, monkeypatch):
  monkeypatch.setattr(config, 'show', lambda loaded, overrides: f'{loaded.total_steps} {overrides}')
  assert main.main(['--config=mine.py', '--print_config', '--config.seed=1']) == 0
  assert capsys.readouterr().out == "10 {'seed': '1'}\n"
  assert runs == []


def python(*argv, cwd):
  environment = os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parent.parent)}
  return subprocess.run([sys.executable, *argv], cwd=cwd, capture_output=True, text=True, env=environment, check=False)


def test_help_and_wrong_flags_answer_without_jax(tmp_path):
  done = python('-X', 'importtime', '-m', 'vit_jax.main', '--help', cwd=tmp_path)
  assert done.returncode == 0
  assert '--print_config' in done.stdout
  imported = {line.rpartition('|')[2].strip().partition('.')[0] for line in done.stderr.splitlines()}
  assert 'absl' in imported
  assert not imported & {'jax', 'numpy', 'flax', 'ml_collections'}
  (tmp_path / 'broken.py').write_text('x = = 1')
  done = python('-X', 'importtime', '-m', 'vit_jax.main', '--config=broken.py', cwd=tmp_path)
  assert done.returncode == 2
  assert 'error: broken.py:1: invalid syntax' in done.stderr
  assert 'jax' not in {line.rpartition('|')[2].strip().partition('.')[0] for line in done.stderr.splitlines()}
  assert os.listdir(tmp_path) == ['broken.py']


def test_freed_memory_is_kept_where_the_c_library_can():
  import platform

  assert memory.keep_freed() == (platform.libc_ver()[0] == 'glibc')
