"""The promises of the README, kept by the real networks on real data. Slow: `make test-all`."""

import json

import jax
import numpy as np
import pytest

from bn_inception import evaluate, models, optim, run_directory, sharding, state as state_lib, step as step_lib, train
from bn_inception.configs import bn_x5, ensemble
from bn_inception.data import pipeline

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


def test_inception_trains_alike_on_one_and_four_devices(digits_dir):
  """Two steps in float64, groups of 16 over shares of 8.

  The order of a sum decides on which side of zero a few of the million ReLUs stand. In float32 that moves the gradient
  by 1e-3, and every further step magnifies it; in float64, over two steps, what remains could only be a mistake.
  """
  config = bn_x5.get_config("quickstart")
  config.data.dir, config.dtype, config.batch_norm.group_size = digits_dir, "float64", 16
  config.learning_rate = 0.01
  states = []
  with jax.enable_x64(True):
    model = models.build(config)
    optimizer = optim.make_optimizer(config, optim.learning_rate_schedule(config, 4000))
    for devices in (1, 4):
      mesh = sharding.make_mesh(jax.devices()[:devices])
      replicated = sharding.replicated(mesh)
      with jax.set_mesh(mesh):
        state = jax.jit(lambda: state_lib.create(model, optimizer, config, (28, 28, 1)), out_shardings=replicated)()
        train_step = jax.jit(step_lib.make_train_step(model, optimizer, config), out_shardings=replicated)
        source = pipeline.open_source(config.data, config.data.train_split)
        batches = pipeline.train_batches(config.data, source, seed=0, batch_size=32)
        for _, batch in zip(range(2), batches):
          state = jax.block_until_ready(train_step(state, jax.device_put(batch, sharding.micro_batches(mesh))))
        batches.close()
        states.append(jax.device_get(state))
  one, four = states
  assert jax.tree.leaves(one.params)[0].dtype == np.float64
  assert one.sums.count == 64
  for name in ("params", "batch_stats"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), getattr(one, name), getattr(four, name)
    )


def test_the_six_members_are_an_ensemble(digits_dir, tmp_path):
  """§4.2.3: larger initial weights, dropout, BN per activation; trained a little, evaluated together and alone."""
  workdirs = []
  for member in ensemble.MEMBERS:
    config = ensemble.get_config(f"quickstart,{member}")
    config.data.dir, config.data.eval_split, config.eval.statistics = digits_dir, "test[:300]", ("running",)
    config.model.width, config.learning_rate, config.batch_norm.momentum = 0.05, 0.1, 0.5
    config.num_steps = config.eval_every = config.checkpoint_every = 20
    workdirs.append(str(tmp_path / member))
    assert train.train_and_evaluate(config, workdirs[-1], jax.devices()[:1])["status"] == "done"
  losses, probabilities = [], []
  for number, paths in enumerate([*([workdir] for workdir in workdirs), workdirs]):
    metrics = evaluate.evaluate_checkpoints(paths, str(tmp_path / f"out{number}"), crops=10, devices=jax.devices()[:1])
    assert metrics["count"] == 300
    losses.append(metrics["loss"])
    lines = (tmp_path / f"out{number}" / "predictions.jsonl").read_text().splitlines()
    probabilities.append([json.loads(line)["label_probability"] for line in lines])
  assert len(set(losses)) == 7
  np.testing.assert_allclose(np.mean(probabilities[:6], axis=0), probabilities[6], atol=1e-6)
