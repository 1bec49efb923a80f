"""Stochastic gradient descent with momentum, exponential learning rate decay and L2 (§4.2)."""

from typing import Any

import jax
from ml_collections import ConfigDict
import optax


def learning_rate_schedule(config: ConfigDict, num_examples: int) -> optax.Schedule:
  """Learning rate by step: multiplied by `learning_rate_decay` every `learning_rate_decay_epochs`, in stairs.

  Args:
    config: a whole config.
    num_examples: size of the training split, which makes an epoch.
  """
  steps = config.learning_rate_decay_epochs * num_examples / config.batch_size
  return optax.exponential_decay(config.learning_rate, steps, config.learning_rate_decay, staircase=True)


def has_weight_decay(params: Any) -> Any:
  """True for the parameters under L2: kernels, not biases, gamma or beta."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
  """SGD with momentum on loss + weight_decay / 2 * |w|^2.

  The order is that of the formulas: L2 is part of the gradient, so it passes through the momentum.
  """
  return optax.chain(
      optax.add_decayed_weights(config.weight_decay, mask=has_weight_decay),
      optax.sgd(schedule, momentum=config.momentum or None),
  )
