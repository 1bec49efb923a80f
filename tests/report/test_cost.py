"""XLA's count of operations against the multiply-adds of the layers."""

import pytest

from bn_inception.report import cost
from configs import bn_x5, mnist


def test_the_mnist_network_costs_its_matrix_products():
  config = mnist.get_config("plain")
  one = cost.of(config)
  weights = 784 * 100 + 2 * 100 * 100 + 100 * 10
  # Forward, gradient to the weights, gradient to the inputs (not of the first layer): two FLOP a weight and example.
  products = 2 * 60 * (3 * weights - 784 * 100)
  assert products < one.train < 1.1 * products + 2 * 60 * 784 * 10
  assert 2 * weights < one.inference < 2.2 * weights + 784 * 10


def test_a_run_is_its_steps_and_evaluations():
  config = mnist.get_config("bn")
  config.num_steps, config.eval_every, config.eval.population_batches = 1_000, 300, 2
  assert cost.total(config, cost.Cost(7.0, 3.0), 500) == 1_000 * 7 + 4 * (3 * 500 + 2 * 60) * 3
  config.eval.statistics = ("running", "batch")
  assert cost.total(config, cost.Cost(7.0, 3.0), 500) == 1_000 * 7 + 4 * 2 * 500 * 3
  config.batch_norm.enabled = False
  assert cost.total(config, cost.Cost(7.0, 3.0), 500) == 1_000 * 7 + 4 * 500 * 3


def test_accumulated_gradients_cost_the_same():
  config = mnist.get_config("plain")
  whole = cost.of(config).train
  config.gradient_accumulation = 4
  assert cost.of(config).train == pytest.approx(whole, rel=0.1)  # The rest are sums of gradients.


@pytest.mark.slow
def test_full_inception_costs_three_times_its_inference():
  one = cost.of(bn_x5.get_config("imagenet"))
  assert 3.5e9 < one.inference < 4.5e9  # 2.0e9 multiply-adds an image.
  assert one.train / 32 == pytest.approx(3 * one.inference, rel=0.15)
