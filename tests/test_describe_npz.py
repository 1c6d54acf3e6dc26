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


AUG_REG = 'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0'
TUNED = f'{AUG_REG}--imagenet2012-steps_20k-lr_0.01-res_384'
ROWS = [  # name, ds, final_val, filename, adapt_ds, adapt_resolution, adapt_final_val, adapt_filename
  ('B/16', 'i21k', '0.47', AUG_REG, 'imagenet2012', '384', '0.855', TUNED),
  ('B/16', 'i21k', '0.47', AUG_REG, 'imagenet2012', '224.0', '0.846', 'tuned_224'),
  ('B/16', 'i21k', '0.46', 'worse', 'imagenet2012', '384', '0.86', 'worse_384'),
  ('B/16', 'i21k', 'nan', 'failed', 'cifar10', '224', '', 'failed_cifar'),
  ('B/16', 'i1k', '0.8', 'small_data', 'imagenet2012', '384', '0.9', 'small_data_384'),
  ('R26+S/32', 'i21k', '0.4', 'R26_S_32-x', 'imagenet2012', '384', '0.8', 'R26_S_32-y'),
]
COLUMNS = 'name,ds,final_val,filename,adapt_ds,adapt_resolution,adapt_final_val,adapt_filename'
INDEX = '\n'.join([COLUMNS, *map(','.join, ROWS)]) + '\n'


def test_the_index_of_aug_reg(tmp_path):
  (tmp_path / 'index.csv').write_text(INDEX)
  for index in (INDEX, tmp_path / 'index.csv', str(tmp_path / 'index.csv')):
    assert describe_npz.aug_reg(index, 'ViT-B_16') == AUG_REG
  select = lambda name, **wanted: describe_npz.aug_reg(INDEX, name, **wanted)
  assert select('B/16') == select('B_16') == AUG_REG
  assert select('R26+ViT-S_32') == select('R26+S_32') == 'R26_S_32-x'
  assert select('B/16', adapt_ds='imagenet2012') == 'worse_384'
  assert select('B/16', adapt_ds='imagenet2012', adapt_resolution=224) == 'tuned_224'
  assert select('B/16', ds='i1k') == 'small_data' and select('B/16', ds='i1k', adapt_resolution=384) == 'small_data_384'
  assert select(TUNED) == select(f'{TUNED}.npz') == TUNED


@pytest.mark.parametrize(
  'name, wanted, words',
  [
    ('ViT-X_16', {}, 'AugReg has no ViT-X_16; it has B/16, R26+S/32.'),
    ('B/16', {'dataset': 'i1k'}, "index.csv has no column 'dataset'; it has name, ds,"),
    ('B/16', {'ds': 'i2k'}, 'There is no B/16 with ds=i2k among these; ds is one of i1k, i21k.'),
    ('B/16', {'adapt_resolution': 512}, 'adapt_resolution is one of 224, 224.0, 384.'),
  ],
)
def test_what_the_index_does_not_have(name, wanted, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    describe_npz.aug_reg(INDEX, name, **wanted)


def test_another_table_is_no_index():
  with pytest.raises(ValueError, match='no index.csv of AugReg'):
    describe_npz.aug_reg('a,b\n1,2\n', 'B/16')


def test_names_of_aug_reg():
  found = describe_npz.describe_filename(f'a/folder/{TUNED}.npz')
  assert found == dict(
    model='ViT-B_16', ds='i21k', epochs=300, lr=0.001, aug='medium1', wd=0.1, do=0.0, sd=0.0, adapt_ds='imagenet2012',
    adapt_steps=20000, adapt_lr=0.01, adapt_resolution=384,
  )  # fmt: skip
  assert describe_npz.describe_filename(AUG_REG)['adapt_ds'] is None
  for file, model in (('R26_S_32', 'R26+ViT-S_32'), ('R_Ti_16', 'R+ViT-Ti_16'), ('R50+L_32', 'R50+ViT-L_32')):
    found = describe_npz.describe_filename(AUG_REG.replace('B_16', file))
    assert found['model'] == model and models.is_name(model)
  with pytest.raises(ValueError, match='no name of an AugReg file'):
    describe_npz.describe_filename('ViT-B_16.npz')
