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

ATTENTION = ('xla', 'cudnn')
REMAT = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}
# jax.checkpoint: XLA would keep the activation's inner tanh or erf beside its input, one more (b, n, 4d) array a layer.
ACTIVATIONS = {
  'gelu': jax.checkpoint(functools.partial(jax.nn.gelu, approximate=False)),
  'gelu_tanh': jax.checkpoint(functools.partial(jax.nn.gelu, approximate=True)),
  'quick_gelu': jax.checkpoint(lambda x: x * jax.nn.sigmoid(1.702 * x)),
  'silu': jax.checkpoint(jax.nn.silu),
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
  x, mean, rstd, scale = saved
  dout = dout.astype(jnp.float32)
  normed = (x.astype(jnp.float32) - mean) * rstd
  dnormed = dout * scale.astype(jnp.float32)
  projection = normed * (dnormed * normed).mean(-1, keepdims=True)
  dx = rstd * (dnormed - dnormed.mean(-1, keepdims=True) - projection)
  rows = tuple(range(x.ndim - 1))
  return dx.astype(x.dtype), (dout * normed).sum(rows).astype(scale.dtype), dout.sum(rows).astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nnx.Module):
  """(..., d) -> (..., d) normalised over the last axis; the dtype of the input is kept."""

  def __init__(self, dim, *, eps, rngs):
    self.eps = eps
    self.scale = nnx.Param(ones(rngs.params(), (dim,)))
    self.bias = nnx.Param(zeros(rngs.params(), (dim,)))

  def __call__(self, x):
    return layer_norm(x, self.scale[...], self.bias[...], self.eps)


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
    if jax.default_backend() == 'cpu':
      y = self(x)
      return [y[:, i] for i in range(kernel.shape[1])]
    parts = [jnp.tensordot(x, kernel[:, i], 1) for i in range(kernel.shape[1])]
    return parts if bias is None else [part + bias[i] for i, part in enumerate(parts)]


def attention_weights(q, k):  # (b, n, h, c), (b, m, h, c)
  """softmax(q k^T / sqrt(c)) over the m keys in float32, (b, h, n, m)."""
  logits = jnp.einsum('bnhc,bmhc->bhnm', q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
  return jax.nn.softmax(logits, axis=-1)


class Attention(nnx.Module):
  """(b*n, d) -> (b*n, d): multi-head self-attention among the n tokens of each image (arXiv:2010.11929 eq. 5-8)."""

  def __init__(self, dim, num_heads, *, qkv_bias, attn_drop, proj_drop, attention, rngs):
    if dim % num_heads:
      raise ValueError(f'embed_dim {dim} does not split into {num_heads} heads; choose a num_heads that divides it.')
    if attention not in ATTENTION:
      raise ValueError(f'attention is {attention!r}; choose one of {", ".join(ATTENTION)}.')
    self.attn_drop, self.proj_drop, self.implementation = attn_drop, proj_drop, attention
    self.qkv = HeadDense((dim,), (3, num_heads, dim // num_heads), fan_out=dim, use_bias=qkv_bias, rngs=rngs)
    self.proj = HeadDense((num_heads, dim // num_heads), (dim,), fan_out=dim, rngs=rngs)

  def weights(self, q, k):  # a method, so nnx.capture sees it
    return attention_weights(q, k)  # (b, h, n, n)

  def __call__(self, x, n, *, key=None):
    q, k, v = (t.reshape(-1, n, *t.shape[1:]) for t in self.qkv.slices(x))  # (b, n, h, c)
    if self.implementation == 'cudnn' and not (key is not None and self.attn_drop):
      out = jax.nn.dot_product_attention(q, k, v, implementation='cudnn')
    else:
      weights = dropout(self.weights(q, k).astype(v.dtype), self.attn_drop, fold(key, 0))
      out = jnp.einsum('bhnm,bmhc->bnhc', weights, v)
    return dropout(self.proj(out.reshape(-1, *out.shape[2:])), self.proj_drop, fold(key, 1))


class Mlp(nnx.Module):
  """(..., d) -> (..., d) through one hidden layer of `hidden` units."""

  def __init__(self, dim, hidden, *, act_layer, drop=0.0, rngs):
    if act_layer not in ACTIVATIONS:
      raise ValueError(f'act_layer is {act_layer!r}; choose one of {", ".join(ACTIVATIONS)}.')
    self.act_layer, self.drop = act_layer, drop
    init = xavier(dim, hidden)
    self.fc1 = nnx.Linear(dim, hidden, kernel_init=init, bias_init=zeros, rngs=rngs)
    self.fc2 = nnx.Linear(hidden, dim, kernel_init=init, bias_init=zeros, rngs=rngs)

  def __call__(self, x, *, key=None):
    x = dropout(ACTIVATIONS[self.act_layer](self.fc1(x)), self.drop, fold(key, 0))
    return dropout(self.fc2(x), self.drop, fold(key, 1))


class Block(nnx.Module):
  """(b*n, d) -> (b*n, d): a pre-norm transformer block, x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x)))."""

  def __init__(
    self,
    dim,
    num_heads,
    *,
    mlp_ratio,
    qkv_bias,
    init_values,
    attn_drop,
    proj_drop,
    act_layer,
    norm_eps,
    attention,
    rngs,
  ):
    self.norm1 = LayerNorm(dim, eps=norm_eps, rngs=rngs)
    self.attn = Attention(
      dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, attention=attention, rngs=rngs
    )
    self.ls1 = None if init_values is None else LayerScale(dim, init_values, rngs=rngs)
    self.norm2 = LayerNorm(dim, eps=norm_eps, rngs=rngs)
    self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop, rngs=rngs)
    self.ls2 = None if init_values is None else LayerScale(dim, init_values, rngs=rngs)

  def __call__(self, x, n, *, rate=None, key=None):  # rate: of stochastic depth
    y = self.attn(self.norm1(x), n, key=fold(key, 0))
    x = x + drop_path(y if self.ls1 is None else self.ls1(y), n, rate, fold(key, 1))
    y = self.mlp(self.norm2(x), key=fold(key, 2))
    return x + drop_path(y if self.ls2 is None else self.ls2(y), n, rate, fold(key, 3))


class Blocks(nnx.Module):
  """(b*n, d) -> (b*n, d) through `depth` blocks; the only place that knows of scan and remat.

  Attributes '0', '1', ... are the blocks; with scan=True there is one, `stacked`, whose arrays have a leading axis of
  depth. Stochastic depth rises linearly from 0 to `drop_path_rate`.
  """

  def __init__(self, make, depth, *, drop_path_rate, scan, remat, rngs):
    if remat not in REMAT:
      raise ValueError(f'remat is {remat!r}; choose one of {", ".join(REMAT)}.')
    self.depth, self.scan, self.remat, self.drop_path_rate = depth, scan, remat, drop_path_rate
    blocks = [make(rngs) for _ in range(depth)]
    if scan:
      graphdef = nnx.split(blocks[0])[0]
      self.stacked = nnx.merge(graphdef, jax.tree.map(lambda *a: jnp.stack(a), *(nnx.split(b)[1] for b in blocks)))
    else:
      for i, block in enumerate(blocks):
        setattr(self, str(i), block)

  def __len__(self):
    return self.depth

  def __getitem__(self, i):
    if self.scan:
      graphdef, state = nnx.split(self.stacked)
      return nnx.merge(graphdef, jax.tree.map(lambda a: a[i], state))
    return getattr(self, str(range(self.depth)[i]))

  def __call__(self, x, n, *, key=None):
    rates = np.linspace(0, self.drop_path_rate, self.depth, dtype=np.float32)
    if self.scan:
      graphdef, state = nnx.split(self.stacked)
      layers = state, np.arange(self.depth), rates if self.drop_path_rate else None

      def body(x, layer):
        state, i, rate = layer
        return nnx.merge(graphdef, state)(x, n, rate=rate, key=fold(key, i)), None

      if self.remat != 'none':
        body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=False)
      return jax.lax.scan(body, x, layers)[0]
    for i in range(self.depth):
      x = self._run(i, x, n, rates[i] if rates[i] else None, fold(key, i))
    return x

  def _run(self, i, x, n, rate, key):
    if self.remat == 'none':
      return self[i](x, n, rate=rate, key=key)
    graphdef, state = nnx.split(self[i])  # an nnx Variable must not be closed over by jax.checkpoint

    def run(state, x, key):
      return nnx.merge(graphdef, state)(x, n, rate=rate, key=key)

    return jax.checkpoint(run, policy=REMAT[self.remat])(state, x, key)


class PatchEmbed(nnx.Module):
  """Images (b, h, w, c) -> patches (b * (h/p) * (w/p), d), one dense layer on each p x p patch, row by row."""

  def __init__(self, patch_size, in_chans, dim, *, use_bias=True, rngs):
    self.patch_size = patch_size  # (ph, pw)
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

  def grid(self, h, w):
    """(rows, columns) of patches of an h x w image; ValueError if it does not split into patches."""
    ph, pw = self.patch_size
    if h % ph or w % pw or not h or not w:
      near = f'{max(h // ph, 1) * ph}x{max(w // pw, 1) * pw}'
      raise ValueError(
        f'A {h}x{w} image does not split into {ph}x{pw} patches; resize it to {near} or choose another patch_size.'
      )
    return h // ph, w // pw

  def __call__(self, images):  # (b, h, w, c)
    b, h, w, c = images.shape
    (rows, cols), (ph, pw) = self.grid(h, w), self.patch_size
    x = images.reshape(b, rows, ph, cols, pw, c).swapaxes(2, 3).reshape(b * rows * cols, ph * pw * c)
    x = x @ self.proj.kernel[...].reshape(ph * pw * c, -1)  # equals the strided convolution, and is faster on a CPU
    return x if self.proj.bias is None else x + self.proj.bias[...]


class AttentionPool(nnx.Module):
  """Tokens (b, n, d) -> (b, d): one learned query attends to all tokens, then an MLP ('MAP head', arXiv:2106.04560)."""

  def __init__(self, dim, num_heads, *, mlp_ratio, act_layer, norm_eps, rngs):
    heads = num_heads, dim // num_heads
    self.latent = nnx.Param(normal(dim**-0.5)(rngs.params(), (1, 1, dim)))
    self.q = HeadDense((dim,), heads, fan_out=dim, rngs=rngs)
    self.kv = HeadDense((dim,), (2, *heads), fan_out=dim, rngs=rngs)
    self.proj = HeadDense(heads, (dim,), fan_out=dim, rngs=rngs)
    self.norm = LayerNorm(dim, eps=norm_eps, rngs=rngs)
    self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, rngs=rngs)

  def __call__(self, x):
    b, n, d = x.shape
    k, v = (t.reshape(b, n, *t.shape[1:]) for t in self.kv.slices(x.reshape(b * n, d)))  # (b, n, h, c)
    q = self.q(self.latent[0])[None]  # (1, 1, h, c)
    weights = attention_weights(jnp.broadcast_to(q, (b, *q.shape[1:])), k).astype(v.dtype)
    x = self.proj(jnp.einsum('bhnm,bmhc->bnhc', weights, v)[:, 0])
    return x + self.mlp(self.norm(x))
