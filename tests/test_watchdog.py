"""Where a run's time goes, and what is said when nothing moves."""

import logging
import subprocess
import sys
import time

import pytest

from bn_inception import watchdog


def test_who_waits_long_says_for_what_shows_the_stacks_and_gives_up(caplog, capfd):
  caplog.set_level(logging.WARNING)
  given_up = []
  with watchdog.watching(0.05, 0.3, given_up.append) as watch:
    watch(watchdog.INPUT)
    while not given_up:
      time.sleep(0.01)
  assert "waiting for the next training batch" in given_up[0]
  assert "waiting for the next training batch" in caplog.messages[0] and len(caplog.messages) < 5  # Ever more rarely.
  assert "test_who_waits_long" in capfd.readouterr().err


def test_the_seconds_of_each_add_up(monkeypatch):
  times = iter([9.0, 10.0, 11.0, 13.0, 17.0, 17.0])
  monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(times))
  watch = watchdog.Watch()  # At 9 it compiles, which is not counted.
  assert sum(watch.take().values()) == 0.0
  watch(watchdog.STEP)
  watch(watchdog.INPUT)
  watch(watchdog.CHECKPOINT)
  assert watch.take() == {"input": 2.0, "step": 1.0, "evaluation": 0.0, "checkpoint": 4.0}
  assert sum(watch.take().values()) == 0.0


def test_before_the_first_move_nothing_is_waited_for(caplog):
  """A compilation takes as long as it takes."""
  given_up = []
  with watchdog.watching(0.01, 0.02, given_up.append):
    time.sleep(0.2)
  assert not given_up and not caplog.messages


@pytest.mark.parametrize("storage_hangs", [False, True])
def test_a_program_of_one_process_that_hangs_ends_to_be_started_again(storage_hangs):
  """With the status as its last words; also where the file system on which they are written is what hangs."""
  program = f"""
import time
from bn_inception import hosts, signals, watchdog

def last_words(code, sentence):
  print(code, sentence, flush=True)
  time.sleep(1000 * {storage_hangs:d})

hosts._LEAVE_SECONDS = 0.5
signals.listen(hosts.on_stop)
with hosts.before_exit(last_words), watchdog.watching(0.05, 0.2, lambda text: hosts.leave(75, text)) as watch:
  watch(watchdog.INPUT)
  time.sleep(1000)
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 75, done.stderr
  assert done.stdout.startswith("75 Nothing has moved") and "the next training batch" in done.stdout
  assert "The program ends." in done.stderr
