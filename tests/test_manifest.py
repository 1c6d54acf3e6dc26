"""What weights there are: complete, consistent with the models we have, and found by every name."""

import csv

import pytest

from vit_jax import hub, manifest, models, transforms


def test_every_row_is_whole():
  rows = manifest.rows()
  assert len(rows) > 500
  for name, row in rows.items():
    assert manifest.row(name) is row and row['name'] == name
    size, rest = row['preprocessing']['size'], {k: v for k, v in row['preprocessing'].items() if k != 'size'}
    assert transforms.preprocessing(size, **rest) == row['preprocessing']
    assert row['numerics'] in ('timm', 'google') and row['trained'] in (None, 'gelu_tanh', 'quick_gelu')
    assert row['labels'] is None or len(manifest.labels(row['labels'])) == row['num_classes']
    assert manifest.is_row(name) == bool(row['repo'] or row['url'])
    if row['url']:
      assert row['url'].startswith('https://')


def test_a_bare_name_is_its_default():
  assert manifest.row('vit_base_patch16_224')['name'] == 'vit_base_patch16_224.augreg2_in21k_ft_in1k'
  assert manifest.row('ViT-B_16')['name'] == 'ViT-B_16.imagenet21k+imagenet2012'
  assert manifest.row('R50_L_32')['name'] == 'R50+ViT-L_32.augreg'
  assert not manifest.is_row('vit_gigantic_patch14_224') and manifest.row('vit_gigantic_patch14_224')['repo'] is None
  assert not manifest.is_row('nothing')


def test_an_augreg_file_is_a_name():
  stem = 'R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0'
  row = manifest.row(stem)
  assert (row['arch'], row['num_classes'], row['labels']) == ('vit_small_r26_s32_224', 21843, 'imagenet-21k')
  assert row['url'] == f'https://storage.googleapis.com/vit_models/augreg/{stem}.npz' and row['numerics'] == 'google'
  row = manifest.row(f'{stem}--imagenet2012-steps_20k-lr_0.01-res_384')
  assert row['architecture'] == {'img_size': 384} and row['preprocessing']['size'] == [384, 384]
  assert (row['num_classes'], row['labels']) == (1000, 'imagenet-1k')
  row = manifest.row('B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0')
  assert row['repo'] == 'timm/vit_base_patch16_224.augreg_in21k'
  row = manifest.row(f'{stem}--pets37-steps_0k-lr_0.03-res_224')
  assert row['num_classes'] is None and row['labels'] is None


def test_the_best_augreg_file_is_the_one_with_the_largest_final_val(tmp_path):
  path = tmp_path / 'index.csv'
  rows = [('B_16', 'i21k', 0.3, 'a'), ('B_16', 'i21k', 0.5, 'gs://x/b.npz'), ('B_16', 'i1k', 0.9, 'c')]
  with open(path, 'w', newline='') as file:
    csv.writer(file).writerows([('name', 'ds', 'final_val', 'filename'), *rows])
  assert manifest.best_augreg(path, 'B_16') == 'b'
  with pytest.raises(ValueError, match='no ImageNet-21k row for S_16'):
    manifest.best_augreg(path, 'S_16')


@pytest.mark.parametrize(
  'name, near',
  [
    ('vit_base_patch16_224.augreg', 'vit_base_patch16_224.augreg_in1k'),
    ('vit_base_patch16_24', 'vit_base_patch16_224'),
    ('ViT-B16', 'ViT-B_16'),
    ('xyzzy', 'list models'),
  ],
)
def test_an_unknown_name_has_near_ones(name, near):
  with pytest.raises(ValueError) as error:
    hub.row(name)
  assert near in str(error.value) and '\n' not in str(error.value)


def test_counts_are_those_of_the_models():
  known = {row['arch']: row['parameters'] for row in manifest.rows().values()}
  assert set(models.VARIANTS) <= set(known)
  for name in ('vit_tiny_patch16_224', 'vit_base_patch32_gap_224', 'vit_small_patch14_reg4_dinov2'):
    assert models.count(models.abstract(name)) == known[name]


def test_labels_are_in_the_order_of_the_logits():
  words = manifest.labels('imagenet-1k')
  assert [words[i] for i in (0, 207, 281, 999)] == [
    'tench, Tinca tinca', 'golden retriever', 'tabby, tabby cat', 'toilet tissue, toilet paper, bathroom tissue',
  ]  # fmt: skip
  assert manifest.label_ids('imagenet-1k')[0] == 'n01440764'
  sizes = {'imagenet-1k': 1000, 'imagenet-12k': 11821, 'imagenet-21k-miil': 11221, 'imagenet-21k-w21': 10450,
           'imagenet-22k': 21841, 'imagenet-21k': 21843}  # fmt: skip
  for name in manifest.LABELS:
    ids = manifest.label_ids(name)
    assert len(ids) == sizes[name] and list(ids) == sorted(set(ids))
  with pytest.raises(ValueError, match='imagenet-21k-miil'):
    manifest.labels('imagenet')
