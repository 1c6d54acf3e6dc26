"""Models with weights: create_model and load find weights, build the model they fit, and fill it strictly."""

import json
import os

from flax import nnx

from vit_jax import convert, fetch, fill, hub, models, state
from vit_jax import weights as weights_lib
from vit_jax.models import vit

# What is known of a model where nobody says more.
SAID = dict(
  name=None, architecture=None, preprocessing=None, classes=None, ids=None, licence=None, weights=None, loss='softmax'
)


def create_model(
  name: str, *, pretrained: bool | str = False, num_classes: int | None = None, reset: tuple[str, ...] = (),
  numerics: str | None = None, seed: int = 0, unsafe: bool = False, **architecture,
):  # fmt: skip
  """A model by name, freshly drawn from `seed` or filled with weights; without a key it is deterministic.

  name: an architecture ('vit_base_patch16_224'), one with its training ('vit_base_patch16_224.augreg_in21k_ft_in1k'),
  a name of the original release ('ViT-B_16'), or 'hf_hub:ORG/REPOSITORY'; see list_models.
  pretrained: True downloads the name's weights; a path takes them from a run's folder, a folder of timm or Hugging
  Face, or a file (.npz, .safetensors, .safetensors.index.json; .pth with unsafe=True, read by torch without pickle).
  num_classes: size of the head, 0 = none, None = as the name or the weights have it; another number needs 'head' in
  `reset`.   reset: first parts of parameter paths that stay freshly drawn, where model and weights may differ.
  numerics: how a Google .npz is to be understood, 'google' (tanh GELU, positions resized between aligned corners, as
  it was trained; the default) or 'timm' (exact GELU, half-pixel).
  architecture: arguments of the model's class, in timm's words. Positions are resampled to img_size; with another
  global_pool the last norm serves as fc_norm, and class_token=False with reset=('cls_token',) leaves the token out.

  Raises ValueError for an unknown name or argument, weights that cannot be had, and one that lists all arrays that are
  missing, extra or misshapen; nothing is filled then.
  """
  execution = {key: architecture.pop(key) for key in models.EXECUTION if key in architecture}
  if not pretrained:
    if numerics is not None:
      raise ValueError(f'numerics={numerics!r} says how a Google .npz is to be understood; it needs pretrained=PATH.')
    name, row = named(name)
    return _build(name, num_classes, seed, row | architecture, execution)
  opened, name = open_named(name, pretrained, overrides=architecture, numerics=numerics, unsafe=unsafe)
  made = _wanted(opened, name, num_classes, architecture)
  model = fill.filled(opened, name, made, reset=tuple(reset), seed=seed, **execution)
  said = opened.described
  if said.get('preprocessing') and 'img_size' in architecture:
    said = said | {'preprocessing': said['preprocessing'] | {'size': list(vit.pair(made['img_size']))}}
  if 'head' in reset:
    said = said | {'classes': None, 'ids': None}
  return _remember(model, name, made, said)


def load(path, *, arch=None, numerics=None, unsafe=False):
  """(model, description) of weights: a run's folder, a folder or file of weights, or a name with weights to download.

  path: WORKDIR (its best averaged weights, else its best, else its last), WORKDIR/checkpoints/STEP, what create_model
  takes as `pretrained`, or as name; or any of these at an address, as gs://BUCKET/NAME.   arch: the architecture, for a
  file that does not say.   numerics, unsafe: as create_model.   description: name, architecture (every argument),
  preprocessing (a row of transforms.py), classes (names), ids (WordNet's), licence, None where nobody says; weights,
  which ones these are; loss it was trained with, 'softmax' or 'sigmoid'.
  """
  return filled(open_any(path, arch=arch, numerics=numerics, unsafe=unsafe)[0])


def filled(opened):
  """(model, description) of what open_any opened, as load."""
  described = opened.described
  if described['name'] is None:
    raise ValueError(
      f'{opened.path} was trained on a model that was changed in Python; rebuild it, and vit_jax.state.update it with '
      f'vit_jax.pretrained.weights({str(opened.path)!r}).'
    )
  name, made = described['name'], described['architecture']
  return _remember(fill.filled(opened, name, made), name, made, described), SAID | described


def with_description(model):
  """(model, description) of a model, or of what load takes."""
  return load(model) if isinstance(model, (str, os.PathLike)) else (model, described(model))


def described(model):
  """The description of a model, as load gives it: what create_model, load or fit said of it, and still holds."""
  said = SAID | _said(model) | (origin(model) or {'name': None, 'architecture': None})
  if said['name'] and said['classes'] and len(said['classes']) != said['architecture']['num_classes']:
    said |= {'classes': None, 'ids': None}
  return said


def row(described):
  """The preprocessing row of a description; ValueError where nobody said how pictures are prepared."""
  if not described.get('preprocessing'):
    raise ValueError(
      f'{described["weights"] or "The model"} does not say how pictures are prepared for it; put its config.json or '
      'preprocessor_config.json beside it, or name its training: --arch=NAME.TAG as in `vit_jax list models --tags`.'
    )
  return described['preprocessing']


def remember(model, **said):
  """Notes in a model what `described` will say of it: preprocessing, classes, loss."""
  model.origin = json.dumps({'name': None, 'architecture': None} | _said(model) | said)


def weights(path):
  """{'params', 'rest'} of a run's folder as nested dicts of numpy arrays; params are the averaged ones if any."""
  return weights_lib.run_arrays(weights_lib.checkpoint.find(fetch.local(path))[0])


def named(name):
  """(architecture's canonical name, arguments) of a name with or without its training, known to be one."""
  if models.is_name(name) or not hub.is_row(name):
    return models.canonical(name), {}
  row = hub.row(name)
  return models.canonical(row['arch']), row['architecture'] | {'num_classes': row['num_classes']}


def is_path(word):
  """Whether WORKDIR | FILE | NAME is a path: it exists, or is no name and written like a path."""
  word = os.fspath(word)
  if word.startswith(hub.PREFIX) or models.is_name(word) or hub.is_row(word):
    return os.path.exists(word) and not models.is_name(word)
  return os.path.exists(word) or os.sep in word or word.endswith(weights_lib.FILES)


def open_any(path, *, arch=None, numerics=None, unsafe=False):
  """(weights.Weights, name) of a path or of a name whose weights can be had."""
  if is_path(path):
    opened, name = open_named(arch, path, numerics=numerics, unsafe=unsafe)
    if arch is not None:
      _wanted(opened, name, None, {})  # refuses what is another architecture
      name = opened.described['name']
    return opened, name
  if arch is not None:
    raise ValueError(f'arch={arch!r} says what a file is; {path} is a name.')
  return open_named(os.fspath(path), True, numerics=numerics, unsafe=unsafe)


def open_named(name, pretrained, *, overrides=None, numerics=None, unsafe=False):
  """(weights.Weights, canonical name of the model): `name` with its weights, or `pretrained`, a path, as a `name`.

  name None: what the path says it is.
  """
  row = None
  if pretrained is True and name.startswith(hub.PREFIX):
    pretrained, name = hub.repository(name, unsafe=unsafe), None
  elif pretrained is True or name is not None and not models.is_name(name) and hub.is_row(name):
    row = _row(name)
    name, pretrained = row['arch'], hub.find(row['name'], unsafe=unsafe) if pretrained is True else pretrained
  arguments = (overrides or {}) if row is None else row['architecture'] | (overrides or {})
  if row is not None and os.fspath(pretrained).endswith('.npz'):
    numerics = numerics or row['numerics']
  opened = weights_lib.open_weights(pretrained, arch=name, overrides=arguments, numerics=numerics, unsafe=unsafe)
  found = opened.described['name']
  if row is not None:
    opened.described.update(_row_words(row, opened.described))
    if row['numerics'] == 'google' and opened.form == 'timm':  # the numbers are timm's copy, the network is Google's
      made, words = opened.described['architecture'], {'act_layer': 'gelu_tanh', 'pos_resize': 'corner'}
      made |= {key: word for key, word in words.items() if key in made and key not in arguments}
  if name is None or found is None:
    return opened, found
  return opened, models.canonical(name)


def _row_words(row, described):
  """What a row of the manifest adds to the description of its weights."""
  out = {'preprocessing': row['preprocessing'], 'licence': row['licence'], 'weights': row['name']}
  if row['labels'] and described['architecture']['num_classes'] == row['num_classes']:
    out |= {'classes': list(hub.labels(row['labels'])), 'ids': list(hub.label_ids(row['labels']))}
  return out


def _row(name):
  if not hub.is_row(name) and models.is_name(name):
    name = models.canonical(name)
  if not hub.is_row(name) and models.is_name(name):
    raise ValueError(
      f'There are no published weights for {models.canonical(name)}; give pretrained=PATH, a run or a file of weights.'
    )
  return hub.row(name)


def architecture_of(name, pretrained=False):
  """Every architecture argument of a model as create_model would build it from a name and weights.

  Raises ValueError for an unknown name, weights of another architecture, and where there are no weights to be had.
  """
  if not pretrained:
    name, row = named(name)
    return models.architecture(name, **row)
  opened, name = open_named(name, pretrained)
  return _wanted(opened, name, None, {})


def _wanted(opened, name, num_classes, overrides):
  """Every argument of the model that a user asked for: the weights' own, where these are of that architecture."""
  found, made = opened.described['name'], opened.described['architecture']
  given = overrides if num_classes is None else overrides | {'num_classes': num_classes}
  if found is None:
    raise ValueError(f'{opened.path} was trained on a model that was changed in Python; rebuild it to load it.')
  if models.variant(found)[0] is not models.variant(name)[0]:  # such as the encoder of MAE in a plain ViT
    return models.architecture(name, **given)
  if found != name:
    loose = {key: made[key] for key in ('img_size', 'num_classes') if key in made}
    if _outline(name, made) not in (_outline(name, loose), _outline(name, overrides | loose)):
      raise ValueError(f'{opened.path} holds a {found}, not a {name}: ask for {found}, or give what differs.')
  return models.architecture(name, **(made | given))


def _outline(name, architecture):
  """{path: shape} of a model; what is wrong with the arguments where there is none."""
  try:
    return fill.shapes(models.abstract(name, **architecture))
  except ValueError as error:
    return str(error)


def _build(name, num_classes, seed, architecture, execution):
  """A freshly drawn model that remembers by which name and arguments it was made, which fit writes into model.json."""
  given = architecture if num_classes is None else architecture | {'num_classes': num_classes}
  return _remember(models.build(name, rngs=nnx.Rngs(seed), **given, **execution), name, given, {})


def _remember(model, name, given, said):
  made = {'name': models.canonical(name), 'architecture': models.architecture(name, **given)}
  model.origin = json.dumps(said | made)  # text, because a static attribute must be hashable
  return model


def _said(model):
  return json.loads(model.origin) if hasattr(model, 'origin') else {}


def plain(model):
  """The same weights, computed layer by layer (scan=False, remat='none') and by attention='xla'.

  Raises ValueError for a model that is computed in another way and was not made by create_model, load or fit.
  """
  inside = [module for _, module in convert.modules(model)]
  if not any(getattr(m, 'scan', False) or getattr(m, 'remat', 'none') != 'none' for m in inside):
    return _by_xla(model)
  made = origin(model)
  if made is None:
    raise ValueError(
      'A model that was changed in Python can neither be looked into nor exported through scan or remat; build it with '
      "scan=False, remat='none'."
    )
  _, params, rest = state.split(model)
  new = models.abstract(made['name'], **made['architecture'])
  nnx.update(new, state.unstack(state.combine(params, rest)))
  new.origin = model.origin
  return _by_xla(new)


def _by_xla(model):
  """The model with attention whose weights can be seen and exported: itself where it has no other."""
  if all(getattr(m, 'implementation', 'xla') == 'xla' for _, m in convert.modules(model)):
    return model
  new = nnx.merge(*nnx.split(model))
  for _, module in convert.modules(new):
    for name in ('implementation', 'attention'):
      if isinstance(getattr(module, name, None), str):
        setattr(module, name, 'xla')
  return new


def origin(model):
  """{'name', 'architecture'} that create_model made the model from; None if it was made, or changed, in another way."""
  said = _said(model)
  if not said or said['name'] is None:
    return None
  made = {key: said[key] for key in ('name', 'architecture')}
  return made if _outline(**made) == fill.shapes(model) else None
