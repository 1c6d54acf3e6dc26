"""Losses, metrics and the task that binds them, against numpy and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import losses, metrics, tasks

LOGITS = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32) * 3
LABELS = np.array([0, 6, 2, 2, 3, 5], np.int32)


def test_losses_are_optaxs():
  soft = np.random.default_rng(1).dirichlet(np.ones(7), 6).astype(np.float32)
  got = losses.softmax_cross_entropy(LOGITS, soft)
  np.testing.assert_allclose(got, optax.softmax_cross_entropy(LOGITS, soft), rtol=1e-6)
  got = losses.sigmoid_cross_entropy(LOGITS, soft)
  np.testing.assert_allclose(got, optax.sigmoid_binary_cross_entropy(LOGITS, soft).sum(-1), rtol=1e-5)
  huge = jnp.array([[1e4, -1e4]])  # stays finite where a naive logarithm would not
  assert np.isfinite(losses.softmax_cross_entropy(huge, jnp.array([[0.0, 1.0]]))).all()


def test_label_smoothing_is_the_papers():
  task = tasks.make(classes='abcdefg', label_smoothing=0.1)
  np.testing.assert_allclose(task.target({'label': LABELS}), 0.9 * np.eye(7)[LABELS] + 0.1 / 7, rtol=1e-6)


def test_metrics_count_what_numpy_counts_and_masked_rows_not_at_all():
  task = tasks.make(classes='abcdefg', label_smoothing=0.1)  # an evaluation's loss is against the plain label
  mask = np.array([1, 1, 0, 1, 1, 0], np.float32)
  found = task.finish(metrics.add([task.metrics(LOGITS, {'label': LABELS, 'mask': mask})]))
  kept = mask > 0
  order = np.argsort(-LOGITS, axis=1)
  right = order[:, 0] == LABELS
  assert found['examples'] == 4
  assert found['top1'] == right[kept].mean()
  assert found['top5'] == (order[:, :5] == LABELS[:, None]).any(1)[kept].mean()
  want = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)[kept].mean()
  np.testing.assert_allclose(found['loss'], want, rtol=1e-6)
  seen = {k: right[kept & (k == LABELS)] for k in range(7)}
  assert found['per_class'] == [seen[k].mean() if len(seen[k]) else None for k in range(7)]


def test_ties_and_nan_are_not_counted_as_right():
  task = tasks.make(classes='abc')
  batch = {'label': np.array([0, 1, 2], np.int32), 'mask': np.ones(3, np.float32)}
  constant = task.metrics(jnp.zeros((3, 3)), batch)
  assert float(constant['top1']) == 1 and float(constant['top5']) == 3
  broken = task.metrics(jnp.full((3, 3), jnp.nan), batch)
  assert float(broken['top1']) == float(broken['top5']) == 0


def test_a_masked_row_of_nan_does_not_spoil_the_sums():
  logits = np.where(np.arange(6)[:, None] == 5, np.nan, LOGITS)
  mask = np.array([1] * 5 + [0], np.float32)
  found = tasks.make(classes='abcdefg').metrics(logits, {'label': LABELS, 'mask': mask})
  assert all(np.isfinite(value).all() for value in found.values())


def test_sums_add_up_over_batches():
  task = tasks.make(classes='abcdefg', loss='sigmoid')
  part = lambda rows: jax.device_get(
    task.metrics(LOGITS[rows], {'label': LABELS[rows], 'mask': np.ones(len(LABELS[rows]))})
  )
  whole, parts = metrics.add([part(slice(0, 6))]), metrics.add([part(slice(0, 4)), part(slice(4, 6))])
  for key in whole:
    np.testing.assert_allclose(parts[key], whole[key], rtol=1e-6)


@pytest.mark.parametrize(
  ('given', 'said'),
  [
    (dict(name='classify'), "did you mean 'classification'?"),
    (dict(loss='bce'), 'choose one of softmax, sigmoid'),
    (dict(label_smoothing=1.0), 'at least 0 and below 1'),
  ],
)
def test_unknown_words_are_refused(given, said):
  with pytest.raises(ValueError, match=said.replace('?', r'\?')):
    tasks.make(classes='ab', **given)
