"""Weights for other libraries: a folder that timm or Hugging Face opens, or one .npz in Google's form.

Only layouts change, no bit of a weight. What a format cannot say (an epsilon, a form of GELU) is refused, because its
library would compute something else. A folder or file appears whole or not at all.
"""

import itertools
import json
import os
import pathlib
import sys
import tempfile

import numpy as np

from vit_jax import console

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
  'VisionTransformer': _VIT,
  'VisionTransformerDistilled': _VIT,
  'HybridVisionTransformer': _VIT,
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
  if to == 'npz' and out.suffix != '.npz':
    raise ValueError(f'{out} would be a Google .npz; let its name end so.')
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
    _WRITERS[to](model, described, made)
    checks = check(model, described, to, made, images) if verify else {}
    os.replace(made, out)
  return checks


def _completed(described, preprocessing, classes):
  """The description with a row of preprocessing, and class names that are as many as the classes, or None."""
  from vit_jax import transforms

  size = described['architecture']['img_size']
  row = preprocessing or described.get('preprocessing') or transforms.preprocessing(size)
  classes = classes or described.get('classes')
  count = described['architecture']['num_classes']
  if classes is not None and len(classes) != count:
    if count:
      raise ValueError(f'{len(classes)} class names for {count} classes; give classes=[...] with one for each.')
    classes = None
  return {**described, 'preprocessing': row, 'classes': classes}


# ---------------------------------------------------------------------------------------------------------- writing


def _leaves(model):
  """{path: array} of all parameters and statistics, a name for each layer."""
  from vit_jax import state

  _, params, rest = state.split(model)
  return state.flatten(state.unstack(state.combine(params, rest)))


def _plain(described):
  """The model of a description in its plain form (no scan), shapes only."""
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
  formats.save_safetensors(folder / 'model.safetensors', arrays, {'format': 'pt'})
  _json(folder / 'config.json', config)


def timm_config(described):
  """The content of timm's config.json for a description; ValueError for what timm's constructor could not be told."""
  from vit_jax import models
  from vit_jax.models import vit

  name, made = described['name'], described['architecture']
  cls, row = models.variant(name)[0], models.architecture(name)
  says = _SAYS.get(cls.__name__, '').split()
  differs = {
    key: value for key, value in made.items() if key not in _SILENT and _tuple(value) != _tuple(row[key])
  }  # fmt: skip
  for key, value in differs.items():
    if key not in says or value in _NO_VALUE.get(key, ()):
      raise ValueError(
        f'timm has no {name} with {key}={value!r}, only {row[key]!r}; export to another format ({_others("timm")}).'
      )
  if cls.__name__ in ('Beit', 'Eva') and 'act_layer' in differs:
    raise ValueError(f"timm's {cls.__name__} takes no act_layer; export to another format ({_others('timm')}).")
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


def _tuple(value):
  """One form for the two ways to say a square's size, and for a list."""
  value = tuple(value) if isinstance(value, (list, tuple)) else value
  return value[0] if isinstance(value, tuple) and len(set(value)) == 1 and len(value) == 2 else value


def _others(to):
  return ' or '.join(f'--to={other}' for other in FORMATS if other != to)


def _to_hf(model, described, folder):
  from vit_jax import convert, convert_hf, formats

  plain = _plain(described)
  config, preprocessor = convert_hf.config(described), convert_hf.preprocessor(described)
  entries = convert_hf.entries(plain, config)
  folder.mkdir()
  zeros = ((key, np.zeros(shape, np.float32)) for key, shape in convert_hf.unread(config).items())
  arrays = itertools.chain(convert.written(entries, _leaves(model)), zeros)
  formats.save_safetensors(folder / 'model.safetensors', arrays, {'format': 'pt'})
  _json(folder / 'config.json', config)
  _json(folder / 'preprocessor_config.json', preprocessor)


def _to_npz(model, described, path):
  from vit_jax import convert, convert_npz, formats

  formats.save_npz(path, convert.written(convert_npz.entries(_plain(described)), _leaves(model)))


_WRITERS = {'timm': _to_timm, 'hf': _to_hf, 'npz': _to_npz}


# ---------------------------------------------------------------------------------------------------------- checking


def check(model, described, to, path, images=None):
  """{check: figure} of an export just written; ValueError in one line for the first that fails.

  Its arrays read back strictly are ours to the bit; the model read back, and the other library's where it can be
  imported, give our logits on `images` (a folder, None = the embedded digits), prepared as the row says.
  """
  import jax

  again = _reread(described, to, path)
  ours, theirs = _leaves(model), _leaves(again)
  other = [key for key in sorted({*ours, *theirs}) if not _same(ours.get(key), theirs.get(key))]
  if other:
    raise ValueError(f'{path.name} read back differs in {len(other)} arrays: {", ".join(other[:5])}.')
  checks = {'arrays read back, equal in every bit': len(ours)}
  pixels, what = _pixels(described, images)
  with jax.default_matmul_precision('highest'):
    wanted = _logits(model, pixels)
    _compared(checks, f'logits of the model read back, on {what}: largest difference', _logits(again, pixels), wanted)
  peer = {'timm': _timm_logits, 'hf': _hf_logits, 'npz': _npz_logits}[to]
  library = 'transformers' if to == 'hf' else 'timm'
  try:
    __import__(library)
  except Exception as problem:  # a library that is broken here is as good as none
    checks[f'logits of {library}'] = (
      f'not compared: {library} cannot be imported ({" ".join(str(problem).split())[:80]})'
    )
    return checks
  _compared(checks, f'logits of {library}, on {what}: largest difference', peer(path, described, pixels), wanted)
  return checks


def _same(a, b):
  if a is None or b is None:
    return False
  a, b = np.asarray(a), np.asarray(b)
  return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _reread(described, to, path):
  from vit_jax import convert_npz, pretrained

  if to != 'npz':
    return pretrained.load(path)[0]
  made = described['architecture']
  told = {key: made[key] for key in ('img_size', 'num_classes') if key in made}
  return pretrained.create_model(
    described['name'], pretrained=str(path), numerics=convert_npz.numerics(_plain(described)), **told
  )


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


def _logits(model, pixels):
  """What a call gives; of MAE, whose call hides patches, what its encoder gives."""
  import jax

  from vit_jax import state

  graphdef, params, rest = state.split(model)
  return np.asarray(jax.jit(lambda p, x: state.merge(graphdef, p, rest)(x))(params, pixels))


def _compared(checks, words, got, wanted):
  """Adds the largest difference to checks; ValueError if it is more than float32 explains."""
  if got.shape != wanted.shape:
    raise ValueError(f'{words}: {got.shape}, ours {wanted.shape}.')
  difference, spread = float(np.abs(got - wanted).max()), max(float(wanted.std()), 1e-6)
  figure = f'{difference:.2g} ({difference / spread:.2g} of their std)'
  if not difference <= CLOSE * spread:
    raise ValueError(f'{words} {figure}, wanted at most {CLOSE} of the std.')
  checks[words] = figure


def _run_torch(model, pixels):
  """What a PyTorch model gives for (b, h, w, c): its logits, or what stands for them."""
  import torch

  with torch.no_grad():
    out = model.eval()(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))
  if not isinstance(out, torch.Tensor):
    out = next(out[key] for key in ('logits', 'image_embeds', 'pooler_output') if key in out)
  return out.numpy()


def _timm_logits(path, described, pixels):
  import timm

  return _run_torch(timm.create_model(f'local-dir:{path}', pretrained=True), pixels)


def _hf_logits(path, described, pixels):
  import transformers

  cls = getattr(transformers, json.loads((path / 'config.json').read_text())['architectures'][0])
  model, told = cls.from_pretrained(path, output_loading_info=True)
  lost = [*told['missing_keys'], *told['unexpected_keys']]
  if lost:
    raise ValueError(f'transformers misses or does not know {len(lost)} arrays: {", ".join(lost[:5])}.')
  return _run_torch(model, pixels)


def _npz_logits(path, described, pixels):
  import timm

  config = timm_config(described)
  size = {} if 'layers' in described['architecture'] else {'img_size': config['pretrained_cfg']['input_size'][1:]}
  model = timm.create_model(described['name'], num_classes=config['num_classes'], **{**size, **config['model_args']})
  model.load_pretrained(str(path))
  return _run_torch(model, pixels)


def command(argv):
  """Writes a model's weights for timm (a folder), Hugging Face (a folder) or as Google's .npz (a file)."""
  parser = console.Parser('export', command.__doc__)
  parser.add_argument('--model', required=True, help='WORKDIR, FILE or NAME')
  parser.add_argument('--to', required=True, choices=FORMATS, help='the format')
  parser.add_argument('out', metavar='OUT', help='the folder or file to write; must not exist')
  parser.add_argument('--arch', metavar='NAME', help='what a file is that does not say it')
  parser.add_argument('--numerics', choices=['google', 'timm'], help='how a Google .npz is to be understood')
  parser.add_argument('--unsafe', action='store_true', help='read a .pth, through torch.load(weights_only=True)')
  parser.add_argument('--verify', action='store_true', help='read it back, compare bits and logits, and say so')
  parser.add_argument('--images', metavar='DIR', help='pictures for --verify (default: the embedded digits)')
  args = parser.parse_args(argv)
  checks = export(
    args.model, to=args.to, out=args.out, arch=args.arch, numerics=args.numerics, unsafe=args.unsafe,
    verify=args.verify or args.images is not None, images=args.images,
  )  # fmt: skip
  for words, figure in checks.items():
    print(f'{words}: {figure}', file=sys.stderr)
  print(args.out)
  return 0
