"""vit_jax bench input: counts that hold together, and waiting that is seen where the data are slow."""

import json
import time

import numpy as np
import pytest

from vit_jax import bench_input, cli, data, models


@pytest.fixture(scope='module')
def pictures():
  rng = np.random.default_rng(0)
  train = rng.integers(0, 256, (32, 20, 20, 3), np.uint8), np.arange(32) % 3
  return data.load((train, None), size=16, threads=2)


@pytest.fixture
def model():
  from flax import nnx

  small = dict(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=1, num_classes=3)
  return models.build('vit_tiny_patch16_224', rngs=nnx.Rngs(0), **small)


def test_rate_counts_batches_that_take_a_known_time(pictures, monkeypatch):
  def slow(data, *, batch, seed):
    while True:
      end = time.process_time() + 0.01
      while time.process_time() < end:
        pass
      time.sleep(0.01)
      yield {'image': np.zeros((batch, 16, 16, 3), np.uint8)}

  monkeypatch.setattr(data, 'train_batches', slow)
  found = bench_input.rate(pictures, batch=8, seconds=0.3)
  assert found['images_per_second'] <= 400 < found['images_per_cpu_second'] < 801  # 8 in 20 ms, of which 10 are work


@pytest.mark.parametrize('slow', [False, True])
def test_waiting_is_the_share_of_a_step_in_which_no_batch_has_come(slow, pictures, model, monkeypatch):
  step = 0.02

  def made(model, data, mesh, dtype):
    def run(state, batch):
      time.sleep(step)
      return state, batch['image'].shape[0]

    return 0, run

  def batches(data, *, batch, seed):
    while True:
      time.sleep(step * slow)  # takes as long as the step, and nothing overlaps
      yield {'image': np.zeros((batch, 16, 16, 3), np.uint8), 'id': np.zeros(batch, np.int64)}

  monkeypatch.setattr(bench_input, '_step', made)
  monkeypatch.setattr(data, 'train_batches', batches)
  found = bench_input.beside(model, pictures, batch=16, seconds=0.3)
  assert found['step_milliseconds'] >= 1000 * step
  assert found['step_images_per_second'] == pytest.approx(16_000 / found['step_milliseconds'])
  assert (found['waiting'] > 0.3) == slow and found['keeps_up'] is (found['waiting'] < 0.05)


def test_the_command_prints_one_line_of_json_and_a_table(capsys):
  words = ['--data=digits', '--size=8', '--batch=16', '--threads=1', '--seconds=0.05']
  assert cli.main(['bench', 'input', *words]) == 0
  out, err = capsys.readouterr()
  found = json.loads(out)
  assert (found['pictures'], found['size'], found['batch'], found['threads']) == (1437, 8, 16, 1)
  assert found['images_per_second'] > 0 and 'images_per_cpu_second' in err and 'waiting' not in found


def test_the_command_measures_a_real_step(capsys, pictures, model):
  found = bench_input.beside(model, pictures, batch=8, seconds=0.05)
  assert found['step_milliseconds'] > 0 and 0 <= found['waiting'] < 1


@pytest.mark.parametrize(
  'arguments, wanted',
  [
    ('', '--data'),
    ('--data=digits --batch=0', '--batch=0'),
    ('--data=digits --thread=2', 'did you mean --threads?'),
    ('--data=digits --interpolation=cubic', 'interpolation'),
    ('--data=digits --size=32 --model=vit_tinny_patch16_224', 'vit_tiny_patch16_224'),
    ('--data=none', 'none: no such folder'),
  ],
)
def test_wrong_words_get_one_line(arguments, wanted, capsys):
  assert cli.main(['bench', 'input', *arguments.split()]) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.count('\n') == 1 and wanted in err
