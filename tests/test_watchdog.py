"""Where a run's time goes, and what is said when nothing moves."""

import logging
import time

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
  times = iter([10.0, 11.0, 13.0, 17.0, 17.0])
  monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(times))
  watch = watchdog.Watch()  # At 10 it makes a step.
  watch(watchdog.INPUT)
  watch(watchdog.CHECKPOINT)
  assert watch.take() == {"input": 2.0, "step": 1.0, "evaluation": 0.0, "checkpoint": 4.0}
  assert sum(watch.take().values()) == 0.0
