"""One attention by several implementations: the same numbers, the choice among them, padding, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, sharding, state
from vit_jax.models import attention, placement


def qkv(b, n, h, c, seed=0):
  return [jnp.asarray(t, jnp.float32) for t in np.random.default_rng(seed).normal(size=(3, b, n, h, c))]


def plain(q, k, v):
  return jnp.einsum('bhnm,bmhc->bnhc', attention.weights(q, k), v)


@pytest.mark.parametrize('tokens, real', [(128, 128), (130, 101)])
def test_the_tpu_kernel_gives_the_same_values_and_gradients(tokens, real):
  q, k, v = qkv(1, tokens, 2, 8)
  seen = np.random.default_rng(1).normal(size=(1, real, 2, 8)).astype(np.float32)

  def by(function, q, k, v):
    out = function(q, k, v)[:, :real]
    return (out * seen).sum(), out

  kernel = lambda q, k, v: attention.splash(q, k, v, real, interpret=True)
  cut = lambda q, k, v: plain(q[:, :real], k[:, :real], v[:, :real])
  (_, want), wanted = jax.value_and_grad(by, (1, 2, 3), has_aux=True)(cut, q, k, v)
  (_, got), grads = jax.value_and_grad(by, (1, 2, 3), has_aux=True)(kernel, q, k, v)
  np.testing.assert_allclose(got, want, atol=2e-6)
  for a, b in zip(grads, wanted):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_auto_takes_only_what_was_measured(monkeypatch):
  row = attention.Measured('gpu', 'bfloat16', (128, 600), 'cudnn', 1.7, 'NVIDIA H200')
  said = dict(dtype=jnp.bfloat16, tokens=197, table=(row,))
  assert attention.resolved('auto', **said) == 'xla'  # a CPU
  monkeypatch.setattr(placement, 'platform', lambda: 'gpu')
  assert attention.resolved('auto', **said) == 'cudnn'
  for other in (dict(tokens=127), dict(tokens=601), dict(dtype=jnp.float32), dict(table=())):
    assert attention.resolved('auto', **said | other) == 'xla'
  assert attention.resolved('splash', **said) == 'splash'
  with pytest.raises(ValueError, match='choose one of auto, xla, cudnn, splash'):
    attention.known('flash')


@pytest.mark.parametrize('name, platform, dtype, said', [
  ('cudnn', 'cpu', 'bfloat16', "step.attention='cudnn' needs an NVIDIA GPU, and this is a cpu; choose 'auto'."),
  ('splash', 'gpu', 'bfloat16', "step.attention='splash' needs a TPU, and this is a gpu; choose 'auto'."),
  ('cudnn', 'gpu', 'float32', "choose step.dtype='bfloat16'"),
])  # fmt: skip
def test_what_a_platform_does_not_have_is_refused(name, platform, dtype, said):
  with pytest.raises(ValueError) as caught:
    attention.check(name, platform, dtype)
  assert said in str(caught.value)
  attention.check('auto', platform, dtype)


SMALL = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3)


@pytest.mark.parametrize(
  'name, more',
  [
    ('vit_tiny_patch16_224', {}),
    ('vit_tiny_patch16_224', dict(reg_tokens=3, scan=True)),
    ('vit_small_patch16_dinov3', dict(scan=True)),
  ],
)
def test_odd_numbers_of_tokens_are_padded_for_cudnn_and_no_output_changes(name, more, monkeypatch):
  shapes = []

  def flash(q, k, v, real):
    shapes.append((q.shape[1], real))
    out = plain(q[:, :real], k[:, :real], v[:, :real])
    return jnp.pad(out, ((0, 0), (0, q.shape[1] - real), (0, 0), (0, 0)), constant_values=7.0)  # what means nothing

  monkeypatch.setattr(attention, 'cudnn', flash)
  arguments = SMALL | more
  made = {a: models.build(name, **arguments, attention=a, rngs=models.nnx.Rngs(0)) for a in ('xla', 'cudnn')}
  tokens = made['xla'].grid[0] ** 2 + made['xla'].prefix
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)

  def run(model):
    graphdef, params, rest = state.split(model)
    loss = lambda params: jnp.square(state.merge(graphdef, params, rest)(images) - 1).sum()
    return jax.jit(jax.value_and_grad(loss))(jax.tree.map(lambda a: a + 0.02, params))

  (loss, grads), (same, others) = run(made['xla']), run(made['cudnn'])
  np.testing.assert_allclose(loss, same, rtol=2e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), grads, others)
  assert set(shapes) == {(tokens + -tokens % 8 if tokens % 2 else tokens, tokens)}
  monkeypatch.setattr(attention, 'ODD_TOKENS', True)
  shapes.clear()
  jax.eval_shape(lambda: made['cudnn'](images))
  assert set(shapes) == {(tokens, tokens)}


def test_what_jax_cannot_partition_is_done_by_each_device_for_its_images_and_heads(devices):
  mesh, seen = sharding.make_mesh(data=2, fsdp=2, tensor=2), []

  def own(q, k, v):
    seen.append(q.shape)
    return plain(q, k, v)

  def everywhere(*arrays):
    with placement.on(mesh):
      return placement.by_device(own, *arrays)

  arrays = qkv(8, 5, 4, 8)
  np.testing.assert_allclose(jax.jit(everywhere)(*arrays), plain(*arrays), atol=1e-6)
  assert seen == [(2, 5, 2, 8)]
  placement.by_device(own, *arrays)
  assert seen[1:] == [(8, 5, 4, 8)]
