"""What benchmarks/gpu.py measures, in order of value: models, sections, and the ways in which each side computes."""

from typing import NamedTuple

# Name here -> (timm's name, width, blocks, heads, patch, image).
MODELS = {
  's16': ('vit_small_patch16_224', 384, 12, 6, 16, 224),
  'b16': ('vit_base_patch16_224', 768, 12, 12, 16, 224),
  'l16': ('vit_large_patch16_224', 1024, 24, 16, 16, 224),
  'h14': ('vit_huge_patch14_224', 1280, 32, 16, 14, 224),
  'b16_384': ('vit_base_patch16_384', 768, 12, 12, 16, 384),
}
BATCHES = {'s16': 512, 'b16': 256, 'l16': 128, 'h14': 64, 'b16_384': 64}
TINY = dict(embed_dim=48, depth=2, num_heads=3, patch=16, image=32)  # what --tiny makes of every model
CLASSES = 1000


class Way(NamedTuple):
  """One implementation in a section.

  side: 'jax' or 'torch'.   how: keyword arguments of the side's build.   memory: GiB of a GPU that it takes, roughly,
  as a multiple of the section's.   flags: of XLA.
  """

  name: str
  side: str
  how: dict
  memory: float = 1.0
  flags: str = ''


class Section(NamedTuple):
  """One table: what is computed of which model, the ways in order of value, the first beside each of the others.

  train: a training step; else a forward pass.   gib: of a GPU's memory that our way takes, roughly.   minutes: that the
  whole takes, an estimate.   profile: whether the first way's step is taken apart too.
  """

  model: str
  train: bool
  ways: tuple
  gib: float
  minutes: float
  profile: bool = False


def ours(name, memory=1.0, flags='', gelu='gelu_tanh', **how):
  """A way of vit_jax; gelu: 'gelu_tanh', as the first ViTs were trained, or 'gelu', exact, as timm's."""
  return Way(f'vit_jax, {name}', 'jax', {'attention': 'cudnn', 'model': {'act_layer': gelu}, **how}, memory, flags)


def peer(name, library, memory, **how):
  """A way of timm or Hugging Face."""
  return Way(name, 'torch', {'library': library, **how}, memory)


BEST = ours('cudnn, tanh GELU')
COMPILED = peer('timm, compiled', 'timm', 1.2, compiled=True)
MAIN = (
  BEST,
  COMPILED,
  peer('timm, eager', 'timm', 1.5),
  ours('cudnn, exact GELU', gelu='gelu'),
  ours('cudnn, tanh GELU, 197 tokens as they are', odd=True),
  ours('xla, tanh GELU', 1.5, attention='xla'),
  peer('Hugging Face, compiled', 'hf', 1.6, compiled=True),
  peer('Hugging Face, eager', 'hf', 1.7),
)
FEW = MAIN[:4] + MAIN[-2:-1]  # of models that are not the main two
VARIANTS = (
  BEST,
  ours('remat dots', remat='dots'),
  ours('remat full', remat='full'),
  ours('scan', 2.0, scan=True),
  ours('scan, remat dots', scan=True, remat='dots'),
  ours('scan, remat full', scan=True, remat='full'),
  ours('no Triton products', flags='--xla_gpu_enable_triton_gemm=false'),
  ours('no CUDA graphs', flags='--xla_gpu_enable_command_buffer='),
  peer('timm, compiled, tanh GELU', 'timm', 1.2, compiled=True, model={'act_layer': 'gelu_tanh'}),
  peer('timm, eager, not channels_last', 'timm', 1.5, channels_last=False),
)

SECTIONS = {
  'train_b16': Section('b16', True, MAIN, 20, 5.5, profile=True),
  'train_l16': Section('l16', True, MAIN, 28, 7.5, profile=True),
  'attention': None,  # of ATTENTION
  'train_s16': Section('s16', True, FEW, 20, 3.5),
  'infer_b16': Section('b16', False, FEW, 4, 2.5),
  'infer_l16': Section('l16', False, FEW, 5, 3.5),
  'train_h14': Section('h14', True, FEW, 32, 7.0),
  'train_b16_384': Section('b16_384', True, FEW, 20, 4.0),
  'variants_b16': Section('b16', True, VARIANTS, 20, 6.5),
  'infer_s16': Section('s16', False, FEW, 4, 2.0),
  'infer_h14': Section('h14', False, FEW, 6, 4.0),
  'infer_b16_384': Section('b16_384', False, FEW, 4, 2.5),
}
ATTENTION_MINUTES = 3.0
# (tokens, head_dim, dtype), in order of value: 224 with and without class token, 384, H/14, 512, large images.
ATTENTION = (
  (197, 64, 'bfloat16'), (577, 64, 'bfloat16'), (257, 80, 'bfloat16'), (196, 64, 'bfloat16'), (1025, 64, 'bfloat16'),
  (50, 64, 'bfloat16'), (2305, 64, 'bfloat16'), (577, 80, 'bfloat16'), (4097, 64, 'bfloat16'), (65, 64, 'bfloat16'),
  (197, 64, 'float32'), (1025, 64, 'float32'),
)  # fmt: skip
IMPLEMENTATIONS = ('xla', 'cudnn', 'cudnn odd')
HEADS = 12
TOKENS = 50_000  # of all images of a batch together, about


def sizes(model, tiny=False):
  """{'embed_dim', 'depth', 'num_heads', 'patch', 'image'} of a model by its name here."""
  return dict(TINY) if tiny else dict(zip(TINY, MODELS[model][1:]))


def gigaflops(*, embed_dim, depth, num_heads, patch, image, train):
  """GFLOP of one image: of its forward pass, or of a training step, 3 forward passes less what the images' gradient
  would be. A multiply-add counts 2; the class token counts, padding does not."""
  patches = (image // patch) ** 2
  n, d = patches + 1, embed_dim
  embed = 2 * patches * patch * patch * 3 * d
  forward = embed + depth * (24 * n * d * d + 4 * n * n * d) + 2 * d * CLASSES
  return (3 * forward - embed if train else forward) / 1e9
