"""The training program of a config, with and without a mesh."""

import jax
import numpy as np

from bn_inception import config_keys, program as program_lib, sharding
from bn_inception.configs import mnist


def make_config() -> config_keys.Config:
  config = mnist.get_config("bn,quickstart")
  config.batch_size, config.batch_norm.group_size, config.steps_per_call = 8, 4, 3
  config.gradient_accumulation, config.model.hidden_units, config.ema_decay = 2, 4, 0.9
  return config_keys.parse(config)


def test_shapes_are_those_of_what_is_made_and_a_call_makes_its_steps():
  program = program_lib.build(make_config(), sharding.make_mesh(jax.devices()[:1]))
  with jax.set_mesh(program.mesh):
    state = program.initial_state()
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), program.abstract_state()) == expected
    shapes = program.batch_shapes()
    assert shapes["image"].shape == (3 * 2, 4, 28, 28, 1) and program.batch_shapes(steps=1)["label"].shape == (2, 4)
    batch = {name: jax.numpy.zeros(leaf.shape, leaf.dtype, device=leaf.sharding) for name, leaf in shapes.items()}
    after = program.train_call()(state, batch)
  assert int(after.step) == 3 and all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_without_a_mesh_and_whatever_the_size_of_the_data_the_state_is_the_same():
  config = make_config()
  states = [program_lib.build(config).initial_state(), program_lib.build(config, num_examples=7).initial_state()]
  with_mesh = program_lib.build(config, sharding.make_mesh(jax.devices()[:1]))
  states.append(with_mesh.initial_state())
  for other in states[1:]:
    jax.tree.map(np.testing.assert_array_equal, states[0], other)
