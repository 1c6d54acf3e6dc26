"""Processes of one command that know of each other: started together, signalled together, ended by one code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from vit_jax import cli, guard, launch


def test_what_is_no_number_or_no_command_is_refused(capsys):
  for words in (['0', 'train'], ['2'], ['2', '--devices=0', 'train']):
    assert cli.main(['launch', *words]) == 2
    assert 'a number of processes from 1 and a command are wanted' in capsys.readouterr().err


def test_each_is_told_who_it_is_and_the_first_failure_is_the_exit_code(monkeypatch, capfd, tmp_path):
  (tmp_path / 'vit_jax.py').write_text(
    'import os, sys\nprint(os.environ["JAX_NUM_PROCESSES"], *sys.argv[1:])\n'
    'sys.exit(int(os.environ["JAX_PROCESS_ID"]) * 3)'
  )
  monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
  before = [signal.getsignal(number) for number in guard.NUMBERS]
  assert launch.together(['one', 'two'], 3) == 3
  assert [signal.getsignal(number) for number in guard.NUMBERS] == before
  out, err = capfd.readouterr()
  assert out == '3 one two\n' and sorted(err.splitlines()) == ['[1] 3 one two', '[2] 3 one two']


def test_a_signal_reaches_all(tmp_path):
  (tmp_path / 'vit_jax.py').write_text(
    'import os, pathlib, time\npathlib.Path("here" + os.environ["JAX_PROCESS_ID"]).touch()\ntime.sleep(60)'
  )
  program = 'import sys; from vit_jax import launch; sys.path.insert(0, "."); sys.exit(launch.together(["x"], 2))'
  ran = subprocess.Popen([sys.executable, '-P', '-c', program], cwd=tmp_path)
  while not all((tmp_path / f'here{i}').exists() for i in range(2)):
    assert ran.poll() is None
    time.sleep(0.02)
  ran.send_signal(signal.SIGTERM)
  assert ran.wait(20) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_two_processes_train_one_run_over_all_their_devices(tmp_path):
  words = [
    'train',
    f'--workdir={tmp_path}/run',
    '--config.total_steps=4',
    '--config.mesh.fsdp=8',
    '--config.log_every=1',
  ]
  command = [sys.executable, '-m', 'vit_jax', 'launch', '2', '--devices=4', *words]
  done = subprocess.run(command, env=os.environ | {'XLA_FLAGS': ''}, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  rows = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in rows if 'lr' in row] == [1, 2, 3, 4]
  assert '8 x cpu' in done.stderr
