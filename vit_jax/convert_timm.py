"""What a file with timm's names is: said by its config.json or metadata, by the caller, or only by its shapes."""

import math

from vit_jax import convert, models
from vit_jax.models import vit

# Arguments that change no number when nothing is trained.
RATES = ('drop_rate', 'pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path_rate')
IGNORED = ('dynamic_img_size', 'dynamic_img_pad', 'weight_init', 'fix_init', 'pos_drop_rate', 'patch_drop_rate')


def describe(shapes, says, ignored, *, name=None, overrides=None, file=''):
  """({name, architecture (every argument), preprocessing, classes, or None}, abstract model) of a file of {key: shape}.

  says: its config.json or metadata ({} if there is none): architecture, model_args, num_classes, pretrained_cfg,
  label_names.   ignored: as convert.differences.   name, overrides: the caller's, used where the file does not say.
  file: for messages.
  """
  if 'architecture' in says:
    pool = {'global_pool': says['global_pool']} if says.get('global_pool') else {}
    name, words = says['architecture'], pool | arguments(says.get('model_args') or {})
    made, _, model = fitted(models.canonical(name), words, shapes, ignored)
  else:
    name = name or guess(shapes, ignored, file)
    made, model = _fitting(models.canonical(name), dict(overrides or {}), shapes, ignored)
  return {'name': models.canonical(name), 'architecture': made, **_row(says)}, model


def _fitting(name, words, shapes, ignored):
  """(every argument, model) of the file: the caller's words, without those that say where his model is to differ."""
  made, lines, model = fitted(name, words, shapes, ignored)
  better = bool(lines)
  while better:
    better = False
    for key in words:
      less = {other: value for other, value in words.items() if other != key}
      other, left, tried = fitted(name, less, shapes, ignored)
      if len(left) < len(lines):
        words, made, lines, model, better = less, other, left, tried, True
        break
  return made, model


def arguments(words):
  """timm's constructor arguments, as its config.json holds them, as ours: lists are tuples."""
  plain = {key: tuple(value) if isinstance(value, list) else value for key, value in words.items()}
  return {key: value for key, value in plain.items() if key not in IGNORED}


def _row(says):
  """Preprocessing and class names of timm's config.json."""
  row = says.get('pretrained_cfg') or {}
  if 'mean' not in row:
    return {'preprocessing': None, 'classes': says.get('label_names')}
  preprocessing = {
    'size': list(row['input_size'][1:]), 'crop': row.get('crop_mode', 'center'), 'crop_pct': row.get('crop_pct', 0.875),
    'interpolation': row.get('interpolation', 'bicubic'), 'mean': list(row['mean']), 'std': list(row['std']),
  }  # fmt: skip
  return {'preprocessing': preprocessing, 'classes': says.get('label_names') or row.get('label_names')}


def fitted(name, words, shapes, ignored):
  """(every argument of `name` with `words` and what the file's shapes fix, how the file differs: lines, the model)."""
  made = models.architecture(name, **words)
  try:
    model = models.abstract(name, **made)
    entries = convert.timm(model)
    fixed = facts(made, model, entries, shapes)
    if any(made[key] != value for key, value in fixed.items()):
      made |= fixed
      model = models.abstract(name, **made)
      entries = convert.timm(model)
  except ValueError as error:  # no such model: arguments of another one, or shapes that fit no grid
    return made, [str(error)] * (len(shapes) + 1), None
  return made, convert.differences(entries, shapes, ignored), model


def facts(made, model, entries, shapes):
  """What the shapes fix whatever the name says: num_classes and, where it is square, img_size."""
  head = next((shapes[key] for key in ('head.weight', 'head.fc.weight') if key in shapes), (0,))
  found = {'num_classes': head[0]}
  want = {key: entry.file_shape for entry in entries for key in entry.keys}
  for key, shape in shapes.items():
    if want.get(key, shape) == shape:
      continue
    if key == 'pos_embed':
      side = math.isqrt(max(shape[1] - (want[key][1] - math.prod(model.grid)), 0))
    elif key == 'blocks.0.attn.relative_position_bias_table':
      side = (math.isqrt(max(shape[0] - 3, 0)) + 1) // 2
    elif key == 'blocks.0.mlp_tokens.fc1.weight':
      side = math.isqrt(shape[1])
    else:
      continue
    grid, size = vit.pair(model.grid), vit.pair(made['img_size'])
    found['img_size'] = tuple(side * (length // cells) for length, cells in zip(size, grid))
  return found


def outline(shapes):
  """(width, depth, patch size) of a file; None for what it does not show."""
  patch = shapes.get('patch_embed.proj.weight') or shapes.get('stem.proj.weight') or ()
  depth = len({key.split('.')[1] for key in shapes if key.startswith('blocks.')}) or None
  return (patch[0], depth, patch[2]) if len(patch) == 4 else (None, depth, None)


def _near(shapes):
  """Names of the rows with the file's outline, without building any."""
  width, depth, patch = outline(shapes)

  def same(made):
    mine = made.get('embed_dim'), made.get('depth', made.get('num_blocks'))
    return mine == (width, depth) and made.get('patch_size') in (patch, (patch, patch))

  return [name for name in models.list_models() if same(models.architecture(name))] if width else []


def _fits(shapes, ignored):
  """Names of all rows that a file of {key: shape} fits."""
  near = _near(shapes)
  if 'stem.conv.weight' in shapes:
    near += [name for name in models.list_models() if 'bit' in name.split('_')]
  return [name for name in near if not fitted(name, {}, shapes, ignored)[1]]


def guess(shapes, ignored, file):
  """The one architecture a file can be; ValueError where there are several that compute differently, or none."""
  fits, kinds = _fits(shapes, ignored), set()
  for name in fits:
    made = models.architecture(name)
    kinds.add(repr(sorted((key, made[key]) for key in made if key not in (*RATES, 'img_size', 'num_classes'))))
  if len(kinds) == 1:
    return min(fits, key=len)
  if fits:
    raise ValueError(
      f'{file} fits {len(fits)} architectures that compute differently ({", ".join(fits[:4])}); say which it is: '
      f'--arch=NAME, or create_model(NAME, pretrained=FILE).'
    )
  raise ValueError(f'{file} does not say what it is ({looks(shapes)}); give --arch=NAME, or a config.json beside it.')


def looks(shapes):
  """What a file seems to be, in a few words."""
  width, depth, patch = outline(shapes)
  if width is None:
    return f'{len(shapes)} arrays: {", ".join(sorted(shapes)[:3])}, ...'
  near = _near(shapes)
  same = f', as {min(near, key=len)}' if near else ''
  return f'a model of width {width}, depth {depth}, patch {patch}{same}'
