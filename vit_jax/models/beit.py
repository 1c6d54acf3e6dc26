"""BEiT (Bao et al. 2021, arXiv:2106.08254; v2: Peng et al. 2022, arXiv:2208.06366): attention knows relative places.

Its blocks are EVA's too (eva.py), which knows places by turning q and k. LayerScale: Touvron et al. 2021,
arXiv:2103.17239 (eq. 10).
"""

from flax import nnx
import jax.numpy as jnp

from vit_jax.models import layers, positions
from vit_jax.models.blocks import drop_path
from vit_jax.models.layers import fold
from vit_jax.models.vit import Size, VisionTransformer


def relative_bias(table, index, resize):  # (relative_count, h), (n, n) -> (h, n, n)
  """Biases of the attention's logits: the table, resampled by `resize` (positions.relative_resize), at `index`."""
  return jnp.moveaxis(positions.resample_relative(table[...], resize)[index], -1, 0)


def _relative_table(window, num_heads, rngs):
  return nnx.Param(layers.zeros(rngs.params(), (positions.relative_count(*window), num_heads)))


class RelativePositionBias(nnx.Module):
  """The table of relative positions that all blocks share."""

  def __init__(self, window, num_heads, *, rngs):  # window: (rows, columns) of patches
    self.relative_position_bias_table = _relative_table(window, num_heads, rngs)


class Attention(layers.Attention):
  """(b*n, d) -> (b*n, d): self-attention whose keys have no bias, unless k_bias, and which may know where tokens are.

  window: (rows, columns) of patches of its own table of relative positions, None = it has none.
  rotate_half: which channels rotary positions pair, see positions.rotate.
  """

  def __init__(self, spec, *, k_bias=False, window=None, rotate_half=True, rngs):
    super().__init__(
      spec.dim, spec.num_heads, qkv_bias=False, attn_drop=spec.attn_drop, proj_drop=spec.proj_drop,
      attention=spec.attention, rngs=rngs)  # fmt: skip
    self.rotate_half = rotate_half
    vector = lambda wanted: nnx.Param(layers.zeros(rngs.params(), (spec.dim,))) if wanted else None
    self.q_bias, self.k_bias, self.v_bias = vector(spec.qkv_bias), vector(k_bias), vector(spec.qkv_bias)
    self.relative_position_bias_table = None if window is None else _relative_table(window, spec.num_heads, rngs)

  def mix(self, q, k, v, n, *, real=None, index=None, resize=None, bias=None, rotary=None, key=None):  # (b*n, h, c)
    """index, resize: for the own table.   bias: (h, n, n) of a shared one.   rotary: (sin, cos) of rotary_table."""
    added = (b if b is None else b[...].reshape(q.shape[1:]) for b in (self.q_bias, self.k_bias, self.v_bias))
    q, k, v = (t if b is None else t + b for t, b in zip((q, k, v), added))
    if self.relative_position_bias_table is not None:
      own = relative_bias(self.relative_position_bias_table, index, resize)
      bias = own if bias is None else own + bias
    if rotary is not None:
      rotary = [jnp.pad(t, ((0, n - len(t)), (0, 0))) for t in rotary]
      turned = lambda t: positions.rotate(t.reshape(-1, n, *t.shape[1:]), *rotary, rotate_half=self.rotate_half)
      q, k = turned(q).reshape(q.shape), turned(k).reshape(k.shape)
    return super().mix(q, k, v, n, real=real, bias=bias, key=key)


class Block(nnx.Module):
  """(b*n, d) -> (b*n, d): x + gamma_1 * attn(norm1(x)), then x + gamma_2 * mlp(norm2(x))."""

  def __init__(self, spec, *, rngs, **attention):
    gamma = lambda: nnx.Param(layers.constant(spec.init_values)(rngs.params(), (spec.dim,)))
    self.norm1, self.attn = spec.norm(rngs), Attention(spec, rngs=rngs, **attention)
    self.gamma_1 = None if spec.init_values is None else gamma()
    self.norm2, self.mlp = spec.norm(rngs), spec.mlp(rngs)
    self.gamma_2 = None if spec.init_values is None else gamma()

  def __call__(self, x, n, *, rate=None, key=None, **places):  # places: see Attention.mix
    y = self.attn(self.norm1(x), n, key=fold(key, 0), **places)
    x = x + drop_path(y if self.gamma_1 is None else self.gamma_1[...] * y, n, rate, fold(key, 1))
    y = self.mlp(self.norm2(x), key=fold(key, 2))
    return x + drop_path(y if self.gamma_2 is None else self.gamma_2[...] * y, n, rate, fold(key, 3))


class Beit(VisionTransformer):
  """Images (b, h, w, in_chans), normalised floats -> logits (b, num_classes).

  Arguments (timm's words); those that VisionTransformer has too mean the same:
    global_pool: 'avg' of the patch tokens, 'token', or '' logits per token.   use_fc_norm: the last norm after pooling
      instead of before; None = only with 'avg'.
    use_abs_pos_emb: learned positions, added to the tokens.   use_rel_pos_bias: a table of relative positions in every
      block.   use_shared_rel_pos_bias: one for all blocks.   pos_resize, rel_pos_resize: how positions are resampled
      for images of another size than img_size (positions.POSITION_RESIZE, positions.RELATIVE_RESIZE).
    qkv_bias: of queries and values.   init_values: start of LayerScale, None or 0 = none.
    swiglu_mlp: a gated MLP.   act_layer: None = 'silu' with swiglu_mlp, else 'gelu'.
  """

  pools = ('avg', 'token', '')

  def __init__(
    self, *, num_classes=1000, img_size: Size = 224, patch_size: Size = 16, crop_to_patches=False, in_chans=3,
    global_pool='avg', embed_dim=768, depth=12, num_heads=12, qkv_bias=True, mlp_ratio=4.0, swiglu_mlp=False,
    drop_rate=0.0, pos_drop_rate=0.0, proj_drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0, norm_eps=1e-6,
    init_values: float | None = None, use_abs_pos_emb=True, use_rel_pos_bias=False, use_shared_rel_pos_bias=False,
    use_fc_norm: bool | None = None, act_layer: str | None = None, pos_resize='bicubic', rel_pos_resize='geometric',
    scan=False, remat='none', attention='auto', rngs,
  ):  # fmt: skip
    if attention not in ('xla', 'auto') and (use_rel_pos_bias or use_shared_rel_pos_bias):
      raise ValueError(f"attention={attention!r} has no biases of relative positions here; choose attention='xla'.")
    attention = 'xla' if use_rel_pos_bias or use_shared_rel_pos_bias else attention
    self.use_rel_pos_bias, self.rel_pos_resize = use_rel_pos_bias, rel_pos_resize
    super().__init__(
      num_classes=num_classes, img_size=img_size, patch_size=patch_size, crop_to_patches=crop_to_patches,
      in_chans=in_chans, global_pool=global_pool, embed_dim=embed_dim, depth=depth, num_heads=num_heads,
      qkv_bias=qkv_bias, mlp_ratio=mlp_ratio, mlp_layer='SwiGLU' if swiglu_mlp else 'Mlp',
      act_layer=act_layer or ('silu' if swiglu_mlp else 'gelu'),
      drop_rate=drop_rate, pos_drop_rate=pos_drop_rate, proj_drop_rate=proj_drop_rate, attn_drop_rate=attn_drop_rate,
      drop_path_rate=drop_path_rate, norm_eps=norm_eps, init_values=init_values or None, fc_norm=use_fc_norm,
      pos_embed='learn' if use_abs_pos_emb else 'none', pos_resize=pos_resize, scan=scan, remat=remat,
      attention=attention, rngs=rngs)  # fmt: skip
    self.rel_pos_bias = RelativePositionBias(self.grid, num_heads, rngs=rngs) if use_shared_rel_pos_bias else None
    positions.relative_resize(self.grid, self.grid, rel_pos_resize)  # refuses a method that is none

  def block(self, block_fn, spec, *, rngs):
    """A new block, with its table if blocks have one."""
    return Block(spec, window=self.grid if self.use_rel_pos_bias else None, rngs=rngs)

  def context(self, rows, cols):
    """What blocks need to look up the relative positions of a grid of patches."""
    if not self.use_rel_pos_bias and self.rel_pos_bias is None:
      return {}
    index = positions.relative_index(rows, cols)
    resize = positions.relative_resize(self.grid, (rows, cols), self.rel_pos_resize)
    own = {'index': index, 'resize': resize} if self.use_rel_pos_bias else {}
    if self.rel_pos_bias is None:
      return own
    return own | {'bias': relative_bias(self.rel_pos_bias.relative_position_bias_table, index, resize)}


def _row(embed_dim, depth, num_heads, img_size=224, init_values=1e-5):
  return Beit, dict(
    img_size=img_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads, init_values=init_values,
    use_abs_pos_emb=False, use_rel_pos_bias=True)  # fmt: skip


VARIANTS = {
  'beit_base_patch16_224': _row(768, 12, 12, init_values=0.1),
  'beit_base_patch16_384': _row(768, 12, 12, 384, init_values=0.1),
  'beit_large_patch16_224': _row(1024, 24, 16),
  'beit_large_patch16_384': _row(1024, 24, 16, 384),
  'beit_large_patch16_512': _row(1024, 24, 16, 512),
  'beitv2_base_patch16_224': _row(768, 12, 12),
  'beitv2_large_patch16_224': _row(1024, 24, 16),
}
