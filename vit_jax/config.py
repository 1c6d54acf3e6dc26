"""Configs: found by name, loaded, overridden, and checked against the signatures of the functions they feed.

A config is a ConfigDict: a few keys of the whole run (`top_level`), and one dict of keyword arguments for each function
in `functions()`. No default is written down here: `resolve` reads them, and the types, from the signatures.
"""

import ast
import copy
import difflib
import inspect
import pathlib
import traceback
import types
import typing

from ml_collections import ConfigDict

from vit_jax.signatures import MISFIT, REQUIRED, called, choices, english, fit, meant, plain, signature

# Arguments that train.py fills in from its own context, by section; a config may not name them.
CONTEXT = {
  'model': ('seed',),
  'data': ('size', 'classes'),
  'task': ('classes',),
  'optim': ('total_steps',),
  'save': ('workdir', 'elsewhere'),
  'mesh': ('devices',),
}
WORDS = {'true': True, 'false': False, 'none': None}


def top_level(
  *,
  job: typing.Literal['train', 'evaluate', 'inference_time'] = 'train',
  seed: int = 0,
  total_steps: int,
  batch: int = 128,
  batch_eval: int | None = None,
  log_every: int = 50,
  eval_every: int | None = None,
  deterministic: bool = False,
  profile: list[int] | None = None,
  watchdog: float | None = 600,
):
  """The keys of the whole run, checked, as a dict.

  batch and batch_eval (None: the same) count images over all devices. eval_every=None evaluates once, at the end.
  profile=[first, last] traces these steps with jax.profiler. deterministic also forbids kernels whose sums may be
  taken in another order. watchdog: after so many seconds without progress, all stacks are shown.
  """
  batch_eval = batch if batch_eval is None else batch_eval
  if eval_every == 0:
    raise ValueError('config.eval_every = 0: to evaluate only once, at the end, say None.')
  counts = {'total_steps': total_steps, 'batch': batch, 'batch_eval': batch_eval, 'log_every': log_every}
  for key, value in (counts | {'eval_every': eval_every}).items():
    if value is not None and value < 1:
      raise ValueError(f'config.{key} = {value}: at least 1 is wanted.')
  if profile is not None and not (len(profile) == 2 and 0 <= profile[0] <= profile[1]):
    raise ValueError(f'config.profile = {profile}: [first step, last step] is wanted.')
  if watchdog is not None and watchdog <= 0:
    raise ValueError(f'config.watchdog = {watchdog}: seconds are wanted, or None for no watchdog.')
  rest = {'eval_every': eval_every, 'deterministic': deterministic, 'profile': profile, 'watchdog': watchdog}
  return {'job': job, 'seed': seed} | counts | rest


def functions():
  """{section: the function that takes its keys}; '' is the top level. Imports jax."""
  from vit_jax import augment, checkpoint, data, optim, pretrained, sam, sharding, tasks
  from vit_jax import step as step_lib

  return {
    '': top_level,
    'model': pretrained.create_model,
    'data': data.load,
    'task': tasks.make,
    'optim': optim.make,
    'optim.sam': sam.Sam,
    'step': step_lib.Step,
    'step.augment': augment.make,
    'save': checkpoint.Checkpoints,
    'mesh': sharding.make_mesh,
  }


# -- files


def folder():
  """The folder of the shipped configs: inside the package in a wheel, beside it in a checkout."""
  package = pathlib.Path(__file__).parent
  inside = package / 'configs'
  return inside if inside.is_dir() else package.parent / 'configs'


def names():
  """The names of the shipped configs, sorted."""
  return sorted(path.stem for path in folder().glob('*.py') if not path.stem.startswith('_'))


def find(spec):
  """(path, args) of 'PATH.py[:ARGS]' or 'NAME[:ARGS]'; `configs/NAME.py` that is not here means the shipped one."""
  if '.py:' in spec:
    name, args = spec.split('.py:', 1)
    name += '.py'
  else:
    name, _, args = (spec, '', '') if spec.endswith('.py') else spec.partition(':')
  path = pathlib.Path(name)
  shipped = path.suffix != '.py' or (str(path.parent) == 'configs' and not path.exists())
  found = folder() / f'{path.stem}.py' if shipped else path
  if not found.is_file() or (shipped and path.stem not in names()):
    end, shown = meant(path.stem, names()) or '.', ', '.join(names())
    raise FileNotFoundError(f'There is no config {name!r}{end} Shipped: {shown}. Your own: --config=PATH.py.')
  return found, args


def load(spec):
  """The ConfigDict that the config file's get_config(args) gives for --config=`spec`.

  The file is run, so it can do what any Python file can. Its errors become a ValueError that names file and line.
  """
  path, args = find(spec)
  module = {'__name__': f'vit_jax.configs.{path.stem}', '__file__': str(path)}
  try:
    exec(compile(path.read_bytes(), str(path), 'exec'), module)  # no import: that would leave a __pycache__ behind
    if 'get_config' not in module:
      raise ValueError('there is no function get_config(args) in it.')
    if args and not inspect.signature(module['get_config']).parameters:
      raise ValueError(f'its get_config() takes no arguments, but :{args} was given.')
    config = module['get_config'](*([args] if args else []))
  except (ValueError, OSError) as e:
    raise ValueError(f'{path}: {e}') from e
  except SyntaxError as e:
    raise ValueError(f'{path}:{e.lineno}: {e.msg}') from e
  except Exception as e:
    lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)]
    raise ValueError(f'{path}:{lines[-1] if lines else 1}: {type(e).__name__}: {e}') from e
  if not isinstance(config, ConfigDict):
    raise ValueError(f'{path}: get_config() gave a {type(config).__name__}, not an ml_collections.ConfigDict.')
  return config


# -- overrides


def literal(text):
  """The Python value that `text` spells (1e3, none, (0.5, 1)), else `text` itself: plain words are strings."""
  try:
    return WORDS[text.lower()] if text.lower() in WORDS else ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def override(config, overrides):
  """A copy of the ConfigDict with {'a.b': text} put in; fields that refer to an overridden one follow it."""
  config = copy.deepcopy(config)
  for name, text in overrides.items():
    *parents, leaf = name.split('.')
    node = config
    with config.ignore_type(), config.unlocked():
      for key in parents:
        if node.get(key) is None:
          node[key] = ConfigDict()
        node = node[key]
        if not isinstance(node, ConfigDict):
          raise ValueError(f'--config.{name}={text}: {key} is a value, not a group of keys.')
      node[leaf] = literal(text)
  return config


# -- checks


def resolve(config, overrides=types.MappingProxyType({})):
  """The whole config as plain nested dicts: overrides applied, every key checked, every default filled in.

  Values are plain data (None, bool, int, float, str, list, dict), so run.json holds the same. Of the architecture only
  the given keys are there: the rest is the variant's, or the weights'.
  """
  table = functions()
  resolved = _section('', override(config, overrides).to_dict(), table, overrides)
  resolved |= top_level(**{key: value for key, value in resolved.items() if key not in table})
  # What needs neither data nor a device refuses its values now, before anything is read.
  table['optim'](**resolved['optim'], total_steps=resolved['total_steps'])
  table['task'](**resolved['task'], classes=['no', 'yes'])
  table['step'](**resolved['step'])
  table['step.augment'](**resolved['step']['augment'])
  return resolved


def _section(path, given, table, texts):
  """The keys of one section and of those below it: checked, converted, filled with the signature's defaults."""
  taken = signature(table[path], CONTEXT.get(path, ()))
  children = [name.rpartition('.')[2] for name in table if name and name.rpartition('.')[0] == path]
  optional = architecture(given['name']) if path == 'model' and isinstance(given.get('name'), str) else {}
  for key in given:
    if key not in taken and key not in children and key not in optional:
      raise ValueError(_unknown(path, key, [*taken, *children, *optional], table))
  out, taker = {}, _taker(path, table)
  for key, (kind, default) in (taken | optional | taken).items():  # in the signature's order, and its values
    name = _join(path, key)
    if key in children:
      continue
    if key in given:
      out[key] = _checked(name, given[key], kind, default, taker, texts.get(name))
    elif default is REQUIRED:
      raise ValueError(f'config.{name} is missing: {taker} needs it.')
    elif key in taken:
      out[key] = plain(default)
  for key in children:
    name, child = _join(path, key), given.get(key, {})
    if not isinstance(child, dict):
      raise ValueError(f'config.{name} = {child!r}: a group of keys is wanted, as in config.{name}.KEY.')
    out[key] = _section(name, child, table, texts)
  return out


def architecture(name, weights=False):
  """{key: (type, value)} of the architecture keys of model `name`: values of the run `weights`, else the variant's."""
  from vit_jax import models, pretrained

  kinds = signature(models.variant(pretrained.named(name)[0])[0])
  return {key: (kinds[key][0], plain(value)) for key, value in pretrained.architecture_of(name, weights).items()}


def _checked(name, value, kind, default, wanting, text):
  """`value` as plain data of type `kind`; a flag's words stay words where text is wanted (a folder named 2024)."""
  value = plain(value)
  if default is not REQUIRED and value == plain(default):
    return plain(default)
  fitted = fit(value, kind)
  if fitted is MISFIT and text is not None:
    fitted = fit(text, kind)
  if fitted is MISFIT:
    raise ValueError(f'config.{name} = {value!r}: {wanting} wants {english(kind)}{meant(str(value), choices(kind))}.')
  return fitted


def _unknown(path, key, known, table):
  """The sentence about a key that nobody takes: who was asked, and which key was meant, here or elsewhere."""
  keys = {section: signature(function, CONTEXT.get(section, ())) for section, function in table.items()}
  near = [_join(path, word) for word in difflib.get_close_matches(key, known, 1)]
  near += [_join(section, key) for section in keys if key in keys[section]]
  hint = f'did you mean config.{near[0]}?' if near else f'its keys are {" ".join(known)}.'
  return f'config.{_join(path, key)}: {_taker(path, table)} takes no {key!r}; {hint}'


def _taker(path, table):
  """Who takes the keys of a section, in words for a person."""
  return called(table[path]) if path else 'a run'


def _join(path, key):
  return f'{path}.{key}' if path else key


def defaults():
  """{'a.b': default, or REQUIRED} of every key that the signatures have; imports jax."""
  return {
    _join(path, key): plain(default)
    for path, function in functions().items()
    for key, (_, default) in signature(function).items()
  }


# -- what a person sees


def flat(config, path=''):
  """{'a.b': value} of nested dicts, in their order."""
  found = {}
  for key, value in config.items():
    found |= flat(value, _join(path, key)) if isinstance(value, dict) else {_join(path, key): value}
  return found


def show(config, overrides=types.MappingProxyType({})):
  """The resolved config as text, one leaf a line, marked where a flag or the file says other than the default."""
  resolved = resolve(config, overrides)
  made = architecture(resolved['model']['name'], resolved['model']['pretrained'])
  fixed = {key: value for key, (_, value) in made.items()}
  resolved['model'] |= {key: value for key, value in fixed.items() if key not in resolved['model']}
  usual = flat({'model': fixed}) | defaults()
  written, lines = flat(plain(config.to_dict())), []
  for key, value in flat(resolved).items():
    default, marks = usual.get(key, REQUIRED), []
    if key in overrides:
      marks = ['flag', f'config: {written[key]!r}'] if key in written else ['flag']
    elif key in written and value != default:
      marks = ['config']
    if marks and default is not REQUIRED:
      marks.append(f'default: {default!r}')
    lines.append((f'{key} = {value!r}', '; '.join(marks)))
  width = min(48, max(len(text) for text, _ in lines))
  return '\n'.join(f'{text:<{width}}  # {marks}' if marks else text for text, marks in lines)
