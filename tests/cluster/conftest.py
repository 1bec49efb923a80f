"""The Slurm of this machine, for the tests that need one."""

import pathlib
import shutil
import tempfile

import pytest

from tests.cluster import loopback


@pytest.fixture(scope="session")
def slurm():
  """A running cluster of two nodes; skipped where Slurm is not installed."""
  if missing := loopback.missing():
    pytest.skip(f"needs Slurm and munge ({', '.join(missing)} not found): apt-get install slurm-wlm munge")
  folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm"))
  try:
    with loopback.slurm(folder) as cluster:
      yield cluster
  finally:
    shutil.rmtree(folder, ignore_errors=True)
