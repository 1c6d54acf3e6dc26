"""What lies at an address: whole objects, names, one line for what fails, copies that end with the process."""

import os
import subprocess
import sys

import pytest

from vit_jax import cli, diskfull, guard, storage


def test_which_paths_are_addresses(tmp_path):
  for word in ('gs://b/run', 's3://b', 'az://b/c', 'my+store.2://b'):
    assert storage.is_remote(word)
  for word in ('runs/gs', '/a://b', 'C:/a', 'hf_hub:a/b', 'tfds:mnist', '~/a', '', tmp_path):
    assert not storage.is_remote(word)
  assert storage.path('~/a').is_absolute() and storage.path(tmp_path) == tmp_path
  assert os.fspath(storage.path('gs://b/run/') / 'a') == 'gs://b/run/a'


def test_objects_are_written_whole_and_names_are_what_lies_there(bucket):
  there = storage.path('gs://b/run')
  assert storage.entries(there) == {} and storage.files(there) == [] and not storage.exists(there)
  for name in ('a', 'c/d/e', 'c/f'):
    storage.write(there / name, name.encode())
  storage.write(there / 'a', b'new')
  assert bucket.objects == {'gs://b/run/a': b'new', 'gs://b/run/c/d/e': b'c/d/e', 'gs://b/run/c/f': b'c/f'}
  assert storage.entries(there) == {'a': False, 'c': True} and storage.files(there) == ['a', 'c/d/e', 'c/f']
  assert storage.read(there / 'a') == b'new' and storage.read(there / 'a', 2) == b'ne'
  assert storage.stat(there / 'a')[0] == 3 and storage.clock(there) > 1e9
  storage.copy(there / 'a', there / 'g/h')
  storage.remove_folder(there / 'c')
  storage.remove(there / 'a')
  for _ in range(2):  # what is gone is gone
    storage.remove_folder(there / 'c')
    storage.remove(there / 'a')
  assert bucket.objects == {'gs://b/run/g/h': b'new'}
  with pytest.raises(FileNotFoundError):
    storage.read(there / 'a')


def test_files_go_up_and_down(bucket, tmp_path):
  (tmp_path / 'one').write_bytes(b'0123456789' * 10)
  storage.upload(tmp_path / 'one', storage.path('gs://b/one'))
  size, digest = storage.download(storage.path('gs://b/one'), tmp_path / 'new' / 'two')
  assert size == 100 and digest.startswith('9cfe7faff7') and (tmp_path / 'new/two').read_bytes() == b'0123456789' * 10
  with pytest.raises(FileNotFoundError):
    storage.download(storage.path('gs://b/none'), tmp_path / 'three')
  assert not list(tmp_path.glob('three*')) and os.listdir(tmp_path / 'new') == ['two']


def test_what_fails_is_tried_again_and_is_then_one_line(bucket, monkeypatch):
  monkeypatch.setattr(storage, 'WAITS', (0, 0))
  there, failures = storage.path('gs://b/a'), []

  def flaky(what, path):
    failures.append(what)
    return OSError('the network\nis gone') if len(failures) < limit else None

  bucket.fail, limit = flaky, 3
  storage.write(there, b'1')
  assert failures[-1] == 'wb'
  failures, limit = [], 99
  with pytest.raises(guard.Unreachable, match=r'^gs://b/a cannot be read: the network is gone$'):
    storage.read(there)
  assert len(failures) == 3
  bucket.fail = lambda what, path: PermissionError('no')
  bucket.asked.clear()
  for call in (storage.entries, storage.stat, storage.exists, lambda path: storage.write(path, b'')):
    with pytest.raises(guard.Unreachable, match='gs://b/a.* cannot be .*: no'):
      call(there)
  assert len(bucket.asked) == 4, 'a permission does not come by asking again'


def test_what_is_missing_is_said_with_what_to_install(monkeypatch):
  with pytest.raises(ValueError, match=r'^ftq://b: there is no ftq://; wanted a local path, gs://, s3://'):
    storage.path('ftq://b')
  for scheme, library in {'gs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs'}.items():
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf'^{scheme}://b/a needs a library that is not here .*: pip install'):
      storage.exists(storage.path(f'{scheme}://b/a'))


def test_a_line_for_an_address_without_its_library(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  assert cli.main(['train', '--workdir=gs://b/run']) == 2
  assert cli.main(['evaluate', '--model=gs://b/run', '--data=digits']) == 2
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 2 and all(line.startswith('error: gs://b/run') and 'vit_jax[gcs]' in line for line in said), said


def test_a_copy_is_kept_while_it_is_what_lies_there(bucket):
  there = storage.path('gs://b/d/one.npz')
  with pytest.raises(FileNotFoundError, match='There is no gs://b/d/one.npz'):
    storage.fetched(there)
  bucket.put('gs://b/d/one.npz', b'old')
  first = storage.fetched(there)
  assert first.name == 'one.npz' and first.read_bytes() == b'old'
  bucket.asked.clear()
  assert storage.fetched(there) == first and [what for what, _ in bucket.asked] == ['info']
  bucket.put('gs://b/d/one.npz', b'new')
  bucket.age('gs://b/d/one.npz', 100)
  assert storage.fetched(there).read_bytes() == b'new'
  assert storage.shown(f'{first} is damaged') == 'gs://b/d/one.npz is damaged'
  bucket.clock = None  # a store that does not tell when
  assert storage.fetched(there).read_bytes() == b'new'
  bucket.put('gs://b/d/one.npz', b'two')
  assert storage.fetched(there).read_bytes() == b'two'


def test_a_copy_without_room_is_one_line(bucket, monkeypatch):
  bucket.put('gs://b/a', b'12')
  monkeypatch.setattr(diskfull, 'free', lambda folder: 1)
  with pytest.raises(guard.Failed, match=r'no room .*0.002 kB, and 0.001 kB are free.*VIT_JAX_CACHE'):
    storage.fetched(storage.path('gs://b/a'))


def test_copies_of_a_process_end_with_it_or_with_the_next_one(tmp_path):
  script = 'import os; from vit_jax import storage; print(storage.place("gs://b/run")); {}'
  place = lambda ending: subprocess.run(
    [sys.executable, '-c', script.format(ending)], env=os.environ | {'VIT_JAX_CACHE': str(tmp_path)},
    capture_output=True, text=True,
  ).stdout.strip()  # fmt: skip
  orderly = place('')
  assert orderly.endswith('/run') and not os.path.exists(orderly)
  killed = place('os.kill(os.getpid(), 9)')
  assert os.path.isdir(killed)
  place('')
  assert not os.path.exists(killed) and os.listdir(tmp_path / 'remote') == []


def test_nothing_is_asked_or_imported_for_local_paths():
  code = 'import sys; from vit_jax import storage; storage.path("a"); storage.fetched("b"); storage.is_remote("c")\n'
  code += 'assert not {"etils", "fsspec", "jax", "numpy"} & set(sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
  'argv',
  [
    ['export', '--model=digits', '--to=timm', 'gs://b/out'],
    ['prepare', 'digits', 'gs://b/out', '--short_side=8'],
    ['check', 'gs://b/data'],
    ['selftrain', '--model=m', '--data=digits', 'tests/chelsea.jpg', '--workdir=gs://b/out'],
    ['augment', 'tests/chelsea.jpg', 'gs://b/out'],
    ['augment', 'gs://b/chelsea.jpg', 'out'],
    ['hub', 'pull', 'org/name', 'gs://b/out'],
  ],
  ids=lambda argv: argv[0],
)
def test_where_an_address_will_not_do_one_line_says_so(argv, capsys, tmp_path):
  assert cli.main(argv) == 2
  assert 'name a local place, and copy it' in capsys.readouterr().err
