"""Makes golden_curve.json: python -m tests.golden_curve, with the packages of requirements.txt for Python 3.11.

The file has the training loss of each of 50 steps on the embedded digits.
"""

import json
import pathlib
import tempfile

import jax
from ml_collections import ConfigDict

from bn_inception import run_directory, train
from bn_inception.configs import mnist

PATH = pathlib.Path(__file__).with_suffix(".json")


def make_config(data_dir: str) -> ConfigDict:
  """The MNIST network with BN, momentum and weight decay, on distorted crops, 50 steps of 32.

  The sigmoid network is smooth. A network with ReLUs is not: rounding decides which ReLUs are on, and two compilers
  are percents apart after ten steps.
  """
  config = mnist.get_config("bn,quickstart")
  config.data.dir = data_dir
  config.data.crop_area, config.data.photometric_strength = (0.6, 1.0), 0.3
  config.data.cache, config.data.binary, config.eval.sigmoid_input_units = False, False, ()
  config.batch_size, config.batch_norm.group_size = 32, 8
  config.learning_rate, config.momentum, config.weight_decay = 0.1, 0.9, 1e-4
  config.num_steps = config.eval_every = config.checkpoint_every = 50
  config.steps_per_call, config.log_every = 1, 1
  config.eval.statistics = ("running",)
  return config


def losses(data_dir: str, workdir: pathlib.Path) -> list[float]:
  """Runs the config on one device; the mean loss of the batch of every step."""
  train.train_and_evaluate(make_config(data_dir), workdir, jax.devices()[:1])
  return [line["train/loss"] for line in run_directory.read_metrics(workdir) if "train/loss" in line]


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    values = losses(folder, pathlib.Path(folder, "run"))
  PATH.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
  main()
