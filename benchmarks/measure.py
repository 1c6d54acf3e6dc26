"""What every benchmark here shares: CPU seconds, the machine in words, and a line of results.

CPU seconds are those of all threads and finished children, user and system. They change far less with the load of a
shared machine than wall time does; still, a figure is only good as a ratio within one run.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

RESULTS = pathlib.Path(__file__).parent / 'results'
PACKAGES = (
  'jax', 'flax', 'optax', 'numpy', 'pillow', 'grain', 'opencv-python-headless', 'simplejpeg', 'cykooz-resizer', 'torch',
  'tensorflow-cpu',
)  # fmt: skip


def cpu_seconds():
  """CPU seconds so far of this process, its threads and its children that have ended."""
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + children.ru_utime + children.ru_stime


def run(command):
  """(stdout, CPU seconds, wall seconds) of a command that ended well; its failure ends this run."""
  cpu, wall = cpu_seconds(), time.perf_counter()
  done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=False)
  cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
  if done.returncode:
    sys.exit(f'{" ".join(map(str, command))} ended with {done.returncode}; its own message stands above.')
  return done.stdout, cpu, wall


def child(*args):
  """(the JSON it prints last, CPU seconds, wall seconds) of this script as a child of itself with these arguments."""
  out, cpu, wall = run([sys.executable, sys.argv[0], *args])
  return json.loads(out.splitlines()[-1]), cpu, wall


def train(config, data, *overrides):
  """A row for one whole run of vit_jax on a shipped config: epochs, last test accuracy, CPU and wall seconds."""
  with tempfile.TemporaryDirectory() as workdir:
    command = [
      sys.executable,
      '-m',
      'vit_jax.main',
      f'--config={config}',
      f'--config.data.name={data}',
      f'--workdir={workdir}/run',
      *overrides,
    ]
    _, cpu, wall = run(command)
    lines = [json.loads(line) for line in pathlib.Path(workdir, 'run', 'metrics.jsonl').read_text().splitlines()]
    record = json.loads(pathlib.Path(workdir, 'run', 'run.json').read_text())['config']
  with np.load(data) as file:
    images = len(file['y_train'])
  top1 = [line['top1'] for line in lines if 'top1' in line][-1]
  return {
    'run': f'vit_jax, configs/{config}.py',
    'epochs': record['total_steps'] * record['batch'] / images,
    'top1': top1,
    'CPU seconds': cpu,
    'seconds': wall,
  }


def machine():
  """What a reader needs to judge a figure: date, processor, cores, load, Python and package versions."""
  cpu = platform.processor() or platform.machine()
  if os.path.exists('/proc/cpuinfo'):
    with open('/proc/cpuinfo') as file:
      cpu = next((line.split(':', 1)[1].strip() for line in file if line.startswith('model name')), cpu)
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    'date': datetime.date.today().isoformat(),
    'cpu': cpu,
    'cores': len(os.sched_getaffinity(0)),
    'load': round(os.getloadavg()[0], 2),
    'python': platform.python_version(),
    'versions': versions,
  }


def warn_if_busy():
  """A line on stderr where others are at work on this machine."""
  load = os.getloadavg()[0]
  if load > 1.5:
    print(f'The load of this machine is {load:.1f}: believe what follows only when it was quiet.', file=sys.stderr)


def record(name, machine, rows):
  """Appends one JSON line to results/NAME.jsonl: the machine and the rows of this run."""
  RESULTS.mkdir(exist_ok=True)
  with open(RESULTS / f'{name}.jsonl', 'a') as file:
    file.write(json.dumps({**machine, 'rows': rows}) + '\n')


def table(rows):
  """Prints rows (dicts with the same keys) as a Markdown table."""
  print('| ' + ' | '.join(rows[0]) + ' |')
  print('|' + ' --- |' * len(rows[0]))
  for row in rows:
    print('| ' + ' | '.join(f'{v:.4g}' if isinstance(v, float) else str(v) for v in row.values()) + ' |')
