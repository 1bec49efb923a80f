"""The training step: the same for any number of devices and micro-batches, and equal to the formulas written out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from bn_inception import batch_norm, sharding, state as state_lib, step as step_lib
from bn_inception.data import color_distortions
from bn_inception.models import convolution, layers

BATCH, SIZE, STEPS = 32, 8, 20


class ConvNet(nn.Module):
  """Two convolution units, a pool and a softmax: small enough to compile for every mesh."""

  group_size: int | None

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    norm = lambda **kwargs: batch_norm.BatchNorm(epsilon=1e-3, group_size=self.group_size, **kwargs)
    x = layers.ConvUnit(8, (3, 3), 2, norm=norm, name="a")(x, train=train, mask=mask)
    x = convolution.max_pool(x, window=(3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
    x = layers.ConvUnit(12, (3, 3), norm=norm, name="b")(x, train=train, mask=mask)
    return nn.Dense(10, name="logits")(jnp.mean(x, axis=(1, 2)))


def make_config(micro_batches: int = 1, strength: float = 0.0) -> ConfigDict:
  return ConfigDict(
    dict(
      seed=1,
      ema_decay=0.9,
      label_smoothing=0.0,
      auxiliary_loss_weight=0.3,
      gradient_accumulation=micro_batches,
      batch_norm=dict(enabled=True, momentum=0.9),
      init=dict(checkpoint="", skip=(), freeze=()),
      data=dict(mean=(127.5,), std=(127.5,), binary=False, channel_order="rgb", photometric_strength=strength),
    )
  )


def make_batches(micro_batches: int = 1) -> list[dict[str, np.ndarray]]:
  """Images with a pattern for each class, in noise; the groups of a batch differ in contrast."""
  random = np.random.default_rng(0)
  patterns = random.uniform(0, 255, (10, SIZE, SIZE, 3))
  batches = []
  for _ in range(STEPS):
    labels = random.integers(0, 10, BATCH)
    contrast = np.linspace(0.4, 1.2, BATCH)[:, None, None, None]
    images = np.clip(patterns[labels] * contrast + random.normal(0, 10, (BATCH, SIZE, SIZE, 3)), 0, 255)
    batches.append(
      {
        "image": images.astype(np.uint8).reshape(micro_batches, -1, SIZE, SIZE, 3),
        "label": labels.astype(np.int32).reshape(micro_batches, -1),
        "skipped": np.zeros((micro_batches, len(labels) // micro_batches), bool),
      }
    )
  return batches


def run(group_size: int | None, devices: int = 1, micro_batches: int = 1) -> tuple[list[float], state_lib.TrainState]:
  """Losses of 20 steps and the state after them."""
  # With photometric distortions: an example's do not depend on where it is computed.
  config, model = make_config(micro_batches, strength=0.1), ConvNet(group_size)
  optimizer = optax.sgd(0.1, momentum=0.9)
  mesh = sharding.make_mesh(jax.devices()[:devices])
  with jax.set_mesh(mesh):
    initialize = lambda: state_lib.create(model, optimizer, config, (SIZE, SIZE, 3))
    state = jax.jit(initialize, out_shardings=sharding.replicated(mesh))()
    train_step = jax.jit(step_lib.make_train_step(model, optimizer, config), out_shardings=sharding.replicated(mesh))
    losses, before = [], 0.0
    for batch in make_batches(micro_batches):
      state = train_step(state, jax.device_put(batch, sharding.micro_batches(mesh)))
      losses.append(float(state.sums.loss) - before)
      before = float(state.sums.loss)
  return losses, jax.device_get(state)


def assert_same(result, reference) -> None:
  losses, state = result
  expected_losses, expected_state = reference
  np.testing.assert_allclose(losses, expected_losses, rtol=2e-4)
  for name in ("params", "batch_stats", "ema_params"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
      getattr(state, name),
      getattr(expected_state, name),
    )


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
  """On CPUs a kernel's gradient goes through a device's examples in several chunks, as it does at the real sizes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(convolution, "_CHUNK_BYTES", 4_000)
    yield


@pytest.fixture(scope="module")
def references() -> dict:
  """One device, for each group size."""
  return {group_size: run(group_size) for group_size in (4, 8, 16, None)}


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("group_size", [4, 8, 16, None])  # Smaller than, equal to and larger than a device's share.
def test_losses_do_not_depend_on_the_number_of_devices(references, group_size, devices):
  assert_same(run(group_size, devices), references[group_size])


def test_group_size_matters(references):
  """Otherwise the test above would show nothing."""
  final = {group_size: losses[-1] for group_size, (losses, _) in references.items()}
  assert len({round(loss, 2) for loss in final.values()}) == len(final)
  for losses, _ in references.values():
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.parametrize("devices", [1, 4])
def test_accumulation_keeps_the_groups(references, devices):
  """Two micro-batches of 16 with groups of 8 are the four groups of the batch of 32."""
  assert_same(run(8, devices, micro_batches=2), references[8])


def test_one_step_is_momentum_sgd_with_l2_on_kernels_only():
  """The whole optimizer against the formulas, in NumPy."""
  from bn_inception import optim

  config = ConfigDict(
    dict(
      learning_rate=0.1,
      learning_rate_schedule="exponential",
      learning_rate_decay=0.5,
      learning_rate_decay_epochs=2.0,
      batch_size=10,
      weight_decay=0.3,
      momentum=0.9,
      learning_rate_scaling="none",
      learning_rate_warmup_epochs=0.0,
      learning_rate_factors=(),
      init=dict(freeze=()),
    )
  )
  schedule = optim.learning_rate_schedule(config, num_examples=10)  # A step an epoch: halved every 2 steps.
  optimizer = optim.make_optimizer(config, schedule)
  params = {"conv": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}, "bn": {"gamma": jnp.array([4.0])}}
  expected = {"kernel": np.array([1.0, -2.0]), "bias": np.array([3.0]), "gamma": np.array([4.0])}
  velocity = {name: 0.0 for name in expected}
  opt_state = optimizer.init(params)
  for step in range(5):
    grads = jax.tree.map(lambda p: p * 0 + (step + 1.0), params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    for name in expected:
      gradient = step + 1.0 + (0.3 * expected[name] if name == "kernel" else 0)
      velocity[name] = 0.9 * velocity[name] + gradient
      expected[name] = expected[name] - 0.1 * 0.5 ** (step // 2) * velocity[name]
  np.testing.assert_allclose(params["conv"]["kernel"], expected["kernel"], rtol=1e-5)
  np.testing.assert_allclose(params["conv"]["bias"], expected["bias"], rtol=1e-5)
  np.testing.assert_allclose(params["bn"]["gamma"], expected["gamma"], rtol=1e-5)


def test_step_advances_moments_running_averages_and_ema():
  """After one step: running averages are the batch's moments, EMA is 0.9 of the start (1 / 10) and the rest new."""
  config, model, optimizer = make_config(), ConvNet(None), optax.sgd(0.05)
  initial = state_lib.create(model, optimizer, config, (SIZE, SIZE, 3))
  batch = make_batches()[0]
  state = jax.jit(step_lib.make_train_step(model, optimizer, config))(initial, batch)
  x = (batch["image"][0].astype(np.float64) - 127.5) / 127.5
  padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))  # SAME, stride 2, even size.
  kernel = np.asarray(initial.params["a"]["conv"]["kernel"], np.float64)
  u = np.zeros((BATCH, 4, 4, 8))
  for i in range(3):
    for j in range(3):
      u += padded[:, i : i + 8 : 2, j : j + 8 : 2] @ kernel[i, j]
  running = state.batch_stats["a"]["bn"]
  np.testing.assert_allclose(running["mean"], u.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(running["var"], u.var((0, 1, 2), ddof=1), rtol=1e-4)
  kernel_new, kernel_ema = (tree["logits"]["kernel"] for tree in (state.params, state.ema_params))
  np.testing.assert_allclose(kernel_ema, 0.1 * initial.params["logits"]["kernel"] + 0.9 * kernel_new, rtol=1e-4)


def test_batch_statistics_of_a_padded_batch_are_those_of_its_real_examples():
  """A last group of 5 with 3 of padding: the same sums and moments as 5 alone."""
  config = make_config()
  variables = ConvNet(None).init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)
  batch = {name: value[0] for name, value in make_batches()[0].items()}
  real = {name: value[:5] for name, value in batch.items()} | {"mask": np.ones(5, bool)}
  padded = {name: value[:8] for name, value in batch.items()} | {"mask": np.arange(8) < 5}
  batch_statistics_step = jax.jit(step_lib.make_batch_statistics_step(ConvNet(None), config))
  results = [batch_statistics_step(variables["params"], variables["batch_stats"], b) for b in (real, padded)]
  assert int(results[1][0].count) == 5
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_dropout_differs_by_step_and_is_off_without_training():
  """Noise comes from (seed, step), so two steps on one batch differ, and the same step twice does not."""

  class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask=None):
      x = nn.Dropout(0.5, deterministic=not (train and self.has_rng("dropout")))(x.reshape(x.shape[0], -1))
      return nn.Dense(10)(x)

  config, optimizer = make_config(), optax.sgd(0.0)
  config.batch_norm.enabled, config.ema_decay = False, 0.0
  state = state_lib.create(Dropped(), optimizer, config, (SIZE, SIZE, 3))
  train_step = jax.jit(step_lib.make_train_step(Dropped(), optimizer, config))
  batch = make_batches()[0]
  first, again = train_step(state, batch), train_step(state, batch)
  second = train_step(state.replace(step=state.step + 1), batch)
  assert float(first.sums.loss) == float(again.sums.loss) != float(second.sums.loss)


def test_training_sees_the_distortions_of_each_example_s_position():
  """What the network is given at step 3 in two micro-batches, beside the distortions of positions 96 to 127."""
  seen = []

  class Spy(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask=None):
      jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
      return nn.Dense(10)(x.reshape(x.shape[0], -1))

  config, optimizer = make_config(2, strength=1.0), optax.sgd(0.0)
  config.batch_norm.enabled, config.ema_decay = False, 0.0
  state = state_lib.create(Spy(), optimizer, config, (SIZE, SIZE, 3)).replace(step=jnp.array(3))
  batch = make_batches(2)[0]
  seen.clear()
  jax.block_until_ready(jax.jit(step_lib.make_train_step(Spy(), optimizer, config))(state, batch))
  jax.effects_barrier()
  images = batch["image"].reshape(BATCH, SIZE, SIZE, 3)
  distorted = color_distortions.distort(images, np.arange(96, 128, dtype=np.uint32), seed=config.seed, strength=1.0)
  np.testing.assert_allclose(np.concatenate(seen), (np.asarray(distorted) - 127.5) / 127.5, atol=1e-4)
  # Algorithm 2 sees training examples as training does; evaluation sees what is stored.
  variables = ConvNet(None).init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)), train=False)
  step = jax.jit(step_lib.make_batch_statistics_step(ConvNet(None), config))
  statistics = lambda batch: step(variables["params"], variables["batch_stats"], batch)[1]
  evaluated = {
    "image": images,
    "label": batch["label"].reshape(-1),
    "mask": np.ones(BATCH, bool),
    "skipped": np.zeros(BATCH, bool),
  }
  of_training = statistics(evaluated | {"position": np.arange(96, 128, dtype=np.uint32)})
  of_distorted = statistics(evaluated | {"image": np.asarray(distorted)})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), of_training, of_distorted)
  plain = statistics(evaluated)
  different = [np.abs(a - b).max() > 0.01 for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(of_training))]
  assert any(different)


def test_classification_sums_against_a_sort():
  """Top-1 and top-5 by a stable sort of every row, ties and padding included."""
  random = np.random.default_rng(3)
  logits = random.integers(0, 6, (200, 12)).astype(np.float32)  # Many ties.
  labels = random.integers(0, 12, 200).astype(np.int32)
  mask = random.random(200) < 0.7
  sums = state_lib.classification_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask))
  order = np.argsort(-logits, axis=1, kind="stable")
  assert int(sums.top1) == np.sum((order[:, 0] == labels) & mask)
  assert int(sums.top5) == np.sum((order[:, :5] == labels[:, None]).any(1) & mask)
  assert int(sums.count) == mask.sum()
  logits = logits.astype(np.float64)
  losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(200), labels]
  np.testing.assert_allclose(sums.loss, losses[mask].sum(), rtol=1e-5)


def test_constant_or_undefined_logits_are_not_right():
  """A network that puts out one number, or none, must not look perfect."""
  labels = jnp.arange(10, dtype=jnp.int32)
  constant = state_lib.classification_sums(jnp.zeros((10, 10)), labels)
  assert (int(constant.top1), int(constant.top5)) == (1, 5)
  undefined = state_lib.classification_sums(jnp.full((10, 10), jnp.nan), labels)
  assert (int(undefined.top1), int(undefined.top5)) == (0, 0)
