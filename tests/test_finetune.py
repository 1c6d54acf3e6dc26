"""configs/finetune.py and what it leans on: the length by the data, the model's own preprocessing, parts that fit."""

import json

import numpy as np
from PIL import Image
import pytest

import vit_jax
from vit_jax import bench, cli, config, jobs, models, sources
from vit_jax import data as data_lib

TINY = dict(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2)
ROW = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), eval_crop='squash', crop_pct=0.8, interpolation='bilinear')


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """The workdir of a tiny ViT that has seen three classes."""
  folder = tmp_path_factory.mktemp('weights') / 'run'
  images = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 3)).astype(np.uint8)
  data = data_lib.from_arrays((images, np.arange(16) % 3), (images, np.arange(16) % 3), **ROW)
  model = vit_jax.create_model('vit_tiny_patch16_224', num_classes=3, **TINY)
  vit_jax.fit(model, data, steps=1, batch=16, workdir=folder)
  return folder


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """A folder without a test split: 30 cats and 10 dogs."""
  folder = tmp_path_factory.mktemp('pictures')
  for i in range(40):
    place = folder / ('dog' if i % 4 == 0 else 'cat')
    place.mkdir(exist_ok=True)
    Image.fromarray(np.full((10, 12, 3), 6 * i, np.uint8)).save(place / f'{i}.png')
  return folder


class Many:
  """A source of n pictures, as far as its length goes."""

  def __init__(self, n):
    self.n, self.classes = n, ['a']

  def __len__(self):
    return self.n


@pytest.mark.parametrize(('n', 'want'), [
  (200, (500, 128, 0.0075, 0.2, 0.0)), (512, (500, 512, 0.03, 0.2, 0.0)), (19_999, (500, 512, 0.03, 0.2, 0.0)),
  (20_000, (10_000, 512, 0.03, 0.05, 0.1)), (500_000, (20_000, 512, 0.03, 0.025, 0.1)),
])  # fmt: skip
def test_the_size_of_the_data_decides(n, want, weights, monkeypatch, capsys):
  monkeypatch.setattr(sources, 'open_source', lambda *_, **__: Many(n))
  found = config.load(f'finetune:{weights},DIR')
  got = found.total_steps, found.batch, found.optim.lr, found.optim.warmup, found.step.augment.mixup
  assert got == pytest.approx(want)
  assert ('batches of 128 in place of 512, and lr 0.0075' in capsys.readouterr().err) == (n == 200)


def test_the_published_recipe_and_the_weights_own_preprocessing(weights, pictures):
  found = config.resolve(config.load(f'configs/finetune.py:{weights},{pictures}'))
  optim = {key: found['optim'][key] for key in ('name', 'momentum', 'schedule', 'weight_decay', 'clip')}
  assert optim == {'name': 'sgd', 'momentum': 0.9, 'schedule': 'cosine', 'weight_decay': 0.0, 'clip': 1.0}
  assert {key: found['data'][key] for key in ROW} == {k: list(v) if isinstance(v, tuple) else v for k, v in ROW.items()}
  assert found['data']['scale'] == [0.05, 1.0] and found['model']['reset'] == ['head']
  assert found['model']['pretrained'] == str(weights) and 'img_size' not in found['model']


def test_prepared_data_without_a_test_split_is_cut(weights, monkeypatch):
  def opened(name, split, **_):
    if split == 'test':
      raise ValueError('no split')
    return Many(900 if split == 'train[:90%]' else 1000)

  monkeypatch.setattr(sources, 'open_source', opened)
  found = config.load(f'finetune:{weights},tfds:rare')
  assert (found.data.name, found.data.train, found.data.test) == ('tfds:rare', 'train[:90%]', 'train[90%:]')


def run(spec, workdir, *flags):
  return cli.main(['train', f'--config=finetune:{spec}', f'--workdir={workdir}', '--config.total_steps=2',
                   '--config.log_every=1', '--config.mesh.data=8', '--config.batch_eval=8', *flags])  # fmt: skip


def test_a_folder_is_all_it_takes_and_the_parts_stay_what_they_were(weights, pictures, tmp_path, monkeypatch, capsys):
  workdir = tmp_path / 'run'
  picture = bench.activation_bytes(models.abstract('vit_tiny_patch16_224', **TINY), 8)
  monkeypatch.setattr(jobs, 'ROOM', 16 * 1.5 * picture)
  assert run(f'{weights},{pictures}', workdir) == 0, capsys.readouterr().err
  err = capsys.readouterr().err
  assert '36 pictures to train on: batches of 32 in place of 512, and lr 0.001875 in place of 0.03' in err
  assert 'batches of 32 in 2 parts of 16: a picture takes about' in err
  assert 'classes are uneven: dog has 9 pictures to train on, cat 27' in err
  record = json.loads((workdir / 'run.json').read_text())['config']
  assert record['step']['accumulate'] == 2 and record['batch'] == 32
  described = json.loads((workdir / 'model.json').read_text())
  assert described['classes'] == ['cat', 'dog'] and described['preprocessing']['mean'] == [0.4, 0.5, 0.6]
  first = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[0])
  assert first['loss'] == pytest.approx(np.log(2)), 'the new head starts at zero'
  monkeypatch.setattr(jobs, 'ROOM', 2**40)  # another machine: the run is continued as it was begun
  assert run(f'{weights},{pictures}', workdir) == 0
  assert 'is finished, at step 2 of 2' in capsys.readouterr().err


def test_adapters_are_one_flag_and_plain_weights_to_evaluate(weights, pictures, tmp_path, capsys):
  assert run(f'{weights},{pictures}', tmp_path, '--config.optim.lora=2', '--config.optim.layer_decay=0.75') == 0
  out = capsys.readouterr().out
  assert cli.main(['evaluate', f'--model={tmp_path}', f'--data={pictures}', '--batch=8']) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert f'{found["top1"]:.2%}' in out and found['examples'] == 4


@pytest.mark.parametrize(('spec', 'flags', 'said'), [
  ('{weights},missing', (), 'missing: no such folder or file'),
  ('vit_tinny_patch16_224,{pictures}', (), 'did you mean vit_tiny_patch16_224'),
  ('vit_base_patch16_gap_norep_224,{pictures}', (), 'no published weights for vit_base_patch16_gap_norep_224; give'),
  ('/none/such,{pictures}', (), '/none/such'),
  ('{weights}', (), 'MODEL,DATA is wanted, as in --config=finetune:'),
  ('{weights},{pictures}', ('--config.model.num_classes=3',), 'model.num_classes is 3, and the data has 2'),
  ('{weights},{pictures}', ('--config.optim.lora=2', '--config.optim.freeze=body'), 'optim.lora already freezes'),
  ('{weights},{pictures}', ('--config.optim.layer_decay=1.5',), 'above 0 and at most 1'),
  ('{weights},{pictures}', ('--config.optim.lora=99',), 'optim.lora=99 is more than'),
  ('{weights},{pictures}', ('--config.optim.freeze=blok',), "names 'blok', which matches no parameter"),
], ids=str)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(spec, flags, said, weights, pictures, tmp_path, capsys):
  spec = spec.format(weights=weights, pictures=pictures)
  assert run(spec, tmp_path / 'run', *flags) == 2
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.startswith('error: ') and said in last
  assert not (tmp_path / 'run' / 'run.json').exists()


def test_activations_are_counted_for_what_is_trained():
  model = models.abstract('vit_tiny_patch16_224', **TINY)
  everything = bench.activation_bytes(model, 8)
  assert bench.activation_bytes(models.abstract('vit_tiny_patch16_224', **TINY, remat='full'), 8) < everything / 2
  probe = bench.activation_bytes(model, 8, split=lambda p: ({'head': p['head']}, {k: p[k] for k in p if k != 'head'}))
  assert probe < everything / 10
  assert 4 * 5 * 16 * 2 * 8 < everything < 4 * 5 * 16 * 2 * 60, 'some tens of numbers a token, width and block'
