"""Where a model is computed, as far as the way to write it depends on that: the platform, and how rows are spread.

A training step says so once, for all that is traced inside it: `with placement.on(mesh): ...`. The mesh may be of
devices that are not here, as for a plan. Outside of it a model is computed by the one device of jax's default.
"""

import contextlib
import contextvars

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = P(('data', 'fsdp'))  # the axes of a mesh over which the images of a batch are spread
_MESH = contextvars.ContextVar('mesh', default=None)
_SPREAD = contextvars.ContextVar('spread', default=False)


@contextlib.contextmanager
def on(mesh, spread=True):
  """Everything traced inside is for the devices of a mesh, None = jax's default device.

  spread: whether the rows that a function sees are those of all devices; not so inside jax.shard_map.
  """
  tokens = _MESH.set(mesh), _SPREAD.set(spread and mesh is not None and mesh.size > 1)
  try:
    yield
  finally:
    _MESH.reset(tokens[0])
    _SPREAD.reset(tokens[1])


def platform():
  """'cpu', 'gpu' or 'tpu': for what is being traced, a program of this platform."""
  mesh = _MESH.get()
  name = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  return 'gpu' if name in ('cuda', 'rocm') else name


def rows(x):  # (b, ...) or (b*n, ...)
  """x with its rows over the devices that hold the batch, and whole in every other axis.

  Without this the partitioner may let the weights' cut win: it then gathers the activations of the whole batch, and
  sorts them again by an all-to-all, where gathering the weights of one layer is a hundredth of the bytes.
  """
  return jax.lax.with_sharding_constraint(x, NamedSharding(_MESH.get(), BATCH)) if _SPREAD.get() else x


def whole(kernel):
  """A kernel, in the dtype of the computation, whole on every device of a mesh that also cuts heads.

  For a kernel that no activation is cut to fit: left alone, the partitioner would rather cut the activations for it.
  """
  mesh = _MESH.get()
  if not _SPREAD.get() or mesh.shape['tensor'] == 1:
    return kernel  # gathered for its product anyway, and its gradient is scattered, not summed on every device
  return jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, P()))


def by_device(function, *arrays):  # (b, n, h, c) each
  """function(*arrays) -> (b, n, h, c), each device doing its own images and heads, for what jax cannot partition."""
  if not _SPREAD.get():
    return function(*arrays)
  spec = P(*BATCH, None, 'tensor', None)
  return jax.shard_map(
    function, mesh=_MESH.get(), in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False
  )(*arrays)  # fmt: skip
