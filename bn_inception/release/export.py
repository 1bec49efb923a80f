"""Releases as files of other frameworks: PyTorch, StableHLO, TensorFlow's SavedModel, ONNX.

StableHLO, SavedModel and ONNX hold the whole way from pixels to logits: uint8 [B, H, W, C] with any B in, float32
[B, num_classes] out. A state dict of PyTorch is weights alone.
"""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import flax
import jax
import numpy as np

from bn_inception.config_dict import ConfigDict
from bn_inception.release import assemble, folder, loading
from bn_inception.release.errors import ReleaseError
from bn_inception.release.peers.pytorch import file as torch_file, mapping as bninception
from bn_inception.release.release_type import Release

_MODULE_LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
_TORCH_MODULE = pathlib.Path(__file__).with_name("torch_module.py")
_PLATFORMS = ("cpu", "cuda", "tpu")


def write_bninception(release: Release, path: str | os.PathLike) -> None:
  """Writes a release as a state dict of pretrained-models.pytorch's `bninception` (peers/pytorch/mapping.py).

  Raises:
    ReleaseError: if that network cannot hold it, there is something in its place already, or it cannot be written.
  """
  path = folder.check_free(path)
  try:
    tensors = bninception.from_release(release)
  except ReleaseError as error:
    raise ReleaseError(f"This network cannot be exported: {error}.") from error
  _write_files({path: torch_file.write(tensors)})


def write_torch(release: Release, path: str | os.PathLike) -> None:
  """Writes a release for PyTorch.

  A network that `bninception` holds is a state dict of that, see `write_bninception`. Any other one is three files:
  `path`, a state dict; the config beside it, with the ending .json; and torch_module.py, which makes the module of the
  config and needs PyTorch alone.

  Raises:
    ReleaseError: if there is something in the place of a file already, or it cannot be written.
  """
  if bninception.can_hold(release.config):
    write_bninception(release, path)
    return
  path = folder.check_free(path)
  module = path.with_name(_TORCH_MODULE.name)
  files = {
    path: torch_file.write(torch_module_state(release.variables)),
    path.with_suffix(".json"): _torch_config(release.config),
    module: _TORCH_MODULE.read_bytes(),
  }
  if module.is_file() and module.read_bytes() == files[module]:  # Of another export.
    del files[module]
  for file in files:
    folder.check_free(file)
  _write_files(files)


def write_stablehlo(release: Release, path: str | os.PathLike) -> None:
  """Writes a release as StableHLO for CPU, CUDA and TPU: `jax.export.deserialize(content).call(images)` are logits.

  Raises:
    ReleaseError: if there is something in its place already, or it cannot be written.
  """
  import jax.export  # Loaded by nothing else.

  path = folder.check_free(path)
  logits, variables, shape = _logits(release)
  images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"batch, {', '.join(map(str, shape))}"), np.uint8)
  exported = jax.export.export(jax.jit(lambda images: logits(variables, images)), platforms=_PLATFORMS)(images)
  _write_files({path: exported.serialize()})


def write_savedmodel(release: Release, path: str | os.PathLike) -> None:
  """Writes a release as a SavedModel: its signature `serving_default` takes `images` and returns `logits`.

  Raises:
    ReleaseError: if there is something in its place already, or it cannot be written.
  """
  from jax.experimental import jax2tf

  from bn_inception.data.host_tf import tf

  path = folder.check_free(path)
  logits, variables, shape = _logits(release)
  converted = jax2tf.convert(
    logits,
    polymorphic_shapes=[None, f"(batch, {', '.join(map(str, shape))})"],
    with_gradient=False,
    native_serialization_platforms=_PLATFORMS,
  )
  module = tf.Module()
  module.network = tf.nest.map_structure(tf.Variable, variables)
  module.serve = tf.function(
    lambda images: {"logits": converted(module.network, images)},
    autograph=False,
    input_signature=[tf.TensorSpec((None, *shape), tf.uint8, "images")],
  )
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    tf.saved_model.save(module, str(temporary), signatures={"serving_default": module.serve})
    temporary.chmod(0o755)  # mkdtemp lets only its owner read.
    temporary.replace(path)
  except OSError as error:
    raise ReleaseError(f"{path} cannot be written: {error.strerror}.") from error
  finally:
    if temporary is not None and temporary.exists():
      shutil.rmtree(temporary)


def write_onnx(release: Release, path: str | os.PathLike) -> None:
  """Writes a release as ONNX, from torch_module.py's network: `images` to `logits`.

  Raises:
    ReleaseError: if there is something in its place already, it cannot be written, or packages are missing.
  """
  path = folder.check_free(path)
  try:
    import onnx  # noqa: F401  (torch.onnx needs both, and says so late)
    import onnxscript  # noqa: F401
    import torch

    from bn_inception.release import torch_module
  except ModuleNotFoundError as error:
    raise ReleaseError(f"ONNX needs packages that are not installed ({error}): pip install -e '.[onnx]'.") from error
  config = json.loads(_torch_config(release.config))

  class Network(torch.nn.Module):
    """From pixels to logits."""

    def __init__(self):
      super().__init__()
      self.network = torch_module.build(config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
      return self.network(torch_module.preprocess(config, images.permute(0, 3, 1, 2)))

  network = Network().eval()
  state = {name: torch.from_numpy(array) for name, array in torch_module_state(release.variables).items()}
  network.network.load_state_dict(state)
  images = torch.zeros((2, *_image_shape(release.config)), dtype=torch.uint8)
  program = torch.onnx.export(
    network,
    (images,),
    input_names=["images"],
    output_names=["logits"],
    dynamo=True,
    dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
    verbose=False,
  )
  _write_files({path: program.model_proto.SerializeToString()})


FORMATS: dict[str, Callable[[Release, str | os.PathLike], None]] = {
  "release": folder.write,
  "torch": write_torch,
  "bninception": write_bninception,
  "stablehlo": write_stablehlo,
  "savedmodel": write_savedmodel,
  "onnx": write_onnx,
}


def _image_shape(config: ConfigDict) -> tuple[int, int, int]:
  return config.data.image_size, config.data.image_size, len(config.data.mean)


def _logits(release: Release) -> tuple[Callable[[Any, jax.Array], jax.Array], Any, tuple[int, int, int]]:
  """(function of variables and images, variables, shape of an image)."""
  model, variables, preprocess = loading.build(release)

  def logits(variables: Any, images: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # Float32 is what it says, on accelerators too.
      return model.apply(variables, preprocess(images), train=False)

  return logits, jax.tree.map(np.asarray, variables), _image_shape(release.config)


def _torch_config(config: ConfigDict) -> bytes:
  """What torch_module.py reads: the config without its auxiliary heads, whose weights no release has."""
  tree = json.loads(config.to_json())
  tree["data"]["dir"] = ""
  if "auxiliary_heads" in tree["model"]:
    tree["model"]["auxiliary_heads"] = []
  return (json.dumps(tree, indent=2) + "\n").encode()


def _write_files(files: dict[pathlib.Path, bytes]) -> None:
  """Writes files whole or not at all; they are there when the first of them is."""
  temporary = {path: path.with_name(f".{path.name}.partial") for path in files}
  try:
    for path, content in files.items():
      path.parent.mkdir(parents=True, exist_ok=True)
      folder.write_file(temporary[path], content)
    for path in reversed(files):
      temporary[path].replace(path)
  except OSError as error:
    raise ReleaseError(f"{path} cannot be written: {error.strerror}.") from error
  finally:
    for path in temporary.values():
      if path.parent.is_dir():
        path.unlink(missing_ok=True)


def torch_module_state(variables: dict[str, Any]) -> dict[str, np.ndarray]:
  """The state dict of torch_module.py's network with the weights and statistics of one of this project's networks.

  Args:
    variables: {"params", "batch_stats"} of a network of the same config, without `batch_stats` where it has no BN.

  Returns:
    Arrays by name, all that strict loading asks for; float32 but for the `num_batches_tracked`, which nothing depends
    on and which are 0. Gammas that the network does not have are ones.
  """
  tensors = {}
  for name, leaf in flax.traverse_util.flatten_dict(variables, sep="/").items():
    _, *modules, leaf_name = name.split("/")
    # "inception_3a" is "inception.3a" there, a module of a dictionary.
    group, _, module = modules[0].partition("_")
    if group in ("inception", "auxiliary"):
      modules[:1] = [group, module]
    tensors[".".join([*modules, _MODULE_LEAVES.get(leaf_name, leaf_name)])] = _torch_order(name, np.asarray(leaf))
    if leaf_name == "mean":
      tensors[".".join([*modules, "num_batches_tracked"])] = np.zeros((), np.int64)
      tensors.setdefault(".".join([*modules, "weight"]), np.ones(leaf.size, np.float32))
  return tensors


def _torch_order(name: str, leaf: np.ndarray) -> np.ndarray:
  if leaf.ndim == 3:  # Of BN per activation, [height, width, channels].
    return np.ascontiguousarray(leaf.transpose(2, 0, 1)).reshape(-1)
  _, axes = assemble.torch_layout(name, leaf.shape)
  return np.ascontiguousarray(leaf.transpose(np.argsort(axes)))
