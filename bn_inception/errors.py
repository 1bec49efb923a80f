"""Errors that a user can mend, in a file of their own: to recognise one, a script need not load what raises it.

The text of each is one sentence that says what is wrong and what to do.
"""


class UserError(Exception):
  """What scripts end with as a sentence and without a traceback (command_line.py)."""


class DataError(UserError, ValueError):
  """Something is wrong with the data or with what was asked of it."""


class StorageError(UserError):
  """A folder or file cannot be written: the disk is full, read-only, or not this user's."""


class StartAgainError(UserError):
  """What may pass by itself, such as a lost host: the same command, given again, goes on."""


class Stopped(Exception):
  """The program was asked to stop (SIGTERM, SIGINT) where nothing has to be saved, or all is."""
