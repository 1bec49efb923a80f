"""Releases as files of PyTorch."""

import os
import pathlib
from typing import Any

import flax
import numpy as np

from bn_inception import paths
from bn_inception.release import assemble, folder, peers, torch_file
from bn_inception.release.errors import ReleaseError
from bn_inception.release.released import Release

_MODULE_LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}


def write_torch(release: Release, path: str | os.PathLike) -> None:
  """Writes a release as a state dict of pretrained-models.pytorch's `bninception`, see `peers.to_torch`.

  Raises:
    ReleaseError: if that network cannot hold it, there is something in its place already, or it cannot be written.
  """
  path = pathlib.Path(paths.local(path, "--output"))
  folder.check_free(path)
  try:
    content = torch_file.write(peers.to_torch(release))
  except ReleaseError as error:
    raise ReleaseError(f"This network cannot be exported: {error}.") from error
  temporary = path.with_name(f".{path.name}.partial")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.write_file(temporary, content)
    temporary.replace(path)
  except OSError as error:
    raise ReleaseError(f"{path} cannot be written: {error.strerror}.") from error
  finally:
    if path.parent.is_dir():
      temporary.unlink(missing_ok=True)


def torch_module_state(variables: dict[str, Any]) -> dict[str, np.ndarray]:
  """The state dict of `torch_module.Inception` with the weights and statistics of this project's Inception.

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
