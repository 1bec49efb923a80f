"""What a measurement was made on."""

import pathlib
import platform


def processor() -> str:
  """The processor's name where the system tells it, else its architecture."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
