"""DINOv3 (Simeoni et al. 2025, arXiv:2508.10104) as timm has it: an EVA whose attention turns q and k by places.

Rotary positions: Su et al. 2021, arXiv:2104.09864. EVA: Fang et al. 2022, arXiv:2211.07636. Gated MLP: Shazeer 2020,
arXiv:2002.05202.
"""

from vit_jax.models import positions
from vit_jax.models.beit import Block
from vit_jax.models.vit import Size, VisionTransformer


class Eva(VisionTransformer):
  """Images (b, h, w, in_chans), normalised floats -> logits (b, num_classes).

  Arguments (timm's words); those that VisionTransformer has too mean the same:
    global_pool: DINOv3 itself reads the class token, timm's rows the mean of the patch tokens.
    num_reg_tokens: prefix tokens after the class token.   use_fc_norm: the last norm after pooling instead of before;
      None = only with 'avg'.
    use_abs_pos_emb: learned positions, added to the tokens.   use_rot_pos_emb: rotary ones, for which rope_type must be
      'dinov3' (patch centres in [-1, 1] on each axis, at any image size), with rope_temperature and rope_rotate_half
      (pairs i, i + c/2 instead of neighbours).
    qkv_bias: of queries and values.   k_bias: of keys.   init_values: start of LayerScale, None = none.
    swiglu_mlp: a gated MLP; swiglu_align_to: its hidden units are rounded up to a multiple and its two halves are two
      layers, 0 = one.   act_layer: None = 'silu' with swiglu_mlp, else 'gelu'.
  """

  pools = ('avg', 'token', 'max', 'avgmax', '')

  def __init__(
    self, *, num_classes=1000, img_size: Size = 224, patch_size: Size = 16, crop_to_patches=False, in_chans=3,
    global_pool='avg', embed_dim=768, depth=12, num_heads=12, qkv_bias=True, k_bias=False, mlp_ratio=4.0,
    swiglu_mlp=False, swiglu_align_to=0, drop_rate=0.0, pos_drop_rate=0.0, proj_drop_rate=0.0, attn_drop_rate=0.0,
    drop_path_rate=0.0, norm_eps=1e-6, init_values: float | None = None, class_token=True, num_reg_tokens=0,
    no_embed_class=False, use_abs_pos_emb=True, use_rot_pos_emb=False, rope_type='cat', rope_temperature=10_000.0,
    rope_rotate_half=False, use_fc_norm: bool | None = None, act_layer: str | None = None, pos_resize='bicubic',
    scan=False, remat='none', attention='auto', rngs,
  ):  # fmt: skip
    if use_rot_pos_emb and rope_type != 'dinov3':
      raise ValueError(f"rope_type is {rope_type!r}; the only rotary positions here are DINOv3's: choose 'dinov3'.")
    self.k_bias, self.rotate_half = k_bias, rope_rotate_half
    self.rope = (embed_dim // num_heads, rope_temperature) if use_rot_pos_emb else None
    hidden = int(embed_dim * mlp_ratio)
    mlp_layer = 'Mlp'
    if swiglu_mlp and swiglu_align_to:
      mlp_layer, hidden = 'SwiGLU', -(-hidden // swiglu_align_to) * swiglu_align_to
    elif swiglu_mlp:
      mlp_layer, hidden = 'SwiGLUPacked', 2 * hidden
    super().__init__(
      num_classes=num_classes, img_size=img_size, patch_size=patch_size, crop_to_patches=crop_to_patches,
      in_chans=in_chans, global_pool=global_pool, embed_dim=embed_dim, depth=depth, num_heads=num_heads,
      qkv_bias=qkv_bias,
      mlp_ratio=(hidden + 0.5) / embed_dim,  # + 0.5: int(embed_dim * mlp_ratio) is hidden, whatever the rounding
      mlp_layer=mlp_layer, act_layer=act_layer or ('silu' if swiglu_mlp else 'gelu'), drop_rate=drop_rate,
      pos_drop_rate=pos_drop_rate, proj_drop_rate=proj_drop_rate, attn_drop_rate=attn_drop_rate,
      drop_path_rate=drop_path_rate, norm_eps=norm_eps, init_values=init_values, class_token=class_token,
      reg_tokens=num_reg_tokens, no_embed_class=no_embed_class, pos_embed='learn' if use_abs_pos_emb else 'none',
      fc_norm=global_pool == 'avg' if use_fc_norm is None else use_fc_norm, pos_resize=pos_resize, scan=scan,
      remat=remat, attention=attention, rngs=rngs)  # fmt: skip
    self.context(*self.grid)  # refuses heads that cannot be turned

  def block(self, block_fn, spec, *, rngs):
    """A new block, whose attention may turn q and k."""
    return Block(spec, k_bias=self.k_bias, rotate_half=self.rotate_half, rngs=rngs)

  def context(self, rows, cols):
    """The sines and cosines by which blocks turn the tokens of a grid of patches."""
    if self.rope is None:
      return {}
    dim, temperature = self.rope
    return {'rotary': positions.rotary_table(
      rows, cols, dim, prefix=self.prefix, temperature=temperature, rotate_half=self.rotate_half
    )}  # fmt: skip


def _row(embed_dim, depth, num_heads, **rest):
  return Eva, dict(
    embed_dim=embed_dim, depth=depth, num_heads=num_heads, num_reg_tokens=4, init_values=1e-5, norm_eps=1e-5,
    use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type='dinov3', rope_temperature=100.0, rope_rotate_half=True,
    use_fc_norm=False, img_size=256, num_classes=0,
  ) | rest  # fmt: skip


VARIANTS = {
  'vit_tiny_patch16_dinov3_qkvb': _row(192, 12, 3),
  **{
    f'vit_{size}_patch16_dinov3{suffix}': _row(*shape, qkv_bias=bool(suffix))
    for suffix in ('', '_qkvb')
    for size, shape in {'small': (384, 12, 6), 'base': (768, 12, 12), 'large': (1024, 24, 16)}.items()
  },
  **{
    f'vit_{size}_patch16_dinov3{suffix}': _row(*shape, qkv_bias=bool(suffix), swiglu_mlp=True, swiglu_align_to=8)
    for suffix in ('', '_qkvb')
    for size, shape in {'small_plus': (384, 12, 6), 'huge_plus': (1280, 32, 20)}.items()
  },
  'vit_7b_patch16_dinov3': _row(
    4096, 40, 32, qkv_bias=False, mlp_ratio=2.0, swiglu_mlp=True, swiglu_align_to=64
  ),
}  # fmt: skip
