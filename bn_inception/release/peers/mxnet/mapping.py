"""MXNet's Inception-BN: its config, and what it calls its tensors.

Source of every setting: github.com/dmlc/mxnet, example/image-classification/symbols/inception-bn.py, and the file's own
graph.
"""

from bn_inception.release import assemble, labels
from bn_inception.release.assemble import Tensors
from bn_inception.release.peers import mapping
from bn_inception.release.peers.mxnet import graph as graph_reader
from bn_inception.release.peers.mxnet.file import Node
from bn_inception.release.release_type import Release

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


def to_release(tensors: Tensors, nodes: list[Node]) -> Release:
  """MXNet's Inception-BN; its graph says how it pools and normalizes.

  Args:
    tensors: of the .params file.
    nodes: of the -symbol.json.
  """
  graph, names = graph_reader.conventions(nodes), labels.sorted_imagenet()
  config = mapping.make_config(
    mapping.num_classes(tensors, f"arg:{graph.head}_bias"),
    names=names,
    model={"stem": "plain", "pool_proj_4cd": 128} | graph.model,
    batch_norm=graph.batch_norm,
    data={"mean": (123.68, 116.779, 103.939)},
    source="MXNet parameters of Inception-BN",
    classes=mapping.IMAGENET,
    base_model="dmlc/mxnet",
    license="apache-2.0",
    published="top-1 72.5 %, top-5 90.8 % for Inception-BN-0126 (stated in its source, not measured here)",
  )
  stem = _MXNET_STEM_2015 if "arg:conv_conv1_weight" in tensors else _MXNET_STEM

  def source_name(name: str) -> str:
    unit, leaf = mapping.unit_and_leaf(name)
    if not unit:
      return f"arg:{graph.head}_" + {"kernel": "weight", "bias": "bias"}[leaf]
    if unit in stem:
      return _MXNET_LEAVES[leaf].format(stem[unit])
    module, unit = unit.removeprefix("inception_").split("/")
    return _MXNET_LEAVES[leaf].format(f"{module}_{_MXNET_UNITS.get(unit, unit)}")

  # With fix_gamma the stored gamma is not used.
  ignored = [] if config.batch_norm.use_gamma else [name for name in tensors if name.endswith("_gamma")]
  return mapping.named(config, assemble.assemble(tensors, config, source_name, assemble.torch_layout, ignored), names)
