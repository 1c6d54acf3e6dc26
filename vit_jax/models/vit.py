"""The Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) and its variants that are a matter of arguments.

Global average pooling and fixed positions: Beyer et al. 2022, arXiv:2205.01580. MAP head: Zhai et al. 2021,
arXiv:2106.04560. Register tokens: Darcet et al. 2023, arXiv:2309.16588. Norm before the blocks: CLIP, arXiv:2103.00020.
"""

from flax import nnx
import jax.numpy as jnp

from vit_jax.models import layers, positions

Size = int | tuple[int, int]  # a square's side, or (h, w)
POOLS = ('token', 'avg', 'map', '')
POSITIONS = ('learn', 'sincos2d', 'none')


class VisionTransformer(nnx.Module):
  """Images (b, h, w, in_chans), normalised floats -> logits (b, num_classes), in the dtype of images and parameters.

  Arguments (timm's words where timm has the concept):
    img_size: int or (h, w), pixels; the size the learned positions are made for. Calls take any h, w that split into
      patches: positions are then resampled by `pos_resize` (positions.resize_positions).
    patch_size: int or (h, w), pixels.   embed_dim, depth, num_heads: width, blocks, heads.   mlp_ratio: hidden / width.
    num_classes: 0 = no head, a call gives what the head would read (b, d).
    global_pool: 'token' class token, 'avg' mean of the patch tokens, 'map' attention pooling, '' logits per token.
    class_token, reg_tokens: prefix tokens, in this order.   pos_embed: 'learn', 'sincos2d' or 'none'.
    no_embed_class: positions for patches only, added before the prefix tokens join (always so for 'sincos2d').
    pre_norm: a norm before the blocks, and no bias in the patch embedding.   final_norm: a norm after them.
    fc_norm: that norm after pooling instead of before; None = only with global_pool 'avg'.
    representation_size: width of a tanh layer before the head (pre-training), None = no such layer.
    init_values: start of LayerScale, None = none.   act_layer: layers.ACTIVATIONS.   norm_eps: epsilon of all norms.
    drop_rate (head), pos_drop_rate, proj_drop_rate, attn_drop_rate, drop_path_rate: probabilities, need a key to act.
    scan, remat, attention: how it is computed, not what: see layers.Blocks and layers.ATTENTION.

  Raises ValueError for a combination that has no meaning, in one line that says which would have.
  """

  def __init__(
    self, *, num_classes=1000, img_size: Size = 224, patch_size: Size = 16, in_chans=3, embed_dim=768, depth=12,
    num_heads=12, mlp_ratio=4.0, qkv_bias=True, init_values: float | None = None, class_token=True, reg_tokens=0,
    global_pool='token', pos_embed='learn', no_embed_class=False, pos_resize='bicubic', pre_norm=False,
    final_norm=True, fc_norm: bool | None = None, representation_size: int | None = None, act_layer='gelu',
    norm_eps=1e-6, drop_rate=0.0, pos_drop_rate=0.0, proj_drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0,
    scan=False, remat='none', attention='xla', rngs,
  ):  # fmt: skip
    _check(
      global_pool=(global_pool, POOLS),
      pos_embed=(pos_embed, POSITIONS),
      pos_resize=(pos_resize, positions.POSITION_RESIZE),
    )
    if global_pool == 'token' and not class_token:
      raise ValueError("global_pool='token' reads the class token, and class_token is False; choose 'avg' or 'map'.")
    self.global_pool, self.pos_embed_kind, self.pos_resize = global_pool, pos_embed, pos_resize
    self.prefix = int(class_token) + reg_tokens
    self.no_embed_class = no_embed_class or pos_embed == 'sincos2d'
    self.drop_rate, self.pos_drop_rate = drop_rate, pos_drop_rate

    self.patch_embed = layers.PatchEmbed(pair(patch_size), in_chans, embed_dim, use_bias=not pre_norm, rngs=rngs)
    self.grid = self.patch_embed.grid(*pair(img_size))
    draw = layers.normal(0.02)
    token = lambda n: nnx.Param(draw(rngs.params(), (1, n, embed_dim)))
    self.cls_token = nnx.Param(layers.zeros(rngs.params(), (1, 1, embed_dim))) if class_token else None
    self.reg_token = token(reg_tokens) if reg_tokens else None
    tokens = self.grid[0] * self.grid[1] + (0 if self.no_embed_class else self.prefix)
    self.pos_embed = token(tokens) if pos_embed == 'learn' else None
    if pos_embed == 'sincos2d':
      positions.sincos_positions(1, 1, embed_dim)  # refuses a width it cannot fill
    self.norm_pre = layers.LayerNorm(embed_dim, eps=norm_eps, rngs=rngs) if pre_norm else None

    def block(rngs):
      return layers.Block(
        embed_dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, init_values=init_values,
        attn_drop=attn_drop_rate, proj_drop=proj_drop_rate, act_layer=act_layer, norm_eps=norm_eps,
        attention=attention, rngs=rngs)  # fmt: skip

    self.blocks = layers.Blocks(block, depth, drop_path_rate=drop_path_rate, scan=scan, remat=remat, rngs=rngs)
    after_pool = global_pool == 'avg' if fc_norm is None else fc_norm
    norm = lambda wanted: layers.LayerNorm(embed_dim, eps=norm_eps, rngs=rngs) if final_norm and wanted else None
    self.norm, self.fc_norm = norm(not after_pool), norm(after_pool)
    self.attn_pool = layers.AttentionPool(
      embed_dim, num_heads, mlp_ratio=mlp_ratio, act_layer=act_layer, norm_eps=norm_eps, rngs=rngs
    ) if global_pool == 'map' else None  # fmt: skip
    width = representation_size or embed_dim
    dense = lambda i, o, init: nnx.Linear(i, o, kernel_init=init, bias_init=layers.zeros, rngs=rngs)
    self.pre_logits = dense(embed_dim, width, layers.xavier(embed_dim, width)) if representation_size else None
    # data: so that a user may put a head where there was none
    self.head = nnx.data(dense(width, num_classes, layers.zeros) if num_classes else None)

  def embed(self, images, *, key=None):  # (b, h, w, c)
    """Tokens that the first block reads: patches, positions, prefix tokens, (b, n, d)."""
    rows, cols = self.patch_embed.grid(*images.shape[1:3])
    x = self.patch_embed(images).reshape(images.shape[0], rows * cols, -1)
    prefix = [t[...].astype(x.dtype) for t in (self.cls_token, self.reg_token) if t is not None]
    prefix = [jnp.broadcast_to(t, (x.shape[0], *t.shape[1:])) for t in prefix]
    if self.no_embed_class:
      x = jnp.concatenate([*prefix, self._positioned(x, (rows, cols))], axis=1)
    else:
      x = self._positioned(jnp.concatenate([*prefix, x], axis=1), (rows, cols))
    x = layers.dropout(x, self.pos_drop_rate, key)
    return x if self.norm_pre is None else self.norm_pre(x)

  def _positioned(self, x, size):  # (b, n, d) -> (b, n, d)
    if self.pos_embed_kind == 'none':
      return x
    if self.pos_embed_kind == 'sincos2d':
      return x + positions.sincos_positions(*size, x.shape[-1]).reshape(1, -1, x.shape[-1]).astype(x.dtype)
    prefix = 0 if self.no_embed_class else self.prefix
    table = positions.resize_table(self.pos_embed[...], self.grid, size, prefix=prefix, method=self.pos_resize)
    return x + table.astype(x.dtype)

  def features(self, images, *, key=None):  # (b, h, w, c)
    """Tokens after the last norm, prefix tokens first, (b, n, d)."""
    x = self.embed(images, key=layers.fold(key, 0))
    b, n, d = x.shape
    x = self.blocks(x.reshape(b * n, d), n, key=layers.fold(key, 1)).reshape(b, n, d)
    return x if self.norm is None else self.norm(x)

  def pool(self, x):  # (b, n, d)
    """What the head reads before dropout: (b, d), or (b, n, d) with global_pool ''."""
    if self.global_pool == 'token':
      x = x[:, 0]
    elif self.global_pool == 'avg':
      x = x[:, self.prefix :].mean(axis=1, dtype=jnp.float32).astype(x.dtype)
    elif self.global_pool == 'map':
      x = self.attn_pool(x)
    x = x if self.fc_norm is None else self.fc_norm(x)
    return x if self.pre_logits is None else jnp.tanh(self.pre_logits(x))

  def __call__(self, images, *, key=None):  # (b, h, w, c)
    x = layers.dropout(self.pool(self.features(images, key=key)), self.drop_rate, layers.fold(key, 2))
    return x if self.head is None else self.head(x)


def pair(size):
  """(h, w) of an int or a pair."""
  return (size, size) if isinstance(size, int) else tuple(size)


def _check(**choices):
  for name, (given, known) in choices.items():
    if given not in known:
      raise ValueError(f'{name} is {given!r}; choose one of {", ".join(map(repr, known))}.')


# name in timm: (embed_dim, depth, num_heads); other values per row below
SIZES = {'tiny': (192, 12, 3), 'small': (384, 12, 6), 'medium': (512, 12, 8), 'betwixt': (640, 12, 10),
         'base': (768, 12, 12), 'large': (1024, 24, 16), 'so400m': (1152, 27, 16), 'huge': (1280, 32, 16),
         'giant': (1408, 40, 16), 'gigantic': (1664, 48, 16)}  # fmt: skip
RATIOS = {'so400m': 3.7362, 'giant': 48 / 11, 'gigantic': 64 / 13}
GAP = dict(class_token=False, global_pool='avg', fc_norm=False)
REG4_GAP = dict(class_token=False, no_embed_class=True, reg_tokens=4, global_pool='avg')
MAP = dict(class_token=False, global_pool='map', num_classes=0)
CLIP = dict(pre_norm=True, norm_eps=1e-5)
DINOV2 = dict(init_values=1e-5, num_classes=0)


def _row(size, patch_size, img_size=224, **rest):
  embed_dim, depth, num_heads = SIZES[size]
  ratio = {'mlp_ratio': RATIOS[size]} if size in RATIOS else {}
  shape = dict(patch_size=patch_size, img_size=img_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads)
  return VisionTransformer, shape | ratio | rest


def _plain():
  """The rows that follow from size, patch and image size alone; timm gives some of them no head."""
  headless = {('small', 8, 224), ('large', 32, 224), ('huge', 14, 224)}
  sizes = {'tiny': (16,), 'small': (8, 16, 32), 'base': (8, 16, 32), 'large': (14, 16, 32), 'huge': (14,),
           'giant': (14,), 'gigantic': (14,)}  # fmt: skip
  for size, patches in sizes.items():
    for patch in patches:
      for img in (224, 384) if patch in (16, 32) else (224,):
        head = {'num_classes': 0} if (size, patch, img) in headless else {}
        yield f'vit_{size}_patch{patch}_{img}', _row(size, patch, img, **head)


VARIANTS = {
  **dict(_plain()),
  'vit_base_patch16_224_miil': _row('base', 16, qkv_bias=False, num_classes=11221),
  'vit_small_patch16_36x1_224': _row('small', 16, depth=36, init_values=1e-5),
  'vit_small_patch16_gap_224': _row('small', 16, **GAP),
  'vit_small_patch32_gap_224': _row('small', 32, **GAP),
  'vit_base_patch16_gap_224': _row('base', 16, **{**GAP, 'num_heads': 16}),
  'vit_base_patch32_gap_224': _row('base', 32, **GAP),
  'vit_medium_patch16_gap_240': _row('medium', 16, 240, qkv_bias=False, init_values=1e-6, num_classes=11821, **GAP),
  'vit_medium_patch16_reg4_gap_256': _row('medium', 16, 256, init_values=1e-5, **REG4_GAP),
  'vit_betwixt_patch16_reg4_gap_256': _row('betwixt', 16, 256, init_values=1e-5, **REG4_GAP),
  'vit_base_patch16_reg4_gap_256': _row('base', 16, 256, **REG4_GAP),
  'vit_base_patch16_siglip_224': _row('base', 16, **MAP),
  'vit_large_patch16_siglip_256': _row('large', 16, 256, **MAP),
  'vit_base_patch16_siglip_gap_224': _row('base', 16, num_classes=0, **GAP),
  'vit_base_patch16_clip_224': _row('base', 16, **CLIP),
  'vit_base_patch32_clip_224': _row('base', 32, **CLIP),
  'vit_large_patch14_clip_224': _row('large', 14, **CLIP),
  'vit_huge_patch14_clip_224': _row('huge', 14, **CLIP),
  **{f'flexivit_{size}': _row(size, 16, 240, no_embed_class=True) for size in ('small', 'base', 'large')},
  **{f'vit_{size}_patch14_dinov2': _row(size, 14, 518, **DINOV2) for size in ('small', 'base', 'large')},
  **{
    f'vit_{size}_patch14_reg4_dinov2': _row(size, 14, 518, reg_tokens=4, no_embed_class=True, **DINOV2)
    for size in ('small', 'base', 'large')
  },
}

# the names of the original release
ALIASES = {
  **{
    f'ViT-{letter}_{patch}': f'vit_{size}_patch{patch}_224'
    for letter, size, patches in [('Ti', 'tiny', (16,)), ('S', 'small', (8, 16, 32)), ('B', 'base', (8, 16, 32)),
                                  ('L', 'large', (16, 32)), ('H', 'huge', (14,)), ('g', 'giant', (14,)),
                                  ('G', 'gigantic', (14,))]
    for patch in patches
  },
  **{
    f'ViT-{letter}_{patch}-gap-norep': f'vit_{size}_patch{patch}_gap_224'
    for letter, size in [('S', 'small'), ('B', 'base')]
    for patch in (16, 32)
  },
}  # fmt: skip
