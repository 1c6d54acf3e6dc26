"""How good a model's features are: what its head reads of labelled pictures, probed in several ways, as one table.

Few-shot: ridge regression as big_vision's evaluators/fewshot_lsr.py has it: features whitened by those that are fitted,
a constant of 100 beside them, targets of -1 and 1, l2 = 2^10, three draws of the pictures. Linear probe: multinomial
logistic regression by L-BFGS (Radford et al. 2021, arXiv:2103.00020, appendix A.3). Neighbours: Wu et al. 2018,
arXiv:1805.01978, equations 3 and 4, as in DINO's eval_knn.py (Caron et al. 2021, arXiv:2104.14294).

Nothing is chosen on the test pictures: where an l2 is chosen, it is by a tenth of the training pictures, held out.
Each picture is prepared once, as the weights want it. Memory: n * d float32 of features for all n pictures, one more
copy for the logistic regression, and blocks of BLOCK rows.
"""

import functools
import json
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import augment, console, fill, optim, pretrained, scores, sharding, sources, state, storage, train, tuning
from vit_jax import data as data_lib

BIAS, L2, DRAWS = 100.0, 2.0**10, 3  # of few-shot regression
RIDGE = 2.0 ** np.arange(20, -11, -2)  # of a ridge regression on all pictures, of their sum
LOGISTIC = 10.0 ** np.arange(0, -7, -1)  # of a logistic regression, of their mean
HELD_OUT = 0.1
NEIGHBOURS, TEMPERATURE = 20, 0.07
SHOTS = 1, 5, 10, 25
TUNED = {'head': {'freeze': 'body'}, 'lora': {'lora': 8}}
RATE, BATCH = 1e-3, 128  # of TUNED, with AdamW, warm-up and cosine: not chosen for any data
BLOCK = 8192


class Features(NamedTuple):
  """What a head reads of the pictures that could be read: values float32 (n, d), labels int32 (n,); and how many could
  not be read."""

  values: np.ndarray
  labels: np.ndarray
  unreadable: int


def features(model, data, source, *, batch=64, mesh=None):
  """The Features of each example of a source, once, in order, on all devices, prepared by data.row.

  data: data.Data; source: its train or test.   batch: pictures at once, rounded up to the devices; changes no result.

  Raises ValueError for a model whose head reads tokens (global_pool ''), and as data.eval_batches.
  """
  mesh = mesh or sharding.make_mesh()
  graphdef, params, rest = state.split(model)
  row, batch = data.row, -(-batch // mesh.size) * mesh.size

  def run(weights, images):  # uint8 (b, h, w, 3) -> float32 (b, d)
    images = augment.normalise(images, row['mean'], row['std'], 'float32')
    return read_by_head(state.merge(graphdef, **weights), images)

  weights = {'params': params, 'rest': rest}
  shape = jax.eval_shape(run, weights, jax.ShapeDtypeStruct((1, *row['size'], 3), np.uint8)).shape
  if len(shape) != 2:
    raise ValueError(f"This model's head reads {shape[1:]} of a picture, not one vector; give it a global_pool.")
  weights = jax.device_put(weights, sharding.shardings(mesh, weights))
  program = jax.jit(run, out_shardings=sharding.replicated(mesh))
  values, labels, kept = np.empty((len(source), shape[1]), np.float32), np.empty(len(source), np.int32), 0
  batches = data_lib.eval_batches(data, source, batch=batch, process_index=jax.process_index(),
                                  process_count=jax.process_count())  # fmt: skip
  whole = jax.jit(lambda a: a, out_shardings=sharding.replicated(mesh))
  for _, one in data_lib.to_device(batches, sharding.batch(mesh)):
    good = np.asarray(whole(one['mask'])) > 0
    part = slice(kept, kept := kept + int(good.sum()))
    values[part] = np.asarray(program(weights, one['image']))[good]
    labels[part] = np.asarray(whole(one['label']))[good]
  return Features(values[:kept], labels[:kept], len(source) - kept)


def read_by_head(model, images):  # (b, h, w, c) -> (b, d)
  """What the head of a model reads of normalised pictures: pooled, after the last norm and a tanh layer if any."""
  inside = model.features(images)
  return model.outputs(inside)['pre_logits'] if hasattr(model, 'outputs') else model.pool(inside[-1])


# -- closed form


class Ridge:
  """Least squares of whitened features (n, d) against +1 for the own class and -1 for the others, in float64.

  One decomposition serves every l2: of the (d + 1)^2 products of features, or of the n^2 of examples if these are less.
  """

  def __init__(self, values, labels, classes):  # (n, d), (n,)
    self.mean = values.mean(0, dtype=np.float64)
    variance = sum(np.square(part - self.mean).sum(0) for part in _blocks(values)) / len(values)
    self.scale = np.sqrt(variance) + 1e-5
    self._whole = len(values) > values.shape[1]
    if self._whole:
      gram, aims = 0.0, 0.0
      for x, own in zip(map(self._white, _blocks(values)), _blocks(labels)):
        gram, aims = gram + x.T @ x, aims + x.T @ _signs(own, classes)
      self._eigenvalues, basis = np.linalg.eigh(gram)
      self._left, self._right = basis, basis.T @ aims
    else:
      x = self._white(values)
      self._eigenvalues, basis = np.linalg.eigh(x @ x.T)
      self._left, self._right = x.T @ basis, basis.T @ _signs(labels, classes)

  def weights(self, l2):
    """(d + 1, k), the last row that of the constant, for l2 > 0, which is added to sums over the examples."""
    return self._left @ (self._right / (np.maximum(self._eigenvalues, 0) + l2)[:, None])

  def __call__(self, values, l2):  # (m, d) -> (m,)
    weights = self.weights(l2)
    return np.concatenate([(self._white(part) @ weights).argmax(1) for part in _blocks(values)])

  def _white(self, values):
    return np.pad((values - self.mean) / self.scale, ((0, 0), (0, 1)), constant_values=BIAS)


def drawn(labels, shots, seed, classes):  # (n,) -> (shots * k,)
  """Indices of `shots` examples of each class; those of fewer shots are among those of more."""
  generator = np.random.default_rng(seed)
  order = [generator.permutation(np.flatnonzero(labels == i)) for i in range(classes)]
  return np.concatenate([own[:shots] for own in order])


def _signs(labels, classes):
  return np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)


def _blocks(rows):
  return (rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK))


# -- by descent, and by neighbours


@jax.jit
def logistic(values, labels, shares, l2, start):  # (n, d), (n,), (n,)
  """(weights (d, k), constants (k,)) that minimise sum of shares * cross entropy + l2 / 2 * |weights|^2, by L-BFGS.

  shares: of the examples, which sum to 1; 0 leaves one out.   start: the weights and constants to begin with.
  """

  def objective(solution):
    weights, constants = solution
    logits = jnp.matmul(values, weights, precision='highest') + constants
    lost = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (shares * lost).sum() + l2 / 2 * jnp.square(weights).sum()

  descent, both = optax.lbfgs(), optax.value_and_grad_from_state(objective)

  def more(carry):
    _, memory, count, steepest = carry
    return (count < 500) & (steepest > 1e-5)

  def step(carry):
    solution, memory, count, _ = carry
    value, slope = both(solution, state=memory)
    updates, memory = descent.update(slope, memory, solution, value=value, grad=slope, value_fn=objective)
    steepest = jnp.max(jnp.stack([jnp.abs(leaf).max() for leaf in slope]))
    return optax.apply_updates(solution, updates), memory, count + 1, steepest

  return jax.lax.while_loop(more, step, (start, descent.init(start), 0, jnp.inf))[0]


def neighbours(values, labels, asked, classes, *, k=NEIGHBOURS, temperature=TEMPERATURE):  # (n, d), (n,), (m, d)
  """The class, (m,), of each row of `asked` by its k nearest of `values`, each voting exp(cosine / temperature)."""
  k = min(k, len(values))
  unit = lambda a: a / jnp.maximum(jnp.linalg.norm(a, axis=-1, keepdims=True), 1e-12)

  nearest = jax.jit(lambda bank, part: jax.lax.top_k(jnp.matmul(unit(part), bank.T, precision='highest'), k))
  bank, rows = unit(jnp.asarray(values)), max(1, min(BLOCK, 2**26 // len(values)))
  answers = []
  for i in range(0, len(asked), rows):
    close, index = map(np.asarray, nearest(bank, asked[i : i + rows]))  # (rows, k) both
    weight = np.exp((close - close[:, :1]) / temperature)  # of the nearest 1: the same answer, and no overflow
    votes = np.zeros((len(close), classes))
    np.add.at(votes, (np.arange(len(close))[:, None], labels[index]), weight)
    answers.append(votes.argmax(-1))
  return np.concatenate(answers)


# -- rows of the table


def fewshot(given, test, classes, *, shots):
  """A row for each number of shots: the mean accuracy of DRAWS draws."""
  for n in shots:
    start, found = time.perf_counter(), []
    for seed in range(DRAWS):
      index = drawn(given.labels, n, seed, classes)
      fitted = Ridge(given.values[index], given.labels[index], classes)
      found.append(float(np.mean(fitted(test.values, L2) == test.labels)))
    how = f'l2 2^10 as big_vision; {DRAWS} draws: {min(found):.1%} to {max(found):.1%}'
    yield _row(f'{n}-shot ridge', n * classes, how, np.mean(found), test, start) | {'draws': found}


def ridge(given, test, classes):
  """The row of a ridge regression on all pictures."""
  start = time.perf_counter()
  inside, outside = _sides(given.labels)
  trial = Ridge(given.values[inside], given.labels[inside], classes)
  right = lambda l2: np.mean(trial(given.values[outside], l2) == given.labels[outside])
  best = max(RIDGE, key=right)  # the first of equals: the stronger l2
  answers = Ridge(given.values, given.labels, classes)(test.values, best)
  how = f'l2 2^{int(np.log2(best))}, chosen on {len(outside)} held out of train'
  yield _row('ridge', len(given.labels), how, np.mean(answers == test.labels), test, start)


def linear(given, test, classes):
  """The row of a logistic regression on all pictures, their features scaled to mean 0 and variance 1."""
  start = time.perf_counter()
  inside, outside = _sides(given.labels)
  mean, scale = given.values.mean(0), given.values.std(0) + 1e-5
  values, labels = jnp.asarray((given.values - mean) / scale), jnp.asarray(given.labels)

  def right(found, asked, solution):
    weights, constants = map(np.asarray, solution)
    answers = [((part - mean) / scale @ weights + constants).argmax(-1) for part in _blocks(asked)]
    return np.mean(np.concatenate(answers) == found)

  shares = np.zeros(len(labels), np.float32)
  shares[inside] = 1 / len(inside)
  solution = np.zeros((values.shape[1], classes), np.float32), np.zeros(classes, np.float32)
  best = -1, None, None
  for l2 in LOGISTIC:
    solution = logistic(values, labels, shares, l2, solution)
    trial = right(given.labels[outside], given.values[outside], solution)
    best = max(best, (trial, l2, solution), key=lambda trial: trial[0])  # the first of equals: the stronger l2
  everything = np.full(len(labels), 1 / len(labels), np.float32)
  top1 = right(test.labels, test.values, logistic(values, labels, everything, best[1], best[2]))
  how = f'l2 {best[1]:.0e}, chosen on {len(outside)} held out of train'
  yield _row('linear probe', len(labels), how, top1, test, start)


def knn(given, test, classes):
  """The row of the nearest neighbours."""
  start = time.perf_counter()
  answers = neighbours(given.values, given.labels, test.values, classes)
  how = f'k {min(NEIGHBOURS, len(given.labels))}, cosine, temperature {TEMPERATURE}'
  yield _row('kNN', len(given.labels), how, np.mean(answers == test.labels), test, start)


METHODS = {'fewshot': fewshot, 'ridge': ridge, 'linear': linear, 'knn': knn}


def tuned(opened, data, name, *, steps):
  """The row of a fresh head trained by train.fit, alone ('head') or with adapters in the body ('lora')."""
  start, mesh = time.perf_counter(), sharding.make_mesh()
  optimizer = TUNED[name] | {'lr': RATE, 'warmup': 0.1}
  batch = -(-min(BATCH, len(data.train)) // mesh.size) * mesh.size
  result = train.fit(_fresh(opened, data.classes), data, steps=steps, batch=batch, optim=optimizer)
  shown = {'head': 'head alone', 'lora': f'LoRA of rank {TUNED["lora"]["lora"]} and head'}[name]
  how = f'AdamW {RATE:g}, {steps} steps of {batch}'
  test = Features(None, np.empty(result.metrics['examples']), result.metrics['unreadable'])
  return _row(shown, len(data.train), how, result.metrics['top1'], test, start)


def _fresh(opened, classes):
  """The model of opened weights with a fresh head."""
  heads = tuple(part for part in tuning.HEADS if hasattr(opened.model, part))
  made = opened.described['architecture'] | {'num_classes': len(classes)}
  return fill.filled(opened, opened.described['name'], made, reset=heads)


def _row(method, pictures, how, top1, test, start):
  top1, n = float(top1), len(test.labels)
  return {'method': method, 'pictures': int(pictures), 'how': how, 'top1': top1, 'examples': n,
          'interval': scores.interval(top1, n), 'seconds': time.perf_counter() - start}  # fmt: skip


def _sides(labels):
  """Indices of the training pictures that are fitted, and of those held out to choose by."""
  inside, outside = (sources.held_out(labels, HELD_OUT, side, 'train') for side in ('train', 'test'))
  if not len(outside):
    raise ValueError('No class has two pictures to choose an l2 by; ask for --methods=fewshot,knn.')
  return inside, outside


# -- the command


def run(opened, name, *, splits=('train', 'test'), shots=None, methods=tuple(METHODS), tune=(), steps=500, batch=64):
  """Everything as one dict: model, data, classes, width (of the features), train, test (how many, how many unreadable),
  rows.

  opened: as pretrained.open_any gives.   name, splits: the data, for training and for testing.   shots: None = those of
  SHOTS that every class has pictures for.   methods: of METHODS.   tune: of TUNED, for `steps`.

  Raises ValueError, before a picture is read where labels are known, for one class or fewer pictures than shots.
  """
  row = dict(pretrained.row(opened.described))
  crop = 'pad' if max(row['size']) <= 64 else 'random'
  data = data_lib.load(name, train=splits[0], test=splits[1], crop=crop, eval_crop=row.pop('crop'), **row)
  classes = len(data.classes)
  if classes < 2:
    raise ValueError(f'{name} has one class, {data.classes[0]!r}: there is nothing to tell apart.')
  if (labels := data.train.labels()) is not None:
    if labels.ndim != 1:
      raise ValueError(f'{name} has any number of labels a picture, and a probe tells one; give one label each.')
    _shots(shots, data.train, labels)
  if tune:
    params = state.split(_fresh(opened, data.classes))[1]
    for word in tune:  # what cannot be tuned is refused now
      how = optim.make(**TUNED[word], total_steps=steps).tuning
      jax.eval_shape(functools.partial(tuning.split, tuning=how, key=jax.random.key(0)), params)
  model, described = pretrained.filled(opened)
  start = time.perf_counter()
  given, test = (features(model, data, source, batch=batch) for source in (data.train, data.test))
  width = given.values.shape[1]
  size = (given.values.nbytes + test.values.nbytes) / 2**20
  print(f'{len(given.labels):,} + {len(test.labels):,} pictures, {width} features each, {size:,.0f} MB: '
        f'{time.perf_counter() - start:.1f} s', file=sys.stderr)  # fmt: skip
  rows = []
  for method in methods:
    more = {'shots': _shots(shots, data.train, given.labels)} if method == 'fewshot' else {}
    rows += METHODS[method](given, test, classes, **more)
  del model
  rows += [tuned(opened, data, word, steps=steps) for word in tune]
  count = lambda found: {'examples': len(found.labels), 'unreadable': found.unreadable}
  return {'model': storage.shown(opened.path), 'weights': described['weights'], 'data': name, 'classes': classes,
          'width': width, 'train': count(given), 'test': count(test), 'rows': rows}  # fmt: skip


def _shots(shots, source, labels):
  """The numbers of shots; ValueError where a class has fewer pictures."""
  counts = np.bincount(labels, minlength=len(source.classes))
  least = int(counts.min())
  if shots is None:
    return [n for n in SHOTS if n <= least]
  if max(shots, default=1) > least or min(shots, default=1) < 1:
    few = source.classes[int(counts.argmin())]
    raise ValueError(f'--shots={",".join(map(str, shots))}: {few} has {least} pictures to train on; at least 1 is '
                     'wanted, and at most what every class has.')  # fmt: skip
  return list(shots)


def shown(found):
  """The table of what run gives, as text."""
  head = 'method', 'trained on', 'top-1', '95 % interval', 'how'
  lines = [
    (row['method'], f'{row["pictures"]:,}', f'{row["top1"]:.1%}', '{:.1%} to {:.1%}'.format(*row['interval']),
     f'{row["how"]}; {row["seconds"]:.1f} s')
    for row in found['rows']
  ]  # fmt: skip
  widths = [max(len(line[i]) for line in (head, *lines)) for i in range(4)]
  text = ['  '.join([*(word.ljust(n) for word, n in zip(line, widths)), line[4]]) for line in (head, *lines)]
  lost = found['train']['unreadable'] + found['test']['unreadable']
  text.append(f'{found["weights"]} weights of {found["model"]}: {found["width"]} features; {found["data"]}: '
              f'{found["test"]["examples"]:,} test pictures, {found["classes"]} classes'
              + (f'; {lost} unreadable left out' if lost else ''))  # fmt: skip
  text.append('Nothing was chosen on test pictures; the interval is about these, not about the draw of others.')
  return '\n'.join(text)


def written(found, form):
  """Text of what run gives, in a form: 'table' or 'json'."""
  return json.dumps(found) if form == 'json' else shown(found)


def listed(text, known, flag):
  """The words of 'a,b'; ValueError for one that is not known."""
  words = [word for word in text.split(',') if word]
  for word in words:
    if word not in known:
      raise ValueError(f'{flag} has no {word!r}{console.nearest(word, known)}; it has {", ".join(known)}.')
  return words
