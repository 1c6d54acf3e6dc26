"""What a Google .npz is, by its shapes, and AugReg's names."""

import re

import pytest

from vit_jax import convert_npz, describe_npz, models

VIT = 'vit_base_patch16_224'
TINY = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, mlp_ratio=1.7)
BLOCK = 'Transformer/encoderblock_0'


def shapes_of(name=VIT, **arguments):
  entries = convert_npz.entries(models.abstract(name, **arguments))
  return {key: entry.file_shape for entry in entries for key in entry.keys}


@pytest.fixture(scope='module')
def tiny():
  return shapes_of(**TINY)


def test_a_file_says_what_it_is(tiny):
  found = describe_npz.describe(tiny)
  made = TINY | dict(mlp_ratio=27 / 16, class_token=True, global_pool='token', pos_embed='learn', no_embed_class=False)
  made |= dict(act_layer='gelu_tanh', pos_resize='corner', norm_eps=1e-6, in_chans=3, representation_size=None)
  assert made.items() <= found['architecture'].items()
  assert set(found['architecture']) == set(models.architecture(VIT)) and found['num_classes'] == 3
  assert found['preprocessing'] == {
    'size': [32, 32], 'crop': 'squash', 'crop_pct': 1.0, 'interpolation': 'tf_bilinear', 'mean': [0.5] * 3,
    'std': [0.5] * 3,
  }  # fmt: skip


def test_numerics_have_a_name(tiny):
  found = describe_npz.describe(tiny, numerics='timm')
  assert {'act_layer': 'gelu', 'pos_resize': 'bilinear_plain'}.items() <= found['architecture'].items()
  row = found['preprocessing']
  assert (row['crop'], row['crop_pct'], row['interpolation']) == ('center', 0.9, 'bicubic')
  with pytest.raises(ValueError, match="choose 'google'"):
    describe_npz.describe(tiny, numerics='hf')


def test_a_name_is_kept_where_none_is_nearer(tiny):
  base = shapes_of(VIT, depth=1)
  assert describe_npz.describe(base)['name'] == VIT
  assert describe_npz.describe(base, name='ViT-Ti_16')['name'] == VIT
  assert describe_npz.describe(base, name='deit_base_patch16_224')['name'] == 'deit_base_patch16_224'
  with pytest.raises(ValueError, match='There is no model'):
    describe_npz.describe(tiny, name='vit_bsae_patch16_224')


def test_mlp_ratio_gives_back_the_hidden_width():
  for width in range(1, 400, 7):
    for hidden in range(1, 3 * width, 5):
      assert int(width * describe_npz._ratio(hidden, width)) == hidden


GAP = dict(class_token=False, global_pool='avg', fc_norm=False)


@pytest.mark.parametrize(
  'made, told, want',
  [
    ({}, None, 32),
    ({}, (16, 64), (16, 64)),  # as many patches: what the caller says
    ({}, (48, 24), 32),  # of another size: a square, to be resampled
    (dict(img_size=(16, 40)), (16, 40), (16, 40)),
    (dict(img_size=(16, 40)), (32, 80), (16, 40)),  # of the same aspect
    (dict(img_size=(16, 40), no_embed_class=True), (16, 40), (16, 40)),
    (dict(img_size=(16, 32)), (32, 64), (16, 32)),  # and no square with the class token's row
    (GAP | dict(img_size=(40, 8)), (40, 8), (40, 8)),
    (GAP | dict(pos_embed='sincos2d'), None, 224),
    (GAP | dict(pos_embed='sincos2d'), 48, 48),
    (dict(patch_size=(8, 4), img_size=(32, 16)), None, (32, 16)),
  ],
)
def test_the_grid_of_positions(made, told, want):
  found = describe_npz.describe(shapes_of(**TINY | made), img_size=told)['architecture']
  assert found['img_size'] == want
  assert found['no_embed_class'] == (made.get('no_embed_class', False) or 'pos_embed' in made)


def test_positions_that_are_no_square_need_a_word():
  shapes = shapes_of(**TINY | dict(img_size=(16, 40)))
  for told in (None, 32, (16, 48), (16, 41)):
    with pytest.raises(ValueError, match=r'11 positions are no square of patches; say img_size='):
      describe_npz.describe(shapes, img_size=told)


def test_positions_that_are_not_there():
  gap, token = (shapes_of(**TINY | more | dict(pos_embed='sincos2d')) for more in (GAP, {}))
  kind = lambda *args, **told: describe_npz.describe(*args, **told)['architecture']['pos_embed']
  assert kind(gap) == kind(gap, name=VIT, pos_embed='sincos2d') == kind(token, pos_embed='sincos2d') == 'sincos2d'
  for shapes, told in ((token, {}), (gap, dict(name=VIT)), (gap, dict(pos_embed='learn'))):
    with pytest.raises(ValueError, match='pos_embedding is missing; if positions are computed'):
      kind(shapes, **told)


def test_positions_in_the_square_of_a_class_token():
  """Four by four patches without a row for the class token, in Google's place for them."""
  shapes = shapes_of(**TINY)
  shapes |= {describe_npz.POSITIONS: (1, 16, 16)}
  with pytest.raises(ValueError, match='16 positions are no square'):
    describe_npz.describe(shapes)
  found = describe_npz.describe(shapes, img_size=32)
  assert found['architecture']['no_embed_class'] and found['architecture']['img_size'] == 32


@pytest.mark.parametrize(
  'change, words',
  [
    ({'embedding/kernel': None}, 'This is no .npz of Google: of 39 arrays'),
    ({'embedding/kernel': (8, 16)}, r'embedding/kernel is (8, 16); wanted an array with 4 axes'),
    ({'embedding/kernel': (8, 8, 3, 0)}, 'embedding/kernel is (8, 8, 3, 0); wanted'),
    ({f'{BLOCK}/MlpBlock_0/Dense_0/kernel': None}, 'Dense_0/kernel is missing; wanted'),
    ({f'{BLOCK}/MultiHeadDotProductAttention_0/query/kernel': (16, 16)}, 'query/kernel is (16, 16); wanted'),
    ({'Transformer/encoderblock_7/x': (1,)}, 'number 2 is missing'),
    ({describe_npz.POSITIONS: ()}, 'pos_embedding is (); wanted'),
    ({describe_npz.POSITIONS: (1, 3, 16)}, '3 positions are no square'),
    ({'conv_root/kernel': (3,)}, 'conv_root/kernel is (3,); wanted'),
    ({'stem/kernel': (8, 8, 3, 4), 'embedding/kernel': None}, 'token_mixing/Dense_0/kernel is missing'),
    ({'resnet/root_block/standardized_conv2d/kernel': (7, 7, 3), 'embedding/kernel': None}, 'is (7, 7, 3); wanted'),
  ],
)
def test_hostile_shapes_are_one_line(tiny, change, words):
  shapes = {key: shape for key, shape in (tiny | change).items() if shape is not None}
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    describe_npz.describe(shapes)
  assert '\n' not in str(error.value)
  assert describe_npz.looks(shapes) == str(error.value)


def test_looks(tiny):
  want = 'a ViT of width 768, depth 1, 12 heads, patch 16, 384 pixels, 10 classes (nearest: vit_base_patch16_384)'
  assert describe_npz.looks(shapes_of(VIT, depth=1, img_size=384, num_classes=10)) == want
  oblong = shapes_of(**TINY | dict(patch_size=(8, 4), img_size=(32, 16)))
  assert 'patch (8, 4), 32x16 pixels' in describe_npz.looks(oblong)
  mixer, bit = shapes_of('mixer_s32_224', num_blocks=1), shapes_of('resnetv2_50x1_bit', layers=(1, 2))
  assert describe_npz.looks(mixer).startswith('an MLP-Mixer of width 512, depth 1, patch 32, 224 pixels')
  assert describe_npz.looks(bit).startswith('a BiT ResNet-v2 of units (1, 2), ')
