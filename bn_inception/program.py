"""The training program of a config: its network, schedule, optimizer, state and compiled step, built in one place.

Training, the doctor, the counts of cost, the benchmarks and the reader of checkpoints all take them from here.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

from bn_inception import models, optim, sharding, state as state_lib, step as step_lib
from bn_inception.config_keys import Config
from bn_inception.state import TrainState

# The size of the data set only sets when the learning rate falls: no shape, cost or speed of a step depends on it.
_ANY_NUMBER_OF_EXAMPLES = 1_000_000


class Program(NamedTuple):
  """What is trained, and how; nothing is computed before one of the functions is called.

  Attributes:
    config: the whole config.
    mesh: every device of it holds the whole state, and a share of each batch; None: JAX's default device.
    model: the network, `model(images, train=...)`.
    schedule: learning rate by step.
    optimizer: follows `schedule`.
  """

  config: Config
  mesh: Mesh | None
  model: nn.Module
  schedule: optax.Schedule
  optimizer: optax.GradientTransformation

  def create_state(self) -> TrainState:
    """The state before the first step, to be traced: a program with it compiles as one."""
    return state_lib.create(self.model, self.optimizer, self.config, self.config.data.image_shape)

  def abstract_state(self) -> TrainState:
    """Shapes, types and shardings of the state; nothing is computed."""
    return state_lib.abstract(self.create_state, self._replicated())

  def initial_state(self) -> TrainState:
    """The state before the first step, on the devices."""
    return jax.jit(self.create_state, out_shardings=self._replicated())()

  def train_step(self) -> step_lib.TrainStep:
    """The function of one step, see `step.make_train_step`."""
    return step_lib.make_train_step(self.model, self.optimizer, self.config)

  def train_call(self) -> jax.stages.Wrapped:
    """The jitted function of `steps_per_call` steps; the new state takes the memory of the one that is given."""
    call = step_lib.make_train_call(self.train_step(), self.config)
    return jax.jit(call, donate_argnums=0, out_shardings=self._replicated())

  def batch_shapes(self, steps: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of the batch of so many steps; None: `steps_per_call`, for `train_call`."""
    return step_lib.train_batch_shapes(
      self.config,
      steps=self.config.steps_per_call if steps is None else steps,
      sharding=None if self.mesh is None else sharding.micro_batches(self.mesh),
    )

  def _replicated(self) -> jax.sharding.Sharding | None:
    return None if self.mesh is None else sharding.replicated(self.mesh)


def build(config: Config, mesh: Mesh | None = None, *, num_examples: int = _ANY_NUMBER_OF_EXAMPLES) -> Program:
  """Builds the training program of a config.

  Args:
    config: the whole config, checked.
    mesh: what the program runs on; None: JAX's default device.
    num_examples: size of the training split. Only who trains needs to know it.
  """
  schedule = optim.learning_rate_schedule(config, num_examples)
  return Program(config, mesh, models.build(config), schedule, optim.make_optimizer(config, schedule))
