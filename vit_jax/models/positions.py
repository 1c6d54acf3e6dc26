"""Positions of patches: embeddings resampled from one grid to another, fixed sine-cosine, relative, and rotary ones.

How a checkpoint's positions are resampled belongs to its numerics, so every method the releases used has a name here.
Sources: Keys 1981, "Cubic convolution interpolation for digital image processing", eq. 4; Bao et al. 2021,
arXiv:2106.08254, and its released code (relative positions); Simeoni et al. 2025, arXiv:2508.10104 (rotary positions).
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


def sincos_positions(rows, cols, dim, temperature=10_000.0, *, endpoint=True):  # -> (rows, cols, dim) float32
  """Fixed 2-D sine-cosine embeddings: [sin x, cos x, sin y, cos y], a quarter of dim each (arXiv:2205.01580).

  endpoint: whether the last frequency is 1 / temperature, or the one before it (masked autoencoders).
  """
  if dim % 4 or dim < 8:
    raise ValueError(f'sin-cos positions need an embed_dim that is a multiple of 4 and at least 8, not {dim}.')
  omega = temperature ** -np.linspace(0, 1, dim // 4, endpoint=endpoint)
  y, x = (np.einsum('g,k->gk', np.arange(size), omega) for size in (rows, cols))
  y, x = (np.concatenate([np.sin(t), np.cos(t)], axis=-1) for t in (y, x))
  x, y = np.broadcast_to(x, (rows, *x.shape)), np.broadcast_to(y[:, None], (rows, cols, y.shape[-1]))
  return np.concatenate([x, y], axis=-1).astype(np.float32)


RELATIVE_RESIZE = ('geometric', 'bilinear_plain')


def relative_count(rows, cols):
  """Rows of a table of relative positions: one for each offset of two patches, three for pairs with the class token."""
  return (2 * rows - 1) * (2 * cols - 1) + 3


def relative_index(rows, cols):  # -> (n, n) int32, n = 1 + rows * cols
  """The row of such a table for each (query, key) of [class token, patches]."""
  y, x = np.divmod(np.arange(rows * cols), cols)
  offsets = (y[:, None] - y + rows - 1) * (2 * cols - 1) + (x[:, None] - x + cols - 1)
  index = np.pad(offsets, ((1, 0), (1, 0)))
  count = relative_count(rows, cols)
  index[0], index[:, 0], index[0, 0] = count - 3, count - 2, count - 1  # from the class token, to it, itself
  return index.astype(np.int32)


def relative_resize(old, new, method):
  """The (rows, columns) matrices that resample a table for the grid `old` to the grid `new`; None if it stays.

  geometric: linear between places that lie the denser, the nearer the centre (BEiT's release; timm, without scipy).
  bilinear_plain: half-pixel, not antialiased (Hugging Face).
  """
  if method not in RELATIVE_RESIZE:
    raise ValueError(f'rel_pos_resize is {method!r}; choose one of {", ".join(RELATIVE_RESIZE)}.')
  if method == 'bilinear_plain':
    old = old[::-1]  # Hugging Face takes the columns of a table for its rows, which shows where it is not square
  if tuple(old) == tuple(new):
    return None
  matrix = _geometric_matrix if method == 'geometric' else functools.partial(resize_matrix, method=method)
  return tuple(matrix(2 * a - 1, 2 * b - 1) for a, b in zip(old, new, strict=True))


def resample_relative(table, matrices):  # (relative_count(*old), h) -> (relative_count(*new), h)
  """A table of relative positions resampled by what relative_resize gave; the class token's three rows are kept."""
  if matrices is None:
    return table
  rows, cols = matrices  # (new, old)
  grid = table[:-3].reshape(rows.shape[1], cols.shape[1], -1).astype(jnp.float32)
  grid = jnp.einsum('ri,cj,ijh->rch', rows, cols, grid, precision=jax.lax.Precision.HIGHEST)
  return jnp.concatenate([grid.reshape(-1, table.shape[1]).astype(table.dtype), table[-3:]])


def resize_relative_positions(table, old, new, method='geometric'):  # (relative_count(*old), h)
  """A table of relative positions for the grid `old` as one for the grid `new`; methods: see relative_resize."""
  return resample_relative(table, relative_resize(old, new, method))


def _geometric_matrix(old, new):
  """The (new, old) matrix of that interpolation: places grow apart by a ratio at which `old` of them span `new`."""
  half, low, high = old // 2, 1.01, 1.5
  while high - low > 1e-6:
    ratio = (low + high) / 2
    reach = (1 - ratio**half) / (1 - ratio)
    low, high = (low, ratio) if reach > new // 2 else (ratio, high)
  steps = np.cumsum(ratio ** np.arange(half))
  places = np.concatenate([-steps[::-1], [0], steps])
  return np.stack([np.interp(np.arange(new) - new // 2, places, row) for row in np.eye(old)], 1).astype(np.float32)


def rotary_table(rows, cols, dim, *, prefix, temperature, rotate_half):  # -> 2 x (prefix + rows * cols, dim) float32
  """(sin, cos) by which rotate turns the tokens of a grid: dim / 4 frequencies for each axis.

  Patch centres are spread over [-1, 1] on each axis, whatever the size (DINOv3). Prefix tokens are not turned.
  """
  if dim % 4:
    raise ValueError(f'Rotary positions need heads of a multiple of 4 channels, not {dim}; choose another num_heads.')
  periods = temperature ** (4 * np.arange(dim // 4) / dim)
  y, x = (2 * (np.arange(n) + 0.5) / n - 1 for n in (rows, cols))
  places = np.stack(np.meshgrid(y, x, indexing='ij'), -1).reshape(rows * cols, 2, 1)
  angles = np.pad((2 * np.pi * places / periods).reshape(rows * cols, dim // 2), ((prefix, 0), (0, 0)))
  angles = np.tile(angles, 2) if rotate_half else np.repeat(angles, 2, axis=1)
  return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)


def rotate(x, sin, cos, *, rotate_half):  # (b, n, h, c), (n, c), (n, c)
  """Pairs of channels turned by the angles of their token, in float32: (i, i + c/2), or (i, i + 1) for even i."""
  y = x.astype(jnp.float32)
  if rotate_half:
    turned = jnp.concatenate([-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]], -1)
  else:
    turned = jnp.stack([-y[..., 1::2], y[..., ::2]], -1).reshape(y.shape)
  return (y * cos[:, None] + turned * sin[:, None]).astype(x.dtype)
