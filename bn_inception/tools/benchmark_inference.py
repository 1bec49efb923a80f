"""How fast a network classifies, with its BN layers and with BN folded into the convolutions."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from bn_inception import release
from bn_inception.release.errors import ReleaseError


class Speeds(NamedTuple):
  """Images a second in each round."""

  unfolded: list[float]
  folded: list[float]

  def table(self) -> str:
    """Medians with their spread, and the median of the rounds' ratios."""
    rows = [
      f"  {name:9}{statistics.median(values):8.1f}  {min(values):8.1f} to {max(values):.1f}"
      for name, values in self._asdict().items()
    ]
    ratios = [folded / unfolded for unfolded, folded in zip(*self)]
    return "\n".join(
      [
        f"Images/s, median and range of {len(ratios)} rounds:",
        *rows,
        f"Folded is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}).",
      ]
    )


def folded_and_unfolded(path: str | os.PathLike, batch_size: int, rounds: int) -> Speeds:
  """Measures inference on random images, from uint8 pixels on the device to logits on the host.

  The two take turns, so that what else the machine does meets both.

  Args:
    path: as in `release.read`.
    batch_size: images at a time.
    rounds: of a batch for each of the two.

  Raises:
    ReleaseError: if the network cannot be used, has no BN, or BN that cannot be folded.
  """
  read = release.read(path)
  if not read.config.batch_norm.enabled:
    raise ReleaseError(f"{path} has no BN, so there is nothing to fold.")
  data = read.config.data
  shape = (batch_size, data.image_size, data.image_size, len(data.mean))
  images = jax.device_put(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))
  try:
    networks = [_compiled(release.build(read, folded=folded), images) for folded in (False, True)]
  except ValueError as error:
    raise ReleaseError(f"{path}: {error}") from error
  seconds = ([], [])
  for number in range(rounds):
    for which in (0, 1) if number % 2 else (1, 0):
      start = time.monotonic()
      networks[which]()
      seconds[which].append(time.monotonic() - start)
  return Speeds(*([batch_size / duration for duration in durations] for durations in seconds))


def _compiled(network: tuple[nn.Module, dict[str, Any], Callable], images: jax.Array) -> Callable[[], np.ndarray]:
  model, variables, preprocess = network
  run = jax.jit(lambda variables, images: model.apply(variables, preprocess(images), train=False))
  run = run.lower(variables, images).compile()
  jax.block_until_ready(run(variables, images))
  return lambda: np.asarray(run(variables, images))
