"""What a config must satisfy. Everything here is checked before a file is written or a program compiled."""

from collections.abc import Iterable, Sequence
import math
import typing


from bn_inception import models
from bn_inception.config_dict import ConfigDict
from bn_inception.errors import DataError, UserError
from bn_inception.models import inception, layers
from bn_inception.configs import versions

if typing.TYPE_CHECKING:  # A config can be checked where no TensorFlow is installed.
  from bn_inception.data.datasets import Split


class ConfigError(UserError, ValueError):
  """A config that cannot be run; the text is one sentence that says what is wrong and what to do."""


def _one_of(name: str, value: object, choices: Iterable[object]) -> None:
  if value not in choices:
    raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(map(str, choices))}.")


def _names(name: str, values: Sequence[str], choices: Iterable[str]) -> None:
  for value in values:
    _one_of(f"an entry of {name}", value, choices)


def _groups(name: str, batch: int, group_size: int, devices: int) -> None:
  """A group may lie within the share of a device or be made of whole shares."""
  if batch % devices:
    raise ConfigError(f"{name} of {batch} examples does not divide over {devices} devices: choose a multiple of "
                      f"{devices}.")
  share = batch // devices
  if batch % group_size or (share % group_size and group_size % share):
    raise ConfigError(
        f"{name} of {batch} examples ({share} on each of {devices} devices) does not divide into BN groups of "
        f"{group_size}: choose batch_norm.group_size as a divisor or a multiple of {share} that divides {batch}, "
        "or change the batch.")


def check_config(config: ConfigDict, devices: int) -> None:
  """Checks the values of a config for a number of devices (of all processes).

  Raises:
    ConfigError: naming the first thing that is wrong.
  """
  _one_of("version", config.version, (versions.VERSION,))  # A stored config has been brought to it.
  # The batch size comes first: lengths are computed from it.
  for name in ("batch_size", "num_steps", "gradient_accumulation", "steps_per_call", "log_every", "eval_every",
               "checkpoint_every", "keep_latest", "eval.batch_size", "eval.population_batches", "data.num_classes",
               "data.image_size"):
    if (value := _get(config, name)) < 1:
      raise ConfigError(f"{name} is {value}: it must be at least 1.")
  if config.data.cache and (config.data.flip or {*config.data.crop_area, *config.data.crop_aspect} != {1.0}):
    raise ConfigError("data.cache keeps each training image as one, but crops or flips make a new one of it every "
                      "time: set data.cache=False, or data.flip=False and data.crop_area=data.crop_aspect=(1.0, 1.0).")
  for name, most in (("crop_area", 1.0), ("crop_aspect", math.inf)):
    values = config.data[name]
    if len(values) != 2 or not 0 < values[0] <= values[1] <= most or math.isinf(values[1]):
      raise ConfigError(f"data.{name} is {values}: give the least and the greatest, greater than 0"
                        + (" and at most 1." if most == 1.0 else "."))
  if config.data.eval_resize < config.data.image_size:
    raise ConfigError(f"data.eval_resize {config.data.eval_resize} is less than data.image_size "
                      f"{config.data.image_size}, which would not fit into it: raise data.eval_resize.")
  if not all(value > 0 for value in config.data.std):
    raise ConfigError(f"data.std is {config.data.std}: its values must be greater than 0.")
  for name in ("learning_rate", "learning_rate_decay", "learning_rate_decay_epochs", "batch_norm.epsilon"):
    if not (value := _get(config, name)) > 0:
      raise ConfigError(f"{name} is {value}: it must be greater than 0.")
  for name in ("learning_rate_warmup_epochs", "momentum", "weight_decay", "ema_decay", "auxiliary_loss_weight",
               "batch_norm.group_size", "batch_norm.momentum", "keep_best", "profile_at_step",
               "checkpoint_every_minutes", "stall_minutes", "stall_limit_minutes"):
    if not (value := _get(config, name)) >= 0:
      raise ConfigError(f"{name} is {value}: it must not be negative.")
  for name in ("momentum", "ema_decay", "batch_norm.momentum"):
    if not (value := _get(config, name)) < 1:
      raise ConfigError(f"{name} is {value}: it must be less than 1.")
  for name in ("num_steps", "log_every", "eval_every", "checkpoint_every"):
    if config[name] % config.steps_per_call:
      raise ConfigError(f"{name} is {config[name]}, but steps_per_call={config.steps_per_call} steps are made at a "
                        "time: choose a multiple of it, or steps_per_call=1.")
  if config.profile_at_step and config.steps_per_call > 1:
    raise ConfigError(f"profile_at_step is {config.profile_at_step}, but steps_per_call={config.steps_per_call} steps "
                      "are made at a time: profile with steps_per_call=1.")
  if config.profile_at_step and config.profile_at_step + 5 > config.num_steps:
    raise ConfigError(f"profile_at_step is {config.profile_at_step}, but the run ends at {config.num_steps}: leave 5 "
                      "steps for the profile.")
  _one_of("dtype", config.dtype, ("float32", "bfloat16"))
  _one_of("learning_rate_scaling", config.learning_rate_scaling, ("none", "linear"))
  if config.learning_rate_warmup_epochs and config.batch_size < 32:
    raise ConfigError(f"learning_rate_warmup_epochs is {config.learning_rate_warmup_epochs}, which raises the rate "
                      f"from that of a batch of 32, but batch_size is {config.batch_size}: set it to 0.")
  _one_of("data.shuffle", config.data.shuffle, ("none", "within_shard", "global"))
  _one_of("data.interpolation", config.data.interpolation, ("random", "bilinear"))
  if not 0 <= config.data.photometric_strength <= 1:
    raise ConfigError(f"data.photometric_strength is {config.data.photometric_strength}: it must be from 0 (no "
                      "photometric distortions) to 1 (the published ranges).")
  _one_of("data.on_error", config.data.on_error, ("fail", "skip"))
  _one_of("data.channel_order", config.data.channel_order, ("rgb", "bgr"))
  _one_of("model.name", config.model.name, models.MODELS)
  if config.model.name == "inception":
    _check_inception(config)
  _names("eval.statistics", config.eval.statistics, ("running", "population", "batch"))
  if "running" not in config.eval.statistics:
    raise ConfigError("eval.statistics is without 'running', by which the best checkpoint is chosen: add it.")
  _names("eval.sigmoid_input_units", config.eval.sigmoid_input_units,
         range(config.model.hidden_units) if config.model.name == "mnist_mlp" else ("none, with this network",))

  if config.batch_size % config.gradient_accumulation:
    raise ConfigError(f"batch_size {config.batch_size} does not divide into gradient_accumulation "
                      f"{config.gradient_accumulation} parts: choose a divisor of the batch size.")
  micro_batch = config.batch_size // config.gradient_accumulation
  group_size = (config.batch_norm.group_size or config.batch_size) if config.batch_norm.enabled else 1
  name = "batch_size" if config.gradient_accumulation == 1 else "batch_size / gradient_accumulation"
  _groups(name, micro_batch, group_size, devices)
  if config.batch_norm.enabled:
    _groups("batch_size", config.batch_size, group_size, devices)
  _groups("eval.batch_size", config.eval.batch_size, group_size, devices)


def _get(config: ConfigDict, path: str) -> float:
  for name in path.split("."):
    config = config[name]
  return config


def _check_inception(config: ConfigDict) -> None:
  model, modules = config.model, tuple(inception.module_table())
  _one_of("model.stem", model.stem, ("separable", "plain", "small"))
  _one_of("model.pool_proj_4cd", model.pool_proj_4cd, (96, 128))
  _one_of("model.padding", model.padding, ("same", "symmetric"))
  _one_of("model.stem_pool", model.stem_pool, tuple(layers.POOL_PADDING))
  # Without padding the pool's map is smaller than those of the convolutions beside it.
  _one_of("model.reduction_pool", model.reduction_pool, [name for name in layers.POOL_PADDING if name != "floor"])
  _one_of("model.nonlinearity", model.nonlinearity, tuple(layers.NONLINEARITIES))
  _names("model.auxiliary_heads", model.auxiliary_heads, modules)
  _names("batch_norm.per_activation", config.batch_norm.per_activation, modules)
  for name in ("width", "init_scale"):
    if not model[name] > 0:
      raise ConfigError(f"model.{name} is {model[name]}: it must be greater than 0.")
  if not 0 <= model.dropout_rate < 1:
    raise ConfigError(f"model.dropout_rate is {model.dropout_rate}: it must be at least 0 and less than 1.")
  reduction = 8 if model.stem == "small" else 32
  if config.data.image_size < reduction:
    raise ConfigError(f"data.image_size {config.data.image_size} is too small for the stem '{model.stem}', which needs "
                      f"{reduction} pixels: raise it or choose model.stem=small.")
  # Of n pixels, n odd, this pool makes (n - 1) / 2, but the convolutions beside it (n + 1) / 2.
  if model.reduction_pool == "ceil" and (size := _first_module_map(config)) % 4:
    raise ConfigError(f"model.reduction_pool=ceil needs maps that can be halved twice, but 3a's are {size}x{size}: "
                      "choose another data.image_size or model.reduction_pool=same.")


def _first_module_map(config: ConfigDict) -> int:
  """Side of the map that module 3a receives, in pixels."""
  small = config.model.stem == "small"
  size = config.data.image_size if small else math.ceil(config.data.image_size / 2)
  for _ in range(1 if small else 2):
    size = (size + sum(layers.POOL_PADDING[config.model.stem_pool](size)) - 3) // 2 + 1
  return size


def check_data(config: ConfigDict, split: "Split") -> None:
  """Checks a config against the data that it names.

  Raises:
    DataError: if classes or channels differ, or there are no examples.
  """
  if not split.num_examples:
    raise DataError(f"{split.name} has no examples in '{split.split}': choose another split.")
  if split.num_classes != config.data.num_classes:
    raise DataError(f"{split.name} has {split.num_classes} classes, but data.num_classes is "
                    f"{config.data.num_classes}: set data.num_classes={split.num_classes}.")
  if config.data.cache and not split.image_side == config.data.image_size == config.data.eval_resize:
    raise DataError(f"data.cache needs images of {config.data.image_size}x{config.data.image_size} pixels as stored, "
                    f"but those of {split.name} are not, or are resized: set data.cache=False.")
  for name in ("mean", "std"):
    length = len(config.data[name])
    if length != split.image_channels:
      raise DataError(f"{split.name} has {split.image_channels} channels, but data.{name} has {length} values: give "
                      "one for each channel.")
