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


def test_a_job_looks_for_its_run_where_the_program_makes_it(repository, tmp_path):
  """The shell leaves ~ in --workdir=~/runs as it is. A stand-in for srun ends at once."""
  (tmp_path / "srun").write_text("#!/bin/sh\nexit 0\n")
  (tmp_path / "srun").chmod(0o755)
  environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "1"}
  environment["LOGS"] = str(tmp_path / "logs")
  done = subprocess.run(
    [repository / "scripts/launch/slurm.sh", "--workdir=~/runs/x"],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0 and "Done." in done.stdout, done.stderr
  assert (tmp_path / "runs" / "x").is_dir() and not (tmp_path / "~").exists()


def test_the_first_code_is_the_cause(repository, tmp_path):
  for code in (0, 2, 137):  # 137: a task that Slurm killed because another had failed.
    task(repository, tmp_path / "code", code)
  assert (tmp_path / "code").read_text() == "2\n"
