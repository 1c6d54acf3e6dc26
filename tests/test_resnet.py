"""ResNet-v2 against tensors that timm computed in float64, its parts against numpy, and what it refuses."""

import hashlib
import json
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from vit_jax import convert, models, sharding, state
from vit_jax.models import resnet

FOLDER = pathlib.Path(__file__).parent / 'goldens'
TINY = dict(layers=(1, 1), channels=(16, 24), stem_chs=8, num_groups=4, num_classes=5)


def build(cls=resnet.ResNetV2, **arguments):
  return cls(**arguments, rngs=nnx.Rngs(0))


def fill(model, file):
  """The model with the arrays of a timm file, whose keys and shapes must be the model's."""
  arrays, entries, counters = load_file(file), convert.timm(model), convert.counters(model)
  assert set(counters) == {key for key in arrays if key.endswith('num_batches_tracked')}
  assert convert.differences(entries, {k: a.shape for k, a in arrays.items() if k not in counters}) == []
  values = {e.path: convert.read(e, [arrays[key] for key in e.keys]) for e in entries}
  nnx.update(model, jax.tree.map(jnp.asarray, state.unflatten(values)))
  return model


def golden(path):
  """(what the JSON says, {name: array} that the peer gave, the image)."""
  meta = json.loads((FOLDER / f'{path}.json').read_text())
  io = np.load(FOLDER / f'{path}.io.npz')
  want = {name.removeprefix('out.').removeprefix('mid.'): io[name] for name in io if name.startswith('out.')}
  return meta, want, io['in.image']


def inside(model, image):
  """{name: array} of model.intermediates, in their order and in one compilation."""
  graphdef, params, rest = state.split(model)
  names = []  # jit gives dicts back in the order of their keys

  @jax.jit
  def run(params, rest, image):
    out = state.merge(graphdef, params, rest).intermediates(image)
    names[:] = out
    return out

  with jax.default_matmul_precision('highest'):
    out = run(params, rest, image)
  return {name: out[name] for name in names}


def agree(model, path):
  """Every tensor of a golden is the model's; gives what `inside` does."""
  meta, want, image = golden(path)
  got = inside(fill(model, FOLDER / f'{path}.safetensors'), image)
  for name, array in want.items():
    assert got[name].shape == array.shape
    error = np.abs(np.asarray(got[name], np.float64) - array).max() / array.std()
    assert error < meta['suggested_tolerance']['relative_to_std'], name
  return got


@pytest.mark.parametrize(
  ('name', 'names'),
  [('preact_odd_timm', ['stem', 'stage0', 'stage1', 'norm', 'pre_logits', 'logits']),
   ('post_same_timm', ['stem', 'stage0', 'stage1', 'stage2', 'pre_logits', 'logits'])],
)  # fmt: skip
def test_every_tensor_is_timms_at_odd_sizes(name, names):  # stem_type 'fixed': small/bit_timm, in test_parity
  assert list(agree(build(**golden(f'resnet/{name}')[0]['arguments']), f'resnet/{name}')) == names


def test_where_epsilon_stands_shows():
  k = (np.random.default_rng(0).normal(size=(3, 3, 4, 5)) * 0.1 + 0.3).astype(np.float32)
  centred = k - k.mean((0, 1, 2))
  std = k.std((0, 1, 2))
  np.testing.assert_allclose(resnet.standardised(k, 1e-3, 'var'), centred / np.sqrt(std**2 + 1e-3), atol=1e-5)
  np.testing.assert_allclose(resnet.standardised(k, 1e-3, 'std'), centred / (std + 1e-3), atol=1e-5)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 3e-5), ('bfloat16', 1e-2)])
def test_group_norm_against_float64(dtype, tolerance):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 3, 5, 12)) * 2 + 20, dtype)  # far from zero: E[x^2] - E[x]^2 would fail
  norm = build(resnet.GroupNorm, dim=12, groups=3, eps=1e-3, act_layer='relu')
  norm.scale[...], norm.bias[...] = scale, bias = rng.normal(size=(2, 12)).astype(np.float32)
  parts = np.asarray(x, np.float64).reshape(2, 15, 3, 4)
  parts = parts - parts.mean((1, 3), keepdims=True)
  want = (parts / np.sqrt((parts**2).mean((1, 3), keepdims=True) + 1e-3)).reshape(x.shape) * scale + bias
  got = norm(x)
  assert got.dtype == dtype
  assert np.abs(np.asarray(got, np.float64) - np.maximum(want, 0)).max() < tolerance * want.std()


@pytest.mark.parametrize('preact', [True, False])
def test_a_block_in_bf16_is_near_float32s(preact):
  style = resnet.Style('same', 1e-5, 'std', 4, 1e-5, 'gelu')
  how = dict(first=True, avg_down=False, preact=preact, bottle_ratio=0.5, style=style)
  block = resnet.Bottleneck(8, 16, 2, **how, rngs=nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 9, 7, 8)), jnp.bfloat16)
  graphdef, params, rest = state.split(block)
  params = state.cast(params, 'bfloat16')
  run = jax.jit(lambda params, x: state.merge(graphdef, params, rest)(x))
  want = np.asarray(run(state.cast(params, 'float32'), x.astype('float32')), np.float64)
  got = run(params, x)
  assert got.dtype == jnp.bfloat16
  assert np.abs(np.asarray(got, np.float64) - want).max() < 0.05 * want.std()


def test_pooling_at_an_odd_border():
  x = np.random.default_rng(0).normal(size=(1, 5, 4, 2)).astype(np.float32)
  avg = resnet.avg_pool(x)
  np.testing.assert_allclose(avg[0, :, 0], [x[0, i : i + 2, :2].mean((0, 1)) for i in (0, 2, 4)], atol=1e-6)
  largest = resnet.max_pool(-np.abs(x), 'SAME')  # padded by -inf, not by zeros
  assert largest.shape == (1, 3, 2, 2) and (largest < 0).all()


@pytest.mark.parametrize(
  ('global_pool', 'reduce'),
  [
    ('avg', lambda x: x.mean((1, 2))),
    ('max', lambda x: x.max((1, 2))),
    ('avgmax', lambda x: (x.mean((1, 2)) + x.max((1, 2))) / 2),
    ('', lambda x: x),
  ],
)
def test_pooling(global_pool, reduce):
  x = np.random.default_rng(0).normal(size=(2, 5, 3, 24)).astype(np.float32)
  np.testing.assert_allclose(build(**TINY, global_pool=global_pool).pool(x), reduce(x), atol=1e-5)


def test_features_are_maps_and_without_a_head_a_call_gives_what_it_would_read():
  graphdef, params, rest = state.split(build(**TINY | dict(num_classes=0)))
  image = np.random.default_rng(0).normal(size=(2, 20, 12, 3)).astype(np.float32)

  @jax.jit
  def run(params):
    model = state.merge(graphdef, params, rest)
    return model.features(image), model(image), model.intermediates(image)

  features, out, got = run(params)
  assert [x.shape for x in features] == [(2, 5, 3, 16), (2, 3, 2, 24)]
  np.testing.assert_array_equal(features[0], got['stage0'])
  np.testing.assert_array_equal(features[1], got['norm'])
  np.testing.assert_array_equal(out, got['logits'])
  np.testing.assert_allclose(out, np.asarray(features[1]).mean((1, 2)), atol=1e-5)


def test_a_key_drops_paths():
  model = build(**TINY, drop_path_rate=0.6, drop_rate=0.3)
  graphdef, params, rest = state.split(model)
  params['head']['fc']['kernel'] = jnp.ones_like(params['head']['fc']['kernel'])
  image = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))

  @jax.jit
  def run(key):
    return jnp.square(state.merge(graphdef, params, rest)(image, key=key)).sum()

  one, again, other = (run(jax.random.key(i)) for i in (3, 3, 5))
  assert one == again and one != other


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (dict(stem_type='deep'), 'stem_type is'),
    (dict(conv_eps_on='mean'), 'conv_eps_on is'),
    (dict(conv_padding='valid'), 'conv_padding is'),
    (dict(global_pool='token'), 'global_pool is'),
    (dict(act_layer='tanhh'), 'act_layer is'),
    (dict(num_groups=5), 'num_groups=5'),
    (dict(layers=(1, 1, 1, 1, 1)), 'layers='),
    (dict(scan=True), 'scan=False'),
    (dict(remat='full'), 'scan=False'),
    (dict(attention='cudnn'), 'scan=False'),
  ],
)
def test_what_has_no_meaning_is_refused_in_one_line(arguments, said):
  with pytest.raises(ValueError, match=said) as caught:
    build(**TINY | arguments)
  assert '\n' not in str(caught.value)


# parameters, and the head of the sha256 of the sorted lines 'key AxBxC' of the state dict, as timm 1.0.31 builds them
TIMM = {
  'resnetv2_50x1_bit': (25_549_352, 'f71751a8804474ad'), 'resnetv2_50x3_bit': (217_319_080, 'c3ea498783758478'),
  'resnetv2_101x1_bit': (44_541_480, 'c04a7f0cdbd40095'), 'resnetv2_101x3_bit': (387_934_888, '0001094df83bebb6'),
  'resnetv2_152x2_bit': (236_335_208, 'ad2d7377be911b40'), 'resnetv2_152x4_bit': (936_533_224, 'df3c2b906bafe26e'),
}  # fmt: skip


def listed(name):
  """(parameters, hash of the listing) of a model by name, all of whose parameters the sharding table names."""
  model = models.abstract(name)
  for path, leaf in state.flatten(state.split(model)[1]).items():
    row = sharding.axes(path)
    assert row is not None and (row == () or len(row) == leaf.ndim), path
  shapes = {key: entry.file_shape for entry in convert.timm(model) for key in entry.keys}
  shapes |= dict.fromkeys(convert.counters(model), ())
  lines = sorted(f'{key} {"x".join(map(str, shape))}' for key, shape in shapes.items())
  return models.count(model), hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize('name', resnet.VARIANTS)
def test_every_name_lists_the_arrays_that_timm_lists(name):
  assert listed(name) == TIMM[name]


def test_names():
  assert models.canonical('BiT-M-R101x3') == models.canonical('BiT-S-R101x3') == 'resnetv2_101x3_bit'
  assert len(resnet.ALIASES) == 12
  abstract = models.abstract('BiT-M-R50x1', num_classes=21843)
  assert models.count(abstract) == 25_549_352 + (21843 - 1000) * 2049
