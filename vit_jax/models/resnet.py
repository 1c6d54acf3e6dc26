"""ResNet-v2 with group norm and standardised weights: Big Transfer (BiT), and the backbone of the hybrid models.

Sources: Kolesnikov et al. 2020, arXiv:1912.11370 (BiT); He et al. 2016, arXiv:1603.05027 (pre-activation, eq. 5);
Qiao et al. 2019, arXiv:1903.10520 (weight standardisation, eq. 6-8); Wu and He 2018, arXiv:1803.08494 (group norm).
Releases differ in where the epsilons stand and in how odd sizes are padded, so all of it is arguments.
"""

import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import blocks
from vit_jax.models import layers as basics

CHOICES = {
  'stem_type': ('', 'fixed', 'same'),
  'conv_padding': ('fixed', 'same'),
  'conv_eps_on': ('var', 'std'),
  'global_pool': ('avg', 'max', 'avgmax', 'catavgmax', ''),
}


def check(**given):
  """None if each argument is one of its words in CHOICES, else a ValueError that lists them."""
  for name, value in given.items():
    if value not in CHOICES[name]:
      raise ValueError(f'{name} is {value!r}; choose one of {", ".join(map(repr, CHOICES[name]))}.')


def check_stages(layers, channels):
  """None if there are blocks in every stage, and channels for them, else a ValueError."""
  if not 0 < len(layers) <= len(channels) or min(layers) < 1:
    raise ValueError(f'layers={layers} is not one number of blocks, at least 1, for each stage of channels={channels}.')


def standardised(kernel, eps, eps_on):  # (kh, kw, i, o)
  """The kernel with mean 0 and variance 1 over (kh, kw, i): divided by sqrt(var + eps), or by std + eps ('std')."""
  k = kernel.astype(jnp.float32)
  k = k - k.mean((0, 1, 2), keepdims=True)
  var = jnp.square(k).mean((0, 1, 2), keepdims=True)
  k = k * jax.lax.rsqrt(var + eps) if eps_on == 'var' else k / (jnp.sqrt(var) + eps)
  return k.astype(kernel.dtype)


def group_norm(x, scale, bias, groups, eps):  # (b, h, w, c), (c), (c)
  """x in float32, normalised over each image's `groups` groups of neighbouring channels; statistics in two passes."""
  b, c = x.shape[0], x.shape[-1]
  x = x.astype(jnp.float32)
  mean = x.mean((1, 2))  # of channels, then of groups: XLA reduces whole rows faster than parts of them, (b, c)
  var = jnp.square(x - mean[:, None, None]).mean((1, 2))
  parts = mean.reshape(b, groups, -1)
  middle = parts.mean(-1, keepdims=True)
  var = (var.reshape(parts.shape) + jnp.square(parts - middle)).mean(-1, keepdims=True)
  spread = lambda t: jnp.broadcast_to(t, parts.shape).reshape(b, 1, 1, c)
  factor = spread(jax.lax.rsqrt(var + eps)) * scale.astype(jnp.float32)
  return (x - spread(middle)) * factor + bias.astype(jnp.float32)


def max_pool(x, padding):  # (b, h, w, c)
  """The largest of every 3 x 3 neighbourhood, every second row and column."""
  lowest = np.array(-np.inf, x.dtype)
  return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def avg_pool(x):  # (b, h, w, c) -> (b, ceil(h/2), ceil(w/2), c)
  """The mean of every 2 x 2 square; squares at an odd border hold what there is of them."""
  window = lambda t: jax.lax.reduce_window(t, np.array(0, t.dtype), jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), 'SAME')
  return window(x) / window(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


class Numbered(nnx.Module):
  """Modules as attributes '0', '1', ..., as a PyTorch Sequential names them; a dict {number: module} skips some."""

  def __init__(self, modules):
    modules = dict(modules if isinstance(modules, dict) else enumerate(modules))
    self.names = tuple(map(str, modules))
    for name, module in zip(self.names, modules.values(), strict=True):
      setattr(self, name, module)

  def __iter__(self):
    return (getattr(self, name) for name in self.names)

  def __len__(self):
    return len(self.names)


class StdConv(nnx.Conv):
  """(b, h, w, c) -> (b, ceil(h/stride), ceil(w/stride), d): a convolution whose kernel is standardised, no bias."""

  def __init__(self, inputs, outputs, size, *, stride, padding, eps, eps_on, rngs):
    self.standardise = eps, eps_on
    side = ((stride - 1) + (size - 1)) // 2
    super().__init__(
      inputs, outputs, (size, size), stride, padding='SAME' if padding == 'same' else ((side, side), (side, side)),
      use_bias=False, kernel_init=basics.normal((2 / (size * size * outputs)) ** 0.5), rngs=rngs,
    )  # fmt: skip

  def __call__(self, x):
    kernel = standardised(self.kernel[...], *self.standardise)
    strides = (self.strides, self.strides)
    return jax.lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


class GroupNorm(nnx.Module):
  """(b, h, w, c) -> (b, h, w, c) normalised in groups of channels, then `act_layer` if any; the dtype is kept."""

  def __init__(self, dim, groups, *, eps, act_layer, rngs):
    if dim % groups:
      raise ValueError(f'{dim} channels do not split into num_groups={groups}; choose a number that divides them.')
    self.groups, self.eps, self.act_layer = groups, eps, act_layer
    self.scale = nnx.Param(basics.ones(rngs.params(), (dim,)))
    self.bias = nnx.Param(basics.zeros(rngs.params(), (dim,)))

  def __call__(self, x):
    y = group_norm(x, self.scale[...], self.bias[...], self.groups, self.eps).astype(x.dtype)
    return basics.activation(self.act_layer)(y) if self.act_layer else y


class Style(NamedTuple):
  """How all convolutions and norms of one model compute, in ResNetV2's words."""

  conv_padding: str
  conv_eps: float
  conv_eps_on: str
  num_groups: int
  norm_eps: float
  act_layer: str

  def conv(self, inputs, outputs, size=1, stride=1, *, rngs):
    """A StdConv of this style."""
    how = dict(padding=self.conv_padding, eps=self.conv_eps, eps_on=self.conv_eps_on)
    return StdConv(inputs, outputs, size, stride=stride, **how, rngs=rngs)

  def norm(self, dim, *, act=True, rngs):
    """A GroupNorm of this style, followed by the activation unless act=False."""
    return GroupNorm(dim, self.num_groups, eps=self.norm_eps, act_layer=self.act_layer if act else '', rngs=rngs)


class Stem(nnx.Module):
  """Images (b, h, w, c) -> (b, ceil(h/4), ceil(w/4), d): a 7 x 7 convolution, norm unless preact, and max pooling.

  stem_type: how the pool is padded: '' by one everywhere, 'fixed' by one with zeros, 'same' as TensorFlow does.
  """

  partial = True  # rows that the border cuts off still give one of the map

  def __init__(self, in_chans, dim, *, stem_type, preact, style, rngs):
    check(stem_type=stem_type, conv_padding=style.conv_padding, conv_eps_on=style.conv_eps_on)
    basics.activation(style.act_layer)
    self.stem_type, self.dim, self.reduction = stem_type, dim, 4
    self.conv = style.conv(in_chans, dim, 7, 2, rngs=rngs)
    self.norm = None if preact else style.norm(dim, rngs=rngs)

  def __call__(self, images):
    x = self.conv(images)
    x = x if self.norm is None else self.norm(x)
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    if self.stem_type == 'fixed':
      return max_pool(jnp.pad(x, around), 'VALID')
    return max_pool(x, 'SAME' if self.stem_type == 'same' else around)

  def maps(self, images, *, key=None):
    """{'stem': map}: what a backbone gives, for hybrids that have no more of it."""
    return {'stem': self(images)}


class Downsample(nnx.Module):
  """(b, h, w, c) -> (b, h/stride, w/stride, d): the shortcut where a stage begins, with a norm unless preact."""

  def __init__(self, inputs, outputs, stride, *, avg_down, preact, style, rngs):
    self.pooled = avg_down and stride > 1
    self.conv = style.conv(inputs, outputs, 1, 1 if avg_down else stride, rngs=rngs)
    self.norm = None if preact else style.norm(outputs, act=False, rngs=rngs)

  def __call__(self, x):
    x = self.conv(avg_pool(x) if self.pooled else x)
    return x if self.norm is None else self.norm(x)


class Bottleneck(nnx.Module):
  """(b, h, w, c) -> (b, h/stride, w/stride, d): 1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut.

  preact: norm and activation come before each convolution (arXiv:1603.05027), else after it (ResNet v1.5).
  """

  def __init__(self, inputs, outputs, stride, *, first, avg_down, preact, bottle_ratio, style, rngs):
    self.preact, self.act_layer = preact, style.act_layer
    inner = divisible(outputs * bottle_ratio)
    how = dict(avg_down=avg_down, preact=preact, style=style, rngs=rngs)
    self.downsample = Downsample(inputs, outputs, stride, **how) if first else None
    self.conv1 = style.conv(inputs, inner, rngs=rngs)
    self.conv2 = style.conv(inner, inner, 3, stride, rngs=rngs)
    self.conv3 = style.conv(inner, outputs, rngs=rngs)
    self.norm1 = style.norm(inputs if preact else inner, rngs=rngs)
    self.norm2 = style.norm(inner, rngs=rngs)
    self.norm3 = style.norm(inner if preact else outputs, act=preact, rngs=rngs)

  def __call__(self, x, *, rate=None, key=None):
    if self.preact:
      y = self.norm1(x)
      shortcut = x if self.downsample is None else self.downsample(y)
      y = self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(y)))))
      return shortcut + _drop_path(y, rate, key)
    shortcut = x if self.downsample is None else self.downsample(x)
    y = self.norm3(self.conv3(self.norm2(self.conv2(self.norm1(self.conv1(x))))))
    return basics.activation(self.act_layer)(shortcut + _drop_path(y, rate, key))


def _drop_path(x, rate, key):  # (b, h, w, c)
  return blocks.drop_path(x.reshape(-1, x.shape[-1]), x.shape[1] * x.shape[2], rate, key).reshape(x.shape)


class Stage(nnx.Module):
  """(b, h, w, c) -> (b, h/stride, w/stride, d) through bottlenecks; the first has the stride and a new shortcut."""

  def __init__(self, inputs, outputs, stride, *, rates, block):
    self.rates = tuple(rates)
    more = [block(outputs, outputs, 1, first=False) for _ in rates[1:]]
    self.blocks = Numbered([block(inputs, outputs, stride, first=True), *more])

  def __call__(self, x, *, key=None):
    for i, (block, rate) in enumerate(zip(self.blocks, self.rates, strict=True)):
      x = block(x, rate=rate or None, key=basics.fold(key, i))
    return x


class Head(nnx.Module):
  """(..., c) -> logits (..., num_classes); its one layer `fc` is a 1 x 1 convolution in the files, zero when fresh."""

  def __init__(self, dim, num_classes, *, rngs):
    self.fc = nnx.Conv(dim, num_classes, (1, 1), kernel_init=basics.zeros, bias_init=basics.zeros, rngs=rngs)

  def __call__(self, x):
    return x @ self.fc.kernel[0, 0] + self.fc.bias[...]


class ResNetV2(nnx.Module):
  """Images (b, h, w, in_chans) of any size, normalised floats -> logits (b, num_classes), in their dtype.

  Arguments (timm's words where timm has the concept):
    layers, channels: blocks and output channels of each stage.   width_factor: times all channels, made multiples of 8.
    stem_chs: channels of the stem.   stem_type: '', 'fixed' (BiT) or 'same' (hybrids), see Stem.
    num_classes: 0 = no head, a call gives what the head would read.
    global_pool: 'avg', 'max', 'avgmax' their mean, 'catavgmax' both, '' logits (b, h', w', num_classes) of the map.
    conv_padding: 'fixed', the same on both sides, or 'same', as TensorFlow does.   avg_down: pool in the shortcut.
    preact: norm and activation before the convolutions, and a norm at the end; else after them, and none.
    bottle_ratio: width inside a block / its output.   act_layer: layers.ACTIVATIONS.
    num_groups, norm_eps: of group norm.   conv_eps, conv_eps_on: kernels are divided by sqrt(var + eps) with 'var'
      (timm, Hugging Face), by std + eps with 'std' (Google's hybrids).
    drop_rate (head), drop_path_rate (linear from 0 at the first block): probabilities, need a key to act.
    img_size: the size it is meant for; any other works.   scan, remat, attention: only False, 'none', 'auto'.

  Raises ValueError for a word that is none of these, and for channels that num_groups does not divide.
  """

  partial = True  # rows that the border cuts off still give one of the map: it has ceil(h / reduction)

  def __init__(
    self, *, num_classes=1000, img_size: int | tuple[int, int] = 224, in_chans=3,
    layers: tuple[int, ...] = (3, 4, 6, 3), channels: tuple[int, ...] = (256, 512, 1024, 2048), global_pool='avg',
    width_factor=1, stem_chs=64, stem_type='', conv_padding='fixed', avg_down=False, preact=True, bottle_ratio=0.25,
    act_layer='relu', num_groups=32, norm_eps=1e-5, conv_eps=1e-6, conv_eps_on='var', drop_rate=0.0,
    drop_path_rate=0.0, scan=False, remat='none', attention='auto', rngs,
  ):  # fmt: skip
    check(global_pool=global_pool)
    check_stages(layers, channels)
    if scan or remat != 'none' or attention not in ('xla', 'auto'):
      raise ValueError("A ResNet has stages of unequal blocks and no attention: scan=False, remat='none', 'auto' only.")
    self.global_pool, self.drop_rate = global_pool, drop_rate
    style = Style(conv_padding, conv_eps, conv_eps_on, num_groups, norm_eps, act_layer)
    how = dict(avg_down=avg_down, preact=preact, bottle_ratio=bottle_ratio, style=style, rngs=rngs)
    block = functools.partial(Bottleneck, **how)
    dim = divisible(stem_chs * width_factor)
    self.stem = Stem(in_chans, dim, stem_type=stem_type, preact=preact, style=style, rngs=rngs)
    rates = np.split(np.linspace(0, drop_path_rate, sum(layers)), np.cumsum(layers)[:-1])
    stages = []
    for i, channel in enumerate(channels[: len(layers)]):
      inputs, dim = dim, divisible(channel * width_factor)
      stages.append(Stage(inputs, dim, 2 if i else 1, rates=rates[i].tolist(), block=block))
    self.stages = Numbered(stages)
    self.norm = style.norm(dim, rngs=rngs) if preact else None
    self.dim, self.reduction = dim, 2 ** (1 + len(layers))
    width = dim * (2 if global_pool == 'catavgmax' else 1)
    self.head = nnx.data(Head(width, num_classes, rngs=rngs) if num_classes else None)

  def maps(self, images, *, key=None):  # (b, h, w, c)
    """{'stem': map, 'stage0': map, ...}, each (b, h', w', c'), before the last norm."""
    out = {'stem': self.stem(images)}
    for i, stage in enumerate(self.stages):
      out[f'stage{i}'] = stage([*out.values()][-1], key=basics.fold(key, i))
    return out

  def features(self, images, *, key=None):  # (b, h, w, c)
    """The map of every stage [(b, h', w', c')], the last one after the last norm."""
    _, *lower, last = self.maps(images, key=basics.fold(key, 0)).values()
    return [*lower, self.normed(last)]

  def normed(self, x):  # (b, h, w, c)
    """The last stage's map after the last norm, if there is one."""
    return x if self.norm is None else self.norm(x)

  def pool(self, x):  # (b, h, w, c)
    """What the head reads before dropout: (b, c), (b, 2c) with 'catavgmax', (b, h, w, c) with global_pool ''."""
    if self.global_pool == '':
      return x
    avg, top = x.mean((1, 2), dtype=jnp.float32).astype(x.dtype), x.max((1, 2))
    both = jnp.concatenate([avg, top], axis=-1)
    return {'avg': avg, 'max': top, 'avgmax': (avg + top) / 2, 'catavgmax': both}[self.global_pool]

  def intermediates(self, images):  # (b, h, w, c)
    """{name: array} of what is inside: 'stem', 'stage0', ..., 'norm', 'pre_logits', 'logits'; deterministic."""
    out = self.maps(images)
    x = self.normed([*out.values()][-1])
    out |= {'norm': x} if self.norm is not None else {}
    out['pre_logits'] = self.pool(x)
    out['logits'] = out['pre_logits'] if self.head is None else self.head(out['pre_logits'])
    return out

  def __call__(self, images, *, key=None):  # (b, h, w, c)
    x = self.pool(self.features(images, key=basics.fold(key, 0))[-1])
    x = basics.dropout(x, self.drop_rate, basics.fold(key, 1))
    return x if self.head is None else self.head(x)


def divisible(channels):
  """The multiple of 8 nearest to a number of channels, at least 8 and at least 90 % of it."""
  near = max(8, int(channels + 4) // 8 * 8)
  return near + 8 if near < 0.9 * channels else near


def _row(blocks, width_factor, img_size):
  row = dict(layers=blocks, width_factor=width_factor, img_size=img_size, stem_type='fixed', conv_eps=1e-8)
  return ResNetV2, row


# depth and width: (blocks of each stage, image size of the ImageNet-1k weights that timm names first)
SIZES = {'50x1': ((3, 4, 6, 3), 224), '50x3': ((3, 4, 6, 3), 448), '101x1': ((3, 4, 23, 3), 448),
         '101x3': ((3, 4, 23, 3), 448), '152x2': ((3, 8, 36, 3), 224), '152x4': ((3, 8, 36, 3), 480)}  # fmt: skip
VARIANTS = {f'resnetv2_{size}_bit': _row(blocks, int(size[-1]), img) for size, (blocks, img) in SIZES.items()}
# the names of the original release: S was trained on ImageNet-1k, M on ImageNet-21k
ALIASES = {f'BiT-{data}-R{size}': f'resnetv2_{size}_bit' for data in 'SM' for size in SIZES}
