"""Google's .npz files (ViT, hybrids, Mixer, LiT, big_vision, BiT): which array of ours each of theirs is, both ways.

A file comes in many spellings; normal() gives it in one, that of Flax Linen, and files are written in that one. What a
file is, describe_npz.py reads from its shapes. Formats: github.com/google-research/vision_transformer, big_vision and
big_transfer (BiT).
"""

from collections.abc import Mapping
import re

import jax
import ml_dtypes

from vit_jax import convert, describe_npz, models, state
from vit_jax.describe_npz import OUTSIDE, POSITIONS

describe, looks, ignored = describe_npz.describe, describe_npz.looks, describe_npz.ignored

# Ours -> theirs, of modules and single parameters. {0} is the first number of a path; {stage} and {unit} are the first
# two, counted from 1. Names with commas between them are several arrays, of which ours is the stack.
_TRANSFORMER = {
  'cls_token': 'cls',
  'pos_embed': POSITIONS,
  'patch_embed/proj': 'embedding',
  'blocks/*/norm1': 'Transformer/encoderblock_{0}/LayerNorm_0',
  'blocks/*/attn/qkv': 'Transformer/encoderblock_{0}/MultiHeadDotProductAttention_0/query,key,value',
  'blocks/*/attn/proj': 'Transformer/encoderblock_{0}/MultiHeadDotProductAttention_0/out',
  'blocks/*/norm2': 'Transformer/encoderblock_{0}/LayerNorm_1',
  'blocks/*/mlp/fc1': 'Transformer/encoderblock_{0}/MlpBlock_0/Dense_0',
  'blocks/*/mlp/fc2': 'Transformer/encoderblock_{0}/MlpBlock_0/Dense_1',
  'norm': 'Transformer/encoder_norm',
  'attn_pool/latent': 'MAPHead_0/probe',
  'attn_pool/q': 'MAPHead_0/MultiHeadDotProductAttention_0/query',
  'attn_pool/kv': 'MAPHead_0/MultiHeadDotProductAttention_0/key,value',
  'attn_pool/proj': 'MAPHead_0/MultiHeadDotProductAttention_0/out',
  'attn_pool/norm': 'MAPHead_0/LayerNorm_0',
  'attn_pool/mlp/fc1': 'MAPHead_0/MlpBlock_0/Dense_0',
  'attn_pool/mlp/fc2': 'MAPHead_0/MlpBlock_0/Dense_1',
  'pre_logits': 'pre_logits',
  'head': 'head',
}
_UNIT = 'patch_embed/backbone/stages/*/blocks/*'
_RESNET = {
  'patch_embed/backbone/conv': 'conv_root',  # a root without stages (R+ViT-Ti/16)
  'patch_embed/backbone/norm': 'gn_root',
  'patch_embed/backbone/stem/conv': 'conv_root',
  'patch_embed/backbone/stem/norm': 'gn_root',
  **{f'{_UNIT}/conv{i}': f'block{{stage}}/unit{{unit}}/conv{i}' for i in (1, 2, 3)},
  **{f'{_UNIT}/norm{i}': f'block{{stage}}/unit{{unit}}/gn{i}' for i in (1, 2, 3)},
  f'{_UNIT}/downsample/conv': 'block{stage}/unit{unit}/conv_proj',
  f'{_UNIT}/downsample/norm': 'block{stage}/unit{unit}/gn_proj',
}
_MIXER = {
  'stem/proj': 'stem',
  'blocks/*/norm1': 'MixerBlock_{0}/LayerNorm_0',
  'blocks/*/mlp_tokens/fc1': 'MixerBlock_{0}/token_mixing/Dense_0',
  'blocks/*/mlp_tokens/fc2': 'MixerBlock_{0}/token_mixing/Dense_1',
  'blocks/*/norm2': 'MixerBlock_{0}/LayerNorm_1',
  'blocks/*/mlp_channels/fc1': 'MixerBlock_{0}/channel_mixing/Dense_0',
  'blocks/*/mlp_channels/fc2': 'MixerBlock_{0}/channel_mixing/Dense_1',
  'norm': 'pre_head_layer_norm',
  'head': 'head',
}
_BIT_UNIT = 'resnet/block{stage}/unit{unit:02d}'
_BIT = {
  'stem/conv': 'resnet/root_block/standardized_conv2d',
  **{f'stages/*/blocks/*/conv{i}': f'{_BIT_UNIT}/{c}/standardized_conv2d' for i, c in enumerate('abc', 1)},
  **{f'stages/*/blocks/*/norm{i}': f'{_BIT_UNIT}/{c}/group_norm' for i, c in enumerate('abc', 1)},
  'stages/*/blocks/*/downsample/conv': f'{_BIT_UNIT}/a/proj/standardized_conv2d',
  'norm': 'resnet/group_norm',
  'head/fc': 'resnet/head/conv2d',
}
_BIT_LEAVES = {'scale': 'gamma', 'bias': 'beta'}  # of its group norms
_TABLES = {'vit': _TRANSFORMER, 'hybrid': _TRANSFORMER | _RESNET, 'mixer': _MIXER, 'bit': _BIT}


def normal(arrays):
  """A Mapping with the arrays of a file under the names of Flax Linen, read when asked for; .shapes without reading.

  arrays: {name: numpy array}, and what of it is known without reading if it has .shapes. Prefixes go, layers that are
  stacked for a scan come one by one, numbers of modules are those of Linen, an optimizer's state is left out.
  """
  return _Normal(arrays)


_LEFT_OUT = re.compile(r'opt/(?!target/)|(chrono|extra)/')
_RENAMED = (
  (r'^(opt/target/)?(params/)?(img/)?', ''),
  (r'^Transformer/pos_embedding$', POSITIONS),
  (r'^(Transformer/encoderblock(?:_\d+)?)/LayerNorm_2/', r'\1/LayerNorm_1/'),
  (r'^(Transformer/encoderblock(?:_\d+)?|MAPHead_0)/MultiHeadDotProductAttention_\d+/',
   r'\1/MultiHeadDotProductAttention_0/'),
  (r'^(Transformer/encoderblock(?:_\d+)?|MAPHead_0)/MlpBlock_\d+/', r'\1/MlpBlock_0/'),
)  # fmt: skip
_SCANNED = 'Transformer/encoderblock/'
_GROUP_NORM = re.compile(r'(^|/)(gn\w+|group_norm)/\w+$')


class _Normal(Mapping):
  def __init__(self, arrays):
    self._arrays, self._where, self._stacks, self.shapes = arrays, {}, {}, {}
    given = arrays.shapes if hasattr(arrays, 'shapes') else {name: value.shape for name, value in arrays.items()}
    for source, shape in given.items():
      if 0 in shape:
        raise ValueError(f'{source} is {tuple(shape)}, an array of nothing; the file is no checkpoint.')
      if not _LEFT_OUT.match(source):
        self._add(source, tuple(shape))

  def _add(self, source, shape):
    name = source
    for pattern, new in _RENAMED:
      name = re.sub(pattern, new, name)
    if name.startswith(_SCANNED) and shape:
      for i in range(shape[0]):
        self._put(f'Transformer/encoderblock_{i}/{name.removeprefix(_SCANNED)}', source, i, shape[1:])
    else:
      flat = _GROUP_NORM.search(name) and shape[:-1] == (1, 1, 1)
      self._put(name, source, None, shape[-1:] if flat else shape)

  def _put(self, name, source, layer, shape):
    if name in self._where:
      raise ValueError(f'{self._where[name][0]} and {source} are both {name}: two checkpoints in one file; split it.')
    self._where[name], self.shapes[name] = (source, layer), shape

  def __iter__(self):
    return iter(self._where)

  def __len__(self):
    return len(self._where)

  def __getitem__(self, name):
    source, layer = self._where[name]
    array = self._arrays[source] if layer is None else self._layer(source, layer)
    if array.dtype.kind == 'V' and array.dtype.itemsize == 2:  # numpy has no name for bfloat16
      array = array.view(ml_dtypes.bfloat16)
    return array.reshape(self.shapes[name])

  def _layer(self, source, i):
    """One layer of a stack, which is read once and kept until the last of its layers was asked for."""
    stack, left = self._stacks.pop(source, (None, ()))
    if i not in left:
      stack = self._arrays[source]
      left = set(range(len(stack)))
    if left - {i}:
      self._stacks[source] = stack, left - {i}
    return stack[i]


def entries(model, shapes=None):
  """A convert.Entry for each array of a model, layer by layer, under the names of Linen.

  shapes: {name: shape} of the normal file that is to be read: positions are where the file has them, and what the
  format has no name for is sought under ours. None is for writing: ValueError in one line for a model that a file could
  not hold, or of which it would say something else (see numerics).
  """
  if shapes is None:
    numerics(model)
    shapes = {OUTSIDE: ()} if _is_big_vision(model) else {}
  table = _TABLES[_family(model)]
  params = state.flatten(jax.eval_shape(state.unstack, state.split(model)[1]))
  return [_entry(path, tuple(leaf.shape), table, OUTSIDE in shapes) for path, leaf in params.items()]


def _entry(path, shape, table, outside):
  keys = (OUTSIDE,) if path == 'pos_embed' and outside else _keys(path, table) or (path,)
  if len(keys) == 1:
    return convert.Entry(path, shape, keys, shape, tuple(range(len(shape))))
  axis = 1 if path.endswith('kernel') else 0  # ours is the stack of theirs
  part = (*shape[:axis], *shape[axis + 1 :])
  return convert.Entry(path, shape, keys, part, tuple(range(len(part))), axis)


def _keys(path, table):
  """The names in a file of a parameter of ours; none where the format has no place for it."""
  module, _, last = path.rpartition('/')
  numbers = [int(part) for part in path.split('/') if part.isdigit()]
  stage, unit = (n + 1 for n in (*numbers, 0, 0)[:2])
  for ours, leaf in ((path, ''), (module, last)):
    row = table.get('/'.join('*' if part.isdigit() else part for part in ours.split('/')))
    if row is not None:
      parent, _, names = row.format(*numbers, stage=stage, unit=unit).rpartition('/')
      leaf = _BIT_LEAVES[leaf] if names == 'group_norm' else leaf
      return tuple('/'.join(part for part in (parent, name, leaf) if part) for name in names.split(','))
  return ()


def _family(model):
  for family, base in describe_npz.BASES.items():
    if type(model) is models.variant(base)[0]:
      return family
  raise ValueError(f'A {type(model).__name__} has no place in a Google .npz; choose another format (timm, hf).')


def _is_big_vision(model):
  """Whether only big_vision has a form for the model: a MAP head, or positions without a row for the class token."""
  return getattr(model, 'attn_pool', None) is not None or getattr(model, 'no_embed_class', False)


# What a module remembers that no output depends on, or that its parts repeat.
_FREE = ('scan', 'remat', 'implementation', 'pos_resize', 'origin', 'rates')


def numerics(model):
  """'google' or 'timm': the name under which a file that is written is to be read, to compute what the model does.

  Raises ValueError in one line for a model that no file can hold (register tokens, LayerScale, ...), or of which it
  would say something else under both names (another epsilon, activation, pooling, ...).
  """
  table = _TABLES[_family(model)]
  found = entries(model, {OUTSIDE: ()} if _is_big_vision(model) else {})
  strange = [e.path for e in found if not _keys(e.path, table)]
  if strange:
    raise ValueError(f'A Google .npz has no place for {_some(strange)}; choose another format (timm, hf).')
  shapes, ours, wrong = {key: e.file_shape for e in found for key in e.keys}, _said(model), []
  for name in describe_npz.NUMERICS:
    base, made = describe_npz.read(shapes, name, grid=getattr(model, 'grid', None), computed=True)
    reread = models.abstract(base, **made)
    lacking = [e.path for e in entries(reread, shapes) if not set(e.keys) <= set(shapes)]
    if lacking:
      raise ValueError(f'A Google .npz always has {_some(lacking)}, and this model does not; choose another format.')
    theirs = _said(reread)
    unlike = [key for key in ours if theirs.get(key, ours[key]) != ours[key]]
    wrong.append([f'{key} {ours[key]!r}, not {theirs[key]!r}' for key in unlike])
    if not wrong[-1]:
      return name
  raise ValueError(
    f'A Google .npz cannot say that this model has {_some(min(wrong, key=len))}; choose another format (timm, hf).'
  )


def _said(model):
  """{'module.attribute': plain value} of what a model is beside its arrays."""
  out = {}
  for path, module in convert.modules(model):
    where = path.replace('stacked', '0')
    for name, value in vars(module).items():
      plain = isinstance(value, (bool, int, float, str, tuple)) and not hasattr(value, '_fields')
      if plain and not name.startswith('_') and name not in _FREE and 'drop' not in name:
        out[f'{where}.{name}'.lstrip('.')] = value
  return out


def _some(words):
  return f'{", ".join(words[:3])}{f" and {len(words) - 3} more" if len(words) > 3 else ""}'
