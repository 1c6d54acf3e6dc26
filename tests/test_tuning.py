"""What is trained and how fast: rates against their formula, frozen parts, adapters that start as nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import models, optim, state, tuning

NAME = 'vit_tiny_patch16_224'
TINY = dict(img_size=8, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=5)
KEY = jax.random.key(0)


def shapes(name=NAME, **arguments):
  return state.split(models.abstract(name, **{**TINY, **arguments}))[1]


def how(**given):
  return optim.make(total_steps=5, **given).tuning


def drawn(params):
  """The tree with numbers in it, another one everywhere."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), params)


def same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_rates_are_beits_and_maes_formula():
  """lr * decay^(depth + 1 - layer), layer 0 the embedding, i + 1 block i, depth + 1 what follows."""
  found = tuning.rates(shapes(), layer_decay=0.5)
  want = {'cls_token': 1 / 16, 'pos_embed': 1 / 16, 'patch_embed/proj/bias': 1 / 16, 'blocks/0/norm1/bias': 1 / 8,
          'blocks/1/attn/qkv/kernel': 1 / 4, 'blocks/2/mlp/fc2/bias': 1 / 2, 'norm/bias': 1}  # fmt: skip
  assert {path: float(found[path]) for path in want} == want
  assert found.keys() == state.flatten(shapes()).keys()


def test_the_body_has_a_rate_of_its_own():
  found = tuning.rates(shapes(), body_lr=0.1, layer_decay=0.5)
  assert found['head/bias'] == 1 and found['norm/scale'] == np.float32(0.1)
  assert found['blocks/0/attn/proj/bias'] == np.float32(0.1 / 8)


def test_stacked_layers_have_the_rates_of_plain_ones():
  found, plain = (tuning.rates(shapes(scan=scan), layer_decay=0.7) for scan in (True, False))
  kernel = found['blocks/stacked/attn/qkv/kernel']
  assert kernel.shape == (3, 1, 1, 1, 1)
  np.testing.assert_array_equal(kernel.ravel(), [plain[f'blocks/{i}/attn/qkv/kernel'] for i in range(3)])


def test_stages_of_blocks_are_counted_through():
  paths = ['stem/conv/kernel', 'stages/0/blocks/0/a', 'stages/0/blocks/1/a', 'stages/1/blocks/0/a', 'norm/scale']
  found = tuning.rates({path: jnp.zeros(1) for path in paths}, layer_decay=0.5)
  assert [float(found[path]) for path in paths] == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]


def test_a_backbone_below_a_transformer_is_its_embedding():
  backbone = 'patch_embed/backbone/stages'
  paths = [f'{backbone}/0/blocks/0/a', f'{backbone}/1/blocks/3/a', 'blocks/0/b', 'norm/a']
  found = tuning.rates({path: jnp.zeros(1) for path in paths}, layer_decay=0.5)
  assert [float(found[path]) for path in paths] == [1 / 4, 1 / 4, 1 / 2, 1]


CLASSES = {cls: name for name, (cls, _) in sorted(models.VARIANTS.items(), reverse=True)}


@pytest.mark.parametrize('name', CLASSES.values())
def test_every_family_has_rates_that_rise_towards_the_head(name):
  params = state.split(models.abstract(name))[1]
  found = tuning.rates(params, layer_decay=0.5)
  assert min(found.values()) < 0.1 and max(float(rate) for rate in found.values()) == 1
  assert {float(found[path]) for path in found if path.split('/')[0] in tuning.HEADS} <= {1}
  assert {path for path in found if path.startswith('blocks/0/')} <= {p for p in found if found[p] < 0.5}


def test_updates_are_scaled_and_nothing_else():
  params = drawn(shapes(scan=True))
  grads = jax.tree.map(lambda a: 0.1 * a + 0.3, params)
  plain, decayed = (optim.make(total_steps=5, lr=0.1, weight_decay=0.1, layer_decay=d) for d in (1.0, 0.5))
  moved = []
  for one in (plain, decayed):
    tx = tuning.scaled(one.tx, params, one.tuning)
    moved.append(state.flatten(jax.jit(lambda tx=tx: tx.update(grads, tx.init(params), params)[0])()))
  rates = tuning.rates(params, layer_decay=0.5)
  for path in moved[0]:
    np.testing.assert_allclose(moved[1][path], moved[0][path] * rates[path], rtol=1e-6)
  assert tuning.scaled(plain.tx, params, plain.tuning) is plain.tx


@pytest.mark.parametrize(('freeze', 'trained'), [
  ('body', {'head/bias', 'head/kernel'}),
  (('blocks/*', 'patch_embed', 'cls_token', 'pos_embed'), {'head/bias', 'head/kernel', 'norm/bias', 'norm/scale'}),
  (('*/kernel', '*/bias', '*/scale', 'cls_token'), {'pos_embed'}),
  (('blocks/[01]', 'body'), {'head/bias', 'head/kernel'}),
], ids=str)  # fmt: skip
@pytest.mark.parametrize('scan', [False, True])
def test_freeze_takes_paths_their_parts_and_patterns(freeze, trained, scan):
  if scan and '[01]' in freeze[0]:
    freeze = ('body',)
  params = shapes(scan=scan)
  trainable, frozen = tuning.split(params, how(freeze=freeze), KEY)
  assert set(state.flatten(trainable)) == trained
  same(jax.tree.map(lambda a: a.shape, state.combine(trainable, frozen)), jax.tree.map(lambda a: a.shape, params))


def test_without_tuning_everything_is_trained():
  params = shapes()
  assert tuning.split(params, how(), KEY) == (params, {}) and tuning.merged(params, {}) is params


@pytest.mark.parametrize('scan', [False, True])
def test_adapters_start_as_the_very_weights(scan):
  params = drawn(shapes(scan=scan))
  trainable, frozen = tuning.split(params, how(lora=2, lora_alpha=3.0), KEY)
  same(tuning.merged(trainable, frozen), params)
  names = {path.rpartition('/')[2] for path in state.flatten(trainable) if not path.startswith('head')}
  assert names == {'lora_a', 'lora_b'} and 'head' in trainable and 'head' not in frozen
  block = trainable['blocks']['stacked' if scan else '1']['attn']
  lead = (3,) if scan else ()
  assert block['qkv']['lora_a'].shape == (*lead, 16, 2) and block['qkv']['lora_b'].shape == (*lead, 2, 3, 2, 8)
  assert block['proj']['lora_a'].shape == (*lead, 2, 8, 2) and block['proj']['lora_b'].shape == (*lead, 2, 16)
  assert abs(float(block['qkv']['lora_a'].std()) * 4 - 1) < 0.35


def test_adapters_of_stacked_and_plain_layers_are_drawn_alike():
  plain, stacked = (tuning.split(drawn(shapes(scan=scan)), how(lora=2), KEY)[0] for scan in (False, True))
  same(state.unstack(stacked)['blocks'], plain['blocks'])


def test_adapters_of_full_rank_can_be_any_change():
  params = drawn(shapes())
  trainable, frozen = tuning.split(params, how(lora=16, lora_alpha=8.0), KEY)  # scale 1/2
  change = {'qkv': jax.random.normal(KEY, (16, 3, 2, 8)), 'proj': jax.random.normal(KEY, (2, 8, 16))}
  attn = trainable['blocks']['0']['attn']
  attn['qkv'] = {'lora_a': 2 * jnp.eye(16), 'lora_b': change['qkv']}
  attn['proj'] = {'lora_a': 2 * change['proj'], 'lora_b': jnp.eye(16)}
  found = tuning.merged(trainable, frozen)
  for part, want in change.items():
    old, new = (tree['blocks']['0']['attn'][part]['kernel'] for tree in (params, found))
    np.testing.assert_allclose(new - old, want, atol=1e-6)
  same(found['blocks']['1'], params['blocks']['1'])
  assert jax.tree.structure(found) == jax.tree.structure(params)


@pytest.mark.parametrize(('given', 'said'), [
  (dict(layer_decay=0.0), 'layer_decay is 0.0; it must be above 0 and at most 1'),
  (dict(layer_decay=1.1), 'layer_decay is 1.1'),
  (dict(body_lr=0.0), "optim.freeze='body' trains no body"),
  (dict(lora=0), 'a rank from 1'),
  (dict(lora=4, freeze='body'), 'optim.lora already freezes'),
], ids=str)  # fmt: skip
def test_values_that_make_no_sense_are_refused_without_a_model(given, said):
  with pytest.raises(ValueError) as caught:
    optim.make(total_steps=5, **given)
  assert said in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(('given', 'said'), [
  (dict(freeze='block'), "names 'block', which matches no parameter; did you mean 'blocks'?"),
  (dict(freeze='*'), 'freezes everything; leave something to train'),
  (dict(lora=17), 'optim.lora=17 is more than blocks/0/attn/proj/kernel has dimensions; choose at most 16'),
], ids=str)  # fmt: skip
def test_what_a_model_cannot_do_is_refused(given, said):
  with pytest.raises(ValueError) as caught:
    tuning.split(drawn(shapes()), how(**given), KEY)
  assert said in str(caught.value) and '\n' not in str(caught.value)


def test_models_without_blocks_or_attention_are_refused():
  plain = {'head': {'kernel': jnp.zeros((2, 2))}, 'fc': {'kernel': jnp.zeros((2, 2))}}
  with pytest.raises(ValueError, match='this model has none'):
    tuning.split(plain, how(lora=1), KEY)
  with pytest.raises(ValueError, match='goes by blocks'):
    tuning.scaled(optax.identity(), plain, how(layer_decay=0.5))


def test_half_of_a_stacked_layer_cannot_be_frozen():
  with pytest.raises(ValueError, match='step.scan trains as one array; scan=False'):
    tuning.split(shapes(scan=True), how(freeze='blocks/0'), KEY)
