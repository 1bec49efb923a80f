"""Starting from a trained network (`config.init`): fine-tuning.

Architecture and preprocessing are those of the checkpoint. configs/finetune.py takes them from the checkpoint, and a
config must not contradict them. Parameters that begin anew (`init.skip`, and the logits if the classes are others) have
the values of a new run.
"""

import dataclasses
import hashlib
import json
import logging
import typing
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from bn_inception import parameter_names
from bn_inception.config_keys import Config, ConfigError, parse
from bn_inception.release import loading
from bn_inception.state import TrainState

if typing.TYPE_CHECKING:  # diagnose.py makes the training step without TensorFlow.
  from bn_inception.data.datasets import Split

# A fine-tuned network shares these values with the network that it starts from. Of `model` it shares all values except
# those that count in training only.
_OF_TRAINING = ("dropout_rate", "auxiliary_heads", "init_scale", "init_std")
_BATCH_NORM = ("enabled", "epsilon", "use_gamma", "in_stem", "per_activation")
_DATA = ("image_size", "eval_resize", "mean", "std", "channel_order", "binary")

_log = logging.getLogger(__name__)


class Trained(NamedTuple):
  """The trained network from which a run starts.

  Attributes:
    variables: {"params", "batch_stats"}, nested, of the checkpoint.
    skip: patterns of the parameters that begin anew.
    origin: for the run's status: the `checkpoint` as the config names it, the `sha256` of its variables, `skip`.
  """

  variables: dict[str, Any]
  skip: tuple[str, ...]
  origin: dict[str, Any]


def fields(config: Config) -> dict[str, Any]:
  """The values that a config must share with its checkpoint, by the names of the keys."""
  model = [field.name for field in dataclasses.fields(config.model) if field.name not in _OF_TRAINING]
  sections = {"model": model, "batch_norm": _BATCH_NORM, "data": _DATA}
  return {
    f"{section}.{name}": getattr(getattr(config, section), name)
    for section, names in sections.items()
    for name in names
  }


def read(config: Config, params: Any, split: "Split") -> Trained:
  """Reads `init.checkpoint` and checks the config against the checkpoint.

  Args:
    config: of the run, with `init.checkpoint`.
    params: the parameters of the run's network, or their shapes.
    split: the training split, which knows the classes.

  Raises:
    ReleaseError: if the checkpoint cannot be used. If the checkpoint is a run, also the errors of `release.from_run`.
    ConfigError: if the config contradicts the checkpoint, or freezes parameters that begin anew.
  """
  source = loading.read(config.init.checkpoint)
  ours, theirs = fields(config), fields(parse(source.config))
  _check_same(config.init.checkpoint, ours, theirs)
  others = source.labels != split.label_names if source.labels else source.config.data.num_classes != split.num_classes
  skip = (*config.init.skip, *(("logits",) if others else ()))
  if others:
    _log.info("The classes of %s are not those of %s: the logits begin anew.", config.init.checkpoint, split.name)
  elif not source.labels:
    _log.warning(
      "%s does not tell the names of its %d classes; the names are taken to be those of %s.",
      config.init.checkpoint,
      split.num_classes,
      split.name,
    )
  anew = [name for name in parameter_names.names(params) if not parameter_names.is_loaded(name, skip)]
  if frozen := [name for name in anew if parameter_names.matches(name, config.init.freeze)]:
    raise ConfigError(
      f"init.freeze keeps {frozen[0]} at its value, but this parameter begins anew, and would stay random: take the "
      "parameter out of init.freeze or of init.skip."
    )
  origin = {"checkpoint": config.init.checkpoint, "sha256": _digest(source.variables), "skip": list(skip)}
  return Trained(source.variables, skip, origin)


def apply(trained: Trained, state: TrainState) -> TrainState:
  """The state before the first step, with the values of the checkpoint."""

  def loaded(collection: str, tree: Any) -> Any:
    flat = flax.traverse_util.flatten_dict(trained.variables.get(collection, {}), sep="/")
    # The loaded values are placed like the values that they replace: on every device.

    def value(name: str, leaf: jax.Array) -> jax.Array:
      return jax.device_put(flat[name], leaf.sharding) if parameter_names.is_loaded(name, trained.skip) else leaf

    return parameter_names.map_named(value, tree)

  params = loaded("params", state.params)
  return state.replace(
    params=params,
    batch_stats=loaded("batch_stats", state.batch_stats),
    # A second copy of the parameters, because the training step donates the memory of both.
    ema_params=None if state.ema_params is None else loaded("params", state.ema_params),
  )


def check_patterns(config: Config, params: Any) -> None:
  """Checks that each pattern of the config fits some parameter, and that a parameter is left to train.

  Raises:
    ConfigError: otherwise.
  """
  names = parameter_names.names(params)
  factors = [parameter_names.factor(entry)[0] for entry in config.learning_rate_factors]
  for key, patterns in (
    ("init.skip", config.init.skip),
    ("init.freeze", config.init.freeze),
    ("learning_rate_factors", factors),
  ):
    for pattern in patterns:
      if not any(parameter_names.matches(name, (pattern,)) for name in names):
        modules = ", ".join(dict.fromkeys(name.split("/")[0] for name in names))
        raise ConfigError(
          f"{key} has {pattern!r}, which fits no parameter: parameters are in {modules}, and the first is {names[0]}."
        )
  if all(parameter_names.matches(name, config.init.freeze) for name in names):
    raise ConfigError("init.freeze keeps every parameter, so that nothing is left to train: leave some patterns out.")


def _check_same(checkpoint: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
  different = [name for name in theirs if name not in ours or _as_json(ours[name]) != _as_json(theirs[name])]
  if "model.name" in different:
    different = ["model.name"]
  if different:
    wanted = " ".join(f'--config.{name}="{theirs[name]}"' for name in different)
    raise ConfigError(
      f"The config contradicts {checkpoint}, whose architecture and preprocessing the config has to follow, in "
      f"{', '.join(different)}: give --config=finetune:{checkpoint}, or {wanted}."
    )


def _as_json(value: Any) -> Any:
  """The value as a stored config has it: tuples and lists are one."""
  return json.loads(json.dumps(value))


def _digest(variables: dict[str, Any]) -> str:
  """SHA-256 of names, shapes and values. The digest does not depend on the format of the file."""
  digest = hashlib.sha256()
  for name, leaf in sorted(flax.traverse_util.flatten_dict(variables, sep="/").items()):
    leaf = np.ascontiguousarray(leaf)
    digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode())
    digest.update(leaf.data)
  return digest.hexdigest()
