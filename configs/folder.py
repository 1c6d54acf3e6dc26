"""A model from scratch on a folder of your own pictures, without pretrained weights: folder.py:MODEL,DIR.

  python -m vit_jax.main --config=configs/folder.py:vit_tiny_patch16_224,PICTURES --workdir=runs/pictures

DIR holds train/CLASS/x.jpg and test/CLASS/x.jpg, or CLASS/x.jpg, of which a tenth is then kept for testing; any other
--data that `vit_jax list datasets` names goes too. MODEL is a name of `vit_jax list models`.

Expected: the size of the data decides; below some 10,000 pictures, weights to start from help more than any setting. It
is a starting point whose accuracy we have not measured. Time: made for a GPU (--config.step.dtype=bfloat16); on a CPU a
step of vit_tiny_patch16_224 costs 20 CPU seconds (measured), and with --config.model.img_size=64 about 3.
"""

from ml_collections import ConfigDict


def get_config(args=''):
  model, comma, name = args.partition(',')
  if not (model and comma and name):
    raise ValueError(f'MODEL,DIR is wanted, as in --config=folder:vit_tiny_patch16_224,PICTURES; {args!r} was given.')
  return ConfigDict({
    'total_steps': 10_000,
    'batch': 128,
    'eval_every': 1000,
    'model': {'name': model, 'drop_path_rate': 0.1},
    'data': {'name': name, 'scale': (0.2, 1.0)},
    'task': {'label_smoothing': 0.1},
    'optim': {'lr': 1e-3, 'warmup': 0.1, 'weight_decay': 0.1, 'clip': 1.0},
    'step': {'augment': {'mixup': 0.2}},
    'save': {'every': 1000},
  })  # fmt: skip
