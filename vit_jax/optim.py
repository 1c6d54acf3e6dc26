"""What a run trains by: an optimizer, a learning rate by step, weight decay, averaged weights, what is trained.

Sources: decoupled weight decay, Loshchilov & Hutter 2017, arXiv:1711.05101; cosine schedule, the same 2016,
arXiv:1608.03983; reciprocal square root with cool-down, Zhai et al. 2021, arXiv:2106.04560, section 3.5; averaged
weights, Polyak & Juditsky 1992, with the warm-up of TensorFlow's ExponentialMovingAverage.
"""

from collections.abc import Callable
import difflib
import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax import optimizers, state, tuning
from vit_jax import sam as sam_lib

SCHEDULES = ('cosine', 'linear', 'rsqrt', 'rsqrt_smooth', 'constant')


class Optimizer(NamedTuple):
  """What a training step needs: the transformation, its learning rate by step, the decay of averaged weights, which
  parameters are trained how fast (see tuning.py), and how far SAM climbs: share gives by step where the rate is
  between `end` (0, and below it in the warm-up) and its peak (1)."""

  tx: optax.GradientTransformation
  schedule: Callable | None
  ema: float | None
  tuning: tuning.Tuning
  sam: sam_lib.Sam
  share: Callable


def make(
  name: str = 'adamw', *, total_steps: int, lr: float = 1e-3, schedule: str = 'cosine', warmup: float = 0.0,
  cooldown: float = 0.0, timescale: float = 10_000, end: float = 0.0, weight_decay: float = 0.0,
  decay_by: str = 'lr', mask: str = 'kernel', momentum: float | None = None, b2: float | None = None,
  eps: float | None = None, accumulator_dtype: str | None = None, clip: float | None = None, ema: float | None = None,
  freeze: str | tuple[str, ...] = (), body_lr: float = 1.0, layer_decay: float = 1.0, lora: int | None = None,
  lora_alpha: float = 16.0, sam: dict = types.MappingProxyType({}),
) -> Optimizer:  # fmt: skip
  """The optimizer by name: weights - rate(step) * (its step + weight_decay * weights), see optimizers.py.

  name: 'adamw', 'sgd' (with momentum), 'lamb', 'lion', 'adafactor' (as for the largest ViTs) or 'muon' (with Adam for
  what is no hidden matrix).   lr: peak learning rate.   schedule, warmup, cooldown, timescale, end: see learning_rate.
  weight_decay: decoupled; decay_by says what multiplies it: 'lr', the rate, as in torch and timm; 'schedule', the rate
  as a share of lr, as in big_vision (weights - rate * step - rate / lr * weight_decay * weights), whose 1e-4 at
  lr=1e-3 is 0.1 by 'lr'. LAMB's is in its step, before the trust ratio.   mask: what decays, and has a trust ratio:
  'kernel' (the weights of dense and convolution layers) or 'all'.
  momentum: decay of the first moment, b1 of AdamW, LAMB and Lion.   b2: decay of the second moment, of Adafactor its
  upper bound, of Lion that of the moment that is kept.   eps: of what is divided by.   accumulator_dtype: of the first
  moment, 'float32' or 'bfloat16'. None = the optimizer's own (optimizers.OWN).   clip: largest global norm of the
  gradient (FusedLAMB's is 1.0).   ema: decay of averaged weights, which are then what is evaluated; None = none (see
  average).   sam: keyword arguments of sam.Sam, which seeks flat minima for twice the time; none = not.

  What is trained: freeze: parameters that stay as they are, by path, its first parts (blocks/0) or patterns
  (*/mlp/fc1), or 'body': all but the head, a linear probe.   lora: rank of adapters on the attention kernels, which
  with the head are then all that is trained; they are scaled by lora_alpha / lora.   body_lr: what the rate of
  everything but the head is multiplied by.   layer_decay: likewise that of each layer, counted from the head
  (tuning.rates).

  Raises ValueError for words and numbers that are none of these, and for numbers that `name` has no use for.
  """
  numbers = optimizers.numbers(name, momentum=momentum, b2=b2, eps=eps, accumulator_dtype=accumulator_dtype)
  _check(name, lr=lr, mask=mask, decay_by=decay_by, ema=ema)
  rate = learning_rate(lr, total_steps=total_steps, schedule=schedule, warmup=warmup, cooldown=cooldown,
                       timescale=timescale, end=end)  # fmt: skip
  decayed = None if mask == 'all' else decays
  strength = weight_decay if decay_by == 'lr' else weight_decay / lr
  decay = optax.add_decayed_weights(strength, decayed) if weight_decay else optax.identity()
  clipping = optax.clip_by_global_norm(clip) if clip else optax.identity()
  chain = [clipping, optimizers.steps(name, **numbers), decay]
  chain += [optimizers.trust_ratio(lambda path: mask == 'all' or is_kernel(path))] if name == 'lamb' else []
  freeze = (freeze,) if isinstance(freeze, str) else tuple(freeze)
  how = tuning.Tuning(freeze, body_lr, layer_decay, lora, lora_alpha)
  tuning.check(how)
  tx = optax.chain(*chain, optax.scale_by_learning_rate(rate))
  share = lambda step: jnp.maximum(0, (rate(step) / lr - end) / (1 - end))
  return Optimizer(tx, rate, ema, how, sam_lib.Sam(**sam), share)


def tuned(optimizer, params):
  """The Optimizer with the rates of a model's parameters; raises ValueError for what its tuning cannot do to them."""
  split = functools.partial(tuning.split, tuning=optimizer.tuning, key=jax.random.key(0))
  everything = state.combine(*jax.eval_shape(split, params))
  return optimizer._replace(tx=tuning.scaled(optimizer.tx, everything, optimizer.tuning))


def _check(name, *, lr, mask, decay_by, ema):
  if not lr > 0:
    raise ValueError(f'optim.lr is {lr}; it must be above 0 (1e-3 is usual); optim.freeze keeps what is not to move.')
  if mask not in ('kernel', 'all'):
    raise ValueError(f"optim.mask is {mask!r}; choose 'kernel' or 'all'.")
  if decay_by not in ('lr', 'schedule'):
    raise ValueError(f"optim.decay_by is {decay_by!r}; choose 'lr' or 'schedule'.")
  if decay_by == 'schedule' and name == 'lamb':
    raise ValueError("optim.decay_by='schedule' means nothing to 'lamb', whose decay is in its step; leave it out.")
  if ema is not None and not 0 <= ema < 1:
    raise ValueError(f'optim.ema is {ema}; it must be at least 0 and below 1 (0.9999 is usual), or None.')


def is_kernel(path):
  """Whether a path ends in `kernel`: the weights of a dense or convolution layer."""
  return path.rsplit('/', 1)[-1] == 'kernel'


def decays(params):
  """The tree with True where weight decay applies: kernels."""
  return state.unflatten({path: is_kernel(path) for path in state.flatten(params)})


def span(value, total_steps, what):
  """Steps of a warm-up or cool-down: below 1 a fraction of total_steps, else a number of steps."""
  steps = value * total_steps if 0 <= value < 1 else value
  if not 0 <= steps <= total_steps:
    raise ValueError(
      f'optim.{what} is {value}, which is {steps:g} of {total_steps} steps; give at most total_steps, or a fraction.'
    )
  return steps


def learning_rate(lr, *, total_steps, schedule='cosine', warmup=0.0, cooldown=0.0, timescale=10_000, end=0.0):
  """step (0-based int) -> learning rate of that step, float32.

  warmup: rises linearly over these steps (below 1: this fraction of total_steps), already above 0 at step 0. Then, with
  s steps since the warm-up: 'cosine' and 'linear' fall to end * lr at total_steps; 'rsqrt' is flat for `timescale`
  steps and falls as sqrt(timescale / s); 'rsqrt_smooth' falls as 1 / sqrt(1 + s / timescale), big_vision's;
  'constant' stays. cooldown: the last steps (or fraction) are multiplied by a factor that falls linearly to 0.

  big_vision's (end is its linear_end) are these, one step later in the warm-up. timm's cosine has lr_min = end * lr,
  and with warmup_prefix=False, as DeiT has it, begins at step 0 and not after the warm-up.
  """
  if schedule not in SCHEDULES:
    near = difflib.get_close_matches(str(schedule), SCHEDULES, 1, 0.2) or SCHEDULES
    raise ValueError(f'There is no schedule {schedule!r}; did you mean {near[0]!r}? There are {", ".join(SCHEDULES)}.')
  if not 0 <= end < 1:
    raise ValueError(f'optim.end is {end}; it is a fraction of lr, at least 0 and below 1 (0.01 is usual).')
  if end and schedule not in ('cosine', 'linear'):
    raise ValueError(f"optim.end={end} means nothing to schedule {schedule!r}; 'cosine' and 'linear' have an end.")
  up, down = span(warmup, total_steps, 'warmup'), span(cooldown, total_steps, 'cooldown')

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    done = jnp.clip((step - up) / max(total_steps - up, 1), 0, 1)
    shape = {
      'cosine': lambda: 0.5 * (1 + jnp.cos(jnp.pi * done)),
      'linear': lambda: 1 - done,
      'rsqrt': lambda: jax.lax.rsqrt(jnp.maximum((step - up) / timescale, 1)),
      'rsqrt_smooth': lambda: jax.lax.rsqrt(1 + jnp.maximum((step - up) / timescale, 0)),
      'constant': lambda: jnp.ones(()),
    }[schedule]()
    shape = end + (1 - end) * shape if end else shape
    shape = shape * jnp.minimum(1, (step + 1) / up) if up else shape
    return lr * (shape * jnp.clip((total_steps - step) / down, 0, 1) if down else shape)

  return rate


def average(ema, params, decay, step):
  """Averaged weights after one more step, decay * ema + (1 - decay) * params; step: 0-based.

  Warm-up: decay is at most (1 + step) / (10 + step), so that the first weights do not linger: the average is over the
  last ninth or so of the run until step 9 / (1 - decay), e.g. 90,000 of decay 0.9999. timm has no warm-up unless asked;
  from there on its average is the same. Only what is trained is averaged, not statistics of batch normalisation.
  """
  decay = jnp.minimum(decay, (1 + step) / (10 + step)).astype(jnp.float32)
  return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
