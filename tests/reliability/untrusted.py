"""What strangers' files do: python tests/reliability/untrusted.py. Weights, configs, archives, tables, pictures, a hub.

Each case of malice.py lives in a folder of its own that is also the current one, and is given to the entry points that
a user has. It must be refused there: exit code 2 and one line, or a ValueError, FileNotFoundError or OSError of one
line. Meanwhile an audit hook watches this process (programs started, files written elsewhere, code run from the case's
folder, pickles that look up a name), the kernel notes its largest memory, and an alarm ends what hangs. A case fails
too where a sentinel appears that the payload would have made, or any file outside of `out`. The payloads are alive:
run by hand, as controls, they do make it.
"""

import argparse
import contextlib
import faulthandler
import gc
import io
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).absolute()
sys.path[:0] = [str(HERE.parent.parent.parent), str(HERE.parent.parent)]

from reliability import malice  # noqa: E402

SECONDS = 60  # that a case may take
BOUND = 1024  # MB over what the process had before, at most; more address space than 4 times this is refused to it
ONE_LINE = (ValueError, OSError)


class Audit:
  """What the interpreter did while `watching`: [line], of what no file may make it do."""

  def __init__(self):
    self.room, self.found = None, []
    sys.addaudithook(self._hook)

  def _hook(self, event, args):
    if self.room is None:
      return
    if event in ('os.system', 'subprocess.Popen', 'os.exec', 'os.posix_spawn', 'os.fork', 'pickle.find_class'):
      self.found.append(f'{event} {str(args)[:80]}')
    elif event == 'exec' and str(getattr(args[0], 'co_filename', '')).startswith(str(self.room.root)):
      self.found.append(f'runs {args[0].co_filename}')
    elif event == 'open' and isinstance(args[0], str) and isinstance(args[2], int) and args[2] & os.O_ACCMODE:
      path = os.path.realpath(args[0])
      if not path.startswith((str(self.room.out), '/dev/null', str(self.room.root.parent / 'cache'))):
        self.found.append(f'writes {path}')

  @contextlib.contextmanager
  def watching(self, room):
    """Watches for a while; found is empty at its start."""
    self.room, self.found = room, []
    try:
      yield self.found
    finally:
      self.room = None


def honest(root):
  """{'timm', 'hf', 'npz', 'run', 'pushed', 'picture'}: paths of one small model in all forms, and of a picture."""
  import vit_jax
  from vit_jax import checkpoint, pretrained, state, transforms, weights

  root = pathlib.Path(root)
  model = vit_jax.create_model(malice.NAME, **malice.TINY)
  row = transforms.preprocessing(8, crop='squash', crop_pct=1.0)
  said = {'preprocessing': row, 'classes': list('0123456789'), 'ids': None, 'loss': 'softmax'}
  pretrained.remember(model, **{**pretrained.described(model), **said})
  for form in ('timm', 'hf'):
    vit_jax.export(model, to=form, out=root / form)
  vit_jax.export(model, to='npz', out=root / 'model.npz')
  kept = checkpoint.Checkpoints(root / 'run')
  _, params, rest = state.split(model)
  kept.save(1, {'params': params, 'rest': rest}, {'step': 1}, 0.5)
  kept.close()
  (root / 'run' / 'model.json').write_text(json.dumps(pretrained.origin(model) | said))
  shutil.copytree(root / 'timm', root / 'pushed')
  (root / 'pushed' / 'model.json').write_text(json.dumps(weights.stamped(pretrained.described(model))))
  (root / 'picture.png').write_bytes(malice.PNG)
  return {form: root / form for form in ('timm', 'hf', 'run', 'pushed')} | {
    'npz': root / 'model.npz', 'picture': root / 'picture.png'}  # fmt: skip


def files(room):
  """{path: (size, time)} of all that lies in a case's root and may not change."""
  found = {}
  for folder, _, names in os.walk(room.root):
    if not folder.startswith(str(room.out)):
      for name in names:
        status = os.lstat(os.path.join(folder, name))
        found[os.path.join(folder, name)] = status.st_size, status.st_mtime_ns
  return found


def attempted(attempt):
  """(what came of one attempt: 'refused', or what is wrong; the reason that was given)."""
  from vit_jax import cli

  out, err = io.StringIO(), io.StringIO()
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      code = cli.main(list(map(str, attempt))) if isinstance(attempt, list) else attempt()
  except ONE_LINE as error:
    reason = str(error)
    return ('refused' if '\n' not in reason else 'more than a line'), reason
  except Exception as error:  # a bug is counted, and the next case comes
    return f'{type(error).__name__}', f'{error}'
  if not isinstance(attempt, list):
    return 'used', ''
  if code == 0:
    return 'used', out.getvalue()[:100]
  text = err.getvalue()
  line = text.splitlines()[-1] if text else ''
  if 'Traceback' in text:
    return 'traceback', line
  if code != 2:
    return f'exit code {code}', line or out.getvalue()[:100]
  return ('refused' if line.isprintable() else 'control characters'), line


def memory():
  """(MB resident now, MB at most since `forget`)."""
  text = pathlib.Path('/proc/self/status').read_text()
  return tuple(int(re.search(rf'{word}:\s+(\d+)', text)[1]) / 1024 for word in ('VmRSS', 'VmHWM'))


def forget():
  """Has the kernel forget what the largest memory was."""
  with contextlib.suppress(OSError):  # where it may not be asked, the bound is held against all that came before
    pathlib.Path('/proc/self/clear_refs').write_text('5')


def run(make, root, good, audit=None, some=slice(None), want='refused'):
  """([what is wrong: line], the reasons, MB) of one case.

  some: which of its attempts are made.   want: what is to come of each.
  """
  old, environment = os.getcwd(), dict(os.environ)
  room, wrong, reasons, grown = malice.Room(root, good), [], [], 0.0
  tempfile.tempdir = str(room.out)
  try:
    attempts = make(room)[some]
    if audit:
      gc.collect()
      forget()
    start, _ = memory()
    os.chdir(room.folder)
    before = files(room)
    for attempt in attempts:
      name = ' '.join(map(str, attempt[:2])) if isinstance(attempt, list) else 'in Python'
      with audit.watching(room) if audit else contextlib.nullcontext([]) as seen:
        result, reason = attempted(attempt)
      reasons.append(reason)
      wrong += [f'{name}: {result}: {reason[:300]}'] * (result != want) + [f'{name}: {line}' for line in seen]
    grown = memory()[1] - start
    changed = files(room).items() ^ before.items()
    wrong += [f'{path} was written' for path in sorted({path for path, _ in changed})]
  finally:
    os.chdir(old)
    tempfile.tempdir = None
    os.environ.clear()
    os.environ.update(environment)
    shutil.rmtree(root, ignore_errors=True)
  return wrong, reasons, max(0, grown)


def measured(name, make, root, good, audit):
  """(lines of what is wrong, a reason, MB over before, seconds) of a case, in bounds of time and memory."""
  faulthandler.dump_traceback_later(SECONDS, exit=True)
  began = time.monotonic()
  wrong, reasons, peak = run(make, root / 'case', good, audit)
  seconds = time.monotonic() - began
  faulthandler.cancel_dump_traceback_later()
  if peak > BOUND:
    wrong.append(f'memory grew by {peak:.0f} MB, wanted at most {BOUND}')
  return wrong, reasons[0] if reasons else '', peak, seconds


def controls(root, good, audit):
  """How many controls are wrong, a line for each: payloads live, honest files are used, doors open where asked to."""
  wrong = 0
  for name, make in malice.HARMLESS.items():
    lines, _, _ = run(make, root / 'case', good, audit, want='used')
    wrong += bool(lines)
    print('\n        '.join([f'{"WRONG  " if lines else "used   "} {name}', *lines]))
  for name, make in malice.DOORS.items():
    lines, _, _ = run(make, root / 'case', good)
    opened = any('sentinel was written' in line for line in lines)
    wrong += not opened
    print(f'{"open   " if opened else "WRONG  "} {name}')
  lines, count = beside(root / 'case')
  wrong += bool(lines)
  print('\n        '.join([f'{"WRONG  " if lines else "used   "} {count} commands in a folder with a jax.py', *lines]))
  fired, count = alive(root / 'case')
  wrong += fired != count
  print(f'{"alive  " if fired == count else "WRONG  "} {fired} of {count} payloads, run by hand')
  return wrong


def beside(root):
  """(what is wrong, how many commands) of real processes in a folder with a jax.py and more: the commands run, and
  nothing of what lies there does."""
  room = malice.Room(root, {})
  malice.planted(room, '.')
  script = pathlib.Path(sys.executable).with_name('vit_jax')
  front = [[str(script)]] * script.exists() + [[sys.executable, '-m', 'vit_jax']]
  wrong, keep = [], {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
  for words in front:
    for command in (['--version'], ['list', 'models', 'vit_tiny*'], ['show', 'digits']):
      found = subprocess.run([*words, *command], cwd=room.folder, env=keep, capture_output=True, text=True, timeout=120)
      if found.returncode or room.sentinel.exists():
        wrong.append(
          f'{" ".join([*words, *command])}: {found.returncode} {found.stderr[-200:]} {room.sentinel.exists()}'
        )
      room.sentinel.unlink(missing_ok=True)
  shutil.rmtree(root)
  return wrong, 3 * len(front)


def alive(root):
  """(how many payloads do what they should where nobody refuses them, how many there are)."""
  room, fired = malice.Room(root, {}), 0
  load = 'import pickle, sys; pickle.load(open(sys.argv[1], "rb"))'
  unpack = 'import numpy, sys; numpy.load(sys.argv[1], allow_pickle=True)["a"]'
  torch = 'import pickle, sys, zipfile; pickle.loads(zipfile.ZipFile(sys.argv[1]).read("archive/data.pkl"))'
  malice.planted(room, '.')
  payloads = [(load, malice.system), (load, malice.execute), (load, malice.scalar), (torch, malice.torch_zip),
              (unpack, malice.objects), ('import config, sys', lambda room: b'')]  # fmt: skip
  (room.folder / 'numpy.py').unlink()
  for program, make in payloads:
    path = room.write('payload.npz', make(room))
    environment = os.environ | {'PYTHONPATH': str(room.folder) if 'config' in program else ''}
    subprocess.run([sys.executable, '-P', '-c', program, path], cwd=room.out, env=environment, capture_output=True)
    fired += room.sentinel.exists()
    room.sentinel.unlink(missing_ok=True)
  shutil.rmtree(root)
  return fired, len(payloads)


def main():
  """Prints a line for each case and one of figures last; 1 where something went wrong."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='', help='cases whose names begin so')
  parser.add_argument('--verbose', action='store_true', help='the whole reason')
  args = parser.parse_args()
  os.environ |= {'JAX_PLATFORMS': 'cpu', 'VIT_JAX_OFFLINE': '1', 'HF_TOKEN': ''}
  from vit_jax import download

  download.PAUSE = 0
  failed, peak, sentinels, count = 0, 0, 0, 0
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    os.environ |= {'VIT_JAX_CACHE': str(root / 'cache'), 'HF_HOME': str(root / 'hf'), 'HOME': str(root / 'home')}
    good = honest(root / 'good')
    audit = Audit()
    now = int(re.search(r'VmSize:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (now + 4 * BOUND * 2**20,) * 2)
    for kind, cases in malice.ROUND.items():
      for name, make in cases.items():
        if not f'{kind}: {name}'.startswith(args.only):
          continue
        wrong, reason, grown, seconds = measured(name, make, root, good, audit)
        count, failed, peak = count + 1, failed + bool(wrong), max(peak, grown)
        sentinels += any('sentinel' in line for line in wrong)
        print(f'{"WRONG  " if wrong else "refused"} {kind}: {name} ({seconds:.1f} s, +{grown:.0f} MB): '
              f'{reason if args.verbose else reason[:150]}'.encode('unicode_escape').decode(), flush=True)  # fmt: skip
        for line in dict.fromkeys(wrong):
          print(f'        {line}'.encode('unicode_escape').decode(), flush=True)
    if not args.only:
      failed += controls(root, good, audit)
  print(f'{count - failed} of {count} refused, {sentinels} sentinels, peak memory {peak:.0f} MB')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
