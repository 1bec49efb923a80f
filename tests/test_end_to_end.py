"""The promises of the README, kept by the real networks on real data. Slow: `make test-all`."""

import jax
import numpy as np
import pytest

from bn_inception import evaluate, run_directory, train
from configs import bn_x5

pytestmark = pytest.mark.slow


def losses(workdir) -> list[float]:
  return [line["train/loss"] for line in run_directory.read_metrics(workdir) if "train/loss" in line]


def test_the_quickstart_reaches_96_percent(digits_dir, tmp_path):
  config = bn_x5.get_config("quickstart")
  config.data.dir = digits_dir
  metrics = train.train_and_evaluate(config, tmp_path, jax.devices()[:1])["metrics"]
  assert metrics["eval/count"] == 1000
  assert metrics["eval/running/top1"] >= 0.96 and metrics["eval/population/top1"] >= 0.96


def test_full_size_inception_on_real_imagenet_records(shared, tmp_path):
  config = bn_x5.get_config("imagenet")
  config.data.dir = str(shared / "data" / "tfds")
  config.num_steps, config.log_every, config.eval.population_batches = 2, 1, 2
  metrics = train.train_and_evaluate(config, tmp_path, jax.devices()[:1])["metrics"]
  assert metrics["eval/count"] == 500
  np.testing.assert_allclose(losses(tmp_path)[0], np.log(1000), rtol=0.1)  # Before learning: chance.
  alone = evaluate.evaluate_run(tmp_path, devices=jax.devices()[:1])
  assert alone == {name: value for name, value in metrics.items() if name != "paper_steps"}


def test_inception_trains_alike_on_one_and_four_devices(digits_dir, tmp_path):
  """Groups of 16 over shares of 8; the first steps, before rounding has grown through 69 layers."""
  for devices in (1, 4):
    config = bn_x5.get_config("quickstart")
    config.data.dir = digits_dir
    config.batch_norm.group_size = 16
    config.num_steps, config.log_every, config.eval.population_batches = 20, 1, 1
    config.learning_rate = 0.01
    train.train_and_evaluate(config, tmp_path / str(devices), jax.devices()[:devices])
  np.testing.assert_allclose(losses(tmp_path / "4"), losses(tmp_path / "1"), rtol=2e-3)
