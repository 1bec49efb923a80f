"""The state of a training run at one step. The next step depends on this state, the config and the data alone."""

from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bn_inception.config_keys import Config


@flax.struct.dataclass
class Sums:
  """Sums over examples. Counts are integers, so counts are exact for any number of examples below 2^31."""

  loss: jax.Array  # float32, nats
  top1: jax.Array  # int32, examples that are right
  top5: jax.Array  # int32, examples with the label among the five largest logits
  count: jax.Array  # int32
  skipped: jax.Array  # int32, bad examples: training replaces them, evaluation leaves them out of count

  @classmethod
  def zeros(cls) -> "Sums":
    return cls(jnp.zeros((), jnp.float32), *(jnp.zeros((), jnp.int32) for _ in range(4)))

  def __add__(self, other: "Sums") -> "Sums":
    return jax.tree.map(jnp.add, self, other)


def classification_sums(
  logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None, skipped: jax.Array | None = None
) -> Sums:
  """Cross-entropy, top-1 and top-5 summed over the examples.

  A label's rank is the number of classes with a larger logit, plus the classes before the label with an equal logit. So
  ties are settled as by a sort, and a constant output is right for class 0 alone. An example with a logit that is not a
  number is wrong.

  Args:
    logits: [B, num_classes] float32.
    labels: [B] int32.
    mask: [B] bool, the examples to count; None: all examples.
    skipped: [B] bool, the bad records, which `skipped` counts; None: no bad records.
  """
  mask = jnp.ones(labels.shape, bool) if mask is None else mask
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  label_logits = jnp.take_along_axis(logits, labels[:, None], axis=1)
  before = jnp.arange(logits.shape[1]) < labels[:, None]
  rank = jnp.sum((logits > label_logits) | ((logits == label_logits) & before), axis=1)
  rank = jnp.where(jnp.isnan(logits).any(axis=1), logits.shape[1], rank)
  return Sums(
    jnp.sum(jnp.where(mask, losses, 0)),
    jnp.sum((rank < 1) & mask, dtype=jnp.int32),
    jnp.sum((rank < 5) & mask, dtype=jnp.int32),
    jnp.sum(mask, dtype=jnp.int32),
    jnp.sum(jnp.zeros((), bool) if skipped is None else skipped, dtype=jnp.int32),
  )


@flax.struct.dataclass
class TrainState:
  """Everything a checkpoint holds.

  Attributes:
    step: int32, the number of steps made.
    params: float32 parameters.
    batch_stats: running mean and unbiased variance of every BN layer.
    opt_state: momentum.
    ema_params: Polyak average of the parameters, or None without `ema_decay`.
    sums: metrics since the last line of the log (`skipped`: since the start), so that a resumed run writes the same
      lines.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState
  ema_params: Any
  sums: Sums

  @property
  def evaluated_params(self) -> Any:
    return self.params if self.ema_params is None else self.ema_params


def create(
  model: nn.Module, optimizer: optax.GradientTransformation, config: Config, image_shape: tuple[int, int, int]
) -> TrainState:
  """The state before the first step; its values depend on the model and `config.seed` alone.

  Args:
    model: of `models.build`.
    optimizer: of `optim`.
    config: of the run.
    image_shape: (height, width, channels) of an example.
  """
  # XLA's CPU compiler takes seconds for the default generator at each shape of parameter, and no time for "rbg".
  variables = model.init(jax.random.key(config.seed, impl="rbg"), jnp.zeros((1, *image_shape)), train=False)
  params = variables["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get("batch_stats", {}),
    opt_state=optimizer.init(params),
    ema_params=params if config.ema_decay else None,
    sums=Sums.zeros(),
  )


def abstract(initialize: Callable[[], TrainState], sharding: jax.sharding.Sharding | None) -> TrainState:
  """Shapes and types of the state that `initialize` makes, all with one sharding or none; nothing is computed."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), jax.eval_shape(initialize)
  )
