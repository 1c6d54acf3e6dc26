"""DeiT's two tokens and two heads against tensors that timm computed in float64."""

from flax import nnx
import golden
import jax
import numpy as np
import pytest

from vit_jax import models, state

TINY = dict(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=2)


def test_every_tensor_is_timms():
  model, images, outputs, tolerance = golden.load('deit_timm_distilled', scan=True)
  graphdef, params, rest = state.split(model)

  @jax.jit
  def run(params):
    model = state.merge(graphdef, params, rest)
    return model.intermediates(images), *model.heads(images), model(images)

  with jax.default_matmul_precision('highest'):
    inside, head, head_dist, logits = run(params)
  got = inside | {'features': inside['norm'], 'head': head, 'head_dist': head_dist, 'logits': logits}
  assert {key: golden.error(got[key], want) <= tolerance for key, want in outputs.items()} == dict.fromkeys(
    outputs, True
  )
  for key in ('head', 'head_dist', 'logits'):
    np.testing.assert_array_equal(inside[key], got[key])


def test_without_heads_the_mean_of_both_tokens_is_left():
  model = models.build('deit_tiny_distilled_patch16_224', rngs=nnx.Rngs(0), num_classes=0, **TINY)
  graphdef, params, rest = state.split(model)
  images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
  inside = jax.jit(lambda p: state.merge(graphdef, p, rest).intermediates(images))(params)
  np.testing.assert_allclose(inside['logits'], inside['norm'][:, :2].mean(1), atol=1e-6)
  with pytest.raises(ValueError, match='has no heads'):
    model.heads(images)


def test_it_pools_its_tokens_only():
  with pytest.raises(ValueError, match="global_pool is 'avg'; choose one of 'token'."):
    models.abstract('deit_base_distilled_patch16_224', global_pool='avg')
