"""Every kind of block against tensors that timm computed in float64, in bfloat16, and under scan and remat."""

from flax import nnx
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, state
from vit_jax.models import blocks

KINDS = {
  'aimv2_timm': dict(scan=True),  # RMS norms, SwiGLU, a norm of the patches, no biases
  'beit3_timm': dict(scan=True),  # norms before the last layers
  'xp_timm': dict(scan=True),  # attention and MLP side by side, norms of q and k
  'dpwee_timm': dict(scan=True),  # the same with differential attention
  'dwee_timm': dict(scan=True, remat='dots'),  # differential attention
  'things_timm': dict(scan=True),  # two branches
  'rpn_timm': dict(remat='full'),  # norms after the branches
  'dinov2_giant_timm': dict(scan=True),  # packed SwiGLU
}


@pytest.mark.parametrize('name', KINDS)
def test_every_tensor_is_timms(name):  # test_parity has them all without scan and remat
  golden.check(name, **KINDS[name])


SPEC = blocks.Spec(24, 3, mlp_ratio=2, init_values=0.5, attn_drop=0.1, proj_drop=0.1)
SPECS = {
  'Block': (SPEC._replace(
    attn_layer='diff', qk_norm=True, scale_attn_norm=True, norm_layer='rmsnorm', mlp_layer='SwiGLU',
    scale_mlp_norm=True), {'lambda_init': 0.3}),
  'ResPostBlock': (SPEC._replace(mlp_layer='SwiGLUPacked', act_layer='silu'), {}),
  'ParallelScalingBlock': (SPEC._replace(qk_norm=True, qkv_bias=False), {}),
  'DiffParallelScalingBlock': (SPEC, {'lambda_init': 0.3}),
  'ParallelThingsBlock': (SPEC, {}),
}  # fmt: skip
N = 5


@pytest.mark.parametrize('kind', SPECS)
def test_bfloat16_dropping_and_gradients(kind):
  spec, context = SPECS[kind]
  graphdef, params, rest = state.split(blocks.BLOCKS[kind](spec, rngs=nnx.Rngs(0)))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda a: (rng.normal(size=a.shape) * 0.3 + (a == 1)).astype(np.float32), params)
  rounded = jax.tree.map(lambda a: np.asarray(a, jnp.bfloat16).astype(np.float32), params)
  x = np.asarray(rng.normal(size=(4 * N, 24)), jnp.bfloat16).astype(np.float32)

  @jax.jit
  def run(x, rate, key):
    call = lambda p, x, **how: state.merge(graphdef, p, rest)(x, N, **how, **context)
    half = call(state.cast(rounded, jnp.bfloat16), x.astype(jnp.bfloat16))
    grads = jax.grad(lambda p: jnp.square(call(p, x)).sum())(rounded)
    return half, call(rounded, x), call(rounded, x, rate=rate, key=key), grads

  half, whole, dropped, grads = run(x, np.float32(0), jax.random.key(0))
  assert half.dtype == jnp.bfloat16
  assert np.abs(np.asarray(half, np.float32) - whole).max() < 4e-2 * whole.std()  # goldens hold `whole` to float64
  assert [path for path, g in state.flatten(grads).items() if not np.abs(g).max() > 0] == []
  assert (
    np.abs(dropped - whole).max() > 1e-3 and np.abs(run(x, np.float32(0), jax.random.key(1))[2] - dropped).max() > 0
  )
  np.testing.assert_array_equal(run(x, np.float32(1 - 1e-7), jax.random.key(0))[2], x)  # all images' branches are gone


@pytest.mark.skipif(not hasattr(nnx, 'capture'), reason='this flax has no nnx.capture')
@pytest.mark.parametrize('arguments', [
  {}, {'attn_layer': 'diff'}, {'block_fn': 'ParallelScalingBlock'}, {'block_fn': 'DiffParallelScalingBlock'},
], ids=str)  # fmt: skip
def test_attention_maps_can_be_captured(arguments):
  model = models.build('test_vit', rngs=nnx.Rngs(0), img_size=32, depth=1, **arguments)
  images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
  _, seen = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)(images)
  (weights,) = jax.tree.leaves([leaf for path, leaf in nnx.to_flat_state(seen) if path[-1] == 'weights'])
  assert weights.shape == (1, 2, 5, 5)


@pytest.mark.parametrize(('arguments', 'said'), [
  (dict(block_fn='Blok'), "block_fn is 'Blok'; choose one of 'Block', 'ResPostBlock'"),
  (dict(norm_layer='batchnorm'), "norm_layer is 'batchnorm'; choose one of layernorm, rmsnorm."),
  (dict(embed_norm_layer='x'), "norm_layer is 'x'"),
  (dict(mlp_layer='GluMlp'), "mlp_layer is 'GluMlp'; choose one of Mlp, SwiGLU, SwiGLUPacked."),
  (dict(attn_layer='rope'), "attn_layer is 'rope'; choose one of '', 'attn', 'diff'."),
  (dict(attn_layer='diff', attention='cudnn'), "has no differential attention; choose 'xla'"),
  (dict(block_fn='ParallelScalingBlock', scale_mlp_norm=True), 'has no scale_attn_norm and no scale_mlp_norm'),
  (dict(block_fn='ParallelScalingBlock', act_layer='x'), "act_layer is 'x'"),
], ids=str)  # fmt: skip
def test_what_cannot_be_built_says_so_in_one_line(arguments, said):
  with pytest.raises(ValueError) as caught:
    models.abstract('test_vit', depth=1, **arguments)
  assert said in str(caught.value) and '\n' not in str(caught.value)
