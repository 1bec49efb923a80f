"""Batch normalization against the paper's formulas, typed afresh in NumPy float64, and against brute force."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bn_inception import batch_norm, sharding

EPSILON = 1e-3
BATCH = 16
# x.shape[1:], per_activation
LAYERS = {
  "conv": ((3, 2, 4), False),
  "dense": ((5,), False),
  "conv per activation": ((3, 2, 4), True),
  "dense per activation": ((5,), True),
}
# Keeps examples of every group of 4, of some groups all.
MASK = np.array([1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0], bool)


def layers(*names):
  return pytest.mark.parametrize("layer", [LAYERS[name] for name in names or LAYERS], ids=names or LAYERS.keys())


def paper_transform(x, gamma, beta, dy, *, group_size, mask=None, per_activation=False, epsilon=EPSILON):
  """Algorithm 1 and the six gradients of §3, group after group, line by line, in float64.

  What is masked is left out of the sums over x, and reached by no gradient through them. Its own y is normalized with
  the group's mu and var, so its dy counts in d/dvar, d/dmu, d/dgamma and d/dbeta.
  """
  x, gamma, beta, dy = (np.asarray(a, np.float64) for a in (x, gamma, beta, dy))
  mask = np.ones(len(x), bool) if mask is None else mask.astype(bool)
  axes = (0,) if per_activation else tuple(range(x.ndim - 1))
  out = {name: [] for name in ("y", "dx", "mean", "variance", "count")}
  dgamma, dbeta = np.zeros_like(gamma), np.zeros_like(beta)
  for start in range(0, len(x), group_size or len(x)):
    group = slice(start, start + (group_size or len(x)))
    x_i, dy_i, kept = x[group], dy[group], mask[group]
    seen = x_i[kept]
    m = len(seen) * (1 if per_activation else int(np.prod(x.shape[1:-1])))

    mu = seen.sum(axes) / m if m else np.zeros_like(gamma)
    var = ((seen - mu) ** 2).sum(axes) / m if m else np.zeros_like(gamma)
    xhat = (x_i - mu) / np.sqrt(var + epsilon)
    y = gamma * xhat + beta

    d_xhat = dy_i * gamma
    d_var = (d_xhat * (x_i - mu)).sum(axes) * -1 / 2 * (var + epsilon) ** (-3 / 2)
    d_mu = d_xhat.sum(axes) * -1 / np.sqrt(var + epsilon) + (d_var * (-2 * (seen - mu)).sum(axes) / m if m else 0)
    d_x = d_xhat / np.sqrt(var + epsilon)
    if m:
      d_x[kept] += d_var * 2 * (seen - mu) / m + d_mu / m
    dgamma += (dy_i * xhat).sum(axes)
    dbeta += dy_i.sum(axes)
    for name, value in zip(out, (y, d_x, mu, var, m)):
      out[name].append(value)
  return {
    "y": np.concatenate(out["y"]),
    "dx": np.concatenate(out["dx"]),
    "dgamma": dgamma,
    "dbeta": dbeta,
    "mean": np.stack(out["mean"]),
    "variance": np.stack(out["variance"]),
    "count": np.array(out["count"]),
  }


def transform(x, gamma, beta, dy, mask=None, **options):
  """The same dictionary from the code under test."""
  f = functools.partial(batch_norm.batch_norm, epsilon=EPSILON, mask=mask, **options)
  y, pullback, moments = jax.vjp(f, x, gamma, beta, has_aux=True)
  dx, dgamma, dbeta = pullback(dy)
  return {
    "y": y,
    "dx": dx,
    "dgamma": dgamma,
    "dbeta": dbeta,
    "mean": moments.mean,
    "variance": moments.variance,
    "count": moments.count,
  }


# Compiled once for all tests that ask for the same.
transform_jit = jax.jit(transform, static_argnames=("group_size", "per_activation"))
moments_jit = jax.jit(batch_norm.group_moments, static_argnames=("group_size", "per_activation"))
update_jit = jax.jit(batch_norm.update_running_averages, static_argnames="momentum")


def inputs(layer, batch=BATCH, seed=0):
  """x whose examples and features differ in mean and spread, gamma, beta, dy; float64."""
  shape, per_activation = layer
  rng = np.random.default_rng(seed)
  features = shape if per_activation else shape[-1:]
  by_example = (batch, *(1,) * len(shape))
  x = rng.normal(size=(batch, *shape)) * rng.uniform(0.3, 2, features) + 3 * rng.normal(size=by_example)
  return x, rng.uniform(0.5, 2, features), rng.normal(size=features), rng.normal(size=x.shape)


def assert_close(actual, expected, tolerance):
  """Every array within `tolerance` of the largest absolute value of the expected one."""
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    assert np.shape(actual[name]) == np.shape(value), name
    np.testing.assert_allclose(
      np.asarray(actual[name], np.float64),
      value,
      rtol=0,
      atol=tolerance * max(np.abs(value).max(), 1e-30),
      err_msg=name,
    )


# --- Algorithm 1 and its gradient ---------------------------------------------------------------------------------


@layers()
@pytest.mark.parametrize(
  "group_size, mask", [(4, None), (BATCH, None), (4, MASK), (None, MASK)], ids=["4", "all", "4 masked", "None masked"]
)
def test_transform_and_gradients_are_the_papers(layer, group_size, mask):
  """y, moments and every gradient of §3, each group on its own, to float64 rounding."""
  with jax.enable_x64(True):
    arguments = inputs(layer)
    options = dict(group_size=group_size, per_activation=layer[1])
    actual = transform_jit(*arguments, mask, **options)
    assert actual["mean"].dtype == jnp.float64
    assert_close(actual, paper_transform(*arguments, mask=mask, **options), 1e-12)


def test_group_of_one_example():
  """m = 1: a convolution still has p*q values; a dense layer has var 0, so y = beta and no gradient reaches x."""
  with jax.enable_x64(True):
    conv = inputs(LAYERS["conv"])
    assert_close(transform_jit(*conv, group_size=1), paper_transform(*conv, group_size=1), 1e-12)
    x, gamma, beta, dy = inputs(LAYERS["dense"])
    actual = transform_jit(x, gamma, beta, dy, group_size=1)
    np.testing.assert_array_equal(actual["y"], np.broadcast_to(beta, x.shape))
    np.testing.assert_array_equal(actual["dx"], 0)


@layers("conv", "dense per activation")
@pytest.mark.parametrize("mask", [None, MASK], ids=["", "masked"])
def test_gradients_are_numerical_derivatives(layer, mask):
  """Central differences of Algorithm 1 in NumPy, which know nothing of §3's formulas."""
  arguments = inputs(layer)
  options = dict(group_size=8, per_activation=layer[1])
  with jax.enable_x64(True):
    # Fetched before NumPy's arrays change below: JAX may compute later, and may share their memory.
    actual = jax.device_get(transform_jit(*arguments, mask, **options))
  *point, dy = arguments
  loss = lambda: np.sum(paper_transform(*point, dy, mask=mask, **options)["y"] * dy)
  h = 1e-5
  for argument, name in zip(point, ("dx", "dgamma", "dbeta")):
    numerical = np.zeros_like(argument)
    for index in np.ndindex(argument.shape):
      value = argument[index]
      argument[index] = value + h
      above = loss()
      argument[index] = value - h
      numerical[index] = (above - loss()) / (2 * h)
      argument[index] = value
    np.testing.assert_allclose(actual[name], numerical, rtol=1e-7, atol=1e-7, err_msg=name)


def test_groups_do_not_see_each_other():
  """Changing one group changes neither the activations nor the gradients of another."""
  x, gamma, beta, dy = inputs(LAYERS["conv"])
  before = jax.device_get(transform_jit(x, gamma, beta, dy, group_size=4))  # Before x changes.
  x[4:8] = 100 * x[4:8] ** 2
  dy[4:8] = -7
  after = transform_jit(x, gamma, beta, dy, group_size=4)
  for name in ("y", "dx"):
    others = np.r_[0:4, 8:BATCH]
    np.testing.assert_array_equal(before[name][others], after[name][others])
    assert not np.allclose(before[name][4:8], after[name][4:8])


def test_scale_invariance():
  """§3.3: BN((aW)u) = BN(Wu), the gradient to u is the same, to W it is divided by a. Exact for epsilon = 0 only."""
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    u, w, dy = (jnp.asarray(rng.normal(size=shape)) for shape in ((12, 5), (5, 4), (12, 4)))
    layer = lambda u, w: batch_norm.batch_norm(u @ w, jnp.full(4, 1.5), jnp.ones(4), epsilon=0.0, group_size=6)[0]

    @jax.jit
    def values(w):
      y, pullback = jax.vjp(layer, u, w)
      return y, *pullback(dy)

    y, du, dw = values(w)
    for a in (0.01, 37.0):
      scaled_y, scaled_du, scaled_dw = values(a * w)
      np.testing.assert_allclose(scaled_y, y, rtol=1e-10)
      np.testing.assert_allclose(scaled_du, du, rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(scaled_dw, dw / a, rtol=1e-9, atol=1e-12 / a)


def test_rematerialization_and_second_derivatives():
  """jax.checkpoint changes no gradient, and the gradient's own derivative is that of the paper's gradient."""
  with jax.enable_x64(True):
    x, gamma, beta, dy = inputs(((3,), False), batch=8)
    direction = np.random.default_rng(1).normal(size=x.shape)
    y = lambda x: batch_norm.batch_norm(x, gamma, beta, epsilon=EPSILON, group_size=4)[0]
    dx = lambda f: jax.grad(lambda x: jnp.sum(dy * f(x)))
    np.testing.assert_array_equal(jax.jit(dx(jax.checkpoint(y)))(x), jax.jit(dx(y))(x))
    second = jax.jit(jax.grad(lambda x: jnp.sum(direction * dx(y)(x))))(x)
    paper_dx = lambda x: paper_transform(x, gamma, beta, dy, group_size=4)["dx"]
    h = 1e-5  # The Hessian is symmetric: its product with `direction` is the derivative of dx along it.
    np.testing.assert_allclose(
      second, (paper_dx(x + h * direction) - paper_dx(x - h * direction)) / (2 * h), rtol=1e-6, atol=1e-6
    )


def test_group_size_that_does_not_divide_is_a_sentence():
  """The error says what to do, and it is the same from the function and from the layer."""
  x = jnp.zeros((10, 3))
  for f in (
    lambda: batch_norm.group_moments(x, group_size=4),
    lambda: batch_norm.batch_norm(x, jnp.ones(3), jnp.zeros(3), epsilon=EPSILON, group_size=4),
    lambda: batch_norm.BatchNorm(epsilon=EPSILON, group_size=4).init(jax.random.key(0), x, train=True),
  ):
    with pytest.raises(ValueError) as error:
      f()
    assert str(error.value) == "A batch of 10 examples does not divide into BN groups of 4: choose a multiple of 4."


# --- Masks --------------------------------------------------------------------------------------------------------


@layers("conv", "conv per activation")
def test_masked_examples_do_not_poison_the_rest(layer):
  """NaN and infinity in padding reach neither the moments nor what is not padding."""
  x, gamma, beta, dy = inputs(layer)
  options = dict(group_size=8, per_activation=layer[1])
  expected = paper_transform(x, gamma, beta, dy, mask=MASK, **options)
  x[~MASK] = np.array([np.nan, np.inf, -np.inf, np.nan, 3e38]).reshape(-1, 1, 1, 1)
  y, moments = batch_norm.batch_norm(x.astype(np.float32), gamma, beta, epsilon=EPSILON, mask=MASK, **options)
  np.testing.assert_allclose(moments.mean, expected["mean"], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(moments.variance, expected["variance"], rtol=1e-5)
  np.testing.assert_array_equal(moments.count, expected["count"])
  np.testing.assert_allclose(y[MASK], expected["y"][MASK], rtol=1e-4, atol=1e-4)


def test_group_without_examples():
  """A group of padding only has mean, variance and count 0, finite activations and gradients, and no say elsewhere."""
  arguments = inputs(LAYERS["conv"])
  mask = np.arange(BATCH) < 9  # Groups of 4, 4, 1 and 0 examples.
  with jax.enable_x64(True):
    actual = transform_jit(*arguments, mask, group_size=4)
    np.testing.assert_array_equal(actual["count"], [24, 24, 6, 0])
    assert_close(actual, paper_transform(*arguments, group_size=4, mask=mask), 1e-12)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, jnp.bfloat16])
def test_masks_of_every_type(dtype):
  """A mask may be of any type, also where JAX asks for its gradient, which is zero."""
  arguments = inputs(LAYERS["conv"])
  mask = jnp.asarray(MASK, dtype)
  with jax.enable_x64(True):
    assert_close(
      transform_jit(*arguments, mask, group_size=8), paper_transform(*arguments, group_size=8, mask=MASK), 1e-12
    )
    x, gamma, beta, dy = arguments
    loss = lambda x, mask: jnp.sum(
      dy * batch_norm.batch_norm(x, gamma, beta, epsilon=EPSILON, group_size=8, mask=mask)[0]
    )
    dmask = jax.jit(jax.grad(loss, argnums=1, allow_int=True))(x, mask)
    assert dmask.shape == mask.shape
    assert dmask.dtype == (mask.dtype if jnp.issubdtype(mask.dtype, jnp.floating) else jax.dtypes.float0)
    np.testing.assert_array_equal(dmask.astype(bool), False)


# --- Digits -------------------------------------------------------------------------------------------------------

# Features of very different |mean| / std, one constant.
MEANS = np.array([1e4, 1e3, -3e5, 0, 1e-3, 7.1])
STDS = np.array([1, 1e-2, 10, 1, 1e-6, 0])


def hard_batch(kind):
  """[64, 3, 3, F] float32; rounded first, so that the moments of just these numbers are what is asked for."""
  z = np.random.default_rng(0).normal(size=(64, 3, 3, 6))
  if kind == "sorted":  # Parts of a group, on devices, then have means that differ by more than their spread.
    z = np.sort(z, axis=0)
  if kind == "first example is an outlier":
    z[0] += 1000
  if kind == "first of every share is an outlier":
    z[::8] -= 1000
  return (MEANS + STDS * z).astype(np.float32)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize(
  "kind", ["usual", "sorted", "first example is an outlier", "first of every share is an outlier"]
)
def test_variance_keeps_its_digits(kind, masked, devices):
  """Float32 variance is within 1e-4 of float64's where |mean| is 1e5 std: E[x^2] - E[x]^2 would be off 1e3-fold.

  The bound: a part's values are centred around the mean of its first example, which is within sqrt(n) std of the mean
  of n examples, so rounding is magnified 1 + n fold at most, 65 here, when that example is an outlier. Sums are good to
  1e-6, which makes 1e-4; without outlier 1e-5.
  """
  x = hard_batch(kind)
  kept = np.arange(64) % 5 != 1 if masked else np.ones(64, bool)
  mesh = sharding.make_mesh(jax.devices()[:devices])
  with jax.set_mesh(mesh):
    for group_size in (32, 64):
      moments = moments_jit(
        jax.device_put(x, sharding.examples(mesh)), mask=kept if masked else None, group_size=group_size
      )
      groups = [
        np.float64(x[start : start + group_size][kept[start : start + group_size]]).reshape(-1, 6)
        for start in range(0, 64, group_size)
      ]
      mean, variance = (np.stack([f(group, axis=0) for group in groups]) for f in (np.mean, np.var))
      np.testing.assert_allclose(moments.variance[:, :5], variance[:, :5], rtol=1e-4 if "outlier" in kind else 1e-5)
      np.testing.assert_allclose(moments.variance[:, 5], 0, atol=1e-12)  # Of 7.1, whose square has an ulp of 4e-6.
      # The mean to its own last digits, but for the spread of what it averages.
      assert np.all(np.abs(moments.mean - mean) <= 2e-7 * np.abs(mean) + 5e-6 * np.sqrt(variance))


def test_activations_keep_their_digits():
  """|mean| = 1e4 std: y is off by no more than the rounding of the mean itself, 5e-4 std."""
  x = hard_batch("usual")[..., :1]
  y, _ = batch_norm.batch_norm(x, jnp.ones(1), jnp.zeros(1), epsilon=EPSILON, group_size=32)
  expected = paper_transform(x, np.ones(1), np.zeros(1), x, group_size=32)["y"]
  np.testing.assert_allclose(y, expected, rtol=0, atol=6e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
  """Moments and parameters' gradients are float32 and as exact for 16-bit input; y and d/dx are rounded once."""
  x, gamma, beta, dy = inputs(((9, 9, 3), False), batch=32)
  x, dy = jnp.asarray(8 + x, dtype), jnp.asarray(1 + dy, dtype)  # In bfloat16 these sums would stop growing at 256.
  gamma, beta = jnp.float32(gamma), jnp.float32(beta)
  actual = transform_jit(x, gamma, beta, dy, group_size=16)
  assert {name: value.dtype for name, value in actual.items()} == {
    "y": dtype,
    "dx": dtype,
    "dgamma": jnp.float32,
    "dbeta": jnp.float32,
    "mean": jnp.float32,
    "variance": jnp.float32,
    "count": jnp.float32,
  }
  expected = paper_transform(x, gamma, beta, dy, group_size=16)
  for name in ("y", "dx"):
    np.testing.assert_allclose(np.float64(actual.pop(name)), expected.pop(name), rtol=jnp.finfo(dtype).eps, atol=1e-5)
  assert_close(actual, expected, 2e-5)


# --- Devices ------------------------------------------------------------------------------------------------------


def collectives(f, *arguments):
  """How many collectives the compiled program has."""
  text = jax.jit(f).lower(*arguments).compile().as_text()
  return len(re.findall(r" (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", text))


def on_mesh(devices, x, gamma, beta, dy, mask=None):
  """(mesh, arguments) in float32: examples split over the devices, parameters on all of them."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  split, everywhere = sharding.examples(mesh), sharding.replicated(mesh)
  place = lambda a, where: jax.device_put(np.asarray(a, np.float32), where)
  arguments = place(x, split), place(gamma, everywhere), place(beta, everywhere), place(dy, split)
  return mesh, arguments if mask is None else (*arguments, jax.device_put(mask, split))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("group_size", [2, 4, 8, None])
def test_results_do_not_depend_on_devices(group_size, devices):
  """Values and gradients for groups smaller than, equal to and larger than a device's share, and y stays split."""
  arguments = inputs(LAYERS["conv"])
  mesh, placed = on_mesh(devices, *arguments, MASK)
  with jax.set_mesh(mesh):
    for mask in (None, MASK) if devices == 8 else (MASK,) if devices == 4 else (None,):
      actual = transform_jit(*placed[:4] if mask is None else placed, group_size=group_size)
      assert_close(actual, paper_transform(*arguments, group_size=group_size, mask=mask), 3e-6)
      assert actual["y"].sharding.is_equivalent_to(sharding.examples(mesh), 4)
      assert actual["dx"].sharding.is_equivalent_to(sharding.examples(mesh), 4)


@pytest.mark.parametrize("group_size, per_activation", [(8, True), (None, True), (8, False)])
def test_groups_over_devices_per_activation_and_dense(group_size, per_activation):
  """As above for the other layouts of features, groups over two and over all eight devices."""
  layer = ((3, 2, 4), True) if per_activation else ((5,), False)
  arguments = inputs(layer, batch=32)
  mesh, placed = on_mesh(8, *arguments)
  options = dict(group_size=group_size, per_activation=per_activation)
  with jax.set_mesh(mesh):
    assert_close(transform_jit(*placed, **options), paper_transform(*arguments, **options), 3e-6)


@pytest.mark.parametrize("batch, group_size, devices", [(24, 8, 2), (24, 12, 8), (12, 4, 8)])
def test_groups_that_straddle_shares(batch, group_size, devices):
  """12 examples a device in groups of 8 (3 in groups of 12; 12 over 8 devices): slower maybe, never wrong."""
  arguments = inputs(LAYERS["conv"], batch=batch)
  with jax.set_mesh(sharding.make_mesh(jax.devices()[:devices])):
    placed = on_mesh(devices, *arguments)[1] if batch % devices == 0 else [jnp.float32(a) for a in arguments]
    actual = transform_jit(*placed, group_size=group_size)
    assert_close(actual, paper_transform(*arguments, group_size=group_size), 3e-6)


@pytest.mark.parametrize(
  "devices, group_size, masked",
  [(2, 4, False), (2, 8, True), (8, 2, False), (2, 16, False), (8, 4, True), (8, None, False)],
)
def test_collectives_are_few(devices, group_size, masked):
  """Groups inside a device need none but for gamma and beta; others one forward and one more backward, all told."""
  mesh, placed = on_mesh(devices, *inputs(LAYERS["conv"]), MASK if masked else None)
  inside = (group_size or BATCH) <= BATCH // devices
  x_only = lambda f: lambda *a: {name: value for name, value in f(*a).items() if name not in ("dgamma", "dbeta")}
  with jax.set_mesh(mesh):
    both = functools.partial(transform, group_size=group_size)
    forward = lambda x, gamma, beta, dy, mask=None: batch_norm.batch_norm(
      x, gamma, beta, epsilon=EPSILON, group_size=group_size, mask=mask
    )
    assert collectives(forward, *placed) == (0 if inside else 1)
    assert collectives(x_only(both), *placed) == (0 if inside else 2)
    assert collectives(both, *placed) == (1 if inside else 2)


@pytest.mark.parametrize("group_size, masked", [(2, False), (8, True), (None, False)])
def test_layers_side_by_side_share_their_collectives_and_nothing_else(group_size, masked):
  """Three layers of different sizes together: each as by the paper alone, with the collectives of one layer."""
  layers = [((3, 2, 4), False), ((5,), False), ((1, 1, 3), False)]
  arguments = [inputs(layer) for layer in layers]
  mask = MASK if masked else None
  placed = [on_mesh(8, *layer)[1] for layer in arguments]
  options = dict(epsilon=EPSILON, group_size=group_size, mask=mask)

  def forward(xs, gammas, betas):
    return [y for y, _ in batch_norm.batch_norms(xs, gammas, betas, **options)]

  def together(*placed):
    xs, gammas, betas, dys = zip(*placed)
    ys, gradients = jax.vjp(forward, xs, gammas, betas)
    return ys, *gradients(list(dys))

  with jax.set_mesh(sharding.make_mesh(jax.devices()[:8])):
    inside = group_size == 2
    assert collectives(forward, *(list(zip(*placed))[:3])) == (0 if inside else 1)
    assert collectives(lambda *placed: together(*placed)[:2], *placed) == (0 if inside else 2)
    results = zip(*jax.jit(together)(*placed))
  for layer, actual in zip(arguments, results, strict=True):
    expected = paper_transform(*layer, group_size=group_size, mask=mask)
    for name, value in zip(("y", "dx", "dgamma", "dbeta"), actual, strict=True):
      np.testing.assert_allclose(value, expected[name], rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("group_size", [2, None])
def test_running_averages_of_all_layers_are_one_collective(group_size):
  """Ten layers over eight devices: one collective for groups inside a device, none for those known everywhere."""
  mesh, (x, *_) = on_mesh(8, *inputs(LAYERS["conv"]))
  names = [f"layer{i}" for i in range(10)]
  with jax.set_mesh(mesh):
    moments = {name: {"moments": moments_jit(x, group_size=group_size)} for name in names}
    assert moments["layer0"]["moments"].mean.sharding.is_fully_replicated == (group_size is None)
    running = {name: {"mean": np.zeros(4), "var": np.ones(4)} for name in names}
    update = lambda running, moments, step: batch_norm.update_running_averages(
      running, moments, momentum=0.9, step=step
    )
    assert collectives(update, running, moments, jnp.int32(3)) == (1 if group_size else 0)


# --- Running averages ---------------------------------------------------------------------------------------------


@layers()
def test_running_averages_merge_groups_through_moments(layer):
  """The variance that enters is N/(N-1) times that of all examples together, groups of far-off means and all."""
  x, *_ = inputs(layer)
  x += 50 * np.repeat(np.arange(4), 4).reshape(-1, *(1,) * (x.ndim - 1))  # The average of 4 variances would be < 20.
  axes = 0 if layer[1] else tuple(range(x.ndim - 1))
  moments = moments_jit(x.astype(np.float32), group_size=4, per_activation=layer[1])
  features = moments.mean.shape[1:]
  running = {"mean": np.full(features, 5.0, np.float32), "var": np.full(features, 7.0, np.float32)}
  new = update_jit({"a": running}, {"a": {"moments": moments}}, momentum=0.9, step=1000)["a"]
  assert new.keys() == {"mean", "var"}
  np.testing.assert_allclose(new["mean"], 0.9 * 5 + 0.1 * x.mean(axes), rtol=1e-5)
  np.testing.assert_allclose(new["var"], 0.9 * 7 + 0.1 * x.var(axes, ddof=1), rtol=1e-5)


def test_running_averages_weigh_groups_by_their_examples():
  """Groups with 3, 4, 2, 2 and with no unmasked examples merge into the moments of all unmasked ones."""
  x, *_ = inputs(LAYERS["conv"])
  for mask in (MASK, np.arange(BATCH) < 6):
    moments = moments_jit(x.astype(np.float32), group_size=4, mask=mask)
    new = update_jit({"mean": np.zeros(4), "var": np.ones(4)}, {"moments": moments}, momentum=0.9, step=0)
    np.testing.assert_allclose(new["mean"], x[mask].mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new["var"], x[mask].var((0, 1, 2), ddof=1), rtol=1e-5)


def test_running_averages_forget_their_start():
  """The first 1 / (1 - momentum) steps are averaged plainly, so 0 and 1 never count; then momentum takes over."""
  rng = np.random.default_rng(0)
  steps = [rng.normal(size=(8, 3)) * (t + 1) + t for t in range(15)]
  running = {"mean": jnp.full(3, 1e6), "var": jnp.full(3, 1e6)}
  mean, variance = [], []
  for t, x in enumerate(steps):
    moments = moments_jit(x.astype(np.float32), group_size=4)
    running = update_jit(running, {"moments": moments}, momentum=0.9, step=jnp.int32(t))
    if t < 10:
      mean.append(x.mean(0))
      variance.append(x.var(0, ddof=1))
      expected_mean, expected_variance = np.mean(mean, 0), np.mean(variance, 0)
    else:
      expected_mean = 0.9 * expected_mean + 0.1 * x.mean(0)
      expected_variance = 0.9 * expected_variance + 0.1 * x.var(0, ddof=1)
    np.testing.assert_allclose(running["mean"], expected_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(running["var"], expected_variance, rtol=1e-5)


def test_running_averages_of_nested_layers_and_micro_batches():
  """Each layer gets its own moments whatever the nesting and shape; micro-batches' groups join in one batch."""
  conv, _ = (inputs(LAYERS["conv"])[0] for _ in range(2))
  dense = inputs(LAYERS["dense"], seed=1)[0]
  per_activation = inputs(LAYERS["conv per activation"], seed=2)[0]

  def moments(x, **options):
    micro_batches = [moments_jit(part.astype(np.float32), group_size=4, **options) for part in np.split(x, 2)]
    return {"moments": jax.tree.map(lambda *parts: jnp.concatenate(parts), *micro_batches)}

  tree = {
    "stem": {"bn": moments(conv)},
    "block": {"z": {"bn": moments(per_activation, per_activation=True)}, "a": moments(dense)},
  }
  start = batch_norm.map_layers(lambda m: {"mean": m.mean[0] * 0, "var": m.mean[0] * 0 + 1}, tree)
  new = update_jit(start, tree, momentum=0.9, step=0)
  assert jax.tree.structure(new) == jax.tree.structure(start)
  for actual, x, axes in (
    (new["stem"]["bn"], conv, (0, 1, 2)),
    (new["block"]["z"]["bn"], per_activation, 0),
    (new["block"]["a"], dense, 0),
  ):
    np.testing.assert_allclose(actual["mean"], x.mean(axes), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(actual["var"], x.var(axes, ddof=1), rtol=1e-5)
  assert batch_norm.update_running_averages({}, {}, momentum=0.9, step=0) == {}  # A network without BN.


# --- Inference ----------------------------------------------------------------------------------------------------


@layers()
def test_inference_is_the_papers_affine_map(layer):
  """Algorithm 2, line 11: gamma / sqrt(Var + eps) x + (beta - gamma E / sqrt(Var + eps)), in x's type."""
  x, gamma, beta, _ = inputs(layer)
  rng = np.random.default_rng(3)
  mean, variance = rng.normal(size=gamma.shape), rng.uniform(0.1, 3, gamma.shape)
  scale = gamma / np.sqrt(variance + EPSILON)
  expected = scale * x + (beta - gamma * mean / np.sqrt(variance + EPSILON))
  with jax.enable_x64(True):
    y = batch_norm.normalize_with(x, mean, variance, gamma, beta, epsilon=EPSILON)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
  half = batch_norm.normalize_with(
    jnp.bfloat16(x), jnp.float32(mean), jnp.float32(variance), jnp.float32(gamma), jnp.float32(beta), epsilon=EPSILON
  )
  assert half.dtype == jnp.bfloat16
  exact = expected + scale * (np.float64(jnp.bfloat16(x)) - x)
  np.testing.assert_allclose(np.float64(half), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_folding(kind, with_bias):
  """A layer with folded weights computes the layer followed by BN's affine map, padding of the convolution included."""
  rng = np.random.default_rng(0)
  gamma, beta, mean, bias = rng.normal(size=(4, 6))
  variance = rng.uniform(0.1, 3, 6)
  bias = bias if with_bias else None
  with jax.enable_x64(True):
    if kind == "conv":
      u, kernel = jnp.asarray(rng.normal(size=(2, 5, 5, 3))), rng.normal(size=(3, 3, 3, 6))
      apply = lambda kernel: np.asarray(
        lax.conv_general_dilated(u, jnp.asarray(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      )
    else:
      u, kernel = rng.normal(size=(4, 3)), rng.normal(size=(3, 6))
      apply = lambda kernel: u @ np.asarray(kernel)
    folded_kernel, folded_bias = batch_norm.fold(kernel, bias, mean, variance, gamma, beta, epsilon=EPSILON)
    assert folded_kernel.shape == kernel.shape and folded_bias.shape == (6,)
    x = apply(kernel) + (0 if bias is None else bias)
    expected = gamma / np.sqrt(variance + EPSILON) * x + (beta - gamma * mean / np.sqrt(variance + EPSILON))
    np.testing.assert_allclose(apply(folded_kernel) + folded_bias, expected, rtol=1e-11, atol=1e-12)


# --- The Flax layer -----------------------------------------------------------------------------------------------


@layers()
@pytest.mark.parametrize("use_gamma", [True, False])
def test_layer_variables(layer, use_gamma):
  """Names, shapes, types and start values of parameters and running averages; no gamma where it is fixed to 1."""
  shape, per_activation = layer
  features = shape if per_activation else shape[-1:]
  module = batch_norm.BatchNorm(epsilon=EPSILON, per_activation=per_activation, use_gamma=use_gamma)
  variables = module.init(jax.random.key(0), jnp.zeros((4, *shape), jnp.bfloat16), train=False)
  expected = {
    "params": {"gamma": jnp.ones(features), "beta": jnp.zeros(features)},
    "batch_stats": {"mean": jnp.zeros(features), "var": jnp.ones(features)},
  }
  if not use_gamma:
    del expected["params"]["gamma"]
  assert jax.tree.structure(variables) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@layers("conv", "conv per activation")
@pytest.mark.parametrize("use_gamma", [True, False])
def test_layer_in_training_and_at_inference(layer, use_gamma):
  """Training normalizes groups, records their moments if asked and leaves running averages; inference reads these."""
  x, gamma, beta, dy = inputs(layer)
  rng = np.random.default_rng(4)
  mean, variance = rng.normal(size=gamma.shape), rng.uniform(0.1, 3, gamma.shape)
  gamma = gamma if use_gamma else np.ones_like(gamma)
  module = batch_norm.BatchNorm(epsilon=EPSILON, group_size=8, per_activation=layer[1], use_gamma=use_gamma)
  variables = {
    "params": {"gamma": gamma, "beta": beta} if use_gamma else {"beta": beta},
    "batch_stats": {"mean": mean, "var": variance},
  }
  with jax.enable_x64(True):
    expected = paper_transform(x, gamma, beta, dy, group_size=8, mask=MASK, per_activation=layer[1])
    train = functools.partial(module.apply, variables, x, train=True, mask=MASK)
    y, updates = train(mutable=["batch_moments", "batch_stats"])
    np.testing.assert_allclose(y, expected["y"], rtol=1e-10, atol=1e-10)
    moments = updates["batch_moments"]["moments"]
    for name in ("mean", "variance", "count"):
      np.testing.assert_allclose(getattr(moments, name), expected[name], rtol=1e-10, atol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])

    y, updates = module.apply(variables, x, train=False, mutable=["batch_moments", "batch_stats"])
    np.testing.assert_allclose(y, gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta, rtol=1e-10, atol=1e-10)
    assert not jax.tree.leaves(updates.get("batch_moments", {}))
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_training_does_not_read_running_averages_nor_differentiate_moments():
  """NaN running averages change nothing in training, and what is read off the moments sends no gradient back."""
  x, _, _, dy = inputs(LAYERS["conv"])
  module = batch_norm.BatchNorm(epsilon=EPSILON, group_size=8)
  params = {"gamma": jnp.ones(4), "beta": jnp.zeros(4)}
  stats = {"mean": jnp.full(4, jnp.nan), "var": jnp.full(4, jnp.nan)}

  def loss(x, from_moments):
    y, updates = module.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_moments"])
    return jnp.sum(y * dy) + from_moments * jnp.sum(updates["batch_moments"]["moments"].variance)

  gradients = [jax.jit(jax.grad(loss))(jnp.float32(x), weight) for weight in (0.0, 1.0)]
  assert np.all(np.isfinite(gradients[0])) and np.any(gradients[0])
  np.testing.assert_array_equal(*gradients)


def test_layers_in_a_network_keep_their_moments_apart():
  """Two layers of one network write `batch_moments` under the names under which `batch_stats` has them."""

  class Network(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      for name in ("first", "second"):
        x = nn.relu(batch_norm.BatchNorm(epsilon=EPSILON, group_size=4, name=name)(2 * x + 1, train=train))
      return x

  x = jnp.float32(inputs(LAYERS["conv"])[0])
  network = Network()
  variables = network.init(jax.random.key(0), x, train=False)
  _, updates = network.apply(variables, x, train=True, mutable=["batch_moments"])
  new = update_jit(variables["batch_stats"], updates["batch_moments"], momentum=0.9, step=0)
  assert jax.tree.structure(new) == jax.tree.structure(variables["batch_stats"])
  first = np.float64(2 * x + 1)
  hidden = np.maximum(paper_transform(first, np.ones(4), np.zeros(4), first, group_size=4)["y"], 0)
  for name, u in (("first", first), ("second", 2 * hidden + 1)):
    np.testing.assert_allclose(new[name]["mean"], u.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(new[name]["var"], u.var((0, 1, 2), ddof=1), rtol=1e-5)
