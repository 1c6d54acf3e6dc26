"""bench.inference_time: numbers that hold together, and FLOPs against a count by hand."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax import bench, models

SMALL = dict(img_size=(16, 24), patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=5)


@pytest.fixture
def model():
  from flax import nnx

  return models.build('vit_tiny_patch16_224', rngs=nnx.Rngs(0), **SMALL)


def test_flops_are_those_of_the_products(model):
  n, d = 7, 128  # 2 x 3 patches and a class token
  embed = 6 * 8 * 8 * 3 * d
  block = n * d * 3 * d + 2 * n * n * d + n * d * d + 2 * n * d * 4 * d
  products = 2 * (embed + 2 * block + 5 * d)
  gflops = bench.forward_gflops(model, (16, 24))
  assert products < gflops * 1e9 < 1.1 * products  # norms, GELU and softmax are the rest
  abstract = models.abstract('vit_tiny_patch16_224', **SMALL)
  assert bench.forward_gflops(abstract, (16, 24)) == gflops


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_inference_time(model, dtype):
  result = bench.inference_time(model, image_size=(16, 24), batch=3, dtype=dtype, seconds=0.01)
  assert result['image_size'] == [16, 24] and result['batch'] == 3 and result['dtype'] == dtype
  assert result['images_per_second'] == pytest.approx(3000 / result['milliseconds'])
  assert result['compile_seconds'] > 0
  assert result['gflops'] == pytest.approx(bench.forward_gflops(model, (16, 24)), rel=0.2)
  parameters = models.count(model)
  assert result['parameters'] == parameters
  bytes_each = {'float32': 4, 'bfloat16': 2}[dtype]
  assert result['memory_mb'] >= (parameters + 3 * 16 * 24 * 3) * bytes_each / 2**20
  room = {'float32': 0.5, 'bfloat16': 0.7}[dtype]  # a CPU computes the second in float32, of copies
  assert result['predicted_mb'] == pytest.approx(result['memory_mb'], rel=room)


def test_working_bytes_are_those_that_live_at_once():
  def chain(x):  # (8, 1024) float32 is 32 KiB: at most two are needed
    for _ in range(5):
      x = jnp.tanh(x)
    return x.sum()

  x = jax.ShapeDtypeStruct((8, 1024), jnp.float32)
  assert bench.working_bytes(chain, x) == 2 * 4 * 8 * 1024
  assert bench.working_bytes(lambda x: jnp.tanh(x) + jnp.exp(x) + jnp.sin(x), x) == 3 * 4 * 8 * 1024
  looped = lambda x: jax.lax.scan(lambda x, _: (chain(x) + x, None), x, length=3)[0]
  assert bench.working_bytes(looped, x) == pytest.approx(2 * 4 * 8 * 1024, rel=0.01)


@pytest.mark.parametrize('wrong', [dict(batch=0), dict(dtype='float8')])
def test_wrong_values_are_refused(model, wrong):
  with pytest.raises(ValueError, match=f'{next(iter(wrong))}='):
    bench.inference_time(model, image_size=16, **wrong)
