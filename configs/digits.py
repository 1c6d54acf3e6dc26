"""The first thing to run: a tiny ViT on the embedded digits, 1,437 pictures of 8x8 to train on and 360 to test.

  python -m vit_jax.main --config=configs/digits.py --workdir=runs/digits

Expected: 99 % in about half a minute on two cores, compilation included. Measured: 99.72, 99.72 and 99.44 % with
--config.seed=0, 1 and 2, in 33 CPU seconds each, 36 seconds beside other work. The settings were chosen by folds of the
1,437, which gave 99.3 to 100 %.
"""

from ml_collections import ConfigDict


def get_config():
  return ConfigDict({
    'total_steps': 1200,
    'eval_every': 400,
    'model': {
      'name': 'vit_tiny_patch16_224',                       # the family; what makes it this small follows
      'img_size': 8,
      'patch_size': 4,
      'embed_dim': 64,
      'depth': 4,
      'num_heads': 4,
      'mlp_ratio': 2.0,
      'class_token': False,
      'global_pool': 'avg',
    },
    'data': {
      'name': 'digits',
      'scale': (0.7, 1.0),
      'ratio': (0.85, 1.18),
      'eval_crop': 'squash',
      'crop_pct': 1.0,
      'interpolation': 'bilinear',
    },
    'optim': {'lr': 4e-3, 'warmup': 0.1, 'weight_decay': 0.1, 'clip': 1.0},
    'step': {'augment': {'flip': False, 'mixup': 0.4}},     # a mirrored digit is none
    'save': {'every': 400},
  })  # fmt: skip
