"""Makes the table of docs/fault_tolerance.md: python -m tests.fault_table [PROCESSES ...] (default: 1 2)

A small network on the embedded digits is given SIGTERM, SIGINT, two SIGTERMs or SIGKILL in each phase of a run, on one
process or on two (then process 1 gets it); a phase is known by what the run has written. Each cell: seconds until the
last process has ended, their exit codes, the newest checkpoint. Takes about half a minute a cell on two cores.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from bn_inception.data import digits

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
_CONFIG = [
  "--config=configs/mnist.py:bn,quickstart",
  "--config.steps_per_call=10",
  "--config.batch_size=64",
  "--config.batch_norm.group_size=32",
  "--config.eval.batch_size=64",
  "--config.num_steps=4000",
  "--config.log_every=10",
  "--config.eval_every=2000",
  "--config.checkpoint_every=1000",
  "--config.eval.population_batches=200",
]
_ENDS_BY = {-signal.SIGKILL: "killed"}


def _logged(pattern: str):
  return lambda output, workdir: re.search(pattern, output)


# Each with what shows that it has begun.
PHASES = {
  "imports": lambda output, workdir: True,
  "compilation": lambda output, workdir: (workdir / "status.json").exists(),
  "steps": _logged(r"step [1-9]\d\d/"),
  "saving": _logged(r"Saving the checkpoint of step 1,?000"),
  "evaluation": _logged(r"Saving the checkpoint of step 2,?000"),
  "last evaluation": _logged(r"Saving the checkpoint of step 4,?000"),
}
SIGNALS = {
  "SIGTERM": [signal.SIGTERM],
  "SIGINT": [signal.SIGINT],
  "SIGTERM twice": [signal.SIGTERM] * 2,
  "SIGKILL": [signal.SIGKILL],
}


def start(
  workdir: pathlib.Path, data: str, processes: int, *extra: str, script: str = "scripts/train.py"
) -> list[subprocess.Popen]:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "PYTHONUNBUFFERED": "1",
  }
  started = []
  for process in range(processes):
    together = (
      [
        f"--coordinator=127.0.0.1:{port}",
        f"--processes={processes}",
        f"--process_id={process}",
        "--start_seconds=30",
        "--lost_seconds=10",
      ]
      if processes > 1
      else []
    )
    started.append(
      subprocess.Popen(
        [sys.executable, script, *_CONFIG, f"--config.data.dir={data}", f"--workdir={workdir}", *together, *extra],
        cwd=REPOSITORY,
        env=environment,
        stdout=(workdir.parent / f"log{process}").open("a"),
        stderr=subprocess.STDOUT,
      )
    )
  return started


def cell(phase: str, signals: list[int], processes: int, data: str) -> tuple[float, list[int], str]:
  """(seconds to the end of all, exit codes, status and newest checkpoint)."""
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    running = start(workdir, data, processes)
    log = pathlib.Path(folder) / "log0"
    try:
      deadline = time.monotonic() + 240
      time.sleep(1.0)  # The interpreter's own start, before any code of ours.
      while not PHASES[phase](log.read_text(), workdir):
        assert time.monotonic() < deadline and running[0].poll() is None, log.read_text()
        time.sleep(0.002)
      begin = time.monotonic()
      for number in signals:
        running[-1].send_signal(number)
        time.sleep(0.05)
      codes = [process.wait(240) for process in running]
      seconds = time.monotonic() - begin
    finally:
      for process in running:
        process.kill()
    status = workdir / "status.json"
    said = json.loads(status.read_text())["status"] if status.exists() else "no status"
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    return seconds, codes, f"{said}, " + (f"step {max(steps):,}" if steps else "no checkpoint")


def main() -> None:
  with tempfile.TemporaryDirectory() as data:
    digits.prepare(pathlib.Path(data))
    print("| phase | signal | processes | seconds | exit codes | status, newest checkpoint |")
    print("|---|---|---|---|---|---|")
    for processes in map(int, sys.argv[1:] or (1, 2)):
      for phase in PHASES:
        for name, signals in SIGNALS.items():
          seconds, codes, kept = cell(phase, signals, processes, data)
          codes = ", ".join(_ENDS_BY.get(code, str(code)) for code in codes)
          print(f"| {phase} | {name} | {processes} | {seconds:.1f} | {codes} | {kept} |", flush=True)


if __name__ == "__main__":
  main()
