"""How many cores this process may use: what thread counts follow."""

import os


def available() -> int:
  """The cores that this process may run on: a container or scheduler often allows fewer than the machine has.

  Where the platform does not tell (macOS, Windows), all cores of the machine.
  """
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
