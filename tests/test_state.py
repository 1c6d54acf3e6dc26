"""The seam: models to dicts and back, and what is said when they do not fit."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models, state

TINY = dict(img_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=3)


def model(**how):
  return models.build('vit_base_patch16_224', rngs=nnx.Rngs(0), **TINY, **how)


def test_split_gives_plain_dicts_with_the_files_names_and_merge_takes_them():
  graphdef, params, rest = state.split(model())
  paths = state.flatten(params)
  assert rest == {} and all(type(leaf) is not nnx.Param for leaf in paths.values())
  assert {
    'cls_token',
    'pos_embed',
    'patch_embed/proj/kernel',
    'blocks/0/attn/qkv/kernel',
    'blocks/2/mlp/fc2/bias',
    'norm/scale',
    'head/kernel',
  } <= paths.keys()
  assert paths['blocks/0/attn/qkv/kernel'].shape == (8, 3, 2, 4) and paths['blocks/0/attn/proj/kernel'].shape == (
    2,
    4,
    8,
  )
  x = jnp.ones((1, 8, 8, 3))
  np.testing.assert_array_equal(state.merge(graphdef, params, rest)(x), model()(x))


def test_flatten_and_unflatten_are_inverse():
  tree = {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
  assert state.flatten(tree) == {'a/b': 1, 'a/c/d': 2, 'e': 3}
  assert state.unflatten(state.flatten(tree)) == tree
  assert state.flatten({'a': {}}) == {}


def test_combine_joins_and_cast_leaves_integers():
  assert state.combine({'a': {'b': 1}}, {'a': {'c': 2}, 'd': 3}) == {'a': {'b': 1, 'c': 2}, 'd': 3}
  got = state.cast({'w': jnp.ones(2), 'n': jnp.ones(2, jnp.int32)}, jnp.bfloat16)
  assert got['w'].dtype == jnp.bfloat16 and got['n'].dtype == jnp.int32


def test_stack_is_the_form_of_scan_and_unstack_its_inverse():
  params, stacked = state.split(model())[1], state.split(model(scan=True))[1]
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(state.stack(params)) == shapes(stacked)
  jax.tree.map(np.testing.assert_array_equal, state.unstack(state.stack(params)), params)
  jax.tree.map(np.testing.assert_array_equal, state.stack(params), stacked)  # the same seed draws the same numbers


def test_update_is_strict_and_lists_everything():
  made = model()
  params = state.split(made)[1]
  wrong = state.unflatten({**state.flatten(params), 'extra/kernel': jnp.ones(2), 'head/bias': jnp.ones(4)})
  del wrong['cls_token']
  with pytest.raises(ValueError) as caught:
    state.update(made, wrong)
  said = str(caught.value)
  assert '3 differences' in said and 'missing cls_token (1, 1, 8)' in said and 'extra extra/kernel (2,)' in said
  assert 'head/bias is (4,), wanted (3,)' in said and '\n' not in said
  state.update(made, jax.tree.map(lambda a: a + 1, params))
  np.testing.assert_array_equal(made.head.bias[...], np.ones(3))


def test_update_fills_an_abstract_model():
  made = models.abstract('vit_base_patch16_224', **TINY)
  state.update(made, state.split(model())[1])
  x = jnp.ones((1, 8, 8, 3))
  np.testing.assert_array_equal(made(x), model()(x))
