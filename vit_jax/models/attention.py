"""Attention of q, k and v, computed by one of several implementations that give the same numbers.

'xla' writes the weights (b, h, n, n) to memory, and can do all that the models here ask for. 'cudnn', NVIDIA's flash
attention, and 'splash', a Pallas kernel for TPUs, never write them. 'auto' takes what was measured to be the fastest
for the platform, dtype and number of tokens, see MEASURED.

Source: Dao et al. 2022, arXiv:2205.14135, algorithm 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.models import placement

IMPLEMENTATIONS = ('auto', 'xla', 'cudnn', 'splash')
NEEDS = {'cudnn': ('gpu', 'an NVIDIA GPU'), 'splash': ('tpu', 'a TPU')}
LANES = 128  # tokens that a block of the TPU kernel has
# Whether cuDNN gets an odd number of tokens in training. jax refuses that up to 0.12 at least: its rule is meant for
# attention with a bias, and takes an empty array for one. Plans of what could be set it.
ODD_TOKENS = False


class Measured(NamedTuple):
  """A row of the table: an implementation that was faster than 'xla', forward and backward together.

  tokens: (fewest, most) of an image.   ratio: the time of 'xla' over its own.   device: where it was measured.
  """

  platform: str
  dtype: str
  tokens: tuple
  implementation: str
  ratio: float
  device: str


# What benchmarks/gpu.py --section=attention measured. It has not run on a GPU or a TPU yet: there is no row, and 'auto'
# is 'xla'.
MEASURED = ()


def known(implementation):
  """The name of an implementation, or 'auto', itself; ValueError for a name that is none."""
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention is {implementation!r}; choose one of {", ".join(IMPLEMENTATIONS)}.')
  return implementation


def resolved(implementation, *, dtype, tokens, table=None):
  """The implementation that 'auto' stands for, where it is traced and for so many tokens; any other name itself."""
  if implementation != 'auto':
    return implementation
  platform = placement.platform()
  for row in MEASURED if table is None else table:
    if (platform, jnp.dtype(dtype).name) == (row.platform, row.dtype) and row.tokens[0] <= tokens <= row.tokens[1]:
      return row.implementation
  return 'xla'


def check(implementation, platform, dtype):
  """Raises ValueError where a platform, or a dtype of the computation, does not have an implementation."""
  wanted, name = NEEDS.get(implementation, (platform, ''))
  if platform != wanted:
    raise ValueError(f"step.attention={implementation!r} needs {name}, and this is a {platform}; choose 'auto'.")
  if implementation == 'cudnn' and dtype == 'float32':
    raise ValueError("step.attention='cudnn' computes in half precision; choose step.dtype='bfloat16', or 'auto'.")


def padded(implementation, *, dtype, tokens):
  """How many tokens an image should be given so that an implementation takes them as they are."""
  odd = resolved(implementation, dtype=dtype, tokens=tokens) == 'cudnn' and tokens % 2 and not ODD_TOKENS
  return tokens + -tokens % 8 if odd else tokens


# Heads are turned to the front before the products, not by them: on a CPU XLA would compute transposed products at half
# the speed, and on a GPU with more kernels.


def weights(q, k, bias=None):  # (b, n, h, c), (b, m, h, c), (h, n, m)
  """softmax(q k^T / sqrt(c) + bias) over the m keys in float32, (b, h, n, m)."""
  q, k = (t.swapaxes(1, 2) for t in (q * q.shape[-1] ** -0.5, k))
  logits = jnp.einsum('bhnc,bhmc->bhnm', q, k, preferred_element_type=jnp.float32)
  return jax.nn.softmax(logits if bias is None else logits + bias.astype(jnp.float32), axis=-1)


def mixture(weights, v):  # (b, h, n, m), (b, m, h, c)
  """The sum over the m values of each head, weighted, (b, n, h, c)."""
  return jnp.einsum('bhnm,bhmc->bhnc', weights, v.swapaxes(1, 2)).swapaxes(1, 2)


def cudnn(q, k, v, real):  # (b, n, h, c)
  """The mixture of v (b, n, h, c) by weights(q, k), of which the first `real` tokens are there, and mean something."""
  if real == q.shape[1]:
    return jax.nn.dot_product_attention(q, k, v, implementation='cudnn')
  lengths = jnp.full(q.shape[:1], real, jnp.int32)
  return jax.nn.dot_product_attention(
    q, k, v, implementation='cudnn', query_seq_lengths=lengths, key_value_seq_lengths=lengths
  )


def splash(q, k, v, real, *, interpret=False):  # (b, n, h, c)
  """As cudnn, on a TPU.   interpret: computes the kernel anywhere, slowly, for tests."""
  from jax.experimental.pallas.ops.tpu import splash_attention as kernels

  _, n, h, c = q.shape
  more = -n % LANES
  q, k, v = (jnp.pad(t, ((0, 0), (0, more), (0, 0), (0, 0))) for t in (q * c**-0.5, k, v))
  mask = kernels.MultiHeadMask([kernels.FullMask((n + more, n + more))] * h)
  there = (jnp.arange(n + more) < real).astype(jnp.int32)  # real tokens look at real ones
  ids = None if real == n + more else kernels.SegmentIds(there, there)

  def one(q, k, v):  # (h, n, c)
    kernel = kernels.make_splash_mha(mask=mask, head_shards=1, q_seq_shards=1, interpret=interpret)
    return kernel(q, k, v, segment_ids=ids)

  turned = (t.swapaxes(1, 2) for t in (q, k, v))  # (b, h, n, c)
  return jax.vmap(one)(*turned).swapaxes(1, 2)[:, :n].astype(v.dtype)


def mixed(q, k, v, *, implementation, real, interpret=False):  # (b, n, h, c)
  """The mixture of v (b, n, h, c) by weights(q, k) without a weight being seen: 'cudnn' or 'splash'.

  real: how many of the n tokens are there; what comes out for the others means nothing.
  """
  if implementation == 'cudnn':
    return cudnn(q, k, v, real)
  return placement.by_device(functools.partial(splash, real=real, interpret=interpret), q, k, v)
