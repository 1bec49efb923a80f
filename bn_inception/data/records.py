"""Random access to the records of a split: serialized tf.train.Examples, by their index in stored order.

ArrayRecord files have an index of their own. TFRecord files do not: theirs is built when they are opened, by reading
the header before each record (a small part of the file, many files at a time), so that both can be shuffled freely and
a run can resume anywhere. Records are read from the files as they are asked for; only offsets stay in memory.
"""

from collections.abc import Sequence
import concurrent.futures
import os
import resource
import struct
from typing import Protocol

from array_record.python import array_record_module
import numpy as np

from bn_inception.data.datasets import DataError, Split

# A TFRecord is: uint64 length of the data, uint32 CRC of that length, the data, uint32 CRC of the data.
_TFRECORD_LENGTH, _TFRECORD_HEADER, _TFRECORD_FOOTER = struct.Struct("<Q"), 12, 4


class _Shard(Protocol):
  """One open file."""

  def __len__(self) -> int:
    ...

  def read(self, rows: Sequence[int]) -> list[bytes]:
    ...


class Records:
  """The records of a split; see `open_records`. Reading is thread-safe."""

  def __init__(self, split: Split, shards: Sequence[_Shard]):
    self._split = split
    self._shards = shards
    self._ends = np.cumsum(split.shard_lengths)

  def __len__(self) -> int:
    return self._split.num_examples

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """The serialized records at `indices` (each in [0, len)), in that order."""
    indices = np.asarray(indices, np.int64)
    if len(indices) and not (0 <= indices.min() and indices.max() < len(self)):
      raise DataError(f"{self._split.name} {self._split.split} has records 0 to {len(self) - 1}: ask for one of them.")
    shards = np.searchsorted(self._ends, indices, side="right")
    records = [b""] * len(indices)
    for shard in np.unique(shards):
      here = np.flatnonzero(shards == shard)
      rows = indices[here] - (self._ends[shard] - self._split.shard_lengths[shard]) + self._split.shard_starts[shard]
      for place, record in zip(here, self._shards[shard].read(rows.tolist())):
        records[place] = record
    return records


def open_records(split: Split) -> Records:
  """Opens all files of a split and checks that each holds as many records as the data set says.

  Raises:
    DataError: naming the file, if one is missing, damaged or has another number of records.
  """
  opener = {"tfrecord": _TFRecordShard, "array_record": _ArrayRecordShard}[split.file_format]

  def open_shard(path: str, num_records: int) -> _Shard:
    try:
      shard = opener(path)
      if len(shard) == num_records:
        return shard
      problem = f"holds {len(shard)} whole records instead of {num_records}"
    except (OSError, ValueError, RuntimeError) as error:  # ArrayRecord raises all three.
      problem = f"cannot be read ({str(error).splitlines()[0]})"
    raise DataError(f"A file of {split.name} is damaged or missing: {path} {problem}; restore it or prepare it again.")

  if split.file_format == "array_record":
    _allow_open_files(len(split.files))
  with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:
    return Records(split, list(pool.map(open_shard, split.files, split.file_lengths)))


def _allow_open_files(count: int) -> None:
  """Lets the process keep `count` more files open, if the system permits; ImageNet alone has the usual limit, 1,024."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY:
    wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _TFRecordShard:
  """A TFRecord file and the offset and length of each whole record in it."""

  def __init__(self, path: str):
    self._path = path
    offsets, lengths = [], []
    with open(path, "rb") as file:
      descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
      position = 0
      while position + _TFRECORD_HEADER + _TFRECORD_FOOTER <= size:
        (length,) = _TFRECORD_LENGTH.unpack(os.pread(descriptor, _TFRECORD_LENGTH.size, position))
        start = position + _TFRECORD_HEADER
        position = start + length + _TFRECORD_FOOTER
        if position <= size:
          offsets.append(start)
          lengths.append(length)
    if position != size:
      raise ValueError(f"it is cut off or damaged after {len(offsets)} whole records")
    self._offsets, self._lengths = np.array(offsets, np.int64), np.array(lengths, np.int64)

  def __len__(self) -> int:
    return len(self._offsets)

  def read(self, rows: Sequence[int]) -> list[bytes]:
    # Opened for each read: ImageNet has more files than many systems let a process keep open.
    with open(self._path, "rb") as file:
      return [os.pread(file.fileno(), int(self._lengths[row]), int(self._offsets[row])) for row in rows]


class _ArrayRecordShard:
  """An ArrayRecord file; its reader is thread-safe."""

  def __init__(self, path: str):
    if not os.path.exists(path):
      raise FileNotFoundError("it does not exist")
    # No read-ahead: neighbours in the file are not neighbours in the stream.
    self._reader = array_record_module.ArrayRecordReader(
        path, options="readahead_buffer_size:0", file_reader_buffer_size=32768
    )

  def __len__(self) -> int:
    return self._reader.num_records()

  def read(self, rows: Sequence[int]) -> list[bytes]:
    return self._reader.read(rows)
