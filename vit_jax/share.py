"""Models to and from a hub: `hub push` makes a folder with weights, config and a model card and uploads it, `hub pull`
downloads one that load takes.

One folder serves three libraries: model.safetensors and config.json in timm's layout, which timm opens by hf_hub: and
transformers through its wrapper of timm, and model.json, by which vit_jax knows the model to the last argument. With
--to=hf it is transformers' own layout, which timm does not read.
"""

import json
import os
import pathlib
import re
import shutil
import sys
import tempfile

from vit_jax import console, hub, storage

FILES = ('config.json', 'model.safetensors', 'model.json', 'README.md')  # what a folder to be uploaded holds
KEPT = ('.json', '.md', '.safetensors')  # of a repository, what pull keeps
LOGIN = 'set HF_TOKEN to a token that may write, or run `hf auth login`'


def main(argv):
  """The exit code of `vit_jax hub push|pull ...`."""
  if argv and argv[0] in COMMANDS:
    return COMMANDS[argv[0]](argv[1:])
  parser = console.Parser('hub', 'Shares a model: push uploads it with a model card, pull downloads one.')
  parser.add_argument('command', choices=list(COMMANDS), help='vit_jax hub push --help says the rest')
  parser.parse_args(argv)
  return 0


def _push(argv):
  """Uploads a model with its card to ORG/NAME, or with --dry_run writes the folder only."""
  from vit_jax import commands

  parser = console.Parser('hub push', _push.__doc__)
  commands.add_model(parser)
  parser.add_argument('repo', metavar='ORG/NAME', help='the repository, made where there is none')
  parser.add_argument('--to', choices=['timm', 'hf'], help='the layout (default: timm)')
  parser.add_argument('--dry_run', action='store_true', help='write the folder, look at it, upload nothing')
  parser.add_argument('--out', metavar='DIR', help='keep the folder here (default with --dry_run: WORKDIR/hub)')
  parser.add_argument('--licence', help='such as apache-2.0 (default: that of the weights it started from)')
  parser.add_argument('--private', action='store_true', help='a repository that only you and your organization see')
  parser.add_argument('--revision', metavar='BRANCH', help='push to this branch (default: main)')
  args = vars(parser.parse_args(argv))
  print(push(args.pop('model'), args.pop('repo'), **args))
  return 0


def _pull(argv):
  """Downloads the repository ORG/NAME into a folder that --model takes."""
  parser = console.Parser('hub pull', _pull.__doc__)
  parser.add_argument('repo', metavar='ORG/NAME', help='the repository, also ORG/NAME@REVISION')
  parser.add_argument('out', nargs='?', metavar='OUT', help='the folder to write; must not exist (default: NAME)')
  parser.add_argument('--revision', default='main', help='a branch, tag or commit (default: %(default)s)')
  args = parser.parse_args(argv)
  print(pull(args.repo, args.out, revision=args.revision))
  return 0


COMMANDS = {'push': _push, 'pull': _pull}


def push(
  model, repo, *, to=None, out=None, dry_run=False, licence=None, private=False, revision=None, arch=None,
  numerics=None, unsafe=False,
):  # fmt: skip
  """Uploads a model with its card, and gives the address; with dry_run writes the folder only, and gives its path.

  Args:
    model: what load takes: the folder of a run, a folder or file of weights, a name; or a folder that dry_run has
      written, which is uploaded as it is (so its README.md may be edited first).
    repo: 'ORG/NAME'.   to: 'timm' (None) or 'hf', the layout.   licence: in place of what the weights say.
    out: where the folder is kept; None: WORKDIR/hub with dry_run, else nowhere.   private: for a repository that is
      made new.   revision: a branch, made where there is none.   arch, numerics, unsafe: as load has them.

  Raises ValueError, in one line, for what the layout cannot say, an existing `out`, a missing package or token, and
  what the hub refuses; no half-written folder is left, and the hub takes all files in one commit or none.
  """
  _check(repo)
  storage.refuse(out or '', 'The folder')
  api = None if dry_run else _api()
  source = pathlib.Path(model)
  if all((source / name).is_file() for name in FILES):
    if dry_run or to or out or licence:
      raise ValueError(f'{model} is pushed as it is: leave --dry_run, --to, --out and --licence away.')
    return _upload(api, source, repo, private=private, revision=revision)
  if dry_run and out is None and not (source / 'checkpoints').is_dir():
    raise ValueError('--dry_run of a model that is no workdir: say where to write the folder, by --out=DIR.')
  out = (source / 'hub' if out is None else pathlib.Path(out)).expanduser().absolute() if dry_run or out else None
  if out and os.path.lexists(out):
    raise ValueError(f'{out} exists; remove it, or choose another place by --out=DIR.')
  if out:
    out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.hub.', dir=out and out.parent) as room:
    folder = pathlib.Path(room) / repo.partition('/')[2]
    write(model, folder, repo, to=to or 'timm', licence=licence, arch=arch, numerics=numerics, unsafe=unsafe)
    address = None if dry_run else _upload(api, folder, repo, private=private, revision=revision)
    if out:
      os.replace(folder, out)
  return address or out


def write(model, folder, repo, *, to='timm', licence=None, arch=None, numerics=None, unsafe=False):
  """Writes what is uploaded of a model into a new folder: weights, config, model.json and README.md; see push."""
  from vit_jax import bench, card, exports, models, pretrained, watch, weights

  opened, _ = pretrained.open_any(model, arch=arch, numerics=numerics, unsafe=unsafe)
  made, described = pretrained.filled(opened)
  described = described | {'preprocessing': pretrained.row(described), 'licence': licence or described['licence']}
  pretrained.remember(made, licence=described['licence'])
  exports.export(made, to=to, out=folder)
  watch.write_json(folder / 'model.json', weights.stamped(described))
  config = json.loads((folder / 'config.json').read_text())
  kinds = config['architectures'] if to == 'hf' else ['ForImageClassification' * bool(config['num_classes'])]
  facts = {
    'class': type(made).__name__,
    'parameters': models.count(made),
    'gflops': bench.forward_gflops(made, described['architecture']['img_size']),
    'auto': 'AutoModelForImageClassification' if kinds[0].endswith('ForImageClassification') else 'AutoModel',
  }
  run = card.record(opened.path) if opened.form == 'run' else None
  published = hub.row(str(model)) if not pretrained.is_path(model) and hub.is_row(str(model)) else None
  text = card.write(repo, described, facts, layout=to, run=run, published=published)
  (folder / 'README.md').write_text(text, encoding='utf-8')
  if not described['licence']:
    print('no licence is known, and without one nobody else may use it: --licence=apache-2.0', file=sys.stderr)


def _check(repo):
  if not re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', repo):
    raise ValueError(f'{repo!r} names no repository; wanted ORG/NAME, such as ann/flowers.')


def _api():
  """huggingface_hub's client; ValueError without the package or a token, before anything is computed."""
  try:
    import huggingface_hub
  except ImportError:
    raise ValueError("To push, install the hub's client: pip install 'vit_jax[hub]'; --dry_run needs none.") from None
  if hub.offline():
    raise ValueError('The network is switched off (VIT_JAX_OFFLINE or HF_HUB_OFFLINE); --dry_run needs none.')
  if not hub.token():
    raise ValueError(f'There is no token for {hub.endpoint()}: {LOGIN}.')
  if not sys.stderr.isatty():  # a log is no place for bars
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
  return huggingface_hub.HfApi(endpoint=hub.endpoint(), token=hub.token(), library_name='vit_jax')


def _upload(api, folder, repo, *, private, revision):
  """The address of a repository, made if need be, after it took the files of a folder in one commit."""
  import vit_jax

  try:
    api.create_repo(repo, private=private or None, exist_ok=True)
    if revision not in (None, 'main'):
      api.create_branch(repo, branch=revision, exist_ok=True)
    message = f'{repo.partition("/")[2]}, by vit_jax {vit_jax.__version__}'
    api.upload_folder(repo_id=repo, folder_path=folder, revision=revision, commit_message=message)
  except Exception as error:  # of the client's several HTTP libraries, each with errors of its own
    if sys.stderr.isatty():
      print(file=sys.stderr)  # the client leaves its bar without an end
    raise ValueError(f'{repo} was not pushed: {_reason(error, repo)}.') from error
  return f'{hub.endpoint()}/{repo}' + (f'/tree/{revision}' if revision not in (None, 'main') else '')


def _reason(error, repo):
  """Why an upload failed, in a few words: the hub's status where it gave one, else the first words of the error."""
  cause, status = error, None
  while cause is not None and status is None:
    status = getattr(getattr(cause, 'response', None), 'status_code', None)
    deepest, cause = cause, cause.__cause__ or cause.__context__
  said = ' '.join((getattr(deepest, 'server_message', None) or str(deepest) or type(deepest).__name__).split())[:160]
  advice = {
    401: f'{hub.endpoint()} does not know this token (401): {LOGIN}',
    403: f'this token may not write to {repo} (403): {LOGIN}',
    404: f'{hub.endpoint()} knows no {repo.partition("/")[0]}, or not that branch (404)',
    409: f'it was changed meanwhile, or the name is taken (409: {said}); push again',
  }
  if isinstance(error, ValueError):  # the client's own words, such as those on a card that was edited
    return ' '.join(str(error).split())[:160].rstrip('.')
  if status is None:
    return f'{hub.endpoint()} cannot be reached, or broke off ({said.rstrip(".")}); push again'
  again = '; try again later' if status >= 500 or status == 429 else ''
  return advice.get(status) or f'{hub.endpoint()} answers {status} ({said.rstrip(".")}){again}'


def pull(repo, out=None, *, revision='main'):
  """Downloads a repository as it is now into the new folder `out` (None: its name, here), and gives the path.

  Files come through the cache, resumed and with their checksums; that the weights are those of the model that the
  config describes is seen before the folder appears. Raises ValueError, in one line, where anything is not so.
  """
  from vit_jax import weights

  repo, _, at = repo.removeprefix(hub.PREFIX).partition('@')
  _check(repo)
  storage.refuse(out or '', 'The folder')
  out = pathlib.Path(out or repo.rpartition('/')[2]).expanduser().absolute()
  if os.path.lexists(out):
    raise ValueError(f'{out} exists; remove it, or name another folder.')
  commit = hub.commit(repo, at or revision)
  found = hub.repository(repo, commit)
  files = {file.name: file for file in found.iterdir()}
  if not hub.offline() and (readme := hub.beside(repo, 'README.md', commit)):
    files['README.md'] = readme
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as room:
    folder = pathlib.Path(room) / out.name
    folder.mkdir()
    for name, file in files.items():
      if file.suffix in KEPT:
        shutil.copyfile(file, folder / name)
    opened = weights.open_weights(folder)
    print(f'{repo} at {commit[:12]}: {opened.described["name"]}, {len(opened.converted()):,} arrays', file=sys.stderr)
    os.replace(folder, out)
  return out
