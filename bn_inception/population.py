"""Algorithm 2: population statistics from many training mini-batches, weights frozen."""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bn_inception import batch_norm, models, sharding, step
from bn_inception.config_keys import Config
from bn_inception.state import Sums

if typing.TYPE_CHECKING:  # diagnose.py computes statistics of any network without TensorFlow.
  from bn_inception.data import device, pipeline

BatchStatisticsStep = Callable[[Any, Any, step.Batch], tuple[Sums, Any]]


def batch_statistics_step(config: Config, mesh: Mesh) -> BatchStatisticsStep:
  """Compiles `step.make_batch_statistics_step` for the batches of any size of a config, see `over_training_batches`."""
  groups = dataclasses.replace(config.batch_norm, group_size=config.batch_norm.group_size or config.batch_size)
  model = models.build(dataclasses.replace(config, batch_norm=groups))
  # Results are on every device, so that every process can read them.
  return jax.jit(step.make_batch_statistics_step(model, config), out_shardings=sharding.replicated(mesh))


def training_batches(config: Config, mesh: Mesh, source: "pipeline.Source") -> "device.DeviceBatches":
  """Starts to read the config's first `eval.population_batches` training batches, for `over_training_batches`.

  Args:
    config, mesh: of the run.
    source: the training split.

  Raises:
    DataError: if the split cannot be trained on; later, if the split cannot be read.
  """
  from bn_inception.data import device, pipeline, stream

  share = dict(batch_size=config.batch_size, process_index=jax.process_index(), process_count=jax.process_count())
  batches = pipeline.train_batches(config.data, source, seed=config.seed, **share)
  positions = (
    stream.local_positions(step, **share)[0].astype(np.uint32) for step in range(config.eval.population_batches)
  )
  # No example is padding: another example takes the place of a skipped example.
  local = (
    {name: array[0] for name, array in batch.items()} | {"mask": np.ones(position.shape, bool), "position": position}
    for position, batch in zip(positions, batches)
  )
  return device.to_device(local, sharding.examples(mesh))


def over_training_batches(
  compiled_step: BatchStatisticsStep,
  params: Any,
  batch_stats: Any,
  batches: Iterable[dict[str, jax.Array]],
  mesh: Mesh,
  between_batches: Callable[[], None] = lambda: None,
) -> Any:
  """Population statistics over training batches.

  Args:
    compiled_step: from `batch_statistics_step`.
    params, batch_stats: of the network. Only frozen layers use their `batch_stats`, and keep them.
    batches: from `training_batches`.
    mesh: of the run.
    between_batches: called before every batch; an exception that it raises ends the pass.

  Returns:
    The `batch_stats` collection, on every device.

  Raises:
    DataError: if the training data cannot be read.
  """

  def moments() -> Iterator[Any]:
    for batch in batches:
      between_batches()
      yield compiled_step(params, batch_stats, batch)[1]

  statistics = batch_norm.replaced(batch_stats, population_statistics(moments()))
  return jax.device_put(statistics, sharding.replicated(mesh))


def population_statistics(moments: Iterable[Any]) -> Any:
  """E[x] = E_B[mu_B], Var[x] = m / (m - 1) E_B[var_B] (Algorithm 2, lines 9 and 10).

  Args:
    moments: a `batch_moments` collection for every step. Each group is a mini-batch B of the paper. m is the number of
      values that entered the group's variance (m * p * q for a convolution).

  Returns:
    The `batch_stats` collection, float32; the sums are float64.

  Raises:
    ValueError: if there is no step.
  """
  total = None
  for moments_of_step in moments:
    sums = batch_norm.map_layers(_sums, jax.device_get(moments_of_step))
    total = sums if total is None else jax.tree.map(np.add, total, sums)
  if total is None:
    raise ValueError("Population statistics need at least one mini-batch, and none came.")

  def mean_and_variance(node: dict[str, Any]) -> dict[str, Any]:
    if "groups" not in node:
      return {name: mean_and_variance(child) for name, child in node.items()}
    mean = node["mean"] / node["groups"]
    return {"mean": mean.astype(np.float32), "var": (node["unbiased"] / node["groups"]).astype(np.float32)}

  return mean_and_variance(total)


def _sums(layer: batch_norm.Moments) -> dict[str, np.ndarray]:
  count = layer.count.reshape(-1, *(1,) * (layer.mean.ndim - 1)).astype(np.float64)
  return {
    "mean": layer.mean.sum(0, dtype=np.float64),
    "unbiased": (layer.variance * (count / np.maximum(count - 1, 1))).sum(0),
    "groups": np.sum(layer.count > 0),
  }  # A group of padding only has mean and variance 0, and is no mini-batch.
