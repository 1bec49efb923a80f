"""What the project asks of every network (docs/extending.md), traced with shapes alone: nothing is computed."""

import functools

import jax
import jax.numpy as jnp
import pytest

from bn_inception import models
from bn_inception.configs import bn_x5, mnist, resnet50

BATCH, GROUP = 8, 4
CONFIGS = {
  "inception": lambda: bn_x5.get_config("quickstart"),
  "mnist_mlp": lambda: mnist.get_config("bn,quickstart"),
  "resnet": lambda: resnet50.get_config("quickstart"),
}


def test_every_network_is_held_to_the_contract():
  assert set(CONFIGS) == set(models.MODELS)


@pytest.fixture(scope="module", params=CONFIGS)
def config(request):
  config = CONFIGS[request.param]().copy_and_resolve_references()
  config.dtype, config.batch_norm.group_size = "bfloat16", GROUP
  return config


@pytest.fixture(scope="module")
def images(config):
  size = config.data.image_size
  return jax.ShapeDtypeStruct((BATCH, size, size, len(config.data.mean)), jnp.float32)


def shapes_of(model, images):
  return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def names(tree):
  return ["/".join(entry.key for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.fixture(scope="module")
def variables(config, images):
  """What `state.create` keeps of it."""
  shapes = shapes_of(models.build(config), images)
  return {name: shapes[name] for name in ("params", "batch_stats")}


def test_parameters_are_float32_with_the_names_that_the_optimizer_and_the_releases_go_by(variables):
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert {name.rpartition("/")[2] for name in names(variables["params"])} == {"kernel", "bias", "gamma", "beta"}
  assert {name.rpartition("/")[2] for name in names(variables["batch_stats"])} == {"mean", "var"}
  assert set(variables["params"]["logits"]) == {"kernel", "bias"}


def test_training_gives_float32_logits_and_the_moments_of_every_group_of_every_bn_layer(config, variables, images):
  model = models.build(config)
  # With a mask and without a key for dropout, as batch statistics are evaluated.
  apply = lambda v, x, mask: model.apply(v, x, train=True, mask=mask, mutable=["batch_moments", "auxiliary"])
  logits, updates = jax.eval_shape(apply, variables, images, jax.ShapeDtypeStruct((BATCH,), bool))
  assert (logits.shape, logits.dtype) == ((BATCH, config.data.num_classes), jnp.float32)
  layers = {name.removesuffix("/mean") for name in names(variables["batch_stats"]) if name.endswith("/mean")}
  moments = jax.tree.leaves_with_path(updates["batch_moments"], is_leaf=lambda node: hasattr(node, "count"))
  assert {"/".join(entry.key for entry in path[:-1]) for path, _ in moments} == layers
  assert {leaf.mean.shape[0] for _, leaf in moments} == {BATCH // GROUP}


def test_evaluation_needs_no_collection_but_its_variables_and_does_not_write(config, variables, images):
  logits = jax.eval_shape(functools.partial(models.build(config).apply, train=False), variables, images)
  assert (logits.shape, logits.dtype) == ((BATCH, config.data.num_classes), jnp.float32)


def test_what_it_is_called_for_must_be_said(config, variables, images):
  with pytest.raises(TypeError, match="say train=False"):
    jax.eval_shape(models.build(config).apply, variables, images)


def test_features_are_the_same_folded_and_the_last_is_what_a_headless_network_gives(config, variables, images):
  model = models.build(config)
  features = jax.eval_shape(lambda v, x: models.features(model, v, x, model.feature_names), variables, images)
  assert set(features) == set(model.feature_names)

  def folded(v, x):
    model_folded, v = models.fold(model, v, epsilon=config.batch_norm.epsilon)
    return models.features(model_folded, v, x, model.feature_names)

  def headless(v, x):
    bare, v = models.headless(model, v)
    return bare.apply(v, x, train=False)

  assert jax.eval_shape(folded, variables, images) == features
  pooled, last = jax.eval_shape(headless, variables, images), features[model.feature_names[-1]]
  assert (pooled.shape, pooled.dtype) == (last.shape, jnp.float32)
