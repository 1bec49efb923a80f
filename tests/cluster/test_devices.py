"""What processes and devices a program takes, by hand-written environments of Slurm; a real one is in test_slurm.py."""

import os
import socket
import subprocess
import sys

import pytest

from bn_inception import cluster
from bn_inception.errors import UserError


@pytest.fixture
def step(monkeypatch):
  """Sets the environment of a Slurm task: node 1 of a step with the given tasks a node."""

  def set_(tasks_per_node, local_id, visible, on_node, node=1, **more):
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE", "JAX_LOCAL_DEVICE_IDS"):
      monkeypatch.delenv(name, raising=False)
    values = {
      "SLURM_JOB_ID": 7,
      "SLURM_STEP_NUM_TASKS": 9,
      "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
      "SLURM_NODEID": node,
      "SLURM_LOCALID": local_id,
      **more,
    }
    if visible is not None:
      values |= {"CUDA_VISIBLE_DEVICES": visible, "SLURM_GPUS_ON_NODE": on_node}
    for name, value in values.items():
      monkeypatch.setenv(name, str(value))

  return set_


def device_ids():
  return cluster.arguments(None, None, None, True, False).get("local_device_ids", "JAX's own")


@pytest.mark.parametrize(
  "tasks_per_node, local_id, visible, on_node, expected",
  [
    ("1(x2)", 0, "0,1,2,3,4,5,6,7", 8, [0, 1, 2, 3, 4, 5, 6, 7]),  # JAX itself would take [0].
    ("2(x2)", 1, "0,1,2,3,4,5,6,7", 8, [4, 5, 6, 7]),  # Shared.
    ("8,2", 1, "0,1,2,3", 4, [2, 3]),  # The nodes differ: this is the second one.
    ("2(x2)", 1, "4,5,6,7", 8, [0, 1, 2, 3]),  # Bound: all that it sees are its own.
    ("2(x2)", 1, "1", 2, [0]),  # The same; JAX itself would take the second of one.
    ("1(x2)", 0, None, None, []),  # No GPUs from Slurm: whatever the node has.
    ("2(x2)", 1, None, None, "JAX's own"),
    ("1(x2)", 0, "NoDevFiles", None, []),
  ],
)
def test_a_task_takes_all_gpus_that_are_its_own(step, tasks_per_node, local_id, visible, on_node, expected):
  step(tasks_per_node, local_id, visible, on_node)
  assert device_ids() == expected


def test_gpus_that_cannot_be_shared_or_are_left_idle_are_refused(step):
  step("3(x2)", 1, "0,1,2,3,4,5,6,7", 8)
  with pytest.raises(UserError, match="3 tasks of a node cannot share its 8 GPUs"):
    device_ids()
  step("1(x2)", 0, "0,1,2,3", 4, JAX_LOCAL_DEVICE_IDS="0")
  with pytest.raises(UserError, match="gave this task 4 GPUs.*JAX_LOCAL_DEVICE_IDS=0: unset this variable"):
    device_ids()
  step("1(x2)", 0, "0,1,2,3", 4, JAX_LOCAL_DEVICE_IDS="0,1,2,3")
  assert device_ids() == "JAX's own"


def test_devices_that_slurm_did_not_give_are_refused(step, monkeypatch):
  step("1(x2)", 0, None, None)
  cluster.check_devices()  # No GPUs asked for: CPUs are what is wanted.
  step("1(x2)", 0, "0,1,2,3,4,5,6,7", 8)  # conftest has 8 CPU devices, as many as there are GPUs.
  with pytest.raises(UserError, match="gave this task 8 GPUs .*but JAX runs on 8 cpu devices"):
    cluster.check_devices()
  monkeypatch.delenv("SLURM_JOB_ID")
  cluster.check_devices()  # A machine of one's own.


@pytest.mark.parametrize(
  "coordinator, processes, process_id, join, words",
  [
    ("host:1", None, None, False, "add --processes and --process_id"),
    (None, 2, None, False, "add --coordinator and --process_id"),  # Ignored, each process would make the whole run.
    (None, None, 0, False, "add --coordinator and --processes"),
    ("host:1", 2, 2, False, "--process_id=2 is none .* give 0 to 1"),
    ("host", 2, 1, False, "names no port"),
    ("host:1", 2, 1, True, "leave out"),
  ],
)
def test_flags_that_cannot_be_meant(coordinator, processes, process_id, join, words):
  with pytest.raises(UserError, match=words):
    cluster.arguments(coordinator, processes, process_id, join, False)


def test_tasks_of_a_step_that_do_not_know_of_each_other_are_refused(step):
  step("2", 0, None, None, node=0)
  with pytest.raises(UserError, match="one of 9 tasks of a Slurm job step.*--cluster"):
    cluster.arguments(None, None, None, False, False)
  assert cluster.arguments(None, None, None, False, True) is None  # --index and --count: each has a part of its own.
  assert cluster.arguments("host:1", 2, 1, False, False)["process_id"] == 1


@pytest.mark.parametrize(
  "flags, environment, words",
  [
    (("--processes=2",), {}, ["add --coordinator and --process_id"]),
    (("--cluster",), {}, ["finds no Slurm job step"]),
    (("--cluster",), {"SLURM_JOB_ID": "7"}, ["with srun"]),
  ],
)
def test_what_cannot_be_meant_is_one_sentence_before_anything_starts(repository, tmp_path, flags, environment, words):
  code, output, error = train(repository, tmp_path / "run", flags, environment)
  assert code == 2 and not output and not (tmp_path / "run").exists()
  assert len(error.strip().splitlines()) == 1 and all(word in error for word in words), error


@pytest.mark.parametrize("process", [0, 1])
def test_a_host_that_never_comes_is_told_in_a_sentence_and_the_code_for_another_try(repository, tmp_path, process):
  code, output, error = train(
    repository,
    tmp_path / "run",
    (f"--coordinator=127.0.0.1:{_free_port()}", "--processes=2", f"--process_id={process}", "--start_seconds=2"),
    {},
  )
  assert code == 75 and not output and not (tmp_path / "run").exists()
  assert "waited 2 s (--start_seconds)" in error.strip().splitlines()[-1] and "Traceback" not in error, error


def _free_port() -> int:
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def train(repository, workdir, flags, environment):
  inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "KUBERNETES_"))}
  result = subprocess.run(
    [sys.executable, "scripts/train.py", "--config=configs/bn_x5.py:quickstart", f"--workdir={workdir}", *flags],
    cwd=repository,
    env=inherited | environment,
    capture_output=True,
    text=True,
    check=False,
    timeout=100,
  )
  return result.returncode, result.stdout, result.stderr
