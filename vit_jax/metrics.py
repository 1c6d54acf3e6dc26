"""Metrics as sums that add up over batches and hosts, and what they finish as."""

import jax.numpy as jnp
import numpy as np


def classification(logits, label, mask, loss):  # (b, k), (b,), (b,), (b,)
  """Sums over the examples whose mask is 1: loss, top1, top5, examples, and by class (k,) correct and count."""
  logits = logits.astype(jnp.float32)
  own = jnp.take_along_axis(logits, label[:, None], axis=1)  # (b, 1)
  classes = jnp.arange(logits.shape[-1])
  # ties are broken by class index, as argmax does, so that a constant output is not counted as right everywhere
  rank = ((logits > own) | ((logits == own) & (classes < label[:, None]))).sum(-1)  # (b,)
  top1 = (rank == 0) & jnp.isfinite(own[:, 0])  # NaN compares false with all: it is never right
  top5 = (rank < 5) & jnp.isfinite(own[:, 0])
  count = jnp.zeros(logits.shape[-1]).at[label].add(mask)
  return {
    'loss': (jnp.where(mask > 0, loss, 0)).sum(),
    'top1': (top1 * mask).sum(),
    'top5': (top5 * mask).sum(),
    'examples': mask.sum(),
    'correct': jnp.zeros_like(count).at[label].add(top1 * mask),
    'count': count,
  }


def add(batches):
  """The sum of dicts of sums, in float64 on the host, so that no example is lost to rounding."""
  total = {}
  for sums in batches:
    for key, value in sums.items():
      total[key] = total.get(key, 0.0) + np.asarray(value, np.float64)
  return total


def finish(sums):
  """loss (mean, nats), top1 and top5 (fractions), examples, per_class (top-1 by class, None for a class not seen)."""
  n = float(sums['examples'])
  mean = lambda key: float(sums[key]) / n if n else float('nan')
  with np.errstate(invalid='ignore'):
    per_class = sums['correct'] / sums['count']
  return {
    'loss': mean('loss'),
    'top1': mean('top1'),
    'top5': mean('top5'),
    'examples': int(n),
    'per_class': [None if np.isnan(a) else float(a) for a in per_class],
  }
