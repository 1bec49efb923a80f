"""State dicts for PyTorch: the way back is exact, the file is what PyTorch reads, what it cannot hold is refused."""

import collections
import io
import pickle
import re
import zipfile

import jax
import numpy as np
import pytest

from bn_inception import models, release
from bn_inception.configs import bn_x5
from bn_inception.release.peers.pytorch import file as torch_file, mapping as torch_mapping


def assert_same_state_dict(actual, expected):
  """Key for key, in order, and bit for bit."""
  assert list(actual) == list(expected)
  for name, tensor in expected.items():
    assert actual[name].dtype == tensor.dtype and actual[name].shape == tensor.shape, name
    assert actual[name].tobytes() == tensor.tobytes(), name


# ---------------------------------------------------------------------------------------------------------- round trip


def variants(tensors):
  """The golden state dict in the conventions of all releases, and a few of nobody."""
  tensors = {name: array for name, array in tensors.items() if not name.endswith("num_batches_tracked")}
  tracked = {}
  for name, array in tensors.items():
    tracked[name] = array
    if name.endswith("running_var"):
      tracked[name.replace("running_var", "num_batches_tracked")] = np.array(len(tracked))
  assert len(tracked) == 485
  rows = lambda: {name: array[None] if "_bn." in name else array for name, array in tensors.items()}
  return {
    "without counters": tensors,
    "with counters": tracked,
    "fc": rename_head(tensors),
    "[1, C]": rows(),
    "[1, C] and fc": rename_head(rows()),
    "reversed": dict(reversed(tracked.items())),
    "float16": {name: array.astype(np.float16) for name, array in tensors.items()},
    "counters [1] int32": {
      name: array.astype(np.int32)[None] if name.endswith("tracked") else array for name, array in tracked.items()
    },
    "5 classes": tensors
    | {"last_linear.weight": np.ones((5, 1024), np.float32), "last_linear.bias": np.arange(5, dtype=np.float32)},
  }


def rename_head(tensors):
  return {re.sub("^last_linear", "fc", name): array for name, array in tensors.items()}


@pytest.mark.parametrize(
  "variant",
  [
    "without counters",
    "with counters",
    "fc",
    "[1, C]",
    "[1, C] and fc",
    "reversed",
    "float16",
    "counters [1] int32",
    "5 classes",
  ],
)
def test_state_dict_comes_back_exactly(torch_tensors, variant):
  tensors = variants(torch_tensors)[variant]
  assert_same_state_dict(torch_mapping.from_release(torch_mapping.to_release(tensors)), tensors)


def test_golden_file_comes_back_through_a_release_folder(goldens, torch_tensors, tmp_path):
  release.write(release.read(goldens["torch"].path), tmp_path / "net")
  release.write_torch(release.read(tmp_path / "net"), tmp_path / "out" / "net.pth")
  assert_same_state_dict(torch_file.read((tmp_path / "out" / "net.pth").read_bytes()), torch_tensors)
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["net.pth"]


def test_odd_state_dict_comes_back_through_a_release_folder(torch_tensors, tmp_path):
  tensors = variants(torch_tensors)["reversed"]
  release.write(torch_mapping.to_release(tensors), tmp_path / "net")
  assert_same_state_dict(torch_mapping.from_release(release.read(tmp_path / "net")), tensors)


def test_counter_that_is_no_integer_is_an_error(torch_tensors):
  for value in (np.zeros(2, np.int64), np.float32(1)):
    with pytest.raises(release.ReleaseError, match="conv2_3x3_bn.num_batches_tracked should be a single integer"):
      torch_mapping.to_release(torch_tensors | {"conv2_3x3_bn.num_batches_tracked": np.asarray(value)})


# -------------------------------------------------------------------------------------- networks of this project's own


def exportable_config():
  """The settings that docs/released_networks.md names, on BN-x5 with the fewest pixels."""
  config = bn_x5.get_config("imagenet").copy_and_resolve_references()
  config.model.update(
    stem="plain",
    pool_proj_4cd=128,
    padding="symmetric",
    stem_pool="ceil",
    reduction_pool="ceil",
    avg_pool_include_pad=True,
  )
  config.batch_norm.epsilon = 1e-5
  config.data.update(
    mean=(128.0, 117.0, 104.0), std=(1.0, 1.0, 1.0), channel_order="bgr", image_size=32, eval_resize=32, num_classes=7
  )
  return config


@pytest.fixture(scope="module", params=[True, False], ids=["gamma", "no gamma"])
def own(request):
  """A network without convolution biases, all parameters and statistics random."""
  config = exportable_config()
  config.batch_norm.use_gamma = request.param
  model = models.build(config)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), train=False))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: (
      rng.uniform(0.5, 1, leaf.shape).astype(np.float32)
      * (1 if len(leaf.shape) == 1 else np.sqrt(1 / np.prod(leaf.shape[:-1]), dtype=np.float32))
    ),
    shapes,
  )
  config.release = {"source": "test", "classes": "none", "published": "none", "statistics": "running"}
  return release.Release(config, variables)


def test_own_network_exports_in_the_canonical_form(own, torch_tensors):
  tensors = torch_mapping.from_release(own)
  names = [name for name in torch_tensors if not name.endswith("num_batches_tracked")]
  assert list(tensors) == names and tensors["last_linear.weight"].shape == (7, 1024)
  assert not tensors["inception_5b_1x1.bias"].any()
  gamma = own.variables["params"]["inception_5b"]["1x1"]["bn"].get("gamma", np.ones(352, np.float32))
  np.testing.assert_array_equal(tensors["inception_5b_1x1_bn.weight"], gamma)


def test_own_network_has_the_same_logits_when_it_is_read_back(own, tmp_path):
  release.write_torch(own, tmp_path / "net.pth")
  back = release.read(tmp_path / "net.pth")
  back.config.data.update(image_size=32, eval_resize=32)
  images = np.random.default_rng(1).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
  logits = []
  for one in (own, back):
    model, variables, preprocess = release.build(one)
    logits.append(jax.jit(lambda variables: model.apply(variables, preprocess(images), train=False))(variables))
  assert np.std(logits[0]) > 0
  np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)  # Adding zeros is another program.


@pytest.mark.parametrize(
  "part, changes, words",
  [
    ("model", {"stem": "separable", "padding": "same"}, ["model.stem is 'separable' and not 'plain'", "model.padding"]),
    ("model", {"pool_proj_4cd": 96}, ["model.pool_proj_4cd is 96"]),
    ("model", {"width": 0.5}, ["model.width"]),
    ("model", {"stem_pool": "same", "reduction_pool": "same"}, ["model.stem_pool", "model.reduction_pool"]),
    ("model", {"nonlinearity": "sigmoid"}, ["nonlinearity"]),
    ("model", {"local_response_norm": True}, ["local_resp"]),
    ("model", {"avg_pool_include_pad": False}, ["avg_pool_include_pad"]),
    ("batch_norm", {"epsilon": 1e-3}, ["batch_norm.epsilon is 0.001 and not 1e-05"]),
    ("batch_norm", {"epsilon": 1e-5 + 1e-10}, ["batch_norm.epsilon"]),
    ("batch_norm", {"in_stem": False}, ["in_stem"]),
    ("batch_norm", {"per_activation": ("5b",)}, ["per_activation"]),
    ("batch_norm", {"enabled": False}, ["batch_norm.enabled"]),
    ("data", {"channel_order": "rgb"}, ["channel_order"]),
    ("data", {"mean": (123.0, 117.0, 104.0)}, ["data.mean"]),
    ("data", {"std": (2.0, 2.0, 2.0)}, ["data.std"]),
  ],
)
def test_what_bninception_does_not_compute_is_refused_by_name(tmp_path, part, changes, words):
  config = exportable_config()
  config[part].update(changes)
  with pytest.raises(release.ReleaseError, match="cannot be exported") as error:
    release.FORMATS["bninception"](release.Release(config, {}), tmp_path / "net.pth")
  assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
  assert len(re.findall("and not", str(error.value))) == len(changes) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("peer", ["tensorflow", "mxnet"])
def test_other_peers_networks_are_refused(goldens, tmp_path, peer):
  with pytest.raises(release.ReleaseError, match="model.stem_pool is '(same|floor)' and not 'ceil'"):
    release.FORMATS["bninception"](release.read(goldens[peer].path), tmp_path / "net.pth")


def test_existing_file_is_not_overwritten(tmp_path):
  (tmp_path / "net.pth").write_text("")
  with pytest.raises(release.ReleaseError, match="exists already"):
    release.write_torch(release.Release(exportable_config(), {}), tmp_path / "net.pth")


# ---------------------------------------------------------------------------------------------------------- the file

SMALL = {
  "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
  "a.count": np.array(-7),
  "ü": np.float16([1, 2]),
  "last": np.linspace(0, 1, 5),
  "flag": np.array([[True], [False]]),
}


def test_container_is_the_one_of_torch_save():
  """Read with the standard library's unpickler and zipfile, by the rules of torch/serialization.py."""
  content = torch_file.write(SMALL)
  archive = zipfile.ZipFile(io.BytesIO(content))
  assert archive.testzip() is None
  assert archive.read("archive/version") == b"3\n" and archive.read("archive/byteorder") == b"little"
  dtypes = {
    "FloatStorage": "<f4",
    "LongStorage": "<i8",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "BoolStorage": "|b1",
  }
  storages = []

  class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
      if module == "torch":
        return dtypes[name]
      return {
        "collections.OrderedDict": collections.OrderedDict,
        "torch._utils._rebuild_tensor_v2": lambda *arguments: arguments,
      }[f"{module}.{name}"]

    def persistent_load(self, saved_id):
      kind, dtype, key, place, size = saved_id
      assert kind == "storage" and place == "cpu"
      storages.append(f"archive/data/{key}")
      array = np.frombuffer(archive.read(storages[-1]), dtype)
      assert array.size == size
      return array

  tree = Unpickler(io.BytesIO(archive.read("archive/data.pkl"))).load()
  assert type(tree) is collections.OrderedDict and list(tree) == list(SMALL)
  for name, (storage, offset, shape, strides, requires_grad, hooks) in tree.items():
    assert offset == 0 and requires_grad is False and hooks == collections.OrderedDict()
    assert strides == tuple(step // SMALL[name].itemsize for step in SMALL[name].strides)
    assert_same_state_dict({name: storage.reshape(shape)}, {name: SMALL[name]})
  assert len(set(storages)) == len(SMALL)
  for member in archive.infolist():
    header = content[member.header_offset :]
    lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]  # Of the name and the extra field.
    start = member.header_offset + 30 + sum(lengths)
    assert member.compress_type == zipfile.ZIP_STORED and start % 64 == 0
    assert content[start : start + member.file_size] == archive.read(member)


def test_own_reader_reads_it():
  assert_same_state_dict(torch_file.read(torch_file.write(SMALL)), SMALL)


@pytest.mark.torch
def test_pytorch_reads_it(tmp_path):
  torch = pytest.importorskip("torch", reason="needs PyTorch: make test-optional")
  (tmp_path / "net.pth").write_bytes(torch_file.write(SMALL))
  for options in ({"weights_only": True}, {"weights_only": False}, {"weights_only": True, "mmap": True}):
    state_dict = torch.load(tmp_path / "net.pth", **options)
    assert_same_state_dict({name: tensor.numpy() for name, tensor in state_dict.items()}, SMALL)
