"""What training scripts save beside a PyTorch network, and what wraps it: the network's tensors are found, bit for bit.

The files are pickled here as `torch.save` does it, with stand-ins for PyTorch's classes; the trees are those of the
examples of PyTorch, torchvision and Lightning.
"""

import argparse
import collections
import datetime
import io
import pickle
import struct
import sys
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception.release import ReleaseError
from bn_inception.release.peers.pytorch import file as torch_file

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "bfloat16": "BFloat16Storage"}


@pytest.fixture(name="save", params=["zip", "old"])
def fixture_save(monkeypatch, request):
  """Makes a file, of either container, of a tree in which NumPy arrays stand for tensors."""

  def rebuild():
    pass

  rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
  modules = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
  modules["torch._utils"]._rebuild_tensor_v2 = rebuild
  for name in STORAGES.values():
    setattr(modules["torch"], name, type(name, (), {"__module__": "torch"}))
  for name, module in modules.items():
    monkeypatch.setitem(sys.modules, name, module)

  class Storage:
    def __init__(self, array):
      self.array = array

  class Pickler(pickle.Pickler):
    def __init__(self, stream):
      super().__init__(stream, 2)
      self.arrays = []

    def persistent_id(self, value):
      if not isinstance(value, Storage):
        return None
      self.arrays.append(value.array)
      kind = getattr(modules["torch"], STORAGES[value.array.dtype.name])
      return ("storage", kind, str(len(self.arrays) - 1), "cpu", value.array.size, None)

    def reducer_override(self, value):
      if not isinstance(value, np.ndarray):
        return NotImplemented
      strides = tuple(stride // value.itemsize for stride in value.strides)
      return rebuild, (Storage(value), 0, value.shape, strides, False, collections.OrderedDict())

  def save(tree):
    stream = io.BytesIO()
    pickler = Pickler(stream)
    pickler.dump(tree)
    content = io.BytesIO()
    if request.param == "zip":
      with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x/data.pkl", stream.getvalue())
        for key, array in enumerate(pickler.arrays):
          archive.writestr(f"x/data/{key}", array.tobytes())
      return content.getvalue()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
      content.write(pickle.dumps(part, 2))
    content.write(stream.getvalue() + pickle.dumps(list(map(str, range(len(pickler.arrays)))), 2))
    for array in pickler.arrays:
      content.write(struct.pack("<q", array.size) + array.tobytes())
    return content.getvalue()

  return save


NETWORK = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bn.count": np.array(7, np.int64)}
OPTIMIZER = {
  "state": {0: {"step": np.array(3, np.float32), "exp_avg": np.ones(2, np.float32)}, 1: {}},
  "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}],
}


def named(prefix):
  return collections.OrderedDict((prefix + name, tensor) for name, tensor in NETWORK.items())


@pytest.mark.parametrize(
  "tree",
  [
    {
      "epoch": 90,
      "arch": "bninception",
      "state_dict": named("module."),
      "best_acc1": np.array(73.5, np.float32),
      "optimizer": OPTIMIZER,
      "scheduler": {"base_lrs": [0.1], "_step_count": 3},
    },
    {
      "model": named(""),
      "optimizer": OPTIMIZER,
      "epoch": 3,
      "scaler": {},
      "args": argparse.Namespace(lr=0.1, resume="", sizes=[1, 2]),
    },
    {"model": named(""), "model_ema": {"n_averaged": np.array(5, np.int64)} | named("module.")},
    {"model_state_dict": named(""), "optimizer_state_dict": OPTIMIZER, "loss": np.array(0.3, np.float32)},
    {"epoch": 3, "state_dict": named("model."), "optimizer_states": [OPTIMIZER], "loops": {}, "callbacks": {}},
    {"net": named(""), "acc": np.float64(91.2), "epoch": np.int64(3)},
    {"n_averaged": np.array(5, np.int64)} | named("module."),
    named("_orig_mod."),
    named("module._orig_mod."),
    {"state_dict": {"state_dict": named("")}, "step": -(2**40), "big": 2**70, "best": None, "done": True},
  ],
  ids=[
    "examples/imagenet",
    "torchvision",
    "torchvision with averages",
    "tutorial",
    "Lightning",
    "net",
    "averaged",
    "compiled",
    "compiled and parallel",
    "twice",
  ],
)
def test_the_network_is_found_in_what_training_saves(save, tree):
  read = torch_file.read(save(tree))
  assert list(read) == list(NETWORK)
  for name, tensor in NETWORK.items():
    assert read[name].dtype == tensor.dtype and read[name].tobytes() == tensor.tobytes()


def test_bfloat16_is_widened_exactly(save):
  values = np.array([1, -2.5, 3.1415927, 1e-39, np.inf], np.float32).astype(jnp.bfloat16)
  read = torch_file.read(save({"a": values, "empty": values[:0]}))
  assert read["a"].dtype == np.float32 and read["a"].tobytes() == values.astype(np.float32).tobytes()
  assert read["empty"].dtype == np.float32 and read["empty"].shape == (0,)


@pytest.mark.parametrize(
  "tree, words",
  [
    ({"a": named(""), "b": named("")}, "something else than a state dict"),  # Which of them nobody says.
    ({"state_dict": named(""), "model": named("")}, "something else than a state dict"),
    ({"state_dict": named(""), "when": datetime.date(2020, 1, 1)}, "datetime.date, which no .* state_dict.. alone"),
    ({"state_dict": named(""), "epochs": 1j}, "complex, which no .* executed"),
    (OPTIMIZER, "something else than a state dict"),
  ],
)
def test_what_names_no_one_network_is_refused(save, tree, words):
  with pytest.raises(ReleaseError, match=words):
    torch_file.read(save(tree))


def test_a_dict_that_holds_itself_ends(save):
  tree = {}
  tree["state_dict"] = tree
  with pytest.raises(ReleaseError, match="something else than a state dict"):
    torch_file.read(save(tree))


@pytest.mark.parametrize(
  "program",
  [
    b"cargparse\nNamespace\n)\x81}U\x01xK\x01sb.",
    b"cargparse\nNamespace\n)R}b.",
    b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<tb.",
  ],
)
def test_what_stands_beside_a_network_is_not_made(program):
  """The names are known, and still nothing but None comes of them."""
  assert torch_file._load_pickle(io.BytesIO(b"\x80\x02" + program)) is None  # pylint: disable=protected-access
