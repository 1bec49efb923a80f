"""What a run costs, by XLA's count of the floating point operations (FLOP) of its programs. Nothing is computed."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bn_inception import models, optim, state as state_lib, step as step_lib


class Cost(NamedTuple):
  """FLOP by `cost_analysis` of the programs before they are partitioned over devices.

  Attributes:
    train: of a training step.
    inference: of the inference of one image.
  """

  train: float
  inference: float


def of(config: ConfigDict) -> Cost:
  """Traces and lowers a config's training step and inference; one that differs in rates and lengths only is known."""
  model = {name: value for name, value in config.model.items()
           if name not in ("dropout_rate", "init_scale", "nonlinearity")}  # These change it by next to nothing.
  program = {
      "model": model, "batch_norm": config.batch_norm.enabled, "batch_size": config.batch_size, "dtype": config.dtype,
      "image_size": config.data.image_size, "channels": len(config.data.mean), "classes": config.data.num_classes,
      "gradient_accumulation": config.gradient_accumulation}
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
  eval_batch = {"image": jax.ShapeDtypeStruct((32, *image_shape), jnp.uint8),
                "label": jax.ShapeDtypeStruct((32,), jnp.int32), "mask": flags, "skipped": flags}
  train_step = jax.jit(step_lib.make_train_step(model, optimizer, config))
  train = train_step.lower(state, batch).cost_analysis()["flops"]
  eval_step = jax.jit(step_lib.make_eval_step(model, config))
  inference = eval_step.lower(state.params, state.batch_stats, eval_batch).cost_analysis()["flops"]
  # The body of a loop over micro-batches is counted once.
  return Cost(train * config.gradient_accumulation, inference / 32)


def total(config: ConfigDict, one: Cost, eval_examples: int) -> float:
  """FLOP of a whole run: its steps, and its evaluations with each of `eval.statistics` where it has BN."""
  images = eval_examples
  if config.batch_norm.enabled:
    images *= len(config.eval.statistics)
    if "population" in config.eval.statistics:
      images += config.eval.population_batches * config.batch_size
  evaluations = -(-config.num_steps // config.eval_every)
  return config.num_steps * one.train + evaluations * images * one.inference
