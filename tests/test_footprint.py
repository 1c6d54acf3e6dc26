"""footprint: predictions against compiled steps, and the changes that make a config fit."""

import functools
import types

import jax
import numpy as np
import pytest

from vit_jax import cli, config, footprint, hlo, jobs, planned, sharding, sources, train

GIB = 2**30
BASE = {
  'model.name': 'vit_base_patch16_224', 'model.num_classes': '1000', 'model.act_layer': 'gelu_tanh', 'batch': '256',
  'step.dtype': 'bfloat16',
}  # fmt: skip
SMALL = {'model.depth': '2', 'batch': '1024', 'mesh.data': '8'}


@functools.cache
def predicted(n=1, **changes):
  overrides = {name.replace('__', '.'): str(value) for name, value in changes.items()}
  resolved = config.resolve(config.load('digits'), BASE | {'data.crop': 'none', 'model.img_size': '224',
    'model.patch_size': '16', 'model.embed_dim': '768', 'model.depth': '12', 'model.num_heads': '12',
    'model.mlp_ratio': '4.0', 'model.class_token': 'True', 'model.global_pool': 'token'} | overrides)  # fmt: skip
  return footprint.Predicted(resolved, jax.devices()[:n])


def test_a_prediction_is_what_plans_found():
  """Compiled for one H200 and one v5e at 256 and 8 pictures: 15.8 and 1.6 GiB with another attention, see planned."""
  need = predicted()()
  assert need.state == pytest.approx(12 * 86567656, rel=1e-4)
  assert need.activations / 256 / 2**20 == pytest.approx(88.2, abs=0.1)
  assert need.total == pytest.approx(need.state + need.working + need.activations)
  full = predicted(step__remat='full')
  assert full.picture() < predicted(step__remat='dots').picture() < need.activations / 256
  assert full.picture() > need.activations / 256 / 12, 'one layer is computed anew'


def test_a_layout_cuts_the_state_and_the_pictures():
  whole, cut = predicted(8)(), predicted(8)({'mesh.fsdp': 8})
  assert whole.activations == cut.activations == predicted()().activations / 8
  assert cut.state == pytest.approx(whole.state / 8, rel=0.03)  # norms and biases are whole
  assert predicted(8)({'optim.accumulator_dtype': 'bfloat16'}).state == pytest.approx(whole.state * 10 / 12, rel=1e-3)


def test_a_compiled_step_takes_about_what_was_predicted():
  resolved = config.resolve(config.load('digits'), SMALL)
  mesh = sharding.make_mesh(**resolved['mesh'])
  compiled = hlo.peak(planned.Step(resolved, mesh).compiled(resolved['batch'])[0])
  expected = footprint.Predicted(resolved, mesh.devices.flat)().total
  assert compiled / 1.5 < expected < 1.5 * compiled, (compiled, expected)


def test_training_says_both():
  notes, step = [], jax.jit(lambda run, batch: run + batch.sum())
  ahead = train.Ahead(step, notes.append, 3 * 10**9)
  assert [float(ahead(np.float32(i), np.ones(4, np.float32))) for i in range(2)] == [4, 5]
  assert notes == ["the step takes 0.024 kB of a device's memory as compiled, 3 GB predicted"]
  silent = train.Ahead(step, notes.append, None)
  assert float(silent(np.float32(2), np.ones(4, np.float32))) == 6 and len(notes) == 1


def test_only_a_large_run_expects_anything(monkeypatch):
  one = predicted()
  assert jobs._expected(one, one._model()) == one().total
  monkeypatch.setattr(jobs, 'WORTH', 10**9)
  assert jobs._expected(one, one._model()) is None


@pytest.mark.parametrize(('memory', 'n', 'changes'), [
  (8, 1, [{'step.accumulate': 4}, {'step.accumulate': 2, 'step.remat': 'dots'}, {'step.remat': 'full'}]),
  (14, 1, [{'step.accumulate': 2}, {'step.remat': 'dots'}]),
  (0.5, 1, []),
])  # fmt: skip
def test_changes_are_the_cheapest_that_fit(memory, n, changes):
  one = predicted(n)
  found = footprint.cheapest(one, memory * GIB)
  assert found == changes
  assert all(one(change).total <= footprint.FILLED * memory * GIB for change in found)


def test_shards_of_the_state_are_one_of_them():
  found = footprint.cheapest(predicted(8, batch=8), 0.7 * GIB, most=9)
  assert {'mesh.fsdp': 8} in found


def test_what_cannot_fit_is_refused_before_data_is_read(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(footprint, 'limit', lambda mesh: 2**20)
  monkeypatch.setattr(sources, 'open_source', lambda *_, **__: pytest.fail('data was read'))
  assert cli.main(['train', '--config=digits', '--config.mesh.data=8', f'--workdir={tmp_path / "run"}']) == 2
  said = capsys.readouterr().err.splitlines()[-1]
  assert said.startswith('error: This run needs about ') and ' GiB on each device (state 0.0, activations' in said
  assert not (tmp_path / 'run').exists()
  with pytest.raises(ValueError, match=r'cheapest first: --config\.step\.accumulate=4; or --config\.step\.acc'):
    footprint.check(predicted(), 8 * GIB, 'a toy')


def test_running_out_of_memory_gives_the_same_advice(monkeypatch, capsys, tmp_path):
  def fit(*_, **__):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.')

  monkeypatch.setattr(train, 'fit', fit)
  monkeypatch.setattr(footprint, 'limit', lambda mesh: 2**30)
  assert cli.main(['train', '--config=digits', '--config.batch=1024', f'--workdir={tmp_path / "run"}']) == 1
  (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: out of memory')]
  assert 'trying to allocate 9 bytes' in said and '--config.step.accumulate=' in said


def test_parts_are_the_fewest_that_fit():
  mesh = sharding.make_mesh(data=8)
  batch = {'batch': 96, 'optim': {'sam': {'groups': 1}}}
  assert [footprint.parts(batch, mesh, 1, room) for room in (12, 11, 4, 3, 0)] == [1, 2, 3, 4, 12]
  batch['optim']['sam']['groups'] = 32
  assert footprint.parts(batch, mesh, 1, 0) == 3


def test_peak_is_unknown_where_xla_does_not_tell():
  assert hlo.peak(types.SimpleNamespace(memory_analysis=lambda: None)) is None
