"""The data that a run was made with, `data.json`: a run goes on, and is evaluated, with these and no others."""

import dataclasses
import json
import pathlib
from typing import Any

from bn_inception import run_directory
from bn_inception.config_keys import Data
from bn_inception.data.datasets import Split
from bn_inception.errors import DataError


def held(data: Data, workdir: pathlib.Path) -> Data:
  """`data` with the version that the run in `workdir` found for its `name`, whatever newer ones there are by now.

  It is `data` itself without such a run, or if it asks for another name than the run did.
  """
  record = _read(workdir)
  if record.get("asked") != data.name or data.name == "fake":  # Which has no versions to find.
    return data
  return dataclasses.replace(data, name=record["train_split"]["name"])


def check(data: Data, workdir: pathlib.Path, **splits: Split) -> None:
  """Checks opened splits against those that the run in `workdir` was made with, if `data` asks for the same.

  Args:
    data: the config's, as the user gave it.
    workdir: a run directory; without data.json (of an older version, or new) nothing is known.
    **splits: `train_split` and `eval_split`, or one of them.

  Raises:
    DataError: if they are others.
  """
  record = _read(workdir)
  for field, split in splits.items():
    before = record.get(field, {})
    same_request = (record.get("asked"), before.get("split")) == (data.name, split.split)
    if same_request and before["digest"] != split.digest:
      raise DataError(
        f"The {split.name} {split.split} found is not the {before['name']} that the run in {workdir} was made with "
        f"({before['examples']:,} examples, digest {before['digest'][:12]}; now {split.num_examples:,}, "
        f"{split.digest[:12]}): give the data.dir of the run's own data; other data are for a new --workdir, or for "
        "scripts/evaluate.py --checkpoint."
      )


def write(data: Data, workdir: pathlib.Path, **splits: Split) -> None:
  """Records what was opened; arguments as of `check`."""
  record = {"asked": data.name} | {
    field: {"name": split.name, "split": split.split, "examples": split.num_examples, "digest": split.digest}
    for field, split in splits.items()
  }
  run_directory.replace_file(_path(workdir), json.dumps(record, indent=2) + "\n")


def _path(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "data.json"


def _read(workdir: pathlib.Path) -> dict[str, Any]:
  return run_directory.read_json(_path(workdir)) if _path(workdir).exists() else {}
