"""Every layout is the same training: losses on each mesh; what devices exchange, read from the compiled step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from vit_jax import distill, hlo, models, optim, pretrained, sharding, state, tasks, transforms
from vit_jax import step as step_lib

MESHES = dict(data=dict(data=8), fsdp=dict(data=1, fsdp=8), all=dict(data=2, fsdp=2, tensor=2))
TINY = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=4)
ROW = dict(mean=[0.5] * 3, std=[0.25] * 3, size=[16, 16])
SLOW = pytest.mark.slow
RECIPES = {
  'sgd': dict(optim=dict(name='sgd', lr=0.1, clip=1.0)),
  'adamw': dict(optim=dict(lr=1e-3), step=dict(augment=dict(flip=True, mixup=0.8)), dropped=True),
  'averages, micro-batches, scan': dict(
    optim=dict(lr=1e-3, ema=0.9), step=dict(accumulate=2, scan=True, remat='full'), dropped=True
  ),
  'sam': dict(optim=dict(name='sgd', lr=0.1, sam=dict(rho=0.1)), step=dict(scan=True, remat='dots')),
  'distilled': dict(optim=dict(lr=1e-3), task=dict(distillation='soft', teacher='another')),
}


def teacher(task):
  """Another tiny ViT, which knows how its pictures are prepared."""
  model = vit_jax.create_model('vit_tiny_patch16_224', **TINY, seed=7)
  pretrained.remember(model, preprocessing=transforms.preprocessing(16), classes=list('abcd'), ids=None, loss='softmax')
  return distill.Teacher(model, task, size=[16, 16], dtype='float32')


def program(mesh, *, dropped=False, dim=32, **recipe):
  """(the Program of a tiny ViT on a mesh, its model's parts, a further argument of its step)."""
  options = step_lib.Step(**recipe.get('step', {}))
  how = {key: getattr(options, key) for key in models.EXECUTION}
  shape = (
    TINY
    | dict(embed_dim=dim, depth=2 if options.scan or dim > 32 else 1)
    | (dict(drop_path_rate=0.2, proj_drop_rate=0.1) if dropped else {})
  )
  graphdef, params, rest = state.split(vit_jax.create_model('vit_tiny_patch16_224', **shape, **how))
  task = tasks.make(classes=list('abcd'), **recipe.get('task', {}))
  taught = teacher(task) if 'task' in recipe else None
  made = step_lib.jitted(graphdef, params, rest, optim.make(total_steps=10, **recipe['optim']), task, ROW, seed=3,
                         options=options, mesh=mesh, teacher=taught)  # fmt: skip
  params['head']['kernel'] = np.random.default_rng(5).normal(size=(dim, 4)).astype(np.float32) / 8
  return made, (params, rest), {} if taught is None else {'weights': taught.placed(mesh)}


def losses(mesh, recipe):
  """The losses of the first ten steps, in float32 and the highest precision of products."""
  rng, found = np.random.default_rng(0), []
  with jax.default_matmul_precision('highest'):
    made, parts, more = program(mesh, **recipe)
    run = made.init(*parts)
    for _ in range(10):
      batch = {'image': rng.integers(0, 256, (16, 16, 16, 3), np.uint8), 'label': rng.integers(0, 4, 16, np.int32)}
      run, values = made.step(run, jax.device_put(batch, sharding.batch(mesh)), **more)
      found.append(float(values['loss']))
  return np.array(found)


@pytest.mark.parametrize('recipe', [pytest.param(name, marks=[SLOW] * (name != 'adamw')) for name in RECIPES])
def test_the_first_ten_losses_are_those_of_one_device(recipe, devices):
  one = losses(sharding.make_mesh(devices=devices[:1]), RECIPES[recipe])
  assert one.std() > 1e-3
  for name, sizes in MESHES.items():
    np.testing.assert_allclose(losses(sharding.make_mesh(**sizes), RECIPES[recipe]), one, rtol=1e-5, err_msg=name)


def exchanged(sizes, **recipe):
  """(rows of hlo.collectives, {path: parameter}, shardings) of a step with averages, whose weights are the smaller."""
  mesh = sharding.make_mesh(**sizes)
  made, (params, _), _ = program(mesh, dim=64, optim=dict(ema=0.9), **recipe)
  images = {
    'image': jax.ShapeDtypeStruct((1024, 16, 16, 3), jnp.uint8),
    'label': jax.ShapeDtypeStruct((1024,), jnp.int32),
  }
  batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding.batch(mesh)), images)
  return hlo.collectives(made.step.lower(made.shapes, batch).compile().as_text()), state.flatten(params), made.places


def moved(rows, *ops):
  return sum(row['bytes'] * row['trips'] for row in rows if row['op'] in ops)


SCALARS = 4096  # bytes: sums of squares of arrays, statistics


def test_data_parallel_is_one_all_reduce_of_the_gradient(devices):
  rows, params, _ = exchanged(MESHES['data'])
  large = [row for row in rows if row['bytes'] > SCALARS]
  assert [row['op'] for row in large] == ['all-reduce']
  assert moved(rows, *hlo.COLLECTIVES) <= 4 * sum(leaf.size for leaf in params.values()) + SCALARS


@pytest.mark.parametrize('how', [dict(), dict(step=dict(scan=True, remat='full'))], ids=['unrolled', 'scan'])
def test_sharded_weights_are_gathered_twice_at_most_and_nothing_else_is(how, devices):
  rows, params, places = exchanged(MESHES['fsdp'], **how)
  cut = {path for path, place in state.flatten(places['params']).items() if not place.is_fully_replicated}
  blocks = sum(4 * params[path].size for path in cut if path.startswith('blocks/'))
  ends = sum(4 * params[path].size for path in cut if not path.startswith('blocks/'))
  assert blocks > 0 and ends > 0
  assert not moved(rows, 'all-to-all', 'ragged-all-to-all', 'collective-permute', 'collective-broadcast')
  assert moved(rows, 'all-gather') <= 2 * blocks + ends  # no activation, moment or average: these would be more
  # a CPU has no reduce-scatter: it sums the gradient everywhere, and keeps a part
  total = 4 * sum(leaf.size for leaf in params.values())
  assert moved(rows, 'all-reduce', 'reduce-scatter') <= total + SCALARS
  layer = max(math.prod(dims) for row in rows if row['op'] == 'all-gather' for _, dims in row['shapes'])
  assert layer <= max(leaf.size for leaf in params.values()) and layer < 1024 * 5 * 64


@pytest.mark.parametrize('how', [dict(), dict(step=dict(scan=True, remat='full'))], ids=['unrolled', 'scan'])
def test_cut_heads_exchange_sums_of_activations_and_never_sort_them(how, devices):
  rows, params, _ = exchanged(MESHES['all'], **how)
  tokens = 4 * 1024 // 4 * 5 * 64  # bytes of the activations of a device, which has a quarter of the images
  assert not moved(rows, 'all-to-all', 'ragged-all-to-all')
  assert all(math.prod(dims) < tokens / 4 for row in rows if row['op'] == 'all-gather' for _, dims in row['shapes'])
  sums = [row for row in rows if row['op'] == 'all-reduce' and row['bytes'] >= tokens]
  again = 1 if how else 0  # of attention, where its output is computed once more
  assert sum(row['trips'] for row in sums) <= 2 * (4 + again)  # after attention and MLP, forward and backward
  assert all(row['group'] == 2 for row in sums)
