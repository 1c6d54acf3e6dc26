"""A file that is replaced is the old one or wholly the new one."""

import os

import pytest

from vit_jax import durable


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
  path = tmp_path / 'a.json'
  path.write_bytes(b'old')
  with durable.replacing(path) as file:
    file.write(b'new')
    file.flush()
    assert path.read_bytes() == b'old' and (tmp_path / 'a.json.tmp').read_bytes() == b'new'
  assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['a.json']


def test_after_an_error_nothing_has_changed(tmp_path):
  path, meanwhile = tmp_path / 'a', tmp_path / 'b'
  path.write_bytes(b'old')
  with pytest.raises(KeyboardInterrupt), durable.replacing(path, meanwhile) as file:
    file.write(b'half')
    assert meanwhile.exists()
    raise KeyboardInterrupt
  assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a']


def test_what_is_synced_must_be_there(tmp_path):
  durable.sync(tmp_path)
  with pytest.raises(FileNotFoundError):
    durable.sync(tmp_path / 'nowhere')
