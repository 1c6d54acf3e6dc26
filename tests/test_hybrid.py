"""Hybrids against tensors that timm computed in float64, at odd sizes; batch norms with and without a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resnet import agree, build, golden, listed

from vit_jax import models, signatures, state
from vit_jax.models import hybrid, vit

SIZE = dict(embed_dim=24, depth=1, num_heads=3, mlp_ratio=2.0, num_classes=5, img_size=32)
RESNETV2 = dict(layers=(1,), channels=(16,), stem_chs=8, num_groups=4)
RESNET = dict(backbone='resnet', layers=(1,), channels=(16,), stem_chs=8)
CONVSTEM = dict(backbone='convstem', channels=(8, 24), strides=(4, 2), proj=False)


def make(**arguments):
  return build(hybrid.HybridVisionTransformer, **SIZE | arguments)


def image(h=32, w=32, b=2):
  return jax.random.normal(jax.random.key(3), (b, h, w, 3))


@pytest.mark.parametrize('name', ['resnet_d_timm', 'convstem_timm', 'stem_timm', 'resnetv2_timm'])
def test_every_tensor_is_timms_at_odd_sizes(name):
  arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in golden(f'hybrid/{name}')[0]['arguments'].items()}
  agree(build(hybrid.HybridVisionTransformer, **arguments), f'hybrid/{name}')


def test_a_key_makes_batch_norms_use_and_learn_the_batchs_statistics():
  graphdef, params, rest = state.split(make(**RESNET))
  assert set(rest) == {'patch_embed'}
  x = image()

  @jax.jit
  def run(rest):
    model = state.merge(graphdef, params, rest)
    first = next(iter(model.patch_embed.backbone.conv1))(x)
    still, same = model.patches(x), state.split(model)[2]
    return first, still, same, model.patches(x, key=jax.random.key(0)), state.split(model)[2]

  first, still, same, trained, learnt = run(rest)
  jax.tree.map(np.testing.assert_array_equal, same, rest)
  assert np.abs(still - trained).max() > 1e-3
  got = learnt['patch_embed']['backbone']['conv1']['1']
  np.testing.assert_allclose(got['mean'], 0.1 * first.mean((0, 1, 2)), atol=1e-6)
  np.testing.assert_allclose(got['var'], 0.9 + 0.1 * first.var((0, 1, 2)), atol=1e-5)


@pytest.mark.parametrize('arguments', [RESNETV2, RESNET, CONVSTEM], ids=lambda a: a.get('backbone', 'resnetv2'))
def test_bf16_stays_bf16_and_gradients_reach_the_whole_backbone(arguments):
  model = make(**arguments)
  graphdef, params, rest = state.split(model.patch_embed)

  def loss(params, x):
    patches = state.merge(graphdef, params, rest)(x)
    return jnp.square(patches.astype('float32')).sum(), patches

  grads, want = jax.jit(jax.grad(loss, has_aux=True))(params, image())
  assert [path for path, g in state.flatten(grads).items() if not np.abs(g).max() > 0] == []
  got = jax.eval_shape(loss, state.cast(params, 'bfloat16'), image().astype('bfloat16'))[1]
  assert got.dtype == jnp.bfloat16 and got.shape == want.shape


def test_a_block_in_bf16_is_near_float32s():
  block = build(hybrid.Bottleneck, inputs=8, outputs=16, stride=2, act_layer='relu', eps=1e-5)
  graphdef, params, rest = state.split(block)
  params, x = state.cast(params, 'bfloat16'), image(9, 7).astype('bfloat16')[..., [0, 1, 2] * 2 + [0, 1]]
  run = jax.jit(lambda params, x: state.merge(graphdef, params, rest)(x))
  got, want = run(params, x), run(state.cast(params, 'float32'), x.astype('float32'))
  assert got.dtype == jnp.bfloat16 and np.abs(got - want).max() < 0.05 * want.std()


def test_a_scanned_model_has_the_same_backbone():  # test_vit compares what it computes
  plain, other = make(**RESNETV2, depth=2), make(**RESNETV2, depth=2, scan=True, remat='full')
  params = state.split(plain)[1]
  state.update(other, state.stack(params))
  jax.tree.map(np.testing.assert_array_equal, state.unstack(state.stack(params)), params)
  jax.tree.map(
    np.testing.assert_array_equal, state.split(other)[1]['patch_embed'], state.split(plain)[1]['patch_embed']
  )
  names = []
  jax.eval_shape(lambda x: names.extend(other.intermediates(x)), image())
  assert names == ['stem', 'stage0', 'embed', 'block0', 'block1', 'norm', 'pre_logits', 'logits']


def test_googles_numerics_are_arguments():
  backbone = make(**RESNETV2, conv_eps_on='std', conv_eps=1e-5, backbone_norm_eps=1e-6).patch_embed.backbone
  assert backbone.stem.conv.standardise == (1e-5, 'std') and backbone.stem.norm.eps == 1e-6


def test_image_sizes():
  model = make(**RESNETV2)
  assert model.grid == (8, 8) and model.patch_embed.grid(33, 50) == (9, 13)  # as SAME padding: a started step counts
  assert make(**CONVSTEM).patch_embed.grid(33, 50) == (4, 6)  # as VALID
  patched = make(**RESNETV2, patch_size=2)
  with pytest.raises(ValueError, match=r'A 33x32 image.s 9x8 map does not split into 2x2 patches; resize'):
    patched(image(33, 32))
  cropped = make(**RESNETV2, patch_size=2, crop_to_patches=True)
  assert jax.eval_shape(cropped.features, image(33, 32)).shape == (2, 1 + 4 * 4, 24)


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (dict(backbone='resnet18'), 'backbone is'),
    (RESNET | dict(backbone_act='tanhh'), 'act_layer is'),
    (RESNET | dict(layers=(1, 1)), 'layers='),
    (CONVSTEM | dict(strides=(4,)), 'strides='),
    (CONVSTEM | dict(embed_dim=12), 'proj=False'),
    (dict(layers=(), stem_type='deep'), 'stem_type is'),
  ],
)
def test_what_has_no_meaning_is_refused_in_one_line(arguments, said):
  with pytest.raises(ValueError, match=said) as caught:
    make(**arguments)
  assert '\n' not in str(caught.value)


def test_the_signature_shows_what_is_passed_on():
  own = signatures.signature(hybrid.HybridVisionTransformer)
  parents = signatures.signature(vit.VisionTransformer)
  assert set(parents) - set(own) == {'embed_norm_layer'} and 'arguments' not in own
  assert own['drop_rate'] == parents['drop_rate'] and own['patch_size'][1] == 1


# parameters, and the head of the sha256 of the listing, as test_resnet's
TIMM = {
  'vit_tiny_r_s16_p8_224': (6_337_704, 'feb22e26c2bd8466'),
  'vit_tiny_r_s16_p8_384': (6_355_944, 'dda8a199b9ca1b9d'),
  'vit_small_r26_s32_224': (36_431_912, '59867a614227a6f2'),
  'vit_small_r26_s32_384': (36_468_392, 'ce486172d716ad2a'),
  'vit_base_r26_s32_224': (101_383_976, '02faaa3a385e57b5'),
  'vit_base_r50_s16_224': (97_890_112, '1cc296b92c911e0d'),
  'vit_base_r50_s16_384': (98_950_952, 'ba5589d5ec371aa9'),
  'vit_large_r50_s32_224': (328_994_856, 'cbdea64e15860782'),
  'vit_large_r50_s32_384': (329_092_136, 'c6d070fc4946e0b1'),
  'vit_small_resnet26d_224': (63_608_392, 'e84c75253c494b8e'),
  'vit_small_resnet50d_s16_224': (57_531_976, '31e7ffffe5a880f7'),
  'vit_base_resnet26d_224': (101_403_208, 'f44ad36e6f3ce6e3'),
  'vit_base_resnet50d_224': (110_965_064, 'd5cd65ecfc933e20'),
  'vit_base_mci_224': (86_349_056, '7c95efeaef949e9a'),
}


@pytest.mark.parametrize('name', hybrid.VARIANTS)
def test_every_name_lists_the_arrays_that_timm_lists(name):
  assert listed(name) == TIMM[name]


@pytest.mark.parametrize(
  ('alias', 'count'),
  [('R+ViT-Ti_16', 6_337_704), ('R26+ViT-S_32', 36_431_912), ('R26+ViT-B_32', 101_383_976),
   ('R50+ViT-B_16', 98_659_112), ('R50+ViT-L_32', 328_994_856)],
)  # fmt: skip
def test_count_of_the_original_names(alias, count):
  assert models.count(models.abstract(alias, num_classes=1000)) == count
