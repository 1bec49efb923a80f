"""Stochastic gradient descent with momentum, L2, and the learning rate by step (§4.2)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bn_inception import parameter_names
from bn_inception.config_keys import Config

PAPER_BATCH = 32  # §4.2.
_LARGE_BATCH = 8 * PAPER_BATCH


def _exponential(config: Config, peak: float, epoch: float, warmup: float) -> optax.Schedule:
  """The paper's: `learning_rate_decay` every `learning_rate_decay_epochs`, in stairs, the warm-up's epochs included."""
  return optax.exponential_decay(
    peak, config.learning_rate_decay_epochs * epoch, config.learning_rate_decay, staircase=True
  )


def _cosine(config: Config, peak: float, epoch: float, warmup: float) -> optax.Schedule:
  """Half a cosine from the end of the warm-up to 0 at `num_steps` (Loshchilov and Hutter, 2017)."""
  decay = optax.cosine_decay_schedule(peak, max(config.num_steps - warmup, 1.0))
  return lambda step: decay(jnp.maximum(step - warmup, 0))


# By `learning_rate_schedule`: schedules that begin at `peak`; epoch and warmup are in steps.
DECAYS: dict[str, Callable[[Config, float, float, float], optax.Schedule]] = {
  "exponential": _exponential,
  "cosine": _cosine,
}


def learning_rate_schedule(config: Config, num_examples: int) -> optax.Schedule:
  """Learning rate by step, which falls as `learning_rate_schedule` says.

  With `learning_rate_scaling` "linear" the rate is batch_size / 32 times `learning_rate`. In the first
  `learning_rate_warmup_epochs` the rate rises linearly from 32 / batch_size of its value to all of it (Goyal et al.,
  2017, §2): with "linear" it begins at `learning_rate`.

  Args:
    config: a whole config.
    num_examples: size of the training split, which makes an epoch.
  """
  epoch = num_examples / config.batch_size
  factor = config.batch_size / PAPER_BATCH if config.learning_rate_scaling == "linear" else 1.0
  warmup = config.learning_rate_warmup_epochs * epoch
  decay = DECAYS[config.learning_rate_schedule](config, factor * config.learning_rate, epoch, warmup)
  if not warmup:
    return decay
  start = PAPER_BATCH / config.batch_size
  return lambda step: decay(step) * jnp.minimum(start + (1 - start) * step / warmup, 1.0)


def keeps_a_small_rate(config: Config) -> bool:
  """Whether a large batch is trained at a rate that nothing has fitted to it."""
  return config.batch_size >= _LARGE_BATCH and config.learning_rate_scaling == "none"


def has_weight_decay(params: Any) -> Any:
  """True for the parameters under L2: kernels, not biases, gamma or beta."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
  """SGD with momentum on loss + weight_decay / 2 * |w|^2.

  The order is that of the formulas: L2 is part of the gradient, so L2 passes through the momentum. The rate of a
  parameter is multiplied by the first of `learning_rate_factors` whose pattern fits the parameter's name. Frozen
  parameters (`init.freeze`) stay.
  """
  transforms = [
    optax.add_decayed_weights(config.weight_decay, mask=has_weight_decay),
    optax.sgd(schedule, momentum=config.momentum or None),
  ]
  if config.init.freeze:  # XLA does not compute a gradient that is replaced by zeros.

    def without_frozen(name: str, gradient: jax.Array) -> jax.Array:
      return jnp.zeros_like(gradient) if parameter_names.matches(name, config.init.freeze) else gradient

    transforms.insert(1, _by_name(without_frozen))
  if config.learning_rate_factors:
    factors = [parameter_names.factor(entry) for entry in config.learning_rate_factors]

    def at_its_rate(name: str, update: jax.Array) -> jax.Array:
      factor = next((factor for pattern, factor in factors if parameter_names.matches(name, (pattern,))), 1.0)
      return factor * update

    transforms.append(_by_name(at_its_rate))
  return optax.chain(*transforms)


def _by_name(f: Callable[[str, jax.Array], jax.Array]) -> optax.GradientTransformation:
  return optax.stateless(lambda updates, _: parameter_names.map_named(f, updates))
