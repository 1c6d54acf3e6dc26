"""One compilation, the same run on any number of devices, resumed bit for bit; evaluation counts each picture once."""

import json
import logging

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vit_jax
from vit_jax import crops, optim, sharding, state, tasks
from vit_jax import data as data_lib
from vit_jax import step as step_lib

TINY = dict(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2)
QUIET = dict(log_every=1, batch=16)


def pictures(n=50, classes=5, seed=0):
  rng = np.random.default_rng(seed)
  label = rng.integers(0, classes, n)
  image = (rng.normal(size=(n, 8, 8, 3)) * 20 + label[:, None, None, None] * 40 + 30).clip(0, 255).astype(np.uint8)
  return image, label


def data(n=50, test=21, **options):
  return data_lib.from_arrays(pictures(n), pictures(test, seed=1), **options)


def model(seed=0, **overrides):
  made = vit_jax.create_model('vit_tiny_patch16_224', num_classes=5, seed=seed, **{**TINY, **overrides})
  made.head.kernel[...] = jax.random.normal(jax.random.key(1), made.head.kernel.shape) * 0.1
  return made


def rows(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def losses(workdir):
  return {row['step']: row['loss'] for row in rows(workdir) if 'lr' in row}


def arrays(model):
  return jax.tree.map(np.asarray, state.split(model)[1])


def same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_fit_learns_and_gives_the_trained_model(tmp_path):
  made = model()
  result = vit_jax.fit(made, data(200), steps=60, optim=dict(lr=3e-3), workdir=tmp_path, eval_every=30, **QUIET)
  assert result.model is made and result.metrics['top1'] > 0.9 and result.metrics['examples'] == 21
  assert vit_jax.evaluate(made, data(200), batch=8)['top1'] == result.metrics['top1']
  loaded, described = vit_jax.load(tmp_path)
  assert described['classes'] == ['0', '1', '2', '3', '4'] and described['weights'] == 'best'
  assert vit_jax.evaluate(loaded, data(200), batch=8)['top1'] == max(r['top1'] for r in rows(tmp_path) if 'top1' in r)


def test_the_lines_of_metrics_jsonl(tmp_path):
  vit_jax.fit(model(), data(), steps=3, workdir=tmp_path, eval_every=2, **QUIET)
  lines = rows(tmp_path)
  assert [line['step'] for line in lines] == [1, 2, 2, 3, 3]
  assert list(lines[0]) == ['step', 'loss', 'lr', 'grad_norm', 'images_per_second', 'seconds']
  assert list(lines[2]) == ['step', 'split', 'loss', 'top1', 'top5', 'examples', 'seconds']
  assert 0 <= lines[2]['top1'] <= lines[2]['top5'] <= 1


def compilations(caplog, name):
  return [r for r in caplog.records if r.getMessage().startswith(f'Finished XLA compilation of jit({name})')]


def test_the_step_compiles_once_in_a_run_and_once_in_its_continuation(tmp_path, caplog):
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    for steps in (4, 8):
      vit_jax.fit(
        model(), data(), steps=steps, optim=dict(ema=0.9), workdir=tmp_path, extend=True, eval_every=2, **QUIET
      )
      assert len(compilations(caplog, 'train_step')) == 1 and len(compilations(caplog, 'eval_step')) == 1
      caplog.clear()


def ten_losses(devices, tmp_path, **step):
  """Losses of the first 10 steps on these devices, in float32 with the highest matmul precision."""
  workdir, mesh = tmp_path / f'{len(devices)}{step}', sharding.make_mesh(devices=devices)
  with pytest.MonkeyPatch.context() as patch, jax.default_matmul_precision('highest'):
    patch.setattr(sharding, 'make_mesh', lambda **_: mesh)
    optimizer = dict(lr=3e-3, warmup=2, weight_decay=0.1)
    vit_jax.fit(model(), data(), steps=10, optim=optimizer, workdir=workdir, step=step, **QUIET)
  return np.array([losses(workdir)[i] for i in range(1, 11)])


def test_micro_batches_give_the_big_batchs_result(tmp_path, devices):
  whole = ten_losses(devices, tmp_path)
  np.testing.assert_allclose(ten_losses(devices, tmp_path, accumulate=2), whole, rtol=1e-5)
  np.testing.assert_allclose(ten_losses(devices[:1], tmp_path, accumulate=4), whole, rtol=1e-5)


def test_each_micro_batch_gets_a_key_of_its_own():
  seen = []

  def grad_fn(trainable, frozen, rest, batch, key):
    noise = jax.random.uniform(key)
    return (noise, rest), {'w': noise * batch['x'].sum()}

  for micro in (1, 2, 4):
    grad = jax.jit(step_lib.accumulate(grad_fn, micro, 'float32'))
    (loss, _), _ = grad({'w': jnp.zeros(())}, {}, {}, {'x': jnp.ones(8)}, jax.random.key(0))
    want = np.mean([jax.random.uniform(jax.random.fold_in(jax.random.key(0), i)) for i in range(micro)])
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    seen.append(float(loss))
  assert len(set(seen)) == 3


class Interrupted(Exception):
  """What stops a run in the middle, where a kill would."""


def interrupted_fit(stop, **arguments):
  with pytest.MonkeyPatch.context() as patch:
    original = data_lib.to_device

    def to_device(batches, placement, **options):
      for i, one in enumerate(original(batches, placement, **options)):
        if i == stop and 'mask' not in one[1]:
          raise Interrupted
        yield one

    patch.setattr(data_lib, 'to_device', to_device)
    with pytest.raises(Interrupted):
      vit_jax.fit(**arguments)


RECIPE = dict(optim=dict(lr=1e-2, warmup=0.2, ema=0.9), step=dict(augment=dict(mixup=0.2), accumulate=2))


@pytest.mark.parametrize(
  'how',
  [
    pytest.param(dict(), marks=pytest.mark.slow),  # as each config's, in test_configs.py
    dict(scan=True, remat='full', augment=dict(erasing=0.5, mixup=0.8, cutmix=1.0)),
    pytest.param(dict(dtype='bfloat16'), marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, how):
  dropping = dict(drop_path_rate=0.2, proj_drop_rate=0.1)
  execution = {key: how[key] for key in ('scan', 'remat') if key in how}
  arguments = lambda workdir: dict(
    model=model(**dropping, **execution), data=data(repeats=2), steps=12, save=dict(every=3), workdir=workdir,
    eval_every=6, **{**RECIPE, 'step': RECIPE['step'] | how}, **QUIET)  # fmt: skip
  whole = vit_jax.fit(**arguments(tmp_path / 'whole'))
  for stop in (2, 5, 4):  # in the first run, before a save; later, after 3 and after 6
    interrupted_fit(stop, **arguments(tmp_path / 'parts'))
  parts = vit_jax.fit(**arguments(tmp_path / 'parts'))
  assert losses(tmp_path / 'parts') == losses(tmp_path / 'whole')
  assert [r['resumed'] for r in rows(tmp_path / 'parts') if 'resumed' in r] == [0, 3, 6]
  same(arrays(parts.model), arrays(whole.model))
  assert parts.metrics['loss'] == whole.metrics['loss']


def test_a_run_goes_on_on_other_devices_and_with_scan(tmp_path, devices):
  arguments = dict(data=data(), steps=6, optim=dict(lr=1e-2), save=dict(every=3), **QUIET)
  vit_jax.fit(model(), workdir=tmp_path / 'whole', **arguments)
  interrupted_fit(4, model=model(), workdir=tmp_path / 'parts', **arguments)
  one = sharding.make_mesh(devices=devices[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'make_mesh', lambda **_: one)
    vit_jax.fit(model(scan=True), workdir=tmp_path / 'parts', **arguments, step=dict(scan=True))
  np.testing.assert_allclose(
    list(losses(tmp_path / 'parts').values()), list(losses(tmp_path / 'whole').values()), rtol=1e-5
  )


def test_a_finished_workdir_does_nothing_and_extend_goes_on(tmp_path, capsys, monkeypatch):
  arguments = dict(data=data(), workdir=tmp_path, optim=dict(lr=1e-2), **QUIET)
  first = vit_jax.fit(model(), steps=4, **arguments)
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  again = vit_jax.fit(model(seed=3), steps=4, **arguments)
  assert 'is finished, at step 4 of 4' in capsys.readouterr().err
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before and again.metrics == first.metrics
  same(arrays(again.model), arrays(first.model))
  with pytest.raises(ValueError, match='add --extend'):
    vit_jax.fit(model(), steps=6, **arguments)
  assert 'pictures were decoded' not in capsys.readouterr().err
  monkeypatch.setattr(crops, 'host_decoder', lambda: 'another library')
  vit_jax.fit(model(), steps=6, extend=True, **arguments)
  said = capsys.readouterr().err
  assert 'total_steps 4 -> 6: the learning rate of step 5 is now' in said
  assert 'so far, and are now by another library' in said
  assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
  with pytest.raises(ValueError, match='total_steps: 6 -> 4'):
    vit_jax.fit(model(), steps=4, extend=True, **arguments)


def test_a_resumed_run_refuses_what_would_make_it_another_run(tmp_path):
  arguments = dict(data=data(), steps=4, workdir=tmp_path, optim=dict(lr=1e-2), **QUIET)
  vit_jax.fit(model(), **arguments)
  for change, said in [
    (dict(optim=dict(lr=2e-2)), 'optim.lr: 0.01 -> 0.02'),
    (dict(optim=dict(lr=1e-2, sam=dict(rho=0.1))), 'optim.sam.rho: 0.0 -> 0.1'),
    (dict(seed=1), 'seed: 0 -> 1'),
    (dict(batch=32), 'batch: 16 -> 32'),
    (dict(step=dict(accumulate=2)), 'step.accumulate: 1 -> 2'),
    (dict(data=data(60)), 'the data itself'),
  ]:
    with pytest.raises(ValueError) as caught:
      vit_jax.fit(model(), **{**arguments, **change})
    assert said in str(caught.value) and '\n' not in str(caught.value)
  said_so = dict(optim=dict(lr=1e-2, schedule='cosine', sam=dict(rho=0.0)))  # defaults, which nobody had to say
  vit_jax.fit(model(), **{**arguments, **said_so, 'step': dict(remat='full'), 'log_every': 2})


def test_averaged_weights_are_evaluated_saved_and_loaded(tmp_path):
  made = model()
  result = vit_jax.fit(made, data(), steps=6, optim=dict(lr=1e-2, ema=0.99), workdir=tmp_path, **QUIET)
  loaded, described = vit_jax.load(tmp_path)
  assert described['weights'] == 'best EMA'
  same(arrays(loaded), arrays(result.model))
  from vit_jax import checkpoint

  raw = checkpoint.read(checkpoint.find(tmp_path)[0])['params']
  assert np.abs(raw['head']['kernel'] - arrays(loaded)['head']['kernel']).max() > 1e-4


@pytest.mark.parametrize(('examples', 'batch'), [(21, 8), (21, 16), (3, 8), (16, 8), (1, 16)])
def test_evaluation_counts_every_example_once(examples, batch, devices):
  made, sources = model(), data(test=examples)
  found = vit_jax.evaluate(made, sources, batch=batch)
  images, labels = pictures(examples, seed=1)
  with jax.default_matmul_precision('highest'):
    logits = np.asarray(made((images / 255 - 0.5) / 0.5), np.float64)
  log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  assert found['examples'] == examples and found['unreadable'] == 0
  np.testing.assert_allclose(found['loss'], -log[np.arange(examples), labels].mean(), rtol=1e-5)
  right = logits.argmax(-1) == labels
  assert found['top1'] == right.mean() and found['top5'] == 1
  want = [right[labels == k].mean() if (labels == k).any() else None for k in range(5)]
  assert found['per_class'] == pytest.approx(want)


class Counting(nnx.Module):
  """A stranger's model with state of its own, as batch statistics are."""

  def __init__(self, rngs):
    self.head = nnx.Linear(8 * 8 * 3, 5, rngs=rngs)
    self.calls = nnx.BatchStat(jnp.zeros(()))

  def __call__(self, images, *, key=None):
    if key is not None:
      self.calls[...] = self.calls[...] + 1
    return self.head(images.reshape(images.shape[0], -1)) + 0 * self.calls[...]


def test_a_users_own_model_and_optimizer(tmp_path):
  arguments = dict(data=data(), workdir=tmp_path, optim=optax.adam(1e-3), save=dict(every=2), **QUIET)
  interrupted_fit(5, model=Counting(nnx.Rngs(0)), steps=8, **arguments)
  result = vit_jax.fit(Counting(nnx.Rngs(0)), steps=8, **arguments)
  assert float(result.model.calls[...]) == 8
  with pytest.raises(ValueError, match='changed in Python'):
    vit_jax.load(tmp_path)


def test_a_users_changed_model_is_not_mistaken_for_the_named_one(tmp_path):
  made = model()
  made.head = nnx.Linear(16, 5, use_bias=False, rngs=nnx.Rngs(0))
  vit_jax.fit(made, data(), steps=1, workdir=tmp_path, **QUIET)
  assert json.loads((tmp_path / 'model.json').read_text())['name'] is None


def test_the_state_is_donated():
  made, options = model(), step_lib.Step()
  graphdef, params, rest = state.split(made)
  optimizer = optim.make(total_steps=5)
  run = jax.jit(lambda p, r: step_lib.init(optimizer, p, r, seed=0))(params, rest)
  row = {'mean': [0.5] * 3, 'std': [0.5] * 3}
  step = jax.jit(
    step_lib.make_step(graphdef, optimizer, tasks.make(classes='abcde'), row, seed=0, options=options), donate_argnums=0
  )
  images, labels = pictures(8)
  new, _ = step(run, {'image': images, 'label': labels.astype(np.int32)})
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(run['params']))
  assert int(new['step']) == 1


def test_one_corrupt_picture_changes_one_slot_and_is_counted(tmp_path):
  from PIL import Image

  images, labels = pictures(40)
  for split, rows_ in (('train', range(30)), ('test', range(30, 40))):
    for i in rows_:
      folder = tmp_path / split / str(labels[i])
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(images[i]).save(folder / f'{i}.png')
  read = lambda: next(
    data_lib.train_batches(data_lib.load(str(tmp_path), size=8, crop='none', crop_pct=1), batch=16, seed=0)
  )
  sound = read()
  source = data_lib.load(str(tmp_path), size=8).train
  for victim in (source.describe(int(sound['id'][3])), next(iter(sorted((tmp_path / 'test').rglob('*.png'))))):
    with open(victim, 'r+b') as file:
      file.truncate(40)
  damaged = read()
  assert [i for i in range(16) if damaged['id'][i] != sound['id'][i]] == [3]
  np.testing.assert_array_equal(np.delete(damaged['image'], 3, 0), np.delete(sound['image'], 3, 0))
  found = vit_jax.evaluate(model(), data_lib.load(str(tmp_path), size=8, crop_pct=1, max_unreadable=0.2), batch=8)
  assert (found['examples'], found['unreadable']) == (9, 1)


@pytest.mark.parametrize(('arguments', 'said'), [
  (dict(batch=12), 'batch=12 does not divide over 8 devices; 8 would'),
  (dict(batch=16, step=dict(accumulate=4)), 'batch / step.accumulate=4 does not divide over 8 devices'),
  (dict(batch=16, step=dict(accumulate=3)), 'does not split into step.accumulate=3'),
  (dict(steps=0), 'steps=0: at least 1 is wanted.'),
  (dict(step=dict(augment=dict(cutmix=-1))), 'cutmix=-1 is not the parameter of a Beta distribution'),
  (dict(eval_every=0), 'eval_every=None is once'),
  (dict(step=dict(dtype='float16')), "step.dtype is 'float16'; choose 'float32' or 'bfloat16'."),
  (dict(optim=dict(name='adam')), "There is no optimizer 'adam'; did you mean 'adamw'?"),
  (dict(optim=dict(warmup=9)), 'optim.warmup is 9, which is 9 of 2 steps'),
  (dict(optim=dict(schedule='cosin')), "did you mean 'cosine'"),
  (dict(optim=dict(ema=1)), 'optim.ema is 1'),
  (dict(mesh=dict(data=3)), 'does not multiply to the 8 devices'),
  (dict(workdir=__file__), 'is a file; give a folder'),
  (dict(profile=[1, 2]), 'profile=[1, 2] needs a workdir'),
  (dict(step=dict(accumulate=None)), 'step.accumulate=None is for a config'),
  (dict(optim=dict(freeze='bodies')), "matches no parameter; did you mean 'body'?"),
    (dict(step=dict(attention='cudnn')), "step.attention='cudnn' needs an NVIDIA GPU, and this is a cpu"),
], ids=str)  # fmt: skip
def test_what_does_not_fit_together_is_refused_before_anything_compiles(arguments, said, caplog, devices):
  with jax.log_compiles(), caplog.at_level(logging.WARNING), pytest.raises(ValueError) as caught:
    vit_jax.fit(model(), data(), **{'steps': 2, 'batch': 16, **arguments})
  assert said in str(caught.value) and '\n' not in str(caught.value)
  assert not compilations(caplog, 'train_step')


def test_repeats_must_leave_room_for_two_examples():
  with pytest.raises(ValueError, match='batch=16 has no room for more than one example with data.repeats=16'):
    vit_jax.fit(model(), data(repeats=16), steps=2, batch=16)


def test_cutmix_is_refused_where_a_picture_has_several_labels():
  image, label = pictures()
  several = data_lib.from_arrays((image, np.eye(5, dtype=np.uint8)[label]))
  task = tasks.make('multilabel', loss='sigmoid', classes=several.classes)
  with pytest.raises(ValueError, match="cutmix may cut out what one of several labels of task.name='multilabel'"):
    vit_jax.fit(model(), several, task=task, steps=2, batch=16, step=dict(augment=dict(mixup=0.2, cutmix=1.0)))


def test_a_profile_is_written(tmp_path):
  vit_jax.fit(model(), data(), steps=3, workdir=tmp_path, profile=[2, 2], **QUIET)
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


TUNED = {
  'probe': dict(freeze='body', ema=0.9, weight_decay=0.1),
  'lora': dict(lora=2, lora_alpha=4.0, layer_decay=0.7, ema=0.9),
  'decay': dict(layer_decay=0.5, body_lr=0.3, weight_decay=0.1),
}
ATTENTION = {f'blocks/{i}/attn/{part}/kernel' for i in range(2) for part in ('qkv', 'proj')}
MOVED = {'probe': set(), 'lora': ATTENTION}  # besides the head


@pytest.mark.parametrize(
  ('how', 'scan'),
  [
    ('probe', True),
    ('lora', True),
    pytest.param('lora', False, marks=pytest.mark.slow),
    pytest.param('decay', True, marks=pytest.mark.slow),
  ],
)
def test_a_tuned_run_goes_on_bit_for_bit_and_is_plain_weights_to_others(tmp_path, how, scan):
  arguments = lambda workdir: dict(
    model=model(scan=scan), data=data(), steps=4, save=dict(every=2), workdir=workdir,
    optim=dict(lr=1e-2, **TUNED[how]), step=dict(scan=scan), **QUIET)  # fmt: skip
  whole = vit_jax.fit(**arguments(tmp_path / 'whole'))
  interrupted_fit(3, **arguments(tmp_path / 'parts'))
  parts = vit_jax.fit(**arguments(tmp_path / 'parts'))
  assert losses(tmp_path / 'parts') == losses(tmp_path / 'whole')
  same(arrays(parts.model), arrays(whole.model))

  before, after = (state.flatten(state.unstack(arrays(one))) for one in (model(), whole.model))
  moved = {path for path in before if (before[path] != after[path]).any()}
  assert moved == MOVED.get(how, set(before)) | {'head/bias', 'head/kernel'}
  loaded, described = vit_jax.load(tmp_path / 'parts')
  assert described['name'] == 'vit_tiny_patch16_224'
  for path, leaf in state.flatten(arrays(loaded)).items():
    np.testing.assert_allclose(leaf, after[path], rtol=1e-6, atol=1e-7)
  if how == 'probe':
    from vit_jax import checkpoint

    saved = checkpoint.read(tmp_path / 'parts' / 'checkpoints' / '4', ('params', 'ema', 'opt'))
    assert list(saved['params']) == list(saved['ema']) == ['head']
    assert {leaf.shape for leaf in jax.tree.leaves(saved['opt'])} == {(), (5,), (16, 5)}


def test_a_tuned_run_is_the_same_on_one_device_and_on_eight(devices):
  optimizer = dict(name='sgd', lr=0.1, **TUNED['lora'])  # AdamW blows up the noise in gradients that are zero
  arguments = dict(data=data(), steps=3, optim=optimizer, **QUIET)
  eight = vit_jax.fit(model(), **arguments, mesh=dict(data=4, fsdp=2))
  one = sharding.make_mesh(devices=devices[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'make_mesh', lambda **_: one)
    single = vit_jax.fit(model(), **arguments)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, arrays(eight.model), arrays(single.model))
