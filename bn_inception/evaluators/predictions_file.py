"""The predictions of an evaluation, one example a line, as they are made: what it resumes from and what it counts.

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
  """An evaluation that cannot be made; the text is one sentence that says what is wrong and what to do."""


def check_folder(folder: pathlib.Path) -> None:
  """Raises EvaluationError if the folder holds something else than an evaluation."""
  if (
    not (folder / REQUEST).exists()
    and folder.exists()
    and (not folder.is_dir() or any(path.stem not in (REQUEST, folder_lock.FILE) for path in folder.iterdir()))
  ):
    raise EvaluationError(f"{folder} exists and holds no evaluation: give another --output.")


def resume(folder: pathlib.Path, request: dict[str, Any]) -> int:
  """Makes the folder, or finds how far the same evaluation came in it.

  Args:
    folder: of the evaluation.
    request: all that its results depend on.

  Returns:
    How many examples are predicted already. What a kill or a power loss has torn at the end is removed.

  Raises:
    DamagedFileError: if a line before that cannot be read.
    EvaluationError: if the folder holds something else, or another evaluation.
  """
  check_folder(folder)
  if not (folder / REQUEST).exists():
    folder.mkdir(parents=True, exist_ok=True)
    run_directory.replace_file(folder / REQUEST, json.dumps(request, indent=2) + "\n")
    return 0
  before = run_directory.read_json(folder / REQUEST)
  # Folders of before there was a digest do not say which data their name stood for.
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
  """Whether a line has all that `metrics` counts; it may also raise, see `run_directory.whole_lines`."""
  if "skipped" in line:
    return isinstance(line["id"], str)
  labels = line["label"] if isinstance(line["label"], list) else [line["label"]]
  return (
    isinstance(line["id"], str)
    and all(isinstance(label, int) for label in labels)
    and isinstance(line["top5"], list)
    and 0 <= line["label_probability"] < 1 + 1e-6
  )  # Of several labels a sum of rounded numbers.


@contextlib.contextmanager
def writer(
  folder: pathlib.Path, class_names: Sequence[str] = ()
) -> Iterator[Callable[[Sequence[Annotation], np.ndarray, np.ndarray], None]]:
  """Opens the file for `append(annotations, probabilities, mask)`, which writes the predictions of some examples.

  What was appended is the operating system's at once: a process that is killed loses nothing of it. It is on the disk
  when the next call comes SYNC_SECONDS or more after the last time, and at the end: a machine that loses its power
  loses the predictions of at most that time and of one call.

  A line holds `id`, `label` (a list, in data sets with any number of labels), `top5` (classes, the likeliest first; of
  equal ones the lower number), `names` (what people call those), `probability` (of those) and `label_probability`. A
  prediction that is not finite has
  an empty `top5`, so that it is wrong; an example whose image could not be read has `skipped` instead of all this.

  Args:
    folder: of the evaluation.
    class_names: what people call each class; (): lines have no `names`.

  Yields:
    append: of the annotations of n examples, their class probabilities, float64 [n, classes], and mask, bool [n]
      (False: skipped).
  """
  with (folder / PREDICTIONS).open("a") as file:
    synced = time.monotonic()

    def append(annotations: Sequence[Annotation], probabilities: np.ndarray, mask: np.ndarray) -> None:
      nonlocal synced
      lines = (_line(*example, class_names) for example in zip(annotations, probabilities, mask, strict=True))
      file.write("".join(lines))
      file.flush()
      # Not after every call: with 144 crops an example is one, and a disk takes milliseconds for it.
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
  """What the lines of all examples come to.

  Returns:
    {"top1_error", "top5_error", "loss" (nats, the mean of -log of the label's probability; not with several labels),
    "count" (the examples that these are means over), "skipped", "without_label"}. With several labels a prediction is
    right if it is one of them, and examples without any do not count (Beyer et al., 2020).

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
    raise RuntimeError(
      f"{folder / PREDICTIONS} has {seen} lines for {num_examples} examples: its result is not to be trusted."
    )
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
