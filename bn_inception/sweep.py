"""Every combination of some values of a config, with several seeds: made, continued, and compared.

A run has its directory below the work directory, KEY=VALUE/KEY=VALUE/seedN. What makes the runs is what makes those of
the paper's figures (`reproduction.execution`), also on several machines by `index` and `count`.
"""

import ast
import copy
import difflib
import itertools
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from bn_inception import comparison, config_keys, paths, run_directory, status
from bn_inception.reproduction import execution

_log = logging.getLogger(__name__)


def sweep(
  config: ConfigDict,
  workdir: str | os.PathLike,
  settings: Sequence[str],
  *,
  seeds: int = 1,
  index: int = 0,
  count: int = 1,
  dry_run: bool = False,
  target: float | None = None,
) -> str:
  """Makes the runs of a sweep, as far as they are not there yet, and prints the table of `comparison`.

  Args:
    config: what all runs share.
    workdir: holds the runs.
    settings: "KEY=VALUE,VALUE,...", each with the values of a key; several make the grid.
    seeds: runs of each combination, with the config's seed and those after it.
    index, count: make part `index` of `count`. The table is of all runs that are there.
    dry_run: only say what would be made.
    target: a validation accuracy; the table tells the steps to it.

  Returns:
    "done", "diverged" if every run of this part has diverged, "preempted" (the same command resumes), or of a dry run
    "planned".

  Raises:
    ConfigError, DataError, VersionError: one sentence on what cannot be used, before the first run starts.
  """
  execution.check_part(index, count)
  root = pathlib.Path(paths.local(workdir, "--workdir"))
  whole = tasks(config, settings, seeds)
  own = execution.part(whole, index, count)
  execution.check(whole, root)
  _log.info("%s", execution.announce(f"Sweep in {root}{execution.of_part(index, count)}", own, root))
  if dry_run:
    return "planned"
  if execution.make(own, root) == status.PREEMPTED:
    return status.PREEMPTED
  made = [root / task.name for task in whole if run_directory.metrics_path(root / task.name).exists()]
  if made:
    _log.info("%s", comparison.compare(made, target=target))
  states = [run_directory.read_status(root / task.name).get("status") for task in own]
  return status.DIVERGED if states and set(states) == {status.DIVERGED} else status.DONE


def tasks(config: ConfigDict, settings: Sequence[str], seeds: int) -> list[execution.Task]:
  """The runs of the grid, all of the first seed first, so that a sweep that is cut short has seen every combination.

  Raises:
    ConfigError: for a key or value that the config cannot have, or what is given twice.
  """
  grid: dict[str, list[Any]] = {}
  for setting in settings:
    key, values = _parse(config, setting)
    if key in grid:
      raise config_keys.ConfigError(f"--set {key} is given twice: give all its values in one.")
    grid[key] = values
  made = []
  for seed, values in itertools.product(range(config.seed, config.seed + seeds), itertools.product(*grid.values())):
    own = copy.deepcopy(config)  # With its references: the lengths follow the batch size.
    own.seed = seed
    for key, value in zip(grid, values):
      section, name = _section(own, key)
      section[name] = value
    config_keys.parse(own)
    folders = [f"{key}={_text(value)}" for key, value in zip(grid, values)]
    name = "/".join([*folders, f"seed{seed}"])
    made.append(execution.Task(name, own, name))
  return made


def _parse(config: ConfigDict, setting: str) -> tuple[str, list[Any]]:
  """("learning_rate", [0.01, 0.03]) of "learning_rate=0.01,0.03"."""
  key, equals, text = setting.partition("=")
  key = key.removeprefix("config.")
  if not equals or not text:
    raise config_keys.ConfigError(f"--set {setting} has no values: write --set KEY=VALUE,VALUE.")
  known = [name for name in config_keys.requirements() if _has(config, name)]
  if key not in known:
    close = difflib.get_close_matches(key, known, n=1)
    raise config_keys.ConfigError(
      f"--set {key}: the config has no such key" + (f"; did you mean {close[0]}?" if close else ".")
    )
  if key in ("seed", "version"):
    raise config_keys.ConfigError(f"--set {key} is not possible: " + "give --seeds=N." * (key == "seed"))
  section, name = _section(config, key)
  values = _values(text, section[name])
  taken = []  # As the config holds them: 0 becomes 0.0.
  for value in values:
    trial = copy.deepcopy(config)
    section, name = _section(trial, key)
    try:
      section[name] = value
    except (TypeError, ValueError) as error:
      raise config_keys.ConfigError(
        f"--set {key}: {value!r} is not possible, it must be {config_keys.requirements()[key]}."
      ) from error
    config_keys.parse(trial)
    taken.append(section[name])
  if len(set(map(_text, taken))) < len(taken):
    raise config_keys.ConfigError(f"--set {setting} names a value twice: give each value once.")
  return key, taken


def _values(text: str, old: Any) -> list[Any]:
  """The values between the commas; of a key that holds text or True and False, words without quotation marks too."""
  if isinstance(old, (str, bool)):
    words = {"true": True, "false": False} if isinstance(old, bool) else {}
    return [words.get(word.lower(), word) for word in (word.strip().strip("\"'") for word in text.split(","))]
  try:
    return list(ast.literal_eval(f"[{text}]"))
  except (ValueError, SyntaxError):  # One of them is no value: which, is found when the config takes them.
    return [_literal(word) for word in text.split(",")]


def _literal(word: str) -> Any:
  try:
    return ast.literal_eval(word)
  except (ValueError, SyntaxError):
    return word


def _has(config: ConfigDict, key: str) -> bool:
  section, _, name = key.rpartition(".")
  return name in (config[section] if section else config)


def _section(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
  """The part of the config that holds a key, and the key's name there."""
  section, _, name = key.rpartition(".")
  return (config[section] if section else config), name


def _text(value: Any) -> str:
  """A value in the name of a folder."""
  return str(value).replace("/", "_").replace(" ", "")
