"""Checkpoints through Orbax: asynchronous, atomic, latest and best kept, damaged ones recognised. The only Orbax user.

A checkpoint is the TrainState, a description (the position in the input, the seed), and a checksum of both. Orbax
notices a missing or cut file; the checksum notices a changed one. A checkpoint is written before its step is evaluated,
so that which ones are the best is known later than Orbax asks for it: `retain` removes the others.
"""

import contextlib
import errno
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from bn_inception import hosts
from bn_inception.config_keys import Config
from bn_inception.errors import StartAgainError, StorageError, UserError
from bn_inception.state import TrainState

Manager: TypeAlias = ocp.CheckpointManager  # Of the checkpoints of one run directory.

_log = logging.getLogger(__name__)
_FILE_IS_GONE = (errno.ENOENT, errno.ENOTDIR)


class CheckpointError(UserError):
  """No checkpoint can be used; the text is one sentence that says why and what to do."""


def open_manager(workdir: epath.PathLike, *, read_only: bool = True) -> Manager:
  """Opens `workdir`/checkpoints."""
  return ocp.CheckpointManager(
    epath.Path(workdir).absolute() / "checkpoints",
    options=ocp.CheckpointManagerOptions(read_only=read_only, cleanup_tmp_directories=not read_only),
  )


def checksum(state: TrainState, description: Mapping[str, Any]) -> int:
  """CRC-32 of the bytes of all leaves, in order, and of the description."""
  crc = 0
  for leaf in jax.tree.leaves(state):
    crc = zlib.crc32(np.ascontiguousarray(leaf.addressable_data(0)).reshape(-1).view(np.uint8), crc)
  return zlib.crc32(json.dumps(description, sort_keys=True).encode(), crc) if description else crc


def save(manager: Manager, state: TrainState, config: Config, top1: Mapping[int, float]) -> None:
  """Starts to write `state`, after the one before is written; `top1` is as for `retain`.

  Raises:
    StorageError: if this or the one before cannot be written.
  """
  finish(manager)
  retain(manager, config, top1)
  step = int(state.step)
  description = {"examples_seen": step * config.batch_size, "seed": config.seed}
  with _writing(manager):
    # With `force`, for the training loop decides when.
    manager.save(
      step,
      force=True,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        description=ocp.args.JsonSave(description | {"checksum": checksum(state, description)}),
      ),
    )


def finish(manager: Manager) -> None:
  """Waits until what `save` started is written.

  Raises:
    StorageError: if it cannot be.
  """
  with _writing(manager):
    manager.wait_until_finished()


def check(manager: Manager) -> None:
  """Raises StorageError if what `save` started could not be written; does not wait."""
  with _writing(manager):
    manager.check_for_errors()


def retain(manager: Manager, config: Config, top1: Mapping[int, float]) -> None:
  """Removes checkpoints but the `keep_latest` newest and those `keep_best` steps with the best `top1`, {step: top1}."""
  steps = sorted(manager.all_steps())
  best = sorted((step for step in steps if step in top1), key=lambda step: -top1[step])[: config.keep_best]
  for step in steps:
    if step not in (*steps[-config.keep_latest :], *best):
      with _writing(manager):
        manager.delete(step)


@contextlib.contextmanager
def _writing(manager: Manager) -> Iterator[None]:
  """Turns what Orbax and its storage raise into one sentence."""
  try:
    yield
  except jax.errors.JaxRuntimeError:  # Another process was lost.
    raise
  except Exception as error:  # They raise many kinds for a full disk.
    raise StorageError(
      f"No checkpoint can be written into {manager.directory} ({_reason(error)}): make room or mend "
      "it, and give the same command again."
    ) from error


def _read_step(manager: Manager, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
  restored = manager.restore(
    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like), description=ocp.args.JsonRestore())
  )
  description = dict(restored.description)
  if "checksum" in description:
    expected = description.pop("checksum")
    actual = checksum(restored.state, description)
  else:  # Written by a version that had a checksum of the state alone.
    actual, expected = checksum(restored.state, {}), description.pop("crc32")
  if actual != expected:
    raise ValueError(f"its checksum is {actual:#x}, not the {expected:#x} it was written with")
  return restored.state, description


def newest_step(manager: Manager) -> int:
  """The newest checkpoint's step.

  Raises:
    CheckpointError: if there is none.
  """
  step = manager.latest_step()
  if step is None:
    raise CheckpointError(f"{manager.directory} holds no checkpoint: give the --workdir of a run that has saved one.")
  return step


def restore_step(manager: Manager, like: TrainState, step: int) -> TrainState:
  """Restores one step in the shapes and shardings of `like` (`state.abstract`).

  Raises:
    CheckpointError: if there is no such step or it cannot be read; names the steps there are.
  """
  steps = sorted(manager.all_steps())
  if step not in steps:
    there_is = f"there are steps {', '.join(map(str, steps))}" if steps else "there is none"
    raise CheckpointError(f"{manager.directory} has no checkpoint of step {step}: {there_is}.")
  try:
    return _read_step(manager, step, like)[0]
  except Exception as error:  # Orbax and its storage raise many kinds; each means that this checkpoint is of no use.
    raise CheckpointError(
      f"The checkpoint {manager.directory / str(step)} cannot be used: {_reason(error)}."
    ) from error


def restore_newest_usable(manager: Manager, like: TrainState, config: Config) -> TrainState | None:
  """Restores the newest usable checkpoint in the shapes and shardings of `like`; None if there is none at all.

  A damaged checkpoint is named in the log and moved to `damaged_checkpoints`, and the one before it is used. All
  processes use the same, and none is damaged because one process cannot read it.

  Raises:
    CheckpointError: if all are damaged, or the newest was written with another seed or batch size: a run must not
      silently start again, nor go on with other data.
    StartAgainError: if the storage does not answer, or not on all hosts.
  """
  steps = hosts.of_first(sorted(manager.all_steps(), reverse=True))
  damaged = []
  for step in steps:
    state = description = error = None
    try:
      state, description = _read_step(manager, step, like)
    except Exception as raised:  # As in `restore_step`.
      error = raised
    path = manager.directory / str(step)
    errors = hosts.gather(error and [_reason(error), _passes(error)])
    if any(errors):
      process, (reason, passes) = next((number, failure) for number, failure in enumerate(errors) if failure)
      if passes or not all(errors):
        where = f" by process {process}" if len(errors) > 1 else ""
        raise StartAgainError(
          f"Checkpoint {path} cannot be read{where} now ({reason}): it stays as it is, and the "
          "same command tries again."
        )
      _log.error("Checkpoint %s is damaged and is not used: %s.", path, reason)
      damaged.append(step)
      continue
    wanted = {"examples_seen": step * config.batch_size, "seed": config.seed}
    for name, value in wanted.items():
      if description[name] != value:
        raise CheckpointError(
          f"The checkpoint {path} was written with another "
          f"{'batch_size' if name == 'examples_seen' else name}: resume with the run's own, or use a new workdir."
        )
    _set_aside(manager, damaged)
    return state
  if steps:
    raise CheckpointError(
      f"None of the checkpoints in {manager.directory} (steps {', '.join(map(str, steps))}) can be used, see the "
      "log: restore one from a backup, or start again in a new workdir."
    )
  return None


def _passes(error: BaseException | None) -> bool:
  """Whether it is the storage or the memory that fails, and not the checkpoint."""
  while error is not None:
    if isinstance(error, (MemoryError, jax.errors.JaxRuntimeError)):
      return True
    # TensorStore reads the arrays, and raises a ValueError for what the operating system says.
    said = [int(code) for code in re.findall(r"os_error_code='(\d+)'", str(error))]
    if isinstance(error, OSError) and error.errno is not None:
      said.append(error.errno)
    if any(code not in _FILE_IS_GONE for code in said):
      return True
    error = error.__cause__ or error.__context__
  return False


def _set_aside(manager: Manager, steps: list[int]) -> None:
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


def _reason(error: Exception) -> str:
  """The first line of what was raised, or the operating system's own words where it says them at the end."""
  text = str(error).strip()
  if "No space left on device" in text:
    return "No space left on device"
  return (text.splitlines() or [type(error).__name__])[0].rstrip(".")
