"""Optimizers and learning-rate schedules, as optax transformations.

Sources: AdamW, Loshchilov & Hutter 2019, arXiv:1711.05101; cosine schedule, arXiv:1608.03983; reciprocal square root
with cool-down, Zhai et al. 2021, arXiv:2106.04560.
"""

from collections.abc import Callable
import difflib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax import state, tuning

SCHEDULES = ('cosine', 'linear', 'rsqrt', 'constant')
OPTIMIZERS = ('adamw', 'sgd')


class Optimizer(NamedTuple):
  """What a training step needs: the transformation, its learning rate by step, the decay of averaged weights, and which
  parameters are trained how fast (see tuning.py)."""

  tx: optax.GradientTransformation
  schedule: Callable | None
  ema: float | None
  tuning: tuning.Tuning


def make(
  name: str = 'adamw', *, total_steps: int, lr: float = 1e-3, schedule: str = 'cosine', warmup: float = 0.0,
  cooldown: float = 0.0, timescale: float = 10_000, weight_decay: float = 0.0, mask: str = 'kernel',
  momentum: float = 0.9, b2: float = 0.999, eps: float = 1e-8, accumulator_dtype: str = 'float32',
  clip: float | None = None, ema: float | None = None, freeze: str | tuple[str, ...] = (), body_lr: float = 1.0,
  layer_decay: float = 1.0, lora: int | None = None, lora_alpha: float = 16.0,
) -> Optimizer:  # fmt: skip
  """The optimizer by name.

  name: 'adamw' or 'sgd' (with momentum).   lr: peak learning rate.   schedule, warmup, cooldown, timescale: see
  learning_rate.   weight_decay: decoupled, multiplied by the learning rate.   mask: what decays, 'kernel' (the weights
  of dense and convolution layers) or 'all'.   momentum: of SGD, b1 of AdamW.   b2, eps: of AdamW.
  accumulator_dtype: of the first moment, 'float32' or 'bfloat16'.   clip: largest global norm of the gradient.
  ema: decay of averaged weights, which are then what is evaluated; None = none.

  What is trained: freeze: parameters that stay as they are, by path, its first parts (blocks/0) or patterns
  (*/mlp/fc1), or 'body': all but the head, a linear probe.   lora: rank of adapters on the attention kernels, which
  with the head are then all that is trained; they are scaled by lora_alpha / lora.   body_lr: what the rate of
  everything but the head is multiplied by.   layer_decay: likewise that of each layer, counted from the head
  (tuning.rates).
  """
  if name not in OPTIMIZERS:
    near = difflib.get_close_matches(str(name), OPTIMIZERS, 1, 0.2) or OPTIMIZERS
    raise ValueError(f'There is no optimizer {name!r}; did you mean {near[0]!r}?')
  if mask not in ('kernel', 'all'):
    raise ValueError(f"optim.mask is {mask!r}; choose 'kernel' or 'all'.")
  if ema is not None and not 0 <= ema < 1:
    raise ValueError(f'optim.ema is {ema}; it must be at least 0 and below 1 (0.9999 is usual), or None.')
  rate = learning_rate(lr, total_steps=total_steps, schedule=schedule, warmup=warmup, cooldown=cooldown,
                       timescale=timescale)  # fmt: skip
  if name == 'adamw':
    moments = optax.scale_by_adam(b1=momentum, b2=b2, eps=eps, mu_dtype=accumulator_dtype)
  else:
    moments = optax.trace(decay=momentum, accumulator_dtype=accumulator_dtype)
  decayed = None if mask == 'all' else decays
  decay = optax.add_decayed_weights(weight_decay, decayed) if weight_decay else optax.identity()
  clipping = optax.clip_by_global_norm(clip) if clip else optax.identity()
  freeze = (freeze,) if isinstance(freeze, str) else tuple(freeze)
  how = tuning.Tuning(freeze, body_lr, layer_decay, lora, lora_alpha)
  tuning.check(how)
  return Optimizer(optax.chain(clipping, moments, decay, optax.scale_by_learning_rate(rate)), rate, ema, how)


def decays(params):
  """The tree with True where weight decay applies: leaves named `kernel`."""
  return state.unflatten({path: path.rsplit('/', 1)[-1] == 'kernel' for path in state.flatten(params)})


def span(value, total_steps, what):
  """Steps of a warm-up or cool-down: below 1 a fraction of total_steps, else a number of steps."""
  steps = value * total_steps if 0 <= value < 1 else value
  if not 0 <= steps <= total_steps:
    raise ValueError(
      f'optim.{what} is {value}, which is {steps:g} of {total_steps} steps; give at most total_steps, or a fraction.'
    )
  return steps


def learning_rate(lr, *, total_steps, schedule='cosine', warmup=0.0, cooldown=0.0, timescale=10_000):
  """step (0-based int) -> learning rate of that step, float32.

  warmup: rises linearly over these steps (below 1: this fraction of total_steps), already above 0 at step 0. Then:
  'cosine' and 'linear' fall to 0 at total_steps; 'rsqrt' falls as sqrt(timescale / steps since warm-up, if larger);
  'constant' stays. cooldown: the last steps (or fraction) are multiplied by a factor that falls linearly to 0.
  """
  if schedule not in SCHEDULES:
    near = difflib.get_close_matches(str(schedule), SCHEDULES, 1, 0.2) or SCHEDULES
    raise ValueError(f'There is no schedule {schedule!r}; did you mean {near[0]!r}? There are {", ".join(SCHEDULES)}.')
  up, down = span(warmup, total_steps, 'warmup'), span(cooldown, total_steps, 'cooldown')

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    done = jnp.clip((step - up) / max(total_steps - up, 1), 0, 1)
    shape = {
      'cosine': lambda: 0.5 * (1 + jnp.cos(jnp.pi * done)),
      'linear': lambda: 1 - done,
      'rsqrt': lambda: jax.lax.rsqrt(jnp.maximum((step - up) / timescale, 1)),
      'constant': lambda: jnp.ones(()),
    }[schedule]()
    shape = shape * jnp.minimum(1, (step + 1) / up) if up else shape
    return lr * (shape * jnp.clip((total_steps - step) / down, 0, 1) if down else shape)

  return rate


def average(ema, params, decay, step):
  """Averaged weights after one more step, decay * ema + (1 - decay) * params; decay is at most (1 + t) / (10 + t)."""
  decay = jnp.minimum(decay, (1 + step) / (10 + step)).astype(jnp.float32)
  return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
