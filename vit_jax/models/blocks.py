"""Transformer blocks of every kind that timm's ViT has, under its names, and the stack of them: Blocks.

Every block is (b*n, d) -> (b*n, d) for n tokens an image. Sources: Dosovitskiy et al. 2020, arXiv:2010.11929 (Block,
eq. 2-3); Liu et al. 2021, arXiv:2111.09883 (ResPostBlock, sec. 3.2); Dehghani et al. 2023, arXiv:2302.05442
(ParallelScalingBlock, sec. 2); Touvron et al. 2022, arXiv:2203.09795 (ParallelThingsBlock, sec. 3); Ye et al. 2024,
arXiv:2410.05258 (differential attention, eq. 1-3); Huang et al. 2016, arXiv:1603.09382 (stochastic depth, eq. 5).
"""

import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import attention as attention_lib
from vit_jax.models import layers, placement
from vit_jax.models.layers import drop_path, fold

REMAT = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


def norm_of(norm_layer, eps):
  """(dim, *, rngs) -> a norm of that kind; ValueError for a kind that is not in layers.NORMS."""
  if norm_layer not in layers.NORMS:
    raise ValueError(f'norm_layer is {norm_layer!r}; choose one of {", ".join(layers.NORMS)}.')
  return functools.partial(layers.NORMS[norm_layer], eps=eps)


class Spec(NamedTuple):
  """What a block is made of, in timm's words; the same for all blocks of a model."""

  dim: int
  num_heads: int
  mlp_ratio: float = 4.0
  qkv_bias: bool = True
  qk_norm: bool = False
  proj_bias: bool = True
  scale_attn_norm: bool = False
  scale_mlp_norm: bool = False
  init_values: float | None = None
  attn_drop: float = 0.0
  proj_drop: float = 0.0
  act_layer: str = 'gelu'
  norm_layer: str = 'layernorm'
  norm_eps: float = 1e-6
  mlp_layer: str = 'Mlp'
  attn_layer: str = ''
  attention: str = 'auto'

  @property
  def norm_of(self):
    """(dim, *, rngs) -> a norm of the spec's kind and epsilon."""
    return norm_of(self.norm_layer, self.norm_eps)

  def norm(self, rngs, **init):
    """A norm of the tokens."""
    return self.norm_of(self.dim, **init, rngs=rngs)

  def attn(self, rngs):
    """The attention."""
    if self.attn_layer not in ATTENTION_LAYERS:
      raise ValueError(f'attn_layer is {self.attn_layer!r}; choose one of {", ".join(map(repr, ATTENTION_LAYERS))}.')
    return ATTENTION_LAYERS[self.attn_layer](
      self.dim, self.num_heads, qkv_bias=self.qkv_bias, attn_drop=self.attn_drop, proj_drop=self.proj_drop,
      attention=self.attention, qk_norm=self.qk_norm, scale_norm=self.scale_attn_norm, proj_bias=self.proj_bias,
      norm=self.norm_of, rngs=rngs)  # fmt: skip

  def mlp(self, rngs):
    """The MLP."""
    return layers.Mlp(
      self.dim, int(self.dim * self.mlp_ratio), act_layer=self.act_layer, drop=self.proj_drop, kind=self.mlp_layer,
      norm=self.norm_of if self.scale_mlp_norm else None, use_bias=self.proj_bias, rngs=rngs)  # fmt: skip

  def ls(self, rngs):
    """The LayerScale, or None."""
    return None if self.init_values is None else layers.LayerScale(self.dim, self.init_values, rngs=rngs)


def _scaled(ls, x):
  return x if ls is None else ls(x)


class Block(nnx.Module):
  """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x)))."""

  def __init__(self, spec, *, rngs):
    self.norm1, self.attn, self.ls1 = spec.norm(rngs), spec.attn(rngs), spec.ls(rngs)
    self.norm2, self.mlp, self.ls2 = spec.norm(rngs), spec.mlp(rngs), spec.ls(rngs)

  def __call__(self, x, n, *, rate=None, key=None, **context):  # rate: of stochastic depth; context: for the attention
    y = self.attn(self.norm1(x), n, key=fold(key, 0), **context)
    x = x + drop_path(_scaled(self.ls1, y), n, rate, fold(key, 1))
    y = self.mlp(self.norm2(x), key=fold(key, 2))
    return x + drop_path(_scaled(self.ls2, y), n, rate, fold(key, 3))


class ResPostBlock(nnx.Module):
  """x + norm1(attn(x)), then x + norm2(mlp(x)); init_values is where the norms' scales start."""

  def __init__(self, spec, *, rngs):
    init = {} if spec.init_values is None else {'init': spec.init_values}
    self.attn, self.norm1 = spec.attn(rngs), spec.norm(rngs, **init)
    self.mlp, self.norm2 = spec.mlp(rngs), spec.norm(rngs, **init)

  def __call__(self, x, n, *, rate=None, key=None, **context):
    x = x + drop_path(self.norm1(self.attn(x, n, key=fold(key, 0), **context)), n, rate, fold(key, 1))
    return x + drop_path(self.norm2(self.mlp(x, key=fold(key, 2))), n, rate, fold(key, 3))


class Branch(nnx.Module):
  """ls(f(norm(x))), f the attribute `kind`: 'attn' or 'mlp'."""

  def __init__(self, spec, kind, *, rngs):
    self.norm = spec.norm(rngs)
    setattr(self, kind, getattr(spec, kind)(rngs))
    self.ls = spec.ls(rngs)


class Branches(nnx.Module):
  """`count` branches as the attributes '0', '1', ..., as lists are named in files."""

  def __init__(self, spec, kind, count, *, rngs):
    self.count = count
    for i in range(count):
      setattr(self, str(i), Branch(spec, kind, rngs=rngs))

  def __iter__(self):
    return (getattr(self, str(i)) for i in range(self.count))


class ParallelThingsBlock(nnx.Module):
  """x + a sum of two attention branches, then x + a sum of two MLP branches."""

  def __init__(self, spec, *, rngs):
    self.attns, self.ffns = Branches(spec, 'attn', 2, rngs=rngs), Branches(spec, 'mlp', 2, rngs=rngs)

  def __call__(self, x, n, *, rate=None, key=None, **context):
    y = x
    for i, branch in enumerate(self.attns):
      out = _scaled(branch.ls, branch.attn(branch.norm(x), n, key=fold(key, 4 * i), **context))
      y = y + drop_path(out, n, rate, fold(key, 4 * i + 1))
    x = y
    for i, branch in enumerate(self.ffns):
      out = _scaled(branch.ls, branch.mlp(branch.norm(x), key=fold(key, 4 * i + 2)))
      y = y + drop_path(out, n, rate, fold(key, 4 * i + 3))
    return y


class ParallelScalingBlock(layers.Heads):
  """x + ls(attention and MLP side by side), both of one projection of norm(x): hidden units, q, k and v."""

  weights = layers.Heads.weights  # its own, because nnx.capture sees no inherited methods
  fused = False  # whether one product projects both outputs

  def __init__(self, spec, *, rngs):
    if spec.scale_attn_norm or spec.scale_mlp_norm:
      raise ValueError(f'{type(self).__name__} has no scale_attn_norm and no scale_mlp_norm; leave them out.')
    dim, hidden = spec.dim, int(spec.dim * spec.mlp_ratio)
    super().__init__(dim, spec.num_heads, qk_norm=spec.qk_norm, norm=spec.norm_of, attn_drop=spec.attn_drop,
                     attention=spec.attention, rngs=rngs)  # fmt: skip
    self.sizes, self.drop, self.act_layer = (hidden, dim, dim // spec.num_heads), spec.proj_drop, spec.act_layer
    layers.activation(spec.act_layer)

    def dense(inputs, outputs, use_bias):
      init = layers.xavier(inputs, outputs)
      return nnx.Linear(inputs, outputs, use_bias=use_bias, kernel_init=init, bias_init=layers.zeros, rngs=rngs)

    self.in_norm = spec.norm(rngs)
    self.in_proj = dense(dim, hidden + 3 * dim, spec.qkv_bias)
    self.mlp_bias = None if spec.qkv_bias else nnx.Param(layers.zeros(rngs.params(), (hidden,)))
    if self.fused:
      self.out_proj = dense(dim + hidden, dim, spec.proj_bias)
    else:
      self.attn_out_proj, self.mlp_out_proj = dense(dim, dim, spec.proj_bias), dense(hidden, dim, spec.proj_bias)
    self.ls = spec.ls(rngs)

  def __call__(self, x, n, *, rate=None, key=None, **context):
    hidden, dim, head_dim = self.sizes
    y, q, k, v = jnp.split(self.in_proj(self.in_norm(x)), (hidden, hidden + dim, hidden + 2 * dim), axis=-1)
    y = y if self.mlp_bias is None else y + self.mlp_bias[...]
    y = layers.dropout(layers.activation(self.act_layer)(y), self.drop, fold(key, 1))
    mixed = self.mix(*(t.reshape(-1, dim // head_dim, head_dim) for t in (q, k, v)), n, key=fold(key, 0), **context)
    mixed = mixed.reshape(-1, dim)
    if self.fused:
      y = self.out_proj(jnp.concatenate([mixed, y], axis=-1))
    else:
      y = self.attn_out_proj(mixed) + self.mlp_out_proj(y)
    return x + drop_path(_scaled(self.ls, y), n, rate, fold(key, 2))


class DifferentialHeads(layers.Heads):
  """Heads whose weights are a difference of two softmaxes, each over one half of q and k (arXiv:2410.05258)."""

  def __init__(self, dim, num_heads, *, attention, rngs, **heads):
    if attention not in ('xla', 'auto'):
      raise ValueError(f"attention is {attention!r}, which has no differential attention; choose 'xla'.")
    super().__init__(dim, num_heads, attention=attention, rngs=rngs, halves=2, **heads)
    half = dim // num_heads // 2
    for name in ('lambda_q1', 'lambda_k1', 'lambda_q2', 'lambda_k2'):
      setattr(self, name, nnx.Param(layers.normal(0.1)(rngs.params(), (half,))))
    self.sub_norm = layers.RmsNorm(2 * half, eps=1e-5, rngs=rngs)

  def weights(self, q, k, balance):  # (b, n, h, 2, c)
    first, second = (attention_lib.weights(q[:, :, :, i], k[:, :, :, i]) for i in range(2))
    return first - balance * second  # (b, h, n, n)

  def mix(self, q, k, v, n, *, lambda_init, key=None):  # (b*n, h, 2*c), lambda_init () of this layer
    q, k = (t.reshape(-1, n, t.shape[1], 2, t.shape[2] // 2) for t in (q, k))
    if self.q_norm is not None:
      q, k = self.q_norm(q), self.k_norm(k)
    exponent = lambda a, b: jnp.exp((a[...].astype(jnp.float32) * b[...].astype(jnp.float32)).sum())
    balance = exponent(self.lambda_q1, self.lambda_k1) - exponent(self.lambda_q2, self.lambda_k2) + lambda_init
    weights = layers.dropout(self.weights(q, k, balance).astype(v.dtype), self.attn_drop, key)
    out = attention_lib.mixture(weights, v.reshape(-1, n, *v.shape[1:]))
    out = self.sub_norm(out) * jnp.asarray(1 - lambda_init, out.dtype)
    return out.reshape(v.shape)


class DiffAttention(layers.Attention, DifferentialHeads):
  """(b*n, d) -> (b*n, d): differential attention; a call needs the layer's lambda_init."""

  weights = DifferentialHeads.weights


class DiffParallelScalingBlock(ParallelScalingBlock, DifferentialHeads):
  """The parallel block with differential attention, its outputs projected by one product; a call needs lambda_init."""

  weights = DifferentialHeads.weights
  fused = True


ATTENTION_LAYERS = {'': layers.Attention, 'attn': layers.Attention, 'diff': DiffAttention}
BLOCKS = {
  cls.__name__: cls
  for cls in (Block, ResPostBlock, ParallelScalingBlock, DiffParallelScalingBlock, ParallelThingsBlock)
}


def differential(block_fn, spec):
  """Whether a kind of block has differential attention, which is computed by XLA alone."""
  return issubclass(BLOCKS[block_fn], DifferentialHeads) or ATTENTION_LAYERS.get(spec.attn_layer) is DiffAttention


def per_layer(block_fn, spec, depth):
  """What a kind of block must be told of its place among `depth`: {name: (depth,)}, for Blocks."""
  if differential(block_fn, spec):
    return {'lambda_init': 0.8 - 0.6 * np.exp(-0.3 * np.arange(depth))}  # arXiv:2410.05258, eq. 3
  return {}


class Blocks(nnx.Module):
  """(b*n, d) -> (b*n, d) through `depth` blocks; the only place that knows of scan and remat.

  make: rngs -> a block, which is called as block(x, n, rate=, key=, **context).   drop_path_rate: of the last block;
  stochastic depth rises linearly from 0.   per_layer: {name: (depth, ...)} context that differs by layer.
  Attributes '0', '1', ... are the blocks; with scan=True there is one, `stacked`, whose arrays have a leading axis of
  depth.
  """

  def __init__(self, make, depth, *, drop_path_rate, scan, remat, per_layer=None, rngs):
    if remat not in REMAT:
      raise ValueError(f'remat is {remat!r}; choose one of {", ".join(REMAT)}.')
    self.depth, self.scan, self.remat, self.drop_path_rate = depth, scan, remat, drop_path_rate
    self.per_layer = tuple((name, tuple(map(float, values))) for name, values in (per_layer or {}).items())
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

  def __call__(self, x, n, *, key=None, collect=False, **context):
    """The tokens after the last block; with collect, also a list of those after each: (x, [x0, x1, ...]).

    context: arrays that every block gets as keyword arguments (rotary positions, attention biases).
    """
    rates = np.linspace(0, self.drop_path_rate, self.depth, dtype=np.float32)
    per_layer = {name: np.asarray(values, np.float32) for name, values in self.per_layer}
    if self.scan:
      graphdef, state = nnx.split(self.stacked)

      def body(x, layer):
        state, i, rate, own = layer
        x = placement.rows(nnx.merge(graphdef, state)(x, n, rate=rate, key=fold(key, i), **context, **own))
        return x, x if collect else None

      if self.remat != 'none':
        body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=False)
      layer = state, np.arange(self.depth), rates if self.drop_path_rate else None, per_layer
      x, after = jax.lax.scan(body, x, layer)
      return (x, list(after)) if collect else x
    after = []
    for i in range(self.depth):
      own = {name: values[i] for name, values in per_layer.items()}
      x = self._run(i, x, n, rates[i] if rates[i] else None, fold(key, i), context | own)
      if collect:
        after.append(x)
    return (x, after) if collect else x

  def _run(self, i, x, n, rate, key, context):
    if self.remat == 'none':
      return placement.rows(self[i](x, n, rate=rate, key=key, **context))
    graphdef, state = nnx.split(self[i])  # an nnx Variable must not be closed over by jax.checkpoint

    def run(state, x, key, context):
      return placement.rows(nnx.merge(graphdef, state)(x, n, rate=rate, key=key, **context))

    return jax.checkpoint(run, policy=REMAT[self.remat])(state, x, key, context)


def through(blocks, x, *, attention='auto', key=None, collect=False, name='block', **context):  # (b, n, d)
  """Tokens after the last of Blocks (b, n, d), and with collect those after each: {'block0': (b, n, d), ...}.

  attention: how the blocks compute theirs; where that wants another number of tokens, zeros are added meanwhile.
  """
  b, n, d = x.shape
  padded = attention_lib.padded(attention, dtype=x.dtype, tokens=n)
  if padded != n:
    x, context = jnp.pad(x, ((0, 0), (0, padded - n), (0, 0))), context | {'real': n}
  x = blocks(placement.rows(x.reshape(b * padded, d)), padded, key=key, collect=collect, **context)
  x, after = x if collect else (x, [])
  images = lambda rows: rows.reshape(b, padded, d)[:, :n]
  return images(x), {f'{name}{i}': images(y) for i, y in enumerate(after)}
