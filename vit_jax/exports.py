"""A model for other libraries: weights that timm, Hugging Face or Google's code open, or a program (programs.py).

Of weights only layouts change, no bit. What a format cannot say (an epsilon, a form of GELU) is refused, because its
library would compute something else. A folder or file appears whole or not at all.
"""

import functools
import itertools
import json
import os
import pathlib
import tempfile

import numpy as np

from vit_jax import storage

FORMATS = ('timm', 'hf', 'npz', 'stablehlo', 'onnx')
PROGRAMS = ('stablehlo', 'onnx')
FILES = {'npz': '.npz', 'onnx': '.onnx'}  # formats of one file, and how its name ends

_SHAPE = 'img_size patch_size in_chans num_classes global_pool embed_dim depth num_heads mlp_ratio qkv_bias init_values'
_VIT = (
  f'{_SHAPE} class_token reg_tokens pos_embed no_embed_class pre_norm final_norm fc_norm pool_include_prefix act_layer '
  'qk_norm proj_bias scale_attn_norm scale_mlp_norm'
)
# What timm's constructors take as plain JSON in the sense of our class; num_classes and img_size are always written.
_SAYS = {
  **dict.fromkeys(('VisionTransformer', 'VisionTransformerDistilled', 'HybridVisionTransformer'), _VIT),
  'Beit': f'{_SHAPE} use_abs_pos_emb use_rel_pos_bias use_shared_rel_pos_bias use_fc_norm',
  'Eva': f'{_SHAPE} class_token num_reg_tokens no_embed_class use_abs_pos_emb use_rot_pos_emb rope_type '
         'rope_temperature rope_rotate_half use_fc_norm swiglu_mlp swiglu_align_to',
  'MlpMixer': 'img_size in_chans num_classes global_pool',
  'ResNetV2': 'in_chans num_classes global_pool',
}  # fmt: skip
_NO_VALUE = {'global_pool': ('token_avg',), 'pos_embed': ('sincos2d',)}  # of ours that timm does not have
# Recipe, not weights; what is done with images of another size than the model's own, which no such image shows.
_SILENT = ('drop_rate', 'pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path_rate', 'pos_resize',
           'rel_pos_resize', 'crop_to_patches')  # fmt: skip
_CROPS = {'center': 'center', 'center_floor': 'center', 'squash': 'squash', 'border': 'border'}


def export(
  model, *, to, out, arch=None, numerics=None, preprocessing=None, classes=None, dtype='float32', verify=False,
  images=None, unsafe=False,
):  # fmt: skip
  """Writes a model to `out` for use elsewhere, and gives {check: figure}, the checks that were made (verify=True).

  Args:
    model: a model of create_model or load, or what load takes: the folder of a run, a folder or file, a name.
    to: 'timm' (a folder for timm.create_model('local-dir:OUT')), 'hf' (a folder for from_pretrained), 'npz' (a file),
      'stablehlo' (a folder with model.stablehlo for jax.export, and a run.py), 'onnx' (a file OUT.onnx): for the last
      two a model may be changed in Python, and takes uint8 pixels (b, h, w, 3).
    out: the folder or file; must not exist.   arch, numerics, unsafe: as load has them.
    preprocessing, classes: a row of transforms.py and class names; None = what the weights say.
    dtype: 'float32' or 'bfloat16', in which a StableHLO program holds weights and computes.
    verify: reads the result back, compares every bit of weights, and outputs of both sides at batch 1, 3 and 32
      (proofs.py), those of the library too where it can be imported.   images: a folder of pictures for that, None =
      the embedded digits.

  Raises ValueError, in one line, for what the format cannot say (with those that can), an existing `out`, a missing
  package, and a check that fails: then nothing is left behind.
  """
  from vit_jax import pretrained, proofs

  out = _place(to, out, dtype)
  if isinstance(model, (str, os.PathLike)):
    model, described = pretrained.load(model, arch=arch, numerics=numerics, unsafe=unsafe)
  else:
    described = pretrained.described(model)
  if described['name'] is None and to not in PROGRAMS:
    raise ValueError(
      'The model was not made by create_model, or changed since: no format of weights has a word for what it is; '
      f'choose --to={" or ".join(PROGRAMS)}.'
    )
  described = _completed(described, preprocessing, classes)
  _refuse(to, described)
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as room:
    made, checks = pathlib.Path(room) / out.name, {}
    if to in PROGRAMS:
      from vit_jax import programs

      getattr(programs, f'to_{to}')(model, described, made, dtype=dtype)
      if verify:
        checks = proofs.program(model, described, to, made, images, dtype=dtype)
    else:
      file, entries = _WRITERS[to](model, described, made)
      if verify:
        checks = proofs.bits(model, file, entries)
        checks |= proofs.weights(model, described, to, made, images, functools.partial(timm_config, described))
    os.replace(made, out)
  return checks


def _place(to, out, dtype):
  """The absolute path to write, where nothing is yet; ValueError for what is clear before any weights are read."""
  if to not in FORMATS:
    raise ValueError(f'to={to!r}: choose one of {", ".join(FORMATS)}.')
  storage.refuse(out, 'What is exported')
  out = pathlib.Path(out).expanduser().absolute()
  if out.exists() or out.is_symlink():
    raise ValueError(f'{out} exists; remove it, or choose another place.')
  if out.suffix != FILES.get(to, '') and (to in FILES or out.suffix in FILES.values()):
    wanted = f'a file for --to={to} ends in {FILES[to]}' if to in FILES else f'--to={to} writes a folder'
    raise ValueError(f'{out}: {wanted}; rename it.')
  if to in PROGRAMS:
    from vit_jax import programs

    programs.check(to, dtype=dtype)
  elif dtype != 'float32':
    raise ValueError(f'dtype={dtype!r}: --to={to} keeps weights as they are; leave it out, or choose --to=stablehlo.')
  return out


def _refuse(to, described):
  """None if a format can say what a model is, else a ValueError that also names the formats that can."""
  reason = _cannot(to, described)
  if reason:
    able = ', '.join(other for other in FORMATS if other != to and not _cannot(other, described))
    raise ValueError(f'{reason}; formats that can hold it: {able}.' if able else f'{reason}; no other format can.')


def _cannot(to, described):
  """Why a format cannot say what a model is, or None."""
  from vit_jax import convert_hf, convert_npz

  if to in PROGRAMS:
    made = described['architecture']
    channels = 3 if made is None else made['in_chans']
    return None if channels == 3 else f'A program takes pictures of 3 channels, and the model has {channels}'
  try:
    if to == 'timm':
      timm_config(described)
    elif to == 'hf':
      convert_hf.preprocessor(described)
      convert_hf.entries(_plain(described), convert_hf.config(described))
    else:
      convert_npz.numerics(_plain(described))
  except ValueError as problem:
    return str(problem).partition('; ')[0].rstrip('.')


def _completed(described, preprocessing, classes):
  """The description with a row of preprocessing, and class names that are as many as the classes, or None."""
  from vit_jax import pretrained, transforms

  made = described['architecture']
  row = preprocessing or described['preprocessing']
  if not row:
    if made is None:
      pretrained.row(described)  # raises
    size = made['img_size']
    square = isinstance(_tuple(size), int)
    row = transforms.preprocessing(size, **({} if square else {'crop': 'squash', 'crop_pct': 1.0}))
  classes = classes or described['classes']
  if made is not None and classes is not None and len(classes) != made['num_classes']:
    if made['num_classes']:
      raise ValueError(f'{len(classes)} class names for {made["num_classes"]} classes; give one for each.')
    classes = None
  return {**described, 'preprocessing': row, 'classes': classes}


def _plain(described):
  """The model of a description, unrolled, shapes only."""
  from vit_jax import models

  return models.abstract(described['name'], **described['architecture'])


def _json(path, value):
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def _to_timm(model, described, folder):
  from vit_jax import convert, formats, proofs

  config, plain = timm_config(described), _plain(described)
  folder.mkdir()
  counters = ((key, np.zeros((), np.int64)) for key in convert.counters(plain))
  arrays = itertools.chain(convert.written(convert.timm(plain), proofs.leaves(model)), counters)
  # the file says what it is without its folder too; class names may be many and stay in config.json
  says = {key: json.dumps(value) for key, value in config.items() if key != 'label_names'}
  formats.save_safetensors(folder / 'model.safetensors', arrays, {'format': 'pt'} | says)
  _json(folder / 'config.json', config)
  return folder / 'model.safetensors', convert.timm(plain)


def timm_config(described):
  """The content of timm's config.json for a description; ValueError for what timm's constructor could not be told."""
  from vit_jax import models
  from vit_jax.models import vit

  name, made = described['name'], described['architecture']
  cls, row = models.variant(name)[0], models.architecture(name)
  if cls.__name__ not in _SAYS:
    raise ValueError(f'timm has no {name}.')
  says = _SAYS[cls.__name__].split()
  differs = {key: value for key, value in made.items() if _tuple(value) != _tuple(row[key]) and key not in _SILENT}
  for key, value in list(differs.items()):
    if key in says and value not in _NO_VALUE.get(key, ()):
      continue
    if _outline(name, made | {key: row[key]}) != _outline(name, made):
      raise ValueError(f'timm has no {name} with {key}={value!r}, only {row[key]!r}.')
    del differs[key]  # another way to say the same
  words = {key: list(v) if isinstance(v, tuple) else v for key, v in differs.items() if key != 'num_classes'}
  if words.get('pos_embed') == 'none':
    words['pos_embed'] = ''
  crop = described['preprocessing']
  heads = ('head', 'head_dist') if cls.__name__ == 'VisionTransformerDistilled' else 'head'
  pretrained_cfg = {
    'input_size': [made['in_chans'], *(crop['size'] if cls.__name__ == 'ResNetV2' else vit.pair(made['img_size']))],
    'fixed_input_size': cls.__name__ != 'ResNetV2', 'interpolation': crop['interpolation'].rpartition('_')[2],
    'crop_pct': crop['crop_pct'], 'crop_mode': _CROPS[crop['crop']], 'mean': crop['mean'], 'std': crop['std'],
    'num_classes': made['num_classes'], 'pool_size': None, 'first_conv': None,
    'classifier': 'head.fc' if cls.__name__ == 'ResNetV2' else heads, 'license': described.get('licence'),
  }  # fmt: skip
  labels = {'label_names': described['classes']} if described['classes'] else {}
  pool = {'global_pool': made['global_pool']} if made.get('global_pool') else {}
  return {
    'architecture': name, 'num_classes': made['num_classes'], **pool, 'model_args': words,
    'pretrained_cfg': pretrained_cfg, **labels,
  }  # fmt: skip


def _outline(name, made):
  """What tells two models of a class apart, but for their numbers; the reason where there is no such model."""
  from vit_jax import models, state

  try:
    graphdef, params, _ = state.split(models.abstract(name, **made))
  except ValueError as problem:
    return str(problem)
  return graphdef, {path: leaf.shape for path, leaf in state.flatten(params).items()}


def _tuple(value):
  """One form for the two ways to say a square's size, and for a list."""
  value = tuple(value) if isinstance(value, (list, tuple)) else value
  return value[0] if isinstance(value, tuple) and len(set(value)) == 1 and len(value) == 2 else value


def _to_hf(model, described, folder):
  from vit_jax import convert, convert_hf, formats, proofs

  config, preprocessor = convert_hf.config(described), convert_hf.preprocessor(described)
  entries = convert_hf.entries(_plain(described), config)
  folder.mkdir()
  zeros = ((key, np.zeros(shape, np.float32)) for key, shape in convert_hf.unread(config).items())
  arrays = itertools.chain(convert.written(entries, proofs.leaves(model)), zeros)
  formats.save_safetensors(folder / 'model.safetensors', arrays, {'format': 'pt'})
  _json(folder / 'config.json', config)
  _json(folder / 'preprocessor_config.json', preprocessor)
  return folder / 'model.safetensors', entries


def _to_npz(model, described, path):
  from vit_jax import convert, convert_npz, formats, proofs

  entries = convert_npz.entries(_plain(described))
  formats.save_npz(path, convert.written(entries, proofs.leaves(model)))
  return path, entries


_WRITERS = {'timm': _to_timm, 'hf': _to_hf, 'npz': _to_npz}
