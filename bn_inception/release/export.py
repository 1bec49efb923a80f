"""Releases as files of PyTorch."""

import os
import pathlib

from bn_inception.release import folder, peers, torch_file
from bn_inception.release.errors import ReleaseError
from bn_inception.release.released import Release


def write_torch(release: Release, path: str | os.PathLike) -> None:
  """Writes a release as a state dict of pretrained-models.pytorch's `bninception`, see `peers.to_torch`.

  Raises:
    ReleaseError: if that network cannot hold it, there is something in its place already, or it cannot be written.
  """
  path = pathlib.Path(path)
  folder.check_free(path)
  try:
    content = torch_file.write(peers.to_torch(release))
  except ReleaseError as error:
    raise ReleaseError(f"This network cannot be exported: {error}.") from error
  temporary = path.with_name(f".{path.name}.partial")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.write_file(temporary, content)
    temporary.replace(path)
  except OSError as error:
    raise ReleaseError(f"{path} cannot be written: {error.strerror}.") from error
  finally:
    if path.parent.is_dir():
      temporary.unlink(missing_ok=True)
