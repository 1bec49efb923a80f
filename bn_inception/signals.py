"""Signals that reach the program while it waits inside a compilation, a collective or a file system.

Python runs its handlers between two of its own instructions, which may be minutes apart. Its C handler writes the
signal's number into a pipe at once; a thread reads it there.
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
  """From now on calls `on_stop` with the name of every SIGTERM and SIGINT, in a thread; neither has another effect.

  SIGUSR1 prints the stacks of all threads. To be called by the main thread of a program, once.
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
    signal.signal(number, lambda *_: None)  # With a handler of Python's, so that its C handler is called.


def is_listening() -> bool:
  return _listening
