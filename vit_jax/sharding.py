"""Where arrays live: the mesh of devices, and one table from parameter paths to the mesh axes of their dimensions."""

import math
import re

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import state
from vit_jax.models import placement

AXES = ('data', 'fsdp', 'tensor')

# Pattern of a path -> mesh axis of each dimension. Kernels are cut on their input axis: cut on the output axis, a TPU
# would sum fc1's gradient on every chip instead of scattering it. Stacked layers keep their leading axis whole.
TABLE = (
  (r'(patch_embed|stem)/proj/kernel', ('fsdp', None, None, None)),
  (r'(conv[123]?|conv1/\d|downsample/\d|head/fc)/kernel', (None, None, 'fsdp', None)),
  (r'(qkv|kv)/kernel', ('fsdp', None, 'tensor', None)),
  (r'(qkv|kv)/bias', (None, 'tensor', None)),
  (r'attn_pool/q/kernel', ('fsdp', 'tensor', None)),
  (r'attn_pool/q/bias', ('tensor', None)),
  (r'(attn|attn_pool)/proj/kernel', ('tensor', 'fsdp', None)),
  (r'mlp(_tokens|_channels)?/(fc1|fc1_g|fc1_x)/kernel', ('fsdp', 'tensor')),
  (r'mlp(_tokens|_channels)?/(fc1|fc1_g|fc1_x)/bias', ('tensor',)),
  (r'mlp(_tokens|_channels)?/fc2/kernel', (('tensor', 'fsdp'), None)),
  (r'(head|head_dist|pre_logits|decoder_embed|decoder_pred)/kernel', ('fsdp', None)),
  (r'(in_proj|attn_out_proj|mlp_out_proj|out_proj)/kernel', ('fsdp', None)),
  (r'(q_bias|k_bias|v_bias|gamma_1|gamma_2|relative_position_bias_table|mask_token|decoder_pos_embed)', ()),
  (r'(cls_token|reg_token|dist_token|mlp_bias|lambda_[qk][12]|pos_embed|latent|scale|bias|gamma)', ()),
  (r'(lora_a|lora_b|lora_scale)', ()),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices=None):
  """The mesh of all devices, axes (data, fsdp, tensor); one of the sizes may be -1 and takes what is left.

  devices: None = those of jax.devices(); a plan gives some that are not here.
  Raises ValueError if the sizes do not multiply to the number of devices.
  """
  sizes, n = [data, fsdp, tensor], jax.device_count() if devices is None else len(devices)
  if sizes.count(-1) > 1 or any(size != -1 and size < 1 for size in sizes):
    raise ValueError(f'mesh is data={data}, fsdp={fsdp}, tensor={tensor}; give sizes from 1, and -1 at most once.')
  known = math.prod(size for size in sizes if size != -1)
  sizes = [n // known if size == -1 else size for size in sizes]
  if math.prod(sizes) != n:
    raise ValueError(f'mesh data={data}, fsdp={fsdp}, tensor={tensor} does not multiply to the {n} devices there are.')
  # Auto: since jax 0.9 make_mesh is Explicit by default, which refuses to broadcast a class token over a sharded batch.
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_batch(mesh, **batches):
  """Raises ValueError for a batch size that the devices of the data and fsdp axes do not divide."""
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  for name, size in batches.items():
    if size % parts:
      near = max(size // parts, 1) * parts
      raise ValueError(f'{name}={size} does not divide over {parts} devices; {near} would, or change mesh.')


def batch(mesh):
  """The sharding of a batch: its first axis over data and fsdp."""
  return NamedSharding(mesh, placement.BATCH)


def replicated(mesh):
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def axes(path):
  """The table's row for a parameter's path, or None: no pattern names it."""
  parts = path.split('/')
  for pattern, row in TABLE:
    if re.search(rf'(^|/){pattern}$', path):
      return (None, *row) if 'stacked' in parts and row else row
  return None


def _spec(mesh, path, shape):
  row = axes(path) or ()
  spec = []
  for size, axis in zip(shape, row if len(row) == len(shape) else ()):  # a stranger's is held whole
    if axis == 'tensor' and size % mesh.shape['tensor']:
      raise ValueError(
        f'{path} has {size} to split over tensor={mesh.shape["tensor"]}; choose a mesh.tensor that divides.'
      )
    names = axis if isinstance(axis, tuple) else (axis,) if axis else ()
    spec.append(axis if size % math.prod(mesh.shape[name] for name in names) == 0 else None)
  return NamedSharding(mesh, P(*spec))


def shardings(mesh, tree):
  """The sharding of each array of a training state: a leaf whose dict keys end in a parameter's path lies as it does.

  So the optimizer's moments and the averaged weights are cut like their parameters, and counters are replicated.
  """
  whole = {**state.flatten(tree['params']), **state.flatten(tree.get('frozen', {}))}
  shapes = {path: leaf.shape for path, leaf in whole.items()}

  def place(key_path, leaf):
    keys = [str(entry.key) for entry in key_path if isinstance(entry, jax.tree_util.DictKey)]
    for i in range(len(keys)):
      path = '/'.join(keys[i:])
      if shapes.get(path) == leaf.shape:
        return _spec(mesh, path, leaf.shape)
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(place, tree)


def abstract(tree, places):
  """The tree as ShapeDtypeStructs with their shardings: what a compilation or a restore needs to know."""
  return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, places)
