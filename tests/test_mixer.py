"""The MLP-Mixer against tensors that timm computed in float64, with both forms of GELU, and every argument it has."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from vit_jax import models, state

TINY = dict(img_size=16, patch_size=8, embed_dim=16, num_blocks=2, num_classes=3)


def build(**overrides):
  model = models.build('mixer_b16_224', rngs=nnx.Rngs(0), **TINY | overrides)
  if model.head is not None:
    model.head.kernel[...] = jax.random.normal(jax.random.key(7), model.head.kernel.shape)
  return model


def images(h=16, w=16):
  return np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)


@pytest.mark.parametrize('name', ['mixer_timm', 'mixer_google'])
@pytest.mark.parametrize('scan', [False, True])
def test_every_tensor_is_the_peers(name, scan):
  peers.check(name, scan=scan)


def test_arguments():
  assert peers.shape(build(img_size=(16, 24), patch_size=(8, 4)), images(16, 24)) == (2, 3)
  assert peers.shape(build(global_pool=''), images()) == (2, 4, 3)
  assert peers.shape(build(num_classes=0), images()) == (2, 16)
  model = build(mlp_ratio=2)
  assert model.blocks[0].mlp_tokens.fc1.kernel.shape == (4, 32)
  assert model.blocks[0].mlp_channels.fc1.kernel.shape == (16, 32)
  assert peers.shape(model.features, images()) == (2, 4, 16)


def test_what_is_inside_comes_in_order():
  inside = jax.eval_shape(build(scan=True).intermediates, images())
  assert list(inside) == ['embed', 'block0', 'block1', 'norm', 'pre_logits', 'logits']


@pytest.mark.parametrize('rate', ['drop_rate', 'proj_drop_rate', 'drop_path_rate'])
def test_dropout_needs_a_key(rate):
  model, key = peers.jitted(build(**{rate: 0.5})), jax.random.key(1)
  want = peers.jitted(build())(images())
  np.testing.assert_array_equal(model(images()), want)
  assert np.abs(model(images(), key) - want).max() > 1e-3
  np.testing.assert_array_equal(model(images(), key), model(images(), key))


def test_scan_and_remat_change_no_gradient():
  want, got = peers.gradients(build(), images()), peers.gradients(build(scan=True, remat='dots'), images())
  for path, value in want.items():
    np.testing.assert_allclose(got[path], value, atol=1e-5 * max(1, np.abs(value).max()))


def test_bfloat16_in_bfloat16_out():
  graphdef, params, rest = state.split(build())
  half = state.merge(graphdef, state.cast(params, jnp.bfloat16), rest)
  got, want = peers.jitted(half)(images().astype(jnp.bfloat16)), peers.jitted(build())(images())
  assert got.dtype == jnp.bfloat16 and np.abs(got - want).max() < 0.1 * np.std(want)


@pytest.mark.parametrize(('arguments', 'said'), [
  (dict(global_pool='token'), "global_pool is 'token'; an MLP-Mixer has no class token: choose 'avg' or ''."),
  (dict(attention='cudnn'), "An MLP-Mixer has no attention to compute by 'cudnn'; leave attention='xla'."),
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
