"""Reads binary formats field by field, never beyond the end."""

import struct
from typing import Any

from bn_inception.release.errors import ReleaseError


class ByteReader:
  """A position in a buffer."""

  def __init__(self, content: bytes | memoryview):
    self._content = memoryview(content)
    self._position = 0

  @property
  def left(self) -> int:
    """How many bytes are left."""
    return len(self._content) - self._position

  def take(self, size: int) -> memoryview:
    """The next `size` bytes.

    Raises:
      ReleaseError: if there are not as many.
    """
    if not 0 <= size <= self.left:
      raise ReleaseError("it is cut off or damaged: a part of it reaches beyond its end")
    self._position += size
    return self._content[self._position - size : self._position]

  def numbers(self, layout: str) -> tuple[Any, ...]:
    """The next numbers, little-endian, in `struct`'s notation.

    Raises:
      ReleaseError: if there are not as many bytes.
    """
    return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))
