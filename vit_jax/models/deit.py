"""DeiT with its distillation token (Touvron et al. 2020, arXiv:2012.12877, sec. 4): a ViT with two tokens, two heads.

DeiT without that token, and DeiT III (arXiv:2204.07118), are VisionTransformers: their rows are in vit_variants.py.
"""

from vit_jax.models import layers
from vit_jax.models.vit import VisionTransformer


class VisionTransformerDistilled(VisionTransformer):
  """Images (b, h, w, in_chans), normalised floats -> logits (b, num_classes): the mean of the two heads' logits.

  Arguments as VisionTransformer's; the tokens are class, distillation, patches, and global_pool can only be 'token'.
  """

  pools = ('token',)
  extra_tokens, extra_heads = ('dist_token',), ('head_dist',)

  def pool(self, x):  # (b, n, d)
    """The mean of the class and the distillation token, (b, d): what a model without heads gives."""
    return (x[:, 0] + x[:, 1]) / 2

  def outputs(self, x, *, key=None):  # (b, n, d) of features
    """{'pre_logits', 'head', 'head_dist': logits of the class and of the distillation token, 'logits': their mean}."""
    if self.head is None:
      return {'pre_logits': self.pool(x), 'logits': self.pool(layers.dropout(x, self.drop_rate, key))}
    tokens = layers.dropout(x[:, :2], self.drop_rate, key)
    head, head_dist = self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])
    return {'pre_logits': self.pool(x), 'head': head, 'head_dist': head_dist, 'logits': (head + head_dist) / 2}

  def heads(self, images, *, key=None):  # (b, h, w, c)
    """Logits of the class token and of the distillation token, a pair of (b, num_classes)."""
    if self.head is None:
      raise ValueError('This model has no heads (num_classes=0); build it with num_classes.')
    out = self.outputs(self.features(images, key=key), key=layers.fold(key, 2))
    return out['head'], out['head_dist']


SIZES = {'tiny': (192, 3), 'small': (384, 6), 'base': (768, 12)}  # embed_dim, num_heads
VARIANTS = {
  f'deit_{size}_distilled_patch16_{img_size}': (
    VisionTransformerDistilled,
    dict(img_size=img_size, embed_dim=SIZES[size][0], num_heads=SIZES[size][1]),
  )
  for size, img_size in [('tiny', 224), ('small', 224), ('base', 224), ('base', 384)]
}
