"""What the mappings of all peers share: how a config is made, and how our variables' names divide."""

from typing import Any

from bn_inception.config_dict import ConfigDict
from bn_inception.release.assemble import Tensors
from bn_inception.release.errors import ReleaseError
from bn_inception.release.release_type import Release

# Where Caffe and PyTorch agree, and what follows Caffe.
CAFFE_BORDERS = {
  "stem": "plain",
  "padding": "symmetric",
  "stem_pool": "ceil",
  "reduction_pool": "ceil",
  "avg_pool_include_pad": True,
}
# The layers of the stem, as Caffe and PyTorch call them.
CAFFE_STEM = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}
STATISTICS = ("bn/mean", "bn/var")  # Leaves that are no parameters.
IMAGENET = "the 1000 classes of ILSVRC-2012, sorted by WordNet id"


def make_config(
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


def named(config: ConfigDict, variables: dict[str, Any], names: tuple[str, ...], **more: Any) -> Release:
  """The release, with names of its classes if it has as many as the original."""
  return Release(config, variables, names if len(names) == config.data.num_classes else (), **more)


def num_classes(tensors: Tensors, bias: str) -> int:
  """The number of classes, which fine-tuned networks choose."""
  if bias not in tensors:
    raise ReleaseError(f"it has no {bias}, so it is not a network that is known here")
  return max(tensors[bias].size, 1)


def unit_and_leaf(name: str) -> tuple[str, str]:
  """("inception_3a/1x1", "conv/kernel") of "params/inception_3a/1x1/conv/kernel"; of the logits ("", "kernel")."""
  _, *unit, layer, leaf = name.split("/")
  return ("", leaf) if layer == "logits" else ("/".join(unit), f"{layer}/{leaf}")
