"""Recognises what a path holds and loads it: a release folder, a run directory or the file of any peer."""

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bn_inception import models
from bn_inception.config_dict import ConfigDict
from bn_inception.data.preprocessing import preprocess
from bn_inception.release import folder, hub, peers, source_file, training_run
from bn_inception.release.errors import ReleaseError
from bn_inception.release.release_type import Release

# The files that published numbers are of, by the first digits of their SHA-256. Only the name of PyTorch's tells them.
_PUBLISHED_SHA256 = ("52deb4733",)


def read(path: str | os.PathLike, symbol: str | os.PathLike | None = None) -> Release:
  """Reads a release folder, a run directory or a peer's file, recognised by its content.

  Args:
    path: a release folder, also on the Hugging Face Hub ("hf://user/name", see `hub.local_path`); a run directory (its
      newest checkpoint, with running statistics); a PyTorch state dict, a TensorFlow checkpoint (V1, or any file of V2,
      or their common name), a .params of MXNet, a .caffemodel. Each single file may be compressed as .xz.
    symbol: the -symbol.json of a .params file; by default the one of its name beside it.

  Raises:
    ReleaseError: if it cannot be used, in one sentence; for a run directory also what `from_run` raises.
  """
  path = hub.local_path(path)
  if folder.is_folder(path):
    return folder.read(path)
  if training_run.is_run(path):
    return training_run.from_run(path)
  if path.is_dir():
    raise ReleaseError(
      f"{path} is a folder, but no release, it lacks model.safetensors or config.json, and no run directory either."
    )
  for format_ in peers.FORMATS:
    path = format_.file_of(path)
  content = source_file.read(path)
  format_ = next((format_ for format_ in peers.FORMATS if format_.recognises(content)), None)
  if format_ is None:
    archive = ", but a gzip archive: unpack it and give the file inside" if content.startswith(b"\x1f\x8b") else ""
    known = ", ".join(format_.name for format_ in peers.FORMATS)
    raise ReleaseError(f"{path} cannot be used: it is none of the formats that are known, {known}{archive}.")
  beside = format_.read_beside(path, symbol)
  try:
    return _with_provenance(path, content, format_.read(path, content, beside))
  except ReleaseError as error:
    raise ReleaseError(f"{path} cannot be used: {error}.") from error


def read_config(path: str | os.PathLike) -> ConfigDict:
  """The config of what `read` reads, of a release folder or run directory without its weights; arguments as there."""
  local = hub.local_path(path)
  if folder.is_folder(local):
    return folder.read_config(local)
  return training_run.read_config(local) if training_run.is_run(local) else read(local).config


def _with_provenance(path: pathlib.Path, content: bytes, release: Release) -> Release:
  """The release, without the published accuracy unless this is the very file that it is of."""
  published = release.config.release.published
  digest = hashlib.sha256(content).hexdigest()
  if not published.startswith("top-1") or digest.startswith(_PUBLISHED_SHA256):
    return release
  # PyTorch's habit: NAME-SHA256.pth.
  named = re.search(r"-([0-9a-f]{8,64})\.", path.name)
  doubt = (
    f"its name says SHA-256 {named[1]} and its content has {digest[: len(named[1])]}"
    if named and not digest.startswith(named[1])
    else "it is not known to be the published one"
  )
  config = release.config.copy_and_resolve_references()
  config.release.published = f"none for this file, {doubt}; the same architecture as one with {published}"
  return release._replace(config=config)


def load(
  path: str | os.PathLike,
  symbol: str | os.PathLike | None = None,
  *,
  folded: bool = False,
  num_classes: int | None = None,
) -> tuple[nn.Module, dict[str, Any], Callable[[jax.Array], jax.Array]]:
  """Loads a network, ready for evaluation.

  Args:
    path, symbol: as in `read`.
    folded: BN folded into the convolutions before it: the same logits to float32 rounding, in less time.
    num_classes: 0: the network ends with its pooled features, float32 [B, channels]; None: with its logits.

  Returns:
    (model, variables, preprocess): `model.apply(variables, preprocess(images), train=False)` are the float32 logits
    [B, num_classes] of `images`, uint8 RGB [B, H, W, 3], and `features(model, variables, preprocess(images), names)`
    intermediate activations. What `preprocess` cannot take is a ReleaseError: images without a batch axis, with other
    channels, or (where values are known, not under jit) floats that are not from 0 to 255.

  Raises:
    ReleaseError: if it cannot be used, in one sentence.
  """
  release = read(path, symbol)
  try:
    return build(release, folded=folded, num_classes=num_classes)
  except ValueError as error:
    raise ReleaseError(f"{path}: {error}") from error


def build(
  release: Release, *, folded: bool = False, num_classes: int | None = None
) -> tuple[nn.Module, dict[str, Any], Callable[[jax.Array], jax.Array]]:
  """The network of a release; arguments and results as of `load`.

  Raises:
    ValueError: if it is to be folded and cannot be, or to have other classes than its own.
  """
  if num_classes not in (None, 0):
    raise ReleaseError(
      f"This network has {release.config.data.num_classes} classes and cannot be loaded with "
      f"{num_classes}: give num_classes=0 for its features, or leave it out."
    )
  config, variables = release.config, jax.tree.map(jnp.asarray, release.variables)
  model = models.build(config)
  if folded and config.batch_norm.enabled:
    model, variables = models.fold(model, variables, epsilon=config.batch_norm.epsilon)
  if num_classes == 0:
    model, variables = models.headless(model, variables)
  return model, variables, functools.partial(_checked_preprocess, config)


def _checked_preprocess(config: ConfigDict, images: jax.Array) -> jax.Array:
  """The input of the network from pixels, if they are pixels."""
  images = images if isinstance(images, jax.Array) else np.asarray(images)
  shape, channels = images.shape, len(config.data.mean)
  if len(shape) != 4 or shape[-1] != channels:
    advice = (
      f"convert them to {'RGB' if channels == 3 else 'gray'}"
      if len(shape) == 4
      else "put several into a batch, or give images[None] for a single one"
    )
    if len(shape) == 4 and shape[1] == channels:
      advice = "put the channels last, images.transpose(0, 2, 3, 1)"
    raise ReleaseError(f"This network takes images [B, H, W, {channels}], and these are {list(shape)}: {advice}.")
  if jnp.issubdtype(images.dtype, jnp.floating) and not isinstance(images, jax.core.Tracer) and images.size:
    low, high = float(images.min()), float(images.max())
    if not 0 <= low <= high <= 255 or 0 < high <= 1:
      raise ReleaseError(
        f"Images are pixels from 0 to 255, and these floats are from {low:g} to {high:g}: give uint8, "
        "which `preprocess` normalizes."
      )
  return preprocess(config, images)
