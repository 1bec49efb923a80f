"""Stochastic gradient descent with momentum, exponential learning rate decay and L2 (§4.2)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from bn_inception import parameter_names

PAPER_BATCH = 32  # §4.2.
_LARGE_BATCH = 8 * PAPER_BATCH


def learning_rate_schedule(config: ConfigDict, num_examples: int) -> optax.Schedule:
  """Learning rate by step: multiplied by `learning_rate_decay` every `learning_rate_decay_epochs`, in stairs.

  With `learning_rate_scaling` "linear" the rate is batch_size / 32 times `learning_rate`. In the first
  `learning_rate_warmup_epochs` the rate rises linearly from `learning_rate` (Goyal et al., 2017, §2).

  Args:
    config: a whole config.
    num_examples: size of the training split, which makes an epoch.
  """
  epoch = num_examples / config.batch_size
  factor = config.batch_size / PAPER_BATCH if config.learning_rate_scaling == "linear" else 1.0
  decay = optax.exponential_decay(
    factor * config.learning_rate, config.learning_rate_decay_epochs * epoch, config.learning_rate_decay, staircase=True
  )
  if not (warmup := config.learning_rate_warmup_epochs * epoch):
    return decay
  start = PAPER_BATCH / config.batch_size
  return lambda step: decay(step) * jnp.minimum(start + (1 - start) * step / warmup, 1.0)


def keeps_a_small_rate(config: ConfigDict) -> bool:
  """Whether a large batch is trained at a rate that nothing has fitted to it."""
  return config.batch_size >= _LARGE_BATCH and config.learning_rate_scaling == "none"


def has_weight_decay(params: Any) -> Any:
  """True for the parameters under L2: kernels, not biases, gamma or beta."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
  """SGD with momentum on loss + weight_decay / 2 * |w|^2.

  The order is that of the formulas: L2 is part of the gradient, so L2 passes through the momentum. The rate of a
  parameter is multiplied by the first of `learning_rate_factors` whose pattern fits the parameter's name. Frozen
  parameters (`init.freeze`) stay.
  """
  transforms = [
    optax.add_decayed_weights(config.weight_decay, mask=has_weight_decay),
    optax.sgd(schedule, momentum=config.momentum or None),
  ]
  if config.init.freeze:  # What is multiplied by nothing is not computed either.
    is_frozen = lambda name: parameter_names.matches(name, config.init.freeze)
    transforms.insert(1, _by_name(lambda name, gradient: jnp.zeros_like(gradient) if is_frozen(name) else gradient))
  if config.learning_rate_factors:
    factors = [parameter_names.factor(entry) for entry in config.learning_rate_factors]
    factor = lambda name: next((by for pattern, by in factors if parameter_names.matches(name, (pattern,))), 1.0)
    transforms.append(_by_name(lambda name, update: factor(name) * update))
  return optax.chain(*transforms)


def _by_name(f: Callable[[str, jax.Array], jax.Array]) -> optax.GradientTransformation:
  return optax.stateless(lambda updates, _: parameter_names.map_named(f, updates))
