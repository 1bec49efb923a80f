"""The benchmark of training and inference: what is counted and measured, and that PyTorch takes the same steps."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import config_checks, config_keys, models, optim, state as state_lib, step as step_lib
from bn_inception.configs import bn_x5, mnist
from bn_inception.errors import UserError
from bn_inception.tools import benchmark_step
from bn_inception.tools.benchmark_step import FOLDED, INFERENCE, TRAINING


@pytest.fixture(autouse=True)
def short(monkeypatch):
  monkeypatch.setattr(benchmark_step, "_ROUND_SECONDS", 0.01)
  monkeypatch.setattr(benchmark_step, "_PAUSE_SECONDS", 0.0)
  monkeypatch.setattr(benchmark_step, "_matrix_product_peak", lambda dtype: 100.0)


def rows(table: str) -> dict[str, list[float]]:
  """The numbers of each row: images/s, least, most, GFLOP/s, % of the peak, MB, seconds to compile."""
  found = re.findall(r"^(\w.*): (ours|PyTorch) +(\d.*)$", table, re.MULTILINE)
  return {
    f"{kind}: {side}": [float(number.replace(",", "")) for number in re.findall(r"[\d.,]*\d", numbers)]
    for kind, side, numbers in found
  }


def test_table_of_a_network():
  config = mnist.get_config("bn")
  table = benchmark_step.benchmark(config, against=None, rounds=3)
  measured = rows(table)
  assert list(measured) == [f"{kind}: ours" for kind in (TRAINING, INFERENCE, FOLDED)]
  multiply_adds = 784 * 100 + 2 * 100 * 100 + 100 * 10
  for kind, (rate, least, most, gflops, share, megabytes, compile_seconds) in zip((3, 1, 1), measured.values()):
    assert 0 < least <= rate <= most and compile_seconds > 0
    assert gflops == pytest.approx(rate * kind * 2 * multiply_adds / 1e9, abs=0.06)
    assert share == pytest.approx(gflops, abs=0.6)
    assert 4 * multiply_adds / 1e6 - 1 < megabytes < 100


def test_programs_take_turns_and_a_rate_counts_all_its_steps():
  calls = []

  def program(name, seconds_per_step, images):
    def run(steps):
      calls.append((name, steps))
      return seconds_per_step * steps

    return benchmark_step.Program(run, images, lambda: None, None)

  rates = benchmark_step._measure({"a": program("a", 0.001, 2), "b": program("b", 5.0, 32)}, rounds=3)
  assert rates == {"a": pytest.approx([2_000.0] * 3), "b": pytest.approx([6.4] * 3)}
  a, b = [("a", 1), ("a", 10)], [("b", 1), ("b", 1)]  # A step that does not count, then 0.01 s or another step.
  assert calls[4:] == [*a, *b, *b, *a, *a, *b]


def test_flop_are_two_a_multiply_add_and_training_three_times_the_forward_pass():
  config = bn_x5.get_config("imagenet")
  config.model.update(stem="plain", pool_proj_4cd=128)
  gflop = benchmark_step._gflop(config_keys.parse(config))
  assert gflop[INFERENCE] == gflop[FOLDED] == pytest.approx(2 * 2.033, abs=2e-3)  # Counted from a released network.
  assert gflop[TRAINING] == pytest.approx(3 * gflop[INFERENCE])
  config.model.auxiliary_heads = ("4a",)
  heads = 4 * 4 * 576 * 128 + 4 * 4 * 128 * 1024 + 1024 * 1000
  with_heads = benchmark_step._gflop(config_keys.parse(config))
  assert with_heads[INFERENCE] == gflop[INFERENCE]
  assert with_heads[TRAINING] - gflop[TRAINING] == pytest.approx(6 * heads / 1e9)


def test_memory_is_of_arguments_results_and_temporaries():
  size = 1 << 20
  add = lambda x, y: x + y
  vector = jnp.zeros(size, jnp.float32)
  kept = benchmark_step._memory(jax.jit(add).lower(vector, vector).compile())
  assert kept == pytest.approx(3 * 4 * size, rel=1e-3)
  donated = benchmark_step._memory(jax.jit(add, donate_argnums=0).lower(vector, vector).compile())
  assert donated == pytest.approx(2 * 4 * size, rel=1e-3)


def test_what_cannot_be_measured_is_said(monkeypatch):
  config = mnist.get_config("bn")
  with pytest.raises(UserError, match="--against=mxnet is not known: give one of torch"):
    benchmark_step.benchmark(config, against="mxnet", rounds=1)
  monkeypatch.setattr(benchmark_step.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=re.escape("needs PyTorch, the extra 'torch' of this project: pip install")):
    benchmark_step.benchmark(config, against="torch", rounds=1)
  monkeypatch.setattr(benchmark_step.importlib.util, "find_spec", lambda name: name)
  with pytest.raises(UserError, match="model.name is 'mnist_mlp'"):
    benchmark_step.benchmark(config, against="torch", rounds=1)


def test_script_says_what_is_wrong_in_a_sentence(repository):
  command = [sys.executable, "scripts/benchmark_step.py", "--config=configs/bn_x5.py:cifar10", "--batch_size=48"]
  result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
  assert result.returncode == 2 and not result.stdout and "Traceback" not in result.stderr
  assert "batch_size of 48 examples" in result.stderr and "BN groups of 32" in result.stderr
  assert issubclass(config_checks.ConfigError, UserError)


# ------------------------------------------------------------------------------------------------------------ PyTorch


def tiny_config():
  config = bn_x5.get_config("cifar10").copy_and_resolve_references()
  config.model.update(width=0.05, auxiliary_heads=("4a",))
  config.data.update(image_size=12, photometric_strength=0.0)
  config.batch_norm.group_size = 0
  config.batch_size, config.learning_rate, config.weight_decay = 8, 0.02, 0.01
  return config


@pytest.mark.torch
def test_pytorch_takes_the_same_training_steps():
  with jax.enable_x64(True):
    compare_training_steps()


def compare_training_steps():
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-optional")
  from bn_inception.release import export
  from bn_inception.tools import torch_step

  config, random = tiny_config(), np.random.default_rng(0)
  config.dtype = "float64"  # Steps of a deep network magnify rounding.
  images = random.integers(256, size=(8, 12, 12, 3), dtype=np.uint8)
  labels = random.integers(10, size=8).astype(np.int32)
  model = models.build(config)
  optimizer = optim.make_optimizer(config, optim.learning_rate_schedule(config, num_examples=1_000_000))
  state = state_lib.create(model, optimizer, config, (12, 12, 3))
  params, batch_stats = jax.tree.map(lambda x: x.astype(np.float64), (state.params, state.batch_stats))
  state = state.replace(params=params, batch_stats=batch_stats, opt_state=optimizer.init(params))

  def variables():
    arrays = export.torch_module_state({"params": state.params, "batch_stats": state.batch_stats})
    return {name: torch.tensor(array) for name, array in arrays.items() if "running" not in name}

  peer = torch_step.torch_module.Inception(config.to_dict()).double().train()
  peer.register_forward_pre_hook(lambda _, arguments: (arguments[0].double(),))
  start = variables()
  peer.load_state_dict(start, strict=False)
  ours = jax.jit(
    step_lib.make_train_step(model, optimizer, config), compiler_options={"xla_backend_optimization_level": 0}
  )
  theirs = torch_step.make_train_step(config.to_dict(), peer)
  batch = {"image": images[None], "label": labels[None], "skipped": np.zeros((1, 8), bool)}
  for _ in range(3):  # So that momentum counts.
    state = ours(state, batch)
    theirs(torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels).long())
  moved = 0
  for name, value in variables().items():
    if "num_batches" not in name:
      change = (value - start[name]).abs().max()
      assert (peer.state_dict()[name] - value).abs().max() < 0.001 * change + 1e-7, name
      moved += change > 1e-4
  assert moved > 50


@pytest.mark.torch
def test_pytorch_is_measured_in_turn():
  pytest.importorskip("torch", reason="needs PyTorch: make test-optional")
  table = benchmark_step.benchmark(tiny_config(), against="torch", rounds=2)
  measured = rows(table)
  assert list(measured) == [
    "training: ours",
    "training: PyTorch",
    "inference: ours",
    "inference: PyTorch",
    "inference, folded: ours",
  ]
  assert all(row[0] > 0 for row in measured.values())
  for kind in (TRAINING, INFERENCE, FOLDED):
    assert re.search(rf"^ours / PyTorch, {kind}: \d+\.\d\d \(", table, re.MULTILINE)
