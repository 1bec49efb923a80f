"""TensorFlow checkpoints of both kinds, through TensorFlow's own reader.

V1 (before 2016-11) is a single table of tensor slices, V2 a table `NAME.index` beside raw `NAME.data-?????-of-?????`
(tensorflow/core/util/tensor_slice_reader.cc, tensor_bundle.h). Both tables end with LevelDB's magic number.
"""

import math
import pathlib
import re
import tempfile

import numpy as np

from bn_inception.release import source_file
from bn_inception.release.errors import ReleaseError

_TABLE_END = (0xDB4775248B80FB57).to_bytes(8, "little")


def recognises(content: bytes) -> bool:
  """Whether a file is a table: a V1 checkpoint or the index of a V2 checkpoint."""
  return content.endswith(_TABLE_END)


def index_of(path: pathlib.Path) -> pathlib.Path:
  """The file to read for any name under which a V2 checkpoint is known: NAME, NAME.index, NAME.data-*, NAME.meta."""
  index = pathlib.Path(re.sub(r"\.(data-\d{5}-of-\d{5}|meta)$", "", str(path)) + ".index")
  return index if index.is_file() else path


def read(path: pathlib.Path, content: bytes) -> dict[str, np.ndarray]:
  """All variables by name, bit for bit.

  Args:
    path: the V1 file or the V2 index; the data of the latter lie beside it.
    content: its content, decompressed.

  Raises:
    ReleaseError: if it is damaged. The sentence lacks the file's name, which the caller puts before it.
  """
  if path.suffix == ".index":
    return _read(str(path.with_suffix("")))
  with tempfile.TemporaryDirectory() as folder:  # TensorFlow reads files only, and the given one may be compressed.
    copy = pathlib.Path(folder) / "checkpoint"
    copy.write_bytes(content)
    return _read(str(copy))


def _read(prefix: str) -> dict[str, np.ndarray]:
  from bn_inception.data.host_tf import tf  # Takes seconds, and no other file needs it.

  try:
    reader = tf.train.load_checkpoint(prefix)
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    if any(dtype.is_quantized or not dtype.is_numpy_compatible or dtype == tf.string for dtype in dtypes.values()):
      raise ReleaseError("it holds values that are no numbers")
    total = sum(math.prod(shape) * dtypes[name].size for name, shape in shapes.items())
    if total > source_file.MAX_BYTES:
      raise ReleaseError(f"its variables have {total:,} bytes, and more than {source_file.MAX_BYTES:,} are not read")
    return {name: np.asarray(reader.get_tensor(name)) for name in shapes}
  except ReleaseError:
    raise
  except Exception as error:  # TensorFlow has a kind of error for each way in which a file can be damaged.
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    raise ReleaseError(f"it is no readable TensorFlow checkpoint ({reason})") from error
