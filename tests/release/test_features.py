"""Features under names that are the same folded and unfolded, and what a first user of a release gets wrong."""

import jax
import numpy as np
import pytest

from bn_inception import models, release
from bn_inception.configs import bn_x5, mnist


def make_release(config):
  """A network with statistics and parameters far from where they start."""
  model = models.build(config)
  image = (1, config.data.image_size, config.data.image_size, len(config.data.mean))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros(image), train=False))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == "kernel":
      return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
    # A variance must be positive; BN per activation has variances in three dimensions.
    return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

  config.release = {"source": "test", "classes": "none", "published": "none", "statistics": "running"}
  return release.Release(config, jax.tree_util.tree_map_with_path(draw, shapes))


@pytest.fixture(scope="module")
def small():
  config = bn_x5.get_config("quickstart").copy_and_resolve_references()
  config.model.width = 0.1
  return make_release(config)


def images_of(one, size=2):
  data = one.config.data
  shape = (size, data.image_size, data.image_size, len(data.mean))
  return np.random.default_rng(1).integers(256, size=shape, dtype=np.uint8)


NAMES = ("conv1", "conv2_reduce", "conv2", "inception_3a", "inception_3c", "inception_5b", "pooled")


def test_features_are_the_same_folded_and_unfolded(small):
  """Each against the network's own variables: the logits are an affine map of `pooled`, which is the mean of 5b."""
  found = []
  for folded in (False, True):
    model, variables, preprocess = release.build(small, folded=folded)

    @jax.jit
    def run(variables, images):
      x = preprocess(images)
      return release.features(model, variables, x, NAMES), model.apply(variables, x, train=False)

    features, logits = run(variables, images_of(small))
    assert set(features) == set(NAMES)
    np.testing.assert_allclose(features["pooled"], np.mean(features["inception_5b"], (1, 2)), rtol=1e-5)
    head = small.variables["params"]["logits"]
    np.testing.assert_allclose(features["pooled"] @ head["kernel"] + head["bias"], logits, rtol=1e-3, atol=1e-3)
    found.append(features)
  for name, values in found[0].items():
    assert np.std(values) > 1e-3 and (values.min() >= 0)  # After ReLU.
    np.testing.assert_allclose(values, found[1][name], rtol=1e-3, atol=1e-4 * values.max(), err_msg=name)
  shapes = {name: values.shape[1:] for name, values in found[0].items()}
  assert shapes["conv1"] == (28, 28, 6) and shapes["inception_3c"][:2] == (7, 7) and len(shapes["pooled"]) == 1


@pytest.mark.parametrize("folded", [False, True])
def test_without_classes_the_network_ends_with_its_features(small, folded):
  model, variables, preprocess = release.build(small, folded=folded)
  x = preprocess(images_of(small))
  expected = jax.jit(lambda variables: release.features(model, variables, x))(variables)
  model, variables, _ = release.build(small, folded=folded, num_classes=0)
  assert "logits" not in variables["params"]
  np.testing.assert_array_equal(jax.jit(lambda v: model.apply(v, x, train=False))(variables), expected["pooled"])


def test_features_of_the_mnist_network():
  one = make_release(mnist.get_config("bn,quickstart").copy_and_resolve_references())
  results = []
  for folded in (False, True):
    model, variables, preprocess = release.build(one, folded=folded, num_classes=0)
    results.append(model.apply(variables, preprocess(images_of(one)), train=False))
  assert results[0].shape == (2, 100)
  np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)
  model, variables, preprocess = release.build(one)
  hidden = release.features(model, variables, preprocess(images_of(one)))["hidden"]
  np.testing.assert_array_equal(hidden, results[0])


def test_other_features_and_classes_are_a_sentence(small):
  model, variables, preprocess = release.build(small)
  with pytest.raises(ValueError, match="no features 'inception_6a': choose from conv1, .*inception_5b, pooled"):
    release.features(model, variables, preprocess(images_of(small)), ["pooled", "inception_6a"])
  with pytest.raises(release.ReleaseError, match="has 10 classes and cannot be loaded with 5: give num_classes=0"):
    release.build(small, num_classes=5)


@pytest.mark.parametrize(
  "spoil, message",
  [
    (lambda images: images[0], r"\[B, H, W, 1\], and these are \[28, 28, 1\]: .* images\[None\]"),
    (lambda images: images.transpose(0, 3, 1, 2), r"\[2, 1, 28, 28\]: put the channels last"),
    (lambda images: images.repeat(3, -1), r"\[2, 28, 28, 3\]: convert them to gray"),
    (lambda images: images / 255, "these floats are from 0 to 1: give uint8"),
    (lambda images: jax.numpy.asarray(images / 127.5 - 1), "from -1 to 1"),
    (lambda images: images * 2.0, "from 0 to 510"),
  ],
)
def test_images_that_are_none_are_a_sentence(small, spoil, message):
  preprocess = release.build(small)[2]
  with pytest.raises(release.ReleaseError, match=message):
    preprocess(spoil(images_of(small)))


def test_pixels_of_any_type_are_pixels(small):
  preprocess, images = release.build(small)[2], images_of(small)
  for pixels in (images.astype(np.float32), images.astype(np.int32), images.tolist(), images.astype(np.float32) * 0):
    expected = (np.float64(pixels) - 127.5) / 127.5
    np.testing.assert_allclose(preprocess(pixels), expected, atol=1e-6)
  assert jax.jit(preprocess)(images.astype(np.float32)).shape == images.shape


@pytest.mark.parametrize("config", [bn_x5.get_config("quickstart"), mnist.get_config("bn,quickstart")])
def test_what_is_forgotten_in_a_call_is_a_sentence(config):
  model = models.build(config)
  with pytest.raises(TypeError, match="say train=False for evaluation .* or train=True"):
    model.apply({}, np.zeros((2, 28, 28, 1)))
  with pytest.raises(ValueError, match=r"this input is \[28, 28, 1\]: give images\[None\]"):
    model.apply({}, np.zeros((28, 28, 1)), train=False)
