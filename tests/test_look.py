"""What look.py shows, against direct computations in numpy and loops; and that it changes no model."""

import itertools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import peers
from PIL import Image
import pytest

import vit_jax
from vit_jax import look, models, pretrained, state, transforms
from vit_jax.models import positions

TINY = dict(embed_dim=48, depth=2, num_heads=3, num_classes=4)
KINDS = {
  'vit': ('vit_tiny_patch16_224', dict(img_size=(8, 12), patch_size=2)),  # not square
  'vit scanned': ('vit_tiny_patch16_224', dict(img_size=8, patch_size=2, scan=True, remat='full')),
  'deit': ('deit_tiny_distilled_patch16_224', dict(img_size=8, patch_size=2)),
  'beit': ('beit_base_patch16_224', dict(img_size=(8, 12), patch_size=2)),  # relative biases
  'dinov3': ('vit_tiny_patch16_dinov3_qkvb', dict(img_size=(8, 12), patch_size=2)),  # registers, rotary
  'hybrid': ('vit_tiny_r_s16_p8_224', dict(img_size=32, patch_size=2, stem_chs=32)),
  'siglip': ('vit_base_patch16_siglip_224', dict(img_size=8, patch_size=2)),  # MAP head
  'things': ('vit_tiny_patch16_224', dict(img_size=8, patch_size=4, block_fn='ParallelThingsBlock')),
  'side by side': ('vit_tiny_patch16_224', dict(img_size=8, patch_size=4, block_fn='ParallelScalingBlock')),
  'differential': ('vit_tiny_patch16_224', dict(img_size=8, patch_size=4, attn_layer='diff')),
}


def made(name, **arguments):
  """A model by name whose every parameter is random, and which knows how pictures are prepared."""
  model = peers.noisy(name, noise=0.2, **arguments)
  row = transforms.preprocessing(arguments['img_size'], crop='squash', crop_pct=1.0)
  pretrained.remember(model, preprocessing=row, classes=['ant', 'bee', 'cat', 'dog'])
  return model


@pytest.fixture(scope='module')
def kinds():
  """A function: kind -> (model, its Attention to two pictures), each made once."""
  found = {}

  def of(kind):
    if kind not in found:
      name, arguments = KINDS[kind]
      model = made(name, **TINY, **arguments)
      found[kind] = model, look.attention(model, pictures(model))
    return found[kind]

  return of


def pictures(model, n=2):
  size = pretrained.described(model)['preprocessing']['size']
  return np.random.default_rng(1).integers(0, 256, (n, *size, 3)).astype(np.uint8)


def normalised(pixels):
  return (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def jitted(model, method, *args):
  graphdef, params, rest = state.split(model)
  call = lambda params, rest, *args: getattr(state.merge(graphdef, params, rest), method)(*args)
  return jax.jit(call)(params, rest, *args)


def turned(x, rows, cols, prefix):  # (b, n, h, c): DINOv3's rotary positions, pairs (i, i + c/2)
  c = x.shape[-1]
  out = x.copy()
  for i, (row, col) in enumerate(itertools.product(range(rows), range(cols))):
    for j in range(c // 4):
      for axis, place in enumerate([(row + 0.5) / rows, (col + 0.5) / cols]):
        angle = 2 * math.pi * (2 * place - 1) / 100.0 ** (j / (c / 4))
        a, b = axis * c // 4 + j, axis * c // 4 + j + c // 2
        u, v = x[:, prefix + i, :, a], x[:, prefix + i, :, b]
        out[:, prefix + i, :, a] = u * math.cos(angle) - v * math.sin(angle)
        out[:, prefix + i, :, b] = v * math.cos(angle) + u * math.sin(angle)
  return out


def biases(table, rows, cols):  # -> (h, n, n): BEiT's relative positions
  n = 1 + rows * cols
  out = np.zeros((table.shape[1], n, n))
  for a, b in itertools.product(range(n), range(n)):
    (y, x), (v, u) = divmod(a - 1, cols), divmod(b - 1, cols)
    between = (y - v + rows - 1) * (2 * cols - 1) + (x - u + cols - 1)
    out[:, a, b] = table[len(table) - 1 if a == b == 0 else -3 if a == 0 else -2 if b == 0 else between]
  return out


def direct(x, block, grid, prefix):  # (b, n, d), the parameters of a block
  """softmax(q k^T / sqrt(c) + biases) of a block's input, in float64."""
  block = jax.tree.map(lambda a: np.asarray(a, np.float64), block)
  x = np.asarray(x, np.float64)
  y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + (1e-5 if prefix == 5 else 1e-6))
  y = y * block['norm1']['scale'] + block['norm1']['bias']
  attn = block['attn']
  qkv = np.tensordot(y, attn['qkv']['kernel'], 1) + attn['qkv'].get('bias', 0)  # (b, n, 3, h, c)
  q, k = qkv[:, :, 0], qkv[:, :, 1]
  q = q + attn['q_bias'].reshape(q.shape[2:]) if 'q_bias' in attn else q
  if prefix == 5:
    q, k = turned(q, *grid, prefix), turned(k, *grid, prefix)
  logits = np.einsum('bnhc,bmhc->bhnm', q, k) / math.sqrt(q.shape[-1])
  if 'relative_position_bias_table' in attn:
    logits = logits + biases(attn['relative_position_bias_table'], *grid)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize('kind', ['vit', 'vit scanned', 'deit', 'beit', 'dinov3', 'hybrid'])
def test_attention_is_that_of_a_direct_computation(kinds, kind):
  model, seen = kinds(kind)
  images = normalised(seen.pixels)
  inside = jitted(model, 'intermediates', images)
  blocks = state.unstack(state.split(model)[1])['blocks']
  assert list(seen.layers) == ['blocks/0/attn', 'blocks/1/attn']
  assert seen.prefix == {'deit': 2, 'dinov3': 5}.get(kind, 1)
  rows, cols = seen.grid
  assert (rows, cols) == {(8, 12): (4, 6), (8, 8): (4, 4), (32, 32): (4, 4)}[seen.pixels.shape[1:3]]
  for i, weights in enumerate(seen.layers.values()):
    want = direct(inside[f'block{i - 1}' if i else 'embed'], blocks[str(i)], seen.grid, seen.prefix)
    assert weights.dtype == np.float32 and weights.shape == (2, 3, *2 * [seen.prefix + rows * cols])
    np.testing.assert_allclose(weights, want, rtol=0, atol=3e-6)
  np.testing.assert_allclose(seen.logits, inside['logits'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['vit scanned', 'siglip'])
def test_nothing_in_a_model_changes(kinds, kind):
  model, seen = kinds(kind)
  before, origin = state.split(model), model.origin
  images = normalised(seen.pixels)
  logits = jitted(model, '__call__', images)
  again = look.attention(model, seen.pixels, batch=1)
  after = state.split(model)
  assert before[0] == after[0] and model.origin == origin
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), before[1:], after[1:])
  np.testing.assert_array_equal(jitted(model, '__call__', images), logits)
  for path, weights in seen.layers.items():  # whatever the batch
    np.testing.assert_allclose(again.layers[path], weights, rtol=0, atol=1e-5)


def test_layers_come_in_the_order_of_computation():
  model = models.abstract('vit_base_patch16_siglip_224', img_size=32, depth=11, num_classes=4)
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
  logits, layers = nnx.eval_shape(look.tapped, model, images)
  assert list(layers) == [*(f'blocks/{i}/attn' for i in range(11)), 'attn_pool']
  assert logits.shape == (2, 4) and layers['attn_pool'].shape == (2, 12, 1, 4)


def test_what_is_added_to_weights_is_used(kinds):
  model, seen = kinds('vit')
  graphdef, params, rest = state.split(model)
  images = normalised(seen.pixels)

  def run(params, rest, size):
    model = state.merge(graphdef, params, rest)
    extra = {path: jnp.full(weights.shape, size) for path, weights in seen.layers.items()}
    return look.tapped(model, images, added=extra)

  logits, layers = jax.jit(run)(params, rest, 0.5)
  first = next(iter(seen.layers))
  # two compilations, whose sums may differ in the last bit or two: 1.1e-6 was seen on an Intel Xeon
  np.testing.assert_allclose(layers[first], seen.layers[first] + 0.5, rtol=0, atol=2e-6)
  assert np.abs(logits - seen.logits).max() > 0.1


READS = {  # the tokens whose rows count, from the papers: what the head reads
  'vit': [0], 'vit scanned': [0], 'deit': [0, 1], 'beit': range(1, 25), 'dinov3': range(5, 29), 'hybrid': [0],
  'siglip': range(16), 'things': [0], 'side by side': [0], 'differential': [0],
}  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_maps_are_rows_of_what_the_head_reads(kinds, kind):
  model, seen = kinds(kind)
  maps = seen.maps()
  rows, cols = seen.grid
  for i, (path, weights) in enumerate(seen.layers.items()):
    read = [0] if path == 'attn_pool' else READS[kind]
    want = np.mean([weights[:, :, token, seen.prefix :] for token in read], 0).reshape(2, 3, rows, cols)
    np.testing.assert_allclose(maps[:, i], want, rtol=0, atol=1e-6)
    np.testing.assert_allclose(seen.map(i, head=1), want[:, 1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(seen.map(path), want.mean(1), rtol=0, atol=1e-6)
  np.testing.assert_array_equal(seen.map(), seen.map(len(seen.layers) - 1))


@pytest.mark.parametrize('kind', ['vit scanned', 'dinov3', 'siglip'])
def test_maps_alone_are_the_same_under_one_jit(kinds, kind):
  model, attention = kinds(kind)
  graphdef, params, rest = state.split(pretrained.plain(model))
  run = jax.jit(lambda params, rest, images: look.seen(state.merge(graphdef, params, rest), images)[1])
  want = attention.maps()
  np.testing.assert_allclose(
    run(params, rest, normalised(attention.pixels)), want.reshape(*want.shape[:3], -1), rtol=0, atol=2e-6
  )


@pytest.mark.parametrize('kind', ['vit', 'deit', 'siglip', 'things', 'differential'])
def test_rollout_is_a_product_of_all_layers(kinds, kind):
  _, seen = kinds(kind)
  layers = list(seen.layers.values())
  if kind == 'things':  # two branches of one block
    layers = [(layers[0] + layers[1]) / 2, (layers[2] + layers[3]) / 2]
  for picture in range(2):
    through = np.eye(len(seen.reads))
    for weights in layers:
      mean = np.zeros(weights.shape[2:])
      for head in weights[picture].astype(np.float64):
        mean += np.abs(head) / len(weights[picture])
      for row in mean:
        row /= row.sum()
      through = mean @ through if len(mean) == 1 else (mean / 2 + np.eye(len(mean)) / 2) @ through
    want = np.mean([through[i] for i in ([0] if kind == 'siglip' else READS[kind])], 0)
    assert want.sum() == pytest.approx(1)
    np.testing.assert_allclose(seen.rollout()[picture].ravel(), want[seen.prefix :], rtol=0, atol=1e-6)


@pytest.mark.parametrize('kind', ['vit', 'dinov3', 'siglip', 'hybrid', 'differential'])
def test_distance_is_that_of_a_loop(kinds, kind):
  _, seen = kinds(kind)
  (rows, cols), prefix = seen.grid, seen.prefix
  patch = seen.pixels.shape[1] / rows
  layers = [weights for path, weights in seen.layers.items() if path != 'attn_pool']
  found = seen.distance()
  assert found.shape == (len(layers), 3)
  for (i, weights), head in itertools.product(enumerate(layers), (0, 2)):
    total = []
    for picture, a in itertools.product(weights[:, head], range(rows * cols)):
      share = [abs(float(picture[prefix + a, prefix + b])) for b in range(rows * cols)]
      apart = [patch * math.dist(divmod(a, cols), divmod(b, cols)) for b in range(rows * cols)]
      total.append(sum(s * d for s, d in zip(share, apart)) / sum(share))
    assert found[i, head] == pytest.approx(np.mean(total), rel=1e-5)


def test_uniform_attention_reaches_far_and_the_identity_nowhere(kinds):
  _, seen = kinds('vit')
  layer = lambda weights: {'a': np.broadcast_to(weights.astype(np.float32), (2, 3, 25, 25))}
  of = lambda weights: look.Attention(**(vars(seen) | {'layers': layer(weights)})).distance()
  np.testing.assert_array_equal(of(np.eye(25)), 0)
  places = [(y, x) for y in range(4) for x in range(6)]
  far = np.mean([2 * math.dist(a, b) for a, b in itertools.product(places, places)])
  np.testing.assert_allclose(of(np.full((25, 25), 1 / 25)), far, rtol=1e-6)


def test_any_form_of_picture_gives_the_same(kinds, tmp_path):
  model, seen = kinds('vit')
  path = tmp_path / 'a.png'
  Image.fromarray(seen.pixels[0]).save(path)
  subject = look.Subject(model)
  forms = [path, str(path), path.read_bytes(), Image.fromarray(seen.pixels[0]), seen.pixels[0], [path], seen.pixels[:1]]
  for form in forms:
    found = look.attention(subject, form)
    np.testing.assert_array_equal(found.pixels, seen.pixels[:1])
    np.testing.assert_allclose(found.map(), seen.map()[:1], rtol=0, atol=1e-6)
  three = look.attention(subject, [path, seen.pixels[1], path], batch=2)  # the last batch is a short one
  np.testing.assert_allclose(three.rollout(), seen.rollout()[[0, 1, 0]], rtol=0, atol=1e-6)
  assert vit_jax.attention is look.attention


@pytest.mark.parametrize(('kind', 'learnt'), [('vit', True), ('vit scanned', True), ('sincos', False)])
def test_similarity_of_positions(kinds, kind, learnt):
  if learnt:
    model = kinds(kind)[0]
    table = np.asarray(model.pos_embed[...], np.float64)[0, 1:]
  else:
    model = made('vit_tiny_patch16_224', **TINY, img_size=(8, 12), patch_size=2, pos_embed='sincos2d')
    table = positions.sincos_positions(4, 6, 48).reshape(24, 48)
  rows, cols = model.grid
  found = look.position_similarity(model)
  assert found.shape == (rows, cols, rows, cols) and found.dtype == np.float32
  for a, b in itertools.product(range(rows * cols), repeat=2):
    want = table[a] @ table[b] / math.sqrt((table[a] @ table[a]) * (table[b] @ table[b]))
    assert found[(*divmod(a, cols), *divmod(b, cols))] == pytest.approx(want, abs=1e-5)


def test_filters_and_their_components(kinds):
  model = kinds('vit')[0]
  filters = look.filters(model)
  assert filters.shape == (48, 2, 2, 3)
  np.testing.assert_array_equal(filters[7], model.patch_embed.proj.kernel[..., 7])
  assert look.filters(kinds('hybrid')[0]).shape == (32, 7, 7, 3)  # what reads the pixels is the backbone's stem
  found, share = look.components(model, count=5)
  values, vectors = np.linalg.eigh(np.cov(filters.reshape(48, 12).astype(np.float64).T))
  np.testing.assert_allclose(share, values[::-1][:5] / values.sum(), rtol=1e-4)
  np.testing.assert_allclose(np.abs(found.reshape(5, 12) @ vectors[:, ::-1][:, :5]), np.eye(5), atol=1e-3)
  assert (np.max(found.reshape(5, 12), 1) == np.abs(found.reshape(5, 12)).max(1)).all()


def test_what_cannot_be_shown_says_so_in_one_line(kinds, tmp_path):
  def said(call, *args, **kwargs):
    with pytest.raises(ValueError) as caught:
      call(*args, **kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)

  model, seen = kinds('vit')
  mixer = made('mixer_s16_224', img_size=8, patch_size=2, embed_dim=16, num_blocks=1, num_classes=4)
  assert 'MlpMixer has no attention' in said(look.attention, mixer, pictures(mixer)) and not look.attends(mixer)
  assert look.filters(mixer).shape == (16, 2, 2, 3)
  assert 'adds no positions' in said(look.position_similarity, kinds('beit')[0])
  assert 'no layer 7; give 0 to 1, or one of blocks/0/attn' in said(seen.map, 7)
  assert 'no head 3; this layer has 0 to 2' in said(seen.map, head=3)
  assert 'no picture in the list' in said(look.attention, model, [])
  (tmp_path / 'a.png').write_bytes(b'no picture')
  assert 'not a picture' in said(look.attention, model, tmp_path / 'a.png')
  windows = look.Attention(**(vars(seen) | {'layers': {'stages/0/attn': np.zeros((8, 3, 9, 9), np.float32)}}))
  for call in (windows.map, windows.rollout, windows.distance, windows.maps):
    assert 'stages/0/attn attends inside windows' in said(call)
  scanned = vit_jax.create_model('vit_tiny_patch16_224', **TINY, img_size=8, patch_size=2, scan=True)
  assert 'how pictures are prepared' in said(look.attention, scanned, pictures(model))
  scanned.head = nnx.Linear(48, 9, rngs=nnx.Rngs(0))
  assert 'can neither be looked into nor exported through scan' in said(pretrained.plain, scanned)
