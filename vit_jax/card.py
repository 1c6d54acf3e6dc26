"""A model card: what a model is, how well it does, how it was trained and how it is loaded, as Markdown for a hub.

Every figure comes from the run's own files (run.json, metrics.jsonl, model.json) or from the manifest; what these do
not say is left out, and of a path only its last part is told. The front matter follows the hub's model card metadata
(huggingface.co/docs/hub/model-cards); sections as Mitchell et al., "Model Cards for Model Reporting", 2019.
"""

import datetime
import json
import math
import os
import re
import textwrap

from vit_jax import checkpoint, formats, watch

# Licences that the hub knows by these words; any other is 'other' with a name.
LICENCES = (
  'apache-2.0', 'mit', 'bsd-2-clause', 'bsd-3-clause', 'mpl-2.0', 'gpl-3.0', 'lgpl-3.0', 'agpl-3.0', 'openrail',
  'unlicense', 'cc0-1.0', 'cc-by-4.0', 'cc-by-sa-4.0', 'cc-by-nc-4.0', 'cc-by-nc-sa-4.0', 'apple-amlr', 'apple-ascl',
)  # fmt: skip
# Where the hub keeps what tfds prepares.
DATASETS = {
  'cifar10': 'uoft-cs/cifar10', 'cifar100': 'uoft-cs/cifar100', 'mnist': 'ylecun/mnist',
  'fashion_mnist': 'zalando-datasets/fashion_mnist', 'imagenet2012': 'ILSVRC/imagenet-1k', 'food101': 'ethz/food101',
}  # fmt: skip
RECIPE = {  # row: (section of the config, its keys in the order in which they are told)
  'optimizer': ('optim', 'name lr weight_decay mask momentum b2 clip ema freeze body_lr layer_decay lora'),
  'schedule': ('optim', 'schedule warmup cooldown'),
  'loss': ('task', 'loss label_smoothing target_threshold class_weights'),
  'crops': ('data', 'crop scale ratio interpolation'),
  'augmentation': ('augment', ''),
  'precision': ('step', 'dtype grad_dtype accumulate'),
}
NEUTRAL = {'body_lr': 1.0, 'layer_decay': 1.0, 'accumulate': 1}
SCORES = {  # of an evaluation: (the hub's word, name)
  'top1': ('accuracy', 'Top-1 accuracy'), 'top5': ('accuracy', 'Top-5 accuracy'),
  'map': ('mean_average_precision', 'Mean average precision'),
}  # fmt: skip
CLASSES = 20  # named in the card; config.json has all
FEATURES = 'image-feature-extraction'


def record(path):
  """What a run's files say: {'run', 'config', 'step', 'rows'}; run and config are {} where only weights were copied.

  path: WORKDIR or WORKDIR/checkpoints/STEP.   run: run.json.   config: the resolved one.   step: of the weights that
  this path means.   rows: of metrics.jsonl, as far as they are whole.
  """
  folder = checkpoint.find(path)[0]
  said = folder.parent.parent / 'run.json'
  run = formats.read_json(said) if said.exists() else {}
  config = run['config'] if run else {}
  return {'run': run, 'config': config, 'step': int(folder.name), 'rows': watch.rows(said.with_name('metrics.jsonl'))}


def evaluations(found):
  """The rows of a record that hold an evaluation of the weights it is of."""
  return [row for row in found['rows'] if row.keys() & SCORES.keys() and row['step'] == found['step']]


def write(repo, described, facts, *, layout, run=None, published=None):
  """The text of README.md.

  Args:
    repo: 'ORG/NAME', where it will be.   described: of the model, as pretrained.load gives it.   layout: 'timm', 'hf'.
    facts: class, parameters (a count), gflops (forward, one picture), auto (the class of transformers that opens it).
    run: a `record`, None where the weights are of no run.   published: the weights' row of the manifest, None where
    they are no published ones.
  """
  licence = described['licence']
  front = _front(described, layout, run, published, name=repo.partition('/')[2])
  parts = [
    '\n'.join(['---', *_yaml(front), '---']),
    f'# {repo.partition("/")[2]}',
    _summary(described, facts),
    '## How to load it',
    *_loading(repo, described, layout, facts['auto']),
    *(_results(described, run, published) if run or published else []),
    *(_training(described, run) if run and run['run'] else []),
    '## Intended use and limits',
    _limits(described, run),
    '## Licence',
    f'{licence}.' if licence else 'None is stated: ask the author before you use it.',
    *(_whole(run['config']) if run and run['config'] else []),
  ]
  return '\n\n'.join(parts) + '\n'


def _front(described, layout, run, published, *, name):
  """What the hub reads: {key: value}."""
  tells, licence, front = bool(described['architecture']['num_classes']), described['licence'], {}
  if licence:
    front |= {'license': licence} if licence in LICENCES else {'license': 'other', 'license_name': licence}
  task, library = 'image-classification' if tells else FEATURES, 'timm' if layout == 'timm' else 'transformers'
  tags = [task, 'vision-transformer', 'jax', 'vit_jax', *(['timm', 'transformers'] if layout == 'timm' else [])]
  front |= {'library_name': library, 'pipeline_tag': task, 'tags': tags}
  if published and published['repo']:
    front['base_model'] = published['repo']
  data = _data(run)
  if data in DATASETS:
    front['datasets'] = [DATASETS[data]]
  found = [row for row in (evaluations(run) if data else []) if math.isfinite(next(iter(_scores(row).values())))]
  if found:
    front['metrics'] = sorted({kind for row in found for kind, _ in _scores(row)})
    about = {'type': DATASETS.get(data, data), 'name': data}
    results = [
      {'task': {'type': task}, 'dataset': about | {'split': row.get('split', 'test')},
       'metrics': [{'type': kind, 'name': name, 'value': value} for (kind, name), value in _scores(row).items()]}
      for row in found
    ]  # fmt: skip
    front['model-index'] = [{'name': name, 'results': results}]
  return front


def _scalar(value):
  """A plain word as it is, anything else as JSON, which YAML reads too."""
  plain = isinstance(value, str) and re.fullmatch(r'[A-Za-z][\w/-]*(\.\d+)?', value)
  plain = plain and value.lower() not in ('y', 'n', 'yes', 'no', 'on', 'off', 'true', 'false', 'null')
  return value if plain else json.dumps(value, ensure_ascii=False)


def _yaml(value, indent=''):
  """Lines of YAML for nested dicts and lists."""
  if isinstance(value, dict):
    for key, one in value.items():
      if isinstance(one, (dict, list)):
        yield f'{indent}{key}:'
        yield from _yaml(one, indent + '  ' * isinstance(one, dict))
      else:
        yield f'{indent}{key}: {_scalar(one)}'
  else:
    for one in value:
      first, *rest = _yaml(one, indent + '  ') if isinstance(one, dict) else [_scalar(one)]
      yield f'{indent}- {first.strip()}'
      yield from rest


def _summary(described, facts):
  made, row = described['architecture'], described['preprocessing']
  h, w = row['size']
  size = f'{facts["parameters"] / 1e6:.3g} M parameters, {facts["gflops"]:.3g} GFLOPs for a picture'
  tells = f'tells {made["num_classes"]:,} classes apart in' if made['num_classes'] else 'gives features of'
  what = f'A `{described["name"]}` ({facts["class"]}; {size}) that {tells} pictures of {h} x {w} pixels.'
  names = described['classes'] or []
  told = ', '.join(names[:CLASSES]) + (f' and {len(names) - CLASSES:,} more' if len(names) > CLASSES else '')
  return what + (f'\n\nClasses: {told}.' if names else '')


def _loading(repo, described, layout, auto):
  """Headings and code for the libraries that read this layout."""
  tells, told = bool(described['architecture']['num_classes']), described['loss'] == 'sigmoid'
  squash, top = 'sigmoid()' if told else 'softmax(-1)', min(5, described['architecture']['num_classes'])
  ours = [
    'import vit_jax', '', f"model, described = vit_jax.load('hf_hub:{repo}')",
    *([f"for name, probability in vit_jax.predict(model, 'picture.jpg', top={top}):",
       "  print(f'{probability:.1%} {name}')"] if tells else []),
  ]  # fmt: skip
  parts = ['With vit_jax:', _code(ours)]
  if layout == 'timm':
    lines = [
      'import timm', 'import torch', 'from PIL import Image', '',
      f"model = timm.create_model('hf_hub:{repo}', pretrained=True).eval()",
      'data = timm.data.resolve_model_data_config(model)',
      'transform = timm.data.create_transform(**data, is_training=False)',
      "picture = transform(Image.open('picture.jpg').convert('RGB'))[None]",
      'with torch.no_grad():',
      f'  {f"probabilities = model(picture).{squash}" if tells else "features = model(picture)"}',
      *(["names = model.pretrained_cfg['label_names']",
         f'best = probabilities[0].topk({top})',
         'for probability, i in zip(best.values.tolist(), best.indices.tolist()):',
         "  print(f'{probability:.1%} {names[i]}')"] if tells and described['classes'] else []),
    ]  # fmt: skip
    parts += ['With timm:', _code(lines)]
  through = ' (which opens it through timm: `pip install timm`)' if layout == 'timm' else ''
  lines = [
    'import torch', 'from PIL import Image', f'from transformers import AutoImageProcessor, {auto}', '',
    f"processor = AutoImageProcessor.from_pretrained('{repo}')",
    f"model = {auto}.from_pretrained('{repo}').eval()",
    "picture = Image.open('picture.jpg').convert('RGB')",
    "pixels = processor(picture, return_tensors='pt')['pixel_values']",
    'with torch.no_grad():',
    *([f'  probabilities = model(pixels).logits.{squash}',
       'print(model.config.id2label[probabilities.argmax().item()])'] if auto.endswith('Classification')
      else ['  output = model(pixels)']),
  ]  # fmt: skip
  return [*parts, f'With transformers{through}:', _code(lines)]


def _code(lines):
  return '\n'.join(['```python', *lines, '```'])


def _table(head, rows):
  cell = lambda value: str(value).replace('|', '\\|')
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(map(cell, line))} |' for line in lines)


def _results(described, run, published):
  """A table of the evaluations on record, or of the figure that the publisher gives."""
  if run is None:
    told = f'ImageNet-1k, validation: top-1 {published["top1"]:g} %, as its publisher reports; not measured again.'
    return ['## Results', told] if published['top1'] else []
  found = evaluations(run)
  if not found:
    return ['## Results', 'These weights were not evaluated.']
  names = [name.removesuffix(' accuracy').lower() for _, name in _scores(found[0])]
  head = ['data', 'split', 'pictures', *names, 'loss']
  rows = [
    [_data(run) or 'arrays', row.get('split', 'test'), f'{row["examples"]:,}',
     *(f'{value:.2%}' for value in _scores(row).values()), f'{row["loss"]:.4g}']
    for row in found
  ]  # fmt: skip
  lost = sum(row.get('unreadable', 0) for row in found)
  note = f'The {described["weights"]} weights of the run, of step {run["step"]:,}'
  tried = sum(bool(row.keys() & SCORES.keys()) for row in run['rows']) // len(found)
  note += f', chosen for it among {tried} evaluations' if tried > 1 and described['weights'].startswith('best') else ''
  note += f'; {lost:,} pictures could not be read and are not counted.' if lost else '.'
  return ['## Results', _table(head, rows), note]


def _scores(row):
  """{(the hub's word, name): value} of an evaluation."""
  return {told: row[key] for key, told in SCORES.items() if key in row}


def _training(described, run):
  """Data, recipe, hardware and versions of a run."""
  about, config = run['run'], run['config']
  counts = [f'{about["data"][key]["examples"]:,} pictures to {word}'
            for key, word in (('train', 'train on'), ('test', 'test on')) if about['data'].get(key)]  # fmt: skip
  counts.append(f'{about["data"]["classes"]:,} classes')
  name = f'`{_data(run)}`' if _data(run) else 'arrays given in Python'
  devices, rows = about['devices'], [row for row in run['rows'] if 'lr' in row]
  hardware = f'{devices["count"]} x {devices["kind"]} ({devices["platform"]})'
  if rows and not any('resumed' in row for row in run['rows']):
    hardware += f', {datetime.timedelta(seconds=round(rows[-1]["seconds"]))} in all'
  versions = ', '.join(f'{name} {version}' for name, version in about['versions'].items() if version)
  return [
    '## Training', f'Data: {name}, {", ".join(counts)}.',
    _table(['what', 'how'], [*_recipe(described, config, about['data']).items(),
                      ('hardware', hardware), ('versions', versions)]),
  ]  # fmt: skip


def _recipe(described, config, counts):
  """{what: words} of a config."""
  steps, batch, rows = config['total_steps'], config['batch'], {}
  if 'model' in config:
    model, given = config['model'], config['model']['pretrained']
    start = f'weights of `{_bare(given)}`' if isinstance(given, str) else f'published weights of `{model["name"]}`'
    rows['start'] = start if given else 'random weights'
  epochs = f' ({steps * batch / counts["train"]["examples"]:.3g} epochs)' if counts.get('train') else ''
  rows['steps'] = f'{steps:,}, each of {batch:,} pictures{epochs}, seed {config["seed"]}'
  sections = config | {'augment': config['step'].get('augment') or {}}
  for row, (section, keys) in RECIPE.items():
    told = sections.get(section) or {}
    kept = {key: told[key] for key in keys.split() or told if key in told}
    words = [f'{key} {_words(value)}' for key, value in kept.items() if value and value != NEUTRAL.get(key)]
    if words:
      rows[row] = ', '.join(words).removeprefix('name ').removeprefix('schedule ').removeprefix('loss ')
  made = described['preprocessing']
  rows['evaluation'] = f'crop {made["crop"]}, crop_pct {made["crop_pct"]:.4g}, interpolation {made["interpolation"]}'
  return rows


def _words(value):
  """A value of a config in words: lists without brackets, the rest as it is written."""
  return ' to '.join(map(str, value)) if isinstance(value, list) else str(value)


def _data(run):
  """The name of a run's data set: without 'tfds:', of a path the last part; '' where it is not known."""
  section = run['config'].get('data') if run else None
  return _bare(section['name']).removeprefix('tfds:') if section else ''


def _bare(name):
  """A name without the folders that lead to it on the author's machine."""
  plain = name.startswith(('tfds:', 'hf_hub:'))
  return name if plain or os.sep not in name else os.path.basename(name.rstrip(os.sep))


def _limits(described, run):
  n = described['architecture']['num_classes']
  lines = []
  if n:
    lines.append(f'It gives each of its {n:,} classes a probability, and so one of them to any picture at all.')
  else:
    lines.append('It gives features, not classes: what they are good for depends on what is trained on them.')
  found = evaluations(run) if run else []
  if found:
    splits = ' and '.join(dict.fromkeys(row.get('split', 'test') for row in found))
    lines.append(f'It was evaluated on the split {splits} of {_data(run) or "its data"} alone: how it does on other '
                 'pictures, cameras or groups of people is not known, nor was it examined for bias.')  # fmt: skip
  lines.append('Test it on pictures like those it will see before anything that matters depends on it.')
  return textwrap.fill(' '.join(lines), 120)


def _whole(config):
  """The config in a fold, with which the run can be repeated."""
  tell = lambda value: ({key: tell(one) for key, one in value.items()} if isinstance(value, dict)
                        else _bare(value) if isinstance(value, str) else value)  # fmt: skip
  text = f'```json\n{json.dumps(tell(config), indent=2)}\n```'
  return ['<details><summary>The whole config</summary>', text, '</details>']
