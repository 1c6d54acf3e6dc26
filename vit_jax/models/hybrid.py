"""Hybrids: a Vision Transformer whose patches are cut from the map of a convolutional backbone instead of the image.

R50+ViT, R26+ViT and R+ViT (Dosovitskiy et al. 2020, arXiv:2010.11929, sec. 3.1; Steiner et al. 2021, arXiv:2106.10270)
begin with a post-activation ResNetV2, or its stem alone. ResNet-D: He et al. 2018, arXiv:1812.01187, sec. 4.2.
Convolutional stem of MobileCLIP: Vasu et al. 2023, arXiv:2311.17049.
"""

import inspect
import math
from typing import NamedTuple

from flax import nnx

from vit_jax.models import layers as basics
from vit_jax.models import resnet
from vit_jax.models.vit import Size, VisionTransformer


class BatchNorm(nnx.BatchNorm):
  """(b, h, w, c) -> the same, normalised by the batch's own statistics if there is a key, else by the running ones."""

  def __init__(self, dim, *, eps, rngs):
    super().__init__(
      dim, momentum=0.9, epsilon=eps, use_fast_variance=False, scale_init=basics.ones, bias_init=basics.zeros, rngs=rngs
    )

  def __call__(self, x, *, key=None):
    return super().__call__(x, use_running_average=key is None).astype(x.dtype)  # the running ones are float32


def _conv(inputs, outputs, size, stride=1, *, padding=None, use_bias=False, rngs):
  side = size // 2 if padding is None else padding
  return nnx.Conv(
    inputs, outputs, (size, size), stride, padding=((side, side), (side, side)), use_bias=use_bias,
    kernel_init=basics.normal((2 / (size * size * outputs)) ** 0.5), bias_init=basics.zeros, rngs=rngs)  # fmt: skip


class Bottleneck(nnx.Module):
  """(b, h, w, c) -> (b, h/stride, w/stride, d): the block of ResNet-D, which pools in its shortcut."""

  def __init__(self, inputs, outputs, stride, *, act_layer, eps, rngs):
    self.stride, self.act_layer = stride, act_layer
    inner = outputs // 4
    self.conv1, self.bn1 = _conv(inputs, inner, 1, rngs=rngs), BatchNorm(inner, eps=eps, rngs=rngs)
    self.conv2, self.bn2 = _conv(inner, inner, 3, stride, rngs=rngs), BatchNorm(inner, eps=eps, rngs=rngs)
    self.conv3, self.bn3 = _conv(inner, outputs, 1, rngs=rngs), BatchNorm(outputs, eps=eps, rngs=rngs)
    shortcut = lambda: {1: _conv(inputs, outputs, 1, rngs=rngs), 2: BatchNorm(outputs, eps=eps, rngs=rngs)}
    changes = stride > 1 or inputs != outputs
    self.downsample = resnet.Numbered(shortcut()) if changes else None  # in the files, '0' is the pooling

  def __call__(self, x, *, key=None):
    act = basics.activation(self.act_layer)
    y = act(self.bn1(self.conv1(x), key=key))
    y = act(self.bn2(self.conv2(y), key=key))
    y = self.bn3(self.conv3(y), key=key)
    if self.downsample is not None:
      conv, norm = self.downsample
      x = norm(conv(resnet.avg_pool(x) if self.stride > 1 else x), key=key)
    return act(x + y)


class ResNetD(nnx.Module):
  """Images (b, h, w, c) -> maps {'stem', 'stage0', ...}, the last (b, ceil(h/reduction), ceil(w/reduction), dim)."""

  partial = True  # whether rows that the border cuts off still give one of the map

  def __init__(self, in_chans, blocks, channels, stem_chs, *, act_layer, eps, rngs):
    resnet.check_stages(blocks, channels)
    self.act_layer, self.dim, self.reduction = act_layer, channels[len(blocks) - 1], 2 ** (1 + len(blocks))
    norm = lambda dim: BatchNorm(dim, eps=eps, rngs=rngs)
    half = stem_chs // 2
    self.conv1 = resnet.Numbered({  # in the files, '2' and '5' are activations
      0: _conv(in_chans, half, 3, 2, rngs=rngs), 1: norm(half), 3: _conv(half, half, 3, rngs=rngs), 4: norm(half),
      6: _conv(half, stem_chs, 3, rngs=rngs)})  # fmt: skip
    self.bn1 = norm(stem_chs)
    inputs, self.layers = stem_chs, len(blocks)
    for i, (count, outputs) in enumerate(zip(blocks, channels)):
      sizes = [(inputs, outputs, 2 if i else 1)] + [(outputs, outputs, 1)] * (count - 1)
      stage = [Bottleneck(*size, act_layer=act_layer, eps=eps, rngs=rngs) for size in sizes]
      setattr(self, f'layer{i + 1}', resnet.Numbered(stage))
      inputs = outputs

  def maps(self, images, *, key=None):  # (b, h, w, c)
    """{'stem': map, 'stage0': map, ...}, each (b, h', w', c')."""
    act = basics.activation(self.act_layer)
    x, modules = images, [*self.conv1, self.bn1]
    for conv, norm in zip(modules[::2], modules[1::2], strict=True):
      x = act(norm(conv(x), key=key))
    x = resnet.max_pool(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = {'stem': x}
    for i in range(self.layers):
      for block in getattr(self, f'layer{i + 1}'):
        x = block(x, key=key)
      out[f'stage{i}'] = x
    return out


class ConvNorm(nnx.Module):
  """(b, h, w, c) -> (b, h/stride, w/stride, d): patches by one convolution, then norm and activation unless last."""

  def __init__(self, inputs, outputs, stride, *, last, act_layer, eps, rngs):
    self.act_layer = act_layer
    self.conv = _conv(inputs, outputs, stride, stride, padding=0, use_bias=last, rngs=rngs)
    self.bn = None if last else BatchNorm(outputs, eps=eps, rngs=rngs)

  def __call__(self, x, *, key=None):
    x = self.conv(x)
    return x if self.bn is None else basics.activation(self.act_layer)(self.bn(x, key=key))


class ConvStem(resnet.Numbered):
  """Images (b, h, w, c) -> {'stem': (b, h/reduction, w/reduction, dim)}; rows and columns left over are not read."""

  partial = False

  def __init__(self, in_chans, channels, strides, *, act_layer, eps, rngs):
    if len(channels) != len(strides):
      raise ValueError(f'channels={channels} and strides={strides} of a convstem want one number a convolution.')
    self.dim, self.reduction = channels[-1], math.prod(strides)
    sizes = zip((in_chans, *channels), channels, strides)
    how = dict(act_layer=act_layer, eps=eps, rngs=rngs)
    super().__init__([ConvNorm(*size, last=i == len(channels) - 1, **how) for i, size in enumerate(sizes)])

  def maps(self, images, *, key=None):  # (b, h, w, c)
    """{'stem': map (b, h', w', dim)}."""
    x = images
    for module in self:
      x = module(x, key=key)
    return {'stem': x}


class Backbone(NamedTuple):
  """What a hybrid's map comes from, in HybridVisionTransformer's words."""

  kind: str
  layers: tuple[int, ...]
  channels: tuple[int, ...]
  stem_chs: int
  width_factor: int
  stem_type: str
  strides: tuple[int, ...]
  style: resnet.Style

  def build(self, in_chans, rngs):
    """The module: `maps(images, key=)`, and `dim`, `reduction` and `partial`, which say how large its last map is."""
    basics.activation(self.style.act_layer)
    how = dict(act_layer=self.style.act_layer, eps=self.style.norm_eps, rngs=rngs)
    if self.kind == 'resnet':
      return ResNetD(in_chans, self.layers, self.channels, self.stem_chs, **how)
    if self.kind == 'convstem':
      return ConvStem(in_chans, self.channels, self.strides, **how)
    if self.kind != 'resnetv2':
      raise ValueError(f"backbone is {self.kind!r}; choose one of 'resnetv2', 'resnet', 'convstem'.")
    if self.layers:
      return resnet.ResNetV2(
        num_classes=0, in_chans=in_chans, layers=self.layers, channels=self.channels, global_pool='', preact=False,
        width_factor=self.width_factor, stem_chs=self.stem_chs, stem_type=self.stem_type, **self.style._asdict(),
        rngs=rngs)  # fmt: skip
    dim = resnet.divisible(self.stem_chs * self.width_factor)
    return resnet.Stem(in_chans, dim, stem_type=self.stem_type, preact=False, style=self.style, rngs=rngs)


class HybridEmbed(nnx.Module):
  """Images (b, h, w, c) -> patches (b * rows * cols, d), cut from the last map of a backbone and projected.

  proj: False = no projection; the map's channels are the tokens.   use_bias: of the projection.   crop: whether what is
  left over at the right and bottom of the map is left off; else such an image is refused.
  """

  def __init__(self, backbone, patch_size, dim, *, proj, use_bias, crop, rngs):
    self.backbone, self.patch_size, self.crop = backbone, patch_size, crop
    if not proj and (backbone.dim != dim or patch_size != (1, 1)):
      raise ValueError(f'proj=False takes embed_dim={backbone.dim}, what the backbone gives, and patch_size=1.')
    fan_in = patch_size[0] * patch_size[1] * backbone.dim
    self.proj = nnx.Conv(
      backbone.dim, dim, patch_size, patch_size, padding='VALID', use_bias=use_bias,
      kernel_init=basics.normal(fan_in**-0.5), bias_init=basics.zeros, rngs=rngs) if proj else None  # fmt: skip

  def grid(self, h, w):
    """(rows, columns) of patches of an h x w image; ValueError if its map does not split into patches."""
    (ph, pw), step = self.patch_size, self.backbone.reduction
    rows, cols = (-(-n // step) if self.backbone.partial else n // step for n in (h, w))
    if (rows % ph or cols % pw) and not self.crop or rows < ph or cols < pw:
      near = f'{max(rows // ph, 1) * ph * step}x{max(cols // pw, 1) * pw * step}'
      raise ValueError(
        f"A {h}x{w} image's {rows}x{cols} map does not split into {ph}x{pw} patches; resize the image to {near}."
      )
    return rows // ph, cols // pw

  def __call__(self, images, *, key=None):  # (b, h, w, c)
    *_, x = self.backbone.maps(images, key=key).values()
    x = x if self.proj is None else self.proj(x)
    return x.reshape(-1, x.shape[-1])


def _extends(parent, without):
  """A decorator for a constructor that ends in **arguments: its signature shows those of `parent`'s that it passes on.

  So that each default has one place, and whoever asks what a class takes (config, help) sees all of it.
  """

  def show(init):
    own, passed = (inspect.signature(f).parameters for f in (init, parent.__init__))
    shown = [p for p in own.values() if p.kind is not p.VAR_KEYWORD]
    shown += [p for name, p in passed.items() if name not in own and name not in without]
    init.__signature__ = inspect.Signature(sorted(shown, key=lambda p: p.kind))
    init.__annotations__ = parent.__init__.__annotations__ | init.__annotations__
    return init

  return show


class HybridVisionTransformer(VisionTransformer):
  """Images (b, h, w, in_chans), normalised floats -> logits (b, num_classes), in the dtype of images and parameters.

  Arguments beside VisionTransformer's:
    backbone: 'resnetv2', a post-activation resnet.ResNetV2, or with layers=() its stem alone; 'resnet', a ResNet-D with
      batch norm; 'convstem', one convolution for each of `channels`, with `strides`, and batch norm between them.
    layers, channels: blocks and output channels of each stage.   stem_chs: channels of the stem.
    width_factor, stem_type, conv_padding, conv_eps, conv_eps_on, num_groups: of a 'resnetv2', in ResNetV2's words.
    backbone_act, backbone_norm_eps: activation, and epsilon of the group or batch norms, inside the backbone.
    patch_size: pixels of the last map, not of the image.   proj: False = the map's channels are the tokens.

  Google's numerics: conv_eps_on='std', conv_eps=1e-5, backbone_norm_eps=1e-6, act_layer='gelu_tanh',
  pos_resize='corner'; the defaults are timm's. Any image size whose map splits into patches works.
  """

  @_extends(VisionTransformer, without=('embed_norm_layer',))
  def __init__(
    self, *, backbone='resnetv2', layers: tuple[int, ...] = (3, 4, 9),
    channels: tuple[int, ...] = (256, 512, 1024, 2048), stem_chs=64, width_factor=1, stem_type='same',
    conv_padding='same', conv_eps=1e-8, conv_eps_on='var', num_groups=32, backbone_act='relu', backbone_norm_eps=1e-5,
    strides: tuple[int, ...] = (), proj=True, patch_size: Size = 1, rngs, **arguments,
  ):  # fmt: skip
    self.proj = proj
    style = resnet.Style(conv_padding, conv_eps, conv_eps_on, num_groups, backbone_norm_eps, backbone_act)
    self.words = Backbone(
      backbone, tuple(layers), tuple(channels), stem_chs, width_factor, stem_type, tuple(strides), style)  # fmt: skip
    super().__init__(patch_size=patch_size, rngs=rngs, **arguments)

  def patch_layer(self, patch_size, in_chans, dim, *, use_bias, norm, crop, rngs):
    """The backbone, and what cuts its last map into patches."""
    backbone = self.words.build(in_chans, rngs)
    return HybridEmbed(backbone, patch_size, dim, proj=self.proj, use_bias=use_bias, crop=crop, rngs=rngs)

  def patches(self, images, *, key=None):  # (b, h, w, c)
    """Patches (b * rows * cols, d); with a key, batch norms use and learn the batch's statistics."""
    return self.patch_embed(images, key=key)

  def intermediates(self, images):  # (b, h, w, c)
    """As VisionTransformer's, after 'stem', 'stage0', ... (b, h', w', c') of the backbone."""
    return self.patch_embed.backbone.maps(images) | super().intermediates(images)


def _row(embed_dim, depth, num_heads, **rest):
  return HybridVisionTransformer, dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, **rest)


def _resnet_d(*size, layers, **rest):
  return _row(*size, backbone='resnet', layers=layers, **rest)


TINY, SMALL, BASE, LARGE, SHALLOW = (192, 12, 3), (384, 12, 6), (768, 12, 12), (1024, 24, 16), (768, 8, 8)
R26, R50 = (2, 2, 2, 2), (3, 4, 6, 3)
VARIANTS = {
  'vit_tiny_r_s16_p8_224': _row(*TINY, layers=(), patch_size=8),
  'vit_tiny_r_s16_p8_384': _row(*TINY, layers=(), patch_size=8, img_size=384),
  'vit_small_r26_s32_224': _row(*SMALL, layers=R26),
  'vit_small_r26_s32_384': _row(*SMALL, layers=R26, img_size=384),
  'vit_base_r26_s32_224': _row(*BASE, layers=R26),
  'vit_base_r50_s16_224': _row(*BASE, layers=(3, 4, 9), num_classes=0),
  'vit_base_r50_s16_384': _row(*BASE, layers=(3, 4, 9), img_size=384),
  'vit_large_r50_s32_224': _row(*LARGE, layers=R50),
  'vit_large_r50_s32_384': _row(*LARGE, layers=R50, img_size=384),
  'vit_small_resnet26d_224': _resnet_d(*SHALLOW, layers=R26, mlp_ratio=3.0),
  'vit_small_resnet50d_s16_224': _resnet_d(*SHALLOW, layers=R50[:3], mlp_ratio=3.0),
  'vit_base_resnet26d_224': _resnet_d(*BASE, layers=R26),
  'vit_base_resnet50d_224': _resnet_d(*BASE, layers=R50),
  'vit_base_mci_224': _row(
    *BASE, backbone='convstem', channels=(192, 192, 768), strides=(4, 2, 2), backbone_act='gelu', proj=False,
    no_embed_class=True, num_classes=512),
}  # fmt: skip
# the names of the original release
ALIASES = {
  'R+ViT-Ti_16': 'vit_tiny_r_s16_p8_224',
  'R26+ViT-S_32': 'vit_small_r26_s32_224',
  'R26+ViT-B_32': 'vit_base_r26_s32_224',
  'R50+ViT-B_16': 'vit_base_r50_s16_224',
  'R50+ViT-L_32': 'vit_large_r50_s32_224',
}
