"""The masked autoencoder (He et al. 2021, arXiv:2111.06377): a ViT sees a quarter of the patches, a decoder the rest.

Attributes are the names in the original release's checkpoints, fixed positions included. Its encoder alone is a
VisionTransformer, into which such a file loads for fine-tuning.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import blocks, layers, positions
from vit_jax.models.vit import Size, VisionTransformer


class MaskedAutoencoder(VisionTransformer):
  """Images (b, h, w, c), normalised floats -> the pixels of each patch (b, n, ph*pw*c), as patchify orders them.

  With a key, mask_ratio of the patches are hidden at random and guessed; without one, nothing is hidden. The loss and
  the decoder are for pre-training; `features` gives the encoder's tokens of whole images.

  Arguments (the original release's words; those that VisionTransformer has too mean the same):
    mask_ratio: part of the patches that is hidden, in (0, 1).   norm_pix_loss: the loss compares pixels normalised
      within their patch (sec. 4.1, "reconstruction target").
    decoder_embed_dim, decoder_depth, decoder_num_heads, decoder_mlp_ratio: as those of the encoder; decoder_embed_dim
      0 = no decoder (some files hold the encoder alone): a call then gives the encoder's tokens (b, 1 + kept, d).
    pos_resize, decoder_pos_resize: how the fixed positions are resampled for images of another size than img_size, of
      positions.POSITION_RESIZE; the decoder's also 'flat', along the patches as one row (as Hugging Face does).
    num_classes: 0, there is no head.
  """

  def __init__(
    self, *, num_classes=0, img_size: Size = 224, patch_size: Size = 16, in_chans=3, embed_dim=1024, depth=24,
    num_heads=16, mlp_ratio=4.0, decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16, decoder_mlp_ratio=4.0,
    qkv_bias=True, act_layer='gelu', norm_eps=1e-6, mask_ratio=0.75, norm_pix_loss=False, pos_resize='bicubic',
    decoder_pos_resize='bicubic', scan=False, remat='none', attention='auto', rngs,
  ):  # fmt: skip
    if num_classes:
      raise ValueError(f'A masked autoencoder has no head for {num_classes} classes; load its file into a vit_* model.')
    if not 0 < mask_ratio < 1:
      raise ValueError(f'mask_ratio is {mask_ratio}; give the part of the patches to hide, between 0 and 1.')
    if decoder_pos_resize not in (*positions.POSITION_RESIZE, 'flat'):
      raise ValueError(
        f'decoder_pos_resize is {decoder_pos_resize!r}; choose one of {", ".join(positions.POSITION_RESIZE)}, flat.'
      )
    super().__init__(
      num_classes=0, img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, depth=depth,
      num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, act_layer=act_layer, norm_eps=norm_eps,
      pos_resize=pos_resize, scan=scan, remat=remat, attention=attention, rngs=rngs)  # fmt: skip
    self.mask_ratio, self.norm_pix_loss, self.decoder_pos_resize = mask_ratio, norm_pix_loss, decoder_pos_resize
    self.pos_embed = nnx.Param(_fixed_positions(self.grid, embed_dim))
    if not decoder_embed_dim:
      self.decoder_embed = None
      return
    spec = blocks.Spec(
      decoder_embed_dim, decoder_num_heads, mlp_ratio=decoder_mlp_ratio, qkv_bias=qkv_bias, act_layer=act_layer,
      norm_eps=norm_eps, attention=attention)  # fmt: skip
    dense = lambda i, o: nnx.Linear(i, o, kernel_init=layers.xavier(i, o), bias_init=layers.zeros, rngs=rngs)
    self.decoder_embed = dense(embed_dim, decoder_embed_dim)
    self.mask_token = nnx.Param(layers.normal(0.02)(rngs.params(), (1, 1, decoder_embed_dim)))
    self.decoder_pos_embed = nnx.Param(_fixed_positions(self.grid, decoder_embed_dim))
    self.decoder_blocks = blocks.Blocks(
      lambda rngs: blocks.Block(spec, rngs=rngs), decoder_depth, drop_path_rate=0.0, scan=scan, remat=remat, rngs=rngs
    )
    self.decoder_norm = spec.norm(rngs)
    self.decoder_pred = dense(decoder_embed_dim, int(np.prod(self.patch_embed.patch_size)) * in_chans)

  def _positioned(self, x, size):  # (b, n, d) -> (b, n, d)
    table = positions.resize_table(self.pos_embed[...], self.grid, size, prefix=1, method=self.pos_resize)
    return x + jax.lax.stop_gradient(table).astype(x.dtype)

  def _masked(self, x, noise, key):  # (b, 1 + n, d)
    """(visible tokens (b, 1 + kept, d), mask (b, n), ids_restore (b, n)): the patches of the lowest noise are kept."""
    b, n = x.shape[0], x.shape[1] - 1
    if noise is None and key is None:
      return x, jnp.zeros((b, n)), jnp.broadcast_to(jnp.arange(n), (b, n))
    noise = jax.random.uniform(key, (b, n)) if noise is None else jnp.asarray(noise)
    if noise.shape != (b, n):
      raise ValueError(f'The noise is {noise.shape}; give a number for each image and patch, {(b, n)}.')
    kept, shuffled = int(n * (1 - self.mask_ratio)), jnp.argsort(noise, axis=1)
    visible = jnp.take_along_axis(x[:, 1:], shuffled[:, :kept, None], axis=1)
    restore = jnp.argsort(shuffled, axis=1)
    return jnp.concatenate([x[:, :1], visible], axis=1), (restore >= kept).astype(jnp.float32), restore

  def _encoded(self, images, noise, key, collect=False):
    """What encode gives by name, and with collect the tokens before and after each block."""
    x, mask, restore = self._masked(self.embed(images), noise, key)
    inside = {'mask': mask, 'ids_restore': restore, 'embed': x}
    x, after = blocks.through(self.blocks, x, attention=self.attention, collect=collect)
    return inside | after | {'norm': self.norm(x)}

  def encode(self, images, noise=None, *, key=None):  # (b, h, w, c), (b, n)
    """(tokens (b, 1 + kept, d), mask (b, n) 1 where hidden, ids_restore (b, n)): the encoder on the visible patches.

    The kept patches are those of the lowest noise, which is drawn from the key; without noise and key, all are kept.
    ids_restore: where each patch is in the order [kept, hidden].
    """
    inside = self._encoded(images, noise, key)
    return inside['norm'], inside['mask'], inside['ids_restore']

  def _decoded(self, tokens, restore, grid, collect=False):
    x = self.decoder_embed(tokens)
    b, n, d = x.shape[0], restore.shape[1], x.shape[2]
    hidden = jnp.broadcast_to(self.mask_token[...].astype(x.dtype), (b, 1 + n - x.shape[1], d))
    patches = jnp.take_along_axis(jnp.concatenate([x[:, 1:], hidden], axis=1), restore[..., None], axis=1)
    old, new, method = self.grid, grid, self.decoder_pos_resize
    if method == 'flat':
      old, new, method = (1, old[0] * old[1]), (1, n), 'bicubic_plain'
    table = positions.resize_table(self.decoder_pos_embed[...], old, new, prefix=1, method=method)
    x = jnp.concatenate([x[:, :1], patches], axis=1) + jax.lax.stop_gradient(table).astype(x.dtype)
    inside = {'decoder_embed': x}
    x, after = blocks.through(self.decoder_blocks, x, attention=self.attention, collect=collect, name='decoder_block')
    x = self.decoder_norm(x)
    return inside | after | {'decoder_norm': x, 'logits': self.decoder_pred(x[:, 1:])}

  def decode(self, tokens, ids_restore, *, grid):  # (b, 1 + kept, d), (b, n)
    """The pixels of every patch (b, n, ph*pw*c) from encode's tokens; grid: (rows, columns) of the patches."""
    return self._decoded(tokens, ids_restore, grid)['logits']

  def patchify(self, images):  # (b, h, w, c) -> (b, n, ph*pw*c)
    """The pixels of each patch, in the order (row, column, channel)."""
    (rows, cols), (ph, pw) = self.patch_embed.grid(*images.shape[1:3]), self.patch_embed.patch_size
    x = images.reshape(images.shape[0], rows, ph, cols, pw, -1).swapaxes(2, 3)
    return x.reshape(images.shape[0], rows * cols, -1)

  def unpatchify(self, pixels, *, grid):  # (b, n, ph*pw*c) -> (b, h, w, c)
    """The inverse of patchify."""
    (rows, cols), (ph, pw) = grid, self.patch_embed.patch_size
    x = pixels.reshape(pixels.shape[0], rows, cols, ph, pw, -1).swapaxes(2, 3)
    return x.reshape(pixels.shape[0], rows * ph, cols * pw, -1)

  def _loss(self, images, logits, mask):
    target = self.patchify(images).astype(jnp.float32)
    if self.norm_pix_loss:
      variance = target.var(axis=-1, ddof=1, keepdims=True)
      target = (target - target.mean(axis=-1, keepdims=True)) / jnp.sqrt(variance + 1e-6)
    error = jnp.square(logits.astype(jnp.float32) - target).mean(axis=-1)  # (b, n)
    return (error * mask).sum() / mask.sum()

  def loss(self, images, noise=None, *, key=None):  # (b, h, w, c), (b, n)
    """The mean squared error () of the hidden patches' pixels; ValueError without noise and key: nothing is hidden."""
    if noise is None and key is None:
      raise ValueError('The loss is that of hidden patches: give noise (b, n), or a key to draw it from.')
    if self.decoder_embed is None:
      raise ValueError('The loss needs the decoder, which decoder_embed_dim=0 leaves out.')
    inside = self._inside(images, noise, key)
    return self._loss(images, inside['logits'], inside['mask'])

  def _inside(self, images, noise, key, collect=False):
    encoded = self._encoded(images, noise, key, collect)
    if self.decoder_embed is None:
      return encoded
    grid = self.patch_embed.grid(*images.shape[1:3])
    return encoded | self._decoded(encoded['norm'], encoded['ids_restore'], grid, collect)

  def __call__(self, images, *, key=None):  # (b, h, w, c)
    inside = self._inside(images, None, key)
    return inside['norm'] if self.decoder_embed is None else inside['logits']

  def intermediates(self, images, noise=None):  # (b, h, w, c), (b, n)
    """What is inside, in order, deterministic: 'mask', 'ids_restore' (b, n), 'embed', 'block0', ..., 'norm' of the
    visible tokens, 'decoder_embed', 'decoder_block0', ..., 'decoder_norm' of all, 'logits', and with noise 'loss' ().
    """
    inside = self._inside(images, noise, None, collect=True)
    if noise is None or self.decoder_embed is None:
      return inside
    return inside | {'loss': self._loss(images, inside['logits'], inside['mask'])}


def _fixed_positions(grid, dim):
  """(1, 1 + n, dim): zero for the class token, sine-cosine for the patches."""
  table = positions.sincos_positions(*grid, dim, endpoint=False).reshape(1, -1, dim)
  return jnp.asarray(np.pad(table, ((0, 0), (1, 0), (0, 0))))


VARIANTS = {
  'mae_vit_base_patch16': (MaskedAutoencoder, dict(embed_dim=768, depth=12, num_heads=12)),
  'mae_vit_large_patch16': (MaskedAutoencoder, dict(embed_dim=1024, depth=24, num_heads=16)),
  'mae_vit_huge_patch14': (MaskedAutoencoder, dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16)),
}
# the original release says what the decoder is: 512 wide, 8 blocks deep
ALIASES = {f'{name}_dec512d8b': name for name in VARIANTS}
