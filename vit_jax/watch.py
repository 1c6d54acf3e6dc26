"""What a person and a machine see of a run.

stderr                  a progress bar on a terminal, elsewhere a line every few seconds
WORKDIR/metrics.jsonl   one JSON object a line; floats have all digits, NaN and Infinity as Python's json has them
WORKDIR/tensorboard/    the same numbers as train/loss, test/top1, ...
WORKDIR/run.json        what ran: config, versions, devices, data, git
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

from vit_jax import diskfull, durable, storage

SECONDS = 5  # between two lines where there is no terminal


class Watch:
  """Numbers of a run -> screen, metrics.jsonl and TensorBoard.

  A metrics.jsonl that is already there is continued: its lines past step start, and one that a kill tore apart, are
  cut away, and {"resumed": start, "time": ...} is appended.

  Args:
    workdir: the run's folder, created when missing; None writes no files.
    total_steps: where the run ends, for the bar and the time that is left.
    start: the step that was restored; 0 for a run from the beginning.
    primary: False in all processes but one, which then show and write nothing.
    stream: where to show; sys.stderr when None.
  """

  def __init__(self, workdir, *, total_steps: int, start: int = 0, primary: bool = True, stream=None):
    self._total, self._first, self._shown, self._pending = total_steps, None, None, None
    self._stream = (stream or sys.stderr) if primary else None
    self._bar = _bar(self._stream, total_steps, start) if primary and self._stream.isatty() else None
    self._file = self._board = None
    if workdir is not None and primary:
      folder = self._folder = pathlib.Path(workdir).absolute()
      folder.mkdir(parents=True, exist_ok=True)
      resumed = _cut(folder / 'metrics.jsonl', start)
      self._file = (folder / 'metrics.jsonl').open('a', buffering=1)
      if resumed:
        self._write({'resumed': start, 'time': _now()})
      with self._room():
        self._board = _Board(folder / 'tensorboard', start + 1 if resumed else None)

  def train(self, step, values):
    """Shows and records {'loss', 'lr', 'grad_norm', 'images_per_second', 'seconds', ...} of a training step."""
    values = _plain(values)
    self._write({'step': step, **values})
    self._scalars('train', step, values)
    now = time.monotonic()
    loss, rest, speed = (
      _text({name: values[name] for name in names if name in values})
      for names in (('loss',), ('lr', 'grad_norm'), ('images_per_second',))
    )
    left = self._left(step, now)
    if self._bar:  # without rest, or the bar would have no room on 80 columns
      text = '  '.join(filter(None, (loss, speed, left)))
      self._bar.update(self._bar.task_ids[0], completed=step, text=text, refresh=True)
      return
    self._pending = '  '.join(filter(None, (f'step {step}/{self._total}', loss, rest, speed, left)))
    if self._shown is None or now - self._shown >= SECONDS:
      self._flush(now)

  def evaluation(self, step, values):
    """Shows and records {'split', 'loss', 'top1', 'top5', 'examples', 'seconds', ...}; lists only in metrics.jsonl."""
    values = _plain(values)
    self._write({'step': step, **values})
    self._scalars(values.get('split', 'evaluation'), step, values)
    self.note(f'step {step}  {_text(values)}')
    if self._board:
      with self._room():
        self._board.flush()

  def note(self, text):
    """Shows a line, above the bar where there is one."""
    if self._bar:
      self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
      self._flush(self._shown)
      self._print(text)

  def warn(self, text):
    """Shows a line as note does, and also in a process that is not primary: what only this one has met."""
    if self._stream:
      self.note(text)
    else:
      print(text, file=sys.stderr, flush=True)

  def close(self):
    """Shows the last numbers and closes the files. A second call does nothing."""
    self._flush(self._shown)
    if self._bar:
      self._bar.stop()
    for one in filter(None, (self._file, self._board)):
      with contextlib.suppress(OSError):  # on a full disk it was said when it was met
        one.close()
    self._bar = self._file = self._board = None

  def _left(self, step, now):
    """The time left at the speed since the first call, pauses for evaluation included; that call gives none."""
    first, begun = self._first = self._first or (step, now)
    if step <= first:
      return None
    left = (now - begun) / (step - first) * max(0, self._total - step)
    return f'{datetime.timedelta(seconds=round(left))} left'

  def _flush(self, now):
    if self._pending:
      self._print(self._pending)
    self._pending, self._shown = None, now

  def _print(self, text):
    if self._stream:
      print(text, file=self._stream, flush=True)

  def _write(self, row):
    if self._file:
      with self._room():
        self._file.write(json.dumps(row) + '\n')  # line buffered: a killed process loses at most this line

  def _scalars(self, group, step, values):
    if self._board:
      with self._room():
        for name, value in values.items():
          if isinstance(value, (int, float)):
            self._board.scalar(f'{group}/{name}', value, step)

  @contextlib.contextmanager
  def _room(self):
    """Around what is written: DiskFull where that has no room."""
    try:
      yield
    except OSError as error:
      if not diskfull.cause(error):
        raise
      raise diskfull.DiskFull(
        f'{self._folder} cannot be written to ({diskfull.cause(error)}). Free some space and start the same command '
        'again; it goes on from the last checkpoint.'
      ) from error


def _bar(stream, total_steps, start):
  import rich.console
  import rich.progress as progress

  # No thread redraws it, which would cost the training time: every call of train does. stdout stays a pipe's.
  columns = progress.BarColumn(30), progress.MofNCompleteColumn(), progress.TextColumn('{task.fields[text]}')
  bar = progress.Progress(
    *columns, console=rich.console.Console(file=stream), auto_refresh=False, redirect_stdout=False
  )
  bar.add_task('', total=total_steps, completed=start, text='compiling')
  bar.start()
  return bar


class _Board:
  """A new file of events for TensorBoard, which hides those of older files from purge_step on.

  Written at once: tensorboardX's SummaryWriter has a thread that dies of a full disk, after which its queue blocks.
  """

  def __init__(self, folder, purge_step):
    from tensorboardX import record_writer
    from tensorboardX.proto import event_pb2, summary_pb2

    folder.mkdir(exist_ok=True)
    self._event, self._summary, self._flushed = event_pb2.Event, summary_pb2.Summary, time.monotonic()
    # TensorBoard reads files in the order of their names; no two of a run may have one.
    name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{time.time_ns()}'
    self._file = record_writer.RecordWriter(str(folder / name))
    self._write(step=purge_step or 0, file_version='brain.Event:2')
    if purge_step is not None:
      self._write(step=purge_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def scalar(self, tag, value, step):
    """Records a number."""
    self._write(step=step, summary=self._summary(value=[self._summary.Value(tag=tag, simple_value=value)]))
    if time.monotonic() - self._flushed > 10:
      self.flush()

  def flush(self):
    """Lets TensorBoard see what was recorded."""
    self._file.flush()
    self._flushed = time.monotonic()

  def close(self):
    """Closes the file."""
    self._file.close()

  def _write(self, **fields):
    self._file.write(self._event(wall_time=time.time(), **fields).SerializeToString())


def _plain(values):
  """Numbers and arrays of numpy and jax -> Python's: a float32 becomes the float of the same value, unrounded."""
  return {name: value.tolist() if hasattr(value, 'tolist') else value for name, value in values.items()}


def _text(values):
  units = {'images_per_second': '{:.0f} images/s', 'seconds': '{:.1f} s', 'examples': '{} examples', 'split': '{}'}
  shown = {name: value for name, value in values.items() if isinstance(value, (str, int, float))}
  return '  '.join(units.get(name, name + (' {}' if isinstance(value, str) else ' {:.4g}')).format(value)
                   for name, value in shown.items())  # fmt: skip


def rows(path):
  """The lines of a metrics.jsonl as dicts; [] where there is none, and a line that a kill tore apart is left out."""
  path = pathlib.Path(path)
  lines = path.read_text(errors='replace').splitlines(keepends=True) if path.exists() else []
  return [json.loads(line) for line in lines if _step(line) < float('inf')]


def _cut(path, start):
  """Cuts metrics.jsonl after step start; whether there is a run to go on with."""
  if not path.exists():
    return start > 0
  lines = path.read_text(errors='replace').splitlines(keepends=True)
  kept = [line for line in lines if _step(line) <= start]
  if kept != lines:
    write_text(path, ''.join(kept))
  return start > 0 or bool(lines)


def _step(line):
  """The step of a line; a torn one is of no step that could be kept."""
  try:
    row = json.loads(line)
    return row.get('step', row.get('resumed', 0)) if line.endswith('\n') else float('inf')
  except (ValueError, AttributeError, RecursionError):
    return float('inf')


def run_record(config, data_fingerprint, extra) -> dict:
  """What ran, as a JSON dict: config, data, versions, devices, git, command, folder, time; extra's keys are added.

  git has the commit and whether tracked files differ from it, for the repository of the current folder and for that of
  the package; None where there is none.
  """
  import jax

  import vit_jax

  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'pillow')
  devices = jax.devices()
  return {
    'config': config,
    'data': data_fingerprint,
    'versions': {'python': sys.version.split()[0], 'vit_jax': vit_jax.__version__,
                 **{name: _version(name) for name in packages}},
    'devices': {'platform': devices[0].platform, 'kind': devices[0].device_kind, 'count': len(devices),
                'processes': jax.process_count()},
    'git': {'folder': _git('.'), 'package': _git(pathlib.Path(__file__).parent)},
    'command': sys.orig_argv,
    'folder': os.getcwd(),
    'time': _now(),
    **extra,
  }  # fmt: skip


def check_workdir(workdir):
  """Raises ValueError unless the folder is there or can be made, and can be written; leaves nothing behind."""
  if not str(workdir):
    raise ValueError('--workdir is empty; name a folder.')
  if storage.is_remote(workdir):
    storage.check(workdir)
    return
  path = pathlib.Path(workdir).absolute()
  existing = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
  if not existing.is_dir():
    raise ValueError(f'--workdir={workdir}: {existing} is a file; give a folder.')
  try:
    tempfile.TemporaryFile(dir=existing).close()
  except OSError as e:
    raise ValueError(f'--workdir={workdir}: nothing can be written in {existing} ({e.strerror}).') from e


def write_json(path, value):
  """A JSON value -> a file, as write_text."""
  write_text(path, json.dumps(value, indent=2) + '\n')


def write_text(path, text):
  """Text -> a file in UTF-8, which is either the old one or wholly the new one, whenever the process dies."""
  with durable.replacing(path) as file:
    file.write(text.encode())


def _now():
  return datetime.datetime.now().astimezone().isoformat(timespec='seconds')


def _version(package):
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git(folder):
  """A folder -> {'commit', 'dirty'} of its repository; None without a repository, a commit or git."""
  # No fsmonitor: it would run a command that the repository names. No locks: another git may be at work.
  command = ['git', '-c', 'core.fsmonitor=false', 'status', '--porcelain=v2', '--branch', '--untracked-files=no']
  try:
    out = subprocess.run(command, cwd=folder, env={**os.environ, 'GIT_OPTIONAL_LOCKS': '0'}, timeout=10, check=True,
                         capture_output=True, text=True).stdout.splitlines()  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return None
  commit = next((line.split()[-1] for line in out if line.startswith('# branch.oid')), '(initial)')
  return None if commit == '(initial)' else {'commit': commit, 'dirty': any(not line.startswith('#') for line in out)}
