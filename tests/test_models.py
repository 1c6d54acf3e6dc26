"""Every name: its parameters and the keys of its file are timm's, its arguments are checked, its aliases lead to it."""

from flax import nnx
import listing
import numpy as np
import pytest

from vit_jax import models

# The original release's models at 1000 classes, from its papers' checkpoints (model names of the original repository)
ORIGINAL = {
  'ViT-Ti_16': 5_717_416, 'ViT-S_16': 22_050_664, 'ViT-S_32': 22_878_952, 'ViT-B_8': 86_576_872,
  'ViT-B_16': 86_567_656, 'ViT-B_32': 88_224_232, 'ViT-L_16': 304_326_632, 'ViT-L_32': 306_535_400,
  'ViT-H_14': 632_045_800, 'ViT-S_16-gap-norep': 22_049_896, 'ViT-S_32-gap-norep': 22_878_184,
  'ViT-B_16-gap-norep': 86_566_120, 'ViT-B_32-gap-norep': 88_222_696,
}  # fmt: skip
# Names that timm has not: the original release's pooled models, and masked autoencoders, which test_mae knows.
OURS = {
  'vit_small_patch16_gap_224', 'vit_small_patch32_gap_224', 'vit_base_patch32_gap_224',
  'vit_base_patch16_gap_norep_224', 'mae_vit_base_patch16', 'mae_vit_large_patch16', 'mae_vit_huge_patch14',
}  # fmt: skip


def sample():
  """One name for each class and set of arguments that rows have: the shallowest."""
  shallow = {}
  for name in sorted(listing.FACTS, key=lambda name: models.architecture(name).get('depth', 1)):
    cls, row = models.variant(name)
    words = frozenset(f'{key}={value}' if isinstance(value, (str, bool)) else key for key, value in row.items())
    shallow.setdefault((cls, words), name)
  return list(shallow.values())


@pytest.mark.parametrize('name', sample())
def test_parameters_and_keys_are_timms(name):
  assert listing.problem(name) is None


@pytest.mark.slow
def test_all_of_timms_architectures_are_here(capsys):
  assert listing.main() == 0
  assert capsys.readouterr().out.splitlines() == ['224 of 224']


def test_every_name_is_timms_or_known_to_be_ours():
  assert not listing.FACTS.keys() - models.VARIANTS.keys()
  assert models.VARIANTS.keys() - listing.FACTS.keys() == OURS


def test_a_listing_says_what_is_wrong(monkeypatch):
  monkeypatch.setitem(listing.FACTS, 'test_vit', [1, ''])
  monkeypatch.setitem(listing.FACTS, 'test_vit2', [listing.FACTS['test_vit2'][0], ''])
  assert 'parameters, timm 1' in listing.problem('test_vit') and 'other keys' in listing.problem('test_vit2')
  monkeypatch.delitem(models.VARIANTS, 'test_vit3')
  assert listing.problem('test_vit3') == 'missing'


@pytest.mark.parametrize('alias', ORIGINAL)
def test_count_of_the_original_names(alias):
  assert models.count(models.abstract(alias, num_classes=1000)) == ORIGINAL[alias]


def test_names_of_other_libraries():
  assert (
    models.canonical('vit_b_16') == 'vit_base_patch16_224' and models.canonical('vit_h_14') == 'vit_huge_patch14_224'
  )
  assert models.canonical('dinov2_vitg14_reg') == 'vit_giant_patch14_reg4_dinov2'


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
    ('q', 'vit_jax list models'),
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
  assert models.list_models('vit_tiny_patch16_?24') == ['vit_tiny_patch16_224']
  assert len(models.list_models('vit*dino*')) == 20
  assert set(models.VARIANTS) == set(models.list_models())
  assert not models.VARIANTS.keys() & models.ALIASES.keys()
  assert all(target in models.VARIANTS for target in models.ALIASES.values())
