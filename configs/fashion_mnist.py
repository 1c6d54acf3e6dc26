"""A small ViT from scratch on Fashion-MNIST: fashion_mnist.py[:DATA], where DATA is tfds:fashion_mnist unless given.

  python -m vit_jax.main --config=configs/fashion_mnist.py:fashion_mnist.npz --workdir=runs/fashion_mnist

DATA is an .npz file with x_train, y_train, x_test, y_test, a folder with the four IDX files, or anything else that
`vit_jax list datasets` names.

Expected: 89.5 % in about five minutes on two idle cores. Measured: 89.47 % with seed 0, in 344 CPU seconds with three
evaluations, on two cores beside other work. A first form that also moved the pictures (data.crop='pad') gave 84.33 %,
and 85.2 % on the training set, so it was dropped; without that, 300 steps gave 85.67 % of 6,000 training pictures that
were kept apart. The optimizer is that of cifar10.py.
"""

from ml_collections import ConfigDict


def get_config(data='tfds:fashion_mnist'):
  return ConfigDict({
    'total_steps': 1200,                                    # 5 epochs of 60,000 in batches of 256
    'batch': 256,
    'eval_every': 400,
    'model': {
      'name': 'vit_tiny_patch16_224',                       # the family; what makes it this small follows
      'img_size': 28,
      'patch_size': 7,
      'embed_dim': 96,
      'depth': 4,
      'num_heads': 3,
      'mlp_ratio': 2.0,
      'class_token': False,
      'global_pool': 'avg',
    },
    'data': {'name': data, 'crop': 'none', 'crop_pct': 1.0},
    'optim': {'name': 'muon', 'lr': 3e-3, 'warmup': 0.1, 'weight_decay': 0.1, 'clip': 1.0},
    'save': {'every': 400},
  })  # fmt: skip
