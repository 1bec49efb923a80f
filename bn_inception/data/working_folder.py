"""The folder in which a data set is prepared: one process at a time, and a complete set is renamed into place.

The folder is hidden and stands beside the result, `.NAME-VERSION.preparing`. It keeps what is finished. A kill at any
moment leaves no half data set, and the same command goes on.
"""

import contextlib
import fcntl
import json
import logging
import pathlib
import shutil
from collections.abc import Iterator

from ml_collections import ConfigDict

from bn_inception.data import datasets
from bn_inception.data.datasets import DataError
from bn_inception.data.records import open_records

_log = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0  # Between two lines about a long preparation.


@contextlib.contextmanager
def exclusive(target: pathlib.Path, data_dir: pathlib.Path) -> Iterator[pathlib.Path | None]:
  """The folder to prepare `target` in, for this process alone; None if `target` is prepared already.

  Raises:
    DataError: if `target` holds something else, the folder cannot be written, or another process prepares there.
  """
  work = data_dir / f".{'-'.join(target.relative_to(data_dir).parts)}.preparing"
  if (target / "dataset_info.json").exists():
    _log.info("%s is prepared already; remove it to prepare it again.", target)
    shutil.rmtree(work, ignore_errors=True)
    yield None
    return
  if target.is_dir() and any(target.iterdir()):
    raise DataError(f"{target} holds something that is not a whole data set: remove it.")
  try:
    work.mkdir(parents=True, exist_ok=True)
    lock = (work / "lock").open("w")
  except OSError as error:
    raise DataError(f"Cannot write to {data_dir} ({error.strerror}): give another --data_dir.") from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise DataError(f"{target} is being prepared by another process: wait for it to end.") from error
    yield work


def finish(work: pathlib.Path, target: pathlib.Path, name: str, data_dir: pathlib.Path, counts: dict[str, int]) -> None:
  """Opens every file of the complete set in `work`, compares the counts of its splits, and renames it to `target`.

  Raises:
    DataError: if a count differs.
  """
  for split, count in counts.items():
    opened = datasets.open_split(ConfigDict({"name": name, "dir": str(work / "complete")}), split)
    if len(open_records(opened)) != count:  # It has checked each file against the data set's own statement.
      problem = f"{opened.num_examples:,} {split} examples instead of {count:,}"
      raise DataError(f"{work} has {problem}: remove it and run this again.")
    _log.info("%s: %s examples in %d files.", split, f"{count:,}", len(opened.files))
  target.parent.mkdir(parents=True, exist_ok=True)
  (work / "complete" / target.relative_to(data_dir)).rename(target)
  shutil.rmtree(work)
  _log.info("%s is ready: --config.data.dir=%s", target, data_dir)


def check_space(folder: pathlib.Path, needed: int) -> None:
  """Raises DataError if the disk of `folder` has less than `needed` bytes free."""
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise DataError(
      f"{folder.parent} has {size_text(free)} free, and {size_text(needed)} are needed: choose another --data_dir."
    )


def read_json(path: pathlib.Path) -> dict:
  """The content of a file; {} without the file."""
  return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: pathlib.Path, content: dict) -> None:
  """Writes a file that is never seen half written."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(content, indent=2))
  partial.replace(path)


def size_text(count: float) -> str:
  """A number of bytes to read: '1.2 GB'."""
  for unit in ("bytes", "kB", "MB"):
    if count < 1000:
      return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
    count /= 1000
  return f"{count:,.1f} GB"
