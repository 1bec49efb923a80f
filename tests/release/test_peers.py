"""What the peers' files may look like, and what is refused: names, shapes, conventions."""

import json
import lzma
import re

import jax
import numpy as np
import pytest

from bn_inception import config_checks, release
from bn_inception.data.host_tf import tf
from bn_inception.release import source_file
from bn_inception.release.peers.mxnet import file as mxnet_file, graph as mxnet_graph, mapping as mxnet_mapping
from bn_inception.release.peers.pytorch import mapping as torch_mapping
from bn_inception.release.peers.tensorflow import file as tensorflow_file, mapping as tensorflow_mapping


def assert_same(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


# ------------------------------------------------------------------------------------------------------------- PyTorch


@pytest.fixture(scope="module")
def imported(torch_tensors):
  return torch_mapping.to_release(torch_tensors)


def test_every_number_of_the_file_is_in_the_variables(torch_tensors, imported):
  total = lambda arrays: sum(np.sort(np.concatenate([array.ravel() for array in arrays])).astype(np.float64))
  arrays = [array for name, array in torch_tensors.items() if not name.endswith("num_batches_tracked")]
  assert total(jax.tree.leaves(imported.variables)) == total(arrays)


@pytest.mark.parametrize("change", ["[1, C]", "[C]", "fc", "last_linear", "tracked", "not tracked", "float64"])
def test_variants_of_the_file_are_the_same_network(torch_tensors, imported, change):
  tensors = {name: array for name, array in torch_tensors.items() if not name.endswith("num_batches_tracked")}
  if change in ("[1, C]", "[C]"):
    shape = (1, -1) if change == "[1, C]" else (-1,)
    tensors = {name: array.reshape(shape) if "_bn." in name else array for name, array in tensors.items()}
  elif change in ("fc", "last_linear"):
    tensors = {re.sub("^(fc|last_linear)", change, name): array for name, array in tensors.items()}
  elif change == "tracked":
    tensors |= {
      name.replace("running_var", "num_batches_tracked"): np.array(7)
      for name in tensors
      if name.endswith("running_var")
    }
    assert len(tensors) == 485
  elif change == "not tracked":
    assert len(tensors) == 416
  else:
    tensors = {name: array.astype(np.float64) for name, array in tensors.items()}
  assert_same(torch_mapping.to_release(tensors).variables, imported.variables)


def test_number_of_classes_is_that_of_the_file(torch_tensors):
  tensors = torch_tensors | {
    "last_linear.weight": np.zeros((101, 1024), np.float32),
    "last_linear.bias": np.zeros(101, np.float32),
  }
  config = torch_mapping.to_release(tensors).config
  assert config.data.num_classes == 101 and config.release.published.startswith("none")


@pytest.mark.parametrize(
  "change,message",
  [
    ({"inception_3a_1x1.weight": None}, r"lacks inception_3a_1x1.weight,"),
    (
      {f"inception_5b_{unit}.weight": None for unit in ("1x1", "3x3", "3x3_reduce", "pool_proj")},
      r"lacks inception_5b_1x1.weight, .* and 1 more",
    ),
    ({"last_linear.bias": None}, "has no last_linear.bias"),
    ({"features.0.weight": np.zeros(3, np.float32)}, "has unknown features.0.weight,"),
    ({"conv1_7x7_s2.weight": np.zeros((64, 3, 7, 6), np.float32)}, r"wrong shape.* conv1_7x7_s2.weight"),
    ({"conv2_3x3.weight": np.zeros((64, 192, 3, 3), np.float32)}, r"wrong shape.* conv2_3x3.weight .*192, 64, 3, 3"),
    ({"inception_4c_pool_proj.bias": np.zeros(96, np.float32)}, "wrong shape.* inception_4c_pool_proj.bias"),
    ({"conv2_3x3_bn.weight": np.zeros(192, np.int64)}, "wrong shape or type.* conv2_3x3_bn.weight .int64"),
    ({"last_linear.weight": np.zeros((1024, 1000), np.float32)}, "wrong shape.* last_linear.weight"),
    ({"last_linear.bias": np.zeros(999, np.float32)}, "wrong shape.* last_linear.weight"),
    ({"conv2_3x3_bn.bias": np.full(192, np.nan, np.float32)}, r"its conv2_3x3_bn.bias holds .* not finite \(1 of"),
    ({"conv2_3x3.weight": np.full((192, 64, 3, 3), 1e39)}, "its conv2_3x3.weight holds values that are not finite"),
  ],
)
def test_what_is_missing_unknown_or_of_a_wrong_shape_is_named(torch_tensors, change, message):
  tensors = {name: array for name, array in (torch_tensors | change).items() if array is not None}
  with pytest.raises(release.ReleaseError, match=message) as error:
    torch_mapping.to_release(tensors)
  assert "\n" not in str(error.value)


def test_another_architecture_is_refused():
  resnet = {
    "conv1.weight": np.zeros((64, 3, 7, 7), np.float32),
    "bn1.weight": np.zeros(64, np.float32),
    "fc.weight": np.zeros((1000, 512), np.float32),
    "fc.bias": np.zeros(1000, np.float32),
  }
  with pytest.raises(release.ReleaseError, match="lacks .*conv1_7x7_s2.* so it is not the network"):
    torch_mapping.to_release(resnet)


# ---------------------------------------------------------------------------------------------------------- TensorFlow


@pytest.fixture(scope="module")
def slim_tensors(goldens):
  path = goldens["tensorflow"].path
  return tensorflow_file.read(path, source_file.read(path))


def test_slim_network_has_no_gamma_and_no_norm_in_its_stem(slim_tensors):
  config, variables, *_ = tensorflow_mapping.to_release(slim_tensors)
  assert variables["params"]["conv1"].keys() == {"depthwise", "conv"}
  assert variables["params"]["conv2"]["bn"].keys() == {"beta"}
  assert config.data.num_classes == 1001 and config.release.classes.startswith("0 is background")
  assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 11_179_361


def test_depthwise_filters_stay_with_their_channel(slim_tensors):
  variables = tensorflow_mapping.to_release(slim_tensors).variables
  kernel = variables["params"]["conv1"]["depthwise"]["kernel"]
  source = slim_tensors["InceptionV2/Conv2d_1a_7x7/depthwise_weights"]
  for channel in range(3):
    for filter_ in range(8):
      np.testing.assert_array_equal(kernel[:, :, 0, channel * 8 + filter_], source[:, :, channel, filter_])


@pytest.mark.parametrize(
  "change,message",
  [
    ({"InceptionV2/Mixed_5c/Branch_3/Conv2d_0b_1x1/weights": None}, "lacks InceptionV2/Mixed_5c/Branch_3"),
    ({"InceptionV3/Mixed_7a/weights": np.zeros(3, np.float32)}, "unknown InceptionV3/Mixed_7a/weights"),
    ({"InceptionV2/Conv2d_1a_7x7/depthwise_weights": np.zeros((7, 7, 8, 3), np.float32)}, "wrong shape"),
    ({"InceptionV2/Logits/Conv2d_1c_1x1/biases": None}, "has no InceptionV2/Logits"),
  ],
)
def test_slim_file_with_other_tensors_is_refused(slim_tensors, change, message):
  tensors = {name: array for name, array in (slim_tensors | change).items() if array is not None}
  with pytest.raises(release.ReleaseError, match=message):
    tensorflow_mapping.to_release(tensors)


def test_what_an_optimizer_keeps_is_left_out(slim_tensors, tmp_path):
  """A training checkpoint in both containers: each variable has slots and a moving average; beside them are scalars."""
  tensors = dict(slim_tensors)
  rng = np.random.default_rng(0)
  for name in slim_tensors:
    if name.startswith("InceptionV2/") and "moving" not in name:
      tensors |= {
        f"{name}/{slot}": rng.standard_normal(slim_tensors[name].shape, np.float32)
        for slot in ("RMSProp", "RMSProp_1", "ExponentialMovingAverage")
      }
  tensors |= {"global_step": np.int64(7), "beta1_power": np.float32(0.9), "total_loss/avg": np.float32(3)}
  expected = tensorflow_mapping.to_release(slim_tensors)
  assert_same(tensorflow_mapping.to_release(tensors).variables, expected.variables)
  for version in (tf.compat.v1.train.SaverDef.V1, tf.compat.v1.train.SaverDef.V2):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      variables = {name: tf.compat.v1.get_variable(name, initializer=array) for name, array in tensors.items()}
      session.run(tf.compat.v1.global_variables_initializer())
      saver = tf.compat.v1.train.Saver(variables, write_version=version)
      prefix = saver.save(session, str(tmp_path / f"model{version}.ckpt"), write_meta_graph=False)
    assert_same(release.read(prefix).variables, expected.variables)
  with pytest.raises(release.ReleaseError, match="unknown InceptionV2/Conv2d_1a_7x7/BatchNorm/gamma"):
    tensorflow_mapping.to_release(tensors | {"InceptionV2/Conv2d_1a_7x7/BatchNorm/gamma": np.ones(64, np.float32)})


# --------------------------------------------------------------------------------------------------------------- MXNet


@pytest.fixture(scope="module")
def mxnet_tensors(goldens):
  return mxnet_file.read(source_file.read(goldens["mxnet"].path))


@pytest.fixture(params=["-legacy-symbol.json", "random-symbol.json"])
def graph(request, goldens):
  """The JSON of a golden graph, to be changed."""
  return json.loads(next(goldens["mxnet"].path.parent.glob(f"*{request.param}")).read_text())


def settings(graph, operator):
  for node in graph["nodes"]:
    if node["op"] == operator:
      yield node["name"], node.get("param") or node.get("attrs")


def read_graph(graph, tmp_path):
  path = tmp_path / "net-symbol.json"
  path.write_text(json.dumps(graph))
  return mxnet_file.read_symbol(path)


def test_conventions_of_the_release_of_2016(graph, tmp_path):
  found = mxnet_graph.conventions(read_graph(graph, tmp_path))
  assert found.model == {
    "padding": "symmetric",
    "conv_bias": True,
    "stem_pool": "floor",
    "reduction_pool": "floor_pad1",
    "avg_pool_include_pad": True,
  }
  assert found.batch_norm["use_gamma"] and found.batch_norm["epsilon"] == pytest.approx(1e-5 + 1e-10)
  assert found.head == "fc1"


def test_defaults_of_the_operators_hold_where_the_graph_is_silent(graph, tmp_path, mxnet_tensors):
  for _, values in settings(graph, "BatchNorm"):
    values.clear()
  nodes = read_graph(graph, tmp_path)
  assert mxnet_graph.conventions(nodes).batch_norm == {"epsilon": 1e-3, "use_gamma": False}
  imported = mxnet_mapping.to_release(mxnet_tensors, nodes)  # The file has gammas all the same.
  assert imported.variables["params"]["conv1"]["bn"].keys() == {"beta"}
  config_checks.check_config(imported.config, devices=1)


@pytest.mark.parametrize("convention", [{}, {"pooling_convention": "full"}])
def test_older_graph_rounds_up(graph, tmp_path, convention):
  """Without pad in 3c and 4e, maps fit together only if the pools round up."""
  for _, values in settings(graph, "Pooling"):
    if values["stride"] in ("(2,2)", "(2, 2)"):
      values["pad"] = "(0, 0)"
      values.update(convention)
  found = mxnet_graph.conventions(read_graph(graph, tmp_path)).model
  assert (found["stem_pool"], found["reduction_pool"]) == ("ceil", "ceil")


def test_padding_that_is_not_averaged_is_read(graph, tmp_path):
  for _, values in settings(graph, "Pooling"):
    values["count_include_pad"] = "False"
  assert not mxnet_graph.conventions(read_graph(graph, tmp_path)).model["avg_pool_include_pad"]


@pytest.mark.parametrize("true", ["True", "true", "1"])  # All of which MXNet takes.
def test_convolutions_without_bias_are_read(graph, tmp_path, mxnet_tensors, true):
  for _, values in settings(graph, "Convolution"):
    values["no_bias"] = true
  nodes = read_graph(graph, tmp_path)
  with pytest.raises(release.ReleaseError, match="unknown arg:conv_1_bias"):
    mxnet_mapping.to_release(mxnet_tensors, nodes)
  tensors = {name: array for name, array in mxnet_tensors.items() if not re.match("arg:conv_.*_bias", name)}
  assert "bias" not in mxnet_mapping.to_release(tensors, nodes).variables["params"]["conv2"]["conv"]


def test_other_names_of_stem_and_head(graph, tmp_path, mxnet_tensors):
  """2015's stem is called conv_conv1; after 2016-11 the last layer has no name of its own."""
  for node in graph["nodes"]:
    if node["op"] == "FullyConnected":
      node["name"] = "fullyconnected0"
  renamed = {}
  for name, array in mxnet_tensors.items():
    name = name.replace("arg:fc1_", "arg:fullyconnected0_")
    renamed[
      re.sub("(conv|bn)_(1|2_red|2)_(?!red)", lambda match: f"{match[1]}_conv{match[2].replace('_', '')}_", name)
    ] = array
  assert "arg:conv_conv2red_weight" in renamed and "aux:bn_conv2_moving_var" in renamed
  nodes = read_graph(graph, tmp_path)
  original = [node._replace(name="fc1") if node.operator == "FullyConnected" else node for node in nodes]
  assert_same(
    mxnet_mapping.to_release(renamed, nodes).variables, mxnet_mapping.to_release(mxnet_tensors, original).variables
  )


@pytest.mark.parametrize(
  "operator,change,message",
  [
    ("BatchNorm", {"eps": "0.5"}, "different eps"),
    ("BatchNorm", {"fix_gamma": "True"}, "different fix_gamma"),
    ("BatchNorm", {"eps": "__import__('os').getcwd()"}, "different eps"),
    ("Convolution", {"pad": "(0, 0)"}, "conv_1 the kernel"),
    ("Convolution", {"no_bias": "True"}, "different no_bias"),
    ("Pooling", {"pool_type": "avg"}, "pooling pool_1"),
    ("Pooling", {"pad": "(2, 2)"}, "pools with pad"),
    ("Pooling", {"pooling_convention": "same"}, "pools with pad"),
    ("Pooling", {"kernel": "3"}, "pooling pool_1"),
  ],
)
def test_graph_with_other_conventions_is_refused(graph, tmp_path, operator, change, message):
  next(settings(graph, operator))[1].update(change)
  with pytest.raises(release.ReleaseError, match=message):
    mxnet_graph.conventions(read_graph(graph, tmp_path))


@pytest.mark.parametrize(
  "text",
  [
    "",
    "{}",
    "[]",
    '{"nodes": 3}',
    '{"nodes": [{"op": "null"}]}',
    "[" * 10**5,
    '{"nodes": [{"op": "a", "name": "b", "inputs": [[9, 0]]}]}',
    "\xff\xfe",
  ],
)
def test_what_is_no_graph_is_one_sentence(tmp_path, text):
  path = tmp_path / "net-symbol.json"
  path.write_bytes(text.encode("latin1"))
  with pytest.raises(release.ReleaseError, match="net-symbol.json is no graph of MXNet's") as error:
    mxnet_file.read_symbol(path)
  assert "\n" not in str(error.value)


def test_parameters_without_their_graph_are_refused(parity, tmp_path):
  path = tmp_path / "net-0001.params"
  path.write_bytes((parity / "formats/mx_v0.params").read_bytes())
  with pytest.raises(release.ReleaseError, match="net-symbol.json does not exist: put it there, or import .* --symbol"):
    release.read(path)


def test_compressed_graph_is_found_beside_its_parameters(goldens, tmp_path):
  path = goldens["mxnet"].path
  (tmp_path / "net-0126.params.xz").symlink_to(path)
  symbol = next(path.parent.glob("*legacy-symbol.json"))
  (tmp_path / "net-symbol.json.xz").write_bytes(lzma.compress(symbol.read_bytes()))
  assert_same(release.read(tmp_path / "net-0126.params.xz").variables, release.read(path, symbol).variables)
