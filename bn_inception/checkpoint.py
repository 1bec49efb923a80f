"""Checkpoints through Orbax: asynchronous, atomic, latest and best kept, damaged ones recognised. The only Orbax user.

A checkpoint is the TrainState, the position in the input, and a checksum of the state's bytes. Orbax notices a missing
or cut file; the checksum notices a changed one.
"""

import logging
from typing import Any
import zlib

from etils import epath
import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from bn_inception.errors import UserError
from bn_inception.state import TrainState

_log = logging.getLogger(__name__)


class CheckpointError(UserError):
  """No checkpoint can be used; the text is one sentence that says why and what to do."""


def open_manager(workdir: epath.PathLike, config: ConfigDict | None = None) -> ocp.CheckpointManager:
  """Opens `workdir`/checkpoints: for writing with the `keep_latest` and `keep_best` of a config, else read-only."""
  directory = epath.Path(workdir).absolute() / "checkpoints"
  if config is None:
    return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(read_only=True))
  keep = [
      checkpoint_managers.LatestN(config.keep_latest),
      checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics["top1"], n=config.keep_best,
                                keep_checkpoints_without_metrics=False),
  ]
  return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(
      save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),  # The training loop decides when.
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
      cleanup_tmp_directories=True))


def checksum(state: TrainState) -> int:
  """CRC-32 of the bytes of all leaves, in order."""
  crc = 0
  for leaf in jax.tree.leaves(state):
    crc = zlib.crc32(np.ascontiguousarray(leaf.addressable_data(0)).reshape(-1).view(np.uint8), crc)
  return crc


def save(manager: ocp.CheckpointManager, state: TrainState, config: ConfigDict, top1: float | None) -> None:
  """Starts to write `state`; `top1` is its accuracy if it was evaluated at this step."""
  step = int(state.step)
  description = {"examples_seen": step * config.batch_size, "seed": config.seed, "crc32": checksum(state)}
  manager.save(step, metrics=None if top1 is None else {"top1": top1}, args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), description=ocp.args.JsonSave(description)))


def _restore_step(manager: ocp.CheckpointManager, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
  restored = manager.restore(step, args=ocp.args.Composite(
      state=ocp.args.StandardRestore(like), description=ocp.args.JsonRestore()))
  found, expected = checksum(restored.state), restored.description["crc32"]
  if found != expected:
    raise ValueError(f"its checksum is {found:#x}, not the {expected:#x} it was written with")
  return restored.state, restored.description


def newest_step(manager: ocp.CheckpointManager) -> int:
  """The newest checkpoint's step.

  Raises:
    CheckpointError: if there is none.
  """
  step = manager.latest_step()
  if step is None:
    raise CheckpointError(f"{manager.directory} holds no checkpoint: give the --workdir of a run that has saved one.")
  return step


def restore(manager: ocp.CheckpointManager, like: TrainState, step: int) -> TrainState:
  """Restores one step in the shapes and shardings of `like` (`state.abstract`).

  Raises:
    CheckpointError: if there is no such step or it cannot be read; names the steps there are.
  """
  steps = sorted(manager.all_steps())
  if step not in steps:
    there_is = f"there are steps {', '.join(map(str, steps))}" if steps else "there is none"
    raise CheckpointError(f"{manager.directory} has no checkpoint of step {step}: {there_is}.")
  try:
    return _restore_step(manager, step, like)[0]
  except Exception as error:  # Orbax and its storage raise many kinds; each means that this checkpoint is of no use.
    raise CheckpointError(
        f"The checkpoint {manager.directory / str(step)} cannot be used: {_first_line(error)}.") from error


def restore_latest(manager: ocp.CheckpointManager, like: TrainState, config: ConfigDict) -> TrainState | None:
  """Restores the newest usable checkpoint in the shapes and shardings of `like`; None if there is none at all.

  A damaged checkpoint is named in the log and moved to `damaged_checkpoints`, and the one before it is used.

  Raises:
    CheckpointError: if all are damaged, or the newest was written with another seed or batch size: a run must not
      silently start again, nor go on with other data.
  """
  steps = sorted(manager.all_steps(), reverse=True)
  damaged = []
  for step in steps:
    try:
      state, description = _restore_step(manager, step, like)
    except Exception as error:  # As in `restore`.
      _log.error("Checkpoint %s is damaged and is not used: %s.", manager.directory / str(step), _first_line(error))
      damaged.append(step)
      continue
    wanted = {"examples_seen": step * config.batch_size, "seed": config.seed}
    for name, value in wanted.items():
      if description[name] != value:
        raise CheckpointError(
            f"The checkpoint {manager.directory / str(step)} was written with another "
            f"{'batch_size' if name == 'examples_seen' else name}: resume with the run's own, or use a new workdir.")
    _set_aside(manager, damaged)
    return state
  if steps:
    raise CheckpointError(
        f"None of the checkpoints in {manager.directory} (steps {', '.join(map(str, steps))}) can be used, see the "
        "log: restore one from a backup, or start again in a new workdir.")
  return None


def _set_aside(manager: ocp.CheckpointManager, steps: list[int]) -> None:
  """Moves damaged checkpoints away, so that the run can write these steps again and nothing is lost."""
  if not steps:
    return
  if jax.process_index() == 0:
    aside = manager.directory.parent / "damaged_checkpoints"
    aside.mkdir(exist_ok=True)
    for step in steps:
      (manager.directory / str(step)).rename(aside / f"{step}-{len(list(aside.iterdir()))}")
  multihost_utils.sync_global_devices("damaged checkpoints set aside")
  manager.reload()


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
