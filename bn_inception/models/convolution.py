"""Convolution and pooling that are fast on every platform.

On TPU and GPU these are XLA's own operations and gradients. XLA for CPU (jaxlib 0.10) is slow in a few of them, and
only these are lowered differently here (measured on Inception's shapes, two AVX-512 cores):

- a 1x1 convolution: 50-200 GFLOP/s, its kernel's gradient 13-70; as matrix products 80-340 and 40-240;
- the gradients of the depthwise 7x7 / 2 at 224 px: 1.9 s; of the dense convolution that equals it 0.3 s;
- max pooling's gradient (select-and-scatter): 6 to 25 times slower than comparing each tap with the maximum; its
  forward pass 3 to 9 times slower than a maximum over columns, then over rows.

Together a training step at 224 px takes about half the time and three quarters of the memory. XLA's other convolutions
stay: im2col and sums over taps lose in the forward pass and in the input's gradient on most shapes; for the gradient of
a 3x3 kernel they win alone, but a whole network gains nothing from them and holds 1.7 times the memory.

Nothing here mixes examples but the sum over the batch in a kernel's gradient: sharded over the batch, a program needs
that one all-reduce and no other communication. (XLA gathers the batch for groups that are not depthwise: avoid them.)
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def conv2d(x: jax.Array, kernel: jax.Array, *, strides: Pair = (1, 1), padding: str | Padding,
           feature_group_count: int = 1) -> jax.Array:
  """Two-dimensional convolution (cross-correlation, as everywhere in deep learning), without bias.

  Precision is that of JAX's `default_matmul_precision`.

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
  if feature_group_count > 1:
    return _grouped_conv(x, kernel, tuple(strides), _as_tuples(padding), feature_group_count)
  return _dense_conv(x, kernel, tuple(strides), _as_tuples(padding))


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
  return _max_pool(x, tuple(window), tuple(strides), _as_tuples(padding))


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
  inside = [_pixels_inside(*axis) for axis in zip(x.shape[1:3], window, strides, padding, strict=True)]
  return total / np.outer(*inside)[:, :, None].astype(x.dtype)


def _pixels_inside(size: int, window: int, stride: int, padding: Pair) -> np.ndarray:
  """How many pixels of each window lie inside the image, along one axis."""
  low, high = padding
  start = np.arange(-low, size + high - window + 1, stride)
  return np.minimum(start + window, size) - np.maximum(start, 0)


def _as_tuples(padding: Padding) -> Padding:
  """What custom_vjp can hash."""
  return tuple((int(low), int(high)) for low, high in padding)


def _conv(x, kernel, strides, padding, groups=1):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                  feature_group_count=groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense_conv(x, kernel, strides, padding):
  conv = functools.partial(_conv, strides=strides, padding=padding)
  if _is_pointwise(kernel, strides, padding):
    return lax.platform_dependent(x, kernel, cpu=lambda x, kernel: x @ kernel[0, 0], default=conv)
  return conv(x, kernel)


def _is_pointwise(kernel, strides, padding):
  return kernel.shape[:2] == strides == (1, 1) and not np.any(padding)


def _dense_conv_forward(x, kernel, strides, padding):
  return _dense_conv(x, kernel, strides, padding), (x, kernel)


def _dense_conv_backward(strides, padding, residuals, dy):
  conv = functools.partial(_conv, strides=strides, padding=padding)

  def by_taps(x, kernel, dy):
    # Two operations read dy. Without the barrier XLA computes the whole chain that makes dy once for each.
    dy = lax.optimization_barrier(dy)
    if _is_pointwise(kernel, strides, padding):
      return dy @ kernel[0, 0].T, _contract_pixels(x, dy)[None, None]
    dx = jax.vjp(lambda x: conv(x, kernel), x)[1](dy)[0]
    return dx, _kernel_gradient_by_taps(x, dy, kernel.shape[:2], strides, padding)

  return lax.platform_dependent(
      *residuals, dy, cpu=by_taps, default=lambda x, kernel, dy: jax.vjp(conv, x, kernel)[1](dy))


_dense_conv.defvjp(_dense_conv_forward, _dense_conv_backward)


def _contract_pixels(a, b):
  return lax.dot_general(a, b, (((0, 1, 2), (0, 1, 2)), ((), ())))


def _kernel_gradient_by_taps(x, dy, window, strides, padding):
  """Each tap of the kernel gets (the pixels of x that it meets)^T dy."""
  devices = _devices_of_batch(x.shape[0])
  chunks = _chunks(x, dy, devices)
  rows, columns = dy.shape[1:3]
  low_high = tuple((low, stride * (count - 1) + size - length - low) for (low, _), stride, count, size, length in zip(
      padding, strides, (rows, columns), window, x.shape[1:3], strict=True))

  def add_chunk(index, total):
    x_chunk, dy_chunk = (lax.dynamic_index_in_dim(a, index, 1, keepdims=False) for a in (xs, dys))
    x_chunk = lax.pad(x_chunk, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), *((*edge, 0) for edge in low_high), (0, 0, 0)))
    taps = []
    for i, j in np.ndindex(window):
      seen = x_chunk[:, :, i:i + strides[0] * (rows - 1) + 1:strides[0], j:j + strides[1] * (columns - 1) + 1:strides[1]]
      taps.append(lax.dot_general(dy_chunk, seen, (((1, 2, 3), (1, 2, 3)), ((0,), (0,)))))
    return total + jnp.stack(taps)

  split = lambda a: a.reshape(devices, chunks, a.shape[0] // (devices * chunks), *a.shape[1:])
  xs, dys = split(x), split(dy)
  shape = (math.prod(window), devices, dy.shape[-1], x.shape[-1])
  total = lax.fori_loop(0, chunks, add_chunk, jnp.zeros(shape, x.dtype))
  return jnp.sum(total, 1).transpose(0, 2, 1).reshape(*window, x.shape[-1], dy.shape[-1])


def _devices_of_batch(batch):
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.size if not mesh.empty and batch % mesh.size == 0 else 1


_CHUNK_BYTES = 7 << 20


def _chunks(x, dy, devices):
  examples = x.shape[0] // devices
  example_bytes = (x.nbytes + dy.nbytes) // x.shape[0] if hasattr(x, "nbytes") else (x.size + dy.size) * x.dtype.itemsize // x.shape[0]
  return next(n for n in range(1, examples + 1) if examples % n == 0 and (examples // n * example_bytes <= _CHUNK_BYTES or n == examples))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _grouped_conv(x, kernel, strides, padding, groups):
  return _conv(x, kernel, strides, padding, groups)


def _grouped_conv_forward(x, kernel, strides, padding, groups):
  return _conv(x, kernel, strides, padding, groups), (x, kernel)


def _grouped_conv_backward(strides, padding, groups, residuals, dy):
  grouped = lambda x, kernel: _conv(x, kernel, strides, padding, groups)
  dense = lambda x, kernel: _conv(x, _block_diagonal(kernel, groups), strides, padding)
  gradients = lambda conv: lambda x, kernel, dy: jax.vjp(conv, x, kernel)[1](dy)
  return lax.platform_dependent(*residuals, dy, cpu=gradients(dense), default=gradients(grouped))


_grouped_conv.defvjp(_grouped_conv_forward, _grouped_conv_backward)


def _block_diagonal(kernel, groups):
  """The kernel, [kh, kw, in, out], of the dense convolution that equals the grouped one."""
  height, width, ins, outs = kernel.shape
  blocks = jnp.einsum("hwigo,fg->hwfigo", kernel.reshape(height, width, ins, groups, outs // groups),
                      jnp.eye(groups, dtype=kernel.dtype), precision="highest")
  return blocks.reshape(height, width, groups * ins, outs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, padding):
  def rows_of_columns(x):
    x = _window_max(x, (1, window[1]), (1, strides[1]), ((0, 0), padding[1]))
    return _window_max(x, (window[0], 1), (strides[0], 1), (padding[0], (0, 0)))

  return lax.platform_dependent(
      x, cpu=rows_of_columns, default=lambda x: _window_max(x, window, strides, padding))


def _max_pool_forward(x, window, strides, padding):
  y = _max_pool(x, window, strides, padding)
  return y, (x, y)


def _max_pool_backward(window, strides, padding, residuals, dy):
  def select_and_scatter(x, _, dy):
    return jax.vjp(lambda x: _window_max(x, window, strides, padding), x)[1](dy)[0]

  taps = functools.partial(_max_pool_gradient_by_taps, window=window, strides=strides, padding=padding)
  return (lax.platform_dependent(*residuals, dy, cpu=taps, default=select_and_scatter),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _window_max(x, window, strides, padding):
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


def _max_pool_gradient_by_taps(x, y, dy, *, window, strides, padding):
  """Each pixel of `x` adds up the `dy` of the windows that chose it.

  Row `stride * m + r` of the padded image is row `stride * q + r` of window `m - q`, and columns alike. So all pixels
  of one residue r are a sum of whole arrays shifted by q, and the residues interleave to the image.
  """
  (batch, height, width, channels), (_, out_height, out_width, _) = x.shape, y.shape
  last_row, last_column = strides[0] * (out_height - 1), strides[1] * (out_width - 1)
  none = math.prod(window)
  padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
  chosen = jnp.full(y.shape, none, jnp.uint8)
  for tap, (i, j) in reversed(list(enumerate(np.ndindex(window)))):  # Backwards: the first of equal maxima stays.
    seen = padded[:, i:i + last_row + 1:strides[0], j:j + last_column + 1:strides[1]]
    chosen = jnp.where(seen == y, jnp.uint8(tap), chosen)

  reach = [(size - 1) // stride for size, stride in zip(window, strides, strict=True)]
  rows, columns = out_height + reach[0], out_width + reach[1]
  margin = ((0, 0), (reach[0], reach[0]), (reach[1], reach[1]), (0, 0))
  chosen, dy = jnp.pad(chosen, margin, constant_values=none), jnp.pad(dy, margin)

  def residue(r, c):
    total = jnp.zeros((batch, rows, columns, channels), dy.dtype)
    for i in range(r, window[0], strides[0]):
      for j in range(c, window[1], strides[1]):
        top, left = reach[0] - i // strides[0], reach[1] - j // strides[1]
        shifted = (slice(None), slice(top, top + rows), slice(left, left + columns))
        total += jnp.where(chosen[shifted] == i * window[1] + j, dy[shifted], 0)
    return total

  interleaved = jnp.stack(
      [jnp.stack([residue(r, c) for c in range(strides[1])], axis=3) for r in range(strides[0])], axis=2)
  dx = interleaved.reshape(batch, rows * strides[0], columns * strides[1], channels)
  edges = [(-low, size + low - have, 0)
           for (low, _), size, have in zip(padding, (height, width), dx.shape[1:3], strict=True)]
  return lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
