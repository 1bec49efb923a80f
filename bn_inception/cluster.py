"""Which processes work together and which devices each process has, by the flags and by what a scheduler has set.

JAX finds the processes of a cluster job by itself. But under Slurm JAX gives every process one GPU, the GPU with the
process's number on the node (jax-ml/jax#16788): of 8 GPUs a single task would use the first. Here a task gets all GPUs
that Slurm gave the task. A run on other devices is refused.
"""

import contextlib
import importlib.util
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax

from bn_inception import hosts, status
from bn_inception.errors import StartAgainError, UserError


def arguments(
  coordinator: str | None, processes: int | None, process_id: int | None, cluster: bool, shares: bool
) -> dict[str, Any] | None:
  """The keyword arguments of `jax.distributed.initialize`.

  Args:
    coordinator, processes, process_id, cluster: the flags.
    shares: whether this process does its own part of the work alone (--index, --count).

  Returns:
    Keyword arguments, or None if this process works alone.

  Raises:
    UserError: if flags are missing or contradict each other or what the scheduler has started, or if the GPUs of a
      node cannot be shared by its tasks.
  """
  by_hand = {"--coordinator": coordinator, "--processes": processes, "--process_id": process_id}
  missing = [name for name, value in by_hand.items() if value in (None, "")]
  if len(missing) < len(by_hand):
    if cluster:
      raise UserError(
        "--cluster finds the processes by itself: leave out --coordinator, --processes and --process_id, or --cluster."
      )
    if missing:
      raise UserError(f"--coordinator, --processes and --process_id go together: add {' and '.join(missing)}.")
    if not 0 <= process_id < processes:
      raise UserError(f"--process_id={process_id} is none of the {processes} processes: give 0 to {processes - 1}.")
    if not re.fullmatch(r".+:\d+", coordinator):
      raise UserError(f"--coordinator={coordinator} names no port: give HOST:PORT of process 0.")
    return {"coordinator_address": coordinator, "num_processes": processes, "process_id": process_id}
  if cluster:
    return {} if (devices := _device_ids()) is None else {"local_device_ids": devices}
  tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
  if tasks != "1" and not shares:
    raise UserError(
      f"This is one of {tasks} tasks of a Slurm job step, and each task would make the same run: give "
      "--cluster, so that the tasks make the run together, or start one task (srun --ntasks=1)."
    )
  return None


def join(arguments: dict[str, Any], start_seconds: int, lost_seconds: int) -> None:
  """Joins the other processes; see `arguments`.

  If a process does not come within `start_seconds`, the program ends with a sentence and the exit code for "start
  again".

  Raises:
    UserError: if there is no cluster that JAX knows, or no such platform.
    StartAgainError: if JAX fails for another reason.
  """
  with _time_limit(start_seconds):
    try:
      # JAX's own limit comes later, because it is an abort with a stack trace.
      # `hosts` finds a lost process first, and ends the other processes with a sentence.
      hosts.join(
        lambda: jax.distributed.initialize(
          **arguments, initialization_timeout=2 * start_seconds + 60, heartbeat_timeout_seconds=10 * lost_seconds
        ),
        lost_seconds,
      )
    except Exception as error:  # JAX raises many kinds of exceptions.
      if sentence := _not_found(error) or unknown_platform(error):
        raise UserError(sentence) from error
      reason = next(iter(str(error).splitlines()), type(error).__name__)
      raise StartAgainError(
        f"This process could not join the other processes; the same command tries again. JAX says: {reason}"
      ) from error


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
  """Ends the program when the block within takes longer, also while the main thread waits in JAX's C++."""

  def end():
    print(
      f"\n{os.path.basename(sys.argv[0])}: {socket.gethostname()} waited {seconds} s (--start_seconds) for the "
      "other processes of this run: a process has not started, or does not reach process 0. The same command "
      "tries again.",
      file=sys.stderr,
      flush=True,
    )
    os._exit(status.EXIT_START_AGAIN)

  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def check_devices() -> None:
  """Compares the devices of this process with the GPUs that Slurm gave it.

  Raises:
    UserError: if JAX runs on other devices, or on another number of devices.
  """
  visible = _visible_gpus()
  if not visible:
    return
  devices = jax.local_devices()
  expected = len(_own_gpus(visible)) if jax.distributed.is_initialized() else len(visible)
  if devices[0].platform != "gpu" or len(devices) != expected:
    kind = "GPUs" if devices[0].platform == "gpu" else f"{devices[0].platform} devices"
    raise UserError(
      f"Slurm gave this task {expected} GPUs (CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}), but JAX "
      f'runs on {len(devices)} {kind}: install JAX for GPUs (pip install "jax[cuda13]"), unset JAX_PLATFORMS, or '
      "ask Slurm for as many GPUs as the run is to use."
    )


def _not_found(error: Exception) -> str | None:
  """A sentence if `jax.distributed.initialize` failed with `error` because there is no cluster that JAX knows."""
  if not (isinstance(error, ValueError) and "coordinator_address" in str(error)):
    return None
  if "KUBERNETES_SERVICE_HOST" in os.environ and not importlib.util.find_spec("kubernetes"):
    return (
      "--cluster asks Kubernetes for the other processes, which needs a package that is not installed: "
      "pip install -e '.[kubernetes]'."
    )
  if "SLURM_JOB_ID" in os.environ:
    return "--cluster works in a job step of Slurm, and this is the job's own script: start the program with srun."
  return (
    "--cluster finds no Slurm job step, Kubernetes job or TPU slice here: start the program as a part of a job, or "
    "give --coordinator, --processes and --process_id."
  )


def unknown_platform(error: Exception) -> str | None:
  """A sentence if `error` is JAX's for a platform in JAX_PLATFORMS that this installation of JAX does not have."""
  found = re.search(r"Backend '(.+?)' is not in the list of known backends: \[(.*)\]", str(error))
  if not found:
    return None
  known = found[2].replace("'", "")
  return (
    f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', found[1])} names a platform that is not installed here ({known} "
    'are): unset JAX_PLATFORMS, or install JAX for that platform (for GPUs: pip install "jax[cuda13]").'
  )


def _device_ids() -> list[int] | None:
  """Which of the visible GPUs JAX must take. []: all devices; None: the devices that JAX takes by itself."""
  if "SLURM_STEP_NUM_TASKS" not in os.environ:
    return None
  visible = _visible_gpus()
  # Without GPUs from Slurm a task that is alone on the node has all devices. Of several tasks, each takes one device.
  own = _own_gpus(visible) if visible else [] if _tasks_on_node() == 1 else None
  chosen = os.environ.get("JAX_LOCAL_DEVICE_IDS")
  if chosen is None:
    return own
  if visible and sorted(chosen.split(",")) != sorted(map(str, own)):
    raise UserError(
      f"Slurm gave this task {len(own)} GPUs, places {_list(own)} in CUDA_VISIBLE_DEVICES={','.join(visible)}, but "
      f"JAX_LOCAL_DEVICE_IDS={chosen}: unset this variable, or ask Slurm for as many GPUs as the run is to use."
    )
  return None


def _visible_gpus() -> list[str]:
  """The GPUs that Slurm shows this task."""
  visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
  if "SLURM_JOB_ID" not in os.environ or visible == "NoDevFiles":  # Slurm's word for none.
    return []
  return [gpu for gpu in visible.split(",") if gpu]


def _own_gpus(visible: list[str]) -> list[int]:
  """The places of this task's GPUs in `visible`.

  Slurm shows a task either its own GPUs (--gpus-per-task, --gpu-bind), or all GPUs of the job on the node, which the
  tasks then share evenly.
  """
  tasks = _tasks_on_node()
  if tasks == 1 or len(visible) < int(os.environ.get("SLURM_GPUS_ON_NODE", len(visible))):
    return list(range(len(visible)))
  share, rest = divmod(len(visible), tasks)
  if rest:
    raise UserError(
      f"The {tasks} tasks of a node cannot share its {len(visible)} GPUs evenly: give "
      "--ntasks-per-node=1, which uses all GPUs, or a divisor."
    )
  first = int(os.environ["SLURM_LOCALID"]) * share
  return list(range(first, first + share))


def _tasks_on_node() -> int:
  """Tasks of this job step on this node. SLURM_STEP_TASKS_PER_NODE is '2(x3),1', SLURM_NODEID is the node's place."""
  tasks = []
  for word in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
    number, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", word).groups()
    tasks += [int(number)] * int(times or 1)
  return tasks[int(os.environ.get("SLURM_NODEID", 0))]


def _list(numbers: list[int]) -> str:
  return ",".join(map(str, numbers))
