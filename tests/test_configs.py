"""Every shipped config: a tiny model on a little data, two steps and a third that is repeated after an interruption."""

import ast
import json
import re
import shutil

import numpy as np
from PIL import Image
import pytest

from vit_jax import checkpoint, cli, config, data, models, pretrained, state, transforms

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


def weights(folder, name='ViT-Ti_16', **architecture):
  """The workdir of a model of two classes and 48 pixels, of SHAPE."""
  model = pretrained.create_model(name, num_classes=2, img_size=48, **SHAPE, **architecture)
  kept = checkpoint.Checkpoints(folder / 'weights')
  kept.save(1, {'params': state.split(model)[1], 'rest': {}}, {'step': 1}, 0.5)
  kept.close()
  said = {'num_classes': 2, 'classes': ['cat', 'dog'], 'preprocessing': transforms.preprocessing(48)}
  (folder / 'weights' / 'model.json').write_text(json.dumps(pretrained.origin(model) | said))
  return folder / 'weights'


def pseudo(folder):
  """What `vit_jax label` would write of those pictures."""
  files = sorted(pictures(folder).glob('*/*.png'))
  lines = ['path,label,confidence', *(f'{path},{path.parent.name},0.9' for path in files)]
  (folder / 'pseudo.csv').write_text('\n'.join(lines))
  return folder / 'pseudo.csv'


MODEL = {f'model.{key}': value for key, value in SHAPE.items()}
SMALL = {'batch_eval': 8, 'step.accumulate': 1, 'model.img_size': 16}
VIT = MODEL | SMALL | {'model.patch_size': 8}
MIXER = SMALL | {'model.embed_dim': 16, 'model.num_blocks': 1, 'model.patch_size': 8}
GROUPS = {'optim.sam.groups': 8}
ONCE = PLAIN | {'step.augment.policy': 'none'}  # what another row compiles already
tiny = lambda folder: npz(folder, (8, 8, 3))
# config and, after a blank, which form of it: (folder -> what follows its name, overrides beside TINY)
ROWS = {
  'digits': (lambda folder: '', MODEL),
  'mnist': (lambda folder: f':{npz(folder, (28, 28))}', MODEL | PLAIN),
  'fashion_mnist': (lambda folder: f':{npz(folder, (28, 28))}', MODEL | PLAIN),
  'cifar10': (lambda folder: f':{npz(folder, (32, 32, 3))}', MODEL | PLAIN),
  'folder': (lambda folder: f':vit_tiny_patch16_224,{pictures(folder)}', MODEL | PLAIN | {'model.img_size': 32}),
  'finetune': (lambda folder: f':{weights(folder)},{pictures(folder)}', {'mesh.data': 8, 'batch_eval': 8}),
  'vit': (lambda folder: f':ViT-Ti_16,digits,{weights(folder)}', {'model.img_size': 32, 'batch': 64}),
  'noisy_student': (lambda folder: f':{weights(folder)},{pictures(folder)},{pseudo(folder)}', ONCE),
  'augreg i1k': (lambda folder: f':B/16,i1k,{tiny(folder)}', VIT | ONCE),
  'augreg i21k': (lambda folder: f':Ti/16,i21k,{tiny(folder)}', VIT),
  'plain_s16': (lambda folder: f':90,{tiny(folder)}', VIT),
  'deit': (lambda folder: f':Ti,{tiny(folder)}', VIT),
  'deit taught': (lambda folder: f':S,{pictures(folder)},{weights(folder)}', VIT | ONCE),
  'deit3 first': (lambda folder: f':B,{tiny(folder)}', VIT | PLAIN),
  'deit3 second': (lambda folder: f':B,{tiny(folder)},{weights(folder, DEIT3)}', SMALL | ONCE),
  'mixer': (lambda folder: f':B/16,{tiny(folder)}', MIXER | ONCE),
  'sam': (lambda folder: f':ViT-S_32,{tiny(folder)}', VIT | GROUPS),
  'gsam': (lambda folder: f':Mixer-B_32,{tiny(folder)}', MIXER | GROUPS),
  'pretrain_vit i1k': (lambda folder: f':ViT-B_16,i1k,{tiny(folder)}', VIT | {'model.representation_size': 8}),
  'pretrain_vit i21k': (lambda folder: f':ViT-B_32,i21k,{tiny(folder)}', VIT | {'model.representation_size': 8}),
}
DEIT3 = 'deit3_base_patch16_224'
# Other forms of a config that has a row: each compiles programs of its own for ten CPU seconds.
SECOND = ('augreg i1k', 'deit taught', 'deit3 second', 'pretrain_vit i1k')


def start(spec, workdir, overrides):
  """Exit code of a run with --config.KEY=VALUE of each override."""
  flags = [f'--config.{key}={value}' for key, value in overrides.items()]
  return cli.main(['train', f'--config={spec}', f'--workdir={workdir}', *flags])


def losses(workdir):
  """{step: loss} of metrics.jsonl's training lines."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: line['loss'] for line in lines if 'lr' in line}


def test_every_config_has_a_row():
  assert sorted({name.split()[0] for name in ROWS.keys() - SECOND}) == config.names() and ROWS.keys() > {*SECOND}


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name in SECOND)) for name in ROWS])
def test_three_steps_and_the_third_again(name, tmp_path, capsys):
  arguments, overrides = ROWS[name]
  spec, overrides, workdir = name.split()[0] + arguments(tmp_path), TINY | overrides, tmp_path / 'run'
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


WRONG = ['folder', 'folder:ViT-B_16', 'folder:,x', 'finetune:x', 'vit', 'vit:ViT', 'vit:,x', 'augreg', 'augreg:S/16',
         'augreg:S/16,i21k', 'augreg:H/14,i1k', 'plain_s16:x', 'plain_s16:8', 'deit', 'deit:L', 'deit3', 'deit3:Ti',
         'mixer:B/8', 'sam:ViT-L_16', 'gsam', 'pretrain_vit:ViT-B_16', 'pretrain_vit:ViT-B_16,i21k']  # fmt: skip


@pytest.mark.parametrize('spec', WRONG)
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


# Parameters, with 1000 classes: those of the published weights (vit_jax/manifest.csv), where the row has a name there;
# else from the same: plain_s16 is a ViT-S/16 less the class token and 197 positions; GSAM's has 196 of them and no
# token; pre-training adds a square layer.
COUNTS = {
  'augreg:Ti/16,i1k': 5_717_416,
  'augreg:L/16,i1k': 304_326_632,
  'plain_s16': 22_050_664 - 198 * 384,
  'deit:Ti': 5_717_416,
  'deit:B': 86_567_656,
  'deit:S,tfds:imagenet2012,TEACHER': 22_436_432,
  'deit3:S': 22_059_496,
  'deit3:H': 632_126_440 - (16**2 - 11**2) * 1280,  # which is published at 224 pixels
  'mixer:B/16': 59_880_472,
  'sam:ViT-B_32': 88_224_232,
  'sam:Mixer-B_16': 59_880_472,
  'gsam:ViT-B_16': 86_567_656 - 2 * 768,
  'pretrain_vit:ViT-B_16,i1k': 86_567_656 + 768 * 769,
}


@pytest.mark.parametrize('spec', COUNTS)
def test_the_models_have_the_published_size(spec):
  loaded = config.load(spec)
  resolved, wanted = config.resolve(loaded), loaded.model.to_dict()
  data.check_repeats(resolved['data']['repeats'], resolved['batch'])
  assert models.count(models.abstract(wanted.pop('name'), num_classes=1000, **wanted)) == COUNTS[spec]


def test_published_steps_rates_and_radii():
  plain, deit, gsam = map(config.load, ('plain_s16', 'deit:B', 'gsam:ViT-B_32'))
  assert (plain.total_steps, plain.data.test) == (90 * 1_281_167 // 1024, 'validation')
  assert config.override(deit, {'batch': '1024'}).optim.lr == 0.001
  assert (gsam.optim.sam.rho, gsam.optim.sam.rho_min, gsam.optim.sam.alpha) == (0.6, 0.1, 0.6)
  for spec in ('augreg:S/16,i1k', 'mixer:B/16', 'sam:ViT-B_16', 'gsam:ViT-B_32', 'plain_s16:300'):
    loaded = config.load(spec)
    assert loaded.optim.warmup * loaded.total_steps == pytest.approx(10_000, rel=0.01), spec


@pytest.mark.parametrize('form', ['vit:ViT-Ti_16,{data},{model}', 'finetune:{model},{data}'])
def test_fine_tuning_drops_the_layer_before_the_head(form, tmp_path):
  pretrained_run = weights(tmp_path, representation_size=8)
  loaded = config.load(form.format(data=pictures(tmp_path), model=pretrained_run)).model.to_dict()
  model = pretrained.create_model(**loaded | {'img_size': 32, 'num_classes': 3})
  before = pretrained.load(pretrained_run)[0]
  assert before.pre_logits is not None and model.pre_logits is None
  assert not model.head.kernel[...].any() and model.head.kernel.shape == (16, 3)
  np.testing.assert_array_equal(model.blocks[0].mlp.fc1.kernel[...], before.blocks[0].mlp.fc1.kernel[...])


@pytest.mark.parametrize('name', config.names())
def test_a_docstring_says_what_to_expect_and_whether_we_saw_it(name):
  expected = ast.get_docstring(ast.parse((config.folder() / f'{name}.py').read_text())).partition('\nExpected')[2]
  assert re.search(r'%|not\s+measured', expected, re.IGNORECASE)
  assert re.search(r'measured', expected, re.IGNORECASE)
  assert re.search(r'second|minute|hour', expected)
