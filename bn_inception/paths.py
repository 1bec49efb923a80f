"""Checks every path that a user gives by a flag, a config or the environment, before the path is used."""

import os
import re

from bn_inception.errors import UserError

HUB = "hf://"  # How an address on the Hugging Face Hub begins.


class PathError(UserError, ValueError):
  """A value is no path on this machine. The text is one sentence that says what to give instead."""


def local(path: str | os.PathLike, name: str) -> str:
  """A path with ~ expanded, otherwise as it was given.

  Args:
    path: what the user gave.
    name: the user's name for the path, such as '--workdir'.

  Raises:
    PathError: if the path is empty, a URL, or of a user that does not exist.
  """
  path = os.fspath(path)
  if not path.strip():
    raise PathError(f"{name} is empty: give a path.")
  if "\0" in path:
    raise PathError(f"{name} {path!r} holds a null character: give a path without this character.")
  # The URLs of TensorFlow, fsspec and gcloud. Libraries here would take such a URL as the name of a local folder.
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
    raise PathError(
      f"{name} '{path}' is a URL and not a path: mount the bucket or file system (e.g. with gcsfuse) and give the path."
    )
  expanded = os.path.expanduser(path)
  if expanded.startswith("~") and not os.path.exists(expanded):
    raise PathError(f"{name} '{path}' is of a user that this machine does not know: write the path out.")
  return expanded


def local_or_hub(path: str | os.PathLike, name: str) -> str:
  """A path as of `local`; an address on the Hugging Face Hub, "hf://user/name", as it is.

  `release.hub.local_path` finds where the address lies here.

  Raises:
    PathError: as `local`.
  """
  path = os.fspath(path)
  return path if path.startswith(HUB) else local(path, name)
