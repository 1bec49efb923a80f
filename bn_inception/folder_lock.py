"""One writer for a folder: a run directory or the folder of an evaluation. A second writer is refused.

The file `.lock` names the process that writes. This holder locks the file through the operating system (flock). The
operating system's lock ends with the process. The holder also counts a heartbeat up in the file, because another host
may see only the heartbeat. So another process takes a lock over

- at once, when the holder is dead on the same host, or belongs to an earlier start of the same Slurm job;
- otherwise, when the heartbeat has stood still for LEASE_SECONDS. Clocks of two hosts are never compared.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from bn_inception import hosts
from bn_inception.errors import StorageError, UserError

FILE = ".lock"
BEAT_SECONDS, LEASE_SECONDS = 10.0, 60.0

_log = logging.getLogger(__name__)


class FolderInUseError(UserError):
  """Another process writes into the folder. The text names this process."""


class Lock(NamedTuple):
  """A folder that this process holds.

  Attributes:
    folder: the folder.
    lost: set when another process has taken the folder over. This happens if this process was suspended for the lease.
    release: frees the folder, for a process that ends at once.
  """

  folder: pathlib.Path
  lost: threading.Event
  release: Callable[[], None]

  def check(self) -> None:
    """To be called before something is written into the folder.

    Raises:
      FolderInUseError: if another process has taken the folder over.
    """
    if self.lost.is_set():
      raise FolderInUseError(f"{self.folder} was taken over by another process: this one ends, and writes no more.")


@contextlib.contextmanager
def hold(folder: pathlib.Path) -> Iterator[Lock]:
  """Makes the folder if the folder is missing, and holds the folder's lock.

  Raises:
    FolderInUseError: if another process writes into the folder.
    StorageError: if the folder cannot be made or written into.
  """
  path = folder / FILE
  with writable(folder):
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _open(path)
  token, lost, ended = uuid.uuid4().hex, threading.Event(), threading.Event()
  holder = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "started": _started(os.getpid()),
    "job": _job(),
    "token": token,
    "beat": 0,
  }
  try:
    if (other := _read(path)) and not _is_over(path, other, holder):
      _wait_for_lease(path, other)
    with writable(folder):
      _write(descriptor, holder)
  except BaseException:
    os.close(descriptor)
    raise

  def beat() -> None:
    while not ended.wait(BEAT_SECONDS):
      found = _read(path)
      # The other process may have ended already: then the file is gone.
      if found.get("token") != token if found else _is_removed(descriptor):
        _log.error("%s was taken over by %s.", folder, _who(found or {}))
        lost.set()
        return
      holder["beat"] += 1
      with contextlib.suppress(OSError):  # The disk may not answer for a moment.
        _write(descriptor, holder)

  thread = threading.Thread(target=beat, name="folder_lock", daemon=True)

  def release() -> None:
    ended.set()
    thread.join()
    found = _read(path)
    if found and found.get("token") == token:
      with contextlib.suppress(OSError):
        path.unlink()

  thread.start()
  try:
    yield Lock(folder, lost, release)
  finally:
    release()
    os.close(descriptor)


@contextlib.contextmanager
def hold_for_all(folder: pathlib.Path) -> Iterator[Lock | None]:
  """`hold` by process 0, which alone writes the folder. Every process calls it, and all go on or none does.

  Yields:
    The lock; None on the other processes.

  Raises:
    FolderInUseError, StorageError: as `hold`, on all processes.
  """
  with contextlib.ExitStack() as held:
    lock = error = None
    if jax.process_index() == 0:
      try:
        lock = held.enter_context(hold(folder))
      except (FolderInUseError, StorageError) as raised:
        error = raised
    refused = hosts.of_first(error and [isinstance(error, FolderInUseError), str(error)])
    if error:
      raise error
    if refused:
      is_in_use, sentence = refused
      raise (FolderInUseError if is_in_use else StorageError)(sentence)
    yield lock


@contextlib.contextmanager
def writable(folder: pathlib.Path) -> Iterator[None]:
  """Turns an error of the operating system into one sentence about the folder.

  Raises:
    StorageError: for an OSError.
  """
  try:
    yield
  except OSError as error:
    raise StorageError(
      f"{folder} cannot be written to ({error.strerror or error}): make room or mend the folder, and give the "
      "same command again, or name another folder."
    ) from error


def storage_error(error: BaseException, folder: pathlib.Path) -> StorageError | None:
  """One sentence if a full or read-only disk caused `error` or an error in its chain; None for other errors."""
  while error is not None and not isinstance(error, UserError):
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
    if full or os.strerror(errno.ENOSPC) in str(error):
      reason = error.strerror if full else os.strerror(errno.ENOSPC)
      place = getattr(error, "filename", None) or folder
      return StorageError(
        f"{place} cannot be written ({reason}): make room or mend the place, and give the same command again."
      )
    error = error.__cause__ or error.__context__
  return None


def _open(path: pathlib.Path) -> int:
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(descriptor)
      _refuse(path, _read(path))
    except OSError:
      pass  # The file system has no locks: the process and the heartbeat must suffice.
    try:
      if os.fstat(descriptor).st_ino == path.stat().st_ino:
        return descriptor
    except FileNotFoundError:
      pass
    os.close(descriptor)  # The holder before removed the file between the two calls.


def _is_removed(descriptor: int) -> bool:
  """Whether the file has no name any more."""
  try:
    return os.fstat(descriptor).st_nlink == 0
  except OSError as error:  # The file system may not answer for a moment.
    return error.errno == errno.ESTALE


def _is_over(path: pathlib.Path, other: dict[str, Any], own: dict[str, Any]) -> bool:
  """Whether the process that a lock names is known to be dead.

  Raises:
    FolderInUseError: if the process is known to be alive.
  """
  if other.get("host") == own["host"]:
    if other["pid"] != own["pid"] and _started(other["pid"]) == other["started"]:
      _refuse(path, other)
    return True
  before, now = other.get("job"), own["job"]
  return bool(before and now and before["id"] == now["id"] and before["start"] != now["start"])


def _wait_for_lease(path: pathlib.Path, other: dict[str, Any]) -> None:
  _log.warning(
    "%s: waiting up to %.0f s for a sign of %s, which held the folder last.", path.parent, LEASE_SECONDS, _who(other)
  )
  end = time.monotonic() + LEASE_SECONDS
  while time.monotonic() < end:
    time.sleep(min(1.0, LEASE_SECONDS / 10))
    if (found := _read(path)) != other and found:
      _refuse(path, found)


def _refuse(path: pathlib.Path, other: dict[str, Any] | None) -> None:
  raise FolderInUseError(
    f"{path.parent} is written to by {_who(other or {})}: wait until this process ends, or give another folder."
  )


def _who(holder: dict[str, Any]) -> str:
  if not holder:
    return "another process"
  job = f" of job {holder['job']['id']}" if holder.get("job") else ""
  return f"process {holder.get('pid')} on {holder.get('host')}{job}"


def _job() -> dict[str, str] | None:
  """The Slurm job and the number of its start. A start of a job is over before the next start begins."""
  if (job := os.environ.get("SLURM_JOB_ID")) is None:
    return None
  return {"id": job, "start": os.environ.get("SLURM_RESTART_COUNT", "0")}


def _started(pid: int) -> str | None:
  """When a process of this host started, in ticks since the boot; None if the process does not run.

  The time tells two processes apart that have the same number one after the other.
  """
  try:
    state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
  except OSError:
    pass
  if pathlib.Path("/proc/self/stat").exists():
    return None
  try:  # Not Linux.
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass
  return ""


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Who holds the lock; None if nobody does, or a kill cut the file."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return None


def _write(descriptor: int, holder: dict[str, Any]) -> None:
  # The file is written in place, because another file would have another lock. The text is padded to one length, so
  # that nothing of an older text remains.
  os.pwrite(descriptor, json.dumps(holder).ljust(400).encode(), 0)
