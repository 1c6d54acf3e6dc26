"""Weights of any origin behind one face: what they are, and {path of ours: array}, read one array at a time.

A run's folder, a folder of timm or Hugging Face, a Google or big_vision .npz, a bare .safetensors, and, where pickle is
allowed, .pth: each says what it holds by a file beside it, by its shapes, or not at all; then it takes a name.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
import json
import pathlib
import re

import jax
import numpy as np

import vit_jax
from vit_jax import (
  checkpoint,
  convert,
  convert_clip,
  convert_hf,
  convert_npz,
  convert_timm,
  fetch,
  formats,
  models,
  state,
  tuning,
)

SIDE = 4096  # pixels of a picture that a file may ask for
FORMAT = 1  # of model.json; a larger one cannot be read by this version
FILES = ('.npz', '.safetensors', '.safetensors.index.json', '.pth', '.pt', '.bin')
# What PyTorch keeps beside its weights and no output depends on, or what was of use in pre-training only.
BUFFERS = ('num_batches_tracked', 'relative_position_index', 'mask_token', 'periods', 'attn_mask')


@dataclasses.dataclass(frozen=True)
class Weights:
  """What open_weights found.

  path: of the file or folder.   form: 'run', 'timm', 'hf' or 'npz'.   described: name, architecture (every argument, so
  that the model of the file can be built), preprocessing (a row of transforms.py) and classes, or None for these two,
  and weights, which ones these are.   arrays: the file's, lazily.   entries: model -> convert.Entry for each array.
  ignored: key -> whether it may be there although the model has no use for it.   built: the abstract model, if known.
  """

  path: pathlib.Path
  form: str
  described: dict
  arrays: Mapping
  entries: Callable
  ignored: Callable = lambda key: False
  built: object = None

  @functools.cached_property
  def model(self):
    """The model of the file, shapes in place of arrays."""
    with _sane(self.path):
      return self.built or models.abstract(self.described['name'], **self.described['architecture'])

  def converted(self):
    """{path of ours: array} of the whole file, strictly: ValueError that lists all that is not as described."""
    with _sane(self.path):
      entries = self.entries(self.model)
      lines = convert.differences(entries, self.arrays.shapes, self.ignored)
    if lines:
      raise ValueError(
        f'{self.path} does not fit {self.described["name"]} ({len(lines)} differences); it looks like '
        f'{looks(self.arrays.shapes)}. {"; ".join(lines)}'
      )
    return convert.Converted(entries, self.arrays)


def open_weights(path, *, arch=None, overrides=None, numerics=None, unsafe=False):
  """The Weights at a path: nothing but names, shapes and descriptions is read; what is at an address is fetched.

  arch: name of the architecture, for a file that does not say.   overrides: arguments that change it.   numerics: how
  an .npz is to be understood, 'google' (as it was trained) or 'timm'.   unsafe: whether .pth may be read, by torch.

  Raises ValueError or FileNotFoundError in one line: no such path, damaged, or not known what it is.
  """
  path = pathlib.Path(fetch.local(path)).expanduser().absolute()
  with _sane(path):
    found = _open(path, arch, overrides, numerics, unsafe)
    _check(found.described)
  return found


def _open(path, arch, overrides, numerics, unsafe):
  """The Weights of open_weights, whose description may still be nonsense."""
  if numerics not in (None, 'google', 'timm'):
    raise ValueError(f"numerics is {numerics!r}; choose 'google' (as the file was trained) or 'timm' (as timm does).")
  if path.is_dir() and not (path / 'config.json').exists() and _single(path) is None:
    return _run(path)
  if not path.exists():
    raise FileNotFoundError(
      f'There is no {path}: give the workdir of a run, a folder or file of weights, a name of `vit_jax list models`, '
      'or hf_hub:ORG/REPOSITORY.'
    )
  file = _single(path) if path.is_dir() else path
  if file is None:
    raise ValueError(f'{path} has a config.json and no weights beside it; put model.safetensors there.')
  arrays = formats.open_arrays(file, unsafe=unsafe)
  config = _json(file.parent / 'config.json')
  if numerics is not None and file.suffix != '.npz':
    raise ValueError(f'numerics={numerics!r} says how an .npz is to be understood; {file.name} says it itself.')
  if file.suffix == '.npz':
    return _npz(file, arrays, arch, overrides, numerics or 'google')
  if 'model_type' in config and not _timm_keys(arrays.shapes):
    return _ours(file, _hf(file, arrays, config))
  if convert_clip.is_clip(arrays.shapes):
    return _timm(file, convert_clip.Tower(arrays), {}, arch, overrides)
  return _ours(file, _timm(file, arrays, config, arch, overrides))


@contextlib.contextmanager
def _sane(path):
  """Has what a nonsensical description leads to, far below, become a ValueError of one line."""
  try:
    yield
  except FileNotFoundError:
    raise
  except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
    reason = (str(error).strip() or 'it says nothing').splitlines()[0]
    if isinstance(error, ValueError) and (reason.endswith('.') or str(path) in reason):  # ours, and no library's words
      raise ValueError(reason) from error
    raise ValueError(f'{path} describes no model ({type(error).__name__}: {reason}).') from error


def _check(described):
  """Raises ValueError for a description that says something else than names, rows and lists."""
  words = lambda value: value is None or isinstance(value, list) and all(isinstance(word, str) for word in value)
  if described['name'] is not None:
    models.canonical(described['name'])
  if not (described['name'] is None or isinstance(described['architecture'], dict)):
    raise ValueError(f'architecture is {described["architecture"]!r:.80}; wanted the arguments of a model.')
  for key in ('classes', 'ids'):
    if not words(described.get(key)):
      raise ValueError(f'{key} are {described[key]!r:.80}; wanted a list of names.')
  row = described.get('preprocessing')
  if row is not None:
    size, colours = row['size'], [*row['mean'], *row['std']]
    if not (len(size) == 2 and all(type(n) is int and 0 < n <= SIDE for n in size)):
      raise ValueError(f'Pictures of size {size!r:.80} are wanted by it; at most {SIDE} pixels a side can be.')
    if not (len(colours) == 6 and all(isinstance(value, (int, float)) for value in colours)):
      raise ValueError(f'mean and std are {colours!r:.80}; wanted three numbers each.')


def _ours(file, found):
  """The Weights of a file, described by the model.json that `vit_jax hub push` put beside it, where there is one."""
  described = _said(file.parent / 'model.json')
  if not {'name', 'architecture'} <= set(described):
    return found
  return dataclasses.replace(found, described=described | {'weights': file.name}, built=None)


def _single(folder):
  """The one file of weights in a folder, in its usual spelling or as the only one there; None if there is none."""
  for name in ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin'):
    if (folder / name).exists():
      return folder / name
  found = sorted(one for one in folder.iterdir() if one.name.endswith(FILES))
  if len(found) > 1:
    raise ValueError(f'{folder} holds {len(found)} files of weights ({", ".join(f.name for f in found)}); name one.')
  return found[0] if found else None


def _json(path):
  try:
    found = formats.read_json(path)
  except FileNotFoundError:
    return {}
  if not isinstance(found, dict):
    raise ValueError(f'{path} holds no object but {found!r:.40}; fetch it again.')
  return found


def describe_run(folder):
  """The content of model.json for a step's folder: what the weights are, without the config that made them."""
  path = folder.parent.parent / 'model.json'
  described = _said(path)
  if not described:
    raise ValueError(f'{path} is missing: it says what the weights beside it are; copy it from the original run.')
  return described


def _said(path):
  """The content of a model.json, {} where there is none; ValueError for what only a newer version can read."""
  described = _json(path)
  by, here = described.get('version') or '', vit_jax.__version__
  if described.get('format', FORMAT) > FORMAT or _release(by) > _release(here) and not _known(described):
    raise ValueError(f'{path} was written by vit_jax {by}, this is {here}: pip install -U vit_jax, and load it again.')
  return described


def _release(version):
  """(0, 12, 1) of '0.12.1.dev3'."""
  return tuple(int(part) for part in re.match(r'[\d.]*', version)[0].split('.') if part)


def _known(described):
  """Whether this version has the architecture of a description, and all of its arguments."""
  try:
    return described['name'] is None or bool(models.architecture(described['name'], **described['architecture']))
  except ValueError:
    return False


def stamped(described):
  """The content of model.json for a description: with its format, and who wrote it; not which weights these are."""
  kept = {key: value for key, value in described.items() if key != 'weights'}
  return kept | {'format': FORMAT, 'version': vit_jax.__version__}


class _Tree(Mapping):
  """A nested dict of arrays as {path: array} with shapes."""

  def __init__(self, tree):
    self._leaves = state.flatten(tree)
    self.shapes = {path: tuple(leaf.shape) for path, leaf in self._leaves.items()}

  def __getitem__(self, path):
    return self._leaves[path]

  def __iter__(self):
    return iter(self._leaves)

  def __len__(self):
    return len(self._leaves)


def _run(path):
  folder, which = checkpoint.find(path)
  described = describe_run(folder) | {'weights': which}
  tree = run_arrays(folder)
  arrays = _Tree(state.combine(tree['params'], tree['rest'] or {}))

  def entries(model):
    found = convert.layouts(model)
    return [convert.Entry(p, shape, (p,), shape, tuple(range(len(shape)))) for p, (shape, _, _) in found.items()]

  return Weights(path, 'run', described, arrays, entries)


def run_arrays(folder):
  """{'params', 'rest'} of a step's folder as nested dicts of numpy arrays; params are the averaged ones if any."""
  name = 'ema' if (folder / 'ema').is_dir() else 'params'
  tuned = (folder / 'frozen').is_dir()  # some parameters were not trained, or have adapters: see tuning.py
  arrays = checkpoint.read(folder, (name, 'rest', 'frozen') if tuned else (name, 'rest'))
  params = tuning.merged(arrays[name], arrays.get('frozen', {}))
  return {'params': jax.tree.map(np.asarray, params), 'rest': arrays['rest']}


def _hf(file, arrays, config):
  preprocessor = _json(file.parent / 'preprocessor_config.json') or None
  kind = config['model_type']
  if kind not in convert_hf.MODEL_TYPES:
    known = ', '.join(convert_hf.MODEL_TYPES)
    raise ValueError(f'{file.parent} is a {kind!r} model of Hugging Face; there are {known}.')
  described = convert_hf.describe(config, preprocessor, arrays.shapes)
  return Weights(
    file, 'hf', _described(described, file), arrays,
    lambda model: convert_hf.entries(model, config, arrays.shapes),
    lambda key: convert_hf.ignored(key, kind, arrays.shapes),
  )  # fmt: skip


def _npz(file, arrays, arch, overrides, numerics):
  arrays = convert_npz.normal(arrays)
  told = {key: value for key, value in (overrides or {}).items() if key in ('img_size', 'pos_embed')}
  described = convert_npz.describe(arrays.shapes, numerics=numerics, name=arch, **told)
  return Weights(
    file, 'npz', _described(described, file), arrays,
    lambda model: convert_npz.entries(model, arrays.shapes), convert_npz.ignored,
  )  # fmt: skip


def _described(found, file):
  """One form for what a format's describe gives."""
  architecture = found['architecture'] | {'num_classes': found['num_classes']}
  optional = {key: found.get(key) for key in ('preprocessing', 'classes')}
  return {'name': found['name'], 'architecture': architecture, **optional, 'weights': file.name}


def _timm_keys(shapes):
  return any(key.startswith(('blocks.', 'patch_embed.', 'stages.', 'stem.')) for key in shapes)


def _timm(file, arrays, config, arch, overrides):
  says = config or {key: _value(value) for key, value in arrays.metadata.items()}
  described, model = convert_timm.describe(arrays.shapes, says, _is_buffer, name=arch, overrides=overrides, file=file)
  return Weights(file, 'timm', described | {'weights': file.name}, arrays, convert.timm, _is_buffer, model)


def _is_buffer(key):
  return key.rpartition('.')[2] in BUFFERS


def _value(text):
  """What a safetensors metadata string holds: JSON where it is, else the text."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return text


def looks(shapes):
  """What a file seems to be, in a few words, by its names and shapes alone."""
  if any(key.startswith(('Transformer/', 'embedding/', 'MixerBlock_0', 'resnet/')) for key in shapes):
    return convert_npz.looks(shapes)
  return convert_timm.looks(shapes)
