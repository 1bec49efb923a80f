"""Two processes of a run by the command line: they stop, differ, fail and are lost together. Slow: `make test-all`."""

import json
import pathlib
import signal
import time

import pytest

from bn_inception import folder_lock
from bn_inception.configs import versions
from bn_inception.data import digits
from tests import fault_table

pytestmark = pytest.mark.slow


@pytest.fixture
def data(digits_dir) -> str:
  digits.prepare(pathlib.Path(digits_dir))
  return digits_dir


def logs(folder: pathlib.Path) -> list[str]:
  return [(folder / f"log{process}").read_text() for process in range(2)]


def wait_for(folder: pathlib.Path, phase: str, processes) -> None:
  deadline = time.monotonic() + 240
  while not fault_table.PHASES[phase](logs(folder)[0], folder / "run"):
    assert time.monotonic() < deadline and processes[0].poll() is None, logs(folder)
    time.sleep(0.01)


def test_a_signal_to_one_of_them_stops_both_at_one_step_and_the_run_goes_on(data, tmp_path):
  """With several steps a call, whose number is not that of the steps."""
  processes = fault_table.start(tmp_path / "run", data, 2)
  wait_for(tmp_path, "steps", processes)
  processes[1].send_signal(signal.SIGTERM)
  assert [process.wait(120) for process in processes] == [143, 143], logs(tmp_path)
  status = json.loads((tmp_path / "run" / "status.json").read_text())
  assert status["status"] == "preempted" and status["step"] == status["saved_step"] < 4000
  assert (tmp_path / "run" / "checkpoints" / str(status["step"])).is_dir()
  processes = fault_table.start(tmp_path / "run", data, 2)
  deadline = time.monotonic() + 240
  while f"Resuming from the checkpoint of step {status['step']}" not in logs(tmp_path)[0]:
    assert time.monotonic() < deadline, logs(tmp_path)
    time.sleep(0.1)
  processes[0].send_signal(signal.SIGINT)
  assert [process.wait(120) for process in processes] == [143, 143], logs(tmp_path)


def test_another_config_on_one_of_them_is_named_and_ends_both_before_anything_is_made(data, tmp_path, monkeypatch):
  start_one = fault_table.subprocess.Popen
  monkeypatch.setattr(
    fault_table.subprocess,
    "Popen",
    lambda command, **options: start_one(
      [*command, "--config.learning_rate=0.5"] if "--process_id=1" in command else command, **options
    ),
  )
  processes = fault_table.start(tmp_path / "run", data, 2)
  assert [process.wait(120) for process in processes] == [2, 2], logs(tmp_path)
  for log in logs(tmp_path):
    assert "has learning_rate 0.5, but process 0 on" in log and "Traceback" not in log
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_a_person_has_to_mend_ends_both_with_the_code_for_it(data, tmp_path):
  """A run of a later version, which process 0 reads: a job would be started again after another code."""
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text(json.dumps({"version": versions.VERSION + 1}))
  processes = fault_table.start(tmp_path / "run", data, 2)
  assert [process.wait(120) for process in processes] == [2, 2], logs(tmp_path)
  assert all("this code knows none after" in log and "Traceback" not in log for log in logs(tmp_path)), logs(tmp_path)


def test_a_run_that_another_program_makes_is_left_out_by_both(data, tmp_path):
  """Only process 0 meets the lock; both go on to the next run together."""
  held = tmp_path / "sweep" / "momentum=0.0" / "seed0"
  with folder_lock.hold(held):
    processes = fault_table.start(
      tmp_path / "sweep", data, 2, "--config.num_steps=20", "--set=momentum=0.0,0.5", script="scripts/sweep.py"
    )
    assert [process.wait(240) for process in processes] == [0, 0], logs(tmp_path)
  assert "It is left out here." in logs(tmp_path)[0] and not (held / "status.json").exists()
  made = json.loads((tmp_path / "sweep" / "momentum=0.5" / "seed0" / "status.json").read_text())
  assert (made["status"], made["step"], made["processes"]) == ("done", 20, 2)


def test_the_loss_of_one_ends_the_other_to_be_started_again(data, tmp_path):
  processes = fault_table.start(tmp_path / "run", data, 2)
  wait_for(tmp_path, "steps", processes)
  processes[1].kill()
  assert processes[0].wait(120) == 75, logs(tmp_path)
  assert "Process 1 on" in logs(tmp_path)[0] and "has given no sign for 10 s" in logs(tmp_path)[0]
  status = json.loads((tmp_path / "run" / "status.json").read_text())
  assert status["status"] == "failed" and "has given no sign for 10 s" in status["error"]


def test_the_loss_of_process_0_ends_the_other_with_the_same_code(data, tmp_path):
  processes = fault_table.start(tmp_path / "run", data, 2)
  wait_for(tmp_path, "steps", processes)
  processes[0].kill()
  assert processes[1].wait(120) == 75, logs(tmp_path)
  assert "Process 0, whose service all others need, was lost" in logs(tmp_path)[1]
