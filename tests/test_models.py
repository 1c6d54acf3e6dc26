"""Every name: its parameter count is the published one, its arguments are checked, its aliases lead to it."""

import json
import pathlib

from flax import nnx
import jax
import numpy as np
import pytest

from vit_jax import models, state

# [parameters, arrays in the file] as timm 1.0.31 builds them, without loading timm
TIMM = json.loads((pathlib.Path(__file__).parent / 'goldens/timm_counts.json').read_text())
# The original release's models at 1000 classes, from its papers' checkpoints (model names of the original repository)
ORIGINAL = {
  'ViT-Ti_16': 5_717_416, 'ViT-S_16': 22_050_664, 'ViT-S_32': 22_878_952, 'ViT-B_8': 86_576_872,
  'ViT-B_16': 86_567_656, 'ViT-B_32': 88_224_232, 'ViT-L_16': 304_326_632, 'ViT-L_32': 306_535_400,
  'ViT-H_14': 632_045_800, 'ViT-S_16-gap-norep': 22_049_896, 'ViT-S_32-gap-norep': 22_878_184,
  'ViT-B_16-gap-norep': 86_566_120, 'ViT-B_32-gap-norep': 88_222_696,
}  # fmt: skip
# Names that neither list has: the same model at another image size differs by its position embeddings alone.
RESIZED = {
  'vit_tiny_patch16_384': 'vit_tiny_patch16_224', 'vit_small_patch16_384': 'vit_small_patch16_224',
  'vit_small_patch32_384': 'vit_small_patch32_224', 'vit_base_patch32_384': 'vit_base_patch32_224',
  'vit_large_patch16_384': 'vit_large_patch16_224', 'vit_large_patch32_384': 'vit_large_patch32_224',
}  # fmt: skip


@pytest.mark.parametrize('name', models.list_models())
def test_count_is_the_published_one(name):
  model = models.abstract(name)
  leaves = jax.tree.leaves(state.split(model)[1])
  if name in TIMM:
    assert [models.count(model), len(leaves)] == TIMM[name]
  elif name in RESIZED:
    other = models.architecture(RESIZED[name])
    tokens = lambda a: (a['img_size'] // a['patch_size']) ** 2
    extra = (tokens(models.architecture(name)) - tokens(other)) * other['embed_dim']
    count = models.count(models.abstract(RESIZED[name], num_classes=1000))
    assert models.count(models.abstract(name, num_classes=1000)) == count + extra
  elif name == 'vit_large_patch14_reg4_dinov2':  # dinov2 with 4 registers, and no position for the class token
    assert models.count(model) == models.count(models.abstract('vit_large_patch14_dinov2')) + 3 * 1024
  else:
    assert name in [models.canonical(alias) for alias in ORIGINAL], 'a name without a published count'


@pytest.mark.parametrize('alias', ORIGINAL)
def test_count_of_the_original_names(alias):
  heads = {'ViT-B_16-gap-norep': 12}.get(alias)  # timm's row has 16 heads, which changes no count
  overrides = {} if heads is None else {'num_heads': heads}
  assert models.count(models.abstract(alias, num_classes=1000, **overrides)) == ORIGINAL[alias]


def test_sizes_up_to_gigantic_build_without_memory():
  for alias, count in {'ViT-g_14': 1_012_611_432, 'ViT-G_14': 1_844_440_680}.items():
    assert models.count(models.abstract(alias)) == count


def test_any_size_from_arguments():
  model = models.build(
    'vit_base_patch16_224',
    rngs=nnx.Rngs(0),
    img_size=(8, 12),
    patch_size=(4, 2),
    embed_dim=24,
    depth=1,
    num_heads=3,
    mlp_ratio=2,
    num_classes=5,
  )
  assert model(np.zeros((2, 8, 12, 3), np.float32)).shape == (2, 5)
  assert models.architecture('vit_base_patch16_224', depth=1)['depth'] == 1


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('vit_base_patch16_244', 'vit_base_patch16_224'),
    ('VIT-B16', 'ViT-B_16'),
    ('vit_tny', 'vit_tiny_patch16_224'),
    ('resnet5000', 'vit_jax list models'),
  ],
)
def test_an_unknown_name_gets_the_nearest(name, said):
  with pytest.raises(ValueError, match='There is no model') as caught:
    models.variant(name)
  assert said in str(caught.value) and '\n' not in str(caught.value)


def test_an_unknown_argument_gets_the_nearest():
  with pytest.raises(ValueError, match="no argument 'embed_dims'; did you mean 'embed_dim'"):
    models.architecture('ViT-B_16', embed_dims=5)


def test_list_models_takes_a_pattern():
  assert models.list_models('vit_tiny*') == ['vit_tiny_patch16_224', 'vit_tiny_patch16_384']
  assert set(models.VARIANTS) == set(models.list_models())
  assert all(target in models.VARIANTS for target in models.ALIASES.values())
