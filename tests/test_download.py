"""Downloads from a server that cuts, stalls, lies and redirects: the file is right and whole, or one line says why."""

import hashlib
import http.server
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

from vit_jax import download, formats

CONTENT = os.urandom(3_000_000)


class Server(http.server.ThreadingHTTPServer):
  """Answers what a list of answers says, one for each request, the last one again and again; keeps the requests."""

  daemon_threads = True

  def __init__(self, *answers, content=CONTENT, etag='"v1"'):
    super().__init__(('127.0.0.1', 0), Handler)
    self.answers, self.content, self.etag, self.seen = list(answers) or [whole], content, etag, []
    self.url = f'http://127.0.0.1:{self.server_port}'
    threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

  def handle_error(self, request, client_address):
    pass

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.shutdown()
    self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def do_GET(self):
    self.close_connection = True
    self.server.seen.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
    answers = self.server.answers
    (answers.pop(0) if len(answers) > 1 else answers[0])(self)

  def log_message(self, *_):
    pass

  def send(self, status, body=b'', **headers):
    self.send_response(status)
    for key, value in ({'Content-Length': len(body)} | {k.replace('_', '-'): v for k, v in headers.items()}).items():
      if value is not None:
        self.send_header(key, str(value))
    self.end_headers()
    self.wfile.write(body)
    self.wfile.flush()


def status(code, **headers):
  return lambda handler: handler.send(code, b'no', **headers)


def whole(handler, *, until=None, etag=None):
  """The file, or the range that was asked for if the ETag still fits; until: how much of it comes before the cut."""
  content, etag = handler.server.content, handler.server.etag if etag is None else etag
  start = 0
  if 'Range' in handler.headers and handler.headers['If-Range'] == etag:
    start = int(handler.headers['Range'].removeprefix('bytes=').rstrip('-'))
  span = {'Content_Range': f'bytes {start}-{len(content) - 1}/{len(content)}'} if start else {}
  body = content[start:][:until]
  handler.send(206 if start else 200, body, Content_Length=len(content) - start, ETag=etag or None, **span)


def cut(handler):
  whole(handler, until=1_200_000)


def stall(handler):
  whole(handler, until=1_200_000)
  time.sleep(2)


def redirect(url, **headers):
  return lambda handler: handler.send(302, Location=url, **headers)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
  monkeypatch.setattr(download, 'TIMEOUT', 0.5)
  monkeypatch.setattr(download, 'PAUSE', 0.01)


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'cache' / 'w.bin'


def left(path):
  return sorted(file.name for file in path.parent.iterdir())


def refused(server, path, *words, kind=download.Unavailable, **options):
  with pytest.raises(kind) as error:
    download.fetch(f'{server.url}/timm/x/resolve/main/w', path, **options)
  text = str(error.value)
  assert '\n' not in text
  for word in words:
    assert word in text, text


def test_a_file_is_fetched_once(path):
  with Server() as server:
    for _ in range(2):
      assert download.fetch(f'{server.url}/w', path, size=len(CONTENT)) == path
    assert path.read_bytes() == CONTENT and len(server.seen) == 1 and left(path) == ['w.bin']


@pytest.mark.parametrize('failure', [cut, stall, status(500), status(503, Retry_After='0'), status(429)])
def test_it_goes_on_after_a_failure(path, failure):
  with Server(failure, failure, whole) as server:
    download.fetch(f'{server.url}/w', path, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT and left(path) == ['w.bin'] and len(server.seen) == 3
    if failure in (cut, stall):
      assert [headers.get('range') for _, headers in server.seen] == [None, 'bytes=1200000-', 'bytes=2400000-']


def test_it_gives_up_in_the_end_and_goes_on_next_time(path):
  tiny = lambda handler: whole(handler, until=1000)
  with Server(*[tiny] * 5, whole) as server:
    refused(server, path, 'cut off after 5,000 of 3,000,000 bytes', '5 attempts')
    assert left(path) == ['w.bin.part', 'w.bin.part.etag'] and len(server.seen) == 5
    download.fetch(f'{server.url}/w', path)
    assert server.seen[-1][1]['range'] == 'bytes=5000-'
    assert path.read_bytes() == CONTENT and left(path) == ['w.bin']


@pytest.mark.parametrize(
  'change', ['etag', 'no etag', 'weak etag', 'ignores the range', 'wrong range', 'other tag', '416']
)
def test_a_part_of_another_file_is_not_continued(path, change):
  first = {'no etag': '', 'weak etag': 'W/"v1"'}.get(change, '"old"')
  answers = {
    'etag': [whole], 'no etag': [whole], 'weak etag': [whole],
    'ignores the range': [lambda h: h.send(200, CONTENT, ETag='"old"')],
    'wrong range': [lambda h: h.send(206, CONTENT[5:], ETag='"old"', Content_Range='bytes 5-2999999/3000000'), whole],
    'other tag': [lambda h: h.send(206, CONTENT[9:], ETag='"new"', Content_Range='bytes 1000-2999999/3000000'), whole],
    '416': [status(416), whole],
  }[change]  # fmt: skip
  old = os.urandom(3_000_000)

  def earlier(handler):
    handler.send(200, old[:1000], Content_Length=len(old), ETag=first or None)

  with Server(*[earlier] * 5, *answers) as server:
    with pytest.raises(download.Unavailable):
      server.answers[5:] = [status(418)]
      download.fetch(f'{server.url}/w', path)
    server.answers[:] = answers
    assert os.path.getsize(f'{path}.part') == 1000
    download.fetch(f'{server.url}/w', path)
    assert path.read_bytes() == CONTENT and left(path) == ['w.bin']


def test_a_checksum_decides(path):
  digest = hashlib.sha256(CONTENT).hexdigest()
  with Server() as server:
    refused(server, path, 'checksum', digest[:16], 'removed', sha256='0' * 64)
    assert left(path) == []
    download.fetch(f'{server.url}/w', path, sha256=digest[:8])
  with Server(etag=f'"{"1" * 64}"') as server:  # the hub's ETag of a large file is its checksum
    refused(server, path.with_name('x'), 'checksum', '1111')


def test_a_spoilt_part_is_fetched_again_from_the_start(path):
  with Server(cut, whole) as server:
    path.parent.mkdir()
    with open(f'{path}.part', 'wb') as file, open(f'{path}.part.etag', 'w') as tag:
      file.write(bytes(1000))
      tag.write('"v1"')
    server.answers = [whole]
    download.fetch(f'{server.url}/w', path, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert [headers.get('range') for _, headers in server.seen] == ['bytes=1000-', None]


def test_a_length_that_is_not_the_stated_one_is_refused(path):
  with Server() as server:
    refused(server, path, '3,000,000', '3,000,001', size=len(CONTENT) + 1)
  assert left(path) == []


@pytest.mark.parametrize('name, content', [
  ('w.safetensors', CONTENT), ('w.npz', CONTENT[:100]), ('w.safetensors', b'<html>sign in</html>'), ('c.json', b'{'),
])  # fmt: skip
def test_what_is_no_such_file_is_removed(path, name, content):
  path = path.with_name(name)
  with Server(content=content) as server:
    refused(server, path, 'removed', name.partition('.')[2])
  assert left(path) == []


def test_a_redirect_keeps_the_token_from_other_hosts(path):
  with Server() as far, Server() as near:
    near.answers = [redirect('/moved', X_Linked_Size=len(CONTENT)), redirect(f'{far.url}/cdn'), whole]
    download.fetch(f'{near.url}/w', path, token='secret')
    assert [headers.get('authorization') for _, headers in near.seen] == ['Bearer secret'] * 2
    assert [headers.get('authorization') for _, headers in far.seen] == [None]
    assert path.read_bytes() == CONTENT


def test_the_first_redirect_states_size_and_checksum(path):
  with Server() as far, Server() as near:
    near.answers = [redirect(f'{far.url}/cdn', X_Linked_Etag=f'"{"2" * 64}"')]
    refused(near, path, 'checksum', '2222')
    near.answers = [redirect(f'{far.url}/cdn', X_Linked_Size=7)]
    refused(near, path, 'wanted 7')
    near.answers = [redirect('/round')]
    refused(near, path, '302')
  assert left(path) == []


@pytest.mark.parametrize('code, words', [
  (401, ('401', 'accept its licence at', '/timm/x', 'HF_TOKEN')), (403, ('403', 'HF_TOKEN')), (404, ('404',)),
  (410, ('410',)), (500, ('500', '5 attempts')),
])  # fmt: skip
def test_a_refusal_is_one_line(path, code, words):
  with Server(status(code)) as server:
    refused(server, path, *words, kind=download.Missing if code == 404 else download.Unavailable)
  assert left(path) == []


def test_nobody_there(path):
  with Server() as server:
    pass
  refused(server, path, '127.0.0.1', 'cannot be reached')
  with Server(lambda handler: time.sleep(1)) as server:
    download.ATTEMPTS, old = 2, download.ATTEMPTS
    try:
      refused(server, path, 'nothing came for 0.5 seconds', '2 attempts')
    finally:
      download.ATTEMPTS = old


def test_a_full_disk_leaves_nothing_behind(path, monkeypatch):
  import resource

  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Server() as server:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, old[1]))
    try:
      refused(server, path, 'w.bin', 'removed', kind=OSError)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert left(path) == []
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda _: type('Usage', (), {'free': 1000}))
    refused(server, path, 'w.bin', '3,000,000 bytes are wanted and 1,000 are free', kind=OSError)
  assert left(path) == []


def slow(handler):
  content = handler.server.content
  handler.send(200, content[:1_500_000], Content_Length=len(content), ETag=handler.server.etag)
  time.sleep(1)
  handler.wfile.write(content[1_500_000:])


def test_two_processes_fetch_it_once(path):
  context = multiprocessing.get_context('spawn')  # jax has threads, which a fork would break
  with Server(slow) as server:
    both = [context.Process(target=download.fetch, args=(f'{server.url}/w', path)) for _ in range(2)]
    for process in both:
      process.start()
    for process in both:
      process.join(20)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(server.seen) == 1 and path.read_bytes() == CONTENT and left(path) == ['w.bin']


def test_a_file_that_another_process_finishes_meanwhile_is_taken(path, monkeypatch):
  def late(file, _):  # after the look, before the lock
    path.write_bytes(b'theirs')

  monkeypatch.setattr(download, '_lock', late)
  with Server() as server:
    assert download.fetch(f'{server.url}/w', path).read_bytes() == b'theirs'
    assert not server.seen and left(path) == ['w.bin']


def test_a_killed_download_is_continued(path):
  context = multiprocessing.get_context('spawn')  # jax has threads, which a fork would break
  with Server(lambda handler: (whole(handler, until=1_200_000), time.sleep(5)), whole) as server:
    process = context.Process(target=download.fetch, args=(f'{server.url}/w', path))
    process.start()
    end = time.time() + 10
    while time.time() < end and not (os.path.exists(f'{path}.part') and os.path.getsize(f'{path}.part') == 1_200_000):
      time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert left(path) == ['w.bin.part', 'w.bin.part.etag']
    download.fetch(f'{server.url}/w', path)
    assert server.seen[-1][1]['range'] == 'bytes=1200000-' and path.read_bytes() == CONTENT
  assert left(path) == ['w.bin']


def test_a_terminal_sees_a_bar(path, monkeypatch, capsys):
  monkeypatch.setattr(download.sys.stderr, 'isatty', lambda: True, raising=False)
  monkeypatch.setenv('TERM', 'xterm')
  with Server() as server:
    download.fetch(f'{server.url}/w', path)
  out = capsys.readouterr()
  assert 'w.bin' in out.err and not out.out


def test_weights_arrive_whole(tmp_path):
  buffer = tmp_path / 'given.safetensors'
  formats.save_safetensors(buffer, [('a', np.arange(5.0))])
  with Server(content=buffer.read_bytes()) as server:
    path = download.fetch(f'{server.url}/w', tmp_path / 'w.safetensors')
  np.testing.assert_array_equal(formats.open_arrays(path)['a'], np.arange(5.0))
