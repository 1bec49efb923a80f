"""Random access to the records of a split: serialized tf.train.Examples, by their index in stored order.

ArrayRecord files have an index of their own. TFRecord files do not: theirs is built when they are opened, by reading
the header before each record (a small part of the file, many files at a time), so that both can be shuffled freely and
a run can resume anywhere. Records are read from the files as they are asked for; only offsets stay in memory.

Every byte is checked as it is read: TFRecord's CRC-32C here, ArrayRecord's hashes by its reader.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import resource
import struct
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import google_crc32c
import numpy as np
from array_record.python import array_record_module
from google.protobuf import message

from bn_inception.data.datasets import DataError, Split
from bn_inception.data.host_tf import tf

# A TFRecord is: uint64 length of the data, uint32 CRC of that length, the data, uint32 CRC of the data.
_TFRECORD_HEADER, _TFRECORD_FOOTER = struct.Struct("<QI"), struct.Struct("<I")

_DIGEST_RECORDS = 256


class BadRecordError(DataError):
  """A record whose bytes are not those that were written, or are no image; the text names it."""


class _Shard(Protocol):
  """One open file."""

  def __len__(self) -> int: ...

  def read(self, rows: Sequence[int]) -> list[bytes]: ...


class Records:
  """The records of a split; see `open_records`. Reading is thread-safe."""

  def __init__(self, split: Split, shards: Sequence[_Shard]):
    self._split = split
    self._shards = shards
    self._ends = np.cumsum(split.shard_lengths)
    self._reading: dict[int, tuple[float, str]] = {}  # By thread: since when, and what.

  def __len__(self) -> int:
    return self._split.num_examples

  def read(self, indices: Sequence[int]) -> list[bytes]:
    """The serialized records at `indices` (each in [0, len)), in that order.

    Raises:
      BadRecordError: if the bytes of one do not fit their checksum.
      DataError: for an index outside, or a file that cannot be read any more.
    """
    indices = np.asarray(indices, np.int64)
    if len(indices) and not (0 <= indices.min() and indices.max() < len(self)):
      raise DataError(f"{self._split.name} {self._split.split} has records 0 to {len(self) - 1}: ask for one of them.")
    shards, rows = self._places(indices)
    records = [b""] * len(indices)
    for shard in np.unique(shards):
      places = np.flatnonzero(shards == shard)
      for place, record in zip(places, self._read_shard(shard, indices[places], rows[places])):
        records[place] = record
    return records

  def describe(self, index: int, record: bytes = b"") -> str:
    """Names a record: its index, the data set's own name of it if `record` is whole and has one, its file and place."""
    (shard,), (row,) = self._places(np.asarray([index], np.int64))
    name = ""
    with contextlib.suppress(message.DecodeError):
      name = name_of(tf.train.Example.FromString(record), self._split)
      name = f"{name}, " if name else ""
    place = f"{name}number {row} in {self._split.files[shard]}"
    return f"Record {index} of {self._split.name} {self._split.split} ({place})"

  def waiting_for(self) -> str | None:
    """What the read under way for the longest time reads, and for how long; None if there is none."""
    reading = list(self._reading.values())
    if not reading:
      return None
    since, what = min(reading)
    return f"{what} for {time.monotonic() - since:.0f} s"

  def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shard of each record and its row there."""
    shards = np.searchsorted(self._ends, indices, side="right")
    lengths, starts = np.asarray(self._split.shard_lengths), np.asarray(self._split.shard_starts)
    return shards, indices - (self._ends[shards] - lengths[shards]) + starts[shards]

  def _read_shard(self, shard: int, indices: np.ndarray, rows: np.ndarray) -> list[bytes]:
    path = self._split.files[shard]
    what = f"record {rows[0]}" + (f" and {len(rows) - 1} more" if len(rows) > 1 else "") + f" of {path}"
    self._reading[threading.get_ident()] = (time.monotonic(), what)
    try:
      return self._shards[shard].read(rows.tolist())
    except OSError as error:  # Nothing is known about the record: the disk or the network is at fault.
      raise DataError(f"{path} cannot be read any more ({error.strerror or error}): check its file system.") from error
    except (ValueError, RuntimeError) as error:
      if len(rows) == 1:
        raise BadRecordError(
          f"{self.describe(indices[0])} is damaged ({str(error).splitlines()[0]}): restore the file, or set "
          "data.on_error=skip."
        ) from error
    finally:
      del self._reading[threading.get_ident()]
    for row in range(len(rows)):  # One by one to find it.
      self._read_shard(shard, indices[row : row + 1], rows[row : row + 1])
    raise DataError(f"{path} gave an error that did not come again: check its file system.")


def open_records(split: Split) -> Records:
  """Opens all files of a split and checks that each holds as many records as the data set says.

  Raises:
    DataError: naming the file, if one is missing, damaged or has another number of records; for 'fake', without files.
  """
  if split.file_format == "fake":
    raise DataError("The data set 'fake' is noise for training and has no records to read: choose another data set.")
  opener = {"tfrecord": TFRecordShard, "array_record": _ArrayRecordShard}[split.file_format]

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


def name_of(example: tf.train.Example, split: Split) -> str | None:
  """The data set's own name of an example: a text, or a whole number; None if it has none that can be read."""
  feature = example.features.feature.get(split.id_key) if split.id_key else None
  if feature is None:
    return None
  values = feature.bytes_list.value or feature.int64_list.value
  try:
    return (values[0].decode() if isinstance(values[0], bytes) else str(values[0])) if len(values) == 1 else None
  except UnicodeDecodeError:
    return None


def digest(split: Split, records: Records) -> str:
  """SHA-256 of what a split holds: how many records its files have, the names of its classes, and records all over it.

  It is the same wherever the files lie, and for TFRecord and ArrayRecord with the same records. Of more than
  _DIGEST_RECORDS records evenly spaced ones count, so that it takes seconds for a set of any size.

  Raises:
    DataError: for a file that cannot be read.
  """

  def read(index: int) -> bytes:
    try:
      return records.read([index])[0]
    except BadRecordError:  # Whether it is one is for data.on_error to say; it stays the same.
      return b"damaged"

  facts = [split.num_examples, split.file_lengths, split.shard_starts, split.shard_lengths, split.label_names]
  result = hashlib.sha256(json.dumps(facts).encode())
  indices = np.linspace(0, split.num_examples - 1, min(split.num_examples, _DIGEST_RECORDS)).round().astype(int)
  with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:
    for record in pool.map(read, indices):
      result.update(hashlib.sha256(record).digest())
  return result.hexdigest()


def _allow_open_files(count: int) -> None:
  """Lets the process keep `count` more files open, if the system permits; ImageNet alone has the usual limit, 1,024."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY:
    wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class TFRecordShard:
  """A TFRecord file and the offset and length of each record in it.

  Raises:
    OSError: if it cannot be read.
    ValueError: saying after how many records it is cut off or damaged; by `read`, that a checksum does not fit.
  """

  def __init__(self, path: str):
    self._path = path
    offsets, lengths = [], []
    with open(path, "rb") as file:
      descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
      position = 0
      while position + _TFRECORD_HEADER.size + _TFRECORD_FOOTER.size <= size:
        header = os.pread(descriptor, _TFRECORD_HEADER.size, position)
        length, checksum = _TFRECORD_HEADER.unpack(header)
        if _masked_crc32c(header[:8]) != checksum:
          break
        start = position + _TFRECORD_HEADER.size
        position = start + length + _TFRECORD_FOOTER.size
        if position <= size:
          offsets.append(start)
          lengths.append(length)
    if position != size:
      raise ValueError(f"it is cut off or damaged after {len(offsets)} whole records")
    self._offsets, self._lengths = np.array(offsets, np.int64), np.array(lengths, np.int64)

  def __len__(self) -> int:
    return len(self._offsets)

  @property
  def longest(self) -> int:
    """Bytes of the longest record; 0 without records."""
    return int(self._lengths.max(initial=0))

  def read(self, rows: Sequence[int]) -> list[bytes]:
    records = []
    # Opened for each read: ImageNet has more files than many systems let a process keep open.
    with open(self._path, "rb") as file:
      for row in rows:
        length = int(self._lengths[row])
        content = os.pread(file.fileno(), length + _TFRECORD_FOOTER.size, int(self._offsets[row]))
        record = content[:length]
        if len(content) != length + _TFRECORD_FOOTER.size:
          raise ValueError("it is cut off")
        if _masked_crc32c(record) != _TFRECORD_FOOTER.unpack_from(content, length)[0]:
          raise ValueError("its checksum does not fit")
        records.append(record)
    return records


def _masked_crc32c(content: bytes) -> int:
  """TFRecord's checksum: a CRC-32C, rotated and shifted, so that it differs from one that the data may hold."""
  crc = google_crc32c.value(content)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


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
    try:
      return self._reader.read(rows)
    except RuntimeError as error:  # For a damaged record too; of a system call that failed it says "pread() failed: ".
      if failed := re.match(r"\w+\(\) failed: ([^;]*)", str(error)):
        raise OSError(failed[1]) from error
      raise
