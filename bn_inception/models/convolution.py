"""Convolution and pooling that are fast on every platform.

On TPU and GPU these are XLA's own operations and gradients. On a CPU XLA (jaxlib 0.10) leaves several times the speed
on the table in four places, measured on Inception's shapes with two AVX-512 cores; only these are lowered differently:

- a 1x1 convolution runs at 100-200 GFLOP/s, as a matrix product at 170-310;
- the kernel gradient of a 3x3 runs at 60-190 GFLOP/s (of a 1x1 at 13-70), as matrix products of shifted inputs at
 110-280 (100-240);
- the gradients of a grouped convolution are 3 to 12 times slower than those of the dense one with zeros between groups;
- max pooling's gradient (select-and-scatter) is 6 to 20 times slower than comparing each tap with the maximum, and its
 forward pass 2 to 4 times slower than a maximum over columns, then over rows.

XLA's forward convolution and input gradient beat im2col and tap sums on most shapes, so they stay. Nothing here mixes
examples except the sum over the batch in a kernel's gradient: sharded over the batch, a program needs that one
all-reduce and no other communication.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def conv2d(
  x: jax.Array, kernel: jax.Array, *, strides: Pair = (1, 1), padding: str | Padding, feature_group_count: int = 1
) -> jax.Array:
  """Two-dimensional convolution (cross-correlation, as everywhere in deep learning), without bias.

  Reverse-mode differentiable once. Matrix products follow JAX's `default_matmul_precision`.

  Args:
    x: [batch, height, width, in_channels], any float dtype; the result has the same dtype.
    kernel: [kernel_height, kernel_width, in_channels / feature_group_count, out_channels], the dtype of `x`.
    strides: (vertical, horizontal).
    padding: 'SAME' (TensorFlow's: an odd total pads the far side more) or ((top, bottom), (left, right)) zeros.
    feature_group_count: with `in_channels`, a depthwise convolution of multiplier out_channels / in_channels.

  Returns:
    [batch, out_height, out_width, out_channels].

  Raises:
    TypeError, ValueError: dtypes or channel counts that do not fit, as `jax.lax.conv_general_dilated` raises them.
  """
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
  return _conv2d(x, kernel, tuple(strides), _static(padding), feature_group_count)


def max_pool(x: jax.Array, *, window: Pair = (3, 3), strides: Pair, padding: Padding) -> jax.Array:
  """Maximum over windows; of equal maxima the first in row-major order receives the gradient.

  Args:
    x: [batch, height, width, channels], any float dtype.
    window: (height, width) of the window; at most 255 pixels.
    strides: (vertical, horizontal).
    padding: ((top, bottom), (left, right)) pixels of -inf.

  Returns:
    [batch, out_height, out_width, channels] of the dtype of `x`.
  """
  return _max_pool(x, tuple(window), tuple(strides), _static(padding))


def avg_pool(x: jax.Array, *, window: Pair, strides: Pair, padding: Padding, count_include_pad: bool) -> jax.Array:
  """Mean over windows.

  Args:
    x: [batch, height, width, channels], any float dtype.
    window: (height, width) of the window.
    strides: (vertical, horizontal).
    padding: ((top, bottom), (left, right)) zeros.
    count_include_pad: True divides by the window's area (Caffe, PyTorch), False by the number of its pixels that
      lie inside the image (TensorFlow).

  Returns:
    [batch, out_height, out_width, channels] of the dtype of `x`.
  """
  total = lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))
  if count_include_pad:
    return total / math.prod(window)
  rows, columns = (
    _real_pixels(n, *axis) for n, axis in zip(x.shape[1:3], zip(window, strides, padding), strict=True)
  )
  return total / np.outer(rows, columns)[:, :, None].astype(x.dtype)


def _real_pixels(size: int, window: int, stride: int, padding: Pair) -> np.ndarray:
  """How many of each window's pixels lie inside the image, along one axis."""
  first = np.arange(_out_size(size, window, stride, padding)) * stride - padding[0]
  return np.minimum(first + window, size) - np.maximum(first, 0)


def _static(padding: Padding) -> Padding:
  return tuple((int(low), int(high)) for low, high in padding)


def _out_size(size: int, window: int, stride: int, padding: Pair) -> int:
  return (size + sum(padding) - window) // stride + 1


# ---------------------------------------------------------------------------------------------------- convolution


def _xla_conv(x, kernel, strides, padding, groups):
  return lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d(x, kernel, strides, padding, groups):
  xla = functools.partial(_xla_conv, strides=strides, padding=padding, groups=groups)
  if _is_matmul(kernel, strides, padding, groups):
    return lax.platform_dependent(x, kernel, cpu=lambda x, kernel: x @ kernel[0, 0], default=xla)
  return xla(x, kernel)


def _is_matmul(kernel, strides, padding, groups):
  return kernel.shape[:2] == strides == (1, 1) and padding == ((0, 0), (0, 0)) and groups == 1


def _conv2d_forward(x, kernel, strides, padding, groups):
  return _conv2d(x, kernel, strides, padding, groups), (x, kernel)


def _conv2d_backward(strides, padding, groups, residuals, dy):
  static = dict(strides=strides, padding=padding, groups=groups)
  return lax.platform_dependent(
    *residuals, dy, cpu=functools.partial(_cpu_gradients, **static), default=functools.partial(_xla_gradients, **static)
  )


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _xla_gradients(x, kernel, dy, **static):
  return jax.vjp(functools.partial(_xla_conv, **static), x, kernel)[1](dy)


def _cpu_gradients(x, kernel, dy, *, strides, padding, groups):
  if groups > 1:
    dense = lambda x, kernel: _xla_conv(x, _block_diagonal(kernel, groups), strides, padding, 1)
    return jax.vjp(dense, x, kernel)[1](dy)
  if _is_matmul(kernel, strides, padding, groups):
    return dy @ kernel[0, 0].T, lax.dot_general(x, dy, (((0, 1, 2), (0, 1, 2)), ((), ())))[None, None]
  dx, _ = _xla_gradients(x, kernel, dy, strides=strides, padding=padding, groups=groups)
  return dx, _kernel_gradient(x, dy, kernel.shape[:2], strides, padding)


def _block_diagonal(kernel, groups):
  """The [kh, kw, in, out] kernel of the dense convolution equal to the grouped one."""
  blocks = jnp.split(kernel, groups, axis=3)
  rows = [jnp.pad(b, ((0, 0),) * 3 + ((g * b.shape[3], (groups - 1 - g) * b.shape[3]),)) for g, b in enumerate(blocks)]
  return jnp.concatenate(rows, axis=2)


def _kernel_gradient(x, dy, window, strides, padding):
  """Per tap of the kernel one matrix product of the shifted input and `dy`: no im2col in memory, only a tap at a time."""
  out_size, out_channels = dy.shape[1:3], dy.shape[3]
  dy = dy.reshape(-1, out_channels)
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  taps = [tap.reshape(-1, x.shape[3]).T @ dy for tap in _taps(x, window, strides, out_size)]
  return jnp.stack(taps).reshape(*window, x.shape[3], out_channels)


def _taps(x, window, strides, out_size):
  """For every (i, j) of the window in row-major order, the pixel of padded `x` that each output sees there."""
  last = [stride * (size - 1) + 1 for stride, size in zip(strides, out_size, strict=True)]
  return [
    x[:, i : i + last[0] : strides[0], j : j + last[1] : strides[1]]
    for i in range(window[0])
    for j in range(window[1])
  ]


# -------------------------------------------------------------------------------------------------------- max pool


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, padding):
  static = dict(window=window, strides=strides, padding=padding)
  return lax.platform_dependent(
    x, cpu=functools.partial(_separable_max, **static), default=functools.partial(_xla_max_pool, **static)
  )


def _max_pool_forward(x, window, strides, padding):
  y = _max_pool(x, window, strides, padding)
  return y, (x, y)


def _max_pool_backward(window, strides, padding, residuals, dy):
  static = dict(window=window, strides=strides, padding=padding)
  dx = lax.platform_dependent(
    *residuals,
    dy,
    cpu=functools.partial(_cpu_max_pool_gradient, **static),
    default=functools.partial(_xla_max_pool_gradient, **static),
  )
  return (dx,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _xla_max_pool(x, *, window, strides, padding):
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


def _xla_max_pool_gradient(x, _, dy, **static):
  return jax.vjp(functools.partial(_xla_max_pool, **static), x)[1](dy)[0]


def _separable_max(x, *, window, strides, padding):
  x = _xla_max_pool(x, window=(1, window[1]), strides=(1, strides[1]), padding=((0, 0), padding[1]))
  return _xla_max_pool(x, window=(window[0], 1), strides=(strides[0], 1), padding=(padding[0], (0, 0)))


def _cpu_max_pool_gradient(x, y, dy, *, window, strides, padding):
  """Gathers: each input pixel adds the `dy` of those windows that chose it.

  Padded row `stride * m + r` is row `stride * q + r` of window `m - q`. All rows (columns) of one residue r are thus
  sums of shifted whole arrays, and the residues interleave to the padded image.
  """
  batch, height, width, channels = x.shape
  x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
  chosen = jnp.full(y.shape, math.prod(window), jnp.uint8)
  for n, tap in reversed(list(enumerate(_taps(x, window, strides, y.shape[1:3])))):
    chosen = jnp.where(tap == y, jnp.uint8(n), chosen)

  reach = [(size - 1) // stride for size, stride in zip(window, strides, strict=True)]
  rows, columns = (size + extra for size, extra in zip(y.shape[1:3], reach, strict=True))
  around = ((0, 0), (reach[0],) * 2, (reach[1],) * 2, (0, 0))
  chosen = jnp.pad(chosen, around, constant_values=math.prod(window))
  dy = jnp.pad(dy, around)

  def residue(r, c):
    total = jnp.zeros((batch, rows, columns, channels), dy.dtype)
    for i in range(r, window[0], strides[0]):
      for j in range(c, window[1], strides[1]):
        top, left = reach[0] - i // strides[0], reach[1] - j // strides[1]
        here = (slice(None), slice(top, top + rows), slice(left, left + columns))
        total += jnp.where(chosen[here] == i * window[1] + j, dy[here], 0)
    return total

  residues = [jnp.stack([residue(r, c) for c in range(strides[1])], axis=3) for r in range(strides[0])]
  dx = jnp.stack(residues, axis=2).reshape(batch, rows * strides[0], columns * strides[1], channels)
  edges = [
    (-low, size + low - padded, 0)
    for size, padded, (low, _) in zip((height, width), dx.shape[1:3], padding, strict=True)
  ]
  return lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
