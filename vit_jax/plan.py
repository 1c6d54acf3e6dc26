"""`vit_jax plan`: what a config's training step costs on a machine that is not here, compiled for it and not run.

The compilation is in a process of its own, because what it needs of jax (a CPU's, told that it compiles for another
machine) must not be found by anything else. This side of it needs no jax; the other side is planned.py.
"""

import importlib.metadata
import json
import os
import subprocess
import sys

from vit_jax import console, machines

NEEDS = {'cuda': ('jax-cuda13-plugin', 'jax-cuda12-plugin'), 'tpu': ('libtpu',)}  # one of these, to compile for it


def command(argv):
  """Prints what a config's training step takes on a machine that is not here: memory, FLOPs, kernels, exchange."""
  from vit_jax import main

  words, overrides = main.split_overrides(argv)
  parser = console.Parser('plan', command.__doc__, epilog='--config.KEY=VALUE changes the config, as in vit_jax train.')
  parser.add_argument('--config', required=True, help='NAME[:ARGS] or FILE.py[:ARGS]; its data need not be here')
  parser.add_argument('--machine', required=True, help=', '.join(machines.MACHINES))
  parser.add_argument('--largest_batch', action='store_true', help='also search for it; compiles three times or more')
  parser.add_argument('--kernels', type=int, default=0, metavar='N', help='also show the N groups with the most bytes')
  odd = 'let cuDNN have an odd number of tokens in training, which jax refuses so far, in place of padded ones'
  parser.add_argument('--odd_tokens', action='store_true', help=odd)
  parser.add_argument('--json', action='store_true', help='print one JSON line')
  args = parser.parse_args(words)
  machine = machines.named(args.machine)
  check_packages(machine)
  wanted = {'config': args.config, 'overrides': overrides, 'machine': machine.name}
  wanted |= {key: getattr(args, key) for key in ('largest_batch', 'kernels', 'odd_tokens', 'json')}
  return compiled(wanted, machine).returncode


def check_packages(machine):
  """Raises ValueError, which says what to install, where the compiler for a machines.Machine is missing."""
  names = NEEDS[machine.chip.platform]
  for name in names:
    try:
      importlib.metadata.version(name)
      return
    except importlib.metadata.PackageNotFoundError:
      continue
  raise ValueError(f"A plan for {machine.name} needs {names[0]}, which is not installed: pip install 'vit_jax[plan]'.")


def made(config, machine, overrides=None, **wanted):
  """The plan as a dict, see planned.plan, of a config by name for a machine by name; in a process of its own.

  overrides: {'a.b': text}.   wanted: largest_batch, kernels, odd_tokens.

  Raises ValueError with its last line where it fails.
  """
  request = {'config': config, 'overrides': overrides or {}, 'machine': machine, 'json': True}
  request |= {'largest_batch': False, 'kernels': 0, 'odd_tokens': False} | wanted
  target = machines.named(machine)
  check_packages(target)
  done = compiled(request, target, capture_output=True, text=True)
  if done.returncode:
    raise ValueError(done.stderr.strip().splitlines()[-1].removeprefix('error: '))
  return json.loads(done.stdout.splitlines()[-1])


def compiled(wanted, machine, **options):
  """The ended process that plans what is wanted for a Machine; options: of subprocess.run."""
  path = os.pathsep.join(place for place in sys.path if place)  # -P: a jax.py in the current folder is not meant
  environment = os.environ | machines.environment(machine) | {'PYTHONPATH': path}
  command = [sys.executable, '-P', '-m', 'vit_jax.planned', json.dumps(wanted)]
  return subprocess.run(command, env=environment, check=False, **options)
