"""Weights at an address: those of a run, a step, a file and a folder are loaded as they are from a disk."""

import json

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import card, checkpoint, cli, exports, fetch, pretrained, state


@pytest.fixture
def there(bucket, untrained):
  """The bucket with the run `untrained` at gs://b/runs/one."""
  for file in untrained.rglob('*'):
    if file.is_file():
      bucket.put(f'gs://b/runs/one/{file.relative_to(untrained)}', file.read_bytes())
  return bucket


def arrays(model):
  return state.split(model)[1]


def same(one, two):
  jax.tree.map(np.testing.assert_array_equal, arrays(one), arrays(two))


def test_a_run_and_a_step_of_it(there, untrained):
  wanted, described = vit_jax.load(untrained)
  for path in ('gs://b/runs/one', 'gs://b/runs/one/', 'gs://b/runs/one/checkpoints/1'):
    model, found = vit_jax.load(path)
    same(model, wanted)
    assert found['classes'] == described['classes']
    assert found['weights'] == ('step 1' if path.endswith('1') else 'best')
  one, two = (pretrained.weights(path)['params'] for path in ('gs://b/runs/one', untrained))
  jax.tree.map(np.testing.assert_array_equal, one, two)
  assert vit_jax.create_model('vit_tiny_patch16_224', pretrained='gs://b/runs/one', **TINY)


TINY = dict(img_size=8, patch_size=2, embed_dim=48, depth=1, num_heads=3)


def test_of_several_steps_the_best_that_is_whole(there, bucket, tmp_path, untrained, capsys):
  _, params, rest = state.split(vit_jax.load(untrained)[0])
  kept = checkpoint.Checkpoints(tmp_path / 'more', last=3)
  for step, score in ((2, 0.9), (3, None)):
    params['head']['bias'] = np.full(10, step, np.float32)
    kept.save(step, {'params': params, 'rest': rest, 'ema': params, 'opt': {'m': np.ones(3)}}, {'step': step}, score)
  kept.close()
  for file in (tmp_path / 'more').rglob('*'):
    if file.is_file():
      bucket.put(f'gs://b/runs/one/{file.relative_to(tmp_path / "more")}', file.read_bytes())
  model, described = vit_jax.load('gs://b/runs/one')
  assert described['weights'] == 'best EMA' and float(model.head.bias[0]) == 2
  assert not [path for what, path in bucket.asked if what == 'rb' and ('/opt/' in path or '/params/' in path)]
  broken = next(name for name in bucket.objects if '/2/ema/' in name)
  bucket.put(broken, b'?')
  model, described = vit_jax.load('gs://b/runs/one')
  assert described['weights'] == 'best' and float(model.head.bias[0]) == 0
  assert 'checkpoint 2 is damaged (ema/' in capsys.readouterr().err
  assert card.record(fetch.local('gs://b/runs/one'))['step'] == 1
  with pytest.raises(ValueError, match=r'gs://b/runs/one/checkpoints/2 is damaged \(ema/.*: other content\)'):
    vit_jax.load('gs://b/runs/one/checkpoints/2')


def test_files_with_what_lies_beside_them(there, bucket, tmp_path, untrained):
  wanted, _ = vit_jax.load(untrained)
  exports.export(untrained, to='timm', out=tmp_path / 'timm')
  for file in (tmp_path / 'timm').iterdir():
    bucket.put(f'gs://b/timm/{file.name}', file.read_bytes())
  bucket.put('gs://b/timm/notes/large.txt', b'not asked for')
  for path in ('gs://b/timm', 'gs://b/timm/model.safetensors'):
    model, described = vit_jax.load(path)
    same(model, wanted)
    assert described['classes'] == list('0123456789')
  assert not [path for what, path in bucket.asked if what == 'rb' and 'large' in path]


def test_commands_say_the_address(there, capsys, tmp_path):
  assert cli.main(['evaluate', '--model=gs://b/runs/one', '--data=digits', '--split=test[:8]', '--batch=8']) == 0
  said = capsys.readouterr()
  assert json.loads(said.out)['model'] == 'gs://b/runs/one' and said.err.startswith('gs://b/runs/one: best weights')
  assert cli.main(['report', 'gs://b/runs/one']) == 2
  assert 'gs://b/runs/one is no local folder, where report.html would go: give --out=' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('path', 'line'),
  [
    ('gs://b/runs/two', 'There is no gs://b/runs/two'),
    ('gs://b/runs/one/checkpoints/7', 'gs://b/runs/one/checkpoints/7 is damaged (no manifest'),
    ('gs://b/bad.safetensors', 'gs://b/bad.safetensors is damaged'),
    ('gs://b/empty', 'gs://b/empty has no checkpoint yet'),
    ('gs://b/runs', 'gs://b/runs holds no weights'),
    ('gs://c', 'There is no gs://c'),
  ],
)
def test_what_is_not_there_is_said_by_its_address(there, path, line, capsys):
  there.put('gs://b/bad.safetensors', b'?' * 100)
  there.put('gs://b/empty/run.json', b'{}')
  assert cli.main(['evaluate', f'--model={path}', '--data=digits']) == 2
  said = capsys.readouterr().err
  assert len(said.splitlines()) == 1 and line in said and 'process-' not in said, said
