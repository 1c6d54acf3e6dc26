"""The model card: what a run's files say is there, what they do not say is not, and the hub can read it."""

import json
import re

import pytest

from vit_jax import card, hub
from vit_jax import checkpoint_seal as seal

DESCRIBED = {
  'name': 'vit_tiny_patch16_224', 'architecture': {'num_classes': 2, 'img_size': 32}, 'classes': ['cat', 'dog'],
  'preprocessing': {'size': [32, 32], 'crop': 'center', 'crop_pct': 0.875, 'interpolation': 'bicubic'},
  'licence': 'apache-2.0', 'weights': 'best EMA', 'loss': 'softmax',
}  # fmt: skip
FACTS = {
  'class': 'VisionTransformer', 'parameters': 5_520_000, 'gflops': 0.1234, 'auto': 'AutoModelForImageClassification',
}  # fmt: skip
CONFIG = {
  'seed': 7, 'total_steps': 200, 'batch': 50,
  'model': {'name': 'vit_tiny_patch16_224', 'pretrained': '/home/ann/secret/start.npz'},
  'data': {'name': '/home/ann/secret/pets', 'crop': 'random', 'scale': [0.2, 1.0], 'data_dir': None},
  'task': {'loss': 'softmax', 'label_smoothing': 0.1},
  'optim': {'name': 'adamw', 'lr': 0.001, 'schedule': 'cosine', 'warmup': 0.1, 'layer_decay': 1.0, 'ema': 0.999},
  'step': {'dtype': 'bfloat16', 'accumulate': 1, 'augment': {'mixup': 0.2, 'flip': True}},
}  # fmt: skip
RUN = {
  'config': CONFIG, 'command': ['vit_jax', '--workdir=/home/ann/secret/runs'], 'folder': '/home/ann/secret',
  'data': {'train': {'examples': 1000}, 'test': {'examples': 40}, 'classes': 2},
  'versions': {'python': '3.12.1', 'jax': '0.9.0', 'optax': None},
  'devices': {'platform': 'gpu', 'kind': 'NVIDIA H200', 'count': 8, 'processes': 1},
}  # fmt: skip
ROWS = [
  {'step': 100, 'split': 'test', 'loss': 0.5, 'top1': 0.8, 'top5': 1.0, 'examples': 38, 'unreadable': 2},
  {'step': 200, 'loss': 0.3, 'lr': 1e-5, 'seconds': 3661.4},
  {'step': 200, 'split': 'test', 'loss': 0.4, 'top1': 0.9, 'top5': 1.0, 'examples': 38, 'unreadable': 2},
]


def text(described=DESCRIBED, *, layout='timm', run=RUN, rows=ROWS, step=200, published=None):
  """The card of a described model, of a run where one is given."""
  found = run and {'run': run, 'config': run['config'] if run else {}, 'step': step, 'rows': rows}
  return card.write('ann/pets', described, FACTS, layout=layout, run=found, published=published)


def front(written):
  """What the hub reads of a card."""
  yaml = pytest.importorskip('yaml', reason='PyYAML is not installed: it comes with huggingface_hub')
  return yaml.safe_load(written.split('---\n')[1])


def test_a_card_says_what_the_run_has_recorded():
  written = text()
  for words in (
    '# pets\n', '5.52 M parameters, 0.123 GFLOPs', 'tells 2 classes apart', '32 x 32 pixels', 'Classes: cat, dog.',
    '| pets | test | 38 | 90.00% | 100.00% | 0.4 |', 'best EMA weights of the run, of step 200',
    'chosen for it among 2 evaluations', '2 pictures could not be read', '1,000 pictures to train on',
    '40 pictures to test on', '| steps | 200, each of 50 pictures (10 epochs), seed 7 |',
    '| start | weights of `start.npz` |',
    '| optimizer | adamw, lr 0.001, ema 0.999 |', '| schedule | cosine, warmup 0.1 |', 'softmax, label_smoothing 0.1',
    '| augmentation | mixup 0.2, flip True |', 'scale 0.2 to 1.0', '| precision | dtype bfloat16 |',
    '8 x NVIDIA H200 (gpu), 1:01:01 in all', 'python 3.12.1, jax 0.9.0 |', '## Licence\n\napache-2.0.',
    'the split test of pets alone',
  ):  # fmt: skip
    assert words in written.replace('\ntest', ' test'), words
  whole = json.loads(re.search(r'```json\n(.*?)```', written, re.DOTALL)[1])
  bare = {'data': CONFIG['data'] | {'name': 'pets'}, 'model': CONFIG['model'] | {'pretrained': 'start.npz'}}
  assert whole == CONFIG | bare
  assert 'secret' not in written and 'optax' not in written  # paths of the author's machine are nobody's business


def test_the_hub_reads_the_front_matter():
  said = front(text())
  assert said['license'] == 'apache-2.0' and said['library_name'] == 'timm'
  assert said['pipeline_tag'] == 'image-classification' and {'timm', 'transformers', 'vit_jax'} <= set(said['tags'])
  result = said['model-index'][0]['results'][0]
  assert result['dataset'] == {'type': 'pets', 'name': 'pets', 'split': 'test'}
  assert [metric['value'] for metric in result['metrics']] == [0.9, 1.0] and said['metrics'] == ['accuracy']
  assert 'datasets' not in said and 'base_model' not in said
  known = RUN | {'config': CONFIG | {'data': {'name': 'tfds:cifar10'}}}
  assert front(text(run=known))['datasets'] == ['uoft-cs/cifar10'] and '`cifar10`' in text(run=known)
  said = front(text(DESCRIBED | {'licence': 'dinov3-license'}))
  assert (said['license'], said['license_name']) == ('other', 'dinov3-license')


def test_the_hubs_own_client_reads_the_results():
  client = pytest.importorskip('huggingface_hub', reason='huggingface_hub is not installed: pip install .[hub]')
  results = client.ModelCard(text()).data.eval_results
  assert [(one.metric_name, one.metric_value, one.dataset_split) for one in results] == [
    ('Top-1 accuracy', 0.9, 'test'), ('Top-5 accuracy', 1.0, 'test'),
  ]  # fmt: skip


@pytest.mark.parametrize(
  'value', ['a: b', '#1', "it's", 'no', '1.0', 'ä\nb', '- x', '[x]', '', True, None, 0.1, 'mit', 'a/b-c.0']
)
def test_any_text_survives_the_front_matter(value):
  written = '\n'.join(card._yaml({'a': value, 'b': [value, {'c': value, 'd': {'e': value}}]}))
  yaml = pytest.importorskip('yaml', reason='PyYAML is not installed: it comes with huggingface_hub')
  assert yaml.safe_load(written) == {'a': value, 'b': [value, {'c': value, 'd': {'e': value}}]}


def test_what_is_not_known_is_left_out():
  bare = DESCRIBED | {'licence': None, 'classes': None}
  written = text(bare, run=None)
  assert not any(words in written for words in ('## Results', '## Training', 'Classes:', 'license:', 'model-index'))
  assert 'None is stated' in written and "['label_names']" not in written
  only_weights = {'run': {}, 'config': {}, 'step': 200, 'rows': []}
  written = card.write('ann/pets', bare, FACTS, layout='timm', run=only_weights)
  assert 'These weights were not evaluated.' in written and '## Training' not in written
  resumed = text(rows=[*ROWS, {'resumed': 100, 'time': 'now'}])
  assert '1:01:01' not in resumed and 'NVIDIA H200' in resumed  # the seconds are those of the last session
  other = text(step=100)
  assert '80.00%' in other and '90.00%' not in other  # the figure is that of the weights
  worst = text(rows=[ROWS[2] | {'top1': float('nan')}])
  assert 'model-index' not in front(worst)
  python = {key: CONFIG[key] for key in ('seed', 'total_steps', 'batch', 'step')} | {'optim': None}  # as fit writes it
  written = text(run=RUN | {'config': python})
  assert 'arrays given in Python' in written and '| optimizer' not in written and 'model-index' not in front(written)


def test_a_published_model_names_its_source_and_figure():
  row = hub.row('vit_tiny_patch16_224.augreg_in21k_ft_in1k')
  written = text(run=None, published=row)
  assert front(written)['base_model'] == row['repo'] and 'top-1 75.454 %, as its publisher reports' in written


def test_each_layout_and_head_has_its_own_code():
  blocks = lambda written: re.findall(r'```python\n(.*?)```', written, re.DOTALL)
  hf = blocks(text(layout='hf'))
  assert len(hf) == 2 and 'import vit_jax' in hf[0] and 'transformers' in hf[1]
  assert front(text(layout='hf'))['library_name'] == 'transformers'
  ours, timm, transformers = blocks(text(DESCRIBED | {'loss': 'sigmoid'}))
  assert 'sigmoid()' in timm and 'sigmoid()' in transformers and 'softmax' not in timm + transformers
  assert 'top=2' in ours and 'topk(2)' in timm
  headless = DESCRIBED | {'architecture': {'num_classes': 0, 'img_size': 32}, 'classes': None}
  facts = FACTS | {'auto': 'AutoModel'}
  written = card.write('ann/pets', headless, facts, layout='timm')
  assert front(written)['pipeline_tag'] == 'image-feature-extraction' and 'gives features' in written
  for block in blocks(written):
    compile(block, 'card', 'exec')
    assert 'probabilities' not in block and 'predict' not in block


def test_a_record_is_of_the_weights_that_a_path_means(tmp_path):
  for step in (20, 40):
    (tmp_path / f'checkpoints/{step}/info').mkdir(parents=True)
    (tmp_path / f'checkpoints/{step}/info/metadata').write_text(json.dumps({'score': None}))
    seal.write(tmp_path / f'checkpoints/{step}', str(step))
  (tmp_path / 'metrics.jsonl').write_text('{"step": 20, "top1": 0.5}\n{"step": 40, "top1": 0.6}\n{"step": 60, "to')
  found = card.record(tmp_path / 'checkpoints/20')
  assert found['step'] == 20 and found['run'] == {} == found['config']
  assert card.evaluations(found) == [{'step': 20, 'top1': 0.5}] and len(found['rows']) == 2  # the last is torn
