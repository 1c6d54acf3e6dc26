"""The rows of VisionTransformer: timm's names of vision_transformer and deit, as plain data, and their aliases.

vit_{size}_patch{patch}_{kind}_{img_size} is SIZES[size] with the arguments of its kind; the rest has a row of its own.
"""

from vit_jax.models.vit import VisionTransformer

# name in timm: (embed_dim, depth, num_heads, mlp_ratio)
SIZES = {
  'tiny': (192, 12, 3, 4.0), 'xsmall': (256, 10, 4, 4.0), 'wee': (256, 14, 4, 5.0), 'pwee': (256, 16, 4, 5.0),
  'little': (320, 14, 5, 5.6), 'small': (384, 12, 6, 4.0), 'medium': (512, 12, 8, 4.0), 'mediumd': (512, 20, 8, 4.0),
  'betwixt': (640, 12, 10, 4.0), 'base': (768, 12, 12, 4.0), 'base_plus': (896, 12, 14, 4.0),
  'so150m': (896, 18, 14, 2.572), 'so150m2': (832, 21, 13, 34 / 13), 'large': (1024, 24, 16, 4.0),
  'so400m': (1152, 27, 16, 3.7362), 'huge': (1280, 32, 16, 4.0), 'giant': (1408, 40, 16, 48 / 11),
  'giantopt': (1536, 40, 16, 4.0), 'giant2': (1536, 40, 24, 4.0), 'gigantic': (1664, 48, 16, 64 / 13),
}  # fmt: skip

GAP = dict(class_token=False, global_pool='avg', fc_norm=False)
REG_GAP = dict(class_token=False, no_embed_class=True, global_pool='avg', init_values=1e-5)
MAP = dict(class_token=False, global_pool='map', num_classes=0)
CLIP = dict(pre_norm=True, norm_eps=1e-5)
QUICK = CLIP | dict(act_layer='quick_gelu')
PATCHES_ONLY = dict(no_embed_class=True, num_classes=0)
SWIGLU = dict(mlp_ratio=5.33334, mlp_layer='SwiGLUPacked', act_layer='silu')
RADIO = PATCHES_ONLY | dict(final_norm=False)
XP = dict(pre_norm=True, no_embed_class=True, norm_layer='rmsnorm', block_fn='ParallelScalingBlock', qkv_bias=False,
          qk_norm=True)  # fmt: skip
TANH = dict(act_layer='gelu_tanh')
AIM = GAP | dict(num_classes=0, qkv_bias=False, proj_bias=False, norm_layer='rmsnorm', norm_eps=1e-5,
                 embed_norm_layer='rmsnorm', mlp_layer='SwiGLU', act_layer='silu')  # fmt: skip
BEIT3 = dict(scale_attn_norm=True, scale_mlp_norm=True, global_pool='avg', norm_eps=1e-5)


def _row(size, patch_size, img_size=224, **rest):
  embed_dim, depth, num_heads, mlp_ratio = SIZES[size]
  shape = dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)
  return VisionTransformer, dict(patch_size=patch_size, img_size=img_size) | shape | rest


# kind in the name: (its arguments, [(size, patch_size, (img_size, ...))]); a row's own num_classes is in CLASSES
KINDS = {
  '': ({}, [
    ('tiny', 16, (224, 384)), ('small', 8, (224,)), ('small', 16, (224, 384)), ('small', 32, (224, 384)),
    ('base', 8, (224,)), ('base', 16, (224, 384)), ('base', 32, (224, 384)), ('large', 14, (224,)),
    ('large', 16, (224, 384)), ('large', 32, (224, 384)), ('huge', 14, (224,)), ('giant', 14, (224,)),
    ('gigantic', 14, (224,)),
  ]),
  'gap': (GAP, [
    ('small', 16, (224,)), ('small', 32, (224,)), ('base', 32, (224,)), ('huge', 14, (224,)), ('huge', 16, (448,)),
    ('giant', 16, (224,)),
  ]),
  'clip': (CLIP, [
    ('xsmall', 16, (224,)), ('medium', 16, (224,)), ('medium', 32, (224,)), ('betwixt', 32, (224,)),
    ('base', 16, (224, 384)), ('base', 32, (224, 256, 384, 448)), ('large', 14, (224, 336)),
    ('huge', 14, (224, 336, 378)), ('giant', 14, (224,)), ('gigantic', 14, (224, 378)),
  ]),
  'clip_quickgelu': (QUICK, [
    ('base', 16, (224,)), ('base', 32, (224,)), ('large', 14, (224, 336)), ('huge', 14, (224, 378)),
    ('gigantic', 14, (224,)),
  ]),
  'siglip': (MAP, [
    ('base', 16, (224, 256, 384, 512)), ('large', 16, (256, 384)), ('so400m', 14, (224, 378)),
  ]),
  'siglip_gap': (GAP | dict(num_classes=0), [
    ('base', 16, (224, 256, 384, 512)), ('large', 16, (256, 384)), ('so400m', 14, (224, 378, 448, 896)),
  ]),
  'xp': (XP, [('base', 16, (224,)), ('large', 14, (224,)), ('huge', 14, (224,))]),
  'reg1_gap': (REG_GAP | dict(reg_tokens=1), [
    ('wee', 16, (256,)), ('little', 16, (256,)), ('medium', 16, (256,)), ('betwixt', 16, (256,)),
  ]),
  'reg4_gap': (REG_GAP | dict(reg_tokens=4), [
    ('little', 16, (256,)), ('medium', 16, (256,)), ('mediumd', 16, (256, 384)), ('betwixt', 16, (256, 384)),
  ]),
}  # fmt: skip
CLASSES = {
  **dict.fromkeys(['vit_small_patch8_224', 'vit_large_patch32_224', 'vit_huge_patch14_224', 'vit_huge_patch14_gap_224',
                   'vit_huge_patch16_gap_448', 'vit_giant_patch16_gap_224'], 0),
  **dict.fromkeys(['vit_xsmall_patch16_clip_224', 'vit_medium_patch16_clip_224', 'vit_medium_patch32_clip_224',
                   'vit_betwixt_patch32_clip_224', 'vit_base_patch32_clip_256', 'vit_base_patch16_clip_quickgelu_224',
                   'vit_base_patch32_clip_quickgelu_224'], 512),
  **dict.fromkeys(['vit_large_patch14_clip_quickgelu_224', 'vit_large_patch14_clip_quickgelu_336'], 768),
  **dict.fromkeys(['vit_huge_patch14_clip_378', 'vit_huge_patch14_clip_quickgelu_224',
                   'vit_huge_patch14_clip_quickgelu_378', 'vit_giant_patch14_clip_224'], 1024),
  **dict.fromkeys(['vit_gigantic_patch14_clip_224', 'vit_gigantic_patch14_clip_378',
                   'vit_gigantic_patch14_clip_quickgelu_224'], 1280),
}  # fmt: skip


def _of_kinds():
  for kind, (arguments, shapes) in KINDS.items():
    for size, patch, img_sizes in shapes:
      for img_size in img_sizes:
        name = f'vit_{size}_patch{patch}_{kind}{"_" if kind else ""}{img_size}'
        classes = {'num_classes': CLASSES[name]} if name in CLASSES else {}
        yield name, _row(size, patch, img_size, **arguments | classes)


def _foundation():
  """DINOv2, TIPSv2, RADIO: one image size each, no head."""
  for size in ('small', 'base', 'large', 'giant'):
    key, extra = ('giant2', SWIGLU) if size == 'giant' else (size, {})
    dino = extra | dict(init_values=1e-5, num_classes=0)
    yield f'vit_{size}_patch14_dinov2', _row(key, 14, 518, **dino)
    yield f'vit_{size}_patch14_reg4_dinov2', _row(key, 14, 518, reg_tokens=4, no_embed_class=True, **dino)
  for size in ('base', 'large', 'so400m', 'giant'):
    key, extra = ('giant2', SWIGLU) if size == 'giant' else (size, {})
    yield f'vit_{size}_patch14_reg1_tipsv2', _row(key, 14, 448, init_values=1.0, reg_tokens=1, **PATCHES_ONLY, **extra)
  for size, init_values in [('base', 1e-5), ('large', 1e-5), ('huge', None), ('giant2', None)]:
    name = f'vit_{size.rstrip("2")}_patch16_radio_v3'
    yield name, _row(size, 16, 512, reg_tokens=7, init_values=init_values, **RADIO)
  for size in ('so400m', 'huge'):
    yield f'vit_{size}_patch16_radio_v4', _row(size, 16, 512, reg_tokens=9, **RADIO)


def _siglip2():
  """SigLIP 2 of tanh GELU: each with MAP head and with average pooling."""
  for size, patch, img_sizes in [('base', 32, (256,)), ('large', 16, (512,)), ('so400m', 16, (256, 384, 512)),
                                 ('giantopt', 16, (256, 384))]:  # fmt: skip
    for img_size in img_sizes:
      yield f'vit_{size}_patch{patch}_siglip_{img_size}', _row(size, patch, img_size, **MAP, **TANH)
      gap = GAP | TANH | dict(num_classes=0)
      yield f'vit_{size}_patch{patch}_siglip_gap_{img_size}', _row(size, patch, img_size, **gap)


def _aim():
  for size, shape in {'large': (1024, 8, 2.75), 'huge': (1536, 12, 2.6667), '1b': (2048, 16, 2.75),
                      '3b': (3072, 24, 2.6667)}.items():  # fmt: skip
    for img_size in (224, 336, 448):
      embed_dim, num_heads, mlp_ratio = shape
      shape_of = dict(embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio)
      yield f'aimv2_{size}_patch14_{img_size}', _row('large', 14, img_size, **AIM | shape_of)


TEST = dict(embed_dim=96, depth=9, num_heads=3, class_token=False, reg_tokens=1, init_values=1e-5)
VARIANTS = {
  **dict(_of_kinds()), **dict(_foundation()), **dict(_siglip2()), **dict(_aim()),
  'vit_base_patch16_224_miil': _row('base', 16, qkv_bias=False, num_classes=11221),
  'vit_so400m_patch14_siglip_384': _row('so400m', 14, 384, crop_to_patches=True, **MAP),
  'vit_so400m_patch14_siglip_gap_384': _row('so400m', 14, 384, crop_to_patches=True, **GAP | dict(num_classes=0)),
  'vit_small_patch16_36x1_224': _row('small', 16, depth=36, init_values=1e-5),
  **{f'vit_{size}_patch16_18x2_224': _row(size, 16, depth=18, init_values=1e-5, block_fn='ParallelThingsBlock')
     for size in ('small', 'base')},
  'vit_base_patch16_rpn_224': _row('base', 16, qkv_bias=False, init_values=1e-5, class_token=False, global_pool='avg',
                                   block_fn='ResPostBlock'),
  'vit_base_patch16_gap_224': _row('base', 16, **GAP | dict(num_heads=16)),
  'vit_base_patch16_gap_norep_224': _row('base', 16, **GAP),  # the original release's has 12 heads
  'vit_base_patch16_plus_240': _row('base_plus', 16, 240, init_values=1e-5),
  'vit_base_patch32_plus_256': _row('base_plus', 32, 256, init_values=1e-5),
  'vit_base_patch16_plus_clip_240': _row('base_plus', 16, 240, num_classes=640, **CLIP),
  'vit_base_patch16_reg4_gap_256': _row('base', 16, 256, **REG_GAP | dict(reg_tokens=4, init_values=None)),
  'vit_medium_patch16_gap_240': _row('medium', 16, 240, qkv_bias=False, init_values=1e-6, num_classes=11821, **GAP),
  **{f'vit_{size}_patch16_gap_{img_size}': _row(size, 16, img_size, qkv_bias=False, init_values=1e-6, **GAP)
     for size, img_size in [('medium', 256), ('medium', 384), ('betwixt', 256)]},
  'vit_pwee_patch16_reg1_gap_256': _row('pwee', 16, 256, reg_tokens=1, block_fn='ParallelScalingBlock', **REG_GAP),
  'vit_dpwee_patch16_reg1_gap_256': _row('pwee', 16, 256, reg_tokens=1, block_fn='DiffParallelScalingBlock', **REG_GAP),
  'vit_dwee_patch16_reg1_gap_256': _row('wee', 16, 256, reg_tokens=1, attn_layer='diff', **REG_GAP),
  'vit_dlittle_patch16_reg1_gap_256': _row('little', 16, 256, reg_tokens=1, attn_layer='diff', **REG_GAP),
  **{f'vit_so150m2_patch16_reg1_gap_{img_size}': _row('so150m2', 16, img_size, reg_tokens=1, qkv_bias=False,
                                                      class_token=False, global_pool='avg', init_values=1e-5)
     for img_size in (256, 384, 448)},
  **{f'vit_so150m_patch16_reg4_gap_{img_size}': _row('so150m', 16, img_size, reg_tokens=4, **GAP)
     for img_size in (256, 384)},
  'vit_so150m_patch16_reg4_map_256': _row('so150m', 16, 256, reg_tokens=4, class_token=False, global_pool='map'),
  'vit_intern300m_patch14_448': _row('large', 14, 448, init_values=0.1, final_norm=False, num_classes=0),
  **{f'flexivit_{size}': _row(size, 16, 240, no_embed_class=True) for size in ('small', 'base', 'large')},
  **{f'eva_large_patch14_{img_size}': _row('large', 14, img_size, global_pool='avg') for img_size in (196, 336)},
  'beit3_base_patch16_224': _row('base', 16, **BEIT3), 'beit3_large_patch16_224': _row('large', 16, **BEIT3),
  **{f'beit3_giant_patch14_{img_size}': _row('giant', 14, img_size, **BEIT3 | dict(mlp_ratio=4.3637))
     for img_size in (224, 336)},
  'test_vit': _row('tiny', 16, 160, embed_dim=64, depth=6, num_heads=2, mlp_ratio=3.0),
  'test_vit2': _row('tiny', 16, 160, mlp_ratio=3.0, global_pool='avg',
                    **TEST | dict(embed_dim=64, depth=8, num_heads=2)),
  'test_vit3': _row('tiny', 16, 160, mlp_ratio=2.0, global_pool='map', pool_include_prefix=True, **TEST),
  'test_vit4': _row('tiny', 16, 160, mlp_ratio=3.0, global_pool='avg', norm_layer='rmsnorm', **TEST),
  **{f'deit_{size}_patch16_{img_size}': _row(size, 16, img_size)
     for size, img_size in [('tiny', 224), ('small', 224), ('base', 224), ('base', 384)]},
  **{f'deit3_{size}_patch{patch}_{img_size}': _row(size, patch, img_size, no_embed_class=True, init_values=1e-6)
     for size, patch, img_sizes in [('small', 16, (224, 384)), ('medium', 16, (224,)), ('base', 16, (224, 384)),
                                    ('large', 16, (224, 384)), ('huge', 14, (224,))]
     for img_size in img_sizes},
}  # fmt: skip

LETTERS = [('Ti', 'tiny', (16,)), ('S', 'small', (8, 16, 32)), ('B', 'base', (8, 16, 32)), ('L', 'large', (16, 32)),
           ('H', 'huge', (14,)), ('g', 'giant', (14,)), ('G', 'gigantic', (14,))]  # fmt: skip
ALIASES = {
  # the names of the original release
  **{f'ViT-{letter}_{patch}': f'vit_{size}_patch{patch}_224' for letter, size, patches in LETTERS for patch in patches},
  **{f'ViT-{letter}_{patch}-gap-norep': f'vit_{size}_patch{patch}_gap_224'
     for letter, size, patch in [('S', 'small', 16), ('S', 'small', 32), ('B', 'base', 32)]},
  'ViT-B_16-gap-norep': 'vit_base_patch16_gap_norep_224',
  # torchvision's builders
  **{f'vit_{letter}_{patch}': f'vit_{size}_patch{patch}_224'
     for letter, size, patch in [('b', 'base', 16), ('b', 'base', 32), ('l', 'large', 16), ('l', 'large', 32),
                                 ('h', 'huge', 14)]},
  # Facebook's DINOv2
  **{f'dinov2_vit{letter}14{reg}': f'vit_{size}_patch14_{"reg4_" if reg else ""}dinov2'
     for letter, size in [('s', 'small'), ('b', 'base'), ('l', 'large'), ('g', 'giant')] for reg in ('', '_reg')},
}  # fmt: skip
