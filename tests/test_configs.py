"""Every shipped config: two steps of a tiny model on a little data, then a resumed third, through the command line."""

import ast
import json

import jax
import numpy as np
from PIL import Image
import pytest

from vit_jax import cli, config

TINY = {'model.embed_dim': 16, 'model.depth': 1, 'model.num_heads': 2, 'batch': 8, 'log_every': 1}


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


# config: (folder -> what follows its name, overrides beside TINY)
ROWS = {
  'digits': (lambda folder: '', {}),
  'mnist': (lambda folder: f':{npz(folder, (28, 28))}', {}),
  'fashion_mnist': (lambda folder: f':{npz(folder, (28, 28))}', {}),
  'cifar10': (lambda folder: f':{npz(folder, (32, 32, 3))}', {}),
  'folder': (lambda folder: f':vit_tiny_patch16_224,{pictures(folder)}', {'model.img_size': 32}),
  'vit': (lambda folder: ':ViT-Ti_16,digits', {'model.img_size': 32, 'batch': 64}),
}


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """The second start of a config finds what the first has compiled."""
  options = {'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
             'jax_persistent_cache_min_compile_time_secs': 0.1}  # fmt: skip
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def start(spec, workdir, overrides, *more):
  """Exit code of a run with --config.KEY=VALUE of each override."""
  flags = [f'--config.{key}={value}' for key, value in overrides.items()]
  return cli.main(['train', f'--config={spec}', f'--workdir={workdir}', *flags, *more])


def losses(workdir):
  """{step: loss} of metrics.jsonl's training lines."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: line['loss'] for line in lines if 'lr' in line}


def test_every_config_has_a_row():
  assert sorted(ROWS) == config.names()


@pytest.mark.parametrize('name', ROWS)
def test_two_steps_and_a_third(name, tmp_path, capsys):
  arguments, more = ROWS[name]
  spec = name + arguments(tmp_path)
  overrides = TINY | more
  workdir = tmp_path / 'run'
  assert start(spec, workdir, overrides | {'total_steps': 2}) == 0, capsys.readouterr().err
  assert sorted(losses(workdir)) == [1, 2]
  assert start(spec, workdir, overrides | {'total_steps': 3}, '--extend') == 0, capsys.readouterr().err
  assert sorted(losses(workdir)) == [1, 2, 3]
  assert all(np.isfinite(loss) for loss in losses(workdir).values())
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['2', '3']


def test_vit_starts_from_the_weights_of_a_run(tmp_path, capsys):
  overrides = TINY | {'model.img_size': 32, 'total_steps': 1, 'batch': 64}
  first, second = tmp_path / 'first', tmp_path / 'second'
  assert start(f'folder:ViT-Ti_16,{pictures(tmp_path)}', first, overrides) == 0, capsys.readouterr().err
  shape = {f'model.{key}': TINY[f'model.{key}'] for key in ('embed_dim', 'depth', 'num_heads')}
  overrides = {key: value for key, value in overrides.items() if key not in shape}
  assert start(f'vit:ViT-Ti_16,digits,{first}', second, overrides | {'model.img_size': 48}) == 0, (
    capsys.readouterr().err
  )
  described = json.loads((second / 'model.json').read_text())
  assert described['architecture']['embed_dim'] == 16, 'the rest of the architecture is the one of the weights'
  assert (described['architecture']['num_classes'], described['architecture']['img_size']) == (10, 48)


@pytest.mark.parametrize('spec', ['folder', 'folder:ViT-B_16', 'folder:,x', 'vit', 'vit:ViT-B_16', 'vit:,x'])
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
def test_a_docstring_holds_command_and_expectation(name):
  lines = ast.get_docstring(ast.parse((config.folder() / f'{name}.py').read_text())).splitlines()
  assert any(line.strip().startswith(f'python -m vit_jax.main --config=configs/{name}.py') for line in lines)
  assert any(line.startswith('Expected') for line in lines)
