"""What the graph of an MXNet Inception-BN says about its conventions, in the words of this project's configs.

Defaults are those of MXNet's operators (src/operator/{convolution,pooling,batch_norm}-inl.h): a BN without settings
has epsilon 1e-3 and a gamma fixed to 1. Until 2016-07 pooling always rounded up, since then down where
`pooling_convention` does not say "full"; old graphs do not tell which they were trained with, but where rounding down
would make maps that do not fit together they can only have been rounded up.
"""

from typing import Any, NamedTuple

from bn_inception.models import inception
from bn_inception.release.errors import ReleaseError
from bn_inception.release.peers.mxnet.file import Node


class Conventions(NamedTuple):
  """Settings of a config's `model` and `batch_norm`, and the name of the fully connected layer."""

  model: dict[str, Any]
  batch_norm: dict[str, Any]
  head: str


def conventions(nodes: list[Node]) -> Conventions:
  """Reads the conventions of a graph.

  Raises:
    ReleaseError: if it is no Inception-BN, or has settings that this project's network does not have. The sentence
      lacks the file's name, which the caller puts before it.
  """
  kinds = {
    kind: [node for node in nodes if node.operator == kind]
    for kind in ("Convolution", "BatchNorm", "Pooling", "FullyConnected")
  }
  rows = inception.module_table().values()
  units = 3 + sum(7 if row.pool_proj else 5 for row in rows)
  counts = {"Convolution": units, "BatchNorm": units, "Pooling": 2 + len(rows) + 1, "FullyConnected": 1}
  for kind, count in counts.items():
    if len(kinds[kind]) != count:
      raise ReleaseError(f"its graph has {len(kinds[kind])} {kind} nodes where Inception-BN has {count}")

  for node in kinds["Convolution"]:
    kernel, pad = _pair(node, "kernel", None), _pair(node, "pad", (0, 0))
    if kernel is None or pad != tuple(size // 2 for size in kernel) or _pair(node, "dilate", (1, 1)) != (1, 1):
      raise ReleaseError(f"its graph gives {node.name} the kernel {kernel} and the pad {pad}, which is not supported")
  epsilon = _same(kinds["BatchNorm"], "eps", 1e-3)
  if not isinstance(epsilon, float) or not 0 < epsilon < 1:
    raise ReleaseError(f"its graph gives BatchNorm the eps {epsilon!r}")
  return Conventions(
    model={
      "padding": "symmetric",
      "conv_bias": not _same(kinds["Convolution"], "no_bias", False),
      **_pooling(kinds["Pooling"]),
    },
    batch_norm={"epsilon": epsilon, "use_gamma": not _same(kinds["BatchNorm"], "fix_gamma", True)},
    head=kinds["FullyConnected"][0].name,
  )


def _pooling(nodes: list[Node]) -> dict[str, Any]:
  """Pools in the order of computation: two of the stem, one of each module, the last over the whole map."""
  stem, modules, last = nodes[:2], dict(zip(inception.module_table().items(), nodes[2:-1])), nodes[-1]
  if last.value("pool_type", "max") != "avg" or not (
    last.value("global_pool", False) or _pair(last, "kernel", None) == (7, 7)
  ):
    raise ReleaseError(f"its graph ends with the pooling {last.name}, which is no mean over the whole 7x7 map")
  reductions, averages = [], []
  for node in stem:
    _check_pool(node, "max", 2)
  for (_, row), node in modules.items():
    _check_pool(node, row.pool, 1 if row.pool_proj else 2)
    if not row.pool_proj:
      reductions.append(node)
    elif _pair(node, "pad", (0, 0)) != (1, 1):
      raise ReleaseError(f"its graph gives the pooling {node.name} no pad of 1")
    elif row.pool == "avg":
      averages.append(node)
  borders = {"stem_pool": _border(stem), "reduction_pool": _border(reductions)}
  if borders["reduction_pool"] == "floor":
    if any("pooling_convention" in node.settings for node in nodes):
      raise ReleaseError(f"its graph gives {reductions[0].name} a smaller map than the convolutions beside it")
    borders = dict.fromkeys(borders, "ceil")
  return borders | {"avg_pool_include_pad": bool(_same(averages, "count_include_pad", True))}


def _check_pool(node: Node, kind: str, stride: int) -> None:
  in_graph = (node.value("pool_type", "max"), _pair(node, "kernel", None), _pair(node, "stride", (1, 1)))
  if in_graph != (kind, (3, 3), (stride, stride)):
    raise ReleaseError(
      f"its graph gives the pooling {node.name} the type, kernel and stride {in_graph}, where "
      f"Inception-BN has {(kind, (3, 3), (stride, stride))}"
    )


def _border(nodes: list[Node]) -> str:
  """The key of `layers.POOL_PADDING` for pools with stride 2."""
  borders = {(_pair(node, "pad", (0, 0)), node.value("pooling_convention", "valid")) for node in nodes}
  known = {((0, 0), "full"): "ceil", ((0, 0), "valid"): "floor", ((1, 1), "valid"): "floor_pad1"}
  if len(borders) != 1 or not borders <= known.keys():
    raise ReleaseError(f"its graph pools with pad and convention {sorted(map(str, borders))}, which is not supported")
  return known[borders.pop()]


def _same(nodes: list[Node], name: str, default: Any) -> Any:
  """A setting that all these nodes must share."""
  values = {str(value): value for value in (node.value(name, default) for node in nodes)}
  if len(values) != 1:
    raise ReleaseError(f"its graph has different {name} in its {nodes[0].operator} nodes: {', '.join(sorted(values))}")
  return next(iter(values.values()))


def _pair(node: Node, name: str, default: tuple[int, int] | None) -> tuple[int, int] | None:
  value = node.value(name, default)
  return tuple(value) if isinstance(value, (tuple, list)) else value
