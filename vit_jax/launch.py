"""`vit_jax launch N COMMAND ...`: several processes of one command on this machine, which know of each other."""

import os
import signal
import socket
import subprocess
import sys
import threading

from vit_jax import console, guard


def command(argv):
  """Runs a command in N processes on this machine that train, or evaluate, together: to try what a cluster will do.

  The first one prints as always; what others print on stderr begins with their number. A signal goes to all of them.
  """
  example = 'example: vit_jax launch 2 --devices=4 train --workdir=runs/two'
  parser = console.Parser('launch', command.__doc__, epilog=example)
  parser.add_argument('processes', type=int, help='how many; after it comes a command of vit_jax')
  parser.add_argument('--devices', type=int, metavar='K', help='emulate so many devices in each, on the CPU')
  own, words = _split(argv)
  args = parser.parse_args(own)
  if args.processes < 1 or args.devices is not None and args.devices < 1 or not words:
    raise ValueError(
      f'launch {" ".join(argv)}: a number of processes from 1 and a command are wanted, as in '
      'vit_jax launch 2 train --workdir=runs/two.'
    )
  return together(words, args.processes, args.devices)


def _split(argv):
  """(our own words, those of the command): it begins after the number, and its flags are not ours."""
  plain = [i for i, word in enumerate(argv) if not word.startswith('-')]
  start = plain[1] if len(plain) > 1 else len(argv)
  return argv[:start], argv[start:]


def together(words, count, devices=None):
  """The exit code of `count` processes of vit_jax WORDS: that of the first one to fail, else 0.   devices: of each."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  ran = [_started(words, i, count, port, devices) for i in range(count)]
  forward = lambda number, frame: [one.send_signal(number) for one in ran if one.poll() is None]
  before = {number: signal.signal(number, forward) for number in guard.NUMBERS}
  try:
    listening = [threading.Thread(target=_shown, args=(i, one)) for i, one in enumerate(ran) if i]
    for thread in listening:
      thread.start()
    codes = [one.wait() for one in ran]
    for thread in listening:
      thread.join()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  return next((128 - code if code < 0 else code for code in codes if code), 0)  # as a shell counts one that was killed


def _started(words, index, count, port, devices):
  told = {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(count), 'JAX_PROCESS_ID': str(index)}
  if devices:
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
    told |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags.strip()}
  path = os.pathsep.join(place for place in sys.path if place)  # -P: a jax.py in the current folder is not meant
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True} if index else {}
  # A session of its own: a terminal would send its Ctrl-C to each process, and so would we.
  return subprocess.Popen([sys.executable, '-P', '-m', 'vit_jax', *words], start_new_session=True,
                          env=os.environ | told | {'PYTHONPATH': path}, **pipes)  # fmt: skip


def _shown(index, process):
  with process.stdout:
    for line in process.stdout:
      print(f'[{index}] {line}', end='', file=sys.stderr)
