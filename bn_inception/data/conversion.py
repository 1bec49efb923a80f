"""Converts a data set that TFDS has stored as TFRecord to ArrayRecord, record for record."""

import concurrent.futures
import logging
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator

from array_record.python import array_record_module
from ml_collections import ConfigDict

from bn_inception.data import cores, datasets, working_folder
from bn_inception.data.datasets import DataError
from bn_inception.data.records import TFRecordShard

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 24  # Of records in memory at a time, in each thread that converts.


def prepare(source: pathlib.Path, data_dir: pathlib.Path, name: str) -> None:
  """Copies a prepared set record for record, several files at a time.

  Args:
    source: TFDS data_dir in which `name` is stored as TFRecord.
    data_dir: TFDS data_dir for the result.
    name: NAME[/CONFIG][:VERSION].

  Raises:
    DataError: one sentence on a damaged file, another format, or too little room, and what to do.
  """
  folder = datasets.find_prepared(source, name)
  relative = folder.relative_to(source)
  target = data_dir / relative
  if target.resolve() == folder.resolve():
    raise DataError(f"{folder} is both source and result: give another --data_dir.")
  info = working_folder.read_json(folder / "dataset_info.json")
  if info.get("fileFormat", "tfrecord") != "tfrecord":
    raise DataError(f"{folder} is stored as {info['fileFormat']}, not as TFRecord: there is nothing to convert.")
  title = f"{relative.parent.as_posix()}:{relative.name}"
  splits = [
    datasets.open_split(ConfigDict({"name": title, "dir": str(source)}), split["name"]) for split in info["splits"]
  ]
  with working_folder.exclusive(target, data_dir) as work:
    if work is None:
      return
    complete = work / "complete" / relative
    complete.mkdir(parents=True, exist_ok=True)
    for partial in complete.glob("*.partial"):
      partial.unlink()
    jobs = []
    for split in splits:
      for path, length in zip(split.files, split.file_lengths):
        # NAME-SPLIT.tfrecord-00000-of-00001
        prefix, _, suffix = os.path.basename(path).rpartition(".tfrecord")
        jobs.append((pathlib.Path(path), complete / f"{prefix}.array_record{suffix}", length))
    to_do = [job for job in jobs if not job[1].exists()]  # A file has its name only when it is complete.
    total = sum(path.stat().st_size for path, _, _ in to_do)
    _log.info(
      "%s: %d files to convert (%s)%s.",
      title,
      len(to_do),
      working_folder.size_text(total),
      f", {len(jobs) - len(to_do)} finished by an earlier run" if len(to_do) < len(jobs) else "",
    )
    working_folder.check_space(work, int(1.05 * total))
    _run_parallel(convert_file, to_do, total)
    for path in folder.iterdir():
      if path.is_file() and ".tfrecord" not in path.name:
        shutil.copyfile(path, complete / path.name)
    info["fileFormat"] = "array_record"
    info.pop("alternativeFileFormats", None)
    for facts in info["splits"]:
      if "filepathTemplate" in facts:
        facts["filepathTemplate"] = facts["filepathTemplate"].replace("tfrecord", "array_record")
    working_folder.write_json(complete / "dataset_info.json", info)
    working_folder.finish(work, target, title, data_dir, {split.split: split.num_examples for split in splits})


def _run_parallel(convert: Callable, jobs: list[tuple[pathlib.Path, pathlib.Path, int]], total: int) -> None:
  """Calls convert(source, target, length, stopped) for every job in threads; logs progress."""
  stopped = threading.Event()
  done_bytes, started, reported = 0, time.monotonic(), time.monotonic()
  # Threads are enough: reading, checksums and writing all happen outside Python's lock.
  with concurrent.futures.ThreadPoolExecutor(cores.available()) as pool:
    try:
      futures = {pool.submit(convert, *job, stopped): job[0] for job in jobs}
      for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
        size = futures[future].stat().st_size
        future.result()
        done_bytes += size
        now = time.monotonic()
        if now - reported >= working_folder.PROGRESS_SECONDS or number == len(jobs):
          reported = now
          speed = done_bytes / (now - started)
          _log.info(
            "%d of %d files, %s of %s, %s/s.",
            number,
            len(jobs),
            working_folder.size_text(done_bytes),
            working_folder.size_text(total),
            working_folder.size_text(speed),
          )
    except BaseException:
      stopped.set()
      pool.shutdown(cancel_futures=True)
      raise


def convert_file(source: pathlib.Path, target: pathlib.Path, length: int, stopped: threading.Event) -> None:
  """Copies one file and reads the copy back; `target` appears when that has agreed."""
  partial = target.with_name(target.name + ".partial")
  try:
    shard = TFRecordShard(str(source))
  except ValueError as error:
    raise DataError(f"{source} is damaged: {error}; restore it or prepare the data set again.") from error
  if len(shard) != length:
    raise DataError(f"{source} holds {len(shard)} records instead of {length}: restore it or prepare the set again.")

  def chunks() -> Iterator[tuple[int, list[bytes]]]:
    per_chunk = max(1, _CHUNK_BYTES // max(1, shard.longest))
    for first in range(0, length, per_chunk):
      if stopped.is_set():
        raise KeyboardInterrupt
      rows = range(first, min(first + per_chunk, length))
      try:
        yield first, shard.read(rows)
      except ValueError as error:
        raise DataError(
          f"A record in {first} to {rows[-1]} of {source} is damaged ({error}): restore the file first."
        ) from error

  # As TFDS writes it: one record in each group, so that each can be read alone.
  writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
  try:
    for _, records in chunks():
      for record in records:
        writer.write(record)
    writer.close()
  except RuntimeError as error:  # What ArrayRecord's writer makes of an OSError.
    raise OSError(None, str(error).partition(";")[0], str(partial)) from error
  reader = array_record_module.ArrayRecordReader(str(partial))
  for first, records in chunks():
    if reader.num_records() != length or reader.read(first, first + len(records)) != records:
      raise DataError(f"{partial} reads back otherwise than it was written: check the disk.")
  reader.close()
  with partial.open("rb") as file:
    os.fsync(file.fileno())
  partial.replace(target)
