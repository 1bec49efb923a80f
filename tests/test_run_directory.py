"""The small files of a run: whole lines, whole files, and what a kill can leave."""

import json
import math
import threading

import pytest
from ml_collections import ConfigDict

from bn_inception import curves, run_directory
from bn_inception.configs import versions


def test_metrics_come_back_as_written_and_not_finite_numbers_too(tmp_path):
  run_directory.append_metrics(tmp_path, 2, 64, {"train/loss": 0.1})
  run_directory.append_metrics(tmp_path, 4, 64, {"train/loss": math.inf, "train/parameter_norm": math.nan})
  first, second = run_directory.read_metrics(tmp_path)
  assert first == {"step": 2, "paper_steps": 4.0, "train/loss": 0.1}
  assert second["train/loss"] == math.inf and math.isnan(second["train/parameter_norm"])
  assert "Infinity" not in run_directory.metrics_path(tmp_path).read_text()  # Not JSON.


def test_a_status_is_json_whatever_its_metrics_are(tmp_path):
  config = ConfigDict({"num_steps": 8, "batch_size": 32})
  status = run_directory.Status(tmp_path, config, 4, 2, None)
  status.write("diverged", metrics={"eval/running/loss": math.nan, "eval/running/top1": 0.1}, error="none")
  text = (tmp_path / "status.json").read_text()
  written = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
  assert written["metrics"] == {"eval/running/loss": "nan", "eval/running/top1": 0.1}
  assert (written["step"], written["saved_step"], written["error"]) == (4, 2, "none")


def test_the_status_in_which_a_run_has_ended_stays(tmp_path):
  """A signal that comes while a run that is done closes its files would call it preempted, and it would be queued."""
  status = run_directory.Status(tmp_path, ConfigDict({"num_steps": 8, "batch_size": 32}), 8, 8, None)
  status.write("running")
  status.write("done", metrics={"eval/running/top1": 0.9})
  status.write("preempted")
  status.write("running")
  written = run_directory.read_status(tmp_path)
  assert (written["status"], written["metrics"]) == ("done", {"eval/running/top1": 0.9})


def test_threads_that_write_a_status_do_not_write_into_each_other(tmp_path, monkeypatch):
  """The heartbeat of the loop, and what a signal says in a thread, while the first is half written."""
  status = run_directory.Status(tmp_path, ConfigDict({"num_steps": 8, "batch_size": 32}), 4, 2, None)
  replace, begun, go_on = run_directory.replace_file, threading.Event(), threading.Event()

  def slow(path, text):
    begun.set()
    go_on.wait(60)
    replace(path, text)

  monkeypatch.setattr(run_directory, "replace_file", slow)
  heartbeat = threading.Thread(target=status.write, args=("running",))
  heartbeat.start()
  assert begun.wait(60)
  monkeypatch.setattr(run_directory, "replace_file", replace)
  end = threading.Thread(target=status.write, args=("preempted",))
  end.start()
  end.join(0.1)
  go_on.set()
  for thread in (heartbeat, end):
    thread.join(60)
  assert run_directory.read_status(tmp_path)["status"] == "preempted"


def test_a_line_cut_by_a_kill_is_ignored_and_removed_on_resume(tmp_path):
  for step in (1, 2, 3):
    run_directory.append_metrics(tmp_path, step, 32, {"train/loss": float(step)})
  path = run_directory.metrics_path(tmp_path)
  path.write_text(path.read_text() + '{"step": 4, "tra')
  assert [line["step"] for line in run_directory.read_metrics(tmp_path)] == [1, 2, 3]
  run_directory.drop_metrics_after(tmp_path, 2)
  run_directory.append_metrics(tmp_path, 3, 32, {"train/loss": 3.5})
  assert [line["train/loss"] for line in run_directory.read_metrics(tmp_path)] == [1.0, 2.0, 3.5]


def test_a_config_comes_back_and_its_changes_are_named(tmp_path):
  config = ConfigDict({"a": 1, "b": {"c": (0.5, 1.0), "d": ()}, "e": "x"})
  assert run_directory.changed_fields(tmp_path, config) == []
  config.version = versions.VERSION
  run_directory.write_config(tmp_path, config)
  assert run_directory.read_config(tmp_path).to_dict() == config.to_dict()
  config.b.c = (0.5, 2.0)
  assert run_directory.changed_fields(tmp_path, config) == ["b.c"]


def test_curves_are_drawn(tmp_path):
  assert curves.draw(tmp_path) is None
  for run in ("one", "two"):
    (tmp_path / run).mkdir()
    for step in (1, 2):
      run_directory.append_metrics(tmp_path / run, step, 32, {"train/loss": 1 / step, "eval/running/top1": step / 3})
  for picture in (curves.draw(tmp_path / "one"), curves.draw(tmp_path / "two")):
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
  assert not list(tmp_path.rglob("*.partial*"))
