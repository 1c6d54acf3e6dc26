"""The MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601): dense layers over the patches, then over the channels.

It mixes a fixed number of patches, so a model works for the image size it was made for and for no other.
"""

from flax import nnx
import jax.numpy as jnp

from vit_jax.models import blocks, layers
from vit_jax.models.vit import Size, pair

POOLS = ('avg', '')


class MixerBlock(nnx.Module):
  """(b*n, d) -> (b*n, d): x + mlp_tokens(norm1(x)) along the n patches, then x + mlp_channels(norm2(x)) (eq. 1)."""

  def __init__(self, dim, tokens, *, hidden, act_layer, norm_eps, drop, rngs):  # hidden: of the patches, the channels
    self.norm1 = layers.LayerNorm(dim, eps=norm_eps, rngs=rngs)
    self.mlp_tokens = layers.Mlp(tokens, hidden[0], act_layer=act_layer, drop=drop, rngs=rngs)
    self.norm2 = layers.LayerNorm(dim, eps=norm_eps, rngs=rngs)
    self.mlp_channels = layers.Mlp(dim, hidden[1], act_layer=act_layer, drop=drop, rngs=rngs)

  def __call__(self, x, n, *, rate=None, key=None):
    y = self.norm1(x).reshape(-1, n, x.shape[-1]).swapaxes(1, 2)  # (b, d, n)
    y = self.mlp_tokens(y, key=layers.fold(key, 0)).swapaxes(1, 2).reshape(x.shape)
    x = x + blocks.drop_path(y, n, rate, layers.fold(key, 1))
    y = self.mlp_channels(self.norm2(x), key=layers.fold(key, 2))
    return x + blocks.drop_path(y, n, rate, layers.fold(key, 3))


class MlpMixer(nnx.Module):
  """Images (b, h, w, in_chans) of img_size, normalised floats -> logits (b, num_classes).

  Arguments (timm's words):
    img_size: int or (h, w), pixels, the only size that it takes.   patch_size: int or (h, w), pixels.
    num_blocks, embed_dim: depth, width.   mlp_ratio: hidden units of the (patches', channels') layers / width.
    num_classes: 0 = no head, a call gives what the head would read (b, d).   global_pool: 'avg', '' logits per patch.
    act_layer: layers.ACTIVATIONS ('gelu_tanh' in the original release).   norm_eps: epsilon of all norms.
    drop_rate (head), proj_drop_rate, drop_path_rate (rises linearly with depth): probabilities, need a key to act.
    scan, remat: how it is computed, see blocks.Blocks.   attention: there is none to compute.

  Raises ValueError for images of another size, in one line.
  """

  def __init__(
    self, *, num_classes=1000, img_size: Size = 224, in_chans=3, patch_size: Size = 16, num_blocks=8, embed_dim=512,
    mlp_ratio: tuple[float, float] = (0.5, 4.0), act_layer='gelu', norm_eps=1e-6, drop_rate=0.0, proj_drop_rate=0.0,
    drop_path_rate=0.0, global_pool='avg', scan=False, remat='none', attention='auto', rngs,
  ):  # fmt: skip
    if global_pool not in POOLS:
      raise ValueError(f"global_pool is {global_pool!r}; an MLP-Mixer has no class token: choose 'avg' or ''.")
    if attention not in ('xla', 'auto'):
      raise ValueError(f"An MLP-Mixer has no attention to compute by {attention!r}; leave attention='auto'.")
    self.global_pool, self.drop_rate = global_pool, drop_rate
    self.stem = layers.PatchEmbed(pair(patch_size), in_chans, embed_dim, rngs=rngs)
    self.grid = self.stem.grid(*pair(img_size))
    ratios = (mlp_ratio, mlp_ratio) if isinstance(mlp_ratio, (int, float)) else mlp_ratio
    hidden = tuple(int(ratio * embed_dim) for ratio in ratios)

    def block(rngs):
      return MixerBlock(
        embed_dim, self.grid[0] * self.grid[1], hidden=hidden, act_layer=act_layer, norm_eps=norm_eps,
        drop=proj_drop_rate, rngs=rngs)  # fmt: skip

    self.blocks = blocks.Blocks(block, num_blocks, drop_path_rate=drop_path_rate, scan=scan, remat=remat, rngs=rngs)
    self.norm = layers.LayerNorm(embed_dim, eps=norm_eps, rngs=rngs)
    head = lambda: nnx.Linear(embed_dim, num_classes, kernel_init=layers.zeros, bias_init=layers.zeros, rngs=rngs)
    self.head = nnx.data(head() if num_classes else None)

  def embed(self, images):  # (b, h, w, c)
    """Patches that the first block reads, (b, n, d)."""
    h, w = images.shape[1:3]
    if self.stem.grid(h, w) != self.grid:
      want = 'x'.join(str(n * p) for n, p in zip(self.grid, self.stem.patch_size))
      raise ValueError(f'This MLP-Mixer mixes the patches of {want} images, not of {h}x{w}; resize them to {want}.')
    return self.stem(images).reshape(images.shape[0], self.grid[0] * self.grid[1], -1)

  def _encode(self, images, key, collect):
    """Patches after the last norm, and with collect what came before: {'embed', 'block0', ..., 'norm'}."""
    x = self.embed(images)
    inside = {'embed': x}
    x, after = blocks.through(self.blocks, x, key=key, collect=collect)
    x = self.norm(x)
    return x, inside | after | {'norm': x}

  def features(self, images, *, key=None):  # (b, h, w, c)
    """Patches after the last norm, (b, n, d)."""
    return self._encode(images, key, collect=False)[0]

  def outputs(self, x, *, key=None):  # (b, n, d) of features
    """{'pre_logits': what the head reads, 'logits': what it gives}; the same without a head."""
    if self.global_pool == 'avg':
      x = x.mean(axis=1, dtype=jnp.float32).astype(x.dtype)
    y = layers.dropout(x, self.drop_rate, key)
    return {'pre_logits': x, 'logits': y if self.head is None else self.head(y)}

  def __call__(self, images, *, key=None):  # (b, h, w, c)
    x = self.features(images, key=layers.fold(key, 0))
    return self.outputs(x, key=layers.fold(key, 1))['logits']

  def intermediates(self, images):  # (b, h, w, c)
    """What is inside, in order: 'embed', 'block0', ..., 'norm' (b, n, d), 'pre_logits', 'logits'; deterministic."""
    x, inside = self._encode(images, None, collect=True)
    return inside | self.outputs(x)


SIZES = {'s': (8, 512), 'b': (12, 768), 'l': (24, 1024)}  # num_blocks, embed_dim
VARIANTS = {
  f'mixer_{size}{patch}_224': (MlpMixer, dict(patch_size=patch, num_blocks=depth, embed_dim=dim))
  for size, (depth, dim) in SIZES.items()
  for patch in (16, 32)
}
# the names of the original release
ALIASES = {f'Mixer-{size.upper()}_{patch}': f'mixer_{size}{patch}_224' for size in SIZES for patch in (16, 32)}
