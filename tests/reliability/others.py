"""One owner of a workdir, two deterministic runs, a hang that is shown, and the best step under a worsening metric.

  python tests/reliability/others.py [--work=FOLDER]

Each is tried as a user would meet it, in processes of its own. The last line printed is the figure.
"""

import argparse
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import lives

FLAGS = {'total_steps': 60, 'log_every': 1, 'eval_every': 20, 'save.every': 20}
HANG = "import time; from vit_jax import guard\nwith guard.watchdog(0.5):\n  guard.at('data', 7); time.sleep(1.5)"
WORSE = """
import sys, numpy as np; from vit_jax import checkpoint
keep = checkpoint.Checkpoints(sys.argv[1], last=2)
for step in range(1, 7): keep.save(step, {'params': {'x': np.float32(step)}}, {}, 1 / step)
keep.close(); print(keep.steps(), keep.best())
"""


def owner(work):
  """(seconds until a second process is refused, whether the next one starts after the first was killed)."""
  first = lives.Life(work / 'owned', 'digits', FLAGS | {'total_steps': 100_000}, cache=work / 'cache')
  assert first.until(lambda: lives.losses(work / 'owned')[0]), first.stderr()
  begun = time.monotonic()
  second = lives.Life(work / 'owned', 'digits', FLAGS | {'total_steps': 100_000}, cache=work / 'cache')
  refused = second.ended() == 2 and f'is in use by process {first.process.pid} on ' in second.stderr()
  seconds = time.monotonic() - begun
  first.send(signal.SIGKILL)
  first.ended()
  third = lives.Life(work / 'owned', 'digits', FLAGS | {'total_steps': 100_000}, cache=work / 'cache')
  known = len(lives.losses(work / 'owned')[1])
  goes_on = third.until(lambda: len(lives.losses(work / 'owned')[1]) > known or third.process.poll() is not None)
  third.send(signal.SIGKILL)
  return seconds if refused else float('inf'), goes_on and third.ended() == -signal.SIGKILL


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--work', type=pathlib.Path, help='where all is kept; default: a new folder')
  args = parser.parse_args()
  work = (args.work or pathlib.Path(tempfile.mkdtemp(prefix='others'))).absolute()
  work.mkdir(parents=True, exist_ok=True)
  run = lambda script, *words: subprocess.run([sys.executable, '-c', script, *words], cwd=lives.ROOT, text=True,
                                              capture_output=True, check=True)  # fmt: skip
  for name in ('one', 'two'):
    lives.uninterrupted(work / name, 'digits', FLAGS | {'deterministic': True}, cache=work / 'cache')
  same = lives.rest_of(work / 'one') == lives.rest_of(work / 'two')
  seconds, goes_on = owner(work)
  shown = run(HANG).stderr
  hangs = '(phase data, step 7); all threads:' in shown and 'File "<string>", line 3' in shown
  best = run(WORSE, str(work / 'worse')).stdout.strip()
  print(
    f'two deterministic runs: {"identical" if same else "different"}; second process refused after {seconds:.2f} s, '
    f'next one after a kill {"started" if goes_on else "blocked"}; hang {"shown" if hangs else "missed"}; kept and '
    f'best of worsening scores of steps 1 to 6: {best}'
  )
  return int(not (same and seconds < 5 and goes_on and hangs and best == '[1, 5, 6] 1'))


if __name__ == '__main__':
  sys.exit(main())
