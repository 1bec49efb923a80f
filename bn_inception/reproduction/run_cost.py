"""What a run costs: XLA's count of the floating point operations and memory traffic of its programs. Nothing is run.

The programs are lowered for an accelerator, whatever this machine has: some layers are put differently on a CPU.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bn_inception import models, optim, state as state_lib, step as step_lib


class Work(NamedTuple):
  """By `cost_analysis` of a program before it is partitioned over devices and before its operations are fused.

  Attributes:
    flop: floating point operations.
    bytes: read and written by all its operations. Fusion leaves out many of them, so it is an upper bound.
  """

  flop: float
  bytes: float

  def times(self, factor: float) -> "Work":
    return Work(self.flop * factor, self.bytes * factor)

  def plus(self, other: "Work") -> "Work":
    return Work(self.flop + other.flop, self.bytes + other.bytes)


class Cost(NamedTuple):
  """Work of a training step, and of the inference of one image."""

  train: Work
  inference: Work


class Accelerator(NamedTuple):
  """What a maker's data sheet says: dense FLOP a second at the precision that JAX gives float32, bytes a second."""

  name: str
  flop: float
  bandwidth: float

  def hours(self, work: Work) -> tuple[float, float]:
    """(least, most): arithmetic at the peak alone, and unfused memory traffic at the full bandwidth (a roofline)."""
    arithmetic, memory = work.flop / self.flop / 3600, work.bytes / self.bandwidth / 3600
    return arithmetic, max(arithmetic, memory)


ACCELERATORS = (
  Accelerator("NVIDIA A100 80 GB", 156e12, 2.039e12),  # TF32.
  Accelerator("NVIDIA H100 SXM", 494e12, 3.35e12),  # TF32.
  Accelerator("TPU v4", 275e12, 1.2e12),  # bfloat16 passes.
)


def count_work(config: ConfigDict) -> Cost:
  """Traces and lowers a config's training step and inference, once for all configs that have the same programs."""
  model = {
    name: value for name, value in config.model.items() if name not in ("dropout_rate", "init_scale", "nonlinearity")
  }  # These change it by next to nothing.
  program = {
    "model": model,
    "batch_norm": config.batch_norm.enabled,
    "batch_size": config.batch_size,
    "dtype": config.dtype,
    "image_size": config.data.image_size,
    "channels": len(config.data.mean),
    "classes": config.data.num_classes,
    "gradient_accumulation": config.gradient_accumulation,
  }
  key = json.dumps(program)
  if key not in _known:
    _known[key] = _count(config)
  return _known[key]


_known: dict[str, Cost] = {}  # By what makes the program; tracing one takes seconds.


def _count(config: ConfigDict) -> Cost:
  model = models.build(config)
  image_shape = (config.data.image_size, config.data.image_size, len(config.data.mean))
  optimizer = optim.make_optimizer(config, optim.learning_rate_schedule(config, 1_000_000))
  state = jax.eval_shape(lambda: state_lib.create(model, optimizer, config, image_shape))
  batch = step_lib.train_batch_shapes(config, image_shape, steps=1)
  flags = jax.ShapeDtypeStruct((32,), jnp.bool_)
  eval_batch = {
    "image": jax.ShapeDtypeStruct((32, *image_shape), jnp.uint8),
    "label": jax.ShapeDtypeStruct((32,), jnp.int32),
    "mask": flags,
    "skipped": flags,
  }
  # The body of a loop over micro-batches is counted once.
  train = _work(step_lib.make_train_step(model, optimizer, config), state, batch).times(config.gradient_accumulation)
  inference = _work(step_lib.make_eval_step(model, config), state.params, state.batch_stats, eval_batch)
  return Cost(train, inference.times(1 / 32))


def _work(function: Callable, *arguments: Any) -> Work:
  analysis = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).cost_analysis()
  return Work(analysis["flops"], analysis["bytes accessed"])


def total_work(config: ConfigDict, cost: Cost, eval_examples: int) -> Work:
  """Work of a whole run: its steps, and its evaluations with each of `eval.statistics` where it has BN."""
  images = eval_examples
  if config.batch_norm.enabled:
    images *= len(config.eval.statistics)
    if "population" in config.eval.statistics:
      images += config.eval.population_batches * config.batch_size
  evaluations = -(-config.num_steps // config.eval_every)
  return cost.train.times(config.num_steps).plus(cost.inference.times(evaluations * images))
