"""Trains, or continues to train, what a config describes.

python -m vit_jax.main [--config=NAME[:ARGS] | --config=FILE.py[:ARGS]] [--workdir=DIR] [--config.KEY=VALUE ...]

--config        a shipped config by name (vit_jax list configs), or a file of your own; default: digits
--workdir       where checkpoints, metrics.jsonl, model.json and run.json go, a folder or gs://BUCKET/NAME;
                default: runs/NAME_TIME
                a folder with an interrupted run is continued from its last checkpoint
                of several processes (see docs/hosts.md) all are given the same one
--config.KEY    changes one value: --config.total_steps=1e3 --config.optim.lr=0.01 --config.data.scale=0.3,1
--extend        continues a finished run to a larger --config.total_steps
--print_config  shows every key, its value, and where that differs from the default; trains nothing
"""

import os
import sys

if __name__ == '__main__' and not sys.flags.safe_path and sys.path[0] == os.getcwd():
  del sys.path[0]  # see __main__.py

import difflib  # noqa: E402
import pathlib  # noqa: E402
import time  # noqa: E402

from absl import flags  # noqa: E402

from vit_jax import guard, hosts, lease, storage, watch  # noqa: E402


def parse(argv):
  """(config, workdir, extend, print_config and help as attributes, {'a.b': text} of --config.a.b) of a command line.

  Raises ValueError for anything else that stands there. The flags live in this call: the next one starts afresh.
  """
  values = flags.FlagValues()
  flags.DEFINE_string('config', 'digits', 'NAME[:ARGS] or FILE.py[:ARGS]', flag_values=values)
  flags.DEFINE_string('workdir', None, 'where the run is written', flag_values=values)
  flags.DEFINE_bool('extend', False, 'continue a finished run', flag_values=values)
  flags.DEFINE_bool('print_config', False, 'show the resolved config', flag_values=values)
  flags.DEFINE_bool('help', False, 'show how to use this', short_name='h', flag_values=values)
  rest, overrides = split_overrides(argv)
  try:
    extra = values(['vit_jax train', *rest])[1:]
  except flags.UnrecognizedFlagError as e:
    near = difflib.get_close_matches(e.flagname, [*values, 'config.KEY'], 1, 0.5)
    hint = f'did you mean --{near[0]}?' if near else '--help lists them.'
    raise ValueError(f'There is no flag --{e.flagname}; {hint}') from e
  except flags.Error as e:
    raise ValueError(f'{" ".join(str(e).split())}; --help shows what it takes.') from e
  if extra:
    raise ValueError(f'{extra[0]!r} is no flag; values are given as --config=NAME, --workdir=DIR, --config.KEY=VALUE.')
  return values, overrides


def split_overrides(argv):
  """(the other words, {'a.b': text} of --config.a.b=TEXT and --config.a.b TEXT); the last of two wins."""
  rest, overrides, words = [], {}, iter(argv)
  for word in words:
    if not word.startswith(('--config.', '-config.')):
      rest.append(word)
      continue
    name, equals, text = word.lstrip('-').removeprefix('config.').partition('=')
    if not equals:
      text = next(words, None)
    if text is None or (not equals and text.startswith('--')):
      raise ValueError(f'{word} wants a value: {word}=VALUE.')
    if not all(name.split('.')):
      raise ValueError(f'{word} names no key; keys look like --config.optim.lr.')
    overrides[name] = text
  return rest, overrides


def default_workdir(spec):
  """runs/NAME_TIME for the --config it is given."""
  name = spec.split('.py:')[0].removesuffix('.py') if '.py' in spec else spec.partition(':')[0]
  return f'runs/{pathlib.Path(name).name}_{time.strftime("%Y%m%d_%H%M%S")}'


def main(argv=None):
  """Exit code of `python -m vit_jax.main ARGV`; ValueError for what the user can mend (cli.guarded shows it)."""
  with guard.signals():  # before anything imports jax
    return _main(argv)


def _main(argv):
  options, overrides = parse(sys.argv[1:] if argv is None else argv)
  if options.help:
    print(__doc__)
    return 0
  from vit_jax import config

  loaded = config.load(options.config)
  # Up to here nothing has imported jax: this is the place for what must come before it.
  if options.print_config:
    print(config.show(loaded, overrides))
    return 0
  workdir = options.workdir and os.path.expanduser(options.workdir)
  if workdir and 'job' not in loaded and 'job' not in overrides and hosts.told(os.environ) is None:
    owner = lease if storage.is_remote(workdir) else guard
    owner.refuse(storage.path(workdir))  # one process, which will train
  resolved = config.resolve(loaded, overrides)
  count = hosts.start()
  if workdir is None and resolved['job'] == 'train':
    if count > 1:
      raise ValueError(f'{count} processes train one run, which needs one folder: give each the same --workdir=DIR.')
    workdir = default_workdir(options.config)
  if workdir is not None:
    watch.check_workdir(workdir)
  given = {f'config.{key}': value for key, value in config.flat(resolved).items()}
  hosts.same(given | {'workdir': workdir, 'extend': options.extend})
  from vit_jax import jobs, memory

  memory.keep_freed()

  jobs.run(resolved, workdir, extend=options.extend)
  return 0


if __name__ == '__main__':
  from vit_jax import cli

  sys.exit(cli.main(['train', *sys.argv[1:]]))
