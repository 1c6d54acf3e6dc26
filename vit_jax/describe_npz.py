"""What a .npz of Google, big_vision or BiT is, by its shapes, and which one of AugReg's 50,000 a name stands for.

What a file fixes is read from it: width, depth, heads, patches, positions, classes. What it does not say has a name:
numerics 'google' is how it was trained, 'timm' is how timm runs it. AugReg: Steiner et al. 2021, arXiv:2106.10270.
"""

import math
import re

from vit_jax import models, transforms
from vit_jax.models import vit

POSITIONS = 'Transformer/posembed_input/pos_embedding'
OUTSIDE = 'pos_embedding'  # big_vision: added before the class token joins, and without a row for it
# a variant of each class: what a file does not fix is as in this one
BASES = {
  'vit': 'vit_base_patch16_224', 'hybrid': 'vit_base_r50_s16_224', 'mixer': 'mixer_b16_224', 'bit': 'resnetv2_50x1_bit',
}  # fmt: skip
NUMERICS = ('google', 'timm')
ACTIVATIONS = {'google': 'gelu_tanh', 'timm': 'gelu'}
POS_RESIZE = {'google': 'corner', 'timm': 'bilinear_plain'}
EPS = 1e-6  # of every layer norm in these files
CHANNELS = (256, 512, 1024, 2048)  # of a ResNet's stages


def describe(shapes, *, numerics='google', name=None, img_size=None, pos_embed=None):
  """What a file is, by its shapes alone: name (nearest variant), architecture, num_classes, preprocessing.

  shapes: {name: shape} of a normal file.   numerics: 'google' (tanh GELU, positions resized between aligned corners,
  squash without antialias) or 'timm' (exact GELU, half-pixel positions, bicubic and centre crop).   name: preferred
  among equally near.   img_size: (h, w), for a file whose patches are no square: their size, or one of their aspect.
  pos_embed: 'sincos2d' for a file that holds no positions because they are computed; without a word it is believed of
  one that has no class token and is asked for by no name, else they are missing.

  Raises ValueError in one line for what is no such file.
  """
  computed = pos_embed == 'sincos2d' or pos_embed is None and name is None and 'cls' not in shapes
  base, fixed = read(shapes, numerics, img_size=img_size, computed=computed)
  architecture = models.architecture(base, **fixed)
  size = vit.pair(architecture['img_size'])
  if numerics == 'google':
    preprocessing = transforms.preprocessing(size, crop='squash', crop_pct=1.0, interpolation='tf_bilinear')
  else:
    preprocessing = transforms.preprocessing(size, crop_pct=0.9)
  return {
    'name': _nearest(base, architecture, name), 'architecture': architecture,
    'num_classes': architecture['num_classes'], 'preprocessing': preprocessing,
  }  # fmt: skip


def _nearest(base, made, preferred):
  """The variant of base's class in which the fewest arguments differ; `preferred` if in no other fewer do."""
  cls, _ = models.variant(base)
  preferred = preferred and models.canonical(preferred)

  def distance(name):  # num_classes left out: it is what people change
    row = models.architecture(name)
    return sum(row[key] != value for key, value in made.items() if key != 'num_classes'), name != preferred

  return min((name for name, (kind, _) in models.VARIANTS.items() if kind is cls), key=distance)


def looks(shapes):
  """What a file is, in a few words, and the nearest variant; what is wrong with it where it is none of these."""
  try:
    found = describe(shapes)
  except ValueError as error:
    return str(error)
  made, size = found['architecture'], found['preprocessing']['size']
  side = size[0] if size[0] == size[1] else 'x'.join(map(str, size))
  kind = {'vit': 'a ViT', 'hybrid': 'a ResNet + ViT', 'mixer': 'an MLP-Mixer', 'bit': 'a BiT ResNet-v2'}[_kind(shapes)]
  words = {'embed_dim': 'width {}', 'depth': 'depth {}', 'num_blocks': 'depth {}', 'num_heads': '{} heads',
           'patch_size': 'patch {}', 'layers': 'units {}'}  # fmt: skip
  said = [text.format(made[key]) for key, text in words.items() if key in made]
  said = [*said, f'{side} pixels', f'{found["num_classes"]} classes']
  return f'{kind} of {", ".join(said)} (nearest: {found["name"]})'


def ignored(key):
  """Whether an array is of what is not built here, by its name: a text tower, a temperature, a similarity's bias."""
  return re.match(r'(opt/target/)?(params/)?(txt/|t$|b$)', key) is not None


def _kind(shapes):
  if 'embedding/kernel' in shapes:
    return 'hybrid' if 'conv_root/kernel' in shapes else 'vit'
  if 'stem/kernel' in shapes:
    return 'mixer'
  if 'resnet/root_block/standardized_conv2d/kernel' in shapes:
    return 'bit'
  raise ValueError(
    f'This is no .npz of Google: of {len(shapes)} arrays ({", ".join(sorted(shapes)[:3])}, ...) none is '
    'embedding/kernel (ViT), stem/kernel (Mixer) or resnet/root_block/standardized_conv2d/kernel (BiT).'
  )


def read(shapes, numerics, *, img_size=None, grid=None, computed=False):
  """(variant of the file's class, arguments that make it the file's) of a normal file.

  grid: (rows, columns) of patches, where it is known.   computed: whether positions that are not there are computed.
  """
  if numerics not in NUMERICS:
    raise ValueError(
      f"numerics is {numerics!r}; choose 'google' (as the file was trained) or 'timm' (as timm reads it)."
    )
  shapes = {key: tuple(map(int, shape)) for key, shape in shapes.items() if not ignored(key)}
  kind = _kind(shapes)
  if kind in ('vit', 'hybrid') and not computed and not {OUTSIDE, POSITIONS} & set(shapes):
    raise ValueError(f"{POSITIONS} is missing; if positions are computed and not stored, say pos_embed='sincos2d'.")
  return _READERS[kind](shapes, numerics, img_size, grid)


def _shape(shapes, key, rank):
  """The shape of an array that a file must have, with so many axes."""
  if key not in shapes or len(shapes[key]) != rank or min(shapes[key]) < 1:
    raise ValueError(f'{key} is {shapes.get(key, "missing")}; wanted an array with {rank} axes. The file is damaged.')
  return shapes[key]


def _numbered(shapes, pattern, first=0):
  """How many different numbers the group of `pattern` has among the names, which must be all from `first` on."""
  found = sorted({int(match.group(1)) for match in map(re.compile(pattern).match, shapes) if match})
  if found != list(range(first, first + len(found))):
    lost = sorted(set(range(first, first + len(found))) - set(found))
    raise ValueError(f'Of the arrays {pattern} number {lost[0]} is missing; the file is damaged.')
  return len(found)


def _ratio(hidden, width):
  """The ratio whose product with the width, rounded down as models do it, is `hidden`."""
  ratio = hidden / width
  return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _side(size):
  return size[0] if size[0] == size[1] else tuple(size)


def _transformer(shapes, numerics, img_size, grid):
  """(variant, arguments) of a ViT or hybrid: all that the file fixes, and the numerics."""
  ph, pw, chans, width = _shape(shapes, 'embedding/kernel', 4)
  _, heads, _ = _shape(shapes, 'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel', 3)
  _, hidden = _shape(shapes, 'Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel', 2)
  root, stride = _root(shapes, numerics) if _kind(shapes) == 'hybrid' else ({}, 1)
  tokens, pixels = 'cls' in shapes, (ph * stride, pw * stride)
  told = grid or _told(img_size, pixels)
  where = OUTSIDE if OUTSIDE in shapes else POSITIONS
  if where in shapes:
    prefixes = (0, 1) if where == OUTSIDE else (1, 0)
    (rows, cols), prefix = _grid(_shape(shapes, where, 3)[1], prefixes if tokens else (0,), told)
    fixed = dict(pos_embed='learn', no_embed_class=tokens and not prefix)
  else:
    rows, cols = told or (max(224 // side, 1) for side in pixels)
    fixed = dict(pos_embed='sincos2d', no_embed_class=True)
  pool = 'map' if 'MAPHead_0/probe' in shapes else 'token' if tokens else 'avg'
  return BASES[_kind(shapes)], dict(
    img_size=_side((rows * pixels[0], cols * pixels[1])), patch_size=_side((ph, pw)), embed_dim=width,
    depth=_numbered(shapes, r'Transformer/encoderblock_(\d+)/'), num_heads=heads, mlp_ratio=_ratio(hidden, width),
    class_token=tokens, global_pool=pool, fc_norm=False if pool == 'avg' else None, num_classes=_classes(shapes),
    representation_size=_shape(shapes, 'pre_logits/kernel', 2)[1] if 'pre_logits/kernel' in shapes else None,
    act_layer=ACTIVATIONS[numerics], pos_resize=POS_RESIZE[numerics], norm_eps=EPS,
    **({'in_chans': chans} | root), **fixed,
  )  # fmt: skip


def _root(shapes, numerics):
  """The arguments of a hybrid's ResNet, and its stride."""
  _, _, chans, stem = _shape(shapes, 'conv_root/kernel', 4)
  units = _units(shapes, 'block', 'unit')
  channels = tuple(_shape(shapes, f'block{b + 1}/unit1/conv3/kernel', 4)[3] for b in range(len(units)))
  channels += CHANNELS[len(units) :] if channels == CHANNELS[: len(units)] else ()
  how = {'google': dict(conv_eps=1e-5, conv_eps_on='std', backbone_norm_eps=1e-6),
         'timm': dict(conv_eps=1e-8, conv_eps_on='var', backbone_norm_eps=1e-5)}[numerics]  # fmt: skip
  return dict(in_chans=chans, stem_chs=stem, layers=units, channels=channels, **how), 4 * 2 ** max(len(units) - 1, 0)


def _mixer(shapes, numerics, img_size, grid):
  ph, pw, chans, width = _shape(shapes, 'stem/kernel', 4)
  count, tokens = _shape(shapes, 'MixerBlock_0/token_mixing/Dense_0/kernel', 2)
  _, hidden = _shape(shapes, 'MixerBlock_0/channel_mixing/Dense_0/kernel', 2)
  (rows, cols), _ = _grid(count, (0,), grid or _told(img_size, (ph, pw)))
  return BASES['mixer'], dict(
    img_size=_side((rows * ph, cols * pw)), patch_size=_side((ph, pw)), in_chans=chans, embed_dim=width,
    num_blocks=_numbered(shapes, r'MixerBlock_(\d+)/'), mlp_ratio=(_ratio(tokens, width), _ratio(hidden, width)),
    num_classes=_classes(shapes), act_layer=ACTIVATIONS[numerics], norm_eps=EPS,
  )  # fmt: skip


def _bit(shapes, numerics, img_size, grid):
  _, _, chans, stem = _shape(shapes, 'resnet/root_block/standardized_conv2d/kernel', 4)
  units = _units(shapes, 'resnet/block', 'unit')
  kernels = [f'resnet/block{b + 1}/unit01/{{}}/standardized_conv2d/kernel' for b in range(len(units))]
  channels = tuple(_shape(shapes, kernel.format('c'), 4)[3] for kernel in kernels)
  *_, inner, _ = _shape(shapes, kernels[0].format('c'), 4) if kernels else (1, 1)
  factor = stem // 64
  if stem % 64 or channels != tuple(factor * c for c in CHANNELS[: len(units)]):
    width = dict(width_factor=1, stem_chs=stem, channels=channels)
  else:
    width = dict(width_factor=factor)
  return BASES['bit'], dict(
    layers=units, in_chans=chans, bottle_ratio=inner / channels[0] if channels else 0.25,
    num_classes=_classes(shapes, 'resnet/head/conv2d/kernel'), conv_eps={'google': 1e-10, 'timm': 1e-8}[numerics],
    **width, **({} if img_size is None else {'img_size': img_size}),
  )  # fmt: skip


_READERS = {'vit': _transformer, 'hybrid': _transformer, 'mixer': _mixer, 'bit': _bit}


def _units(shapes, stage, unit):
  """How many units each stage has."""
  stages = _numbered(shapes, rf'{stage}(\d+)/', first=1)
  return tuple(_numbered(shapes, rf'{stage}{i + 1}/{unit}(\d+)/', first=1) for i in range(stages))


def _classes(shapes, key='head/kernel'):
  return shapes[key][-1] if shapes.get(key) else 0


def _told(img_size, pixels):
  """The (rows, columns) of an image that the caller speaks of, None where it does not split into patches."""
  size = (0, 0) if img_size is None else vit.pair(img_size)
  grid = tuple(side // pixel for side, pixel in zip(size, pixels))
  return grid if all(grid) and all(n * pixel == side for n, pixel, side in zip(grid, pixels, size)) else None


def _grid(count, prefixes, told):
  """((rows, columns), prefix tokens) of so many positions: what the caller says, a square, or of the told aspect.

  prefixes: how many of them may have no place, the usual number first; another one counts only if the caller's fits.
  """
  for prefix in prefixes if told else ():
    if told[0] * told[1] == count - prefix:
      return told, prefix
  patches = count - prefixes[0]
  side = math.isqrt(patches)
  if side and side * side == patches:
    return (side, side), prefixes[0]
  if told and patches:
    rows = round(math.sqrt(patches * told[0] / told[1]))
    if rows and rows * told[1] * rows == patches * told[0]:
      return (rows, patches // rows), prefixes[0]
  raise ValueError(
    f'{count} positions are no square of patches; say img_size=(height, width) of the images that they are for.'
  )
