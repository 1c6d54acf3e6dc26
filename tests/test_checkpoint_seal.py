"""A folder is whole, or checkpoint_seal.py says which file is not, in every way that one can differ."""

import json
import os
import pathlib
import re

import pytest

from vit_jax import checkpoint_seal as seal

FILES = {'a': b'alpha', 'deep/b': bytes(100), 'deep/er/c': b'', 'info/metadata': b'{}'}


@pytest.fixture
def folder(tmp_path):
  """A sealed folder with the name 40."""
  for name, content in FILES.items():
    (tmp_path / '40' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / '40' / name).write_bytes(content)
  seal.write(tmp_path / '40', '40')
  return tmp_path / '40'


def replace(path, content):
  path.unlink()
  path.write_bytes(content)


DAMAGES = {
  'a: missing': lambda folder: (folder / 'a').unlink(),
  'a: is 4 bytes of 5': lambda folder: os.truncate(folder / 'a', 4),
  'a: is 6 bytes of 5': lambda folder: (folder / 'a').write_bytes(b'alpha!'),
  'a: other content': lambda folder: (folder / 'a').write_bytes(b'alphb'),
  'deep/x: unexpected file': lambda folder: (folder / 'deep' / 'x').touch(),
  'manifest.json.tmp: unexpected file': lambda folder: (folder / 'manifest.json.tmp').touch(),
  'deep/new: unexpected folder': lambda folder: (folder / 'deep' / 'new' / 'er').mkdir(parents=True),
  'a: is no plain file': lambda folder: ((folder / 'a').unlink(), (folder / 'a').symlink_to('deep/b')),
  'deep/b: is no plain file': lambda folder: ((folder / 'deep/b').unlink(), os.mkfifo(folder / 'deep/b')),
  'deep/b: missing': lambda folder: ((folder / 'deep/b').unlink(), (folder / 'deep/b').mkdir()),
  seal.CUT_SHORT: lambda folder: (folder / 'manifest.json').unlink(),
  'manifest.json: is no plain file': lambda folder: (
    (folder / seal.MANIFEST).unlink(),
    (folder / seal.MANIFEST).mkdir(),
  ),
  'manifest.json: other content': lambda folder: os.truncate(folder / 'manifest.json', 40),
  'manifest.json: is that of 40': lambda folder: folder.rename(folder.with_name('50')),
}


def test_what_was_sealed_is_whole_and_says_what_it_is(folder):
  said = json.loads((folder / 'manifest.json').read_text())
  assert said['name'] == '40' and said['note'] == {}
  assert {path: size for path, (size, _) in said['files'].items()} == {name: len(FILES[name]) for name in FILES}
  assert said['files']['a'][1] == '8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8'  # sha256sum's
  assert seal.fault(folder) is None and seal.fault(folder, ()) is None
  assert [one.name for one in folder.parent.iterdir()] == ['40']


@pytest.mark.parametrize('fault', DAMAGES)
def test_the_first_fault_is_named(folder, fault):
  DAMAGES[fault](folder)
  assert seal.fault(folder if folder.exists() else folder.with_name('50')) == fault


def test_every_bit_of_a_manifest_counts(folder):
  path = folder / 'manifest.json'
  sound = path.read_bytes()
  for bit in range(0, 8 * len(sound), 23):  # each bit of a byte, in turn
    changed = bytearray(sound)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    assert seal.fault(folder) == 'manifest.json: other content', bit
  said = {'name': '40', 'files': {}, 'note': {}}
  made_up = [seal._text({**said, **wrong}) for wrong in ({'files': {'a': 5}}, {'files': [1]}, {'note': 1})]
  for changed in (sound + b'\n', sound.replace(b', ', b',', 1), b'', b'[]', b'null', b'[' * 100_000, *made_up):
    path.write_bytes(changed)
    assert seal.fault(folder) == 'manifest.json: other content'


def test_content_is_compared_where_it_is_asked_for_and_sizes_everywhere(folder):
  replace(folder / 'deep' / 'b', bytes(99) + b'x')
  assert seal.fault(folder, ('info',)) is None
  assert seal.fault(folder, ('info', 'deep')) == seal.fault(folder) == 'deep/b: other content'
  replace(folder / 'deep' / 'b', bytes(99))
  assert seal.fault(folder, ('info',)) == 'deep/b: is 99 bytes of 100'


def test_a_file_that_rests_is_hashed_once_and_again_when_it_was_touched(folder, monkeypatch):
  hashed = []
  digest = seal.hashlib.file_digest
  monkeypatch.setattr(seal.hashlib, 'file_digest', lambda file, name: hashed.append(file.name) or digest(file, name))
  assert seal.fault(folder) is None and seal.fault(folder) is None
  assert len(hashed) == 2 * len(FILES)  # younger than a clock's tick, for all that is known
  monkeypatch.setattr(seal, '_RESTS', -1)
  hashed.clear()
  assert seal.fault(folder) is None and seal.fault(folder) is None
  assert len(hashed) == len(FILES)
  info = (folder / 'a').stat()
  (folder / 'a').write_bytes(b'alphb')
  os.utime(folder / 'a', ns=(info.st_atime_ns, info.st_mtime_ns))  # even with its time set back
  assert seal.fault(folder) == 'a: other content'


def test_a_note_is_replaced_as_a_whole(folder, monkeypatch):
  assert seal.note(folder) == {}
  seal.annotate(folder, {'score': 0.5, 'deep': {'x': [1]}})
  seal.annotate(folder, {'score': 0.1 + 0.2})
  assert seal.note(folder) == {'score': 0.1 + 0.2} and seal.fault(folder) is None

  def died(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, 'replace', died)
  with pytest.raises(KeyboardInterrupt):
    seal.annotate(folder, {'score': 9})
  assert seal.note(folder) == {'score': 0.1 + 0.2} and seal.fault(folder) is None
  os.truncate(folder / 'manifest.json', 30)
  with pytest.raises(ValueError, match=re.escape(f'{folder} is damaged (manifest.json: other content)')):
    seal.note(folder)


def test_what_may_not_be_read_is_no_damage_and_what_cannot_be_read_is_one(folder, monkeypatch):
  opened = pathlib.Path.open

  def failing(error):
    def fails(path, *args, **named):
      if path.name == 'a':
        raise error
      return opened(path, *args, **named)

    return fails

  monkeypatch.setattr(pathlib.Path, 'open', failing(OSError(5, 'Input/output error', str(folder / 'a'))))
  assert seal.fault(folder) == 'a: Input/output error'
  monkeypatch.setattr(pathlib.Path, 'open', failing(PermissionError(13, 'Permission denied', str(folder / 'a'))))
  with pytest.raises(PermissionError):
    seal.fault(folder)
