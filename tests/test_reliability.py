"""Samples of the proofs in tests/reliability: a run that is killed and stopped ends as one that nobody disturbed."""

import pathlib
import signal
import sys

import pytest

HERE = pathlib.Path(__file__).parent / 'reliability'
FLAGS = {'total_steps': 200, 'log_every': 1, 'save.every': 10, 'eval_every': 50, 'deterministic': True}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  monkeypatch.syspath_prepend(str(HERE))
  yield
  for name in ('lives', 'nonfinite'):
    sys.modules.pop(name, None)


def test_killed_and_stopped_a_run_ends_as_one_that_nobody_disturbed(tmp_path):
  """kill -9, then SIGTERM, then to the end: metrics.jsonl is the same but for times, and so are all arrays."""
  import lives

  from vit_jax import checkpoint, state

  start = lambda: lives.Life(tmp_path / 'run', 'digits', FLAGS, cache=tmp_path / 'cache')
  logged = lambda: max(lives.losses(tmp_path / 'run')[0], default=0)
  reference = lives.uninterrupted(tmp_path / 'reference', 'digits', FLAGS, cache=tmp_path / 'cache')
  assert len(reference) == 200
  life = start()
  assert life.until(lambda: logged() >= 25) and life.send(signal.SIGKILL)
  life.ended()
  killed_at = logged()
  life = start()
  assert life.until(lambda: len(lives.losses(tmp_path / 'run')[1]) and logged() >= 60) and life.send(signal.SIGTERM)
  last = logged()
  assert life.ended() == 143
  stopped_at = max(int(one.name) for one in (tmp_path / 'run' / 'checkpoints').iterdir() if one.name.isdecimal())
  assert (
    life.stderr().splitlines()[-1].startswith(f'stopped by SIGTERM: step {stopped_at} is saved') and stopped_at >= last
  )
  life = start()
  assert life.ended() == 0, life.stderr()
  found, resumed, evaluations = lives.losses(tmp_path / 'run')
  assert found == reference and evaluations == 4
  assert resumed[1] == stopped_at and 0 <= killed_at - resumed[0] <= 2 * FLAGS['save.every']
  assert lives.rest_of(tmp_path / 'run') == lives.rest_of(tmp_path / 'reference')
  ours, theirs = (state.flatten(checkpoint.read(tmp_path / name / 'checkpoints' / '200', ('params', 'opt')))
                  for name in ('run', 'reference'))  # fmt: skip
  assert ours.keys() == theirs.keys() and not [name for name in ours if (ours[name] != theirs[name]).any()]


def test_a_number_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
  import nonfinite

  row = nonfinite.inject(0, 0, tmp_path)
  assert row['named'] and row['finite'] and row['went on'], row
