"""A Slurm cluster of two nodes on this machine: its own munge, controller and node daemons, over the loopback address.

The nodes are named 127.0.0.1 and 127.0.0.2, since a node's name must be an address that JAX can connect to, and a name
of its own would need a line in /etc/hosts. Each pretends to have 8 GPUs, which are links to /dev/null: Slurm hands them
out and sets CUDA_VISIBLE_DEVICES as it does with real ones.
"""

import contextlib
import getpass
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

NODES = ("127.0.0.1", "127.0.0.2")
GPUS = 8
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
_SEARCHED = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def missing() -> list[str]:
  """Programs of Slurm and munge that are not installed."""
  return [name for name in _PROGRAMS if not shutil.which(name, path=_SEARCHED)]


class Slurm:
  """A running cluster: its commands, with the environment that finds it."""

  def __init__(self, folder: pathlib.Path, environment: dict[str, str]):
    self.folder, self.environment = folder, environment

  def call(self, *command: str, check: bool = True, **options) -> str:
    """Runs a command of Slurm; returns what it prints."""
    result = subprocess.run(
      command, env=self.environment, capture_output=True, text=True, timeout=120, check=False, **options
    )
    assert not check or result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout + result.stderr

  def job(self, number: int) -> dict[str, str]:
    """What `scontrol show job` says."""
    return dict(word.partition("=")[::2] for word in self.call("scontrol", "show", "job", str(number)).split())

  def wait(self, number: int, reached, seconds: float = 300) -> dict[str, str]:
    """Waits until `reached(job)`; asserts that it comes to that."""
    end = time.monotonic() + seconds
    while not reached(job := self.job(number)):
      assert time.monotonic() < end, f"{job} after {seconds} s"
      time.sleep(0.5)
    return job


@contextlib.contextmanager
def slurm(folder: pathlib.Path) -> Iterator[Slurm]:
  """Starts a cluster with its files in `folder`, whose path must be short (a socket lies in it), and ends it."""
  for name in ("state", *(f"spool-{node}" for node in NODES)):
    (folder / name).mkdir(parents=True)
  folder.chmod(0o755)  # munged insists.
  for number in range(GPUS):
    (folder / f"gpu{number}").symlink_to("/dev/null")
  controller, *node_ports = _free_ports(1 + len(NODES))
  host = socket.gethostname().split(".")[0]
  (folder / "slurm.conf").write_text(
    "\n".join(
      [
        "ClusterName=loopback",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={controller}",
        f"SlurmUser={getpass.getuser()}",
        f"SlurmdUser={getpass.getuser()}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={folder}/munge.socket",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "SlurmctldDebug=verbose",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SchedulerType=sched/backfill",
        "AccountingStorageType=accounting_storage/none",
        "JobAcctGatherType=jobacct_gather/none",
        "ReturnToService=2",
        "SlurmdParameters=config_overrides",
        "SlurmdTimeout=15",
        "KillWait=30",
        "JobRequeue=1",
        "MinJobAge=3600",
        "InactiveLimit=0",
        "SchedulerParameters=bf_interval=1,sched_interval=1",
        "GresTypes=gpu",
        *(
          f"NodeName={node} NodeHostname={host} NodeAddr={node} Port={port} CPUs=8 Boards=1 SocketsPerBoard=1 "
          f"CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000 Gres=gpu:{GPUS} State=UNKNOWN"
          for node, port in zip(NODES, node_ports)
        ),
        f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP",
        "",
      ]
    )
  )
  (folder / "gres.conf").write_text(
    f"AutoDetect=off\nNodeName={','.join(NODES)} Name=gpu Count={GPUS} File={folder}/gpu[0-{GPUS - 1}]\n"
  )
  key = folder / "munge.key"
  key.write_bytes(os.urandom(128))
  key.chmod(0o600)
  # Jobs have a cluster's environment: no folder of compiled programs but that of slurm.sh.
  environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_COMPIL"))}
  environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _SEARCHED}
  with contextlib.ExitStack() as daemons:

    def start(name: str, *arguments: str) -> None:
      log = daemons.enter_context((folder / f"{name}.out").open("w"))
      process = subprocess.Popen(
        [shutil.which(name, path=_SEARCHED), *arguments],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
      daemons.callback(_end, process)

    start(
      "munged",
      "--foreground",
      "--force",
      f"--socket={folder}/munge.socket",
      f"--key-file={key}",
      f"--pid-file={folder}/munged.pid",
      f"--seed-file={folder}/munged.seed",
      f"--log-file={folder}/munged.log",
    )
    start("slurmctld", "-D", "-c")
    for node in NODES:
      start("slurmd", "-D", "-N", node)
    cluster = Slurm(folder, environment)
    end = time.monotonic() + 60
    while (nodes := cluster.call("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()) != ["idle"] * 2:
      assert time.monotonic() < end, f"the nodes are {nodes}: see the logs in {folder}"
      time.sleep(0.2)
    yield cluster
    cluster.call("scancel", f"--user={getpass.getuser()}", "--full", check=False)


def _end(process: subprocess.Popen) -> None:
  process.terminate()
  try:
    process.wait(30)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()


def _free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as sockets:
    bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
    for one in bound:
      one.bind(("127.0.0.1", 0))
    return [one.getsockname()[1] for one in bound]
