"""`BatchNorm` in networks and training loops of other people: Flax's convention, meshes of every kind, NNX."""

import contextlib
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bn_inception import batch_norm

EPSILON, MOMENTUM, STEPS, BATCH = 1e-3, 0.9, 3, 16
OURS = functools.partial(batch_norm.BatchNorm, epsilon=EPSILON, momentum=MOMENTUM)


class Network(nn.Module):
  """A convolution and a dense layer, each normalized by `norm(name=...)`, which is called with x."""

  norm: Callable[..., Callable[[jax.Array], jax.Array]]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(self.norm(name="bn1")(nn.Conv(4, (2, 2))(x)))
    return nn.Dense(1)(nn.relu(self.norm(name="bn2")(nn.Dense(6)(x.reshape(len(x), -1)))))


def ours(name, **settings):
  return functools.partial(OURS(name=name, **settings), train=True)


def of_flax(name):
  return nn.BatchNorm(use_running_average=False, momentum=MOMENTUM, epsilon=EPSILON, name=name)


def batches(seed=0):
  return np.random.default_rng(seed).normal(2, 3, (STEPS, BATCH, 3, 3, 2)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def train_step(model, params, batch_stats, x):
  """One step of a training loop as in Flax's documentation."""

  def loss(params):
    y, updates = model.apply({"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"])
    return jnp.mean((y - jnp.mean(x, (1, 2, 3))[:, None]) ** 2), updates

  gradients, updates = jax.grad(loss, has_aux=True)(params)
  return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), updates["batch_stats"]


def train(norm, place=lambda x: x, batches=batches()):
  model = Network(norm)
  variables = jax.jit(model.init)(jax.random.key(0), batches[0])
  params, batch_stats = variables["params"], variables["batch_stats"]
  for x in batches:
    params, batch_stats = train_step(model, params, batch_stats, place(x))
  return params, batch_stats


def assert_averages_are_those_of_flax(batch_stats, expected):
  """The mean alike; the variance too, but for m / (m - 1) and the ones that both began with."""
  assert jax.tree.structure(batch_stats) == jax.tree.structure(expected)
  left = MOMENTUM**STEPS  # Of the ones.
  for name, m in (("bn1", BATCH * 3 * 3), ("bn2", BATCH)):
    np.testing.assert_allclose(batch_stats[name]["mean"], expected[name]["mean"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(batch_stats[name]["var"] - left, (expected[name]["var"] - left) * m / (m - 1), rtol=1e-4)


@pytest.fixture(scope="module")
def flax_averages():
  return train(of_flax)[1]


def mesh_of(shape, names, kind):
  return jax.make_mesh(shape, names, axis_types=(kind,) * len(names), devices=jax.devices()[: np.prod(shape)])


@pytest.mark.parametrize("devices", [1, 8])
def test_flax_training_loop_gives_the_averages_of_flax(flax_averages, devices):
  mesh = mesh_of((devices,), ("data",), AxisType.Auto)
  with jax.set_mesh(mesh):
    _, batch_stats = train(ours, lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
  assert_averages_are_those_of_flax(batch_stats, flax_averages)


@pytest.mark.parametrize(
  "shape, names, kind, split",
  [
    ((4, 2), ("data", "model"), AxisType.Auto, ("data",)),
    ((4, 2), ("data", "model"), AxisType.Auto, ("data", None, None, "model")),
    ((8,), ("data",), AxisType.Explicit, ("data",)),
    ((4, 2), ("data", "model"), AxisType.Explicit, ("data",)),
  ],
)
@pytest.mark.parametrize("group_size", [2, 8, None])
def test_meshes_of_every_kind(shape, names, kind, split, group_size):
  """Activations, gradients and averages are those of one device, split like the input."""
  x, dy = batches()[0], batches(seed=1)[0]
  layer = OURS(group_size=group_size)
  variables = layer.init(jax.random.key(0), x, train=True)

  def run(variables, x, dy):
    y, pullback, updates = jax.vjp(
      lambda params, x: layer.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"]),
      variables["params"],
      x,
      has_aux=True,
    )
    return y, pullback(dy), updates

  expected = jax.jit(run)(variables, x, dy)
  mesh = mesh_of(shape, names, kind)
  where = NamedSharding(mesh, PartitionSpec(*split))
  for context in (jax.set_mesh(mesh), contextlib.nullcontext()):
    with context:
      actual = jax.jit(run)(variables, jax.device_put(x, where), jax.device_put(dy, where))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), actual, expected)
    assert actual[0].sharding.is_equivalent_to(where, x.ndim) or kind is AxisType.Auto


@pytest.mark.parametrize(
  "mapped",
  [
    lambda f, mesh: jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data")),
    lambda f, mesh: jax.shard_map(
      f,
      mesh=mesh,
      in_specs=PartitionSpec(None, None, None, "model"),
      out_specs=PartitionSpec(None, None, None, "model"),
      axis_names={"model"},
    ),
    # Training loops of older Flax examples call pmap: whoever puts the layer into one must not get other averages.
    lambda f, mesh: lambda x: jax.pmap(f)(x.reshape(8, 2, *x.shape[1:])).reshape(x.shape),
  ],
  ids=["data", "model", "pmap"],
)
def test_shares_of_one_device_are_refused_in_training_only(mapped):
  """A device's share of the batch is no group, and its averages would be other ones on each device."""
  x, mesh = batches()[0], mesh_of((4, 2), ("data", "model"), AxisType.Auto)
  run = lambda x, **kwargs: OURS(use_gamma=False).bind(
    {
      "params": {"beta": jnp.ones(x.shape[-1])},
      "batch_stats": {"mean": jnp.full(x.shape[-1], 2.0), "var": jnp.full(x.shape[-1], 4.0)},
    }
  )(x, **kwargs)
  y = jax.jit(mapped(functools.partial(run, train=False), mesh))(x)
  np.testing.assert_allclose(y, (x - 2) / np.sqrt(4 + EPSILON) + 1, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="whole batch, which cannot be seen inside shard_map or pmap over .*: compute"):
    jax.jit(mapped(functools.partial(run, train=True), mesh))(x)


@pytest.mark.parametrize("group_size", [4, None])
def test_averages_are_of_all_examples_whatever_the_groups(group_size):
  """The first layer's input does not depend on the groups, so its averages do not; masked examples are no examples."""
  x, mask = batches()[0], np.arange(BATCH) % 3 > 0
  layer = OURS(group_size=group_size)
  variables = layer.init(jax.random.key(0), x, train=False)
  _, updates = layer.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
  seen = np.float64(x[mask]).reshape(-1, 2)
  np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * seen.mean(0), rtol=1e-5)
  np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * seen.var(0, ddof=1), rtol=1e-5)
  _, updates = layer.apply(variables, x, train=True, mask=mask & False, mutable=["batch_stats"])
  jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_initializing_in_training_mode_is_initializing():
  x = batches()[0]
  variables = OURS().init(jax.random.key(0), x, train=True)
  jax.tree.map(np.testing.assert_array_equal, variables, OURS().init(jax.random.key(0), x, train=False))


@pytest.mark.parametrize(
  "mutable",
  ["batch_stats", ["batch_stats"], True, nn.DenyList("intermediates")],
  ids=["name", "names", "True", "DenyList"],
)
def test_every_way_to_make_batch_stats_mutable_moves_them(mutable):
  x = batches()[0]
  variables = OURS().init(jax.random.key(0), x, train=True)
  _, updates = OURS().apply(variables, x, train=True, mutable=mutable)
  np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)


def test_collected_moments_make_the_same_averages():
  """The two ways to running averages, apart from the rule for the first steps, which needs a counter."""
  x = batches()[0]
  variables = OURS(group_size=4).init(jax.random.key(0), x, train=True)
  apply = functools.partial(OURS(group_size=4).apply, variables, x, train=True)
  own, moments = (apply(mutable=[name])[1][name] for name in ("batch_stats", "batch_moments"))
  collected = batch_norm.update_running_averages(variables["batch_stats"], moments, momentum=MOMENTUM, step=10**6)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), own, collected)


def test_rematerialized_and_scanned_layers_move_their_averages():
  """Inside `nn.remat` and `nn.scan`, which pass collections on by lists of their own."""

  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      return OURS()(2 * x, train=True), ()

  stacked = nn.scan(
    nn.remat(Block), variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2
  )()
  x = batches()[0]
  variables = stacked.init(jax.random.key(0), x, None)
  _, updates = stacked.apply(variables, x, None, mutable=["batch_stats"])
  means = updates["batch_stats"]["BatchNorm_0"]["mean"]
  np.testing.assert_allclose(means, [0.2 * x.mean((0, 1, 2)), [0, 0]], rtol=1e-5, atol=1e-6)


def test_training_without_anywhere_to_write_is_a_sentence():
  model = Network(ours)
  variables = jax.jit(model.init)(jax.random.key(0), batches()[0])
  for mutable in (False, [], ["intermediates"]):
    with pytest.raises(ValueError, match=r"^The BN layer bn1 trains, .* mutable=\['batch_stats'\]\) .*train=False\."):
      model.apply(variables, batches()[0], mutable=mutable)


def test_averages_keep_their_type():
  """Else a loop in jax.lax.scan, whose state may not change its type, would not take them."""
  with jax.enable_x64(True):
    x = np.float64(batches()[0])
    variables = {
      "params": {"gamma": np.ones(2), "beta": np.zeros(2)},
      "batch_stats": {"mean": np.zeros(2, np.float32), "var": np.ones(2, np.float32)},
    }
    _, updates = OURS().apply(variables, x, train=True, mutable=["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {np.dtype(np.float32)}


def test_in_nnx():
  """The layer in an NNX module by `nnx.bridge.ToNNX`, under `nnx.jit` and `nnx.grad`."""

  class Model(nnx.Module):
    def __init__(self, rngs):
      self.dense = nnx.Linear(3, 2, rngs=rngs)
      self.bn = nnx.bridge.ToNNX(OURS(group_size=8), rngs=rngs).lazy_init(jnp.zeros((8, 2)), train=True)

    def __call__(self, x, *, train):
      return self.bn(self.dense(x), train=train, mutable=["batch_stats"] if train else False)

  model, x = Model(nnx.Rngs(0)), batches()[0].reshape(-1, 3)

  @nnx.jit
  def gradients(model, x):
    return nnx.grad(lambda model: jnp.sum(model(x, train=True) ** 3))(model)

  moved = gradients(model, x)
  hidden = np.float64(x @ model.dense.kernel[...] + model.dense.bias[...])
  np.testing.assert_allclose(model.bn.mean[...], 0.1 * hidden.mean(0), rtol=1e-4)
  np.testing.assert_allclose(model.bn.var[...], 0.9 + 0.1 * hidden.var(0, ddof=1), rtol=1e-4)
  assert np.any(moved.dense.kernel[...]) and np.any(moved.bn.gamma[...])
  expected = (hidden - model.bn.mean[...]) / np.sqrt(model.bn.var[...] + EPSILON)
  np.testing.assert_allclose(model(x, train=False), expected, rtol=1e-3, atol=1e-3)
