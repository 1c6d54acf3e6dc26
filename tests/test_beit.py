"""BEiT against tensors that timm and transformers computed in float64, and its relative positions at other sizes."""

import pathlib

import jax
import numpy as np
import peers
import pytest

from vit_jax import models, state
from vit_jax.models import positions

TINY = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=3)
NAME = 'beit_base_patch16_224'
GOLDENS = ['beit_timm_rect', 'beit_timm_shared', 'beit_hf', 'beit_hf_resized', 'beit_hf_shared', 'beit_hf_oblong']


def build(**overrides):
  return peers.noisy(NAME, **TINY | overrides)


@pytest.mark.parametrize('name', GOLDENS)
def test_every_tensor_is_the_peers(name):
  peers.check(name)


def test_bfloat16():
  peers.check_bfloat16('beit_timm_rect', 'logits', 0.05)


def test_tables_are_resized_as_timm_does():
  stored = np.load(pathlib.Path(__file__).parent / 'goldens/beit/relative_positions_timm.npz')
  for name in [name.removeprefix('in.') for name in stored if name.startswith('in.')]:
    old, new = (tuple(map(int, grid.split('x'))) for grid in name.split('_'))
    got = positions.resize_relative_positions(stored[f'in.{name}'], old, new)
    np.testing.assert_allclose(got, stored[f'out.{name}'], atol=3e-6)


def test_an_equal_window_keeps_the_table():
  table = np.ones((positions.relative_count(3, 4), 2), np.float32)
  assert positions.resize_relative_positions(table, (3, 4), (3, 4)) is table


def test_the_index_says_which_way():
  index = positions.relative_index(2, 3)
  assert index.shape == (7, 7) and index[0, 1] == 15 and index[1, 0] == 16 and index[0, 0] == 17
  assert index[1, 1] == index[6, 6] == 7  # no offset: the middle of 3 x 5
  assert index[6, 1] == 14 and index[1, 6] == 0  # the query below and right of the key, and the other way


@pytest.mark.parametrize('size', [(16, 16), (24, 40)])
def test_any_image_size(size):
  model = build(use_abs_pos_emb=True, use_shared_rel_pos_bias=True)
  assert peers.shape(model, peers.images(*size)) == (2, 3)
  assert peers.shape(build(crop_to_patches=True), peers.images(size[0] + 3, size[1] + 7)) == (2, 3)
  assert peers.shape(model.features, peers.images(*size)) == (2, 1 + size[0] * size[1] // 64, 16)


def test_scan_and_remat_change_no_gradient():
  words = TINY | dict(use_shared_rel_pos_bias=True, use_abs_pos_emb=True)
  gradients = peers.check_scan(NAME, build(**words), '__call__', peers.images(24, 16), **words)
  assert np.abs(gradients['rel_pos_bias/relative_position_bias_table']).max() > 0
  assert np.abs(gradients['blocks/1/attn/relative_position_bias_table']).max() > 0


def test_what_blocks_are_told_passes_through_remat():
  graphdef, params, rest = state.split(models.abstract(NAME, **TINY, use_shared_rel_pos_bias=True, remat='dots'))
  loss = lambda p, x: state.merge(graphdef, p, rest)(x).sum()
  jax.eval_shape(jax.grad(loss), params, peers.images(24, 16))


def test_arguments():
  names = lambda **words: set(state.flatten(state.split(models.abstract(NAME, **TINY | words))[1]))
  plain = names()
  assert {'fc_norm/scale', 'blocks/0/attn/q_bias', 'blocks/0/gamma_1'} <= plain
  assert not {'norm/scale', 'pos_embed', 'blocks/0/attn/k_bias'} & plain
  assert 'norm/scale' in names(global_pool='token') and 'norm/scale' in names(use_fc_norm=False)
  assert plain - names(init_values=0) == {f'blocks/{i}/gamma_{j}' for i in range(2) for j in (1, 2)}
  assert plain - names(qkv_bias=False) == {f'blocks/{i}/attn/{j}_bias' for i in range(2) for j in 'qv'}
  assert 'blocks/0/mlp/fc1_g/kernel' in names(swiglu_mlp=True)
  assert peers.shape(build(global_pool=''), peers.images()) == (2, 5, 3)


@pytest.mark.parametrize(('arguments', 'said'), [
  (dict(global_pool='map'), "global_pool is 'map'; choose one of 'avg', 'token', ''."),
  (dict(rel_pos_resize='bicubic'), "rel_pos_resize is 'bicubic'; choose one of geometric, bilinear_plain."),
  (dict(attention='cudnn'), "attention='cudnn' has no biases of relative positions here; choose attention='xla'."),
])  # fmt: skip
def test_what_cannot_be_built_says_so_in_one_line(arguments, said):
  with pytest.raises(ValueError) as caught:
    models.abstract(NAME, **TINY | arguments)
  assert str(caught.value) == said
