"""The release folder, this project's own format. Loading needs nothing else.

  model.safetensors   the variables; their names are their paths ("params/inception_3a/1x1/conv/kernel"). What was
                      imported from PyTorch has in its metadata how the state dict is laid out (`torch_state_dict`)
  config.json         every setting of network and preprocessing; `release` says where it comes from and which BN
                      statistics it has
  preprocessing.json  from the pixels of a photograph to the input; follows from config.json
  labels.txt          the names of the outputs in order, one a line; empty where not known
  metrics.json        top1, top5 and loss on `count` examples of `data`, and the `command` that gives them; {} if
                      nothing was measured with these weights
  README.md           the model card, for people

The files must belong together: a folder in which one is missing or contradicts another is not read.
"""

import json
import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

import flax
import numpy as np
import safetensors
import safetensors.numpy

from bn_inception import config_checks, paths, run_directory
from bn_inception.config_dict import ConfigDict
from bn_inception.configs import versions
from bn_inception.release import assemble, labels, source_file
from bn_inception.release.card import card
from bn_inception.release.errors import ReleaseError
from bn_inception.release.peers.pytorch import mapping as bninception
from bn_inception.release.release_type import Release, TorchTensor

_WEIGHTS, _CONFIG, _LABELS, _METRICS = "model.safetensors", "config.json", "labels.txt", "metrics.json"
_PREPROCESSING, _CARD = "preprocessing.json", "README.md"
_TORCH_LAYOUT = "torch_state_dict"
_STATISTICS = ("running", "population", "none")
_MAX_JSON_BYTES = 2**20
_MAX_IMAGE_SIDE = 4096  # Of more pixels the shapes alone would fill the memory.


def is_folder(path: pathlib.Path) -> bool:
  """Whether a path is a release folder, as far as the names of its files tell."""
  return (path / _WEIGHTS).is_file() and (path / _CONFIG).is_file()


def check_free(path: str | os.PathLike) -> pathlib.Path:
  """Checks that there is nothing yet where a release is to be written; an empty folder does no harm.

  Returns:
    The path, see `paths.local`.

  Raises:
    PathError: if it is none.
    ReleaseError: if there is something.
  """
  path = pathlib.Path(paths.local(path, "--output"))
  if path.is_symlink() or path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise ReleaseError(f"{path} exists already: give another --output or remove it.")
  return path


def write(release: Release, path: str | os.PathLike) -> None:
  """Writes a release folder: whole, or not at all.

  Raises:
    ReleaseError: if there is something in its place already, it cannot be written, or its labels are not those of its
      network.
  """
  path = check_free(path)
  if release.labels:
    labels.check(release.labels, release.config.data.num_classes, "The release")
  config = release.config.copy_and_resolve_references()
  config.data.dir = ""  # Where data lies on this machine is no part of it.
  flat = flax.traverse_util.flatten_dict(release.variables, sep="/")
  metadata = {_TORCH_LAYOUT: json.dumps(release.torch_layout)} if release.torch_layout else None
  flat = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
  files = {
    _WEIGHTS: safetensors.numpy.save(flat, metadata),
    _CONFIG: _to_json(json.loads(config.to_json())),
    _PREPROCESSING: _to_json(preprocessing(config)),
    _LABELS: "".join(f"{name}\n" for name in release.labels).encode(),
    _METRICS: _to_json(release.metrics or {}),
    _CARD: card(config, release.labels, release.metrics).encode(),
  }
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    for name, content in files.items():
      write_file(temporary / name, content)
    temporary.chmod(0o755)  # mkdtemp lets only its owner read.
    temporary.replace(path)
  except OSError as error:
    raise ReleaseError(f"{path} cannot be written: {error.strerror}.") from error
  finally:
    if temporary is not None and temporary.exists():
      shutil.rmtree(temporary)


def write_file(path: pathlib.Path, content: bytes) -> None:
  """Writes a file through to the disk.

  Raises:
    OSError: if that fails.
  """
  with path.open("wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _to_json(tree: dict[str, Any]) -> bytes:
  return (json.dumps(tree, indent=2) + "\n").encode()


def preprocessing(config: ConfigDict) -> dict[str, Any]:
  """What preprocessing.json says: from the pixels of a photograph to the input of the network."""
  data = config.data
  colours = "rgb" if len(data.mean) == 3 else "gray"  # Also where the input's channels are in another order.
  return {
    "resize_shorter_side": data.eval_resize,
    "crop_size": data.image_size,
    "interpolation": "bilinear, antialiased",
    "layout": "NHWC",
    "pixel_range": [0, 255],
    "binary": data.binary,
    f"mean_{colours}": list(data.mean),
    f"std_{colours}": list(data.std),
    "channel_order": data.channel_order,
  }


def read(path: pathlib.Path) -> Release:
  """Reads a release folder.

  Raises:
    ReleaseError: if its files are damaged or do not belong together.
  """
  config = read_config(path)
  content = source_file.read(path / _WEIGHTS)
  try:
    flat = safetensors.numpy.load(content)
  except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
    raise ReleaseError(f"{path / _WEIGHTS} is damaged: {error}.") from error
  try:
    shapes = assemble.expected_shapes(config)
  except Exception as error:  # Whatever a config makes the network raise, it is the config that is wrong.
    raise ReleaseError(f"{path / _CONFIG} describes no network ({type(error).__name__}: {error}).") from error
  different = sorted(
    name
    for name in shapes.keys() | flat.keys()
    if name not in flat or flat[name].dtype != np.float32 or flat[name].shape != shapes.get(name)
  )
  if different:
    raise ReleaseError(
      f"{path / _WEIGHTS} does not hold the network of its config.json: {', '.join(different[:3])} "
      f"{'differs' if len(different) == 1 else 'differ'}, {len(different)} in all."
    )
  if _read_json(path / _PREPROCESSING) != preprocessing(config):
    raise ReleaseError(f"{path / _PREPROCESSING} is not the preprocessing of its config.json.")
  return Release(
    config,
    flax.traverse_util.unflatten_dict(flat, sep="/"),
    _read_labels(path, config),
    _read_metrics(path),
    _read_torch_layout(path, content, shapes),
  )


def read_config(path: pathlib.Path) -> ConfigDict:
  """The config of a release folder, checked.

  Raises:
    ReleaseError: if it is none.
  """
  try:
    config = run_directory.read_config(path)
    config_checks.check_config(config, devices=1)
    if config.release.statistics not in _STATISTICS:
      raise ValueError(f"release.statistics is none of {', '.join(_STATISTICS)}")
    if config.data.image_size > _MAX_IMAGE_SIDE:
      raise ValueError(f"data.image_size is {config.data.image_size}, more than {_MAX_IMAGE_SIDE}")
    card(config, (), None)  # The other fields that only a release has.
    return config
  except versions.VersionError as error:
    raise ReleaseError(str(error)) from error
  except Exception as error:  # As above.
    raise ReleaseError(f"{path / _CONFIG} is not the config of a release ({type(error).__name__}: {error}).") from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    if path.stat().st_size > _MAX_JSON_BYTES:
      raise ReleaseError(f"{path} has {path.stat().st_size:,} bytes, and more than {_MAX_JSON_BYTES:,} are not read.")
    tree = json.loads(path.read_text("utf-8"))
  except OSError as error:
    raise ReleaseError(f"{path} cannot be read: {error.strerror}.") from error
  except (ValueError, RecursionError) as error:
    raise ReleaseError(f"{path} is damaged: {error}.") from error
  if not isinstance(tree, dict):
    raise ReleaseError(f"{path} is damaged: it holds no JSON object.")
  return tree


def _read_labels(path: pathlib.Path, config: ConfigDict) -> tuple[str, ...]:
  path /= _LABELS
  if path.is_file() and not path.stat().st_size:
    return ()
  return labels.read(path, config.data.num_classes)


def _read_metrics(path: pathlib.Path) -> dict[str, Any] | None:
  metrics = _read_json(path / _METRICS)
  kinds = {"top1": float, "top5": float, "loss": float, "count": int, "data": str, "command": str}
  wrong = [name for name, value in metrics.items() if name not in kinds or not isinstance(value, kinds[name])]
  wrong += [name for name in kinds if metrics and name != "loss" and name not in metrics]
  wrong += [name for name in ("top1", "top5") if not wrong and metrics and not 0 <= metrics[name] <= 1]
  if wrong or (metrics and metrics["count"] < 1) or not math.isfinite(metrics.get("loss", 0)):
    raise ReleaseError(
      f"{path / _METRICS} holds no metrics of a release: {(wrong or ['count or loss'])[0]} is "
      "missing, unknown or impossible."
    )
  return metrics or None


def _read_torch_layout(
  path: pathlib.Path, content: bytes, shapes: dict[str, assemble.Shape]
) -> tuple[TorchTensor, ...]:
  """The layout in the metadata of a file that is known to be sound."""
  header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
  text = header.get("__metadata__", {}).get(_TORCH_LAYOUT)
  if text is None:
    return ()
  try:
    layout = tuple(TorchTensor(name, dtype, tuple(shape), count) for name, dtype, shape, count in json.loads(text))
    bninception.check_layout(layout, shapes)
    return layout
  except (ValueError, TypeError, RecursionError) as error:
    raise ReleaseError(f"{path / _WEIGHTS} is damaged: {error}.") from error
