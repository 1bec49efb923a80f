"""Logits and activations of released networks against their own code, which computed them from the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import config_checks, release
from bn_inception.models import inception
from bn_inception.tools import describe

# Float32 rounding gives 1e-4; the smallest mistake in structure 2.
TOLERANCE = 1e-3

PEERS = ("torch", "tensorflow", "mxnet")


@pytest.fixture(scope="module", params=PEERS)
def golden(request, goldens):
  return goldens[request.param]


@pytest.fixture(scope="module")
def expected(golden):
  return dict(np.load(golden.expected))


@pytest.fixture(scope="module")
def computed(golden, images):
  """Logits and whole maps by the names of `expected`, from one compiled program."""
  model, variables, preprocess = release.load(golden.path)

  @jax.jit
  def run(variables, images):
    logits, inner = model.apply(
      variables,
      preprocess(images),
      train=False,
      mutable="intermediates",
      capture_intermediates=lambda module, _: len(module.path) == 1,
    )
    maps = {
      name: calls["__call__"][0] for name, calls in inner["intermediates"].items() if name not in ("logits", "pooled")
    }
    for number in "12":
      maps[f"pool{number}"] = inception.max_pool_stride2(maps[f"conv{number}"], model.stem_pool)
    return logits, preprocess(images), maps

  with jax.default_matmul_precision("highest"):
    return jax.tree.map(np.asarray, run(variables, images))


def test_logits_are_the_peers(computed, expected):
  logits = computed[0]
  assert logits.dtype == np.float32 and logits.shape == expected["logits"].shape
  assert np.abs(logits - expected["logits"]).max() < TOLERANCE
  assert np.abs(logits - expected["logits_f64"]).max() < TOLERANCE


def test_top_5_are_the_peers(computed, expected):
  top5 = lambda logits: np.argsort(-logits, axis=1, kind="stable")[:, :5]
  np.testing.assert_array_equal(top5(computed[0]), top5(expected["logits"]))


def test_input_is_the_peers(computed, expected):
  """The samples are NCHW or NHWC, as the peer's input is."""
  x = computed[1]
  if expected["input_check"].shape[1] == 3:
    x = x.transpose(0, 3, 1, 2)[:, :, ::37, ::41]
  else:
    x = x[:, ::37, ::41]
  np.testing.assert_allclose(x, expected["input_check"], atol=1e-6 * np.abs(x).max())


def test_every_activation_is_the_peers(computed, expected):
  maps = computed[2]
  samples = {
    "mean": lambda x: x.mean((1, 2)),
    "full0": lambda x: x[0],
    "corner": lambda x: np.concatenate([x[:, :2, :2], x[:, -2:, -2:]], axis=1),
  }
  compared = 0
  for name, values in expected.items():
    kind, _, layer = name.partition("_")
    if name == "pool":
      actual = maps["inception_5b"].mean((1, 2))
    elif layer.startswith("sub2_"):
      actual = maps[layer.removeprefix("sub2_")][0, ::2, ::2]
    elif kind in samples:
      actual = samples[kind](maps[layer])
    else:
      continue
    compared += 1
    assert actual.shape == values.shape, name
    assert np.abs(actual - values).max() < TOLERANCE, name
  assert compared >= 2 * 14 + 5


def test_folded_network_has_the_same_logits(golden, images, expected):
  model, variables, preprocess = release.load(golden.path, folded=True)
  assert variables.keys() == {"params"}
  with jax.default_matmul_precision("highest"):
    logits = jax.jit(lambda variables, images: model.apply(variables, preprocess(images), train=False))(
      variables, images[:2]
    )
  assert np.abs(logits - expected["logits"][:2]).max() < TOLERANCE


def test_config_can_be_checked_and_described(golden):
  config, variables, *_ = release.read(golden.path)
  config_checks.check_config(config, devices=1)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  assert f"{count:,}" in describe.describe(config)


def test_both_layouts_of_mxnets_graph_say_the_same(goldens):
  path = goldens["mxnet"].path
  symbols = sorted(path.parent.glob("*-symbol.json"))
  assert len(symbols) == 2
  first, second = (release.read(path, symbol) for symbol in symbols)
  assert jnp.float32(first.config.batch_norm.epsilon) == jnp.float32(second.config.batch_norm.epsilon)
  assert first.config.model == second.config.model
  jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
