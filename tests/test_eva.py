"""DINOv3 against tensors that timm and transformers computed in float64, and its rotary positions."""

import jax.numpy as jnp
import numpy as np
import peers
import pytest

from vit_jax import models, state
from vit_jax.models import positions

TINY = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=3)
NAME = 'vit_small_patch16_dinov3_qkvb'


def build(**overrides):
  return peers.noisy(NAME, **TINY | overrides)


@pytest.mark.parametrize(
  ('name', 'scan'),
  [('dinov3_timm_swiglu', True), ('eva_timm_interleaved', False), ('dinov3_hf', False), ('dinov3_hf_gated', False)],
)
def test_every_tensor_is_the_peers(name, scan):
  peers.check(name, scan=scan)


def test_bfloat16():
  peers.check_bfloat16('dinov3_timm_swiglu', 'logits', 0.05)


@pytest.mark.parametrize('rotate_half', [True, False])
def test_turned_tokens_know_offsets_alone(rotate_half):
  """Products of turned vectors depend on where one token is from the other; prefix tokens are not turned."""
  sin, cos = positions.rotary_table(3, 4, 8, prefix=2, temperature=100.0, rotate_half=rotate_half)
  assert sin.shape == cos.shape == (14, 8) and sin.dtype == np.float32
  q, k = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
  q, k = (positions.rotate(np.tile(t, (1, 14, 1, 1)), sin, cos, rotate_half=rotate_half)[0, :, 0] for t in (q, k))
  products = np.asarray(q @ k.T)
  np.testing.assert_allclose(products[2:13, 2:13].diagonal(), products[2, 2], atol=1e-5)
  np.testing.assert_allclose(products[2, 7], products[8, 13], atol=1e-5)  # one row down, one column right
  assert abs(products[2, 7] - products[2, 3]) > 1e-3
  np.testing.assert_array_equal(q[0], q[1])


def test_patch_centres_are_spread_over_minus_one_to_one_at_any_size():
  sin, _ = positions.rotary_table(2, 4, 4, prefix=0, temperature=100.0, rotate_half=True)  # one frequency an axis
  np.testing.assert_allclose(sin[:, 0], np.repeat(np.sin(2 * np.pi * np.array([-0.5, 0.5])), 4), atol=1e-6)
  np.testing.assert_allclose(sin[:4, 1], np.sin(2 * np.pi * np.array([-0.75, -0.25, 0.25, 0.75])), atol=1e-6)


def test_rotation_in_bfloat16_has_float32_angles():
  sin, cos = positions.rotary_table(40, 40, 16, prefix=0, temperature=100.0, rotate_half=True)
  x = np.random.default_rng(0).normal(size=(1, 1600, 1, 16)).astype(np.float32)
  got = positions.rotate(jnp.asarray(x, jnp.bfloat16), sin, cos, rotate_half=True)
  assert got.dtype == jnp.bfloat16
  want = positions.rotate(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), sin, cos, rotate_half=True)
  np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def test_arguments():
  names = lambda **words: set(state.flatten(state.split(models.abstract(NAME, **TINY | words))[1]))
  shape = lambda path, **words: state.flatten(state.split(models.abstract(NAME, **TINY | words))[1])[path].shape
  plain = names()
  assert {'norm/scale', 'reg_token', 'blocks/1/gamma_2', 'blocks/0/attn/v_bias'} <= plain and 'pos_embed' not in plain
  assert 'fc_norm/scale' in names(use_fc_norm=None) and 'norm/scale' in names(global_pool='max', use_fc_norm=None)
  assert names(k_bias=True) - plain == {f'blocks/{i}/attn/k_bias' for i in range(2)}
  assert shape('pos_embed', use_abs_pos_emb=True) == (1, 9, 16)
  assert shape('pos_embed', use_abs_pos_emb=True, no_embed_class=True) == (1, 4, 16)
  gated = dict(swiglu_mlp=True, mlp_ratio=2.2)  # 35 hidden units
  assert shape('blocks/0/mlp/fc1_g/kernel', swiglu_align_to=8, **gated) == (16, 40)
  assert shape('blocks/0/mlp/fc1/kernel', **gated) == (16, 70)
  assert peers.shape(build(global_pool='', class_token=False), peers.images(8, 24)) == (2, 4 + 3, 3)
  assert peers.shape(build(crop_to_patches=True), peers.images(20, 27)) == (2, 3)


@pytest.mark.parametrize(('arguments', 'said'), [
  (dict(rope_type='cat'), "rope_type is 'cat'; the only rotary positions here are DINOv3's: choose 'dinov3'."),
  (dict(num_heads=8), 'Rotary positions need heads of a multiple of 4 channels, not 2; choose another num_heads.'),
  (dict(global_pool='map'), "global_pool is 'map'; choose one of 'avg', 'token', 'max', 'avgmax', ''."),
])  # fmt: skip
def test_what_cannot_be_built_says_so_in_one_line(arguments, said):
  with pytest.raises(ValueError) as caught:
    models.abstract(NAME, **TINY | arguments)
  assert str(caught.value) == said
