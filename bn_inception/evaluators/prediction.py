"""Class probabilities of images: the arithmetic mean over crops and over networks (§4.2.3, multi-crop and ensemble)."""

import collections
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bn_inception import sharding


class Network(NamedTuple):
  """A network ready for evaluation, on one data set.

  Attributes:
    model: `model.apply(variables, preprocess(images), train=False)` are logits [B, outputs].
    variables: the network's parameters and statistics.
    preprocess: turns uint8 images [B, H, W, C] into the network's input.
    columns: int [classes], the output that stands for each class of the data set. Other outputs (TF-slim's background)
      do not count: probabilities are conditional on the class being a class of the data set.
    program: a name of the compiled program. Networks that differ only in `variables` have equal names and share it.
  """

  model: nn.Module
  variables: dict[str, Any]
  preprocess: Callable[[jax.Array], jax.Array]
  columns: np.ndarray
  program: str


class Prediction(NamedTuple):
  """The prediction of one global batch of images.

  Attributes:
    probabilities: float64 [images, classes], means over crops and networks.
    mask: bool [images]; False: padding.
  """

  probabilities: np.ndarray
  mask: np.ndarray


def images_per_batch(batch_size: int, crops: int) -> int:
  """Images whose crops a host takes together, so that a network gets about `batch_size` crops at a time."""
  return max(1, batch_size // jax.process_count() // crops)


def predict(
  networks: Sequence[Network], batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, batch_size: int
) -> Iterator[Prediction]:
  """Predicts batch after batch. `batch_size` and the devices change the results only by float32 rounding.

  Args:
    networks: the networks of the ensemble. Each network has the same weight in the mean, and so has each crop.
    batches: the batches of this host: `image` uint8 [local, crops, H, W, C] and `mask` bool [local], see
      `pipeline.crop_batches`.
    mesh: the devices.
    batch_size: crops that a network gets at a time, on all devices together.

  Yields:
    For each batch the images of all hosts in order.
  """
  programs = {
    network.program: jax.jit(_forward(network), out_shardings=sharding.replicated(mesh)) for network in networks
  }
  variables = [jax.device_put(network.variables, sharding.replicated(mesh)) for network in networks]
  hosts, local_devices = jax.process_count(), mesh.size // jax.process_count()
  under_way = collections.deque()

  def start(batch: dict[str, np.ndarray]) -> tuple[list[list[jax.Array]], np.ndarray, int]:
    images = batch["image"].reshape(-1, *batch["image"].shape[2:])
    # The calls have equal size, and are as few and as full as possible.
    calls = math.ceil(len(images) / max(1, batch_size // hosts))
    per_call = math.ceil(len(images) / calls / local_devices) * local_devices
    padded = np.zeros((calls * per_call, *images.shape[1:]), np.uint8)
    padded[: len(images)] = images
    outputs = []
    for part in np.split(padded, calls):
      part = jax.make_array_from_process_local_data(sharding.examples(mesh), part)
      outputs.append([])
      for network, of_network in zip(networks, variables):
        outputs[-1].append(programs[network.program](of_network, part))
        sharding.one_program_at_a_time(mesh, outputs[-1][-1])
    return outputs, batch["mask"], batch["image"].shape[1]

  def finish(outputs: list[list[jax.Array]], mask: np.ndarray, crops: int) -> Prediction:
    # From [calls][hosts * per_call, classes] to [hosts * images, crops, classes]; the host sums in float64.
    mean = [np.mean([np.asarray(output, np.float64) for output in of_call], axis=0) for of_call in outputs]
    by_host = np.concatenate([part.reshape(hosts, -1, part.shape[-1]) for part in mean], axis=1)
    by_image = by_host[:, : len(mask) * crops].reshape(hosts * len(mask), crops, -1)
    mask = multihost_utils.process_allgather(mask, tiled=True)
    return Prediction(by_image.mean(axis=1), np.asarray(mask))

  for batch in batches:
    under_way.append(start(batch))
    if len(under_way) > 1:  # The devices work on one batch while the host finishes the one before.
      yield finish(*under_way.popleft())
  while under_way:
    yield finish(*under_way.popleft())


def _forward(network: Network) -> Callable[[Any, jax.Array], jax.Array]:
  def forward(variables: Any, images: jax.Array) -> jax.Array:
    logits = network.model.apply(variables, network.preprocess(images), train=False)
    return jax.nn.softmax(logits[:, network.columns])

  return forward
