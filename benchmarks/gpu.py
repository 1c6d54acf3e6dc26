"""vit_jax on one GPU beside timm and Hugging Face: training, inference, attention, and where a step's time goes.

  python benchmarks/gpu.py --plan                                       # the sections in order of value, with minutes
  python benchmarks/gpu.py --section=train_b16,train_l16 --minutes=8    # ends within 8 minutes
  python benchmarks/gpu.py --report                                     # all rows as tables

Rows are appended to benchmarks/results/gpu.jsonl, or to $OUT/gpu.jsonl where OUT is set, and a row that is in either
for the same device, versions and sources is not measured again. On the lent machine (one H200, Python 3.12, jax 0.11,
torch 2.11, timm, transformers, flax, optax) nothing has to be carried; 15 minutes in all are two commands:

  PYTHONUNBUFFERED=1 python3 benchmarks/gpu.py --section=train_b16,train_l16 --ways=5 --minutes=8  # timeout_s=540
  PYTHONUNBUFFERED=1 python3 benchmarks/gpu.py --section=attention,infer_b16 --minutes=3.5  # timeout_s=240

and here, after each of them, `cat FILES_AT/gpu.jsonl >> benchmarks/results/gpu.jsonl`. If the second finds the first
machine gone, the rows of the first travel with the checkout.

How: each way of computing has a process of its own. They are built first, one of ours after the other with nothing else
on the GPU (XLA picks kernels by timing them) but torch.compile, and then take turns, about 0.6 seconds each, seven
rounds; a row has medians. All data is random and on the device. The matrix rate is that of 8192 x 8192 bfloat16
products in the same rounds, by jax and by torch; MFU is of the better one and counts gpu_sections.gigaflops.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import pathlib
import statistics
import sys
import time

import gpu_sections
import measure
import worker

SCRIPTS = {'jax': 'side_jax.py', 'torch': 'side_torch.py'}
MEMORY = 128  # GiB of a GPU that may be taken at once
ENV = {
  'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',  # the others want memory too
  'JAX_ENABLE_COMPILATION_CACHE': '0',  # what is timed is a compilation
  'TF_CPP_MIN_LOG_LEVEL': '2',
}


class Run:
  """One command: what it may use, what it has found, and how much time is left."""

  def __init__(self, args):
    out = os.environ.get('OUT')
    self.tiny, self.rounds, self.ways = args.tiny, args.rounds, args.ways
    self.pythons = {'jax': sys.executable, 'torch': args.torch}
    self.kept = pathlib.Path(args.results or measure.RESULTS / 'gpu.jsonl')
    self.written = pathlib.Path(out, 'gpu.jsonl') if out and not args.results else self.kept
    self.log = pathlib.Path(out, 'gpu.log') if out else None
    self.until = time.monotonic() + 60 * args.minutes
    self.found, self.said = rows({self.kept, self.written}), {}

  def left(self):
    """Seconds that are left."""
    return self.until - time.monotonic()

  def start(self, side, flags=''):
    """A process of a side."""
    env = ENV | {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip()}
    return worker.Worker(SCRIPTS[side], python=self.pythons[side], env=env, log=self.log)

  def meet(self):
    """Asks each side for its device and versions; a side that is not there is left out, with a word."""
    workers = {side: self.start(side) for side in SCRIPTS}
    for side, process in workers.items():
      said = process.ask('hello', timeout=min(120, self.left()))
      process.close()
      if 'error' in said:
        print(f'{side} is left out: {said["error"]}')
      else:
        self.said[side] = said
    if 'jax' not in self.said or not self.tiny and self.said['jax']['platform'] != 'gpu':
      sys.exit('jax finds no GPU here; --tiny tries everything out on a CPU.')

  def row(self, section, name, side, **values):
    """A row to be: its key, without what was measured."""
    said = self.said[side]
    return {'section': section, 'implementation': name, 'device': said['device'], 'platform': said['platform'],
            'versions': said['versions'], **values}  # fmt: skip

  def has(self, row):
    """Whether a row was measured already."""
    return any(row.items() <= old.items() for old in self.found)

  def keep(self, row):
    """Appends a row to the file at once: a command may be cut off."""
    row = {'date': datetime.date.today().isoformat(), **row}
    self.found.append(row)
    self.written.parent.mkdir(parents=True, exist_ok=True)
    with open(self.written, 'a') as file:
      file.write(json.dumps(row) + '\n')


def rows(paths):
  """The rows of files, as far as there are any."""
  lines = [line for path in sorted(paths) if path.is_file() for line in path.read_text().splitlines()]
  return [json.loads(line) for line in lines]


def groups(ways, gib, memory=MEMORY):
  """The ways in groups that fit into memory at once; the first way is in each of them."""
  first, out, taken = ways[0], [], 0.0
  for way in ways[1:]:
    if not out or taken + way.memory * gib > memory:
      out.append([first])
      taken = first.memory * gib
    out[-1].append(way)
    taken += way.memory * gib
  return out or [[first]]


def build_seconds(way, depth):
  """About how long a way takes to build."""
  if way.side == 'jax':
    return 15 + 1.5 * depth
  return 20 + 3 * depth if way.how.get('compiled') else 15


def sides(run, name, section):
  """Measures a section that compares ways, as far as the time allows, and keeps its rows."""
  here = [way for way in section.ways[: run.ways] if way.side in run.said]
  wanted = [way for way in here if not run.has(run.row(name, way.name, way.side))]
  if not wanted:
    print(f'{name}: all {len(here)} rows are there')
    return
  ways = [here[0], *(way for way in wanted if way is not here[0])]
  live, tried, first, profiled = {}, set(), None, False
  try:
    for group in groups(ways, section.gib):
      build(run, name, section, [way for way in group if way.name not in tried], live)
      tried |= {way.name for way in group}
      first = first or next(iter(live), None)  # the next one where ours cannot be built
      times, rates = turns(run, live) if live else ({}, {})
      for way in (way for way in group if way in wanted and times.get(way.name)):
        wanted.remove(way)
        run.keep(result(run, name, section, way, live[way.name][1], times, first, rates))
      mine = next((name for name, (process, _) in live.items() if process.script == SCRIPTS['jax']), None)
      if section.profile and mine and not profiled:
        profiled = profile(run, section.model, mine, live[mine][0])
      for other in set(live) - {first}:
        live.pop(other)[0].close()
  finally:
    for process, _ in live.values():
      process.close()


def build(run, name, section, ways, live):
  """Puts {way's name: (process, what it said of its build)} of those that could be built into live."""
  tiny = run.tiny
  sizes = gpu_sections.sizes(section.model, tiny)
  batch = 4 if tiny else gpu_sections.BATCHES[section.model]
  reserve = 5 if tiny else 2.0 * run.rounds * 0.7 * len(ways)  # seconds, to measure what is built

  def one(way, process):
    needed = 0 if tiny else build_seconds(way, sizes['depth'])
    if run.left() - reserve < needed:
      return {'error': f'{run.left():.0f} s are left, and it may take {needed + reserve:.0f}'}
    how = way.how | ({'model': way.how.get('model', {}) | small(tiny, way)} if tiny or 'model' in way.how else {})
    if tiny and way.side == 'jax':
      how |= {'attention': 'xla'}
    if way.side == 'torch':
      how |= {'sizes': sizes}
    return process.ask('build', timeout=max(1, run.left() - reserve), name=gpu_sections.MODELS[section.model][0],
                       batch=batch, train=section.train, **how)  # fmt: skip

  processes = [(way, run.start(way.side, '' if tiny else way.flags)) for way in ways]
  # One thread a side: ours are alone on the GPU when XLA times kernels, but for torch.compile, which hardly uses it.
  in_order = lambda side: [(way, process, one(way, process)) for way, process in processes if way.side == side]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    done = [item for part in pool.map(in_order, SCRIPTS) for item in part]
  for way, process, built in done:
    if 'error' in built:
      print(f'{name}: {way.name} is left out: {built["error"]}', flush=True)
      process.close()
    else:
      print(f'{name}: {way.name} is built in {built["compile_seconds"]:.1f} s', flush=True)
      live[way.name] = process, built


def small(tiny, way):
  """The arguments that make a model tiny, for the sides that take them."""
  if not tiny or way.how.get('library') == 'hf':
    return {}
  return {'img_size' if key == 'image' else key: n for key, n in gpu_sections.TINY.items() if key != 'patch'}


def turns(run, live):
  """({way's name: [seconds of a step, one a round]}, {side: [TFLOP/s]}): all take turns until the time is over."""
  target, product = (0.02, {'size': 64, 'repeat': 2}) if run.tiny else (0.6, {'size': 8192, 'repeat': 40})
  steps, times, rates = {}, {name: [] for name in live}, {}
  for name, (process, _) in live.items():
    process.ask('run', steps=2, timeout=60)  # warms up
    steps[name] = max(2, min(200, round(2 * target / process.ask('run', steps=2, timeout=60).get('seconds', target))))
  of = {side: [p for p, _ in live.values() if p.script == script][:1] for side, script in SCRIPTS.items()}
  began = time.monotonic()
  for number in range(run.rounds):
    if number and run.left() < 1.5 * (time.monotonic() - began) / number:
      print(f'{number} of {run.rounds} rounds fit', flush=True)
      break
    for name in list(live) if number % 2 else reversed(list(live)):  # none always follows the same other
      said = live[name][0].ask('run', steps=steps[name], timeout=60)
      if 'error' in said or said['value'] != said['value']:
        print(f'{name} failed in a round: {said}', flush=True)
      else:
        times[name].append(said['seconds'] / steps[name])
    for side, processes in of.items():
      said = [process.ask('matmul', timeout=60, **product) for process in processes]
      rates.setdefault(side, []).extend(each['tflops'] for each in said if 'tflops' in each)
  return times, {side: statistics.median(values) for side, values in rates.items() if values}


def result(run, name, section, way, built, times, first, rates):
  """The row of a way; first: the name of the one that took turns with all."""
  sizes = gpu_sections.sizes(section.model, run.tiny)
  batch, own = 4 if run.tiny else gpu_sections.BATCHES[section.model], sorted(times[way.name])
  seconds, quarter = statistics.median(own), len(own) // 4
  tflops = batch / seconds * gpu_sections.gigaflops(**sizes, train=section.train) / 1e3
  gib = lambda number: None if number is None else number / 2**30
  return run.row(
    name, way.name, way.side, batch=batch, image=sizes['image'], dtype='bfloat16', rounds=len(own),
    images_per_second=batch / seconds, milliseconds=1e3 * seconds,
    middle_half=[1e3 * own[quarter], 1e3 * own[-1 - quarter]],
    times_first=[first, statistics.median(times[first]) / seconds],
    tflops=tflops, matrix_tflops=rates, mfu=tflops / max(rates.values()) if rates else None,
    peak_gib=gib(built['peak_bytes']), planned_gib=gib(built['planned_bytes']),
    compile_seconds=built['compile_seconds'])  # fmt: skip


def profile(run, model, name, process):
  """Keeps where the time of a live way's step goes; whether that is known now."""
  row = run.row(f'profile_{model}', name, 'jax')
  if run.has(row):
    return True
  if run.left() < (1 if run.tiny else 15):
    return False
  said = process.ask('profile', steps=3, timeout=run.left())
  if 'error' in said or not said['kinds']:
    print(f'profile_{model} is left out: {said.get("error", "the trace has nothing of the device")}', flush=True)
    return False
  run.keep(row | said)
  return True


def attention(run, name):
  """Measures attention alone, by each implementation, for the table of models/attention.py."""
  process, cases = run.start('jax'), ((9, 16, 'float32'),) if run.tiny else gpu_sections.ATTENTION
  heads, total = (3, 36) if run.tiny else (gpu_sections.HEADS, gpu_sections.TOKENS)
  try:
    for tokens, width, dtype in cases:
      key = lambda way: run.row(name, way, 'jax', dtype=dtype, tokens=tokens, head_dim=width)  # noqa: B023
      wanted = [way for way in gpu_sections.IMPLEMENTATIONS if not run.has(key(way))]
      wanted = [way for way in wanted if way != 'cudnn odd' or tokens % 2]
      if not wanted:
        continue
      if run.left() < (2 if run.tiny else 20):
        print(f'{name}: {tokens} tokens and what follows are left out: {run.left():.0f} s are left', flush=True)
        return
      shape = max(1, total // tokens), tokens, heads, width
      said = process.ask('attention', shape=shape, dtype=dtype, implementations=wanted, rounds=run.rounds,
                         timeout=run.left())  # fmt: skip
      for way in wanted:
        found = said.get(way, said)
        if 'error' in found:
          print(f'{name}: {tokens} tokens of {dtype} by {way} are left out: {found["error"]}', flush=True)
        else:
          run.keep(key(way) | {'batch': shape[0], 'heads': heads, **found})
  finally:
    process.close()


def report(found):
  """Prints the rows as Markdown, a table a section; of rows with one key the last."""
  latest = {}
  for row in found:
    key = [row.get(k) for k in ('section', 'implementation', 'device', 'dtype', 'tokens', 'head_dim')]
    latest[json.dumps(key)] = row
  names = dict.fromkeys(row['section'] for row in latest.values())
  for name in names:
    own = [row for row in latest.values() if row['section'] == name]
    print(f'\n**{name}**, {own[0]["device"]}, {own[-1]["date"]}\n')
    if name == 'attention':
      columns = 'dtype', 'tokens', 'head_dim', 'batch', 'implementation', 'forward_us', 'backward_us'
      measure.table([{column: row[column] for column in columns} for row in own])
    elif name.startswith('profile'):
      measure.table([{'kind': kind, 'ms a step': ms} for row in own for kind, ms in row['kinds'].items()])
    else:
      compiled = next((r['images_per_second'] for r in own if r['implementation'] == 'timm, compiled'), None)
      measure.table([line(row, compiled) for row in own])


def line(row, compiled):
  """A row of the report; compiled: images/s of timm compiled, None where it was not measured."""
  shown = lambda value, scale=1: '' if value is None else float(value) * scale
  return {
    'implementation': row['implementation'], 'images/s': row['images_per_second'], 'ms': row['milliseconds'],
    'MFU, %': shown(row['mfu'], 100), 'times timm compiled': shown(compiled and row['images_per_second'] / compiled),
    'peak GiB': shown(row['peak_gib']), 'compile s': row['compile_seconds'],
  }  # fmt: skip


def plan(run):
  """Prints the sections in order of value, their minutes and how many rows there are."""
  table = []
  for name, section in gpu_sections.SECTIONS.items():
    there = len({row['implementation'] for row in run.found if row['section'] == name})
    minutes = section.minutes if section else gpu_sections.ATTENTION_MINUTES
    ways = len(section.ways if section else gpu_sections.IMPLEMENTATIONS)
    batch = gpu_sections.BATCHES[section.model] if section else ''
    table.append({'section': name, 'minutes': minutes, 'batch': batch, 'ways': ways, 'measured': there})
  measure.table(table)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--section', default=','.join(gpu_sections.SECTIONS), help='names with commas between them')
  parser.add_argument('--minutes', type=float, default=8, help='after which it has ended (default: %(default)s)')
  parser.add_argument('--ways', type=int, help='of a section, the first so many (default: all)')
  parser.add_argument('--rounds', type=int, default=7, help='default: %(default)s')
  parser.add_argument('--plan', action='store_true', help='list the sections')
  parser.add_argument('--report', action='store_true', help='print all rows as tables')
  parser.add_argument('--tiny', action='store_true', help='tiny models, on any device: tries the script itself')
  parser.add_argument('--torch', default=sys.executable, metavar='PYTHON', help='an interpreter that has torch')
  parser.add_argument('--results', metavar='FILE', help='in place of results/gpu.jsonl and $OUT/gpu.jsonl')
  args = parser.parse_args()
  names = args.section.split(',')
  if unknown := [name for name in names if name not in gpu_sections.SECTIONS]:
    sys.exit(f'There is no section {unknown[0]!r}; choose of {", ".join(gpu_sections.SECTIONS)}.')
  run = Run(args)
  if args.plan:
    plan(run)
  elif args.report:
    report(run.found)
  else:
    before = len(run.found)
    run.meet()
    for name in names:
      if run.left() < (5 if args.tiny else 45):
        print(f'{name} is left out: {run.left():.0f} s are left', flush=True)
      elif gpu_sections.SECTIONS[name] is None:
        attention(run, name)
      else:
        sides(run, name, gpu_sections.SECTIONS[name])
    report(run.found[before:])


if __name__ == '__main__':
  main()
