"""Does fine-tuning pay? 200 CIFAR-10 pictures of each class, with and without weights pre-trained on the other 48,000.

python benchmarks/finetune.py --data=cifar10.npz --folder=FOLDER

Writes FOLDER/few (train/CLASS/x.png, test/CLASS/x.png) and FOLDER/rest.npz, then runs vit_jax four times, each in a
workdir of its own under FOLDER: a small ViT on the rest; configs/finetune.py:FOLDER/pretrained,FOLDER/few with no other
flag; and the same model without weights, once by the same recipe and once by AdamW, for as many steps of as many
pictures. What is finished is not done again.
"""

import argparse
import json
import pathlib
import sys

import measure
import numpy as np
from PIL import Image

CLASSES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
FEW = 200  # pictures of each class
MODEL = {'img_size': 32, 'patch_size': 8, 'embed_dim': 96, 'num_heads': 3}  # in the recipe of configs/mnist.py
MIRRORED = '--config.step.augment.flip=True'


def write(data, folder):
  """FOLDER/few and FOLDER/rest.npz of an .npz with x_train, y_train, x_test, y_test."""
  if (folder / 'rest.npz').exists():
    return
  with np.load(data) as file:
    images, labels = {}, {}
    for part in ('train', 'test'):
      images[part], labels[part] = file[f'x_{part}'], file[f'y_{part}'].ravel()
  few = np.sort(np.concatenate([np.flatnonzero(labels['train'] == i)[:FEW] for i in range(len(CLASSES))]))
  for part, index in (('train', few), ('test', range(len(images['test'])))):
    for i in index:
      place = folder / 'few' / part / CLASSES[labels[part][i]]
      place.mkdir(parents=True, exist_ok=True)
      Image.fromarray(images[part][i]).save(place / f'{i:05d}.png')
  rest = {'x_train': np.delete(images['train'], few, 0), 'y_train': np.delete(labels['train'], few)}
  np.savez(folder / 'rest.npz', **rest, x_test=images['test'], y_test=labels['test'])


def train(name, folder, *flags):
  """The row of one run of vit_jax; kept in FOLDER/NAME.json, which is read where it is there."""
  kept = folder / f'{name}.json'
  if not kept.exists():
    command = [sys.executable, '-m', 'vit_jax.main', *flags, f'--workdir={folder / name}']
    _, cpu, wall = measure.run(command)
    lines = [json.loads(line) for line in (folder / name / 'metrics.jsonl').read_text().splitlines()]
    config = json.loads((folder / name / 'run.json').read_text())['config']
    row = {
      'run': name,
      'steps': config['total_steps'],
      'batch': config['batch'],
      'optimizer': f'{config["optim"]["name"]}, {config["optim"]["lr"]:g}',
      'top-1, %': [100 * line['top1'] for line in lines if 'top1' in line][-1],
      'CPU seconds': cpu,
      'seconds': wall,
    }
    kept.write_text(json.dumps(row))
  return json.loads(kept.read_text())


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', required=True, help='an .npz with x_train, y_train, x_test, y_test of CIFAR-10')
  parser.add_argument('--folder', required=True, help='where pictures and runs go; half a gigabyte')
  parser.add_argument('--steps', type=int, default=3000, help='of pre-training, at batch 128')
  args = parser.parse_args()
  folder = pathlib.Path(args.folder).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  measure.warn_if_busy()
  machine = measure.machine()
  write(args.data, folder)
  few, model = folder / 'few', [f'--config.model.{key}={value}' for key, value in MODEL.items()]
  short = [MIRRORED, '--config.optim.lr=2e-3']
  length = [f'--config.total_steps={args.steps}', f'--config.eval_every={args.steps // 2}', '--config.save.every=500']
  rows = [train('pretrained', folder, f'--config=mnist:{folder / "rest.npz"}', *model, *short, *length)]
  rows.append(train('finetuned', folder, f'--config=configs/finetune.py:{folder / "pretrained"},{few}'))
  same = [f'--config.{key}={rows[-1][key.removeprefix("total_")]}' for key in ('total_steps', 'batch')]
  start = ['--config.model.pretrained=False', '--config.model.reset=()']
  shape = json.loads((folder / 'pretrained' / 'model.json').read_text())['architecture']
  keys = 'img_size', 'patch_size', 'embed_dim', 'depth', 'num_heads', 'mlp_ratio', 'class_token', 'global_pool'
  start += [f'--config.model.{key}={shape[key]}' for key in keys]
  rows.append(train('scratch', folder, f'--config=configs/finetune.py:{folder / "pretrained"},{few}', *start))
  noise = [MIRRORED, '--config.optim.lr=1e-3', '--config.step.augment.mixup=0.2', '--config.task.label_smoothing=0.1']
  same += ['--config.eval_every=250', *noise]
  rows.append(train('scratch-adamw', folder, f'--config=mnist:{few}', *model, *same))
  measure.table(rows)
  measure.record('finetune', machine, rows)


if __name__ == '__main__':
  main()
