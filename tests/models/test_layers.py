"""Convolution units, borders, local response normalization and folding against NumPy written out by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import batch_norm, sharding
from bn_inception.models import inception, layers

NORM = functools.partial(batch_norm.BatchNorm, epsilon=1e-3)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def initialize(module: layers.ConvUnit, *image_shape: int):
  """The unit's variables from one compiled program, which is faster than operation by operation."""
  return jax.jit(lambda: module.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False))()


def windows_that_start_inside(size: int, before: int, count: int) -> list[range]:
  """The real pixels of `count` windows of 3 with stride 2, the first one `before` pixels outside."""
  return [range(max(2 * n - before, 0), min(2 * n - before + 3, size)) for n in range(count)]


def pool_windows(border: str, size: int) -> list[range]:
  """What each output pixel sees, from each framework's own definition."""
  if border == "same":  # TensorFlow: ceil(size / 2) outputs; what is missing goes half before, the rest behind.
    count = math.ceil(size / 2)
    return windows_that_start_inside(size, max(2 * (count - 1) + 3 - size, 0) // 2, count)
  if border == "ceil":  # Caffe: rounds the number of windows up, then drops a last one that starts outside.
    count = math.ceil((size - 3) / 2) + 1
    return windows_that_start_inside(size, 0, count - (2 * (count - 1) >= size))
  if border == "floor":
    return windows_that_start_inside(size, 0, (size - 3) // 2 + 1)
  return windows_that_start_inside(size, 1, (size + 2 - 3) // 2 + 1)


@pytest.mark.parametrize("border", layers.POOL_PADDING)
def test_pools_see_the_windows_of_the_framework_for_even_and_odd_sizes(border):
  for height, width in ((5, 8), (12, 7)):
    x = normal(2, height, width, 3)
    rows, columns = pool_windows(border, height), pool_windows(border, width)
    expected = [
      [x[:, row.start : row.stop, column.start : column.stop].max((1, 2)) for column in columns] for row in rows
    ]
    actual = inception.max_pool_stride2(jnp.asarray(x), border)
    np.testing.assert_array_equal(actual, np.array(expected).transpose(2, 0, 1, 3))


@pytest.mark.parametrize("border", layers.POOL_PADDING)
def test_pool_padding_makes_the_frameworks_number_of_windows_for_every_size(border):
  for size in range(3, 230):
    before, behind = layers.POOL_PADDING[border](size)
    assert (size + before + behind - 3) // 2 + 1 == len(pool_windows(border, size)), size


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int, padding: list[tuple[int, int]]) -> np.ndarray:
  x = np.pad(x, ((0, 0), *padding, (0, 0))).astype(np.float64)
  window = kernel.shape[0]
  rows, columns = (range(0, size - window + 1, stride) for size in x.shape[1:3])
  return np.array(
    [[np.einsum("bijc,ijcd->bd", x[:, i : i + window, j : j + window], kernel) for j in columns] for i in rows]
  ).transpose(2, 0, 1, 3)


@pytest.mark.parametrize("window", [3, 7])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_stride_2_convolution_pads_as_named(padding, window):
  """TensorFlow's SAME shifts an even image by a pixel against the symmetric padding of Caffe and PyTorch."""
  x = normal(1, 8, 9, 2)
  kernel = normal(window, window, 2, 4, seed=1)
  half = window // 2
  pads = {"same": [(half - 1, half), (half, half)], "symmetric": [(half, half), (half, half)]}[padding]
  layer = layers.Convolution(4, (window, window), stride=2, padding=padding)
  actual = layer.apply({"params": {"kernel": kernel}}, x)
  np.testing.assert_allclose(actual, convolve(x, kernel, 2, pads), rtol=1e-5, atol=1e-5)


def test_convolution_adds_its_bias():
  x, kernel, bias = normal(1, 4, 4, 2), normal(1, 1, 2, 3, seed=1), normal(3, seed=2)
  actual = layers.Convolution(3, use_bias=True).apply({"params": {"kernel": kernel, "bias": bias}}, x)
  np.testing.assert_allclose(actual, x @ kernel[0, 0] + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize(
  "layer",
  [layers.Convolution(3, (3, 3), use_bias=True), layers.Convolution(8, groups=4), layers.Dense(3)],
  ids=["convolution", "depthwise", "dense"],
)
def test_gradients_of_parameters_are_float32_before_devices_are_summed(layer, devices):
  """Against float64 sums over the same bfloat16 values; their parts rounded to bfloat16 are off by 1e-3."""
  shape = (32, 4) if isinstance(layer, layers.Dense) else (32, 5, 5, 4)
  mesh = sharding.make_mesh(jax.devices()[:devices])
  split = lambda a: jax.device_put(jnp.asarray(a, jnp.bfloat16), sharding.examples(mesh))
  x = split(normal(*shape))
  params = layer.init(jax.random.key(0), x)["params"]
  dy = split(normal(*jax.eval_shape(lambda: layer.apply({"params": params}, x)).shape, seed=1))
  gradients = jax.jit(
    jax.grad(lambda params, x, dy: jnp.sum((layer.apply({"params": params}, x) * dy).astype(float))),
    out_shardings=sharding.replicated(mesh),
  )
  actual = gradients(params, x, dy)
  x, dy = (np.asarray(a, np.float64) for a in (x, dy))
  if "bias" in params:
    np.testing.assert_allclose(actual["bias"], dy.reshape(-1, dy.shape[-1]).sum(0), rtol=1e-5, atol=1e-5)
  if isinstance(layer, layers.Dense):
    expected = x.T @ dy
  elif layer.groups > 1:
    expected = np.einsum("bhwg,bhwgm->gm", x, dy.reshape(*dy.shape[:3], 4, 2)).reshape(1, 1, 1, 8)
  else:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.array(
      [[np.einsum("bhwc,bhwd->cd", padded[:, i : i + 5, j : j + 5], dy) for j in range(3)] for i in range(3)]
    )
  np.testing.assert_allclose(actual["kernel"], expected, rtol=1e-5, atol=1e-4)


def test_convolution_computes_in_the_type_of_its_input_with_float32_parameters():
  x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
  layer = layers.Convolution(3, use_bias=True)
  y, variables = jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), x))
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("init_scale", [1.0, 1.5])
def test_initial_kernels_have_the_standard_deviation_of_he(init_scale):
  unit = layers.ConvUnit(256, (3, 3), init_scale=init_scale)
  kernel = initialize(unit, 1, 1, 64)["params"]["conv"]["kernel"]
  assert np.std(kernel) == pytest.approx(init_scale * math.sqrt(2 / (3 * 3 * 64)), rel=0.01)
  assert abs(np.mean(kernel)) < 0.01 * np.std(kernel)


def test_initial_depthwise_kernel_keeps_the_variance_without_the_factor_of_a_relu():
  """No nonlinearity stands between the two halves of a separable convolution."""
  unit = layers.ConvUnit(4, (7, 7), depth_multiplier=64, init_scale=1.5)
  params = initialize(unit, 7, 7, 16)["params"]
  assert params["depthwise"]["kernel"].shape == (7, 7, 1, 16 * 64)
  assert np.std(params["depthwise"]["kernel"]) == pytest.approx(1.5 * math.sqrt(1 / 49), rel=0.02)


@pytest.mark.parametrize("name,g", [("relu", lambda z: np.maximum(z, 0)), ("sigmoid", lambda z: 1 / (1 + np.exp(-z)))])
def test_unit_is_nonlinearity_of_batch_norm_of_convolution(name, g):
  x = normal(4, 3, 3, 2)
  kernel, gamma, beta = normal(1, 1, 2, 3, seed=1), normal(3, seed=2), normal(3, seed=3)
  unit = layers.ConvUnit(3, norm=NORM, nonlinearity=layers.NONLINEARITIES[name])
  variables = {
    "params": {"conv": {"kernel": kernel}, "bn": {"gamma": gamma, "beta": beta}},
    "batch_stats": {"bn": {"mean": np.zeros(3), "var": np.ones(3)}},
  }
  z = (x @ kernel[0, 0]).astype(np.float64)
  z = (z - z.mean((0, 1, 2))) / np.sqrt(z.var((0, 1, 2)) + 1e-3) * gamma + beta
  y, _ = unit.apply(variables, x, train=True, mutable="batch_stats")
  np.testing.assert_allclose(y, g(z), rtol=1e-4, atol=1e-5)


def test_per_activation_normalizes_every_pixel_by_itself():
  x = normal(16, 2, 3, 2)
  unit = layers.ConvUnit(2, norm=functools.partial(NORM, per_activation=True))
  variables = initialize(unit, 2, 3, 2)
  assert variables["params"]["bn"]["gamma"].shape == variables["batch_stats"]["bn"]["var"].shape == (2, 3, 2)
  z = (x @ np.asarray(variables["params"]["conv"]["kernel"])[0, 0]).astype(np.float64)
  expected = np.maximum((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-3), 0)
  y, _ = unit.apply(variables, x, train=True, mutable="batch_stats")
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "norm,use_bias,expected", [(None, False, True), (None, True, True), (NORM, False, False), (NORM, True, True)]
)
def test_unit_has_a_bias_without_batch_norm_or_on_request(norm, use_bias, expected):
  unit = layers.ConvUnit(3, norm=norm, use_bias=use_bias)
  params = jax.eval_shape(lambda: unit.init(jax.random.key(0), jnp.zeros((1, 2, 2, 2)), train=False))["params"]
  assert ("bias" in params["conv"]) == expected
  assert ("bn" in params) == (norm is not None)


def test_separable_unit_is_a_depthwise_then_a_pointwise_convolution():
  x = normal(1, 5, 5, 2)
  unit = layers.ConvUnit(4, (3, 3), stride=2, depth_multiplier=3, nonlinearity=lambda x: x)
  variables = initialize(unit, 5, 5, 2)
  depthwise, pointwise = (np.asarray(variables["params"][name]["kernel"]) for name in ("depthwise", "conv"))
  pads = [(1, 1), (1, 1)]
  channels = [convolve(x[..., c : c + 1], depthwise[..., 3 * c : 3 * c + 3], 2, pads) for c in (0, 1)]
  expected = np.concatenate(channels, axis=-1) @ pointwise[0, 0]
  np.testing.assert_allclose(unit.apply(variables, x, train=False), expected, rtol=1e-5, atol=1e-5)


def test_local_response_norm_is_its_formula_over_five_channels():
  x = 30 * normal(2, 3, 2, 7)
  expected = np.empty(x.shape)
  for channel in range(7):
    neighbours = x[..., max(channel - 2, 0) : channel + 3].astype(np.float64)
    expected[..., channel] = x[..., channel] / (1 + 1e-4 / 5 * np.square(neighbours).sum(-1)) ** 0.75
  np.testing.assert_allclose(layers.local_response_norm(jnp.asarray(x)), expected, rtol=1e-6)
  assert np.abs(expected / x - 1).max() > 0.01  # Large enough to matter.


def test_local_response_norm_of_half_precision_sums_in_float32():
  y = layers.local_response_norm(jnp.full((1, 1, 1, 5), 300, jnp.float16))  # Squared, beyond float16.
  assert y.dtype == jnp.float16
  assert float(y[0, 0, 0, 2]) == pytest.approx(300 / 10**0.75, rel=2**-10)


def test_folding_a_unit_gives_the_kernel_and_bias_by_hand():
  variables = {
    "params": {
      "unit": {
        "conv": {"kernel": np.full((1, 1, 1, 1), 3.0), "bias": np.array([2.0])},
        "bn": {"gamma": np.array([5.0]), "beta": np.array([7.0])},
      }
    },
    "batch_stats": {"unit": {"bn": {"mean": np.array([1.0]), "var": np.array([3.99])}}},
  }
  folded = layers.fold_batch_norm(variables, epsilon=0.01)
  assert folded.keys() == {"params"} and folded["params"]["unit"].keys() == {"conv"}
  assert float(folded["params"]["unit"]["conv"]["kernel"].squeeze()) == pytest.approx(7.5)  # 3 * 5 / sqrt(4)
  assert float(folded["params"]["unit"]["conv"]["bias"].squeeze()) == pytest.approx(9.5)  # 7 + (2 - 1) * 2.5


def test_folding_refuses_batch_norm_per_activation_and_names_the_layer():
  unit = layers.ConvUnit(2, norm=functools.partial(NORM, per_activation=True))
  variables = jax.eval_shape(lambda: unit.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), train=False))
  nested = {collection: {"inception_5b": {"1x1": tree}} for collection, tree in variables.items()}
  with pytest.raises(ValueError, match="inception_5b/1x1 has BN per activation"):
    layers.fold_batch_norm(nested, epsilon=1e-3)
