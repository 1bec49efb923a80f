"""Algorithm 2: population statistics from many training mini-batches, weights frozen."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from bn_inception import batch_norm


def population_statistics(moments: Iterable[Any]) -> Any:
  """E[x] = E_B[mu_B], Var[x] = m / (m - 1) E_B[var_B] (Algorithm 2, lines 9 and 10).

  Args:
    moments: a `batch_moments` collection for every step; each group in it is a mini-batch B of the paper, m the number
      of values that entered its variance (m * p * q for a convolution).

  Returns:
    The `batch_stats` collection, float32; summed in float64.

  Raises:
    ValueError: if there is no step.
  """
  total = None
  for step in moments:
    sums = batch_norm.map_layers(_sums, jax.device_get(step))
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
  return {"mean": layer.mean.sum(0, dtype=np.float64),
          "unbiased": (layer.variance * (count / np.maximum(count - 1, 1))).sum(0),
          "groups": np.sum(layer.count > 0)}  # One of padding only has mean and variance 0, and is no mini-batch.
