"""The layer table and its totals against sums by hand and over the network's own parameters."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from bn_inception import models
from bn_inception.configs import bn_x5, inception as inception_config, mnist
from bn_inception.tools import describe


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def trainable(text: str) -> str:
  return next(line.split()[-1] for line in text.splitlines() if line.startswith("trainable parameters"))


@pytest.fixture(scope="module")
def config():
  config = bn_x5.get_config("quickstart")
  config.model.auxiliary_heads = ("4a",)
  return config


@pytest.fixture(scope="module")
def calls(config):
  return describe.trace(models.build(config), (28, 28, 1))


def test_totals_are_all_parameters_and_statistics_of_the_network(config, calls):
  variables = jax.eval_shape(
    lambda: models.build(config).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
  )
  totals = describe.totals(calls)
  assert sum(totals.parameters.values()) == count(variables["params"])
  assert totals.moving_statistics == count(variables["batch_stats"])


def test_rows_add_up_to_the_totals(calls):
  rows = describe.layer_table(calls)
  totals = describe.totals(calls)
  number = lambda text: int(text.replace(",", ""))
  assert sum(number(row.get("\nparameters", "0")) for row in rows) == sum(totals.parameters.values())
  assert sum(number(row.get("\nmultiply-adds", "0")) for row in rows) == totals.multiply_adds


def test_multiply_adds_of_a_convolution_are_kernel_times_map(calls):
  assert calls[("conv1", "conv")].multiply_adds == 28 * 28 * 3 * 3 * 1 * 16
  assert calls[("logits",)].multiply_adds == 256 * 10


def test_multiply_adds_of_a_grouped_convolution_count_its_own_channel_only():
  calls = describe.trace(models.build(bn_x5.get_config("imagenet")), (224, 224, 3))
  assert calls[("conv1", "depthwise")].multiply_adds == 112 * 112 * 7 * 7 * 24


def test_auxiliary_heads_are_a_row_and_not_in_the_network(config, calls):
  types = [row["\ntype"] for row in describe.layer_table(calls)]
  assert types.index("auxiliary (4a)") == types.index("inception (4a)") + 1
  text, bare = describe.describe(config), describe.describe(bn_x5.get_config("quickstart"))
  assert trainable(text) == trainable(bare)
  assert "auxiliary heads, in training only: parameters" in text


def test_first_pool_only_in_the_small_stem(calls):
  types = [row["\ntype"] for row in describe.layer_table(calls)]
  assert types[:4] == ["convolution", "max pool", "convolution", "inception (3a)"]


def test_plain_sentence_sets_the_count_beside_the_papers():
  text = describe.describe(inception_config.get_config("imagenet"))
  assert "The paper states 13.6 million parameters." in text
  assert "This network has 11.18 million." in text


def test_mnist_network_has_four_rows_and_no_figure_5():
  text = describe.describe(mnist.get_config("bn"))
  rows = [line.split() for line in text.splitlines() if line.startswith("fully connected  ")]
  assert [row[2:] for row in rows] == [
    ["100", "78,600", "78,400"],
    ["100", "10,200", "10,000"],
    ["100", "10,200", "10,000"],
    ["10", "1,010", "1,000"],
  ]
  assert "13.6" not in text and "#1x1" not in text


@pytest.mark.slow
def test_script_prints_the_table_and_the_totals(repository):
  command = [sys.executable, "scripts/describe.py", "--config=configs/bn_x5.py:imagenet"]
  text = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout
  assert "inception (5b)" in text and "11,188,288" in text and "1,934,857,216" in text
