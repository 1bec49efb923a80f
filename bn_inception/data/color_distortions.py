"""Photometric distortions of the training images, on the devices: brightness, contrast, saturation, hue.

The GoogLeNet paper (arXiv 1409.4842, section 6) found those of Andrew Howard (arXiv 1312.5402) useful against
overfitting; §4.2.1 of the Batch Normalization paper reduces them. Neither states ranges: these are the ones Google
published with its Inception networks (tensorflow/models, slim/preprocessing/inception_preprocessing.py).

Every operation is affine in RGB, so an example's operation at each place of its random order is a 3x3 matrix and an
offset: choosing among the operations is choosing among those, and the pixels of the whole batch pass through one
vectorized expression, whatever their orders. The result of each operation is clipped to valid pixels, as in PIL and
torchvision. (Without that these four operations would commute, and their order would mean nothing.)

Every random choice is a function of (seed, position in the training stream, number of the choice) by an integer hash:
no state, no dependence on devices or micro-batches, and no time to compile, unlike JAX's generators on CPU.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# At full strength; symmetric about no change.
MAX_BRIGHTNESS = 32.0  # Added, in pixel units: 32 / 255 of the range.
MAX_CONTRAST = 0.5  # Factors of 1 - 0.5 to 1 + 0.5.
MAX_SATURATION = 0.5
MAX_HUE = 0.2  # In turns: up to 72 degrees either way.

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # Rows of what follows.

# ITU-R 601 luma, the gray of PIL and of TensorFlow. I and Q span the colours of one luma (NTSC's YIQ, as in tf.image).
_LUMA = np.array([0.299, 0.587, 0.114])
_RGB_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


class Choices(NamedTuple):
  """What is done to each example of a batch.

  Attributes:
    amount: float32 [B, 4]: brightness as an offset in pixel units, contrast and saturation as factors, hue in turns.
    order: int32 [B, operations]: the operations (BRIGHTNESS, ...) from the first to the last.
  """

  amount: jax.Array
  order: jax.Array


def choose(seed: int, positions: jax.Array, *, strength: float, channels: int) -> Choices:
  """Draws amounts, each uniform in its range, and orders, all equally likely.

  Args:
    seed: any integer; its lower 64 bits count.
    positions: uint32 [B], of the examples in the training stream (modulo 2^32: 3,352 epochs of ImageNet).
    strength: scales the ranges: 1 the published ones, 0 no change.
    channels: of the images. Those with 1 have no saturation and no hue, and orders of the other two.
  """
  bits = [_hash(seed, positions, number) for number in range(5)]
  # Of 23 bits, so that float32 holds each value: -1 + 2^-23, ..., 1 - 2^-23.
  symmetric = jnp.stack(bits[:4], axis=1) >> 9
  symmetric = (symmetric.astype(jnp.float32) + 0.5) * 2.0**-22 - 1.0
  center, reach = np.array([0, 1, 1, 0]), np.array([MAX_BRIGHTNESS, MAX_CONTRAST, MAX_SATURATION, MAX_HUE])
  amount = jnp.asarray(center, jnp.float32) + jnp.asarray(strength * reach, jnp.float32) * symmetric
  operations = (BRIGHTNESS, CONTRAST, SATURATION, HUE) if channels == 3 else (BRIGHTNESS, CONTRAST)
  orders = np.array(list(itertools.permutations(operations)), np.int32)
  return Choices(amount, jnp.asarray(orders)[bits[4] % len(orders)])


def apply(images: jax.Array, choices: Choices) -> jax.Array:
  """Distorts each example as chosen.

  With v a pixel's RGB: brightness v + amount (tf.image.adjust_brightness); contrast m + amount (v - m), m the mean of
  each channel over the image as it is then (tf.image.adjust_contrast); saturation g + amount (v - g), g the gray of the
  pixel (PIL's ImageEnhance.Color, torchvision); hue a rotation of (I, Q) by the amount, which keeps gray pixels and the
  luma of all (tf.contrib.image.adjust_hsv_in_yiq). After each the pixels are clipped to 0 ... 255.

  Args:
    images: uint8 or float [B, H, W, channels], 0 to 255, RGB or with one channel.
    choices: for these B examples.

  Returns:
    float32 of the same shape, 0 to 255, not rounded.
  """
  channels = images.shape[-1]
  matrices = _matrices(choices.amount, channels)  # [B, 4, C, C]
  # Channels apart: the pixels of one are contiguous, which is what vector units want.
  planes = [images[..., channel].astype(jnp.float32) for channel in range(channels)]
  for operation in jnp.moveaxis(choices.order, 1, 0):
    matrix = jnp.take_along_axis(matrices, operation[:, None, None, None], axis=1)[:, 0]
    amount = jnp.take_along_axis(choices.amount, operation[:, None], axis=1)[:, 0]
    means = [jnp.mean(plane, axis=(1, 2)) for plane in planes]
    brightness, contrast = operation == BRIGHTNESS, operation == CONTRAST
    offsets = [jnp.where(brightness, amount, jnp.where(contrast, (1 - amount) * mean, 0.0)) for mean in means]
    planes = [
      jnp.clip(
        sum(matrix[:, row, column, None, None] * planes[column] for column in range(channels))
        + offsets[row][:, None, None],
        0.0,
        255.0,
      )
      for row in range(channels)
    ]
  return jnp.stack(planes, axis=-1)


def distort(images: jax.Array, positions: jax.Array, *, seed: int, strength: float) -> jax.Array:
  """`choose` and `apply`: what training sees of uint8 [B, H, W, channels] at these positions, before normalization."""
  return apply(images, choose(seed, positions, strength=strength, channels=images.shape[-1]))


def _matrices(amount: jax.Array, channels: int) -> jax.Array:
  """The matrix of every operation, whether used or not: float32 [B, 4, channels, channels]."""
  # No matrix products here: accelerators would round their factors to bfloat16.
  identity = jnp.eye(channels)
  contrast, saturation = (amount[:, operation, None, None] for operation in (CONTRAST, SATURATION))
  brightness, contrast = jnp.broadcast_to(identity, (len(amount), channels, channels)), contrast * identity
  if channels == 1:
    return jnp.stack([brightness, contrast], axis=1)
  saturation = saturation * identity + (1 - saturation) * jnp.asarray(np.tile(_LUMA, (3, 1)), jnp.float32)
  # Y, the part along I and Q, and I and Q turned by 90 degrees: a rotation is a sum of the three.
  parts = np.array(
    [[[1, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, -1], [0, 1, 0]]]
  )
  luma, chroma, turned = jnp.asarray(_YIQ_TO_RGB @ parts @ _RGB_TO_YIQ, jnp.float32)
  angle = 2 * math.pi * amount[:, HUE, None, None]
  hue = luma + jnp.cos(angle) * chroma + jnp.sin(angle) * turned
  return jnp.stack([brightness, contrast, saturation, hue], axis=1)


def _hash(seed: int, positions: jax.Array, number: int) -> jax.Array:
  """32 random bits for each position: the words (seed, position, number) mixed in one after the other."""
  state = np.uint32(0)
  for word in (seed % 2**32, seed // 2**32 % 2**32, positions.astype(jnp.uint32), number):
    state = _mix(state + (jnp.asarray(word, jnp.uint32) + np.uint32(0x9E3779B9)))
  return state


def _mix(words: jax.Array) -> jax.Array:
  """MurmurHash3's 32-bit finalizer (Appleby, 2011): a bijection of uint32 that changes half of the bits for any one."""
  words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
  words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
  return words ^ (words >> 16)
