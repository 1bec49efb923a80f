"""The golden checkpoints of the peers, read once for all tests."""

import pathlib
from typing import NamedTuple

import numpy as np
import pytest

from bn_inception.release import source_file
from bn_inception.release.peers.pytorch import file as torch_file


class Golden(NamedTuple):
  """A checkpoint with random weights, written by its peer, and what the peer's own code made of the images."""

  path: pathlib.Path
  expected: pathlib.Path


@pytest.fixture(scope="session")
def parity(shared: pathlib.Path) -> pathlib.Path:
  return shared / "parity"


@pytest.fixture(scope="session")
def goldens(parity: pathlib.Path) -> dict[str, Golden]:
  files = {
    "torch": next(parity.glob("torch_cadene/*.pth.xz")),
    "tensorflow": next(parity.glob("tf_slim/*.ckpt.xz")),
    "mxnet": next(parity.glob("mxnet/*.params.xz")),
  }
  return {name: Golden(path, path.with_name("expected.npz")) for name, path in files.items()}


@pytest.fixture(scope="session")
def images(parity: pathlib.Path) -> np.ndarray:
  return np.load(parity / "images_u8.npz")["images"]


@pytest.fixture(scope="session")
def torch_tensors(goldens: dict[str, Golden]) -> dict[str, np.ndarray]:
  """Of the golden PyTorch file; to be copied before it is changed."""
  return torch_file.read(source_file.read(goldens["torch"].path))
