"""No number that is not finite reaches a checkpoint; what a person needs to find the cause is in one line."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vit_jax
from vit_jax import checkpoint, guard, health
from vit_jax import data as data_lib

TINY = dict(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3)
FINE, BAD = ({'loss': np.float32(x), 'grad_norm': np.float32(1), 'finite': np.isfinite(x)} for x in (1, np.nan))


def test_steps_are_looked_at_one_later():
  seen = health.Health(allowed=0)
  seen.add(1, [5], FINE)
  seen.add(2, [6], BAD)
  with pytest.raises(guard.Failed, match=r'^step 2 is not finite: loss nan, gradient norm 1; examples 6\. Nothing'):
    seen.add(3, [7], FINE)
  at_once = health.Health(allowed=0, ahead=0)
  with pytest.raises(guard.Failed, match='examples 0, 1, 2, 3, 4, 5, 6, 7 and 92 more'):
    at_once.add(1, np.arange(100), BAD)


def test_so_many_may_be_left_out():
  lines = []
  seen = health.Health(allowed=3, skipped=1, note=lines.append, ahead=0)
  for step in (1, 2):
    seen.add(step, [step], BAD | {'lr': np.float32(0.5)})
    seen.add(step, [step], FINE)
  assert seen.skipped == 3
  assert (
    lines[0] == 'step 1 left out (2 of at most 3), not finite: loss nan, learning rate 0.5, gradient norm 1; examples 1'
  )
  with pytest.raises(guard.Failed, match='step 9 is not finite after 3 that were left out'):
    seen.add(9, [9], BAD)


def poisoned(at, value):
  """SGD whose update has one entry that is not finite in step `at`, counted from 0."""

  def spoil(updates, state, params=None):
    leaves, tree = jax.tree.flatten(updates)
    leaves[0] = jnp.where(state == at, leaves[0].at[(0,) * leaves[0].ndim].set(value), leaves[0])
    return jax.tree.unflatten(tree, leaves), state + 1

  return optax.chain(optax.sgd(0.01), optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), spoil))


def fit(tmp_path, optim, **options):
  """A run of 12 steps, all logged, that saves every third."""
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, 40)
  model = vit_jax.create_model('vit_tiny_patch16_224', **TINY)
  made = dict(steps=12, batch=8, log_every=1, save=dict(every=3, last=9), workdir=tmp_path) | options
  return vit_jax.fit(model, data_lib.from_arrays(pictures, (pictures[0][:8], pictures[1][:8])), optim=optim, **made)


def saved(tmp_path):
  """The steps on disk, all of whose weights are finite."""
  steps = checkpoint.Checkpoints(tmp_path).steps()
  for step in steps:
    kept = checkpoint.read(tmp_path / 'checkpoints' / str(step), ('params',))['params']
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(kept))
  return steps


@pytest.mark.parametrize(
  'optim, step, said, kept',
  [
    (poisoned(5, np.nan), 6, 'loss [0-9.]+, gradient norm [0-9.]+, the new weights are not', [3]),
    (dict(name='sgd', lr=1e30, warmup=1), 1, 'loss [0-9.]+, learning rate 1e.30, gradient norm [0-9.]+, the new w', []),
  ],
)
def test_a_run_ends_before_a_bad_step_is_saved(tmp_path, optim, step, said, kept):
  with pytest.raises(guard.Failed, match=rf'^step {step} is not finite: {said}.*; examples \d+, '):
    fit(tmp_path, optim)
  assert saved(tmp_path) == kept


def test_steps_left_out_change_nothing_and_are_counted_for_ever(tmp_path):
  """A step left out leaves the optimizer's counter as it was, so what spoils step 5 spoils all that follow."""
  skipping = dict(optim=poisoned(4, np.nan), step=dict(skip_nonfinite=3))
  assert fit(tmp_path, steps=6, **skipping).step == 6 and saved(tmp_path) == [3, 6]
  kept = [checkpoint.read(tmp_path / 'checkpoints' / str(step))['params']['head']['bias'] for step in (3, 6)]
  assert checkpoint.Checkpoints(tmp_path).info(6)['skipped'] == 2 and (kept[0] != kept[1]).any()  # step 4 was fine
  with pytest.raises(guard.Failed, match='^step 8 is not finite after 3 that were left out: .*the new weights'):
    fit(tmp_path, steps=12, extend=True, **skipping)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'grad_norm' in line] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_ends_a_run_between_steps_loses_none(tmp_path):
  """A data set that turns out to be unreadable: the steps before are saved, though none was due."""
  optim, calls = optax.sgd(0.01), []

  def batches(*args, real=data_lib.train_batches, **options):
    for batch in real(*args, **options):
      if len(calls) == 4 and not options['start']:
        raise ValueError('9 of 40 examples are unreadable.')
      calls.append(batch['id'])
      yield batch

  with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match='9 of 40'):
    patch.setattr(data_lib, 'train_batches', batches)
    fit(tmp_path, optim, save=dict(every=100))
  steps = saved(tmp_path)
  assert len(steps) == 1 and 2 <= steps[0] <= 4  # some batches are on their way to the device when it is found
  assert fit(tmp_path, optim).step == 12


def test_a_run_that_waits_for_data_for_long_says_so(tmp_path, capfd):
  def batches(*args, real=data_lib.train_batches, **options):
    for i, batch in enumerate(real(*args, **options)):
      time.sleep(1.5 * (i == 3))
      yield batch

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data_lib, 'train_batches', batches)
    fit(tmp_path, optax.sgd(0.01), steps=6, watchdog=0.5)
  said = capfd.readouterr().err
  assert said.count('no progress for') >= 1 and '(phase data, step ' in said and 'in batches' in said
