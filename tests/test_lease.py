"""The lock of a folder at an address: young ones refuse, old ones are taken over, and who has lost one ends."""

import json
import os
import time

import pytest

from vit_jax import guard, lease, storage

LOCK = 'gs://b/run/LOCK.json'
OTHER = {'owner': 'other', 'process': 7, 'host': 'far', 'machine': 'another', 'time': 0.0}


@pytest.fixture
def there(bucket):
  """The folder that is locked."""
  return storage.path('gs://b/run')


def put(bucket, age=0, **said):
  bucket.put(LOCK, json.dumps(OTHER | {'time': time.time() - age} | said).encode())
  bucket.age(LOCK, age)


def test_it_is_held_and_let_go_of(bucket, there):
  with lease.held(there) as held:
    said = json.loads(bucket.objects[LOCK])
    assert said['process'] == os.getpid() and not held.lost
    held.check()
    with pytest.raises(ValueError, match=rf'gs://b/run is in use by process {os.getpid()} on .*; wait for it to end'):
      with lease.held(there):
        pass
    with pytest.raises(ValueError, match='is in use'):
      lease.refuse(there)
    assert json.loads(bucket.objects[LOCK]) == said
  assert not bucket.objects, 'neither the lock nor what was tried is left'
  lease.refuse(there)


def test_a_young_one_refuses_and_an_old_one_is_taken_over_with_a_note(bucket, there, capsys):
  put(bucket, age=lease.STALE - 20)
  with pytest.raises(ValueError, match=r'in use by process 7 on far; .* killed counts as gone after 120 s'):
    lease.refuse(there)
  put(bucket, age=lease.STALE + 20)
  lease.refuse(there)
  with lease.held(there):
    assert json.loads(bucket.objects[LOCK])['process'] == os.getpid()
  assert 'gs://b/run: taken over from process 7 on far, which gave its last sign 140 s ago' in capsys.readouterr().err


@pytest.mark.parametrize('ahead', [-3600, 3600])
def test_the_stores_clock_counts_and_that_of_another_machine_does_not(bucket, there, ahead):
  put(bucket, age=5)
  bucket.put(LOCK, json.dumps(OTHER | {'time': time.time() + ahead}).encode())
  with pytest.raises(ValueError, match='in use'):
    lease.refuse(there)
  put(bucket, age=500)
  lease.refuse(there)


def test_where_the_store_tells_no_time_that_of_the_holder_counts(bucket, there):
  bucket.clock = None
  put(bucket, age=5)
  with pytest.raises(ValueError, match='in use'):
    lease.refuse(there)
  put(bucket, age=500)
  lease.refuse(there)


def test_a_process_of_this_machine_that_is_gone_holds_nothing(bucket, there, capsys):
  machine = lease._machine()
  assert machine
  put(bucket, process=2**22 + 1, machine=machine)
  lease.refuse(there)
  put(bucket, process=os.getpid(), machine=machine)  # a container, whose processes have the same numbers each time
  lease.refuse(there)
  put(bucket, process=os.getppid(), machine=machine)
  with pytest.raises(ValueError, match='in use'):
    lease.refuse(there)


def test_a_damaged_one_refuses_while_it_is_young(bucket, there):
  for text in (b'', b'{}', b'[1]', b'{"time": "x"}', b'\xff'):
    bucket.put(LOCK, text)
    with pytest.raises(ValueError, match='in use by process'):
      lease.refuse(there)
    bucket.age(LOCK, 500)
    lease.refuse(there)


def test_of_two_that_begin_at_once_the_last_to_write_has_it(bucket, there, monkeypatch):
  monkeypatch.setattr(lease.time, 'sleep', lambda seconds: put(bucket))  # while this one waits to look again
  with pytest.raises(ValueError, match='in use by process 7 on far'), lease.held(there):
    pass
  assert json.loads(bucket.objects[LOCK])['owner'] == 'other'


def wait_for(condition):
  end = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < end, 'in vain'
    time.sleep(0.01)


def test_it_beats_and_comes_again_when_it_was_removed(bucket, there, monkeypatch):
  monkeypatch.setattr(lease, 'BEAT', 0.01)
  with lease.held(there):
    first = bucket.objects[LOCK]
    wait_for(lambda: bucket.objects.get(LOCK, first) != first)
    bucket.fail = lambda what, path: OSError('away') if 'LOCK' in path else None
    time.sleep(0.05)
    bucket.fail = lambda what, path: None
    bucket.fs.rm(LOCK)
    wait_for(lambda: LOCK in bucket.objects)


def test_who_has_lost_it_is_asked_to_end_and_leaves_it_alone(bucket, there, monkeypatch):
  monkeypatch.setattr(lease, 'BEAT', 0.01)
  with guard.run(), lease.held(there) as held:
    assert guard.requested() == 0
    put(bucket)
    wait_for(lambda: held.lost)
    for ask in (held.check, guard.requested):
      with pytest.raises(guard.Failed, match=r'gs://b/run was taken over by process 7 on far: this run ends'):
        ask()
  assert json.loads(bucket.objects[LOCK])['owner'] == 'other'
  with guard.run():
    assert guard.requested() == 0, 'the next run has not lost it'


def test_where_nothing_can_be_written_nothing_is_held(bucket, there):
  bucket.fail = lambda what, path: PermissionError('read only') if what == 'wb' else None
  with pytest.raises(guard.Unreachable, match='cannot be written: read only'), lease.held(there):
    pass
