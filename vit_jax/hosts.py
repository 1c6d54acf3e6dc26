"""Several processes, one run: joined where the environment says so, and ended together.

This process is one of several where the environment has

JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID     by hand, anywhere: HOST:PORT, N, and 0 to N - 1
SLURM_JOB_ID, _STEP_NODELIST, _NTASKS, _PROCID and _LOCALID       what srun sets
OMPI_MCA_orte_hnp_uri and OMPI_COMM_WORLD_SIZE                    what mpirun of Open MPI 4 sets
TPU_WORKER_HOSTNAMES or TPU_PROCESS_ADDRESSES                     a TPU slice on GKE; MEGASCALE_NUM_SLICES for several
a TPU, and Google's metadata server that is asked for the rest    a TPU VM, one or a slice of them
JOB_COMPLETION_INDEX in Kubernetes, and the package kubernetes    an indexed Job (pip install 'jax[k8s]')

but not where JAX_NUM_PROCESSES is 1. jax.distributed knows these itself, except the two numbers of the first row.

When a process dies, jax leaves the others waiting in a collective until its heartbeat gives up, and then aborts them
with the stack of a library. So each process has a connection to the first one, which the kernel closes when either
ends, however that happens. The others then end with one line. Standard library only, but for what starts jax.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time

from vit_jax import guard

NAMES = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
SLURM = 'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'
MEETING = 300  # seconds that processes wait for each other at the start
HEARTBEAT = 60  # seconds of silence of a machine that hangs, or whose network does; a process that ends is seen at once
LINKING = 30  # seconds for all connections to be made
KEY = 'vit_jax'
DONE = b'done'
PEERS = []  # the one Peers of this process, where there is one


def start():
  """Joins the processes of a run, if the environment says that there are several; returns how many there are.

  To be called once, before jax is used. On a machine of its own it neither starts nor imports anything.

  Raises ValueError where the environment says it only in part, or contradicts itself; guard.Failed where the others
  do not come.
  """
  arguments = told(os.environ)
  if arguments is None:
    return 1
  import jax
  from jax._src.distributed import global_state  # the public functions do not give the store of keys and values

  perhaps = not arguments and not _announced(os.environ)  # a TPU VM would have to be asked
  if perhaps and 'TPU_SKIP_MDS_QUERY' in os.environ:
    return 1  # jax has found no TPU chips
  with contextlib.suppress(AttributeError):  # jax 0.8 has no such switch
    jax.config.update('jax_enable_preemption_service', False)  # it would handle SIGTERM
  try:
    with _waiting():
      timeouts = dict(initialization_timeout=MEETING + 10, heartbeat_timeout_seconds=HEARTBEAT)
      jax.distributed.initialize(**timeouts, **arguments)
  except (RuntimeError, ValueError, OSError) as error:
    reason = ' '.join(str(error).split())[:300]
    if perhaps and global_state.client is None:
      print(f"The TPU's metadata cannot be read ({reason}): taken as one machine.", file=sys.stderr)
      return 1
    raise guard.Failed(f'The processes of this run cannot meet: {reason}') from error
  finally:
    guard.reinstall()  # jax 0.8 has put a handler over ours
  count = global_state.num_processes
  if count > 1:
    _results_only()
    _delay_abort()
    links = _connect(global_state)
    PEERS.append(Peers(links, global_state.process_id, count))
    atexit.register(PEERS[0].done)  # before jax waits for the others, whose end is then as it should be
  return count


def told(environment):
  """The arguments of jax.distributed.initialize that an environment implies; None where this process is alone.

  {} leaves all to jax, also the question of how many there are.
  """
  given = {name: environment[name] for name in NAMES if environment.get(name)}
  if given.get('JAX_NUM_PROCESSES') == '1':
    return None
  detected = _announced(environment)
  if given and not detected and len(given) < len(NAMES):
    missing = ', '.join(name for name in NAMES if name not in given)
    raise ValueError(f'{", ".join(given)} is set, and {missing} is not: all three of them say which process this is.')
  address, count, index = (given.get(name) for name in NAMES)
  for name in NAMES[1:]:
    if name in given and not given[name].isdecimal():
      raise ValueError(f'{name} is {given[name]!r}; a number is wanted.')
  if count and index and int(index) >= int(count):
    raise ValueError(f'JAX_PROCESS_ID={index} is none of JAX_NUM_PROCESSES={count}; they are counted from 0.')
  if address and not address.rpartition(':')[2].isdecimal():
    raise ValueError(f'JAX_COORDINATOR_ADDRESS is {address!r}; HOST:PORT of process 0 is wanted.')
  arguments = {'coordinator_address': address, 'num_processes': count and int(count)}
  arguments |= {'process_id': index and int(index)}
  if len(given) == len(NAMES):  # nothing is left to be found out, and no metadata server to be asked
    return arguments | {'cluster_detection_method': 'deactivate'}
  if detected or importlib.util.find_spec('libtpu') and 'TPU_SKIP_MDS_QUERY' not in environment:
    return {name: value for name, value in arguments.items() if value is not None}
  return None


def _announced(environment):
  """Whether a TPU slice, Slurm, Open MPI or Kubernetes says that this process has others."""
  hosts = environment.get('TPU_PROCESS_ADDRESSES') or environment.get('TPU_WORKER_HOSTNAMES') or ''
  if ',' in hosts or int(environment.get('MEGASCALE_NUM_SLICES') or 1) > 1:
    return True
  if all(name in environment for name in SLURM):
    return int(environment['SLURM_NTASKS']) > 1
  if 'OMPI_MCA_orte_hnp_uri' in environment:
    return int(environment.get('OMPI_COMM_WORLD_SIZE') or 1) > 1
  indexed = 'KUBERNETES_SERVICE_HOST' in environment and 'JOB_COMPLETION_INDEX' in environment
  return indexed and importlib.util.find_spec('kubernetes') is not None


def same(settings):
  """Raises ValueError where this process has other settings, {name: value of JSON}, than the first one: they would wait
  for each other for ever."""
  if not PEERS:
    return
  from jax._src.distributed import global_state

  settings = {name: json.dumps(value) for name, value in settings.items()}
  if not global_state.process_id:
    global_state.client.key_value_set(f'{KEY}/settings', json.dumps(settings))
    return
  first = json.loads(global_state.client.blocking_key_value_get(f'{KEY}/settings', 1000 * MEETING))
  for name in sorted(settings.keys() | first.keys()):
    if settings.get(name) != first.get(name):
      raise ValueError(f'process {global_state.process_id} was given {name}={settings.get(name)}, and process 0 '
                       f'{first.get(name)}; give all processes the same command.')  # fmt: skip


@contextlib.contextmanager
def _waiting():
  """Around the meeting of the processes, in which jax is silent and, when it waited in vain, aborts with a stack."""
  met = threading.Event()

  def watch():
    if not met.wait(10):
      print('waiting for the other processes of this run', file=sys.stderr, flush=True)
    if not met.wait(MEETING - 10):
      where = 'JAX_COORDINATOR_ADDRESS, if it is set, must be what all of them reach process 0 by'
      print(f'error: not all processes of this run came within {MEETING} s. {where}.', file=sys.stderr, flush=True)
      _leave(1)

  threading.Thread(target=watch, name='vit_jax.hosts', daemon=True).start()
  try:
    yield
  finally:
    met.set()


def _results_only():
  """Keeps what libraries print on stdout (gloo greets there) out of what this program prints there, on stderr."""
  sys.stdout.flush()
  encoding, results = sys.stdout.encoding, os.dup(1)
  os.dup2(2, 1)
  sys.stdout = open(results, 'w', encoding=encoding, buffering=1)  # noqa: SIM115  open until the end


def _delay_abort():
  """Lets an abort take effect six seconds later: where process 0 dies, jax sees it as soon as the thread of Peers does,
  and would abort this process before that has said so."""
  with contextlib.suppress(AttributeError, OSError):  # no such functions: then it aborts at once
    import ctypes

    c = ctypes.CDLL(None)
    c.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    c.signal(signal.SIGABRT, ctypes.cast(c.sleep, ctypes.c_void_p))  # called with the signal's number, which is 6


def _connect(state):
  """{number of a process: socket}: of process 0 those to all others, of another one that to process 0.

  A connection that cannot be made, as where a firewall lets through one port only, is left out: then the end of that
  process is seen by jax's heartbeat.
  """
  host, links, why = state.coordinator_address.rpartition(':')[0].strip('[]'), {}, 'nobody came'
  try:
    if state.process_id:
      port, token = state.client.blocking_key_value_get(f'{KEY}/link', 1000 * LINKING).split()
      link = socket.create_connection((host, int(port)), timeout=LINKING)
      link.sendall(f'{token} {state.process_id:08}'.encode())
      links[0] = link
    else:
      token = os.urandom(16).hex()  # who does not know it is none of us
      with _listener(host) as listener:
        state.client.key_value_set(f'{KEY}/link', f'{listener.getsockname()[1]} {token}')
        _accept(listener, token, links, state.num_processes - 1)
  except OSError as error:
    why = error
  wanted = [0] if state.process_id else range(1, state.num_processes)
  missing = ', '.join(str(number) for number in wanted if number not in links)
  if missing:
    print(f'process {state.process_id} has no connection of its own to {missing} ({why}): that it dies is seen after '
          f'{HEARTBEAT} s', file=sys.stderr)  # fmt: skip
  for link in links.values():
    _keep_alive(link)
  return links


def _accept(listener, token, links, count):
  """Fills links with connections of so many processes, while there is time; others that connect are sent away."""
  until = time.monotonic() + LINKING
  while len(links) < count and time.monotonic() < until:
    listener.settimeout(max(until - time.monotonic(), 0.01))
    link = listener.accept()[0]
    link.settimeout(5)
    with contextlib.suppress(OSError):
      said, _, number = link.recv(41, socket.MSG_WAITALL).decode(errors='replace').partition(' ')
      if said == token:
        links[int(number)] = link
        continue
    link.close()


def _listener(host):
  if host in ('localhost', '127.0.0.1', '::1'):
    return socket.create_server((host, 0), family=socket.AF_INET6 if ':' in host else socket.AF_INET)
  if socket.has_dualstack_ipv6():
    return socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(('', 0))


def _keep_alive(link):
  """Lets the kernel ask the other machine every few seconds, so that one without power is missed after 45 s."""
  link.settimeout(None)
  link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in {'TCP_KEEPIDLE': 15, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 6}.items():
    if hasattr(socket, name):
      link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Peers:
  """The other processes of a run, as far as this one is connected to them; watched by a thread."""

  def __init__(self, links, index, count):
    self.links, self.index, self.count, self._lock = links, index, count, threading.Lock()
    threading.Thread(target=self._watch, name='vit_jax.hosts', daemon=True).start()

  def done(self):
    """Says that this process has come to its end in order."""
    self._tell(DONE)

  def abandon(self, code, line):
    """Ends this process, and thereby all, with an exit code; line: what it has said of why, or None."""
    why = f'process {self.index} of {self.count} ended' + (f': {line.removeprefix("error: ")}' if line else '')
    self._tell(f'{code} {why}'.encode())
    _leave(code)  # an orderly end would wait for the others, for minutes

  def _tell(self, message):
    with self._lock:
      for link in self.links.values():
        with contextlib.suppress(OSError):  # that one is gone
          link.sendall(message)

  def _watch(self):
    selector, heard = selectors.DefaultSelector(), dict.fromkeys(self.links, b'')
    for number, link in self.links.items():
      selector.register(link, selectors.EVENT_READ, number)
    while selector.get_map():
      for key, _ in selector.select():
        try:
          some = key.fileobj.recv(4096)
        except OSError:
          some = b''
        heard[key.data] += some
        if not some:
          selector.unregister(key.fileobj)
          if not heard[key.data].startswith(DONE):
            self._gone(key.data, heard[key.data])

  def _gone(self, number, message):
    """Ends this process because another one has: with its exit code, where it said one."""
    code, _, why = message.decode(errors='replace').partition(' ')
    if not why:
      code = '1'
      why = f'process {number} of {self.count} was killed, or its machine is gone'
      message = f'{code} {why}'.encode()
    self._tell(message)  # who is connected to this one only hears of it too
    line = f'error: {why.rstrip(".")}; all processes end. The same command in each goes on from the last checkpoint.'
    print(line, file=sys.stderr, flush=True)
    _leave(int(code))


def failed(code, line=None):
  """Ends all processes of a run in which this one has failed; where it is alone, nothing happens.

  line: what it has said of why. None is for an error that nobody foresaw, which may be what the end of another process
  looks like from here.
  """
  if PEERS:
    PEERS[0].abandon(code, line)


def settle():
  """Waits a moment where there are several processes: if another one has ended, this one ends here, with its line."""
  if PEERS:
    time.sleep(3)


def _leave(code):
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)
