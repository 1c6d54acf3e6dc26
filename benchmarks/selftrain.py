"""Does self-training pay? 1,000 labelled pictures, 15,000 without labels, and what the noise of the student matters.

python benchmarks/selftrain.py --data=fashion_mnist.npz --folder=FOLDER [--seeds=3] [--steps=800]

For each seed four small ViTs of one size and as many steps: a teacher on the labelled pictures; the same with the
noise of configs/noisy_student.py; and on these and the teacher's pseudo-labels (confidence 0.3, balanced), without and
with the noise. A line a run goes to FOLDER/selftrain.jsonl, and what has a line is not run again. Pictures, their order
and the first weights follow from the seed. Test pictures are looked at once, at the end of a run.

The rate was that of configs/fashion_mnist.py. A first try, seed 0 at half that rate and with random windows ('pad'),
was given up because its training loss still was 0.6 after 800 steps; its test accuracies, in the order below 67.3,
53.2, 63.6 and 52.5 %, had been seen by then. Nothing else was changed or chosen.
"""

import argparse
import json
import pathlib

import measure
import numpy as np

import vit_jax
from vit_jax import data as data_lib
from vit_jax import inference, selftrain

LABELLED, UNLABELLED = 100, 1500  # of each class
MODEL = {
  'num_classes': 10, 'embed_dim': 64, 'depth': 4, 'num_heads': 4, 'mlp_ratio': 2.0, 'class_token': False,
  'global_pool': 'avg',
}  # fmt: skip
NOISE = {'drop_rate': 0.5, 'drop_path_rate': 0.2}
AUGMENT = {'policy': 'randaugment', 'layers': 2, 'magnitude': 6.0}
OPTIM = {'lr': 2e-3, 'warmup': 0.1, 'weight_decay': 0.1, 'clip': 1.0}
RUNS = {  # name: (with pseudo-labels, with noise)
  'teacher': (False, False),
  'noise alone': (False, True),
  'pseudo-labels alone': (True, False),
  'noisy student': (True, True),
}


def cut(labels, seed):
  """(indices of the labelled pictures, of those without labels)."""
  rng = np.random.default_rng(seed)
  own = [rng.permutation(np.flatnonzero(labels == i)) for i in range(10)]
  return tuple(np.concatenate([o[a:b] for o in own]) for a, b in ((0, LABELLED), (LABELLED, LABELLED + UNLABELLED)))


def train(train, test, seed, steps, noised, workdir):
  """(model, accuracy on the test pictures, CPU seconds) of one run, which goes on where it was interrupted."""
  size, cpu = train[0].shape[1], measure.cpu_seconds()
  shape = MODEL | {'img_size': size, 'patch_size': 7 if size == 28 else 8} | (NOISE if noised else {})
  result = vit_jax.fit(
    vit_jax.create_model('vit_tiny_patch16_224', seed=seed, **shape),
    data_lib.from_arrays(train, test, crop='none'),
    steps=steps,
    batch=64,
    batch_eval=500,
    seed=seed,
    optim=OPTIM,
    step={'augment': AUGMENT if noised else {}},
    log_every=200,
    workdir=workdir,
  )
  return result.model, result.metrics['top1'], measure.cpu_seconds() - cpu


def runs(file, folder, seed, steps, done):
  """Yields (name, numbers) of each run of a seed that has no line."""
  images, labels = {}, {}
  for part in ('train', 'test'):
    images[part], labels[part] = file[f'x_{part}'], file[f'y_{part}'].ravel().astype(np.int64)
  known, unknown = cut(labels['train'], seed)
  given, test = (images['train'][known], labels['train'][known]), (images['test'], labels['test'])
  pictures, truth = images['train'][unknown], labels['train'][unknown]
  teacher = both = None
  for name, (pseudo, noised) in RUNS.items():
    if pseudo and both is None:
      said, _ = selftrain.label(inference.Predictor(teacher, batch=500), pictures)
      index = selftrain.chosen(said, 10)
      taught = pictures[index], said.label[index].astype(np.int64)
      both = tuple(np.concatenate(pair) for pair in zip(given, taught))
      right = said.label == truth
      if name not in done:
        yield 'labels', {'right': float(right.mean()), 'right of kept': float(right[index].mean()), 'kept': len(index),
                         'different': len(np.unique(index))}  # fmt: skip
    workdir = folder / f'{seed}' / name.replace(' ', '_')
    model, top1, cpu = train(both if pseudo else given, test, seed, steps, noised, workdir)
    teacher = model if name == 'teacher' else teacher
    if name not in done:
      yield name, {'top1': top1, 'CPU seconds': cpu}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', required=True, help='an .npz with x_train, y_train, x_test, y_test')
  parser.add_argument('--folder', required=True, help='where runs and lines go')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=800)
  args = parser.parse_args()
  folder = pathlib.Path(args.folder)
  folder.mkdir(parents=True, exist_ok=True)
  measure.warn_if_busy()
  machine, kept = measure.machine(), folder / 'selftrain.jsonl'
  read = lambda: [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
  for seed in range(args.seeds):
    done = [row['run'] for row in read() if row['seed'] == seed]
    if set(RUNS) <= set(done):
      continue
    with np.load(args.data) as file:
      for name, numbers in runs(file, folder, seed, args.steps, done):
        with kept.open('a') as lines:
          lines.write(json.dumps({'seed': seed, 'run': name, **numbers}) + '\n')
  rows, found = [], read()
  for name in RUNS:
    top1 = [100 * row['top1'] for row in found if row['run'] == name]
    rows.append({'run': name, 'seeds': len(top1), 'top-1, %': round(float(np.mean(top1)), 2),
                 'spread': round(float(np.std(top1, ddof=1)), 2) if len(top1) > 1 else 0.0})  # fmt: skip
  measure.table(rows)
  measure.record('selftrain', machine, rows + [row for row in found if row['run'] == 'labels'])


if __name__ == '__main__':
  main()
