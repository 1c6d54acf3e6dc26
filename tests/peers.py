"""Goldens in any format, from the class or config they were made by: our model with their weights, and all tensors.

golden.py reads those that timm's create_model made.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from vit_jax import convert, convert_hf, convert_npz, models, state

FOLDER = pathlib.Path(__file__).parent / 'goldens/small'
WORDS = {'timm.layers.activations.GELUTanh': 'gelu_tanh'}  # a class in the constructor: our word for it


def load(name):
  """(meta, weights {key: array}, inputs, outputs) of a golden."""
  meta = json.loads((FOLDER / f'{name}.json').read_text())
  path = FOLDER / meta['weights']['file']
  weights = dict(np.load(path)) if path.suffix == '.npz' else load_file(path)
  io = np.load(FOLDER / f'{name}.io.npz')
  part = lambda prefix: {key.removeprefix(prefix): io[key] for key in io if key.startswith(prefix)}
  return meta, weights, part('in.'), part('out.')


def build(name, *, scan=False):
  """The model that a golden's constructor or config describes, with its weights."""
  meta, weights, _, _ = load(name)
  shapes = {key: array.shape for key, array in weights.items()}
  if meta['format'] == 'hf':
    made = convert_hf.describe(meta['config'], None, shapes)
    name, words, kind = made['name'], made['architecture'], meta['config']['model_type']
    shapes = {key: shape for key, shape in shapes.items() if not convert_hf.ignored(key, kind)}
  else:
    name, words = _constructed(meta['constructor'])
  model = models.abstract(name, **words)  # without scan: an array of a file is one of the model
  if meta['format'] == 'hf':
    entries = convert_hf.entries(model, meta['config'], shapes)
  else:
    entries = convert_npz.entries(model) if meta['format'] == 'npz' else convert.timm(model)
  assert convert.differences(entries, shapes) == []
  arrays = convert.Converted(entries, weights)
  params = state.unflatten({path: jnp.asarray(arrays[path]) for path in arrays})
  graphdef, _, rest = state.split(models.abstract(name, scan=scan, **words))
  return state.merge(graphdef, state.stack(params) if scan else params, rest)


def _constructed(constructor):
  """(a variant of the class, our words) of timm's call of a class."""
  words = {}
  for key, value in constructor['kwargs'].items():
    if key == 'norm_layer':
      words['norm_eps'] = value['kwargs']['eps']
    elif key != 'dynamic_img_size':  # ours always are
      marked = isinstance(value, dict)
      words[key] = tuple(value['$tuple']) if marked and '$tuple' in value else WORDS[value['$obj']] if marked else value
  kind = constructor['$call'].rpartition('.')[2]
  name, cls = next((name, cls) for name, (cls, _) in models.VARIANTS.items() if cls.__name__ == kind)
  return name, models.arguments(cls) | words


def ours(key, inside):
  """The name among a model's intermediates of a golden's output."""
  if key.startswith('hidden_states.'):
    number = int(key.rpartition('.')[2])
    return f'block{number - 1}' if number else 'embed'
  if key == 'last_hidden_state':
    return 'norm' if 'norm' in inside else [name for name in inside if name.startswith('block')][-1]
  return {'pooler_output': 'pre_logits'}.get(key, key.removeprefix('mid.'))


def check(name, *, scan=False):
  """Asserts that every output that a golden stores is within its tolerance."""
  meta, _, inputs, outputs = load(name)
  graphdef, params, rest = state.split(build(name, scan=scan))
  run = jax.jit(lambda p, image, **inputs: state.merge(graphdef, p, rest).intermediates(image, **inputs))
  with jax.default_matmul_precision('highest'):
    inside = run(params, **inputs)
  for key, want in outputs.items():
    got = np.asarray(inside[ours(key, inside)], np.float64)
    assert got.shape == want.shape
    spread = max(want.std() if want.size > 1 else abs(float(want)), 1e-3)
    assert np.abs(got - want).max() <= meta['suggested_tolerance']['relative_to_std'] * spread, key


def jitted(model):
  """model(images, key=...) as one compiled call."""
  graphdef, params, rest = state.split(model)
  run = jax.jit(lambda p, images, key: state.merge(graphdef, p, rest)(images, key=key))
  return lambda images, key=None: run(params, images, key)


def shape(model, images):
  """The shape of model(images), without computing it."""
  return jax.eval_shape(model, images).shape


def gradients(model, images, loss=jnp.sum):
  """Gradients of loss(model(images)) by parameter path, a layer an array."""
  graphdef, params, rest = state.split(model)
  return state.flatten(state.unstack(jax.jit(jax.grad(lambda p: loss(state.merge(graphdef, p, rest)(images))))(params)))
