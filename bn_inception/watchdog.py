"""What a run waits for: where the run's time goes, and a warning when nothing moves for long."""

import contextlib
import faulthandler
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

# What a run does, and what the run waits for meanwhile.
INPUT, STEP, EVALUATION, CHECKPOINT = "input", "step", "evaluation", "checkpoint"
_WAITS_FOR = {
  INPUT: "the next training batch: does the file system of the data answer?",
  STEP: "a training step: do all devices and all other processes go on?",
  EVALUATION: "an evaluation batch: do its data, all devices and all other processes go on?",
  CHECKPOINT: "a checkpoint to be written: does the file system of the run directory answer?",
}

_log = logging.getLogger(__name__)


class Watch:
  """Counts the seconds of each activity. A call with the activity that begins (INPUT, ...) says that the run moved.

  Before the first call nothing is counted or waited for: a compilation takes as long as it takes.
  """

  def __init__(self):
    self.doing: str | None = None
    self.since = time.monotonic()
    self._seconds = dict.fromkeys(_WAITS_FOR, 0.0)

  def __call__(self, doing: str) -> None:
    now = time.monotonic()
    if self.doing:
      self._seconds[self.doing] += now - self.since
    # The thread that watches reads `since` where there is an activity.
    self.since = now
    self.doing = doing

  def take(self) -> dict[str, float]:
    """Seconds of each activity since the last call."""
    if self.doing:
      self(self.doing)
    seconds, self._seconds = self._seconds, dict.fromkeys(_WAITS_FOR, 0.0)
    return seconds


@contextlib.contextmanager
def watching(patience: float, limit: float, give_up: Callable[[str], None]) -> Iterator[Watch]:
  """Watches over the run within.

  Args:
    patience: seconds without a move after which the log says what the run waits for, and stderr shows the stacks of all
      threads. The warning comes again after twice as long, and so on. 0: never.
    limit: seconds after which `give_up` is called with a sentence, in a thread. 0: never.
    give_up: ends the program.
  """
  watch, ended = Watch(), threading.Event()

  def wait() -> None:
    told = 0.0
    while not ended.wait(min(1.0, (patience or limit) / 10)):
      if not watch.doing:
        continue
      still = time.monotonic() - watch.since
      if still < patience:
        told = 0.0
      sentence = f"Nothing has moved for {still:.0f} s: waiting for {_WAITS_FOR[watch.doing]}"
      if patience and still > max(patience, 2 * told):
        told = still
        _log.warning("%s The stacks of all threads are on stderr.", sentence)
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
      if limit and still > limit:
        _log.error("%s The program ends.", sentence)
        give_up(sentence)
        return

  thread = threading.Thread(target=wait, name="watchdog", daemon=True)
  if patience or limit:
    thread.start()
  try:
    yield watch
  finally:
    ended.set()
    if thread.is_alive():
      thread.join()
