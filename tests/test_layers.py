"""The parts against float64 arithmetic written out in numpy, and position resampling against torch's numbers."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from vit_jax import state
from vit_jax.models import blocks, layers, positions

N, D, HEADS = 5, 24, 3
NORM = functools.partial(layers.LayerNorm, eps=1e-6)


def norm64(x, p, eps):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * p['scale'] + p['bias']


def attention64(q, k, v):  # (b, n, h, c)
  logits = np.einsum('bnhc,bmhc->bhnm', q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return np.einsum('bhnm,bmhc->bnhc', weights / weights.sum(-1, keepdims=True), v)


def mlp64(x, p):
  x = x @ p['fc1']['kernel'] + p['fc1']['bias']
  return (0.5 * x * (1 + erf(x / np.sqrt(2)))) @ p['fc2']['kernel'] + p['fc2']['bias']


def block64(x, p, eps=1e-6):  # (b, n, d)
  a = p['attn']
  qkv = np.einsum('bnd,dthc->tbnhc', norm64(x, p['norm1'], eps), a['qkv']['kernel']) + a['qkv']['bias'][:, None, None]
  y = np.einsum('bnhc,hcd->bnd', attention64(*qkv), a['proj']['kernel']) + a['proj']['bias']
  x = x + y * p['ls1']['gamma']
  return x + mlp64(norm64(x, p['norm2'], eps), p['mlp']) * p['ls2']['gamma']


def scrambled(module, seed=0):
  """The module with every parameter drawn at random, and these parameters in float64."""
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda a: rng.normal(size=a.shape) * 0.3, state.split(module)[1])
  state.update(module, state.cast(jax.tree.map(jnp.asarray, params), jnp.float32))
  return module, params


def block():
  return scrambled(blocks.Block(blocks.Spec(D, HEADS, mlp_ratio=2, init_values=0.1), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 3e-6), ('bfloat16', 2e-2)])
def test_a_block_against_float64(dtype, tolerance):
  module, params = block()
  x = np.random.default_rng(1).normal(size=(2, N, D)) + 0.5
  graphdef, p, rest = state.split(module)
  got = state.merge(graphdef, state.cast(p, dtype), rest)(jnp.asarray(x, dtype).reshape(2 * N, D), N)
  assert got.dtype == dtype
  want = block64(np.asarray(jnp.asarray(x, dtype), np.float64), params).reshape(2 * N, D)
  assert np.abs(np.asarray(got, np.float64) - want).max() < tolerance * want.std()


def test_attention_pool_against_float64():
  module, p = scrambled(layers.AttentionPool(D, HEADS, mlp_ratio=2, act_layer='gelu', norm=NORM, rngs=nnx.Rngs(0)))
  x = np.random.default_rng(2).normal(size=(2, N, D))
  k, v = np.einsum('bnd,dthc->tbnhc', x, p['kv']['kernel']) + p['kv']['bias'][:, None, None]
  q = np.einsum('and,dhc->anhc', p['latent'], p['q']['kernel']) + p['q']['bias']
  y = np.einsum('bnhc,hcd->bnd', attention64(np.repeat(q, 2, 0), k, v), p['proj']['kernel'])[:, 0] + p['proj']['bias']
  want = y + mlp64(norm64(y, p['norm'], 1e-6), p['mlp'])
  np.testing.assert_allclose(module(x.astype(np.float32)), want, atol=2e-5)


def test_layer_norm_far_from_zero_keeps_its_digits():
  x = np.random.default_rng(0).normal(size=(4, 64)) + 300
  p = {'scale': np.ones(64), 'bias': np.zeros(64)}
  x32 = x.astype(np.float32)  # E[x^2] - E[x]^2 would err by 1e-2 here
  got = layers.layer_norm(x32, jnp.ones(64), jnp.zeros(64), 1e-6)
  assert np.abs(got - norm64(x32.astype(np.float64), p, 1e-6)).max() < 1e-4


def test_layer_norms_gradient_is_autodiffs():
  def plain(x, scale, bias):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale + bias

  x, scale, bias, cotangent = (
    jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(3, 4, 16), 16, 16, (3, 4, 16)])
  )
  want = jax.vjp(plain, x, scale, bias)[1](cotangent)
  got = jax.vjp(lambda *a: layers.layer_norm(*a, 1e-6), x, scale, bias)[1](cotangent)
  for g, w in zip(got, want):
    np.testing.assert_allclose(g, w, atol=3e-6)


def test_rms_norm_and_its_gradient_in_both_precisions():
  x, scale = (np.random.default_rng(i).normal(size=s) for i, s in enumerate([(3, 4, 16), 16]))
  want = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-2) * scale
  np.testing.assert_allclose(layers.rms_norm(x.astype(np.float32), scale, 1e-2), want, atol=2e-6)
  plain = lambda x, scale: x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-2) * scale
  x, scale = jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float32)
  for got, wanted in zip(*(jax.vjp(f, x, scale)[1](x) for f in (lambda *a: layers.rms_norm(*a, 1e-2), plain))):
    np.testing.assert_allclose(got, wanted, atol=1e-5)
  half = layers.rms_norm(x.astype(jnp.bfloat16), scale.astype(jnp.bfloat16), 1e-2)
  assert half.dtype == jnp.bfloat16 and np.abs(half.astype(np.float32) - want).max() < 3e-2


def test_drop_path_drops_whole_images_and_keeps_the_mean():
  x = jnp.ones((400 * 3, 2))
  y = np.asarray(layers.drop_path(x, 3, 0.25, jax.random.key(0))).reshape(400, 6)
  assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
  assert (y == y[:, :1]).all() and abs(y.mean() - 1) < 0.1
  assert layers.drop_path(x, 3, 0.25, None) is x


def test_initializers_draw_the_same_numbers_from_the_same_key_and_jax_draws_under_jit():
  key = jax.random.key(4)
  for init, std in [(layers.normal(0.02), 0.02), (layers.xavier(300, 200), (2 / 500) ** 0.5)]:
    one = init(key, (300, 200))
    np.testing.assert_array_equal(one, init(key, (300, 200)))
    traced = jax.jit(lambda k, init=init: init(k, (300, 200)))(key)
    assert abs(float(one.std()) / std - 1) < 0.02 and abs(float(traced.std()) / std - 1) < 0.02
    assert np.abs(one - init(jax.random.key(5), (300, 200))).max() > 0
  assert float(layers.ones(key, (3,)).sum()) == 3 and layers.zeros(key, (3,)).dtype == jnp.float32


def test_corner_aligned_resize_is_the_originals():
  np.testing.assert_allclose(positions.resize_matrix(2, 4, 'corner') @ [0, 1], [0, 1 / 3, 2 / 3, 1], atol=1e-7)


# torch 2.13: nn.functional.interpolate(arange(n) ** 2., size=m, align_corners=False), antialias=True for 'bicubic'
TORCH = [
  ('bicubic', 4, 7, [-0.07932709, 0.18751062, 0.86257076, 2.25, 4.3184886, 7.60427666, 9.39663506]),
  ('bicubic', 7, 3, [0.67741984, 9.36385822, 28.06451416]),
  ('bicubic_plain', 4, 7, [-0.09921646, 0.15624869, 0.80420822, 2.12500048, 4.42465782, 7.48077536, 9.49608231]),
  ('bicubic_plain', 7, 3, [0.35185158, 9.0, 29.4629612]),
  ('bilinear_plain', 4, 7, [0.0, 0.3571429, 0.92857146, 2.50000048, 4.35714388, 7.2142868, 9.0]),
  ('bilinear_plain', 7, 3, [0.66666663, 9.0, 28.66666412]),
]  # fmt: skip


@pytest.mark.parametrize(('method', 'old', 'new', 'want'), TORCH)
def test_resize_is_torchs(method, old, new, want):
  np.testing.assert_allclose(positions.resize_matrix(old, new, method) @ np.arange(old) ** 2.0, want, atol=2e-5)


def test_resize_is_separable_and_leaves_equal_sizes_alone():
  grid = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
  assert positions.resize_positions(grid, (3, 4), 'bicubic') is grid
  got = positions.resize_positions(grid, (5, 2), 'bicubic')
  rows, cols = positions.resize_matrix(3, 5, 'bicubic'), positions.resize_matrix(4, 2, 'bicubic')
  np.testing.assert_allclose(got, np.einsum('ri,cj,ijd->rcd', rows, cols, grid), atol=1e-6)


def test_sincos_positions_are_the_papers():
  table = positions.sincos_positions(3, 5, 16)
  assert table.shape == (3, 5, 16) and table.dtype == np.float32
  frequency = 10_000.0 ** -(2 / 3)  # k = 2 of 4 frequencies, x = 4, y = 1
  np.testing.assert_allclose(
    table[1, 4, [2, 6, 10, 14]],
    [np.sin(4 * frequency), np.cos(4 * frequency), np.sin(frequency), np.cos(frequency)],
    rtol=1e-6,
  )
