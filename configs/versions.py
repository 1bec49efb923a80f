"""How the config has changed since the first archived run: what an older config.json means to the code of today.

A change that adds, renames or removes a key raises VERSION by one and adds a line to CHANGES. Then every earlier run,
release folder and archive is still compared, resumed and evaluated as what it was. `upgrade` is applied wherever a
stored config is read.
"""

import json
from typing import Any, NamedTuple


class VersionError(Exception):
  """This code does not know a stored config. The text is one sentence that says what is wrong and what to do."""


class Added(NamedTuple):
  """A key that older configs lack.

  Attributes:
    version: the first version that has the key.
    key: the key with its sections, 'data.on_error'.
    default: the value that stands for what the code did before the key existed.
    model: only configs with this `model.name` have the key; None: all configs.
  """

  version: int
  key: str
  default: Any
  model: str | None = None


class Renamed(NamedTuple):
  """A key that older configs have under another name."""

  version: int
  old: str
  key: str


class Removed(NamedTuple):
  """A key that only older configs have. With `value` the older code did what the code of today does."""

  version: int
  key: str
  value: Any


VERSION = 3  # Configs without a version have the number 0.
CHANGES: tuple[Added | Renamed | Removed, ...] = (
  Added(1, "data.on_error", "fail"),
  Added(1, "data.interpolation", "bilinear"),
  Added(1, "data.photometric_strength", 0.0),
  Added(1, "eval.statistics", ("running", "population", "batch")),
  Added(2, "checkpoint_every_minutes", 0.0),
  Added(2, "stall_minutes", 10.0),
  Added(2, "stall_limit_minutes", 60.0),
  Added(2, "learning_rate_scaling", "none"),
  Added(2, "learning_rate_warmup_epochs", 0.0),
  Added(2, "learning_rate_factors", ()),
  Added(2, "init.checkpoint", ""),
  Added(2, "init.skip", ()),
  Added(2, "init.freeze", ()),
  Added(2, "init.freeze_statistics", False),
  Added(3, "learning_rate_schedule", "exponential"),
  Added(3, "label_smoothing", 0.0),
)


def upgrade(config: dict[str, Any], name: str) -> dict[str, Any]:
  """A stored config as the code of today would have stored the config. Other keys stay as they are.

  Args:
    config: as parsed from JSON.
    name: of the file, for the sentence of an error.

  Raises:
    VersionError: for a config of a later version, or with a removed key at a value that the code no longer supports.
    ValueError: if `config` is no config.
  """
  if not isinstance(config, dict):
    raise ValueError("it holds no JSON object")
  version = config.get("version", 0)
  if type(version) is not int or version < 0:
    raise ValueError(f"its version is {version!r}")
  if version > VERSION:
    raise VersionError(
      f"{name} has the config version {version}, and this code knows none after {VERSION}: use the "
      "code that the run or release was made with, or a later one."
    )
  values = flatten(config)
  for change in CHANGES:
    if change.version <= version:
      continue
    match change:
      case Added():
        if change.model in (None, values.get("model.name")):
          values.setdefault(change.key, _as_json(change.default))
      case Renamed():
        if change.old in values:
          values[change.key] = values.pop(change.old)
      case Removed():
        value = values.pop(change.key, _as_json(change.value))
        if value != _as_json(change.value):
          raise VersionError(
            f"{name} has {change.key}={value!r}, but this code can only do what {change.value!r} did: "
            "use the code that made the file."
          )
  return _nested({"version": VERSION} | values | {"version": VERSION})


def without_added_defaults(config: dict[str, Any]) -> dict[str, Any]:
  """`config`, whole or some sections of it, without the keys added after version 1 that have their defaults.

  A digest of this is the same before and after a key is added.
  """
  defaults = {
    change.key: _as_json(change.default) for change in CHANGES if isinstance(change, Added) and change.version > 1
  }
  return _nested(
    {key: value for key, value in flatten(config).items() if key not in defaults or value != defaults[key]}
  )


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """{'data.on_error': 'fail', ...} of nested sections."""
  flat = {}
  for key, value in config.items():
    flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat


def _nested(values: dict[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  config = {}
  for path, value in values.items():
    *sections, key = path.split(".")
    node = config
    for section in sections:
      node = node.setdefault(section, {})
      if not isinstance(node, dict):
        raise ValueError(f"its '{section}' is no section")
    node[key] = value
  return config


def _as_json(value: Any) -> Any:
  return json.loads(json.dumps(value))
