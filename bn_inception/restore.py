"""The state of a run at a step, for what comes after training: evaluation and release. Needs no data."""

import os

from jax.sharding import Mesh

from bn_inception import checkpoint, hosts, program
from bn_inception.config_keys import Config
from bn_inception.state import TrainState


def state_of_run(workdir: str | os.PathLike, config: Config, mesh: Mesh, step: int | None = None) -> TrainState:
  """Restores a checkpoint of a run, whole, so that its checksum is checked too.

  Args:
    workdir: the run directory.
    config: of the run.
    mesh: every device of it receives the whole state.
    step: of the checkpoint; None: the newest that process 0 finds.

  Raises:
    CheckpointError: if there is none or it cannot be read.
  """
  like = program.build(config, mesh).abstract_state()
  with checkpoint.open_manager(workdir) as manager:
    if step is None:  # A run may be saving the next one at this moment.
      step = hosts.of_first(checkpoint.newest_step(manager))
    return checkpoint.restore_step(manager, like, step)
