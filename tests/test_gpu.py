"""benchmarks/gpu.py without a GPU: its plan, FLOPs, groups and rows, processes that fail, and one tiny section."""

import argparse
import json
import subprocess
import sys

import pytest
import scripts

from vit_jax import bench, models


@pytest.fixture(scope='module')
def gpu():
  return scripts.benchmark('gpu')


def command(*args):
  done = subprocess.run([sys.executable, scripts.FOLDER / 'gpu.py', *map(str, args)], capture_output=True, text=True)
  return done.returncode, done.stdout, done.stderr


def test_flops_are_those_of_the_facts_and_of_the_program(gpu):
  sections = gpu.gpu_sections
  found = [round(sections.gigaflops(**sections.sizes(name), train=True), 2) for name in ('s16', 'b16', 'l16', 'h14')]
  assert found == [27.48, 105.15, 369.02, 1003.39]
  tiny = sections.sizes('b16', tiny=True)
  made = models.abstract('vit_base_patch16_224', embed_dim=48, depth=2, num_heads=3, img_size=32)
  counted = bench.forward_gflops(made, 32)  # with norms, softmax and GELU, which are much of so small a model
  assert sections.gigaflops(**tiny, train=False) == pytest.approx(counted, rel=0.2)
  assert sections.gigaflops(**tiny, train=False) < counted


def test_sections_name_what_there_is(gpu):
  sections = gpu.gpu_sections
  assert list(sections.SECTIONS)[:2] == ['train_b16', 'train_l16']
  for section in filter(None, sections.SECTIONS.values()):
    assert section.ways[0].side == 'jax' and {way.side for way in section.ways} == {'jax', 'torch'}
    assert len({way.name for way in section.ways}) == len(section.ways)
    name, width, depth, heads, patch, image = sections.MODELS[section.model]
    made = models.architecture(name)
    assert (made['embed_dim'], made['depth'], made['num_heads']) == (width, depth, heads)
    assert (made['patch_size'], made['img_size']) == (patch, image)


def test_groups_fit_into_memory_and_have_the_first_way(gpu):
  ways = gpu.gpu_sections.MAIN
  for gib in (5, 20, 60):
    found = gpu.groups(ways, gib, memory=128)
    assert {way.name for group in found for way in group} == {way.name for way in ways}
    assert all(group[0] is ways[0] for group in found)
    assert all(len(group) == 2 or sum(way.memory for way in group) * gib <= 128 for group in found)
  assert gpu.groups(ways[:1], 20) == [[ways[0]]]


def test_plan_lists_sections_and_a_wrong_name_is_one_line(tmp_path):
  code, out, _ = command('--plan', f'--results={tmp_path}/none.jsonl')
  assert code == 0 and '| train_b16 | 5.5 | 256 | 8 | 0 |' in out
  code, _, err = command('--section=train_b17')
  assert code == 1 and err.startswith("There is no section 'train_b17'; choose of train_b16, ")


def test_a_tiny_section_is_measured_once(gpu, tmp_path, monkeypatch, capsys):
  file, args = (
    tmp_path / 'rows.jsonl',
    ('--tiny', '--section=infer_b16', '--ways=2', '--rounds=2', '--torch=/bin/false'),
  )
  code, out, err = command(*args, f'--results={file}')
  assert code == 0, err
  assert 'torch is left out: the process ended' in out
  [row] = [json.loads(line) for line in file.read_text().splitlines()]
  assert (row['section'], row['implementation']) == ('infer_b16', 'vit_jax, cudnn, tanh GELU')
  assert row['images_per_second'] == pytest.approx(4000 / row['milliseconds'])
  assert row['mfu'] == pytest.approx(row['tflops'] / row['matrix_tflops']['jax'])
  assert row['versions']['vit_jax'] and row['peak_gib'] is None and row['planned_gib'] > 0
  assert '| vit_jax, cudnn, tanh GELU |' in out

  monkeypatch.delenv('OUT', raising=False)
  again = gpu.Run(argparse.Namespace(tiny=True, rounds=2, ways=2, torch='', results=str(file), minutes=1))
  again.said = {'jax': {key: row[key] for key in ('device', 'platform', 'versions')}}
  gpu.sides(again, 'infer_b16', gpu.gpu_sections.SECTIONS['infer_b16'])
  assert capsys.readouterr().out == 'infer_b16: all 1 rows are there\n'
  again.said['jax']['versions'] = row['versions'] | {'vit_jax': 'changed'}
  assert not again.has(again.row('infer_b16', row['implementation'], 'jax'))


def test_a_process_that_ends_or_takes_too_long_is_an_error(gpu, tmp_path):
  script = tmp_path / 'side.py'
  script.write_text(
    f'import sys; sys.path.insert(0, {str(scripts.FOLDER)!r})\n'
    'import os, time, worker\n'
    "print('no answer')\n"
    "def die(): print('last words', file=sys.stderr, flush=True); os._exit(3)\n"
    "def fail(): raise ValueError('no\\nthanks')\n"
    'worker.serve(dict(add=lambda a, b: {"sum": a + b}, die=die, sleep=lambda: time.sleep(60), fail=fail))\n'
  )
  work = lambda: gpu.worker.Worker(script, log=tmp_path / 'log')
  one, two = work(), work()
  assert one.ask('add', a=1, b=2) == {'sum': 3}
  assert one.ask('fail') == {'error': 'ValueError: no'}
  assert one.ask('nothing') == {'error': "KeyError: 'nothing'"}
  assert one.ask('die') == {'error': 'the process ended: last words'}
  assert one.ask('add', a=1, b=2) == {'error': 'the process has ended'}
  assert two.ask('sleep', timeout=0.1) == {'error': 'no answer to sleep in 0 s'}
  assert two.process is None and 'no answer\nlast words' in (tmp_path / 'log').read_text()


class Fake:
  """A process that takes 10 ms a step; `broken` ones cannot be built."""

  def __init__(self, side, flags, broken=()):
    self.script, self.broken, self.closed = {'jax': 'side_jax.py', 'torch': 'side_torch.py'}[side], broken, False

  def ask(self, do, *, timeout, steps=0, attention=None, library=None, **how):
    if do == 'build' and (attention in self.broken or library in self.broken):
      return {'error': 'it cannot be built'}
    return {
      'build': {'compile_seconds': 1.0, 'peak_bytes': 2**30, 'planned_bytes': None},
      'run': {'seconds': 0.01 * steps, 'cpu_seconds': 0.01, 'value': 0.0},
      'matmul': {'tflops': 500.0 if self.script == 'side_jax.py' else 600.0},
      'profile': {'kinds': {'copies': 1.0}, 'top': []},
    }[do]

  def close(self):
    self.closed = True


@pytest.mark.parametrize('broken', [(), ('cudnn',), ('cudnn', 'hf')])
def test_ways_that_fail_are_left_out_and_others_stand_in(gpu, tmp_path, monkeypatch, capsys, broken):
  monkeypatch.delenv('OUT', raising=False)
  run = gpu.Run(argparse.Namespace(tiny=False, rounds=2, ways=None, torch='', results=tmp_path / 'rows', minutes=60))
  run.said = {side: {'device': 'H200', 'platform': 'gpu', 'versions': {}} for side in ('jax', 'torch')}
  started = []
  run.start = lambda side, flags='': started.append(Fake(side, flags, broken)) or started[-1]
  section = gpu.gpu_sections.SECTIONS['train_b16']
  gpu.sides(run, 'train_b16', section)
  rows = [json.loads(line) for line in (tmp_path / 'rows').read_text().splitlines()]
  ours = [
    way for way in section.ways if way.how.get('attention') not in broken and way.how.get('library') not in broken
  ]
  measured = [row for row in rows if row['section'] == 'train_b16']
  assert {row['implementation'] for row in measured} == {way.name for way in ours} and len(measured) == len(ours)
  assert {tuple(row['times_first']) for row in measured} == {(ours[0].name, 1.0)}
  assert all(row['images_per_second'] == pytest.approx(25_600) for row in measured)
  assert measured[0]['mfu'] == pytest.approx(25_600 * 105.153 / 600e3, rel=1e-4) and measured[0]['peak_gib'] == 1
  [profile] = [row for row in rows if row not in measured]
  assert (profile['section'], profile['implementation']) == (
    'profile_b16',
    next(way.name for way in ours if way.side == 'jax'),
  )
  assert all(process.closed for process in started)
  assert capsys.readouterr().out.count('is left out: it cannot be built') == len(section.ways) - len(ours)
