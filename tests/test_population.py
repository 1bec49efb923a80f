"""Algorithm 2's population statistics against brute force over mini-batches in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_inception import batch_norm, population, sharding

STEPS, BATCH, GROUP = 3, 12, 4


def mini_batches(x):
  """The paper's mini-batches B: groups of GROUP consecutive examples of every step; x is [steps, batch, ...]."""
  return x.reshape(-1, GROUP, *x.shape[2:])


def algorithm_2(x, per_activation=False):
  """Lines 9 and 10 in a loop over mini-batches: E[x] = E_B[mu_B], Var[x] = m / (m - 1) E_B[var_B]."""
  means, variances = [], []
  for b in mini_batches(np.float64(x)):
    rows = b if per_activation else b.reshape(-1, b.shape[-1])
    m = len(rows)  # m * p * q for a convolution.
    mu = sum(rows) / m
    means.append(mu)
    variances.append(sum((row - mu) ** 2 for row in rows) / m)
  return sum(means) / len(means), m / (m - 1) * sum(variances) / len(variances)


def data(shape, seed=0):
  """[steps, batch, *shape] whose mini-batches differ much in mean, so that the variance of means would show."""
  rng = np.random.default_rng(seed)
  offsets = 20 * rng.normal(size=(STEPS, BATCH // GROUP, 1, *(1,) * len(shape)))
  x = rng.normal(size=(STEPS, BATCH // GROUP, GROUP, *shape)) * rng.uniform(0.5, 3, shape[-1]) + offsets
  return x.reshape(STEPS, BATCH, *shape).astype(np.float32)


group_moments = jax.jit(batch_norm.group_moments, static_argnames=("group_size", "per_activation"))


def moments(x, group_size=GROUP, **options):
  return {"moments": group_moments(x, group_size=group_size, **options)}


def assert_statistics(actual, expected):
  assert actual.keys() == {"mean", "var"}
  for name, value in zip(("mean", "var"), expected):
    assert actual[name].dtype == np.float32
    np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
  "shape, per_activation",
  [((3, 2, 4), False), ((5,), False), ((3, 2, 4), True)],
  ids=["conv", "dense", "per activation"],
)
def test_algorithm_2(shape, per_activation):
  """E[mu] and m/(m-1) E[var] over all groups of all steps; the variance of the groups' means does not enter."""
  x = data(shape)
  statistics = population.population_statistics({"layer": moments(batch, per_activation=per_activation)} for batch in x)
  assert_statistics(statistics["layer"], algorithm_2(x, per_activation))


def test_groups_may_come_in_any_number_of_steps():
  """All groups in one step, in three or one at a time: the same statistics."""
  x = data((2, 2, 3))
  for steps in (1, 3, STEPS * BATCH // GROUP):
    statistics = population.population_statistics(map(moments, x.reshape(steps, -1, 2, 2, 3)))
    assert_statistics(statistics, algorithm_2(x))


def test_nested_layers_match_batch_stats():
  """The result has the layout of `batch_stats` and goes through the layer at inference."""
  x, z = data((3, 2, 4)), data((3, 2, 4), seed=1)
  statistics = population.population_statistics(
    {"stem": {"bn": moments(a)}, "head": moments(b, per_activation=True)} for a, b in zip(x, z)
  )
  assert jax.tree.structure(statistics) == jax.tree.structure(
    {"stem": {"bn": {"mean": 0, "var": 0}}, "head": {"mean": 0, "var": 0}}
  )
  assert_statistics(statistics["stem"]["bn"], algorithm_2(x))
  assert_statistics(statistics["head"], algorithm_2(z, per_activation=True))
  mean, variance = algorithm_2(x)
  y = batch_norm.BatchNorm(epsilon=1e-3).apply(
    {"params": {"gamma": jnp.ones(4), "beta": jnp.zeros(4)}, "batch_stats": statistics["stem"]["bn"]}, x[0], train=False
  )
  np.testing.assert_allclose(y, (x[0] - mean) / np.sqrt(variance + 1e-3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_do_not_matter(devices):
  """Groups inside a device (2 devices) and over several (8 devices) give the same statistics."""
  x = data((2, 2, 3)).reshape(1, STEPS * BATCH, 2, 2, 3)[:, :32]  # 16 or 4 examples a device.
  mesh = sharding.make_mesh(jax.devices()[:devices])
  group = 8
  with jax.set_mesh(mesh):
    placed = jax.device_put(x[0], sharding.examples(mesh))
    statistics = population.population_statistics([moments(placed, group)])
  groups = np.float64(x).reshape(-1, group * 4, 3)
  assert_statistics(statistics, (groups.mean(1).mean(0), groups.var(1, ddof=1).mean(0)))


def test_many_steps_keep_their_digits():
  """Thousands of mini-batches of mean 1e4 are summed in float64: a float32 sum would lose the mean's last digits."""
  rng = np.random.default_rng(0)
  steps = 5000
  mean = (1e4 + rng.normal(size=(steps, 2, 3))).astype(np.float32)
  variance = rng.uniform(1, 2, (steps, 2, 3)).astype(np.float32)
  statistics = population.population_statistics(
    {"moments": batch_norm.Moments(m, v, np.full(2, 32, np.float32))} for m, v in zip(mean, variance)
  )
  np.testing.assert_allclose(statistics["mean"], np.float64(mean).mean((0, 1)), rtol=1e-7)
  np.testing.assert_allclose(statistics["var"], 32 / 31 * np.float64(variance).mean((0, 1)), rtol=1e-7)


def test_mini_batches_of_padding_do_not_count():
  """A group all of whose examples are masked is no mini-batch: leaving it in would pull E[x] and Var[x] to 0."""
  x = data((2, 2, 3))[:1]
  padded = np.concatenate([x[0], np.full((GROUP, 2, 2, 3), np.nan, np.float32)])
  statistics = population.population_statistics([moments(padded, mask=np.arange(BATCH + GROUP) < BATCH)])
  assert_statistics(statistics, algorithm_2(x))


def test_network_without_batch_norm_and_no_batches():
  """No layers: no statistics. No mini-batch: an error that says so, not NaN."""
  assert population.population_statistics([{}, {}]) == {}
  with pytest.raises(ValueError, match="mini-batch"):
    population.population_statistics([])
