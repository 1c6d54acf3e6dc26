"""Signals end a run in order, a folder has one owner, and a run that hangs shows where."""

import os
import signal
import subprocess
import sys
import time

import pytest

from vit_jax import guard

# A process that needs no jax: it says 'ready', and what `body` does then is interrupted.
SCRIPT = """
import ctypes, os, signal, sys, time
from vit_jax import cli, guard
def deaf():  # C that hears no signal, as where XLA compiles
  signal.pthread_sigmask(signal.SIG_BLOCK, guard.NUMBERS)
  ctypes.CDLL(None).sleep(60)
def work():
  with guard.signals():
    ready = lambda: print('ready', flush=True)
    {body}
sys.exit(cli.guarded(work))
"""


def ended(body, *numbers, pause=0.0):
  """(exit code, stdout, stderr, seconds) of a process whose body gets these signals, one after the other."""
  script = SCRIPT.format(body=body.replace('\n', '\n    '))
  child = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  try:
    assert child.stdout.readline() == 'ready\n', child.communicate()[1]
    begun = time.monotonic()
    for number in numbers:
      child.send_signal(number)
      time.sleep(pause)
    out, err = child.communicate(timeout=50)
  finally:
    child.kill()
  return child.returncode, out, err, time.monotonic() - begun


@pytest.mark.parametrize('number', guard.NUMBERS)
def test_with_nothing_to_save_a_signal_ends_the_process_wherever_it_is(number):
  word = f'stopped by {signal.Signals(number).name}: nothing new to save'
  for body in ('ready(); time.sleep(30)', "guard.at('compile'); ready(); deaf()"):
    code, _, err, seconds = ended(body, number)
    assert code == 128 + number and word in err and err.count('\n') == 1 and seconds < 20


WAITS = """
with guard.run():
  guard.NOW.unsaved = True
  guard.at('{phase}', 7)
  try:
    ready()
    for _ in range(100):
      time.sleep(0.1)
      if {asks} and guard.requested(): raise guard.Stopped(guard.requested())
  except guard.Stopped as end:
    time.sleep(0.5)  # a second signal does not disturb this
    print('saving in', guard.NOW.phase, flush=True)
    end.saved = 7
    raise
""".strip()


def test_what_is_to_be_saved_is_saved_first():
  for phase, asks in (('data', 0), ('evaluation', 0), ('step', 1), ('save', 1)):
    code, out, err, seconds = ended(WAITS.format(phase=phase, asks=asks), signal.SIGTERM, signal.SIGUSR1, pause=0.2)
    assert code == 143 and out == f'saving in {phase}\n' and 'step 7 is saved' in err and seconds < 8


def test_a_run_that_is_over_ends_with_the_signals_code():
  body = "with guard.run():\n  guard.at('data', 9)\nready(); time.sleep(0.3); print('the end')"
  code, out, err, _ = ended(body, signal.SIGUSR1)
  assert code == 128 + signal.SIGUSR1 and out == 'the end\n' and 'stopped by SIGUSR1' in err


def test_a_second_interrupt_ends_at_once_even_while_saving():
  body = "guard.NOW.unsaved = True; guard.at('save'); ready(); deaf()"
  code, _, err, seconds = ended(body, signal.SIGINT, signal.SIGINT, pause=0.3)
  assert code == 130 and 'interrupted twice' in err and seconds < 15


def test_what_hangs_after_the_save_is_cut_off():
  body = "guard.TIDY = 1\nwith guard.run():\n  guard.NOW.unsaved = True; guard.at('step', 3); ready(); time.sleep(1)"
  body += '\ndeaf()'
  code, _, err, seconds = ended(body, signal.SIGTERM)
  assert code == 143 and 'stopped by SIGTERM' in err and '3 is saved' in err and 1.9 < seconds < 20


def test_handlers_are_as_before_afterwards():
  before = [signal.getsignal(number) for number in guard.NUMBERS]
  with guard.signals():
    assert signal.getsignal(signal.SIGTERM) is guard._handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a library might
    guard.reinstall()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # not ours any more: left alone
  assert [signal.getsignal(number) for number in guard.NUMBERS] == before and signal.set_wakeup_fd(-1) == -1


def test_several_processes_only_remember_a_signal():
  body = "with guard.run(hosts=2):\n  guard.at('data')\n  ready(); time.sleep(1.5); print(guard.requested())"
  code, out, _, _ = ended(body, signal.SIGTERM)
  assert code == 143 and out == '15\n'


# -- lock

HOLD = (
  'import sys, time; from vit_jax import guard\nwith guard.lock(sys.argv[1]): print("held", flush=True); time.sleep(60)'
)


def test_a_folder_has_one_owner_and_a_killed_one_blocks_nobody(tmp_path):
  with subprocess.Popen([sys.executable, '-c', HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as child:
    try:
      assert child.stdout.readline() == 'held\n'
      with pytest.raises(ValueError, match=f'is in use by process {child.pid} on {os.uname().nodename}; wait'):
        guard.lock(tmp_path).__enter__()
      with pytest.raises(ValueError, match=f'is in use by process {child.pid} on'):
        guard.refuse(tmp_path)
    finally:
      child.kill()
  assert (tmp_path / 'lock').exists()
  guard.refuse(tmp_path)
  with guard.lock(tmp_path):
    with (
      pytest.raises(ValueError, match=f'by process {os.getpid()}'),
      guard.lock(str(tmp_path)),
    ):  # not twice here either
      pass
    assert (tmp_path / 'lock').read_text() == f'process {os.getpid()} on {os.uname().nodename}'
  guard.refuse(tmp_path)
  assert not list(tmp_path.iterdir())
  with guard.lock(None):
    pass


def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch, capsys):
  def flock(descriptor, how):
    raise OSError(guard.errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(guard.fcntl, 'flock', flock)
  with guard.lock(tmp_path):
    pass
  assert capsys.readouterr().err.count('has no locks') == 1


# -- watchdog


def test_the_watchdog_shows_phase_and_stacks_of_what_hangs_and_of_nothing_else():
  body = """
with guard.watchdog(0.4):
  for _ in range(10): guard.at('step', 3); time.sleep(0.1)
  guard.at('data', 4); ready(); time.sleep(1.2)
"""
  code, _, err, _ = ended(body.strip())
  assert code == 0 and err.count('no progress for') == 1 and '(phase data, step 4); all threads:' in err
  assert 'in work' in err and 'in _watch' in err
  assert ended('with guard.watchdog(None):\n  ready(); time.sleep(0.1)')[:3] == (0, '', '')


def test_the_watchdog_shows_stacks_where_the_interpreter_is_locked():
  code, _, err, _ = ended('with guard.watchdog(0.3):\n  ready(); ctypes.PyDLL(None).usleep(1_500_000)')
  assert code == 0 and err.startswith('Timeout (0:00:00.6') and 'in work' in err
