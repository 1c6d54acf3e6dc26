"""A sample of tests/reliability/untrusted.py: files that mean harm are refused in one line, and nothing of them runs.

Of each case the first use, in most of them the one in Python; the command tries all, also the cases that take long to
write, and watches the process meanwhile.
"""

import pytest
from reliability import malice, untrusted

from vit_jax import download

LONG = (
  '.npz: 20 GB of zeros in 20 MB', '16 GB of black pictures in 16 MB', '.safetensors: a header of 100 MB of objects',
  'parquet: 100 million rows in kilobytes', 'parquet: 2 GB of zeros in kilobytes', 'tar.gz: 4 GiB in 4 MiB',
  'IDX: 4 GiB in 4 MiB', '.npz: bzip2', '.npz: lzma', 'PNG: 481 kB -> 661 MB', 'tar: 600 in each other',
)  # fmt: skip
EVERY = [(name, make) for cases in malice.ROUND.values() for name, make in cases.items()]


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  return untrusted.honest(tmp_path_factory.mktemp('good'))


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(download, 'PAUSE', 0)


@pytest.mark.parametrize('make', [make for name, make in EVERY if name not in LONG],
                         ids=[name for name, _ in EVERY if name not in LONG])  # fmt: skip
def test_it_is_refused(make, good, tmp_path):
  wrong, reasons, _ = untrusted.run(make, tmp_path / 'case', good, some=slice(0, 1))
  assert not wrong and all(reasons), (wrong, reasons)


@pytest.mark.parametrize('name', ['objects in .npz', '.safetensors: a name that moves the cursor', 'a width of NaN'])
def test_commands_say_it_in_one_line(name, good, tmp_path):
  wrong, reasons, _ = untrusted.run(dict(EVERY)[name], tmp_path / 'case', good, some=slice(2, None))
  assert not wrong and len(reasons) == 5 and all(reason.startswith('error: ') for reason in reasons), (wrong, reasons)


def test_there_are_enough():
  assert len(EVERY) >= 150 and set(LONG) <= {name for name, _ in EVERY}


def test_a_payload_that_runs_is_noticed(good, tmp_path):
  """The harness can fail: a config that the user names runs, and what is no refusal is told."""
  wrong, _, _ = untrusted.run(malice.asked_for, tmp_path / 'case', good)
  assert [line for line in wrong if 'sentinel was written' in line]
  wrong, _, _ = untrusted.run(lambda room: [['list', 'models', 'vit_tiny*']], tmp_path / 'case', good)
  assert 'used' in wrong[0]
