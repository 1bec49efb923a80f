"""The predictions of an evaluation, written one example a line. An evaluation resumes from this file and counts it.

A folder holds `request.json` (what is evaluated), `predictions.jsonl` and, at the end, `metrics.json`.
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bn_inception import folder_lock, run_directory
from bn_inception.data.annotations import Annotation
from bn_inception.errors import UserError

REQUEST, PREDICTIONS, METRICS = "request.json", "predictions.jsonl", "metrics.json"
SYNC_SECONDS = 5.0


class EvaluationError(UserError, ValueError):
  """An evaluation cannot be made. The text is one sentence that says what is wrong and what to do."""


def check_folder(folder: pathlib.Path) -> None:
  """Raises EvaluationError if the folder holds something other than an evaluation."""
  if (
    not (folder / REQUEST).exists()
    and folder.exists()
    and (not folder.is_dir() or any(path.stem not in (REQUEST, folder_lock.FILE) for path in folder.iterdir()))
  ):
    raise EvaluationError(f"{folder} exists and holds no evaluation: give another --output.")


def resume(folder: pathlib.Path, request: dict[str, Any]) -> int:
  """Makes the folder, or finds how far the same evaluation came in the folder.

  Args:
    folder: of the evaluation.
    request: all values on which the results depend.

  Returns:
    How many examples are predicted already. A last line that a kill or a power loss has torn is removed.

  Raises:
    DamagedFileError: if an earlier line cannot be read.
    EvaluationError: if the folder holds something else, or another evaluation.
  """
  check_folder(folder)
  if not (folder / REQUEST).exists():
    folder.mkdir(parents=True, exist_ok=True)
    run_directory.replace_file(folder / REQUEST, json.dumps(request, indent=2) + "\n")
    return 0
  before = run_directory.read_json(folder / REQUEST)
  # Older folders have no digest, so they do not say which data their name stood for.
  if changed := [
    name for name in request if before.get(name, request[name] if name == "data_digest" else None) != request[name]
  ]:
    raise EvaluationError(
      f"{folder} holds another evaluation, which differs in: {', '.join(changed)}; give another --output or remove it."
    )
  path = folder / PREDICTIONS
  if not path.exists():
    return 0
  lines = run_directory.whole_lines(path, _is_prediction)
  if (whole := sum(len(line.encode()) + 1 for line in lines)) < path.stat().st_size:
    os.truncate(path, whole)
  return len(lines)


def _is_prediction(line: dict[str, Any]) -> bool:
  """Whether a line has all that `metrics` counts. The function may also raise, see `run_directory.whole_lines`."""
  if "skipped" in line:
    return isinstance(line["id"], str)
  labels = line["label"] if isinstance(line["label"], list) else [line["label"]]
  return (
    isinstance(line["id"], str)
    and all(isinstance(label, int) for label in labels)
    and isinstance(line["top5"], list)
    and 0 <= line["label_probability"] < 1 + 1e-6
  )  # The probability of several labels is a sum of rounded numbers.


@contextlib.contextmanager
def writer(
  folder: pathlib.Path, class_names: Sequence[str] = ()
) -> Iterator[Callable[[Sequence[Annotation], np.ndarray, np.ndarray], None]]:
  """Opens the file for `append(annotations, probabilities, mask)`, which writes the predictions of some examples.

  The operating system has the appended lines at once, so a killed process loses none of these lines. The lines are
  written to the disk at the end, and by the first call that comes SYNC_SECONDS or more after the last write to the
  disk. So a machine that loses its power loses at most the predictions of this time and of one call.

  A line holds `id`, `label` (a list, in data sets with any number of labels), `top5` (five classes, the likeliest
  first; of equally likely classes the lower number), the `names` and the `probability` of these five, and
  `label_probability`. A prediction that is not finite has an empty `top5`, so it counts as wrong. An example whose
  image could not be read has `skipped` instead of all predicted values.

  Args:
    folder: of the evaluation.
    class_names: a readable name for each class; (): lines have no `names`.

  Yields:
    append: a function of the annotations of n examples, their class probabilities, float64 [n, classes], and their
      mask, bool [n] (False: skipped).
  """
  with (folder / PREDICTIONS).open("a") as file:
    synced = time.monotonic()

    def append(annotations: Sequence[Annotation], probabilities: np.ndarray, mask: np.ndarray) -> None:
      nonlocal synced
      lines = (_line(*example, class_names) for example in zip(annotations, probabilities, mask, strict=True))
      file.write("".join(lines))
      file.flush()
      # Not after every call: with 144 crops one example is one call, and a disk takes milliseconds for a sync.
      if time.monotonic() - synced >= SYNC_SECONDS:
        os.fsync(file.fileno())
        synced = time.monotonic()

    try:
      yield append
    finally:
      os.fsync(file.fileno())


def _line(annotation: Annotation, probabilities: np.ndarray, is_read: bool, class_names: Sequence[str]) -> str:
  line = {"id": annotation.id, "label": annotation.label}
  if is_read:
    finite = bool(np.isfinite(probabilities).all())
    top5 = np.argsort(-probabilities, kind="stable")[:5].tolist() if finite else []
    names = {"names": [class_names[label] for label in top5]} if class_names else {}
    line |= {
      "top5": top5,
      **names,
      "probability": [_rounded(probabilities[label]) for label in top5],
      "label_probability": _rounded(probabilities[annotation.label].sum()) if finite else 0.0,
    }
  else:
    line["skipped"] = True
  return json.dumps(line) + "\n"


def metrics(folder: pathlib.Path, num_examples: int) -> dict[str, float]:
  """The metrics of an evaluation, from the lines of all examples.

  Returns:
    {"top1_error", "top5_error", "loss" (nats, the mean of -log of the label's probability; not with several labels),
    "count" (the number of examples in these means), "skipped", "without_label"}. With several labels a prediction is
    right if it is one of the labels. Examples without a label do not count (Beyer et al., 2020).

  Raises:
    RuntimeError: if there is not exactly one line for each of `num_examples` examples.
  """
  seen = top1 = top5 = skipped = without_label = 0
  loss, several_labels = 0.0, False
  with (folder / PREDICTIONS).open() as file:
    for line in map(json.loads, file):
      seen += 1
      if "skipped" in line:
        skipped += 1
        continue
      several_labels = isinstance(line["label"], list)
      labels = line["label"] if several_labels else [line["label"]]
      if not labels:
        without_label += 1
      else:
        top1 += any(label in line["top5"][:1] for label in labels)
        top5 += any(label in line["top5"] for label in labels)
        loss -= math.log(line["label_probability"]) if line["label_probability"] else -math.inf
  if seen != num_examples:
    raise RuntimeError(f"{folder / PREDICTIONS} has {seen} lines for {num_examples} examples: do not trust the result.")
  count = seen - skipped - without_label
  if not count:
    raise EvaluationError(f"No example could be counted: {skipped} were skipped and {without_label} have no label.")
  result = {
    "top1_error": 1 - top1 / count,
    "top5_error": 1 - top5 / count,
    "count": count,
    "skipped": skipped,
    "without_label": without_label,
  }
  return result if several_labels else result | {"loss": loss / count}


def _rounded(probability: np.floating) -> float:
  return float(f"{probability:.7g}")
