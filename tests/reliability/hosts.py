"""A run goes on on other devices and in other processes, and several processes end, and go on, together.

  python tests/reliability/hosts.py [--kills=8] [--work=FOLDER] [--seed=0]

A tiny ViT learns the embedded digits on emulated devices, in processes as a user starts them, all on this machine.
- devices: a run saved on 8 devices goes on on 1, 2 and 16, and on 4 of each of two processes, with SGD and AdamW; the
  ids of the examples of each step must be the same, and the losses within 1e-5 of the uninterrupted run's (float32).
- processes: two processes of 4 devices train, evaluate, save and resume; their ids, joined, and losses must be one
  process's, each example must count once in an evaluation, and one process goes on with what two have saved.
- kills: one of two, at a random moment, by SIGKILL. The other must end within 120 s, with one line and not with 0, and
  what both then do must be equal in every bit to a run of two that nobody disturbed; no process is left.
- signals: SIGTERM, SIGINT and SIGUSR1 to one of two. Both must save the same step, end with 128 + the signal's number,
  and go on in every bit.
FOLDER/hosts.jsonl has a line for each try, so a proof that was stopped goes on. The last line printed is the figure.
"""

import argparse
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import lives

EVERY = 5  # steps between two saves
SMALL = {'model.embed_dim': 16, 'model.depth': 2, 'model.num_heads': 2, 'batch': 32, 'batch_eval': 64, 'log_every': 1}
OPTIMIZERS = {
  'sgd': {'optim.name': 'sgd', 'optim.lr': 0.1, 'optim.warmup': 2, 'optim.accumulator_dtype': 'bfloat16'},
  'adamw': {'optim.name': 'adamw', 'optim.lr': 3e-3, 'optim.warmup': 2, 'optim.weight_decay': 0.1},
}


def flags_of(steps, optimizer='adamw', **more):
  """The config's flags of a run."""
  saving = {'total_steps': steps, 'save.every': EVERY, 'save.last': 3, 'eval_every': EVERY}
  return SMALL | OPTIMIZERS[optimizer] | saving | more


class Host:
  """One process of a run. It notes the ids of its examples in WORKDIR.ids0, and what it says in WORKDIR.log0."""

  def __init__(self, workdir, flags, *, index, count, devices, port, cache=None, job='train'):
    self.index, self.log = index, pathlib.Path(f'{workdir}.log{index}')
    words = [f'--config.{key}={value}' for key, value in {**flags, 'job': job}.items()]
    command = [sys.executable, __file__, f'--child={workdir}.ids{index}', '--config=digits', f'--workdir={workdir}']
    env = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'SLURM_', 'OMPI_'))}
    # without LLVM's passes a program is there in a third of the time, and its numbers are the same on each machine
    env['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'
    env |= {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(lives.ROOT), 'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
    if count > 1:
      env |= {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(count)}
      env |= {'JAX_PROCESS_ID': str(index)}
    if cache:
      env |= {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    with self.log.open('w') as log:
      self.process = subprocess.Popen([*command, *words], stdout=log, stderr=log, env=env, start_new_session=True)

  def said(self):
    """What it has printed so far."""
    return self.log.read_text(errors='replace')


class Run:
  """The processes of a run, which are ended where the `with` ends: Run(workdir, flags, processes=2, devices=4)."""

  def __init__(self, workdir, flags, *, processes=1, devices=8, **options):
    with socket.socket() as free:  # a port that the system chose
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    options |= dict(count=processes, devices=devices, port=port)
    self.hosts = [Host(workdir, flags, index=index, **options) for index in range(processes)]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for host in self.hosts:
      host.process.kill()
      host.process.wait()

  def ended(self, timeout=600):
    """The exit code of each process; TimeoutExpired where one is still there."""
    until = time.monotonic() + timeout
    return [host.process.wait(max(until - time.monotonic(), 0.1)) for host in self.hosts]

  def until(self, there, timeout=600):
    """Waits until there() is true; AssertionError where a process ends before, or it takes too long."""
    until = time.monotonic() + timeout
    while not there():
      codes = [host.process.poll() for host in self.hosts]
      assert time.monotonic() < until and set(codes) == {None}, (codes, [host.said()[-2000:] for host in self.hosts])
      time.sleep(0.01)

  def left(self):
    """How many processes, of the sessions that these began, are still there."""
    orphans = lives.Life.orphans
    return sum(len(orphans(host)) for host in self.hosts)


def done(workdir, flags, **options):
  """What the processes of a run said that came to its end as it should."""
  with Run(workdir, flags, **options) as run:
    codes = run.ended()
    said = [host.said() for host in run.hosts]
  assert set(codes) == {0}, (codes, said)
  return said


def ids(workdir, processes):
  """{step: ids of its examples}, those of all processes in the order of the global batch; and how many each had."""
  parts = []
  for index in range(processes):
    lines = pathlib.Path(f'{workdir}.ids{index}').read_text().splitlines()
    parts.append({row['step']: row['ids'] for row in map(json.loads, lines)})
  assert len({tuple(part) for part in parts}) == 1
  return {step: sum((part[step] for part in parts), []) for step in parts[0]}, {len(p[s]) for p in parts for s in p}


def apart(found, reference):
  """The largest relative difference of two runs' losses, {step: text}, at the steps of the first."""
  return max(abs(float(loss) / float(reference[step]) - 1) for step, loss in found.items())


def evaluations(workdir):
  """{step: its evaluation without the seconds} of a run."""
  rows = map(json.loads, (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines())
  return {row.pop('step'): {k: v for k, v in row.items() if k != 'seconds'} for row in rows if 'split' in row}


def begun(whole, workdir, step):
  """A copy of a run that came to its end, as if it had been stopped after a step; its losses from there on."""
  shutil.rmtree(workdir, ignore_errors=True)
  shutil.copytree(whole, workdir)
  for later in (pathlib.Path(workdir) / 'checkpoints').iterdir():
    if int(later.name) > step:
      shutil.rmtree(later)
  return {number: loss for number, loss in lives.losses(whole)[0].items() if number > step}


def whole(work, name, flags, **options):
  """The folder of a run that nobody disturbs, made unless it is there."""
  folder = work / name
  if not (work / f'{name}.done').exists():
    shutil.rmtree(folder, ignore_errors=True)
    done(folder, flags, **options)
    (work / f'{name}.done').touch()
  return folder


def elsewhere(work, optimizer, processes, devices, *, of=1, cache=None):
  """The row of a run of `of` processes on 8 devices that goes on in so many processes, on devices of each."""
  flags = flags_of(10, optimizer)
  source = whole(work, f'{of}x{8 // of}{optimizer}', flags, processes=of, devices=8 // of, cache=cache)
  one = whole(work, f'1x8{optimizer}', flags, cache=cache)
  folder = work / f'{optimizer}{of}to{processes}x{devices}'
  expected = begun(source, folder, EVERY)
  done(folder, flags, processes=processes, devices=devices, cache=cache)
  theirs, ours = ids(one, 1)[0], ids(folder, processes)[0]
  found = {step: loss for step, loss in lives.losses(folder)[0].items() if step > EVERY}
  assert set(found) == set(expected) == set(ours), (found, ours)
  return {'what': f'{optimizer}, {of} x {8 // of} -> {processes} x {devices}', 'loss': apart(found, expected),
          'ids': sum(ours[step] != theirs[step] for step in ours)}  # fmt: skip


def two(work, optimizer, cache=None):
  """The row of a run of two processes against one of one: losses, ids, evaluations."""
  flags = flags_of(10, optimizer)
  one = whole(work, f'1x8{optimizer}', flags, cache=cache)
  both = whole(work, f'2x4{optimizer}', flags, processes=2, devices=4, cache=cache)
  (theirs, _), (ours, each) = ids(one, 1), ids(both, 2)
  assert each == {16} and set(ours) == set(range(1, 11))  # each process reads its half
  found, reference = lives.losses(both)[0], lives.losses(one)[0]
  first, second = evaluations(both), evaluations(one)
  assert {row['examples'] for row in [*first.values(), *second.values()]} == {360}
  score = max(abs(first[step]['loss'] / second[step]['loss'] - 1) for step in second)
  same = [judged(one, processes, cache) for processes in (1, 2)]
  names = [name for name in same[0] if name not in ('loss', 'ece', 'seconds')]
  return {'what': f'{optimizer}, 2 x 4 against 1 x 8', 'loss': apart(found, reference), 'test loss': score,
          'ids': sum(ours[step] != theirs[step] for step in theirs),
          'same weights, loss': abs(same[0]['loss'] / same[1]['loss'] - 1),
          'same weights, others': sum(same[0][name] != same[1][name] for name in names)}  # fmt: skip


def judged(workdir, processes, cache=None):
  """What `job: evaluate` prints of a run, in so many processes."""
  said = done(workdir, SMALL, processes=processes, devices=8 // processes, job='evaluate', cache=cache)
  lines = [line for text in said for line in text.splitlines() if line.startswith('{')]
  assert len(lines) == 1, lines  # one process prints it
  return json.loads(lines[0])


def disturbed(work, name, number, index, steps, after, delay, cache=None, finish=True):
  """The row of a run of two processes of which one gets a signal `delay` seconds after step `after` was logged.

  Then both are started again and go on to the end, unless `finish` is False.
  """
  flags, two = flags_of(steps), dict(processes=2, devices=4, cache=cache)
  folder = work / name
  shutil.rmtree(folder, ignore_errors=True)
  with Run(folder, flags, **two) as run:
    run.until(lambda: max(lives.losses(folder)[0], default=0) >= after)
    time.sleep(delay)
    run.hosts[index].process.send_signal(number)
    begun = time.monotonic()
    code = run.hosts[1 - index].process.wait(300)
    seconds = time.monotonic() - begun
    codes = [host.process.wait(300) for host in run.hosts]
    said = [host.said() for host in run.hosts]
    left = run.left()
  kept = sorted(int(step.name) for step in (folder / 'checkpoints').glob('*') if step.name.isdecimal())
  ending = lambda words: [line for text in said for line in text.splitlines() if line.startswith(words)]
  row = {'what': f'{signal.Signals(number).name} to {index}', 'after': after, 'codes': codes, 'other': code,
         'kept': kept, 'seconds': round(seconds, 3), 'lines': ending(f'error: process {index} of 2'),
         'stopped': ending('stopped by'), 'left': left}  # fmt: skip
  if finish:
    reference = whole(work, f'two{steps}', flags, **two)
    done(folder, flags, **two)
    row['redone'] = max(after - lives.losses(folder)[1][-1], 0)
    row['differing'] = lives.differing(lives.losses(folder)[0], lives.losses(reference)[0])
    row['differing'] += lives.rest_of(folder) != lives.rest_of(reference)
  return row


def fault(row):
  """What is wrong with a row, '' where nothing is."""
  wrong = {name: row[name] for name in ('ids', 'differing', 'left', 'same weights, others') if row.get(name)}
  wrong |= {name: row[name] for name in ('loss', 'test loss', 'same weights, loss') if row.get(name, 0) > 1e-5}
  if 'codes' in row:
    killed = row['what'].startswith('SIGKILL')
    number = getattr(signal, row['what'].split()[0])
    if killed and (row['other'] in (0, None) or row['seconds'] > 120 or not row['lines']):
      wrong['end'] = row
    if not killed and (row['codes'] != [128 + number] * 2 or len(row['stopped']) != 2 or len(set(row['stopped'])) != 1):
      wrong['end'] = row
  return json.dumps(wrong) if wrong else ''


def tries(work, kills, seed, cache):
  """{name: function that gives its row} of the whole proof."""
  rng, found = random.Random(seed), {}
  for optimizer in OPTIMIZERS:
    found[f'two {optimizer}'] = functools.partial(two, work, optimizer, cache)
    for of, processes, devices in ((1, 1, 1), (1, 1, 2), (1, 1, 16), (1, 2, 4), (2, 1, 8), (2, 1, 1)):
      attempt = functools.partial(elsewhere, work, optimizer, processes, devices, of=of, cache=cache)
      found[f'{optimizer} {of} {processes}x{devices}'] = attempt
  for i in range(kills + 6):
    number = signal.SIGKILL if i < kills else (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[(i - kills) // 2]
    moment = rng.randint(1, 25), rng.uniform(0, 0.5)
    found[f'signal {i}'] = functools.partial(disturbed, work, f'disturbed{i}', number, i % 2, 40, *moment, cache)
  return found


def figure(rows):
  """The line that is printed last."""
  most = lambda name, rows: max((row[name] for row in rows if name in row), default=0)
  disturbances = [row for row in rows if 'codes' in row]
  kills = [row for row in disturbances if row['what'].startswith('SIGKILL')]
  return (
    f'{len(rows)} tries, {sum(bool(fault(row)) for row in rows)} with a fault; on other devices and in two processes: '
    f'losses within {most("loss", rows):.1e}, {sum(row.get("ids", 0) for row in rows)} steps with other ids; '
    f'{len(kills)} kills: the other process ended after at most {most("seconds", kills):.2f} s; '
    f'{len(disturbances) - len(kills)} signals; {sum(row["differing"] for row in disturbances)} differing losses '
    f'afterwards, {sum(row["left"] for row in disturbances)} processes left'
  )


def child(path, argv):
  """The exit code of `vit_jax train ARGV`, which writes the ids of each step's examples to a file."""
  from vit_jax import cli, data

  train_batches, to_device, step, file = data.train_batches, data.to_device, 0, None

  def begin(*args, start=0, **options):
    nonlocal step, file
    step, file = start, open(path, 'w')  # noqa: SIM115  until the end; an evaluation leaves the old one
    return train_batches(*args, start=start, **options)

  def noted(*args, **options):
    nonlocal step
    for one in to_device(*args, **options):
      if 'mask' not in one[1]:  # an evaluation's have
        step += 1
        print(json.dumps({'step': step, 'ids': one[0].tolist()}), file=file, flush=True)
      yield one

  data.train_batches, data.to_device = begin, noted
  return cli.main(['train', *argv])


def main():
  """Runs the tries that the file has not yet, and prints what was found."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kills', type=int, default=8, help='(default: %(default)s)')
  parser.add_argument('--work', type=pathlib.Path, help='where runs and hosts.jsonl are kept; default: a new folder')
  parser.add_argument('--seed', type=int, default=0, help='of the moments (default: %(default)s)')
  args = parser.parse_args()
  work = (args.work or pathlib.Path(tempfile.mkdtemp(prefix='hosts'))).absolute()
  ledger = lives.Ledger(work / 'hosts.jsonl')
  known = {row['name'] for row in ledger.rows}
  for name, attempt in tries(work, args.kills, args.seed, work / 'cache').items():
    if name not in known:
      ledger.add({'name': name} | attempt())
    row = next(row for row in ledger.rows if row['name'] == name)
    print(json.dumps(row), fault(row), file=sys.stderr, flush=True)
  print(figure(ledger.rows))
  return int(any(map(fault, ledger.rows)))


if __name__ == '__main__':
  if sys.argv[1:] and sys.argv[1].startswith('--child='):
    sys.exit(child(sys.argv[1].removeprefix('--child='), sys.argv[2:]))
  sys.exit(main())
