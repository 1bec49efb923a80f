"""Convolution and pooling against loops over taps in NumPy float64, and against XLA's own operations."""

import collections
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bn_inception.models import convolution

# kernel shape (height, width, in / groups, out), image size, strides, padding, groups
CONVOLUTIONS = {
  "1x1": ((1, 1, 6, 5), (5, 7), (1, 1), "SAME", 1),
  "1x1, stride 2": ((1, 1, 6, 5), (5, 7), (2, 2), "SAME", 1),
  "3x3": ((3, 3, 4, 5), (6, 5), (1, 1), "SAME", 1),
  "3x3, stride 2, even": ((3, 3, 4, 5), (8, 6), (2, 2), "SAME", 1),
  "3x3, stride 2, odd": ((3, 3, 4, 5), (7, 9), (2, 2), "SAME", 1),
  "3x3, stride 2, symmetric": ((3, 3, 4, 5), (8, 7), (2, 2), ((1, 1), (1, 1)), 1),
  "all axes differ": ((2, 3, 4, 5), (7, 10), (2, 3), ((0, 1), (2, 0)), 1),
  "depthwise 7x7, stride 2": ((7, 7, 1, 24), (12, 11), (2, 2), "SAME", 3),
  "two groups": ((3, 3, 2, 6), (5, 6), (1, 1), "SAME", 2),
}
POOLS = {  # window, image size, strides, padding
  "3x3, stride 2, TensorFlow": ((3, 3), (8, 6), (2, 2), ((0, 1), (0, 1))),
  "3x3, stride 2, symmetric": ((3, 3), (7, 8), (2, 2), ((1, 1), (1, 1))),
  "3x3, stride 2, no padding": ((3, 3), (8, 7), (2, 2), ((0, 0), (0, 0))),
  "3x3, stride 1": ((3, 3), (5, 4), (1, 1), ((1, 1), (1, 1))),
  "all axes differ": ((2, 5), (7, 11), (3, 2), ((1, 0), (2, 1))),
  "strides beyond the window": ((2, 2), (9, 10), (3, 4), ((0, 0), (0, 0))),
}


def cases(table):
  return pytest.mark.parametrize("case", table.values(), ids=table.keys())


def windows(size, window, strides, padding):
  """Yields every output position and the slices of the padded image it sees."""
  counts = [(n + sum(p) - w) // s + 1 for n, w, s, p in zip(size, window, strides, padding, strict=True)]
  for h, w in itertools.product(*map(range, counts)):
    top, left = h * strides[0], w * strides[1]
    yield h, w, slice(top, top + window[0]), slice(left, left + window[1])


def padded(x, padding, value=0.0):
  return np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)


def unpadded(x, padding):
  (top, bottom), (left, right) = padding
  return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


def brute_force_conv(x, kernel, dy, strides, padding, groups):
  """Output and both gradients, one output pixel and group at a time."""
  x = padded(x, padding)
  y, dx, dkernel = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(kernel)
  ins, outs = kernel.shape[2], kernel.shape[3] // groups
  image = [n - sum(p) for n, p in zip(x.shape[1:3], padding, strict=True)]
  for h, w, rows, columns in windows(image, kernel.shape[:2], strides, padding):
    for group in range(groups):
      i, o = slice(group * ins, (group + 1) * ins), slice(group * outs, (group + 1) * outs)
      y[:, h, w, o] = np.einsum("bijc,ijco->bo", x[:, rows, columns, i], kernel[..., o])
      dx[:, rows, columns, i] += np.einsum("bo,ijco->bijc", dy[:, h, w, o], kernel[..., o])
      dkernel[..., o] += np.einsum("bijc,bo->ijco", x[:, rows, columns, i], dy[:, h, w, o])
  return y, unpadded(dx, padding), dkernel


def value_and_gradients(function, dy, *args):
  y, vjp = jax.vjp(function, *args)
  return y, *vjp(jnp.asarray(dy, y.dtype))


def xla_conv(x, kernel, strides, padding, groups):
  return lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
  )


def random(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape)


# What decides how a CPU makes the kernel's gradient: examples, bytes of a chunk, and from how many channels on each tap
# has a product of its own.
GRADIENTS = {
  "a product a tap": (1, 2**21, 1),
  "a product for all taps": (1, 2**21, 8),
  "a product a tap and chunk": (6, 3_000, 1),
  "a product a chunk": (6, 3_000, 8),
}


@pytest.mark.parametrize("way", GRADIENTS.values(), ids=GRADIENTS.keys())
@cases(CONVOLUTIONS)
def test_conv2d_is_brute_force_in_value_and_both_gradients(monkeypatch, case, way):
  kernel_shape, size, strides, padding, groups = case
  examples, chunk_bytes, narrow = way
  monkeypatch.setattr(convolution, "_CHUNK_BYTES", chunk_bytes)
  monkeypatch.setattr(convolution, "_NARROW", narrow)
  with jax.enable_x64(True):
    x, kernel = random(examples, *size, kernel_shape[2] * groups), random(*kernel_shape)
    conv = jax.jit(functools.partial(convolution.conv2d, strides=strides, padding=padding, feature_group_count=groups))
    dy = random(*jax.eval_shape(conv, x, kernel).shape, seed=1)
    explicit = lax.padtype_to_pads(size, kernel_shape[:2], strides, padding) if padding == "SAME" else padding
    expected = brute_force_conv(x, kernel, dy, strides, explicit, groups)
    for actual, desired in zip(value_and_gradients(conv, dy, x, kernel), expected, strict=True):
      assert actual.dtype == jnp.float64
      np.testing.assert_allclose(actual, desired, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
  "kernel_shape, size, stride, groups",
  [((7, 7, 1, 24), 64, 2, 3), ((3, 3, 64, 96), 28, 1, 1), ((1, 1, 576, 224), 14, 1, 1)],
)
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_conv2d_is_close_to_xla_on_shapes_of_inception(kernel_shape, size, stride, groups, dtype, tolerance):
  x, kernel = random(2, size, size, kernel_shape[2] * groups), random(*kernel_shape)
  conv = functools.partial(convolution.conv2d, strides=(stride, stride), padding="SAME", feature_group_count=groups)
  reference = functools.partial(xla_conv, strides=(stride, stride), padding="SAME", groups=groups)
  dy = random(*jax.eval_shape(conv, x, kernel).shape, seed=1)
  # What bfloat16 holds of the inputs, in float32.
  x, kernel, dy = (jnp.asarray(array, dtype).astype(jnp.float32) for array in (x, kernel, dy))
  expected = value_and_gradients(reference, dy, x, kernel)
  actual = value_and_gradients(jax.jit(conv), dy, x.astype(dtype), kernel.astype(dtype))
  for a, e in zip(actual, expected, strict=True):
    assert a.dtype == dtype
    assert np.abs(a.astype(jnp.float32) - e).max() < tolerance * np.abs(e).max()


def test_conv2d_refuses_what_does_not_fit():
  with pytest.raises(TypeError):
    convolution.conv2d(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 1, 4, 8)), padding="SAME")
  with pytest.raises(TypeError):
    convolution.conv2d(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 8), jnp.bfloat16), padding="SAME")


def brute_force_max_pool(x, dy, window, strides, padding):
  """Output and gradient; of equal maxima np.argmax takes the first."""
  size, x = x.shape[1:3], padded(x, padding, -np.inf)
  y, dx = np.zeros_like(dy), np.zeros_like(x)
  for h, w, rows, columns in windows(size, window, strides, padding):
    for b, c in np.ndindex(x.shape[0], x.shape[3]):
      seen = x[b, rows, columns, c]
      first = np.unravel_index(seen.argmax(), seen.shape)
      y[b, h, w, c] = seen[first]
      dx[b, rows, columns, c][first] += dy[b, h, w, c]
  return y, unpadded(dx, padding)


@cases(POOLS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_pool_is_brute_force_and_xla_in_value_and_gradient(case, dtype):
  window, size, strides, padding = case
  levels = [1, 3, 1000]  # Of the channels: constant, many ties, few ties. Negative, for padding to be below them.
  x = jnp.asarray(np.random.default_rng(0).integers(np.negative(levels), 0, (2, *size, 3)), dtype)
  pool = jax.jit(functools.partial(convolution.max_pool, window=window, strides=strides, padding=padding))
  reference = lambda x: lax.reduce_window(
    x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))
  )
  # Small integers: sums are exact in either type, whatever their order.
  dy = np.random.default_rng(1).integers(-9, 10, jax.eval_shape(pool, x).shape).astype(np.float64)
  actual = value_and_gradients(pool, dy, x)
  brute_force = brute_force_max_pool(np.asarray(x, np.float64), dy, window, strides, padding)
  for a, b, xla in zip(actual, brute_force, value_and_gradients(reference, dy, x), strict=True):
    assert a.dtype == dtype
    np.testing.assert_array_equal(np.asarray(a, np.float64), b)
    np.testing.assert_array_equal(a, xla)


@cases(POOLS)
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_avg_pool_is_brute_force(case, count_include_pad):
  window, size, strides, padding = case
  with jax.enable_x64(True):
    x = random(2, *size, 3)
    pool = functools.partial(
      convolution.avg_pool, window=window, strides=strides, padding=padding, count_include_pad=count_include_pad
    )
    y = pool(x)
    zeros, inside = padded(x, padding), padded(np.ones_like(x), padding)
    for h, w, rows, columns in windows(size, window, strides, padding):
      count = window[0] * window[1] if count_include_pad else inside[0, rows, columns, 0].sum()
      np.testing.assert_allclose(y[:, h, w], zeros[:, rows, columns].sum((1, 2)) / count, rtol=1e-12, atol=1e-12)
    assert pool(jnp.zeros((1, *size, 1), jnp.bfloat16)).dtype == jnp.bfloat16


def collectives(function, *args):
  """How often each collective occurs in the program for 8 devices; 4-D images are sharded, kernels replicated."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  in_shardings = tuple(sharding("data") if arg.shape[0] == 16 else sharding() for arg in args)
  out_shardings = jax.tree.map(
    lambda out: sharding("data") if out.shape[:1] == (16,) else sharding(), jax.eval_shape(function, *args)
  )
  with jax.set_mesh(mesh):
    function = jax.jit(function, in_shardings=in_shardings, out_shardings=out_shardings)
    program = function.lower(*args).compile().as_text()
  names = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(?:-start)?\("
  return collections.Counter(re.findall(names, program))


def test_chunks_are_equal_and_at_most_their_size_where_examples_allow_it(monkeypatch):
  x, dy = np.zeros((12, 5, 5, 2), np.float32), np.zeros((12, 5, 5, 3), np.float32)  # 500 bytes an example.
  for chunk_bytes, devices, chunks in (
    (6_000, 1, 2),
    (2_999, 1, 3),
    (2_000, 1, 3),
    (1_999, 1, 4),
    (1_400, 1, 6),
    (10, 1, 12),
    (3_000, 2, 2),
    (1_499, 2, 3),
    (10, 4, 3),
    (10_000, 12, 1),
  ):
    monkeypatch.setattr(convolution, "_CHUNK_BYTES", chunk_bytes)
    assert convolution._number_of_chunks(x, dy, devices) == chunks


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize("narrow", [1, 8])
@cases({name: case for name, case in CONVOLUTIONS.items() if name != "two groups"})  # XLA's own gathers the batch here.
def test_conv2d_sharded_over_the_batch_needs_one_all_reduce(monkeypatch, case, narrow):
  # The two examples of a device are two chunks.
  monkeypatch.setattr(convolution, "_NARROW", narrow)
  kernel_shape, size, strides, padding, groups = case
  x, kernel = jnp.zeros((16, *size, kernel_shape[2] * groups)), jnp.zeros(kernel_shape)
  conv = functools.partial(convolution.conv2d, strides=strides, padding=padding, feature_group_count=groups)
  dy = jnp.zeros(jax.eval_shape(conv, x, kernel).shape)
  assert not collectives(lambda x, kernel, dy: value_and_gradients(conv, dy, x, kernel)[:2], x, kernel, dy)
  assert collectives(lambda x, kernel, dy: value_and_gradients(conv, dy, x, kernel)[2], x, kernel, dy) == {
    "all-reduce": 1
  }


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@cases(POOLS)
def test_pools_sharded_over_the_batch_need_no_communication(case):
  window, size, strides, padding = case
  x = jnp.zeros((16, *size, 4))
  for pool in (convolution.max_pool, functools.partial(convolution.avg_pool, count_include_pad=False)):
    pool = functools.partial(pool, window=window, strides=strides, padding=padding)
    dy = jnp.zeros(jax.eval_shape(pool, x).shape)
    assert not collectives(lambda x, dy, pool=pool: value_and_gradients(pool, dy, x), x, dy)


def test_other_platforms_get_xlas_convolution_and_pooling():
  def loss(x, *kernels):
    for kernel in kernels:
      x = convolution.conv2d(x, kernel, padding="SAME", feature_group_count=4 // kernel.shape[2])
    return jnp.sum(convolution.max_pool(x, strides=(2, 2), padding=((0, 1), (0, 1))))

  args = [jnp.zeros(shape) for shape in ((2, 8, 8, 4), (1, 1, 4, 4), (3, 3, 4, 4), (3, 3, 1, 4))]
  gradients = jax.jit(jax.grad(loss, range(len(args))))
  for platform in ("tpu", "cuda"):
    program = gradients.trace(*args).lower(lowering_platforms=(platform,)).as_text()
    count = {name: program.count(f"stablehlo.{name}") for name in ("convolution", "select_and_scatter", "dot_general")}
    assert count == {"convolution": 9, "select_and_scatter": 1, "dot_general": 0}
