"""Networks with a planted fault: the diagnosis names the fault and the layer, and finds nothing where nothing is."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_inception import batch_norm, diagnose

MOMENTUM, BATCH, FEATURES = 0.9, 64, 12


def of_flax(train, name, momentum=MOMENTUM):
  return nn.BatchNorm(use_running_average=not train, momentum=momentum, name=name)


def ours(train, name, momentum=MOMENTUM):
  return functools.partial(batch_norm.BatchNorm(1e-5, group_size=16, momentum=momentum, name=name), train=train)


class Network(nn.Module):
  """Three normalized layers; `norm` is one of the two above."""

  norm: Callable[..., Callable[[jax.Array], jax.Array]]

  @nn.compact
  def __call__(self, x, *, train, momentum=MOMENTUM):
    for number in (1, 2, 3):
      x = nn.Dense(8, name=f"dense{number}")(x)
      x = nn.relu(self.norm(train, f"bn{number}", momentum)(x))
    return nn.Dense(2)(x)


def batches(number, seed):
  """Two classes that overlap a little, far from mean 0 and variance 1."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(2, size=(number, BATCH))
  images = 5 + 3 * rng.normal(size=(number, BATCH, FEATURES)) + 2 * labels[..., None]
  return [{"image": np.float32(image), "label": label} for image, label in zip(images, labels)]


TRAINING, EVALUATION = batches(12, 1), batches(6, 2)


def loss_of(logits, labels):
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@pytest.fixture(scope="module", params=[of_flax, ours], ids=["nn.BatchNorm", "BatchNorm"])
def trained(request):
  """(model, variables) of a healthy network."""
  model = Network(request.param)
  variables = model.init(jax.random.key(0), TRAINING[0]["image"], train=False)

  @jax.jit
  def step(variables, batch):
    def loss(params):
      logits, updates = model.apply(variables | {"params": params}, batch["image"], train=True, mutable=["batch_stats"])
      return loss_of(logits, batch["label"]), updates

    gradients, updates = jax.grad(loss, has_aux=True)(variables["params"])
    return {"params": jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients), **updates}

  for batch in batches(100, 0):
    variables = step(variables, batch)
  return model, update_averages(model, variables, 60, MOMENTUM)


def update_averages(model, variables, steps, momentum):
  """Running averages after more steps with the weights frozen."""
  update = jax.jit(
    lambda variables, image: model.apply(variables, image, train=True, momentum=momentum, mutable=["batch_stats"])[1]
  )
  for batch in batches(steps, 3):
    variables = variables | update(variables, batch["image"])
  return variables


def examine(model, variables, train=False):
  def evaluate(variables, batch):
    logits = model.apply(variables, batch["image"], train=train)
    return {"loss": loss_of(logits, batch["label"]), "accuracy": jnp.mean(logits.argmax(-1) == batch["label"])}

  return diagnose.diagnose(evaluate, variables, TRAINING, EVALUATION)


def changed(variables, collection, layer, **leaves):
  tree = dict(variables[collection])
  tree[layer] = {**tree[layer], **leaves}
  return {**variables, collection: tree}


def start(layer):
  return {"mean": np.zeros_like(layer["mean"]), "var": np.ones_like(layer["var"])}


def test_a_healthy_network_has_no_finding(trained):
  found = examine(*trained)
  assert len(found.findings) == 1 and "statistics agree" in found.findings[0]
  assert found.network_order == ["bn1", "bn2", "bn3"] and all(layer.distance < 0.3 for layer in found.layers)
  assert found.metrics["evaluation"]["running"]["accuracy"] > 0.85


def test_numbers_are_those_of_numpy(trained):
  """The first layer's distances, and the loss with running averages and with each batch's own statistics."""
  model, variables = trained
  found = examine(model, variables)
  dense, stats = variables["params"]["dense1"], variables["batch_stats"]["bn1"]
  size = 16 if model.norm is ours else BATCH
  groups = np.concatenate(
    [
      (np.float64(batch["image"]) @ np.float64(dense["kernel"]) + dense["bias"]).reshape(-1, size, 8)
      for batch in TRAINING
    ]
  )
  mean, variance = groups.mean((0, 1)), groups.var(1, ddof=1).mean(0)
  layer = next(layer for layer in found.layers if layer.path == "bn1")
  np.testing.assert_allclose(layer.shift, (stats["mean"] - mean) / np.sqrt(variance), rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(layer.ratio, stats["var"] / variance, rtol=1e-3)
  assert layer.mean_distance == pytest.approx(np.sqrt(np.mean(layer.shift**2)))
  assert layer.variance_distance == pytest.approx(np.sqrt(np.mean(np.log(layer.ratio) ** 2)))
  assert layer.batch_mean_distance == pytest.approx(
    np.sqrt((((groups.mean(1) - mean) ** 2) / variance).mean()), rel=1e-3
  )
  for name, some in (("training", TRAINING), ("evaluation", EVALUATION)):
    for kind, train in (("running", False), ("batch", True)):
      losses = [
        loss_of(model.apply(variables, batch["image"], train=train, mutable=["batch_stats"])[0], batch["label"])
        for batch in some
      ]
      assert found.metrics[name][kind]["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-4)


def test_momentum_that_is_too_slow(trained):
  """From the start values with momentum 0.99, 60 steps: 0.99^60 = 55% of them are left."""
  model, variables = trained
  fresh = {**variables, "batch_stats": {name: start(layer) for name, layer in variables["batch_stats"].items()}}
  found = examine(model, update_averages(model, fresh, 60, 0.99))
  assert found.findings[0].startswith("The running averages still hold 5") and "3 of 3 layers" in found.findings[0]
  assert all(layer.start_left == pytest.approx(0.99**60, abs=0.05) for layer in found.layers)
  losses = {kind: values["loss"] for kind, values in found.metrics["training"].items()}
  assert losses["running"] > losses["population"] + 0.05


def test_stale_averages_of_one_layer(trained):
  """Its weights moved on and its averages did not."""
  model, variables = trained
  dense = variables["params"]["dense2"]
  moved = changed(variables, "params", "dense2", kernel=3 * dense["kernel"], bias=dense["bias"] + 5)
  found = examine(model, moved)
  assert found.layers[0].path == "bn2" and found.layers[0].variance_distance == pytest.approx(np.log(9), abs=0.3)
  assert any(
    "1 of 3 BN layers have running averages farther" in finding and "(bn2)" in finding and "stale" in finding
    for finding in found.findings
  )
  assert any("give different results on training and evaluation batches" in finding for finding in found.findings)


def test_one_layer_that_was_frozen_from_the_start(trained):
  model, variables = trained
  found = examine(model, changed(variables, "batch_stats", "bn2", **start(variables["batch_stats"]["bn2"])))
  assert [layer.path for layer in found.layers if layer.never_updated] == ["bn2"] == [found.layers[0].path]
  assert found.findings[0].startswith("1 of 3 BN layers were never updated") and "(bn2)" in found.findings[0]


def test_a_network_that_is_exported_in_training_mode(trained):
  found = examine(*trained, train=True)
  assert all(layer.own_statistics for layer in found.layers)
  assert found.findings[0].startswith("3 of 3 BN layers normalize with the batch's own statistics in evaluation")
  assert found.metrics["training"]["running"] == found.metrics["training"]["batch"]


def test_features_without_variance(trained):
  model, variables = trained
  dense = variables["params"]["dense1"]
  dead = np.arange(8) < 3
  found = examine(model, changed(variables, "params", "dense1", kernel=np.where(dead, 0, dense["kernel"])))
  assert {layer.path: layer.zero_variance for layer in found.layers}["bn1"] == 3
  assert any(finding.startswith("3 features have no variance at all (bn1)") for finding in found.findings)


def test_what_cannot_be_diagnosed_is_a_sentence(trained):
  model, variables = trained
  evaluate = lambda variables, batch: {"loss": jnp.mean(model.apply(variables, batch["image"], train=False))}
  with pytest.raises(diagnose.DiagnosisError, match="two training batches at least, and 1 came"):
    diagnose.diagnose(evaluate, variables, TRAINING[:1])
  with pytest.raises(diagnose.DiagnosisError, match="No BN layer was seen"):
    diagnose.diagnose(lambda variables, batch: {"loss": jnp.mean(batch["image"])}, variables, TRAINING)
  with pytest.raises(diagnose.DiagnosisError, match="give the function that is not"):
    diagnose.diagnose(jax.jit(evaluate), variables, TRAINING)
  jitted = jax.jit(evaluate)
  jitted(variables, TRAINING[0])
  with pytest.raises(diagnose.DiagnosisError, match="give the function that is not"):
    diagnose.diagnose(jitted, variables, TRAINING)


def test_table_names_what_was_found(trained):
  model, variables = trained
  found = examine(model, changed(variables, "batch_stats", "bn2", **start(variables["batch_stats"]["bn2"])))
  lines = diagnose.table(found).splitlines()
  assert [line.split()[0] for line in lines[1:4]] == ["running", "population", "batch"]
  assert "never updated" in next(line for line in lines if line.startswith("  bn2"))
  assert lines[-len(found.findings)] == f"- {found.findings[0]}"


class Shared(nn.Module):
  """One layer that normalizes two inputs."""

  settings: dict

  @nn.compact
  def __call__(self, x, *, train):
    norm = nn.BatchNorm(use_running_average=not train, name="bn", **self.settings)
    return norm(x) + norm(2 * x + 3)


def test_a_layer_that_is_called_twice_is_compared_with_both_inputs():
  model = Shared({})
  variables = model.init(jax.random.key(0), TRAINING[0]["image"], train=False)
  evaluate = lambda variables, batch: {"loss": jnp.mean(model.apply(variables, batch["image"], train=False))}
  (layer,) = diagnose.diagnose(evaluate, variables, TRAINING).layers
  images = np.stack([np.float64(batch["image"]) for batch in TRAINING])
  inputs = np.stack([images, 2 * images + 3])  # [call, batch, example, feature]
  mean, variance = inputs.mean((0, 1, 2)), inputs.var(2, ddof=1).mean((0, 1))
  np.testing.assert_allclose(layer.shift, -mean / np.sqrt(variance), rtol=1e-4)
  np.testing.assert_allclose(layer.ratio, 1 / variance, rtol=1e-4)


def test_layers_over_another_axis_are_a_sentence():
  model = Shared({"axis": 0})
  variables = model.init(jax.random.key(0), TRAINING[0]["image"], train=False)
  evaluate = lambda variables, batch: {"loss": jnp.mean(model.apply(variables, batch["image"], train=False))}
  with pytest.raises(diagnose.DiagnosisError, match="The BN layer bn is over axis 0 or has a mask"):
    diagnose.diagnose(evaluate, variables, TRAINING)


def test_batches_that_differ_in_kind(trained):
  """Each of one class: its own statistics take away what tells the classes apart."""
  model, variables = trained
  images, labels = (np.concatenate([batch[name] for batch in TRAINING]) for name in ("image", "label"))
  sorted_batches = [
    {"image": images[labels == label][start : start + BATCH], "label": np.full(BATCH, label)}
    for start in (0, BATCH, 2 * BATCH, 3 * BATCH)
    for label in (0, 1)
  ]

  def evaluate(variables, batch):
    logits = model.apply(variables, batch["image"], train=False)
    return {"accuracy": jnp.mean(logits.argmax(-1) == batch["label"])}

  found = diagnose.diagnose(evaluate, variables, sorted_batches)
  accuracies = {kind: values["accuracy"] for kind, values in found.metrics["training"].items()}
  assert accuracies["population"] > 0.85 > 0.7 > accuracies["batch"]
  assert found.findings[-1].startswith(
    "Population and batch statistics give different results on training batches: batches are too small for their "
    "statistics, or the batches differ from each other in kind"
  )


def test_layers_are_ranked_by_means_and_variances_together(trained):
  """Means off by 5, 0 and 3 standard deviations, logarithms of variances by 0, 4 and 3: each alone ranks otherwise."""
  model, variables = trained
  for layer, (shift, logarithm) in {"bn1": (5, 0), "bn2": (0, 4), "bn3": (3, 3)}.items():
    held = variables["batch_stats"][layer]
    mean, variance = held["mean"] + shift * np.sqrt(held["var"]), held["var"] * np.exp(logarithm)
    variables = changed(variables, "batch_stats", layer, mean=mean, var=variance)
  found = examine(model, variables)
  assert [layer.path for layer in found.layers] == ["bn3", "bn1", "bn2"]
  assert not any(layer.never_updated for layer in found.layers)


def test_a_layer_whose_means_are_zero_was_updated_all_the_same(trained):
  model, variables = trained
  found = examine(model, changed(variables, "batch_stats", "bn2", mean=np.zeros(8, np.float32)))
  assert not any(layer.never_updated for layer in found.layers)
