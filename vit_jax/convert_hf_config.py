"""Hugging Face's config.json as the arguments of our classes, both ways.

What a config leaves out has the value that transformers gives it; what changes the numbers and is not among our
arguments is refused by name. Rates of dropout belong to a recipe, not to weights: they are not taken over.
"""

import math

from vit_jax import models
from vit_jax.models import beit, deit, eva, hybrid, layers, mae, resnet, vit

PLAIN_POSITIONS = 'bicubic_plain'  # but for one family, Hugging Face resamples positions without antialias
_BASE = dict(
  hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, hidden_act='gelu',
  layer_norm_eps=1e-12, image_size=224, patch_size=16, num_channels=3,
)  # fmt: skip
_VIT = _BASE | dict(qkv_bias=True, pooler_output_size=None, pooler_act='tanh')
_DINOV2 = _BASE | dict(
  mlp_ratio=4, layer_norm_eps=1e-6, patch_size=14, qkv_bias=True, layerscale_value=1.0, use_swiglu_ffn=False,
)  # fmt: skip
_BIT = dict(
  num_channels=3, embedding_size=64, hidden_sizes=(256, 512, 1024, 2048), depths=(3, 4, 6, 3),
  layer_type='preactivation', hidden_act='relu', global_padding=None, num_groups=32, embedding_dynamic_padding=False,
  output_stride=32, width_factor=1,
)  # fmt: skip
# What its classes read from a config, and take for what it leaves out; they know nothing else, so neither do we.
DEFAULTS = {
  'vit': _VIT,
  'deit': _VIT,
  'dinov2': _DINOV2 | dict(use_mask_token=True),
  'dinov2_with_registers': _DINOV2 | dict(patch_size=16, num_register_tokens=4),
  'dinov3_vit': _BASE | dict(
    hidden_size=384, num_attention_heads=6, intermediate_size=1536, layer_norm_eps=1e-5, rope_theta=100.0,
    query_bias=True, key_bias=False, value_bias=True, proj_bias=True, mlp_bias=True, layerscale_value=1.0,
    use_gated_mlp=False, num_register_tokens=0,
  ),
  'beit': _BASE | dict(
    vocab_size=8192, use_mask_token=False, use_absolute_position_embeddings=False, use_relative_position_bias=False,
    use_shared_relative_position_bias=False, layer_scale_init_value=0.1, use_mean_pooling=True,
  ),
  'clip_vision_model': _BASE | dict(projection_dim=512, patch_size=32, hidden_act='quick_gelu', layer_norm_eps=1e-5),
  'siglip_vision_model': _BASE | dict(hidden_act='gelu_pytorch_tanh', layer_norm_eps=1e-6, vision_use_head=True),
  'vit_mae': _BASE | dict(
    qkv_bias=True, decoder_num_attention_heads=16, decoder_hidden_size=512, decoder_num_hidden_layers=8,
    decoder_intermediate_size=2048, mask_ratio=0.75, norm_pix_loss=False,
  ),
  'bit': _BIT,
  'vit-hybrid': _VIT | dict(
    patch_size=1, backbone_config=None, backbone=None, backbone_featmap_shape=(1, 1024, 24, 24),
    use_timm_backbone=False,
  ),
}  # fmt: skip
# The hybrids' backbone where no config is given, and what one that is given leaves out.
_BACKBONE = dict(global_padding='same', layer_type='bottleneck', depths=(3, 4, 9), embedding_dynamic_padding=True)
TOWERS = {'clip': 'clip_vision_model', 'siglip': 'siglip_vision_model'}  # two towers: the image's is `vision_config`
MODEL_TYPES = (*DEFAULTS, *TOWERS)
ACTIVATIONS = {
  'gelu': 'gelu', 'gelu_python': 'gelu', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_new': 'gelu_tanh',
  'gelu_python_tanh': 'gelu_tanh', 'gelu_fast': 'gelu_tanh', 'gelu_accurate': 'gelu_tanh', 'quick_gelu': 'quick_gelu',
  'silu': 'silu', 'swish': 'silu',
}  # fmt: skip


def values(raw):
  """Every value of the image model of a config.json by name; ValueError for a model_type that we do not have."""
  kind = raw.get('model_type')
  if kind not in MODEL_TYPES:
    raise ValueError(f'model_type is {kind!r}; of Hugging Face there are {", ".join(MODEL_TYPES)}.')
  given = raw
  if kind in TOWERS:
    towers = [raw[key] or {} for key in ('vision_config', 'vision_config_dict') if key in raw]
    given = {key: value for tower in towers for key, value in tower.items()}
    given |= {'projection_dim': raw['projection_dim']} if 'projection_dim' in raw else {}
  kind = TOWERS.get(kind, kind)
  if any((given.get('pruned_heads') or {}).values()):
    raise ValueError('The config has pruned_heads; we have whole ones only.')
  return DEFAULTS[kind] | {key: given[key] for key in DEFAULTS[kind] if key in given} | {'model_type': kind}


# what a file's last layer is, by the end of its name; the first that is there counts
_HEADS = {
  'classifier.weight': 'classifier', 'classifier.1.weight': 'classifier', 'cls_classifier.weight': 'teacher',
  'visual_projection.weight': 'projection', 'lm_head.weight': 'lm_head', 'decoder.decoder_pred.weight': 'decoder',
  'pooler.dense.weight': 'pooler',
}  # fmt: skip


def head(raw, shapes=None):
  """(which, size): the last layer that a file of {key: shape} holds, else that the class named in the config has.

  which: 'classifier', 'teacher' (DeiT's two), 'projection', 'lm_head', 'decoder', 'pooler' (a tanh layer), or None.
  """
  if shapes is not None:
    for end, which in _HEADS.items():
      for key in shapes:
        if key == end or which == 'pooler' and key.endswith(f'.{end}'):
          return which, shapes[key][0]
    return None, 0
  given, name = values(raw), class_name(raw)
  if name.endswith('ForImageClassificationWithTeacher'):
    return 'teacher', labels(raw)
  if name.endswith('ForImageClassification'):
    return 'classifier', labels(raw)
  if name.endswith('ForMaskedImageModeling'):
    return 'lm_head', given['vocab_size']
  if name.endswith('ForPreTraining'):
    return 'decoder', 0
  if name in ('CLIPModel', 'CLIPVisionModelWithProjection'):
    return 'projection', given['projection_dim']
  if name in ('ViTModel', 'DeiTModel', 'ViTHybridModel'):
    return 'pooler', given['pooler_output_size'] or given['hidden_size']
  return None, 0


def class_name(raw):
  """Name of the class that a config says it is of, '' where it does not."""
  return (raw.get('architectures') or [''])[0]


def labels(raw):
  """How many classes a config speaks of; transformers takes two where it does not."""
  return len(raw['id2label']) if raw.get('id2label') is not None else raw.get('num_labels', 2)


def classes(raw, count):
  """Their names in order, None where they have none."""
  named = {int(number): name for number, name in (raw.get('id2label') or {}).items()}
  if sorted(named) != list(range(count)) or all(name == f'LABEL_{i}' for i, name in named.items()):
    return None
  return [named[i] for i in range(count)]


def read(raw, shapes=None):
  """(class, every argument) for a config.json and the {key: shape} of the file beside it."""
  given = values(raw)
  cls, made = _READERS[given['model_type']](given, *head(raw, shapes))
  known = models.arguments(cls)
  # their convolutions leave off what does not fill a patch
  return cls, known | made | ({'crop_to_patches': True} if 'crop_to_patches' in known else {})


def _only(given, wanted):
  """None if the config has these values, else a ValueError that names the first which is another."""
  for key, value in wanted.items():
    if given[key] != value:
      raise ValueError(f'The config says {key}={given[key]!r}, and of these models we have {key}={value!r} only.')


def _plain(size):
  """An int or a pair as a config holds it."""
  if isinstance(size, dict):
    size = [size['height'], size['width']]
  if isinstance(size, (list, tuple)):
    return size[0] if len(set(size)) == 1 else tuple(size)
  return size


def _ratio(hidden, dim):
  """hidden / dim, such that int(dim * ratio) is hidden: exact, else with four decimals as timm has it."""
  ratio = hidden / dim
  return ratio if int(dim * ratio) == hidden else math.ceil(ratio * 1e4) / 1e4


def _act(name):
  if ACTIVATIONS.get(name, name) not in layers.ACTIVATIONS:
    raise ValueError(f'The config says hidden_act={name!r}; we have {", ".join(sorted(ACTIVATIONS))}.')
  return ACTIVATIONS.get(name, name)


def _tokens(given):
  """The arguments that all transformers share."""
  dim = given['hidden_size']
  return dict(
    img_size=_plain(given['image_size']), patch_size=_plain(given['patch_size']), in_chans=given['num_channels'],
    embed_dim=dim, depth=given['num_hidden_layers'], num_heads=given['num_attention_heads'],
    mlp_ratio=_ratio(given['intermediate_size'], dim), qkv_bias=given.get('qkv_bias', True),
    act_layer=_act(given['hidden_act']),
    norm_eps=given['layer_norm_eps'], pos_resize=PLAIN_POSITIONS,
  )  # fmt: skip


def _top(given, which, size):
  """The arguments of what follows the class token."""
  if which == 'pooler':
    _only(given, {'pooler_act': 'tanh'})
    return dict(num_classes=0, representation_size=size)
  return dict(num_classes=size)


def _vit(given, which, size):
  return vit.VisionTransformer, _tokens(given) | _top(given, which, size)


def _deit(given, which, size):
  if which == 'teacher':
    return deit.VisionTransformerDistilled, _tokens(given) | dict(num_classes=size)
  # the distillation token is there and nobody reads it: it is a register with a position
  return vit.VisionTransformer, _tokens(given) | _top(given, which, size) | dict(reg_tokens=1)


def _dinov2(given, which, size):
  dim, hidden = given['hidden_size'], int(given['hidden_size'] * given['mlp_ratio'])
  made = _tokens(given | {'intermediate_size': hidden, 'image_size': _square(given)})
  made |= dict(num_classes=size, init_values=given['layerscale_value'])
  made |= dict(global_pool='token_avg') if which == 'classifier' else {}
  if given['use_swiglu_ffn']:
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    made |= dict(mlp_layer='SwiGLUPacked', act_layer='silu', mlp_ratio=_ratio(2 * hidden, dim))
  if given['model_type'] == 'dinov2_with_registers':
    made |= dict(reg_tokens=given['num_register_tokens'], pos_resize='bicubic')
  return vit.VisionTransformer, made


def _square(given):
  """Image size of the square grid as which this family always reads its positions, whatever the config says."""
  (h, w), (ph, pw) = vit.pair(_plain(given['image_size'])), vit.pair(_plain(given['patch_size']))
  if (h, ph) == (w, pw):
    return h
  side = math.isqrt((h // ph) * (w // pw))
  if side * side != (h // ph) * (w // pw):
    raise ValueError(f'The config says image_size={[h, w]}: this family has square grids of patches only.')
  return [side * ph, side * pw]


def _dinov3(given, which, size):
  aligned = 8 if given['intermediate_size'] % 8 == 0 else 1
  made = _tokens(given) | dict(
    num_classes=size, global_pool='token', use_fc_norm=False, init_values=given['layerscale_value'],
    num_reg_tokens=given['num_register_tokens'], qkv_bias=given['query_bias'] or given['value_bias'],
    k_bias=given['key_bias'], use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type='dinov3',
    rope_temperature=float(given['rope_theta']), rope_rotate_half=True, swiglu_mlp=given['use_gated_mlp'],
    swiglu_align_to=aligned if given['use_gated_mlp'] else 0,
  )  # fmt: skip
  return eva.Eva, made


def _beit(given, which, size):
  made = _tokens(given) | dict(
    num_classes=size, init_values=given['layer_scale_init_value'] if given['layer_scale_init_value'] > 0 else None,
    use_abs_pos_emb=given['use_absolute_position_embeddings'], use_rel_pos_bias=given['use_relative_position_bias'],
    use_shared_rel_pos_bias=given['use_shared_relative_position_bias'], rel_pos_resize='bilinear_plain',
    global_pool='avg' if given['use_mean_pooling'] else 'token',
  )  # fmt: skip
  if made['use_abs_pos_emb']:
    _square(given)
  if which == 'lm_head':  # a norm of its own, after one that is there unless use_mean_pooling
    _only(given, {'use_mean_pooling': True})
    made |= dict(global_pool='', use_fc_norm=False)
  return beit.Beit, made


def _clip(given, which, size):
  made = _tokens(given) | dict(num_classes=size, pre_norm=True)
  if which == 'classifier':  # CLIPForImageClassification leaves out the last norm
    made |= dict(global_pool='avg', final_norm=False, fc_norm=False)
  return vit.VisionTransformer, made


def _siglip(given, which, size):
  pool = dict(global_pool='map') if given['vision_use_head'] else dict(global_pool='')
  if which == 'classifier':
    pool = dict(global_pool='avg', fc_norm=False)
  return vit.VisionTransformer, _tokens(given) | dict(num_classes=size, class_token=False) | pool


def _mae(given, which, size):
  made = _tokens(given) | dict(num_classes=0, mask_ratio=given['mask_ratio'])
  if which != 'decoder':
    return mae.MaskedAutoencoder, made | dict(decoder_embed_dim=0)
  dim = given['decoder_hidden_size']
  made |= dict(
    decoder_embed_dim=dim, decoder_depth=given['decoder_num_hidden_layers'],
    decoder_num_heads=given['decoder_num_attention_heads'],
    decoder_mlp_ratio=_ratio(given['decoder_intermediate_size'], dim), decoder_pos_resize='flat',
    norm_pix_loss=given['norm_pix_loss'],
  )  # fmt: skip
  return mae.MaskedAutoencoder, made


def _stages(given):
  """The arguments of a BiT network that a hybrid's backbone has too; strides are ours only if nothing is dilated."""
  factor, depths = given['width_factor'], tuple(given['depths'])
  if 2 ** len(depths) >= given['output_stride'] and len(depths) > 1:
    raise ValueError(f'The config says output_stride={given["output_stride"]}: we have no dilated convolutions.')
  return dict(
    layers=depths, channels=tuple(resnet.divisible(c * factor) for c in given['hidden_sizes'][: len(depths)]),
    stem_chs=given['embedding_size'], width_factor=1, num_groups=given['num_groups'], conv_eps=1e-8,
  )  # fmt: skip


def _bit(given, which, size):
  _only(given, {'layer_type': 'preactivation', 'global_padding': None, 'embedding_dynamic_padding': False})
  made = _stages(given) | dict(num_classes=size, in_chans=given['num_channels'], act_layer=_act(given['hidden_act']))
  return resnet.ResNetV2, made | dict(stem_type='fixed', conv_padding='fixed', preact=True)


def _hybrid(given, which, size):
  _only(given, {'backbone': None, 'use_timm_backbone': False})
  said = given['backbone_config'] or _BACKBONE
  backbone = _BIT | {key: said[key] for key in _BIT if key in said}
  padding = str(backbone['global_padding']).upper()
  wanted = {'layer_type': 'bottleneck', 'global_padding': 'SAME', 'embedding_dynamic_padding': True}
  _only(backbone | {'global_padding': padding}, wanted)
  made = _tokens(given) | _top(given, which, size) | _stages(backbone)
  last = f'stage{len(made["layers"])}'
  if list(said.get('out_features') or [last]) != [last]:
    raise ValueError(f'The config says out_features={said["out_features"]}; our backbones end with the last stage.')
  h, w = (-(-n // 2 ** (1 + len(made['layers']))) for n in vit.pair(made['img_size']))
  if tuple(given['backbone_featmap_shape'][-2:]) != (h, w):
    raise ValueError(f"The config's backbone_featmap_shape is not {h}x{w}, which image_size={made['img_size']} gives.")
  made |= dict(stem_type='same', conv_padding='same', backbone_act=_act(backbone['hidden_act']))
  return hybrid.HybridVisionTransformer, made


_READERS = {
  'vit': _vit, 'deit': _deit, 'dinov2': _dinov2, 'dinov2_with_registers': _dinov2, 'dinov3_vit': _dinov3,
  'beit': _beit, 'clip_vision_model': _clip, 'siglip_vision_model': _siglip, 'vit_mae': _mae, 'bit': _bit,
  'vit-hybrid': _hybrid,
}  # fmt: skip
