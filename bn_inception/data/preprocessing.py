"""From pixels to network input, on the devices: uint8 travels there at a quarter of the size of float32."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, *, mean: Sequence[float], std: Sequence[float], binary: bool = False) -> jax.Array:
  """Network input from stored pixels.

  Args:
    images: uint8 [..., height, width, channels], 0 to 255.
    mean: one value a channel, or one for all, in pixel units.
    std: as `mean`.
    binary: 0 below 128 and 1 from there instead (paper §4.1: binary image input); mean and std do not count.

  Returns:
    float32 of the same shape: (images - mean) / std.
  """
  if binary:
    return (images >= 128).astype(jnp.float32)
  return (images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
