"""A small ViT from scratch on CIFAR-10, without other data: cifar10.py[:DATA], where DATA is tfds:cifar10 unless given.

  python -m vit_jax.main --config=configs/cifar10.py:cifar10.npz --workdir=runs/cifar10

DATA is an .npz file with x_train, y_train, x_test, y_test, or anything else that `vit_jax list datasets` names.

Expected: some 78 %, in about an hour and a half on two CPU cores (0.8 CPU seconds a step). Not measured yet: estimated
from the first steps. With a GPU go on to --config.model.embed_dim=192 --config.total_steps=78000: a transformer without
other data gains from width and patience for as long as one has them.
"""

from ml_collections import ConfigDict


def get_config(data='tfds:cifar10'):
  return ConfigDict({
    'total_steps': 11_700,                                  # 30 epochs of 50,000 in batches of 128
    'eval_every': 1950,
    'model': {
      'name': 'vit_tiny_patch16_224',                       # the family; what makes it this small follows
      'img_size': 32,
      'patch_size': 4,
      'embed_dim': 96,
      'depth': 6,
      'num_heads': 3,
      'mlp_ratio': 2.0,
      'class_token': False,
      'global_pool': 'avg',
    },
    'data': {'name': data, 'crop': 'pad', 'crop_pct': 1.0},
    'task': {'label_smoothing': 0.1},
    'optim': {'lr': 1e-3, 'warmup': 0.1, 'weight_decay': 0.1, 'clip': 1.0},
    'step': {'augment': {'mixup': 0.2}},
    'save': {'every': 1950},
  })  # fmt: skip
