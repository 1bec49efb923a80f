"""The PyTorch module against this project's network: logits, gradients and statistics, for every choice of a config."""

import copy
import functools
import json
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from bn_inception import batch_norm, models, step
from bn_inception.configs import bn_x5
from bn_inception.models import inception
from bn_inception.release import export

torch = pytest.importorskip("torch", reason="needs PyTorch: make test-optional")
from bn_inception.release import torch_module  # noqa: E402  (it imports torch)

pytestmark = pytest.mark.torch

BATCH, CLASSES = 4, 5

# Each choice of a network is made by some of these, on small images and narrow networks.
# {name: (model settings, batch_norm settings, image size)}
NETWORKS = {
  "as configured": ({}, {}, 37),  # Maps of 37, 19, 10, 5, 3 and 2 pixels; TF-slim's have more at one side.
  "PyTorch's bninception": (
    {
      "stem": "plain",
      "pool_proj_4cd": 128,
      "padding": "symmetric",
      "stem_pool": "ceil",
      "reduction_pool": "ceil",
      "avg_pool_include_pad": True,
      "conv_bias": True,
    },
    {"epsilon": 1e-5},
    32,
  ),
  "MXNet's": (
    {
      "stem": "plain",
      "pool_proj_4cd": 128,
      "padding": "symmetric",
      "stem_pool": "floor",
      "reduction_pool": "floor_pad1",
      "avg_pool_include_pad": True,
      "conv_bias": True,
    },
    {},
    45,
  ),
  "TF-slim's": ({}, {"in_stem": False, "use_gamma": False}, 50),
  "separable stem, symmetric": ({"padding": "symmetric", "stem_pool": "floor_pad1"}, {}, 38),
  "small stem": ({"stem": "small", "width": 0.1}, {}, 9),
  "without BN": ({"local_response_norm": True, "dropout_rate": 0.4}, {"enabled": False}, 33),
  "sigmoid": ({"stem": "small", "nonlinearity": "sigmoid"}, {}, 8),
  "auxiliary heads": ({"stem": "small", "auxiliary_heads": ("3a", "4d")}, {}, 28),
  "BN per activation": ({"stem": "small", "auxiliary_heads": ("3b", "5b")}, {"per_activation": ("3b", "3c", "5b")}, 20),
}


def make_config(model: dict[str, Any], norm: dict[str, Any], image_size: int) -> ConfigDict:
  config = bn_x5.get_config("imagenet").copy_and_resolve_references()
  config.model.update({"width": 0.04, **model})
  config.batch_norm.update({"group_size": 0, **norm})
  config.data.update(num_classes=CLASSES, image_size=image_size)
  config.dtype = "float64"
  return config


def plain(config: ConfigDict) -> dict[str, Any]:
  """What config.json holds."""
  return json.loads(config.to_json())


class Pair(NamedTuple):
  """The same network on both sides, and what it is given."""

  config: ConfigDict
  model: inception.Inception
  variables: dict[str, Any]
  module: torch_module.Inception
  images: np.ndarray  # [B, H, W, 3]
  labels: np.ndarray

  def torch_images(self) -> torch.Tensor:
    return torch.from_numpy(self.images).permute(0, 3, 1, 2)  # Channels last in memory.


def draw(random, path, leaf):
  """Weights that keep a signal alive, and statistics, gamma and beta far from where they start."""
  low, high = {
    "bias": (-0.3, 0.3),
    "gamma": (0.5, 2),
    "beta": (-0.3, 0.3),
    "mean": (-0.3, 0.3),
    "var": (0.5, 1.5),
    "kernel": (-1.5, 2) / np.sqrt(np.prod(leaf.shape[:-1])),
  }[path[-1].key]
  return random.uniform(low, high, leaf.shape)


def compiled(function):
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def torch_state(variables: dict[str, Any]) -> dict[str, torch.Tensor]:
  return {name: torch.tensor(array) for name, array in export.torch_module_state(variables).items()}


def assert_close(results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
  assert results.keys() == expected.keys()
  for name, value in expected.items():
    error = (results[name] - value).abs().max()
    assert error <= 1e-5 * value.abs().max() + 1e-9, f"{name}: {error} of {value.abs().max()}"


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request):
  config = make_config(*NETWORKS[request.param])
  random = np.random.default_rng(0)
  images = random.normal(size=(BATCH, config.data.image_size, config.data.image_size, 3))
  with jax.enable_x64(True):
    model = models.build(config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    shapes = {name: shapes[name] for name in ("params", "batch_stats") if name in shapes}
    variables = jax.tree_util.tree_map_with_path(functools.partial(draw, random), shapes)
    module = torch_module.Inception(plain(config)).double()
    module.load_state_dict(torch_state(variables))
    yield Pair(config, model, variables, module, images, random.integers(CLASSES, size=BATCH))


def test_logits_in_evaluation(pair):
  expected = compiled(lambda variables: pair.model.apply(variables, pair.images, train=False))(pair.variables)
  with torch.inference_mode():
    logits = pair.module.eval()(pair.torch_images())
  assert np.std(expected) > 1e-3
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_logits_gradients_and_statistics_in_training(pair):
  weight = pair.config.auxiliary_loss_weight
  statistics = pair.variables.get("batch_stats", {})

  def loss(params):
    logits, updates = pair.model.apply(
      {"params": params, "batch_stats": statistics}, pair.images, train=True, mutable=["batch_moments", "auxiliary"]
    )  # No RNG: nothing is dropped.
    cross_entropy = lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, pair.labels).mean()
    heads = {name: head for name, (head,) in updates.get("auxiliary", {}).items()}
    return cross_entropy(logits) + weight * sum(map(cross_entropy, heads.values())), (logits, heads, updates)

  gradients, (expected, expected_heads, updates) = compiled(jax.grad(loss, has_aux=True))(pair.variables["params"])

  module = copy.deepcopy(pair.module).train()
  module.dropout.eval()
  logits, heads = module(pair.torch_images()), {}
  if pair.config.model.auxiliary_heads:
    logits, heads = logits
  cross_entropy = lambda logits: torch.nn.functional.cross_entropy(logits, torch.from_numpy(pair.labels))
  (cross_entropy(logits) + weight * sum(map(cross_entropy, heads.values()))).backward()

  assert list(heads) == list(pair.config.model.auxiliary_heads) == list(expected_heads)
  for result, of_ours in zip((logits, *heads.values()), (expected, *expected_heads.values()), strict=True):
    np.testing.assert_allclose(result.detach(), of_ours, rtol=1e-5, atol=1e-6)
  assert_close(
    {name: weights.grad for name, weights in module.named_parameters() if weights.requires_grad},
    torch_state({"params": gradients}),
  )
  if statistics:
    many_steps = 10**6  # Our averages begin as plain means.
    averages = batch_norm.update_running_averages(
      statistics, updates["batch_moments"], step=many_steps, momentum=pair.config.batch_norm.momentum
    )
    buffers = {name: buffer for name, buffer in module.named_buffers() if "running" in name}
    expected_state = torch_state({"batch_stats": averages})
    assert_close(buffers, {name: value for name, value in expected_state.items() if "running" in name})


def test_maps_stay_channels_last():
  """PyTorch's convolutions for the CPU and for tensor cores want that, and a change of layout is a copy."""
  config = make_config({"width": 0.1}, {}, 37)  # A map of a single channel is of both layouts.
  module = torch_module.Inception(plain(config)).to(memory_format=torch.channels_last)
  others = []

  def note(layer, arguments, output):
    if output.ndim == 4 and not output.is_contiguous(memory_format=torch.channels_last):
      others.append(layer)

  for layer in module.modules():
    layer.register_forward_hook(note)
  module(torch.zeros(BATCH, 3, 37, 37).contiguous(memory_format=torch.channels_last))
  assert not others


def test_dropout_is_of_training_alone():
  module = torch_module.Inception(plain(make_config(*NETWORKS["without BN"])))
  images, kept = torch.ones(2, 3, 33, 33), module.dropout(torch.ones(10_000))
  assert torch.equal(kept.unique(), torch.tensor([0, 1 / 0.6])) and abs(kept.mean() - 1) < 0.05
  assert not torch.equal(module(images), module(images))
  module.eval()
  assert torch.equal(module(images), module(images))


@pytest.mark.parametrize("settings", [{}, {"channel_order": "bgr"}, {"binary": True}, {"mean": (5.0,), "std": (2.0,)}])
def test_preprocessing(settings):
  config = make_config({}, {}, 8)
  config.data.update({"mean": (120.0, 110.0, 100.0), "std": (60.0, 55.0, 50.0), **settings})
  pixels = np.random.default_rng(0).integers(256, size=(2, 8, 6, len(config.data.mean)), dtype=np.uint8)
  images = torch_module.preprocess(plain(config), torch.from_numpy(pixels).permute(0, 3, 1, 2))
  np.testing.assert_allclose(images.permute(0, 2, 3, 1), step.preprocess(config.data, pixels), rtol=1e-6, atol=1e-6)


def test_fresh_weights_are_as_wide_as_ours():
  config = make_config({"init_scale": 1.5, "width": 0.2}, {}, 32)
  config.dtype = "float32"
  model = models.build(config)
  key = jax.random.key(0, impl="rbg")  # Compiles sooner.
  ours = torch_state(compiled(lambda: model.init(key, np.zeros((1, 32, 32, 3)), train=False))())
  torch.manual_seed(0)
  fresh = torch_module.Inception(plain(config)).state_dict()
  assert ours.keys() == fresh.keys()
  for name, weights in fresh.items():
    if weights.ndim == 1:
      assert torch.equal(weights, ours[name]), name
    elif weights.ndim > 1:
      spread = 4 / weights.numel() ** 0.5  # Of the ratio of two estimates, four of its standard deviations at most.
      assert weights.std() == pytest.approx(float(ours[name].std()), rel=spread), name
      assert weights.abs().max() < 1.1 * ours[name].abs().max() * (1 + spread), name


def test_the_file_needs_pytorch_alone(tmp_path):
  program = f"""
import json, runpy, sys

class Forbid:
  def find_spec(self, name, path=None, target=None):
    assert name.partition(".")[0] not in ("bn_inception", "configs", "jax", "flax", "ml_collections"), name

sys.meta_path.insert(0, Forbid())
import torch
names = runpy.run_path({torch_module.__file__!r})
config = json.loads({json.dumps(plain(make_config(*NETWORKS["small stem"])))!r})
images = names["preprocess"](config, torch.zeros(2, 3, 9, 9, dtype=torch.uint8))
print(tuple(names["Inception"](config).eval()(images).shape))
"""
  result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
  assert result.stdout.strip() == f"(2, {CLASSES})"
