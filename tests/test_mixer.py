"""The MLP-Mixer against tensors that timm computed in float64, with both forms of GELU, and every argument it has."""

from flax import nnx
import jax
import numpy as np
import peers
import pytest

from vit_jax import models

TINY = dict(img_size=16, patch_size=8, embed_dim=16, num_blocks=2, num_classes=3)


def build(**overrides):
  model = models.build('mixer_b16_224', rngs=nnx.Rngs(0), **TINY | overrides)
  if model.head is not None:
    model.head.kernel[...] = jax.random.normal(jax.random.key(7), model.head.kernel.shape)
  return model


def images(h=16, w=16):
  return np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)


@pytest.mark.parametrize(('name', 'scan'), [('mixer_timm', True), ('mixer_google', False)])
def test_every_tensor_is_the_peers(name, scan):
  peers.check(name, scan=scan)


def test_bfloat16():
  peers.check_bfloat16('mixer_timm', 'logits', 0.05)


def test_arguments():
  assert peers.shape(build(img_size=(16, 24), patch_size=(8, 4)), images(16, 24)) == (2, 3)
  assert peers.shape(build(global_pool=''), images()) == (2, 4, 3)
  assert peers.shape(build(num_classes=0), images()) == (2, 16)
  model = build(mlp_ratio=2)
  assert model.blocks[0].mlp_tokens.fc1.kernel.shape == (4, 32)
  assert model.blocks[0].mlp_channels.fc1.kernel.shape == (16, 32)
  assert peers.shape(model.features, images()) == (2, 4, 16)


def test_dropout_needs_a_key():
  model = build(drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.5)
  run = peers.compiled(model)
  first, second, again = (run(images(), key=jax.random.key(i)) for i in (0, 1, 0))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - second).max() > 1e-3
  np.testing.assert_array_equal(run(images()), peers.compiled(build())(images()))


@pytest.mark.parametrize(('arguments', 'said'), [
  (dict(global_pool='token'), "global_pool is 'token'; an MLP-Mixer has no class token: choose 'avg' or ''."),
  (dict(attention='cudnn'), "An MLP-Mixer has no attention to compute by 'cudnn'; leave attention='auto'."),
])  # fmt: skip
def test_what_cannot_be_built_says_so_in_one_line(arguments, said):
  with pytest.raises(ValueError) as caught:
    build(**arguments)
  assert str(caught.value) == said


def test_another_image_size_is_refused():
  with pytest.raises(ValueError, match='mixes the patches of 16x16 images, not of 24x16; resize them to 16x16.'):
    build()(images(24, 16))


def test_the_original_names():
  assert models.count(models.abstract('Mixer-B_32')) == 60_293_428
  assert models.canonical('Mixer-S_16') == 'mixer_s16_224'
