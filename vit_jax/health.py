"""The numbers of each step, looked at one step later: the device never waits, and no bad step reaches a checkpoint."""

import collections
import math

from vit_jax import guard

SHOWN = 8  # example ids in a line, of a batch


class Health:
  """What is known of the last steps of a run.

  allowed: how many steps may be left out because their numbers were not finite; the step itself leaves them out
  (step.Step.skip_nonfinite).   skipped: how many were, before this session.   note: called with a line for each.
  ahead: steps that may be under way when the next one begins.

  Attributes: skipped.
  """

  def __init__(self, *, allowed, skipped=0, note=print, ahead=1):
    self.allowed, self.skipped, self._note, self._ahead = allowed, skipped, note, ahead
    self._waiting = collections.deque()

  def add(self, step, ids, values):
    """Takes what a step gave, {'loss', 'grad_norm', 'finite'[, 'lr']} on the device, and the ids of its examples; waits
    for the steps before it, so that the host runs ahead of the device by `ahead` steps and no more.

    Raises guard.Failed for numbers that are not finite, once more often than is allowed.
    """
    self._waiting.append((step, ids, values))
    self.look(self._ahead)

  def look(self, left=0):
    """Waits until no more than `left` steps are under way; raises as add does."""
    while len(self._waiting) > left:
      step, ids, values = self._waiting.popleft()
      if not values['finite']:  # waits for the step
        self._bad(step, ids, values)

  def _bad(self, step, ids, values):
    words = {'loss': 'loss', 'lr': 'learning rate', 'grad_norm': 'gradient norm'}
    numbers = [f'{words[key]} {float(values[key]):.4g}' for key in words if key in values]
    if math.isfinite(values['loss']) and math.isfinite(values['grad_norm']):
      numbers.append('the new weights are not')
    more = f' and {len(ids) - SHOWN} more' if len(ids) > SHOWN else ''
    what = f'{", ".join(numbers)}; examples {", ".join(map(str, ids[:SHOWN]))}{more}'
    if self.skipped < self.allowed:
      self.skipped += 1
      self._note(f'step {step} left out ({self.skipped} of at most {self.allowed}), not finite: {what}')
      return
    left_out = f' after {self.skipped} that were left out' if self.skipped else ''
    raise guard.Failed(
      f'step {step} is not finite{left_out}: {what}. Nothing of it was saved: the checkpoints are of steps before. '
      'Lower optim.lr, clip the gradient (optim.clip=1), or leave such steps out (step.skip_nonfinite=10).'
    )
