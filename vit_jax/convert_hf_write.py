"""The two JSONs of a Hugging Face folder, from a description and, for the preprocessing, back."""

import math

from vit_jax import convert_hf_config, models, transforms
from vit_jax.models import mae, resnet, vit

_IMAGENET = {'image_mean': (0.485, 0.456, 0.406), 'image_std': (0.229, 0.224, 0.225)}
_CLIP = {'image_mean': (0.48145466, 0.4578275, 0.40821073), 'image_std': (0.26862954, 0.26130258, 0.27577711)}
_SQUARE, _SHORT = {'height': 224, 'width': 224}, {'shortest_edge': 224}
_PROCESSOR = {
  'do_resize': True, 'size': _SQUARE, 'crop_size': _SQUARE, 'resample': 2, 'do_center_crop': False, 'do_rescale': True,
  'rescale_factor': 1 / 255, 'do_normalize': True, 'image_mean': (0.5,) * 3, 'image_std': (0.5,) * 3,
}  # fmt: skip
_SHORT_CROP = {'size': _SHORT, 'do_center_crop': True, 'resample': 3}
# What transformers takes for what a preprocessor_config.json leaves out, by how its class is called; the rest as ViT's.
_PROCESSORS = {
  'deit': {'size': {'height': 256, 'width': 256}, 'do_center_crop': True, 'resample': 3},
  'beit': {'size': {'height': 256, 'width': 256}, 'do_center_crop': True, 'resample': 3},
  'clip': _SHORT_CROP | _CLIP,
  'bit': _SHORT_CROP | _CLIP,
  'vithybrid': _SHORT_CROP | _CLIP | {'size': {'shortest_edge': 384}, 'crop_size': {'height': 384, 'width': 384}},
  'siglip': {'resample': 3},
  'dinov3': _IMAGENET,
}
_FILTERS = {2: 'bilinear', 3: 'bicubic'}
# The processor that each model_type is published with.
_FAMILY = {
  'deit': 'deit', 'beit': 'beit', 'clip_vision_model': 'clip', 'siglip_vision_model': 'siglip', 'bit': 'bit',
  'vit-hybrid': 'vithybrid', 'dinov3_vit': 'dinov3', 'dinov2': 'bit', 'dinov2_with_registers': 'bit',
}  # fmt: skip


def row(preprocessor, config, made):
  """The preprocessing row (transforms.py) of a preprocessor_config.json; without one, its family's at the image size.

  Raises ValueError for a step that a row cannot say.
  """
  if preprocessor is None:
    tower = convert_hf_config.values(config)['model_type']
    kind = _FAMILY.get(tower, 'vit')
    h, w = vit.pair(made.get('img_size', 224))
    given = _PROCESSOR | _PROCESSORS.get(kind, {})
    size = {'shortest_edge': h} if 'shortest_edge' in given['size'] and h == w else {'height': h, 'width': w}
    given |= {'size': size, 'crop_size': {'height': h, 'width': w}}
  else:
    called = [preprocessor.get(key) for key in ('image_processor_type', 'feature_extractor_type')]
    called = next((str(name).lower() for name in called if name), 'vit')
    kind = next((kind for kind in sorted(_PROCESSORS, key=len, reverse=True) if called.startswith(kind)), 'vit')
    given = _PROCESSOR | _PROCESSORS.get(kind, {}) | {k: v for k, v in preprocessor.items() if v is not None}
  crop, pct, size = _geometry(given, kind)
  if given['resample'] not in _FILTERS:
    raise ValueError(f'preprocessor_config.json says resample={given["resample"]}; we have 2 bilinear, 3 bicubic.')
  if not given['do_rescale'] or not math.isclose(given['rescale_factor'], 1 / 255, rel_tol=1e-6):
    raise ValueError('preprocessor_config.json does not scale pixels by 1/255; we have no other scale.')
  mean, std = (given['image_mean'], given['image_std']) if given['do_normalize'] else ((0.0,) * 3, (1.0,) * 3)
  return transforms.preprocessing(
    size, crop=crop, crop_pct=pct, interpolation=_FILTERS[given['resample']], mean=tuple(mean), std=tuple(std)
  )


def _geometry(given, kind):
  """(crop, crop_pct, size) of a processor's resize and crop."""
  size, cropped = given['size'], _sides(given['crop_size'])
  if isinstance(size, int):
    size = {'shortest_edge': size} if kind in ('clip', 'bit', 'vithybrid') else {'height': size, 'width': size}
  if not given['do_resize']:
    raise ValueError('preprocessor_config.json does not resize; a row of ours always does.')
  if 'height' in size:
    sides = size['height'], size['width']
    if not given['do_center_crop'] or cropped == sides:
      return 'squash', 1.0, sides
    crop = 'squash'
  elif 'shortest_edge' in size and given['do_center_crop'] and 'longest_edge' not in size:
    sides, crop = (size['shortest_edge'],) * 2, 'center_floor'
  else:
    raise ValueError(f'preprocessor_config.json says size={size} and does not crop to one size; we have no such step.')
  share = cropped[0] / sides[0]
  if (
    crop == 'center_floor'
    and cropped[0] != cropped[1]
    or share > 1
    or any(math.floor(length / share) != side for length, side in zip(cropped, sides))
  ):
    raise ValueError(f'preprocessor_config.json resizes to {sides} and crops {cropped}; we have no such step.')
  return crop, share, cropped


def _sides(size):
  """(h, w) of an int or of {'height', 'width'}."""
  return (size, size) if isinstance(size, int) else (size['height'], size['width'])


def preprocessor(described):
  """The preprocessor_config.json of a description; {} where it has no preprocessing.

  TensorFlow's bilinear filter becomes Pillow's, which is the nearest that transformers has, and an odd margin of a crop
  is halved downwards. Raises ValueError for a crop that no processor of theirs makes.
  """
  row = described['preprocessing']
  if row is None:
    return {}
  h, w = row['size']
  resized = {'height': math.floor(h / row['crop_pct']), 'width': math.floor(w / row['crop_pct'])}
  whole = resized == {'height': h, 'width': w}
  if row['crop'] != 'squash' and h != w:
    raise ValueError(f'Hugging Face cannot cover and crop {h}x{w}, which is not square; choose --to=timm.')
  cover = row['crop'] != 'squash'
  name = 'CLIPImageProcessor' if cover else 'ViTImageProcessor' if whole else 'DeiTImageProcessor'
  return {
    'image_processor_type': name,
    'do_resize': True,
    'size': {'shortest_edge': resized['height']} if cover else resized,
    'resample': 3 if row['interpolation'] == 'bicubic' else 2,
    **({'do_center_crop': True, 'crop_size': {'height': h, 'width': w}} if name != 'ViTImageProcessor' else {}),
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(row['mean']),
    'image_std': list(row['std']),
  }


# Arguments that change no number at the model's own size, or that the entries of the positions express.
FREE = (
  'drop_rate', 'pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path_rate', 'pos_resize', 'rel_pos_resize',
  'decoder_pos_resize', 'no_embed_class', 'crop_to_patches',
)  # fmt: skip


def config(described):
  """The config.json with which transformers gives our logits; `architectures` names its class that does.

  Each class that might is asked, by reading back what would be written. Raises ValueError that names what differs.
  """
  made, (cls, _) = described['architecture'], models.variant(described['name'])
  if cls.__name__ not in _WRITERS:
    raise ValueError(f'Hugging Face has no {cls.__name__}; write --to=timm or --to=npz instead.')
  bare = not made['num_classes'] and not made.get('representation_size') and cls is not mae.MaskedAutoencoder
  nearest = None
  for write in _WRITERS[cls.__name__]:
    try:
      found = _known(write(made)) | _labels(described)
      back, again = convert_hf_config.read(found, {} if bare else None)
    except ValueError as error:
      nearest = nearest or [str(error)]
      continue
    mine, theirs = _resolved(made), _resolved(again)
    said = mine | {key: made[key] for key in made if key.endswith('mlp_ratio')}
    differ = [f'{key}={said[key]!r}' for key in mine if mine[key] != theirs.get(key)]
    if back is cls and not differ:
      return found
    nearest = differ if nearest is None or len(differ) < len(nearest) else nearest
  raise ValueError(f'Hugging Face has no {cls.__name__} with {", ".join(nearest)}; write --to=timm instead.')


def _known(raw):
  """A config without what its class does not read."""
  read = {'model_type', 'architectures', 'text_config', 'vision_config', *convert_hf_config.values(raw)}
  found = {key: value for key, value in raw.items() if key in read}
  return found | ({'vision_config': _known(found['vision_config'])} if 'vision_config' in found else {})


def _resolved(made):
  """The arguments that change numbers, in one spelling."""
  made = {key: value for key, value in made.items() if key not in FREE}
  if 'embed_dim' not in made:
    made.pop('img_size')  # convolutions do not know it
  for key in made.keys() & {'img_size', 'patch_size'}:
    made[key] = vit.pair(made[key])
  for dim, ratio in (('embed_dim', 'mlp_ratio'), ('decoder_embed_dim', 'decoder_mlp_ratio')):
    if ratio in made:
      hidden, align = int(made[dim] * made[ratio]), made.get('swiglu_align_to') or 1
      made[ratio] = -(-hidden // align) * align
  if 'swiglu_align_to' in made:
    made['swiglu_align_to'] = made['swiglu_align_to'] > 0  # the size is in the ratio; 0 is another layer
  for key in made.keys() & {'fc_norm', 'use_fc_norm'}:
    made[key] = made['global_pool'] in ('avg', 'max', 'avgmax') if made[key] is None else made[key]
    if not (made['num_classes'] or made[key] or made.get('pre_norm') or made['global_pool'] == 'map'):
      made['global_pool'] = ''  # without a head, tokens are what it gives, and how they are pooled is the reader's
  if made.get('act_layer', '') is None:
    made['act_layer'] = 'silu' if made['swiglu_mlp'] else 'gelu'
  if 'width_factor' in made:
    factor = made.pop('width_factor')
    made['channels'] = tuple(resnet.divisible(c * factor) for c in made['channels'][: len(made['layers'])])
    made['stem_chs'] = resnet.divisible(made['stem_chs'] * factor)
    made['layers'] = tuple(made['layers'])
  return made | {'init_values': made.get('init_values') or None}


def _labels(described):
  count = described['architecture']['num_classes']
  names = described.get('classes') or [f'LABEL_{i}' for i in range(count)]
  return {'id2label': dict(enumerate(names)), 'label2id': {name: i for i, name in enumerate(names)}} if count else {}


_ACTIVATIONS = {'gelu_tanh': 'gelu_pytorch_tanh'}
_plain = lambda size: list(size) if isinstance(size, (tuple, list)) and len(set(size)) > 1 else vit.pair(size)[0]


def _tokens(made, kind, name, *, head=True):
  """What the configs of all transformers share; head: whether the class of this name has one."""
  ending = 'ForImageClassification' if head and made['num_classes'] else 'Model'
  act = made['act_layer'] or ('silu' if made['swiglu_mlp'] else 'gelu')
  return {
    'model_type': kind,
    'architectures': [name + ending],
    'hidden_size': made['embed_dim'],
    'num_hidden_layers': made['depth'],
    'num_attention_heads': made['num_heads'],
    'intermediate_size': int(made['embed_dim'] * made['mlp_ratio']),
    'hidden_act': _ACTIVATIONS.get(act, act),
    'layer_norm_eps': made['norm_eps'],
    'image_size': _plain(made['img_size']),
    'patch_size': _plain(made['patch_size']),
    'num_channels': made['in_chans'],
    'qkv_bias': made['qkv_bias'],
  }


def _vit(made):
  return _tokens(made, 'vit', 'ViT') | {'pooler_output_size': made['representation_size'] or made['embed_dim']}


def _deit(made):
  return _vit(made) | {'model_type': 'deit', 'architectures': _tokens(made, 'deit', 'DeiT')['architectures']}


def _deit_teacher(made):
  return _tokens(made, 'deit', 'DeiT') | {'architectures': ['DeiTForImageClassificationWithTeacher']}


def _dinov2(made, kind='dinov2', name='Dinov2'):
  ratio, gated = made['mlp_ratio'], made['mlp_layer'] == 'SwiGLUPacked'
  if gated:
    ratio = int(made['embed_dim'] * ratio) * 3 / 4 / made['embed_dim']
  return _tokens(made, kind, name) | {
    'mlp_ratio': ratio,
    'use_swiglu_ffn': gated,
    'layerscale_value': made['init_values'],
    'use_mask_token': False,
    'num_register_tokens': made['reg_tokens'],
  }


def _dinov2_with_registers(made):
  return _dinov2(made, 'dinov2_with_registers', 'Dinov2WithRegisters')


def _clip(made):
  written = _tokens(made, 'clip_vision_model', 'CLIPVision', head=False) | {'projection_dim': made['num_classes']}
  return written | ({'architectures': ['CLIPVisionModelWithProjection']} if made['num_classes'] else {})


def _clip_mean(made):
  return _tower(_tokens(made, 'clip_vision_model', 'CLIP'), 'clip')


def _siglip(made):
  written = _tokens(made, 'siglip_vision_model', 'SiglipVision', head=False)
  return written | {'vision_use_head': made['global_pool'] == 'map'}


def _siglip_mean(made):
  return _tower(_tokens(made, 'siglip_vision_model', 'Siglip') | {'vision_use_head': False}, 'siglip')


def _tower(tower, kind):
  """The config of two towers, of which the text's is any."""
  architectures = tower.pop('architectures')
  return {'model_type': kind, 'architectures': architectures, 'vision_config': tower, 'text_config': {}}


def _dinov3(made):
  bias, hidden, align = made['qkv_bias'], int(made['embed_dim'] * made['mlp_ratio']), made['swiglu_align_to'] or 1
  return _tokens(made, 'dinov3_vit', 'DINOv3ViT', head=False) | {
    'intermediate_size': -(-hidden // align) * align,
    'query_bias': bias,
    'key_bias': made['k_bias'],
    'value_bias': bias,
    'layerscale_value': made['init_values'],
    'use_gated_mlp': made['swiglu_mlp'],
    'num_register_tokens': made['num_reg_tokens'],
    'rope_theta': made['rope_temperature'],
  }


def _beit(made):
  return _tokens(made, 'beit', 'Beit') | {
    'layer_scale_init_value': made['init_values'] or 0.0,
    'use_absolute_position_embeddings': made['use_abs_pos_emb'],
    'use_relative_position_bias': made['use_rel_pos_bias'],
    'use_shared_relative_position_bias': made['use_shared_rel_pos_bias'],
    'use_mean_pooling': made['global_pool'] == 'avg',
  }


def _beit_masked(made):
  architectures, words = ['BeitForMaskedImageModeling'], made['num_classes']
  return _beit(made) | {'architectures': architectures, 'use_mean_pooling': True, 'vocab_size': words}


def _mae(made):
  dim = made['decoder_embed_dim']
  if not dim:
    encoder = {'architectures': ['ViTMAEModel'], 'mask_ratio': made['mask_ratio']}
    return _tokens(made, 'vit_mae', 'ViTMAE', head=False) | encoder
  return _tokens(made, 'vit_mae', 'ViTMAE') | {
    'architectures': ['ViTMAEForPreTraining'],
    'decoder_hidden_size': dim,
    'decoder_num_hidden_layers': made['decoder_depth'],
    'decoder_num_attention_heads': made['decoder_num_heads'],
    'decoder_intermediate_size': int(dim * made['decoder_mlp_ratio']),
    'mask_ratio': made['mask_ratio'],
    'norm_pix_loss': made['norm_pix_loss'],
  }


def _stages(made, act_layer):
  widths = _resolved(made)
  return {
    'model_type': 'bit',
    'depths': list(made['layers']),
    'hidden_sizes': list(widths['channels']),
    'embedding_size': widths['stem_chs'],
    'num_groups': made['num_groups'],
    'num_channels': made['in_chans'],
    'hidden_act': act_layer,
  }


def _bit(made):
  name = 'BitForImageClassification' if made['num_classes'] else 'BitModel'
  return _stages(made, made['act_layer']) | {'architectures': [name], 'layer_type': 'preactivation'}


def _hybrid(made):
  last = len(made['layers'])
  if not last or made['backbone'] != 'resnetv2':
    raise ValueError(f'backbone={made["backbone"]!r}, layers={made["layers"]}')
  h, w = (-(-n // 2 ** (1 + last)) for n in vit.pair(made['img_size']))
  backbone = _stages(made, made['backbone_act']) | {
    'layer_type': 'bottleneck', 'global_padding': 'SAME', 'embedding_dynamic_padding': True,
    'out_features': [f'stage{last}'],
  }  # fmt: skip
  return _tokens(made, 'vit-hybrid', 'ViTHybrid') | {
    'backbone_config': backbone,
    'backbone_featmap_shape': [1, backbone['hidden_sizes'][-1], h, w],
  }


_WRITERS = {
  'VisionTransformer': (
    _vit, _deit, _dinov2, _dinov2_with_registers, _clip, _clip_mean, _siglip, _siglip_mean,
  ),
  'VisionTransformerDistilled': (_deit_teacher,),
  'Eva': (_dinov3,),
  'Beit': (_beit, _beit_masked),
  'MaskedAutoencoder': (_mae,),
  'ResNetV2': (_bit,),
  'HybridVisionTransformer': (_hybrid,),
}  # fmt: skip
