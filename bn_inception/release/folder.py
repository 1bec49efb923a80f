"""The release folder, this project's own format: model.safetensors, config.json and README.md.

The weights' names are the paths in the variables ("params/inception_3a/1x1/conv/kernel"). Loading needs nothing else.
"""

import json
import os
import pathlib
import shutil
import tempfile

import flax
import numpy as np
import safetensors
import safetensors.numpy

from bn_inception import config_checks, run_directory
from bn_inception.release import assemble, source_file
from bn_inception.release.card import card
from bn_inception.release.errors import ReleaseError
from bn_inception.release.peers import Release

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def is_folder(path: pathlib.Path) -> bool:
  """Whether a path is a release folder, as far as the names of its files tell."""
  return (path / _WEIGHTS).is_file() and (path / _CONFIG).is_file()


def write(release: Release, path: pathlib.Path) -> None:
  """Writes a release folder: whole, or not at all.

  Raises:
    ReleaseError: if there is something in its place already, or it cannot be written.
  """
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise ReleaseError(f"{path} exists already: give another --output or remove it.")
  flat = flax.traverse_util.flatten_dict(release.variables, sep="/")
  files = {_WEIGHTS: safetensors.numpy.save({name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}),
           _CONFIG: (json.dumps(json.loads(release.config.to_json()), indent=2) + "\n").encode(),
           "README.md": card(release.config).encode()}
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    for name, content in files.items():
      with (temporary / name).open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o755)  # mkdtemp lets only its owner read.
    temporary.replace(path)
  except OSError as error:
    raise ReleaseError(f"{path} cannot be written: {error.strerror}.") from error
  finally:
    if temporary is not None and temporary.exists():
      shutil.rmtree(temporary)


def read(path: pathlib.Path) -> Release:
  """Reads a release folder.

  Raises:
    ReleaseError: if its files are damaged or do not belong together.
  """
  config = _read_config(path)
  content = source_file.read(path / _WEIGHTS)
  try:
    flat = safetensors.numpy.load(content)
  except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
    raise ReleaseError(f"{path / _WEIGHTS} is damaged: {error}.") from error
  try:
    shapes = assemble.expected_shapes(config)
  except Exception as error:  # Whatever a config makes the network raise, it is the config that is wrong.
    raise ReleaseError(f"{path / _CONFIG} describes no network ({type(error).__name__}: {error}).") from error
  different = sorted(name for name in shapes.keys() | flat.keys()
                     if name not in flat or flat[name].dtype != np.float32 or flat[name].shape != shapes.get(name))
  if different:
    raise ReleaseError(f"{path / _WEIGHTS} does not hold the network of its config.json: {', '.join(different[:3])} "
                       f"{'differs' if len(different) == 1 else 'differ'}, {len(different)} in all.")
  return Release(config, flax.traverse_util.unflatten_dict(flat, sep="/"))


def _read_config(path: pathlib.Path):
  try:
    config = run_directory.read_config(path)
    config_checks.check_config(config, devices=1)
    card(config)  # The fields that only a release has.
    return config
  except Exception as error:  # As above.
    raise ReleaseError(f"{path / _CONFIG} is not the config of a release ({type(error).__name__}: {error}).") from error
