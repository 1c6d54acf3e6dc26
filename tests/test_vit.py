"""The Vision Transformer against tensors that timm computed in float64, and every argument it has."""

from flax import nnx
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, state

TINY = dict(img_size=16, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5)
GOLDENS = {
  'vit_timm': {},
  'vit_rect_timm': {},  # not square, two registers, average and maximum, norms of q and k
  'vit_max_timm': {},  # maximum of all tokens of an image of another size
  'vit3_timm': dict(scan=True),  # MAP head that reads a register
  'siglip_timm': dict(scan=True),  # pixels left over
}


@pytest.mark.parametrize('name', GOLDENS)
def test_every_tensor_is_timms(name):  # test_parity has more of them
  golden.check(name, **GOLDENS[name])


def test_the_two_gelus_are_told_apart():
  model, images, outputs, tolerance = golden.load('vit_timm', act_layer='gelu_tanh')
  assert golden.error(model(images), outputs['logits']) > 2 * tolerance


def build(**overrides):
  model = models.build('vit_base_patch16_224', rngs=nnx.Rngs(0), **{**TINY, **overrides})
  if model.head is not None:
    model.head.kernel[...] = jax.random.normal(jax.random.key(7), model.head.kernel.shape)
  return model


def images(h=16, w=16, b=2):
  return jax.random.normal(jax.random.key(3), (b, h, w, 3))


ARGUMENTS = [
  dict(global_pool='avg'), dict(global_pool='avg', class_token=False, fc_norm=False),
  dict(global_pool='map', class_token=False), dict(pos_embed='sincos2d'), dict(pos_embed='none'),
  dict(qkv_bias=False), dict(init_values=0.1), dict(reg_tokens=3), dict(reg_tokens=2, no_embed_class=True),
  dict(pre_norm=True, norm_eps=1e-5), dict(representation_size=20), dict(final_norm=False),
  dict(act_layer='gelu_tanh'), dict(act_layer='quick_gelu'), dict(act_layer='silu'), dict(patch_size=(8, 4)),
  dict(global_pool='token_avg'), dict(global_pool='avgmax', reg_tokens=1, pool_include_prefix=True),
  dict(qk_norm=True, proj_bias=False, norm_layer='rmsnorm', embed_norm_layer='layernorm'),
]  # fmt: skip


def logits_and_gradients(model):
  graphdef, params, rest = state.split(model)

  def loss(params):
    logits = state.merge(graphdef, params, rest)(images())
    return jnp.square(logits).sum(), logits

  (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return logits, state.flatten(grads)


@pytest.fixture(scope='module')
def plain_logits():
  return logits_and_gradients(build(depth=1))[0]


@pytest.mark.parametrize('arguments', ARGUMENTS, ids=str)
def test_an_argument_changes_the_logits_and_gradients_reach_all_parameters(arguments, plain_logits):
  logits, grads = logits_and_gradients(build(**arguments, depth=1))
  assert logits.shape == (2, 5) and np.abs(logits - plain_logits).max() > 1e-4
  assert [path for path, gradient in grads.items() if not np.abs(gradient).max() > 0] == []


@pytest.mark.parametrize('size', [8, 14, 16, 32])
def test_patch_sizes(size):
  model = build(patch_size=size, img_size=2 * size)
  assert model.features(images(2 * size, 2 * size)).shape == (2, 5, 32)


def test_no_pooling_gives_logits_of_every_token_and_no_head_what_it_would_read():
  assert build(global_pool='').__call__(images()).shape == (2, 5, 5)
  headless = build(num_classes=0)
  assert headless(images()).shape == (2, 32)
  np.testing.assert_array_equal(headless(images()), headless.pool(headless.features(images())))
  assert build(num_classes=0, representation_size=20)(images()).shape == (2, 20)


def test_class_token_and_mean_side_by_side():
  model = build(num_classes=0, global_pool='token_avg', reg_tokens=2)
  tokens = model.features(images())
  want = np.concatenate([tokens[:, 0], tokens[:, 3:].mean(1)], axis=-1)
  np.testing.assert_allclose(model(images()), want, atol=1e-6)
  assert build(global_pool='token_avg').head.kernel.shape == (64, 5)


def test_what_is_left_over_of_an_image_is_left_off_where_asked():
  model = build(crop_to_patches=True, img_size=(23, 16))
  assert model.grid == (2, 2)
  np.testing.assert_array_equal(model(images(23, 17)), model(images(23, 17)[:, :16, :16]))
  with pytest.raises(ValueError, match='A 7x16 image does not split'):
    model(images(7, 16))


@pytest.mark.parametrize('how', [{}, {'scan': True}], ids=str)
def test_intermediates_are_what_features_and_calls_give(how):
  model = build(depth=2, **how)
  inside = model.intermediates(images())
  assert list(inside) == ['embed', 'block0', 'block1', 'norm', 'pre_logits', 'logits']
  np.testing.assert_array_equal(inside['norm'], model.features(images()))
  np.testing.assert_array_equal(inside['logits'], model(images()))
  assert list(build(depth=1, global_pool='avg', num_classes=0).intermediates(images())) == [
    'embed', 'block0', 'pre_logits', 'logits',
  ]  # fmt: skip


def test_the_hidden_layer_is_tanh():
  model = build(num_classes=0, representation_size=20)
  token = model.features(images())[:, 0]
  want = np.tanh(token @ model.pre_logits.kernel[...] + model.pre_logits.bias[...])
  np.testing.assert_allclose(model(images()), want, atol=1e-6)


@pytest.mark.parametrize('pos_embed', ['learn', 'sincos2d', 'none'])
def test_other_image_sizes_and_shapes(pos_embed):
  model = build(pos_embed=pos_embed, reg_tokens=1)
  assert model.features(images(24, 40)).shape == (2, 2 + 15, 32)
  assert np.isfinite(model(images(24, 40))).all()


def test_learned_positions_at_another_size_are_resampled():
  from vit_jax.models import positions

  model = build(reg_tokens=1)
  bare = build(reg_tokens=1, pos_embed='none')
  params = state.split(model)[1]
  table = params.pop('pos_embed')
  state.update(bare, params)
  got = model.embed(images(24, 40)) - bare.embed(images(24, 40))
  grid = positions.resize_positions(table[0, 2:].reshape(2, 2, 32), (3, 5), 'bicubic').reshape(1, 15, 32)
  np.testing.assert_allclose(got, jnp.broadcast_to(jnp.concatenate([table[:, :2], grid], 1), got.shape), atol=1e-6)


def test_no_key_is_deterministic_and_a_key_is_not():
  model = build(drop_rate=0.1, pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.3)
  np.testing.assert_array_equal(model(images()), model(images()))
  one, two = (model(images(), key=jax.random.key(i)) for i in (0, 1))
  assert np.abs(one - two).max() > 1e-3
  np.testing.assert_array_equal(one, model(images(), key=jax.random.key(0)))
  assert state.split(model)[2] == {}  # no random state to save


@pytest.mark.parametrize('rate', ['drop_rate', 'pos_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path_rate'])
def test_each_rate_acts_and_keeps_the_mean(rate):
  model = build(**{rate: 0.2}, global_pool='avg', depth=2)
  x = images()
  draws = jax.jit(jax.vmap(lambda key: model(x, key=key)))(jax.random.split(jax.random.key(5), 400))
  assert draws.std(0).max() > 1e-3
  if rate == 'drop_rate':  # the only one with nothing nonlinear behind it
    error = np.abs(draws.mean(0) - model(x)) / (draws.std(0) / 20)  # in standard errors of 400 draws
    assert error.max() < 5


DROPPING = dict(depth=2, drop_path_rate=0.3, proj_drop_rate=0.1, attn_drop_rate=0.1, init_values=0.1)


def loss_and_gradients(model, key):
  graphdef, params, rest = state.split(model)
  loss = lambda p, key: jnp.square(state.merge(graphdef, p, rest)(images(), key=key)).mean()
  return jax.jit(jax.value_and_grad(loss))(params, key)


@pytest.fixture(scope='module')
def unrolled():
  model = build(**DROPPING)
  return state.split(model)[1], loss_and_gradients(model, jax.random.key(1)), model(images())


HOW = [dict(scan=True), dict(remat='full'), dict(remat='dots'), dict(scan=True, remat='full')]


@pytest.mark.parametrize('how', HOW, ids=str)
def test_scan_and_remat_change_no_number(how, unrolled):
  params, (loss, grads), logits = unrolled
  model = build(**DROPPING, **how)
  state.update(model, state.stack(params) if how.get('scan') else params)
  other_loss, other_grads = loss_and_gradients(model, jax.random.key(1))
  np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * np.abs(b).max())
  jax.tree.map(near, state.unstack(other_grads) if how.get('scan') else other_grads, grads)
  np.testing.assert_allclose(model(images()), logits, atol=1e-5)


def test_a_stacked_model_gives_its_blocks():
  plain, scanned = build(), build(scan=True)
  state.update(scanned, state.stack(state.split(plain)[1]))
  x = jax.random.normal(jax.random.key(0), (10, 32))
  np.testing.assert_array_equal(scanned.blocks[-1](x, 5), plain.blocks[2](x, 5))
  assert len(scanned.blocks) == len(plain.blocks) == 3


def test_bfloat16_in_bfloat16_out():
  graphdef, params, rest = state.split(build())
  model = state.merge(graphdef, state.cast(params, jnp.bfloat16), rest)
  assert model(images().astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(('arguments', 'said'), [
  (dict(img_size=30), 'A 30x30 image does not split into 8x8 patches; resize it to 24x24 or choose'),
  (dict(num_heads=5), 'embed_dim 32 does not split into 5 heads'),
  (dict(class_token=False), "global_pool='token' reads the class token"),
  (dict(global_pool='mean'), "global_pool is 'mean'; choose one of 'token', 'avg', 'max', 'avgmax', "),
  (dict(global_pool='token_avg', fc_norm=True), 'leave fc_norm out'),
  (dict(pos_embed='rope'), "pos_embed is 'rope'"),
  (dict(act_layer='gelu_new'), "act_layer is 'gelu_new'"),
  (dict(pos_embed='sincos2d', embed_dim=30, num_heads=2), 'multiple of 4'),
  (dict(remat='some'), "remat is 'some'; choose one of none, dots, full."),
  (dict(attention='flash'), "attention is 'flash'; choose one of auto, xla, cudnn, splash."),
], ids=str)  # fmt: skip
def test_what_cannot_be_built_says_so_in_one_line(arguments, said):
  with pytest.raises(ValueError) as caught:
    models.abstract('vit_base_patch16_224', **{**TINY, **arguments})
  assert said in str(caught.value) and '\n' not in str(caught.value)


def test_a_picture_that_does_not_split_is_refused():
  with pytest.raises(ValueError, match='A 20x16 image does not split into 8x8 patches; resize it to 16x16'):
    build()(images(20, 16))


def test_a_users_jit_optimizer_and_new_head():
  import optax

  model = build(num_classes=0)
  model.head = nnx.Linear(32, 3, rngs=nnx.Rngs(1))
  optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer, x, y):
    loss = lambda m: optax.softmax_cross_entropy_with_integer_labels(m(x), y).mean()
    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value

  losses = [float(step(model, optimizer, images(), jnp.array([0, 2]))) for _ in range(5)]
  assert losses[-1] < losses[0]
