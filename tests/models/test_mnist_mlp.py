"""The network of §4.1 against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import batch_norm
from bn_inception.configs import mnist
from bn_inception.models import mnist_mlp

NORM = functools.partial(batch_norm.BatchNorm, epsilon=1e-3)


def sigmoid(z):
  return 1 / (1 + np.exp(-z))


@pytest.fixture(scope="module")
def images():
  return (np.random.default_rng(0).random((8, 6, 6, 1)) > 0.5).astype(np.float32)


@pytest.mark.parametrize(
  "argument,parameters,statistics",
  [
    ("plain", 784 * 100 + 100 + 2 * (100 * 100 + 100) + 100 * 10 + 10, 0),
    ("bn", 784 * 100 + 2 * 100 * 100 + 3 * (100 + 100) + 100 * 10 + 10, 3 * (100 + 100)),
  ],
)
def test_config_gives_three_hidden_layers_of_100_and_a_softmax_of_10(argument, parameters, statistics):
  model = mnist_mlp.from_config(mnist.get_config(argument))
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False))
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert count(variables["params"]) == parameters
  assert count(variables.get("batch_stats", {})) == statistics


@pytest.mark.parametrize("norm", [None, NORM], ids=["plain", "bn"])
def test_logits_are_the_formula(images, norm):
  """g(BN(W u)) three times with the batch's own statistics, then an affine layer."""
  model = mnist_mlp.MnistMlp(num_classes=4, hidden_units=5, norm=norm)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=True))
  params = jax.tree.map(lambda leaf: np.random.default_rng(1).normal(size=leaf.shape), shapes["params"])
  x = images.reshape(8, 36).astype(np.float64)
  for layer in (1, 2, 3):
    x = x @ params[f"hidden{layer}"]["kernel"] + params[f"hidden{layer}"].get("bias", 0)
    if norm is not None:
      bn = params[f"bn{layer}"]
      x = bn["gamma"] * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) + bn["beta"]
    x = sigmoid(x)
  expected = x @ params["logits"]["kernel"] + params["logits"]["bias"]
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape), dict(shapes)) | {"params": params}
  actual, _ = jax.jit(lambda variables: model.apply(variables, images, train=True, mutable=["batch_stats"]))(variables)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_replaces_the_bias_of_hidden_layers_only(images):
  model = mnist_mlp.MnistMlp(num_classes=4, norm=NORM)
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
  assert [name for name, layer in params.items() if "bias" in layer] == ["logits"]


def test_initial_weights_are_gaussian_with_the_configured_deviation():
  model = mnist_mlp.MnistMlp(num_classes=10, init_std=0.2)
  params = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False))()["params"]
  kernel = np.asarray(params["hidden1"]["kernel"])
  assert kernel.std() == pytest.approx(0.2, rel=0.01)
  assert np.mean(kernel**4) / kernel.var() ** 2 == pytest.approx(3, rel=0.05)  # A Gaussian's kurtosis, not cut off.


def test_bfloat16_computes_float32_logits_from_float32_parameters(images):
  model = mnist_mlp.MnistMlp(num_classes=4, norm=NORM, dtype="bfloat16")
  init = lambda: model.init_with_output(jax.random.key(0), images, train=False, capture_intermediates=True)
  logits, variables = jax.eval_shape(init)
  assert logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
  assert variables["intermediates"]["bn3"]["__call__"][0].dtype == jnp.bfloat16
