"""The table of runs, from run directories written by hand."""

import datetime
import json
import os

import pytest

from bn_inception import run_table
from bn_inception.configs import versions
from bn_inception.errors import UserError

NOW = datetime.datetime(2026, 11, 25, 12, 0, tzinfo=datetime.UTC)


def write(folder, lines=(), **status):
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps({"batch_size": 64, "version": 1, "model": {"name": "mnist_mlp"}}))
  (folder / "status.json").write_text(json.dumps(status))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  for path in folder.iterdir():  # Written 2 minutes before.
    os.utime(path, (NOW.timestamp() - 120, NOW.timestamp() - 120))


def rows(*folders):
  lines = run_table.table([str(folder) for folder in folders], NOW).splitlines()
  head = lines[0]
  starts = [head.index(name) for name in ("state", "error")]
  return [(line[starts[0] :].split()[0], line) for line in lines[1:]]


def test_state_speed_time_left_and_last_sign_of_each_run(tmp_path):
  speed = {"step": 100, "train/images_per_second": 64.0}
  # Without a heartbeat, as older runs: from the metrics and the age of the files.
  write(
    tmp_path / "a/old",
    [speed, {"step": 100, "eval/running/top1": 0.5}],
    status="running",
    step=50,
    num_steps=1000,
    paper_steps=100.0,
  )
  write(
    tmp_path / "a/beats",
    [speed],
    status="running",
    step=400,
    num_steps=1000,
    paper_steps=800.0,
    images_per_second=128.0,
    time="2026-11-25T11:59:30+00:00",
  )
  write(tmp_path / "b", [speed], status="running", step=400, num_steps=1000, time="2026-11-25T11:00:00+00:00")
  write(tmp_path / "c", [], status="failed", step=7, num_steps=1000, error="DataError: the disk\nis full")
  (old, old_row), (beats, beats_row) = sorted(rows(tmp_path / "a"), key=lambda row: "beats" in row[1])
  assert old == "running" and "100" in old_row and "64" in old_row and "50.00%" in old_row
  assert "15 min" in old_row and "2 min ago" in old_row  # 900 steps of 64 at 64 images/s; the files' age.
  assert beats == "running" and "400  1,000" in beats_row and "128" in beats_row
  assert "5 min" in beats_row and "30 s ago" in beats_row  # 600 steps of 64 at 128 images/s.
  (silent, silent_row), (failed, failed_row) = rows(tmp_path / "b", tmp_path / "c")
  assert silent == "silent" and "60 min ago" in silent_row
  assert failed == "failed" and failed_row.endswith("DataError: the disk is full")


def test_a_run_of_a_later_version_is_a_line_beside_the_others(tmp_path):
  lines = [{"step": 100, "train/images_per_second": 64.0}]
  write(tmp_path / "a", lines, status="running", step=0, num_steps=1000, time="2026-11-25T11:59:30+00:00")
  write(tmp_path / "b", status="done", step=10, num_steps=10)
  (tmp_path / "a/config.json").write_text(json.dumps({"batch_size": 64, "version": versions.VERSION + 1}))
  (later, later_row), (done, _) = rows(tmp_path)
  assert (later, done) == ("unknown", "done") and "this code knows none after" in later_row


def test_a_damaged_run_is_a_line_and_a_folder_without_runs_is_named(tmp_path):
  write(tmp_path / "a", [], status="done", step=10, num_steps=10)
  (tmp_path / "a/status.json").write_text("{")
  [(state, row)] = rows(tmp_path / "a")
  assert state == "damaged" and "status.json is damaged" in row
  with pytest.raises(UserError, match="holds no run"):
    run_table.table([str(tmp_path / "nowhere")], NOW)
