"""MXNet's `.params` and `-symbol.json`, read without MXNet.

Arrays (src/ndarray/ndarray.cc, NDArray::Save): uint64 0x112, uint64 0, the number of arrays, the arrays, the number of
names, the names. An array starts with a magic number since 2017, with the number of its axes before. The graph
(nnvm's saveload_json, until 2016 MXNet's static_graph.cc): a list of nodes whose settings, all strings, are called
"param" (2016), "attr" or "attrs".
"""

import ast
import json
import math
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from bn_inception.release import source_file
from bn_inception.release.byte_reader import ByteReader
from bn_inception.release.errors import ReleaseError

_FILE_START = (0x112).to_bytes(8, "little") + bytes(8)
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA  # V3: shapes as in NumPy, a scalar has no axes.
_DTYPES = ("<f4", "<f8", "<f2", "<u1", "<i4", "<i1", "<i8")


class Node(NamedTuple):
  """A node of the graph: its operator, name, settings as text, and the names of the nodes it reads."""

  operator: str
  name: str
  settings: dict[str, str]
  inputs: tuple[str, ...]

  def value(self, name: str, default: Any) -> Any:
    """A setting as a Python value, or MXNet's default where the file leaves it out."""
    if name not in self.settings:
      return default
    text = self.settings[name]
    try:
      # Literals only: numbers, tuples, True and False (MXNet takes "true" and "false" too).
      return ast.literal_eval(text.capitalize() if text.lower() in ("true", "false") else text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      return text


def recognises(content: bytes) -> bool:
  """Whether these are the first bytes of a `.params` file."""
  return content.startswith(_FILE_START)


def read(content: bytes) -> dict[str, np.ndarray]:
  """The arrays of a `.params` file by name ("arg:conv_1_weight"), bit for bit.

  Raises:
    ReleaseError: if it is damaged. The sentence lacks the file's name, which the caller puts before it.
  """
  reader = ByteReader(content)
  reader.take(len(_FILE_START))
  arrays = [_read_array(reader) for _ in range(_count(reader))]
  names = [_read_name(reader) for _ in range(_count(reader))]
  if len(names) != len(arrays) or len(set(names)) != len(names) or reader.left:
    raise ReleaseError(
      f"it is damaged: {len(arrays)} arrays have {len(set(names))} names, and {reader.left} bytes are left"
    )
  return dict(zip(names, arrays))


def _count(reader: ByteReader) -> int:
  (count,) = reader.numbers("Q")
  if count > reader.left // 4:  # The shortest array and the shortest name have more than 4 bytes.
    raise ReleaseError(f"it is damaged: it claims to hold {count} arrays")
  return count


def _read_array(reader: ByteReader) -> np.ndarray:
  (version,) = reader.numbers("I")
  if version in (_V2, _V3):
    storage_type, axes = reader.numbers("iI")
    if storage_type:
      raise ReleaseError("it holds a sparse array, which is not read")
  else:
    axes = reader.numbers("I")[0] if version == _V1 else version
  if axes > 8:
    raise ReleaseError(f"it is damaged: an array has {axes} axes")
  shape = reader.numbers(f"{axes}{'q' if version in (_V1, _V2, _V3) else 'I'}")
  if min(shape, default=version == _V3) < 1:
    raise ReleaseError(f"it is damaged: an array has the shape {shape}")
  _, _, dtype = reader.numbers("iii")  # The device it was on does not matter.
  if not 0 <= dtype < len(_DTYPES):
    raise ReleaseError(f"it is damaged or new: an array has the type number {dtype}")
  dtype = np.dtype(_DTYPES[dtype])
  return np.frombuffer(reader.take(math.prod(shape) * dtype.itemsize), dtype).reshape(shape).copy()


def _read_name(reader: ByteReader) -> str:
  (length,) = reader.numbers("Q")
  return bytes(reader.take(length)).decode("utf-8", "replace")


def symbol_beside(path: pathlib.Path) -> pathlib.Path:
  """Where MXNet keeps the graph of a `.params` file: NAME-symbol.json (or its .xz) beside NAME-0126.params.

  Raises:
    ReleaseError: if it is not there.
  """
  symbol = path.with_name(re.sub(r"(-\d+)?(\.params)?(\.xz)?$", "", path.name) + "-symbol.json")
  for candidate in (symbol, symbol.with_name(f"{symbol.name}.xz")):
    if candidate.is_file():
      return candidate
  raise ReleaseError(
    f"{path} needs its graph, which says how the network pools and normalizes, and {symbol} does "
    "not exist: put it there, or import the network with --symbol."
  )


def read_symbol(path: pathlib.Path) -> list[Node]:
  """The nodes of a `-symbol.json`, in the order of computation.

  Raises:
    ReleaseError: if it is no such file.
  """
  content = source_file.read(path)
  try:
    nodes = json.loads(content)["nodes"]
    names = [node["name"] for node in nodes]
    nodes = [
      Node(
        node["op"],
        node["name"],
        dict(node.get("attrs") or {}) | dict(node.get("attr") or {}) | dict(node.get("param") or {}),
        tuple(names[entry[0]] for entry in node["inputs"]),
      )
      for node in nodes
    ]
    if not all(
      isinstance(text, str)
      for node in nodes
      for text in (node.operator, node.name, *node.settings, *node.settings.values())
    ):
      raise TypeError("a name or a setting is no text")
    return nodes
  except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
    raise ReleaseError(f"{path} is no graph of MXNet's ({type(error).__name__}: {error}).") from error
