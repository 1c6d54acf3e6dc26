"""Google's .npz: every spelling to the bit, every published configuration by its shapes, and what it refuses."""

import collections
import gzip
import json
import math
import pathlib
import re

import jax
import ml_dtypes
import numpy as np
import pytest

from vit_jax import convert, convert_npz, formats, models, state
from vit_jax.models import positions

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
VIT, HYBRID, MIXER, BIT = 'vit_base_patch16_224', 'vit_base_r50_s16_224', 'mixer_b16_224', 'resnetv2_50x1_bit'
TINY = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, mlp_ratio=1.7)
GAP = dict(class_token=False, global_pool='avg', fc_norm=False)
ROOT = dict(img_size=(32, 64), patch_size=1, embed_dim=16, depth=1, num_heads=2, stem_chs=32)
MODELS = {
  'token': (VIT, TINY),
  'gap': (VIT, TINY | GAP),
  'map': (VIT, TINY | dict(class_token=False, global_pool='map', num_classes=0)),
  'pre_logits': (VIT, TINY | dict(representation_size=8)),
  'outside': (VIT, TINY | dict(no_embed_class=True)),
  'sincos2d': (VIT, TINY | GAP | dict(pos_embed='sincos2d')),
  'oblong': (VIT, TINY | dict(img_size=(16, 40), patch_size=(8, 10), in_chans=1)),
  'hybrid': (HYBRID, ROOT | dict(layers=(2, 1), channels=(128, 256))),
  'root': (HYBRID, ROOT | dict(layers=(), patch_size=(2, 4))),
  'mixer': (MIXER, dict(img_size=(32, 16), patch_size=8, embed_dim=12, num_blocks=2, mlp_ratio=(0.5, 1.7))),
  'bit': (BIT, dict(layers=(2, 1), stem_chs=32, channels=(128, 256), num_classes=3)),
}


def drawn(name, **arguments):
  """(abstract model, {path: random array}) of a variant with a name for each layer."""
  model = models.abstract(name, **arguments)
  params = state.flatten(jax.eval_shape(state.unstack, state.split(model)[1]))
  rng = np.random.default_rng(0)
  return model, {path: rng.standard_normal(leaf.shape, np.float32) for path, leaf in params.items()}


def written(name, **arguments):
  model, arrays = drawn(name, **arguments)
  return dict(convert.written(convert_npz.entries(model), arrays))


class Lazy(dict):
  """Arrays with shapes to be had for nothing, which counts how often each is read."""

  def __init__(self, arrays):
    super().__init__(arrays)
    self.shapes, self.reads = {name: array.shape for name, array in arrays.items()}, collections.Counter()

  def __getitem__(self, name):
    self.reads[name] += 1
    return super().__getitem__(name)


def oldest(arrays):
  pairs = (('LayerNorm_1', 'LayerNorm_2'), ('Attention_0', 'Attention_1'), ('MlpBlock_0', 'MlpBlock_3'))
  out = {}
  for name, array in arrays.items():
    for new, old in pairs if 'encoderblock' in name else ():
      name = name.replace(new, old)
    out[name] = array
  return out


def scanned(arrays):
  stacks = collections.defaultdict(list)
  for name, array in arrays.items():
    stacks[re.sub(r'encoderblock_\d+', 'encoderblock', name)].append(array)
  return {name: np.stack(parts) if 'encoderblock' in name else parts[0] for name, parts in stacks.items()}


def prefixed(prefix, **more):
  return lambda arrays: {f'{prefix}{name}': array for name, array in arrays.items()} | more


SPELLINGS = {
  'Linen': dict,
  'oldest': oldest,
  'optimizer': lambda a: prefixed('opt/target/', **{'opt/state/step': np.zeros(()), 'chrono/x': np.ones(1)})(oldest(a)),
  'params': prefixed('params/'),
  'two towers': prefixed('params/img/', **{'params/txt/head/bias': np.ones(2), 'params/t': np.ones(1)}),
  'LiT': prefixed('img/', **{'txt/Encoder_0/encoderblock_0/LayerNorm_2/bias': np.ones(2), 't': np.ones(1)}),
  'scanned': scanned,
  'scanned, oldest': lambda arrays: prefixed('params/')(scanned(oldest(arrays))),
  'positions': lambda a: {k.replace('posembed_input/', ''): v for k, v in a.items()},
}


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_every_spelling_is_the_same_file(spelling):
  want = written(VIT, **TINY, representation_size=8)
  file = Lazy(SPELLINGS[spelling](want))
  got = convert_npz.normal(file)
  shapes = {name: shape for name, shape in got.shapes.items() if not convert_npz.ignored(name)}
  assert shapes == {name: array.shape for name, array in want.items()}
  assert not file.reads and set(got) == set(got.shapes) and len(got) == len(got.shapes)
  assert all(got[name].tobytes() == array.tobytes() for name, array in want.items())
  assert set(file.reads.values()) == {1}  # a stack of layers is read once, not once a layer
  assert all(got[name].tobytes() == array.tobytes() for name, array in want.items())


def test_what_is_no_weight_has_a_name():
  left = {'txt/head/bias', 't', 'b', 'params/t', 'params/txt/Embed_0/embedding', 'opt/target/b'}
  assert all(map(convert_npz.ignored, left))
  assert not any(map(convert_npz.ignored, ['cls', 'head/bias', 'embedding/bias', 'Transformer/encoder_norm/bias']))


def test_group_norms_stored_with_four_axes():
  want = written(HYBRID, **MODELS['hybrid'][1])
  file = {k: v[None, None, None] if re.search(r'gn\w*/', k) else v for k, v in want.items()}
  got = convert_npz.normal(file)
  assert all(np.array_equal(got[name], array) for name, array in want.items())


def test_bfloat16_as_numpy_stores_it(tmp_path):
  want = {name: array.astype(ml_dtypes.bfloat16) for name, array in written(VIT, **TINY).items()}
  stacked = scanned(want)
  np.savez(tmp_path / 'w.npz', **{name: array.view('V2') for name, array in stacked.items()})
  with np.load(tmp_path / 'w.npz') as plain:
    assert plain['cls'].dtype == np.dtype('V2')
    for arrays in (convert_npz.normal(dict(plain)), convert_npz.normal(formats.open_arrays(tmp_path / 'w.npz'))):
      assert all(arrays[k].dtype == v.dtype and arrays[k].tobytes() == v.tobytes() for k, v in want.items())


GOOGLE = {
  'token': dict(act_layer='gelu_tanh'),
  'root': dict(act_layer='gelu_tanh', conv_eps=1e-5, conv_eps_on='std', backbone_norm_eps=1e-6),
  'bit': dict(conv_eps=1e-10),
}


@pytest.mark.parametrize('kind, numerics', [(kind, 'timm') for kind in MODELS] + [(kind, 'google') for kind in GOOGLE])
def test_a_round_trip_is_exact(kind, numerics, tmp_path):
  name, arguments = MODELS[kind]
  arguments = arguments | (GOOGLE[kind] if numerics == 'google' else {})
  model, arrays = drawn(name, **arguments)
  formats.save_npz(tmp_path / 'w.npz', convert.written(convert_npz.entries(model), arrays))
  file = convert_npz.normal(formats.open_arrays(tmp_path / 'w.npz'))
  told = {key: arguments[key] for key in ('img_size', 'pos_embed') if key in arguments}
  found = convert_npz.describe(file.shapes, numerics=numerics, **told)
  again = models.abstract(found['name'], **found['architecture'])
  entries = convert_npz.entries(again, file.shapes)
  assert not convert.differences(entries, file.shapes)
  assert {entry.path: entry.shape for entry in entries} == {path: array.shape for path, array in arrays.items()}
  got = convert.Converted(entries, file)
  assert all(np.asarray(got[path]).tobytes() == array.tobytes() for path, array in arrays.items())
  assert convert_npz.numerics(again) == numerics


def test_a_scanned_model_has_the_same_file():
  plain, scan = (convert_npz.entries(models.abstract(VIT, **TINY, scan=scan)) for scan in (False, True))
  assert sorted(plain) == sorted(scan)


# name: parameters at 1000 classes, of the image side of LiT (facts of the original release)
PUBLISHED = {
  'ViT-Ti_16': 5_717_416, 'ViT-S_16': 22_050_664, 'ViT-S_32': 22_878_952, 'ViT-B_8': 86_576_872,
  'ViT-B_16': 86_567_656, 'ViT-B_32': 88_224_232, 'ViT-L_16': 304_326_632, 'ViT-L_32': 306_535_400,
  'ViT-H_14': 632_045_800, 'ViT-S_16-gap-norep': 22_049_896, 'ViT-S_32-gap-norep': 22_878_184,
  'ViT-B_16-gap-norep': 86_566_120, 'ViT-B_32-gap-norep': 88_222_696, 'R+ViT-Ti_16': 6_337_704,
  'R26+ViT-S_32': 36_431_912, 'R26+ViT-B_32': 101_383_976, 'R50+ViT-B_16': 98_659_112, 'R50+ViT-L_32': 328_994_856,
  'Mixer-B_16': 59_880_472, 'Mixer-B_32': 60_293_428, 'Mixer-L_16': 208_196_168, 'LiT-B16B': 86_389_248,
  'LiT-B16B_2': 85_798_656, 'LiT-L16L': 303_301_632, 'LiT-L16S': 303_301_632, 'LiT-L16Ti': 303_301_632,
  'testing': 21_390, 'testing-unpooled': 21_370,
}  # fmt: skip


@pytest.fixture(scope='module')
def published():
  with gzip.open(GOLDENS / 'google_npz_shapes.json.gz') as file:
    return {name: {key: tuple(shape) for key, (shape, _) in arrays.items()} for name, arrays in json.load(file).items()}


def test_published_configurations_are_all_here(published):
  assert set(published) == set(PUBLISHED)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configuration(name, published):
  """Names and shapes fit, and so does the count. One block is built, because tracing all 450 takes 20 seconds; the
  others, all alike, are counted by their shapes."""
  file = Lazy({key: np.broadcast_to(np.float32(0), shape) for key, shape in published[name].items()})
  shapes = {key: shape for key, shape in convert_npz.normal(file).shapes.items() if not convert_npz.ignored(key)}
  whole = convert_npz.describe(shapes)
  block = re.compile(r'(?:Transformer/encoderblock|MixerBlock)_(\d+)/')
  number = lambda key: int(match.group(1)) if (match := block.match(key)) else 0
  few = {key: shape for key, shape in shapes.items() if number(key) < 1}
  found = convert_npz.describe(few)
  depth = 'num_blocks' if 'num_blocks' in found['architecture'] else 'depth'
  assert whole['architecture'] == found['architecture'] | {depth: max(map(number, shapes)) + 1}
  model = models.abstract(found['name'], **found['architecture'])
  assert not convert.differences(convert_npz.entries(model, few), few)
  rest = sum(math.prod(shape) for key, shape in shapes.items() if number(key) >= 1)
  assert models.count(model) + rest == PUBLISHED[name]
  if name in models.ALIASES and name != 'ViT-B_16-gap-norep':  # a row of SigLIP's computes the same
    assert whole['name'] == models.canonical(name)


REFUSED = {
  'reg_token': dict(reg_tokens=2),
  'blocks/0/ls1/gamma': dict(init_values=0.1),
  'always has blocks/0/attn/qkv/bias': dict(qkv_bias=False),
  'always has norm/': dict(final_norm=False),
  'norm_pre': dict(pre_norm=True),
  'fc_norm': dict(global_pool='avg'),
  "global_pool 'avg', not 'token'": dict(global_pool='avg', fc_norm=False),
  "act_layer 'silu', not": dict(act_layer='silu'),
  'eps 1e-05, not 1e-06': dict(norm_eps=1e-5),
  "pos_embed_kind 'none'": dict(pos_embed='none'),
}


@pytest.mark.parametrize('words', REFUSED)
def test_what_no_file_can_say_is_refused(words):
  with pytest.raises(ValueError, match=re.escape(words)) as error:
    convert_npz.entries(models.abstract(VIT, **TINY | REFUSED[words]))
  assert '\n' not in str(error.value) and 'choose another format' in str(error.value)


def test_a_class_without_a_format_is_refused():
  with pytest.raises(ValueError, match='A VisionTransformerDistilled has no place in a Google .npz'):
    convert_npz.entries(models.abstract('deit_tiny_distilled_patch16_224', **TINY))


def test_what_a_model_wants_beyond_the_file_is_missing_by_its_own_name():
  file = convert_npz.normal(written(VIT, **TINY))
  model = models.abstract(VIT, **TINY, reg_tokens=2, no_embed_class=True)
  lines = convert.differences(convert_npz.entries(model, file.shapes), file.shapes)
  assert lines[0] == 'missing reg_token (1, 2, 16)' and len(lines) == 2


def test_hostile_files_are_one_line():
  arrays = written(VIT, **TINY)
  with pytest.raises(ValueError, match='cls and params/cls are both cls: two checkpoints'):
    convert_npz.normal(arrays | {'params/cls': arrays['cls']})
  with pytest.raises(ValueError, match=r'an array of nothing'):
    convert_npz.normal(arrays | {'Transformer/encoderblock/x': np.zeros((10**12, 0))})


def test_positions_between_aligned_corners():
  """What the facts say of the original's resize, through the name that describe gives it."""
  found = convert_npz.describe(convert_npz.normal(written(VIT, **TINY)).shapes)
  ramp = positions.resize_positions(
    np.arange(2, dtype=np.float32)[:, None, None], (4, 1), found['architecture']['pos_resize']
  )
  np.testing.assert_allclose(ramp[:, 0, 0], [0, 1 / 3, 2 / 3, 1], rtol=1e-6)
