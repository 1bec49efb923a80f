"""Signals that reach the program while it waits inside a compilation, a collective or a file system.

Python runs its signal handlers between two Python instructions, which may be minutes apart. Python's C handler writes
the signal's number into a pipe at once, and a thread reads the number there.
"""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable

STOPPING = (signal.SIGTERM, signal.SIGINT)

_listening = False


def listen(on_stop: Callable[[str], None]) -> None:
  """From now on calls `on_stop` in a thread with the name of every SIGTERM and SIGINT.

  These signals have no other effect. SIGUSR1 prints the stacks of all threads. The main thread of a program calls this
  function once.
  """
  global _listening
  _listening = True
  read, write = os.pipe()
  os.set_blocking(write, False)
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  claim()
  faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)

  def wait() -> None:
    while numbers := os.read(read, 64):
      for number in numbers:
        if number in STOPPING:
          on_stop(signal.Signals(number).name)

  threading.Thread(target=wait, name="signals", daemon=True).start()


def claim() -> None:
  """Takes the signals back from a library that set handlers of its own."""
  for number in STOPPING:
    signal.signal(number, lambda *_: None)  # Only a signal with a Python handler reaches Python's C handler.


def is_listening() -> bool:
  return _listening
