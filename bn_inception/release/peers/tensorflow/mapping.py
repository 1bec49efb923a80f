"""TF-slim's `inception_v2`: its config, and what it calls its tensors.

Source of every setting: github.com/tensorflow/models, research/slim/nets/inception_v2.py.
"""

from bn_inception.release import assemble, labels
from bn_inception.release.assemble import Tensors
from bn_inception.release.peers import mapping
from bn_inception.release.release_type import Release

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


def to_release(tensors: Tensors) -> Release:
  """TF-slim's `inception_v2`; of a training checkpoint the weights themselves, without what its optimizer keeps."""
  names = (labels.BACKGROUND, *labels.sorted_imagenet())
  config = mapping.make_config(
    mapping.num_classes(tensors, "InceptionV2/Logits/Conv2d_1c_1x1/biases"),
    names=names,
    model={},
    batch_norm={"epsilon": 1e-3, "use_gamma": False, "in_stem": False},
    data={"mean": (127.5,) * 3, "std": (127.5,) * 3},
    source="TensorFlow checkpoint of TF-slim's inception_v2",
    classes=f"0 is background, then {mapping.IMAGENET}",
    base_model="tensorflow/models",
    license="apache-2.0",
    published="top-1 73.9 %, top-5 91.8 % (stated in its README, not measured here)",
  )

  def source_name(name: str) -> str:
    unit, leaf = mapping.unit_and_leaf(name)
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
  return mapping.named(
    config, assemble.assemble(tensors, config, source_name, assemble.tensorflow_layout, ignored), names
  )
