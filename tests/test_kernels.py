"""kernels: bytes and FLOPs of programs compiled here, and of lines as XLA prints them for a GPU and a TPU."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax import kernels, machines

# Cut from a step for one H200 (jax 0.10.2): a product of cuBLAS with its workspace, attention of cuDNN, a slice of a
# stack of layers inside a fusion, an update in place.
GPU = """\
HloModule jit_step, is_scheduled=true
%fused_slice (param_0.1: f32[12,64,32], param_1.1: s32[]) -> bf16[64,32] {
  %param_0.1 = f32[12,64,32]{2,1,0} parameter(0)
  %param_1.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice.1 = f32[1,64,32]{2,1,0} dynamic-slice(%param_0.1, %param_1.1, %zero, /*index=3*/%zero), dynamic_slice_sizes={1,64,32}
  ROOT %convert.1 = bf16[64,32]{1,0} convert(%slice.1)
}
%fused_update (param_0.2: bf16[12,64,32], param_1.2: bf16[1,64,32], param_2.2: s32[]) -> bf16[12,64,32] {
  %param_0.2 = bf16[12,64,32]{2,1,0} parameter(0)
  %param_1.2 = bf16[1,64,32]{2,1,0} parameter(1)
  %param_2.2 = s32[] parameter(2)
  ROOT %update.1 = bf16[12,64,32]{2,1,0} dynamic-update-slice(%param_0.2, %param_1.2, %param_2.2, %param_2.2, %param_2.2)
}
%body (p: (s32[], bf16[256,32])) -> (s32[], bf16[256,32]) {
  %p = (s32[], bf16[256,32]{1,0}, f32[12,64,32]{2,1,0}, bf16[12,64,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[256,64]{1,0} get-tuple-element(%p), index=1
  %stack = f32[12,64,32]{2,1,0} get-tuple-element(%p), index=2
  %kept = bf16[12,64,32]{2,1,0} get-tuple-element(%p), index=3
  %w = bf16[64,32]{1,0} fusion(%stack, %i), kind=kLoop, calls=%fused_slice
  %gemm = (bf16[256,32]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/dot_general"}, backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[]}}}
  %one = bf16[1,64,32]{2,1,0} bitcast(%w)
  %u = bf16[12,64,32]{2,1,0} fusion(%kept, %one, %i), kind=kLoop, calls=%fused_update
  ROOT %t = (s32[], bf16[256,32]{1,0}) tuple(%i, %x)
}
%cond (p.1: (s32[], bf16[256,32])) -> pred[] {
  %p.1 = (s32[], bf16[256,32]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %n = s32[] constant(12)
  ROOT %lt = pred[] compare(%i.1, %n), direction=LT
}
ENTRY %main (q: bf16[4,197,12,64]) -> bf16[4,12,197,64] {
  %q = bf16[4,197,12,64]{3,2,1,0} parameter(0)
  %attention = (bf16[4,12,197,64]{3,1,2,0}, f32[4,12,197]{2,1,0}, u8[1024]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax"
  %dq = (bf16[4,12,197,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q, /*index=3*/%q), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  ROOT %w.1 = (s32[], bf16[256,32]{1,0}) while(%t.1), condition=%cond, body=%body
}
"""  # noqa: E501
# Cut from a step for v5e: what lies on the chip, S(1), is not read from its memory; a product is a convolution.
TPU = """\
HloModule jit_step, is_scheduled=true
%fused (param_0: bf16[1576,768], param_1: bf16[768,3072]) -> bf16[1576,3072] {
  %param_0 = bf16[1576,768]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1 = bf16[768,3072]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[1576,3072]{1,0:T(8,128)(2,1)} convolution(%param_0, %param_1), dim_labels=bf_io->bf
}
ENTRY %main (a: bf16[1576,768], b: bf16[768,3072]) -> bf16[1576,3072] {
  %a = bf16[1576,768]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = bf16[768,3072]{1,0:T(8,128)(2,1)} parameter(1)
  %index = s32[]{:T(128)S(6)} add(%i, %j)
  ROOT %fusion = bf16[1576,3072]{1,0:T(8,128)(2,1)} fusion(%a, %b), kind=kOutput, calls=%fused
}
"""


def test_a_gpus_kernels():
  rows = {row['kind']: row for row in kernels.listed(GPU)}
  gemm = rows['__cublas$lt$matmul']
  assert gemm['count'] == 12 and gemm['flops'] == 2 * 256 * 64 * 32 and gemm['source'] == 'jit(step)/dot_general'
  assert gemm['bytes'] == 2 * (256 * 64 + 64 * 32 + 256 * 32), 'without the workspace'
  array, attention = 2 * 4 * 197 * 12 * 64, 4 * 4 * 12 * 197**2 * 64
  assert rows['__cudnn$fmhaSoftmax']['flops'] == attention
  assert rows['__cudnn$fmhaSoftmax']['bytes'] == 4 * array + 4 * 4 * 12 * 197
  assert rows['__cudnn$fmhaSoftmaxBackward']['flops'] == 2.5 * attention
  assert rows['__cudnn$fmhaSoftmaxBackward']['bytes'] == 5 * array
  sliced, update = [row for row in kernels.listed(GPU) if row['kind'] == 'fusion:loop']
  assert sliced['bytes'] == 4 * 64 * 32 + 4 + 2 * 64 * 32
  assert update['bytes'] == 2 * 64 * 32 + 4 + 2 * 64 * 32
  assert kernels.total(kernels.listed(GPU), 'count') == 3 * 12 + 2


def test_a_tpus_kernels():
  (row,) = kernels.listed(TPU)
  assert row['kind'] == 'fusion:product' and row['flops'] == 2 * 1576 * 768 * 3072
  assert row['bytes'] == 2 * (768 * 3072 + 1576 * 3072)
  chip = machines.CHIPS['v5e']
  assert kernels.seconds([row], chip) == max(row['flops'] / chip.flops, row['bytes'] / chip.bandwidth)


def compiled(function, *shapes):
  return kernels.listed(jax.jit(function).lower(*(jnp.zeros(shape) for shape in shapes)).compile().as_text())


def test_products_of_a_program_compiled_here():
  rows = compiled(lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0], (8, 32), (5, 32, 32))
  assert kernels.total(rows, 'flops') == 5 * 2 * 8 * 32 * 32
  assert kernels.total(rows, 'bytes') >= 5 * 4 * (32 * 32 + 2 * 8 * 32)


@pytest.mark.parametrize(('padding', 'stride', 'products'), [('VALID', 2, 3 * 3), ('SAME', 1, 64)])
def test_a_convolution_counts_what_meets_the_picture(padding, stride, products):
  conv = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  text = jax.jit(conv).lower(jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 16))).compile().as_text()
  found = kernels.total(kernels.listed(text), 'flops')
  taps = 9 * products if padding == 'VALID' else (3 * 8 - 2) ** 2  # the rim of a padded picture has fewer
  assert found == 2 * 2 * 4 * 16 * taps


def test_groups_begin_with_the_most_bytes():
  found = kernels.groups(kernels.listed(GPU))
  sizes = [size for _, size, _ in found.values()]
  assert sizes == sorted(sizes, reverse=True)
  assert ('__cublas$lt$matmul', '(bf16[256,32], s8[4194304])', 'jit(step)/dot_general') in found
