"""Every shipped config: a tiny model on a little data, two steps and a third that is repeated after an interruption."""

import ast
import json
import re
import shutil

import numpy as np
from PIL import Image
import pytest

from vit_jax import checkpoint, cli, config, pretrained, state

SHAPE = {'embed_dim': 16, 'depth': 1, 'num_heads': 2}
TINY = {'total_steps': 3, 'eval_every': None, 'batch': 8, 'log_every': 1, 'save.every': 1, 'save.last': 3}
PLAIN = {'step.augment.mixup': 0.0}  # drawing from a Beta distribution compiles for seconds


def npz(folder, shape):
  """A FILE.npz as Keras has it, 16 pictures to train and 8 to test on, of two classes."""
  rng = np.random.default_rng(0)
  arrays = {f'x_{part}': rng.integers(0, 256, (n, *shape), np.uint8) for part, n in (('train', 16), ('test', 8))}
  labels = {f'y_{part}': np.arange(n) % 2 for part, n in (('train', 16), ('test', 8))}
  np.savez(folder / 'pictures.npz', **arrays, **labels)
  return folder / 'pictures.npz'


def pictures(folder):
  """A folder of 10 + 10 pictures in two class folders."""
  for i in range(20):
    place = folder / 'pictures' / ('cat', 'dog')[i % 2]
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 24, 3), 12 * i, np.uint8)).save(place / f'{i}.png')
  return folder / 'pictures'


def weights(folder):
  """The workdir of a ViT-Ti_16 of two classes and 48 pixels, of SHAPE."""
  model = pretrained.create_model('ViT-Ti_16', num_classes=2, img_size=48, **SHAPE)
  kept = checkpoint.Checkpoints(folder / 'weights')
  kept.save(1, {'params': state.split(model)[1], 'rest': {}}, {'step': 1}, 0.5)
  kept.close()
  described = {**pretrained.origin(model), 'num_classes': 2, 'classes': ['cat', 'dog']}
  (folder / 'weights' / 'model.json').write_text(json.dumps(described))
  return folder / 'weights'


MODEL = {f'model.{key}': value for key, value in SHAPE.items()}
# config: (folder -> what follows its name, overrides beside TINY)
ROWS = {
  'digits': (lambda folder: '', MODEL),
  'mnist': (lambda folder: f':{npz(folder, (28, 28))}', MODEL | PLAIN),
  'fashion_mnist': (lambda folder: f':{npz(folder, (28, 28))}', MODEL | PLAIN),
  'cifar10': (lambda folder: f':{npz(folder, (32, 32, 3))}', MODEL | PLAIN),
  'folder': (lambda folder: f':vit_tiny_patch16_224,{pictures(folder)}', MODEL | PLAIN | {'model.img_size': 32}),
  'finetune': (lambda folder: f':{weights(folder)},{pictures(folder)}', {'mesh.data': 8, 'batch_eval': 8}),
  'vit': (lambda folder: f':ViT-Ti_16,digits,{weights(folder)}', {'model.img_size': 32, 'batch': 64}),
}


def start(spec, workdir, overrides):
  """Exit code of a run with --config.KEY=VALUE of each override."""
  flags = [f'--config.{key}={value}' for key, value in overrides.items()]
  return cli.main(['train', f'--config={spec}', f'--workdir={workdir}', *flags])


def losses(workdir):
  """{step: loss} of metrics.jsonl's training lines."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: line['loss'] for line in lines if 'lr' in line}


def test_every_config_has_a_row():
  assert sorted(ROWS) == config.names()


@pytest.mark.parametrize('name', ROWS)
def test_three_steps_and_the_third_again(name, tmp_path, capsys):
  arguments, overrides = ROWS[name]
  spec, overrides, workdir = name + arguments(tmp_path), TINY | overrides, tmp_path / 'run'
  assert start(spec, workdir, overrides) == 0, capsys.readouterr().err
  first = losses(workdir)
  assert sorted(first) == [1, 2, 3]
  assert np.isfinite([*first.values()]).all()
  shutil.rmtree(workdir / 'checkpoints' / '3')  # as if the run had been killed after step 2 was saved
  assert start(spec, workdir, overrides) == 0, capsys.readouterr().err
  assert losses(workdir) == first, 'equal bit for bit'
  assert (workdir / 'checkpoints' / '3').is_dir()
  described = json.loads((workdir / 'model.json').read_text())
  assert described['architecture']['embed_dim'] == 16, 'also where only the weights say so'


@pytest.mark.parametrize('spec', ['folder', 'folder:ViT-B_16', 'folder:,x', 'finetune:x', 'vit', 'vit:ViT', 'vit:,x'])
def test_configs_with_arguments_say_which_they_want(spec):
  with pytest.raises(ValueError, match='is wanted, as in --config='):
    config.load(spec)


def test_the_published_fine_tuning_settings_are_kept():
  loaded = config.load('vit:ViT-H_14,imagenet2012')
  assert (loaded.total_steps, loaded.batch, loaded.model.img_size) == (20_000, 512, 392)
  assert (loaded.optim.lr, loaded.optim.warmup * loaded.total_steps) == (0.03, 500)
  assert (loaded.data.name, loaded.data.test) == ('tfds:imagenet2012', 'validation')
  assert config.load('vit:ViT-B_16,cifar100').model.img_size == 384
  small = config.load('vit:ViT-B_16,DIR')
  assert (small.data.name, small.total_steps, small.optim.warmup) == ('DIR', 500, 0.2)


@pytest.mark.parametrize('name', config.names())
def test_a_docstring_says_what_to_expect_and_whether_we_saw_it(name):
  expected = ast.get_docstring(ast.parse((config.folder() / f'{name}.py').read_text())).partition('\nExpected')[2]
  assert re.search(r'%|not\s+measured', expected, re.IGNORECASE)
  assert re.search(r'measured', expected, re.IGNORECASE)
  assert re.search(r'second|minute|hour', expected)
