"""The network against Figure 5, against the counts of released networks, and against itself with BN folded.

Shapes come from tracing; only tiny networks are run, compiled without optimization, which is most of a test's time.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import batch_norm, models
from bn_inception.models import inception, layers
from bn_inception.tools import describe

NORM = functools.partial(batch_norm.BatchNorm, epsilon=1e-3)

# Figure 5 as printed: layer, output size, #1x1, #3x3 reduce, #3x3, #double 3x3 reduce, #double 3x3, pool + proj.
FIGURE_5 = """
convolution  112x112x64
max pool     56x56x64
convolution  56x56x192    -   64  192    -    -  -
max pool     28x28x192
3a           28x28x256   64   64   64   64   96  avg + 32
3b           28x28x320   64   64   96   64   96  avg + 64
3c           14x14x576    0  128  160   64   96  max + pass through
4a           14x14x576  224   64   96   96  128  avg + 128
4b           14x14x576  192   96  128   96  128  avg + 128
4c           14x14x576  160  128  160  128  160  avg + 128
4d           14x14x576   96  128  192  160  192  avg + 128
4e           7x7x1024     0  128  192  192  256  max + pass through
5a           7x7x1024   352  192  320  160  224  avg + 128
5b           7x7x1024   352  192  320  192  224  max + 128
avg pool     1x1x1024
""".strip().splitlines()

# What a reading of the table changes, by layer.
READINGS = {
  "576 channels as stated": (96, {"4c": {"pool + proj": "avg + 96"}, "4d": {"pool + proj": "avg + 96"}}),
  "projection of 128 as stated": (
    128,
    {"4c": {"output": "14x14x608"}, "4d": {"output": "14x14x608"}, "4e": {"output": "7x7x1056"}},
  ),
}

# Released networks, and both readings with both stems: counts made from their own files and code.
# convolution kernels, biases, BN channels, fully connected, trainable, with moving statistics, 1e9 multiply-adds
CADENE = dict(
  stem="plain",
  pool_proj_4cd=128,
  conv_bias=True,
  padding="symmetric",
  stem_pool="ceil",
  reduction_pool="ceil",
  avg_pool_include_pad=True,
)
COUNTS = {
  "128, plain stem": (
    dict(stem="plain", pool_proj_4cd=128),
    (10_240_192, 0, 10_016, 1_025_000, 11_285_224, 11_305_256, 2.033),
  ),
  "128, separable stem": (dict(pool_proj_4cd=128), (10_233_496, 0, 10_016, 1_025_000, 11_278_528, 11_298_560, 1.949)),
  "96, plain stem (lim0606)": (
    dict(stem="plain", padding="symmetric", stem_pool="ceil", reduction_pool="ceil", avg_pool_include_pad=True),
    (10_150_080, 0, 9_952, 1_025_000, 11_194_984, 11_214_888, 2.019),
  ),
  "96, separable stem": ({}, (10_143_384, 0, 9_952, 1_025_000, 11_188_288, 11_208_192, 1.935)),
  "Cadene": (CADENE, (10_240_192, 10_016, 10_016, 1_025_000, 11_295_240, 11_315_272, 2.033)),
  "MXNet": (
    CADENE | dict(stem_pool="floor", reduction_pool="floor_pad1"),
    (10_240_192, 10_016, 10_016, 1_025_000, 11_295_240, 11_315_272, 1.987),
  ),
  "TF-slim": (
    dict(norm_in_stem=False, num_classes=1001, norm=functools.partial(NORM, use_gamma=False)),
    (10_143_384, 64, 9_888, 1_026_025, 11_179_361, 11_199_137, 1.935),
  ),
}


def network(**settings) -> inception.Inception:
  return inception.Inception(**{"num_classes": 1000, "norm": NORM, **settings})


def tiny(**settings) -> inception.Inception:
  return network(**{"num_classes": 5, "width": 0.05, "stem": "small", **settings})


def trace(image_size: int = 224, **settings) -> describe.Calls:
  return describe.trace(network(**settings), (image_size, image_size, 3))


def initial_shapes(model: inception.Inception, image_size: int = 8):
  init = lambda: model.init(jax.random.key(0), jnp.zeros((1, image_size, image_size, 3)), train=False)
  variables = jax.eval_shape(init)
  return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


def compiled(function):
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def three_modules(monkeypatch):
  """Shortens the network to one module of each kind: with an average pool, with stride 2, with a maximum pool."""
  table = inception.module_table()
  monkeypatch.setattr(inception, "module_table", lambda _: {name: table[name] for name in ("3a", "3c", "5b")})


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def standard():
  """The calls of the network as configured by default."""
  return trace()


def random_variables(model: inception.Inception):
  """Weights that keep a signal alive, and statistics, gamma and beta far from where they start."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    low, high = {
      "bias": (-0.3, 0.3),
      "gamma": (1, 2),
      "beta": (-0.3, 0.3),
      "mean": (-0.3, 0.3),
      "var": (0.5, 1.5),
      "kernel": (-1, 2) / np.sqrt(np.prod(leaf.shape[:-1])),
    }[path[-1].key]
    return jnp.asarray(rng.uniform(low, high, leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, initial_shapes(model))


# ------------------------------------------------------------------------------------------------ Figure 5 and counts


@pytest.mark.parametrize("reading", READINGS)
def test_every_row_of_figure_5(reading):
  pool_proj, changes = READINGS[reading]
  columns = ("output", "#1x1", "#3x3 reduce", "#3x3", "double reduce", "double #3x3", "pool + proj")
  rows = describe.layer_table(trace(pool_proj_4cd=pool_proj))
  assert len(rows) == len(FIGURE_5) + 1  # The softmax layer, which Figure 5 leaves out.
  for row, line in zip(rows, FIGURE_5):
    layer, *printed = re.split(r"\s{2,}", line)
    expected = dict(zip(columns, (text.replace("-", "") for text in printed))) | changes.get(layer, {})
    actual = {heading.replace("\n", " ").strip(): text for heading, text in row.items()}
    assert layer in actual["type"]
    assert {column: actual.get(column, "") for column in expected} == expected, layer


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_released_networks(name):
  settings, expected = COUNTS[name]
  calls = trace(**settings)
  parameters, moving_statistics, multiply_adds = describe.totals(calls)
  bn_channels = moving_statistics // 2
  gammas_and_betas = bn_channels * (1 if name == "TF-slim" else 2)
  assert parameters["BN gamma and beta"] == gammas_and_betas
  trainable = sum(parameters.values())
  assert (
    parameters["convolution kernels"],
    parameters["convolution biases"],
    bn_channels,
    parameters["fully connected"],
    trainable,
    trainable + moving_statistics,
    round(multiply_adds / 1e9, 3),
  ) == expected


def test_mxnet_borders_give_maps_of_55_and_27_but_14_and_7_later():
  calls = trace(**COUNTS["MXNet"][0])
  sides = {name: calls[(name,)].input[0] for name in ("conv2_reduce", "inception_3a", "inception_4a", "inception_5a")}
  assert sides == {"conv2_reduce": 55, "inception_3a": 27, "inception_4a": 14, "inception_5a": 7}


def test_auxiliary_heads_have_the_counts_of_lim0606_training_network():
  heads = {path: call for path, call in trace(auxiliary_heads=("3c", "4e")).items() if describe.is_auxiliary(path)}
  parameters, moving_statistics, multiply_adds = describe.totals(heads)
  assert sum(parameters.values()) == 4_880_848
  assert moving_statistics == 2 * 2_304
  # The hidden layer is a 1x1 convolution here: 2048 -> 1024 behind 3c, 512 -> 1024 behind 4e.
  assert heads[("auxiliary_3c", "hidden", "conv")].params == {"kernel": (1, 1, 2048, 1024)}
  assert heads[("auxiliary_4e", "hidden", "conv")].params == {"kernel": (1, 1, 512, 1024)}
  assert parameters["convolution kernels"] == 204_800 + (2048 + 512) * 1024
  assert parameters["fully connected"] == 2 * (1024 * 1000 + 1000)
  assert round(multiply_adds / 1e6, 1) == 6.4


def test_small_stem_takes_32_px_to_16_at_3a_and_4_at_5b():
  calls = trace(32, stem="small")
  assert calls[("conv1",)].output == (32, 32, 64)
  assert calls[("conv1", "conv")].params["kernel"] == (3, 3, 3, 64)
  assert calls[("inception_3a",)].input == (16, 16, 192)
  assert calls[("inception_5b",)].output == (4, 4, 1024)


def test_width_multiplies_every_number_of_channels(standard):
  quarter = trace(width=0.25)
  for path, call in standard.items():
    if isinstance(call.module, layers.ConvUnit):
      assert quarter[path].output[-1] == call.output[-1] / 4, path


def test_no_width_is_so_small_that_channels_vanish():
  calls = trace(32, width=0.001, stem="small")
  assert {call.output[-1] for call in calls.values() if isinstance(call.module, layers.ConvUnit)} == {1}


# ------------------------------------------------------------------------------------------- what a setting changes


def test_without_batch_norm_every_convolution_has_a_bias_and_nothing_has_statistics():
  model = tiny(norm=None)
  assert initial_shapes(model).keys() == {"params"}
  for path, call in describe.trace(model, (8, 8, 3)).items():
    if isinstance(call.module, layers.Convolution):
      assert call.params.keys() == {"kernel", "bias"}, path


def test_first_convolution_without_batch_norm_has_a_bias():
  params = initial_shapes(network(norm_in_stem=False), 32)["params"]
  assert params["conv1"].keys() == {"depthwise", "conv"}
  assert params["conv1"]["conv"].keys() == {"kernel", "bias"}
  assert params["conv2"].keys() == {"conv", "bn"} and params["conv2"]["conv"].keys() == {"kernel"}


@pytest.mark.parametrize("name,function", [("relu", jax.nn.relu), ("sigmoid", jax.nn.sigmoid)])
def test_nonlinearity_is_that_of_every_unit(name, function):
  calls = describe.trace(tiny(nonlinearity=name, auxiliary_heads=("4a",)), (8, 8, 3))
  units = [call.module for call in calls.values() if isinstance(call.module, layers.ConvUnit)]
  assert len(units) == 69 + 2 and {unit.nonlinearity for unit in units} == {function}


def test_init_scale_is_that_of_every_convolution():
  calls = describe.trace(network(init_scale=1.5, width=0.05), (32, 32, 3))
  gains = {path: call.module.init_gain for path, call in calls.items() if isinstance(call.module, layers.Convolution)}
  assert gains.pop(("conv1", "depthwise")) == 1.5
  assert len(gains) == 69 and set(gains.values()) == {1.5 * 2**0.5}


def test_per_activation_gives_the_named_modules_a_gamma_for_every_pixel():
  shapes = initial_shapes(network(per_activation=("5b",)), 224)
  assert shapes["params"]["inception_5b"]["1x1"]["bn"]["gamma"].shape == (7, 7, 352)
  assert shapes["batch_stats"]["inception_5b"]["3x3_reduce"]["bn"]["var"].shape == (7, 7, 192)
  assert shapes["params"]["inception_5a"]["1x1"]["bn"]["gamma"].shape == (352,)


def test_local_response_norm_stands_behind_the_first_pool_and_before_the_second(monkeypatch):
  seen = []
  monkeypatch.setattr(layers, "local_response_norm", lambda x: seen.append(x.shape[1:]) or x)
  trace(local_response_norm=False)
  assert not seen
  trace(local_response_norm=True)
  assert seen == [(56, 56, 64), (56, 56, 192)]


def test_auxiliary_logits_come_in_training_only():
  model = tiny(auxiliary_heads=("4a", "4d"))
  variables = initial_shapes(model)
  images = jnp.zeros((2, 8, 8, 3))
  collections = ["batch_moments", "auxiliary"]
  apply = lambda train: jax.eval_shape(
    lambda variables: model.apply(variables, images, train=train, mutable=collections)[1], variables
  )
  assert [logits.shape for logits in jax.tree.leaves(apply(True)["auxiliary"])] == [(2, 5), (2, 5)]
  assert "auxiliary" not in apply(False)
  assert "auxiliary_4a" in variables["params"] and "auxiliary_4a" in apply(True)["batch_moments"]


def test_bfloat16_computes_float32_logits_from_float32_parameters():
  model = tiny(dtype="bfloat16", local_response_norm=True, auxiliary_heads=("4a",))
  init = lambda: model.init_with_output(
    jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False, capture_intermediates=True
  )
  logits, variables = jax.eval_shape(init)
  inner = variables.pop("intermediates")
  assert logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  modules = [name for name in inner if name.startswith(("conv", "inception"))]
  assert len(modules) == 13
  assert {leaf.dtype for name in modules for leaf in jax.tree.leaves(inner[name])} == {jnp.dtype("bfloat16")}


# -------------------------------------------------------------------------------------------------- what is computed


@pytest.fixture(scope="module")
def module_parts():
  """Builds an InceptionModule without BN, runs it and returns (input, output, its 1x1 projection's params)."""

  def run(widths, **settings):
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 3)).astype(np.float32)
    unit = functools.partial(layers.ConvUnit, nonlinearity=lambda x: x)
    module = inception.InceptionModule(widths, unit, **settings)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False, mask=None))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"])
    y = compiled(lambda params: module.apply({"params": params}, x, train=False, mask=None))(params)
    return x, np.asarray(y), params

  return run


@pytest.mark.parametrize("include_pad", [True, False])
def test_average_pool_counts_the_borders_zeros_or_not(module_parts, include_pad):
  """TensorFlow divides a corner's sum by 4, Caffe by 9."""
  x, y, params = module_parts(
    inception.Widths(1, 1, 1, 1, 1, "avg", 2), reduction_pool="same", avg_pool_include_pad=include_pad
  )
  pooled = np.empty(x.shape)
  for i in range(6):
    for j in range(6):
      window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
      pooled[:, i, j] = window.sum((1, 2)) / (9 if include_pad else window.shape[1] * window.shape[2])
  expected = pooled @ params["pool_proj"]["conv"]["kernel"][0, 0] + params["pool_proj"]["conv"]["bias"]
  np.testing.assert_allclose(y[..., -2:], expected, rtol=1e-4, atol=1e-5)


def test_branches_are_concatenated_in_the_order_of_figure_5(module_parts):
  """1x1, 3x3, double 3x3, pool: the bias of each branch's last convolution tells it apart."""
  widths = inception.Widths(1, 1, 2, 1, 3, "max", 4)
  x, y, params = module_parts(widths, reduction_pool="same", avg_pool_include_pad=False)
  one = x @ params["1x1"]["conv"]["kernel"][0, 0] + params["1x1"]["conv"]["bias"]
  np.testing.assert_allclose(y[..., :1], one, rtol=1e-4, atol=1e-5)
  pooled = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  pooled = np.max([pooled[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)], axis=0)
  projection = pooled @ params["pool_proj"]["conv"]["kernel"][0, 0] + params["pool_proj"]["conv"]["bias"]
  np.testing.assert_allclose(y[..., 6:], projection, rtol=1e-4, atol=1e-5)
  three = x @ params["3x3_reduce"]["conv"]["kernel"][0, 0] + params["3x3_reduce"]["conv"]["bias"]
  centre = np.einsum("bijc,ijcd->bd", three[:, 1:4, 1:4], params["3x3"]["conv"]["kernel"])
  np.testing.assert_allclose(y[:, 2, 2, 1:3], centre + params["3x3"]["conv"]["bias"], rtol=1e-4, atol=1e-5)


def test_stride_2_module_passes_the_pooled_input_on(module_parts):
  x, y, _ = module_parts(inception.Widths(0, 1, 1, 1, 1, "max", 0), reduction_pool="ceil", avg_pool_include_pad=False)
  assert y.shape == (1, 3, 3, 1 + 1 + 3)
  expected = [[x[:, i : i + 3, j : j + 3].max((1, 2)) for j in (0, 2, 4)] for i in (0, 2, 4)]
  np.testing.assert_array_equal(y[..., 2:], np.array(expected).transpose(2, 0, 1, 3))


def test_dropout_acts_in_training_where_there_is_an_rng(three_modules, images):
  """Batch statistics are evaluated without one, and then nothing may be dropped."""
  model = tiny(norm=None, dropout_rate=0.4)
  variables = random_variables(model)

  @compiled
  def run(variables):
    apply = lambda train, seed=None: model.apply(
      variables, images, train=train, rngs=None if seed is None else {"dropout": jax.random.key(seed)}
    )
    return {"evaluation": apply(False, 0), "no rng": apply(True), "dropped": [apply(True, 0), apply(True, 1)]}

  logits = run(variables)
  np.testing.assert_array_equal(logits["evaluation"], logits["no rng"])
  first, second = logits["dropped"]
  assert np.abs(first - second).max() > 0.01 < np.abs(first - logits["no rng"]).max()


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"conv_bias": True, "stem": "plain", "avg_pool_include_pad": True},
    {"norm": functools.partial(NORM, use_gamma=False), "norm_in_stem": False, "stem": "separable"},
  ],
  ids=["paper", "with biases", "TF-slim"],
)
def test_folded_network_is_the_network_at_inference(settings, three_modules, images):
  model = tiny(**settings)
  variables = random_variables(model)
  infer = lambda model: compiled(lambda variables: model.apply(variables, images, train=False))
  expected = infer(model)(variables)
  folded_model, folded = models.fold(model, variables, epsilon=1e-3)
  actual = infer(folded_model)(folded)
  spread = np.std(expected, axis=0)  # What the images, and not the biases, make of the logits.
  assert np.abs(actual - expected).max() < 1e-4 * spread.min()
