"""Distillation: the losses against PyTorch, who is shown which picture, and runs that go on bit for bit."""

import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from vit_jax import augment, cli, distill, inference, optim, pretrained, sources, state, tasks, transforms
from vit_jax import data as data_lib
from vit_jax import step as step_lib
from vit_jax.workdir import Workdir

GOLDEN = np.load(pathlib.Path(__file__).parent / 'goldens_recipes' / 'distill.npz')
TINY = dict(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2)
QUIET = dict(log_every=1, batch=16)
DEIT = 'deit_tiny_distilled_patch16_224'


def pictures(n=50, seed=0):
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 5, n)
  image = (rng.normal(size=(n, 8, 8, 3)) * 20 + label[:, None, None, None] * 40 + 30).clip(0, 255).astype(np.uint8)
  return image, label


def data(**options):
  return data_lib.from_arrays(pictures(), **options)


def model(name='vit_tiny_patch16_224', seed=0, **overrides):
  made = vit_jax.create_model(name, seed=seed, **{'num_classes': 5, **TINY, **overrides})
  for i, head in enumerate((made.head, getattr(made, 'head_dist', None))):
    if head is not None:
      head.kernel[...] = jax.random.normal(jax.random.key(i), head.kernel.shape) * 0.3
  return made


def teacher(seed=1, said=None, **overrides):
  """A model that nobody trained, with a description; its pictures have a mean and a spread of their own."""
  made = model(seed=seed, **overrides)
  size = overrides.get('img_size', 8)
  row = transforms.preprocessing(size, crop_pct=1.0, mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
  pretrained.remember(made, **{'preprocessing': row, 'classes': list('01234'), 'loss': 'softmax', **(said or {})})
  return made


def task(distillation='hard', **how):
  return tasks.make(**{'classes': '01234', 'distillation': distillation, **how})


# -- what is learnt


@pytest.mark.parametrize('alpha', [0.0, 0.3, 1.0])
def test_the_losses_are_pytorchs(alpha):
  """Made with torch 2.13: F.cross_entropy(own, target), F.cross_entropy(dist, teacher.argmax(1)), and DeiT's
  kl_div(log_softmax(dist / t), log_softmax(teacher / t), 'sum', log_target=True) * t^2 / dist.numel()."""
  batch = {'target': GOLDEN['target'], 'teacher': GOLDEN['teacher']}
  outputs, k = (GOLDEN['own'], GOLDEN['dist']), 7
  how = dict(classes=range(k), alpha=alpha)
  want = (1 - alpha) * GOLDEN['base'] + alpha * GOLDEN['hard']
  np.testing.assert_allclose(task('hard', **how).loss(outputs, batch).mean(), want, rtol=1e-6)
  for t in (1.0, 3.0):
    want = (1 - alpha) * GOLDEN['base'] + alpha * k * GOLDEN[f'soft{t:.0f}']  # the sum over classes, not their mean
    found = task('soft', **how, temperature=t).loss(outputs, batch)
    np.testing.assert_allclose(found.mean(), want, rtol=1e-5)


def test_of_two_heads_one_learns_the_labels_and_one_the_teacher_and_a_single_head_both():
  images, labels = pictures(6)
  images = (images / 255).astype(np.float32)
  said = np.asarray(jax.random.normal(jax.random.key(5), (6, 5)))

  def gradients(made):
    """{head: [size of its gradient where alpha is 0, 0.5, 1]}"""
    graphdef, params, rest = state.split(made)
    how = task('soft')
    batch = {'label': labels, 'teacher': said}
    batch['target'] = how.target(batch)

    def loss(params, alpha):
      how.alpha = alpha
      return how.loss(how.outputs(state.merge(graphdef, params, rest), images, None), batch).mean()

    gradient = jax.jit(jax.grad(loss))
    found = [gradient(params, alpha) for alpha in (0.0, 0.5, 1.0)]
    return {name: [np.abs(one[name]['kernel']).max() for one in found] for name in params if name.startswith('head')}

  two = gradients(model(DEIT))
  assert set(two) == {'head', 'head_dist'} and two['head_dist'][0] == two['head'][2] == 0
  assert min(*two['head'][:2], *two['head_dist'][1:], *gradients(model())['head']) > 1e-3


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn():
  z = jax.random.normal(jax.random.key(0), (4, 5)) * 4
  for loss in ('softmax', 'sigmoid'):
    how = task('soft', loss=loss, alpha=1.0)
    apart = lambda student: how.loss((student, student), {'target': z, 'teacher': z}).sum()  # noqa: B023  used at once
    assert abs(float(apart(z))) < 1e-4 and float(jnp.abs(jax.grad(apart)(z)).max()) < 1e-5
    assert float(apart(z + jax.random.normal(jax.random.key(1), z.shape))) > 0.1


def test_logits_in_other_terms_have_the_same_probabilities():
  z = np.array(jax.random.normal(jax.random.key(0), (4, 5)) * 6)
  z[0] = [60, 0, 0, 0, 0]  # as sure as float32 can be
  np.testing.assert_allclose(
    jax.nn.sigmoid(distill.in_terms(z, 'softmax', 'sigmoid')), jax.nn.softmax(z), rtol=1e-5, atol=2e-6
  )
  each = np.asarray(jax.nn.sigmoid(z), np.float64)
  found = jax.nn.softmax(distill.in_terms(z, 'sigmoid', 'softmax'))
  np.testing.assert_allclose(found, each / each.sum(1, keepdims=True), rtol=1e-5)
  assert distill.in_terms(z, 'sigmoid', 'sigmoid') is z
  assert np.isfinite(distill.in_terms(z, 'softmax', 'sigmoid')).all()


# -- who knows which classes


@pytest.mark.parametrize(
  ('said', 'count', 'classes', 'want'),
  [
    (dict(classes=None), 3, 'abc', None),
    (dict(classes=['a', 'b', 'c']), 3, 'abc', None),
    (dict(classes=['c', 'a', 'b']), 3, 'abc', [1, 2, 0]),
    (dict(classes=['crane', 'dog', 'crane'], ids=['n1', 'n2', 'n3']), 3, ['n3', 'n1'], [2, 0]),
    (dict(classes=['a', 'b', 'c'], ids=['n1', 'n2', 'n3']), 3, 'cb', [2, 1]),
  ],
)
def test_classes_are_matched_by_name_id_or_count(said, count, classes, want):
  found = distill.columns(pretrained.SAID | said, count, list(classes))
  assert (found if found is None else found.tolist()) == want


def test_a_teacher_with_its_classes_in_another_order_gives_the_students():
  how = dict(size=(8, 8), dtype='float32')
  images = pictures(4)[0]
  one = distill.Teacher(teacher(), task(), **how)
  other = distill.Teacher(teacher(said={'classes': list('43210')}), task(), **how)
  np.testing.assert_array_equal(jax.jit(other)(other.weights, images), jax.jit(one)(one.weights, images)[:, ::-1])
  assert one.record['fingerprint'] != distill.Teacher(teacher(seed=2), task(), **how).record['fingerprint']


# -- in the step


class Spy(tasks.Distilled):
  """A task whose loss is the teacher's logit of the label, so that a step shows what it was."""

  def loss(self, outputs, batch):
    return batch['teacher'][jnp.arange(len(batch['label'])), batch['label']]


def test_the_teacher_sees_the_students_pictures_in_units_of_its_own():
  how = dict(distillation='hard', teacher=None, teacher_at='step', alpha=0.5, temperature=3.0)
  spy, options = Spy(list('01234'), **how), step_lib.Step(accumulate=2, augment=dict(mixup=0.4))
  taught = distill.Teacher(teacher(), spy, size=(8, 8), dtype='float32')
  graphdef, params, rest = state.split(model(DEIT))
  optimizer = optim.make(total_steps=4)
  step = step_lib.make_step(graphdef, optimizer, spy, data().row, seed=3, options=options, teacher=taught)
  run = jax.jit(lambda: step_lib.init(optimizer, params, rest, seed=3))()
  images, labels = pictures(8)
  arguments = run, {'image': images, 'label': labels.astype(np.int32)}, taught.weights
  _, values = jax.jit(step)(*arguments)

  key = jax.random.split(jax.random.fold_in(jax.random.key(3), 0))[0]
  seen = augment.make(mixup=0.4)(key, {'image': images, 'target': spy.target({'label': labels})}, data().row)['image']
  row, made = taught.row, teacher()
  alone = jax.jit(lambda images: made(images))(
    (seen / 255 - np.array(row['mean'], np.float32)) / np.array(row['std'], np.float32)
  )
  np.testing.assert_allclose(values['loss'], alone[np.arange(8), labels].mean(), rtol=1e-5)
  constants = sum(np.size(leaf) for leaf in jax.make_jaxpr(step)(*arguments).consts)
  assert constants < 100 < sum(leaf.size for leaf in jax.tree.leaves(taught.weights))  # an argument, not a constant


def test_a_teacher_in_bfloat16_says_the_same():
  images = pictures(16)[0]
  exact = distill.Teacher(teacher(), task(), size=(8, 8), dtype='float32')
  coarse = distill.Teacher(teacher(), task(), size=(8, 8), dtype='bfloat16')
  assert {leaf.dtype for leaf in jax.tree.leaves(coarse.weights)} == {jnp.bfloat16.dtype}
  want, found = (np.asarray(jax.jit(one)(one.weights, images)) for one in (exact, coarse))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, want, atol=0.05 * np.abs(want).max())


# -- in a run


def losses(workdir):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {line['step']: line['loss'] for line in lines if 'lr' in line}


def arrays(made):
  return jax.tree.map(np.asarray, state.split(made)[1])


def fitted(workdir, *, stop=None, **overrides):
  """A run of 6 steps on its model, interrupted after `stop` batches."""
  arguments = dict(
    model=model(DEIT), data=data(), steps=6, teacher=teacher(), task=task(), optim=dict(lr=1e-2), save=dict(every=2),
    workdir=workdir, **QUIET)  # fmt: skip
  with pytest.MonkeyPatch.context() as patch:
    original = data_lib.to_device

    def to_device(batches, placement):
      for i, one in enumerate(original(batches, placement)):
        if i == stop and 'mask' not in one[1]:  # the last batch of training before a kill
          raise InterruptedError
        yield one

    patch.setattr(data_lib, 'to_device', to_device)
    return vit_jax.fit(**{**arguments, **overrides})


@pytest.mark.parametrize(
  'how',
  [
    pytest.param(dict(), id='step', marks=pytest.mark.slow),  # the same loop, and a program of its own
    pytest.param(dict(teacher_at='ahead', distillation='soft'), id='ahead'),
  ],
)
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, monkeypatch, how):
  how = dict(task=task(**how))
  whole = fitted(tmp_path / 'whole', **how)
  with pytest.raises(InterruptedError):
    fitted(tmp_path / 'parts', stop=5, **how)
  monkeypatch.setattr(distill, '_looked', lambda *_, **__: pytest.fail('the teacher looked again'))
  parts = fitted(tmp_path / 'parts', **how)
  assert losses(tmp_path / 'parts') == losses(tmp_path / 'whole') and len(losses(tmp_path / 'whole')) == 6
  jax.tree.map(np.testing.assert_array_equal, arrays(parts.model), arrays(whole.model))
  assert len(list((tmp_path / 'parts').glob('teacher-*.npy'))) == (how['task'].teacher_at == 'ahead')

  record = json.loads((tmp_path / 'parts' / 'run.json').read_text())['config']['teacher']
  assert record['name'] == 'vit_tiny_patch16_224' and len(record['fingerprint']) == 64
  assert vit_jax.load(tmp_path / 'parts')[1]['teacher'] == record
  saved = {one.name for one in (tmp_path / 'parts' / 'checkpoints' / '6').iterdir()}
  assert saved == {one.name for one in (tmp_path / 'whole' / 'checkpoints' / '6').iterdir()} and 'params' in saved
  assert not any('teacher' in name for name in saved)
  with pytest.raises(ValueError, match='teacher.fingerprint: '):
    fitted(tmp_path / 'parts', **how, teacher=teacher(seed=5))


@pytest.mark.slow
def test_a_run_is_the_same_on_other_meshes(tmp_path, devices):
  for name, mesh in {'data': {}, 'both': dict(data=4, fsdp=2)}.items():
    with pytest.raises(InterruptedError):
      fitted(tmp_path / name, mesh=mesh, stop=2)
  one, two = (losses(tmp_path / name) for name in ('data', 'both'))
  assert list(one) == [1, 2]
  np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-4)


def test_what_a_teacher_says_ahead_is_what_it_predicts_at_its_own_size(tmp_path):
  looking = teacher(img_size=12)
  one = distill.Teacher(looking, task('soft', teacher_at='ahead'), size=(8, 8), dtype='float32')
  mesh = vit_jax.train.sharding.make_mesh()
  found = distill.ahead(one, data(), batch=16, mesh=mesh, folder=tmp_path)
  predictor = inference.Predictor(looking)
  want = predictor(np.stack([predictor.prepare(image) for image in pictures()[0]]))
  np.testing.assert_allclose(jax.nn.softmax(found), want, rtol=1e-4, atol=1e-6)
  batches = data_lib.train_batches(data(), batch=16, seed=0)
  for batch, _ in zip(distill.joined(batches, one, data(), batch=16, mesh=mesh, folder=tmp_path), range(5)):
    np.testing.assert_array_equal(batch['teacher'], found[batch['id']])


def test_a_picture_that_the_teacher_could_not_read_is_left_out_for_good(tmp_path):
  from PIL import Image

  for split, images in (('train', pictures(20)), ('test', pictures(4, seed=1))):
    for i, (image, label) in enumerate(zip(*images)):
      folder = tmp_path / split / str(label)
      folder.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(folder / f'{i}.png')
  load = lambda: data_lib.load(str(tmp_path), size=8, crop='none', crop_pct=1.0, max_unreadable=0.2, threads=1)
  victim = pathlib.Path(load().train.describe(7))
  sound = victim.read_bytes()
  one = distill.Teacher(teacher(), task(teacher_at='ahead'), size=(8, 8), dtype='float32')
  where = dict(batch=8, mesh=vit_jax.train.sharding.make_mesh(), folder=tmp_path)
  victim.write_bytes(sound[:40])
  assert np.flatnonzero(np.isnan(distill.ahead(one, load(), **where)).any(1)).tolist() == [7]
  victim.write_bytes(sound)
  again = load()
  batches = distill.joined(data_lib.train_batches(again, batch=8, seed=0), one, again, **where)
  seen = np.concatenate([batch['id'] for batch, _ in zip(batches, range(5))])
  assert 7 not in seen and set(seen) == set(range(20)) - {7}


# -- what is refused


@pytest.mark.parametrize(
  ('arguments', 'own', 'said'),
  [
    (dict(teacher=None), None, "task.distillation='hard' needs a teacher: task.teacher=WORKDIR"),
    (dict(task=None), {}, "There is a teacher, and task.distillation is 'none'"),
    ({}, dict(said={'classes': list('abcde')}), 'does not know 5 of the 5 classes of the data: 0, 1, 2'),
    ({}, dict(said={'classes': None}, num_classes=4), 'tells 4 classes, and the data has 5'),
    ({}, dict(global_pool=''), 'tells no classes, its output is (1, 5, 5)'),
    ({}, dict(patch_size=3, img_size=9), 'of 9x9, not of 8x8: train at that img_size, or let it look ahead'),
    ({}, dict(said={'preprocessing': None}), 'does not say how pictures are prepared'),
    (
      dict(task=task(teacher_at='ahead'), step=dict(augment=dict(mixup=0.2))),
      {},
      "task.teacher_at='ahead' knows single pictures, and step.augment.mixup blends two",
    ),
  ],
  ids=lambda value: None if isinstance(value, str) else '-',
)
def test_what_does_not_fit_together_is_refused_before_anything_compiles(arguments, own, said, caplog, tmp_path):
  arguments = arguments if own is None else {'teacher': teacher(**own), **arguments}
  with jax.log_compiles(), caplog.at_level(logging.WARNING), pytest.raises(ValueError) as caught:
    fitted(tmp_path / 'run', **arguments)
  assert said in str(caught.value) and '\n' not in str(caught.value)
  assert not [r for r in caplog.records if 'jit(train_step)' in r.getMessage()] and not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('how', 'said'),
  [(dict(alpha=1.5), 'task.alpha is 1.5'), (dict(temperature=0), 'task.temperature is 0; it must be over 0')],
)
def test_values_out_of_range_are_refused(how, said):
  with pytest.raises(ValueError, match=said):
    task(**how)


# -- from the front door

TRAIN = [
  'train', '--config=digits', '--config.model.embed_dim=24', '--config.model.depth=1', '--config.batch=64',
  '--config.total_steps=2', '--config.data.test=none',
]  # fmt: skip


def test_a_workdir_teaches(tmp_path, capsys):
  made = teacher(num_classes=10, said={'classes': [str(i) for i in range(10)]})
  folder = Workdir(tmp_path / 'teacher', {'total_steps': 1}, model=made, data=data(), steps=1, save={}, extend=False)
  folder.save(1, {'params': state.split(made)[1], 'rest': {}, 'opt': {}}, None, None)
  folder.close()
  named = [f'--config.task.teacher={tmp_path / "teacher"}', f'--workdir={tmp_path / "student"}']
  assert cli.main([*TRAIN, '--config.task.distillation=hard', *named]) == 0
  record = json.loads((tmp_path / 'student' / 'model.json').read_text())['teacher']
  assert record['model'] == str(tmp_path / 'teacher') and record['weights'] == 'last'
  capsys.readouterr()
  assert cli.main([*TRAIN, '--config.task.distillation=soft', *named]) == 2
  assert "task.distillation: 'hard' -> 'soft'" in capsys.readouterr().err


def test_a_distillation_without_its_teacher_is_refused_before_data_is_read(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sources, 'open_source', lambda *_, **__: pytest.fail('data was read'))
  for flags, said in [
    (['distillation=hard'], 'needs a teacher'),
    (['teacher=x/y'], "task.distillation is 'none'"),
    (['distillation=hard', 'teacher=x/y'], 'x/y'),
  ]:
    assert cli.main([*TRAIN, *(f'--config.task.{flag}' for flag in flags), f'--workdir={tmp_path / "run"}']) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ') and said in err and err.count('\n') == 1
