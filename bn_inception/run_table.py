"""A table of runs as they stand, from the small files of their run directories; works on running ones too."""

import datetime
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from bn_inception import paths, run_directory, tables
from bn_inception.configs.versions import VersionError
from bn_inception.errors import UserError

_SILENT_SECONDS = 15 * 60  # A run writes its status or a line of metrics far more often.
_COLUMNS = ("run", "state", "step", "of", "images/s", "left", "top-1", "last sign", "error")


def table(folders: Sequence[str], now: datetime.datetime | None = None) -> str:
  """The table of all runs in and below some folders.

  Args:
    folders: run directories, or folders that hold such.
    now: for "last sign"; None: the present.

  Raises:
    UserError: if there is no run in one of them, or it is no path.
  """
  now = now or datetime.datetime.now().astimezone()
  rows = [_COLUMNS]
  for folder in (pathlib.Path(paths.local(folder, "A run")) for folder in folders):
    rows += [_row(run, now) for run in runs_below(folder)]
  return columns(rows, left=[_COLUMNS.index(name) for name in ("run", "state", "error")])


def runs_below(folder: pathlib.Path) -> list[pathlib.Path]:
  """The run directories and archived runs in and below a folder, sorted.

  Raises:
    UserError: if there is none.
  """
  runs = sorted(
    path.parent
    for path in folder.rglob("config.json")
    if (path.parent / "status.json").exists() or (path.parent / "metrics.jsonl").exists()
  )
  if not runs:
    raise UserError(f"{folder} holds no run: give run directories, or folders that hold such.")
  return runs


def columns(rows: Sequence[tuple[str, ...]], left: Sequence[int]) -> str:
  """Rows of the same length as text, each column as wide as its widest cell; the columns of `left` begin alike."""
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if column in left else cell.rjust(width)
      for column, (cell, width) in enumerate(zip(row, widths))
    ).rstrip()
    for row in rows
  )


def _row(run: pathlib.Path, now: datetime.datetime) -> tuple[str, ...]:
  try:
    return _readable_row(run, now)
  except run_directory.DamagedFileError as error:
    return (str(run), "damaged", "", "", "", "", "", "", str(error))
  except VersionError as error:
    return (str(run), "unknown", "", "", "", "", "", "", str(error))


def _readable_row(run: pathlib.Path, now: datetime.datetime) -> tuple[str, ...]:
  status, lines = run_directory.read_status(run), run_directory.read_metrics(run)
  step = max(status.get("step", 0), lines[-1]["step"] if lines else 0)
  total = status.get("num_steps")
  speed = status.get("images_per_second") or _last(lines, "train/images_per_second")
  top1 = _last(lines, "eval/running/top1")
  seconds = (now - _last_sign(run, status)).total_seconds()
  state = status.get("status", "running")
  if state == "running" and seconds > _SILENT_SECONDS:
    state = "silent"
  left = ""
  if state == "running" and speed and total and step:
    batch_size = 32 * status["paper_steps"] / status["step"] if status.get("step") else _batch_size(run)
    left = tables.duration((total - step) * batch_size / speed)
  return (
    str(run),
    state,
    f"{step:,}",
    f"{total:,}" if total else "",
    f"{speed:,.0f}" if speed else "",
    left,
    f"{top1:.2%}" if top1 is not None else "",
    tables.duration(max(seconds, 0)) + " ago",
    " ".join(str(status.get("error") or "").split()),
  )


def _batch_size(run: pathlib.Path) -> int:
  return run_directory.read_config_tree(run_directory.config_path(run))["batch_size"]


def _last(lines: list[dict[str, float]], name: str) -> float | None:
  return next((line[name] for line in reversed(lines) if name in line), None)


def _last_sign(run: pathlib.Path, status: dict[str, Any]) -> datetime.datetime:
  """When the run wrote last: its heartbeat, or the age of its files."""
  if "time" in status:
    return datetime.datetime.fromisoformat(status["time"])
  paths = [path for path in (run / "status.json", run / "metrics.jsonl") if path.exists()]
  return datetime.datetime.fromtimestamp(max(os.stat(path).st_mtime for path in paths)).astimezone()
