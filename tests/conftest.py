"""Eight virtual devices for every test, and where data is."""

import os
import pathlib

# Before jax is imported anywhere.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
  return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of real data and released networks beside the repository."""
  path = REPOSITORY.parent / "shared"
  if not path.is_dir():
    pytest.skip("needs the folder ../shared with real data, which is not part of the project")
  return path


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
  """A TFDS data_dir in which the embedded digits can be prepared, once for all tests."""
  return str(tmp_path_factory.mktemp("tfds"))
