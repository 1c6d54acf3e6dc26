"""checkpoint.py: what was saved comes back bit for bit, on any devices, and nothing half-written is ever seen."""

import json
import logging
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from vit_jax import checkpoint

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


def test_half_written_steps_are_invisible_and_cleaned_up(tmp_path):
  folder = scored(tmp_path, [0.5]).folder
  (folder / '9.orbax-checkpoint-tmp' / 'params').mkdir(parents=True)
  (folder / '12').mkdir()  # a copy that was broken off
  (folder / 'notes').mkdir()
  keep = checkpoint.Checkpoints(tmp_path)
  assert keep.latest() == 1 and keep.steps() == [1] and checkpoint.find(tmp_path)[0] == folder / '1'
  keep.save(10, {'params': {'x': np.float32(9)}}, {})
  keep.close()
  assert keep.steps() == [1, 10] and not list(folder.glob('*tmp*')) and (folder / 'notes').is_dir()


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


def test_what_fails_in_the_background_is_raised_once(tmp_path):
  """No file may grow past 1 MB while step 2 is written: wait raises, step 1 stays, the run can go on."""
  keep = checkpoint.Checkpoints(tmp_path, last=1)
  small = {'params': {'x': np.float32(1)}}
  keep.save(1, small, {}, 0.5)
  keep.wait()
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
  try:
    keep.save(2, {'params': {'x': np.random.default_rng(0).random(1 << 19)}}, {}, 0.9)
    with pytest.raises(Exception, match='File too large|RESOURCE_EXHAUSTED'):
      keep.save(3, small, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  assert keep.steps() == [1] and keep.best() == 1
  keep.save(4, small, {}, 0.1)
  keep.close()
  assert keep.steps() == [1, 4] and keep.best() == 1  # the score of the lost step 2 displaces nothing


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
