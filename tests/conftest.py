"""Eight virtual devices for every test, programs that are compiled once, and where data is."""

import atexit
import os
import pathlib
import shutil
import tempfile

# Before jax is imported anywhere.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests make the same few networks again and again, in this process, in the other worker and in programs that they
# start. The folder is of this call alone, so no test meets a program of another revision.
if "PYTEST_XDIST_WORKER" not in os.environ:  # The workers have it of the process that starts them.
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

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
