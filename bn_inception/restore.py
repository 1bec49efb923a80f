"""The state of a run at a step, for what comes after training: evaluation and release. Needs no data."""

import os

from jax.sharding import Mesh
from ml_collections import ConfigDict

from bn_inception import checkpoint, models, optim, sharding, state as state_lib
from bn_inception.state import TrainState


def restore(workdir: str | os.PathLike, config: ConfigDict, mesh: Mesh, step: int | None = None) -> TrainState:
  """Restores a checkpoint of a run, whole, so that its checksum is checked too.

  Args:
    workdir: the run directory.
    config: of the run.
    mesh: every device of it receives the whole state.
    step: of the checkpoint; None: the newest.

  Raises:
    CheckpointError: if there is none or it cannot be read.
  """
  # The number of examples shapes the schedule, but nothing that is stored.
  optimizer = optim.make_optimizer(config, optim.learning_rate_schedule(config, num_examples=1))
  image_shape = (config.data.image_size, config.data.image_size, len(config.data.mean))
  like = state_lib.abstract(
    lambda: state_lib.create(models.build(config), optimizer, config, image_shape), sharding.replicated(mesh)
  )
  with checkpoint.open_manager(workdir) as manager:
    return checkpoint.restore(manager, like, checkpoint.newest_step(manager) if step is None else step)
