"""The keys of a config: a closed set, each with its type, range or choices, whoever wrote the config.

The fields of the classes below are the only place where they stand: `parse` checks a ConfigDict against the fields, and
makes of it an object of these classes, whose attributes have the names of the keys. A function that takes such a part
shows in its signature which keys it depends on.

A misspelt name in a config file makes a new key without a word, and a value that ml_collections takes may still be of
no use. Nothing but ml_collections is needed here, so that a script can refuse a config before it loads anything.
"""

import dataclasses
import difflib
import math
import struct
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from bn_inception.config_dict import ConfigDict
from bn_inception.errors import UserError

_INT32 = 2**31 - 1
_SMALLEST = 2.0**-126  # The smallest normal float32, the type that the numbers become; less may count as 0.


class ConfigError(UserError, ValueError):
  """A config that cannot be run; the text is one sentence that says what is wrong and what to do."""


class Range(NamedTuple):
  """Range of a number, or of each number of a tuple; `above` and `below` are excluded."""

  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None


class Length(NamedTuple):
  """Numbers of entries that a tuple may have."""

  least: int
  most: float


Count = Annotated[int, Range(least=1, most=_INT32)]
CountOrNone = Annotated[int, Range(least=0, most=_INT32)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Fraction = Annotated[float, Range(least=0, below=1)]
Share = Annotated[float, Range(least=0, most=1)]
Area = Annotated[float, Range(above=0, most=1)]

PoolPadding = Literal["same", "ceil", "floor", "floor_pad1"]
Statistics = Literal["running", "population", "batch"]


@dataclasses.dataclass(frozen=True)
class BatchNorm:
  """The keys batch_norm.*."""

  enabled: bool
  group_size: CountOrNone
  epsilon: Positive
  momentum: Fraction
  use_gamma: bool
  in_stem: bool
  per_activation: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Init:
  """The keys init.*."""

  checkpoint: str
  skip: tuple[str, ...]
  freeze: tuple[str, ...]
  freeze_statistics: bool


@dataclasses.dataclass(frozen=True)
class Data:
  """The keys data.*."""

  name: str
  dir: str
  train_split: str
  eval_split: str
  num_classes: Count
  image_size: Count
  eval_resize: Count
  shuffle: Literal["none", "within_shard", "global"]
  cache: bool
  on_error: Literal["fail", "skip"]
  crop_area: tuple[Area, Area]
  crop_aspect: tuple[Positive, Positive]
  flip: bool
  interpolation: Literal["random", "bilinear"]
  photometric_strength: Share
  mean: Annotated[tuple[float, ...], Length(1, math.inf)]
  std: Annotated[tuple[Positive, ...], Length(1, math.inf)]
  channel_order: Literal["rgb", "bgr"]
  binary: bool

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of the images that the network gets; `mean` has a value for each channel."""
    return self.image_size, self.image_size, len(self.mean)


@dataclasses.dataclass(frozen=True)
class Eval:
  """The keys eval.*."""

  batch_size: Count
  population_batches: Count
  statistics: tuple[Statistics, ...]
  sigmoid_input_units: tuple[CountOrNone, ...]


@dataclasses.dataclass(frozen=True)
class Inception:
  """The keys model.* of the network of §4.2."""

  name: Literal["inception"]
  width: Positive
  stem: Literal["separable", "plain", "small"]
  pool_proj_4cd: Literal[96, 128]
  padding: Literal["same", "symmetric"]
  stem_pool: PoolPadding
  # Without padding the pool's map is smaller than those of the convolutions beside it.
  reduction_pool: Literal["same", "ceil", "floor_pad1"]
  avg_pool_include_pad: bool
  conv_bias: bool
  nonlinearity: Literal["relu", "sigmoid"]
  local_response_norm: bool
  dropout_rate: Fraction
  auxiliary_heads: tuple[str, ...]
  init_scale: Positive


@dataclasses.dataclass(frozen=True)
class MnistMlp:
  """The keys model.* of the network of §4.1."""

  name: Literal["mnist_mlp"]
  hidden_units: Count
  init_std: Positive


@dataclasses.dataclass(frozen=True)
class ResNet:
  """The keys model.* of residual networks (He et al., 2016)."""

  name: Literal["resnet"]
  stage_sizes: Annotated[tuple[Count, ...], Length(1, math.inf)]
  width: Positive
  stem: Literal["plain", "small"]


Model = Inception | MnistMlp | ResNet


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole config."""

  # The batch size comes first: lengths are computed from it.
  batch_size: Count
  version: CountOrNone
  seed: Annotated[int, Range(least=-(2**63), most=2**63 - 1)]
  gradient_accumulation: Count
  steps_per_call: Count
  dtype: Literal["float32", "bfloat16"]
  learning_rate: Positive
  momentum: Fraction
  weight_decay: NotNegative
  learning_rate_decay: Positive
  learning_rate_decay_epochs: Positive
  learning_rate_schedule: Literal["exponential", "cosine"]
  learning_rate_scaling: Literal["none", "linear"]
  learning_rate_warmup_epochs: NotNegative
  learning_rate_factors: tuple[str, ...]
  label_smoothing: Fraction
  ema_decay: Fraction
  auxiliary_loss_weight: NotNegative
  num_steps: Count
  log_every: Count
  eval_every: Count
  checkpoint_every: Count
  checkpoint_every_minutes: NotNegative
  stall_minutes: NotNegative
  stall_limit_minutes: NotNegative
  keep_latest: Count
  keep_best: CountOrNone
  profile_at_step: CountOrNone
  batch_norm: BatchNorm
  init: Init
  data: Data
  eval: Eval
  model: Model


_RELEASE = "release"  # Of a release folder, which checks it; a run has none.


class Key(NamedTuple):
  """What a value must be, as the type of a field says it.

  Attributes:
    kind: int, float (or an int), bool or str.
    range: of a number.
    choices: the only values; (): all of the kind and range.
    length: the value is a tuple of such entries, so many of them; None: it is no tuple.
  """

  kind: type
  range: Range = Range()
  choices: tuple[int | str, ...] = ()
  length: Length | None = None


def parse(config: ConfigDict) -> Config:
  """The typed form of a config that has the keys that there are and no other, each value of its type and range.

  Whether the values go together is for `config_checks.check_config` to say.

  Raises:
    ConfigError: naming what is unknown, else what is missing, else the first value that cannot be.
  """
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"The config is a {type(config).__name__}: get_config must return a ConfigDict.")
  sections, models = _sections(), _models()
  for section in (*sections, "model"):
    if section in config and not isinstance(config[section], ConfigDict):
      raise ConfigError(
        f"{section} is {config[section]!r}, but it is a section with keys of its own: set {section}.KEY."
      )
  model = config.model.get("name") if "model" in config else None
  if not isinstance(model, str) or model not in models:
    raise ConfigError(
      f"model.name is {'missing' if model is None else repr(model)}: choose one of {', '.join(models)}."
    )
  sections["model"] = models[model]
  known = _keys(sections)
  given = list(_names(config, sections))
  if unknown := [name for name in given if name not in known]:
    raise ConfigError(
      f"The config has no such key as {', '.join(_with_hint(name, known) for name in unknown)}: correct or remove it."
    )
  if missing := [name for name in known if name not in given]:
    raise ConfigError(
      f"The config lacks {', '.join(missing)}: set {'it' if len(missing) == 1 else 'them'}, as configs/common.py does."
    )
  values: dict[str, dict[str, Any]] = {section: {} for section in ("", *sections)}
  for name, key in known.items():
    section, _, entry = name.rpartition(".")
    value = (config[section] if section else config)[entry]
    _check(name, value, key)
    values[section][entry] = value
  return Config(**values[""], **{section: part(**values[section]) for section, part in sections.items()})


def requirements() -> dict[str, str]:
  """{key: what its value must be, "a whole number, at least 1"} of all keys, those of every model behind the others."""
  keys = _keys(_sections())
  for model in _models().values():
    keys |= _keys({"model": model})
  # Bounds that are only those of the type tell a reader nothing.
  shown = {
    name: key._replace(
      range=key.range._replace(
        **{bound: None for bound in ("least", "most") if abs(getattr(key.range, bound) or 0) >= _INT32}
      )
    )
    for name, key in keys.items()
  }
  return {
    name: f"one of {', '.join(map(str, key.choices))}" if key.choices and key.length is None else _requirement(key)
    for name, key in shown.items()
  }


def key_of(field: Any) -> Key:
  """What the type of a field asks of its value."""
  origin, arguments = typing.get_origin(field), typing.get_args(field)
  if origin is Annotated:
    key, limit = key_of(arguments[0]), arguments[1]
    return key._replace(length=limit) if isinstance(limit, Length) else key._replace(range=limit)
  if origin is Literal:
    return Key(type(arguments[0]), choices=arguments)
  if origin is tuple:
    is_open = arguments[-1] is Ellipsis
    return key_of(arguments[0])._replace(length=Length(0, math.inf) if is_open else Length(*[len(arguments)] * 2))
  return Key(field)


def names(part: type) -> set[str]:
  """The keys of a part."""
  return set(_types(part))


def _types(part: type) -> dict[str, Any]:
  """{name of a field: its type}, in the order of the class."""
  types_of_fields = typing.get_type_hints(part, include_extras=True)
  return {field.name: types_of_fields[field.name] for field in dataclasses.fields(part)}


def _sections() -> dict[str, Any]:
  """{name of a section: its class}, but `model`, whose class depends on the network."""
  return {name: part for name, part in _types(Config).items() if dataclasses.is_dataclass(part)}


def _models() -> dict[str, type]:
  """{model.name: the class of the section `model`}."""
  return {typing.get_args(_types(part)["name"])[0]: part for part in typing.get_args(_types(Config)["model"])}


def _keys(sections: dict[str, Any]) -> dict[str, Key]:
  """What each key asks for, those outside of the sections first."""
  keys = {name: key_of(field) for name, field in _types(Config).items() if name not in (*_sections(), "model")}
  for section, part in sections.items():
    keys |= {f"{section}.{name}": key_of(field) for name, field in _types(part).items()}
  return keys


def _names(config: ConfigDict, sections: dict[str, Any]) -> Iterator[str]:
  """The keys that a config has, with their sections; no value outside of sections is looked at."""
  for name in config.keys():
    if name in sections:
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
  is_sound = _fits(value, key)
  if key.length is not None:
    is_sound = (
      isinstance(value, tuple)
      and key.length.least <= len(value) <= key.length.most
      and all(_fits(entry, key) for entry in value)
    )
  if not is_sound:
    raise ConfigError(f"{name} is {value!r}: it must be {_requirement(key)}.")
  for entry in (value,) if key.length is None else value:
    if key.choices and entry not in key.choices:
      subject = name if key.length is None else f"an entry of {name}"
      raise ConfigError(f"{subject} is {entry!r}: choose one of {', '.join(map(str, key.choices))}.")


def _fits(value: Any, key: Key) -> bool:
  """Whether one value, or one entry of a tuple, is of the type and in the range."""
  if key.kind in (bool, str):
    return isinstance(value, key.kind)
  if isinstance(value, bool) or not isinstance(value, int if key.kind is int else (int, float)):
    return False
  if key.kind is float:
    try:
      value = struct.unpack("f", struct.pack("f", value))[0]  # As the network computes with it.
    except OverflowError:
      return False
    if not math.isfinite(value):
      return False
    value = value if abs(value) >= _SMALLEST else 0.0
  least, most, above, below = key.range
  return (
    (least is None or value >= least)
    and (most is None or value <= most)
    and (above is None or value > above)
    and (below is None or value < below)
  )


def _requirement(key: Key) -> str:
  """What a value must be, to stand behind "it must be"."""
  if key.kind is bool:
    return "True or False"
  words = ("at least", "at most", "greater than", "less than")
  range_ = " and ".join(f"{word} {bound}" for word, bound in zip(words, key.range) if bound is not None)
  noun = {int: "whole number", float: "finite number", str: "text"}[key.kind]
  if key.length is None:
    return f"a {noun}{', ' + range_ if range_ else ''}"
  least, most = key.length
  count = f"{least} " if least == most else f"{least} or more " if least else ""
  return f"a tuple of {count}{noun}s{', each ' + range_ if range_ else ''}"
