"""Fine-tuning: what is loaded, what begins anew, what stays, on runs of a small network on the embedded digits."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_inception import (
  batch_norm,
  config_checks,
  config_keys,
  hosts,
  initialization,
  models,
  optim,
  parameter_names,
  release,
  run_directory,
  train,
)
from bn_inception.config_keys import ConfigError
from bn_inception.configs import bn_x5, finetune, mnist
from bn_inception.state import TrainState
from tests.release.test_features import make_release
from tests.test_train import assert_bit_identical, final_state, make_config

FROZEN = ("hidden1", "bn1", "hidden2/kernel")


@pytest.fixture(scope="module")
def source(digits_dir, tmp_path_factory) -> pathlib.Path:
  """A run whose last layer, statistics and moving averages are far from those of a new one."""
  workdir = tmp_path_factory.mktemp("source") / "run"
  train.train_and_evaluate(make_config(digits_dir, ema_decay=0.9), workdir, jax.devices()[:1])
  return workdir


def tuned_config(source: pathlib.Path, digits_dir: str, **overrides):
  """Of the same classes, with an average of the parameters."""
  config = make_config(digits_dir, ema_decay=0.9, **overrides)
  config.init.checkpoint, config.seed = str(source), 7
  return config


@pytest.fixture(scope="module")
def tuned(source, digits_dir, tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp("tuned") / "run"
  config = tuned_config(source, digits_dir, weight_decay=1e-3)
  config.init.skip, config.init.freeze, config.init.freeze_statistics = ("logits",), FROZEN, True
  train.train_and_evaluate(config, workdir, jax.devices()[:1])
  return workdir


def flat(tree) -> dict[str, np.ndarray]:
  return dict(zip(parameter_names.names(tree), map(np.asarray, jax.tree.leaves(tree))))


def state_at(workdir: pathlib.Path, step: int) -> dict:
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    return jax.tree.map(np.asarray, checkpointer.restore((workdir / "checkpoints" / str(step) / "state").absolute()))


def test_patterns_are_of_names_and_of_the_modules_around_them():
  matches = parameter_names.matches
  assert matches("inception_3a/1x1/bn/gamma", ["inception_3*"]) and matches("conv1/bn/beta", ["conv1"])
  assert matches("inception_3a/1x1/bn/gamma", ["*/bn"]) and matches("conv1/conv/kernel", ["x", "*kernel"])
  assert not matches("conv10/conv/kernel", ["conv1"]) and not matches("conv1/conv/kernel", ["conv", "kernel"])


def test_frozen_parameters_and_statistics_keep_every_bit_and_the_others_move(source, tuned):
  expected = release.read(source).variables
  state = final_state(tuned)
  for tree in (state["params"], state["ema_params"]):
    before, after = flat(expected["params"]), flat(tree)
    for name, value in after.items():
      same = value.tobytes() == before[name].tobytes()
      assert same == parameter_names.matches(name, FROZEN), name
  before, after = flat(expected["batch_stats"]), flat(state["batch_stats"])
  # Of hidden2 the BN is not frozen.
  assert {name for name in after if after[name].tobytes() == before[name].tobytes()} == {"bn1/mean", "bn1/var"}


def test_what_is_skipped_begins_as_in_a_new_run_and_the_rest_as_the_checkpoint(source, digits_dir, tmp_path):
  skip = ("logits", "hidden3", "bn3")

  def first_step(name: str, checkpoint: str, momentum: float) -> dict:
    config = tuned_config(source, digits_dir, num_steps=1, checkpoint_every=1, learning_rate=1e-30)
    config.batch_norm.momentum, config.init.checkpoint = momentum, checkpoint
    config.init.skip = skip if checkpoint else ()
    train.train_and_evaluate(config, tmp_path / name, jax.devices()[:1])
    return state_at(tmp_path / name, 1)

  tuned, anew = first_step("tuned", str(source), 0.9), first_step("anew", "", 0.9)
  loaded = release.read(source).variables
  for collection in ("params", "ema_params"):
    new, old = flat(anew["params"]), flat(loaded["params"])
    for name, value in flat(tuned[collection]).items():
      wanted = new if parameter_names.matches(name, skip) else old
      np.testing.assert_allclose(value, wanted[name], rtol=1e-6, atol=1e-20, err_msg=name)
  # Averages that were loaded count from the first step on; those of a layer that begins anew are forgotten at once.
  old, of_step = flat(loaded["batch_stats"]), flat(first_step("forgetting", str(source), 0.0)["batch_stats"])
  for name, value in flat(tuned["batch_stats"]).items():
    assert not np.allclose(of_step[name], old[name], rtol=1e-3)
    wanted = of_step[name] if name.startswith("bn3") else 0.9 * old[name] + 0.1 * of_step[name]
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_tuned_run_resumes_bit_for_bit_without_its_source(source, tuned, digits_dir, tmp_path):
  copy = tmp_path / "gone"
  shutil.copytree(source, copy)
  config = tuned_config(source, digits_dir, weight_decay=1e-3)
  config.init.skip, config.init.freeze, config.init.freeze_statistics = ("logits",), FROZEN, True
  config.init.checkpoint = str(copy)
  workdir = tmp_path / "resumed"
  half = config.copy_and_resolve_references()
  half.num_steps = 10
  train.train_and_evaluate(half, workdir, jax.devices()[:1])
  shutil.rmtree(copy)
  assert run_directory.read_status(workdir)["init"]["sha256"] == run_directory.read_status(tuned)["init"]["sha256"]
  train.train_and_evaluate(config, workdir, jax.devices()[:1], allow_config_change=True)
  assert run_directory.read_status(workdir)["init"]["checkpoint"] == str(copy)
  assert_bit_identical(tuned, workdir)


def test_a_release_and_its_run_are_one_source(source, digits_dir, tmp_path):
  from bn_inception.data import datasets

  config = tuned_config(source, digits_dir)
  split = datasets.open_split(config.data, "train")
  of_run = initialization.read(config_keys.parse(config), {}, split)
  release.write(release.read(source), tmp_path / "release")
  config.init.checkpoint = str(tmp_path / "release")
  of_release = initialization.read(config_keys.parse(config), {}, split)
  assert of_run.origin["sha256"] == of_release.origin["sha256"] and of_run.skip == ()
  changed = release.read(source)
  changed.variables["params"]["bn1"]["beta"] = changed.variables["params"]["bn1"]["beta"] + np.float32(1)
  release.write(changed._replace(labels=changed.labels[::-1]), tmp_path / "changed")
  config.init.checkpoint = str(tmp_path / "changed")
  of_changed = initialization.read(config_keys.parse(config), {}, split)
  assert of_changed.origin["sha256"] != of_run.origin["sha256"]
  assert of_changed.skip == ("logits",)  # As many classes, but others.


def test_the_config_follows_the_checkpoint(source):
  config = finetune.get_config(str(source))
  config_checks.check_config(config, devices=1)
  theirs = run_directory.read_config(source)
  assert config.model.to_dict() == theirs.model.to_dict() and config.init.checkpoint == str(source)
  for key in ("image_size", "eval_resize", "mean", "std", "binary", "channel_order", "num_classes"):
    assert config.data[key] == theirs.data[key]
  with pytest.raises(ValueError, match="finetune:CHECKPOINT"):
    finetune.get_config()


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("model.hidden_units", 150, ["model.hidden_units", "100"]),
    ("batch_norm.epsilon", 1e-5, ["batch_norm.epsilon"]),
    ("data.binary", False, ["data.binary"]),
    ("init.freeze", ("logits",), ["logits/", "begins anew"]),
    ("init.freeze", ("hidden9",), ["hidden9", "no parameter", "hidden1"]),
    ("init.freeze", ("*",), ["nothing is left"]),
    ("init.skip", ("bn7",), ["bn7"]),
    ("learning_rate_factors", ("conv1=2",), ["conv1"]),
    ("learning_rate_factors", ("logits",), ["PATTERN=FACTOR"]),
    ("learning_rate_factors", ("logits=0",), ["PATTERN=FACTOR"]),
    ("init.checkpoint", "", ["init.checkpoint"]),
  ],
)
def test_what_contradicts_the_checkpoint_or_itself_is_refused(source, digits_dir, tmp_path, key, value, words):
  config = tuned_config(source, digits_dir)
  config.init.skip = ("logits",)
  section, _, name = key.rpartition(".")
  (config[section] if section else config)[name] = value
  with pytest.raises(ConfigError) as caught:
    train.train_and_evaluate(config, tmp_path / "run", jax.devices()[:1])
  assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
  assert not (tmp_path / "run" / "checkpoints").exists() or not any((tmp_path / "run" / "checkpoints").iterdir())


def test_factors_multiply_the_rate_of_the_first_pattern_that_fits():
  config = mnist.get_config("bn,quickstart")
  config.learning_rate, config.momentum, config.weight_decay = 0.5, 0.9, 0.1
  config.learning_rate_factors = ("logits/bias=3", "logits=10", "hidden*=0.25")
  params = {
    "hidden1": {"kernel": jnp.array([2.0])},
    "logits": {"kernel": jnp.array([4.0]), "bias": jnp.array([1.0])},
    "bn1": {"beta": jnp.array([1.0])},
  }
  optimizer = optim.make_optimizer(config, optim.learning_rate_schedule(config, num_examples=60))
  opt_state, expected, velocity = optimizer.init(params), flat(params), {}
  factors = {"hidden1/kernel": 0.25, "logits/kernel": 10.0, "logits/bias": 3.0, "bn1/beta": 1.0}
  for _ in range(3):
    updates, opt_state = optimizer.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
    params = optax.apply_updates(params, updates)
    for name, value in expected.items():
      gradient = 1 + (0.1 * value if name.endswith("kernel") else 0)
      velocity[name] = gradient + 0.9 * velocity.get(name, 0)
      expected[name] = value - 0.5 * factors[name] * velocity[name]
  for name, value in flat(params).items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


def test_a_frozen_layer_is_inference_among_layers_that_are_not():
  """Side by side, as in an Inception module: against each layer by itself."""
  import flax.linen as nn

  class Two(nn.Module):
    frozen: tuple[str, ...] = ()

    def setup(self):
      self.a, self.b = (batch_norm.BatchNorm(1e-3, frozen=self.frozen) for _ in range(2))

    def __call__(self, x, train):
      return batch_norm.normalize_layers([self.a, self.b], [x, 2 * x], train=train)

  x = jax.random.normal(jax.random.key(0), (8, 5)) + 3
  variables = Two().init(jax.random.key(0), x, True)
  variables["batch_stats"]["a"] = {"mean": jnp.arange(5.0), "var": jnp.full(5, 4.0)}
  (a, b), updates = Two(("a",)).apply(variables, x, True, mutable=["batch_moments"])
  np.testing.assert_allclose(a, (np.asarray(x) - np.arange(5)) / np.sqrt(4.001), rtol=1e-5)
  np.testing.assert_array_equal(b, Two().apply(variables, x, True, mutable=["batch_moments"])[0][1])
  assert set(updates["batch_moments"]) == {"b"}
  moved = batch_norm.update_running_averages(
    variables["batch_stats"], updates["batch_moments"], momentum=0.9, step=jnp.zeros((), jnp.int32)
  )
  assert moved["a"] is variables["batch_stats"]["a"] or all(
    np.array_equal(moved["a"][name], variables["batch_stats"]["a"][name]) for name in ("mean", "var")
  )
  np.testing.assert_allclose(moved["b"]["mean"], 2 * np.mean(np.asarray(x), 0), rtol=1e-5)


def test_the_run_s_record_says_where_it_is_from(tuned, source):
  status = json.loads((tuned / "status.json").read_text())
  assert status["init"]["checkpoint"] == str(source) and status["init"]["skip"] == ["logits"]
  assert len(status["init"]["sha256"]) == 64


def test_hosts_with_another_checkpoint_at_the_same_path_do_not_train_together(
  source, digits_dir, tmp_path, monkeypatch
):
  key = "the content of init.checkpoint"

  def gather(own):
    """Of the values of two hosts, the second of which has another file."""
    is_compared = isinstance(own, list) and any(isinstance(part, dict) and key in part for part in own)
    return [own, ["node7", own[1] | {key: "0" * 64}]] if is_compared else [own]

  monkeypatch.setattr(hosts, "gather", gather)
  with pytest.raises(hosts.HostsDifferError, match=f"Process 1 on node7 has {key} 0000"):
    train.train_and_evaluate(tuned_config(source, digits_dir), tmp_path / "run", jax.devices()[:1])


def test_statistics_of_frozen_layers_move_where_they_are_not_frozen_too(source, digits_dir, tmp_path):
  config = tuned_config(source, digits_dir, num_steps=1, checkpoint_every=1)
  config.init.freeze = FROZEN
  train.train_and_evaluate(config, tmp_path / "run", jax.devices()[:1])
  loaded, state = release.read(source).variables, state_at(tmp_path / "run", 1)
  np.testing.assert_array_equal(state["params"]["bn1"]["gamma"], loaded["params"]["bn1"]["gamma"])
  before = flat(loaded["batch_stats"])
  for name, value in flat(state["batch_stats"]).items():
    assert not np.array_equal(value, before[name]), name


def test_auxiliary_heads_begin_anew_and_the_rest_as_the_checkpoint():
  """No checkpoint that is read has them: they count in training only."""
  config = bn_x5.get_config("quickstart").copy_and_resolve_references()
  config.model.width = 0.1
  loaded = make_release(config.copy_and_resolve_references()).variables
  config.model.auxiliary_heads = ("4a",)
  model = models.build(config)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 28, 28, 1)), train=False))
  new = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0), shapes)
  state = TrainState(
    step=0, params=new["params"], batch_stats=new["batch_stats"], opt_state=(), ema_params=None, sums=None
  )
  state = initialization.apply(initialization.Trained(loaded, (), {}), state)
  for collection in ("params", "batch_stats"):
    old, values = flat(loaded[collection]), flat(getattr(state, collection))
    heads = {name for name in values if name.startswith("auxiliary_4a/")}
    assert heads and heads == values.keys() - old.keys()
    for name, value in values.items():
      np.testing.assert_array_equal(value, 7.0 if name in heads else old[name], err_msg=name)
