"""Every path that a user gives, by a flag, a config or the environment, passes here before anything is done with it."""

import os
import re

from bn_inception.errors import UserError


class PathError(UserError, ValueError):
  """Something that is no path on this machine; the text is one sentence that says what to give instead."""


def local(path: str | os.PathLike, name: str) -> str:
  """A path with ~ expanded, else as it was given.

  Args:
    path: what the user gave.
    name: what the user calls it, such as '--workdir'.

  Raises:
    PathError: if it is empty, a URL, or of a user that there is not.
  """
  path = os.fspath(path)
  if not path.strip():
    raise PathError(f"{name} is empty: give a path.")
  if "\0" in path:
    raise PathError(f"{name} {path!r} holds a null character: give a path without.")
  # As TensorFlow, fsspec and gcloud write them; libraries here would take one as the name of a local folder.
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
    raise PathError(
      f"{name} '{path}' is a URL and not a path: mount the bucket or file system (e.g. with gcsfuse) and give the path."
    )
  expanded = os.path.expanduser(path)
  if expanded.startswith("~") and not os.path.exists(expanded):
    raise PathError(f"{name} '{path}' is of a user that this machine does not know: write the path out.")
  return expanded
