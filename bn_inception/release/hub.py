"""Release folders on the Hugging Face Hub."""

import os
import pathlib
import re

from bn_inception import paths
from bn_inception.release.errors import ReleaseError


def local_path(path: str | os.PathLike) -> pathlib.Path:
  """The path of a release on this machine.

  Args:
    path: "hf://user/name" or "hf://user/name@revision", which is downloaded, or found in the hub's own cache; or any
      path here, which is returned as it is.

  Raises:
    PathError: for another URL.
    ReleaseError: if it cannot be downloaded, or huggingface_hub is not installed.
  """
  text = os.fspath(path)
  if not text.startswith(paths.HUB):
    return pathlib.Path(paths.local(path, "A checkpoint"))
  named = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", text.removeprefix(paths.HUB))
  if not named:
    raise ReleaseError(f"{text} names no repository: give hf://user/name or hf://user/name@revision.")
  try:
    import huggingface_hub
  except ModuleNotFoundError as error:
    raise ReleaseError(f"{text} needs huggingface_hub, which is not installed: pip install -e '.[hub]'.") from error
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        named[1], revision=named[2], allow_patterns=["*.json", "*.txt", "*.safetensors", "README.md"]
      )
    )
  except Exception as error:  # The hub has many errors, and those of its connections.
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    raise ReleaseError(f"{text} cannot be downloaded ({type(error).__name__}: {reason}).") from error
