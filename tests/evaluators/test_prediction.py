"""Means over crops and networks against one image and one crop at a time in NumPy float64."""

import functools

import jax
import numpy as np
import pytest

from bn_inception import sharding
from bn_inception.data import preprocessing
from bn_inception.evaluators import prediction
from bn_inception.models import mnist_mlp

IMAGES, SIZE, OUTPUTS = 23, 6, 9


def network(seed, columns, mean=(127.5,)):
  model = mnist_mlp.MnistMlp(OUTPUTS, hidden_units=12, init_std=0.5)
  variables = model.init(jax.random.key(seed), np.zeros((1, SIZE, SIZE, 1)), train=False)
  preprocess = functools.partial(preprocessing.normalize, mean=mean, std=(50.0,))
  return prediction.Network(model, variables, preprocess, np.array(columns), program=f"{columns} {mean}")


def by_hand(one, image, mean):
  """Probabilities [classes] of one crop."""
  parameters = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), one.variables["params"])
  x = ((image.astype(np.float64) - mean) / 50).reshape(-1)
  for layer in ("hidden1", "hidden2", "hidden3"):
    x = 1 / (1 + np.exp(-(x @ parameters[layer]["kernel"] + parameters[layer]["bias"])))
  logits = (x @ parameters["logits"]["kernel"] + parameters["logits"]["bias"])[one.columns]
  return np.exp(logits) / np.exp(logits).sum()


def batches(images, local):
  for first in range(0, len(images), local):
    part = images[first : first + local]
    padding = local - len(part)
    yield {
      "image": np.concatenate([part, np.zeros((padding, *part.shape[1:]), np.uint8)]),
      "mask": np.arange(local) < len(part),
    }


def collect(networks, images, batch_size, devices):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  local = prediction.images_per_batch(batch_size, images.shape[1])
  with jax.set_mesh(mesh):
    parts = list(prediction.predict(networks, batches(images, local), mesh, batch_size))
  rows = np.concatenate([part.probabilities for part in parts])
  mask = np.concatenate([part.mask for part in parts])
  assert mask.sum() == len(images)
  return rows[mask]


@pytest.fixture(scope="module")
def networks():
  # As a set of 4 classes sees networks of 9 outputs in different orders.
  return [network(0, [1, 2, 3, 4]), network(1, [1, 2, 3, 4]), network(2, [8, 0, 3, 5], mean=(100.0,))]


@pytest.fixture(scope="module")
def expected(networks):
  def compute(images):
    of_crop = lambda crop: np.mean(
      [by_hand(networks[0], crop, 127.5), by_hand(networks[1], crop, 127.5), by_hand(networks[2], crop, 100.0)], axis=0
    )
    return np.array([np.mean([of_crop(crop) for crop in image], axis=0) for image in images])

  return compute


def some_images(crops):
  return np.random.default_rng(crops).integers(0, 256, (IMAGES, crops, SIZE, SIZE, 1), np.uint8)


@pytest.mark.parametrize("crops", [1, 10])
@pytest.mark.parametrize("devices", [1, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_probabilities_are_means_over_crops_and_networks(networks, expected, batch_size, devices, crops):
  images = some_images(crops)
  result = collect(networks, images, batch_size, devices)
  assert result.shape == (IMAGES, 4) and result.dtype == np.float64
  np.testing.assert_allclose(result, expected(images), atol=2e-6)
  np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-6)


def test_144_crops(networks, expected):
  images = some_images(144)[:3]
  np.testing.assert_allclose(collect(networks, images, 50, 8), expected(images), atol=2e-6)


def test_networks_of_the_same_program_are_compiled_once(networks):
  calls = []

  def counted(images):
    calls.append(images.shape)
    return networks[0].preprocess(images)

  members = [one._replace(preprocess=counted) for one in networks[:2]]
  collect(members, some_images(1), 8, 1)
  assert len(calls) == 1  # Traced once, for two networks and three batches.


def test_every_output_counts_the_same_whatever_the_networks_order(networks):
  images = some_images(1)
  np.testing.assert_allclose(collect(networks, images, 8, 1), collect(networks[::-1], images, 8, 1), atol=1e-12)
