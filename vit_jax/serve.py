"""A model behind HTTP: a page to drop pictures on, and the same as JSON, on this machine only unless told otherwise.

GET /             the page                                GET /api/model     what is served, and the limits
GET /health       {"status": "ok"}                        GET /metrics       counts for Prometheus
POST /api/predict a picture -> classes and probabilities  POST /api/look     the same, and where the model looked

A picture is the body of a request, or the file of a form; ?top=5 says how many classes. What goes wrong is answered as
{"error": "one line"}: 400 no picture, 408 sent too slowly, 413 too large, 415 encoded, 422 a wrong query, 503 too busy.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import functools
import math
import pathlib
import signal
import socket
import time
import warnings

import jax.numpy as jnp
import numpy as np

from vit_jax import batching, counts, draw, gate, inference, look, pretrained, tasks, threads, transforms

PAGE = pathlib.Path(__file__).with_name('serve.html')
LOOKS = 4  # most pictures at once whose attention is computed
WORDS = {
  'vit_jax_requests_total': 'Requests answered, by path and status.',
  'vit_jax_rejected_total': 'Requests turned away because too many were there.',
  'vit_jax_pictures_total': 'Pictures computed.',
  'vit_jax_requests_in_progress': 'Pictures being received, decoded, waiting or computed.',
  'vit_jax_queue_depth': 'Pictures that wait for the device.',
  'vit_jax_request_seconds': 'Seconds from the first byte of a request for a picture to its answer.',
  'vit_jax_batch_size': 'Pictures in a batch.',
}
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Service:
  """A model, ready to answer: programs compiled, threads started.

  limits: gate.Limits.   batch: most pictures at once, fewer where that is faster (see `paying`).   hosts: as gate.Guard
  has them.   verbose: notes each request.
  """

  def __init__(self, model, described, *, limits, batch=16, hosts=gate.LOOPBACK, verbose=False):
    self.limits, self.hosts, self.verbose, self.busy = limits, hosts, verbose, 0
    self.predictor = inference.Predictor(model, described, batch=batch)
    look_at, self.maps = looking(model, described, self.predictor)
    programs = {'predict': (self.predictor, paying(self.predictor))}
    if look_at:
      programs['look'] = (look_at, LOOKS)
    h, w = self.predictor.row['size']
    self.about = {
      'name': described['name'], 'weights': described['weights'], 'classes': len(self.predictor.classes),
      'size': [h, w], **dict(zip(('layers', 'heads'), self.maps or (None, None))),
      'grid': list(self.maps[2:]) if self.maps else None,
      'limits': {'bytes': limits.bytes, 'pixels': limits.pixels, 'seconds': limits.seconds},
    }  # fmt: skip
    edges = [2**i for i in range(self.predictor.batch.bit_length())]
    self.counts = counts.Counts(WORDS, {'vit_jax_request_seconds': SECONDS, 'vit_jax_batch_size': edges})
    self.pool = concurrent.futures.ThreadPoolExecutor(min(4, threads.cpus()), 'decode')
    self.batcher = batching.Batcher(programs, capacity=limits.requests, noted=self._computing)

  def close(self):
    """Computes what waits, and ends the threads."""
    self.pool.shutdown(wait=False, cancel_futures=True)
    self.batcher.close()

  def metrics(self):
    """Counts and gauges, as Prometheus reads them."""
    gauges = {'vit_jax_requests_in_progress': self.busy, 'vit_jax_queue_depth': self.batcher.depth}
    return self.counts.text(**gauges)

  async def answer(self, request, kind):
    """The content of the answer to a request for 'predict' or 'look'; gate.Refused where there is none."""
    top = _top(request.query_params)
    if self.busy >= self.limits.requests:
      raise self._full()
    self.busy += 1
    try:
      return await self._answer(request, kind, top)
    finally:
      self.busy -= 1

  async def _answer(self, request, kind, top):
    came, loop = time.perf_counter(), asyncio.get_running_loop()
    end = loop.time() + self.limits.seconds
    try:
      async with asyncio.timeout_at(end):
        received = await gate.body(request, self.limits)
    except TimeoutError:
      raise gate.Refused(408, f'The picture did not arrive within {self.limits.seconds:g} seconds.') from None
    began = time.perf_counter()
    try:
      async with asyncio.timeout_at(end):
        pixels, size = await loop.run_in_executor(self.pool, self._prepare, received)
        look_at = kind == 'look' and self.maps
        found = await asyncio.wrap_future(self.batcher.submit('look' if look_at else 'predict', pixels))
    except TimeoutError:
      raise self._full(f'The answer took longer than {self.limits.seconds:g} seconds; try again.') from None
    except batching.Full:
      raise self._full() from None
    probabilities, maps = found if look_at else (found, None)
    self.counts.observe('vit_jax_request_seconds', time.perf_counter() - came)
    classes = self.predictor.top(probabilities[None], top)[0]
    out = {'classes': [{'name': name, 'probability': p} for name, p in classes], 'size': size}
    if kind == 'look':
      out |= {'picture': draw.address(draw.png(pixels)), 'attention': None if maps is None else self._attention(maps)}
    return out | {'milliseconds': round(1000 * (time.perf_counter() - began), 3)}

  def _prepare(self, received):  # -> (h, w, 3), [w, h]
    """Pixels as the model sees them, and the size of the upright original, of a picture's bytes."""
    image = gate.picture(received, self.limits, self.predictor.row['size'])
    try:
      pixels = self.predictor.prepare(image)
    except transforms.Unreadable as reason:
      raise gate.Refused(400, f'The picture cannot be read: {reason}') from None
    turned = False
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
      turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    return pixels, list(image.size[::-1] if turned else image.size)

  def _attention(self, maps):  # uint8 (layers, heads, rows * cols)
    names = dict(zip(('layers', 'heads', 'rows', 'cols'), self.maps))
    return names | {'data': base64.b64encode(maps.tobytes()).decode()}

  def _full(self, reason='Too many pictures are waiting; try again in a second.'):
    self.counts.add('vit_jax_rejected_total')
    return gate.Refused(503, reason)

  def _computing(self, size):
    self.counts.observe('vit_jax_batch_size', size)
    self.counts.add('vit_jax_pictures_total', size)

  def done(self, method, path, status, seconds):
    """Counts a request that was answered; status None: its sender went away."""
    path, status = path if path in PATHS else 'other', status or 499
    self.counts.add('vit_jax_requests_total', path=path, code=status)
    if self.verbose or status == 500:
      gate.note(method, path, status, seconds)


def paying(predictor):
  """The largest batch up to which more pictures at once cost less time each here; compiles what is up to it.

  On a CPU a batch may well be slower than its pictures one by one, because it does not fit into the caches.
  """
  most, best = 1, math.inf
  for n in sorted({predictor.bucket(n) for n in range(1, predictor.batch + 1)}):
    images, seconds = np.zeros((n, *predictor.row['size'], 3), np.uint8), []
    for _ in range(3):  # the first compiles
      began = time.perf_counter()
      predictor(images)
      seconds.append((time.perf_counter() - began) / n)
    if min(seconds[1:]) > 1.1 * best:
      break
    most, best = n, min(best, *seconds[1:])
  return most


def looking(model, described, predictor):
  """(program, (layers, heads, rows, cols)): prepared pictures -> [(probabilities, uint8 (layers, heads, rows * cols))].

  Each map is scaled to its own maximum. (None, None) for a model without attention, or with none that spans a picture.
  """
  if not look.attends(model):
    return None, None
  subject, task = look.Subject(model, described), tasks.make(loss=described['loss'], classes=predictor.classes)
  h, w = predictor.row['size']

  def read(model, images):  # (b, h, w, 3)
    logits, maps = look.seen(model, images)  # (b, k), (b, layers, heads, rows * cols)
    maps = jnp.clip(maps / jnp.maximum(maps.max(-1, keepdims=True), 1e-12), 0, 1)
    return task.decode(logits), jnp.round(255 * maps).astype(jnp.uint8)

  def look_at(images):
    padded = np.zeros((1 if len(images) == 1 else LOOKS, h, w, 3), np.uint8)
    padded[: len(images)] = images
    return list(zip(*subject.run(read, padded, batch=len(padded))))

  try:
    for n in (1, LOOKS):
      _, maps = look_at(np.zeros((n, h, w, 3), np.uint8))[0]  # compiles
  except ValueError:  # attention inside windows
    return None, None
  return look_at, (*maps.shape[:2], *look.grid(subject.model, (h, w)))


def _top(query):
  """How many classes a query asks for, 5 where it does not say."""
  words = query.multi_items()
  if any(key != 'top' for key, _ in words) or len(words) > 1:
    raise gate.Refused(422, 'The query has "top" and nothing else, such as ?top=5.')
  value = words[0][1] if words else '5'
  if not (value.isascii() and value.isdigit() and len(value) <= 6 and int(value)):
    raise gate.Refused(422, 'top is how many classes are wanted, a number from 1, such as ?top=5.')
  return int(value)


def application(service):
  """The ASGI application of a Service."""
  from starlette.applications import Starlette
  from starlette.exceptions import HTTPException
  from starlette.requests import ClientDisconnect
  from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
  from starlette.routing import Route

  html = PAGE.read_bytes()

  async def page(request):
    return HTMLResponse(html)

  async def health(request):
    return JSONResponse({'status': 'ok'}) if service.batcher.alive else gate.answer(503, 'The device has stopped.')

  async def metrics(request):
    return PlainTextResponse(service.metrics(), media_type='text/plain; version=0.0.4')

  async def about(request):
    return JSONResponse(service.about)

  async def ask(kind, request):
    return JSONResponse(await service.answer(request, kind))

  async def refused(request, problem):
    return gate.answer(problem.status, problem.reason)

  async def unknown(request, problem):  # 404 and 405
    return JSONResponse({'error': problem.detail}, problem.status_code, problem.headers)

  async def gone(request, problem):
    return Response(status_code=499)  # for the counts: nobody is there to read it

  async def failed(request, problem):
    return gate.answer(500, 'Something went wrong here; the log of the server says what.')

  handlers = {'/': page, '/health': health, '/metrics': metrics, '/api/model': about}
  routes = [Route(path, handler) for path, handler in handlers.items()]
  for path, kind in (('/api/predict', 'predict'), ('/api/look', 'look')):
    routes.append(Route(path, functools.partial(ask, kind), methods=['POST']))
  problems = {gate.Refused: refused, HTTPException: unknown, ClientDisconnect: gone, Exception: failed}
  app = Starlette(routes=routes, exception_handlers=problems)
  app.router.redirect_slashes = False
  return gate.Guard(app, hosts=service.hosts, done=service.done)


PATHS = ('/', '/health', '/metrics', '/api/model', '/api/predict', '/api/look')


def server(service, started=lambda: None):
  """A uvicorn.Server of a Service that calls `started` when it listens; run(sockets=[...]) serves until should_exit."""
  import uvicorn

  class Server(uvicorn.Server):
    async def startup(self, sockets=None):
      await super().startup(sockets=sockets)
      started()  # from here on signals are its own

  limits = service.limits
  return Server(uvicorn.Config(
    application(service), http=gate.watched(limits, service.done), ws='none', loop='asyncio', lifespan='off',
    log_config=None, log_level='critical', access_log=False, proxy_headers=False, server_header=False,
    timeout_keep_alive=5, timeout_graceful_shutdown=math.ceil(limits.seconds),
  ))  # fmt: skip


def listening(host, port):
  """A socket that listens; ValueError, one line, for an address that cannot be had."""
  if not 0 <= port < 2**16:
    raise ValueError(f'--port={port}: a number from 0 to 65535 is wanted.')
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    own = socket.create_server((host, port), family=family, backlog=128)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or a small answer waits 40 ms for the other's ACK
    return own
  except OSError as problem:
    reason = (problem.strerror or str(problem)).partition(' (')[0]
    raise ValueError(f'{host}:{port} cannot be listened at ({reason}); choose another --port or --host.') from None


def names(host, *, any_origin=False):
  """The names by which a server at `host` may be called: this machine's own; None, any, where others can reach it."""
  local = host in ('localhost', '::1') or host.startswith('127.')
  return None if any_origin or not local else tuple(dict.fromkeys((*gate.LOOPBACK, _bracketed(host))))


def _bracketed(host):
  return f'[{host}]' if ':' in host else host


def main(open_weights, *, host, port, batch, max_bytes, max_pixels, timeout, concurrency, any_origin, verbose):
  """Serves weights until SIGINT or SIGTERM, then finishes what was asked; the command's exit code.

  open_weights() gives weights.Weights, and is called when the address is known to be free.   any_origin: answers by
  whatever name and to whatever page it is asked; so it is where host is not this machine's own.
  """
  try:
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
  except ImportError as missing:
    raise ValueError(f"vit_jax serve needs {missing.name}: pip install 'vit_jax[serve]'") from None
  warnings.filterwarnings('ignore', module='PIL')  # what is wrong with strangers' pictures is told to them
  limits = gate.Limits(bytes=max_bytes, pixels=max_pixels, seconds=timeout, requests=concurrency)
  hosts = names(host, any_origin=any_origin)
  with listening(host, port) as own:
    address = f'http://{_bracketed(host)}:{own.getsockname()[1]}'
    model, described = pretrained.filled(open_weights())
    service = Service(model, described, limits=limits, batch=batch, hosts=hosts, verbose=verbose)
    words = f'{described["name"]} ({described["weights"]}) at {address} (Ctrl-C ends)'
    running = server(service, lambda: print(words, flush=True))
    stop = lambda *_: setattr(running, 'should_exit', True)  # uvicorn raises its signals again when it has ended
    before = {word: signal.signal(word, stop) for word in (signal.SIGINT, signal.SIGTERM)}
    try:
      running.run(sockets=[own])
    finally:
      service.close()
      for word, handler in before.items():
        signal.signal(word, handler)
  return 0
