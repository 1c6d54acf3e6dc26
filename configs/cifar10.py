"""A small ViT from scratch on CIFAR-10, without other data: cifar10.py[:DATA], where DATA is tfds:cifar10 unless given.

  python -m vit_jax.main --config=configs/cifar10.py:cifar10.npz --workdir=runs/cifar10

DATA is an .npz file with x_train, y_train, x_test, y_test, or anything else that `vit_jax list datasets` names.

Expected: more than the 50.14 % that three of its thirty epochs reached (--config.total_steps=1170, seed 0), measured in
1,058 CPU seconds. All of it takes about an hour and a half on two idle CPU cores (0.8 CPU seconds a step); that was not
measured. With a GPU, a wider model for longer is the next thing to try: --config.model.embed_dim=192.
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
