"""What a measurement was made on."""

import os
import pathlib
import platform


def cores() -> int:
  """How many processor cores this process may use, which is what JAX uses."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
  """The processor's name where the system tells it, else its architecture."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
