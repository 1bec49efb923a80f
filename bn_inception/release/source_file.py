"""The bytes of a checkpoint file, out of .xz too, never more than a network of this kind can have."""

import lzma
import pathlib

from bn_inception.release.errors import ReleaseError

# Inception-BN is 45 MB, with auxiliary heads 64 MB, with an optimizer's state three times that.
MAX_BYTES = 512 * 2**20

_XZ_MAGIC = b"\xfd7zXZ\x00"


def read(path: pathlib.Path) -> bytes:
  """The content of a file, decompressed if it is .xz.

  Raises:
    ReleaseError: if there is no such file, it holds more than MAX_BYTES or its compression is damaged.
  """
  try:
    if path.stat().st_size > MAX_BYTES:
      raise ReleaseError(f"{path} has {path.stat().st_size:,} bytes, and more than {MAX_BYTES:,} are not read.")
    content = path.read_bytes()
  except OSError as error:
    raise ReleaseError(f"{path} cannot be read: {error.strerror}.") from error
  return _decompress(content, path) if is_xz(content) else content


def is_xz(content: bytes) -> bool:
  return content.startswith(_XZ_MAGIC)


def _decompress(content: bytes, path: pathlib.Path) -> bytes:
  decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_BYTES)
  try:
    content = decompressor.decompress(content, max_length=MAX_BYTES + 1)
  except lzma.LZMAError as error:
    raise ReleaseError(f"{path} is damaged, its xz compression cannot be undone: {error}.") from error
  if len(content) > MAX_BYTES:
    raise ReleaseError(f"{path} unpacks to more than the {MAX_BYTES:,} bytes that are read.")
  if not decompressor.eof:
    raise ReleaseError(f"{path} is cut off: its xz compression does not end.")
  return content
