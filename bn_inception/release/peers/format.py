"""What a format of others is to this project."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from bn_inception.release.release_type import Release


def _same_file(path: pathlib.Path) -> pathlib.Path:
  return path


def _nothing(path: pathlib.Path, symbol: str | os.PathLike | None) -> None:
  del path, symbol


class Format(NamedTuple):
  """A row of the table of formats.

  Attributes:
    name: as users call it.
    recognises: whether a file's content, decompressed, is of this format; the first bytes decide, or the last.
    read: makes a release of (path, content, what `read_beside` returned). Its ReleaseError lacks the file's name, which
      the caller puts before it.
    file_of: the file to read for a path that names a checkpoint of several files; other paths stay as they are.
    read_beside: reads what else is needed, of (path, the user's --symbol or None). Its ReleaseError is a sentence.
  """

  name: str
  recognises: Callable[[bytes], bool]
  read: Callable[[pathlib.Path, bytes, Any], Release]
  file_of: Callable[[pathlib.Path], pathlib.Path] = _same_file
  read_beside: Callable[[pathlib.Path, str | os.PathLike | None], Any] = _nothing
