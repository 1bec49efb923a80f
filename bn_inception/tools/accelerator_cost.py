"""What a config costs on accelerators that are not there: XLA compiles its programs for them, and says what they need.

The `libtpu` package compiles for a TPU topology without a TPU (ahead-of-time compilation, as MaxText's train_compile).
Nothing is run: times are bounds by the chip's data sheet, and the compiler's own estimate of its schedule.
"""

import dataclasses
import functools
import importlib.util
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bn_inception import config_checks, models, optim, sharding, state as state_lib, step as step_lib


class Chip(NamedTuple):
  """A TPU chip by Google's data sheet (cloud.google.com/tpu/docs).

  Attributes:
    kind: JAX's `device_kind`.
    flop: bfloat16 FLOP a second.
    memory: bytes of high-bandwidth memory.
    bandwidth: bytes a second of that memory.
    interconnect: bytes a second to all neighbours together.
    clock: cycles a second, by which the compiler's estimates become time; None: not published.
    topologies: shapes of a slice.
  """

  kind: str
  flop: float
  memory: float
  bandwidth: float
  interconnect: float
  clock: float | None
  topologies: tuple[str, ...]


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CHIPS = {
  "v5e": Chip("TPU v5 lite", 197e12, 16 * 2**30, 819e9, 200e9, 1.5e9, _FLAT),
  "v5p": Chip("TPU v5", 459e12, 95 * 2**30, 2765e9, 600e9, 1.75e9, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")),
  "v6e": Chip("TPU v6 lite", 918e12, 32 * 2**30, 1640e9, 448e9, None, _FLAT),
}

# Evaluated examples of the data sets that the configs name; others are given by a flag.
EVAL_EXAMPLES = {"imagenet2012": 50_000, "cifar10": 10_000, "digits": 1_000, "mnist": 10_000}

_ITEM_BITS = {
  "pred": 8,
  "s4": 4,
  "u4": 4,
  "s8": 8,
  "u8": 8,
  "s16": 16,
  "u16": 16,
  "bf16": 16,
  "f16": 16,
  "s32": 32,
  "u32": 32,
  "f32": 32,
  "s64": 64,
  "u64": 64,
  "f64": 64,
}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
  """Collectives of one kind in a program: how many, and the bytes of their results on each chip."""

  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program, per chip and call.

  Attributes:
    images: examples of the call, on all chips together.
    arguments, temporaries, output: bytes of memory; what is donated is counted under arguments alone.
    flop: floating point operations.
    bytes: XLA's "bytes accessed": operands and results of every operation, wherever they lie. It counts on-chip memory
      too, and a tensor that is brought there in slices once for each slice.
    memory_bytes: of these, what lies in the chip's high-bandwidth memory, slices at their own size.
    cycles: the compiler's estimate of its schedule, collectives apart.
    collectives: by kind.
    compile_seconds: how long compiling took.
    by_kind: what `bytes` and `memory_bytes` are made of, see `by_layer_kind`; empty in files of older versions.
  """

  images: int
  arguments: int
  temporaries: int
  output: int
  flop: float
  bytes: float
  memory_bytes: float
  cycles: float
  collectives: dict[str, Collective]
  compile_seconds: float
  by_kind: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

  def seconds(self, chip: Chip, chips: int) -> dict[str, float]:
    """The least time of a call by what may bound it, and the compiler's estimate where the clock is known."""
    ring = (chips - 1) / chips
    sent = sum(
      (2 if kind == "all-reduce" else 1) * collective.bytes * ring for kind, collective in self.collectives.items()
    )
    times = {
      "arithmetic": self.flop / chip.flop,
      "memory": self.memory_bytes / chip.bandwidth,
      "interconnect": sent / chip.interconnect,
    }
    return times | ({"compiler's schedule": self.cycles / chip.clock} if chip.clock else {})


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of a config: its training step, inference, and the forward pass that gathers batch statistics (None: no BN)."""

  topology: str
  chips: int
  train: Program
  inference: Program
  statistics: Program | None

  @property
  def chip(self) -> Chip:
    return CHIPS[self.topology.partition(":")[0]]

  def hours(self, config: ConfigDict, eval_examples: int) -> dict[str, tuple[float, float]]:
    """{"training", "evaluation": (least by the data sheet, by the compiler's schedule)}, hours of the topology."""

    def call(program: Program) -> tuple[float, float]:
      times = program.seconds(self.chip, self.chips)
      estimate = times.pop("compiler's schedule", 0.0)
      return max(times.values()), max(*times.values(), estimate)

    evaluations = -(-config.num_steps // config.eval_every)
    inferences = evaluations * -(-eval_examples // config.eval.batch_size)
    kinds = config.eval.statistics if config.batch_norm.enabled else ("running",)
    calls = [(self.inference, inferences * len({*kinds, "running"} - {"batch"}))]
    if self.statistics is not None:
      # A batch of the evaluation split costs an image what a training batch does.
      per_image = eval_examples / config.batch_size * ("batch" in kinds)
      calls.append(
        (self.statistics, evaluations * (per_image + config.eval.population_batches * ("population" in kinds)))
      )

    def total(calls: Iterable[tuple[Program, float]]) -> tuple[float, float]:
      return tuple(sum(call(program)[i] * times for program, times in calls) / 3600 for i in (0, 1))

    return {"training": total([(self.train, config.num_steps)]), "evaluation": total(calls)}


def topology_mesh(topology: str) -> jax.sharding.Mesh:
  """A mesh over the chips of "v5e:4x4", none of which need exist.

  Raises:
    ConfigError: if libtpu is not installed, or there is no such topology.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise config_checks.ConfigError("Compiling for a TPU needs the package libtpu: pip install -e '.[tpu]'.")
  name, _, shape = topology.partition(":")
  if name not in CHIPS or shape not in CHIPS[name].topologies:
    known = "; ".join(f"{name}: {', '.join(chip.topologies)}" for name, chip in CHIPS.items())
    raise config_checks.ConfigError(f"There is no topology '{topology}'; give CHIP:SHAPE, of {known}.")
  # Neither a TPU nor Google's metadata server is asked for.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  jax.config.update("jax_platforms", "cpu")
  from jax.experimental import topologies

  return sharding.make_mesh(topologies.get_topology_desc(topology, "tpu").devices)


def measure(config: ConfigDict, topology: str) -> Cost:
  """Compiles a config's programs, as train.py and its evaluators do, for a topology; minutes for a large network.

  Raises:
    ConfigError: for a config that cannot run on so many chips, and as `topology_mesh`.
  """
  mesh = topology_mesh(topology)
  config_checks.check_config(config, mesh.size)
  with jax.set_mesh(mesh):
    return _measure(config, topology, mesh)


def _measure(config: ConfigDict, topology: str, mesh: jax.sharding.Mesh) -> Cost:
  model = models.build(config)
  # The number of examples only sets when the rate decays, which costs nothing.
  optimizer = optim.make_optimizer(config, optim.learning_rate_schedule(config, 1_000_000))
  replicated = sharding.replicated(mesh)
  image_shape = (config.data.image_size, config.data.image_size, len(config.data.mean))
  state = state_lib.abstract(lambda: state_lib.create(model, optimizer, config, image_shape), replicated)

  def examples(count: int, **leaves: tuple[tuple[int, ...], jax.typing.DTypeLike]) -> dict[str, jax.ShapeDtypeStruct]:
    leaves |= {
      "image": (image_shape, jnp.uint8),
      "label": ((), jnp.int32),
      "mask": ((), jnp.bool_),
      "skipped": ((), jnp.bool_),
    }
    return {
      name: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=sharding.examples(mesh))
      for name, (shape, dtype) in leaves.items()
    }

  def compiled(function: Callable, *arguments: Any, images: int, loops: int = 1, **options: Any) -> Program:
    start = time.monotonic()
    program = jax.jit(function, out_shardings=replicated, **options).lower(*arguments).compile()
    return examine(program, images, loops, time.monotonic() - start)

  # A call of several steps costs as much as that many calls.
  train = compiled(
    step_lib.make_train_step(model, optimizer, config),
    state,
    step_lib.train_batch_shapes(config, image_shape, steps=1, sharding=sharding.micro_batches(mesh)),
    images=config.batch_size,
    loops=config.gradient_accumulation,
    donate_argnums=0,
  )
  inference = compiled(
    step_lib.make_eval_step(model, config),
    state.params,
    state.batch_stats,
    examples(config.eval.batch_size),
    images=config.eval.batch_size,
  )
  statistics = None
  if config.batch_norm.enabled and {"population", "batch"} & {*config.eval.statistics}:
    statistics = compiled(
      step_lib.make_batch_statistics_step(model, config),
      state.params,
      state.batch_stats,
      examples(config.batch_size, position=((), jnp.uint32)),
      images=config.batch_size,
    )
  return Cost(topology, mesh.size, train, inference, statistics)


def examine(program: jax.stages.Compiled, images: int, loops: int, compile_seconds: float) -> Program:
  """Reads what XLA says of a program; the body of a loop, which XLA counts once, is made `loops` times."""
  memory, analysis = program.memory_analysis(), program.cost_analysis()
  traffic = [(operation, 1 if entry else loops) for entry, operation in operations(program.as_text())]
  return Program(
    images=images,
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    output=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    flop=analysis["flops"] * loops,
    bytes=analysis["bytes accessed"] * loops,
    memory_bytes=sum(operation.memory_bytes * times for operation, times in traffic),
    cycles=sum(operation.cycles * times for operation, times in traffic),
    collectives=collectives(program.as_text()),
    compile_seconds=compile_seconds,
    by_kind=by_layer_kind(traffic),
  )


class Operation(NamedTuple):
  """One operation of a compiled program: its kind, JAX's name for where it comes from, and what it moves."""

  kind: str
  source: str
  bytes: float
  memory_bytes: float
  cycles: float


def operations(text: str) -> Iterator[tuple[bool, Operation]]:
  """(whether it is made once, operation) of what runs one after the other: the entry computation and bodies of loops.

  Args:
    text: optimized HLO of a TPU program.
  """
  bodies = set(re.findall(r"body=%([\w.\-]+)", text))
  types, inside, entry = {}, False, False
  for line in text.splitlines():
    if not line.startswith(" "):
      name = re.match(r"(ENTRY )?%?([\w.\-]+) ", line)
      entry = line.startswith("ENTRY")
      inside, types = bool(name) and (entry or name[2] in bodies), {}
      continue
    if not inside or not (parsed := _parse(line)):
      continue
    name, result, kind, operands, rest = parsed
    types[name] = result
    if kind in ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while") or kind.endswith("-done"):
      continue
    results, arguments = _arrays(result), [array for operand in operands for array in _arrays(types.get(operand, ""))]
    total = sum(size for size, _ in results + arguments)
    if kind in ("slice-start", "copy-start"):  # Its result names the operand again, of which it moves the part.
      part, off = results[1] if len(results) > 1 else results[0]
      from_memory = not arguments[0][1]
      memory = part * (from_memory + (not off))
    elif kind == "custom-call" and "ConcatBitcast" in rest:
      memory = 0
    else:
      memory = sum(size for size, on_chip in results + arguments if not on_chip)
    source, cycles = re.search(r'op_name="([^"]*)"', rest), re.search(r'"estimated_cycles":"(\d+)"', rest)
    yield entry, Operation(kind, source[1] if source else "", total, memory, float(cycles[1]) if cycles else 0.0)


def _parse(line: str) -> tuple[str, str, str, list[str], str] | None:
  """Name, result type, kind, names of operands and the rest of a line of HLO."""
  head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
  if not head:
    return None
  rest = line[head.end() :]
  end = _closing(rest, 0) + 1 if rest[0] == "(" else rest.index(" ")
  result, rest = rest[:end], rest[end:].lstrip()
  kind = re.match(r"[\w\-]+", rest)[0]
  end = _closing(rest, len(kind))
  return head[1], result, kind, re.findall(r"%([\w.\-]+)", rest[len(kind) : end]), rest[end + 1 :]


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for position in range(start, len(text)):
    depth += (text[position] == "(") - (text[position] == ")")
    if depth == 0:
      return position
  return len(text)


def _arrays(text: str) -> list[tuple[float, bool]]:
  """(bytes, whether it lies in on-chip memory: a space S(n) in its layout) of each array of a type."""
  arrays = []
  for item, shape, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", text):
    if item in _ITEM_BITS:
      size = math.prod(int(length) for length in shape.split(",") if length) * _ITEM_BITS[item] / 8
      arrays.append((size, "S(" in layout))
  return arrays


def collectives(text: str) -> dict[str, Collective]:
  """The collectives of a program's HLO by kind; one that the compiler splits over other operations is one."""
  by_kind = {kind: {} for kind in _COLLECTIVES}
  pattern = re.compile(rf"= (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(.*?channel_id=(\d+)")
  for line in text.splitlines():
    if match := pattern.search(line):
      result, kind, channel = match.groups()
      arrays = [int(size) for size, _ in _arrays(result)]
      by_kind[kind][channel] = max(arrays) if kind != "all-reduce" else sum(arrays)
  return {
    kind: Collective(len(by_channel), sum(by_channel.values())) for kind, by_channel in by_kind.items() if by_channel
  }


def by_layer_kind(traffic: Iterable[tuple[Operation, int]]) -> dict[str, tuple[float, float]]:
  """(bytes, memory_bytes) summed over the kinds of work of a network, largest first.

  Args:
    traffic: operations, and how often each is made.
  """
  total: dict[str, tuple[float, float]] = {}
  for operation, times in traffic:
    kind = _layer_kind(operation)
    moved, memory = total.get(kind, (0.0, 0.0))
    total[kind] = moved + times * operation.bytes, memory + times * operation.memory_bytes
  return dict(sorted(total.items(), key=lambda item: -item[1][0]))


def _layer_kind(operation: Operation) -> str:
  last = operation.source.split("/")[-1]
  if operation.kind in ("slice-start", "copy-start", "custom-call"):
    return "copies between memories"
  direction = "backward" if "transpose(" in operation.source else "forward"
  if "conv_general" in last:
    return f"convolutions, {direction}"
  if "reduce_window" in last or "select_and_scatter" in last:
    return f"pooling, {direction}"
  if "reduce_sum" in last:
    return f"moments and sums of BN, {direction}"
  return f"everything else, {direction}"


def describe(cost: Cost, config: ConfigDict, eval_examples: int, price: float | None) -> str:
  """The table that the script prints.

  Args:
    cost: of `config`.
    config: whose lengths and evaluations are added up.
    eval_examples: of the evaluation split.
    price: of a chip and hour, in any currency; None: no price.
  """
  chip = cost.chip
  programs = {"training step": cost.train, "inference": cost.inference, "batch statistics": cost.statistics}
  programs = {name: program for name, program in programs.items() if program is not None}
  rows: dict[str, list[str]] = {"per chip and call": list(programs)}

  def row(name: str, text: Callable[[Program], str]) -> None:
    rows[name] = [text(program) for program in programs.values()]

  def collective_text(kind: str, program: Program) -> str:
    collective = program.collectives.get(kind, Collective(0, 0))
    return f"{collective.count}, {collective.bytes / 1e6:.2f}"

  def least(program: Program) -> dict[str, float]:
    seconds = program.seconds(chip, cost.chips)
    return {kind: value for kind, value in seconds.items() if kind != "compiler's schedule"}

  row("images", lambda p: f"{p.images / cost.chips:,.0f}")
  for name in ("arguments", "temporaries", "output"):
    row(f"{name}, MiB", lambda p, name=name: f"{getattr(p, name) / 2**20:,.0f}")
  row(
    f"fits {chip.memory / 2**30:.0f} GiB",
    lambda p: "yes" if p.arguments + p.temporaries + p.output <= chip.memory else "no",
  )
  row("GFLOP", lambda p: f"{p.flop / 1e9:,.0f}")
  row("GB accessed, XLA's count", lambda p: f"{p.bytes / 1e9:.2f}")
  row("MB an image, XLA's count", lambda p: f"{p.bytes * cost.chips / p.images / 1e6:.0f}")
  row("GB to and from memory", lambda p: f"{p.memory_bytes / 1e9:.2f}")
  for kind in _COLLECTIVES:
    if any(kind in p.collectives for p in programs.values()):
      row(f"{kind}: count, MB", functools.partial(collective_text, kind))
  for kind in cost.train.seconds(chip, cost.chips):
    row(f"{kind}, ms", lambda p, kind=kind: f"{p.seconds(chip, cost.chips)[kind] * 1e3:.1f}")
  row("bound by", lambda p: max(least(p), key=least(p).get))
  row("images/s a chip, at most", lambda p: f"{p.images / cost.chips / max(least(p).values()):,.0f}")
  if chip.clock:
    row(
      "images/s a chip, compiler", lambda p: f"{p.images / cost.chips / max(p.seconds(chip, cost.chips).values()):,.0f}"
    )
  row("compiled in, s", lambda p: f"{p.compile_seconds:.0f}")

  label = max(map(len, rows))
  lines = [f"{name:{label}}" + "".join(f"  {cell:>17}" for cell in cells) for name, cells in rows.items()]
  if cost.train.by_kind:
    lines += ["", "The training step by what its operations are, GB of operands and results (to and from memory):"]
    lines += [
      f"  {name:{label}}  {moved / 1e9:6.2f} ({memory / 1e9:.2f})"
      for name, (moved, memory) in cost.train.by_kind.items()
    ]
  hours = cost.hours(config, eval_examples)
  least_hours, likely = (sum(pair[i] for pair in hours.values()) for i in (0, 1))
  lines += [
    "",
    f"{config.num_steps:,} steps of {config.batch_size} and their evaluations on {cost.topology} ({cost.chips} chips):",
  ]
  lines += [
    f"  {name + ':':12}{low:8.1f} hours at least, {high:8.1f} by the compiler's schedule"
    for name, (low, high) in hours.items()
  ]
  lines.append(
    f"  {'chip hours:':12}{least_hours * cost.chips:8.0f} at least, {likely * cost.chips:8.0f} by the "
    "compiler's schedule"
  )
  if price is not None:
    lines.append(
      f"  {'cost:':12}{least_hours * cost.chips * price:8,.0f} at least, "
      f"{likely * cost.chips * price:8,.0f} by the compiler's schedule, at {price:g} a chip and hour"
    )
  return "\n".join(lines)


def report(
  config: ConfigDict,
  name: str,
  topology: str,
  price: float | None = None,
  eval_examples: int | None = None,
  output: str | None = None,
) -> str:
  """`measure` and `describe`; writes the numbers to the file `output` (JSON) for the report.

  Args:
    config: what would run.
    name: the config as it was named on the command line.
    topology: as "v5e:4x4".
    price: of a chip and hour.
    eval_examples: of the evaluation split; None: known for the data sets of the configs.
    output: a file, or None.

  Raises:
    ConfigError: as `measure`, and for a data set whose size is not known.
  """
  dataset = config.data.name.partition(":")[0]
  eval_examples = eval_examples or EVAL_EXAMPLES.get(dataset)
  if not eval_examples:
    raise config_checks.ConfigError(
      f"The size of {dataset}'s evaluation split is not known here: give --eval_examples."
    )
  cost = measure(config, topology)
  if output:
    hours = cost.hours(config, eval_examples)
    result = {
      "config": name,
      "dtype": config.dtype,
      "batch_size": config.batch_size,
      "group_size": config.batch_norm.group_size,
      "num_steps": config.num_steps,
      "jax": jax.__version__,
      **dataclasses.asdict(cost),
      "hours": hours,
    }
    pathlib.Path(output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  return describe(cost, config, eval_examples, price)
