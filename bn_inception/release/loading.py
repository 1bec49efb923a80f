"""Recognises what a path holds and loads it: a release folder, a run directory or the file of any peer."""

from collections.abc import Callable
import functools
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_inception import models, paths, step
from bn_inception.release import caffe_file, folder, mxnet_file, peers, run, source_file, tensorflow_file, torch_file
from bn_inception.release.errors import ReleaseError
from bn_inception.release.released import Release


def read(path: str | os.PathLike, symbol: str | os.PathLike | None = None) -> Release:
  """Reads a release folder, a run directory or a peer's file, recognised by its content.

  Args:
    path: a release folder; a run directory (its newest checkpoint, with running statistics); a PyTorch state dict, a
      TensorFlow checkpoint (V1, or any file of V2, or their common name), a .params of MXNet, a .caffemodel. Each
      single file may be compressed as .xz.
    symbol: the -symbol.json of a .params file; by default the one of its name beside it.

  Raises:
    ReleaseError: if it cannot be used, in one sentence; for a run directory also what `from_run` raises.
  """
  path = pathlib.Path(paths.local(path, "A checkpoint"))
  if folder.is_folder(path):
    return folder.read(path)
  if run.is_run(path):
    return run.from_run(path)
  if path.is_dir():
    raise ReleaseError(f"{path} is a folder, but no release, it lacks model.safetensors or config.json, and no run "
                       "directory either.")
  path = tensorflow_file.index_of(path)
  content = source_file.read(path)
  nodes = []
  if mxnet_file.recognises(content):
    nodes = mxnet_file.read_symbol(
        pathlib.Path(paths.local(symbol, "--symbol")) if symbol else mxnet_file.symbol_beside(path))
  try:
    return _from_content(path, content, nodes)
  except ReleaseError as error:
    raise ReleaseError(f"{path} cannot be used: {error}.") from error


def _from_content(path: pathlib.Path, content: bytes, nodes: list[mxnet_file.Node]) -> Release:
  if torch_file.recognises(content):
    return peers.from_torch(torch_file.read(content))
  if mxnet_file.recognises(content):
    return peers.from_mxnet(mxnet_file.read(content), nodes)
  if tensorflow_file.recognises(content):
    return peers.from_tensorflow(tensorflow_file.read(path, content))
  if caffe_file.recognises(content):
    return peers.from_caffe(caffe_file.read(content))
  archive = ", but a gzip archive: unpack it and give the file inside" if content.startswith(b"\x1f\x8b") else ""
  raise ReleaseError(f"it is none of the formats that are known, PyTorch, TensorFlow, MXNet, Caffe{archive}")


def load(path: str | os.PathLike, symbol: str | os.PathLike | None = None, *,
         folded: bool = False) -> tuple[nn.Module, dict[str, Any], Callable[[jax.Array], jax.Array]]:
  """Loads a network, ready for evaluation.

  Args:
    path, symbol: as in `read`.
    folded: BN folded into the convolutions before it: the same logits to float32 rounding, in less time.

  Returns:
    (model, variables, preprocess): `model.apply(variables, preprocess(images), train=False)` are the float32 logits
    [B, num_classes] of `images`, uint8 RGB [B, H, W, 3].

  Raises:
    ReleaseError: if it cannot be used, in one sentence.
  """
  release = read(path, symbol)
  try:
    return build(release, folded=folded)
  except ValueError as error:
    raise ReleaseError(f"{path}: {error}") from error


def build(release: Release, *,
          folded: bool = False) -> tuple[nn.Module, dict[str, Any], Callable[[jax.Array], jax.Array]]:
  """The network of a release; arguments and results as of `load`.

  Raises:
    ValueError: if it is to be folded and cannot be.
  """
  config, variables = release.config, jax.tree.map(jnp.asarray, release.variables)
  model = models.build(config)
  if folded and config.batch_norm.enabled:
    model, variables = models.fold(model, variables, epsilon=config.batch_norm.epsilon)
  return model, variables, functools.partial(step.preprocess, config)
