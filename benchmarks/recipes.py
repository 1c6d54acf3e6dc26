"""The ledger: what each recipe and each trick reaches on real data, over seeds, with time and place.

  python benchmarks/recipes.py --data=FOLDER --work=FOLDER [--only=PATTERN] [--minutes=N] [--gpu] [--table]

--data holds mnist.npz, fashion_mnist.npz and cifar10.npz (x_train, y_train, x_test, y_test). Every run trains a shipped
config with the flags that the ledger names, and then measures the model: accuracy, log-likelihood and calibration on
the test pictures, accuracy on 10,000 of those it learnt from (as an evaluation sees them), and sharpness: how far the
loss of 1,000 of them rises within RHO uphill. A line goes to results/recipes.jsonl when a run has ended, and what has
a line is not run again; a run that was killed goes on where it was, and its seconds are those of the rest. So the
ledger can be filled in pieces: --minutes begins no run after so many. --gpu has the rows for one GPU in place of the
CPU's.

The tricks have the values of the recipes they are known from, and none was tuned. Epochs and rates of the plain rows
were chosen on the last pictures of the training set, which --choose tests on; it writes no line. Teachers are the runs
on whole sets, which come first.
"""

import argparse
import fnmatch
import itertools
import json
import pathlib
import sys
import time

import measure
import numpy as np

SEEDS = 0, 1, 2
RHO = 0.05  # of the sharpness, the same for all rows
PLAIN = {  # no trick: pictures as they are, half of them mirrored
  'data.crop': 'none', 'step.augment.mixup': 0, 'task.label_smoothing': 0, 'log_every': 1000, 'save.every': 10_000,
}  # fmt: skip
TRICKS = {  # name: flags
  'none': {},
  'mixup 0.2': {'step.augment.mixup': 0.2},
  'cutmix 1': {'step.augment.cutmix': 1.0},
  'RandAugment(2, 10)': {'step.augment.policy': 'randaugment', 'step.augment.layers': 2, 'step.augment.magnitude': 10},
  'erasing 0.25': {'step.augment.erasing': 0.25},
  'drop path 0.1': {'model.drop_path_rate': 0.1},
  'label smoothing 0.1': {'task.label_smoothing': 0.1},
  'EMA 0.99': {'optim.ema': 0.99},
  'SAM 0.1': {'optim.sam.rho': 0.1},
  'GSAM 0.1, 0.4': {'optim.sam.rho': 0.1, 'optim.sam.alpha': 0.4},
  'distillation': {
    'task.teacher': 'FOLDER',
    'task.distillation': 'soft',
    'task.alpha': 0.9,
    'task.temperature': 1.0,
    'step.augment.mixup': 0.8,
  },
}
WHOLE = {'MNIST': 'mnist', 'Fashion-MNIST': 'fashion_mnist', 'CIFAR-10': 'cifar10'}  # config, and file of the data
SMALL = {  # of both subsets: a ViT with 16 tokens of 64, a run within a minute
  **PLAIN, 'model.embed_dim': 64, 'model.depth': 3, 'model.num_heads': 2, 'optim.name': 'adamw', 'batch': 100,
  'batch_eval': 1000,
}  # fmt: skip
SUBSETS = {  # name: pictures, flags of configs/fashion_mnist.py
  'Fashion-MNIST, 1,000': (1000, {'total_steps': 300, 'optim.lr': 3e-3}),
  'CIFAR-10, 5,000': (
    5000,
    {'model.img_size': 32, 'model.patch_size': 8, 'total_steps': 400, 'optim.name': 'muon', 'optim.lr': 5e-3},
  ),
}
GPU = {  # 64 tokens of 384, 16 million parameters; no crops, so that the host only gathers
  **PLAIN, 'model.embed_dim': 384, 'model.depth': 9, 'model.num_heads': 6, 'model.mlp_ratio': 4.0,
  'model.patch_size': 1, 'step.dtype': 'bfloat16', 'batch': 1024, 'batch_eval': 1000, 'optim.name': 'adamw',
  'optim.lr': 1e-3, 'optim.weight_decay': 0.05, 'log_every': 100,
}  # fmt: skip
STRONG = {
  'step.augment.policy': 'randaugment', 'step.augment.layers': 2, 'step.augment.magnitude': 10,
  'step.augment.mixup': 0.8, 'step.augment.cutmix': 1.0, 'step.augment.erasing': 0.25, 'model.drop_path_rate': 0.1,
  'task.label_smoothing': 0.1, 'optim.ema': 0.999,
}  # fmt: skip
MINUTES = 9  # of the long GPU run, whose steps follow from the speed of its first ones


def wanted(gpu):
  """{(data, trick, seed): (config, flags)} of all that the ledger has, in the order of running: teachers come first."""
  found = {}
  if gpu:
    long = f'all, {MINUTES} minutes'
    for seed in SEEDS:
      found['CIFAR-10', long, seed] = 'cifar10', GPU | STRONG | {'total_steps': None}
      for trick, flags in TRICKS.items():
        found['CIFAR-10', trick, seed] = 'cifar10', GPU | {'total_steps': 2000} | taught(flags, 'CIFAR-10', long)
    return found
  for name, config in WHOLE.items():
    found[name, 'its config', 0] = config, {}
  for seed in SEEDS:
    for name, (pictures, flags) in SUBSETS.items():
      for trick, own in TRICKS.items():
        flags_of_all = SMALL | {'data.train': f'train[:{pictures}]'} | flags
        found[name, trick, seed] = 'fashion_mnist', flags_of_all | taught(own, whole(name), 'its config')
  return found


def whole(name):
  """The name of the set that a subset is of."""
  return name.split(',')[0]


def folder_of(name, trick, seed):
  """The name of a run's folder."""
  return '_'.join(f'{name} {trick} {seed}'.replace(',', '').split())


def taught(flags, name, trick):
  """Flags in which the teacher, if any, is the folder of the ledger's run of `trick` with seed 0."""
  return flags | {'task.teacher': folder_of(name, trick, 0)} if 'task.teacher' in flags else flags


def train(key, config, flags, data, *, work, ledger, chosen):
  """The row of one run, which this process trains in a folder of `work`, or goes on with; teachers lie in `ledger`."""
  import jax

  from vit_jax import config as config_lib
  from vit_jax import jobs, pretrained

  name, trick, seed = key
  folder = work / folder_of(*key)
  flags = {**flags, 'seed': seed} | chosen
  if flags.get('task.teacher'):
    flags['task.teacher'] = str(ledger / flags['task.teacher'])
  if 'total_steps' in flags and flags['total_steps'] is None:
    flags['total_steps'] = affordable(folder, config, flags, data)
  if trick != 'its config':
    flags['eval_every'] = 10_000 if name in SUBSETS else max(flags['total_steps'] // 20, 1)
  resolved = config_lib.resolve(config_lib.load(f'{config}:{data}'), {k: str(v) for k, v in flags.items()})
  resumed, cpu, wall = (folder / 'run.json').exists(), measure.cpu_seconds(), time.perf_counter()
  jobs.run(resolved, str(folder))
  cpu, wall = measure.cpu_seconds() - cpu, time.perf_counter() - wall
  model, described = pretrained.load(folder)
  measured = {split: evaluated(model, described, resolved, split) for split in ('test', 'train')}
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return {
    'data': name, 'trick': trick, 'seed': seed, 'config': config,
    'flags': {k: v for k, v in flags.items() if k != 'seed'}, 'steps': resolved['total_steps'],
    'top1': measured['test']['top1'], 'nll': measured['test']['nll'], 'ece': measured['test']['ece'],
    'examples': measured['test']['examples'], 'train_top1': measured['train']['top1'],
    'sharpness': measured['train']['sharpness'], 'cpu_seconds': cpu, 'seconds': wall,
    'resumed': resumed, 'device': jax.devices()[0].device_kind,
    'curve': [[line['step'], line['top1']] for line in lines if 'top1' in line],
  }  # fmt: skip


def affordable(folder, config, flags, data):
  """Steps that MINUTES allow: those of the run if it has begun, else by the speed of a short one."""
  from vit_jax import config as config_lib
  from vit_jax import jobs

  if (folder / 'run.json').exists():
    return json.loads((folder / 'run.json').read_text())['config']['total_steps']
  short = {**flags, 'total_steps': 200, 'log_every': 100}
  resolved = config_lib.resolve(config_lib.load(f'{config}:{data}'), {k: str(v) for k, v in short.items()})
  jobs.run(resolved, f'{folder}_speed')
  lines = [json.loads(line) for line in pathlib.Path(f'{folder}_speed', 'metrics.jsonl').read_text().splitlines()]
  speed = [line['images_per_second'] for line in lines if line.get('images_per_second')][-1]
  return int(0.9 * MINUTES * 60 * speed / resolved['batch'])  # a tenth for compiling and evaluating


def evaluated(model, described, resolved, split):
  """{'top1', 'nll', 'ece', 'examples', 'sharpness'} of a model on the first 10,000 pictures a run had for `split`."""
  import jax
  import optax

  from vit_jax import augment, jobs, sam, scores, state
  from vit_jax import data as data_lib

  pictures = jobs.evaluation_data(described, resolved['data']['name'], resolved['data'][split])
  graphdef, params, rest = state.split(model)
  logits_of = lambda params, images: state.merge(graphdef, params, rest)(
    augment.normalise(images, pictures.row['mean'], pictures.row['std'], 'float32'))  # fmt: skip
  logits, labels, kept = [], [], None
  forward = jax.jit(logits_of)
  for batch in itertools.islice(data_lib.eval_batches(pictures, pictures.test, batch=1000), 10):
    real = batch['mask'] > 0
    logits.append(np.asarray(forward(params, batch['image']))[real])
    labels.append(batch['label'][real])
    kept = kept or (batch['image'][real], batch['label'][real])
  logits, labels = np.concatenate(logits), np.concatenate(labels)
  values = scores.probabilities(logits)
  right = scores.ranks(labels, logits) == 0

  def loss(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, batch[0]), batch[1]).mean()

  return {
    'top1': float(right.mean()),
    'nll': float(scores.nll(labels, values).mean()),
    'ece': scores.calibration(values.max(-1), right).ece,
    'examples': len(labels),
    'sharpness': sam.sharpness(loss, params, [kept], rho=RHO) if split == 'train' else None,
  }


def neighbours(path, pictures=None, k=5):
  """Accuracy of the k nearest neighbours by pixels, Euclidean, for the test pictures of an .npz; ties to the nearer."""
  with np.load(path) as file:
    train, test = (file[f'x_{part}'].reshape(len(file[f'x_{part}']), -1) for part in ('train', 'test'))
    labels, truth = file['y_train'].ravel()[:pictures], file['y_test'].ravel()
  train = train[:pictures].astype(np.float32) / 255
  squares, right = np.square(train).sum(-1), 0
  for first in range(0, len(test), 500):
    some = test[first : first + 500].astype(np.float32) / 255
    distance = squares - 2 * some @ train.T
    near = np.argpartition(distance, k, -1)[:, :k]
    order = np.take_along_axis(near, np.take_along_axis(distance, near, -1).argsort(-1), -1)
    votes = np.stack([(labels[order] == i).sum(-1) + (labels[order[:, 0]] == i) * 0.5 for i in range(10)], -1)
    right += int((votes.argmax(-1) == truth[first : first + 500]).sum())
  return right / len(test)


def lines():
  """The ledger: all rows that were ever measured."""
  path = measure.RESULTS / 'recipes.jsonl'
  found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  return [{**line, **row} for line in found for row in line['rows']]


def tables(rows):
  """Prints the runs on whole sets, and for each subset the tricks with mean and spread over the seeds."""
  single = [row for row in rows if row['data'] in WHOLE and row['trick'].startswith('its config')]
  if single:
    shown = [
      {'data': row['data'], 'run': row['trick'], 'steps': row['steps'], 'top-1, %': 100 * row['top1'],
       'on the training set': 100 * row['train_top1'], 'CPU seconds': round(row['cpu_seconds']), 'date': row['date']}
      for row in single
    ]  # fmt: skip
    measure.table(shown)
  rows = [row for row in rows if row not in single]
  for where in sorted({(row['data'], row['device']) for row in rows}):
    own = [row for row in rows if (row['data'], row['device']) == where]
    print(f'\n{where[0]} ({where[1]}), {own[0]["steps"]} steps\n')
    shown = []
    for trick in dict.fromkeys(row['trick'] for row in own):
      runs = [row for row in own if row['trick'] == trick]
      column = lambda key, scale=1, runs=runs: [scale * row[key] for row in runs]
      spread = lambda values: f'{np.mean(values):.2f} ± {np.std(values, ddof=1) if len(values) > 1 else np.nan:.2f}'
      gap = [100 * (row['train_top1'] - row['top1']) for row in runs]
      shown.append({
        'trick': trick, 'seeds': len(runs), 'top-1, %': spread(column('top1', 100)), 'train - test': spread(gap),
        'ECE, %': spread(column('ece', 100)), 'loss': f'{np.mean(column("nll")):.3f}',
        'sharpness': f'{np.mean(column("sharpness")):.3g}', 'CPU seconds': round(np.median(column('cpu_seconds'))),
      })  # fmt: skip
    measure.table(shown)


def fill(args):
  """Runs what the ledger lacks, and appends a line for each run that has ended."""
  import jax

  from vit_jax import memory

  memory.keep_freed()  # as vit_jax train does
  jax.config.update('jax_compilation_cache_dir', str(args.work.absolute() / 'compiled'))  # most rows share programs
  table, begun = wanted(args.gpu), time.time()
  chosen = {'data.test': 'train[-6000:]'} | dict(flag.split('=', 1) for flag in args.flag) if args.choose else {}
  done = {(row['data'], row['trick'], row['seed'], row['device'] == 'cpu') for row in lines()}
  for key, (config, flags) in table.items():
    if (*key, not args.gpu) in done and not args.choose or not fnmatch.fnmatch(' '.join(map(str, key)), args.only):
      continue
    if time.time() - begun > 60 * args.minutes:
      break
    machine, file = measure.machine(), (args.data / f'{WHOLE[whole(key[0])]}.npz').absolute()
    work = args.work / 'chosen' / str(time.time()) if args.choose else args.work
    row = train(key, config, flags, file, work=work, ledger=args.work, chosen=chosen)
    jax.clear_caches()
    if args.choose:
      print({k: v for k, v in row.items() if k not in ('flags', 'curve')})
    else:
      measure.record('recipes', machine, [row])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', type=pathlib.Path, help='the folder of the three .npz')
  parser.add_argument('--work', type=pathlib.Path, help='where the runs are written')
  parser.add_argument('--only', default='*', help='rows whose "DATA TRICK SEED" this pattern fits')
  parser.add_argument('--minutes', type=float, default=1e9, help='begin no run after so many')
  parser.add_argument('--gpu', action='store_true', help='the rows for one GPU')
  parser.add_argument('--choose', action='store_true', help='test on the end of the training set; writes no line')
  parser.add_argument('--flag', action='append', default=[], help='with --choose: KEY=VALUE of the config')
  parser.add_argument(
    '--neighbours', action='store_true', help='the bound: 5 nearest neighbours on pixels, of sets that --only fits'
  )
  parser.add_argument('--table', action='store_true', help='print what has been measured and run nothing')
  args = parser.parse_args()
  if args.table:
    return tables(lines())
  if not (args.data and args.work):
    parser.error('--data=FOLDER and --work=FOLDER are wanted')
  if args.neighbours:
    chosen = {name: file for name, file in WHOLE.items() if fnmatch.fnmatch(name, args.only)}
    return print({name: neighbours(args.data / f'{file}.npz') for name, file in chosen.items()})
  fill(args)
  return tables(lines())


if __name__ == '__main__':
  sys.exit(main())
