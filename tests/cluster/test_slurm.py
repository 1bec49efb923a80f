"""The launch scripts under a real Slurm of two nodes on this machine: what a job does when things go wrong."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from bn_inception import run_directory
from tests.cluster import loopback

pytestmark = pytest.mark.slow
_STEPS = 300
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def ended(job):
  return job["JobState"] in _ENDED


class Jobs:
  """Submits slurm.sh with a small run and two virtual CPU devices a node."""

  def __init__(self, slurm: loopback.Slurm, repository: pathlib.Path, folder: pathlib.Path, data_dir: str):
    self.slurm, self.repository, self.folder, self.data_dir = slurm, repository, folder, data_dir

  def submit(self, name: str, *options: str, overrides: tuple[str, ...] = (), **variables: str) -> int:
    environment = (
      self.slurm.environment
      | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(self.repository),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "XLA_FLAGS": "",
        "LOGS": str(self.folder / "logs"),
      }
      | variables
    )
    result = subprocess.run(
      [
        "sbatch",
        "--parsable",
        "--nodes=2",
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        f"--output={self.folder}/%j.out",
        *options,
        "scripts/launch/slurm.sh",
        "--config=configs/mnist.py:bn,quickstart",
        f"--workdir={self.folder / name}",
        f"--config.data.dir={self.data_dir}",
        f"--config.num_steps={_STEPS}",
        *(
          f"--config.{value}"
          for value in (
            "batch_size=64",
            "batch_norm.group_size=32",
            "eval.batch_size=64",
            "steps_per_call=1",
            "log_every=50",
            "eval_every=100",
            "checkpoint_every=50",
            "eval.statistics=('running',)",
            *overrides,
          )
        ),
      ],
      cwd=self.repository,
      env=environment,
      capture_output=True,
      text=True,
      check=True,
    )
    return int(result.stdout)

  def wait_for_step(self, number: int, name: str, step: int) -> None:
    self.slurm.wait(number, lambda job: ended(job) or self.status(name).get("step", 0) >= step)

  def finish(self, number: int) -> dict[str, str]:
    """Waits for the end; a requeued job need not wait for the two minutes that Slurm gives it.

    It waits for a few seconds: within the second of its requeue Slurm takes the new start for the revoked old one.
    """
    hastened = set()

    def reached(job):
      if job["JobState"] == "PENDING" and job["Restarts"] not in {"0", *hastened}:
        hastened.add(job["Restarts"])
        self.slurm.call("scontrol", "update", f"JobId={number}", "StartTime=now+5", check=False)
      return ended(job)

    return self.slurm.wait(number, reached)

  def status(self, name: str) -> dict:
    return run_directory.read_status(self.folder / name)

  def log(self, number: int) -> str:
    return (self.folder / f"{number}.out").read_text()

  def result(self, name: str) -> list[dict]:
    """The metrics without speeds and times."""
    return [
      {key: value for key, value in line.items() if "per_second" not in key and not key.startswith("time/")}
      for line in run_directory.read_metrics(self.folder / name)
    ]


@pytest.fixture(scope="module")
def jobs(slurm, repository, tmp_path_factory, digits_dir):
  return Jobs(slurm, repository, tmp_path_factory.mktemp("jobs"), digits_dir)


@pytest.fixture(scope="module")
def undisturbed(jobs):
  number = jobs.submit("undisturbed")
  job = jobs.finish(number)
  assert job["JobState"] == "COMPLETED", jobs.log(number)
  assert (jobs.folder / f"logs/slurm-{number}-task1.out").exists()  # One log a task.
  status = jobs.status("undisturbed")
  assert (status["devices"], status["processes"], status["step"]) == ("4 cpu", 2, _STEPS)
  return jobs.result("undisturbed")


def test_signalled_job_saves_is_requeued_and_ends_with_the_same_bits(jobs, undisturbed):
  number = jobs.submit("signalled")
  jobs.wait_for_step(number, "signalled", 50)
  jobs.slurm.call("scancel", "--signal=TERM", str(number))
  job = jobs.finish(number)
  assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), jobs.log(number)
  assert "saved and stopped: the job is queued again" in jobs.log(number)
  assert jobs.result("signalled") == undisturbed


def test_job_out_of_time_saves_and_goes_on(jobs, undisturbed):
  """Slurm signals the tasks of a job of three minutes one to two minutes before its end: it counts in minutes."""
  number = jobs.submit("timed", "--time=3", "--signal=TERM@60", overrides=("num_steps=1000000", "log_every=1000"))
  first = jobs.slurm.wait(number, lambda job: ended(job) or job["Restarts"] != "0")
  assert first["Restarts"] == "1", jobs.log(number)
  jobs.slurm.call("scancel", str(number))
  assert "saved and stopped" in jobs.log(number) and jobs.status("timed")["status"] == "preempted"


def test_killed_task_is_started_again_in_the_same_job(jobs, undisturbed):
  number = jobs.submit("killed")
  jobs.wait_for_step(number, "killed", 50)
  [victim] = [pid for pid in _programs("killed") if "SLURM_PROCID=1" in _environment(pid)]
  os.kill(victim, 9)
  job = jobs.finish(number)
  assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), jobs.log(number)
  assert "A task ended with code 137" in jobs.log(number)
  assert jobs.result("killed") == undisturbed


def test_cancelled_job_saves_and_does_not_come_back(jobs):
  number = jobs.submit("cancelled")
  jobs.wait_for_step(number, "cancelled", 50)
  jobs.slurm.call("scancel", str(number))
  job = jobs.slurm.wait(number, ended)
  time.sleep(3)
  assert jobs.slurm.job(number)["JobState"] == job["JobState"] == "CANCELLED" and job["Restarts"] == "0"
  assert jobs.status("cancelled")["status"] == "preempted"


def test_job_whose_node_fails_goes_on_when_it_is_back(jobs, undisturbed):
  number = jobs.submit("node")
  jobs.wait_for_step(number, "node", 50)
  jobs.slurm.call("scontrol", "update", f"NodeName={loopback.NODES[1]}", "State=down", "Reason=test")
  jobs.slurm.wait(number, lambda job: job["Restarts"] == "1")
  jobs.slurm.wait(number, lambda _: _bring_back(jobs.slurm, loopback.NODES[1]))
  assert jobs.finish(number)["JobState"] == "COMPLETED", jobs.log(number)
  assert jobs.result("node") == undisturbed


def test_bad_input_ends_the_job_at_once(jobs):
  number = jobs.submit("bad", overrides=("batch_norm.group_size=24",))
  job = jobs.finish(number)
  assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "2:0"), jobs.log(number)
  assert "The run cannot go on" in jobs.log(number) and "starting again" not in jobs.log(number)


@pytest.mark.parametrize(
  "code, restarts, words", [(1, "0", "starting again"), (75, "1", "is to be started again: the job is queued again")]
)
def test_run_that_crashes_twice_at_the_same_step_is_given_up(jobs, tmp_path, code, restarts, words):
  """A Python that ends the training with this code stands for a run that crashes."""
  python = tmp_path / "python"
  python.write_text(f'#!/bin/sh\n[ "$1" = scripts/train.py ] && exit {code}\nexec {sys.executable} "$@"\n')
  python.chmod(0o755)
  number = jobs.submit(f"crash{code}", PYTHON=str(python))
  job = jobs.finish(number)
  assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", f"{code}:0", restarts), jobs.log(number)
  assert jobs.log(number).count(words) == 1 and "crashed twice at step 0" in jobs.log(number)


_PRINT_DEVICES = """
import os
from bn_inception import cluster
from jax._src import xla_bridge
cluster.join(cluster.arguments(None, None, None, True, False), 60, 60)
taken = xla_bridge.CUDA_VISIBLE_DEVICES.value
print("task", os.environ["SLURM_PROCID"], "of GPUs", os.environ["CUDA_VISIBLE_DEVICES"], "takes", taken)
"""


@pytest.mark.parametrize(
  "options, expected",
  [
    (["--ntasks-per-node=1"], ["0,1,2,3,4,5,6,7 takes 0,1,2,3,4,5,6,7"] * 2),
    (["--ntasks-per-node=2"], ["0,1,2,3,4,5,6,7 takes 0,1,2,3", "0,1,2,3,4,5,6,7 takes 4,5,6,7"] * 2),
    (["--ntasks-per-node=2", "--gpus-per-task=4"], ["0,1,2,3 takes 0,1,2,3", "4,5,6,7 takes 0,1,2,3"] * 2),
  ],
)
def test_jax_takes_every_gpu_that_slurm_gives(slurm, repository, tmp_path, options, expected):
  """The ids are those that JAX has after it has joined the processes; without this project's it has [0] of 8."""
  script = tmp_path / "print_devices.py"
  script.write_text(_PRINT_DEVICES)
  output = slurm.call(
    "srun",
    "--nodes=2",
    "--gpus-per-node=8",
    *options,
    f"--export=ALL,PYTHONPATH={repository}",
    sys.executable,
    str(script),
  )
  assert sorted(line for line in output.splitlines() if line.startswith("task")) == [
    f"task {task} of GPUs {what}" for task, what in enumerate(expected)
  ], output


def test_run_on_cpus_of_nodes_with_gpus_is_refused(slurm, repository, tmp_path):
  output = slurm.call(
    "srun",
    "--nodes=1",
    "--gpus-per-node=8",
    f"--export=ALL,PYTHONPATH={repository},JAX_PLATFORMS=cpu",
    sys.executable,
    "scripts/train.py",
    "--cluster",
    "--config=configs/bn_x5.py:quickstart",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.dir={tmp_path}",
    check=False,
    cwd=repository,
  )
  assert "Slurm gave this task 8 GPUs" in output and "Traceback" not in output and not (tmp_path / "run").exists()


def test_step_of_several_tasks_without_cluster_is_refused(slurm, repository, tmp_path):
  output = slurm.call(
    "srun",
    "--nodes=2",
    f"--export=ALL,PYTHONPATH={repository}",
    sys.executable,
    "scripts/train.py",
    "--config=configs/bn_x5.py:quickstart",
    f"--workdir={tmp_path / 'run'}",
    check=False,
    cwd=repository,
  )
  assert "one of 2 tasks" in output and not (tmp_path / "run").exists()


def test_array_gives_every_task_its_index(slurm, repository, tmp_path):
  """With `echo` for Python: each task's command."""

  def submit(*arguments):
    command = [
      "sbatch",
      "--parsable",
      "--wait",
      "--array=0-1",
      "--gpus-per-node=0",
      "--cpus-per-task=1",
      f"--output={tmp_path}/%a.out",
      "scripts/launch/slurm_array.sh",
      "scripts/reproduce.py",
      "figure3",
      *arguments,
    ]
    return subprocess.run(
      command, cwd=repository, env=slurm.environment | {"PYTHON": "echo"}, check=False, timeout=120
    ).returncode

  assert submit("--count=2") == 0
  assert [(tmp_path / f"{task}.out").read_text() for task in range(2)] == [
    f"scripts/reproduce.py figure3 --count=2 --index={task}\n" for task in range(2)
  ]
  assert submit() == 2  # Without --count each task would make all runs, or what a part of the array takes for all.
  assert "Give --count=N" in (tmp_path / "1.out").read_text()


def _bring_back(slurm: loopback.Slurm, node: str) -> bool:
  """Slurm refuses while the node still ends what ran on it, and when the node has come back by itself."""
  slurm.call("scontrol", "update", f"NodeName={node}", "State=resume", check=False)
  return "down" not in slurm.call("sinfo", "--noheader", f"--nodes={node}", "--format=%T")


def _programs(name: str) -> list[int]:
  """Processes that run scripts/train.py for the run of this name."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
      words = path.read_bytes().decode().split("\0")
    except (OSError, UnicodeDecodeError):
      continue
    if "scripts/train.py" in words[:3] and any(word.endswith(f"/{name}") and "workdir" in word for word in words):
      found.append(int(path.parent.name))
  return found


def _environment(pid: int) -> list[str]:
  return pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
