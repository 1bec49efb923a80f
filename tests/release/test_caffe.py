"""Caffe's files, for which there is no golden one: written here by Google's protobuf, computed by OpenCV.

The messages are declared as in caffe.proto and serialised by the protobuf library, which shares no code with the
reader. OpenCV's reader of Caffe files computed the network from a prototxt that is written here layer by layer;
caffe_logits.npz has its logits (caffe_logits.py), since OpenCV 5 cannot read such files any more.
"""

import pathlib
import struct
import zlib

import jax
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bn_inception import config_checks, release
from bn_inception.models import inception
from bn_inception.release.peers.caffe import file as caffe_file, mapping as caffe_mapping
from bn_inception.release.peers.pytorch import mapping as torch_mapping

# Field: number, kind ("message" fields name theirs), repeated.
MESSAGES = {
  "BlobShape": {"dim": (1, "int64", True)},
  "BlobProto": {
    "num": (1, "int32", False),
    "channels": (2, "int32", False),
    "height": (3, "int32", False),
    "width": (4, "int32", False),
    "data": (5, "float", True),
    "diff": (6, "float", True),
    "shape": (7, "BlobShape", False),
    "double_data": (8, "double", True),
  },
  "LayerParameter": {
    "name": (1, "string", False),
    "type": (2, "string", False),
    "bottom": (3, "string", True),
    "top": (4, "string", True),
    "blobs": (7, "BlobProto", True),
    "phase": (10, "int32", False),
  },
  "V1LayerParameter": {
    "bottom": (2, "string", True),
    "top": (3, "string", True),
    "name": (4, "string", False),
    "type": (5, "int32", False),
    "blobs": (6, "BlobProto", True),
  },
  "NetParameter": {
    "name": (1, "string", False),
    "layers": (2, "V1LayerParameter", True),
    "input": (3, "string", True),
    "layer": (100, "LayerParameter", True),
  },
}


@pytest.fixture(scope="module")
def proto():
  return message_classes()


def message_classes():
  """The message classes by name."""
  field_type = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
  for name, fields in MESSAGES.items():
    message = file.message_type.add(name=name)
    for field, (number, kind, repeated) in fields.items():
      declared = message.field.add(name=field, number=number, label=3 if repeated else 1)
      if kind in MESSAGES:
        declared.type, declared.type_name = field_type.TYPE_MESSAGE, f".caffe.{kind}"
      else:
        declared.type = getattr(field_type, f"TYPE_{kind.upper()}")
        declared.options.packed = repeated and kind != "string"
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in MESSAGES}


def write(proto, layers, old=False):
  """A caffemodel of {layer: (type, blobs)}; `old` is the form before 2014-10, with four dimensions a blob."""
  network = proto["NetParameter"](name="test", input=["data"])
  for name, (kind, blobs) in layers.items():
    layer = network.layers.add(name=name, type=4) if old else network.layer.add(name=name, type=kind, phase=1)
    layer.bottom.append("below")
    layer.top.append(name)
    for array in blobs:
      blob = layer.blobs.add(data=array.ravel().tolist())
      if old:
        blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - array.ndim) + array.shape
      else:
        blob.shape.dim.extend(array.shape)
  return network.SerializeToString()


# -------------------------------------------------------------------------------------------------------------- lim0606


class Lim:
  """lim0606's GoogLeNet-BN: the prototxt for inference and random weights, layer by layer."""

  def __init__(self, seed=0):
    self.rng = np.random.default_rng(seed)
    self.layers = {}
    self.text = ['name: "GoogLeNet-BN"', 'input: "data"', *(f"input_dim: {size}" for size in (1, 3, 224, 224))]
    top, channels = self.unit("conv1/7x7_s2", "data", 3, 64, 7, 2)
    top, channels = self.unit("conv2/3x3_reduce", self.pool("pool1", top, "MAX", 2), channels, 64)
    top, channels = self.unit("conv2/3x3", top, channels, 192, 3)
    top = self.pool("pool2", top, "MAX", 2)
    for name, row in inception.module_table(96).items():
      top, channels = self.module(f"inception_{name}", row, top, channels)
    self.layer("mean", "Pooling", [top], "pooling_param { pool: AVE kernel_size: 7 stride: 1 }")
    self.layer(
      "loss3/classifier",
      "InnerProduct",
      ["mean"],
      "inner_product_param { num_output: 1000 }",
      [self.rng.normal(0, 0.05, (1000, channels)), self.rng.normal(0, 0.1, 1000)],
    )

  def layer(self, name, kind, bottoms, parameters="", blobs=(), top=None):
    bottoms = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    self.text.append(f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{top or name}" {parameters} }}')
    if blobs:
      self.layers[name] = (kind, [np.asarray(blob, np.float32) for blob in blobs])
    return top or name

  def unit(self, name, bottom, ins, outs, size=1, stride=1):
    uniform, shape = self.rng.uniform, (outs, ins, size, size)
    self.layer(
      name,
      "Convolution",
      [bottom],
      f"convolution_param {{ num_output: {outs} kernel_size: {size} stride: {stride} pad: {size // 2} "
      "bias_term: false }",
      [self.rng.normal(0, (2 / (ins * size**2)) ** 0.5, shape)],
    )
    factor = uniform(0.5, 900)
    mean, variance = self.rng.normal(0, 0.2, outs), uniform(0.5, 1.5, outs)
    if name == "conv1/7x7_s2":
      variance *= 5000  # Of pixels.
    variance[:2] = 1e-5
    self.layers[name][1][0][:2] *= 0.01
    self.layer(
      f"{name}/bn",
      "BatchNorm",
      [name],
      "batch_norm_param { use_global_stats: true }",
      [mean * factor, variance * factor, [factor]],
    )
    self.layer(
      f"{name}/bn/sc",
      "Scale",
      [f"{name}/bn"],
      "scale_param { bias_term: true }",
      [uniform(0.8, 1.2, outs), self.rng.normal(0, 0.1, outs)],
    )
    return self.layer(f"{name}/relu", "ReLU", [f"{name}/bn/sc"]), outs

  def pool(self, name, bottom, kind, stride):
    pad = 1 if stride == 1 else 0
    return self.layer(
      name, "Pooling", [bottom], f"pooling_param {{ pool: {kind} kernel_size: 3 stride: {stride} pad: {pad} }}"
    )

  def module(self, name, row, bottom, channels):
    stride = 1 if row.conv1x1 else 2
    outs = []
    if row.conv1x1:
      outs.append(self.unit(f"{name}/1x1", bottom, channels, row.conv1x1))
    top, width = self.unit(f"{name}/3x3_reduce", bottom, channels, row.reduce3x3)
    outs.append(self.unit(f"{name}/3x3", top, width, row.conv3x3, 3, stride))
    top, width = self.unit(f"{name}/double3x3_reduce", bottom, channels, row.reduce_double)
    top, width = self.unit(f"{name}/double3x3a", top, width, row.conv_double, 3)
    outs.append(self.unit(f"{name}/double3x3b", top, width, row.conv_double, 3, stride))
    top = self.pool(f"{name}/pool", bottom, {"avg": "AVE", "max": "MAX"}[row.pool], stride)
    outs.append(self.unit(f"{name}/pool_proj", top, channels, row.pool_proj) if row.pool_proj else (top, channels))
    return self.layer(f"{name}/output", "Concat", [out for out, _ in outs]), sum(width for _, width in outs)


@pytest.fixture(scope="module")
def lim():
  return Lim()


@pytest.fixture(scope="module")
def lim_path(lim, proto, tmp_path_factory):
  """As it is trained, with two auxiliary heads."""
  heads = {
    f"loss{number}/{name}": ("InnerProduct", [np.ones((3, 2), np.float32)])
    for number in (1, 2)
    for name in ("conv", "fc", "classifier")
  }
  path = tmp_path_factory.mktemp("caffe") / "net.caffemodel"
  path.write_bytes(write(proto, lim.layers | heads))
  return path


def test_lim0606_has_416_blobs_and_the_counts_of_its_deploy_network(lim, lim_path):
  assert sum(len(blobs) for _, blobs in lim.layers.values()) == 416
  config, variables, *_ = release.read(lim_path)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 11_194_984
  assert config.data.channel_order == "bgr" and config.data.num_classes == 1000
  config_checks.check_config(config, devices=1)


def test_lim0606_statistics_are_divided_by_their_factor(lim, lim_path):
  variables = release.read(lim_path).variables
  mean, variance, factor = lim.layers["inception_4c/double3x3b/bn"][1]
  bn = variables["batch_stats"]["inception_4c"]["double_3x3_2"]["bn"]
  np.testing.assert_allclose(bn["mean"], mean / factor, rtol=1e-6)
  np.testing.assert_allclose(bn["var"], variance / factor, rtol=1e-6)
  gamma, beta = lim.layers["inception_4c/double3x3b/bn/sc"][1]
  assert jax.tree.map(lambda leaf: leaf.tolist(), variables["params"]["inception_4c"]["double_3x3_2"]["bn"]) == {
    "gamma": gamma.tolist(),
    "beta": beta.tolist(),
  }
  kernel = lim.layers["inception_4c/double3x3b"][1][0]
  np.testing.assert_array_equal(
    variables["params"]["inception_4c"]["double_3x3_2"]["conv"]["kernel"], kernel.transpose(2, 3, 1, 0)
  )


def test_factor_0_makes_statistics_0(lim, proto):
  kind, (mean, variance, factor) = lim.layers["conv2/3x3/bn"]
  layers = lim.layers | {"conv2/3x3/bn": (kind, [mean, variance, factor * 0])}
  statistics = caffe_mapping.to_release(caffe_file.read(write(proto, layers))).variables["batch_stats"]["conv2"]["bn"]
  assert not statistics["mean"].any() and not statistics["var"].any()


def noise():
  """Two images, uint8 [2, 224, 224, 3]: a smooth one and one of noise."""
  rng = np.random.default_rng(1)
  smooth = np.kron(rng.integers(0, 256, (7, 7, 3)), np.ones((32, 32, 1)))
  return np.stack([smooth, rng.integers(0, 256, (224, 224, 3))]).astype(np.uint8)


def crc_of(lim):
  crc = 0
  for _, blobs in lim.layers.values():
    for blob in blobs:
      crc = zlib.crc32(np.ascontiguousarray(blob), crc)
  return crc


def test_lim0606_logits_are_those_of_opencv(lim, lim_path):
  golden, images = np.load(pathlib.Path(__file__).with_name("caffe_logits.npz")), noise()
  assert (crc_of(lim), zlib.crc32(images)) == (golden["weights"], golden["images"]), "NumPy makes other numbers"
  expected = golden["logits"]
  model, variables, preprocess = release.load(lim_path)
  with jax.default_matmul_precision("highest"):
    logits = jax.jit(lambda variables, images: model.apply(variables, preprocess(images), train=False))(
      variables, images
    )
  assert np.abs(expected[0] - expected[1]).max() > 1  # The images and not the biases make them.
  assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


# -------------------------------------------------------------------------------------------------------------- yjxiong


def as_yjxiong(tensors):
  """The layers of the file from which the PyTorch network was made, its fork's BN in one layer."""
  stem = {"conv1_7x7_s2": "conv1/7x7_s2", "conv2_3x3_reduce": "conv2/3x3_reduce", "conv2_3x3": "conv2/3x3"}
  layers = {}
  for key in tensors:
    name, _, leaf = key.rpartition(".")
    if leaf != "running_var":
      continue
    torch_name = name.removesuffix("_bn")
    caffe_name = stem.get(torch_name) or torch_name.replace("_", "/", 2).replace("/", "_", 1)
    layers[caffe_name] = ("Convolution", [tensors[f"{torch_name}.{leaf}"] for leaf in ("weight", "bias")])
    layers[f"{caffe_name}_bn"] = (
      "BN",
      [tensors[f"{name}.{leaf}"].reshape(1, -1, 1, 1) for leaf in ("weight", "bias", "running_mean", "running_var")],
    )
  return layers | {"fc": ("InnerProduct", [tensors["last_linear.weight"], tensors["last_linear.bias"]])}


@pytest.mark.parametrize("old", [False, True])
def test_yjxiong_is_the_pytorch_network(torch_tensors, proto, tmp_path, old):
  layers = as_yjxiong(torch_tensors)
  assert "inception_3a/double_3x3_1_bn" in layers and "inception_5b/pool_proj" in layers
  path = tmp_path / "net.caffemodel"
  path.write_bytes(write(proto, layers, old))
  config, variables, *_ = release.read(path)
  expected = torch_mapping.to_release(torch_tensors)
  jax.tree.map(np.testing.assert_array_equal, variables, expected.variables)
  assert config.model == expected.config.model and config.data.mean == (123.0, 117.0, 104.0)


# ----------------------------------------------------------------------------------------------------------- the reader


@pytest.fixture(scope="module")
def small(proto):
  arrays = {"a": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), "b": np.float32([1.5, -0.0, np.inf])}
  return arrays, write(proto, {name: ("Convolution", [array]) for name, array in arrays.items()})


def test_blobs_are_read_bit_for_bit(small):
  arrays, content = small
  blobs = caffe_file.read(content)
  assert blobs.keys() == {"a:0", "b:0"}
  for name, array in arrays.items():
    assert blobs[f"{name}:0"].shape == array.shape and blobs[f"{name}:0"].tobytes() == array.tobytes()


def test_doubles_and_numbers_one_by_one_are_read(proto):
  network = proto["NetParameter"]()
  network.layer.add(name="a").blobs.add(double_data=[1 / 3, 2]).shape.dim.append(2)
  assert caffe_file.read(network.SerializeToString())["a:0"].tolist() == [1 / 3, 2]
  blob = b"\x2d" + struct.pack("<f", 7) + b"\x2d" + struct.pack("<f", 8) + b"\x3a\x02\x08\x02"  # Not packed.
  layer = b"\x0a\x01a\x3a" + bytes([len(blob)]) + blob
  assert caffe_file.read(b"\xa2\x06" + bytes([len(layer)]) + layer)["a:0"].tolist() == [7, 8]


def test_every_truncation_is_an_error_or_whole_layers(small):
  arrays, content = small
  for size in range(len(content)):
    try:
      assert len(caffe_file.read(content[:size])) < len(arrays)
    except release.ReleaseError:
      pass


def test_changed_bytes_never_make_another_exception(small):
  rng = np.random.default_rng(0)
  for _ in range(2000):
    damaged = bytearray(small[1])
    for position in rng.integers(len(damaged), size=2):
      damaged[position] = rng.integers(256)
    try:
      caffe_file.read(bytes(damaged))
    except release.ReleaseError:
      pass


def test_missing_layer_and_other_network_are_named(lim, proto, small):
  layers = dict(lim.layers)
  del layers["inception_4e/3x3/bn/sc"]
  with pytest.raises(release.ReleaseError, match="lacks inception_4e/3x3/bn/sc:[01], inception_4e/3x3/bn/sc:[01], so"):
    caffe_mapping.to_release(caffe_file.read(write(proto, layers)))
  with pytest.raises(release.ReleaseError, match="has no fc:1"):
    caffe_mapping.to_release(caffe_file.read(small[1]))
