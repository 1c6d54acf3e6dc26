"""One batch on the device, inside the jitted step: uint8 pictures in, augmented and normalised pictures out.

Everything is a pure function of a key and the global batch, so 1 and 8 devices, and a resumed run, see the same
pictures. Order in a step: flip (still uint8), mixup (float32, 0..255), normalise (to the compute dtype).

mixup: Zhang et al., mixup: Beyond Empirical Risk Minimization, arXiv:1710.09412, equation (1).
"""

import jax
import jax.numpy as jnp


def normalise(images, mean, std, dtype):  # (b, h, w, c), (c,), (c,) -> (b, h, w, c)
  """Pictures in the model's units, (x / 255 - mean) / std, from pixels 0..255.

  Args:
    images: uint8 or float32 (b, h, w, c), 0..255.
    mean, std: c floats each, in units of pixel / 255: a preprocessing row's.
    dtype: what comes out. The arithmetic is float32 in any case: bfloat16 cannot hold 256 levels.
  """
  mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
  return ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)


def mirror(key, images):  # (b, h, w, c) -> (b, h, w, c)
  """Each picture mirrored left to right with probability one half; the dtype stays."""
  mirrored = jax.random.bernoulli(key, shape=images.shape[:1])  # (b,)
  return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def mix(key, images, targets, alpha):  # (b, h, w, c), (b, k) -> (b, h, w, c), (b, k)
  """Every example blended with the one before it in the batch, in both arguments by one weight of the whole step.

  weight ~ Beta(alpha, alpha); row i becomes weight * x[i] + (1 - weight) * x[i - 1], row 0 wraps round to the last.
  Both come out float32, images in 0..255.
  """
  weight = jax.random.beta(key, alpha, alpha, dtype=jnp.float32)  # ()
  blend = lambda x: weight * x + (1 - weight) * jnp.roll(x, 1, axis=0)
  return blend(images.astype(jnp.float32)), blend(targets.astype(jnp.float32))


def make(*, flip=True, mixup=0.0):
  """augment(key, batch) -> batch, for {'image': uint8 (b, h, w, c), 'target': float32 (b, k), ...}.

  Args:
    flip: mirror each picture with probability one half.
    mixup: alpha of the Beta distribution, 0 for none; 0.2 and 0.8 are usual.

  The image stays uint8 without mixup and is float32 in 0..255 with it; other entries of the batch pass through.
  """
  if mixup < 0:
    raise ValueError(f'mixup={mixup} is not the parameter of a Beta distribution; give 0 for no mixup, or say 0.2.')

  def augment(key, batch):
    images, targets = batch['image'], batch['target']
    # One number for each augmentation, for ever: a new one must not change what the old ones draw.
    if flip:
      images = mirror(jax.random.fold_in(key, 0), images)
    if mixup:
      images, targets = mix(jax.random.fold_in(key, 1), images, targets, mixup)
    return {**batch, 'image': images, 'target': targets}

  return augment
