"""`fake`: noise in the shape and type of real data, for measuring steps and trying a cluster where there is no data.

Every split, whatever its name, has the same 1,280 records with pixels and labels that are functions of their index. An
image is a window into one piece of noise, so that making it costs no more than copying it.
"""

from collections.abc import Callable

import numpy as np

EXAMPLES = 1_280


def reader(
  shape: tuple[int, int, int], num_classes: int
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """A function of positions and record indices, int64 [n], that fills images uint8 [n, *shape] and returns labels int64
  [n] and which were skipped, bool [n]: none."""
  length = int(np.prod(shape))
  noise = np.random.default_rng(0).integers(0, 256, length + EXAMPLES, np.uint8)
  labels = np.random.default_rng(1).integers(0, num_classes, EXAMPLES)

  def read(positions: np.ndarray, indices: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    del positions
    for image, index in zip(images, indices):
      image[:] = noise[index : index + length].reshape(shape)
    return labels[indices], np.zeros(len(indices), bool)

  return read
