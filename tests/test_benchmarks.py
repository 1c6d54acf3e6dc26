"""benchmarks/recipes.py: every row of the ledger can be built, here and on a GPU, and what it computes is right."""

import json

import numpy as np
import pytest
import scripts

from vit_jax import config, models, optim, pretrained, signatures, tasks, train
from vit_jax import step as step_lib


@pytest.fixture(scope='module')
def recipes():
  return scripts.benchmark('recipes')


def row(trick, top1, **given):
  """A row of the ledger."""
  return {'data': 'Few, 10', 'trick': trick, 'top1': top1, 'train_top1': 1.0, 'ece': 0.1, 'nll': 1.0, 'sharpness': 0.01,
          'cpu_seconds': 3.0, 'steps': 5, 'device': 'cpu', **given}  # fmt: skip


@pytest.mark.parametrize('gpu', [False, True])
def test_every_row_of_the_ledger_resolves_and_its_parts_go_together(recipes, gpu):
  table, built = recipes.wanted(gpu), {}
  for name, flags in table.values():
    flags = {key: '7' if value is None else str(value) for key, value in flags.items()}
    resolved = config.resolve(config.load(f'{name}:DATA.npz'), flags)
    step_lib.Step(**resolved['step'])
    optim.make(**resolved['optim'], total_steps=resolved['total_steps'])
    train.check_mixing(tasks.make(**resolved['task'], classes=['no', 'yes']), resolved['step']['augment'])
    given = signatures.signature(pretrained.create_model, ('name', 'num_classes'))
    model = {key: value for key, value in resolved['model'].items() if key not in given}
    built[json.dumps(model, sort_keys=True)] = model
  counts = [models.count(models.abstract(model.pop('name'), **model | {'num_classes': 10})) for model in built.values()]
  assert min(counts) > 50_000
  assert (max(counts) > 10_000_000) == gpu
  assert {seed for *_, seed in table} == {0, 1, 2}
  assert {trick for _, trick, _ in table} >= set(recipes.TRICKS)


@pytest.mark.parametrize('gpu', [False, True])
def test_teachers_are_runs_that_come_first(recipes, gpu):
  table = recipes.wanted(gpu)
  folders = [recipes.folder_of(*key) for key in table]
  assert len(set(folders)) == len(folders)
  taught = {key: flags for key, (_, flags) in table.items() if key[1] == 'distillation'}
  teachers = {recipes.folder_of(*key): flags['task.teacher'] for key, flags in taught.items()}
  assert len(teachers) == len(recipes.SEEDS) * (1 if gpu else len(recipes.SUBSETS))
  for student, teacher in teachers.items():
    assert folders.index(teacher) < folders.index(student)


def test_neighbours_are_those_of_all_distances(recipes, tmp_path):
  rng = np.random.default_rng(0)
  x, y = rng.integers(0, 256, (60, 3, 3), np.uint8), rng.integers(0, 3, 60)
  np.savez(tmp_path / 'few.npz', x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
  right = 0
  for picture, label in zip(x[50:], y[50:]):
    near = np.square(x[:50] / 255 - picture / 255).sum((1, 2)).argsort()[:3]
    votes = [(y[near] == i).sum() for i in range(3)]
    best = y[near[0]] if max(votes) == 1 else int(np.argmax(votes))
    right += best == label
  assert recipes.neighbours(tmp_path / 'few.npz', k=3) == right / 10


def test_the_table_has_means_and_standard_deviations(recipes, capsys):
  whole = row('its config, wider', 0.9, data='MNIST', date='2026-11-30')
  recipes.tables([whole, row('none', 0.50, seed=0), row('none', 0.52, seed=1), row('mixup', 0.60, seed=0)])
  out = capsys.readouterr().out
  assert '| MNIST | its config, wider | 5 | 90 | 100 | 3 | 2026-11-30 |' in out
  assert '| none | 2 | 51.00 ± 1.41 | 49.00 ± 1.41 |' in out
  assert '| mixup | 1 | 60.00 ± nan |' in out


@pytest.mark.slow
def test_a_row_trains_and_measures(recipes, tmp_path):
  """Two small steps of a row: the ledger's line is whole and finite, and the model lies where a teacher would."""
  rng = np.random.default_rng(0)
  arrays = {f'x_{part}': rng.integers(0, 256, (n, 28, 28), np.uint8) for part, n in (('train', 16), ('test', 8))}
  np.savez(tmp_path / 'few.npz', **arrays, y_train=np.arange(16) % 2, y_test=np.arange(8) % 2)
  key = 'Fashion-MNIST, 1,000', 'none', 0
  name, flags = recipes.wanted(False)[key]
  small = {
    'total_steps': 2,
    'batch': 8,
    'batch_eval': 8,
    'data.train': 'train',
    'model.embed_dim': 16,
    'model.depth': 1,
  }
  found = recipes.train(key, name, flags | small, tmp_path / 'few.npz', work=tmp_path, ledger=tmp_path, chosen={})
  assert (found['steps'], found['examples'], found['device'], found['resumed']) == (2, 8, 'cpu', False)
  assert all(np.isfinite(found[key]) for key in ('top1', 'train_top1', 'nll', 'ece', 'sharpness', 'cpu_seconds'))
  assert (tmp_path / recipes.folder_of(*key) / 'model.json').is_file()
