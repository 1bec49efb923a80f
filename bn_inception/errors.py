"""Errors that a user can mend. The text of each error is one sentence that says what is wrong and what to do.

The errors have a file of their own, so that a script can recognise an error without loading the module that raises it.
"""


class UserError(Exception):
  """Scripts end with the sentence of this error and without a traceback (command_line.py)."""


class DataError(UserError, ValueError):
  """Something is wrong with the data, or the data do not have what was asked for."""


class StorageError(UserError):
  """A folder or file cannot be written: the disk is full, read-only, or not this user's."""


class StartAgainError(UserError):
  """The fault may pass by itself (a lost host). The same command, given again, goes on."""


class Stopped(Exception):
  """The program was asked to stop (SIGTERM, SIGINT), and nothing has to be saved any more."""
