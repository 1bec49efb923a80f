"""Caffe's `.caffemodel`, read without Caffe: a NetParameter of src/caffe/proto/caffe.proto.

A network has the fields layer (100) or, before 2014-10, layers (2); a layer has a name and blobs (1 and 7, in the old
form 4 and 6); a blob has its values as floats (5) or doubles (8), and its shape (7) or the four old dimensions (1-4).
"""

import math
from collections.abc import Iterator

import numpy as np

from bn_inception.release.byte_reader import ByteReader
from bn_inception.release.errors import ReleaseError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NETWORK_LAYERS = {100: (1, 7), 2: (4, 6)}  # Field of a layer: its fields of name and blobs.
_OLD_DIMENSIONS = (1, 2, 3, 4)  # num, channels, height, width.
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8

# The tags of name, layers, input and layer: with one of them a network starts.
_STARTS = (b"\x0a", b"\x12", b"\x1a", b"\xa2\x06")


def recognises(content: bytes) -> bool:
  """Whether these may be the first bytes of a caffemodel; the format has no magic number."""
  return content.startswith(_STARTS)


def read(content: bytes) -> dict[str, np.ndarray]:
  """The blobs of all layers, bit for bit, as "<layer>:<number of the blob>".

  Raises:
    ReleaseError: if it is damaged or no network. The sentence lacks the file's name, which the caller puts before it.
  """
  blobs = {}
  for field, _, layer in _fields(content):
    if field not in _NETWORK_LAYERS:
      continue
    name_field, blob_field = _NETWORK_LAYERS[field]
    parts = list(_fields(layer))
    name = b"".join(bytes(value) for field, wire, value in parts if field == name_field and wire == _BYTES)
    for number, blob in enumerate(value for field, _, value in parts if field == blob_field):
      key = f"{name.decode('utf-8', 'replace')}:{number}"
      if key in blobs:
        raise ReleaseError(f"it has two layers of the name {name.decode('utf-8', 'replace')}")
      blobs[key] = _read_blob(key, blob)
  if not blobs:
    raise ReleaseError("it holds no layer with weights")
  return blobs


def _fields(message: bytes | memoryview | int) -> Iterator[tuple[int, int, int | memoryview]]:
  """(field, wire type, value) of a protobuf message; values are the bytes, or the number of a varint."""
  if isinstance(message, int):
    raise ReleaseError("it is no readable caffemodel: a number stands where a message belongs")
  reader = ByteReader(message)
  while reader.left:
    tag = _varint(reader)
    field, wire = tag >> 3, tag & 7
    if wire == _VARINT:
      yield field, wire, _varint(reader)
    elif wire in (_FIXED64, _FIXED32):
      yield field, wire, reader.take(8 if wire == _FIXED64 else 4)
    elif wire == _BYTES:
      yield field, wire, reader.take(_varint(reader))
    else:
      raise ReleaseError(f"it is no readable caffemodel: a field has the unknown wire type {wire}")


def _varint(reader: ByteReader) -> int:
  value = 0
  for shift in range(0, 70, 7):
    (byte,) = reader.take(1)
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value
  raise ReleaseError("it is no readable caffemodel: a number does not end")


def _read_blob(key: str, blob: int | memoryview) -> np.ndarray:
  parts = list(_fields(blob))
  values = {
    field: b"".join(bytes(value) for number, wire, value in parts if number == field and wire != _VARINT)
    for field in (_DATA, _DOUBLE_DATA)
  }
  dtype, data = ("<f8", values[_DOUBLE_DATA]) if values[_DOUBLE_DATA] else ("<f4", values[_DATA])
  shapes = [value for field, _, value in parts if field == _SHAPE]
  if shapes:
    shape = _dimensions(shapes[-1])
  else:
    old = {field: value for field, wire, value in parts if field in _OLD_DIMENSIONS and wire == _VARINT}
    shape = [old.get(field, 1) for field in _OLD_DIMENSIONS]
  if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
    raise ReleaseError(f"it is damaged: blob {key} of shape {tuple(shape)} has {len(data)} bytes")
  return np.frombuffer(data, dtype).reshape(shape).copy()


def _dimensions(message: int | memoryview) -> list[int]:
  """The sizes of a BlobShape, packed or one by one."""
  sizes = []
  for field, wire, value in _fields(message):
    if field == 1 and wire == _VARINT:
      sizes.append(value)
    elif field == 1 and wire == _BYTES:
      reader = ByteReader(value)
      while reader.left:
        sizes.append(_varint(reader))
  if len(sizes) > 8:
    raise ReleaseError(f"it is damaged: a blob has {len(sizes)} axes")
  return sizes
