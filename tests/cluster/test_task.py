"""scripts/launch/task.sh: which exit code ends a job step, and which is remembered as the cause."""

import subprocess

import pytest


def task(repository, file, code):
  return subprocess.run(
    ["scripts/launch/task.sh", str(file), "sh", "-c", f"exit {code}"], cwd=repository, check=False
  ).returncode


@pytest.mark.parametrize(
  "code, ends_with", [(0, 0), (1, 1), (2, 2), (75, 75), (137, 137), (3, 0), (143, 0)]
)  # The step goes on until every task has saved.
def test_code_of_a_task(repository, tmp_path, code, ends_with):
  file = tmp_path / "code"
  assert task(repository, file, code) == ends_with
  assert file.exists() == (code != 0)
  if code:
    assert file.read_text() == f"{code}\n"


def test_the_first_code_is_the_cause(repository, tmp_path):
  for code in (0, 2, 137):  # 137: a task that Slurm killed because another had failed.
    task(repository, tmp_path / "code", code)
  assert (tmp_path / "code").read_text() == "2\n"
