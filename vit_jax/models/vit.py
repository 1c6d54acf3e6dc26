"""The Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) and its variants that are a matter of arguments.

Global average pooling and fixed positions: Beyer et al. 2022, arXiv:2205.01580. MAP head: Zhai et al. 2021,
arXiv:2106.04560. Register tokens: Darcet et al. 2023, arXiv:2309.16588. Norm before the blocks: CLIP, arXiv:2103.00020.
The rows are in vit_variants.py.
"""

from flax import nnx
import jax.numpy as jnp

from vit_jax.models import blocks, layers, placement, positions

Size = int | tuple[int, int]  # a square's side, or (h, w)
POOLS = ('token', 'avg', 'max', 'avgmax', 'token_avg', 'map', '')
POSITIONS = ('learn', 'sincos2d', 'none')


class VisionTransformer(nnx.Module):
  """Images (b, h, w, in_chans), normalised floats -> logits (b, num_classes), in the dtype of images and parameters.

  Arguments (timm's words where timm has the concept; classes by their names):
    img_size: int or (h, w), pixels; the size the learned positions are made for. Calls take any h, w that split into
      patches: positions are then resampled by `pos_resize` (positions.resize_positions).
    patch_size: int or (h, w), pixels.   crop_to_patches: leave off what is left over at the right and bottom of images
      instead of refusing them (two releases have 384 pixels and patches of 14).
    embed_dim, depth, num_heads: width, blocks, heads.   mlp_ratio: hidden / width.
    num_classes: 0 = no head, a call gives what the head would read (b, d).
    global_pool: 'token' class token; 'avg', 'max', 'avgmax' (half their sum) of the patch tokens; 'token_avg' class
      token and mean side by side (b, 2*d); 'map' attention pooling; '' logits per token.
    pool_include_prefix: pooling reads prefix tokens too.
    class_token, reg_tokens: prefix tokens, in this order.   pos_embed: 'learn', 'sincos2d' or 'none'.
    no_embed_class: positions for patches only, added before the prefix tokens join (always so for 'sincos2d').
    embed_norm_layer: a norm of each patch before positions, None = none.   pre_norm: a norm before the blocks, and no
      bias in the patch embedding.   final_norm: a norm after them.   fc_norm: that norm after pooling instead of
      before; None = only with global_pool 'avg', 'max' and 'avgmax'.
    representation_size: width of a tanh layer before the head (pre-training), None = no such layer.
    norm_layer: 'layernorm', 'rmsnorm'.   norm_eps: epsilon of all norms.
    block_fn: of blocks.BLOCKS.   attn_layer: '', 'diff'.   mlp_layer: of layers.MLPS.   act_layer: of
      layers.ACTIVATIONS.   qkv_bias, proj_bias (of the attention's and the MLP's other layers).   init_values: start of
      LayerScale, None = none.   qk_norm, scale_attn_norm, scale_mlp_norm: norms of q and k, before the attention's and
      before the MLP's last layer.
    drop_rate (head), pos_drop_rate, proj_drop_rate, attn_drop_rate, drop_path_rate: probabilities, need a key to act.
    scan, remat, attention: how it is computed, not what: see blocks.Blocks and attention.py.

  Raises ValueError for a combination that has no meaning, in one line that says which would have.
  """

  pools = POOLS
  extra_tokens = extra_heads = ()  # names of a subclass's own tokens, after the class token, and heads, after `head`

  def __init__(
    self, *, num_classes=1000, img_size: Size = 224, patch_size: Size = 16, crop_to_patches=False, in_chans=3,
    embed_dim=768, depth=12, num_heads=12, mlp_ratio=4.0, qkv_bias=True, qk_norm=False, proj_bias=True,
    scale_attn_norm=False, scale_mlp_norm=False, init_values: float | None = None, class_token=True, reg_tokens=0,
    global_pool='token', pool_include_prefix=False, pos_embed='learn', no_embed_class=False, pos_resize='bicubic',
    pre_norm=False, final_norm=True, fc_norm: bool | None = None, representation_size: int | None = None,
    act_layer='gelu', norm_layer='layernorm', norm_eps=1e-6, embed_norm_layer: str | None = None, block_fn='Block',
    mlp_layer='Mlp', attn_layer='', drop_rate=0.0, pos_drop_rate=0.0, proj_drop_rate=0.0, attn_drop_rate=0.0,
    drop_path_rate=0.0, scan=False, remat='none', attention='auto', rngs,
  ):  # fmt: skip
    _check(
      global_pool=(global_pool, self.pools),
      pos_embed=(pos_embed, POSITIONS),
      pos_resize=(pos_resize, positions.POSITION_RESIZE),
      block_fn=(block_fn, blocks.BLOCKS),
    )
    after_pool = global_pool in ('avg', 'max', 'avgmax') if fc_norm is None else fc_norm
    _check_pooling(global_pool, class_token, after_pool)
    self.global_pool, self.pool_include_prefix = global_pool, pool_include_prefix
    self.pos_embed_kind, self.pos_resize = pos_embed, pos_resize
    self.no_embed_class = no_embed_class or pos_embed == 'sincos2d'
    self.drop_rate, self.pos_drop_rate = drop_rate, pos_drop_rate

    spec = blocks.Spec(
      embed_dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, qk_norm=qk_norm, proj_bias=proj_bias,
      scale_attn_norm=scale_attn_norm, scale_mlp_norm=scale_mlp_norm, init_values=init_values,
      attn_drop=attn_drop_rate, proj_drop=proj_drop_rate, act_layer=act_layer, norm_layer=norm_layer,
      norm_eps=norm_eps, mlp_layer=mlp_layer, attn_layer=attn_layer, attention=attention)  # fmt: skip
    self.attention = 'xla' if blocks.differential(block_fn, spec) else attention
    self.patch_embed = self.patch_layer(
      pair(patch_size), in_chans, embed_dim, use_bias=not pre_norm, crop=crop_to_patches,
      norm=embed_norm_layer and blocks.norm_of(embed_norm_layer, norm_eps), rngs=rngs)  # fmt: skip
    self.grid = self.patch_embed.grid(*pair(img_size))
    draw = layers.normal(0.02)
    token = lambda n: nnx.Param(draw(rngs.params(), (1, n, embed_dim)))
    self.cls_token = nnx.Param(layers.zeros(rngs.params(), (1, 1, embed_dim))) if class_token else None
    for name in self.extra_tokens:
      setattr(self, name, token(1))
    self.reg_token = token(reg_tokens) if reg_tokens else None
    self.prefix = int(class_token) + len(self.extra_tokens) + reg_tokens
    tokens = self.grid[0] * self.grid[1] + (0 if self.no_embed_class else self.prefix)
    self.pos_embed = token(tokens) if pos_embed == 'learn' else None
    if pos_embed == 'sincos2d':
      positions.sincos_positions(1, 1, embed_dim)  # refuses a width it cannot fill
    self.norm_pre = spec.norm(rngs) if pre_norm else None
    self.blocks = blocks.Blocks(
      lambda rngs: self.block(block_fn, spec, rngs=rngs), depth, drop_path_rate=drop_path_rate, scan=scan,
      remat=remat, per_layer=blocks.per_layer(block_fn, spec, depth), rngs=rngs)  # fmt: skip
    self.norm = spec.norm(rngs) if final_norm and not after_pool else None
    self.fc_norm = spec.norm(rngs) if final_norm and after_pool else None
    self.attn_pool = layers.AttentionPool(
      embed_dim, num_heads, mlp_ratio=mlp_ratio, act_layer=act_layer, norm=spec.norm_of, rngs=rngs
    ) if global_pool == 'map' else None  # fmt: skip
    pooled = 2 * embed_dim if global_pool == 'token_avg' else embed_dim
    width = representation_size or pooled
    dense = lambda i, o, init: nnx.Linear(i, o, kernel_init=init, bias_init=layers.zeros, rngs=rngs)
    self.pre_logits = dense(pooled, width, layers.xavier(pooled, width)) if representation_size else None
    for name in ('head', *self.extra_heads):  # data: so that a user may put a head where there was none
      setattr(self, name, nnx.data(dense(width, num_classes, layers.zeros) if num_classes else None))

  def patch_layer(self, patch_size, in_chans, dim, *, use_bias, norm, crop, rngs):
    """What cuts images into patches; for subclasses that cut something else, with layers.PatchEmbed's grid and call."""
    return layers.PatchEmbed(patch_size, in_chans, dim, use_bias=use_bias, norm=norm, crop=crop, rngs=rngs)

  def patches(self, images, *, key=None):  # (b, h, w, c)
    """Patches (b * rows * cols, d) before positions; for subclasses whose patch_embed takes a key."""
    return self.patch_embed(images)

  def block(self, block_fn, spec, *, rngs):
    """A new block; for subclasses with blocks of their own."""
    return blocks.BLOCKS[block_fn](spec, rngs=rngs)

  def context(self, rows, cols):
    """Keyword arguments of every block's call for a grid of patches; for subclasses whose blocks know of places."""
    return {}

  def embed(self, images, *, key=None):  # (b, h, w, c)
    """Tokens that the first block reads: patches, positions, prefix tokens, (b, n, d)."""
    rows, cols = self.patch_embed.grid(*images.shape[1:3])
    x = self.patches(images, key=key).reshape(images.shape[0], rows * cols, -1)
    prefix = [self.cls_token, *(getattr(self, name) for name in self.extra_tokens), self.reg_token]
    prefix = [t[...].astype(x.dtype) for t in prefix if t is not None]
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

  def _encode(self, images, key, collect):
    """Tokens after the last norm, and with collect what came before: {'embed', 'block0', ..., 'norm'}."""
    x = self.embed(images, key=layers.fold(key, 0))
    inside = {'embed': x}
    context = self.context(*self.patch_embed.grid(*images.shape[1:3]))
    x, after = blocks.through(
      self.blocks, x, attention=self.attention, key=layers.fold(key, 1), collect=collect, **context
    )
    inside |= after
    if self.norm is not None:
      x = inside['norm'] = self.norm(x)
    return x, inside

  def features(self, images, *, key=None):  # (b, h, w, c)
    """Tokens after the last norm, prefix tokens first, (b, n, d)."""
    return self._encode(images, key, collect=False)[0]

  def pool(self, x):  # (b, n, d)
    """What the head reads before dropout: (b, d), (b, 2*d) with 'token_avg', or (b, n, d) with global_pool ''."""
    read = x if self.pool_include_prefix else x[:, self.prefix :]
    mean = lambda: read.mean(axis=1, dtype=jnp.float32).astype(x.dtype)
    pools = {
      '': lambda: x,
      'token': lambda: x[:, 0],
      'avg': mean,
      'max': lambda: read.max(axis=1),
      'avgmax': lambda: 0.5 * (read.max(axis=1) + mean()),
      'token_avg': lambda: jnp.concatenate([x[:, 0], mean()], axis=-1),
      'map': lambda: self.attn_pool(read),
    }
    x = pools[self.global_pool]()
    x = x if self.fc_norm is None else self.fc_norm(x)
    return x if self.pre_logits is None else jnp.tanh(self.pre_logits(x))

  def outputs(self, x, *, key=None):  # (b, n, d) of features
    """{'pre_logits': what the head reads, 'logits': what it gives}; the same without a head."""
    x = placement.rows(self.pool(x))
    y = layers.dropout(x, self.drop_rate, key)
    return {'pre_logits': x, 'logits': y if self.head is None else placement.rows(self.head(y))}

  def __call__(self, images, *, key=None):  # (b, h, w, c)
    return self.outputs(self.features(images, key=key), key=layers.fold(key, 2))['logits']

  def intermediates(self, images):  # (b, h, w, c)
    """What is inside, in order: 'embed', 'block0', ..., 'norm' (b, n, d), 'pre_logits', 'logits'; deterministic."""
    x, inside = self._encode(images, None, collect=True)
    return inside | self.outputs(x)


def pair(size):
  """(h, w) of an int or a pair."""
  return (size, size) if isinstance(size, int) else tuple(size)


def _check(**choices):
  for name, (given, known) in choices.items():
    if given not in known:
      raise ValueError(f'{name} is {given!r}; choose one of {", ".join(map(repr, known))}.')


def _check_pooling(global_pool, class_token, after_pool):
  if global_pool in ('token', 'token_avg') and not class_token:
    raise ValueError(
      f"global_pool={global_pool!r} reads the class token, and class_token is False; choose 'avg' or 'map'."
    )
  if global_pool == 'token_avg' and after_pool:
    raise ValueError("global_pool='token_avg' pools normalised tokens; leave fc_norm out.")
