"""Finding, loading, overriding and checking configs, against small functions in place of the real ones."""

import pathlib

from ml_collections import ConfigDict
import pytest

from vit_jax import config, train
from vit_jax.signatures import MISFIT, fit, signature


def create_model(name: str, *, pretrained: bool | str = False, num_classes: int | None = None, seed: int = 0, **more):
  pass


def load_data(name: str, *, size, train: str = 'train', scale=(0.08, 1.0)):
  pass


def make_task(name='classification', *, classes, label_smoothing=0.0):
  pass


def make_optim(name='adamw', *, total_steps: int, lr: float, clip: float | None = 1.0, warmup: float = 0.0):
  if warmup > total_steps:
    raise ValueError(f'{warmup} of {total_steps} steps')


def make_step(*, dtype='float32', augment: dict | None = None):
  pass


def make_augment(*, flip=True, mixup=0.0):
  pass


@pytest.fixture
def table(monkeypatch):
  sections = {
    '': config.top_level,
    'model': create_model,
    'data': load_data,
    'task': make_task,
    'optim': make_optim,
    'step': make_step,
    'step.augment': make_augment,
  }
  kinds = {'embed_dim': (int, 192), 'img_size': (int | tuple[int, int], 224)}
  monkeypatch.setattr(config, 'functions', lambda: sections)
  monkeypatch.setattr(config, 'architecture', lambda name, weights=False: kinds)


def smallest(**more):
  required = {'total_steps': 10, 'model': {'name': 'tiny'}, 'data': {'name': 'digits'}, 'optim': {'lr': 0.1}}
  return ConfigDict(required | more)


def test_every_default_is_filled_in(table):
  assert config.resolve(smallest()) == {
    'job': 'train',
    'seed': 0,
    'total_steps': 10,
    'batch': 128,
    'batch_eval': 128,
    'log_every': 50,
    'eval_every': None,
    'deterministic': False,
    'profile': None,
    'watchdog': 600,
    'model': {'name': 'tiny', 'pretrained': False, 'num_classes': None},
    'data': {'name': 'digits', 'train': 'train', 'scale': [0.08, 1.0]},
    'task': {'name': 'classification', 'label_smoothing': 0.0},
    'optim': {'name': 'adamw', 'lr': 0.1, 'clip': 1.0, 'warmup': 0.0},
    'step': {'dtype': 'float32', 'augment': {'flip': True, 'mixup': 0.0}},
  }


@pytest.mark.parametrize(
  ('key', 'text', 'expected'),
  [
    ('total_steps', '1e3', 1000),
    ('batch_eval', '64', 64),
    ('eval_every', '100', 100),
    ('profile', '[3, 5]', [3, 5]),
    ('deterministic', 'true', True),
    ('model.num_classes', '10', 10),
    ('model.embed_dim', '64', 64),
    ('model.img_size', '28', 28),
    ('model.img_size', '(28,14)', [28, 14]),
    ('model.pretrained', 'runs/a', 'runs/a'),
    ('model.pretrained', 'False', False),
    ('data.name', '2024', '2024'),
    ('data.name', '1e3', '1e3'),
    ('data.train', 'train[:98%]', 'train[:98%]'),
    ('data.scale', '0.3,1', [0.3, 1]),
    ('optim.clip', 'none', None),
    ('optim.clip', 'None', None),
    ('optim.lr', '3', 3.0),
    ('step.augment.flip', 'FALSE', False),
    ('step.augment', "{'mixup': 0.2}", {'flip': True, 'mixup': 0.2}),
  ],
)
def test_overrides(table, key, text, expected):
  value = config.resolve(smallest(), {key: text})
  for part in key.split('.'):
    value = value[part]
  assert value == expected
  assert type(value) is type(expected)


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    ({'bacth': '3'}, "config.bacth: a run takes no 'bacth'; did you mean config.batch?"),
    ({'optim.learn': '3'}, "takes no 'learn'; its keys are name lr clip warmup."),
    ({'optim.momentum': '3'}, 'test_config.make_optim()'),
    ({'lr': '3'}, 'did you mean config.optim.lr?'),
    ({'optim.batch': '3'}, 'did you mean config.batch?'),
    ({'optm.lr': '3'}, 'did you mean config.optim?'),
    ({'step.augment.flop': '1'}, 'did you mean config.step.augment.flip?'),
    ({'model.seed': '1'}, 'did you mean config.seed?'),
    ({'model.embed_dimm': '1'}, 'did you mean config.model.embed_dim?'),
    ({'data.size': '1'}, "takes no 'size'"),
    ({'batch': 'abc'}, "config.batch = 'abc': a run wants a whole number."),
    ({'batch': '1.5'}, 'config.batch = 1.5'),
    ({'batch': 'none'}, 'config.batch = None'),
    ({'total_steps': '1e400'}, 'config.total_steps = inf'),
    ({'deterministic': '1'}, 'true or false'),
    ({'job': 'trian'}, "'train' or 'evaluate' or 'inference_time'; did you mean 'train'?"),
    ({'model.img_size': '(1,2,3)'}, 'a whole number or a list of 2'),
    ({'optim': '3'}, 'a group of keys is wanted'),
    ({'total_steps.x': '3'}, 'total_steps is a value, not a group of keys'),
    ({'eval_every': '0'}, 'say None'),
    ({'batch': '0'}, 'config.batch = 0: at least 1'),
    ({'batch_eval': '-1'}, 'config.batch_eval = -1: at least 1'),
    ({'total_steps': '0'}, 'config.total_steps = 0: at least 1'),
    ({'log_every': '0'}, 'config.log_every = 0: at least 1'),
    ({'eval_every': '-5'}, 'config.eval_every = -5: at least 1'),
    ({'profile': '[5, 3]'}, 'first step'),
    ({'profile': '[5]'}, 'first step'),
    ({'watchdog': '0'}, 'seconds are wanted'),
    ({'optim.warmup': '11'}, '11.0 of 10 steps'),
  ],
)
def test_a_wrong_override_is_one_line_that_says_what_was_wanted(table, overrides, words):
  with pytest.raises(ValueError, match='.') as caught:
    config.resolve(smallest(), overrides)
  assert words in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_key_without_a_default_must_be_there(table):
  with pytest.raises(ValueError, match=r'config.optim.lr is missing: test_config.make_optim\(\) needs it'):
    config.resolve(smallest(optim={}))
  with pytest.raises(ValueError, match=r'config.total_steps is missing'):
    config.resolve(ConfigDict({'model': {'name': 'tiny'}}))


def test_fields_that_refer_to_an_overridden_one_follow_it(table):
  given = smallest()
  given.log_every = given.get_ref('total_steps') // 2
  resolved = config.resolve(given, {'total_steps': '1e3'})
  assert resolved['log_every'] == 500
  assert given.total_steps == 10, 'the config itself stays as it was'


def test_show_marks_what_differs_from_the_default(table):
  shown = config.show(smallest(batch=128, seed=3), {'total_steps': '20', 'optim.clip': 'none'})
  lines = [' '.join(line.split()) for line in shown.splitlines()]
  assert 'seed = 3 # config; default: 0' in lines
  assert 'batch = 128' in lines
  assert 'total_steps = 20 # flag; config: 10' in lines
  assert 'optim.clip = None # flag; default: 1.0' in lines
  assert "model.name = 'tiny' # config" in lines
  assert 'model.embed_dim = 192' in lines, 'what the variant says is shown too'
  assert 'step.augment.flip = True' in lines


def write(path, text):
  path.write_text(text)
  return str(path)


def test_a_file_of_your_own(tmp_path):
  text = 'from ml_collections import ConfigDict\ndef get_config(args="x"):\n  return ConfigDict({"a": args})\n'
  path = write(tmp_path / 'mine.py', text)
  assert config.load(path).a == 'x'
  assert config.load(f'{path}:ViT,tfds:mnist').a == 'ViT,tfds:mnist'
  assert [file.name for file in tmp_path.iterdir()] == ['mine.py'], 'no __pycache__'


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('x = (', ':1: '),
    ('x = 1\ny = = 2', ':2: invalid syntax'),
    ('x = 1', 'no function get_config'),
    ('def get_config():\n  return {}', 'gave a dict, not an ml_collections.ConfigDict'),
    ('def get_config(args=""):\n  return 1 / 0', ':2: ZeroDivisionError'),
    ('import nosuchmodule', ':1: ModuleNotFoundError'),
    ('def get_config(args=""):\n  raise ValueError("MODEL,DIR wanted")', 'MODEL,DIR wanted'),
    ('def get_config(args):\n  pass', 'TypeError'),
  ],
)
def test_a_broken_file_is_one_line_with_its_name(tmp_path, text, words):
  path = write(tmp_path / 'mine.py', text)
  with pytest.raises(ValueError, match='mine.py') as caught:
    config.load(path)
  assert words in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_file_that_takes_no_arguments(tmp_path):
  path = write(tmp_path / 'mine.py', 'def get_config():\n  pass')
  with pytest.raises(ValueError, match=':abc was given'):
    config.load(f'{path}:abc')


def test_shipped_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shipped = config.folder() / 'digits.py'
  assert config.find('digits') == (shipped, '')
  assert config.find('mnist:FILE.npz') == (config.folder() / 'mnist.py', 'FILE.npz')
  assert config.find('configs/digits.py') == (shipped, ''), 'as the docstrings say it, also outside a checkout'
  (tmp_path / 'configs').mkdir()
  write(tmp_path / 'configs' / 'digits.py', '')
  assert config.find('digits') == (shipped, ''), 'a name never runs a file that happens to lie here'
  assert config.find('configs/digits.py:a:b') == (pathlib.Path('configs/digits.py'), 'a:b')


@pytest.mark.parametrize(
  ('spec', 'near'), [('digts', 'digits'), ('configs/digt.py', 'digits'), ('mnst:x', 'mnist'), ('', 'digits')]
)
def test_a_missing_config_names_the_nearest(tmp_path, monkeypatch, spec, near):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match=near):
    config.find(spec)


def test_the_real_sections():
  sections = config.functions()
  assert [name for name in sections if name and '.' not in name] == [
    'model',
    'data',
    'task',
    'optim',
    'step',
    'save',
    'mesh',
  ]
  keys = [
    'job',
    'seed',
    'total_steps',
    'batch',
    'batch_eval',
    'log_every',
    'eval_every',
    'deterministic',
    'profile',
    'watchdog',
  ]
  assert list(signature(sections[''])) == keys
  for section, context in config.CONTEXT.items():
    assert set(context) <= set(signature(sections[section])), 'context is what the function does take'


def test_the_defaults_of_a_run_are_those_of_fit():
  run, library = signature(config.top_level), signature(train.fit)
  for key in ('seed', 'batch', 'batch_eval', 'log_every', 'eval_every', 'profile'):
    assert run[key][1] == library[key][1]


def test_real_architecture_keys_have_types():
  kinds = config.architecture('ViT-B_16')
  assert kinds['embed_dim'] == (int, 768)
  assert fit((28, 14), kinds['img_size'][0]) is MISFIT, 'lists, as configs have them'
  assert fit([28, 14], kinds['img_size'][0]) == [28, 14]
  assert not {'rngs', 'scan', 'remat', 'attention'} & set(kinds)
