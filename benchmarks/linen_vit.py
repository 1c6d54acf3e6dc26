"""The plain reference: a Vision Transformer in Flax Linen and its training step, as a competent user writes them.

It uses Linen's own layers throughout and nothing of vit_jax, so that what our step costs is measured against what a
reader of Linen's guides would have. Architecture: Dosovitskiy et al., arXiv:2010.11929, section 3.1, equations 1 to 4.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

SIZES = {
  'tiny': dict(embed_dim=192, depth=12, num_heads=3, mlp_dim=768),
  'small': dict(embed_dim=384, depth=12, num_heads=6, mlp_dim=1536),
}


class Block(nn.Module):
  """Tokens after attention and MLP, each on the normalised residual stream."""

  num_heads: int
  mlp_dim: int
  head_dim: int
  approximate: bool  # True: tanh GELU

  @nn.compact
  def __call__(self, x):  # (b, n, d) -> (b, n, d)
    y = nn.LayerNorm(epsilon=1e-6)(x)
    x = x + nn.MultiHeadDotProductAttention(self.num_heads, qkv_features=self.num_heads * self.head_dim)(y)
    y = nn.LayerNorm(epsilon=1e-6)(x)
    y = nn.gelu(nn.Dense(self.mlp_dim)(y), approximate=self.approximate)
    return x + nn.Dense(x.shape[-1])(y)


class ViT(nn.Module):
  """Logits from the class token of an image cut into patches."""

  num_classes: int
  patch_size: int
  embed_dim: int
  depth: int
  num_heads: int
  mlp_dim: int
  head_dim: int = 0  # 0: embed_dim / num_heads
  approximate: bool = False

  @nn.compact
  def __call__(self, images):  # (b, h, w, c) -> (b, k)
    p, d = self.patch_size, self.embed_dim
    x = nn.Conv(d, (p, p), strides=(p, p), padding='VALID')(images)
    x = x.reshape(x.shape[0], -1, d)  # (b, n, d)
    cls = self.param('cls', nn.initializers.zeros, (1, 1, d))
    x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
    x = x + self.param('positions', nn.initializers.normal(0.02), (1, x.shape[1], d))
    for _ in range(self.depth):
      x = Block(self.num_heads, self.mlp_dim, self.head_dim or d // self.num_heads, self.approximate)(x)
    x = nn.LayerNorm(epsilon=1e-6)(x[:, 0])
    return nn.Dense(self.num_classes)(x)


def make(model, tx, image, *, seed=0):  # uint8 (1, h, w, c)
  """(params, opt_state, step) of a Linen model; step(params, opt_state, batch) is jitted and donates its state."""

  def loss_fn(params, batch):
    logits = model.apply({'params': params}, normalise(batch['image']))
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()

  def step(params, opt_state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  params = model.init(jax.random.key(seed), jnp.zeros(image.shape))['params']  # compiled as a whole it takes longer
  return params, tx.init(params), jax.jit(step, donate_argnums=(0, 1))


def normalise(images):  # uint8 (b, h, w, c) -> float32, -1..1
  """Images on the scale that a ViT is trained on."""
  return images.astype(jnp.float32) / 127.5 - 1
