"""The released Inception-BN networks: what each is, as a config of this project, and what it calls its tensors.

Their code is the source of every setting:
  PyTorch  github.com/Cadene/pretrained-models.pytorch, pretrainedmodels/models/bninception.py
  TF-slim  github.com/tensorflow/models, research/slim/nets/inception_v2.py
  MXNet    github.com/dmlc/mxnet, example/image-classification/symbols/inception-bn.py, and the file's own graph
  Caffe    github.com/lim0606/caffe-googlenet-bn and github.com/yjxiong/caffe (branch action_recog)
"""

import math
from collections.abc import Iterable
from typing import Any

import flax
import numpy as np

from bn_inception.config_dict import ConfigDict
from bn_inception.models import inception
from bn_inception.release import assemble, labels, mxnet_graph, torch_file
from bn_inception.release.assemble import Tensors
from bn_inception.release.errors import ReleaseError
from bn_inception.release.mxnet_file import Node
from bn_inception.release.released import Release, TorchTensor

# Where Caffe and PyTorch agree, and what follows Caffe.
_CAFFE_BORDERS = {
  "stem": "plain",
  "padding": "symmetric",
  "stem_pool": "ceil",
  "reduction_pool": "ceil",
  "avg_pool_include_pad": True,
}
_IMAGENET = "the 1000 classes of ILSVRC-2012, sorted by WordNet id"


def _config(
  num_classes: int,
  *,
  names: tuple[str, ...],
  model: dict[str, Any],
  batch_norm: dict[str, Any],
  data: dict[str, Any],
  **release: str,
) -> ConfigDict:
  """The base config of the paper's BN network with a peer's settings; `names` are of its own release's classes."""
  from bn_inception.configs import common  # Needs ml_collections, without which a release folder can be read.

  config = common.accelerated("imagenet", factor=1).copy_and_resolve_references()
  config.model.update(model)
  config.batch_norm.update(batch_norm)
  config.data.update({"num_classes": num_classes, "std": (1.0, 1.0, 1.0)} | data)
  if num_classes != len(names):  # What is known of the release is not true of a network made from it.
    release |= {"classes": "the file does not name them", "published": "none, it was fine-tuned to other classes"}
  config.release = ConfigDict({"statistics": "running", **release})
  return config


def _named(config: ConfigDict, variables: dict[str, Any], names: tuple[str, ...], **more: Any) -> Release:
  """The release, with names of its classes if it has as many as the original."""
  return Release(config, variables, names if len(names) == config.data.num_classes else (), **more)


def _classes(tensors: Tensors, bias: str) -> int:
  """The number of classes, which fine-tuned networks choose."""
  if bias not in tensors:
    raise ReleaseError(f"it has no {bias}, so it is not a network that is known here")
  return max(tensors[bias].size, 1)


_STATISTICS = ("bn/mean", "bn/var")


def _split(name: str) -> tuple[str, str]:
  """("inception_3a/1x1", "conv/kernel") of "params/inception_3a/1x1/conv/kernel"; of the logits ("", "kernel")."""
  _, *unit, layer, leaf = name.split("/")
  return ("", leaf) if layer == "logits" else ("/".join(unit), f"{layer}/{leaf}")


# ------------------------------------------------------------------------------------------------------------ PyTorch

_CADENE_STEM = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}
_TORCH_LEAVES = {
  "conv/kernel": ".weight",
  "conv/bias": ".bias",
  "bn/gamma": "_bn.weight",
  "bn/beta": "_bn.bias",
  "bn/mean": "_bn.running_mean",
  "bn/var": "_bn.running_var",
}
_TORCH_MODEL = _CAFFE_BORDERS | {"pool_proj_4cd": 128}
_TORCH_EPSILON = 1e-5
_TORCH_DATA = {"mean": (128.0, 117.0, 104.0), "std": (1.0, 1.0, 1.0), "channel_order": "bgr"}
# In the order of its modules.
_TORCH_UNITS = (
  *_CADENE_STEM,
  *(
    f"inception_{name}/{unit}"
    for name, row in inception.module_table().items()
    for unit in ("1x1", "3x3_reduce", "3x3", "double_3x3_reduce", "double_3x3_1", "double_3x3_2", "pool_proj")
    if row.conv1x1 or unit not in ("1x1", "pool_proj")
  ),
)


def _torch_unit(unit: str) -> str:
  return _CADENE_STEM.get(unit, unit).replace("/", "_")


_TORCH_COUNTERS = frozenset(_torch_unit(unit) + "_bn.num_batches_tracked" for unit in _TORCH_UNITS)


def _torch_sources(head: str) -> dict[str, str]:
  """The variable behind each name of a state dict, in its order."""
  sources = {
    _torch_unit(unit) + suffix: f"{'batch_stats' if leaf in _STATISTICS else 'params'}/{unit}/{leaf}"
    for unit in _TORCH_UNITS
    for leaf, suffix in _TORCH_LEAVES.items()
  }
  return sources | {f"{head}.weight": "params/logits/kernel", f"{head}.bias": "params/logits/bias"}


def _torch_head(names: Iterable[str]) -> str:
  return "fc" if "fc.bias" in names else "last_linear"


def from_torch(tensors: Tensors) -> Release:
  """pretrained-models.pytorch's `bninception`, of any of its three releases.

  Raises:
    ReleaseError: if these are not its tensors, as do the functions below.
  """
  head, names = _torch_head(tensors), labels.sorted_imagenet()
  config = _config(
    _classes(tensors, f"{head}.bias"),
    names=names,
    model=_TORCH_MODEL | {"conv_bias": True},
    batch_norm={"epsilon": _TORCH_EPSILON},
    data=_TORCH_DATA,
    source="PyTorch state dict of pretrained-models.pytorch's bninception",
    classes=_IMAGENET,
    base_model="Cadene/pretrained-models.pytorch",
    license="bsd-3-clause",
    published="top-1 73.524 %, top-5 91.562 % (stated in its README, not measured here)",
  )
  torch_names = {variable: name for name, variable in _torch_sources(head).items()}
  counters = [name for name in tensors if name in _TORCH_COUNTERS]
  variables = assemble.assemble(tensors, config, torch_names.__getitem__, assemble.torch_layout, counters)
  for name in counters:
    if tensors[name].size != 1 or tensors[name].dtype.kind != "i":
      raise ReleaseError(f"its {name} should be a single integer, but is {tensors[name].dtype} {tensors[name].shape}")
  layout = tuple(
    TorchTensor(name, tensor.dtype.name, tensor.shape, tensor.item() if name in counters else None)
    for name, tensor in tensors.items()
  )
  return _named(config, variables, names, torch_layout=layout)


def to_torch(release: Release) -> Tensors:
  """The state dict of `bninception` with a release's weights.

  What was imported from such a state dict has its names, order, shapes and types again; anything else has those of the
  newest release: vectors [C], `last_linear`, no `num_batches_tracked` (strict loading does without). Biases that a
  network does not have are zeros there, gammas ones.

  Raises:
    ReleaseError: if `bninception` with its preprocessing would not compute the same function; names the settings. The
      sentence lacks the release's name, which the caller puts before it.
  """
  _check_torch_can_hold(release.config)
  flat = flax.traverse_util.flatten_dict(release.variables, sep="/")
  tensors = {}
  for name, variable in _torch_sources(_torch_head([row.name for row in release.torch_layout])).items():
    if variable in flat:
      leaf = np.asarray(flat[variable])
      _, axes = assemble.torch_layout(variable, leaf.shape)
      tensors[name] = np.ascontiguousarray(leaf.transpose(np.argsort(axes)))
    else:
      channels = flat[f"{variable.rsplit('/', 2)[0]}/conv/kernel"].shape[-1]
      tensors[name] = (np.ones if name.endswith(_TORCH_LEAVES["bn/gamma"]) else np.zeros)(channels, np.float32)
  if not release.torch_layout:
    return tensors
  return {
    row.name: np.full(row.shape, row.count, row.dtype)
    if row.count is not None
    else tensors[row.name].reshape(row.shape).astype(row.dtype)
    for row in release.torch_layout
  }


def torch_can_hold(config: ConfigDict) -> bool:
  """Whether `to_torch` makes a state dict of a network with this config."""
  try:
    _check_torch_can_hold(config)
    return True
  except ReleaseError:
    return False


def _check_torch_can_hold(config: ConfigDict) -> None:
  wanted = {
    "model": {"name": "inception", "width": 1.0, "nonlinearity": "relu", "local_response_norm": False, **_TORCH_MODEL},
    "batch_norm": {"enabled": True, "in_stem": True, "per_activation": (), "epsilon": _TORCH_EPSILON},
    "data": {"binary": False, **_TORCH_DATA},
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


def check_torch_layout(layout: tuple[TorchTensor, ...], shapes: dict[str, assemble.Shape]) -> None:
  """Checks that a remembered layout is that of a network.

  Args:
    layout: of a release.
    shapes: of its variables, by flat name.

  Raises:
    ReleaseError: if not each of its tensors is there once, in the right size. The sentence lacks the file's name.
  """
  for row in layout:
    if row.dtype not in torch_file.DTYPE_NAMES or not all(type(size) is int and size >= 0 for size in row.shape):
      raise ReleaseError(f"its torch_state_dict has the impossible tensor {row}")
  sources = _torch_sources(_torch_head([row.name for row in layout]))
  sizes = {name: math.prod(shapes.get(variable, (0,))) for name, variable in sources.items()}
  wrong = []
  for row in layout:
    if row.count is None:
      fits = np.dtype(row.dtype).kind == "f" and math.prod(row.shape) == sizes.get(row.name)
    else:
      fits = (
        row.name in _TORCH_COUNTERS
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


# ------------------------------------------------------------------------------------------------------------ TF-slim

_SLIM_MODULES = {
  "3a": "3b",
  "3b": "3c",
  "3c": "4a",
  "4a": "4b",
  "4b": "4c",
  "4c": "4d",
  "4d": "4e",
  "4e": "5a",
  "5a": "5b",
  "5b": "5c",
}
_SLIM_UNITS = {
  "1x1": "Branch_0/Conv2d_0a_1x1",
  "3x3_reduce": "Branch_1/Conv2d_0a_1x1",
  "3x3": "Branch_1/Conv2d_0b_3x3",
  "double_3x3_reduce": "Branch_2/Conv2d_0a_1x1",
  "double_3x3_1": "Branch_2/Conv2d_0b_3x3",
  "double_3x3_2": "Branch_2/Conv2d_0c_3x3",
  "pool_proj": "Branch_3/Conv2d_0b_1x1",
}
_SLIM_REDUCTION_UNITS = {
  "3x3_reduce": "Branch_0/Conv2d_0a_1x1",
  "3x3": "Branch_0/Conv2d_1a_3x3",
  "double_3x3_reduce": "Branch_1/Conv2d_0a_1x1",
  "double_3x3_1": "Branch_1/Conv2d_0b_3x3",
  "double_3x3_2": "Branch_1/Conv2d_1a_3x3",
}
_SLIM_STEM = {"conv1": "Conv2d_1a_7x7", "conv2_reduce": "Conv2d_2b_1x1", "conv2": "Conv2d_2c_3x3"}
_SLIM_LEAVES = {
  "conv/kernel": "weights",
  "conv/bias": "biases",
  "bn/beta": "BatchNorm/beta",
  "bn/mean": "BatchNorm/moving_mean",
  "bn/var": "BatchNorm/moving_variance",
}


def from_tensorflow(tensors: Tensors) -> Release:
  """TF-slim's `inception_v2`; of a training checkpoint the weights themselves, without what its optimizer keeps."""
  names = (labels.BACKGROUND, *labels.sorted_imagenet())
  config = _config(
    _classes(tensors, "InceptionV2/Logits/Conv2d_1c_1x1/biases"),
    names=names,
    model={},
    batch_norm={"epsilon": 1e-3, "use_gamma": False, "in_stem": False},
    data={"mean": (127.5,) * 3, "std": (127.5,) * 3},
    source="TensorFlow checkpoint of TF-slim's inception_v2",
    classes=f"0 is background, then {_IMAGENET}",
    base_model="tensorflow/models",
    license="apache-2.0",
    published="top-1 73.9 %, top-5 91.8 % (stated in its README, not measured here)",
  )

  def source_name(name: str) -> str:
    unit, leaf = _split(name)
    if not unit:
      return "InceptionV2/Logits/Conv2d_1c_1x1/" + {"kernel": "weights", "bias": "biases"}[leaf]
    if unit == "conv1":
      return (
        "InceptionV2/Conv2d_1a_7x7/"
        + {"depthwise/kernel": "depthwise_weights", "conv/kernel": "pointwise_weights", "conv/bias": "biases"}[leaf]
      )
    if unit in _SLIM_STEM:
      return f"InceptionV2/{_SLIM_STEM[unit]}/{_SLIM_LEAVES[leaf]}"
    module, unit = unit.removeprefix("inception_").split("/")
    units = _SLIM_REDUCTION_UNITS if module in ("3c", "4e") else _SLIM_UNITS
    return f"InceptionV2/Mixed_{_SLIM_MODULES[module]}/{units[unit]}/{_SLIM_LEAVES[leaf]}"

  # Slots and moving averages are named after their variable ("NAME/RMSProp", "NAME/ExponentialMovingAverage").
  ignored = [
    name
    for name, tensor in tensors.items()
    if name.rpartition("/")[0] in tensors or (tensor.size == 1 and not name.startswith("InceptionV2/"))
  ]
  return _named(config, assemble.assemble(tensors, config, source_name, assemble.tensorflow_layout, ignored), names)


# -------------------------------------------------------------------------------------------------------------- MXNet

_MXNET_STEM = {"conv1": "1", "conv2_reduce": "2_red", "conv2": "2"}
_MXNET_STEM_2015 = {"conv1": "conv1", "conv2_reduce": "conv2red", "conv2": "conv2"}
_MXNET_UNITS = {"double_3x3_1": "double_3x3_0", "double_3x3_2": "double_3x3_1", "pool_proj": "proj"}
_MXNET_LEAVES = {
  "conv/kernel": "arg:conv_{}_weight",
  "conv/bias": "arg:conv_{}_bias",
  "bn/gamma": "arg:bn_{}_gamma",
  "bn/beta": "arg:bn_{}_beta",
  "bn/mean": "aux:bn_{}_moving_mean",
  "bn/var": "aux:bn_{}_moving_var",
}


def from_mxnet(tensors: Tensors, nodes: list[Node]) -> Release:
  """MXNet's Inception-BN; its graph says how it pools and normalizes.

  Args:
    tensors: of the .params file.
    nodes: of the -symbol.json.
  """
  graph, names = mxnet_graph.conventions(nodes), labels.sorted_imagenet()
  config = _config(
    _classes(tensors, f"arg:{graph.head}_bias"),
    names=names,
    model={"stem": "plain", "pool_proj_4cd": 128} | graph.model,
    batch_norm=graph.batch_norm,
    data={"mean": (123.68, 116.779, 103.939)},
    source="MXNet parameters of Inception-BN",
    classes=_IMAGENET,
    base_model="dmlc/mxnet",
    license="apache-2.0",
    published="top-1 72.5 %, top-5 90.8 % for Inception-BN-0126 (stated in its source, not measured here)",
  )
  stem = _MXNET_STEM_2015 if "arg:conv_conv1_weight" in tensors else _MXNET_STEM

  def source_name(name: str) -> str:
    unit, leaf = _split(name)
    if not unit:
      return f"arg:{graph.head}_" + {"kernel": "weight", "bias": "bias"}[leaf]
    if unit in stem:
      return _MXNET_LEAVES[leaf].format(stem[unit])
    module, unit = unit.removeprefix("inception_").split("/")
    return _MXNET_LEAVES[leaf].format(f"{module}_{_MXNET_UNITS.get(unit, unit)}")

  # With fix_gamma the stored gamma is not used.
  ignored = [] if config.batch_norm.use_gamma else [name for name in tensors if name.endswith("_gamma")]
  return _named(config, assemble.assemble(tensors, config, source_name, assemble.torch_layout, ignored), names)


# -------------------------------------------------------------------------------------------------------------- Caffe

_LIM_UNITS = {"double_3x3_reduce": "double3x3_reduce", "double_3x3_1": "double3x3a", "double_3x3_2": "double3x3b"}
_LIM_LEAVES = {
  "conv/kernel": ":0",
  "bn/gamma": "/bn/sc:0",
  "bn/beta": "/bn/sc:1",
  "bn/mean": "/bn:0",
  "bn/var": "/bn:1",
}
_YJXIONG_LEAVES = {
  "conv/kernel": ":0",
  "conv/bias": ":1",
  "bn/gamma": "_bn:0",
  "bn/beta": "_bn:1",
  "bn/mean": "_bn:2",
  "bn/var": "_bn:3",
}


def from_caffe(tensors: Tensors) -> Release:
  """lim0606's GoogLeNet-BN or yjxiong's BN-Inception, told apart by their BN layers."""
  return _from_lim0606(tensors) if "conv1/7x7_s2/bn:0" in tensors else _from_yjxiong(tensors)


def _from_lim0606(tensors: Tensors) -> Release:
  names = labels.ilsvrc2015()
  config = _config(
    _classes(tensors, "loss3/classifier:1"),
    names=names,
    model=_CAFFE_BORDERS,
    batch_norm={"epsilon": 1e-5},
    # The network's own mean is an image, which is not in the file; this is the mean that Caffe's examples use.
    data={"mean": (123.0, 117.0, 104.0), "channel_order": "bgr"},
    source="Caffe model of lim0606's GoogLeNet-BN",
    base_model="lim0606/caffe-googlenet-bn",
    license="unknown",
    classes="in the order of the ILSVRC-2015 devkit's map_clsloc.txt (its README says `use ILSVRC2015 labels`, which "
    "is taken to mean that)",
    published="top-1 72.05 %, top-5 90.87 % (stated in its README, with its mean image, which the file lacks, and "
    "with BN statistics estimated anew; not measured here)",
  )

  def source_name(name: str) -> str:
    unit, leaf = _split(name)
    if not unit:
      return "loss3/classifier:" + {"kernel": "0", "bias": "1"}[leaf]
    *module, last = unit.split("/")
    return "/".join([*module, _LIM_UNITS.get(last, _CADENE_STEM.get(unit, last))]) + _LIM_LEAVES[leaf]

  ignored = [name for name in tensors if name.startswith(("loss1/", "loss2/"))]
  statistics = _divided_statistics(tensors)
  return _named(config, assemble.assemble(statistics, config, source_name, assemble.torch_layout, ignored), names)


def _divided_statistics(tensors: Tensors) -> Tensors:
  """Caffe keeps sums of decaying weights and, as a third blob, the sum of the weights (batch_norm_layer.cpp)."""
  divided = dict(tensors)
  for name in tensors:
    if not name.endswith("/bn:2"):
      continue
    factor = divided.pop(name)
    if factor.size != 1:
      raise ReleaseError(f"its {name} should be a single number, but has the shape {factor.shape}")
    for number in (0, 1):
      blob = f"{name[:-1]}{number}"
      if blob in tensors:
        scale = np.float32(0) if factor.item() == 0 else np.float32(1) / np.float32(factor.item())
        divided[blob] = tensors[blob] * scale
  return divided


def _from_yjxiong(tensors: Tensors) -> Release:
  head = next((name for name in ("fc", "fc-action") if f"{name}:1" in tensors), "fc")
  names = labels.sorted_imagenet()
  config = _config(
    _classes(tensors, f"{head}:1"),
    names=names,
    model=_CAFFE_BORDERS | {"pool_proj_4cd": 128, "conv_bias": True},
    batch_norm={"epsilon": 1e-5},
    data={"mean": (123.0, 117.0, 104.0), "channel_order": "bgr"},
    source="Caffe model of yjxiong's BN-Inception",
    classes=_IMAGENET,
    base_model="yjxiong/caffe",
    license="unknown",
    published="none is known for this file",
  )

  def source_name(name: str) -> str:
    unit, leaf = _split(name)
    if not unit:
      return f"{head}:" + {"kernel": "0", "bias": "1"}[leaf]
    return _CADENE_STEM.get(unit, unit) + _YJXIONG_LEAVES[leaf]

  return _named(config, assemble.assemble(tensors, config, source_name, assemble.torch_layout), names)
