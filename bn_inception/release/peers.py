"""The released Inception-BN networks: what each is, as a config of this project, and what it calls its tensors.

Their code is the source of every setting:
  PyTorch  github.com/Cadene/pretrained-models.pytorch, pretrainedmodels/models/bninception.py
  TF-slim  github.com/tensorflow/models, research/slim/nets/inception_v2.py
  MXNet    github.com/dmlc/mxnet, example/image-classification/symbols/inception-bn.py, and the file's own graph
  Caffe    github.com/lim0606/caffe-googlenet-bn and github.com/yjxiong/caffe (branch action_recog)
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from bn_inception.release import assemble, mxnet_graph
from bn_inception.release.assemble import Tensors
from bn_inception.release.errors import ReleaseError
from bn_inception.release.mxnet_file import Node
from configs import common


class Release(NamedTuple):
  """A network that can be evaluated.

  Attributes:
    config: in the shape of configs/common.py, and `release` with where it comes from.
    variables: {"params", "batch_stats"}, nested, float32 arrays.
  """

  config: ConfigDict
  variables: dict[str, Any]


# Where Caffe and PyTorch agree, and what follows Caffe.
_CAFFE_BORDERS = {"stem": "plain", "padding": "symmetric", "stem_pool": "ceil", "reduction_pool": "ceil",
                  "avg_pool_include_pad": True}
_IMAGENET = "the 1000 classes of ILSVRC-2012, sorted by WordNet id"


def _config(num_classes: int, *, model: dict[str, Any], batch_norm: dict[str, Any], data: dict[str, Any],
            **release: str) -> ConfigDict:
  """The base config of the paper's BN network with a peer's settings."""
  config = common.accelerated("imagenet", factor=1).copy_and_resolve_references()
  config.model.update(model)
  config.batch_norm.update(batch_norm)
  config.data.update({"num_classes": num_classes, "std": (1.0, 1.0, 1.0)} | data)
  if num_classes not in (1000, 1001):  # What is known of the release is not true of a network made from it.
    release |= {"classes": "the file does not name them", "published": "none, it was fine-tuned to other classes"}
  config.release = ConfigDict({"statistics": "running", **release})
  return config


def _classes(tensors: Tensors, bias: str) -> int:
  """The number of classes, which fine-tuned networks choose."""
  if bias not in tensors:
    raise ReleaseError(f"it has no {bias}, so it is not a network that is known here")
  return max(tensors[bias].size, 1)


def _split(name: str) -> tuple[str, str]:
  """("inception_3a/1x1", "conv/kernel") of "params/inception_3a/1x1/conv/kernel"; of the logits ("", "kernel")."""
  _, *unit, layer, leaf = name.split("/")
  return ("", leaf) if layer == "logits" else ("/".join(unit), f"{layer}/{leaf}")


# ------------------------------------------------------------------------------------------------------------ PyTorch

_CADENE_STEM = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}
_TORCH_LEAVES = {"conv/kernel": ".weight", "conv/bias": ".bias", "bn/gamma": "_bn.weight", "bn/beta": "_bn.bias",
                 "bn/mean": "_bn.running_mean", "bn/var": "_bn.running_var"}


def from_torch(tensors: Tensors) -> Release:
  """pretrained-models.pytorch's `bninception`, of any of its three releases.

  Raises:
    ReleaseError: if these are not its tensors, as do the functions below.
  """
  head = "fc" if "fc.bias" in tensors else "last_linear"
  config = _config(
      _classes(tensors, f"{head}.bias"),
      model=_CAFFE_BORDERS | {"pool_proj_4cd": 128, "conv_bias": True}, batch_norm={"epsilon": 1e-5},
      data={"mean": (128.0, 117.0, 104.0), "channel_order": "bgr"},
      source="PyTorch state dict of pretrained-models.pytorch's bninception", classes=_IMAGENET,
      published="top-1 73.524 %, top-5 91.562 % (stated in its README, not measured here)")

  def source_name(name: str) -> str:
    unit, leaf = _split(name)
    if not unit:
      return head + {"kernel": ".weight", "bias": ".bias"}[leaf]
    return _CADENE_STEM.get(unit, unit).replace("/", "_") + _TORCH_LEAVES[leaf]

  ignored = [name for name in tensors if name.endswith("_bn.num_batches_tracked")]
  return Release(config, assemble.assemble(tensors, config, source_name, assemble.torch_layout, ignored))


# ------------------------------------------------------------------------------------------------------------ TF-slim

_SLIM_MODULES = {"3a": "3b", "3b": "3c", "3c": "4a", "4a": "4b", "4b": "4c", "4c": "4d", "4d": "4e", "4e": "5a",
                 "5a": "5b", "5b": "5c"}
_SLIM_UNITS = {"1x1": "Branch_0/Conv2d_0a_1x1", "3x3_reduce": "Branch_1/Conv2d_0a_1x1", "3x3": "Branch_1/Conv2d_0b_3x3",
               "double_3x3_reduce": "Branch_2/Conv2d_0a_1x1", "double_3x3_1": "Branch_2/Conv2d_0b_3x3",
               "double_3x3_2": "Branch_2/Conv2d_0c_3x3", "pool_proj": "Branch_3/Conv2d_0b_1x1"}
_SLIM_REDUCTION_UNITS = {"3x3_reduce": "Branch_0/Conv2d_0a_1x1", "3x3": "Branch_0/Conv2d_1a_3x3",
                         "double_3x3_reduce": "Branch_1/Conv2d_0a_1x1", "double_3x3_1": "Branch_1/Conv2d_0b_3x3",
                         "double_3x3_2": "Branch_1/Conv2d_1a_3x3"}
_SLIM_STEM = {"conv1": "Conv2d_1a_7x7", "conv2_reduce": "Conv2d_2b_1x1", "conv2": "Conv2d_2c_3x3"}
_SLIM_LEAVES = {"conv/kernel": "weights", "conv/bias": "biases", "bn/beta": "BatchNorm/beta",
                "bn/mean": "BatchNorm/moving_mean", "bn/var": "BatchNorm/moving_variance"}


def from_tensorflow(tensors: Tensors) -> Release:
  """TF-slim's `inception_v2`."""
  config = _config(
      _classes(tensors, "InceptionV2/Logits/Conv2d_1c_1x1/biases"),
      model={}, batch_norm={"epsilon": 1e-3, "use_gamma": False, "in_stem": False},
      data={"mean": (127.5,) * 3, "std": (127.5,) * 3},
      source="TensorFlow checkpoint of TF-slim's inception_v2", classes=f"0 is background, then {_IMAGENET}",
      published="top-1 73.9 %, top-5 91.8 % (recalled from its README, not checked or measured here)")

  def source_name(name: str) -> str:
    unit, leaf = _split(name)
    if not unit:
      return "InceptionV2/Logits/Conv2d_1c_1x1/" + {"kernel": "weights", "bias": "biases"}[leaf]
    if unit == "conv1":
      return "InceptionV2/Conv2d_1a_7x7/" + {"depthwise/kernel": "depthwise_weights",
                                             "conv/kernel": "pointwise_weights", "conv/bias": "biases"}[leaf]
    if unit in _SLIM_STEM:
      return f"InceptionV2/{_SLIM_STEM[unit]}/{_SLIM_LEAVES[leaf]}"
    module, unit = unit.removeprefix("inception_").split("/")
    units = _SLIM_REDUCTION_UNITS if module in ("3c", "4e") else _SLIM_UNITS
    return f"InceptionV2/Mixed_{_SLIM_MODULES[module]}/{units[unit]}/{_SLIM_LEAVES[leaf]}"

  return Release(config, assemble.assemble(tensors, config, source_name, assemble.tensorflow_layout, ("global_step",)))


# -------------------------------------------------------------------------------------------------------------- MXNet

_MXNET_STEM = {"conv1": "1", "conv2_reduce": "2_red", "conv2": "2"}
_MXNET_STEM_2015 = {"conv1": "conv1", "conv2_reduce": "conv2red", "conv2": "conv2"}
_MXNET_UNITS = {"double_3x3_1": "double_3x3_0", "double_3x3_2": "double_3x3_1", "pool_proj": "proj"}
_MXNET_LEAVES = {"conv/kernel": "arg:conv_{}_weight", "conv/bias": "arg:conv_{}_bias", "bn/gamma": "arg:bn_{}_gamma",
                 "bn/beta": "arg:bn_{}_beta", "bn/mean": "aux:bn_{}_moving_mean", "bn/var": "aux:bn_{}_moving_var"}


def from_mxnet(tensors: Tensors, nodes: list[Node]) -> Release:
  """MXNet's Inception-BN; its graph says how it pools and normalizes.

  Args:
    tensors: of the .params file.
    nodes: of the -symbol.json.
  """
  graph = mxnet_graph.conventions(nodes)
  config = _config(
      _classes(tensors, f"arg:{graph.head}_bias"), model={"stem": "plain", "pool_proj_4cd": 128} | graph.model,
      batch_norm=graph.batch_norm, data={"mean": (123.68, 116.779, 103.939)},
      source="MXNet parameters of Inception-BN", classes=_IMAGENET,
      published="top-1 72.5 %, top-5 90.8 % for Inception-BN-0126 (stated in its source, not measured here)")
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
  return Release(config, assemble.assemble(tensors, config, source_name, assemble.torch_layout, ignored))


# -------------------------------------------------------------------------------------------------------------- Caffe

_LIM_UNITS = {"double_3x3_reduce": "double3x3_reduce", "double_3x3_1": "double3x3a", "double_3x3_2": "double3x3b"}
_LIM_LEAVES = {"conv/kernel": ":0", "bn/gamma": "/bn/sc:0", "bn/beta": "/bn/sc:1", "bn/mean": "/bn:0",
               "bn/var": "/bn:1"}
_YJXIONG_LEAVES = {"conv/kernel": ":0", "conv/bias": ":1", "bn/gamma": "_bn:0", "bn/beta": "_bn:1", "bn/mean": "_bn:2",
                   "bn/var": "_bn:3"}


def from_caffe(tensors: Tensors) -> Release:
  """lim0606's GoogLeNet-BN or yjxiong's BN-Inception, told apart by their BN layers."""
  return _from_lim0606(tensors) if "conv1/7x7_s2/bn:0" in tensors else _from_yjxiong(tensors)


def _from_lim0606(tensors: Tensors) -> Release:
  config = _config(
      _classes(tensors, "loss3/classifier:1"), model=_CAFFE_BORDERS, batch_norm={"epsilon": 1e-5},
      # The network's own mean is an image, which is not in the file; this is the mean that Caffe's examples use.
      data={"mean": (123.0, 117.0, 104.0), "channel_order": "bgr"},
      source="Caffe model of lim0606's GoogLeNet-BN", classes="the 1000 classes of ILSVRC-2015, in that order",
      published="top-1 72.05 %, top-5 90.87 % (stated in its README, with its mean image, which the file lacks, and "
                "with BN statistics estimated anew; not measured here)")

  def source_name(name: str) -> str:
    unit, leaf = _split(name)
    if not unit:
      return "loss3/classifier:" + {"kernel": "0", "bias": "1"}[leaf]
    *module, last = unit.split("/")
    return "/".join([*module, _LIM_UNITS.get(last, _CADENE_STEM.get(unit, last))]) + _LIM_LEAVES[leaf]

  ignored = [name for name in tensors if name.startswith(("loss1/", "loss2/"))]
  statistics = _divided_statistics(tensors)
  return Release(config, assemble.assemble(statistics, config, source_name, assemble.torch_layout, ignored))


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
  config = _config(
      _classes(tensors, f"{head}:1"), model=_CAFFE_BORDERS | {"pool_proj_4cd": 128, "conv_bias": True},
      batch_norm={"epsilon": 1e-5}, data={"mean": (123.0, 117.0, 104.0), "channel_order": "bgr"},
      source="Caffe model of yjxiong's BN-Inception", classes=_IMAGENET,
      published="none is known for this file")

  def source_name(name: str) -> str:
    unit, leaf = _split(name)
    if not unit:
      return f"{head}:" + {"kernel": "0", "bias": "1"}[leaf]
    return _CADENE_STEM.get(unit, unit) + _YJXIONG_LEAVES[leaf]

  return Release(config, assemble.assemble(tensors, config, source_name, assemble.torch_layout))
