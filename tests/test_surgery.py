"""A pretrained model inside other projects: a new head, features of blocks, a user's NNX module, a Linen one."""

from flax import linen, nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vit_jax
from vit_jax import models

NAME, TINY = 'vit_tiny_patch16_224', dict(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2)
IMAGES = np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32)
LABELS = jnp.asarray([0, 1, 2, 1])


@pytest.fixture(scope='module')
def model():
  model = vit_jax.create_model(NAME, num_classes=7, **TINY)
  model.head.kernel[...] = jnp.asarray(np.random.default_rng(1).standard_normal((24, 7)), jnp.float32)  # else zeros
  return model


def arrays(model):
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_a_new_head_is_trained_by_a_users_own_optimizer(model):
  model = nnx.clone(model)
  model.head = nnx.Linear(24, 3, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer, images, labels):
    def loss(model):
      return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value

  losses = [float(step(model, optimizer, IMAGES, LABELS)) for _ in range(8)]
  assert model(IMAGES).shape == (4, 3) and losses[-1] < losses[0] / 2


def test_intermediates_are_what_the_model_computes(model):
  inside = nnx.jit(lambda model, images: model.intermediates(images))(model, IMAGES)
  assert list(model.intermediates(IMAGES)) == ['embed', 'block0', 'block1', 'norm', 'pre_logits', 'logits']
  assert inside['block1'].shape == (4, 5, 24)
  np.testing.assert_allclose(inside['logits'], model(IMAGES), atol=1e-5)
  np.testing.assert_allclose(inside['norm'], model.features(IMAGES), atol=1e-5)
  np.testing.assert_allclose(inside['pre_logits'], inside['norm'][:, 0], atol=1e-5)


def test_inside_an_nnx_project(model):
  class Detector(nnx.Module):
    def __init__(self, backbone, *, rngs):
      self.backbone = backbone
      self.boxes = nnx.Linear(24, 4, rngs=rngs)

    def __call__(self, images):
      return self.boxes(self.backbone.features(images)[:, 1:])

  detector = Detector(nnx.clone(model), rngs=nnx.Rngs(0))
  boxes = nnx.jit(lambda module, images: module(images))(detector, IMAGES)
  want = model.features(IMAGES)[:, 1:] @ detector.boxes.kernel[...] + detector.boxes.bias[...]
  np.testing.assert_allclose(boxes, want, atol=1e-5)


def test_inside_a_linen_project(model):
  made = models.architecture(NAME, num_classes=7, **TINY)

  class Classifier(linen.Module):
    @linen.compact
    def __call__(self, images):
      features = nnx.bridge.to_linen(models.variant(NAME)[0], **made, name='vit')(images)
      return linen.Dense(5)(features)

  classifier = Classifier()
  variables = classifier.init(jax.random.key(0), IMAGES)
  variables['params']['vit'] = arrays(model)  # the pretrained weights, under the names of the checkpoint
  dense = variables['params']['Dense_0']
  got = jax.jit(classifier.apply)(variables, IMAGES)
  np.testing.assert_allclose(got, model(IMAGES) @ dense['kernel'] + dense['bias'], atol=1e-5)
  grads = jax.grad(lambda params: classifier.apply({'params': params}, IMAGES).sum())(variables['params'])
  assert float(jnp.abs(grads['vit']['blocks']['0']['attn']['qkv']['kernel']).max()) > 0
