"""The front door: `vit_jax COMMAND [--flag=value ...]`.

Only the standard library is imported here, so that `vit_jax --help` answers at once; a command's module is imported
when it is called. Exit codes: 0 done, 1 failed, 2 wrong input, 128 + N ended by signal N.
"""

import dis
import errno
import importlib
import os
import sys
import sysconfig
import traceback

from vit_jax import compilation, console, guard, hosts, storage

# name: (one line for --help, the module and its function: argv -> exit code)
COMMANDS = {
  'train': ('train or continue a run: --config, --workdir, --config.KEY=VALUE', 'main', 'main'),
  'predict': ('classes of pictures: --model, PICTURES, --format', 'commands', 'predict'),
  'evaluate': ('accuracy of a model on a data set: --model, --data, --split', 'commands', 'evaluate'),
  'probe': ('how good its features are: --model, --data, --shots, --tune', 'commands', 'probe'),
  'label': ('pseudo-labels of pictures by a teacher: --model, PICTURES, OUT', 'commands', 'label'),
  'selftrain': ('Noisy Student: --model, --data, PICTURES, --workdir', 'commands', 'selftrain'),
  'look': ('what a model looks at, as pictures: --model, PICTURES, OUT', 'commands', 'look'),
  'augment': ('what training sees of pictures, as sheets: PICTURES, OUT, --config', 'commands', 'augment'),
  'check': ('damaged, huge, misnamed and duplicate pictures of a data set: DIR', 'check', 'command'),
  'prepare': ('the same data with small pictures, read faster: DATA, OUT, --short_side', 'prepare', 'command'),
  'report': ('one HTML page of a run: WORKDIR', 'commands', 'report'),
  'list': ('models, configs or datasets, and a PATTERN', 'discovery', 'list_'),
  'show': ('size, licence, sources and accuracy of a NAME or WORKDIR', 'discovery', 'show'),
  'export': ('for timm, Hugging Face, .npz, StableHLO or ONNX: --model, --to, OUT', 'commands', 'export'),
  'serve': ('a page and a JSON endpoint: --model, --host, --port', 'commands', 'serve'),
  'hub': ('push or pull a model with its card', 'share', 'main'),
  'launch': ('N processes of one command on this machine: N, COMMAND ...', 'launch', 'command'),
  'plan': ('memory, FLOPs and exchange on a machine that is not here: --config, --machine', 'plan', 'command'),
  'bench': ('images/s, compile time and memory: --model; or bench input: --data', 'commands', 'bench'),
}

EXAMPLES = """\
  vit_jax train                                                    # the embedded digits, a minute on a laptop
  vit_jax train --config=folder:vit_tiny_patch16_224,PICTURES --workdir=runs/mine
  vit_jax evaluate --model=runs/mine --data=PICTURES --split=test  # one JSON line
  vit_jax show vit_base_patch16_224
  vit_jax bench --model=vit_small_patch16_224 --batch=16"""

WORDS = """\
--model=WORKDIR|FILE|NAME   a run's folder (its best EMA, else best, else last weights), a file of weights, or a name
--data=DIR|tfds:NAME|FILE   what `vit_jax list datasets` explains; --split=test, train[:10%], ...
vit_jax COMMAND --help says the rest; where a command writes, the output is its last argument."""

USERS = (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
LESS_MEMORY = (
  'Use a smaller batch; or keep it and split each step by --config.step.accumulate=4, or save activations by '
  '--config.step.remat=full or --config.step.dtype=bfloat16.'
)


def guarded(function, *args):
  """Exit code of function(*args). What the user can mend becomes one line on stderr; a bug keeps its traceback.

  VIT_JAX_TRACEBACK=1 shows every traceback.
  """
  try:
    return function(*args) or 0
  except SystemExit as leaving:
    return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
  except KeyboardInterrupt:
    return _end(130, 'interrupted')
  except guard.Stopped as stop:
    return _end(128 + stop.number, str(stop), together=guard.NOW.phase == 'end')  # then all were told by the step
  except guard.Failed as failure:
    return _end(1, f'error: {failure}')
  except BrokenPipeError:  # `vit_jax list | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains again when it flushes
    hosts.failed(1)
    return 1
  except Exception as error:
    if isinstance(error, USERS) and _ours(error):
      of_file = isinstance(error, OSError) and error.filename and error.strerror
      return _end(2, f'error: {error.strerror}: {error.filename}' if of_file else f'error: {error}')
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # see diskfull.py
      return _end(1, f'error: {error}')
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
      return _end(1, f'error: out of memory ({" ".join(str(error).split())[:160]}). {LESS_MEMORY}')
    return _end(1)


def _end(code, line=None, *, together=False):
  """The exit code, after one line, or after the traceback of the exception in hand where there is no line.

  Of several processes, all end with this one, unless they come to their end together.
  """
  if line is None:
    hosts.settle()  # before a stack is shown of what may be the death of another one
  if line is None or os.environ.get('VIT_JAX_TRACEBACK'):
    traceback.print_exc()
  if line is not None:
    print(console.clean(storage.shown(line)), file=sys.stderr)
  if not together:
    hosts.failed(code, line)
  return code


def _ours(error):
  """Whether the user can mend it: our own code raised it in so many words, or could not open a file that was named."""
  frames = [error.__traceback__]
  while frames[-1].tb_next:
    frames.append(frames[-1].tb_next)
  if isinstance(error, OSError):
    while frames and _standard(frames[-1]):  # pathlib and gzip stand between us and the disk
      frames.pop()
  elif dis.opname[frames[-1].tb_frame.f_code.co_code[frames[-1].tb_lasti]] != 'RAISE_VARARGS':
    return False  # numpy, or an unpacking, failed under our feet
  name = frames[-1].tb_frame.f_globals.get('__name__', '')
  return name.partition('.')[0] == 'vit_jax'  # a config file is run as vit_jax.configs.NAME


def _standard(frame):
  file = frame.tb_frame.f_code.co_filename
  return file.startswith('<frozen') or 'site-packages' not in file and file.startswith(sysconfig.get_path('stdlib'))


def main(argv=None):
  """Exit code of `vit_jax COMMAND ...`; argv without the program's name."""
  return guarded(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv):
  if not argv or argv[0] in ('-h', '--help', 'help'):
    width = max(map(len, COMMANDS))
    commands = '\n'.join(f'  {name:<{width}}  {line}' for name, (line, *_) in COMMANDS.items())
    print(f'{__doc__.splitlines()[0]}\n\n{commands}\n\n{WORDS}\n\nexamples:\n{EXAMPLES}')
    return 0
  if argv[0] == '--version':
    import vit_jax

    print(vit_jax.__version__)
    return 0
  if argv[0] not in COMMANDS:
    raise ValueError(
      f'vit_jax has no command {argv[0]!r}{console.nearest(argv[0], COMMANDS)}; it has {", ".join(COMMANDS)}.'
    )
  compilation.keep()
  _, module, function = COMMANDS[argv[0]]
  return getattr(importlib.import_module(f'vit_jax.{module}'), function)(argv[1:])
