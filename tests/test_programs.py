"""Programs: what is exported runs without vit_jax, for any batch and platform, and says what it is."""

import importlib.metadata
import json
import os
import subprocess
import sys

from flax import nnx
import jax
from jax import export
import numpy as np
from PIL import Image
import pytest

import vit_jax
from vit_jax import augment, inference, models, pretrained, programs, state, tables, transforms

TINY = dict(img_size=8, patch_size=2, embed_dim=48, depth=2, num_heads=3, num_classes=5)
ROW = transforms.preprocessing(8, crop='squash', crop_pct=1.0, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
CLASSES = ['cat', 'dog', 'newt', 'elk', 'Ω']
SMALL = dict(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=5)
FAMILIES = {
  'vit_tiny_patch16_224': SMALL | dict(init_values=0.1, reg_tokens=1, mlp_layer='SwiGLUPacked', attn_layer='diff'),
  'vit_base_patch32_clip_224': SMALL,
  'vit_base_patch16_siglip_224': SMALL,
  'deit_tiny_distilled_patch16_224': SMALL,
  'beit_base_patch16_224': SMALL,
  'vit_small_patch16_dinov3': SMALL,
  'vit_tiny_r_s16_p8_224': SMALL | dict(img_size=32, patch_size=1, stem_chs=32),
  'vit_small_resnet26d_224': SMALL | dict(img_size=32, patch_size=1, layers=(1, 1), channels=(8, 16), stem_chs=8),
  'resnetv2_50x1_bit': dict(img_size=32, layers=(1, 1), channels=(16, 24), stem_chs=8, num_groups=4, num_classes=5),
  'mixer_b16_224': dict(img_size=16, patch_size=8, embed_dim=16, num_blocks=1, num_classes=5),
  'mae_vit_base_patch16': SMALL | dict(
    num_classes=0, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2
  ),
}  # fmt: skip
# those that StableHLO is tried with in the main environment; all are, beside ONNX, where jax2onnx is
FEW = ('vit_tiny_patch16_224', 'vit_small_patch16_dinov3', 'vit_small_resnet26d_224', 'mae_vit_base_patch16')
# in the main environment a newer orbax leaves no room for jax2onnx; .ci/run makes one for these
ONNX = 'jax2onnx is not installed: it needs an environment of its own, as .ci/run makes'


def tiny(name='vit_tiny_patch16_224', **arguments):
  """A model whose every parameter and statistic is random, so that none is without effect."""
  model = vit_jax.create_model(name, **arguments or TINY)
  rng = np.random.default_rng(0)
  noisy = lambda a: np.float32(a + 0.1 * rng.normal(size=a.shape))
  _, params, rest = state.split(model)
  positive = lambda a: np.abs(noisy(a))  # of variances
  state.update(model, jax.tree.map(noisy, params), jax.tree.map(positive, rest))
  return model


def square(model):
  """A preprocessing row of the model's own size."""
  return transforms.preprocessing(pretrained.described(model)['architecture']['img_size'])


def pictures(n, row):
  return np.random.default_rng(n).integers(0, 256, (n, *row['size'], 3), np.uint8)


def computed(model, images, row, dtype='float32'):
  """What a model gives for pictures, by way of its own call."""
  pixels = augment.normalise(images, row['mean'], row['std'], dtype)
  graphdef, params, rest = state.split(model)
  with programs.exact(dtype):
    return np.asarray(jax.jit(lambda p, x: state.merge(graphdef, p, rest)(x))(state.cast(params, dtype), pixels))


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """(model, the folder of its StableHLO program)."""
  model, out = tiny(), tmp_path_factory.mktemp('program') / 'out'
  vit_jax.export(model, to='stablehlo', out=out, preprocessing=ROW, classes=CLASSES)
  return model, out


def read(folder):
  return export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))


def session(path):
  """The function of pictures that an .onnx file is."""
  import onnxruntime

  found = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
  return lambda images: found.run(None, {'images': images})[0]


def isolated(folder, *words):
  """What `python run.py WORDS` says in a process that cannot import vit_jax."""
  block = 'import runpy, sys; sys.modules["vit_jax"] = None; sys.path.insert(0, "."); sys.argv = sys.argv[1:]; '
  run = [sys.executable, '-W', 'error', '-c', block + 'runpy.run_path("run.py", run_name="__main__")', 'run.py', *words]
  environment = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'XLA_FLAGS')}
  return subprocess.run(run, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)


def test_a_program_predicts_where_vit_jax_cannot_be_imported(exported, tmp_path):
  model, folder = exported
  path = tmp_path / 'three.png'
  Image.fromarray(tables.digits().images[3]).save(path)
  told = isolated(folder, str(path))
  assert told.returncode == 0, told.stderr
  described = pretrained.described(model) | {'preprocessing': ROW, 'classes': CLASSES}
  predictor = inference.Predictor(model, described)
  best = predictor.top(predictor(predictor.prepare(path)[None]), 5)[0]
  assert told.stdout == f'{path}: ' + ', '.join(f'{name} {p:.1%}' for name, p in best) + '\n'


def test_one_file_is_for_any_batch_and_three_platforms(exported):
  model, folder = exported
  found = read(folder)
  assert found.platforms == ('cpu', 'cuda', 'tpu')
  assert 'precision = [HIGHEST, HIGHEST]' in found.mlir_module() and '[DEFAULT' not in found.mlir_module()
  for n in (1, 5):
    images = pictures(n, ROW)
    np.testing.assert_allclose(found.call(images), computed(model, images, ROW), atol=1e-5)


def test_the_folder_says_what_goes_in_and_what_comes_out(exported):
  _, folder = exported
  assert sorted(path.name for path in folder.iterdir()) == [
    'markers.py', 'model.json', 'model.stablehlo', 'run.py', 'transforms.py',
  ]  # fmt: skip
  about, found = json.loads((folder / 'model.json').read_text()), read(folder)
  for (given,), avals in ((about['inputs'], found.in_avals), (about['outputs'], found.out_avals)):
    assert [str(n) for n in avals[0].shape] == [str(n) for n in given['shape']] and avals[0].dtype == given['dtype']
  assert about['inputs'][0]['shape'] == ['b', 8, 8, 3] and about['outputs'][0]['name'] == 'logits'
  assert about['preprocessing'] == ROW and about['classes'] == CLASSES and about['loss'] == 'softmax'
  assert about['versions']['jax'] == jax.__version__ and about['name'] == 'vit_tiny_patch16_224'


@pytest.mark.parametrize('to', ['stablehlo', 'onnx'])
@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_is_a_program(name, to, tmp_path):
  if to == 'onnx' or name not in FEW:
    pytest.importorskip('jax2onnx', reason=ONNX)
  model, out = tiny(name, **FAMILIES[name]), tmp_path / ('x.onnx' if to == 'onnx' else 'x')
  row = square(model)
  vit_jax.export(model, to=to, out=out, preprocessing=row)
  run = session(out) if to == 'onnx' else read(out).call
  for n in (1, 3) if to == 'onnx' else (2,):
    images = pictures(n, row)
    wanted = computed(model, images, row)
    assert wanted.std() > 0.01
    np.testing.assert_allclose(run(images), wanted, atol=1e-5)


def test_an_onnx_file_says_what_it_is(tmp_path):
  onnxruntime = pytest.importorskip('onnxruntime', reason=ONNX)
  pytest.importorskip('jax2onnx', reason=ONNX)
  vit_jax.export(tiny(), to='onnx', out=tmp_path / 'x.onnx', preprocessing=ROW, classes=CLASSES)
  session = onnxruntime.InferenceSession(tmp_path / 'x.onnx', providers=['CPUExecutionProvider'])
  about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
  assert about['classes'] == CLASSES and about['preprocessing'] == ROW
  [image], [logits] = session.get_inputs(), session.get_outputs()
  assert (image.name, image.type, image.shape) == ('images', 'tensor(uint8)', about['inputs'][0]['shape'])
  assert (logits.name, logits.type, logits.shape) == ('logits', 'tensor(float)', about['outputs'][0]['shape'])


def test_a_scanned_model_gives_the_same_program(exported, tmp_path):
  model, folder = exported
  scanned = vit_jax.create_model('vit_tiny_patch16_224', **TINY, scan=True, remat='full')
  state.update(scanned, state.stack(state.split(model)[1]))
  vit_jax.export(scanned, to='stablehlo', out=tmp_path / 'x', preprocessing=ROW)
  # without where in the source each line comes from, which is numbered anew
  lines = lambda folder: [line.partition(' loc(')[0] for line in read(folder).mlir_module().splitlines()]
  ours, theirs = ([line for line in lines(path) if line[:4] != '#loc'] for path in (folder, tmp_path / 'x'))
  assert ours == theirs


def test_a_model_that_was_changed_in_python_is_a_program_too(tmp_path):
  model = tiny()
  model.head = nnx.Linear(48, 2, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='does not say how pictures are prepared'):
    vit_jax.export(model, to='stablehlo', out=tmp_path / 'x')
  vit_jax.export(model, to='stablehlo', out=tmp_path / 'x', preprocessing=ROW, classes=['left', 'right'])
  images = pictures(2, ROW)
  np.testing.assert_allclose(read(tmp_path / 'x').call(images), computed(model, images, ROW), atol=1e-5)
  assert json.loads((tmp_path / 'x' / 'model.json').read_text())['name'] is None


def test_bfloat16_halves_the_file_and_computes_in_it(exported, tmp_path):
  model, folder = exported
  vit_jax.export(model, to='stablehlo', out=tmp_path / 'x', preprocessing=ROW, dtype='bfloat16')
  size = lambda folder: (folder / 'model.stablehlo').stat().st_size
  assert size(tmp_path / 'x') < 0.6 * size(folder)
  images = pictures(4, ROW)
  got = np.asarray(read(tmp_path / 'x').call(images))
  exact = computed(model, images, ROW)
  assert got.dtype == np.float32 and 1e-4 < np.abs(got - exact).max() < 0.05 * np.abs(exact).max()


def test_weights_that_one_file_cannot_hold_are_refused_before_anything_is_computed(tmp_path):
  huge = models.abstract('vit_huge_patch14_224')
  huge.origin = json.dumps(
    {'name': 'vit_huge_patch14_224', 'architecture': models.architecture('vit_huge_patch14_224')}
  )
  with pytest.raises(ValueError, match=r'take 2\.35 GiB.*at most 2; --dtype=bfloat16 --to=stablehlo halves it'):
    vit_jax.export(huge, to='stablehlo', out=tmp_path / 'x')
  assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_one_line(tmp_path, monkeypatch):
  versions = {}

  def version(name):
    if name not in versions:
      raise importlib.metadata.PackageNotFoundError(name)
    return versions[name]

  monkeypatch.setattr(importlib.metadata, 'version', version)
  with pytest.raises(ValueError, match=r"needs jax2onnx: pip install 'vit_jax\[onnx\]' in an environment of its own"):
    vit_jax.export(tiny(), to='onnx', out=tmp_path / 'x.onnx')
  versions['jax2onnx'] = '0.13.0'
  with pytest.raises(ValueError, match=r"jax2onnx 0\.13\.0 is too old.*pip install 'vit_jax\[onnx\]'"):
    vit_jax.export(tiny(), to='onnx', out=tmp_path / 'x.onnx')
  with pytest.raises(ValueError, match='onnxruntime has no bfloat16'):
    vit_jax.export(tiny(), to='onnx', out=tmp_path / 'x.onnx', dtype='bfloat16')
  with pytest.raises(ValueError, match='choose one of float32, bfloat16'):
    vit_jax.export(tiny(), to='stablehlo', out=tmp_path / 'x', dtype='float16')
  monkeypatch.setitem(sys.modules, 'flatbuffers', None)
  with pytest.raises(ValueError, match='pip install flatbuffers'):
    vit_jax.export(tiny(), to='stablehlo', out=tmp_path / 'x')
  assert list(tmp_path.iterdir()) == []


def test_a_model_of_other_channels_is_no_program(tmp_path):
  with pytest.raises(ValueError, match='has 4; formats that can hold it: timm, hf'):
    vit_jax.export(tiny('vit_tiny_patch16_224', **SMALL, in_chans=4), to='stablehlo', out=tmp_path / 'x')
