"""A small ViT from scratch on Fashion-MNIST: fashion_mnist.py[:DATA], where DATA is tfds:fashion_mnist unless given.

  python -m vit_jax.main --config=configs/fashion_mnist.py:fashion_mnist.npz --workdir=runs/fashion_mnist

DATA is an .npz file with x_train, y_train, x_test, y_test, a folder with the four IDX files, or anything else that
`vit_jax list datasets` names.

Expected: above 88 % in about six CPU minutes; not measured yet. The settings are those that were chosen for CIFAR-10.
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
    'data': {'name': data, 'crop': 'pad', 'crop_pct': 1.0},
    'optim': {'name': 'muon', 'lr': 3e-3, 'warmup': 0.1, 'weight_decay': 0.1, 'clip': 1.0},
    'save': {'every': 400},
  })  # fmt: skip
