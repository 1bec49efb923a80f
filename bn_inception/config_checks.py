"""What a config must satisfy. Everything here is checked before a file is written or a program compiled."""

import functools
import math
import typing
from collections.abc import Iterable
from typing import Any

import jax

from bn_inception import batch_norm, models, parameter_names
from bn_inception.config_dict import ConfigDict
from bn_inception.config_keys import Config, ConfigError, Inception, MnistMlp, parse
from bn_inception.configs import versions
from bn_inception.errors import DataError
from bn_inception.models import inception, layers

if typing.TYPE_CHECKING:  # A config can be checked where no TensorFlow is installed.
  from bn_inception.data.datasets import Split


def _one_of(name: str, value: object, choices: Iterable[object]) -> None:
  if value not in choices:
    raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(map(str, choices))}.")


def _names(name: str, values: Iterable[object], choices: Iterable[object]) -> None:
  for value in values:
    _one_of(f"an entry of {name}", value, choices)


def _groups(name: str, batch: int, group_size: int, devices: int) -> None:
  """A group may lie within the share of a device or be made of whole shares."""
  if batch % devices:
    raise ConfigError(
      f"{name} of {batch} examples does not divide over {devices} devices: choose a multiple of {devices}."
    )
  share = batch // devices
  if batch % group_size or (share % group_size and group_size % share):
    raise ConfigError(
      f"{name} of {batch} examples ({share} on each of {devices} devices) does not divide into BN groups of "
      f"{group_size}: choose batch_norm.group_size as a divisor or a multiple of {share} that divides {batch}, "
      "or change the batch."
    )


def check_config(given: ConfigDict, devices: int) -> Config:
  """Checks the values of a config for a number of devices (of all processes), and returns its typed form.

  Raises:
    ConfigError: naming the first thing that is wrong.
  """
  config = parse(given)
  _one_of("version", config.version, (versions.VERSION,))  # A stored config has been brought to it.
  if config.data.cache and (config.data.flip or {*config.data.crop_area, *config.data.crop_aspect} != {1.0}):
    raise ConfigError(
      "data.cache keeps each training image as one, but crops or flips make a new one of it every "
      "time: set data.cache=False, or data.flip=False and data.crop_area=data.crop_aspect=(1.0, 1.0)."
    )
  for name in ("crop_area", "crop_aspect"):
    least, greatest = interval = getattr(config.data, name)
    if least > greatest:
      raise ConfigError(f"data.{name} is {interval}: give the least first, then the greatest.")
  if config.data.eval_resize < config.data.image_size:
    raise ConfigError(
      f"data.eval_resize {config.data.eval_resize} is less than data.image_size "
      f"{config.data.image_size}, which would not fit into it: raise data.eval_resize."
    )
  for name in ("num_steps", "log_every", "eval_every", "checkpoint_every"):
    if (steps := getattr(config, name)) % config.steps_per_call:
      raise ConfigError(
        f"{name} is {steps}, but steps_per_call={config.steps_per_call} steps are made at a "
        "time: choose a multiple of it, or steps_per_call=1."
      )
  if config.profile_at_step and config.steps_per_call > 1:
    raise ConfigError(
      f"profile_at_step is {config.profile_at_step}, but steps_per_call={config.steps_per_call} steps "
      "are made at a time: profile with steps_per_call=1."
    )
  if config.profile_at_step and config.profile_at_step + 5 > config.num_steps:
    raise ConfigError(
      f"profile_at_step is {config.profile_at_step}, but the run ends at {config.num_steps}: leave 5 "
      "steps for the profile."
    )
  if config.learning_rate_warmup_epochs and config.batch_size <= 32:
    raise ConfigError(
      f"learning_rate_warmup_epochs is {config.learning_rate_warmup_epochs}, which raises the rate "
      f"from that of a batch of 32, but batch_size is {config.batch_size}: set it to 0, or choose a larger batch."
    )
  _check_init(config)
  if isinstance(config.model, Inception):
    _check_inception(config, config.model)
  else:
    _one_of("batch_norm.in_stem", config.batch_norm.in_stem, (True,))
    _names("batch_norm.per_activation", config.batch_norm.per_activation, ("none, with this network",))
  if "running" not in config.eval.statistics:
    raise ConfigError("eval.statistics is without 'running', by which the best checkpoint is chosen: add it.")
  _names(
    "eval.sigmoid_input_units",
    config.eval.sigmoid_input_units,
    range(config.model.hidden_units) if isinstance(config.model, MnistMlp) else ("none, with this network",),
  )

  if config.batch_size % config.gradient_accumulation:
    raise ConfigError(
      f"batch_size {config.batch_size} does not divide into gradient_accumulation "
      f"{config.gradient_accumulation} parts: choose a divisor of the batch size."
    )
  micro_batch = config.batch_size // config.gradient_accumulation
  group_size = (config.batch_norm.group_size or config.batch_size) if config.batch_norm.enabled else 1
  name = "batch_size" if config.gradient_accumulation == 1 else "batch_size / gradient_accumulation"
  _groups(name, micro_batch, group_size, devices)
  if config.batch_norm.enabled and group_size == 1:
    _check_single_values(config)
  if config.batch_norm.enabled:
    _groups("batch_size", config.batch_size, group_size, devices)
  _groups("eval.batch_size", config.eval.batch_size, group_size, devices)
  return config


def _check_init(config: Config) -> None:
  for entry in config.learning_rate_factors:
    try:
      parameter_names.factor(entry)
    except ValueError as error:
      raise ConfigError(
        f"An entry of learning_rate_factors is {entry!r}: it must be PATTERN=FACTOR with a factor above "
        "0, such as 'logits=10'; init.freeze has what keeps its value."
      ) from error
  if not config.init.checkpoint and (config.init.skip or config.init.freeze or config.init.freeze_statistics):
    raise ConfigError(
      "init.skip, init.freeze and init.freeze_statistics are for a run that starts from a trained "
      "network: set init.checkpoint too."
    )
  if config.init.freeze_statistics and not config.init.freeze:
    raise ConfigError(
      "init.freeze_statistics is True, which is for the BN of frozen parameters, but init.freeze names "
      "none: set it too."
    )


def _check_single_values(config: Config) -> None:
  """Checks groups of one example: on a map of one pixel BN has a single value, and every image the same output."""
  model = models.build(config)
  model = model.clone(norm=functools.partial(model.norm, group_size=1))
  images = jax.ShapeDtypeStruct((1, *config.data.image_shape), "float32")

  def train_step(images: jax.Array) -> Any:
    rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
    variables = model.init(rngs, images, train=False)
    return model.apply(variables, images, train=True, rngs=rngs, mutable=True)

  try:
    jax.eval_shape(train_step, images)  # Only shapes: nothing is computed.
  except batch_norm.SingleValueError as error:
    raise ConfigError(str(error)) from error


def _check_inception(config: Config, model: Inception) -> None:
  modules = tuple(inception.module_table())
  _names("model.auxiliary_heads", model.auxiliary_heads, modules)
  _names("batch_norm.per_activation", config.batch_norm.per_activation, modules)
  reduction = 8 if model.stem == "small" else 32
  if config.data.image_size < reduction:
    raise ConfigError(
      f"data.image_size {config.data.image_size} is too small for the stem '{model.stem}', which needs "
      f"{reduction} pixels: raise it or choose model.stem=small."
    )
  # Of n pixels, n odd, this pool makes (n - 1) / 2, but the convolutions beside it (n + 1) / 2.
  if model.reduction_pool == "ceil" and (size := _first_module_map(model, config.data.image_size)) % 4:
    raise ConfigError(
      f"model.reduction_pool=ceil needs maps that can be halved twice, but 3a's are {size}x{size}: "
      "choose another data.image_size or model.reduction_pool=same."
    )


def _first_module_map(model: Inception, image_size: int) -> int:
  """Side of the map that module 3a receives, in pixels."""
  small = model.stem == "small"
  size = image_size if small else math.ceil(image_size / 2)
  for _ in range(1 if small else 2):
    size = (size + sum(layers.POOL_PADDING[model.stem_pool](size)) - 3) // 2 + 1
  return size


def check_data(config: Config, split: "Split") -> None:
  """Checks a config against the data that it names.

  Raises:
    DataError: if classes or channels differ, there are no examples, or statistics would be of a single value.
  """
  if not split.num_examples:
    raise DataError(f"{split.name} has no examples in '{split.split}': choose another split.")
  if split.num_classes != config.data.num_classes:
    raise DataError(
      f"{split.name} has {split.num_classes} classes, but data.num_classes is "
      f"{config.data.num_classes}: set data.num_classes={split.num_classes}."
    )
  if config.data.cache and not split.image_side == config.data.image_size == config.data.eval_resize:
    raise DataError(
      f"data.cache needs images of {config.data.image_size}x{config.data.image_size} pixels as stored, "
      f"but those of {split.name} are not, or are resized: set data.cache=False."
    )
  for name in ("mean", "std"):
    length = len(getattr(config.data, name))
    if length != split.image_channels:
      raise DataError(
        f"{split.name} has {split.image_channels} channels, but data.{name} has {length} values: give "
        "one for each channel."
      )
  group_size = config.batch_norm.group_size or config.batch_size
  if (
    config.batch_norm.enabled
    and "batch" in config.eval.statistics
    and split.split == config.data.eval_split
    and split.num_examples % group_size == 1
  ):
    try:
      _check_single_values(config)
    except ConfigError as error:
      raise DataError(
        f"{split.name} {split.split} has {split.num_examples:,} examples, of which one is left for the "
        f"last BN group of {group_size}, whose statistics would be of a single value: take 'batch' out of "
        "eval.statistics, or choose another data.eval_split."
      ) from error
