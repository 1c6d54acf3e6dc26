"""Arrays and JSON of a step -> a folder that is verified before it is believed, and back. Knows no model.

WORKDIR/checkpoints/40/params/, opt/, ...   the arrays (checkpoint_items.py), and manifest.json (checkpoint_seal.py)
WORKDIR/checkpoints/40.saving*, 40.removing what is being written or removed, or what a killed process left of it
WORKDIR/checkpoints/40.damaged-TIME         a step that was not as it was saved, moved out of the way of a new one

A step's folder gets its decimal name by one rename, after everything in it has been written, hashed, sealed and
flushed, and only then are older steps removed: whenever the process dies, what had been saved is still there.
"""

import concurrent.futures
import contextlib
import math
import os
import pathlib
import sys
import time

import jax
import numpy as np

from vit_jax import checkpoint_items as items
from vit_jax import checkpoint_seal as seal
from vit_jax import checkpoint_steps as folders
from vit_jax import diskfull, durable

MINUTES = 30  # one process waits so long for another one to finish a step
SECONDS = 60  # and so long to see it, as network file systems remember for a while that a name was not there


class Checkpoints:
  """The kept steps of one run: saved in the background, verified when it starts, read back bit for bit.

  What is found in the folder is verified first: the newest step that is whole in every byte is where a run goes on.
  Damaged steps are named on stderr and moved aside as 40.damaged-TIME, because the run comes to their numbers again and
  what is left of them may be all that is left of a day's work; they are not read, not counted and, but for the newest
  three, removed. Of steps older than that one, names, sizes and score are verified, and the rest when it is read.

  With several processes all of them call save, wait and close; the first one decides, seals and removes. Each writes
  its part of a step, but of one that is sent elsewhere the first one writes all, which it is given in its memory.

  Args:
    workdir: the run's folder, may be relative; created when it is not there.
    every: a step is due every so many steps. The training loop asks for it; nothing here does.
    last: this many of the newest steps are kept.
    best: this many of the steps with the highest scores are kept as well; of two equal scores the later step is better.
    elsewhere: the checkpoint_remote.Steps of a run at an address, for which workdir is the local folder of copies.

  Raises:
    ValueError: a count is too small, or workdir is a file.
  """

  def __init__(self, workdir, *, every: int = 1000, last: int = 2, best: int = 1, elsewhere=None):
    if every < 1 or last < 1 or best < 0:
      raise ValueError(f'save: every={every} and last={last} must be at least 1 and best={best} at least 0.')
    self.every, self.folder, self._keep = every, folders.place(workdir), {'last': last, 'best': best}
    if not all(p.is_dir() for p in (self.folder, *self.folder.parents) if p.exists()):
      raise ValueError(f'{workdir} is not a folder; give a workdir to write to.')
    self.folder.mkdir(parents=True, exist_ok=True)
    self._primary, self._closed, self._saves = jax.process_index() == 0, False, 0
    self._writer = self._pending = None
    self._steps, self._sent = elsewhere or folders.Here(self.folder), elsewhere is not None
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'save')
    self._alone = self._sent and jax.process_count() > 1  # the first process writes what all of them have
    self._scores = {step: self._score(step) for step in _agreed(self._begin())}

  def save(self, step, arrays, info, score=None):
    """Starts to write a step; returns once the arrays may be donated. A step that is already kept is left as it is.

    Args:
      step: int.
      arrays: {name: pytree of arrays}; any pytree, e.g. an optax state. A tree without leaves is remembered as such.
      info: JSON dict.
      score: higher is better; None or NaN where the step was not evaluated.

    Raises:
      diskfull.DiskFull: it has no room, and nothing of it was written.
      whatever went wrong in the background since the last call of save, wait or close; DiskFull for a disk that filled
      up meanwhile: what was written of that step is gone, and those before it are there.
    """
    assert not self._closed, 'save after close'
    self.wait()
    if step in self._scores:
      return
    score = _number(score)
    self._check_room(step, items.size(arrays))
    if self._alone:
      arrays = items.gathered(arrays, keep=self._primary)
    self._saves += 1
    with contextlib.ExitStack() as stack:
      stack.enter_context(self._cleaned(step))
      if self._primary or not self._alone:
        self._started().save(self._path(f'{step}.saving'), args=items.arguments(arrays, info, score), force=True)
      self._pending = self._thread.submit(self._finish, step, score, stack.pop_all())

  def wait(self):
    """Returns when the last save is on disk with its manifest; raises what went wrong with it, once."""
    pending = self._pending
    if pending:
      concurrent.futures.wait([pending])  # whoever is interrupted here can still call close
      self._pending = None
      pending.result()

  def close(self):
    """Waits, then ends the threads; nothing can be saved any more, but read. A second call does nothing."""
    self._closed = True
    try:
      self.wait()
    finally:
      writer, self._writer = self._writer, None
      self._thread.shutdown()
      if writer:
        writer.close()

  def steps(self) -> list[int]:
    """The steps that are wholly on disk, ascending; a save under way is not among them."""
    return sorted(self._scores)

  def latest(self) -> int | None:
    """The newest step on disk."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """The step on disk with the highest score, the later one of equals; None when none was evaluated."""
    return (folders.ranked(self._scores.copy()) or [None])[-1]

  def info(self, step) -> dict:
    """The JSON dict that was saved with a step."""
    return items.header(self._at(step))['info']

  def evaluated(self, step, metrics, score):
    """Puts an evaluation that was made after the save into a step: info['metrics'] and the score.

    It becomes part of the manifest, which is replaced as a whole, so that the step is whole whenever the process dies.
    """
    self.wait()
    said = self.info(step)
    if self._primary:
      with self._cleaned(step):
        self._steps.annotate(step, {'info': said | {'metrics': metrics}, 'score': _number(score)})
    self._scores[step] = _number(score)

  def restore(self, step, like):
    """Target trees -> the same trees with the saved values, bit for bit, placed as the targets are.

    Args:
      step: one of steps().
      like: {name: pytree of jax.ShapeDtypeStruct with a sharding, or of concrete arrays}. A leaf without a sharding
        comes back as numpy. Names that are left out are not read. Devices may be others than those that saved.

    Raises:
      ValueError: an array is missing, left over, or has another shape or dtype, and names all of them; or a file that
        would be read is not as it was saved.
    """
    folder = self._at(step)
    self._brought(step)
    if self._primary:  # hundreds of hosts need not read what is theirs alone, or the same, once more
      folders.verify(folder, (*like, 'info'))
    return items.restore(folder, like)

  def check_room(self, like):
    """What a run does before its first step: DiskFull where the disk cannot hold the steps that it will keep.

    like: {name: pytree of arrays or ShapeDtypeStructs}, what save will be given. Wanted is room for `last` steps and
    the one that is written before another is removed, less those that are there; where the `best` have no room
    beside them, a line on stderr says so, because they may be the same.
    """
    size, there = items.size(like), len(self._scores)
    room, kept = self._free(), self._keep['last'] + 1
    if self._sent:  # and then removed here
      if size > room:
        raise diskfull.DiskFull(f'{self.folder} has {diskfull.text(room)} free, and a checkpoint of '
                                f'{diskfull.text(size)} is written there before it is sent: free some space, or name '
                                'another folder by VIT_JAX_CACHE.')  # fmt: skip
      return
    if (kept - there) * size > room:
      raise diskfull.DiskFull(
        f'{self.folder} has {diskfull.text(room)} free, and {kept - there} more checkpoints of {diskfull.text(size)} '
        f'are to be kept there: free some space, choose another workdir, or keep fewer by save.last.{self._aside()}'
      )
    kept += self._keep['best']
    if (kept - there) * size > room and self._primary:
      print(f'{self.folder} has {diskfull.text(room)} free; {kept - there} more checkpoints, the best among them, need '
            f'{diskfull.text((kept - there) * size)}.{self._aside()}', file=sys.stderr)  # fmt: skip

  def _path(self, name):
    return self.folder / str(name)

  def _at(self, step):
    if step not in self._scores:
      raise ValueError(f'{self.folder} has no step {step}; it has {self.steps()}.')
    return self._path(step)

  def _begin(self):
    """The steps to count on, after what a killed process left has been removed and damaged steps are moved aside."""
    if not self._primary:
      return []
    return self._steps.begin()

  def _score(self, step):
    """What a step that counts was evaluated with."""
    if not self._primary:  # which has all infos from its beginning
      self._brought(step, ('info',))
    return items.header(self._path(step))['score']

  def _brought(self, step, within=None):
    """Has what is below the names `within` of a step, None: all, in its folder; ValueError where it is damaged."""
    fault = self._steps.bring(step, within)
    if fault:
      raise ValueError(f'{self._steps.there}/{step} is damaged ({fault}): start the same command again.')

  def _started(self):
    """orbax's writer; made by the first save, because importing it takes half a second."""
    if self._writer is None:
      diskfull.quiet()
      self._writer = items.writer(alone=self._alone)
    return self._writer

  def _finish(self, step, score, cleaned):
    """In the background: what orbax has written -> a step that counts, then the removal of those it replaces."""
    try:
      with cleaned:
        if self._primary or not self._alone:
          self._writer.wait_until_finished()  # in all processes, and each one's part
        if self._primary:
          seal.write(self._path(f'{step}.saving'), str(step))
          if os.path.lexists(self._path(step)):  # somebody put it there since the run began
            folders.move_aside(self.folder, [step])
          os.rename(self._path(f'{step}.saving'), self._path(step))
          durable.sync(self.folder)
          self._steps.send(step, self.latest())
    finally:
      self._meet(step)
    if not self._appears(step):
      raise RuntimeError(f'The first process did not finish {self._path(step)}; its error says why.')
    self._scores[step] = score
    gone = self._scores.keys() - folders.kept(self._scores, **self._keep)
    for one in gone:
      del self._scores[one]
    if self._primary:
      self._steps.remove(gone)

  def _meet(self, step):
    """Waits until all processes are here; a collective of JAX would disturb those of the training step."""
    if jax.process_count() > 1:
      from orbax.checkpoint import multihost

      multihost.get_barrier_sync_fn()(key=f'{self._steps.there}/{step}/{self._saves}', timeout_ms=MINUTES * 60_000)

  def _appears(self, step):
    """Whether the first process has renamed a step; another host may see that some seconds late."""
    end = time.monotonic() + SECONDS
    while not self._steps.counts(step):
      if self._primary or time.monotonic() > end:
        return False
      time.sleep(0.1)
    return True

  @contextlib.contextmanager
  def _cleaned(self, step):
    """Around a save, from its start to its end in the background: of one that fails nothing is left on the disk."""
    try:
      yield
    except Exception as error:
      self._writer = None  # it would raise the same again with the next save, and that one's folder be gone
      for _ in range(2 * self._primary):  # writes of other arrays may still be under way when one has failed
        for one in self.folder.glob(f'{step}.saving*'):
          with contextlib.suppress(OSError):
            folders.delete(one)
        time.sleep(0.1)
      if not diskfull.cause(error):
        raise
      raise diskfull.DiskFull(
        f'Checkpoint {step} could not be written in {self.folder} ({diskfull.cause(error)}); the steps before it are '
        f'kept. Free some space and start the same command again; it goes on from step {self.latest() or 0}.'
        f'{self._aside()}'
      ) from error

  def _free(self):
    free = diskfull.free(self.folder)
    return free if jax.process_count() == 1 else _agreed([free >> 20])[0] << 20

  def _check_room(self, step, need):
    room = self._free()
    if need > room:
      raise diskfull.DiskFull(
        f'Checkpoint {step} needs {diskfull.text(need)}, and {self.folder} has {diskfull.text(room)} free: free some '
        f'space and start the same command again; it goes on from step {self.latest() or 0}.{self._aside()}'
      )

  def _aside(self):
    """A hint at damaged steps that take space, or nothing."""
    there = any(self.folder.glob('*.damaged-*'))
    return f' {self.folder}/*.damaged-* are damaged steps that you can delete.' if there else ''


def find(path) -> tuple[pathlib.Path, str]:
  """WORKDIR or WORKDIR/checkpoints/STEP -> (folder of the step, which weights are meant there); their files are whole.

  which is 'best' where the run was evaluated, else 'last', or 'step 40' where the path says so; with ' EMA' behind it
  where the step has averaged weights, the item 'ema'. In a WORKDIR damaged steps are named on stderr and passed over.

  Raises:
    ValueError: there is no such folder, it is no workdir, no step has been saved yet, or the step, or all, are damaged.
  """
  path = pathlib.Path(path).absolute()
  if not path.is_dir():
    raise ValueError(f'No folder {path}; give the workdir of a run, or one of its checkpoints/STEP.')
  if folders.is_step(path):
    folders.verify(path, folders.used(path))
    folder, which = path, f'step {path.name}'
  else:
    folder, scored = folders.choose(path)
    which = 'best' if scored else 'last'
  return folder, which + ' EMA' * (folder / 'ema').is_dir()


def read(folder, names=('params',)) -> dict:
  """A step's folder, as find() gives it -> {name: nested dict of numpy arrays with string keys}, on any devices.

  Raises:
    ValueError: the folder is no saved step, has not all of the names, or a file of theirs is not as it was saved.
  """
  folder = pathlib.Path(folder).absolute()
  if not folders.is_step(folder):
    raise ValueError(f'{folder} is not the folder of a saved step.')
  folders.verify(folder, (*names, 'info'))
  return items.read(folder, names)


def _number(score):
  """A score as JSON and sorting take it; NaN is none."""
  return None if score is None or math.isnan(score) else float(score)


def _agreed(numbers):
  """A list of ints of the first process, in all of them."""
  if jax.process_count() == 1:
    return numbers
  from jax.experimental import multihost_utils

  count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
  padded = np.resize(np.array(numbers or [0], np.int32), count)  # in all processes of one shape
  return [int(number) for number in multihost_utils.broadcast_one_to_all(padded)]
