"""Files of weights on this machine, found or fetched by name: find(name) is a path.

Looked for in this order: the local folder ($VIT_JAX_WEIGHTS, or the one given), the cache ($VIT_JAX_CACHE, else
~/.cache/vit_jax), Hugging Face's own cache, then over the network the hub ($HF_ENDPOINT, with the token of `hf auth
login` or $HF_TOKEN), a mirror ($VIT_JAX_MIRROR, laid out like the cache) and the address of the release.
VIT_JAX_OFFLINE=1, or HF_HUB_OFFLINE=1, ends the search before the network. What a cache holds is not asked for again.

A file lies in the cache as hub/OWNER/NAME/REVISION/FILE or HOST/PATH, and only whole: see download.py.
"""

import contextlib
import os
import pathlib
import re
import tempfile
import urllib.parse

from vit_jax import caches, download, formats
from vit_jax.manifest import aug_reg, is_row, label_ids, labels, row, rows

__all__ = ['find', 'is_row', 'label_ids', 'labels', 'places', 'published', 'repository', 'row', 'rows', 'sources']

PREFIX = 'hf_hub:'
BESIDE = ('preprocessor_config.json', 'model.json')  # what some repositories say beside config.json
WEIGHTS, INDEX, PICKLE = 'model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin'


def find(name, *, folder=None, unsafe=False):
  """The path of weights by name, downloaded if need be: a file, or the folder of a repository ('OWNER/NAME').

  name: as `row` takes it, or a repository's id, also as 'hf_hub:OWNER/NAME' and with '@REVISION'.
  folder: a local folder, in place of $VIT_JAX_WEIGHTS.   unsafe: whether a PyTorch file may be the answer.

  Raises ValueError for an unknown name, and where nothing is to be had: one line with what each source said and which
  file to put where; OSError where the disk is full.
  """
  if name.startswith(PREFIX) or '/' in name:
    return repository(name, folder=folder, unsafe=unsafe)
  found = _chosen(name, folder)
  reasons = []
  for kind, place in sources(found, folder=folder, unsafe=unsafe):
    try:
      if kind in ('folder', 'cache', 'hub cache'):
        if place.is_file():
          return place
      elif kind == 'hub':
        return _weights(found['repo'], 'main', unsafe)
      elif found['url'] and place.endswith(_under_cache(found['url'])):
        return download.fetch(_quoted(place), caches.folder() / _under_cache(found['url']), sha256=found['sha256'])
      else:
        return download.fetch(_quoted(place), _repo_cache(found['repo'], 'main') / WEIGHTS)
    except download.Unavailable as error:
      reasons.append(str(error))
  raise ValueError(_nothing(found, reasons, folder, unsafe))


def sources(found, *, folder=None, unsafe=False):
  """[(kind, path or address)] where the weights of a row may be, in the order in which they are tried.

  kind: 'folder', 'cache', 'hub cache', 'hub', 'mirror' or 'bucket'.
  """
  repo, url = found['repo'], found['url']
  if url and url.endswith(formats.PICKLES) and not unsafe:
    url = None
  folder = folder or os.environ.get('VIT_JAX_WEIGHTS')
  out = []
  if folder:
    out += [('folder', pathlib.Path(folder).expanduser() / name) for name in _local_names(found, repo, url)]
  if repo:
    at = _repo_cache(repo, 'main')
    out += [('cache', at / WEIGHTS), ('cache', at / INDEX)]
  if url:
    out.append(('cache', caches.folder() / _under_cache(url)))
  if repo:
    out += [('hub cache', at / file) for at in [hub_snapshot(repo, 'main')] if at for file in (WEIGHTS, INDEX)]
  if offline():
    return out
  mirror = os.environ.get('VIT_JAX_MIRROR', '').rstrip('/')
  if repo:
    out.append(('hub', _address(repo, 'main', WEIGHTS)))
    out += [('mirror', f'{mirror}/hub/{repo}/main/{WEIGHTS}')] if mirror else []
  if url:
    out += [('mirror', f'{mirror}/{_under_cache(url)}')] if mirror else []
    out.append(('bucket', url))
  return out


def places(found):
  """Where the weights of a row are published, in words: 'hub', 'bucket' (Google's, closed) or 'pth' (unsafe=True)."""
  return [word for word in published(found) if word != 'mirror']


def published(found):
  """{word: address} of the weights of a row: 'hub', 'bucket' or 'pth' as places has them, 'mirror' where one is set."""
  repo, url, mirror = found['repo'], found['url'], os.environ.get('VIT_JAX_MIRROR', '').rstrip('/')
  out = {'hub': f'{endpoint()}/{repo}'} if repo else {}
  if url:
    out['pth' if url.endswith(formats.PICKLES) else 'bucket'] = url
  if mirror and out:
    out['mirror'] = f'{mirror}/hub/{repo}/main/{WEIGHTS}' if repo else f'{mirror}/{_under_cache(url)}'
  return out


def here(found):
  """The path of the weights of a row on this machine, None where they would have to be downloaded."""
  local = (place for kind, place in sources(found) if kind in ('folder', 'cache', 'hub cache'))
  return next((place for place in local if place.is_file()), None)


def repository(repo, revision='main', *, folder=None, unsafe=False):
  """The folder with config.json and the weights of a repository of the hub, downloaded if need be.

  repo: 'OWNER/NAME', also with '@REVISION'.   revision: a branch, tag or commit.   folder: in place of
  $VIT_JAX_WEIGHTS; a folder OWNER/NAME or NAME in it, with a config.json, comes before all else.   unsafe: whether its
  weights may be a pytorch_model.bin.   Errors as find.
  """
  repo, _, at = repo.removeprefix(PREFIX).partition('@')
  revision = at or revision
  if repo.count('/') != 1 or not all(part.strip('.') for part in repo.split('/')):
    raise ValueError(f'{repo!r} names no repository; wanted OWNER/NAME, such as facebook/dinov2-small.')
  folder = folder or os.environ.get('VIT_JAX_WEIGHTS')
  local = [pathlib.Path(folder).expanduser() / name for name in (repo, repo.partition('/')[2])] if folder else []
  wanted = (WEIGHTS, INDEX, PICKLE) if unsafe else (WEIGHTS, INDEX)
  for at in [*local, _repo_cache(repo, revision), hub_snapshot(repo, revision)]:
    if at and (at / 'config.json').is_file() and any((at / name).is_file() for name in wanted):
      return at
  put = f'put its config.json and {WEIGHTS} into {_repo_cache(repo, revision)}'
  if offline():
    raise ValueError(f'{repo} is not on this machine, and the network is switched off (VIT_JAX_OFFLINE): {put}.')
  at = _repo_cache(repo, revision)
  try:
    download.fetch(_address(repo, revision, 'config.json'), at / 'config.json', token=token())
    for name in BESIDE:
      beside(repo, name, revision)
    _weights(repo, revision, unsafe)  # last: with them, the folder is whole
  except download.Unavailable as error:
    raise ValueError(f'{error}; or {put}.') from None
  return at


def beside(repo, name, revision='main'):
  """The path in the cache of one more file of a repository, downloaded if need be; None where it has no such file."""
  with contextlib.suppress(download.Missing):
    return download.fetch(_address(repo, revision, name), _repo_cache(repo, revision) / name, token=token())


def commit(repo, revision='main'):
  """The commit that a branch or tag of a repository is at now; without network, the revision itself.

  Raises ValueError, in one line, where the hub does not give the repository.
  """
  if offline():
    return revision
  address, page = f'{endpoint()}/api/models/{repo}/revision/{_name(revision)}', f'{endpoint()}/{repo}'
  with tempfile.TemporaryDirectory() as room:
    try:
      answer = download.fetch(address, pathlib.Path(room) / 'revision.json', token=token())
    except download.Missing:
      raise ValueError(f'{page} does not exist (404), or it has no revision {revision!r}.') from None
    except download.Unavailable as error:
      raise ValueError(str(error).replace(address, page)) from None
    said = formats.read_json(answer)
  found = said.get('sha') if isinstance(said, dict) else None
  if not isinstance(found, str) or not re.fullmatch('[0-9a-f]{7,64}', found):  # it becomes the name of a folder
    raise ValueError(f'{page} does not say its commit but {said!r:.60}; name one by --revision.')
  return found


def offline():
  """Whether the environment forbids the network."""
  return any(os.environ.get(word, '').upper() in ('1', 'ON', 'YES', 'TRUE') for word in
             ('VIT_JAX_OFFLINE', 'HF_HUB_OFFLINE'))  # fmt: skip


def hub_snapshot(repo, revision):
  """The folder in which Hugging Face's own tools keep a revision of a repository here, or None."""
  root = pathlib.Path(os.environ.get('HF_HUB_CACHE') or os.path.join(_hub_home(), 'hub')).expanduser()
  root = root / f'models--{repo.replace("/", "--")}'
  ref = root / 'refs' / revision
  at = root / 'snapshots' / (ref.read_text().strip() if ref.is_file() else revision)
  return at if at.is_dir() else None


def _hub_home():
  return os.environ.get('HF_HOME') or os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'huggingface')


def _weights(repo, revision, unsafe):
  """Fetches a repository's weights, in one file or in shards; -> the path of the file or of the shards' index."""
  at = _repo_cache(repo, revision)
  try:
    return download.fetch(_address(repo, revision, WEIGHTS), at / WEIGHTS, token=token())
  except download.Missing as missing:
    try:
      # gets its name when its shards are there: an index beside half of them would look whole
      waiting = download.fetch(_address(repo, revision, INDEX), at / 'shards.json', token=token())
    except download.Missing:
      if not unsafe:
        raise download.Missing(f'{missing} (unsafe=True, --unsafe, would try its {PICKLE})') from None
      return download.fetch(_address(repo, revision, PICKLE), at / PICKLE, token=token())
  for shard in _shards(waiting, repo):
    download.fetch(_address(repo, revision, shard), at / shard, token=token())
  return waiting.rename(at / INDEX)


def _shards(index, repo):
  """The names of the shards in an index; Unavailable for one that would not lie beside it, or is no shard."""
  try:
    names = set(formats.read_json(index)['weight_map'].values())
  except (ValueError, TypeError, LookupError, AttributeError):
    raise download.Unavailable(f'{repo} has an index that is none of shards') from None
  for name in names:
    if not formats.is_shard(name):
      raise download.Unavailable(f'{repo} has an index that names {name!r}, which is no .safetensors beside it')
  return sorted(names)


def _chosen(name, folder):
  """The row of a name; an AugReg model ('B_16') is looked up in index.csv where a folder has it."""
  found = row(name)
  folder = folder or os.environ.get('VIT_JAX_WEIGHTS')
  if folder and found['name'].endswith('.augreg') and not found['name'].startswith(name):
    for index in ('index.csv', 'augreg/index.csv'):
      at = pathlib.Path(folder).expanduser() / index
      if at.is_file():
        return row(os.path.basename(aug_reg(at, name)).removesuffix('.npz'))
  return found


def _local_names(found, repo, url):
  """Under which names a local folder may hold the weights of a row, the likeliest first."""
  names = [f'{found["name"]}.safetensors', f'{found["name"]}/{WEIGHTS}', f'{found["name"]}/{INDEX}']
  if repo:
    names += [f'{repo}/{WEIGHTS}', f'{repo}/{INDEX}', f'{repo.partition("/")[2]}/{WEIGHTS}']
  if url:
    parts = _under_cache(url).split('/')
    shared = len({r['url'] for r in rows().values() if r['url'] and r['url'].endswith(f'/{parts[-1]}')} | {url}) > 1
    start = len(parts) - (2 if shared else 1)  # ViT-B_16.npz is the name of three files
    names += ['/'.join(parts[i:]) for i in range(start, -1, -1)]  # x.npz, augreg/x.npz, ...
  return list(dict.fromkeys(names))


def _nothing(found, reasons, folder, unsafe):
  """The error of find: what each source said, and what to do without them."""
  name, repo, url = found['name'], found['repo'], found['url']
  if not repo and not url:
    return f'No weights were published for {name}; give pretrained=PATH of your own.'
  if offline():
    reasons = ['the network is switched off (VIT_JAX_OFFLINE)']
  if url and url.endswith(formats.PICKLES) and not unsafe:
    reasons = [*reasons, f'{url} is a PyTorch file, read with unsafe=True (--unsafe) only']
  file, place = (WEIGHTS, _repo_cache(repo, 'main')) if repo else (
    url.rpartition('/')[2], (caches.folder() / _under_cache(url)).parent)  # fmt: skip
  what = f'{repo}/{file}' if repo else file
  return f'No weights of {name}: {"; ".join(reasons)}. Without network, put {what} into {place}.'


def _under_cache(url):
  """HOST/PATH of an address."""
  parts = urllib.parse.urlsplit(url)
  return f'{parts.netloc}{parts.path}'


def _repo_cache(repo, revision):
  return caches.folder() / 'hub' / repo / revision.replace('/', '--')


def endpoint():
  """The address of the hub."""
  return (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')


def _address(repo, revision, file):
  return f'{endpoint()}/{repo}/resolve/{_name(revision)}/{file}'


def _name(revision):
  return urllib.parse.quote(revision, safe='')


def _quoted(url):
  return urllib.parse.quote(url, safe=':/')  # R50+ViT-B_16: a plain + is a space to Google's servers


def token():
  """The user's token: $HF_TOKEN, else what `hf auth login` has left; None where there is none."""
  stored = pathlib.Path(os.environ.get('HF_TOKEN_PATH') or os.path.join(_hub_home(), 'token')).expanduser()
  said = os.environ.get('HF_TOKEN') or (stored.read_text() if stored.is_file() else '')
  return said.strip() or None
