"""Convolution and pooling that are fast on every platform.

On TPU and GPU these are XLA's own operations and gradients. XLA for CPU (jaxlib 0.10) is slow in a few operations, and
only these operations are lowered differently here. GFLOP/s of single operations in float32 at batch 32, two AVX-512
cores whose matrix product reaches 370 to 470:

- The kernel's gradient reaches 40 to 210 as a convolution. As one matrix product for each tap of the kernel, a chunk of
  the examples at a time, it reaches 240 to 360. The chunks make the products fast: their shifted copies stay in the
  cache. For the whole batch at once the products are slower than the convolution at 28 px and hold far more memory.
- The kernel's gradient of the 7x7 / 2 stem reaches 40 to 55. As one product with all taps side by side it reaches 145.
- A 1x1 convolution is 1.5 to 4 times faster as a matrix product in all three directions.
- The gradients of the depthwise 7x7 / 2 convolution at 224 px take 1.9 s. Those of the equal dense convolution take
  0.3 s.
- Max pooling's gradient (select-and-scatter) is 6 to 25 times slower than comparing each tap with the maximum. The
  forward pass of max pooling is 3 to 9 times slower than a maximum over columns, then over rows.

XLA's other convolutions stay, at 160 to 450. im2col and sums over taps, in chunks or not, are faster for some shapes
and slower for others. A whole step gains less than its own spread.

Only the sum over the batch in a kernel's gradient mixes examples. A program that is sharded over the batch under
`jax.set_mesh` needs this one all-reduce and no other communication. (For groups that are not depthwise XLA gathers the
batch: avoid such groups.)
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

_CHUNK_BYTES = 2 * 2**20  # Bytes of x and dy in a chunk. With the copies of x a chunk about fills a core's cache.
_NARROW = 8  # With fewer channels a row of a tap's product is too short for a matrix product.


def conv2d(
  x: jax.Array, kernel: jax.Array, *, strides: Pair = (1, 1), padding: str | Padding, feature_group_count: int = 1
) -> jax.Array:
  """Two-dimensional convolution (cross-correlation, as everywhere in deep learning), without bias.

  Precision is that of JAX's `default_matmul_precision`.

  Args:
    x: [batch, height, width, in_channels], any float dtype; the result has the same dtype.
    kernel: [kernel_height, kernel_width, in_channels / feature_group_count, out_channels], the dtype of `x`.
    strides: (vertical, horizontal).
    padding: 'SAME' (TensorFlow's: an odd total pads the far side more) or ((top, bottom), (left, right)) zeros.
    feature_group_count: groups of input channels. With `in_channels` groups the convolution is depthwise, with
      multiplier out_channels / in_channels.

  Returns:
    [batch, out_height, out_width, out_channels].

  Raises:
    TypeError, ValueError: if dtypes or channel counts do not fit; `jax.lax.conv_general_dilated` raises these errors.
  """
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
  if feature_group_count > 1:
    return _grouped_conv(x, kernel, tuple(strides), _as_tuples(padding), feature_group_count)
  return _dense_conv(x, kernel, tuple(strides), _as_tuples(padding))


def max_pool(x: jax.Array, *, window: Pair = (3, 3), strides: Pair, padding: Padding) -> jax.Array:
  """Maximum over windows. The first of equal maxima in row-major order receives the gradient.

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
  """The padding as tuples, which custom_vjp can hash."""
  return tuple((int(low), int(high)) for low, high in padding)


def _conv(x, kernel, strides, padding, groups=1):
  return lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense_conv(x, kernel, strides, padding):
  conv = functools.partial(_conv, strides=strides, padding=padding)
  if _is_pointwise(kernel, strides, padding):
    return lax.platform_dependent(x, kernel, cpu=lambda x, kernel: x @ kernel[0, 0], default=conv)
  return conv(x, kernel)


def _dense_conv_forward(x, kernel, strides, padding):
  return _dense_conv(x, kernel, strides, padding), (x, kernel)


def _dense_conv_backward(strides, padding, residuals, dy):
  conv = functools.partial(_conv, strides=strides, padding=padding)

  def by_products(x, kernel, dy):
    # Both gradients read dy. Without the barrier XLA would compute the chain of operations that makes dy twice.
    dy = lax.optimization_barrier(dy)
    if _is_pointwise(kernel, strides, padding):
      return dy @ kernel[0, 0].T, _contract(x, dy)[None, None].astype(x.dtype)
    dx = jax.vjp(lambda x: conv(x, kernel), x)[1](dy)[0]
    return dx, _kernel_gradient(x, dy, kernel.shape[:2], strides, padding)

  return lax.platform_dependent(
    *residuals, dy, cpu=by_products, default=lambda x, kernel, dy: jax.vjp(conv, x, kernel)[1](dy)
  )


_dense_conv.defvjp(_dense_conv_forward, _dense_conv_backward)


def _is_pointwise(kernel, strides, padding):
  return kernel.shape[:2] == strides == (1, 1) and not np.any(padding)


def _contract(a, b):
  """a^T b over all axes but the last, in float32 (float64 for float64)."""
  axes = tuple(range(a.ndim - 1))
  return lax.dot_general(a, b, ((axes, axes), ((), ())), preferred_element_type=_accumulator(a))


def _accumulator(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _kernel_gradient(x, dy, window, strides, padding):
  """For each tap of the kernel the product (pixels that the tap meets)^T dy, [*window, in, out].

  The products take a chunk of the examples at a time, so that the shifted copies of the pixels stay in the cache.
  """
  devices = _devices_of(x.shape[0])
  chunks = _number_of_chunks(x, dy, devices)
  narrow = x.shape[-1] < _NARROW
  taps = functools.partial(_narrow_taps if narrow else _wide_taps, window=window, strides=strides, padding=padding)
  # Every device adds up its own examples. The sum over the devices is the only communication.
  xs, dys = (a.reshape(devices, chunks, -1, *a.shape[1:]) for a in (x, dy))

  def add_chunk(index, total):
    return total + jax.vmap(taps)(xs[:, index], dys[:, index])

  channels = (x.shape[-1], dy.shape[-1]) if narrow else (dy.shape[-1], x.shape[-1])
  total = jnp.zeros((devices, math.prod(window), *channels), _accumulator(x))
  total = lax.fori_loop(0, chunks, add_chunk, total) if chunks > 1 else add_chunk(0, total)
  total = jnp.sum(total, 0).reshape(*window, *channels).astype(x.dtype)
  return total if narrow else total.swapaxes(2, 3)


def _shifted(x, window, strides, padding, outputs):
  """For each tap, in row-major order, the pixels of x [B, H, W, C] that the tap meets, [B, *outputs, C]."""
  edges = [
    (low, stride * (count - 1) + size - length - low, 0)
    for (low, _), stride, count, size, length in zip(padding, strides, outputs, window, x.shape[1:3], strict=True)
  ]
  x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
  ends = [stride * (count - 1) + 1 for stride, count in zip(strides, outputs, strict=True)]
  return [x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]] for i, j in np.ndindex(window)]


def _wide_taps(x, dy, window, strides, padding):
  """[taps, out, in], a product for each tap. dy is the transposed operand, so one transposition serves all taps."""
  seen = _shifted(x, window, strides, padding, dy.shape[1:3])
  return jnp.stack([_contract(dy, pixels) for pixels in seen])


def _narrow_taps(x, dy, window, strides, padding):
  """[taps, in, out], one product for all taps. The pixels are gathered a channel at a time, in long runs."""
  x = lax.optimization_barrier(jnp.moveaxis(x, -1, 0)[..., None])  # [in, B, H, W, 1]
  seen = jax.vmap(lambda channel: jnp.stack(_shifted(channel, window, strides, padding, dy.shape[1:3])), out_axes=1)(x)
  seen = lax.optimization_barrier(seen.reshape(-1, dy.size // dy.shape[-1]))
  kernel = jnp.matmul(seen, dy.reshape(-1, dy.shape[-1]), preferred_element_type=_accumulator(x))
  return kernel.reshape(math.prod(window), -1, dy.shape[-1])


def _devices_of(batch):
  """The number of devices that share the batch: the devices of the mesh that `jax.set_mesh` has set."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.size if not mesh.empty and batch % mesh.size == 0 else 1


def _number_of_chunks(x, dy, devices):
  """The fewest equal chunks of a device's examples, two or more, whose x and dy have at most _CHUNK_BYTES.

  There are at least two chunks, because a loop holds the copies of one chunk. Without a loop XLA holds the copies of
  many layers at once: 1.7 times the memory of a step at the cifar10 scale.
  """
  examples, size = x.shape[0] // devices, (x.size + dy.size) // devices * x.dtype.itemsize
  fit = (n for n in range(2, examples + 1) if examples % n == 0 and size <= n * _CHUNK_BYTES)
  return next(fit, examples)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _grouped_conv(x, kernel, strides, padding, groups):
  return _conv(x, kernel, strides, padding, groups)


def _grouped_conv_forward(x, kernel, strides, padding, groups):
  return _conv(x, kernel, strides, padding, groups), (x, kernel)


def _grouped_conv_backward(strides, padding, groups, residuals, dy):
  grouped = lambda x, kernel: _conv(x, kernel, strides, padding, groups)
  dense = lambda x, kernel: _dense_conv(x, _block_diagonal(kernel, groups), strides, padding)
  gradients = lambda conv: lambda x, kernel, dy: jax.vjp(conv, x, kernel)[1](dy)
  return lax.platform_dependent(*residuals, dy, cpu=gradients(dense), default=gradients(grouped))


_grouped_conv.defvjp(_grouped_conv_forward, _grouped_conv_backward)


def _block_diagonal(kernel, groups):
  """The kernel, [kh, kw, in, out], of the dense convolution that equals the grouped convolution."""
  height, width, ins, outs = kernel.shape
  blocks = jnp.einsum(
    "hwigo,fg->hwfigo",
    kernel.reshape(height, width, ins, groups, outs // groups),
    jnp.eye(groups, dtype=kernel.dtype),
    precision="highest",
  )
  return blocks.reshape(height, width, groups * ins, outs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, padding):
  def rows_of_columns(x):
    x = _window_max(x, (1, window[1]), (1, strides[1]), ((0, 0), padding[1]))
    return _window_max(x, (window[0], 1), (strides[0], 1), (padding[0], (0, 0)))

  return lax.platform_dependent(x, cpu=rows_of_columns, default=lambda x: _window_max(x, window, strides, padding))


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
  """Each pixel of `x` adds up the `dy` of the windows that chose the pixel.

  Row `stride * m + r` of the padded image is row `stride * q + r` of window `m - q`. The same holds for columns. So all
  pixels of one residue r are a sum of whole arrays shifted by q, and the residues interleave to the image.
  """
  (batch, height, width, channels), (_, out_height, out_width, _) = x.shape, y.shape
  last_row, last_column = strides[0] * (out_height - 1), strides[1] * (out_width - 1)
  none = math.prod(window)
  padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
  chosen = jnp.full(y.shape, none, jnp.uint8)
  for tap, (i, j) in reversed(list(enumerate(np.ndindex(window)))):  # Backwards: the first of equal maxima stays.
    seen = padded[:, i : i + last_row + 1 : strides[0], j : j + last_column + 1 : strides[1]]
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
    [jnp.stack([residue(r, c) for c in range(strides[1])], axis=3) for r in range(strides[0])], axis=2
  )
  dx = interleaved.reshape(batch, rows * strides[0], columns * strides[1], channels)
  edges = [
    (-low, size + low - have, 0) for (low, _), size, have in zip(padding, (height, width), dx.shape[1:3], strict=True)
  ]
  return lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
