"""checkpoint.py: what was saved comes back bit for bit, on any devices, and nothing half-written is ever seen."""

import json
import logging
import os
import pathlib
import re
import resource
import shutil
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from vit_jax import checkpoint, cli, diskfull, durable, pretrained
from vit_jax import checkpoint_items as items
from vit_jax import checkpoint_seal as seal
from vit_jax import checkpoint_steps as folders

PARAMS = {'head': {'kernel': (8, 4), 'bias': (4,)}, 'blocks': {'0': {'scale': (16,)}, '10': {'scale': (16,)}}}


def tree(seed=0):
  """Float32 arrays of PARAMS' shapes."""
  rng = np.random.default_rng(seed)
  draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  return jax.tree.map(draw, PARAMS, is_leaf=lambda x: isinstance(x, tuple))


def optimizer():
  """A state of every kind of node: namedtuples, EmptyState, masks, None, bfloat16 momentum, int32 counters."""
  decay = optax.masked(optax.add_decayed_weights(0.1), {'head': True, 'blocks': False})
  sgd = optax.sgd(optax.cosine_decay_schedule(0.1, 10), momentum=0.9, accumulator_dtype=jnp.bfloat16)
  return optax.chain(optax.clip_by_global_norm(1.0), decay, sgd, optax.adamw(1e-3))


def state(seed=0):
  params, tx = tree(seed), optimizer()
  opt = tx.init(params)
  updates, opt = tx.update(tree(seed + 1), opt, params)
  return {'params': optax.apply_updates(params, updates), 'rest': {}, 'opt': (opt, None), 'ema': None}


def on(devices, arrays):
  """Arrays placed over a mesh of these devices: split in their first dimension where that divides, else whole."""
  mesh = Mesh(np.array(devices), ('data',))

  def place(x):
    split = x.ndim and x.shape[0] % len(devices) == 0
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec('data') if split else PartitionSpec()))

  return jax.tree.map(place, arrays)


def targets(arrays):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays)


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for path, a in jax.tree_util.tree_leaves_with_path(ours):
    b = dict(jax.tree_util.tree_leaves_with_path(theirs))[path]
    assert a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def scored(workdir, scores, **settings):
  """A closed workdir that saved steps 1, 2, ... with these scores."""
  keep = checkpoint.Checkpoints(workdir, **settings)
  for step, score in enumerate(scores, 1):
    keep.save(step, {'params': {'x': np.float32(step)}}, {'step': step}, score)
  keep.close()
  return keep


@pytest.mark.parametrize('before, after', [(8, 1), (1, 8), (8, 8), (4, 2)])
def test_state_comes_back_bit_for_bit_on_other_devices(tmp_path, devices, before, after):
  arrays, like = on(devices[:before], state()), targets(on(devices[-after:], state(5)))
  assert {'bfloat16', 'float32', 'int32'} == {str(x.dtype) for x in jax.tree.leaves(arrays)}
  keep = checkpoint.Checkpoints(tmp_path)
  keep.save(3, arrays, {'step': 3})
  keep.wait()
  restored = keep.restore(3, like)
  keep.close()
  assert_same(restored, arrays)
  assert jax.tree.all(jax.tree.map(lambda x, target: x.sharding == target.sharding, restored, like))


def test_restored_arrays_train_on_as_the_saved_ones(tmp_path):
  """Restored buffers may be donated: no step reads memory that is no longer the state's."""
  step = jax.jit(lambda x: jax.tree.map(lambda a: a * 1.25 + 1, x), donate_argnums=0)
  keep, arrays = checkpoint.Checkpoints(tmp_path), {'params': {'x': jnp.arange(1 << 16, dtype=jnp.float32)}}
  keep.save(1, arrays, {})
  keep.wait()
  restored = keep.restore(1, arrays)
  keep.close()
  for _ in range(5):
    arrays, restored = step(arrays), step(restored)
  assert_same(restored, arrays)


@pytest.mark.parametrize('count', [1, 8])
def test_a_save_is_not_disturbed_by_the_steps_that_follow(tmp_path, devices, count):
  """The arrays are donated again and again while they are being written: the file holds the step that was saved."""
  arrays = on(devices[:count], {'params': {str(i): jnp.full((8, 1 << 17), i, jnp.float32) for i in range(4)}})
  step = jax.jit(lambda x: jax.tree.map(lambda a: a + 1, x), donate_argnums=0)
  arrays = step(arrays)  # buffers of XLA's own, as in a run
  expected = jax.tree.map(lambda x: np.array(x), arrays)
  keep = checkpoint.Checkpoints(tmp_path)
  keep.save(1, arrays, {})
  for _ in range(30):
    arrays = step(arrays)
  jax.block_until_ready(arrays)
  keep.close()
  assert_same(checkpoint.read(tmp_path / 'checkpoints' / '1')['params'], expected['params'])


def test_numpy_arrays_may_be_overwritten_after_save(tmp_path):
  x = np.arange(1 << 20, dtype=np.float32)
  keep = checkpoint.Checkpoints(tmp_path)
  keep.save(1, {'params': {'x': x}}, {})
  x[:] = -1
  keep.close()
  assert (checkpoint.read(keep.folder / '1')['params']['x'] == np.arange(1 << 20)).all()


def test_read_needs_no_target(tmp_path):
  arrays = state()
  keep = checkpoint.Checkpoints(tmp_path)
  keep.save(2, arrays, {})
  keep.close()
  trees = checkpoint.read(tmp_path / 'checkpoints' / '2', ('params', 'rest', 'opt'))
  assert_same(trees['params'], arrays['params'])
  assert all(type(x) is np.ndarray for x in jax.tree.leaves(trees))
  assert trees['rest'] == {} and str(trees['opt']['0']['2']['0']['trace']['head']['kernel'].dtype) == 'bfloat16'
  with pytest.raises(ValueError, match="has no 'teacher'; it has ema, opt, params, rest"):
    checkpoint.read(tmp_path / 'checkpoints' / '2', ('teacher',))
  with pytest.raises(ValueError, match='not the folder of a saved step'):
    checkpoint.read(tmp_path)


def test_one_error_lists_every_difference(tmp_path):
  scored(tmp_path, [None])
  keep = checkpoint.Checkpoints(tmp_path)
  keep.save(7, {'params': tree(), 'rest': {}}, {})
  keep.wait()
  like = tree()
  like['head']['kernel'] = jax.ShapeDtypeStruct((8, 5), jnp.float32)
  like['blocks']['0']['scale'] = jax.ShapeDtypeStruct((16,), jnp.bfloat16)
  like['new'] = like['head'].pop('bias')
  with pytest.raises(ValueError) as error:
    keep.restore(7, {'params': like, 'rest': {'mean': jax.ShapeDtypeStruct((), jnp.float32)}})
  for line in (
    '5 arrays differ',
    'params/head/kernel: saved float32[8, 4], wanted float32[8, 5]',
    'params/blocks/0/scale: saved float32[16], wanted bfloat16[16]',
    'params/head/bias: saved float32[4], wanted none',
    'params/new: saved none, wanted float32[4]',
    'rest/mean: saved none, wanted float32[]',
  ):
    assert line in str(error.value)
  with pytest.raises(ValueError, match="has no 'ema'; it has params, rest"):
    keep.restore(7, {'ema': tree()})
  with pytest.raises(ValueError, match=r'no step 8; it has \[1, 7\]'):
    keep.restore(8, {'params': tree()})
  keep.close()


@pytest.mark.parametrize(
  'scores, settings, kept, best',
  [
    ([0.9, 0.8, 0.7, 0.6, 0.5], {}, [1, 4, 5], 1),  # worsening: newest and best both stay
    ([0.1, 0.2, 0.3, 0.4, 0.5], {}, [4, 5], 5),
    ([0.5, 0.1, 0.5, 0.1, 0.1], {'last': 1}, [3, 5], 3),  # of equals the later
    ([0.5, None, float('nan'), None], {'last': 1}, [1, 4], 1),  # not evaluated, or nonsense: never best
    ([None, None, None], {'best': 3}, [2, 3], None),
    ([0.9, 0.8, 0.7, 0.6], {'last': 1, 'best': 2}, [1, 2, 4], 1),
    ([0.9, 0.8, 0.7], {'last': 1, 'best': 0}, [3], 3),
  ],
)
def test_keeps_the_last_and_the_best(tmp_path, scores, settings, kept, best):
  keep = scored(tmp_path, scores, **settings)
  assert keep.steps() == kept and keep.latest() == kept[-1] and keep.best() == best
  assert sorted(p.name for p in keep.folder.iterdir()) == sorted(map(str, kept))
  assert [keep.info(step) for step in kept] == [{'step': step} for step in kept]


def test_scores_outlive_the_process(tmp_path):
  scored(tmp_path, [0.9, 0.8])
  keep = checkpoint.Checkpoints(tmp_path, last=1)
  for step in range(3, 6):
    keep.save(step, {'params': {'x': np.float32(0)}}, {}, 0.1)
  keep.close()
  assert keep.steps() == [1, 5] and keep.best() == 1


def test_saving_a_kept_step_again_changes_nothing(tmp_path):
  scored(tmp_path, [0.5])
  keep = checkpoint.Checkpoints(tmp_path)
  keep.save(1, {'params': {'x': np.float32(9)}}, {'step': 'again'}, 0.9)
  keep.close()
  keep.close()
  assert checkpoint.read(keep.folder / '1')['params']['x'] == 1 and keep.info(1) == {'step': 1}


def test_what_a_killed_process_left_is_not_seen_and_removed(tmp_path):
  folder = scored(tmp_path, [0.5]).folder
  for name in ('9.orbax-checkpoint-tmp', '9.saving.orbax-checkpoint-tmp', '7.saving', '6.removing'):
    shutil.copytree(folder / '1', folder / name)
  (folder / '8.saving.manifest.json').touch()
  others = {'notes', '12a', '007', '1.old', 'saving', '3.damaged-20261130T000000.000000'}
  for name in others:
    (folder / name).mkdir()
  assert checkpoint.find(tmp_path) == (folder / '1', 'best')
  keep = checkpoint.Checkpoints(tmp_path)
  assert keep.latest() == 1 and keep.steps() == [1]
  assert {one.name for one in folder.iterdir()} == {'1', *others}
  keep.save(10, {'params': {'x': np.float32(9)}}, {})
  keep.close()
  assert keep.steps() == [1, 10] and {one.name for one in folder.iterdir()} == {'1', '10', *others}


def test_a_killed_save_leaves_the_steps_before_it(tmp_path):
  script = (
    'import os, sys; import numpy as np; from vit_jax import checkpoint\n'
    'keep = checkpoint.Checkpoints(sys.argv[1])\n'
    'keep.save(1, {"params": {"x": np.ones(3, np.float32)}}, {"step": 1}); keep.wait()\n'
    'keep.save(2, {"params": {"x": np.random.default_rng(0).random(1 << 23)}}, {"step": 2}); os._exit(9)'
  )
  assert subprocess.run([sys.executable, '-c', script, tmp_path]).returncode == 9
  folder = tmp_path / 'checkpoints'
  assert (folder / '1').is_dir() and not (folder / '2').exists() and list(folder.glob('2.saving*'))
  keep = checkpoint.Checkpoints(tmp_path)
  assert keep.latest() == 1 and keep.info(1) == {'step': 1}
  keep.save(2, {'params': {'x': np.ones(3, np.float32)}}, {'step': 2})
  keep.close()
  assert sorted(p.name for p in folder.iterdir()) == ['1', '2']


def test_older_steps_go_only_when_the_new_one_is_sealed(tmp_path, monkeypatch):
  """However a process ends between orbax's last byte and our name for the step, the one before is still there."""
  calls, rename = [], os.rename

  def renamed(old, new):
    calls.append((pathlib.Path(old).name, pathlib.Path(new).name, seal.fault(keep.folder / '2') is None))
    rename(old, new)

  keep = scored(tmp_path, [None], last=1)
  keep = checkpoint.Checkpoints(tmp_path, last=1)
  monkeypatch.setattr(folders.os, 'rename', renamed)
  keep.save(2, {'params': {'x': np.float32(2)}}, {})
  keep.close()
  assert [call for call in calls if 'orbax' not in call[0]] == [('2.saving', '2', False), ('1', '1.removing', True)]
  assert keep.steps() == [2] and [one.name for one in keep.folder.iterdir()] == ['2']


@pytest.mark.parametrize('module, moment', [(seal, 'write'), (durable, 'sync')])
def test_what_fails_while_a_step_is_sealed_loses_none(tmp_path, monkeypatch, module, moment):
  keep = checkpoint.Checkpoints(tmp_path, last=1)
  keep.save(1, {'params': {'x': np.float32(1)}}, {}, 0.5)
  keep.wait()

  def broken(*_):
    raise OSError(5, 'Input/output error')

  with monkeypatch.context() as patch:
    patch.setattr(module, moment, broken)
    keep.save(2, {'params': {'x': np.float32(2)}}, {}, 0.9)
    with pytest.raises(OSError, match='Input/output error'):
      keep.wait()
  keep.wait()  # raised once
  keep.close()
  again = checkpoint.Checkpoints(tmp_path, last=1)
  assert again.steps() == [1] and [one.name for one in again.folder.iterdir()] == ['1']
  again.close()


def test_what_fails_in_the_background_is_raised_once(tmp_path, capfd):
  """No file may grow past 1 MB while step 2 is written: one line is raised, step 1 stays, the run can go on."""
  keep = checkpoint.Checkpoints(tmp_path, last=1)
  small = {'params': {'x': np.float32(1)}}
  keep.save(1, small, {}, 0.5)
  keep.wait()
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
  try:
    keep.save(2, {'params': {'x': np.random.default_rng(0).random(1 << 19)}}, {}, 0.9)
    with pytest.raises(diskfull.DiskFull) as error:
      keep.save(3, small, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  assert re.fullmatch(
    r'Checkpoint 2 could not be written in \S+ \(File too large\); .* from step 1\.', str(error.value)
  )
  assert keep.steps() == [1] and keep.best() == 1 and [one.name for one in keep.folder.iterdir()] == ['1']
  keep.save(4, small, {}, 0.1)
  keep.close()
  assert keep.steps() == [1, 4] and keep.best() == 1  # the score of the lost step 2 displaces nothing
  assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('scores, best', [([0.9, 0.8], 3), ([0.9, None], 1)])
def test_an_evaluation_may_come_after_the_save(tmp_path, scores, best):
  keep = scored(tmp_path, [*scores, None])
  keep = checkpoint.Checkpoints(tmp_path)
  keep.evaluated(3, {'top1': 0.95 if best == 3 else 0.1}, 0.95 if best == 3 else float('nan'))
  assert keep.best() == best and keep.info(3) == {'step': 3, 'metrics': {'top1': 0.95 if best == 3 else 0.1}}
  keep.close()
  keep = checkpoint.Checkpoints(tmp_path)
  assert keep.best() == best and keep.steps() == [1, 2, 3] and 'metrics' in keep.info(3)
  assert checkpoint.find(tmp_path)[0].name == str(best)
  keep.close()


def broken(folder, step, *, name='params', delete=False):
  """Changes the last byte of a file of an item, or deletes it; its path in the step."""
  path = sorted(path for path in (folder / str(step) / name).rglob('*') if path.is_file())[-1]
  content = path.read_bytes()
  path.unlink()
  if not delete:
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  return path.relative_to(folder / str(step))


def test_a_run_goes_on_from_the_newest_step_that_is_whole(tmp_path, capsys):
  folder = scored(tmp_path, [None] * 4, last=4).folder
  missing, changed = broken(folder, 4, delete=True), broken(folder, 3)
  (folder / '7').mkdir()
  keep = checkpoint.Checkpoints(tmp_path, last=4)
  lines = capsys.readouterr().err.splitlines()
  assert lines[:3] == [
    'checkpoint 7 is damaged (no manifest: its save or its copy was cut short): using 2',
    f'checkpoint 4 is damaged ({missing}: missing): using 2',
    f'checkpoint 3 is damaged ({changed}: other content): using 2',
  ]
  assert keep.steps() == [1, 2] and keep.latest() == 2
  aside = sorted(folder.glob('*.damaged-*'))
  assert [line.split(';')[0] for line in lines[3:]] == [f'moved to {one}' for one in aside[::-1]]
  assert (aside[0] / changed).exists()
  for step in (3, 4, 7):
    keep.save(step, {'params': {'x': np.float32(10 + step)}}, {'step': step})
  keep.close()
  assert keep.steps() == [2, 3, 4, 7] and checkpoint.read(folder / '3')['params']['x'] == 13
  checkpoint.Checkpoints(tmp_path, last=4).close()
  assert not capsys.readouterr().err and sorted(folder.glob('*.damaged-*')) == aside


def test_a_run_without_a_whole_step_starts_anew_and_keeps_three_damaged_ones(tmp_path, capsys):
  folder = scored(tmp_path, [None] * 2).folder
  for steps in ((1, 2), (3, 4), (5,)):
    for step in steps:
      (folder / str(step)).mkdir(exist_ok=True)
      (folder / str(step) / 'stray').touch()
    keep = checkpoint.Checkpoints(tmp_path)
    assert keep.steps() == [] and keep.latest() is None and keep.best() is None
    lines = capsys.readouterr().err.splitlines()
    assert all(
      re.search(r'^checkpoint \d is damaged \(.*\): starting from step 0$', line) for line in lines[: len(steps)]
    )
    keep.close()
  assert [one.name.partition('.')[0] for one in sorted(folder.iterdir())] == ['3', '4', '5']


def test_of_older_steps_sizes_are_compared_at_the_start_and_content_when_they_are_read(tmp_path, capsys):
  folder = scored(tmp_path, [0.9, 0.8, 0.7, 0.6], last=4).folder
  broken(folder, 1)
  broken(folder, 2, name='info')  # a score that may have another digit would decide what is kept
  keep = checkpoint.Checkpoints(tmp_path, last=4)
  err = capsys.readouterr().err
  assert 'checkpoint 2 is damaged (info/' in err and 'other content): using 4' in err and 'checkpoint 1' not in err
  assert keep.steps() == [1, 3, 4]
  with pytest.raises(ValueError, match=r'checkpoints/1 is damaged \(params/.*: other content\)'):
    keep.restore(1, {'params': {'x': np.float32(0)}})
  assert keep.restore(3, {'params': {'x': np.float32(0)}})['params']['x'] == 3
  keep.close()


def test_a_model_is_never_loaded_from_damaged_weights(tmp_path, capsys, untrained):
  """The best, else the next; said once a process, and what is not a model's is not hashed."""
  folder = scored(tmp_path, [0.7, 0.9, 0.8, None], last=4).folder
  assert checkpoint.find(tmp_path) == (folder / '2', 'best') and not capsys.readouterr().err
  changed = broken(folder, 2)
  for _ in range(2):
    assert checkpoint.find(tmp_path) == (folder / '3', 'best')
  assert capsys.readouterr().err == f'checkpoint 2 is damaged ({changed}: other content): using 3\n'
  with pytest.raises(ValueError, match=f'^{folder}/2 is damaged \\({changed}: other content\\): give its workdir'):
    checkpoint.find(folder / '2')
  with pytest.raises(ValueError, match='2 is damaged'):
    checkpoint.read(folder / '2')
  broken(folder, 3, delete=True)
  broken(folder, 1)
  assert checkpoint.find(tmp_path) == (folder / '4', 'last')
  (folder / '4' / 'params' / 'stray').touch()
  with pytest.raises(ValueError, match=r'has no checkpoint that is whole: 4 \(params/stray: unexpected file\); 3 \('):
    checkpoint.find(tmp_path)
  (folder / '9').mkdir()
  with pytest.raises(ValueError, match='9 is damaged .no manifest'):
    checkpoint.find(folder / '9')

  copy = shutil.copytree(untrained, tmp_path / 'copy')
  pretrained.load(copy)
  broken(copy / 'checkpoints', 1)
  capsys.readouterr()
  assert cli.main(['evaluate', f'--model={copy}', '--data=digits']) == 2
  err = capsys.readouterr().err
  assert re.fullmatch(r'error: \S+ has no checkpoint that is whole: 1 \(params/\S+: other content\)\.\n', err)


def test_a_step_that_lies_in_the_way_is_moved(tmp_path, capsys):
  keep = checkpoint.Checkpoints(tmp_path)
  (keep.folder / '1').mkdir()
  (keep.folder / '1' / 'thing').touch()
  keep.save(1, {'params': {'x': np.float32(1)}}, {})
  keep.close()
  assert keep.steps() == [1] and seal.fault(keep.folder / '1') is None and 'moved to' in capsys.readouterr().err


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch, capsys):
  folder = scored(tmp_path, [0.5]).folder
  keep, arrays = checkpoint.Checkpoints(tmp_path), {'params': {'x': np.zeros(1 << 20, np.float32)}}
  free = types.SimpleNamespace(free=4_000_000)
  monkeypatch.setattr(diskfull.shutil, 'disk_usage', lambda path: free)
  with pytest.raises(diskfull.DiskFull) as error:
    keep.save(2, arrays, {})
  assert str(error.value) == (
    f'Checkpoint 2 needs 4.33 MB, and {folder} has 4 MB free: free some space and start the same command again; it '
    'goes on from step 1.'
  )
  assert [one.name for one in folder.iterdir()] == ['1']
  (folder / '9.damaged-20261130T000000.000000').mkdir()
  for free.free, said in ((8_000_000, 'refused'), (9_000_000, 'noted'), (13_000_000, '')):
    try:
      keep.check_room(arrays)  # 3 are wanted of these, and one is there; the best may be a fourth
    except diskfull.DiskFull as full:
      assert said == 'refused' and re.search(
        r'2 more checkpoints of 4.33 MB are to be kept there: free some', str(full)
      )
      assert str(full).endswith(f' {folder}/*.damaged-* are damaged steps that you can delete.')
    else:
      err = capsys.readouterr().err
      assert ('3 more checkpoints, the best among them, need 13 MB.' in err) == (said == 'noted') != (not err)
  keep.save(2, arrays, {})
  keep.close()
  assert keep.steps() == [1, 2]
  monkeypatch.setattr(cli, '_dispatch', lambda argv: (_ for _ in ()).throw(error.value))
  assert cli.main([]) == 1
  assert capsys.readouterr().err == f'error: {error.value}\n'


@pytest.mark.parametrize('shapes', [[(7,)] * 200, [(1 << 18,)] * 4, [(1000,)] * 40])
def test_the_estimate_of_a_steps_size_is_enough_and_not_far_off(tmp_path, shapes):
  rng = np.random.default_rng(0)
  arrays = {'params': {str(i): rng.random(shape, np.float32) for i, shape in enumerate(shapes)}}
  keep = checkpoint.Checkpoints(tmp_path)
  keep.save(1, arrays, {})
  keep.close()
  used = sum(512 * path.stat().st_blocks for path in (keep.folder / '1').rglob('*'))
  assert used <= items.size(arrays) <= 1.2 * used + (1 << 18)


def test_a_sample_of_the_proof_that_damages_are_seen(tmp_path, monkeypatch):
  """tests/reliability/damage.py with 5 of its tries; it finds a silent one where nothing is verified."""
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / 'reliability')
  import damage

  keep = checkpoint.Checkpoints(tmp_path / 'run', last=3)
  for step in (2, 4, 6):
    keep.save(step, {'params': tree(step), 'ema': tree(-step % 7), 'rest': {}}, {'step': step}, step / 10)
  keep.close()
  run = damage.Run(tmp_path / 'run')
  rows = [damage.attempt(run, 0, number, tmp_path) for number in range(5)]
  assert damage.figure(rows) == '5 damages: 0 silent, 0 crashes, 0 whole steps refused', rows
  copy = run.copy(tmp_path / 'copy')
  (copy / 'checkpoints' / '6' / 'stray').touch()
  monkeypatch.setattr(seal, 'fault', lambda *_: None)
  assert 'silent: nothing was said of 6; silent: 6 is the newest' in damage.resumed(copy, run, {6: 'stray'})[0]


def test_a_sample_of_the_proof_that_a_full_disk_loses_nothing(tmp_path, monkeypatch):
  """tests/reliability/full_disk.py with 4 of its tries."""
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / 'reliability')
  import full_disk

  for number in range(4):
    try:
      with full_disk.small_disk(tmp_path / str(number)) as disk:
        row = full_disk.attempt(0, number, disk)
    except full_disk.NoDisk as reason:
      pytest.skip(f'{reason}; test_what_fails_in_the_background_is_raised_once does without')
    assert not row['verdict'], row


def test_find_says_which_weights_it_found(tmp_path):
  with pytest.raises(ValueError, match='No folder'):
    checkpoint.find(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='not the workdir of a run'):
    checkpoint.find(tmp_path)
  (tmp_path / 'run.json').write_text('{}')
  with pytest.raises(ValueError, match='has no checkpoint yet'):
    checkpoint.find(tmp_path)
  keep = scored(tmp_path, [None])
  assert checkpoint.find(tmp_path) == (keep.folder / '1', 'last')
  keep = checkpoint.Checkpoints(tmp_path, last=3)
  for step, score in ((2, 0.9), (3, 0.8)):
    keep.save(step, {'params': tree(), 'ema': tree(1) if step == 3 else None}, {}, score)
  keep.close()
  assert checkpoint.find(tmp_path) == (keep.folder / '2', 'best')
  assert checkpoint.find(str(keep.folder / '3')) == (keep.folder / '3', 'step 3 EMA')
  assert checkpoint.read(checkpoint.find(keep.folder / '3')[0], ('ema',))['ema'].keys() == tree().keys()


def test_a_relative_workdir_stays_where_it_was(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  keep = checkpoint.Checkpoints('runs/a')
  (tmp_path / 'elsewhere').mkdir()
  monkeypatch.chdir(tmp_path / 'elsewhere')
  keep.save(1, {'params': tree()}, {})
  keep.close()
  monkeypatch.chdir(tmp_path)
  assert checkpoint.find('runs/a') == (tmp_path / 'runs/a/checkpoints/1', 'last')
  assert_same(checkpoint.read('runs/a/checkpoints/1')['params'], tree())


def test_bad_settings_are_refused(tmp_path):
  for settings in ({'every': 0}, {'last': 0}, {'best': -1}):
    with pytest.raises(ValueError, match='must be at least 1'):
      checkpoint.Checkpoints(tmp_path, **settings)
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='is not a folder'):
    checkpoint.Checkpoints(tmp_path / 'file')
  with pytest.raises(ValueError, match='is not a folder'):
    checkpoint.Checkpoints(tmp_path / 'file' / 'below')


def test_the_header_is_plain_json_and_nothing_is_logged(tmp_path, caplog):
  info = {'step': 1, 'metrics': {'top1': 0.1 + 0.2, 'loss': float('inf')}, 'position': [1, 2]}
  with caplog.at_level(logging.WARNING):
    keep = checkpoint.Checkpoints(tmp_path)
    keep.save(1, {'params': tree(), 'rest': {}}, info, 0.3)
    keep.close()
    keep.restore(1, {'params': targets(tree()), 'rest': {}})
    checkpoint.read(keep.folder / '1')
  assert not caplog.records
  assert keep.info(1) == info
  header = json.loads((keep.folder / '1' / 'info' / 'metadata').read_text())
  assert header == {'info': info, 'score': 0.3, 'empty': ['rest']}


PROCESS = """
import sys
import jax
number, port, folder = int(sys.argv[1]), *sys.argv[2:]
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', 2, number)
import json
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from vit_jax import checkpoint
split = NamedSharding(Mesh(np.array(jax.devices()), ('data',)), PartitionSpec('data'))
rows = lambda step: jax.make_array_from_callback((4, 1000), split, lambda i: np.full((4, 1000), step, np.float32)[i])
keep = checkpoint.Checkpoints(folder, last=1)
first = keep.latest() or 0
for step in range(first + 1, first + 4):
  keep.save(step, {'params': {'x': rows(step)}}, {'step': step}, 1 / step)
keep.evaluated(step, {'top1': 0.5}, 0.3)
keep.check_room({'params': {'x': rows(0)}})
like = {'params': {'x': jax.ShapeDtypeStruct((4, 1000), np.float32, sharding=split)}}
parts = [part.data for one in keep.steps() for part in keep.restore(one, like)['params']['x'].addressable_shards]
keep.close()
print(json.dumps([first, keep.steps(), keep.best(), [float(np.unique(part).item()) for part in parts]]))
"""


@pytest.mark.slow
def test_two_processes_agree_on_what_is_whole(tmp_path):
  """The first one verifies, seals and removes; a damaged newest step is not used by the other one either."""
  folder = tmp_path / 'checkpoints'
  env = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  for said in ([0, [1, 3], 1, [1, 3]], [1, [1, 4], 1, [1, 4]]):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = str(free.getsockname()[1])
    argv = [sys.executable, '-W', 'error', '-c', PROCESS]
    both = [
      subprocess.Popen([*argv, str(i), port, tmp_path], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
      for i in range(2)
    ]
    results = [one.communicate(timeout=300) for one in both]
    assert [json.loads(out.splitlines()[-1]) for out, _ in results] == [said, said], results
    assert [b'checkpoint 3 is damaged' in err for _, err in results] == [said[0] == 1, False]
    assert sorted(one.name for one in folder.iterdir() if 'damaged' not in one.name) == ['1', str(said[1][1])]
    broken(folder, said[1][1])
