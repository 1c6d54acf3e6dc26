"""The house rules that a machine can see: who imports whom, what stays out of module tops, and how large things get."""

import ast
import pathlib
import re
import sys

import pytest

import vit_jax

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'vit_jax'
FILES = {path.relative_to(PACKAGE).with_suffix('').as_posix(): path for path in PACKAGE.rglob('*.py')}

# Module -> the modules of this package that it may import, at its top or inside a function. Downwards only: no cycle.
MAY_IMPORT = {
  '__init__': {'exports', 'inference', 'look', 'models', 'pretrained', 'train'},
  '__main__': {'cli'},
  'cli': {'compilation', 'console', 'guard', 'hosts', 'storage', ''},
  'compilation': {'caches'},
  'caches': set(),
  'launch': {'console', 'guard'},
  'guard': set(),
  'health': {'guard'},
  'console': set(),
  'commands': {
    'bench', 'card', 'console', 'exports', 'gallery', 'guard', 'hosts', 'hub', 'inference', 'jobs', 'main', 'models',
    'pretrained', 'bench_input', 'probe', 'report', 'selftrain', 'serve', 'sheet',
  },
  'discovery': {
    'bench', 'card', 'commands', 'config', 'console', 'hub', 'models', 'models/vit', 'pretrained', 'sources', 'storage',
  },
  'share': {
    '', 'bench', 'card', 'commands', 'console', 'exports', 'hub', 'models', 'pretrained', 'storage', 'watch', 'weights',
  },
  'card': {'checkpoint', 'formats', 'watch'},
  'main': {'config', 'guard', 'hosts', 'jobs', 'memory', 'watch', 'lease', 'storage'},
  'hosts': {'guard'},
  'jobs': {
    'bench', 'console', 'data', 'distill', 'footprint', 'guard', 'imagenet', 'models', 'pretrained', 'sam', 'sharding',
    'step', 'storage', 'tasks', 'train', 'workdir',
  },
  'config': {
    'augment', 'checkpoint', 'data', 'models', 'optim', 'pretrained', 'sam', 'sharding', 'signatures', 'step',
    'tasks',
  },
  'report': {
    'checkpoint', 'draw', 'fetch', 'found', 'jobs', 'look', 'models', 'pretrained', 'sections', 'storage', 'transforms',
    'watch', '',
  },
  'found': {'data', 'metrics', 'pretrained', 'scores', 'sharding', 'state', 'step', 'tasks'},
  'probe': {
    'augment', 'console', 'data', 'fill', 'optim', 'pretrained', 'scores', 'sharding', 'sources', 'state', 'train',
    'tuning', 'storage',
  },
  'selftrain': {'config', 'durable', 'inference', 'jobs', 'pretrained', 'tables', 'watch', 'storage'},
  'sections': {'charts', 'scores', 'state'},
  'charts': set(),
  'scores': set(),
  'signatures': set(),
  'plan': {'console', 'machines', 'main'},
  'planned': {
    'bench', 'config', 'console', 'exchange', 'footprint', 'hlo', 'kernels', 'machines', 'models', 'optim',
    'sam', 'sharding', 'state', 'step', 'tasks', 'train', 'transforms', 'models/attention',
  },
  'footprint': {'bench', 'models', 'optim', 'pretrained', 'sharding', 'signatures', 'state', 'step', 'tuning'},
  'machines': {'console'},
  'exchange': set(),
  'kernels': {'hlo'},
  'hlo': set(),
  'bench': {'console', 'models', 'models/vit', 'pretrained', 'state', 'tuning'},
  'bench_input': {
    'console', 'data', 'memory', 'models', 'optim', 'pretrained', 'sharding', 'state', 'step', 'tasks',
  },
  'train': {
    'data', 'diskfull', 'distill', 'guard', 'health', 'hlo', 'metrics', 'models/attention', 'models/placement', 'optim',
    'pretrained', 'sam', 'sharding', 'state', 'step', 'tasks', 'watch', 'workdir',
  },
  'step': {'augment', 'models/placement', 'optim', 'sam', 'sharding', 'state', 'tuning'},
  'sam': {'models/placement'},
  'workdir': {
    'checkpoint', 'config', 'crops', 'data', 'guard', 'mirror', 'pretrained', 'sharding', 'state', 'storage', 'watch',
    'weights',
  },
  'watch': {'diskfull', 'durable', '', 'storage'},
  'durable': set(),
  'distill': {'augment', 'data', 'durable', 'pretrained', 'sharding', 'state', 'tasks'},
  'tasks': {'losses', 'metrics'},
  'losses': set(),
  'metrics': {'scores'},
  'imagenet': {'hub', 'listing', 'storage'},
  'look': {'augment', 'convert', 'models/positions', 'models/vit', 'pretrained', 'state', 'transforms'},
  'attribution': {'look'},
  'gallery': {'attribution', 'console', 'draw', 'look', 'tasks', 'transforms', 'storage'},
  'sheet': {
    'augment', 'config', 'console', 'crops', 'draw', 'operations', 'order', 'policies', 'storage', 'transforms',
  },
  'draw': set(),
  'serve': {
    'batching', 'counts', 'draw', 'gate', 'inference', 'look', 'pretrained', 'tasks', 'threads', 'transforms',
  },
  'space': {'draw', 'inference', 'look', 'pretrained', 'transforms'},
  'batching': set(),
  'counts': set(),
  'gate': set(),
  'inference': {'augment', 'listing', 'pretrained', 'sharding', 'state', 'tasks', 'threads', 'transforms', 'storage'},
  'optim': {'optimizers', 'sam', 'state', 'tuning'},
  'optimizers': set(),
  'tuning': {'state'},
  'sharding': {'models/placement', 'state'},
  'state': set(),
  'augment': {'mixing', 'policies'},
  'policies': {'operations'},
  'operations': set(),
  'mixing': set(),
  'data': {'crops', 'kept', 'order', 'sources', 'threads', 'transforms'},
  'kept': {'crops', 'memory', 'order', 'transforms'},
  'crops': {'jpegs', 'transforms'},
  'jpegs': set(),
  'threads': set(),
  'order': set(),
  'sources': {'archives', 'listing', 'records', 'shards', 'tables', 'storage'},
  'shards': {'listing', 'npz', 'records'},
  'prepare': {'console', 'diskfull', 'packing', 'records', 'shards', 'sources', 'threads', 'transforms', 'storage'},
  'packing': {'durable', 'guard', 'listing', 'shards', 'threads'},
  'archives': {'listing', 'npz', 'records', 'tables'},
  'records': {'listing', 'storage'},
  'tables': {'listing', 'npz', 'storage'},
  'listing': {'caches', 'storage'},
  'transforms': {'markers'},
  'check': {'console', 'diskfull', 'scan'},
  'scan': {'listing', 'markers', 'sources', 'threads', 'transforms', 'storage'},
  'markers': set(),
  'pretrained': {'convert', 'fill', 'hub', 'models', 'models/vit', 'state', 'weights', 'fetch'},
  'weights': {
    'checkpoint', 'convert', 'convert_clip', 'convert_hf', 'convert_npz', 'convert_timm', 'formats', 'models',
    'state', 'tuning', 'fetch', '',
  },
  'convert_clip': set(),
  'convert_timm': {'convert', 'models', 'models/vit'},
  'checkpoint': {'diskfull', 'durable', 'checkpoint_steps', 'checkpoint_items', 'checkpoint_seal'},
  'checkpoint_steps': {'durable', 'checkpoint_items', 'checkpoint_seal'},
  'checkpoint_items': {'npz', 'checkpoint_seal'},
  'checkpoint_seal': {'durable'},
  'diskfull': set(),
  'storage': {'caches', 'diskfull', 'guard', 'threads'},
  'lease': {'guard', 'storage'},
  'mirror': {'checkpoint_remote', 'checkpoint_steps', 'guard', 'lease', 'storage'},
  'fetch': {'checkpoint_remote', 'checkpoint_steps', 'formats', 'storage'},
  'checkpoint_remote': {'checkpoint_seal', 'checkpoint_steps', 'guard', 'storage'},
  'exports': {
    'convert', 'convert_hf', 'convert_npz', 'formats', 'models', 'models/vit', 'pretrained', 'programs', 'proofs',
    'state', 'transforms', 'storage',
  },
  'proofs': {
    'convert', 'convert_npz', 'formats', 'inference', 'models', 'models/vit', 'pretrained', 'programs', 'state',
    'tables',
  },
  'programs': {'augment', 'markers', 'pretrained', 'state', 'transforms', ''},
  'convert': {'memory', 'state'},
  'memory': set(),
  'fill': {'models', 'models/positions', 'state'},
  'convert_hf': {'convert', 'convert_hf_config', 'convert_hf_write', 'models'},
  'convert_hf_config': {
    'models', 'models/beit', 'models/deit', 'models/eva', 'models/hybrid', 'models/layers', 'models/mae',
    'models/resnet', 'models/vit',
  },
  'convert_hf_write': {'convert_hf_config', 'models', 'models/mae', 'models/resnet', 'models/vit', 'transforms'},
  'convert_npz': {'convert', 'describe_npz', 'models', 'state'},
  'describe_npz': {'models', 'models/vit', 'transforms'},
  'formats': {'memory', 'npz'},
  'npz': set(),
  'hub': {'caches', 'download', 'formats', 'manifest'},
  'download': {'formats'},
  'manifest': set(),
  'models/__init__': {
    'models/beit', 'models/deit', 'models/eva', 'models/hybrid', 'models/mae', 'models/mixer', 'models/resnet',
    'models/vit_variants',
  },
  'models/eva': {'models/beit', 'models/positions', 'models/vit'},
  'models/beit': {'models/blocks', 'models/layers', 'models/positions', 'models/vit'},
  'models/mae': {'models/blocks', 'models/layers', 'models/positions', 'models/vit'},
  'models/mixer': {'models/blocks', 'models/layers', 'models/vit'},
  'models/vit': {'models/blocks', 'models/layers', 'models/placement', 'models/positions'},
  'models/vit_variants': {'models/vit'},
  'models/deit': {'models/layers', 'models/vit'},
  'models/blocks': {'models/attention', 'models/layers', 'models/placement'},
  'models/resnet': {'models/blocks', 'models/layers'},
  'models/hybrid': {'models/layers', 'models/resnet', 'models/vit'},
  'models/attention': {'models/placement'},
  'models/layers': {'models/attention', 'models/placement'},
  'models/placement': set(),
  'models/positions': set(),
}  # fmt: skip
HEAVY = {
  'orbax', 'grain', 'tensorflow_datasets', 'cv2', 'simplejpeg', 'cykooz_resizer', 'matplotlib', 'tensorboardX', 'rich',
  'pyarrow', 'safetensors', 'huggingface_hub', 'torch', 'etils', 'fsspec', 'gradio',
}  # fmt: skip
# These must start without jax: the front door, and what runs on the host before a device is wanted.
WITHOUT_JAX = {
  '__init__', '__main__', 'check', 'cli', 'console', 'commands', 'discovery', 'share', 'main', 'signatures', 'scan',
  'markers', 'transforms', 'sources', 'records', 'listing', 'tables', 'archives', 'order', 'memory', 'manifest', 'hub',
  'npz', 'download', 'formats', 'guard', 'hosts', 'shards', 'prepare', 'packing', 'diskfull', 'bench_input',
  'plan', 'machines', 'caches', 'compilation', 'launch', 'storage', 'lease', 'crops', 'jpegs', 'kept',
}  # fmt: skip
FORBIDDEN = {
  r'nnx\.(jit|grad|value_and_grad|remat|scan|vmap|Optimizer|Metric|MultiMetric)\b': 'only pure dicts cross a transform',
  r'\bimport tensorflow\b|\bfrom tensorflow\b': 'TensorFlow is never needed',
  r'\bTODO\b|\bFIXME\b|\bXXX\b': 'finish it, or say in an issue what waits',
  r'\.get\(.*config|config\.get\(': 'a default lives in one signature',
}


def tree(name):
  return ast.parse(FILES[name].read_text(encoding='utf-8'))


def imports(nodes):
  """Full dotted names that the import statements among `nodes` bring in; 'from vit_jax import x' is vit_jax.x."""
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute here'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def script(node):
  """Whether this is `if __name__ == '__main__':`, where a module is a program and stands above everything."""
  return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def inside(name):
  """The modules of this package that one imports anywhere, as keys of FILES; '' for the package itself."""
  nodes = [n for statement in tree(name).body if not script(statement) for n in ast.walk(statement)]
  for full in imports(nodes):
    package, _, rest = full.partition('.')
    if package == 'vit_jax':
      path = rest.replace('.', '/')
      while path and path not in FILES and f'{path}/__init__' not in FILES:
        path = path.rpartition('/')[0]  # from vit_jax.models.layers import Block
      yield path


def at_top(name):
  """First words of what importing a module imports from elsewhere."""

  def walk(nodes):
    for node in nodes:
      if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not script(node):
        yield node
        yield from walk(ast.iter_child_nodes(node))

  return {full.partition('.')[0] for full in imports(walk(tree(name).body))}


def test_every_module_has_a_row_and_every_row_a_module():
  assert set(MAY_IMPORT) == set(FILES)
  assert len(FILES) <= 128


@pytest.mark.parametrize('name', FILES)
def test_who_imports_whom(name):
  assert set(inside(name)) <= MAY_IMPORT[name]


def test_imports_go_downwards_only():
  """No cycle: modules can be peeled off from the bottom until none is left."""
  left = {name.removesuffix('/__init__'): set(rows) - {''} for name, rows in MAY_IMPORT.items()}
  while left:
    bottom = [name for name, rows in left.items() if not rows & set(left)]
    assert bottom, f'a cycle among {sorted(left)}'
    for name in bottom:
      del left[name]


@pytest.mark.parametrize('name', FILES)
def test_heavy_packages_are_imported_where_they_are_used(name):
  assert not at_top(name) & HEAVY
  if name in WITHOUT_JAX:
    assert not at_top(name) & {'jax', 'flax', 'optax', 'ml_collections'}
  if name in ('__init__', '__main__', 'cli', 'console', 'commands'):
    assert at_top(name) - {'vit_jax'} <= sys.stdlib_module_names


@pytest.mark.parametrize('name', FILES)
def test_forbidden_words(name):
  forbidden_words(FILES[name].read_text(encoding='utf-8'))


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_configs_are_finished_and_say_how_they_are_run(path):
  text = path.read_text(encoding='utf-8')
  forbidden_words(text)
  if path.stem != '__init__':
    assert f'python -m vit_jax.main --config=configs/{path.name}' in ast.get_docstring(ast.parse(text))


def forbidden_words(text):
  for pattern, why in FORBIDDEN.items():
    found = re.search(pattern, text)
    assert not found, f'{found.group()}: {why}'


@pytest.mark.parametrize('name', [name for name in FILES if name.startswith('models/')])
def test_models_do_no_io(name):
  plain = {'contextlib', 'contextvars', 'difflib', 'fnmatch', 'functools', 'inspect', 'math', 'typing'}
  assert at_top(name) <= plain | {'flax', 'jax', 'numpy', 'vit_jax'}
  calls = {ast.unparse(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}
  assert not calls & {'open', 'print', 'exec', 'eval', 'jax.jit'}


@pytest.mark.parametrize('name', FILES)
def test_nothing_grows_too_large(name):
  lines = FILES[name].read_text(encoding='utf-8').splitlines()
  assert sum(bool(line.strip()) for line in lines) <= 300
  for node in ast.walk(tree(name)):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      assert node.end_lineno - node.lineno < 80, f'{node.name} has {node.end_lineno - node.lineno + 1} lines'


@pytest.mark.parametrize('name', [name for name in FILES if not name.endswith('__main__')])
def test_modules_and_public_functions_say_what_they_give(name):
  module = tree(name)
  assert ast.get_docstring(module)
  for node in module.body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
      assert ast.get_docstring(node), f'{name}.{node.name} has no docstring'


def test_no_module_bears_the_name_of_a_public_function():
  """Importing such a module would put it in the place of the function, as an attribute of the package."""
  functions = set(vit_jax.__all__) - {'models'}
  assert not functions & {name.partition('/')[0] for name in FILES}


def test_every_test_file_mirrors_a_module():
  known = {name.replace('/__init__', '').rpartition('/')[2] for name in FILES} | {
    'house', 'public', 'pages', 'notebooks', 'configs', 'finetune', 'models', 'parity', 'benchmarks', 'init', 'surgery',
    'untrusted', 'reliability', 'scale', 'gpu', 'growth',
  }  # fmt: skip
  assert {path.stem.removeprefix('test_') for path in (ROOT / 'tests').glob('test_*.py')} <= known


def test_packaging_names_every_package():
  import configparser

  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  packages = set(setup['options']['packages'].split())
  here = {'.'.join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob('__init__.py')}
  assert packages == here | {'vit_jax.configs'}
  data = setup['options.package_data']['vit_jax'].split()
  assert set(data) == {path.name for path in PACKAGE.iterdir() if path.suffix in ('.gz', '.csv', '.html')}
  requirements = setup['options']['install_requires'].split()
  assert not [line for line in requirements if re.search(r'<|==|~=', line)]  # caps only ever age
  assert all('>=' in line or line.startswith('vit_jax') for line in requirements)
