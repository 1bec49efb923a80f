"""The training step and the two evaluation steps: pure functions of state and batch, no I/O."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bn_inception import batch_norm, parameter_names
from bn_inception.config_keys import Config, Data
from bn_inception.data import color_distortions
from bn_inception.data.preprocessing import preprocess
from bn_inception.state import Sums, TrainState, classification_sums

Batch = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], TrainState]


def preprocess_for_training(config: Config, images: jax.Array, positions: jax.Array) -> jax.Array:
  """uint8 [B, H, W, C] at `positions` (uint32 [B]) of the training stream to input with photometric distortions."""
  if config.data.photometric_strength:
    images = color_distortions.distort(images, positions, seed=config.seed, strength=config.data.photometric_strength)
  return preprocess(config.data, images)


def train_batch_shapes(
  config: Config, *, steps: int, sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of the batch of `make_train_step` (steps=1) or `make_train_call` (steps=config.steps_per_call)."""
  micro_batches = (steps * config.gradient_accumulation, config.batch_size // config.gradient_accumulation)
  leaves = {"image": (config.data.image_shape, jnp.uint8), "label": ((), jnp.int32), "skipped": ((), jnp.bool_)}
  return {
    name: jax.ShapeDtypeStruct((*micro_batches, *shape), dtype, sharding=sharding)
    for name, (shape, dtype) in leaves.items()
  }


def mean_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> jax.Array:
  """The loss that training minimizes.

  Args:
    logits: [B, num_classes] float32.
    labels: [B] int32.
    label_smoothing: s puts 1 - s + s / num_classes on the label and s / num_classes on every other class (Szegedy et
      al., 2016, §7). What training and evaluation report is the cross-entropy of the label itself.
  """
  if not label_smoothing:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
  targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
  return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def make_train_step(model: nn.Module, optimizer: optax.GradientTransformation, config: Config) -> TrainStep:
  """Makes the step: gradient of the mean cross-entropy, SGD, running averages, EMA.

  The batch is {"image": uint8 [A, B / A, H, W, C], "label": int32 [A, B / A], "skipped": bool [A, B / A] (only
  counted)}. A is the number of micro-batches whose gradients are accumulated. BN groups are those of the whole batch,
  because no group is split over micro-batches. Step t has the positions t * B ... t * B + B - 1 of the training stream
  in this order (data/stream.py).
  """
  has_batch_norm = config.batch_norm.enabled

  def loss_and_aux(params: Any, state: TrainState, inputs: jax.Array, batch: Batch, key: jax.Array):
    labels = batch["label"]
    variables = {"params": params, "batch_stats": state.batch_stats}
    logits, updates = model.apply(
      variables, inputs, train=True, rngs={"dropout": key}, mutable=["batch_moments", "auxiliary"]
    )
    cross_entropy = functools.partial(mean_cross_entropy, labels=labels, label_smoothing=config.label_smoothing)
    auxiliary = sum(cross_entropy(logits) for logits in jax.tree.leaves(updates.get("auxiliary", {})))
    loss = cross_entropy(logits) + config.auxiliary_loss_weight * auxiliary
    return loss, (updates.get("batch_moments", {}), classification_sums(logits, labels, skipped=batch["skipped"]))

  def with_frozen(old: Any, new: Any) -> Any:
    """`new` parameters, but of the frozen ones every bit of the `old`."""
    if not config.init.freeze:
      return new
    return parameter_names.map_named(
      lambda name, old, new: old if parameter_names.matches(name, config.init.freeze) else new, old, new
    )

  def start_counts(layer: str) -> bool:
    """Whether the running averages of a layer begin with values of a trained network, and not with those of no step."""
    return bool(config.init.checkpoint) and parameter_names.is_loaded(f"{layer}/mean", config.init.skip)

  def train_step(state: TrainState, batch: Batch) -> TrainState:
    micro_batches, micro_batch_size = batch["label"].shape
    # The key depends on the step alone, so a resumed run draws the same numbers as an uninterrupted run.
    step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)

    def gradients(index: jax.Array, micro_batch: Batch):
      key = jax.random.fold_in(step_key, index)
      first = (state.step.astype(jnp.uint32) * micro_batches + index.astype(jnp.uint32)) * micro_batch_size
      positions = first + jnp.arange(micro_batch_size, dtype=jnp.uint32)
      inputs = preprocess_for_training(config, micro_batch["image"], positions)
      grads, aux = jax.grad(loss_and_aux, has_aux=True)(state.params, state, inputs, micro_batch, key)
      return grads, *aux

    if micro_batches == 1:
      grads, moments, sums = gradients(jnp.zeros((), jnp.int32), jax.tree.map(lambda x: x[0], batch))
    else:

      def accumulate(carry, micro_batch):
        grads, moments, sums = gradients(*micro_batch)
        total, total_sums = carry
        return (jax.tree.map(jnp.add, total, grads), total_sums + sums), moments

      start = (jax.tree.map(jnp.zeros_like, state.params), Sums.zeros())
      (grads, sums), moments = jax.lax.scan(accumulate, start, (jnp.arange(micro_batches), batch))
      grads = jax.tree.map(lambda g: g / micro_batches, grads)
      # From [A, G, ...] to all groups of the step, with the groups of one device together.
      moments = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), moments)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = with_frozen(state.params, optax.apply_updates(state.params, updates))
    batch_stats = state.batch_stats
    if has_batch_norm:
      batch_stats = batch_norm.update_running_averages(
        batch_stats, moments, momentum=config.batch_norm.momentum, step=state.step, start_counts=start_counts
      )
    ema_params = state.ema_params
    if config.ema_decay:
      # As in tf.train.ExponentialMovingAverage, the average forgets its start value quickly.
      decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
      ema_params = with_frozen(
        ema_params, jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema_params, params)
      )
    return state.replace(
      step=state.step + 1,
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      ema_params=ema_params,
      sums=state.sums + sums,
    )

  return train_step


def make_train_call(train_step: TrainStep, config: Config) -> TrainStep:
  """Makes `steps_per_call` steps one program, so that a small network does not wait for Python between its steps.

  The batches of S steps come as one batch. Its leaves begin with [S * A, B / A] (see `make_train_step`).
  """
  if config.steps_per_call == 1:
    return train_step

  def train_call(state: TrainState, batch: Batch) -> TrainState:
    batches = jax.tree.map(lambda x: x.reshape(config.steps_per_call, -1, *x.shape[1:]), batch)
    return jax.lax.scan(lambda state, batch: (train_step(state, batch), None), state, batches)[0]

  return train_call


def make_eval_step(model: nn.Module, data: Data) -> Callable[[Any, Any, Batch], Sums]:
  """Makes the step of inference with given statistics (Algorithm 2, line 11).

  The arguments are parameters, `batch_stats` and {"image": uint8 [B, H, W, C], "label": int32 [B], "mask": bool [B],
  "skipped": bool [B]}.
  """

  def eval_step(params: Any, batch_stats: Any, batch: Batch) -> Sums:
    logits = model.apply({"params": params, "batch_stats": batch_stats}, preprocess(data, batch["image"]), train=False)
    return classification_sums(logits, batch["label"], batch["mask"], batch["skipped"])

  return eval_step


def make_batch_statistics_step(model: nn.Module, config: Config) -> Callable[[Any, Any, Batch], tuple[Sums, Any]]:
  """Makes the forward pass with the batch's own statistics and without dropout, weights frozen.

  The arguments are those of the evaluation step (the running averages are passed but not used). A batch with a
  "position" (uint32 [B]) is of the training stream, and is distorted as in training. The step returns the sums and
  `batch_moments`, whose groups hold only unmasked examples.
  """

  def batch_statistics_step(params: Any, batch_stats: Any, batch: Batch) -> tuple[Sums, Any]:
    if "position" in batch:
      inputs = preprocess_for_training(config, batch["image"], batch["position"])
    else:
      inputs = preprocess(config.data, batch["image"])
    logits, updates = model.apply(
      {"params": params, "batch_stats": batch_stats},
      inputs,
      train=True,
      mask=batch["mask"],
      mutable=["batch_moments", "auxiliary"],
    )
    return classification_sums(logits, batch["label"], batch["mask"], batch["skipped"]), updates.get(
      "batch_moments", {}
    )

  return batch_statistics_step
