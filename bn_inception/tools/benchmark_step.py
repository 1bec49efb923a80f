"""How fast a config's training step and inference are on one device, beside PyTorch's of the same network.

The data are resident: what is measured begins with random uint8 pixels on the device, and is what a run executes, the
training step with its optimizer and donated state. All programs take turns, several rounds, so that what else the
machine does meets all of them. Only jax, flax, optax, ml_collections and NumPy are needed, and PyTorch to compare.
"""

import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bn_inception import config_checks, models, optim, sharding, state as state_lib, step as step_lib
from bn_inception.data import cores
from bn_inception.errors import UserError
from bn_inception.tools import describe, machine

TRAINING, INFERENCE, FOLDED = "training", "inference", "inference, folded"
PEERS = ("torch",)
_ROUND_SECONDS = 1.0  # At least, for each program.
_PAUSE_SECONDS = 0.3  # Before each, for the threads of the one before to fall asleep.


class Program(NamedTuple):
  """Something to measure.

  Attributes:
    run: takes as many steps as it is told, waits for the last and returns the seconds.
    images: of a step.
    memory: bytes at most, as known after running; None where unknown.
    compile_seconds: None for what is not compiled.
  """

  run: Callable[[int], float]
  images: int
  memory: Callable[[], int | None]
  compile_seconds: float | None


class Result(NamedTuple):
  """What was measured of a program.

  Attributes:
    images_per_second: of each round.
    gflop: of an image.
    memory: bytes at most, or None.
    compile_seconds: or None.
  """

  images_per_second: list[float]
  gflop: float
  memory: int | None
  compile_seconds: float | None


def benchmark(config: ConfigDict, *, against: str | None, rounds: int) -> str:
  """Measures and returns a table.

  Args:
    config: a training config; inference has its batch size too.
    against: "torch" to measure PyTorch in turn, None for nothing.
    rounds: in each, every program runs for about a second or one step.

  Raises:
    ConfigError: if the config cannot be run on one device.
    UserError: if the other side cannot be measured.
  """
  if against not in (None, *PEERS):
    raise UserError(f"--against={against} is not known: give one of {', '.join(PEERS)}.")
  config_checks.check_config(config, devices=1)
  if against == "torch":
    _check_torch(config)
    # Else JAX takes three quarters of a GPU's memory before it needs it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  mesh = sharding.make_mesh(jax.devices()[:1])
  gflop = _gflop(config)
  with jax.set_mesh(mesh), contextlib.ExitStack() as processes:
    peak = _matrix_product_peak(config.dtype)
    programs = {(kind, "ours"): program for kind, program in _programs(config, mesh).items()}
    notes = []
    if against == "torch":
      for kind in (TRAINING, INFERENCE):
        programs[kind, "PyTorch"], description = _torch_program(config, kind, processes)
      notes += _torch_notes(config, description)
    rates = _measure(programs, rounds)
    results = {
      name: Result(rates[name], gflop[name[0]], program.memory(), program.compile_seconds)
      for name, program in programs.items()
    }
  return "\n".join(
    [_heading(config, rounds), _table(results, peak), *_ratios(results), "", *_notes(config, peak), *notes]
  )


def _programs(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, Program]:
  """Ours, compiled."""
  random = np.random.default_rng(0)
  model = models.build(config)
  shape = (config.data.image_size, config.data.image_size, len(config.data.mean))
  optimizer = optim.make_optimizer(config, optim.learning_rate_schedule(config, num_examples=1_000_000))
  replicated = sharding.replicated(mesh)
  state = jax.jit(lambda: state_lib.create(model, optimizer, config, shape), out_shardings=replicated)()
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  variables = jax.tree.map(jnp.copy, {name: tree for name, tree in variables.items() if tree})

  steps = config.steps_per_call
  shapes = step_lib.train_batch_shapes(config, shape, steps=steps, sharding=sharding.micro_batches(mesh))
  most = {"image": 256, "label": config.data.num_classes, "skipped": 1}
  batch = {
    name: jax.device_put(random.integers(most[name], size=leaf.shape).astype(leaf.dtype), leaf.sharding)
    for name, leaf in shapes.items()
  }
  train_call = step_lib.make_train_call(step_lib.make_train_step(model, optimizer, config), config)
  train_call, seconds = _compile(jax.jit(train_call, donate_argnums=0, out_shardings=replicated), state, batch)

  def train() -> state_lib.TrainState:
    nonlocal state
    state = train_call(state, batch)
    return state

  programs = {TRAINING: _program(train, train_call, seconds, steps * config.batch_size)}

  images = jax.device_put(random.integers(256, size=(config.batch_size, *shape), dtype=np.uint8), replicated)
  networks = {INFERENCE: (model, variables)}
  if config.batch_norm.enabled and not config.batch_norm.per_activation:
    networks[FOLDED] = models.fold(model, variables, epsilon=config.batch_norm.epsilon)
  for name, (network, its_variables) in networks.items():

    def infer(variables: Mapping, images: jax.Array, network: nn.Module = network) -> jax.Array:
      return network.apply(variables, step_lib.preprocess(config, images), train=False)

    infer, seconds = _compile(jax.jit(infer), its_variables, images)
    programs[name] = _program(functools.partial(infer, its_variables, images), infer, seconds, config.batch_size)
  return programs


def _compile(function: jax.stages.Wrapped, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
  """A jitted function compiled for arguments, and how long that took in seconds, tracing included."""
  begin = time.perf_counter()
  compiled = function.lower(*arguments).compile()
  return compiled, time.perf_counter() - begin


def _program(
  step: Callable[[], state_lib.TrainState | jax.Array],
  compiled: jax.stages.Compiled,
  compile_seconds: float,
  images: int,
) -> Program:
  """The program that calls `step`, which calls `compiled` and returns its result."""

  def run(steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
      result = step()
    jax.block_until_ready(result)
    return time.perf_counter() - begin

  return Program(run, images, lambda: _memory(compiled), compile_seconds)


def _memory(compiled: jax.stages.Compiled) -> int | None:
  """Bytes: arguments, results that do not take the place of arguments, and temporary arrays."""
  analysis = compiled.memory_analysis()
  if analysis is None:
    return None
  return (
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes
  )


def _check_torch(config: ConfigDict) -> None:
  if importlib.util.find_spec("torch") is None:
    raise UserError("--against=torch needs PyTorch, the extra 'torch' of this project: pip install -e '.[torch]'.")
  if config.model.name != "inception":
    raise UserError(
      f"--against=torch measures Inception, but model.name is '{config.model.name}': choose another "
      "config, or leave out --against."
    )


def _torch_program(config: ConfigDict, kind: str, processes: contextlib.ExitStack) -> tuple[Program, dict[str, str]]:
  """Starts PyTorch, which ends with `processes`; returns also what it says of itself."""
  request = {
    "config": config.to_dict(),
    "batch_size": config.batch_size,
    "training": kind == TRAINING,
    "threads": cores.available(),
    "device": "cuda" if jax.devices()[0].platform == "gpu" else "cpu",
  }
  process = processes.enter_context(
    subprocess.Popen(
      [sys.executable, "-m", "bn_inception.tools.torch_step", json.dumps(request)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=pathlib.Path(__file__).parents[2],
    )
  )
  memory = [None]

  def answer() -> dict[str, Any]:
    line = process.stdout.readline()
    if not line:
      raise UserError("PyTorch's process ended before its time: its message is above.")
    return json.loads(line)

  def run(steps: int) -> float:
    print(steps, file=process.stdin, flush=True)
    reply = answer()
    memory[0] = reply["memory"]
    return reply["seconds"]

  description = answer()
  return Program(run, config.batch_size, lambda: memory[0], None), description


def _measure(programs: dict[tuple[str, str], Program], rounds: int) -> dict[tuple[str, str], list[float]]:
  """Images a second of every program in every round.

  A turn begins with a step that does not count. It is slower, and a run has no such steps: caches hold what others
  used, and while these ran the operating system took back the memory that the last step had freed.
  """
  steps = {}
  for name, program in programs.items():
    program.run(1)
    time.sleep(_PAUSE_SECONDS)
    steps[name] = max(round(_ROUND_SECONDS / program.run(1)), 1)
  rates = {name: [] for name in programs}
  for number in range(rounds):
    for name in list(programs)[:: -1 if number % 2 else 1]:
      time.sleep(_PAUSE_SECONDS)
      programs[name].run(1)
      seconds = programs[name].run(steps[name])
      rates[name].append(steps[name] * programs[name].images / seconds)
  return rates


def _matrix_product_peak(dtype: str) -> float:
  """GFLOP/s of the fastest product of two square matrices: of ever larger ones, up to a quarter of a second each."""
  product = jax.jit(jnp.matmul)
  best, size, seconds = 0.0, 512, 0.0
  while seconds < 0.25 and size < 16_384:
    size *= 2
    matrix = jax.random.uniform(jax.random.key(0), (size, size)).astype(dtype)
    product(matrix, matrix).block_until_ready()
    for _ in range(5):
      begin = time.perf_counter()
      product(matrix, matrix).block_until_ready()
      seconds = time.perf_counter() - begin
      best = max(best, 2 * size**3 / seconds / 1e9)
  return best


def _gflop(config: ConfigDict) -> dict[str, float]:
  """1e9 FLOP for an image by what is done with it: two a multiply-add, and training three times the forward pass."""
  calls = describe.trace(models.build(config), (config.data.image_size,) * 2 + (len(config.data.mean),))
  network = describe.totals({path: call for path, call in calls.items() if not describe.is_auxiliary(path)})
  whole = describe.totals(calls)  # With the auxiliary heads, which exist in training.
  inference = 2 * network.multiply_adds / 1e9
  return {TRAINING: 3 * 2 * whole.multiply_adds / 1e9, INFERENCE: inference, FOLDED: inference}


def _heading(config: ConfigDict, rounds: int) -> str:
  device = jax.devices()[0]
  kind = f"{cores.available()} cores of {machine.processor()}" if device.platform == "cpu" else device.device_kind
  return (
    f"{config.model.name}, batch of {config.batch_size}, {config.data.image_size} px, {config.dtype}; jax "
    f"{jax.__version__} on {kind}; median and range of {rounds} rounds"
  )


def _table(results: dict[tuple[str, str], Result], peak: float) -> str:
  lines = [f"{'':28}{'images/s':>10}{'range':>24}{'GFLOP/s':>10}{'of peak':>9}{'memory':>11}{'compiled':>10}"]
  for (kind, side), result in sorted(results.items(), key=lambda item: (TRAINING, INFERENCE, FOLDED).index(item[0][0])):
    rate = statistics.median(result.images_per_second)
    spread = f"{min(result.images_per_second):,.1f} to {max(result.images_per_second):,.1f}"
    memory = "" if result.memory is None else f"{result.memory / 1e6:,.0f} MB"
    compiled = "" if result.compile_seconds is None else f"{result.compile_seconds:.1f} s"
    gflop = rate * result.gflop
    lines.append(
      f"{f'{kind}: {side}':28}{rate:10,.1f}{spread:>24}{gflop:10,.1f}{gflop / peak:9.0%}{memory:>11}{compiled:>10}"
    )
  return "\n".join(lines)


def _ratios(results: dict[tuple[str, str], Result]) -> list[str]:
  """How many times as fast as PyTorch ours is, in each round."""
  lines = []
  for kind in (TRAINING, INFERENCE, FOLDED):
    theirs = results.get((INFERENCE if kind == FOLDED else kind, "PyTorch"))
    ours = results.get((kind, "ours"))
    if ours and theirs:
      ratios = [a / b for a, b in zip(ours.images_per_second, theirs.images_per_second)]
      lines.append(f"ours / PyTorch, {kind}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
  return lines


def _notes(config: ConfigDict, peak: float) -> list[str]:
  """What the numbers are."""
  lines = [
    "FLOP: a multiply-add of a convolution or fully connected layer of the network as configured is 2, nothing else "
    "counts; training is 3 times the forward pass. One count for every row.",
    f"Peak: {peak:,.0f} GFLOP/s, the fastest {config.dtype} matrix product in JAX.",
    "Memory of ours: arguments, results and temporary arrays of the program, by XLA's memory_analysis.",
  ]
  statistics_of_device = jax.devices()[0].memory_stats()
  if statistics_of_device and "peak_bytes_in_use" in statistics_of_device:
    lines.append(
      f"Memory of the device: {statistics_of_device['peak_bytes_in_use'] / 1e6:,.0f} MB at most, of all of "
      "ours together, by its allocator."
    )
  return lines


def _torch_notes(config: ConfigDict, description: dict[str, str]) -> list[str]:
  """What PyTorch's numbers are, and what its training does not do."""
  memory = "its allocator's peak" if jax.devices()[0].platform == "gpu" else "what its process grew by"
  lines = [
    f"PyTorch {description['version']}, {description['device']}: eager, channels_last, a process for training "
    f"and one for inference. Memory: {memory}."
  ]
  if config.batch_norm.enabled and config.batch_norm.group_size not in (0, config.batch_size):
    lines.append(f"BN: over groups of {config.batch_norm.group_size} here, over the whole batch in PyTorch.")
  if config.data.photometric_strength:
    lines.append(
      "Photometric distortions are part of our training step alone: --config.data.photometric_strength=0 "
      "leaves them out."
    )
  if config.gradient_accumulation > 1:
    lines.append(
      f"Our training step accumulates the gradients of {config.gradient_accumulation} micro-batches, "
      "PyTorch's takes the batch as one."
    )
  return lines
