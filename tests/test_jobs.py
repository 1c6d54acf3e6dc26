"""A config's job from the front door: train, evaluate, inference_time, and what is refused before data is read."""

import json

import pytest

from vit_jax import cli, sources

TINY = ['--config=digits', '--config.model.embed_dim=16', '--config.model.depth=1', '--config.model.num_heads=2']


def test_train_then_the_job_evaluate_say_the_same(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  argv = ['train', *TINY, '--config.total_steps=20', '--config.eval_every=None', '--workdir=runs/one']
  assert cli.main(argv) == 0
  out, err = capsys.readouterr()
  accuracy, written, following = out.splitlines()
  assert accuracy.endswith('on 360 pictures (360 + 0 unreadable = 360 listed) after step 20')
  assert 'parameters' in err
  assert written.startswith('written to runs/one: ') and (tmp_path / 'runs/one/checkpoints/20').is_dir()
  assert following == 'next: vit_jax evaluate --model=runs/one --data=digits --split=test'
  found = []
  for command in (following.removeprefix('next: vit_jax ').split(), [*argv, '--config.job=evaluate']):
    assert cli.main(command) == 0
    found.append(json.loads(capsys.readouterr().out))
  assert found[0]['top1'] == found[1]['top1'] and f'{found[0]["top1"]:.2%}' in accuracy
  assert found[0]['examples'] == 360 and set(found[0]['per_class']) == set('0123456789')
  assert found[0]['weights'] == 'best' and found[0]['loss'] == pytest.approx(found[1]['loss'])


def test_inference_time_measures_the_configs_model(capsys, monkeypatch):
  from vit_jax import bench

  monkeypatch.setattr(bench, '_rounds', lambda call, seconds: [call() is None or 0.5])
  assert cli.main(['train', *TINY, '--config.job=inference_time', '--config.batch=8']) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found['images_per_second'] == 16 and found['batch'] == 8 and found['gflops'] > 0


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('optim.warmup=5000', 'optim.warmup is 5000'),
    ('optim.name=adam', "did you mean 'adamw'?"),
    ('step.augment.mixup=-1', 'mixup=-1'),
    ('model.img_size=9', 'A 9x9 image does not split into 4x4 patches'),
    ('model.name=vit_tinny_patch16_224', 'did you mean vit_tiny_patch16_224'),
    ('batch=12', 'batch=12 does not divide over 8 devices'),
    ('mesh.data=3', 'does not multiply to the 8 devices'),
    ('eval_every=0', 'say None'),
    ('optim.lrr=1', 'did you mean config.optim.lr?'),
  ],
)
def test_wrong_values_are_refused_in_one_line_before_data_is_read(flag, said, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sources, 'open_source', lambda *_, **__: pytest.fail('data was read'))
  assert cli.main(['train', *TINY, f'--config.{flag}', f'--workdir={tmp_path / "run"}']) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ') and said in err and err.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_another_number_of_classes_is_refused(tmp_path, capsys):
  assert cli.main(['train', *TINY, '--config.model.num_classes=12', f'--workdir={tmp_path}']) == 2
  assert 'model.num_classes is 12, and the data has 10' in capsys.readouterr().err


def test_deterministic_asks_gpus_for_it(monkeypatch, tmp_path, capsys):
  import os

  monkeypatch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'])
  assert cli.main(['train', *TINY, '--config.deterministic=True', '--config.batch=3', f'--workdir={tmp_path}']) == 2
  assert os.environ['XLA_FLAGS'].endswith('--xla_gpu_deterministic_ops=true')
