"""Models with weights: create_model by name, load from a folder that a run wrote."""

import json
import os

from flax import nnx
import jax

from vit_jax import checkpoint, models, state
from vit_jax.models import positions, vit


def create_model(
  name: str, *, pretrained: bool | str = False, num_classes: int | None = None, reset: tuple[str, ...] = (),
  numerics: str | None = None, seed: int = 0, **architecture,
):  # fmt: skip
  """A model by name, freshly drawn from `seed` or filled with the weights of a run; without a key it is deterministic.

  name: see list_models.   pretrained: False, or the folder of a run (WORKDIR or WORKDIR/checkpoints/STEP).
  num_classes: size of the head, 0 = none, None = as the name or the folder has it.   reset: first parts of parameter
  paths that stay freshly drawn, ('head',) for a head of another size.   architecture: arguments of the model's class.
  Learned positions are resampled when img_size differs from the folder's.

  Raises ValueError for an unknown name or argument, and one that lists all arrays that do not fit.
  """
  execution = {key: architecture.pop(key) for key in models.EXECUTION if key in architecture}
  if numerics is not None:
    raise ValueError(f'numerics={numerics!r} says how a Google .npz is to be read, which this version cannot do yet.')
  if not pretrained:
    return _build(name, num_classes, seed, architecture, execution)
  made = architecture_of(name, pretrained)
  classes = made['num_classes'] if num_classes is None else num_classes
  model = _build(name, classes, seed, made | architecture, execution)
  arrays = weights(checkpoint.find(pretrained)[0])
  if made['pos_embed'] == 'learn' and 'pos_embed' not in reset:
    arrays['params']['pos_embed'] = _resized(arrays['params']['pos_embed'], made, model)
  _fill(model, arrays, reset)
  return model


def architecture_of(name, pretrained=False):
  """Every architecture argument of a model as it is named, or as the run in the folder `pretrained` has it.

  Raises ValueError for an unknown name, a folder of another architecture, and where there are no weights to be had.
  """
  if not pretrained:
    return models.architecture(name)
  if pretrained is True:
    raise ValueError(f'This version cannot download weights for {name}; give pretrained=FOLDER, the workdir of a run.')
  described = describe(checkpoint.find(pretrained)[0])
  if described['name'] != models.canonical(name):
    raise ValueError(f'{pretrained} holds a {described["name"]}, not a {name}: ask for {described["name"]}.')
  return described['architecture']


def load(path):
  """(model, description) of a run's folder: its best averaged weights, else its best, else its last.

  path: WORKDIR or WORKDIR/checkpoints/STEP.   description: the content of model.json (name, architecture, num_classes,
  preprocessing, classes, version) and 'weights', which ones these are.
  """
  if models.is_name(path) and not os.path.exists(path):
    raise ValueError(f'{path} is an architecture without weights; give the workdir of a run.')
  folder, which = checkpoint.find(path)
  described = describe(folder)
  if described['name'] is None:
    raise ValueError(
      f'{path} was trained on a model that was changed in Python; rebuild it, and vit_jax.state.update it with '
      f'vit_jax.pretrained.weights({str(folder)!r}).'
    )
  made = described['architecture']
  model = _build(described['name'], made['num_classes'], None, made, {})
  _fill(model, weights(folder), ())
  return model, described | {'weights': which}


def describe(folder):
  """The content of model.json for a step's folder: what the weights are, without the config that made them."""
  path = folder.parent.parent / 'model.json'
  try:
    with open(path) as file:
      return json.load(file)
  except FileNotFoundError:
    raise ValueError(
      f'{path} is missing: it says what the weights beside it are; copy it from the original run.'
    ) from None
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is damaged ({error}); copy it from the original run.') from None


def weights(folder):
  """{'params', 'rest'} of a step's folder as nested dicts of numpy arrays; params are the averaged ones if any."""
  name = 'ema' if (folder / 'ema').is_dir() else 'params'
  arrays = checkpoint.read(folder, (name, 'rest'))
  return {'params': arrays[name], 'rest': arrays['rest']}


def _build(name, num_classes, seed, architecture, execution):
  """A model that remembers by which name and arguments it was made, which fit writes into model.json.

  seed: None gives shapes in place of arrays, to be filled.
  """
  given = architecture if num_classes is None else architecture | {'num_classes': num_classes}
  if seed is None:
    model = models.abstract(name, **given, **execution)
  else:
    model = models.build(name, rngs=nnx.Rngs(seed), **given, **execution)
  made = {'name': models.canonical(name), 'architecture': models.architecture(name, **given)}
  model.origin = json.dumps(made)  # text, because a static attribute must be hashable
  return model


def origin(model):
  """{'name', 'architecture'} that create_model made the model from; None if it was made, or changed, in another way."""
  if not hasattr(model, 'origin'):
    return None
  made = json.loads(model.origin)
  shapes = lambda m: {p: a.shape for p, a in state.flatten(jax.eval_shape(state.unstack, state.split(m)[1])).items()}
  return made if shapes(models.abstract(made['name'], **made['architecture'])) == shapes(model) else None


def _resized(table, made, model):
  """A file's learned positions for the grid of the model."""
  old = tuple(size // patch for size, patch in zip(vit.pair(made['img_size']), vit.pair(made['patch_size'])))
  prefix = table.shape[1] - old[0] * old[1]
  return positions.resize_table(table, old, model.grid, prefix=prefix, method=made['pos_resize'])


def _fill(model, arrays, reset):
  """Puts weights into a model, strictly: all that may differ is named by `reset`."""
  _, params, rest = state.split(model)
  stacked = any('stacked' in path.split('/') for path in state.flatten(params))
  own = state.flatten(state.unstack(params) if stacked else params)
  under = lambda path, parts: any(path == part or path.startswith(f'{part}/') for part in parts)
  for part in reset:
    if not any(under(path, [part]) for path in own):
      raise ValueError(f'reset names {part!r}, which the model does not have; it has {", ".join(params)}.')
  given = {path: leaf for path, leaf in state.flatten(arrays['params']).items() if not under(path, reset)}
  given = state.unflatten(given | {path: leaf for path, leaf in own.items() if under(path, reset)})
  state.update(model, state.stack(given) if stacked else given, arrays['rest'] or rest)
