"""Plans against what the step was written to reach: bytes, kernels and memory on one H200, exchange on eight.

Skipped where the extra `plan` is not installed: pip install libtpu; pip install --no-deps jax-cuda13-plugin==VERSION
jax-cuda13-pjrt==VERSION, of jax's version. The bytes are those of jax 0.10.2; a later compiler may move others.
"""

import importlib.metadata
import types

import pytest

from vit_jax import config, footprint, hlo, machines, plan, planned, sharding

SPEC = """
from ml_collections import ConfigDict
def get_config(args):
  name, batch = args.split(',')
  return ConfigDict({'total_steps': 1000, 'batch': int(batch), 'data': {'name': 'none'},
    'model': {'name': name, 'num_classes': 1000, 'act_layer': 'gelu_tanh'}, 'optim': {'lr': 1e-3, 'weight_decay': 0.1},
    'step': {'dtype': 'bfloat16', 'attention': 'cudnn'}})
"""
B, L = 'vit_base_patch16_224,256', 'vit_large_patch16_224,128'
EXACT = {'model.act_layer': 'gelu'}
FSDP = {'mesh.fsdp': '8', 'step.scan': 'True', 'step.remat': 'full'}


def installed(*names):
  for name in names:
    try:
      importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      return False
  return True


gpu = pytest.mark.skipif(
  not installed('jax-cuda13-plugin'), reason="needs pip install 'vit_jax[plan]': the CUDA plugin"
)
tpu = pytest.mark.skipif(not installed('libtpu'), reason="needs pip install 'vit_jax[plan]': libtpu")


@pytest.fixture
def spec(tmp_path):
  path = tmp_path / 'planned_config.py'
  path.write_text(SPEC)
  return path


@gpu
@pytest.mark.plan
@pytest.mark.parametrize(('args', 'overrides', 'odd', 'gigabytes', 'kernels', 'gib'), [
  (B, {}, True, 110, 1100, 16),
  (L, {}, True, 152, 2100, 24),
  (B, EXACT, True, 114, 1100, 16),
  (L, EXACT, True, 158, 2100, 24),
  (B, {}, False, 112, 1100, 16.5),
], ids=str)  # fmt: skip
def test_the_step_moves_no_more_than_this_through_an_h200(spec, args, overrides, odd, gigabytes, kernels, gib):
  found = plan.made(f'{spec}:{args}', 'h200', overrides, odd_tokens=odd, kernels=5)
  assert found['gigabytes'] <= gigabytes, found['groups']
  assert found['kernels'] <= kernels
  assert found['fits'] and found['peak_gib'] <= gib
  assert found['predicted_gib'] == pytest.approx(found['peak_gib'], rel=0.2)
  useful = 105.15e9 * 256 if args == B else 369.02e9 * 128  # shared/facts/speed.md, counted by hand
  assert found['gflops'] * 1e9 == pytest.approx(useful, rel=0.05)


@gpu
@pytest.mark.plan
@pytest.mark.parametrize(('overrides', 'ops'), [({}, {'all-reduce'}), (FSDP, {'all-gather', 'reduce-scatter'})])
def test_eight_gpus_exchange_the_least_there_is(spec, overrides, ops):
  found = plan.made(f'{spec}:vit_base_patch16_224,64', 'h200x8', overrides)
  large = [row for row in found['collectives'] if row['mib'] > 1]
  assert {row['op'] for row in large} == ops and {row['dtype'] for row in large} == {'bf16'}
  least = {row['op']: row['moved_mib'] for row in found['minimum']}
  for row in large:
    assert row['moved_mib'] <= 1.001 * least[row['op']]


@gpu
@pytest.mark.plan
def test_what_a_run_would_refuse_is_one_line_of_the_other_side_too():
  with pytest.raises(ValueError, match='^batch=12 does not divide over 8 devices; 8 would, or change mesh'):
    plan.made('digits', 'h200x8', {'batch': '12'})
  with pytest.raises(ValueError, match='^A plan knows no teacher that looks at each step'):
    plan.made('digits', 'h200', {'task.distillation': 'hard', 'task.teacher': 'x'})


@gpu
@pytest.mark.plan
def test_the_largest_batch_is_compiled(spec):
  found = plan.made(f'{spec}:vit_tiny_patch16_224,64', 'h200', {'model.depth': '2'}, largest_batch=True)
  largest = found['largest_batch']
  assert largest['per_chip'] == largest['batch'] > 1000 and str(largest['batch']) in largest['compiled']
  assert 0.75 * 139 < largest['peak_gib'] <= 0.95 * 139  # of so small a model memory is no line


@tpu
@pytest.mark.plan
def test_a_tpu_says_what_it_lacks(spec):
  small = {'model.depth': '2', 'step.attention': 'xla', 'step.scan': 'True'}
  found = plan.made(f'{spec}:vit_tiny_patch16_224,1024', 'v5e-2x2', small)
  assert found['fits'] and [row['op'] for row in found['collectives'] if row['mib'] > 1] == ['all-reduce']
  assert found['predicted_gib'] == pytest.approx(found['peak_gib'], rel=0.4)  # a scan that keeps all takes half again
  found = plan.made(f'{spec}:vit_base_patch16_224,2700', 'v5e-2x2', small)
  assert not found['fits'] and found['peak_gib'] > 15.75 and '--config.step.accumulate=' in found['advice']


@tpu
@pytest.mark.plan
def test_the_tpu_kernel_of_attention_is_compiled_for_heads_and_images_of_each_chip(spec):
  small = {
    'model.depth': '1',
    'model.embed_dim': '128',
    'model.num_heads': '2',
    'batch': '16',
    'step.attention': 'splash',
  }
  found = plan.made(f'{spec}:vit_base_patch16_224,64', 'v5e-2x2', small | {'mesh.tensor': '2'}, kernels=1000)
  assert found['fits'] and not [row for row in found['collectives'] if row['op'] == 'all-to-all']
  kernels = [shape for kind, shape, *_ in found['groups'] if kind == 'tpu_custom_call']
  assert len(kernels) == 3 and all('bf16[8,1,256,64]' in shape for shape in kernels)  # forward, and backward for q, k v


TINY = {'model.embed_dim': '16', 'model.depth': '1', 'model.num_heads': '2', 'batch': '8', 'mesh.data': '8'}


@pytest.mark.parametrize(('name', 'overrides'), [
  ('digits', {}),
  ('digits', {'task.name': 'multilabel', 'task.loss': 'sigmoid', 'task.class_weights': 'balanced',
              'step.augment.mixup': '0'}),
  ('digits', {'task.distillation': 'hard', 'task.teacher': 'x', 'task.teacher_at': 'ahead', 'step.augment.mixup': '0'}),
], ids=str)  # fmt: skip
def test_a_config_needs_no_data_to_be_lowered(name, overrides):
  resolved = config.resolve(config.load(name), TINY | overrides)
  step = planned.Step(resolved, sharding.make_mesh(**resolved['mesh']))
  assert step.classes == 1000 and step.pixels == (8, 8)
  text = step.program.step.lower(step.program.shapes, step._batch(8)).as_text()
  assert '8x8x8x3xui8' in text


def test_a_teacher_that_looks_at_each_step_is_left_out():
  resolved = config.resolve(config.load('digits'), TINY | {'task.distillation': 'hard', 'task.teacher': 'x'})
  with pytest.raises(ValueError, match='task.distillation=none leaves it out'):
    _ = planned.Step(resolved, sharding.make_mesh()).task


class Guess:
  """A footprint.Predicted of one GiB and a tenth for each picture."""

  def __call__(self):
    return footprint.Need(planned.GIB, 0, 0)

  def picture(self):
    return 0.1 * planned.GIB


@pytest.mark.parametrize(('gib', 'wanted'), [
  (lambda n: 1 + 0.1 * n, 122),  # a line: (0.95 * 13.95 - 1) / 0.1
  (lambda n: 1 + 0.1 * n + (5 if n > 90 else 0), 85),  # more than a line near its end: lines from what fits
  (lambda n: 20.0 + n, 0),
], ids=['line', 'step', 'nothing'])  # fmt: skip
def test_the_largest_batch_lies_on_a_line_and_is_tried(gib, wanted):
  tried = []

  def compiled(batch):
    tried.append(batch // 4)
    sizes = dict(argument_size_in_bytes=0, output_size_in_bytes=0, alias_size_in_bytes=0)
    memory = types.SimpleNamespace(temp_size_in_bytes=gib(batch // 4) * planned.GIB, **sizes)
    return types.SimpleNamespace(memory_analysis=lambda: memory), 0.0

  options = types.SimpleNamespace(accumulate=1)
  step = types.SimpleNamespace(mesh=types.SimpleNamespace(shape={'data': 4, 'fsdp': 1}), options=options)
  step.compiled = compiled
  machine = machines.MACHINES['v5e-2x2']._replace(chip=machines.CHIPS['v5e']._replace(memory=13.95))
  own = {'peak_gib': gib(8), 'fits': gib(8) < 13.95}
  found = planned.largest(step, machine, {'batch': 32}, Guess(), own)
  assert found['per_chip'] == wanted and found['batch'] == 4 * wanted
  assert len(tried) == len(set(tried)) <= 5 or not wanted
  assert not wanted or wanted in tried and found['peak_gib'] <= 0.95 * 13.95


def test_what_a_tpu_asks_for_in_vain_is_read_of_its_message():
  said = 'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.07G of '
  assert planned._exceeded(RuntimeError(said + '15.75G hbm. Exceeded hbm capacity by 1.32G.')) == 17.07
  assert planned._exceeded(RuntimeError('program (512.00M) exceeds available HBM (1.00G)')) == 0.5
  with pytest.raises(RuntimeError, match='other'):
    planned._exceeded(RuntimeError('other'))


def test_a_plan_is_shown_in_lines_of_words(capsys):
  found = {
    'config': 'digits', 'machine': 'h200', 'chips': 1, 'mesh': {'data': 1, 'fsdp': 1, 'tensor': 1}, 'model': 'tiny',
    'parameters': 12345, 'image_size': [8, 8], 'batch': 128, 'accumulate': 2, 'memory_gib': 139.0, 'peak_gib': 120.0,
    'predicted_gib': 110.0, 'fits': True, 'advice': 'Take two.', 'gflops': 1500.0, 'gigabytes': 2.5, 'kernels': 1234,
    'collectives': [{'op': 'all-reduce', 'dtype': 'bf16', 'mib': 10.0, 'moved_mib': 17.5, 'count': 3}], 'minimum': [],
    'milliseconds': 2.0, 'exchange_milliseconds': 0.1, 'images_per_second': 64000.0, 'flops_of_peak': 0.5,
    'compile_seconds': 3.0, 'groups': [['fusion', 'f32[8]', 'jit(step)', 4, 2e9, 1e12]],
    'largest_batch': {'batch': 512, 'per_chip': 512, 'peak_gib': 130.0},
  }  # fmt: skip
  planned.show(found)
  said = ' '.join(capsys.readouterr().out.split())
  for words in (
    'tiny on h200, 1 chips (data=1, fsdp=1, tensor=1): compiled, not run', '12,345',
    '128 pictures of 8x8 in 2 parts', '120.00 GiB of the 139.00 of a chip: fits (predicted 110.00)',
    'XLA_PYTHON_CLIENT_MEM_FRACTION', '1.50 TFLOP', 'all-reduce bf16 10.0 MiB in 3; a chip sends 17.5 MiB',
    'at least nothing', 'Take two.', '64,000 images/s, 50% of the peak', '512, 512 a chip: 130.00 GiB, compiled',
    '2.00 GB 1.00 TFLOP 4 fusion f32[8] jit(step)',
  ):  # fmt: skip
    assert words in said, said


def test_peak_counts_what_is_given_over_once():
  import jax

  made = jax.jit(lambda a: a + 1, donate_argnums=0).lower(jax.ShapeDtypeStruct((1024, 256), 'float32')).compile()
  assert hlo.peak(made) == pytest.approx(2**20, rel=0.1)
