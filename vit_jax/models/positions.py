"""Position embeddings: resampled from one grid of patches to another, and the fixed sine-cosine ones.

How a checkpoint's positions are resampled belongs to its numerics, so every method the releases used has a name here.
Source of the cubic kernel: Keys 1981, "Cubic convolution interpolation for digital image processing", eq. 4.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def resize_matrix(old, new, method):
  """The (new, old) float32 matrix that resamples `old` values to `new`; see resize_positions for the methods."""
  if method == 'corner':
    where = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(where[:, None] - np.arange(old))).astype(np.float32)
  kernel, radius = {
    'bicubic': (functools.partial(_cubic, a=-0.5), 2),
    'bicubic_plain': (functools.partial(_cubic, a=-0.75), 2),
    'bilinear_plain': (lambda t: np.maximum(0, 1 - np.abs(t)), 1),
  }[method]
  stretch = max(old / new, 1) if method == 'bicubic' else 1  # antialias: widen when shrinking
  centre = (np.arange(new) + 0.5) * old / new - 0.5
  taps = np.floor(centre)[:, None].astype(int) + np.arange(
    -math.ceil(radius * stretch), math.ceil(radius * stretch) + 2
  )
  weights = kernel((taps - centre[:, None]) / stretch)
  if method == 'bicubic':
    weights = np.where((taps >= 0) & (taps < old), weights, 0)  # torch drops taps outside ...
  matrix = np.zeros((new, old))
  np.add.at(matrix, (np.arange(new)[:, None], np.clip(taps, 0, old - 1)), weights)  # ... or repeats the edge
  return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def _cubic(t, a):
  """Keys' cubic convolution kernel at distance t."""
  t = np.abs(t)
  near, far = ((a + 2) * t - (a + 3)) * t**2 + 1, a * (((t - 5) * t + 8) * t - 4)
  return np.where(t < 1, near, np.where(t < 2, far, 0))


POSITION_RESIZE = ('bicubic', 'bicubic_plain', 'bilinear_plain', 'corner')


def resize_positions(grid, size, method):  # (rows, cols, d) -> (*size, d)
  """A grid of position embeddings resampled to `size`, in float32 and back to the grid's dtype.

  bicubic: antialiased, half-pixel centres (timm). bicubic_plain, bilinear_plain: without antialias (Hugging Face; timm
  reading .npz). corner: linear between aligned corners (the original ViT: 2 to 4 gives 0, 1/3, 2/3, 1).
  """
  if grid.shape[:2] == tuple(size):
    return grid
  rows, cols = (resize_matrix(old, new, method) for old, new in zip(grid.shape[:2], size, strict=True))
  # HIGHEST: positions are a few numbers that every token reads; an accelerator's default would round them to bf16.
  out = jnp.einsum('ri,cj,ijd->rcd', rows, cols, grid.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
  return out.astype(grid.dtype)


def resize_table(table, old, new, *, prefix, method):  # (1, prefix + rows*cols, d)
  """A table of positions for the patch grid `old` as one for the grid `new`; prefix rows have no place and are kept."""
  if tuple(old) == tuple(new):
    return table
  grid = resize_positions(table[0, prefix:].reshape(*old, -1), new, method)
  return jnp.concatenate([table[:, :prefix], grid.reshape(1, new[0] * new[1], -1)], axis=1)


def sincos_positions(rows, cols, dim, temperature=10_000.0):  # -> (rows, cols, dim) float32
  """Fixed 2-D sine-cosine embeddings: [sin x, cos x, sin y, cos y], a quarter of dim each (arXiv:2205.01580)."""
  if dim % 4 or dim < 8:
    raise ValueError(f'sin-cos positions need an embed_dim that is a multiple of 4 and at least 8, not {dim}.')
  omega = temperature ** -(np.arange(dim // 4) / (dim // 4 - 1))
  y, x = (np.einsum('g,k->gk', np.arange(size), omega) for size in (rows, cols))
  y, x = (np.concatenate([np.sin(t), np.cos(t)], axis=-1) for t in (y, x))
  x, y = np.broadcast_to(x, (rows, *x.shape)), np.broadcast_to(y[:, None], (rows, cols, y.shape[-1]))
  return np.concatenate([x, y], axis=-1).astype(np.float32)
