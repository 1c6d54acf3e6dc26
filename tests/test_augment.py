"""Each augmentation against its definition in numpy, and on eight devices against one."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from vit_jax import augment


def make_batch(b=16, h=6, w=4, k=5):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, k, b)
  return {
    'image': rng.integers(0, 256, (b, h, w, 3), np.uint8),
    'target': np.eye(k, dtype=np.float32)[labels],
    'label': labels,
  }


def test_normalise_is_the_formula():
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
  wanted = (images.astype(np.float64) / 255 - mean) / std
  np.testing.assert_allclose(augment.normalise(images, mean, std, jnp.float32), wanted, atol=5e-7)
  half = augment.normalise(images, mean, std, jnp.bfloat16)
  assert half.dtype == jnp.bfloat16
  # Rounded once, at the end: off by half a step of bfloat16 and no more.
  np.testing.assert_allclose(np.asarray(half).astype(np.float64), wanted, rtol=2**-8, atol=1e-6)


def test_normalise_at_one_half_spans_minus_one_to_one():
  ends = augment.normalise(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1), (0.5,), (0.5,), jnp.float32)
  assert ends.ravel().tolist() == [-1, 1]


def test_flip_mirrors_whole_pictures_and_nothing_else():
  batch = make_batch(b=64)
  out = augment.make(flip=True)(jax.random.key(0), batch)
  image = np.asarray(out['image'])
  same = (image == batch['image']).all((1, 2, 3))
  mirrored = (image == batch['image'][:, :, ::-1]).all((1, 2, 3))
  assert image.dtype == np.uint8 and (same ^ mirrored).all()
  assert 16 <= mirrored.sum() <= 48  # 32 +- 4 sigma
  assert out['target'] is batch['target'] and out['label'] is batch['label']


def test_flip_draws_anew_for_each_key():
  flips = lambda seed: np.asarray(augment.make()(jax.random.key(seed), batch)['image'])
  batch = make_batch()
  assert (flips(0) == flips(0)).all() and (flips(0) != flips(1)).any()


def test_mixup_is_the_formula_with_one_weight_for_images_and_targets():
  batch = make_batch()
  out = augment.make(flip=False, mixup=0.8)(jax.random.key(3), batch)
  images, targets = np.float64(batch['image']), np.float64(batch['target'])
  image_steps, target_steps = np.roll(images, 1, 0) - images, np.roll(targets, 1, 0) - targets
  # Least squares finds 1 - weight from the images alone; the targets must then have it too.
  weight = 1 - (image_steps * (out['image'] - images)).sum() / (image_steps**2).sum()
  assert 0.01 < weight < 0.99
  assert out['image'].dtype == out['target'].dtype == jnp.float32
  np.testing.assert_allclose(out['image'], images + (1 - weight) * image_steps, rtol=1e-6, atol=2e-4)
  np.testing.assert_allclose(out['target'], targets + (1 - weight) * target_steps, atol=1e-6)
  np.testing.assert_allclose(out['target'].sum(1), 1, atol=1e-6)


def test_mixup_weight_follows_the_beta_distribution():
  alpha = 0.4
  two = np.array([[1.0], [0.0]], np.float32)  # row 0 becomes the weight itself
  weigh = lambda key: augment.mix(key, two, two, alpha)[1][0, 0]
  weights = np.asarray(jax.vmap(weigh)(jax.random.split(jax.random.key(0), 4000)))
  sigma = (1 / (4 * (2 * alpha + 1))) ** 0.5  # of Beta(alpha, alpha), whose mean is one half
  assert abs(weights.mean() - 0.5) < 4 * sigma / 4000**0.5
  assert abs(weights.std() / sigma - 1) < 0.05


def test_flips_are_the_same_with_and_without_mixup():
  batch, key = make_batch(), jax.random.key(5)
  flipped = augment.make()(key, batch)
  mixed = augment.make(mixup=0.2)(key, batch)
  wanted, _ = augment.mix(jax.random.fold_in(key, 1), flipped['image'], batch['target'], 0.2)
  np.testing.assert_array_equal(mixed['image'], wanted)


def test_nothing_is_done_when_nothing_is_asked_for():
  batch = make_batch()
  assert augment.make(flip=False)(jax.random.key(0), batch) == batch


def test_eight_devices_see_the_pictures_of_one(devices):
  batch = make_batch(b=32)
  step = jax.jit(lambda key, batch: augment.make(mixup=0.5)(key, batch))
  mesh = jax.make_mesh((8,), ('data',), devices=devices[:8], axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec('data')))
  one, eight = step(jax.random.key(1), batch), step(jax.random.key(1), spread)
  assert len(eight['image'].sharding.device_set) == 8
  for name in one:
    np.testing.assert_array_equal(one[name], eight[name], err_msg=name)


def test_negative_mixup_is_refused():
  with pytest.raises(ValueError, match='mixup=-1'):
    augment.make(mixup=-1)
