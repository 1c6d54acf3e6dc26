"""Work for all CPUs that this process may use, by threads: decoding and hashing leave the interpreter's lock."""

import collections
import concurrent.futures
import os


def cpus():
  """How many CPUs this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()  # not on macOS


def each(function, items, *, ahead=16, workers=None):
  """function(item) of each item, in order.

  ahead: how many results, for each thread, may wait for who takes them; so few are held, however many items there are.
  workers: how many threads, None = as many as CPUs; more for what waits for a network.
  """
  workers = workers or cpus()
  pool, waiting = concurrent.futures.ThreadPoolExecutor(workers, 'vit_jax.each'), collections.deque()
  try:
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > ahead * workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:  # Ctrl-C too: what has begun ends, the rest does not begin
    pool.shutdown(cancel_futures=True)
