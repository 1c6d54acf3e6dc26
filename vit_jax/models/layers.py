"""The parts every Vision Transformer here is built of, with the attribute names of the released checkpoints.

Between blocks the tokens of a batch travel as one matrix (b * n, d), not (b, n, d): XLA:GPU would store the latter
transposed and move a fifth more bytes. Only attention sees images again, so blocks take `n`, the tokens per image.
No module holds random state: a key is an argument of the call, and no key means deterministic.

Sources: Dosovitskiy et al. 2020, arXiv:2010.11929 (block, eq. 1-4); Touvron et al. 2021, arXiv:2103.17239 (LayerScale,
eq. 10); Huang et al. 2016, arXiv:1603.09382 (stochastic depth, eq. 5); Ba et al. 2016, arXiv:1607.06450 (layer norm).
"""

import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import attention as attention_lib
from vit_jax.models import placement

# jax.checkpoint: XLA would keep the activation's inner tanh or erf beside its input, one more (b, n, 4d) array a layer.
ACTIVATIONS = {
  'gelu': jax.checkpoint(functools.partial(jax.nn.gelu, approximate=False)),
  'gelu_tanh': jax.checkpoint(functools.partial(jax.nn.gelu, approximate=True)),
  'quick_gelu': jax.checkpoint(lambda x: x * jax.nn.sigmoid(1.702 * x)),
  'silu': jax.checkpoint(jax.nn.silu),
  'relu': jax.nn.relu,  # its gradient reads the output, which the next layer keeps anyway
}


def drawn(numpy_draw, jax_draw):
  """An initializer (key, shape, dtype) -> array from the same distribution drawn by numpy, or by jax under a trace.

  Eagerly numpy is used because every new shape would cost XLA a compilation: 0.6 CPU seconds each for a truncated
  normal, more than all the arithmetic of a first training step.
  """

  def init(key, shape, dtype=jnp.float32):
    if key is None:  # only the shape is wanted: see models.abstract
      return jnp.zeros(shape, dtype)
    if isinstance(key, jax.core.Tracer):
      return jax_draw(key, shape, dtype)
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return jnp.asarray(numpy_draw(np.random.Generator(np.random.Philox(seed)), shape).astype(dtype))

  return init


def normal(std):
  """An initializer: normal with standard deviation `std`."""
  return drawn(lambda rng, s: rng.standard_normal(s, np.float32) * np.float32(std), jax.nn.initializers.normal(std))


def uniform(bound):
  """An initializer: uniform on [-bound, bound)."""

  def draw(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return drawn(lambda rng, s: (rng.random(s, np.float32) * 2 - 1) * np.float32(bound), draw)


def xavier(fan_in, fan_out):
  """An initializer: uniform with variance 2 / (fan_in + fan_out), as the original ViT's dense layers."""
  return uniform(math.sqrt(6 / (fan_in + fan_out)))


def constant(value):
  """An initializer: every entry is `value`."""
  return drawn(lambda rng, s: np.full(s, value, np.float32), lambda key, s, dtype: jnp.full(s, value, dtype))


zeros, ones = constant(0.0), constant(1.0)


def fold(key, i):
  """The i-th key derived from `key`; None (deterministic) stays None."""
  return None if key is None else jax.random.fold_in(key, i)


def dropout(x, rate, key):
  """x with entries zeroed with probability `rate` and the rest scaled by 1 / (1 - rate); x itself without a key."""
  return nnx.Dropout(rate)(x, deterministic=key is None, rngs=key) if rate else x


def drop_path(x, n, rate, key):  # (b*n, d), rate () in [0, 1)
  """x with whole images' residual branches zeroed with probability `rate`, the rest scaled; x itself without a key."""
  if key is None or rate is None:
    return x
  keep = 1 - jnp.asarray(rate, jnp.float32)
  alive = jax.random.bernoulli(key, keep, (x.shape[0] // n, 1)) / keep  # (b, 1)
  return x * jnp.repeat(alive.astype(x.dtype), n, axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, eps):  # (..., d), (d), (d)
  """(x - mean) / sqrt(var + eps) * scale + bias over the last axis; statistics in two passes, in float32."""
  return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x, scale, bias, eps):
  y = x.astype(jnp.float32)
  mean = y.mean(-1, keepdims=True)
  rstd = jax.lax.rsqrt(jnp.square(y - mean).mean(-1, keepdims=True) + eps)
  out = (y - mean) * rstd * scale.astype(jnp.float32) + bias.astype(jnp.float32)
  return out.astype(x.dtype), (x, mean, rstd, scale)  # x in its own dtype: bf16 halves what the backward reads


def _layer_norm_backward(eps, saved, dout):
  x, mean, rstd, scale = jax.lax.optimization_barrier(saved)
  dout = dout.astype(jnp.float32)
  normed = (x.astype(jnp.float32) - mean) * rstd
  dnormed = dout * scale.astype(jnp.float32)
  projection = normed * (dnormed * normed).mean(-1, keepdims=True)
  dx = rstd * (dnormed - dnormed.mean(-1, keepdims=True) - projection)
  rows = tuple(range(x.ndim - 1))
  return dx.astype(x.dtype), (dout * normed).sum(rows).astype(scale.dtype), dout.sum(rows).astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nnx.Module):
  """(..., d) -> (..., d) normalised over the last axis, times a scale that starts at `init`; keeps the dtype."""

  def __init__(self, dim, *, eps, init=1.0, rngs):
    self.eps = eps
    self.scale = nnx.Param(constant(init)(rngs.params(), (dim,)))
    self.bias = nnx.Param(zeros(rngs.params(), (dim,)))

  def __call__(self, x):
    return layer_norm(x, self.scale[...], self.bias[...], self.eps)


@functools.partial(jax.checkpoint, static_argnums=2)  # the backward pass reads x in its own dtype, not a float32 copy
def rms_norm(x, scale, eps):  # (..., d), (d)
  """x / sqrt(mean x^2 + eps) * scale over the last axis, in float32 and back."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
  return (y * scale.astype(jnp.float32)).astype(x.dtype)


class RmsNorm(nnx.Module):
  """(..., d) -> (..., d) over its root mean square, times a scale that starts at `init`; keeps the dtype."""

  def __init__(self, dim, *, eps, init=1.0, rngs):
    self.eps = eps
    self.scale = nnx.Param(constant(init)(rngs.params(), (dim,)))

  def __call__(self, x):
    return rms_norm(x, self.scale[...], self.eps)


NORMS = {'layernorm': LayerNorm, 'rmsnorm': RmsNorm}


class LayerScale(nnx.Module):
  """(..., d) -> (..., d) times one learned number per channel, `init` at the start."""

  def __init__(self, dim, init, *, rngs):
    self.gamma = nnx.Param(constant(init)(rngs.params(), (dim,)))

  def __call__(self, x):
    return x * self.gamma[...]


class HeadDense(nnx.Module):
  """(b, *inputs) -> (b, *outputs): a dense layer whose kernel keeps its head axes, so that heads can be sharded."""

  def __init__(self, inputs, outputs, *, fan_out, use_bias=True, rngs):
    self.inputs = len(inputs)
    self.kernel = nnx.Param(xavier(math.prod(inputs), fan_out)(rngs.params(), (*inputs, *outputs)))
    self.bias = nnx.Param(zeros(rngs.params(), outputs)) if use_bias else None

  def __call__(self, x):
    x = jnp.tensordot(x, self.kernel[...], self.inputs)
    return x if self.bias is None else x + self.bias[...]

  def slices(self, x):  # kernel (d, m, heads, head_dim)
    """The m products of x with the slices of the kernel, each (b, heads, head_dim).

    One product, then sliced, is 1.17 times faster on a CPU; on an accelerator three products save the slicing kernel.
    """
    kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
    if placement.platform() == 'cpu':
      y = self(x)
      return [y[:, i] for i in range(kernel.shape[1])]
    parts = [x @ kernel[:, i].reshape(x.shape[1], -1) for i in range(kernel.shape[1])]
    # added to a matrix, a bias is part of the GPU library's product: see __call__ for one that is not
    parts = parts if bias is None else [part + bias[i].reshape(-1) for i, part in enumerate(parts)]
    return [part.reshape(-1, *kernel.shape[2:]) for part in parts]


class Heads(nnx.Module):
  """What every attention here does between its projections: q, k, v (b*n, h, c) -> their mixture (b*n, h, c)."""

  def __init__(self, dim, num_heads, *, qk_norm, norm, attn_drop, attention, rngs, halves=1):
    if dim % (num_heads * halves):
      raise ValueError(f'embed_dim {dim} does not split into {num_heads} heads; choose a num_heads that divides it.')
    self.attn_drop, self.implementation = attn_drop, attention_lib.known(attention)
    self.q_norm = norm(dim // num_heads // halves, rngs=rngs) if qk_norm else None
    self.k_norm = norm(dim // num_heads // halves, rngs=rngs) if qk_norm else None

  def weights(self, q, k, bias=None):
    return attention_lib.weights(q, k, bias)  # (b, h, n, m)

  def mix(self, q, k, v, n, *, real=None, bias=None, key=None):  # (b*n, h, c); bias (h, n, n) of the logits
    """real: how many of the n tokens of an image are there, None = all; only the first of them are looked at."""
    real = n if real is None else real
    if self.q_norm is not None:
      q, k = self.q_norm(q), self.k_norm(k)
    q, k, v = (t.reshape(-1, n, *t.shape[1:]) for t in (q, k, v))  # (b, n, h, c)
    implementation = attention_lib.resolved(self.implementation, dtype=v.dtype, tokens=real)
    if implementation == 'xla' or bias is not None or key is not None and self.attn_drop:
      weights = dropout(self.weights(q, k[:, :real], bias).astype(v.dtype), self.attn_drop, key)
      out = attention_lib.mixture(weights, v[:, :real])
    else:
      out = attention_lib.mixed(q, k, v, implementation=implementation, real=real)
    return out.reshape(-1, *out.shape[2:])


class Attention(Heads):
  """(b*n, d) -> (b*n, d): multi-head self-attention among the n tokens of each image (arXiv:2010.11929 eq. 5-8).

  qk_norm: `norm` over each head of q and k.   scale_norm: `norm` over all heads, before the last projection.
  """

  weights = Heads.weights  # its own, because nnx.capture sees no inherited methods

  def __init__(
    self, dim, num_heads, *, qkv_bias, attn_drop, proj_drop, attention, qk_norm=False, scale_norm=False, proj_bias=True,
    norm=None, rngs,
  ):  # fmt: skip
    super().__init__(
      dim, num_heads, qk_norm=qk_norm, norm=norm, attn_drop=attn_drop, attention=attention, rngs=rngs
    )  # fmt: skip
    self.proj_drop = proj_drop
    heads = num_heads, dim // num_heads
    self.qkv = HeadDense((dim,), (3, *heads), fan_out=dim, use_bias=qkv_bias, rngs=rngs)
    self.norm = norm(dim, rngs=rngs) if scale_norm else None
    self.proj = HeadDense(heads, (dim,), fan_out=dim, use_bias=proj_bias, rngs=rngs)

  def __call__(self, x, n, *, key=None, **context):  # context: what a subclass's mix reads besides
    out = self.mix(*self.qkv.slices(x), n, key=fold(key, 0), **context)
    if self.norm is not None:
      out = self.norm(out.reshape(x.shape)).reshape(out.shape)
    return dropout(self.proj(out), self.proj_drop, fold(key, 1))


def activation(name):
  """The function of a name in ACTIVATIONS; ValueError for another."""
  if name not in ACTIVATIONS:
    raise ValueError(f'act_layer is {name!r}; choose one of {", ".join(ACTIVATIONS)}.')
  return ACTIVATIONS[name]


class Mlp(nnx.Module):
  """(..., d) -> (..., d) through one hidden layer of `hidden` units.

  kind (timm's class): 'Mlp' fc2(act(fc1 x)); gated (arXiv:2002.05202): 'SwiGLU' fc2(act(fc1_g x) * fc1_x x) and
  'SwiGLUPacked', the same with both in one fc1, `hidden` / 2 each.   norm: of the hidden layer, None = none.
  """

  def __init__(self, dim, hidden, *, act_layer, drop=0.0, kind='Mlp', norm=None, use_bias=True, rngs):
    if kind not in MLPS:
      raise ValueError(f'mlp_layer is {kind!r}; choose one of {", ".join(MLPS)}.')
    activation(act_layer)
    self.act_layer, self.drop, self.kind = act_layer, drop, kind
    init = xavier(dim, hidden)
    dense = lambda i, o: nnx.Linear(i, o, use_bias=use_bias, kernel_init=init, bias_init=zeros, rngs=rngs)
    if kind == 'SwiGLU':
      self.fc1_g, self.fc1_x = dense(dim, hidden), dense(dim, hidden)
    else:
      self.fc1 = dense(dim, hidden)
    inner = hidden // 2 if kind == 'SwiGLUPacked' else hidden
    self.norm = None if norm is None else norm(inner, rngs=rngs)
    self.fc2 = dense(inner, dim)

  def __call__(self, x, *, key=None):
    act = activation(self.act_layer)
    if self.kind == 'SwiGLU':
      x = act(self.fc1_g(x)) * self.fc1_x(x)
    elif self.kind == 'SwiGLUPacked':
      gate, x = jnp.split(self.fc1(x), 2, axis=-1)
      x = act(gate) * x
    else:
      x = act(self.fc1(x))
    x = dropout(x, self.drop, fold(key, 0))
    return dropout(self.fc2(x if self.norm is None else self.norm(x)), self.drop, fold(key, 1))


MLPS = ('Mlp', 'SwiGLU', 'SwiGLUPacked')


class PatchEmbed(nnx.Module):
  """Images (b, h, w, c) -> patches (b * (h/p) * (w/p), d), one dense layer on each p x p patch, row by row.

  norm: of each patch's d numbers, None = none.   crop: whether what is left over at the right and bottom of an image is
  left off; else such an image is refused.
  """

  def __init__(self, patch_size, in_chans, dim, *, use_bias=True, norm=None, crop=False, rngs):
    self.patch_size, self.crop = patch_size, crop  # (ph, pw)
    fan_in = patch_size[0] * patch_size[1] * in_chans
    self.proj = nnx.Conv(
      in_chans,
      dim,
      patch_size,
      strides=patch_size,
      padding='VALID',
      use_bias=use_bias,
      kernel_init=normal(fan_in**-0.5),
      bias_init=zeros,
      rngs=rngs,
    )
    self.norm = None if norm is None else norm(dim, rngs=rngs)

  def grid(self, h, w):
    """(rows, columns) of patches of an h x w image; ValueError if it does not split into patches."""
    ph, pw = self.patch_size
    if (h % ph or w % pw) and not self.crop or h < ph or w < pw:
      near = f'{max(h // ph, 1) * ph}x{max(w // pw, 1) * pw}'
      raise ValueError(
        f'A {h}x{w} image does not split into {ph}x{pw} patches; resize it to {near} or choose another patch_size.'
      )
    return h // ph, w // pw

  def __call__(self, images):  # (b, h, w, c)
    b, h, w, c = images.shape
    (rows, cols), (ph, pw) = self.grid(h, w), self.patch_size
    x = (
      images[:, : rows * ph, : cols * pw]
      .reshape(b, rows, ph, cols, pw, c)
      .swapaxes(2, 3)
      .reshape(b * rows * cols, ph * pw * c)
    )
    kernel = placement.whole(self.proj.kernel[...])
    x = placement.rows(x) @ kernel.reshape(ph * pw * c, -1)  # equals the strided convolution, and is faster on a CPU
    x = x if self.proj.bias is None else x + self.proj.bias[...]
    return x if self.norm is None else self.norm(x)


class AttentionPool(nnx.Module):
  """Tokens (b, n, d) -> (b, d): one learned query attends to all tokens, then an MLP ('MAP head', arXiv:2106.04560)."""

  def __init__(self, dim, num_heads, *, mlp_ratio, act_layer, norm, rngs):
    heads = num_heads, dim // num_heads
    self.latent = nnx.Param(normal(dim**-0.5)(rngs.params(), (1, 1, dim)))
    self.q = HeadDense((dim,), heads, fan_out=dim, rngs=rngs)
    self.kv = HeadDense((dim,), (2, *heads), fan_out=dim, rngs=rngs)
    self.proj = HeadDense(heads, (dim,), fan_out=dim, rngs=rngs)
    self.norm = norm(dim, rngs=rngs)
    self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, rngs=rngs)

  def weights(self, q, k):
    return attention_lib.weights(q, k)  # (b, h, 1, n)

  def __call__(self, x):
    b, n, d = x.shape
    k, v = (t.reshape(b, n, *t.shape[1:]) for t in self.kv.slices(x.reshape(b * n, d)))  # (b, n, h, c)
    q = self.q(self.latent[0])[None]  # (1, 1, h, c)
    weights = self.weights(jnp.broadcast_to(q, (b, *q.shape[1:])), k).astype(v.dtype)
    x = self.proj(attention_lib.mixture(weights, v)[:, 0])
    return x + self.mlp(self.norm(x))
