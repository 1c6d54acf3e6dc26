"""Steps at an address: sent whole, brought verified, and never lost, at whatever request a process dies."""

import json

import numpy as np
import pytest

from vit_jax import checkpoint, guard, storage
from vit_jax import checkpoint_remote as remote
from vit_jax import checkpoint_steps as folders

RUN = 'gs://b/run/checkpoints'


def steps(tmp_path, name='here'):
  return remote.Steps(storage.path(RUN), folders.place(tmp_path / name))


def opened(tmp_path, name='here', **settings):
  return checkpoint.Checkpoints(tmp_path / name, elsewhere=steps(tmp_path, name), **settings)


def arrays(step):
  return {'params': {'w': np.full(8, step, np.float32)}, 'opt': {'m': np.arange(4) + step}, 'rest': {}}


def save(kept, step, score=None):
  kept.save(step, arrays(step), {'step': step, 'metrics': None}, score)
  kept.wait()


def whole(tmp_path, name):
  """{step: its arrays} of what a new process counts on, after it has read all of it."""
  kept = opened(tmp_path, name)
  found = {step: kept.restore(step, arrays(0)) for step in kept.steps()}
  kept.close()
  return found


def check(found):
  for step, trees in found.items():
    np.testing.assert_array_equal(trees['params']['w'], arrays(step)['params']['w'])
    np.testing.assert_array_equal(trees['opt']['m'], arrays(step)['opt']['m'])


def names(bucket):
  """The first names below checkpoints/."""
  return {name.split('/')[5] for name in bucket.objects if name.startswith(f'{RUN}/')}


def test_steps_are_kept_there_and_little_of_them_here(bucket, tmp_path):
  kept = opened(tmp_path, last=2, best=1)
  for step, score in ((2, 0.9), (4, None), (6, 0.1), (8, None)):
    save(kept, step, score)
  assert kept.steps() == [2, 6, 8] and kept.best() == 2 and kept.info(2)['step'] == 2
  assert names(bucket) == {'2', '6', '8'}
  here = tmp_path / 'here' / 'checkpoints'
  assert {one.name for one in (here / '6').iterdir()} == {'info', 'manifest.json'}
  check({step: kept.restore(step, arrays(0)) for step in kept.steps()})
  kept.close()
  found = whole(tmp_path, 'new')
  assert sorted(found) == [2, 6, 8]
  check(found)


def test_a_folder_that_is_copied_from_there_is_a_runs_and_the_other_way_round(bucket, tmp_path):
  kept = opened(tmp_path)
  save(kept, 3, 0.5)
  kept.close()
  for name, data in bucket.objects.items():
    local = tmp_path / 'copied' / name.removeprefix('gs://b/run/')
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_bytes(data)
  local = checkpoint.Checkpoints(tmp_path / 'copied')
  assert local.steps() == [3] and local.best() == 3
  local.save(5, arrays(5), {'step': 5, 'metrics': None})
  local.close()
  (tmp_path / 'copied/checkpoints/7.saving').mkdir()
  (tmp_path / 'copied/checkpoints/7.saving/a').write_bytes(b'1')
  bucket.fs.rm('gs://b/run', recursive=True)
  for file in (tmp_path / 'copied').rglob('*'):
    if file.is_file():
      bucket.put(f'gs://b/run/{file.relative_to(tmp_path / "copied")}', file.read_bytes())
  found = whole(tmp_path, 'new')
  assert sorted(found) == [3, 5] and names(bucket) == {'3', '5'}
  check(found)


def test_an_evaluation_may_come_after_the_save(bucket, tmp_path):
  kept = opened(tmp_path)
  save(kept, 2)
  kept.evaluated(2, {'top1': 0.5}, 0.5)
  assert kept.best() == 2
  kept.close()
  kept = opened(tmp_path, 'new')
  assert kept.best() == 2 and kept.info(2)['metrics'] == {'top1': 0.5}
  check({2: kept.restore(2, arrays(0))})
  kept.close()


def test_whenever_a_process_dies_what_had_been_saved_is_there(bucket, tmp_path):
  """After every single request that changes something, a new process finds the steps that counted."""
  seen = []

  def note(what, path):
    if what in ('wb', 'rm'):
      seen.append((bucket.objects, done[-1]))

  kept, done = opened(tmp_path, last=1, best=0), [None]
  bucket.fail = note
  for step in (2, 4):
    save(kept, step)
    done.append(step)
  bucket.fail = lambda what, path: None
  kept.close()
  distinct = [(there, least) for (there, least), (after, _) in zip(seen, [*seen[1:], (None, None)]) if there != after]
  assert len(distinct) > 40
  for number, (there, least) in enumerate(distinct):
    bucket.fs.store.clear()
    for name, data in there.items():
      bucket.put(name, data)
    found = opened(tmp_path, f'new{number}')
    latest = found.latest()
    assert (latest or 0) >= (least or 0), number
    if latest and number % 10 == 0:
      check({latest: found.restore(latest, arrays(0))})
    found.close()
    assert names(bucket) == set(map(str, found.steps())), 'what was left of a killed process is gone'


@pytest.mark.parametrize('match', ['4/opt', '4/manifest.json', '4.saving'])
def test_a_write_that_fails_is_one_line_and_loses_nothing(bucket, tmp_path, match):
  kept = opened(tmp_path)
  save(kept, 2)
  bucket.fail = lambda what, path: OSError('quota exceeded') if what == 'wb' and match in path else None
  kept.save(4, arrays(4), {'step': 4, 'metrics': None})
  with pytest.raises(guard.Unreachable, match=r'^Checkpoint 4 could not be sent .*quota exceeded.* on from step 2\.$'):
    kept.wait()
  bucket.fail = lambda what, path: None
  kept.close()
  found = whole(tmp_path, 'new')
  assert sorted(found) == [2] and names(bucket) == {'2'}
  check(found)


DAMAGES = {
  'a flipped bit': lambda name, data: {name: data[:20] + bytes([data[20] ^ 1]) + data[21:]},
  'cut': lambda name, data: {name: data[:-1]},
  'gone': lambda name, data: {name: None},
  'more': lambda name, data: {f'{name}.new': data},
}


@pytest.mark.parametrize(
  ('how', 'where'),
  [('a flipped bit', 'params/'), ('gone', 'manifest.json'), ('cut', 'info/'), ('gone', 'opt/'), ('more', 'params/')],
)
def test_a_damaged_step_is_named_moved_aside_and_passed_over(bucket, tmp_path, capsys, how, where):
  kept = opened(tmp_path)
  for step in (2, 4):
    save(kept, step)
  kept.close()
  name = max((len(data), one) for one, data in bucket.objects.items() if one.startswith(f'{RUN}/4/{where}'))[1]
  before = {one for one in bucket.objects if one.startswith(f'{RUN}/4/')}
  for one, data in DAMAGES[how](name, bucket.objects[name]).items():
    bucket.fs.rm(one) if data is None else bucket.put(one, data)
  found = whole(tmp_path, 'new')
  assert sorted(found) == [2]
  check(found)
  said = capsys.readouterr().err
  assert 'checkpoint 4 is damaged (' in said and '): using 2' in said and f'moved to {RUN}/4.damaged-' in said
  [aside] = names(bucket) - {'2'}
  assert len([one for one in bucket.objects if aside in one]) in (len(before) - 1, len(before), len(before) + 1)
  kept = opened(tmp_path, 'again')
  save(kept, 4)
  kept.close()
  assert sorted(whole(tmp_path, 'last')) == [2, 4]


def test_a_manifest_cannot_name_what_lies_elsewhere(bucket, tmp_path):
  kept = opened(tmp_path)
  save(kept, 2)
  kept.close()
  manifest = f'{RUN}/2/manifest.json'
  found = remote.seal.said(bucket.objects[manifest])
  for bad in ('../../../evil', 'a/../../../../evil', '/evil'):
    said = {**found, 'files': {**found['files'], bad: [1, '0']}}
    bucket.put(manifest, remote.seal._text(said))
    listed = {*found['files'], 'manifest.json', bad}
    with pytest.raises(ValueError, match='is no name of a file'):
      remote.seal.check_names(said, '2', listed)
    assert steps(tmp_path, 'new').bring(2), 'not believed'
  assert not list(tmp_path.rglob('evil'))


def test_who_may_not_write_any_more_seals_and_removes_nothing(bucket, tmp_path):
  def gone():
    raise guard.Failed('taken over')

  kept = opened(tmp_path, last=1, best=0)
  save(kept, 2)
  kept._steps._check = gone
  kept.save(4, arrays(4), {'step': 4, 'metrics': None})
  with pytest.raises(guard.Failed, match='taken over'):
    kept.wait()
  with pytest.raises(guard.Failed, match='taken over'):
    kept.evaluated(2, {}, 1.0)
  kept.close()
  assert f'{RUN}/4/manifest.json' not in bucket.objects and f'{RUN}/2/manifest.json' in bucket.objects
  assert json.loads(bucket.objects[f'{RUN}/2/manifest.json'])['note'] == {}
