"""Weights for other libraries: a folder that timm or Hugging Face opens, or one .npz in Google's form.

Only layouts change, no bit of a weight. What a format cannot say (an epsilon, a form of GELU) is refused, because its
library would compute something else. A folder or file appears whole or not at all.
"""

import itertools
import json
import os
import pathlib
import tempfile

import numpy as np

FORMATS = ('timm', 'hf', 'npz')
CLOSE = 1e-3  # of the logits' standard deviation: how far float32 in another library may be from ours
PICTURES = 8  # how many are compared

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
  model, *, to, out, arch=None, numerics=None, preprocessing=None, classes=None, verify=False, images=None,
  unsafe=False,
):  # fmt: skip
  """Writes a model to `out` for another library, and gives {check: figure}, the checks that were made (verify=True).

  Args:
    model: a model of create_model or load, or what load takes: the folder of a run, a folder or file, a name.
    to: 'timm' (a folder for timm.create_model('local-dir:OUT')), 'hf' (a folder for from_pretrained), 'npz' (a file).
    out: the folder or file; must not exist.   arch, numerics, unsafe: as load has them.
    preprocessing, classes: a row of transforms.py and class names; None = what the weights say.
    verify: reads the result back and compares every bit, and compares logits with the library's own where it can be
      imported.   images: a folder of pictures for that, None = the embedded digits.

  Raises ValueError, in one line, for what the format cannot say, an existing `out`, and a check that fails: then
  nothing is left behind.
  """
  from vit_jax import pretrained

  if to not in FORMATS:
    raise ValueError(f'to={to!r}: choose one of {", ".join(FORMATS)}.')
  out = pathlib.Path(out).expanduser().absolute()
  if out.exists() or out.is_symlink():
    raise ValueError(f'{out} exists; remove it, or choose another place.')
  if (to == 'npz') != (out.suffix == '.npz'):
    raise ValueError(f"{out}: the name of a Google .npz ends so, and no folder's does; rename it.")
  if isinstance(model, (str, os.PathLike)):
    model, described = pretrained.load(model, arch=arch, numerics=numerics, unsafe=unsafe)
  else:
    described = pretrained.origin(model)
    if described is None:
      raise ValueError('The model was not made by create_model, or changed since: no format has a word for what it is.')
  described = _completed(described, preprocessing, classes)
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as room:
    made = pathlib.Path(room) / out.name
    file, entries = _WRITERS[to](model, described, made)
    checks = _bits(model, file, entries) | _outputs(model, described, to, made, images) if verify else {}
    os.replace(made, out)
  return checks


def _completed(described, preprocessing, classes):
  """The description with a row of preprocessing, and class names that are as many as the classes, or None."""
  from vit_jax import transforms

  size = described['architecture']['img_size']
  square = isinstance(_tuple(size), int)
  row = preprocessing or described.get('preprocessing') or (
    transforms.preprocessing(size) if square else transforms.preprocessing(size, crop='squash', crop_pct=1.0)
  )  # fmt: skip
  classes = classes or described.get('classes')
  count = described['architecture']['num_classes']
  if classes is not None and len(classes) != count:
    if count:
      raise ValueError(f'{len(classes)} class names for {count} classes; give classes=[...] with one for each.')
    classes = None
  return {**described, 'preprocessing': row, 'classes': classes}


def _leaves(model):
  """{path: array} of all parameters and statistics, a name for each layer."""
  from vit_jax import state

  _, params, rest = state.split(model)
  return state.flatten(state.unstack(state.combine(params, rest)))


def _plain(described):
  """The model of a description, unrolled, shapes only."""
  from vit_jax import models

  return models.abstract(described['name'], **described['architecture'])


def _json(path, value):
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def _to_timm(model, described, folder):
  from vit_jax import convert, formats

  config, plain = timm_config(described), _plain(described)
  folder.mkdir()
  counters = ((key, np.zeros((), np.int64)) for key in convert.counters(plain))
  arrays = itertools.chain(convert.written(convert.timm(plain), _leaves(model)), counters)
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
    raise ValueError(f'timm has no {name}; export to another format ({_others("timm")}).')
  says = _SAYS[cls.__name__].split()
  differs = {key: value for key, value in made.items() if _tuple(value) != _tuple(row[key]) and key not in _SILENT}
  for key, value in list(differs.items()):
    if key in says and value not in _NO_VALUE.get(key, ()):
      continue
    if _outline(name, made | {key: row[key]}) != _outline(name, made):
      raise ValueError(
        f'timm has no {name} with {key}={value!r}, only {row[key]!r}; export to another format ({_others("timm")}).'
      )
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


def _others(to):
  return ' or '.join(f'--to={other}' for other in FORMATS if other != to)


def _to_hf(model, described, folder):
  from vit_jax import convert, convert_hf, formats

  config, preprocessor = convert_hf.config(described), convert_hf.preprocessor(described)
  entries = convert_hf.entries(_plain(described), config)
  folder.mkdir()
  zeros = ((key, np.zeros(shape, np.float32)) for key, shape in convert_hf.unread(config).items())
  arrays = itertools.chain(convert.written(entries, _leaves(model)), zeros)
  formats.save_safetensors(folder / 'model.safetensors', arrays, {'format': 'pt'})
  _json(folder / 'config.json', config)
  _json(folder / 'preprocessor_config.json', preprocessor)
  return folder / 'model.safetensors', entries


def _to_npz(model, described, path):
  from vit_jax import convert, convert_npz, formats

  entries = convert_npz.entries(_plain(described))
  formats.save_npz(path, convert.written(entries, _leaves(model)))
  return path, entries


_WRITERS = {'timm': _to_timm, 'hf': _to_hf, 'npz': _to_npz}


def _bits(model, file, entries):
  """{check: figure}: what a file just written holds is the model's, to the bit."""
  from vit_jax import convert, formats

  ours, theirs = _leaves(model), convert.Converted(entries, formats.open_arrays(file))
  other = [path for path in ours if np.asarray(ours[path]).tobytes() != np.asarray(theirs[path]).tobytes()]
  if other or len(ours) != len(theirs):
    raise ValueError(f'{file.name} read back differs in {len(other)} arrays: {", ".join(other[:5])}.')
  return {'arrays read back, equal in every bit': len(ours)}


class _Lost(ValueError):
  """The peer does not know all arrays of a folder that was written for it."""


def _outputs(model, described, to, path, images):
  """{check: figure}: what the export computes here, read strictly by what it says itself, and in its own library."""
  import jax

  pixels, what = _pixels(described, images)
  with jax.default_matmul_precision('highest'):
    read = _reread(described, to, path)
    # Hugging Face has bare models, which leave pooling to the caller: of these the tokens are compared
    bare = getattr(read, 'global_pool', None) != getattr(model, 'global_pool', None)
    wanted, again = _logits(model, pixels, bare), _logits(read, pixels, bare)
  named = 'tokens' if bare else 'logits'
  checks = _compared(f'{named} of the model read back, on {what}: largest difference', again, wanted)
  library, run = {'timm': ('timm', _timm_logits), 'hf': ('transformers', _hf_logits), 'npz': ('timm', _npz_logits)}[to]
  try:
    __import__(library)
    if to == 'npz':
      timm_config(described)  # what timm has no word for it cannot compute, whatever the file holds
    theirs = run(path, described, pixels, bare)
  except Exception as problem:  # a library that is broken here, or asks a hub for more, is as good as none
    if isinstance(problem, _Lost):
      raise
    return checks | {f'{named} of {library}': f'not compared ({str(problem).partition(";")[0][:100]})'}
  return checks | _compared(f'{named} of {library}, on {what}: largest difference', theirs, wanted)


def _reread(described, to, path):
  """The model of an export, by what the export says; a grid that is no square a Google .npz has to be told."""
  from vit_jax import convert_npz, pretrained

  numerics = convert_npz.numerics(_plain(described)) if to == 'npz' else None
  made = described['architecture']
  if to != 'npz' or isinstance(_tuple(made['img_size']), int):
    return pretrained.load(path, numerics=numerics)[0]
  return pretrained.create_model(described['name'], pretrained=str(path), numerics=numerics, **made)


def _pixels(described, images):  # -> (b, h, w, 3) float32
  """Pictures as the model's row prepares them, and words that say which."""
  from vit_jax import listing, tables, transforms

  row = described['preprocessing']
  if described['architecture']['in_chans'] != 3:
    raise ValueError('Pictures have 3 channels, and the model does not; export without --verify.')
  if images is None:
    pictures, what = list(tables.digits().images[:PICTURES]), f'{PICTURES} digits'
  else:
    files = sorted(p for p in pathlib.Path(images).rglob('*') if p.suffix.lower().encode() in listing.suffixes())
    if not files:
      raise ValueError(f'{images} holds no pictures; give another folder, or leave --images out.')
    pictures, what = files[:PICTURES], f'{min(PICTURES, len(files))} pictures of {images}'
  pixels = np.stack([transforms.evaluation_image(picture, row) for picture in pictures]) / np.float32(255)
  return ((pixels - np.float32(row['mean'])) / np.float32(row['std'])).astype(np.float32), what


def _logits(model, pixels, bare=False):
  import jax

  from vit_jax import state

  graphdef, params, rest = state.split(model)
  call = lambda model, x: model.features(x) if bare else model(x)
  return np.asarray(jax.jit(lambda params, x: call(state.merge(graphdef, params, rest), x))(params, pixels))


def _compared(words, got, wanted):
  """{words: the largest difference}; ValueError if it is more than float32 explains."""
  if got.size != wanted.size:
    raise ValueError(f'{words}: {got.shape}, ours {wanted.shape}.')
  difference = float(np.abs(got.reshape(wanted.shape) - wanted).max())
  share = difference / max(float(wanted.std()), 1e-6)
  if not share <= CLOSE:
    raise ValueError(f'{words} {difference:.2g}, {share:.2g} of their std, wanted at most {CLOSE}.')
  return {words: f'{difference:.2g} ({share:.2g} of their std)'}


def _run_torch(model, pixels, hidden=None, **inputs):
  """What a PyTorch model gives for (b, h, w, c): its logits, or what stands for them; hidden: this of its tokens."""
  import torch

  with torch.no_grad():
    out = model.eval()(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))), **inputs)
  if hidden is not None:
    out = out.last_hidden_state[:, hidden]
  elif not isinstance(out, torch.Tensor):
    out = next(out[key] for key in ('logits', 'image_embeds', 'pooler_output') if key in out)
  return (out.permute(0, 2, 3, 1) if out.ndim == 4 else out).numpy()


def _timm_logits(path, described, pixels, bare):
  import timm

  return _run_torch(timm.create_model(f'local-dir:{path}', pretrained=True), pixels)


def _hf_logits(path, described, pixels, bare):
  import torch
  import transformers

  config = json.loads((path / 'config.json').read_text())
  cls, hides = getattr(transformers, config['architectures'][0]), 'mask_ratio' in config
  model, told = cls.from_pretrained(path, output_loading_info=True, **({'mask_ratio': 0.0} if hides else {}))
  drawn = any(key.startswith('pooler.') for key in told['missing_keys'])  # at random there, and read by nobody here
  lost = [key for key in (*told['missing_keys'], *told['unexpected_keys']) if not key.startswith('pooler.')]
  if lost:
    raise _Lost(f'transformers misses or does not know {len(lost)} arrays: {", ".join(lost[:5])}.')
  count = (config['image_size'] // config['patch_size']) ** 2 if hides else 0  # nothing hidden, nothing shuffled
  noise = {'noise': torch.arange(count).float().expand(len(pixels), count)} if hides else {}
  return _run_torch(model, pixels, slice(None) if bare else 0 if drawn else None, **noise)


def _npz_logits(path, described, pixels, bare):
  """timm knows the oldest numbering of the modules alone, so it reads a copy in that."""
  import timm

  config = timm_config(described)
  size = {'img_size': made['img_size']} if (made := described['architecture']).get('patch_size') else {}
  model = timm.create_model(described['name'], num_classes=config['num_classes'], **{**size, **config['model_args']})
  with np.load(path) as arrays:
    old = 'pos_embedding' not in arrays
    renamed = {_oldest(key) if old else key: arrays[key] for key in arrays}
  np.savez(path.with_name('oldest.npz'), **renamed)
  model.load_pretrained(str(path.with_name('oldest.npz')))
  return _run_torch(model, pixels)


def _oldest(key):
  """A name in Linen's numbering as the first files had it: one count for all kinds of modules in a block."""
  block, slash, rest = key.partition('/MultiHeadDotProductAttention_0/')
  if slash:
    return f'{block}/MultiHeadDotProductAttention_1/{rest}'
  if '/encoderblock_' not in key:
    return key
  return key.replace('/LayerNorm_1/', '/LayerNorm_2/').replace('/MlpBlock_0/', '/MlpBlock_3/')
