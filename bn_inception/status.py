"""How a run can stand, and the exit code that its program ends with: one table for programs, launchers and plans."""

from bn_inception.errors import StartAgainError, Stopped, UserError

# In status.json.
RUNNING = "running"  # Or killed: its heartbeat tells.
DONE = "done"  # All its steps are made.
DIVERGED = "diverged"  # Loss or parameters are not finite: a result, which another try would only repeat.
PREEMPTED = "preempted"  # It was asked to stop, and saved.
FAILED = "failed"  # An error ended it; status.json has the sentence.

EXIT_DONE = 0
EXIT_FAILED = 1  # A mistake in the code, or an error that nobody foresaw.
EXIT_BAD_INPUT = 2  # What a person has to mend first: flags, config, data, a full disk.
EXIT_DIVERGED = 3
EXIT_START_AGAIN = 75  # EX_TEMPFAIL: what may pass by itself, such as a lost host; the same command goes on.
EXIT_PREEMPTED = 143  # 128 + SIGTERM.

OF_STATUS = {DONE: EXIT_DONE, DIVERGED: EXIT_DIVERGED, PREEMPTED: EXIT_PREEMPTED}


def of_error(error: BaseException) -> int:
  """The exit code of a program that an exception ends."""
  for kind, code in ((Stopped, EXIT_PREEMPTED), (StartAgainError, EXIT_START_AGAIN), (UserError, EXIT_BAD_INPUT)):
    if isinstance(error, kind):
      return code
  return EXIT_FAILED
