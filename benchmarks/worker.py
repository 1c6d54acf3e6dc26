"""Processes that compute for a benchmark: a line of JSON asks one of them for something, a line of JSON answers.

Each side of a comparison lives in a process of its own, so that the memory, the threads and the compiler of one never
meet another's. All may be alive at once; the benchmark asks them in turn, so only one computes.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time

FOLDER = os.path.dirname(os.path.abspath(__file__))


def serve(operations):
  """Answers the lines on stdin until there are no more; for the process itself.

  operations: {name: function of keyword arguments -> dict}. A line is such a dict with 'do', the name; an exception
  becomes {'error': its type and first line}. Stdout is not for answers: libraries print to it.
  """
  number = int(os.environ['WORKER_ANSWERS'])
  os.set_inheritable(number, False)
  answers = os.fdopen(number, 'w')
  for line in sys.stdin:
    request = json.loads(line)
    try:
      answer = operations[request.pop('do')](**request)
    except Exception as error:  # whatever it is, the other sides go on
      answer = {'error': f'{type(error).__name__}: {(str(error).strip() or "no words").splitlines()[0][:300]}'}
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


class Worker:
  """A script of this folder as a process that serves.

  script: its file name.   python: the interpreter.   env: variables on top of ours.   log: a file that gets its stderr
  at the end, None = nothing.
  """

  def __init__(self, script, *, python=sys.executable, env=None, log=None):
    paths = [os.path.dirname(FOLDER), os.environ.get('PYTHONPATH', '')]
    self.script, self.log, self.read = script, log, b''
    self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by close
    self.answers, theirs = os.pipe()
    env = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, paths)), 'WORKER_ANSWERS': str(theirs)} | (env or {})
    self.process = subprocess.Popen(
      [python, os.path.join(FOLDER, script)], stdin=subprocess.PIPE, stdout=self.stderr, stderr=self.stderr, env=env,
      pass_fds=[theirs], start_new_session=True)  # fmt: skip
    os.close(theirs)

  def ask(self, do, *, timeout=60.0, **request):
    """The answer, a dict; {'error': words} when the process has failed, ended, or takes longer than timeout seconds."""
    if self.process is None:
      return {'error': 'the process has ended'}
    try:
      self.process.stdin.write(json.dumps({'do': do, **request}).encode() + b'\n')
      self.process.stdin.flush()
      line = self._line(time.monotonic() + timeout)
    except BrokenPipeError:
      line = b''
    if not line:
      words = self._last_words() if line is not None else f'no answer to {do} in {timeout:.0f} s'
      self.close()
      return {'error': words}
    return json.loads(line)

  def _line(self, until):
    """The next line of its answers; b'' where the process has ended, None where the time is over."""
    while b'\n' not in self.read:
      left = until - time.monotonic()
      if not select.select([self.answers], [], [], min(1, max(0, left)))[0]:
        if left <= 0 or self.process.poll() is not None:
          return None if left <= 0 else b''
        continue
      part = os.read(self.answers, 1 << 16)
      if not part:
        return b''
      self.read += part
    line, self.read = self.read.split(b'\n', 1)
    return line

  def _last_words(self):
    self.stderr.seek(0)
    lines = self.stderr.read().decode(errors='replace').strip().splitlines()
    return f'the process ended: {lines[-1][:300] if lines else "without a word"}'

  def close(self):
    """Ends the process and whatever it has started; what it computed with is free afterwards."""
    if self.process is None:
      return
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()
    with contextlib.suppress(BrokenPipeError):  # what was not read yet
      self.process.stdin.close()
    os.close(self.answers)
    self.process = None
    if self.log:
      self.stderr.seek(0)
      with open(self.log, 'ab') as file:
        file.write(self.stderr.read())
    self.stderr.close()
