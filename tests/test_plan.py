"""vit_jax plan, this side: what it refuses before anything starts, and what it sends to the other side."""

import importlib.metadata
import json
import subprocess

import pytest

from vit_jax import cli, machines, plan


def without(monkeypatch, *missing):
  real = importlib.metadata.version

  def version(name):
    if name in missing:
      raise importlib.metadata.PackageNotFoundError(name)
    return '1.0' if name in ('libtpu', 'jax-cuda13-plugin') else real(name)

  monkeypatch.setattr(importlib.metadata, 'version', version)


@pytest.mark.parametrize(('argv', 'said'), [
  (['--machine=h200'], 'required: --config'),
  (['--config=digits', '--machine=h100'], "no machine 'h100' (did you mean h200?)"),
  (['--config=digits', '--machin=h200'], 'did you mean --machine?'),
  (['--config=digits', '--machine=v5e-2x2'], "needs libtpu, which is not installed: pip install 'vit_jax[plan]'"),
  (['--config=digits', '--machine=h200x8'], 'needs jax-cuda13-plugin, which is not installed'),
], ids=str)  # fmt: skip
def test_what_cannot_be_is_one_line(argv, said, monkeypatch, capsys):
  without(monkeypatch, 'libtpu', 'jax-cuda13-plugin', 'jax-cuda12-plugin')
  assert cli.main(['plan', *argv]) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ') and said in err and err.count('\n') == 1


def test_what_is_sent(monkeypatch):
  without(monkeypatch)
  calls = []

  def run(command, env, **options):
    calls.append((command, env, options))
    return subprocess.CompletedProcess(command, 3)

  monkeypatch.setattr(subprocess, 'run', run)
  argv = ['--config=digits', '--config.batch=64', '--machine=v5e-4x4', '--largest_batch', '--kernels=7', '--odd_tokens']
  assert cli.main(['plan', *argv]) == 3
  ((command, env, _),) = calls
  assert command[1:4] == ['-P', '-m', 'vit_jax.planned']
  assert json.loads(command[4]) == {
    'config': 'digits', 'overrides': {'batch': '64'}, 'machine': 'v5e-4x4', 'largest_batch': True, 'kernels': 7,
    'odd_tokens': True, 'json': False,
  }  # fmt: skip
  assert env.items() >= machines.environment(machines.named('v5e-4x4')).items()


def test_the_other_side_reports_in_one_line(monkeypatch):
  without(monkeypatch)
  line = 'batch=12 does not divide over 8 devices; 8 would, or change mesh.'
  ended = subprocess.CompletedProcess([], 2, '', f'libtpu says hello\nerror: {line}\n')
  monkeypatch.setattr(plan, 'compiled', lambda *_, **__: ended)
  with pytest.raises(ValueError, match='^batch=12 does not divide over 8 devices; 8 would'):
    plan.made('digits', 'h200x8', {'batch': '12'})
