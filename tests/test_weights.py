"""From a name, a folder or a file to a model that computes, and what is said where that cannot be."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from PIL import Image
import pytest
from test_hub import Hub, alone  # noqa: F401

import vit_jax
from vit_jax import cli, convert, formats, hub, models, pretrained, state
from vit_jax import weights as weights_lib

NAME = 'test_vit.r160_in1k'  # the smallest published: 0.37 M parameters
ARCH, TINY = 'vit_tiny_patch16_224', dict(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5)


def drawn(model, seed=0):
  """{path: array} for every parameter of a model, none of them zero."""
  rng = np.random.default_rng(seed)
  shapes = {entry.path: entry.shape for entry in convert.timm(model)}
  return {path: 0.2 * rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}


def save(path, name=ARCH, metadata=None, dtype=np.float32, **made):
  """A file with timm's names, and the arrays that are in it, in our layout."""
  model = models.abstract(name, **made)
  arrays = {path: array.astype(dtype) for path, array in drawn(model).items()}
  formats.save_safetensors(path, list(convert.written(convert.timm(model), arrays)), metadata)
  return arrays


def flat(model):
  return {path: np.asarray(leaf) for path, leaf in state.flatten(state.unstack(state.split(model)[1])).items()}


def refused(call, *words):
  with pytest.raises((ValueError, FileNotFoundError)) as caught:
    call()
  assert '\n' not in str(caught.value)
  for word in words:
    assert word in str(caught.value), str(caught.value)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  path = tmp_path_factory.mktemp('tiny') / 'tiny.safetensors'
  return path, save(path, **TINY)


@pytest.fixture
def published(tmp_path, monkeypatch):
  """A hub that has one repository; gives the arrays in it."""
  arrays = save(tmp_path / 'model.safetensors', 'test_vit')
  row = hub.row(NAME)
  files = {f'/{row["repo"]}/resolve/main/model.safetensors': (tmp_path / 'model.safetensors').read_bytes()}
  with Hub(monkeypatch, files) as server:
    yield server, arrays


def test_a_name_is_downloaded_once_and_filled(published):
  server, arrays = published
  model = vit_jax.create_model(NAME, pretrained=True)
  asked = len(server.seen)
  again, described = vit_jax.load(NAME)
  assert asked == len(server.seen)
  for path, array in flat(model).items():
    np.testing.assert_array_equal(array, arrays[path])
    np.testing.assert_array_equal(array, flat(again)[path])
  assert described['preprocessing'] == hub.row(NAME)['preprocessing'] and described['licence'] == 'apache-2.0'
  assert described['classes'][1].startswith('goldfish') and len(described['classes']) == 1000
  assert vit_jax.create_model(NAME).head.kernel.shape == (64, 1000)  # drawn: the row's head, no download


def test_evaluate_runs_the_published_task(published, tmp_path, capsys):
  ids = hub.label_ids('imagenet-1k')
  for i in (3, 700):
    (tmp_path / 'val' / ids[i]).mkdir(parents=True)
    for n in range(2):
      noise = np.random.default_rng(i + n).integers(0, 255, (40, 50, 3), np.uint8)
      Image.fromarray(noise).save(tmp_path / 'val' / ids[i] / f'{n}.png')
  assert cli.main(['evaluate', '--model', NAME, '--data', str(tmp_path), '--split=val', '--batch=8']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['examples'] == 4 and found['weights'] == NAME and len(found['per_class']) == 1000
  (tmp_path / 'val' / 'unicorn').mkdir()
  Image.fromarray(noise).save(tmp_path / 'val' / 'unicorn' / 'a.png')
  assert cli.main(['evaluate', '--model', NAME, '--data', str(tmp_path), '--split=val']) == 2
  assert 'name the folders by class or by WordNet id' in capsys.readouterr().err


def test_show_says_where_weights_come_from(published, capsys):
  assert cli.main(['show', NAME]) == 0
  said = capsys.readouterr().out
  assert NAME in said and 'apache-2.0' in said and f'{hub.row(NAME)["parameters"]:,}' in said


def test_a_file_that_its_shapes_betray_needs_no_name(tmp_path):
  path = tmp_path / 'w.safetensors'
  arrays = save(path, 'test_vit2')
  model, described = vit_jax.load(path)
  assert described['name'] == 'test_vit2' and described['preprocessing'] is None
  np.testing.assert_array_equal(flat(model)['blocks/0/attn/qkv/kernel'], arrays['blocks/0/attn/qkv/kernel'])
  refused(lambda: cli_refusal(['evaluate', f'--model={path}', '--data=digits']), 'how pictures are prepared')


def cli_refusal(argv):
  from vit_jax import commands

  commands.evaluate(argv[1:])


def test_a_file_that_could_be_several_is_not_guessed(tmp_path):
  path = tmp_path / 'w.safetensors'
  made = dict(depth=12)
  save(path, 'vit_tiny_patch16_224', **made)
  fits = weights_lib.convert_timm._fits(formats.open_arrays(path).shapes, lambda key: False)
  assert {'vit_tiny_patch16_224', 'deit_tiny_patch16_224'} <= set(fits)
  assert vit_jax.load(path)[1]['name'] in fits  # both compute the same
  refused(lambda: vit_jax.create_model('vit_small_patch16_224', pretrained=path), 'width 192, depth 12, patch 16',
          'as vit_tiny_patch16_', 'vit_small_patch16_224')  # fmt: skip


def test_other_heads_sizes_and_pooling(tiny):
  path, arrays = tiny
  create = lambda **how: vit_jax.create_model(ARCH, pretrained=path, **{**TINY, **how})
  np.testing.assert_array_equal(flat(create())['head/kernel'], arrays['head/kernel'])
  refused(lambda: create(num_classes=3), 'head/kernel is (24, 5), wanted (24, 3)', "reset=('head',)")
  fresh = flat(create(num_classes=3, reset=('head',)))
  assert not fresh['head/kernel'].any() and (fresh['norm/scale'] == arrays['norm/scale']).all()
  assert create(num_classes=0, reset=('head',)).head is None
  refused(lambda: create(num_classes=0), 'extra head/kernel')
  assert create(img_size=(32, 24)).pos_embed.shape == (1, 13, 24)
  pooled = create(global_pool='avg', class_token=False, reset=('cls_token',))
  np.testing.assert_array_equal(flat(pooled)['fc_norm/scale'], arrays['norm/scale'])
  np.testing.assert_array_equal(flat(pooled)['pos_embed'], arrays['pos_embed'][:, 1:])
  refused(lambda: create(global_pool='avg', class_token=False), 'extra cls_token')
  layered = create(init_values=1e-4, reset=('blocks',))
  assert (flat(layered)['blocks/1/ls1/gamma'] == np.float32(1e-4)).all()


def test_scanned_layers_and_half_precision(tiny, tmp_path):
  path, arrays = tiny
  images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  plain = vit_jax.create_model(ARCH, pretrained=path, **TINY)
  scanned = vit_jax.create_model(ARCH, pretrained=path, scan=True, **TINY)
  np.testing.assert_allclose(scanned(images), plain(images), rtol=1e-5, atol=1e-5)
  save(tmp_path / 'half.safetensors', dtype=ml_dtypes.bfloat16, **TINY)
  half = vit_jax.create_model(ARCH, pretrained=tmp_path / 'half.safetensors', **TINY)
  rounded = arrays['pos_embed'].astype(ml_dtypes.bfloat16).astype(np.float32)
  assert half.pos_embed[...].dtype == jnp.float32 and (half.pos_embed[...] == rounded).all()


def test_strict_lists_everything(tmp_path):
  model = models.abstract(ARCH, **TINY)
  arrays = dict(convert.written(convert.timm(model), drawn(model)))
  del arrays['norm.bias']
  arrays['unheard.of'] = np.zeros(3, np.float32)
  arrays['blocks.1.mlp.fc1.bias'] = np.zeros(7, np.float32)
  formats.save_safetensors(tmp_path / 'w.safetensors', list(arrays.items()))
  refused(
    lambda: vit_jax.create_model(ARCH, pretrained=tmp_path / 'w.safetensors', **TINY), '3 differences',
    'missing norm.bias (24,)', 'extra unheard.of (3,)', 'blocks.1.mlp.fc1.bias is (7,), wanted (96,)',
  )  # fmt: skip


def test_what_cannot_be_had_is_one_line(tiny, tmp_path, monkeypatch):
  path, _ = tiny
  whole = path.read_bytes()
  cut = tmp_path / 'cut.safetensors'
  cut.write_bytes(whole[:-10])
  refused(lambda: vit_jax.create_model(ARCH, pretrained=cut, **TINY), 'cut.safetensors')
  refused(lambda: vit_jax.create_model('vit_base_patch16_224.augreg_in22k', pretrained=True), 'did you mean vit_base_')
  refused(lambda: vit_jax.create_model('vit_bass_patch16_224', pretrained=True), 'did you mean vit_base_patch16_224')
  refused(lambda: vit_jax.load(tmp_path / 'none.npz'), 'none.npz')
  refused(lambda: vit_jax.create_model(ARCH, pretrained=path, numerics='timm', **TINY), 'numerics', 'npz')
  refused(lambda: vit_jax.create_model(ARCH, numerics='google'), 'pretrained=PATH')
  monkeypatch.setenv('VIT_JAX_OFFLINE', '1')
  refused(lambda: vit_jax.create_model('vit_base_patch16_224.augreg_in21k_ft_in1k', pretrained=True), 'safetensors')
  (tmp_path / 'odd').mkdir()
  (tmp_path / 'odd' / 'config.json').write_text('{"model_type": "bert"}')
  refused(lambda: vit_jax.load(tmp_path / 'odd'), 'no weights beside it')
  (tmp_path / 'odd' / 'model.safetensors').write_bytes(whole.replace(b'blocks.', b'lagers.'))
  refused(lambda: vit_jax.load(tmp_path / 'odd'), 'does not say what it is')


def test_a_timm_folder_says_what_it_is(tmp_path):
  arrays = save(tmp_path / 'model.safetensors', **TINY)
  args = {key: value for key, value in TINY.items() if key != 'num_classes'}
  config = {'architecture': ARCH, 'num_classes': 5, 'model_args': args, 'label_names': list('abcde')}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  model, described = vit_jax.load(tmp_path)
  assert described['classes'] == list('abcde') and described['architecture']['embed_dim'] == 24
  np.testing.assert_array_equal(flat(model)['norm/bias'], arrays['norm/bias'])
  assert pretrained.origin(model)['name'] == ARCH


@pytest.mark.parametrize('classes', [1, 3])
def test_a_kernel_that_needs_no_transpose_is_not_the_next_ones_memory(tmp_path, classes):
  tiny = dict(layers=(1, 1), channels=(32, 64), stem_chs=16, num_groups=8, num_classes=classes)
  arrays = save(tmp_path / 'bit.safetensors', 'resnetv2_50x1_bit', **tiny)
  model = vit_jax.create_model('resnetv2_50x1_bit', pretrained=tmp_path / 'bit.safetensors', **tiny)
  for path, array in flat(model).items():
    np.testing.assert_array_equal(array, arrays[path], err_msg=path)


def test_a_mask_token_is_dropped_where_it_is_none_of_the_model(tmp_path):
  decoder = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
  tiny = {key: value for key, value in TINY.items() if key != 'num_classes'}
  arrays = save(tmp_path / 'mae.safetensors', 'mae_vit_base_patch16', **tiny, **decoder)
  whole = vit_jax.create_model('mae_vit_base_patch16', pretrained=tmp_path / 'mae.safetensors', **tiny, **decoder)
  np.testing.assert_array_equal(flat(whole)['mask_token'], arrays['mask_token'])
  dino = models.abstract(ARCH, **TINY)
  entries = [*convert.written(convert.timm(dino), drawn(dino)), ('mask_token', np.ones((1, 24), np.float32))]
  formats.save_safetensors(tmp_path / 'dino.safetensors', entries)
  assert vit_jax.create_model(ARCH, pretrained=tmp_path / 'dino.safetensors', **TINY).head is not None


def test_an_exported_file_says_what_it_is_without_its_folder(tmp_path):
  model = vit_jax.create_model(ARCH, **TINY)
  vit_jax.export(model, to='timm', out=tmp_path / 'folder')
  (tmp_path / 'folder' / 'model.safetensors').rename(tmp_path / 'alone.safetensors')
  again, described = vit_jax.load(tmp_path / 'alone.safetensors')
  assert pretrained.origin(again) == pretrained.origin(model) and described['preprocessing']['size'] == [16, 16]
