"""PyTorch's `bninception`: its config, and what it calls its tensors.

Source of every setting: github.com/Cadene/pretrained-models.pytorch, pretrainedmodels/models/bninception.py.
"""

import math
from collections.abc import Iterable

import flax
import numpy as np

from bn_inception.config_dict import ConfigDict
from bn_inception.models import inception
from bn_inception.release import assemble, labels
from bn_inception.release.assemble import Tensors
from bn_inception.release.errors import ReleaseError
from bn_inception.release.peers import mapping
from bn_inception.release.peers.pytorch import file
from bn_inception.release.release_type import Release, TorchTensor

_LEAVES = {
  "conv/kernel": ".weight",
  "conv/bias": ".bias",
  "bn/gamma": "_bn.weight",
  "bn/beta": "_bn.bias",
  "bn/mean": "_bn.running_mean",
  "bn/var": "_bn.running_var",
}
_MODEL = mapping.CAFFE_BORDERS | {"pool_proj_4cd": 128}
_EPSILON = 1e-5
_DATA = {"mean": (128.0, 117.0, 104.0), "std": (1.0, 1.0, 1.0), "channel_order": "bgr"}
# In the order of its modules.
_UNITS = (
  *mapping.CAFFE_STEM,
  *(
    f"inception_{name}/{unit}"
    for name, row in inception.module_table().items()
    for unit in ("1x1", "3x3_reduce", "3x3", "double_3x3_reduce", "double_3x3_1", "double_3x3_2", "pool_proj")
    if row.conv1x1 or unit not in ("1x1", "pool_proj")
  ),
)


def _unit_name(unit: str) -> str:
  return mapping.CAFFE_STEM.get(unit, unit).replace("/", "_")


_COUNTERS = frozenset(_unit_name(unit) + "_bn.num_batches_tracked" for unit in _UNITS)


def _sources(head: str) -> dict[str, str]:
  """The variable behind each name of a state dict, in its order."""
  sources = {
    _unit_name(unit) + suffix: f"{'batch_stats' if leaf in mapping.STATISTICS else 'params'}/{unit}/{leaf}"
    for unit in _UNITS
    for leaf, suffix in _LEAVES.items()
  }
  return sources | {f"{head}.weight": "params/logits/kernel", f"{head}.bias": "params/logits/bias"}


def _head(names: Iterable[str]) -> str:
  return "fc" if "fc.bias" in names else "last_linear"


def to_release(tensors: Tensors) -> Release:
  """pretrained-models.pytorch's `bninception`, of any of its three releases.

  Raises:
    ReleaseError: if these are not its tensors.
  """
  head, names = _head(tensors), labels.sorted_imagenet()
  config = mapping.make_config(
    mapping.num_classes(tensors, f"{head}.bias"),
    names=names,
    model=_MODEL | {"conv_bias": True},
    batch_norm={"epsilon": _EPSILON},
    data=_DATA,
    source="PyTorch state dict of pretrained-models.pytorch's bninception",
    classes=mapping.IMAGENET,
    base_model="Cadene/pretrained-models.pytorch",
    license="bsd-3-clause",
    published="top-1 73.524 %, top-5 91.562 % (stated in its README, not measured here)",
  )
  torch_names = {variable: name for name, variable in _sources(head).items()}
  counters = [name for name in tensors if name in _COUNTERS]
  variables = assemble.assemble(tensors, config, torch_names.__getitem__, assemble.torch_layout, counters)
  for name in counters:
    if tensors[name].size != 1 or tensors[name].dtype.kind != "i":
      raise ReleaseError(f"its {name} should be a single integer, but is {tensors[name].dtype} {tensors[name].shape}")
  layout = tuple(
    TorchTensor(name, tensor.dtype.name, tensor.shape, tensor.item() if name in counters else None)
    for name, tensor in tensors.items()
  )
  return mapping.named(config, variables, names, torch_layout=layout)


def from_release(release: Release) -> Tensors:
  """The state dict of `bninception` with a release's weights.

  What was imported from such a state dict has its names, order, shapes and types again; anything else has those of the
  newest release: vectors [C], `last_linear`, no `num_batches_tracked` (strict loading does without). Biases that a
  network does not have are zeros there, gammas ones.

  Raises:
    ReleaseError: if `bninception` with its preprocessing would not compute the same function; names the settings. The
      sentence lacks the release's name, which the caller puts before it.
  """
  _check_can_hold(release.config)
  flat = flax.traverse_util.flatten_dict(release.variables, sep="/")
  tensors = {}
  for name, variable in _sources(_head([row.name for row in release.torch_layout])).items():
    if variable in flat:
      leaf = np.asarray(flat[variable])
      _, axes = assemble.torch_layout(variable, leaf.shape)
      tensors[name] = np.ascontiguousarray(leaf.transpose(np.argsort(axes)))
    else:
      channels = flat[f"{variable.rsplit('/', 2)[0]}/conv/kernel"].shape[-1]
      tensors[name] = (np.ones if name.endswith(_LEAVES["bn/gamma"]) else np.zeros)(channels, np.float32)
  if not release.torch_layout:
    return tensors
  return {
    row.name: np.full(row.shape, row.count, row.dtype)
    if row.count is not None
    else tensors[row.name].reshape(row.shape).astype(row.dtype)
    for row in release.torch_layout
  }


def can_hold(config: ConfigDict) -> bool:
  """Whether `from_release` makes a state dict of a network with this config."""
  try:
    _check_can_hold(config)
    return True
  except ReleaseError:
    return False


def _check_can_hold(config: ConfigDict) -> None:
  wanted = {
    "model": {"name": "inception", "width": 1.0, "nonlinearity": "relu", "local_response_norm": False, **_MODEL},
    "batch_norm": {"enabled": True, "in_stem": True, "per_activation": (), "epsilon": _EPSILON},
    "data": {"binary": False, **_DATA},
  }
  if config.model.name != "inception":  # Whose other settings are of another kind.
    wanted = {"model": {"name": "inception"}}
  different = [
    f"{part}.{name} is {config[part][name]!r} and not {value!r}"
    for part, settings in wanted.items()
    for name, value in settings.items()
    if name in config[part] and config[part][name] != value
  ]
  if different:
    raise ReleaseError(f"PyTorch's bninception is another network or has another input: {', '.join(different)}")


def check_layout(layout: tuple[TorchTensor, ...], shapes: dict[str, assemble.Shape]) -> None:
  """Checks that a remembered layout is that of a network.

  Args:
    layout: of a release.
    shapes: of its variables, by flat name.

  Raises:
    ReleaseError: if not each of its tensors is there once, in the right size. The sentence lacks the file's name.
  """
  for row in layout:
    if row.dtype not in file.DTYPE_NAMES or not all(type(size) is int and size >= 0 for size in row.shape):
      raise ReleaseError(f"its torch_state_dict has the impossible tensor {row}")
  sources = _sources(_head([row.name for row in layout]))
  sizes = {name: math.prod(shapes.get(variable, (0,))) for name, variable in sources.items()}
  wrong = []
  for row in layout:
    if row.count is None:
      fits = np.dtype(row.dtype).kind == "f" and math.prod(row.shape) == sizes.get(row.name)
    else:
      fits = (
        row.name in _COUNTERS
        and np.dtype(row.dtype).kind == "i"
        and math.prod(row.shape) == 1
        and type(row.count) is int
        and abs(row.count) <= np.iinfo(row.dtype).max
      )
    if not fits:
      wrong.append(row.name)
  names = {row.name for row in layout}
  wrong += sorted(sources.keys() - names)
  if wrong or len(names) != len(layout):
    raise ReleaseError(
      f"its torch_state_dict is not that of its network: {', '.join(map(str, wrong[:3])) or 'a name'} "
      "is wrong or there twice"
    )
