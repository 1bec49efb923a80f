"""One writer for a folder: who is refused, and when a lock is taken over."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from bn_inception import folder_lock, hosts
from bn_inception.errors import StorageError

_HOLD = """
import pathlib, sys, time
from bn_inception import folder_lock
with folder_lock.hold(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(600)
"""


@pytest.fixture(autouse=True)
def short(monkeypatch):
  monkeypatch.setattr(folder_lock, "LEASE_SECONDS", 0.5)
  monkeypatch.setattr(folder_lock, "BEAT_SECONDS", 0.1)
  for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
    monkeypatch.delenv(name, raising=False)


def write(folder, **changes) -> None:
  """A lock as another process would have left it."""
  holder = {"host": "elsewhere", "pid": 1, "started": "1", "job": None, "token": "other", "beat": 3} | changes
  (folder / folder_lock.FILE).write_text(json.dumps(holder))


def test_the_second_is_refused_while_the_first_writes_and_not_after(tmp_path):
  with folder_lock.hold(tmp_path / "run") as lock:
    with pytest.raises(folder_lock.FolderInUseError, match=f"process {os.getpid()} on {socket.gethostname()}"):
      with folder_lock.hold(tmp_path / "run"):
        pass
    assert not lock.lost.is_set()
  with folder_lock.hold(tmp_path / "run"):
    pass
  assert not list((tmp_path / "run").iterdir())


def test_another_process_is_refused_and_its_death_frees_the_folder_at_once(tmp_path, repository, monkeypatch):
  monkeypatch.setattr(folder_lock, "LEASE_SECONDS", 1e9)
  process = subprocess.Popen([sys.executable, "-c", _HOLD, tmp_path], cwd=repository, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  with pytest.raises(folder_lock.FolderInUseError, match=f"process {process.pid} on"):
    with folder_lock.hold(tmp_path):
      pass
  process.send_signal(signal.SIGKILL)
  process.wait()
  with folder_lock.hold(tmp_path):
    pass


def test_without_locks_of_the_file_system_a_living_process_of_this_host_is_refused(tmp_path):
  parent = os.getppid()
  host = socket.gethostname()
  write(tmp_path, host=host, pid=parent, started=folder_lock._started(parent))
  with pytest.raises(folder_lock.FolderInUseError, match=f"process {parent} on"):
    with folder_lock.hold(tmp_path):
      pass
  write(tmp_path, host=host, pid=parent, started="0")  # The number was used again.
  with folder_lock.hold(tmp_path):
    pass


def test_what_process_0_is_refused_is_refused_to_all(tmp_path, monkeypatch):
  """What process 0 tells reaches process 1, which holds nothing."""
  told = []
  monkeypatch.setattr(hosts, "of_first", lambda value: told.append(json.dumps(value)) or value)
  with folder_lock.hold(tmp_path), pytest.raises(folder_lock.FolderInUseError) as of_first:
    with folder_lock.hold_for_all(tmp_path):
      pass
  (tmp_path / "file").touch()
  with pytest.raises(StorageError), folder_lock.hold_for_all(tmp_path / "file" / "run"):
    pass
  with folder_lock.hold_for_all(tmp_path) as lock:
    assert lock.folder == tmp_path
  monkeypatch.setattr(folder_lock.jax, "process_index", lambda: 1)
  monkeypatch.setattr(hosts, "of_first", lambda value: json.loads(told.pop(0)))
  for error, said in ((folder_lock.FolderInUseError, str(of_first.value)), (StorageError, "Not a directory")):
    with pytest.raises(error) as of_other, folder_lock.hold_for_all(tmp_path):
      pass
    assert said in str(of_other.value)


def test_another_host_is_refused_as_long_as_its_heart_beats(tmp_path, monkeypatch):
  beats = iter(range(4, 100))

  def sleep(seconds):
    write(tmp_path, beat=next(beats))

  write(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(folder_lock.time, "sleep", sleep)
    with pytest.raises(folder_lock.FolderInUseError, match="process 1 on elsewhere"):
      with folder_lock.hold(tmp_path):
        pass
  with folder_lock.hold(tmp_path):  # It beats no more.
    pass


@pytest.mark.parametrize("job, restart, waits", [("7", "1", False), ("7", "0", True), ("8", "1", True)])
def test_an_earlier_start_of_the_same_job_is_over(tmp_path, monkeypatch, job, restart, waits):
  """On another node: Slurm ends a job's processes before it starts the job again."""
  monkeypatch.setenv("SLURM_JOB_ID", job)
  monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
  waited = []
  monkeypatch.setattr(folder_lock, "_wait_for_lease", lambda *_: waited.append(1))
  write(tmp_path, job={"id": "7", "start": "0"})
  with folder_lock.hold(tmp_path):
    pass
  assert bool(waited) == waits


def test_who_was_taken_over_learns_it_and_leaves_the_other_s_lock(tmp_path):
  with folder_lock.hold(tmp_path) as lock:
    write(tmp_path)
    lock.check()
    assert lock.lost.wait(30)
    with pytest.raises(folder_lock.FolderInUseError, match="taken over by another process"):
      lock.check()
  assert json.loads((tmp_path / folder_lock.FILE).read_text())["host"] == "elsewhere"


def test_who_was_taken_over_learns_it_also_when_the_other_process_has_ended(tmp_path):
  with folder_lock.hold(tmp_path) as lock:
    (tmp_path / folder_lock.FILE).unlink()  # As the other process does at its end.
    assert lock.lost.wait(30)
  assert not (tmp_path / folder_lock.FILE).exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(StorageError, match="file/run cannot be written to .Not a directory."):
    with folder_lock.hold(tmp_path / "file" / "run"):
      pass
