"""A run at an address is the run that it would be in a folder, bit for bit, however it ends."""

import json
import os
import re
import socket
import subprocess
import sys

import bucket as fake
import numpy as np
import pytest

import vit_jax
from vit_jax import cli, diskfull, guard, lease, mirror, state, storage, watch
from vit_jax import data as data_lib

TINY = dict(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2)
RUN = 'gs://b/run'


def pictures(n, seed):
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 5, n)
  image = (rng.normal(size=(n, 8, 8, 3)) * 20 + label[:, None, None, None] * 40 + 30).clip(0, 255).astype(np.uint8)
  return image, label


def trained(workdir, steps=6, **options):
  """The model after a small run."""
  model = vit_jax.create_model('vit_tiny_patch16_224', num_classes=5, **TINY)
  data = data_lib.from_arrays(pictures(50, 0), pictures(21, 1))
  every = dict(optim=dict(lr=3e-3, ema=0.9), save=dict(every=2), eval_every=4, log_every=1, batch=16)
  return vit_jax.fit(model, data, steps=steps, workdir=workdir, **every | options).model


def fit(workdir, **options):
  """The weights after it, as {path: array}."""
  flat = state.flatten(state.split(trained(workdir, **options))[1])
  return {path: np.asarray(leaf) for path, leaf in flat.items()}


def same(one, two):
  assert one.keys() == two.keys()
  for path in one:
    np.testing.assert_array_equal(one[path], two[path])


def numbers(text):
  """What the lines of a metrics.jsonl say of a run, without times."""
  rows = [json.loads(line) for line in text.splitlines()]
  keep = ('step', 'split', 'loss', 'lr', 'grad_norm', 'top1')
  return [{key: row[key] for key in keep if key in row} for row in rows if 'resumed' not in row]


@pytest.fixture(scope='module')
def local(tmp_path_factory):
  """(the weights, the lines of metrics.jsonl, the names of files) of the run in a folder."""
  folder = tmp_path_factory.mktemp('local')
  return fit(folder), numbers((folder / 'metrics.jsonl').read_text()), {one.name for one in folder.iterdir()}


def test_a_run_at_an_address_is_that_of_a_folder(bucket, local, tmp_path):
  same(fit(RUN), local[0])
  there = bucket.objects
  assert numbers(there[f'{RUN}/metrics.jsonl'].decode()) == local[1]
  assert {name.split('/')[4] for name in there} == local[2], 'and no lock is left'
  assert [name for name in there if name.startswith(f'{RUN}/tensorboard/')]
  left = [one.name for one in (tmp_path / 'cache/remote').rglob('*') if one.is_file()]
  assert left == ['lock'], 'what it worked in is gone'
  same(fit(RUN), local[0])  # it is finished
  assert bucket.objects == there


def test_a_killed_run_goes_on_bit_for_bit(bucket, local, capsys):
  snapshots = []  # what lay there when a process might have died

  def note(what, path):
    if what == 'rm' and '2.removing' in path:
      snapshots.append(bucket.objects)

  bucket.fail = note
  fit(RUN)
  bucket.fail = lambda what, path: None
  bucket.fs.store.clear()
  for name, data in snapshots[0].items():
    bucket.put(name, data)
  for name in [name for name in bucket.objects if '/checkpoints/6/' in name]:  # and before that had been sent
    bucket.fs.rm(name)
  bucket.age(f'{RUN}/LOCK.json', 500)  # of a process that is gone
  capsys.readouterr()
  same(fit(RUN), local[0])
  assert 'taken over from process' in capsys.readouterr().err
  assert numbers(bucket.objects[f'{RUN}/metrics.jsonl'].decode()) == local[1]
  assert not [name for name in bucket.objects if '/2/' in name or 'removing' in name]


def test_a_run_that_is_stopped_saves_there(bucket, local, monkeypatch):
  at = guard.at

  def stopped(phase, step=None):
    at(phase, step)
    if phase == 'data' and step == 3:
      raise guard.Stopped(15)

  monkeypatch.setattr(guard, 'at', stopped)
  with pytest.raises(guard.Stopped, match='step 3 is saved'):
    fit(RUN)
  assert f'{RUN}/checkpoints/3/manifest.json' in bucket.objects and f'{RUN}/LOCK.json' not in bucket.objects
  assert numbers(bucket.objects[f'{RUN}/metrics.jsonl'].decode()) == local[1][:3]


def test_a_store_that_does_not_take_a_step_ends_the_run_in_one_line(bucket):
  bucket.fail = lambda what, path: OSError('quota exceeded') if what == 'wb' and '/checkpoints/4/' in path else None
  with pytest.raises(guard.Unreachable) as caught:
    fit(RUN)
  assert re.fullmatch(
    r'Checkpoint 4 could not be sent to gs://b/run/checkpoints \(gs://b/run/checkpoints/4/\S* cannot be written: quota '
    r'exceeded\); the steps before it are kept\. Start the same command again; it goes on from step 2\.',
    str(caught.value),
  )
  assert f'{RUN}/checkpoints/2/manifest.json' in bucket.objects


def test_two_runs_do_not_share_an_address(bucket, capsys):
  argv = ['train', '--config=digits', f'--workdir={RUN}']
  with lease.held(storage.path(RUN)):
    assert cli.main(argv) == 2
    with pytest.raises(ValueError, match='gs://b/run is in use by process'):
      fit(RUN)
  assert capsys.readouterr().err.startswith(f'error: gs://b/run is in use by process {os.getpid()} on ')
  assert not bucket.objects


def test_a_run_that_was_taken_over_ends_and_writes_nothing_more(bucket, monkeypatch):
  monkeypatch.setattr(lease, 'BEAT', 0.01)
  train, before = watch.Watch.train, {}

  def taken(self, step, values):
    train(self, step, values)
    if step == 3:
      said, end = lease._said(storage.path(RUN) / lease.NAME) | {'owner': 'x', 'process': 9}, 400
      while not guard.NOW.failure and (end := end - 1):  # again, where a beat came in between
        bucket.put(f'{RUN}/LOCK.json', json.dumps(said).encode())
        lease.time.sleep(0.05)
      before.update(bucket.objects)

  monkeypatch.setattr(watch.Watch, 'train', taken)
  with pytest.raises(guard.Failed, match='gs://b/run was taken over by process 9 on .*: this run ends, and writes'):
    fit(RUN, save=dict(every=100))
  assert bucket.objects == before


def test_where_nothing_can_be_written_the_command_ends_before_it_reads_data(bucket, capsys):
  bucket.fail = lambda what, path: PermissionError('storage.objects.create denied') if what == 'wb' else None
  assert cli.main(['train', '--config=digits', f'--workdir={RUN}']) in (1, 2)
  assert 'cannot be written: storage.objects.create denied' in capsys.readouterr().err
  with pytest.raises(ValueError, match=f'--workdir={RUN}: .*denied'):
    watch.check_workdir(RUN)


def test_a_folder_without_room_for_a_step_is_told_first(bucket, monkeypatch):
  monkeypatch.setattr(diskfull, 'free', lambda folder: 1000)
  with pytest.raises(diskfull.DiskFull, match='written there before it is sent: free some space, or .* VIT_JAX_CACHE'):
    fit(RUN)


def test_what_a_run_writes_is_sent_while_it_runs(bucket, monkeypatch):
  monkeypatch.setattr(mirror, 'SECONDS', 0.01)
  bucket.put(f'{RUN}/metrics.jsonl', b'one\n')
  bucket.put(f'{RUN}/teacher-1.npy', b'large')
  there = lambda name, data: bucket.objects.get(f'{RUN}/{name}') == data
  with mirror.opened(RUN) as opened:
    assert (opened.folder / 'teacher-1.npy').read_bytes() == b'large'
    bucket.asked.clear()
    (opened.folder / 'profile').mkdir()
    (opened.folder / 'profile/trace').write_bytes(b'trace')
    (opened.folder / 'run.json.tmp').write_bytes(b'half')
    for line in ('two', 'three'):
      with (opened.folder / 'metrics.jsonl').open('a') as file:
        file.write(f'{line}\n')
      wanted = (opened.folder / 'metrics.jsonl').read_bytes()
      end = 1000
      while not there('metrics.jsonl', wanted) and (end := end - 1):
        lease.time.sleep(0.01)
      assert end, 'in vain'
  assert there('profile/trace', b'trace') and not [name for name in bucket.objects if 'tmp' in name]
  assert ('wb', f'{RUN}/teacher-1.npy') not in bucket.asked, 'what has not changed is not sent'


PROCESS = """
import sys
import jax
number, port, room, workdir = int(sys.argv[1]), *sys.argv[2:]
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', 2, number)
sys.path.insert(0, TESTS)
import bucket, test_mirror
from vit_jax import lease
lease.SETTLE = 0
with bucket.opened(room):
  for steps in (4, 6):
    test_mirror.trained(workdir, steps=steps, extend=True, mesh=dict(fsdp=2), optim=test_mirror.CONSTANT)
"""
CONSTANT = dict(lr=3e-3, ema=0.9, schedule='constant')


@pytest.mark.slow
def test_two_processes_share_a_run_there(tmp_path, monkeypatch):
  """The same as in a folder that both see; and one process goes on with it."""
  env = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=1', 'VIT_JAX_CACHE': str(tmp_path / 'cache')}
  script = PROCESS.replace('TESTS', repr(os.path.dirname(__file__)))
  for workdir in (RUN, str(tmp_path / 'folder')):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = str(free.getsockname()[1])
    argv = [sys.executable, '-c', script]
    both = [
      subprocess.Popen([*argv, str(i), port, tmp_path / 'b', workdir], env=env, stderr=subprocess.PIPE)
      for i in range(2)
    ]
    said = [one.communicate(timeout=300)[1].decode() for one in both]
    assert [one.returncode for one in both] == [0, 0], said
  there, folder = tmp_path / 'b' / 'b' / 'run', tmp_path / 'folder'
  one, two = (numbers((place / 'metrics.jsonl').read_text()) for place in (there, folder))
  assert one == two and one[-1]['step'] == 6
  assert {one.name for one in there.iterdir()} == {one.name for one in folder.iterdir()}
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'own'))
  monkeypatch.setattr(lease, 'SETTLE', 0)
  storage._room.cache_clear()
  with fake.opened(tmp_path / 'b'):
    same(*(fit(workdir, steps=8, extend=True, optim=CONSTANT, mesh=dict(fsdp=2)) for workdir in (RUN, folder)))
  storage._room.cache_clear()
