"""XLA's count of operations against the multiply-adds of the layers."""

import pytest

from bn_inception.configs import bn_x5, mnist
from bn_inception.reproduction import run_cost
from bn_inception.reproduction.run_cost import Work


def test_the_mnist_network_costs_its_matrix_products():
  config = mnist.get_config("plain")
  one = run_cost.count_work(config)
  weights = 784 * 100 + 2 * 100 * 100 + 100 * 10
  # Forward, gradient to the weights, gradient to the inputs (not of the first layer): two FLOP a weight and example.
  products = 2 * 60 * (3 * weights - 784 * 100)
  assert products < one.train.flop < 1.1 * products + 2 * 60 * 784 * 10
  assert 2 * weights < one.inference.flop < 2.2 * weights + 784 * 10
  # Each product reads and writes its three matrices of float32: weights thrice, activations of 60 examples.
  activations = 60 * (784 + 3 * 100 + 10)
  assert 4 * 3 * weights < one.train.bytes < 4 * (30 * weights + 30 * activations)


def test_a_run_is_its_steps_and_evaluations():
  config = mnist.get_config("bn")
  config.num_steps, config.eval_every, config.eval.population_batches = 1_000, 300, 2
  one = run_cost.Cost(Work(7.0, 70.0), Work(3.0, 11.0))
  images = 3 * 500 + 2 * 60
  assert run_cost.total_work(config, one, 500) == (1_000 * 7 + 4 * images * 3, 1_000 * 70 + 4 * images * 11)
  config.eval.statistics = ("running", "batch")
  assert run_cost.total_work(config, one, 500).flop == 1_000 * 7 + 4 * 2 * 500 * 3
  config.batch_norm.enabled = False
  assert run_cost.total_work(config, one, 500).flop == 1_000 * 7 + 4 * 500 * 3


def test_accumulated_gradients_cost_the_same():
  config = mnist.get_config("plain")
  whole = run_cost.count_work(config).train.flop
  config.gradient_accumulation = 4
  assert run_cost.count_work(config).train.flop == pytest.approx(whole, rel=0.1)  # The rest are sums of gradients.


@pytest.mark.slow
def test_full_inception_costs_three_times_its_inference():
  one = run_cost.count_work(bn_x5.get_config("imagenet"))
  assert 3.5e9 < one.inference.flop < 4.5e9  # 2.0e9 multiply-adds an image.
  assert one.train.flop / 32 == pytest.approx(3 * one.inference.flop, rel=0.15)


def test_hours_are_between_arithmetic_and_memory():
  slow_memory = run_cost.Accelerator("", flop=100.0, bandwidth=1.0)
  assert slow_memory.hours(Work(flop=3600 * 100 * 2, bytes=3600 * 5)) == (2, 5)
  assert slow_memory.hours(Work(flop=3600 * 100 * 2, bytes=3600)) == (2, 2)  # Never less than the arithmetic.
