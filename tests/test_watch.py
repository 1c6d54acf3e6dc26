"""watch.py: the same numbers on the screen, in metrics.jsonl and in TensorBoard, also after a kill."""

import io
import json
import math
import os
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import diskfull, watch

TRAIN = {'loss': 2.25, 'lr': 0.001, 'grad_norm': 1.5, 'images_per_second': 3000.0, 'seconds': 0.5}
TEST = {'split': 'test', 'loss': 0.125, 'top1': 0.975, 'top5': 1.0, 'examples': 360, 'seconds': 0.25}


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until it is moved."""
  now = [100.0]
  monkeypatch.setattr(watch.time, 'monotonic', lambda: now[0])
  return now


def rows(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def run(workdir, steps, *, start=0, stream=None):
  """A watched run that evaluates at every step divisible by 10."""
  w = watch.Watch(workdir, total_steps=100, start=start, stream=stream or io.StringIO())
  for step in steps:
    w.train(step, TRAIN)
    if step % 10 == 0:
      w.evaluation(step, TEST)
  w.close()


def test_floats_keep_every_digit(tmp_path):
  w = watch.Watch(tmp_path, total_steps=2, stream=io.StringIO())
  x = np.float32(0.1)
  w.train(1, {'loss': jnp.float32(0.1), 'lr': x, 'grad_norm': 1 / 3, 'examples': np.int64(7)})
  w.train(2, {'loss': float('nan'), 'grad_norm': float('inf')})
  first, second = rows(tmp_path)  # each line is on disk before close
  w.close()
  assert first == {'step': 1, 'loss': float(x), 'lr': float(x), 'grad_norm': 1 / 3, 'examples': 7}
  assert np.float32(first['loss']) == x and type(first['examples']) is int
  assert math.isnan(second['loss']) and second['grad_norm'] == math.inf


def test_lines_hold_what_was_given(tmp_path):
  run(tmp_path, [10])
  assert rows(tmp_path) == [{'step': 10, **TRAIN}, {'step': 10, **TEST}]


def test_lists_and_nothing_go_to_the_file_alone(tmp_path):
  stream = io.StringIO()
  w = watch.Watch(tmp_path, total_steps=1, stream=stream)
  w.train(1, {'loss': 1.5, 'lr': None})
  w.evaluation(1, {'split': 'test', 'kind': 'a', 'top1': 0.5, 'per_class': np.array([0.25, 0.75]), 'names': ['a', 'b']})
  w.close()
  evaluated = {'split': 'test', 'kind': 'a', 'top1': 0.5, 'per_class': [0.25, 0.75], 'names': ['a', 'b']}
  assert rows(tmp_path) == [{'step': 1, 'loss': 1.5, 'lr': None}, {'step': 1, **evaluated}]
  assert stream.getvalue() == 'step 1/1  loss 1.5\nstep 1  test  kind a  top1 0.5\n'
  assert {tag for _, tag, _ in events(tmp_path / 'tensorboard')[0]} == {'train/loss', 'test/top1'}


@pytest.mark.parametrize('tail', ['', '{"step": 25, "lo', '{"step": 25', '2', '\n', '{"step": 15}'])
def test_resume_cuts_what_is_past_the_restored_step(tmp_path, tail):
  run(tmp_path, range(5, 26, 5))
  before = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write(tail)  # torn by kill -9
  run(tmp_path, range(25, 31, 5), start=20)
  after = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert after[:6] == before[:6] and json.loads(before[5]) == {'step': 20, **TEST}
  resumed = json.loads(after[6])
  assert resumed['resumed'] == 20 and resumed.keys() == {'resumed', 'time'}
  assert [row['step'] for row in rows(tmp_path)[7:]] == [25, 30, 30]
  assert os.listdir(tmp_path).count('metrics.jsonl.tmp') == 0


def test_resuming_again_further_back_cuts_the_later_resume(tmp_path):
  run(tmp_path, [10, 20])
  run(tmp_path, [30], start=20)
  run(tmp_path, [20], start=10)
  assert [row.get('step', row.get('resumed')) for row in rows(tmp_path)] == [10, 10, 10, 20, 20]
  run(tmp_path, [10], start=0)  # killed before its first checkpoint: from the beginning, and it says so
  assert [('resumed' in row, row.get('step')) for row in rows(tmp_path)] == [(True, None), (False, 10), (False, 10)]


def test_rows_are_the_whole_lines(tmp_path):
  file = tmp_path / 'metrics.jsonl'
  assert watch.rows(file) == []
  file.write_text('{"step": 1, "loss": NaN}\n{"resumed": 1}\n{"st\n[3]\n{"step": 2}\n{"step": 3}')
  first, *rest = watch.rows(file)
  assert first['loss'] != first['loss'] and rest == [{'resumed': 1}, {'step': 2}]  # the last line has no end


def test_a_fresh_run_says_nothing_of_resuming(tmp_path):
  run(tmp_path / 'new' / 'folder', [1])
  assert rows(tmp_path / 'new' / 'folder') == [{'step': 1, **TRAIN}]


def events(folder):
  """TensorBoard's files, read by their format: length, crc, payload, crc -> [(step, tag, value)], and purges."""
  from tensorboardX.proto import event_pb2

  scalars, purged = [], []
  for path in sorted(folder.iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack('<Q', data[at : at + 8])
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
      at += length + 16
      scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
      purged += [event.step] if event.session_log.status == event_pb2.SessionLog.START else []
  return scalars, purged


def test_tensorboard_has_the_same_numbers(tmp_path):
  run(tmp_path, [10])
  scalars, purged = events(tmp_path / 'tensorboard')
  expected = {(10, f'train/{name}', np.float32(value)) for name, value in TRAIN.items()}
  expected |= {(10, f'test/{name}', np.float32(value)) for name, value in TEST.items() if name != 'split'}
  assert set(scalars) == expected and len(scalars) == len(expected) and not purged


def test_tensorboard_forgets_what_is_past_the_restored_step(tmp_path):
  run(tmp_path, [10, 20])
  run(tmp_path, [11], start=10)  # within the same second: must not overwrite the first file
  scalars, purged = events(tmp_path / 'tensorboard')
  assert purged == [11] and {step for step, *_ in scalars} == {10, 20, 11}


@pytest.mark.parametrize('name', ['metrics.jsonl', 'tensorboard'])
def test_a_full_disk_is_one_line(tmp_path, name):
  """/dev/full takes no byte. TensorBoard's file is flushed with the evaluation."""
  w = watch.Watch(tmp_path, total_steps=10, stream=io.StringIO())
  with open('/dev/full', 'w', buffering=1) as full:
    if name == 'tensorboard':
      os.dup2(full.fileno(), w._board._file._writer.fileno())
    else:
      w._file.close()
      w._file = full
    with pytest.raises(diskfull.DiskFull, match=rf'^{tmp_path} cannot be written to \(No space left on device\). Free'):
      w.train(1, TRAIN)
      w.evaluation(1, TEST)
    w.close()


def test_without_a_terminal_a_line_every_few_seconds(clock):
  stream = io.StringIO()
  w = watch.Watch(None, total_steps=100, stream=stream)
  for step in range(1, 13):
    w.train(step, TRAIN)
    clock[0] += 1
  w.evaluation(12, TEST)
  w.note('saved')
  w.train(13, TRAIN)
  w.train(14, TRAIN)
  w.close()
  w.close()
  numbers = 'loss 2.25  lr 0.001  grad_norm 1.5  3000 images/s'
  assert stream.getvalue().splitlines() == [
    f'step 1/100  {numbers}',
    f'step 6/100  {numbers}  0:01:34 left',
    f'step 11/100  {numbers}  0:01:29 left',
    f'step 12/100  {numbers}  0:01:28 left',
    'step 12  test  loss 0.125  top1 0.975  top5 1  360 examples  0.2 s',
    'saved',
    f'step 14/100  {numbers}  0:01:19 left',
  ]


def test_a_terminal_shows_one_bar(clock, monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  stream = Terminal()
  w = watch.Watch(None, total_steps=100, stream=stream)
  for step in (10, 20):
    w.train(step, TRAIN)
    clock[0] += 30
  w.evaluation(20, TEST)
  w.note('see [bold]/runs/x[/bold]')
  w.close()
  shown = stream.getvalue()
  assert ' 20/100' in shown and 'loss 2.25  3000 images/s  0:04:00 left' in shown
  assert '\nstep 20  test' not in shown and 'step 20  test  loss 0.125  top1 0.975' in shown
  assert 'see [bold]/runs/x[/bold]\n' in shown and shown.endswith('\x1b[?25h')  # the cursor is back


def test_other_processes_stay_silent(tmp_path, capsys):
  stream = Terminal()
  w = watch.Watch(tmp_path, total_steps=10, primary=False, stream=stream)
  w.train(1, TRAIN)
  w.evaluation(1, TEST)
  w.note('hello')
  w.warn('a picture that only this process has met')
  w.close()
  assert stream.getvalue() == '' and not os.listdir(tmp_path)
  assert capsys.readouterr().err == 'a picture that only this process has met\n'


def test_nothing_heavy_is_imported(tmp_path):
  script = (
    'import sys; from vit_jax import watch; assert not {"rich", "tensorboardX", "jax", "numpy"} & set(sys.modules)\n'
    'w = watch.Watch(sys.argv[1], total_steps=3); w.train(1, {"loss": 1.0}); w.close()\n'
    'assert "tensorboardX" in sys.modules and not {"rich", "tensorflow", "torch", "jax"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-W', 'error', '-c', script, tmp_path], check=True)


def git(folder, *command):
  identity = '-c', 'user.name=a', '-c', 'user.email=a@example.com', '-c', 'commit.gpgsign=false'
  return subprocess.run(['git', *identity, *command], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_run_record_tells_what_ran(tmp_path, monkeypatch, devices):
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
  monkeypatch.chdir(tmp_path)
  record = watch.run_record({'seed': 1}, 'abc', {'decoder': 'pillow'})
  assert json.loads(json.dumps(record)) == record
  assert record['config'] == {'seed': 1} and record['data'] == 'abc' and record['decoder'] == 'pillow'
  assert record['devices'] == {'platform': 'cpu', 'kind': 'cpu', 'count': len(devices), 'processes': 1}
  assert record['versions']['numpy'] == np.__version__ and record['versions']['python'] in sys.version
  assert record['git']['folder'] is None and record['folder'] == str(tmp_path)
  git(tmp_path, 'init')
  assert watch._git(tmp_path) is None  # no commit yet
  (tmp_path / 'a.py').write_text('1')
  git(tmp_path, 'add', 'a.py')
  git(tmp_path, 'commit', '-m', 'a')
  commit = git(tmp_path, 'rev-parse', 'HEAD').strip()
  (tmp_path / 'run.json').write_text('what a run writes does not make the code dirty')
  assert watch._git(tmp_path) == {'commit': commit, 'dirty': False}
  (tmp_path / 'a.py').write_text('2')
  assert watch._git(tmp_path) == {'commit': commit, 'dirty': True}
  monkeypatch.setenv('PATH', '')
  assert watch._git(tmp_path) is None  # no git


def test_write_json_is_all_or_nothing(tmp_path):
  path = tmp_path / 'run.json'
  watch.write_json(path, {'a': [1, 0.1 + 0.2]})
  with pytest.raises(TypeError):
    watch.write_json(path, {'a': object()})
  with pytest.raises(UnicodeEncodeError):
    watch.write_text(path, '\ud800')
  assert json.loads(path.read_text()) == {'a': [1, 0.1 + 0.2]} and os.listdir(tmp_path) == ['run.json']


def test_a_folder_that_cannot_be_written():
  with pytest.raises(ValueError, match='nothing can be written in /proc'):  # not even by root
    watch.check_workdir('/proc/run')


def test_an_existing_workdir_is_left_as_it_is(tmp_path):
  (tmp_path / 'file').write_text('x')
  before = tmp_path.stat().st_mtime_ns
  watch.check_workdir(tmp_path)
  watch.check_workdir(str(tmp_path / 'a' / 'b'))
  assert [path.name for path in tmp_path.iterdir()] == ['file']
  assert tmp_path.stat().st_mtime_ns == before
