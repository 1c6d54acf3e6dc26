"""Files of open_clip: the image tower under timm's names, everything else left out by name."""

import numpy as np
import pytest

import vit_jax
from vit_jax import convert, convert_clip, formats, models

TINY = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=6)
NAMES = {
  'cls_token': 'class_embedding', 'pos_embed': 'positional_embedding', 'patch_embed.proj.weight': 'conv1.weight',
  'norm_pre.': 'ln_pre.', 'norm.': 'ln_post.', 'head.weight': 'proj', 'blocks.': 'transformer.resblocks.',
}  # fmt: skip
INSIDE = {
  '.norm1.': '.ln_1.', '.norm2.': '.ln_2.', '.attn.qkv.': '.attn.in_proj_', '.attn.proj.': '.attn.out_proj.',
  '.mlp.fc1.': '.mlp.c_fc.', '.mlp.fc2.': '.mlp.c_proj.',
}  # fmt: skip


def open_clip(arrays):
  """A file of open_clip from one with timm's names, with a text side."""
  out = {'token_embedding.weight': np.ones((3, 4)), 'logit_scale': np.ones(()), 'text_projection': np.ones((4, 6)),
         'transformer.resblocks.0.ln_1.weight': np.ones(4)}  # fmt: skip
  for name, array in arrays.items():
    start = next((word for word in NAMES if name.startswith(word)), None)
    if start is None:
      assert name == 'head.bias'
      continue
    key = NAMES[start] + name.removeprefix(start)
    for word, theirs in INSIDE.items():
      key = key.replace(word, theirs)
    key = f'visual.{key}'
    flat = {'visual.class_embedding': array.reshape(-1), 'visual.positional_embedding': array[0]}
    out[key] = array.T if key == 'visual.proj' else flat.get(key, array)
  return {key: np.ascontiguousarray(array, np.float32) for key, array in out.items()}


@pytest.fixture(params=['vit_base_patch32_clip_224', 'vit_base_patch32_clip_quickgelu_224'])
def file(request, tmp_path):
  """(path, name, arrays with timm's names) of a tiny tower."""
  rng = np.random.default_rng(0)
  entries = convert.timm(models.abstract(request.param, **TINY))
  arrays = {entry.keys[0]: rng.standard_normal(entry.file_shape).astype(np.float32) for entry in entries}
  arrays['head.bias'] *= 0
  path = tmp_path / 'open_clip_model.safetensors'
  formats.save_safetensors(path, list(open_clip(arrays).items()))
  return path, request.param, arrays


def test_the_tower_is_timms_to_the_bit(file):
  path, name, arrays = file
  tower = convert_clip.Tower(formats.open_arrays(path))
  assert set(tower) == set(arrays)
  for key, array in arrays.items():
    assert tower.shapes[key] == array.shape
    np.testing.assert_array_equal(tower[key], array)
  model = vit_jax.create_model(name, pretrained=path, **TINY)
  np.testing.assert_array_equal(model.head.kernel[...], arrays['head.weight'].T)


def test_a_trunk_has_timms_own_names():
  names = {'visual.trunk.blocks.0.norm1.weight': 'blocks.0.norm1.weight', 'visual.head.proj.weight': 'head.weight',
           'text.transformer.resblocks.0.ln_1.weight': None}  # fmt: skip
  assert {key: convert_clip.timm_key(key) for key in names} == names
  assert convert_clip.is_clip(names) and not convert_clip.is_clip(['blocks.0.norm1.weight'])


def test_a_file_does_not_say_which_gelu(tmp_path):
  name = 'vit_xsmall_patch16_clip_224'
  entries = convert.timm(models.abstract(name))
  arrays = {entry.keys[0]: np.zeros(entry.file_shape, np.float32) for entry in entries}
  path = tmp_path / 'open_clip_model.safetensors'
  formats.save_safetensors(path, list(open_clip(arrays).items()))
  assert vit_jax.load(path)[1]['name'] == name  # only one row has this shape
  with pytest.raises(ValueError, match=r'width 256.* does not fit|does not fit .*width 256'):
    vit_jax.load(path, arch='vit_base_patch16_clip_224')
