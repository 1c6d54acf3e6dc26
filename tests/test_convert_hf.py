"""Hugging Face's formats: names and shapes of published files, every array both ways, and the JSONs beside them."""

import hashlib
import json
import pathlib

from flax import nnx
import golden
import jax
import numpy as np
import pytest

from vit_jax import convert, convert_hf, models, state, transforms

FILES = [
  'beit_hf', 'beit_hf_masked', 'bit_hf', 'clip_hf', 'clip_hf_class', 'clip_hf_projection', 'deit_hf_class',
  'deit_hf_teacher', 'dinov2_hf', 'dinov2_hf_registers', 'dinov2_hf_swiglu', 'dinov3_hf', 'dinov3_hf_biases',
  'hybrid_hf', 'mae_hf', 'siglip_hf', 'siglip_hf_class', 'vit_hf', 'vit_hf_pooler', 'vit_hf_rect',
]  # fmt: skip
COUNTS = json.loads((pathlib.Path(__file__).parent / 'goldens/hf_counts.json').read_text())
TINY = dict(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=3)


def opened(name):
  """(config, {key: array}) of a golden."""
  meta = json.loads((golden.FOLDER / f'{name}.json').read_text())
  return meta['config'], golden.weights(meta)


def built(config, shapes=None):
  """(description, abstract model)."""
  described = convert_hf.describe(config, None, shapes)
  return described, models.abstract(described['name'], **described['architecture'])


def read(entries, arrays):
  """{path: array} of ours."""
  return {path: np.asarray(array) for path, array in convert.Converted(entries, arrays).items()}


@pytest.mark.parametrize('name', FILES)
def test_every_array_of_a_file_is_read_and_written_back_to_the_bit(name):
  config, arrays = opened(name)
  shapes = {key: array.shape for key, array in arrays.items()}
  kept = {k: a for k, a in arrays.items() if not convert_hf.ignored(k, config['model_type'], shapes)}
  described, model = built(config, shapes)
  entries = convert_hf.entries(model, config, shapes)
  assert convert.differences(entries, {key: array.shape for key, array in kept.items()}) == []
  ours = read(entries, arrays)
  assert {path: a.shape for path, a in ours.items()} == {e.path: e.shape for e in entries}
  back = dict(convert.written(entries, ours))
  assert {key: a.tobytes() for key, a in back.items()} == {key: a.tobytes() for key, a in kept.items()}

  written = convert_hf.config(described)  # the folder that we write says the same model, under names of its own class
  again, same = built(json.loads(json.dumps(written)))
  theirs = dict(convert.written(convert_hf.entries(model, written), ours))
  for path, array in read(convert_hf.entries(same, written), theirs).items():
    np.testing.assert_array_equal(array, ours[path])
  assert again['num_classes'] == described['num_classes']


def test_a_grey_oblong_vit_of_another_activation_gives_their_logits():  # the other goldens: test_parity.py
  config, arrays = opened('vit_hf_rect')
  shapes = {key: array.shape for key, array in arrays.items()}
  _, model = built(config, shapes)
  nnx.update(model, state.unflatten(read(convert_hf.entries(model, config, shapes), arrays)))
  with np.load(golden.FOLDER / 'vit_hf_rect.io.npz') as io, jax.default_matmul_precision('highest'):
    assert golden.error(model(io['in.image']), io['out.logits']) <= 5e-5


def text_tower(config, kind):
  """{key: shape} of what the text's side of a two-tower file has."""
  siglip, text = kind == 'siglip', config['text_config']
  given = dict(hidden_size=768, intermediate_size=3072, vocab_size=32000) if siglip else (
    dict(hidden_size=512, intermediate_size=2048, vocab_size=49408))  # fmt: skip
  dim, hidden, words = (given | text)['hidden_size'], (given | text)['intermediate_size'], (given | text)['vocab_size']
  layers = text.get('num_hidden_layers', 27 if dim == 1152 else 12)
  out = {
    'embeddings.position_embedding.weight': (64 if siglip else 77, dim),
    'embeddings.token_embedding.weight': (words, dim),
  }
  dense = {'final_layer_norm': (dim,)} | ({'head': (text.get('projection_size', dim), dim)} if siglip else {})
  for i in range(layers):
    parts = {f'self_attn.{part}_proj': (dim, dim) for part in ('q', 'k', 'v', 'out')}
    parts |= {'mlp.fc1': (hidden, dim), 'mlp.fc2': (dim, hidden), 'layer_norm1': (dim,), 'layer_norm2': (dim,)}
    dense |= {f'encoder.layers.{i}.{part}': shape for part, shape in parts.items()}
  for part, shape in dense.items():
    out |= {f'{part}.weight': shape, f'{part}.bias': shape[:1]}
  out = {f'text_model.{key}': shape for key, shape in out.items()}
  if siglip:
    return out | {'logit_scale': (1,), 'logit_bias': (1,)}
  return out | {'logit_scale': (), 'text_projection.weight': (config['projection_dim'], dim)}


@pytest.mark.parametrize('name', COUNTS)
def test_a_published_file_has_exactly_these_arrays(name):
  row = COUNTS[name]
  config = row['config'] | {'architectures': [row['class']]}
  _, model = built(config)
  keys = {key: e.file_shape for e in convert_hf.entries(model, config) for key in e.keys if key is not None}
  keys |= convert_hf.unread(config)
  if 'text_config' in config:
    text = text_tower(config, config['model_type'])
    assert all(convert_hf.ignored(key, config['model_type']) for key in text)
    keys |= text
  lines = sorted(f'{key} {"x".join(map(str, shape))}' for key, shape in keys.items())
  assert hashlib.sha256('\n'.join(lines).encode()).hexdigest() == row['listing_sha256']


def test_a_name_and_class_names_are_found():
  named = {'id2label': {'1': 'dog', '0': 'cat'}}
  described = convert_hf.describe(
    {'model_type': 'vit', 'architectures': ['ViTForImageClassification'], 'image_size': 384, **named}
  )
  assert (described['name'], described['num_classes']) == ('vit_base_patch16_384', 2)
  assert described['classes'] == ['cat', 'dog']
  assert convert_hf.config(described)['id2label'] == {0: 'cat', 1: 'dog'}
  config, _ = opened('vit_hf')
  assert convert_hf.describe(config)['classes'] is None
  registers = COUNTS['facebook/dinov2-with-registers-base']
  assert convert_hf.describe(registers['config'])['name'] == 'vit_base_patch14_reg4_dinov2'


REFUSED = {
  'swin': ({'model_type': 'swin'}, "model_type is 'swin'"),
  'activation': ({'model_type': 'vit', 'hidden_act': 'mish'}, "hidden_act='mish'"),
  'pooler': ({'model_type': 'vit', 'architectures': ['ViTModel'], 'pooler_act': 'relu'}, "pooler_act='relu'"),
  'pruned': ({'model_type': 'vit', 'pruned_heads': {'0': [1]}}, 'pruned_heads'),
  'dilated': ({'model_type': 'bit', 'output_stride': 16}, 'output_stride=16'),
  'padding': ({'model_type': 'bit', 'global_padding': 'SAME'}, "global_padding='SAME'"),
  'not square': ({'model_type': 'dinov2', 'image_size': [14, 42], 'patch_size': 14}, 'square grids'),
  'backbone': ({'model_type': 'vit-hybrid', 'image_size': 224}, 'backbone_featmap_shape'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_value_that_we_do_not_have_is_refused_by_name(case):
  config, message = REFUSED[case]
  with pytest.raises(ValueError, match=message) as error:
    convert_hf.describe(config)
  assert '\n' not in str(error.value)


UNSAYABLE = {
  'vit_base_patch16_224': (dict(block_fn='ParallelThingsBlock'), "block_fn='ParallelThingsBlock'"),
  'vit_base_patch16_reg4_gap_256': ({}, 'reg_tokens=4|fc_norm=True'),
  'deit3_small_patch16_224': ({}, 'init_values'),
  'mixer_b16_224': ({}, 'no MlpMixer'),
  'vit_tiny_r_s16_p8_224': ({}, r'layers=\(\)'),
}


@pytest.mark.parametrize('name', UNSAYABLE)
def test_an_architecture_without_a_class_of_theirs_is_refused_by_what_differs(name):
  overrides, message = UNSAYABLE[name]
  described = {'name': name, 'architecture': models.architecture(name, **overrides)}
  with pytest.raises(ValueError, match=message) as error:
    convert_hf.config(described)
  assert '--to=' in str(error.value) and '\n' not in str(error.value)


def drawn(name, **overrides):
  """(description, model with random arrays, {path: array})."""
  made = models.architecture(name, **overrides)
  model = models.abstract(name, **made)
  rng = np.random.default_rng(0)
  ours = {e.path: rng.standard_normal(e.shape).astype(np.float32) for e in convert.timm(model)}
  return {'name': name, 'architecture': made}, model, ours


def test_positions_without_the_class_token_are_written_with_a_zero_for_it():
  described, model, ours = drawn('vit_base_patch14_reg4_dinov2', **TINY | {'num_classes': 0})
  config = convert_hf.config(described)
  assert config['architectures'] == ['Dinov2WithRegistersModel']
  entries = convert_hf.entries(model, config)
  file = dict(convert.written(entries, ours))
  table = file['embeddings.position_embeddings']
  assert table.shape == (1, 5, 32) and not table[:, 0].any()
  np.testing.assert_array_equal(table[:, 1:], ours['pos_embed'])
  np.testing.assert_array_equal(read(entries, file)['pos_embed'], ours['pos_embed'])

  _, theirs = built(config)  # as transformers understands it: a position for the class token, none for registers
  table = read(convert_hf.entries(theirs, config), file)['pos_embed']
  assert table.shape == (1, 9, 32) and not table[:, :5].any()
  file['embeddings.position_embeddings'][:, 0] = 1
  with pytest.raises(ValueError, match='position_embeddings holds numbers'):
    read(entries, file)


def test_a_bias_that_the_format_has_no_place_for_is_refused():
  described, model, ours = drawn('vit_base_patch32_clip_224', **TINY)
  entries = convert_hf.entries(model, convert_hf.config(described))
  with pytest.raises(ValueError, match='head/bias is not zero'):
    dict(convert.written(entries, ours))
  ours['head/bias'][:] = 0
  file = dict(convert.written(entries, ours))
  assert file['visual_projection.weight'].shape == (3, 32)
  with pytest.raises(ValueError, match='no place for attn_pool/'):
    convert_hf.entries(drawn('vit_base_patch16_siglip_224', **TINY)[1], convert_hf.config(described))


ROWS = {  # preprocessor_config.json: our row
  'ViT': (
    {'feature_extractor_type': 'ViTFeatureExtractor', 'size': 224, 'resample': 2},
    transforms.preprocessing(224, crop='squash', crop_pct=1, interpolation='bilinear'),
  ),
  'DeiT': (
    {'image_processor_type': 'DeiTImageProcessor', 'image_mean': [0.485, 0.456, 0.406]},
    transforms.preprocessing(224, crop='squash', crop_pct=0.875, mean=(0.485, 0.456, 0.406)),
  ),
  'CLIP': (
    {'feature_extractor_type': 'CLIPFeatureExtractor', 'size': 256, 'crop_size': 224, 'image_mean': [0.5] * 3,
     'image_std': [0.5] * 3},
    transforms.preprocessing(224, crop='center_floor', crop_pct=0.875),
  ),
  'not normalised': (
    {'do_normalize': False, 'size': {'height': 8, 'width': 16}},
    transforms.preprocessing((8, 16), crop='squash', crop_pct=1, interpolation='bilinear', mean=(0,) * 3, std=(1,) * 3),
  ),
}  # fmt: skip


@pytest.mark.parametrize('case', ROWS)
def test_preprocessing_is_read_and_written(case):
  preprocessor, row = ROWS[case]
  config = {'model_type': 'vit'}
  assert convert_hf.describe(config, preprocessor)['preprocessing'] == row
  written = convert_hf.preprocessor({'preprocessing': row})
  assert convert_hf.describe(config, json.loads(json.dumps(written)))['preprocessing'] == row


CLIP = {'mean': (0.48145466, 0.4578275, 0.40821073), 'std': (0.26862954, 0.26130258, 0.27577711)}
PUBLISHED = {  # as test_transforms.py compares them with what the peer makes of photographs
  'hf4_vit': transforms.preprocessing(224, crop='squash', crop_pct=1.0, interpolation='bilinear'),
  'hf4_clip': transforms.preprocessing(224, crop='center_floor', crop_pct=1.0, **CLIP),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_row_of_a_published_preprocessor_is_the_goldens(name):
  meta = json.loads((golden.FOLDER.parent / f'preproc/{name}.json').read_text())
  given = meta['preprocessor_config']
  assert convert_hf.describe({'model_type': 'vit'}, given)['preprocessing'] == PUBLISHED[name]


@pytest.mark.parametrize(
  'given, message',
  [
    ({'resample': 0}, 'resample=0'),
    ({'rescale_factor': 1.0}, '1/255'),
    ({'do_resize': False}, 'does not resize'),
    ({'size': {'shortest_edge': 224}}, 'shortest_edge'),
  ],
)
def test_a_step_that_no_row_says_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    convert_hf.describe({'model_type': 'vit'}, given)
  with pytest.raises(ValueError, match='not square'):
    convert_hf.preprocessor({'preprocessing': transforms.preprocessing((32, 48))})
