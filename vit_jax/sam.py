"""Gradients that lead to flat minima, SAM and GSAM, as a wrapper of the gradient function; and how sharp a minimum is.

SAM climbs from the weights w to w + rho g / |g|, along the gradient g of the loss, and descends from w along the
gradient p that it finds there. GSAM descends along p - alpha * (g without its part along p): this also lowers the
surrogate gap, the loss above less the loss at w, and to first order leaves the loss above as it is.

Sources: SAM, Foret et al. 2020, arXiv:2010.01412, equations 2 and 3, groups: its m-sharpness; GSAM, Zhuang et
al. 2022, arXiv:2203.08065, algorithm 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from vit_jax.models import placement

TINY = 1e-30  # what divides by a norm divides by no less: a gradient that is zero stays zero


@dataclasses.dataclass(frozen=True)
class Sam:
  """What optim.sam means; with rho=0 the gradient is the plain one.

  rho: how far to climb, in the Euclidean norm of all trained parameters as one vector: 0.05 is usual for ResNets, 0.1
  to 0.6 for ViTs.   rho_min: where the radius is to follow the learning rate, which has it at its end, and rho at its
  peak; None = always rho.   alpha: of GSAM, 0.1 to 1; 0 = SAM.   groups: into how many parts of consecutive rows the
  batch is cut; each climbs by its own gradient, and what they find is averaged; 1 = the whole batch climbs as one. The
  papers' form, a part for each device, is groups = mesh.data; a multiple gives a device several, one after another, so
  that groups=8 means the same on 1, 2, 4 and 8 devices.

  Raises ValueError for numbers out of range, and for any of these without rho.
  """

  rho: float = 0.0
  rho_min: float | None = None
  alpha: float = 0.0
  groups: int = 1

  def __post_init__(self):
    if not (0 <= self.rho < float('inf') and 0 <= self.alpha < float('inf')):
      raise ValueError(f'optim.sam.rho={self.rho}, alpha={self.alpha}: finite numbers from 0 are wanted.')
    if self.rho_min is not None and not 0 <= self.rho_min <= self.rho:
      raise ValueError(f'optim.sam.rho_min is {self.rho_min}; it must be between 0 and rho={self.rho}, or None.')
    if self.groups < 1:
      raise ValueError(f'optim.sam.groups is {self.groups}; 1 is the whole batch.')
    if not self.rho and (self.alpha or self.groups > 1):
      raise ValueError(
        f'optim.sam.alpha={self.alpha}, groups={self.groups} mean nothing without optim.sam.rho; 0.05 is usual.'
      )

  def radius(self, share):
    """How far to climb where the learning rate is at its end, share=0, at its peak, 1, or between."""
    return self.rho if self.rho_min is None else self.rho_min + (self.rho - self.rho_min) * share


def check(sam, mesh, *, batch, accumulate=1):
  """Raises ValueError for groups that this mesh cannot form or that the batch does not fill."""
  if sam.groups == 1:
    return
  axes = mesh.shape
  if axes['fsdp'] * axes['tensor'] > 1:
    raise ValueError(
      f'optim.sam.groups={sam.groups} needs whole weights on every device, and the mesh has fsdp={axes["fsdp"]}, '
      f'tensor={axes["tensor"]}; use groups=1, or mesh.data alone.'
    )
  if sam.groups % axes['data']:
    raise ValueError(
      f'optim.sam.groups={sam.groups} does not spread over {axes["data"]} devices; use 1 or a multiple of them.'
    )
  if batch % (sam.groups * accumulate):
    parts = f'optim.sam.groups={sam.groups} of step.accumulate={accumulate} micro-batches'
    raise ValueError(f'batch={batch} does not split into {parts}; a multiple of {sam.groups * accumulate} would.')


def wrapped(grad_fn, sam, share, mesh=None):
  """grad_fn that also takes the step, gives a dict of values for the loss, and with rho the gradient of SAM or GSAM.

  grad_fn: (trainable, frozen, rest, batch, key) -> ((loss, rest), grads), over the whole batch.   sam: see Sam.
  share: step -> where the learning rate is between its end, 0, and its peak, 1.   mesh: of the devices, for groups.

  Gives (trainable, frozen, rest, batch, key, step) -> (({'loss'[, 'surrogate_gap']}, rest), grads). The loss is that
  at the weights. Both passes use the same key, and rest is the second's, begun from the given one. Only what is
  trained moves. In groups, part i has the key fold_in(key, i), and floating-point rest is averaged.
  """

  def plain(trainable, frozen, rest, batch, key, step):
    (loss, rest), grads = grad_fn(trainable, frozen, rest, batch, key)
    return ({'loss': loss}, rest), grads

  def sharp(trainable, frozen, rest, batch, key, step):
    (loss, _), grads = grad_fn(trainable, frozen, rest, batch, key)
    above = climbed(trainable, grads, sam.radius(share(step)))
    (higher, rest), ascended = grad_fn(above, frozen, rest, batch, key)
    return ({'loss': loss, 'surrogate_gap': higher - loss}, rest), descent(grads, ascended, sam.alpha)

  if not sam.rho:
    return plain
  return sharp if sam.groups == 1 else _grouped(sharp, sam.groups, mesh)


def climbed(params, grads, rho):
  """params + rho * grads / |grads|, where |grads| is over all arrays; the dtypes are those of params."""
  scale = rho / jnp.maximum(norm(grads), TINY)
  return jax.tree.map(lambda p, g: p + (scale * g).astype(p.dtype), params, grads)


def descent(grads, ascended, alpha):
  """ascended - alpha * (the part of grads orthogonal to ascended): algorithm 1 of GSAM; alpha 0 is SAM."""
  if not alpha:
    return ascended
  along = dot(grads, ascended) / jnp.maximum(dot(ascended, ascended), TINY)
  return jax.tree.map(lambda g, p: (p - alpha * (g - along * p)).astype(p.dtype), grads, ascended)


def dot(one, two):
  """The inner product of two trees as vectors, float32."""
  products = jax.tree.map(lambda a, b: (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(), one, two)
  return sum(jax.tree.leaves(products))


def norm(tree):
  """The Euclidean norm of all arrays of a tree as one vector, float32."""
  return jnp.sqrt(dot(tree, tree))


def _grouped(fn, groups, mesh):
  """fn on each of `groups` parts of the batch, by itself; the mean of what they give."""
  parts = groups // mesh.shape['data']  # of a device

  def local(trainable, frozen, rest, batch, key, step):
    first = jax.lax.axis_index('data') * parts
    cut = lambda a: a.reshape(parts, a.shape[0] // parts, *a.shape[1:])

    def group(i, rows):
      with placement.on(mesh, spread=False):
        return fn(trainable, frozen, rest, rows, jax.random.fold_in(key, i), step)

    rows = jax.tree.map(cut, batch)
    shapes = jax.eval_shape(group, 0, jax.tree.map(lambda a: a[0], rows))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    add = lambda total, xs: (jax.tree.map(_add, total, group(*xs)), None)
    total, _ = jax.lax.scan(add, zero, (first + jnp.arange(parts), rows))
    return jax.tree.map(lambda a: jax.lax.psum(a, 'data') / groups if _is_float(a) else a, total)

  # Unchecked: else jax, seeing weights that are alike on all devices, would sum their gradient over devices by itself.
  return jax.shard_map(local, mesh=mesh, in_specs=(P(), P(), P(), P('data'), P(), P()), out_specs=P(), check_vma=False)


def _is_float(a):
  return jnp.issubdtype(a.dtype, jnp.floating)


def _add(total, new):
  """Their sum; of what has no mean, a counter or a key, the new one."""
  return total + new if _is_float(new) else new


def sharpness(loss_fn, params, batches, *, rho=0.05, points=4):
  """How far the loss rises at most within rho of the parameters along its gradient, the mean over batches: a float.

  loss_fn: (params, batch) -> loss.   params: a tree of arrays.   batches: some of them; more rows in each measure the
  loss of the whole set, fewer that of small groups, which is sharper.   rho: a Euclidean norm, as in Sam.
  points: places where the loss is taken on the way, at rho / points, ..., rho.
  """

  @jax.jit
  def rise(params, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    radii = rho * jnp.arange(1, points + 1) / points
    losses = jax.lax.map(lambda radius: loss_fn(climbed(params, grads, radius), batch), radii)
    return jnp.maximum(losses.max() - loss, 0)

  rises = [float(rise(params, batch)) for batch in batches]
  return sum(rises) / len(rises)
