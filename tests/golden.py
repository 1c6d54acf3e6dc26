"""What other libraries computed, for the tests of models: weights, images and outputs of tests/goldens/small."""

import json
import pathlib

from flax import nnx
import jax
import numpy as np
from parity import recipe_image, recipe_weights

from vit_jax import convert, models, state

FOLDER = pathlib.Path(__file__).parent / 'goldens/small'


def load(name, **how):
  """(model filled from timm's names and layouts, images, {output: array}, tolerance); how: scan, remat, overrides."""
  meta = json.loads((FOLDER / f'{name}.json').read_text())
  plain = lambda value: tuple(value['$tuple']) if isinstance(value, dict) else value
  said = meta['constructor']
  kwargs = {k: plain(v) for k, v in said['kwargs'].items() if k not in ('pretrained', 'dynamic_img_size')}
  model = models.abstract(said['args'][0], **kwargs | how)
  fill(model, weights(meta), models.abstract(said['args'][0], **kwargs))
  with np.load(FOLDER / meta['io']['file']) as arrays:
    io = dict(arrays)
  images = io.pop('in.image', None)
  if images is None:
    images = recipe_image(meta['weights']['seed'], meta['io']['inputs']['image']['shape'])
  outputs = {key.removeprefix('out.').removeprefix('mid.'): array for key, array in io.items()}
  return model, images, outputs, meta['suggested_tolerance']['relative_to_std']


def weights(meta):
  """{key: array} of a golden's file, or of its recipe."""
  from safetensors.numpy import load_file

  stored = meta['weights']['file']
  return load_file(FOLDER / stored) if stored else recipe_weights(meta['weights'])


def fill(model, arrays, unrolled):
  """Puts the arrays of timm's file into a model; `unrolled` is the same without scan."""
  entries = convert.timm(unrolled)
  assert convert.differences(entries, {key: array.shape for key, array in arrays.items()}) == []
  ours = {e.path: arrays[e.keys[0]].transpose(e.order).reshape(e.shape) for e in entries}
  params = state.unflatten(ours)
  _, own, _ = state.split(model)
  nnx.update(model, jax.tree.map(jax.numpy.asarray, state.stack(params) if 'stacked' in own['blocks'] else params))


def error(got, want):
  """Largest difference over the standard deviation of what is wanted."""
  assert got.shape == want.shape
  return np.abs(np.asarray(got, np.float64) - want).max() / want.std()


def check(name, **how):
  """Asserts that all that a golden stores of a model's inside and outputs is within its tolerance; gives the model."""
  model, images, outputs, tolerance = load(name, **how)
  graphdef, params, rest = state.split(model)
  with jax.default_matmul_precision('highest'):
    inside = jax.jit(lambda p, x: state.merge(graphdef, p, rest).intermediates(x))(params, images)
    if 'features' in outputs:
      inside['features'] = inside.get('norm')
  errors = {key: error(inside[key], want) for key, want in outputs.items()}
  assert {key: e for key, e in errors.items() if not e <= tolerance} == {}
  return model
