"""Errors that a user can mend, in a file of their own: to recognise one, a script need not load what raises it.

The text of each is one sentence that says what is wrong and what to do.
"""


class UserError(Exception):
  """What scripts end with as a sentence and without a traceback (command_line.py)."""


class DataError(UserError, ValueError):
  """Something is wrong with the data or with what was asked of it."""


class StartAgainError(UserError):
  """What may pass by itself, such as a lost host: the same command, given again, goes on."""
