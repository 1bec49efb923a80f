"""The file of predictions: what is written, what a kill leaves, what is counted."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from bn_inception.data.annotations import Annotation
from bn_inception.evaluators import predictions_file
from bn_inception.evaluators.predictions_file import EvaluationError
from bn_inception.run_directory import DamagedFileError

REQUEST = {"networks": ["a"], "crops": 1}


def probabilities(*rows: dict[int, float]) -> np.ndarray:
  """Rows of 8 classes."""
  result = np.zeros((len(rows), 8))
  for row, values in enumerate(rows):
    for label, value in values.items():
      result[row, label] = value
  return result


def write(folder, labels, rows, mask=None):
  annotations = [Annotation(f"image{number}", label) for number, label in enumerate(labels)]
  with predictions_file.writer(folder) as append:
    append(annotations, rows, np.ones(len(labels), bool) if mask is None else np.array(mask))


def lines(folder):
  return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_line_tells_the_five_likeliest_classes(tmp_path):
  assert predictions_file.resume(tmp_path / "new" / "run", REQUEST) == 0
  folder = tmp_path / "new" / "run"
  write(folder, [2], probabilities({0: 0.1, 1: 0.05, 2: 0.2, 3: 0.3, 5: 0.25, 7: 0.1}))
  assert lines(folder) == [
    {
      "id": "image0",
      "label": 2,
      "top5": [3, 5, 2, 0, 7],
      "probability": [0.3, 0.25, 0.2, 0.1, 0.1],
      "label_probability": 0.2,
    }
  ]


def test_of_equal_probabilities_the_lower_class_comes_first(tmp_path):
  predictions_file.resume(tmp_path, REQUEST)
  write(tmp_path, [0, 5], np.full((2, 8), 1 / 8))
  assert [line["top5"] for line in lines(tmp_path)] == [[0, 1, 2, 3, 4]] * 2
  metrics = predictions_file.metrics(tmp_path, 2)
  assert (metrics["top1_error"], metrics["top5_error"]) == (0.5, 0.5)
  assert metrics["loss"] == pytest.approx(math.log(8))


def test_metrics_are_those_of_a_brute_force_count(tmp_path):
  rng = np.random.default_rng(0)
  rows, labels = rng.dirichlet(np.full(8, 0.5), 500), rng.integers(0, 8, 500).tolist()
  predictions_file.resume(tmp_path, REQUEST)
  for first in range(0, 500, 70):
    write(tmp_path, labels[first : first + 70], rows[first : first + 70])
  ranks = [sorted(range(8), key=lambda label: (-row[label], label)).index(right) for row, right in zip(rows, labels)]
  metrics = predictions_file.metrics(tmp_path, 500)
  assert metrics["top1_error"] == pytest.approx(np.mean([rank > 0 for rank in ranks]), abs=1e-12)
  assert metrics["top5_error"] == pytest.approx(np.mean([rank > 4 for rank in ranks]), abs=1e-12)
  assert metrics["loss"] == pytest.approx(-np.log(rows[np.arange(500), labels]).mean(), rel=1e-5)
  assert (metrics["count"], metrics["skipped"], metrics["without_label"]) == (500, 0, 0)


def test_a_prediction_that_is_not_finite_is_wrong(tmp_path):
  predictions_file.resume(tmp_path, REQUEST)
  write(tmp_path, [0, 0], np.stack([np.full(8, np.nan), np.eye(8)[0]]))
  metrics = predictions_file.metrics(tmp_path, 2)
  assert (metrics["top1_error"], metrics["top5_error"], metrics["loss"]) == (0.5, 0.5, math.inf)


def test_with_several_labels_any_is_right_and_examples_without_do_not_count(tmp_path):
  predictions_file.resume(tmp_path, REQUEST)
  certain = [{3: 0.9, 1: 0.1}, {3: 0.9, 1: 0.1}, {3: 0.9, 1: 0.1}, {0: 1.0}]
  write(tmp_path, [[3, 4], [1], [6, 7], []], probabilities(*certain))
  metrics = predictions_file.metrics(tmp_path, 4)
  assert metrics == {
    "top1_error": pytest.approx(2 / 3),
    "top5_error": pytest.approx(1 / 3),
    "count": 3,
    "skipped": 0,
    "without_label": 1,
  }


def test_what_was_skipped_does_not_count_but_must_be_there(tmp_path):
  predictions_file.resume(tmp_path, REQUEST)
  write(tmp_path, [0, 1, 2], np.eye(8)[[0, 0, 2]], mask=[True, True, False])
  metrics = predictions_file.metrics(tmp_path, 3)
  assert (metrics["top1_error"], metrics["count"], metrics["skipped"]) == (0.5, 2, 1)
  assert lines(tmp_path)[2] == {"id": "image2", "label": 2, "skipped": True}


@pytest.mark.parametrize("there,expected", [(3, 4), (5, 4), (0, 1)])
def test_another_number_of_lines_than_examples_is_an_error(tmp_path, there, expected):
  predictions_file.resume(tmp_path, REQUEST)
  write(tmp_path, [0] * there, np.eye(8)[[0] * there])
  with pytest.raises(RuntimeError, match=f"has {there} lines for {expected} examples"):
    predictions_file.metrics(tmp_path, expected)


def test_nothing_counted_is_an_error(tmp_path):
  predictions_file.resume(tmp_path, REQUEST)
  write(tmp_path, [[]], np.eye(8)[[0]])
  with pytest.raises(EvaluationError, match="No example could be counted"):
    predictions_file.metrics(tmp_path, 1)


def test_resumption_counts_whole_lines_and_removes_a_cut_one(tmp_path):
  assert predictions_file.resume(tmp_path, REQUEST) == 0
  write(tmp_path, [0, 1, 2], np.eye(8)[[0, 1, 2]])
  path = tmp_path / "predictions.jsonl"
  whole = path.read_bytes()
  for cut in range(1, len(whole.splitlines()[-1]) + 1):
    path.write_bytes(whole[:-cut])
    assert predictions_file.resume(tmp_path, REQUEST) == 2
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
  path.write_bytes(whole)
  assert predictions_file.resume(tmp_path, REQUEST) == 3 and path.read_bytes() == whole


@pytest.mark.parametrize(
  "change",
  [
    {"id": 3},
    {"label": "0"},
    {"label": [0, 1.5]},
    {"top5": 0},
    {"label_probability": -0.5},
    {"label_probability": 1.5},
    {"label_probability": "1"},
    {"label_probability": math.nan},
  ],
)
def test_a_line_that_no_evaluation_writes_is_named(tmp_path, change):
  predictions_file.resume(tmp_path, REQUEST)
  write(tmp_path, [0, 1, 2], np.eye(8)[[0, 1, 2]])
  whole = lines(tmp_path)
  whole[1] |= change
  (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in whole))
  with pytest.raises(DamagedFileError, match="predictions.jsonl is damaged in line 2 of 3"):
    predictions_file.resume(tmp_path, REQUEST)


_WRITES = """
import pathlib, sys, time
import numpy as np
from bn_inception.data.annotations import Annotation
from bn_inception.evaluators import predictions_file
with predictions_file.writer(pathlib.Path(sys.argv[1])) as append:
  for number in range(7):
    append([Annotation(f"image{number}", 0)], np.eye(8)[[0]], np.ones(1, bool))
  print("written", flush=True)
  time.sleep(600)
"""


def test_a_killed_process_loses_nothing_that_was_appended(tmp_path, repository):
  assert predictions_file.resume(tmp_path, REQUEST) == 0
  process = subprocess.Popen(
    [sys.executable, "-c", _WRITES, tmp_path],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONPATH": str(repository)},
  )
  assert process.stdout.readline() == "written\n"
  process.kill()
  process.communicate()
  assert predictions_file.resume(tmp_path, REQUEST) == 7
  assert [line["id"] for line in lines(tmp_path)] == [f"image{number}" for number in range(7)]


def test_the_disk_is_waited_for_every_few_seconds(tmp_path, monkeypatch):
  """One example a second for 62 s: what a loss of power would take away is counted at every moment."""
  clock, on_disk, lost = [0.0], [0], []
  path = tmp_path / "predictions.jsonl"
  monkeypatch.setattr(predictions_file.time, "monotonic", lambda: clock[0])
  monkeypatch.setattr(predictions_file.os, "fsync", lambda file: on_disk.append(path.read_bytes().count(b"\n")))
  with predictions_file.writer(tmp_path) as append:
    for number in range(62):
      clock[0] += 1.0
      lost.append(number - on_disk[-1])  # Just before the next call.
      append([Annotation(f"image{number}", 0)], np.eye(8)[[0]], np.ones(1, bool))
  assert on_disk[1:] == [*range(5, 62, 5), 62]  # 12 times and at the end, not 62.
  assert max(lost) == 4


def test_a_failure_leaves_what_was_written_on_the_disk(tmp_path, monkeypatch):
  synced = []
  monkeypatch.setattr(predictions_file.os, "fsync", synced.append)
  with pytest.raises(ZeroDivisionError), predictions_file.writer(tmp_path) as append:
    append([Annotation("image0", 0)], np.eye(8)[[0]], np.ones(1, bool))
    raise ZeroDivisionError
  assert len(synced) == 1 and len(lines(tmp_path)) == 1


def test_a_kill_before_the_first_file_does_no_harm(tmp_path):
  (tmp_path / "request.json.partial").write_text("{")
  assert predictions_file.resume(tmp_path, REQUEST) == 0
  assert json.loads((tmp_path / "request.json").read_text()) == REQUEST


def test_another_evaluation_is_refused(tmp_path):
  predictions_file.resume(tmp_path, REQUEST)
  with pytest.raises(EvaluationError, match="another evaluation, which differs in: crops;"):
    predictions_file.resume(tmp_path, REQUEST | {"crops": 10})
  (tmp_path / "else").mkdir()
  (tmp_path / "else" / "thesis.tex").write_text("")
  with pytest.raises(EvaluationError, match="holds no evaluation"):
    predictions_file.resume(tmp_path / "else", REQUEST)
  with pytest.raises(EvaluationError, match="holds no evaluation"):
    predictions_file.resume(tmp_path / "else" / "thesis.tex", REQUEST)


def test_predictions_carry_what_people_call_the_classes(tmp_path):
  probabilities = np.array([[0.1, 0.7, 0.2], [np.nan] * 3])
  with predictions_file.writer(tmp_path, ["tench", "goldfish", "cock"]) as append:
    append([Annotation("a", 1), Annotation("b", 0)], probabilities, np.array([True, True]))
  lines = [json.loads(line) for line in (tmp_path / predictions_file.PREDICTIONS).read_text().splitlines()]
  assert lines[0]["names"] == ["goldfish", "cock", "tench"] and lines[0]["top5"] == [1, 2, 0]
  assert lines[1]["names"] == []
