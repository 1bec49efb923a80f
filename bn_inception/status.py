"""The states of a run and the exit codes of its program: one table for programs, launchers and plans."""

from bn_inception.errors import StartAgainError, Stopped, UserError

# In status.json.
RUNNING = "running"  # Or the run was killed: its heartbeat tells.
DONE = "done"  # All steps of the run are made.
DIVERGED = "diverged"  # Loss or parameters are not finite. This is a result, which another try would only repeat.
PREEMPTED = "preempted"  # The run was asked to stop, and saved a checkpoint.
FAILED = "failed"  # An error ended the run; status.json has the sentence.

EXIT_DONE = 0
EXIT_FAILED = 1  # A mistake in the code, or an error that nobody foresaw.
EXIT_BAD_INPUT = 2  # A person has to mend something first: flags, config, data, a full disk.
EXIT_DIVERGED = 3
EXIT_START_AGAIN = 75  # EX_TEMPFAIL: the fault may pass by itself (a lost host); the same command goes on.
EXIT_PREEMPTED = 143  # 128 + SIGTERM.

OF_STATUS = {DONE: EXIT_DONE, DIVERGED: EXIT_DIVERGED, PREEMPTED: EXIT_PREEMPTED}


def of_error(error: BaseException) -> int:
  """The exit code of a program that `error` ends."""
  for kind, code in ((Stopped, EXIT_PREEMPTED), (StartAgainError, EXIT_START_AGAIN), (UserError, EXIT_BAD_INPUT)):
    if isinstance(error, kind):
      return code
  return EXIT_FAILED
