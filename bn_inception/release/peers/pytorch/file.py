"""PyTorch state dicts, read and written without PyTorch, and read without executing what is pickled.

Both containers of `torch.save` (torch/serialization.py): since 1.6 a zip archive with `data.pkl` and one file for each
storage; before, five consecutive pickles (magic number, protocol, system, the object, the storages' keys), then for
each key an int64 number of elements and the raw data. Files of Python 2 and PyTorch 0.3 have byte strings for names and
`_rebuild_tensor` for `_rebuild_tensor_v2`.

A pickle is a program. Python's unpickler never sees it: `_load_pickle` knows the instructions that state dicts consist
of, and no other; the names that they may look up (`_find`) stand for inert values here, never for PyTorch's.
"""

import io
import itertools
import math
import pickletools
import struct
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from bn_inception.release.errors import ReleaseError
from bn_inception.release.source_file import MAX_BYTES

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_ZIP_START = b"PK\x03\x04"

_BFLOAT16 = "BFloat16Storage"
_DTYPES = {
  "FloatStorage": "<f4",
  "DoubleStorage": "<f8",
  "HalfStorage": "<f2",
  "LongStorage": "<i8",
  "IntStorage": "<i4",
  "ShortStorage": "<i2",
  "CharStorage": "<i1",
  "ByteStorage": "<u1",
  "BoolStorage": "|b1",
  _BFLOAT16: "<u2",
}  # NumPy has no bfloat16: its bits, which `_materialize` widens.

_PUSHED_ARGUMENT = frozenset(
  "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING".split()
)
_PUSHED_VALUE = {
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_TUPLE": tuple,
  "EMPTY_LIST": list,
  "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")  # Of DataParallel, torch.compile, Lightning.
_AVERAGED = "n_averaged"  # What AveragedModel keeps beside its "module.".
# Of settings and numbers that training scripts save beside the network: nothing is made of them.
_INERT = frozenset(
  [
    ("argparse", "Namespace"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("torch", "Size"),
  ]
)
_MAX_WRAPPERS = 4
_MAX_AXES = 8
_MAX_INSTRUCTIONS = 10**6  # Inception-BN has 20,000.


class _Storage(NamedTuple):
  dtype: str
  key: str
  size: int  # In elements.


class _Tensor(NamedTuple):
  """A view of a storage; offset and strides in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
  """Stands for the functions of torch._utils; later versions have more arguments, about gradients."""
  sizes = [offset, *shape, *strides] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
  if (
    not isinstance(storage, _Storage)
    or not all(isinstance(size, int) for size in sizes)
    or (len(sizes) > 1 + 2 * _MAX_AXES)
  ):
    raise ReleaseError("its pickle makes a tensor of something else than a storage and its shape")
  return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
  return tensor


def _nothing(*_: Any) -> None:
  """Stands for what is in _INERT."""


def _set_items(target: Any, items: list[Any]) -> None:
  """Of a dict, whose keys are text, or the numbers of an optimizer's state.

  Others would be hashed, which takes forever for what a hostile file can nest.
  """
  if not isinstance(target, dict) or not all(isinstance(key, (str, int)) for key in items[::2]):
    raise ReleaseError("it holds something else than a state dict, which is a dict of tensors by name")
  target.update(zip(items[::2], items[1::2], strict=True))


def _ordered_dict(pairs: Any = ()) -> dict[str, Any]:
  """Stands for collections.OrderedDict, to which Python 2 gives its items as a list of pairs."""
  result = {}
  for key, value in pairs:
    _set_items(result, [key, value])
  return result


def _find(module: Any, name: Any) -> Any:
  """What a name in the pickle stands for: the name of a storage's type, or a function."""
  if not isinstance(module, str) or not isinstance(name, str):
    raise ReleaseError("its pickle looks up something that is no name; nothing of it was executed")
  if module in ("torch", "torch.storage") and name in _DTYPES:
    return name
  known = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
  }
  if (module, name) in _INERT:
    return _nothing
  if (module, name) not in known:
    raise ReleaseError(
      f"its pickle asks for {module}.{name}, which no state dict needs, and nothing of it was executed: "
      "save the network's state_dict() alone"
    )
  return known[module, name]


def _find_storage(saved_id: Any) -> _Storage:
  """What a persistent id in the pickle stands for."""
  kind, dtype, key, _, size = saved_id[:5]
  texts = all(isinstance(text, str) for text in (kind, dtype, key))
  if not texts or kind != "storage" or dtype not in _DTYPES or not isinstance(size, int):
    raise ReleaseError("its pickle refers to something that is not a storage")
  if len(saved_id) > 5 and saved_id[5] is not None:
    raise ReleaseError("it holds views of storages in the layout of PyTorch 0.1, which is not read")
  return _Storage(dtype, key, size)


def recognises(content: bytes) -> bool:
  """Whether these are the first bytes of a PyTorch file, of either container."""
  pickled_magic_number = content[:1] == b"\x80" and _MAGIC_NUMBER.to_bytes(10, "little") in content[:32]
  return content.startswith(_ZIP_START) or pickled_magic_number


def read(content: bytes) -> dict[str, np.ndarray]:
  """The tensors of a state dict by name, bit for bit.

  Args:
    content: the whole file.

  Raises:
    ReleaseError: if it is damaged, no state dict, or asks for anything to be executed. The sentence lacks the file's
      name, which the caller puts before it.
  """
  try:
    tree, storages = (_read_zip if content.startswith(_ZIP_START) else _read_legacy)(content)
    return _tensors(tree, storages)
  except ReleaseError:
    raise
  except Exception as error:  # A damaged pickle or archive fails in any of many ways.
    raise ReleaseError(f"it is no readable PyTorch file ({type(error).__name__}: {error})") from error


def _load_pickle(stream: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
  """Reads the pickle that starts here, and leaves the stream behind it; `storages` receives those it refers to.

  What it makes are numbers, text, tuples, lists, dicts, `_Storage` and `_Tensor`. They may be nested and shared without
  bound: nothing but the types of the innermost are looked at, never a hash or the text of the whole.
  """
  stack, marks, memo = [], [], {}

  def pop_to_mark() -> list[Any]:
    first = marks.pop()
    items = stack[first:]
    del stack[first:]
    return items

  # This decodes instructions and runs none.
  for opcode, argument, _ in itertools.islice(pickletools.genops(stream), _MAX_INSTRUCTIONS):
    match opcode.name:
      case "PROTO" | "FRAME":
        pass
      case name if name in _PUSHED_ARGUMENT:
        stack.append(argument)  # Byte strings of Python 2 are decoded as latin1, which never fails; names are ASCII.
      case name if name in _PUSHED_VALUE:
        stack.append(_PUSHED_VALUE[name]())
      case "MARK":
        marks.append(len(stack))
      case "TUPLE":
        stack.append(tuple(pop_to_mark()))
      case name if name in _TUPLES:
        items = [stack.pop() for _ in range(_TUPLES[name])]
        stack.append(tuple(items[::-1]))
      case "APPEND" | "APPENDS":
        items = [stack.pop()] if opcode.name == "APPEND" else pop_to_mark()
        if not isinstance(stack[-1], list):
          raise ReleaseError("its pickle appends to something that is not a list")
        stack[-1].extend(items)
      case "SETITEM" | "SETITEMS":
        items = [stack.pop(), stack.pop()][::-1] if opcode.name == "SETITEM" else pop_to_mark()
        _set_items(stack[-1], items)
      case "BINPUT" | "LONG_BINPUT":
        memo[argument] = stack[-1]
      case "MEMOIZE":
        memo[len(memo)] = stack[-1]
      case "BINGET" | "LONG_BINGET":
        stack.append(memo[argument])
      case "GLOBAL":
        stack.append(_find(*argument.split(" ", 1)))
      case "STACK_GLOBAL":
        name, module = stack.pop(), stack.pop()
        stack.append(_find(module, name))
      case "BINPERSID":
        storage = _find_storage(stack.pop())
        if storages is not None:
          storages[storage.key] = storage
        stack.append(storage)
      case "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        if function not in (_ordered_dict, _rebuild_tensor, _rebuild_parameter, _nothing):
          raise ReleaseError("its pickle calls something that is no function")
        stack.append(function(*arguments))
      case "NEWOBJ":
        _, function = stack.pop(), stack.pop()
        if function is not _nothing:
          raise ReleaseError("its pickle makes an object, which no state dict needs; nothing of it was executed")
        stack.append(None)
      case "BUILD":  # Attributes, such as the versions of PyTorch's layers.
        stack.pop()
      case "STOP":
        return stack.pop()
      case name:
        raise ReleaseError(
          f"its pickle has the instruction {name}, which no state dict needs; nothing of it was executed"
        )
  raise ReleaseError(f"its pickle does not end after {_MAX_INSTRUCTIONS:,} instructions")


def _read_zip(content: bytes) -> tuple[Any, dict[str, bytes]]:
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
    if "data.pkl" not in members:
      raise ReleaseError("it is a zip archive, but not one of PyTorch's: it has no data.pkl")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
      raise ReleaseError("its archive is compressed, as PyTorch writes none; it was not unpacked")
    if sum(member.file_size for member in members.values()) > len(content):
      raise ReleaseError("its archive claims to hold more than the file does; it was not unpacked")
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
      raise ReleaseError("it was written on a big-endian machine, which is not read")
    tree = _load_pickle(io.BytesIO(archive.read(members["data.pkl"])))
    return tree, {
      name.removeprefix("data/"): archive.read(member) for name, member in members.items() if name.startswith("data/")
    }


def _read_legacy(content: bytes) -> tuple[Any, dict[str, bytes]]:
  stream = io.BytesIO(content)
  known = {}  # Of an optimizer too, whose data stand among those of the network.
  _, protocol, system, tree, keys = (_load_pickle(stream, known) for _ in range(5))
  if protocol != 1001 or not system["little_endian"]:
    raise ReleaseError("its protocol, which is not 1001, or its byte order is not read")
  sizes = {key: np.dtype(_DTYPES[storage.dtype]).itemsize for key, storage in known.items()}
  storages = {}
  for key in keys:
    if not isinstance(key, str):
      raise ReleaseError("its list of storages holds something that is no name")
    size = int.from_bytes(stream.read(8), "little")
    storages[key] = stream.read(min(size * sizes[key], len(content)))
  return tree, storages


def _named_tensors(tree: Any) -> dict[str, _Tensor]:
  """The state dict, of a checkpoint too, which has it beside an epoch, an optimizer, a best accuracy and others.

  There it is what one of _WRAPPERS names, else the only dict of tensors. The names are those of the network itself,
  without the prefix that what wrapped it in training has put before all of them.
  """
  for _ in range(_MAX_WRAPPERS):  # A hostile dict may hold itself.
    if not isinstance(tree, dict):
      break
    inner = [name for name in _WRAPPERS if isinstance(tree.get(name), dict) and tree[name]]
    inner = inner or [name for name, value in tree.items() if _is_state_dict(value)]
    if len(inner) != 1:
      break
    tree = tree[inner[0]]
  if not _is_state_dict(tree) and tree != {}:
    raise ReleaseError(
      "it holds something else than a state dict, which is a dict of tensors by name, or a checkpoint "
      f"with one as {' or '.join(_WRAPPERS)}"
    )
  while prefix := next(
    (
      prefix
      for prefix in _PREFIXES
      if any(name.startswith(prefix) for name in tree)
      and all(name.startswith(prefix) or name == _AVERAGED for name in tree)
    ),
    None,
  ):
    tree = {name.removeprefix(prefix): tensor for name, tensor in tree.items() if name != _AVERAGED}
  return dict(tree)


def _is_state_dict(tree: Any) -> bool:
  return (
    isinstance(tree, dict)
    and bool(tree)
    and all(isinstance(name, str) and isinstance(tensor, _Tensor) for name, tensor in tree.items())
  )


def _tensors(tree: Any, storages: dict[str, bytes]) -> dict[str, np.ndarray]:
  tensors = _named_tensors(tree)
  total = sum(math.prod(tensor.shape) * np.dtype(_DTYPES[tensor.storage.dtype]).itemsize for tensor in tensors.values())
  if total > MAX_BYTES:
    raise ReleaseError(f"its tensors have {total:,} bytes, and more than {MAX_BYTES:,} are not read")
  return {name: _materialize(name, tensor, storages) for name, tensor in tensors.items()}


def _materialize(name: str, tensor: _Tensor, storages: dict[str, bytes]) -> np.ndarray:
  """Copies a view out of its storage, all bounds checked."""
  storage, offset, shape, strides = tensor
  dtype = np.dtype(_DTYPES[storage.dtype])
  if len(storages.get(storage.key, b"")) != storage.size * dtype.itemsize:
    raise ReleaseError(f"the storage of {name} is cut off or missing")
  if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
    raise ReleaseError(f"{name} has the impossible shape {shape} and strides {strides}")
  last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
  if math.prod(shape) > storage.size or (math.prod(shape) and last >= storage.size):
    raise ReleaseError(f"{name} reaches beyond its storage")
  if not math.prod(shape):
    return np.zeros(shape, "<f4" if storage.dtype == _BFLOAT16 else dtype)
  flat = np.frombuffer(storages[storage.key], dtype)[offset:]
  values = np.lib.stride_tricks.as_strided(flat, shape, [stride * dtype.itemsize for stride in strides]).copy()
  # A bfloat16 is the first half of a float32.
  return (values.astype("<u4") << 16).view("<f4") if storage.dtype == _BFLOAT16 else values


# ------------------------------------------------------------------------------------------------------------- writing

_STORAGES = {np.dtype(dtype): name for name, dtype in _DTYPES.items() if name != _BFLOAT16}
DTYPE_NAMES = frozenset(dtype.name for dtype in _STORAGES)

_ALIGNMENT = 64  # Of the storages in the file, as PyTorch has it for mapping them into memory.
_LOCAL_HEADER = 30  # Bytes of a zip member's header before its name.


def write(tensors: dict[str, np.ndarray]) -> bytes:
  """A file that `torch.load` reads as an OrderedDict of CPU tensors, with `weights_only` too.

  Args:
    tensors: by name, in their order; little-endian types that PyTorch has.

  Returns:
    The zip container, the same bytes for the same tensors.
  """
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

    def add(name: str, content: bytes) -> None:
      member = zipfile.ZipInfo(f"archive/{name}")
      unaligned = file.tell() + _LOCAL_HEADER + len(member.filename) + 4
      padding = -unaligned % _ALIGNMENT
      member.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
      archive.writestr(member, content)

    add("data.pkl", _pickle(tensors))
    add("byteorder", b"little")
    for key, tensor in enumerate(tensors.values()):
      add(f"data/{key}", np.ascontiguousarray(tensor).tobytes())
    add("version", b"3\n")
  return file.getvalue()


def _pickle(tensors: dict[str, np.ndarray]) -> bytes:
  """The pickle, protocol 2, of an OrderedDict of tensors, tensor n in storage n."""
  empty_dict = b"ccollections\nOrderedDict\n)R"
  program = bytearray(b"\x80\x02" + empty_dict + b"(")
  for key, (name, tensor) in enumerate(tensors.items()):
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)]
    storage = (
      b"("
      + _string("storage")
      + f"ctorch\n{_STORAGES[tensor.dtype]}\n".encode()
      + _string(str(key))
      + _string("cpu")
      + _integer(tensor.size)
      + b"tQ"
    )
    program += (
      _string(name)
      + b"ctorch._utils\n_rebuild_tensor_v2\n("
      + storage
      + _integer(0)
      + _tuple(tensor.shape)
      + _tuple(strides)
      + b"\x89"
      + empty_dict
      + b"tR"
    )
  return bytes(program + b"u.")


def _string(text: str) -> bytes:
  encoded = text.encode()
  return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
  return b"J" + struct.pack("<i", value)


def _tuple(values: Iterable[int]) -> bytes:
  return b"(" + b"".join(map(_integer, values)) + b"t"
