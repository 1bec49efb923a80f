"""The small files of a run directory: config.json, status.json, metrics.jsonl.

Process 0 writes them. Each is either replaced as a whole or appended by whole lines, so that a kill at any moment
leaves readable files.
"""

import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import jax

from bn_inception.config_dict import ConfigDict
from bn_inception.configs import versions
from bn_inception.errors import UserError
from bn_inception.status import RUNNING


class DamagedFileError(UserError, ValueError):
  """A file of a run cannot be read. The text is one sentence that names the file and says what to do."""


_HISTORY = "history"  # The changes of the config, in config.json beside the config.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu", "tensorflow-datasets", "numpy")


def replace_file(path: pathlib.Path, text: str) -> None:
  """Writes a whole file, so that a reader sees either the old text or the new text."""
  temporary = path.with_name(path.name + ".partial")
  with temporary.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def json_numbers(values: dict[str, float]) -> dict[str, float | str]:
  """The values with a string in place of a number that is not finite, because JSON has no such number."""
  return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a file that holds one JSON object.

  Raises:
    DamagedFileError: if the file does not hold a JSON object.
  """
  try:
    tree = json.loads(path.read_text("utf-8"))
  except (ValueError, RecursionError) as error:  # Not JSON, or no text.
    raise DamagedFileError(f"{path} is damaged ({error}): restore it, or move the folder away.") from error
  if not isinstance(tree, dict):
    raise DamagedFileError(f"{path} is damaged (it holds no JSON object): restore it, or move the folder away.")
  return tree


def config_path(workdir: pathlib.Path) -> pathlib.Path:
  """Where the config of a run is."""
  return workdir / "config.json"


def metrics_path(workdir: pathlib.Path) -> pathlib.Path:
  """Where the metrics of a run are."""
  return workdir / "metrics.jsonl"


def write_config(workdir: pathlib.Path, config: ConfigDict, step: int = 0) -> None:
  """Writes the resolved config if the file is missing or has another config.

  `history` in the file keeps an entry for each change: {"step": the first step with the new values, "changed": {field:
  [old, new]}}.
  """
  path, tree = config_path(workdir), json.loads(config.to_json())
  if path.exists():
    changed = changed_fields(workdir, config)
    if not changed:
      return
    old, new = versions.flatten(read_config_tree(path)), versions.flatten(tree)
    history = json.loads(path.read_text()).get(_HISTORY, [])
    tree[_HISTORY] = [*history, {"step": step, "changed": {name: [old.get(name), new.get(name)] for name in changed}}]
  replace_file(path, json.dumps(tree, indent=2) + "\n")


def config_text(config: ConfigDict) -> str:
  """The config as a table of Markdown, which is how TensorBoard shows a text."""
  values = versions.flatten(json.loads(config.to_json()))
  return "\n".join(["| key | value |", "|---|---|", *(f"| {key} | {json.dumps(v)} |" for key, v in values.items())])


def hparams(config: ConfigDict) -> dict[str, str | float | bool]:
  """The config's values by their keys, as TensorBoard's table of hyper-parameters takes them: tuples are text."""
  values = versions.flatten(json.loads(config.to_json()))
  return {key: json.dumps(value) if isinstance(value, list) else value for key, value in values.items()}


def changed_fields(workdir: pathlib.Path, config: ConfigDict) -> list[str]:
  """Names of the values of `config` that differ from the config of the run in `workdir`; [] without a run.

  A key that only one of the two configs has counts as a difference, unless `configs.versions` explains the key.

  Raises:
    VersionError: as `read_config`.
  """
  if not config_path(workdir).exists():
    return []
  old = versions.flatten(read_config_tree(config_path(workdir)))
  new = versions.flatten(json.loads(config.to_json()))
  return sorted(
    name for name in old.keys() | new.keys() if name not in old or name not in new or old[name] != new[name]
  )


def read_config_tree(path: pathlib.Path) -> dict[str, Any]:
  """A config.json as the code of today would have written it, see `configs.versions`.

  Raises:
    VersionError: if the config is of a later version.
    DamagedFileError: if the file is damaged.
  """
  try:
    tree = read_json(path)
    tree.pop(_HISTORY, None)
    return versions.upgrade(tree, str(path))
  except DamagedFileError:
    raise
  except ValueError as error:
    raise DamagedFileError(f"{path} is damaged ({error}): restore it, or move the folder away.") from error


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """Reads a run's config.

  Raises:
    FileNotFoundError: if `workdir` holds no config.
    VersionError: if the config is of a later version.
    DamagedFileError: if the file is damaged.
  """

  def as_config(tree: dict[str, Any]) -> dict[str, Any]:
    # JSON has lists where the config has tuples.
    return {
      name: as_config(value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
      for name, value in tree.items()
    }

  path = config_path(workdir)
  if not path.exists():
    raise FileNotFoundError(f"{workdir} is not a run directory, it has no config.json: give the --workdir of a run.")
  return ConfigDict(as_config(read_config_tree(path)))


def read_status(workdir: pathlib.Path) -> dict[str, Any]:
  """Reads status.json; {} before the run's first status."""
  path = workdir / "status.json"
  return read_json(path) if path.exists() else {}


def saved_step(workdir: pathlib.Path) -> int | None:
  """The step of the checkpoint that the run says it has written; None without a checkpoint."""
  status = read_status(workdir)
  if "saved_step" in status:
    return status["saved_step"]
  if status:  # An older version did not record `saved_step`. Its first status was that of step 0.
    return status.get("step") or None
  lines = read_metrics(workdir)
  return lines[-1]["step"] if lines else None


class Status:
  """The status.json of a running run: what is known at the run's start, and what has changed since.

  Process 0 writes the file. On the other processes `write` does nothing.
  """

  def __init__(
    self, workdir: pathlib.Path, config: ConfigDict, step: int, saved: int | None, init: dict[str, Any] | None
  ):
    """The status of a run that is at `step` and has saved step `saved`. The code revision is that of this process.

    `init` describes the checkpoint from which the run started, see `initialization.Trained`.
    """
    devices = jax.devices()
    self.workdir, self._config = workdir, config
    self.step, self.images_per_second = step, None
    self.saved_step = self.saving_step = saved  # The latter may still be being written.
    self._writing, self._has_ended = threading.Lock(), False
    self._facts = {
      "git_revision": git_revision(),
      "packages": packages(),
      "devices": f"{len(devices)} {devices[0].device_kind}",
      "processes": jax.process_count(),
      **({"init": init} if init else {}),
    }

  def write(self, status: str, **details: Any) -> None:
    """Writes the file. `status` is a status of status.py; `details` are further entries, metrics as `json_numbers`.

    Any thread may call it, while a run ends more than one does. The first status in which the run has ended stays.
    """
    if jax.process_index():
      return
    with self._writing:
      if not self._has_ended:
        self._replace(status, details)
        self._has_ended = status != RUNNING

  def _replace(self, status: str, details: dict[str, Any]) -> None:
    details = {name: json_numbers(value) if isinstance(value, dict) else value for name, value in details.items()}
    replace_file(
      self.workdir / "status.json",
      json.dumps(
        {
          "status": status,
          "step": self.step,
          "num_steps": self._config.num_steps,
          "paper_steps": self.step * self._config.batch_size / 32,
          "saved_step": self.saved_step,
          "images_per_second": self.images_per_second,
          **details,
          "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
          **self._facts,
        },
        indent=2,
      )
      + "\n",
    )


def fingerprint(config: ConfigDict) -> dict[str, str]:
  """The values that must be the same on all hosts of a run, each by its name."""
  values = versions.flatten(json.loads(config.to_json()))
  return {name: json.dumps(value) for name, value in values.items()} | software()


def software() -> dict[str, str]:
  """What the hosts of a program must have alike without a config: the packages' versions and the code revision."""
  return packages() | {"code revision": str(git_revision())}


def packages() -> dict[str, str]:
  """Versions of the packages that a run depends on."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES}


def git_revision() -> str | None:
  """The commit of this code, with "+changes" if the files differ from the commit; None outside a git checkout."""

  def git(*arguments: str) -> str:
    code = pathlib.Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=code, capture_output=True, text=True, check=True).stdout.strip()

  try:
    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def append_metrics(workdir: pathlib.Path, step: int, batch_size: int, metrics: dict[str, float]) -> None:
  """Appends a line to metrics.jsonl, with the metrics as `json_numbers` has them."""
  line = {"step": step, "paper_steps": step * batch_size / 32}
  line |= json_numbers(metrics)
  with metrics_path(workdir).open("a") as file:
    file.write(json.dumps(line) + "\n")
    file.flush()
    os.fsync(file.fileno())  # A checkpoint that outlives a power failure must find its lines.


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The lines of metrics.jsonl, oldest first, without a last line that a kill or a power loss has torn.

  Raises:
    DamagedFileError: if an earlier line cannot be read; the error names the line.
  """
  return [
    {name: float(value) if isinstance(value, str) else value for name, value in json.loads(line).items()}
    for line in _metrics_lines(workdir)
  ]


def drop_metrics_after(workdir: pathlib.Path, step: int) -> None:
  """Removes the lines of later steps, which a run that resumes from `step` will write again.

  Raises:
    DamagedFileError: as `read_metrics`; the file is left as it was.
  """
  path = metrics_path(workdir)
  if path.exists():
    lines = _metrics_lines(workdir)
    replace_file(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))


def _metrics_lines(workdir: pathlib.Path) -> list[str]:
  """The lines of metrics.jsonl, each an object with a step and numbers, without a torn end."""
  path = metrics_path(workdir)
  return whole_lines(path, _is_metrics) if path.exists() else []


def _is_metrics(values: Any) -> bool:
  return isinstance(values["step"], int) and all(isinstance(float(value), float) for value in values.values())


def whole_lines(path: pathlib.Path, is_sound: Callable[[Any], bool]) -> list[str]:
  """The lines of a file of JSON objects, without the end that a kill or a power loss has torn.

  A file system may leave blanks or zeros in place of the bytes that it had no time to write. Behind the last newline is
  no whole line.

  Args:
    path: the file.
    is_sound: whether a parsed line is as it should be; the function may also raise.

  Raises:
    DamagedFileError: if an earlier line is not JSON, or not sound; the error names the line.
  """

  def readable(line: str) -> bool:
    try:
      return bool(line.encode()) and is_sound(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
      return False

  lines = path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")[:-1]
  while lines and not readable(lines[-1]):
    lines.pop()
  for number, line in enumerate(lines, 1):
    if not readable(line):
      raise DamagedFileError(
        f"{path} is damaged in line {number} of {len(lines)}, which reads {line[:40]!r}: correct or remove that line."
      )
  return lines
