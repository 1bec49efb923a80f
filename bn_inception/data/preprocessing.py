"""From pixels to network input, on the devices: uint8 travels there at a quarter of the size of float32."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bn_inception.config_keys import Data


def preprocess(data: Data, images: jax.Array) -> jax.Array:
  """Pixels [..., H, W, C], uint8 or float from 0 to 255, to the float32 input of a config's network."""
  return normalize(images, mean=data.mean, std=data.std, binary=data.binary, channel_order=data.channel_order)


def normalize(
  images: jax.Array, *, mean: Sequence[float], std: Sequence[float], binary: bool = False, channel_order: str = "rgb"
) -> jax.Array:
  """Network input from stored pixels.

  Args:
    images: uint8 or float [..., height, width, channels], 0 to 255, RGB.
    mean: one value a channel in the order of `images`, or one for all, in pixel units.
    std: as `mean`.
    binary: 0 below 128 and 1 from there instead (paper §4.1: binary image input); mean and std do not count.
    channel_order: of the result: "rgb" as stored, or "bgr" (Caffe and what was ported from it).

  Returns:
    float32 of the same shape: (images - mean) / std, in channel_order.
  """
  images = jnp.asarray(images)
  if binary:
    normalized = (images >= 128).astype(jnp.float32)
  else:
    normalized = (images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
  return normalized[..., ::-1] if channel_order == "bgr" else normalized
