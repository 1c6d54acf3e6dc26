"""The image tower in a file of open_clip, or of OpenAI's CLIP, read as one with timm's names.

Its names: github.com/mlfoundations/open_clip (Ilharco et al. 2021) and github.com/openai/CLIP (Radford et al. 2021,
arXiv:2103.00020). The projection has no bias, which timm's head has: zeros. Whether such a network was trained with
quick-GELU no file says; the architecture's name does (vit_*_clip_quickgelu_*).
"""

from collections.abc import Mapping
import re

import numpy as np

TOWER, TRUNK = 'visual.', 'visual.trunk.'  # a trunk is one of timm's own models
SIGN = f'{TOWER}transformer.resblocks.0.ln_1.weight'
RENAMED = (
  (r'conv1\.weight$', 'patch_embed.proj.weight'),
  (r'class_embedding$', 'cls_token'),
  (r'positional_embedding$', 'pos_embed'),
  (r'ln_pre\.', 'norm_pre.'),
  (r'ln_post\.', 'norm.'),
  (r'proj$', 'head.weight'),
  (r'transformer\.resblocks\.', 'blocks.'),
  (r'\.ln_([12])\.', r'.norm\1.'),
  (r'\.ls_([12])\.', r'.ls\1.'),
  (r'\.attn\.in_proj_', '.attn.qkv.'),
  (r'\.attn\.out_proj\.', '.attn.proj.'),
  (r'\.mlp\.c_fc\.', '.mlp.fc1.'),
  (r'\.mlp\.c_proj\.', '.mlp.fc2.'),
)


def is_clip(shapes):
  """Whether a file has the image tower of open_clip."""
  return SIGN in shapes or any(key.startswith(TRUNK) for key in shapes)


def timm_key(key):
  """timm's name of an array of the tower; None for one of the text side, which is left out by name."""
  if not key.startswith(TOWER):
    return None
  if key.startswith(TRUNK):
    return key.removeprefix(TRUNK)
  if key.startswith(f'{TOWER}head.'):  # of a trunk: a linear projection
    return key.removeprefix(TOWER).replace('head.proj.', 'head.')
  key = key.removeprefix(TOWER)
  for pattern, word in RENAMED:
    key = re.sub(rf'^{pattern}' if pattern[0] != '\\' else pattern, word, key)
  return key


class Tower(Mapping):
  """{timm's name: array} of the image tower of a file's formats.Arrays, read when asked for."""

  def __init__(self, arrays):
    self._arrays, self.metadata = arrays, {}
    self._keys = {name: key for key in arrays.shapes if (name := timm_key(key))}
    self.shapes = {name: self._shape(name, arrays.shapes[key]) for name, key in self._keys.items()}
    if 'head.weight' in self.shapes and 'head.bias' not in self.shapes:
      self.shapes['head.bias'] = self.shapes['head.weight'][:1]

  def _shape(self, name, shape):
    if name == 'cls_token':
      return (1, 1, *shape[-1:])
    if name == 'pos_embed' and len(shape) == 2:
      return (1, *shape)
    return shape[::-1] if self._keys[name] == f'{TOWER}proj' else tuple(shape)

  def __iter__(self):
    return iter(self.shapes)

  def __len__(self):
    return len(self.shapes)

  def __getitem__(self, name):
    if name not in self._keys:
      return np.zeros(self.shapes[name], np.float32)
    array = self._arrays[self._keys[name]]
    return array.T if self._keys[name] == f'{TOWER}proj' else array.reshape(self.shapes[name])
