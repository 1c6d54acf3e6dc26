"""Hugging Face's formats, both ways: what each array is called in their files, and the two JSONs beside these.

The names are those of the published files, which transformers 4 and 5 write and read. Where a file has a number that no
output of ours depends on (mask tokens, text towers, buffers), it is ignored by name.
"""

import re

from vit_jax import convert, convert_hf_config, convert_hf_write, models

MODEL_TYPES = convert_hf_config.MODEL_TYPES
config, preprocessor = convert_hf_write.config, convert_hf_write.preprocessor


def describe(config, preprocessor=None, shapes=None):
  """What a folder holds: name, architecture (every argument), num_classes, classes and preprocessing, as model.json.

  config, preprocessor: its config.json and preprocessor_config.json.   shapes: {key: shape} of its weights, which say
  what head there is; without them `architectures` does.   name: the variant that differs least.

  Raises ValueError, in one line, for a model_type or a value that changes the numbers and that we do not have.
  """
  cls, made = convert_hf_config.read(config, shapes)
  return {
    'name': models.nearest(cls, made),
    'architecture': made,
    'num_classes': made['num_classes'],
    'classes': convert_hf_config.classes(config, made['num_classes']),
    'preprocessing': convert_hf_write.row(preprocessor, config, made),
  }


def _blocks(ours, theirs, qkv, rest):
  """Names of a stack of blocks: of q, k, v apart, and of the other modules."""
  names = {f'{ours}.*.attn.qkv': tuple(f'{theirs}.*.{part}' for part in qkv)}
  names |= {f'{ours}.*.attn.{"qkv"[i]}_bias': f'{theirs}.*.{part}.bias' for i, part in enumerate(qkv)}
  return names | {f'{ours}.*.{mine}': f'{theirs}.*.{name}' for mine, name in rest.items()}


_BERT_QKV = tuple(f'attention.attention.{part}' for part in ('query', 'key', 'value'))
_BERT = {
  'norm1': 'layernorm_before', 'attn.proj': 'attention.output.dense', 'norm2': 'layernorm_after',
  'mlp.fc1': 'intermediate.dense', 'mlp.fc2': 'output.dense',
}  # fmt: skip
_TABLE = 'relative_position_bias.relative_position_bias_table'
_EMBEDDINGS = {
  'cls_token': 'embeddings.cls_token', 'pos_embed': 'embeddings.position_embeddings',
  'patch_embed.proj': 'embeddings.patch_embeddings.projection', 'norm': 'layernorm', 'pre_logits': 'pooler.dense',
  'head': '/classifier',
}  # fmt: skip
_VIT = _EMBEDDINGS | _blocks('blocks', 'encoder.layer', _BERT_QKV, _BERT)
_DEIT = _VIT | {
  'dist_token': 'embeddings.distillation_token', 'reg_token': 'embeddings.distillation_token',
  'head_dist': '/distillation_classifier',
}  # fmt: skip
_DINOV2 = _EMBEDDINGS | {'reg_token': 'embeddings.register_tokens'} | _blocks('blocks', 'encoder.layer', _BERT_QKV, {
  'norm1': 'norm1', 'attn.proj': 'attention.output.dense', 'ls1.gamma': 'layer_scale1.lambda1', 'norm2': 'norm2',
  'mlp.fc1': 'mlp.fc1', 'mlp.fc2': 'mlp.fc2', 'ls2.gamma': 'layer_scale2.lambda1',
})  # fmt: skip
_DINOV3 = _EMBEDDINGS | {
  'reg_token': 'embeddings.register_tokens', 'patch_embed.proj': 'embeddings.patch_embeddings', 'norm': 'norm',
} | _blocks('blocks', 'layer', tuple(f'attention.{part}_proj' for part in 'qkv'), {
  'norm1': 'norm1', 'attn.proj': 'attention.o_proj', 'gamma_1': 'layer_scale1.lambda1', 'norm2': 'norm2',
  'mlp.fc1': 'mlp.up_proj', 'mlp.fc1_g': 'mlp.gate_proj', 'mlp.fc1_x': 'mlp.up_proj', 'mlp.fc2': 'mlp.down_proj',
  'gamma_2': 'layer_scale2.lambda1',
})  # fmt: skip
_BEIT = _VIT | {
  'fc_norm': 'pooler.layernorm', 'rel_pos_bias.relative_position_bias_table': f'encoder.{_TABLE}',
  'blocks.*.gamma_1': 'encoder.layer.*.lambda_1', 'blocks.*.gamma_2': 'encoder.layer.*.lambda_2',
  'blocks.*.attn.relative_position_bias_table': f'encoder.layer.*.attention.attention.{_TABLE}',
}  # fmt: skip
_TOWER = {
  'cls_token': 'embeddings.class_embedding', 'pos_embed': 'embeddings.position_embedding.weight',
  'patch_embed.proj': 'embeddings.patch_embedding', 'norm': 'post_layernorm',
} | _blocks('blocks', 'encoder.layers', tuple(f'self_attn.{part}_proj' for part in 'qkv'), {
  'norm1': 'layer_norm1', 'attn.proj': 'self_attn.out_proj', 'norm2': 'layer_norm2', 'mlp.fc1': 'mlp.fc1',
  'mlp.fc2': 'mlp.fc2',
})  # fmt: skip
_CLIP = _TOWER | {'norm_pre': 'pre_layrnorm', 'head': '/visual_projection'}
_SIGLIP = _TOWER | {
  'attn_pool.latent': 'head.probe', 'attn_pool.q.weight': 'head.attention.in_proj_weight',
  'attn_pool.kv.weight': 'head.attention.in_proj_weight', 'attn_pool.q.bias': 'head.attention.in_proj_bias',
  'attn_pool.kv.bias': 'head.attention.in_proj_bias', 'attn_pool.proj': 'head.attention.out_proj',
  'attn_pool.norm': 'head.layernorm', 'attn_pool.mlp.fc1': 'head.mlp.fc1', 'attn_pool.mlp.fc2': 'head.mlp.fc2',
  'head': '/classifier',
}  # fmt: skip
_MAE = _VIT | {
  'decoder_embed': '/decoder.decoder_embed', 'mask_token': '/decoder.mask_token', 'head': '/decoder.decoder_pred',
  'decoder_pos_embed': '/decoder.decoder_pos_embed', 'decoder_norm': '/decoder.decoder_norm',
  'decoder_pred': '/decoder.decoder_pred',
} | _blocks('decoder_blocks', '/decoder.decoder_layers', _BERT_QKV, _BERT)  # fmt: skip
_CONVOLUTIONS = {
  'stem.conv': 'embedder.convolution', 'stem.norm': 'embedder.norm',
  **{f'stages.*.blocks.*.{part}': f'encoder.stages.*.layers.*.{part}'
     for part in ('conv1', 'conv2', 'conv3', 'norm1', 'norm2', 'norm3', 'downsample.conv', 'downsample.norm')},
}  # fmt: skip
_BIT = _CONVOLUTIONS | {'norm': 'norm', 'head.fc': '/classifier.1'}
_HYBRID = _VIT | {
  f'patch_embed.backbone.{mine}': f'embeddings.patch_embeddings.backbone.bit.{theirs}'
  for mine, theirs in _CONVOLUTIONS.items()
}
# model_type of the image model: (names, what they begin with where the file holds more than the model)
_NAMES = {
  'vit': (_VIT, 'vit.'),
  'deit': (_DEIT, 'deit.'),
  'dinov2': (_DINOV2, 'dinov2.'),
  'dinov2_with_registers': (_DINOV2, 'dinov2_with_registers.'),
  'dinov3_vit': (_DINOV3, ''),
  'beit': (_BEIT, 'beit.'),
  'clip_vision_model': (_CLIP, 'vision_model.'),
  'siglip_vision_model': (_SIGLIP, 'vision_model.'),
  'vit_mae': (_MAE, 'vit.'),
  'bit': (_BIT, 'bit.'),
  'vit-hybrid': (_HYBRID, 'vit.'),
}
_IGNORED = re.compile(
  r'(^|\.)(text_model\.|text_projection\.|logit_scale$|logit_bias$|position_ids$|relative_position_index$|'
  r'num_batches_tracked$|embeddings\.mask_token$|rope_embeddings\.)'
)


def ignored(key, model_type, shapes=()):
  """Whether a file's key is dropped by name: text towers, mask tokens, buffers; shapes: {key: shape} of the file.

  A classifier on a CLIP or SigLIP tower reads its tokens before the tower's last norm or head, so that goes too, and
  so do registers of which there are none.
  """
  if _IGNORED.search(key) or key in shapes and 0 in shapes[key]:
    return True
  unread = {'clip': 'vision_model.post_layernorm.', 'siglip': 'vision_model.head.'}.get(model_type)
  return unread is not None and 'classifier.weight' in shapes and key.startswith(unread)


def unread(config):
  """{key: shape} of what the class of a config.json has and no output of ours depends on; written as zeros."""
  given = convert_hf_config.values(config)
  kind, dim = given['model_type'], given.get('hidden_size')
  prefix = _prefix(*_NAMES[kind], config, None)
  if kind == 'dinov2_with_registers' or kind == 'dinov2' and given['use_mask_token']:
    return {f'{prefix}embeddings.mask_token': (1, dim)}
  if kind == 'dinov3_vit' or kind == 'beit' and given['use_mask_token']:
    none = {} if given.get('num_register_tokens', 1) else {f'{prefix}embeddings.register_tokens': (1, 0, dim)}
    return {f'{prefix}embeddings.mask_token': (1, 1, dim)} | none
  if kind == 'clip_vision_model' and convert_hf_config.head(config)[0] == 'classifier':
    return {f'{prefix}post_layernorm.{leaf}': (dim,) for leaf in ('weight', 'bias')}
  return {}


def entries(model, config, shapes=None):
  """The entries of a model in the file that `config` (its config.json) describes.

  shapes: {key: shape} of the file, which says whether names begin with the model's ('vit.'); without them the class in
  `architectures` does. Raises ValueError for an array of the model that such a file has no place for.
  """
  given = convert_hf_config.values(config)
  names, prefix = _NAMES[given['model_type']]
  names = names | _special(given, convert_hf_config.head(config, shapes)[0])
  prefix = _prefix(names, prefix, config, shapes)
  return [_entry(path, *laid, names, prefix, model, given) for path, laid in convert.layouts(model).items()]


_BIASES = {
  'query_bias': ('blocks.*.attn.q_bias',),
  'key_bias': ('blocks.*.attn.k_bias',),
  'value_bias': ('blocks.*.attn.v_bias',),
  'proj_bias': ('blocks.*.attn.proj.bias',),
  'mlp_bias': tuple(f'blocks.*.mlp.{part}.bias' for part in ('fc1', 'fc1_g', 'fc1_x', 'fc2')),
}


def _special(given, which):
  """The names that a value of the config or the head of a file changes; None for what the file does not have."""
  names = {}
  if which == 'teacher':
    names['head'] = '/cls_classifier'
  if which == 'lm_head':
    names |= {'head': '/lm_head', 'norm': '/layernorm'}
  if which == 'classifier' and given['model_type'] == 'clip_vision_model':
    names['head'] = '/classifier'
  if which == 'projection':
    names['head.bias'] = None
  if given.get('use_swiglu_ffn'):
    names |= {f'blocks.*.mlp.fc{i}': f'encoder.layer.*.mlp.weights_{way}' for i, way in ((1, 'in'), (2, 'out'))}
  for flag, keys in _BIASES.items():
    if not given.get(flag, True):
      names |= dict.fromkeys(keys)
  return names


def _prefix(names, prefix, config, shapes):
  """What the names of the model itself begin with in this file."""
  if shapes is None:
    bare = convert_hf_config.class_name(config).endswith('Model') and prefix != 'vision_model.'
    return '' if bare else prefix
  anchor = (names['patch_embed.proj'] if 'patch_embed.proj' in names else names['stem.conv']) + '.weight'
  found = [key.removesuffix(anchor) for key in shapes if key.endswith(anchor)]
  return found[0] if len(found) == 1 else prefix


def _entry(path, shape, file_shape, order, names, prefix, model, given):
  """The entry of one array: `shape` ours, `file_shape` and `order` as PyTorch would lay it out."""
  key = convert.timm_key(path)
  numbers, pattern = re.findall(r'(?<=\.)\d+(?=\.)', key), re.sub(r'(?<=\.)\d+(?=\.)', '*', key)
  module, _, leaf = pattern.rpartition('.')
  if pattern not in names and module not in names:
    raise ValueError(f"Hugging Face's {given['model_type']} has no place for {path}; write --to=timm instead.")
  found = names[pattern] if pattern in names else names[module]
  if found is None:
    return convert.Entry(path, shape, (None,), file_shape, order)

  def full(name):
    name = f'{name}.{leaf}' if pattern not in names else name
    for number in numbers:
      name = name.replace('*', number, 1)
    return name[1:] if name.startswith('/') else prefix + name

  if isinstance(found, tuple):  # q, k, v, which we hold as one
    third = (file_shape[0] // 3, *file_shape[1:])
    return convert.Entry(path, shape, tuple(map(full, found)), third, order, axis=len(shape) - 3)
  if pattern == 'pos_embed':
    return _positions(path, shape, full(found), model, given['model_type'])
  if '.in_proj_' in found:  # q, k, v of the pooling, which the file holds as one
    size = shape[-2] * shape[-1]
    cut = (0, size) if module == 'attn_pool.q' else (size, 3 * size)
    return convert.Entry(path, shape, (full(found),), (3 * size, *file_shape[1:]), order, cuts=(0, (cut,)))
  if pattern == 'cls_token' and given['model_type'] == 'clip_vision_model':
    file_shape, order = file_shape[2:], (0,)
  if pattern == 'head.fc.weight':  # a dense layer there, a 1 x 1 convolution here
    file_shape, order = file_shape[:2], (1, 0)
  return convert.Entry(path, shape, (full(found),), file_shape, order)


def _positions(path, shape, key, model, kind):
  """The entry of learned positions, (1, n, d) or (n, d) there: registers have none, the class token always one."""
  rows = {'deit': 2, 'siglip_vision_model': 0}.get(kind, 1)  # of prefix tokens in the file
  prefix = 0 if getattr(model, 'no_embed_class', False) else getattr(model, 'prefix', 1)
  axis = 0 if kind in ('clip_vision_model', 'siglip_vision_model') else 1
  patches, dim = shape[1] - prefix, shape[2]
  file_shape, order = (1, rows + patches, dim)[1 - axis :], tuple(range(axis + 2))
  if prefix == rows:
    return convert.Entry(path, shape, (key,), file_shape, order)
  if not prefix:
    return convert.Entry(path, shape, (key,), file_shape, order, cuts=(axis, ((rows, rows + patches),)))
  cuts = (0, rows), (0, prefix - rows), (rows, rows + patches)
  return convert.Entry(path, shape, (key, None, key), file_shape, order, axis=1, cuts=(axis, cuts))
