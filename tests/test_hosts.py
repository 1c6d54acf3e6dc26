"""What says that there are several processes; how they end together; two that train what one has begun."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from vit_jax import cli, commands, guard, main
from vit_jax import hosts as module

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def proof(monkeypatch):
  """The module of the proof, tests/reliability/hosts.py."""
  monkeypatch.syspath_prepend(HERE / 'reliability')
  monkeypatch.delitem(sys.modules, 'hosts', raising=False)
  import hosts

  yield hosts
  del sys.modules['hosts']


BY_HAND = {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}
SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'a',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '1',
}
MPI = {'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:2', 'OMPI_COMM_WORLD_SIZE': '2'}
GIVEN = dict(coordinator_address='a:1')
KUBERNETES = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}


@pytest.mark.parametrize(
  ('environment', 'installed', 'arguments'),
  [
    ({}, (), None),
    (
      BY_HAND,
      (),
      dict(coordinator_address='a:1', num_processes=4, process_id=3, cluster_detection_method='deactivate'),
    ),
    (SLURM, (), {}),
    (SLURM | {'SLURM_NTASKS': '1'}, (), None),
    (SLURM | {'JAX_NUM_PROCESSES': '1'}, (), None),
    (SLURM | {'JAX_COORDINATOR_ADDRESS': 'a:1'}, (), GIVEN),
    ({name: SLURM[name] for name in SLURM if name != 'SLURM_STEP_NODELIST'}, (), None),  # sbatch's own shell
    (MPI, (), {}),
    (MPI | {'OMPI_COMM_WORLD_SIZE': '1'}, (), None),
    (KUBERNETES, ('kubernetes',), {}),
    (KUBERNETES, (), None),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, ('kubernetes',), None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '0'}, ('libtpu',), {}),
    ({'TPU_PROCESS_ADDRESSES': 'a:1,b:1'}, ('libtpu',), {}),
    ({'MEGASCALE_NUM_SLICES': '2'}, ('libtpu',), {}),
    ({'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_SKIP_MDS_QUERY': '1'}, ('libtpu',), None),
    ({}, ('libtpu',), {}),  # jax finds out
  ],
  ids=str,
)
def test_what_an_environment_says(environment, installed, arguments, monkeypatch):
  monkeypatch.setattr(module.importlib.util, 'find_spec', lambda name: 'there' if name in installed else None)
  assert module.told(environment) == arguments


@pytest.mark.parametrize(
  ('environment', 'said'),
  [
    ({'JAX_PROCESS_ID': '0'}, 'JAX_PROCESS_ID is set, and JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES is not'),
    (BY_HAND | {'JAX_PROCESS_ID': '4'}, 'JAX_PROCESS_ID=4 is none of JAX_NUM_PROCESSES=4; they are counted from 0'),
    (BY_HAND | {'JAX_PROCESS_ID': '-1'}, "JAX_PROCESS_ID is '-1'; a number is wanted"),
    (BY_HAND | {'JAX_COORDINATOR_ADDRESS': 'a'}, "JAX_COORDINATOR_ADDRESS is 'a'; HOST:PORT of process 0 is wanted"),
  ],
)
def test_an_environment_that_says_it_in_part_is_refused(environment, said):
  with pytest.raises(ValueError) as caught:
    module.told(environment)
  assert said in str(caught.value) and '\n' not in str(caught.value)


def alone(monkeypatch):
  for name in (*module.NAMES, *SLURM, *MPI, *KUBERNETES, 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'):
    monkeypatch.delenv(name, raising=False)


def test_a_machine_of_its_own_starts_and_imports_nothing(monkeypatch):
  alone(monkeypatch)
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  code = "import sys; from vit_jax import hosts; print(hosts.start(), 'jax' in sys.modules, hosts.PEERS)"
  done = subprocess.run([sys.executable, '-c', code], cwd=HERE.parent, capture_output=True, text=True, check=True)
  assert done.stdout == '1 False []\n'


def test_a_tpu_that_cannot_be_asked_is_one_machine(monkeypatch, capsys):
  import jax

  def nobody(**_):
    raise OSError('Name or service not known')

  alone(monkeypatch)
  monkeypatch.delenv('TPU_SKIP_MDS_QUERY', raising=False)
  monkeypatch.setattr(module.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(jax.distributed, 'initialize', nobody)
  assert module.start() == 1
  assert capsys.readouterr().err == (
    "The TPU's metadata cannot be read (Name or service not known): taken as one machine.\n"
  )
  for name, value in BY_HAND.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(guard.Failed, match='cannot meet: Name or service not known'):
    module.start()


def test_several_processes_need_one_folder(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(module, 'start', lambda: 4)
  assert cli.guarded(main.main, ['--config=digits']) == 2
  assert '4 processes train one run, which needs one folder: give each the same --workdir=DIR.' in (
    capsys.readouterr().err
  )
  assert os.listdir() == []


def test_processes_that_were_given_different_commands_do_not_wait_for_each_other(monkeypatch):
  from jax._src import distributed

  said = {}
  store = types.SimpleNamespace(key_value_set=said.__setitem__, blocking_key_value_get=lambda key, _: said[key])
  monkeypatch.setattr(module, 'PEERS', [None])
  for index in range(3):
    monkeypatch.setattr(distributed, 'global_state', types.SimpleNamespace(process_id=index, client=store))
    if index < 2:
      module.same({'config.batch': 32, 'extend': False})
  with pytest.raises(ValueError, match='process 2 was given config.batch=64, and process 0 32; give all processes the'):
    module.same({'config.batch': 64, 'extend': False})


def test_an_evaluation_is_shared_too(monkeypatch):
  def asked():
    raise guard.Failed('asked')

  monkeypatch.setattr(module, 'start', asked)
  with pytest.raises(guard.Failed, match='asked'):
    commands.evaluate(['--model=nothing', '--data=digits'])


def linked(monkeypatch, count, others, host='127.0.0.1'):
  """The connections that process 0 of so many makes; others: functions of (port, token), run beside it."""
  threads = []

  def published(key, value):
    port, token = value.split()
    threads.extend(threading.Thread(target=other, args=(int(port), token)) for other in others)
    for thread in threads:
      thread.start()

  monkeypatch.setattr(module, 'LINKING', 1)
  client = types.SimpleNamespace(key_value_set=published)
  found = module._connect(
    types.SimpleNamespace(coordinator_address=f'{host}:1', process_id=0, num_processes=count, client=client)
  )
  for thread in threads:
    thread.join()
  return found


def other(index):
  """What process `index` does."""

  def connect(port, token):
    client = types.SimpleNamespace(blocking_key_value_get=lambda *_: f'{port} {token}')
    state = types.SimpleNamespace(coordinator_address='localhost:1', process_id=index, num_processes=3, client=client)
    with module._connect(state)[0] as link:
      link.sendall(f'I am {index}'.encode())

  return connect


def stranger(port, token):
  """Somebody who scans ports."""
  with socket.create_connection(('127.0.0.1', port)) as link:
    link.sendall(b'GET / HTTP/1.1' + bytes(40))


@pytest.mark.parametrize('host', ['127.0.0.1', 'a.name.of.all.interfaces'])
def test_processes_know_each_other_and_send_strangers_away(monkeypatch, capsys, host):
  found = linked(monkeypatch, 3, [stranger, other(2), other(1)], host)
  assert {number: link.recv(6) for number, link in found.items()} == {1: b'I am 1', 2: b'I am 2'}
  assert capsys.readouterr().err == ''
  for link in found.values():
    link.close()


def test_who_cannot_be_connected_is_named_and_left_to_the_heartbeat(monkeypatch, capsys):
  found = linked(monkeypatch, 3, [other(1)])
  assert list(found) == [1]
  assert 'process 0 has no connection of its own to 2 (timed out): that it dies is seen' in capsys.readouterr().err
  found[1].close()


class Left(Exception):
  """In place of the end of a process."""


@pytest.fixture
def links(monkeypatch):
  """(the Peers of process 0 of 3, the other ends of its connections, the codes that it has left with)."""
  codes, pairs = [], [socket.socketpair() for _ in range(2)]

  def leave(code):
    codes.append(code)
    raise Left

  monkeypatch.setattr(module, '_leave', leave)
  monkeypatch.setattr('threading.excepthook', lambda _: None)
  peers = module.Peers({1: pairs[0][0], 2: pairs[1][0]}, 0, 3)
  yield peers, [there for _, there in pairs], codes
  for here, there in pairs:
    here.close()
    there.close()


def wait(codes, count=1):
  until = time.monotonic() + 10
  while len(codes) < count and time.monotonic() < until:
    time.sleep(0.01)
  return codes


def test_the_death_of_one_process_is_the_end_of_all(links, capsys):
  peers, (one, two), codes = links
  two.close()
  assert wait(codes) == [1]
  why = 'process 2 of 3 was killed, or its machine is gone'
  assert one.recv(1000).decode() == f'1 {why}'
  said = capsys.readouterr().err
  assert said.startswith(f'error: {why}; all processes end. The same command') and said.count('\n') == 1


def test_what_one_process_says_of_its_end_is_said_by_all(links, capsys, monkeypatch):
  peers, (one, two), codes = links
  monkeypatch.setattr(module, 'PEERS', [peers])
  with pytest.raises(Left):
    module.failed(2, 'error: a picture is missing.')
  assert two.recv(1000).decode() == '2 process 0 of 3 ended: a picture is missing.'
  one.sendall(b'143 process 1 of 3 ended: stopped by SIGTERM')
  one.close()
  assert wait(codes, 2) == [2, 143]
  assert 'error: process 1 of 3 ended: stopped by SIGTERM; all processes end.' in capsys.readouterr().err


def test_a_process_that_is_done_ends_nobody(links, capsys):
  peers, (one, two), codes = links
  one.sendall(module.DONE)
  one.close()
  peers.done()
  assert two.recv(1000) == module.DONE
  time.sleep(0.2)
  assert codes == [] and capsys.readouterr().err == ''


def test_alone_a_failure_is_no_ones_business():
  module.failed(1, 'error')
  module.settle()


def test_two_processes_go_on_with_what_one_began_and_one_with_theirs(tmp_path, proof, devices, capsys):
  """The sample of tests/reliability/hosts.py: six steps, of which two processes do the last four."""
  flags = proof.flags_of(6, **{'save.every': 2, 'eval_every': 6, 'model.depth': 1})
  words = ['train', '--config=digits', *(f'--config.{key}={value}' for key, value in flags.items())]
  assert cli.main([*words, f'--workdir={tmp_path}/one']) == 0
  expected = proof.begun(tmp_path / 'one', tmp_path / 'two', 2)
  said = proof.done(tmp_path / 'two', flags, processes=2, devices=4)
  assert 'top-1 accuracy' in said[0] and 'written to' in said[0]
  talk = r'step \d|pictures|top-1|written|next:|rror|arning'  # gloo's threads greet there, in one another's lines
  assert re.search(talk, said[0]) and not re.search(talk, said[1])
  found = {step: loss for step, loss in proof.lives.losses(tmp_path / 'two')[0].items() if step > 2}
  assert set(found) == {3, 4, 5, 6} and proof.apart(found, expected) < 1e-5
  ours, each = proof.ids(tmp_path / 'two', 2)
  assert each == {16} and all(len(set(ids)) == 32 for ids in ours.values())
  one, two = (proof.evaluations(tmp_path / name)[6] for name in ('one', 'two'))
  assert two.pop('split') == one.pop('split') and two['examples'] == 360 and two == pytest.approx(one, rel=1e-5)

  proof.begun(tmp_path / 'two', tmp_path / 'again', 4)
  assert cli.main([*words, f'--workdir={tmp_path}/again']) == 0
  again = {step: loss for step, loss in proof.lives.losses(tmp_path / 'again')[0].items() if step > 4}
  assert set(again) == {5, 6} and proof.apart(again, expected) < 1e-5
  record = json.loads((tmp_path / 'again' / 'run.json').read_text())
  assert [one['devices']['processes'] for one in (*record['earlier'], record)] == [1, 2, 1]


def test_the_proof_sees_what_is_wrong(proof):
  killed = dict(what='SIGKILL to 0', codes=[-9, 1], other=1, seconds=0.3, lines=['error'], stopped=[])
  killed |= dict(differing=0, left=0)
  stopped = killed | dict(what='SIGINT to 1', codes=[130, 130], other=130, stopped=2 * ['step 3 is saved'])
  moved = dict(what='sgd, 1 x 8 -> 1 x 2', loss=1e-7, ids=0)
  assert [proof.fault(row) for row in (killed, stopped, moved)] == ['', '', '']
  for row, wrong in [
    (killed, dict(seconds=121)),
    (killed, dict(other=0)),
    (killed, dict(lines=[])),
    (killed, dict(left=1)),
    (stopped, dict(codes=[130, 1])),
    (stopped, dict(stopped=['step 3 is saved', 'step 4 is saved'])),
    (stopped, dict(differing=1)),
    (moved, dict(loss=2e-5)),
    (moved, dict(ids=1)),
  ]:
    assert proof.fault(row | wrong), wrong
  assert proof.apart({1: '1.0', 2: '2.0002'}, {1: '1.0', 2: '2.0'}) == pytest.approx(1e-4)
  assert '3 tries, 0 with a fault' in proof.figure([killed, stopped, moved])


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize('index', [0, 1])
def test_what_befalls_one_of_two_processes_ends_both_and_loses_nothing(tmp_path, proof, number, index):
  row = proof.disturbed(tmp_path, 'run', number, index, 20, 7, 0.1)
  assert not proof.fault(row), row
