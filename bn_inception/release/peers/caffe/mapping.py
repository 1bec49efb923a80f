"""The two Caffe networks, lim0606's GoogLeNet-BN and yjxiong's BN-Inception: configs, and what they call their tensors.

Source of every setting: github.com/lim0606/caffe-googlenet-bn and github.com/yjxiong/caffe (branch action_recog).
"""

import numpy as np

from bn_inception.release import assemble, labels
from bn_inception.release.assemble import Tensors
from bn_inception.release.errors import ReleaseError
from bn_inception.release.peers import mapping
from bn_inception.release.release_type import Release

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


def to_release(tensors: Tensors) -> Release:
  """lim0606's GoogLeNet-BN or yjxiong's BN-Inception, told apart by their BN layers."""
  return _from_lim0606(tensors) if "conv1/7x7_s2/bn:0" in tensors else _from_yjxiong(tensors)


def _from_lim0606(tensors: Tensors) -> Release:
  names = labels.ilsvrc2015()
  config = mapping.make_config(
    mapping.num_classes(tensors, "loss3/classifier:1"),
    names=names,
    model=mapping.CAFFE_BORDERS,
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
    unit, leaf = mapping.unit_and_leaf(name)
    if not unit:
      return "loss3/classifier:" + {"kernel": "0", "bias": "1"}[leaf]
    *module, last = unit.split("/")
    return "/".join([*module, _LIM_UNITS.get(last, mapping.CAFFE_STEM.get(unit, last))]) + _LIM_LEAVES[leaf]

  ignored = [name for name in tensors if name.startswith(("loss1/", "loss2/"))]
  statistics = _divided_statistics(tensors)
  return mapping.named(
    config, assemble.assemble(statistics, config, source_name, assemble.torch_layout, ignored), names
  )


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
  config = mapping.make_config(
    mapping.num_classes(tensors, f"{head}:1"),
    names=names,
    model=mapping.CAFFE_BORDERS | {"pool_proj_4cd": 128, "conv_bias": True},
    batch_norm={"epsilon": 1e-5},
    data={"mean": (123.0, 117.0, 104.0), "channel_order": "bgr"},
    source="Caffe model of yjxiong's BN-Inception",
    classes=mapping.IMAGENET,
    base_model="yjxiong/caffe",
    license="unknown",
    published="none is known for this file",
  )

  def source_name(name: str) -> str:
    unit, leaf = mapping.unit_and_leaf(name)
    if not unit:
      return f"{head}:" + {"kernel": "0", "bias": "1"}[leaf]
    return mapping.CAFFE_STEM.get(unit, unit) + _YJXIONG_LEAVES[leaf]

  return mapping.named(config, assemble.assemble(tensors, config, source_name, assemble.torch_layout), names)
