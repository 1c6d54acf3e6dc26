"""One file from one address, whole and verified, or an error of one line: fetch.

A download grows in NAME.part, locked while a process writes it, and takes its name only when its length, its checksum
(the caller's, or the one that the hub states) and its structure are right. A part is continued only if the server says
by its ETag (RFC 9110, If-Range) that it still is the same file. An Authorization never follows a redirect to another
host.
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import math
import os
import pathlib
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from vit_jax import formats

TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 5  # in a row that bring less than PROGRESS
PROGRESS = 1 << 20
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
CHUNK = 1 << 20
TEXTS = ('.json', '.md')  # of which no honest one is large
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Unavailable(ValueError):
  """A file that this source does not give."""


class Missing(Unavailable):
  """A file that this source does not have (404)."""


class _Interrupted(Exception):
  """An attempt that may succeed when it is repeated; after: seconds that the server asks to wait."""

  def __init__(self, reason, after=0):
    super().__init__(reason)
    self.after = after


class _Useless(_Interrupted):
  """The same, from the start: what there is of the file cannot be continued."""


def fetch(url, path, *, sha256=None, size=None, token=None):
  """`path`, after the file of an address was downloaded to it if it was not there; two processes download it once.

  sha256: its checksum or the first digits of it.   size: in bytes.   token: sent to the host of `url` alone.

  Raises Missing (404) or Unavailable, in one line, and OSError where the disk is full: nothing is left then. After an
  interruption a part is left, to be continued by the next call.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with _part(path) as part:
    if part is None:
      return path
    attempt = 0
    while True:
      before = os.path.getsize(part.name)
      try:
        _download(url, part, path, sha256, size, token)
        os.replace(part.name, path)
        return path
      except _Interrupted as error:
        if isinstance(error, _Useless):
          _discard(part)
        gained = os.path.getsize(part.name) - before
        attempt = 1 if gained >= PROGRESS else attempt + 1
        if attempt == ATTEMPTS:
          raise Unavailable(f'{url}: {error}, after {ATTEMPTS} attempts') from None
        time.sleep(max(error.after, PAUSE * 2 ** (attempt - 1)))
      except OSError as error:
        if error.errno not in FULL:
          raise
        _discard(part)
        os.remove(part.name)
        raise OSError(error.errno, f'{error.strerror}; the download was removed', str(path)) from None


@contextlib.contextmanager
def _part(path):
  """NAME.part, open and locked; None if another process has finished `path` meanwhile. An empty part is removed."""
  name = f'{path}.part'
  while True:
    if path.is_file():
      yield None
      return
    with open(name, 'a+b', buffering=0) as file:
      _lock(file, path)
      if not _is_still(file, name):  # the other process has renamed it, or removed it
        continue
      if path.is_file():  # it has finished between our look and our lock
        os.remove(name)
        continue
      try:
        yield file
      finally:
        if path.is_file():
          _forget(file)
        elif os.path.exists(name) and os.path.getsize(name) == 0:
          _forget(file)
          os.remove(name)
      return


def _lock(file, path):
  """Waits until no other process holds the lock of an open file."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    print(f'Waiting for the process that downloads {path} ...', file=sys.stderr)
    fcntl.flock(file, fcntl.LOCK_EX)
  except OSError:
    pass  # a file system without locks


def _is_still(file, name):
  """Whether an open file still has this name."""
  with contextlib.suppress(FileNotFoundError):
    return os.path.samestat(os.fstat(file.fileno()), os.stat(name))
  return False


def _download(url, part, path, sha256, size, token):
  """One attempt: part is whole and verified after it."""
  start, tag = os.path.getsize(part.name), _read_tag(part)
  if start and not tag:
    start = _discard(part)
  with _opened(url, start, tag, token) as answer:
    if start and not _continues(answer, start, tag):
      if answer.status == 206:
        raise _Useless('a range was answered that was not asked for')
      start = _discard(part)
    _write_tag(part, answer.headers.get('ETag', ''))
    length = answer.headers.get('Content-Length')
    total = start + int(length) if length and not answer.headers.get('Content-Encoding') else None
    linked = answer.linked.get('X-Linked-Size')
    if total is not None and {total, size, int(linked) if linked else None} - {None, total}:
      _discard(part)
      raise Unavailable(f'{url} would be {total:,} bytes, wanted {size or int(linked):,}')
    _check_space(path, start, total)
    digest = _receive(answer, part, start, total, path.name)
    stated = [h.get(key, '').strip('"') for h, key in ((answer.linked, 'X-Linked-Etag'), (answer.headers, 'ETag'))]
  wanted = sha256 or next((word for word in stated if re.fullmatch('[0-9a-f]{64}', word)), '')
  if digest.startswith(wanted):
    wrong = _structure(part.name, path.name)
  else:
    wrong = f'has the checksum {digest[:16]}, wanted {wanted[:16]}'
  if wrong:
    if start:
      raise _Useless(f'{wrong}, continued from a part')
    _discard(part)
    raise Unavailable(f'{url} {wrong}; it was removed')


def _receive(answer, part, start, total, name):
  """Appends what an answer brings to the part; -> the sha256 of the whole."""
  digest, most = hashlib.sha256(), formats.JSON_BYTES if name.endswith(TEXTS) else math.inf
  part.seek(0)
  while block := part.read(CHUNK):
    digest.update(block)
  at = start
  with _progress(name, start, total) as advance:
    while block := _block(answer, at):
      written = 0
      while written < len(block):  # the disk may take less than it is given
        written += part.write(memoryview(block)[written:])
      digest.update(block)
      at += len(block)
      advance(len(block))
      if at > most:
        _discard(part)
        raise Unavailable(f'{name} goes on after {most:,} bytes; it was removed')
  if total is not None and at != total:
    raise _Interrupted(f'cut off after {at:,} of {total:,} bytes')
  return digest.hexdigest()


def _block(answer, at):
  """The next bytes of an answer, b'' at its end. at: how many there were, for the error."""
  try:
    return answer.read1(CHUNK)
  except TimeoutError:
    raise _Interrupted(f'nothing came for {TIMEOUT} seconds after {at:,} bytes') from None
  except (http.client.HTTPException, OSError) as error:
    raise _Interrupted(f'cut off after {at:,} bytes ({type(error).__name__})') from None


def _opened(url, start, tag, token):
  """The answer to a request; `linked`: headers of the first redirect, in which the hub states size and checksum."""
  request = urllib.request.Request(url, headers={'User-Agent': 'vit_jax', 'Accept-Encoding': 'identity'})
  if start:
    request.add_header('Range', f'bytes={start}-')
    request.add_header('If-Range', tag)
  if token:
    request.add_unredirected_header('Authorization', f'Bearer {token}')
  redirects = _Redirects()
  try:
    answer = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
  except urllib.error.HTTPError as error:
    error.close()
    raise _refusal(url, error) from None
  except urllib.error.URLError as error:  # no connection
    raise Unavailable(f'{urllib.parse.urlsplit(url).netloc} cannot be reached ({error.reason})') from None
  except TimeoutError:
    raise _Interrupted(f'nothing came for {TIMEOUT} seconds') from None
  except (http.client.HTTPException, OSError) as error:
    raise _Interrupted(f'cut off before the answer ({type(error).__name__})') from None
  answer.linked = redirects.first
  return answer


def _refusal(url, error):
  """The exception for a status of 400 and more."""
  if error.code in (401, 403):
    if 'storage.googleapis.com' in url:
      return Unavailable(f"{url} answers {error.code}, as Google's buckets do since February 2026")
    page = url.partition('/resolve/')[0]
    return Unavailable(f'{url} answers {error.code}: accept its licence at {page} and set HF_TOKEN to your token')
  if error.code == 404:
    return Missing(f'{url} does not exist (404)')
  if error.code == 416:
    return _Useless('the server has no more bytes than the part (416)')
  if error.code in (408, 429) or error.code >= 500:
    after = error.headers.get('Retry-After', '')
    return _Interrupted(f'the server answers {error.code}', min(int(after), 60) if after.isdigit() else 0)
  return Unavailable(f'{url} answers {error.code}')


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects; the Authorization stays with the host it was given for."""

  def __init__(self):
    self.first = {}

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    self.first = self.first or headers
    old, new = (urllib.parse.urlsplit(url) for url in (req.full_url, newurl))
    if (old.scheme, new.scheme) == ('https', 'http'):
      raise urllib.error.URLError(f'it redirects to {new.netloc} without encryption')
    request = super().redirect_request(req, fp, code, msg, headers, newurl)
    secret = req.unredirected_hdrs.get('Authorization')
    if request and secret and (old.scheme, old.netloc) == (new.scheme, new.netloc):
      request.add_unredirected_header('Authorization', secret)
    return request


def _continues(answer, start, tag):
  """Whether an answer goes on with the part: the bytes that were asked for, of the same file."""
  span = answer.headers.get('Content-Range', '')
  return answer.status == 206 and span.startswith(f'bytes {start}-') and answer.headers.get('ETag') == tag


def _structure(part, name):
  """What is wrong with a whole file of a known kind, or None."""
  try:
    if name.endswith(('.npz', '.safetensors')):
      formats.open_arrays(part, name=name)
    elif name.endswith('.json'):
      formats.read_json(part)
  except ValueError as error:
    return f'is no {name.rpartition(".")[2]} ({str(error).replace(part, name)})'
  return None


def _check_space(path, start, total):
  free = shutil.disk_usage(path.parent).free
  if total is not None and total - start > free:
    raise OSError(errno.ENOSPC, f'{total - start:,} bytes are wanted and {free:,} are free', str(path))


def _discard(part):
  """Empties a part; -> its size, 0."""
  part.truncate(0)
  _forget(part)
  return 0


def _read_tag(part):
  with contextlib.suppress(FileNotFoundError), open(f'{part.name}.etag', encoding='latin-1') as file:
    return file.read()
  return ''


def _write_tag(part, tag):
  if not tag or tag.startswith('W/'):  # a weak one does not promise the same bytes
    _forget(part)
    return
  with open(f'{part.name}.etag', 'w', encoding='latin-1') as file:
    file.write(tag)


def _forget(part):
  with contextlib.suppress(FileNotFoundError):
    os.remove(f'{part.name}.etag')


@contextlib.contextmanager
def _progress(name, start, total):
  """A function that is told how many bytes came; on a terminal it draws a bar with the time that is left."""
  if not sys.stderr.isatty():
    yield lambda count: None
    return
  import rich.console
  import rich.progress as bars

  columns = [bars.TextColumn('{task.description}'), bars.BarColumn(), bars.DownloadColumn(),
             bars.TransferSpeedColumn(), bars.TimeRemainingColumn()]  # fmt: skip
  with bars.Progress(*columns, console=rich.console.Console(stderr=True)) as progress:
    task = progress.add_task(name, total=total, completed=start)
    yield lambda count: progress.advance(task, count)
