"""The layers of a network in the layout of Figure 5, its parameters and multiply-adds.

Everything is traced from the network itself, with shapes alone: nothing is computed or allocated.
"""

import collections
import math
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bn_inception import batch_norm, models
from bn_inception.models import inception, layers

Shape = tuple[int, ...]

KINDS = ("convolution kernels", "convolution biases", "BN gamma and beta", "fully connected")
# Columns of Figure 5, by the name of the convolution unit that is counted there.
_COLUMNS = {
  "1x1": "\n#1x1",
  "3x3_reduce": "#3x3\nreduce",
  "3x3": "\n#3x3",
  "double_3x3_reduce": "double\nreduce",
  "double_3x3_2": "double\n#3x3",
  "conv2_reduce": "#3x3\nreduce",
  "conv2": "\n#3x3",
}


class Call(NamedTuple):
  """One module at work.

  Attributes:
    module: for its attributes.
    input, output: shapes without the batch.
    params: shapes of the parameters that are its own and not those of a module inside.
    moving_statistics: how many numbers it keeps besides.
  """

  module: nn.Module
  input: Shape
  output: Shape
  params: dict[str, Shape]
  moving_statistics: int

  @property
  def num_params(self) -> int:
    return sum(map(math.prod, self.params.values()))

  @property
  def multiply_adds(self) -> int:
    """Of convolutions and fully connected layers; what normalizes, pools or adds a bias is not counted."""
    return math.prod(self.params["kernel"]) * math.prod(self.output[:-1]) if "kernel" in self.params else 0


Calls = dict[tuple[str, ...], Call]


class Totals(NamedTuple):
  """Sums over calls: trainable parameters by kind (KINDS), moving statistics, multiply-adds for one image."""

  parameters: dict[str, int]
  moving_statistics: int
  multiply_adds: int


def trace(model: nn.Module, image_shape: tuple[int, int, int]) -> Calls:
  """Every module of a network by its path, in the order of computation, auxiliary heads included.

  Args:
    model: as `models.build` makes it.
    image_shape: (height, width, channels).
  """
  calls = {}

  def record(function, args, kwargs, context):
    output = function(*args, **kwargs)
    if context.method_name == "__call__":
      variables = context.module.variables
      params, statistics = (
        {name: leaf.shape for name, leaf in variables.get(collection, {}).items() if not isinstance(leaf, Mapping)}
        for collection in ("params", "batch_stats")
      )
      calls[context.module.path] = Call(
        context.module, args[0].shape[1:], output.shape[1:], params, sum(map(math.prod, statistics.values()))
      )
    return output

  with nn.intercept_methods(record):
    jax.eval_shape(
      lambda images: model.init(jax.random.key(0), images, train=False),
      jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),
    )
  return calls


def is_auxiliary(path: tuple[str, ...]) -> bool:
  """Whether a module is of an auxiliary head, which exists in training only."""
  return bool(path) and path[0].startswith("auxiliary_")


def totals(calls: Calls) -> Totals:
  """Adds up calls."""
  parameters = dict.fromkeys(KINDS, 0)
  for call in calls.values():
    for name, shape in call.params.items():
      if isinstance(call.module, layers.Dense):
        kind = "fully connected"
      elif isinstance(call.module, batch_norm.BatchNorm):
        kind = "BN gamma and beta"
      else:
        kind = {"kernel": "convolution kernels", "bias": "convolution biases"}[name]
      parameters[kind] += math.prod(shape)
  return Totals(
    parameters,
    sum(call.moving_statistics for call in calls.values()),
    sum(call.multiply_adds for call in calls.values()),
  )


def _size(shape: Shape) -> str:
  return "x".join(map(str, shape))


def _groups(calls: Calls) -> dict[str, Calls]:
  """The calls of each row of Figure 5: a module, or a convolution with the 1x1 reduction before it."""
  groups = collections.defaultdict(dict)
  row = ""
  for path, call in calls.items():
    if call.params:
      if path[-1] != path[0] or not isinstance(call.module, batch_norm.BatchNorm):  # Else BN of the layer before.
        row = path[0].removesuffix("_reduce")
      groups[row][path] = call
  return groups


def _pool_row(before: Shape, after: Shape) -> dict[str, str]:
  """The pooling, a function and no module, that made `after` of `before`."""
  if len(after) == 1:
    return {"\ntype": "avg pool", "patch\n/stride": f"{before[0]}x{before[1]}/1", "\noutput": _size((1, 1, *after))}
  return {"\ntype": "max pool", "patch\n/stride": "3x3/2", "\noutput": _size(after)}


def _row(name: str, group: Calls, module: Call | None, output: Shape) -> dict[str, str]:
  """A row of the table; `module` is the Inception module of that name, if there is one."""
  row = {}
  convolutions = {path: call for path, call in group.items() if isinstance(call.module, layers.Convolution)}
  if module is not None:
    widths = module.module.widths
    row = dict.fromkeys(_COLUMNS.values(), "0")
    stride = max(call.module.stride for call in convolutions.values())
    row |= {
      "\ntype": f"inception ({name.removeprefix('inception_')})",
      "patch\n/stride": f"/{stride}",
      "\npool + proj": f"{widths.pool} + {widths.pool_proj or 'pass through'}",
    }
  elif is_auxiliary((name,)):
    row["\ntype"] = f"auxiliary ({name.removeprefix('auxiliary_')})"
  elif convolutions:
    first = max((call.module for call in convolutions.values()), key=lambda convolution: convolution.window)
    row["\ntype"] = "separable convolution" if first.groups > 1 else "convolution"
    row["patch\n/stride"] = f"{first.window[0]}x{first.window[1]}/{first.stride}"
  else:
    row["\ntype"] = "fully connected"
  row |= {_COLUMNS[path[-2]]: str(call.output[-1]) for path, call in convolutions.items() if path[-2] in _COLUMNS}
  return row | {
    "\noutput": _size(output),
    "\nparameters": f"{sum(call.num_params for call in group.values()):,}",
    "\nmultiply-adds": f"{sum(call.multiply_adds for call in group.values()):,}",
  }


def layer_table(calls: Calls) -> list[dict[str, str]]:
  """The rows of Figure 5, {heading: text}, as traced; auxiliary heads stand behind their module."""
  rows = []
  before = None
  for name, group in _groups(calls).items():
    first, last = next(iter(group.values())), list(group.values())[-1]
    module = calls.get((name,))
    module = module if module and isinstance(module.module, inception.InceptionModule) else None
    output = module.output if module else last.output
    if not is_auxiliary((name,)):
      if before not in (None, first.input):
        rows.append(_pool_row(before, first.input))
      before = output
    rows.append(_row(name, group, module, output))
  return rows


def _format(rows: list[dict[str, str]]) -> str:
  headings = [
    "\ntype",
    "patch\n/stride",
    "\noutput",
    *dict.fromkeys(_COLUMNS.values()),
    "\npool + proj",
    "\nparameters",
    "\nmultiply-adds",
  ]
  headings = [heading for heading in headings if any(heading in row for row in rows)]
  cells = [[heading.split("\n")[line] for heading in headings] for line in (0, 1)]
  cells += [[row.get(heading, "") for heading in headings] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells)]
  lines = [
    "  ".join([line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:]))])
    for line in cells
  ]
  return "\n".join(line.rstrip() for line in [*lines[:2], "-" * len(lines[1]), *lines[2:]])


def describe(config: ConfigDict) -> str:
  """The layer table of a config's network, its totals, and how they compare with the paper's."""
  channels = len(config.data.mean)
  calls = trace(models.build(config), (config.data.image_size, config.data.image_size, channels))
  network = totals({path: call for path, call in calls.items() if not is_auxiliary(path)})
  heads = totals({path: call for path, call in calls.items() if is_auxiliary(path)})
  trainable = sum(network.parameters.values())
  numbers = {f"  {kind}": count for kind, count in network.parameters.items()}
  numbers |= {
    "trainable parameters": trainable,
    "moving statistics": network.moving_statistics,
    "multiply-adds per image": network.multiply_adds,
  }
  if heads.multiply_adds:
    numbers |= {
      "auxiliary heads, in training only: parameters": sum(heads.parameters.values()),
      "auxiliary heads, in training only: multiply-adds": heads.multiply_adds,
    }
  width = max(map(len, numbers))
  lines = [_format(layer_table(calls)), "", *(f"{name:{width}}  {count:>13,}" for name, count in numbers.items())]
  if config.model.name == "inception":
    lines += [
      "",
      "The paper states 13.6 million parameters. No reading of its Figure 5 reaches that: at full width "
      f"they have 11.18 to 11.30 million. This network has {trainable / 1e6:.2f} million.",
    ]
  return "\n".join(lines)
