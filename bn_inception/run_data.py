"""The data of a run, `data.json`: a run resumes, and is evaluated, with these data and no others."""

import dataclasses
import json
import pathlib
from typing import Any

from bn_inception import run_directory
from bn_inception.config_keys import Data
from bn_inception.data.datasets import Split
from bn_inception.errors import DataError

_SPLITS = ("train_split", "eval_split")
_FACTS = {"name": str, "split": str, "examples": int, "digest": str}  # Of each.


def held(data: Data, workdir: pathlib.Path) -> Data:
  """`data` with the version that the run in `workdir` found for `data.name`, also if a newer version exists now.

  The result is `data` itself if there is no such run, or if the run asked for another name.
  """
  record = read(workdir)
  if record.get("asked") != data.name or data.name == "fake":  # Fake data have no versions.
    return data
  return dataclasses.replace(data, name=record["train_split"]["name"])


def check(data: Data, workdir: pathlib.Path, **splits: Split) -> None:
  """Checks opened splits against the splits of the run in `workdir`, if `data` asks for the same data.

  Args:
    data: the config's section, as the user gave it.
    workdir: a run directory. Without data.json (an older version, or a new run) nothing is checked.
    **splits: `train_split` and `eval_split`, or one of these.

  Raises:
    DataError: if the opened splits are other data.
  """
  record = read(workdir)
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


def check_classes(data: Data, workdir: pathlib.Path, split: Split) -> None:
  """Checks the names of the classes of a split of the run, which need not be opened for it.

  Args:
    data, workdir: as of `check`. A run of a version that did not record the names is not checked.
    split: of the run's data, as it is found now.

  Raises:
    DataError: if the classes are others, or in another order.
  """
  record = read(workdir)
  if record.get("asked") == data.name and record.get("classes", list(split.label_names)) != list(split.label_names):
    raise DataError(
      f"The {split.name} found is not the {record['train_split']['name']} that the run in {workdir} was made with (its "
      "classes have other names): give the data.dir of the run's own data."
    )


def write(data: Data, workdir: pathlib.Path, **splits: Split) -> None:
  """Records the opened splits; arguments as of `check`."""
  classes = next(iter(splits.values())).label_names
  record = {"asked": data.name, "classes": list(classes)} | {
    field: {"name": split.name, "split": split.split, "examples": split.num_examples, "digest": split.digest}
    for field, split in splits.items()
  }
  run_directory.replace_file(_path(workdir), json.dumps(record, indent=2) + "\n")


def _path(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "data.json"


def read(workdir: pathlib.Path) -> dict[str, Any]:
  """What `write` recorded; {} of a run that has no record.

  Raises:
    DamagedFileError: if it cannot be read, or is no such record.
  """
  path = _path(workdir)
  if not path.exists():
    return {}
  record = run_directory.read_json(path)
  splits = [record.get(field, {}) for field in _SPLITS]
  if not all(
    isinstance(split, dict) and all(isinstance(split.get(name), kind) for name, kind in _FACTS.items())
    for split in splits
  ):
    raise run_directory.DamagedFileError(
      f"{path} is damaged (it does not tell the data of both splits): restore it, or move the folder away."
    )
  return record
