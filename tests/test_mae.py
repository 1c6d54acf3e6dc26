"""The masked autoencoder against tensors that transformers computed in float64, and what a key and no key mean."""

from flax import nnx
import jax
import numpy as np
import peers
import pytest

from vit_jax import models, state
from vit_jax.models import positions

TINY = dict(
  img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, decoder_embed_dim=8, decoder_depth=1,
  decoder_num_heads=2, decoder_mlp_ratio=2,
)  # fmt: skip
NAME = 'mae_vit_base_patch16'


def build(**overrides):
  return models.build(NAME, rngs=nnx.Rngs(0), **TINY | overrides)


def images(h=16, w=16):
  return np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)


@pytest.mark.parametrize(('name', 'scan'), [('mae_hf', True), ('mae_hf_resized', False)])
def test_every_tensor_is_the_peers(name, scan):
  peers.check(name, scan=scan)


def test_bfloat16():
  peers.check_bfloat16('mae_hf', 'logits', 0.05)


def test_counts():
  assert models.count(models.abstract(NAME)) == 111_907_840  # transformers' ViTMAEForPreTraining of the same sizes
  assert models.count(models.abstract('mae_vit_large_patch16_dec512d8b')) == 329_541_888
  assert models.count(models.abstract('mae_vit_huge_patch14')) == 657_074_508


def test_positions_are_the_original_releases():
  table = np.asarray(build().pos_embed[...])
  assert table.shape == (1, 17, 16) and (table[0, 0] == 0).all()
  row, column, frequency = 2, 3, 10_000.0 ** -(3 / 4)  # the last of four
  np.testing.assert_allclose(
    table[0, 1 + 4 * row + column, [3, 7, 11, 15]],
    [np.sin(column * frequency), np.cos(column * frequency), np.sin(row * frequency), np.cos(row * frequency)],
    rtol=1e-6,
  )


def test_patches_and_back():
  model, x = build(patch_size=(4, 8)), images(8, 24)
  pixels = model.patchify(x)
  assert pixels.shape == (2, 2 * 3, 4 * 8 * 3)
  np.testing.assert_array_equal(pixels[1, 4].reshape(4, 8, 3), x[1, 4:8, 8:16])
  np.testing.assert_array_equal(model.unpatchify(pixels, grid=(2, 3)), x)


@pytest.fixture(scope='module')
def run():
  """What the methods of a model give for given noise and for none: noise, {method: result}."""
  noise = np.random.default_rng(1).random((2, 16))
  graphdef, params, rest = state.split(build(mask_ratio=0.75))

  @jax.jit
  def methods(params):
    model = state.merge(graphdef, params, rest)
    tokens, mask, restore = model.encode(images(), noise)
    return {
      'encode': (tokens, mask, restore), 'decode': model.decode(tokens, restore, grid=(4, 4)),
      'loss': model.loss(images(), noise), 'features': model.features(images()), 'call': model(images()),
      'intermediates': model.intermediates(images(), noise), 'unmasked': model.intermediates(images()),
    }  # fmt: skip

  return noise, methods(params)


def test_the_patches_of_the_lowest_noise_are_kept_in_its_order(run):
  noise, gave = run
  inside, kept = gave['intermediates'], np.argsort(noise, axis=1)[:, :4]
  np.testing.assert_array_equal(np.take_along_axis(np.asarray(inside['mask']), kept, 1), 0)
  assert (inside['mask'].sum(1) == 12).all()
  want = np.take_along_axis(np.asarray(gave['unmasked']['embed'][:, 1:]), kept[..., None], 1)
  np.testing.assert_allclose(inside['embed'][:, 1:], want, atol=1e-6)


def test_parts_give_what_the_whole_does(run):
  _, gave = run
  inside, bare = gave['intermediates'], gave['unmasked']
  for got, want in [
    (gave['encode'][0], inside['norm']), (gave['encode'][1], inside['mask']), (gave['decode'], inside['logits']),
    (gave['loss'], inside['loss']), (gave['features'], bare['norm']), (gave['call'], bare['logits']),
  ]:  # fmt: skip
    np.testing.assert_allclose(got, want, atol=1e-6)
  assert 'loss' not in bare and not bare['mask'].any()  # without noise nothing is hidden


def test_a_key_hides_and_no_key_does_not():
  hidden = peers.compiled(build())
  first, second, again = (hidden(images(), key=jax.random.key(i)) for i in (0, 1, 0))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - second).max() > 1e-3
  with pytest.raises(ValueError, match='give noise .b, n., or a key to draw it from.'):
    build().loss(images())


def test_all_but_the_positions_has_a_gradient():
  noise = np.random.default_rng(1).random((2, 24))
  gradients = peers.gradients(build(), 'loss', images(24, 16), noise)
  assert {path for path, value in gradients.items() if not value.any()} == {'pos_embed', 'decoder_pos_embed'}


def test_the_encoder_is_a_vit():
  """The names that a ViT has too are its parameters, so an MAE file fills one by leaving out the decoder."""
  ours = state.flatten(state.split(models.abstract(NAME))[1])
  vit = state.flatten(state.split(models.abstract('vit_base_patch16_224', num_classes=0))[1])
  assert set(vit) < set(ours) and all(ours[path].shape == leaf.shape for path, leaf in vit.items())
  assert all(path.startswith(('decoder_', 'mask_token')) for path in set(ours) - set(vit))


@pytest.mark.parametrize(('arguments', 'said'), [
  (dict(num_classes=10), 'A masked autoencoder has no head for 10 classes; load its file into a vit_* model.'),
  (dict(mask_ratio=1.0), 'mask_ratio is 1.0; give the part of the patches to hide, between 0 and 1.'),
  (dict(decoder_pos_resize='cubic'), "decoder_pos_resize is 'cubic'; choose one of bicubic, bicubic_plain, "
                                     'bilinear_plain, corner, flat.'),
])  # fmt: skip
def test_what_cannot_be_built_says_so_in_one_line(arguments, said):
  with pytest.raises(ValueError) as caught:
    build(**arguments)
  assert str(caught.value) == said


def test_noise_of_another_shape_is_refused():
  with pytest.raises(ValueError, match='The noise is .2, 9.; give a number for each image and patch, .2, 16.'):
    build().encode(images(), np.zeros((2, 9)))


def test_frequencies_with_and_without_the_endpoint():
  with_end, without = (positions.sincos_positions(1, 2, 16, endpoint=end)[0, 1, :4] for end in (True, False))
  np.testing.assert_allclose(with_end, np.sin(10_000.0 ** -np.array([0, 1 / 3, 2 / 3, 1])), rtol=1e-5)
  np.testing.assert_allclose(without, np.sin(10_000.0 ** -np.array([0, 1 / 4, 2 / 4, 3 / 4])), rtol=1e-5)
