"""The front door: what it says, what it imports, and how it ends."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from vit_jax import cli, console

ROOT = pathlib.Path(__file__).parent.parent


def python(*arguments, **environment):
  run = [sys.executable, *arguments]
  environment = os.environ | {'PYTHONPATH': str(ROOT)} | environment
  return subprocess.run(run, capture_output=True, text=True, env=environment, timeout=120)


def test_help_is_short_and_imports_neither_jax_nor_numpy():
  run = python('-X', 'importtime', '-m', 'vit_jax', '--help')
  assert run.returncode == 0
  assert len(run.stdout.splitlines()) < 60
  assert run.stdout.partition('examples:')[2].count('\n  vit_jax ') == 5
  for command in cli.COMMANDS:
    assert f'\n  {command} ' in run.stdout
  imported = {line.rpartition('|')[2].strip().partition('.')[0] for line in run.stderr.splitlines()}
  assert 'argparse' in imported and not imported & {'jax', 'numpy', 'flax', 'ml_collections'}


@pytest.mark.parametrize('arguments', [[], ['help'], ['-h']])
def test_help_has_other_spellings(arguments, capsys):
  assert cli.main(arguments) == 0
  assert 'examples:' in capsys.readouterr().out


def test_version(capsys):
  import vit_jax

  assert cli.main(['--version']) == 0
  assert capsys.readouterr().out == f'{vit_jax.__version__}\n'


@pytest.mark.parametrize('command', [name for name in cli.COMMANDS if name != 'train'])
def test_each_command_has_help(command, capsys):
  assert cli.main([command, '--help']) == 0
  out = capsys.readouterr().out
  assert out.startswith(f'usage: vit_jax {command}') and len(out.splitlines()) < 60


@pytest.mark.parametrize(
  'arguments, wanted',
  [
    ('evalute', 'did you mean evaluate?'),
    ('bench --modle=x', 'did you mean --model?'),
    ('bench', '--model'),
    ('bench --model=vit_tinny_patch16_224', 'vit_tiny_patch16_224'),
    ('bench --model=hf_hub:ann/flowers', 'ann/flowers is not on this machine'),
    ('bench --model=vit_tiny_patch16_224 --batch=many', 'many'),
    ('show vit_tinny_patch16_224', 'vit_tiny_patch16_224'),
    ('evaluate --model=vit_tiny_patch16_224', '--data'),
    ('list modles', 'did you mean models?'),
    ('list models vit_tinny_patch16_224', 'did you mean vit_tiny_patch16_224?'),
  ],
)
def test_wrong_words_get_one_line_and_the_nearest_right_one(arguments, wanted, capsys):
  assert cli.main(arguments.split()) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.startswith('error: ') and err.count('\n') == 1 and wanted in err


def test_list_models_by_part_and_by_pattern(capsys):
  assert cli.main(['list', 'models', 'tiny']) == 0
  lines = capsys.readouterr().out.splitlines()
  words = next(line for line in lines if line.startswith('vit_tiny_patch16_224 ')).split()
  assert ' '.join(words[1:]) == '5.7 M 224 px 2 pretrained: apache-2.0 (hub, bucket)'
  assert cli.main(['list', 'models', 'vit_*_384']) == 0
  names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
  assert names == sorted(names) and all(name.startswith('vit_') and name.endswith('_384') for name in names)


@pytest.mark.parametrize('arguments', ['vit_tiny_patch16_224.*', 'vit_tiny_patch16_224.augreg --tags', 'ViT-B_16.sam'])
def test_list_models_with_what_they_were_trained_on(arguments, capsys):
  assert cli.main(['list', 'models', *arguments.split()]) == 0
  lines = capsys.readouterr().out.splitlines()
  wanted = {'vit_tiny_patch16_224.augreg_in21k_ft_in1k', 'vit_tiny_patch16_224.augreg_in21k'}
  assert {line.split()[0] for line in lines} == ({'ViT-B_16.sam'} if 'sam' in arguments else wanted)
  assert all(word in lines[0] for word in ('224 px', 'classes', 'apache-2.0 (hub, bucket)'))


def test_list_is_quick():
  run = python('-X', 'importtime', '-m', 'vit_jax', 'list', 'models', 'vit*dino*')
  assert len(run.stdout.splitlines()) >= 20
  imported = {line.rpartition('|')[2].strip().partition('.')[0] for line in run.stderr.splitlines()}
  assert not imported & {'jax', 'flax', 'rich'}


def test_list_configs_gives_a_line_each(capsys):
  assert cli.main(['list', 'configs']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert {'digits', 'mnist', 'folder', 'vit'} <= {line.split()[0] for line in lines}
  assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_list_datasets_finds_prepared_ones(capsys, tmp_path, monkeypatch):
  version = tmp_path / 'flowers' / 'small' / '1.0.0'
  version.mkdir(parents=True)
  (version / 'features.json').write_text('{}')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  assert cli.main(['list', 'datasets']) == 0
  out = capsys.readouterr().out
  assert out.startswith('digits ') and out.splitlines()[-1].split() == ['tfds:flowers/small', 'prepared', 'here']


def test_show_counts_without_computing(capsys):
  assert cli.main(['show', 'vit_gigantic_patch14_224']) == 0  # 1.8 billion parameters, none of them drawn
  out = capsys.readouterr().out
  assert ' 257 of 1664 numbers' in out and 'embed_dim=1664' in out


def test_show_takes_the_original_names(capsys):
  assert cli.main(['show', 'ViT-Ti_16']) == 0
  assert '5,717,416' in capsys.readouterr().out  # timm's count of vit_tiny_patch16_224


def in_package(source):
  """A function as if it stood in the package: guarded asks where an exception was raised."""
  module = {'__name__': 'vit_jax.imagined'}
  exec(source, module)
  return module['f']


def test_our_own_value_error_is_one_line(capsys):
  assert cli.guarded(in_package('def f(): raise ValueError("a 7 is no size")')) == 2
  assert capsys.readouterr().err == 'error: a 7 is no size\n'


@pytest.mark.parametrize(
  'source',
  [
    'def f(): a, b = 1, 2, 3',  # a ValueError that nobody raised for the user
    'import numpy\ndef f(): numpy.zeros(3).reshape(2)',
    'import json\ndef f(): json.loads("{")',
    'def f(): raise KeyError("x")',
    'def f(): raise OSError(5, "Input/output error", "x")',
  ],
)
def test_a_bug_keeps_its_traceback(source, capsys):
  assert cli.guarded(in_package(source)) == 1
  assert 'Traceback (most recent call last)' in capsys.readouterr().err


def test_somebody_elses_value_error_keeps_its_traceback(capsys):
  def f():
    raise ValueError('not from the package')

  assert cli.guarded(f) == 1
  assert 'Traceback' in capsys.readouterr().err


@pytest.mark.parametrize(
  'source, line',
  [
    ('def f(x): open(x)', 'error: No such file or directory: {}/absent\n'),
    ('import pathlib\ndef f(x): pathlib.Path(x).read_text()', 'error: No such file or directory: {}/absent\n'),
    ('import os\ndef f(x): os.makedirs(os.path.dirname(x))', 'error: File exists: {}\n'),
    ('def f(x): raise FileNotFoundError(f"There is no {x}.")', 'error: There is no {}/absent.\n'),
  ],
)
def test_a_file_that_is_not_there_is_one_line(source, line, tmp_path, capsys):
  assert cli.guarded(in_package(source), str(tmp_path / 'absent')) == 2
  assert capsys.readouterr().err == line.format(tmp_path)


def test_traceback_on_demand(monkeypatch, capsys):
  monkeypatch.setenv('VIT_JAX_TRACEBACK', '1')
  assert cli.guarded(in_package('def f(): raise ValueError("a 7 is no size")')) == 2
  err = capsys.readouterr().err
  assert 'Traceback' in err and err.endswith('error: a 7 is no size\n')


def test_interrupt_and_exit(capsys):
  assert cli.guarded(in_package('def f(): raise KeyboardInterrupt')) == 130
  assert capsys.readouterr().err == 'interrupted\n'
  assert cli.guarded(sys.exit, 3) == 3
  assert cli.guarded(sys.exit) == 0


@pytest.mark.parametrize(
  'raised',
  ['MemoryError("9 GiB")', 'RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")'],
)
def test_out_of_memory_says_what_to_change(raised, capsys):
  assert cli.guarded(in_package(f'def f(): raise {raised}')) == 1
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'step.accumulate' in err and 'step.remat' in err and 'batch' in err


def test_xla_says_resource_exhausted(capsys):
  import jax
  import jax.numpy as jnp

  assert cli.guarded(lambda: jax.block_until_ready(jax.jit(lambda: jnp.zeros((1 << 24, 1 << 24)) + 1)())) == 1
  assert 'step.accumulate' in capsys.readouterr().err


def test_accelerator_hint(tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  gpu, tpu = tmp_path / 'nvidia0', tmp_path / 'accel0'
  assert console.accelerator_hint('cpu', (gpu, tpu)) is None
  tpu.touch()
  assert 'jax[tpu]' in console.accelerator_hint('cpu', (gpu, tpu))
  gpu.touch()
  assert 'jax[cuda13]' in console.accelerator_hint('cpu', (gpu, tpu))
  assert console.accelerator_hint('gpu', (gpu, tpu)) is None
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')  # chosen, so no hint
  assert console.accelerator_hint('cpu', (gpu, tpu)) is None


def test_a_closed_pipe_is_no_traceback():
  listing = f'{sys.executable} -m vit_jax list'
  run = subprocess.run(f'{listing} | head -n1', shell=True, capture_output=True, text=True, cwd=ROOT, timeout=120)
  assert run.stdout.count('\n') == 1 and run.stderr == ''


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """The folder of a run of two steps on the digits."""
  import vit_jax
  from vit_jax import data

  folder = tmp_path_factory.mktemp('run')
  digits = data.load('digits', size=8, crop='none', test='test[:40]')
  tiny = dict(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=10)
  model = vit_jax.create_model('vit_tiny_patch16_224', **tiny)
  vit_jax.fit(model, digits, steps=2, batch=16, batch_eval=40, workdir=folder)
  return folder


def test_evaluate_prints_one_json_line(workdir, capsys):
  assert cli.main(['evaluate', f'--model={workdir}', '--data=digits', '--split=test[:40]', '--batch=24']) == 0
  out, err = capsys.readouterr()
  found = json.loads(out)
  assert out.count('\n') == 1 and 'best weights' in err
  assert found['examples'] == 40 and found['unreadable'] == 0 and len(found['per_class']) == 10
  trained = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  trained = [line for line in trained if 'top1' in line][-1]
  assert found['top1'] == trained['top1'] and found['loss'] == pytest.approx(trained['loss'], rel=1e-6)


@pytest.mark.parametrize(
  'wrong, wanted',
  [('--data=digit', 'digits'), ('--split=tset', 'test'), ('--model=runs/none', 'runs/none'), ('--batch=7', 'batch')],
)
def test_evaluate_refuses_in_one_line(workdir, wrong, wanted, capsys):
  flags = {'--model': workdir, '--data': 'digits'} | dict([wrong.split('=')])
  assert cli.main(['evaluate', *(f'{flag}={value}' for flag, value in flags.items())]) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.splitlines()[-1].startswith('error: ') and wanted in err and 'Traceback' not in err


def test_evaluate_of_a_name_says_where_its_weights_belong(capsys, tmp_path, monkeypatch):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path))
  assert cli.main(['evaluate', '--model=vit_tiny_patch16_224', '--data=digits']) == 2
  said = capsys.readouterr().err
  assert 'VIT_JAX_OFFLINE' in said and 'model.safetensors' in said and str(tmp_path) in said


def test_weights_and_model_json_are_all_that_show_and_evaluate_need(workdir, tmp_path, capsys):
  shutil.copytree(workdir / 'checkpoints', tmp_path / 'checkpoints')
  shutil.copy(workdir / 'model.json', tmp_path)
  assert cli.main(['show', str(tmp_path)]) == 0
  assert 'top-1' not in capsys.readouterr().out
  assert cli.main(['evaluate', f'--model={tmp_path}', '--data=digits', '--split=test[:8]', '--batch=8']) == 0
  assert json.loads(capsys.readouterr().out)['examples'] == 8


def test_show_and_bench_take_a_workdir(workdir, capsys):
  assert cli.main(['show', str(workdir)]) == 0
  out = capsys.readouterr().out
  assert 'best: ' in out and '2 steps of 16' in out and 'top-1' in out and 'embed_dim=16' in out
  assert cli.main(['bench', f'--model={workdir}', '--batch=2', '--seconds=0.01']) == 0
  out, err = capsys.readouterr()
  assert json.loads(out)['image_size'] == [8, 8] and 'images_per_second' in err
