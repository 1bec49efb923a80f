"""The keys of a config: a closed set, each with its type and range, whoever wrote the config.

A misspelt name in a config file makes a new key without a word, and a value that ml_collections takes may still be of
no use. Nothing but ml_collections is needed here, so that a script can refuse a config before it loads anything.
"""

import difflib
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from bn_inception.config_dict import ConfigDict
from bn_inception.errors import UserError

_INT32 = 2**31 - 1
_SMALLEST = 2.0**-126  # The smallest normal float32, the type that the numbers become; less may count as 0.


class ConfigError(UserError, ValueError):
  """A config that cannot be run; the text is one sentence that says what is wrong and what to do."""


class Key(NamedTuple):
  """What a value must be.

  Attributes:
    kind: int, float (or an int), bool or str.
    least, most, above, below: range of a number; above and below are excluded.
    length: the value is a tuple of such entries, (least, greatest) number of them.
  """

  kind: type
  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None
  length: tuple[int, float] | None = None


_COUNT, _COUNT_OR_NONE = Key(int, least=1, most=_INT32), Key(int, least=0, most=_INT32)
_POSITIVE, _NOT_NEGATIVE = Key(float, above=0), Key(float, least=0)
_FRACTION, _SHARE = Key(float, least=0, below=1), Key(float, least=0, most=1)
_FLAG, _TEXT, _TEXTS = Key(bool), Key(str), Key(str, length=(0, math.inf))

_KEYS = {
  # The batch size comes first: lengths are computed from it.
  "batch_size": _COUNT,
  "version": _COUNT_OR_NONE,
  "seed": Key(int, least=-(2**63), most=2**63 - 1),
  "gradient_accumulation": _COUNT,
  "steps_per_call": _COUNT,
  "dtype": _TEXT,
  "learning_rate": _POSITIVE,
  "momentum": _FRACTION,
  "weight_decay": _NOT_NEGATIVE,
  "learning_rate_decay": _POSITIVE,
  "learning_rate_decay_epochs": _POSITIVE,
  "learning_rate_scaling": _TEXT,
  "learning_rate_warmup_epochs": _NOT_NEGATIVE,
  "learning_rate_factors": _TEXTS,
  "ema_decay": _FRACTION,
  "auxiliary_loss_weight": _NOT_NEGATIVE,
  "num_steps": _COUNT,
  "log_every": _COUNT,
  "eval_every": _COUNT,
  "checkpoint_every": _COUNT,
  "checkpoint_every_minutes": _NOT_NEGATIVE,
  "stall_minutes": _NOT_NEGATIVE,
  "stall_limit_minutes": _NOT_NEGATIVE,
  "keep_latest": _COUNT,
  "keep_best": _COUNT_OR_NONE,
  "profile_at_step": _COUNT_OR_NONE,
  "batch_norm.enabled": _FLAG,
  "batch_norm.group_size": _COUNT_OR_NONE,
  "batch_norm.epsilon": _POSITIVE,
  "batch_norm.momentum": _FRACTION,
  "batch_norm.use_gamma": _FLAG,
  "batch_norm.in_stem": _FLAG,
  "batch_norm.per_activation": _TEXTS,
  "init.checkpoint": _TEXT,
  "init.skip": _TEXTS,
  "init.freeze": _TEXTS,
  "init.freeze_statistics": _FLAG,
  "data.name": _TEXT,
  "data.dir": _TEXT,
  "data.train_split": _TEXT,
  "data.eval_split": _TEXT,
  "data.num_classes": _COUNT,
  "data.image_size": _COUNT,
  "data.eval_resize": _COUNT,
  "data.shuffle": _TEXT,
  "data.cache": _FLAG,
  "data.on_error": _TEXT,
  "data.crop_area": Key(float, above=0, most=1, length=(2, 2)),
  "data.crop_aspect": Key(float, above=0, length=(2, 2)),
  "data.flip": _FLAG,
  "data.interpolation": _TEXT,
  "data.photometric_strength": _SHARE,
  "data.mean": Key(float, length=(1, math.inf)),
  "data.std": Key(float, above=0, length=(1, math.inf)),
  "data.channel_order": _TEXT,
  "data.binary": _FLAG,
  "eval.batch_size": _COUNT,
  "eval.population_batches": _COUNT,
  "eval.statistics": _TEXTS,
  "eval.sigmoid_input_units": Key(int, least=0, most=_INT32, length=(0, math.inf)),
  "model.name": _TEXT,
}
_MODEL_KEYS = {
  "inception": {
    "model.width": _POSITIVE,
    "model.stem": _TEXT,
    "model.pool_proj_4cd": _COUNT,
    "model.padding": _TEXT,
    "model.stem_pool": _TEXT,
    "model.reduction_pool": _TEXT,
    "model.avg_pool_include_pad": _FLAG,
    "model.conv_bias": _FLAG,
    "model.nonlinearity": _TEXT,
    "model.local_response_norm": _FLAG,
    "model.dropout_rate": _FRACTION,
    "model.auxiliary_heads": _TEXTS,
    "model.init_scale": _POSITIVE,
  },
  "mnist_mlp": {"model.hidden_units": _COUNT, "model.init_std": _POSITIVE},
}
_SECTIONS = tuple(dict.fromkeys(name.partition(".")[0] for name in _KEYS if "." in name))
_RELEASE = "release"  # Of a release folder, which checks it; a run has none.


def check_keys(config: Any) -> None:
  """Checks that a config has the keys that there are and no other, and that each value is of its type and range.

  Raises:
    ConfigError: naming what is unknown, else what is missing, else the first value that cannot be.
  """
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"The config is a {type(config).__name__}: get_config must return a ConfigDict.")
  for section in _SECTIONS:
    if section in config and not isinstance(config[section], ConfigDict):
      raise ConfigError(
        f"{section} is {config[section]!r}, but it is a section with keys of its own: set {section}.KEY."
      )
  model = config.model.get("name") if "model" in config else None
  if not isinstance(model, str) or model not in _MODEL_KEYS:
    raise ConfigError(
      f"model.name is {'missing' if model is None else repr(model)}: choose one of {', '.join(_MODEL_KEYS)}."
    )
  known = _KEYS | _MODEL_KEYS[model]
  there = list(_names(config))
  if unknown := [name for name in there if name not in known]:
    raise ConfigError(
      f"The config has no such key as {', '.join(_with_hint(name, known) for name in unknown)}: correct or remove it."
    )
  if missing := [name for name in known if name not in there]:
    raise ConfigError(
      f"The config lacks {', '.join(missing)}: set {'it' if len(missing) == 1 else 'them'}, as configs/common.py does."
    )
  for name, key in known.items():
    section, _, entry = name.rpartition(".")
    _check(name, (config[section] if section else config)[entry], key)


def requirements() -> dict[str, str]:
  """{key: what its value must be, "a whole number, at least 1"} of all keys, those of every model behind the others."""
  keys = _KEYS | {name: key for model in _MODEL_KEYS.values() for name, key in model.items()}
  # Bounds that are only those of the type tell a reader nothing.
  shown = {
    name: key._replace(**{bound: None for bound in ("least", "most") if abs(getattr(key, bound) or 0) >= _INT32})
    for name, key in keys.items()
  }
  return {name: _requirement(key) for name, key in shown.items()}


def _names(config: ConfigDict) -> Iterator[str]:
  """The keys that a config has, with their sections; no value outside of sections is looked at."""
  for name in config.keys():
    if name in _SECTIONS:
      yield from (f"{name}.{key}" for key in config[name].keys())
    elif name != _RELEASE:
      yield name


def _with_hint(name: str, known: dict[str, Key]) -> str:
  # Of its own section first, for a name without its section too.
  close = difflib.get_close_matches(name, known, n=1) or [
    key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]
  ]
  return name + (f" (did you mean {close[0]}?)" if close else "")


def _check(name: str, value: Any, key: Key) -> None:
  if key.length is None:
    fits = _fits(value, key)
  else:
    fits = (
      isinstance(value, tuple)
      and key.length[0] <= len(value) <= key.length[1]
      and all(_fits(entry, key) for entry in value)
    )
  if not fits:
    raise ConfigError(f"{name} is {value!r}: it must be {_requirement(key)}.")


def _fits(value: Any, key: Key) -> bool:
  """Whether one value, or one entry of a tuple, is of the type and in the range."""
  if key.kind in (bool, str):
    return isinstance(value, key.kind)
  if isinstance(value, bool) or not isinstance(value, int if key.kind is int else (int, float)):
    return False
  if key.kind is int:
    return key.least <= value <= key.most
  try:
    value = struct.unpack("f", struct.pack("f", value))[0]  # As the network computes with it.
  except OverflowError:
    return False
  value = value if not abs(value) < _SMALLEST else 0.0
  return (
    math.isfinite(value)
    and (key.least is None or value >= key.least)
    and (key.most is None or value <= key.most)
    and (key.above is None or value > key.above)
    and (key.below is None or value < key.below)
  )


def _requirement(key: Key) -> str:
  """What a value must be, to stand behind "it must be"."""
  if key.kind is bool:
    return "True or False"
  range_ = " and ".join(
    f"{words} {bound}"
    for words, bound in (
      ("at least", key.least),
      ("at most", key.most),
      ("greater than", key.above),
      ("less than", key.below),
    )
    if bound is not None
  )
  noun = {int: "whole number", float: "finite number", str: "text"}[key.kind]
  if key.length is None:
    return f"a {noun}{', ' + range_ if range_ else ''}"
  least, greatest = key.length
  count = f"{least} " if least == greatest else f"{least} or more " if least else ""
  return f"a tuple of {count}{noun}s{', each ' + range_ if range_ else ''}"
