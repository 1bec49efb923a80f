"""Schedules, label smoothing and optimizers against closed forms in NumPy float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from bn_inception import config_checks, optim, state as state_lib, step as step_lib
from bn_inception.configs import bn_x5, resnet50
from bn_inception.data import preprocessing

IMAGES = 1_281_167


def rates(config, num_examples: int, steps: np.ndarray) -> np.ndarray:
  return np.array(jax.jit(jax.vmap(optim.learning_rate_schedule(config, num_examples)))(steps), np.float64)


def test_warm_up_and_cosine_are_the_formula():
  """Goyal et al. (2017), §2.2, then Loshchilov and Hutter (2017), eq. 5, from the warm-up's end to the last step."""
  config = resnet50.get_config("imagenet")
  steps = np.linspace(0, config.num_steps, 2_000).astype(np.int32)
  warmup = 5 * IMAGES / 256
  progress = np.clip((steps - warmup) / (config.num_steps - warmup), 0, 1)
  expected = 0.1 * np.minimum(1 / 8 + (1 - 1 / 8) * steps / warmup, 1) * (1 + np.cos(np.pi * progress)) / 2
  np.testing.assert_allclose(rates(config, IMAGES, steps), expected, rtol=1e-4, atol=1e-8)
  assert config.num_steps * 256 == pytest.approx(90 * IMAGES, rel=1e-4)


@pytest.mark.parametrize("num_steps", [40, 100])
def test_cosine_without_warm_up_falls_to_0_at_the_last_step(num_steps):
  config = bn_x5.get_config("quickstart")
  config.learning_rate_schedule, config.num_steps = "cosine", num_steps
  steps = np.arange(num_steps + 1)
  expected = config.learning_rate * (1 + np.cos(np.pi * steps / num_steps)) / 2
  np.testing.assert_allclose(rates(config, 4000, steps), expected, rtol=1e-5, atol=1e-8)


def test_a_run_that_ends_in_its_warm_up_rises_to_its_end():
  config = resnet50.get_config("imagenet")
  config.num_steps = 20
  steps = np.arange(21)
  expected = 0.1 * (1 / 8 + (1 - 1 / 8) * steps * 256 / (5 * IMAGES))
  np.testing.assert_allclose(rates(config, IMAGES, steps), expected, rtol=1e-5)


@pytest.mark.parametrize("name,value", [("learning_rate_schedule", "linear"), ("label_smoothing", 1.0)])
def test_what_is_no_schedule_and_no_share_is_refused(name, value):
  config = bn_x5.get_config("quickstart")
  config[name] = value
  with pytest.raises(config_checks.ConfigError, match=f"{name} is"):
    config_checks.check_config(config, devices=1)


# ------------------------------------------------------------------------------------------------------- one step


class Linear(nn.Module):
  """A softmax on the pixels, and an auxiliary one: their gradients have a closed form."""

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    x = x.reshape(x.shape[0], -1)
    if train or self.is_initializing():
      self.sow("auxiliary", "head", nn.Dense(3, use_bias=False, name="auxiliary_head")(x))
    return nn.Dense(3, use_bias=False, name="logits")(x)


def make_config(label_smoothing: float) -> ConfigDict:
  config = bn_x5.get_config("quickstart").copy_and_resolve_references()
  config.batch_norm.enabled, config.label_smoothing, config.auxiliary_loss_weight = False, label_smoothing, 0.5
  return config


def one_step(label_smoothing: float, optimizer: optax.GradientTransformation):
  """(config, batch, state before, state after)."""
  rng = np.random.default_rng(0)
  config = make_config(label_smoothing)
  images = rng.integers(256, size=(8, 2, 2, 1), dtype=np.uint8)
  labels = rng.integers(3, size=8).astype(np.int32)
  batch = {"image": images[None], "label": labels[None], "skipped": np.zeros((1, 8), bool)}
  state = state_lib.create(Linear(), optimizer, config, (2, 2, 1))
  return config, batch, state, jax.jit(step_lib.make_train_step(Linear(), optimizer, config))(state, batch)


def softmax_and_loss(batch, kernel):
  x = ((batch["image"][0] - 127.5) / 127.5).reshape(8, -1).astype(np.float64)
  logits = x @ np.asarray(kernel, np.float64)
  log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  return x, np.exp(log_softmax), -log_softmax[np.arange(8), batch["label"][0]].sum()


def gradient(batch, kernel, label_smoothing):
  """Of the mean of -sum(q log p), q of Szegedy et al. (2016), §7: x^T (p - q) / B."""
  x, p, _ = softmax_and_loss(batch, kernel)
  q = np.full((8, 3), label_smoothing / 3)
  q[np.arange(8), batch["label"][0]] += 1 - label_smoothing
  return x.T @ (p - q) / 8


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.6])
def test_label_smoothing_is_in_the_gradient_and_not_in_what_is_reported(label_smoothing):
  config, batch, before, after = one_step(label_smoothing, optax.sgd(1.0))
  for name, weight in (("logits", 1.0), ("auxiliary_head", 0.5)):
    kernel = before.params[name]["kernel"]
    expected = kernel - weight * gradient(batch, kernel, label_smoothing)
    np.testing.assert_allclose(after.params[name]["kernel"], expected, rtol=1e-5, atol=1e-6)
  _, _, loss = softmax_and_loss(batch, before.params["logits"]["kernel"])
  np.testing.assert_allclose(after.sums.loss, loss, rtol=1e-5)
  evaluated = {name: value[0] for name, value in batch.items()} | {"mask": np.ones(8, bool)}
  sums = step_lib.make_eval_step(Linear(), config.data)(before.params, {}, evaluated)
  np.testing.assert_allclose(sums.loss, loss, rtol=1e-5)


def test_the_step_takes_any_optimizer_of_optax():
  """Adam's first step is learning rate * g / (|g| + epsilon); its state is in the state of training."""
  _, batch, before, after = one_step(0.0, optax.adam(0.01, eps=1e-3))
  kernel = before.params["logits"]["kernel"]
  g = gradient(batch, kernel, 0.0)
  np.testing.assert_allclose(after.params["logits"]["kernel"], kernel - 0.01 * g / (np.abs(g) + 1e-3), rtol=1e-4)
  assert int(after.opt_state[0].count) == 1


# ------------------------------------------------------------------------------------- other preprocessing (recipe)


def test_other_preprocessing_of_all_images_has_one_place(monkeypatch):
  """Training and evaluation both see what `preprocessing.normalize` makes: here each image by its own moments."""

  def standardized(images, **settings):
    images = jnp.asarray(images, jnp.float32)
    moments = dict(axis=(-3, -2, -1), keepdims=True)
    return (images - images.mean(**moments)) / images.std(**moments)

  monkeypatch.setattr(preprocessing, "normalize", standardized)
  _, batch, before, after = one_step(0.0, optax.sgd(1.0))
  x = batch["image"][0].astype(np.float64)
  x = (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True)
  kernel = np.asarray(before.params["logits"]["kernel"], np.float64)
  logits = x.reshape(8, -1) @ kernel
  loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(8), batch["label"][0]]).sum()
  np.testing.assert_allclose(after.sums.loss, loss, rtol=1e-5)
  evaluated = {name: value[0] for name, value in batch.items()} | {"mask": np.ones(8, bool)}
  sums = step_lib.make_eval_step(Linear(), make_config(0.0).data)(before.params, {}, evaluated)
  np.testing.assert_allclose(sums.loss, loss, rtol=1e-5)
