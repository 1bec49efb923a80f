"""Errors that a user can mend. Only this file is imported to recognise them, so that no script loads what it does not use.

The text of each is one sentence that says what is wrong and what to do.
"""


class UserError(Exception):
  """What scripts end with as a sentence and without a traceback (command_line.py)."""


class DataError(UserError, ValueError):
  """Something is wrong with the data or with what was asked of it."""
