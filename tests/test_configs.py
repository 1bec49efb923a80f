"""The configs against the paper's tables, and what `check_config` refuses."""

import importlib
import subprocess
import sys

import pytest

from bn_inception import config_checks, config_keys, optim
from bn_inception.configs import common, ensemble, mnist, resnet50
from bn_inception.data import datasets

# §4.2.2 and §4.2.1. The decay of the learning rate is 6 times faster: the same 4%, after a sixth of the epochs.
PAPER = """
config             learning rate  BN   LRN  dropout  L2    epochs of 4% decay  nonlinearity  shuffle       photometric
inception                 0.0015   no  yes     0.4   2e-4        8                relu        none            full
bn_baseline               0.0015  yes  yes     0.4   2e-4        8                relu        none            full
bn_x5                     0.0075  yes   no     0.0   4e-5        1.3333           relu        within_shard    half
bn_x30                    0.045   yes   no     0.0   4e-5        1.3333           relu        within_shard    half
bn_x5_sigmoid             0.0075  yes   no     0.0   4e-5        1.3333           sigmoid     within_shard    half
inception_x5              0.0075   no  yes     0.4   2e-4        8                relu        none            full
inception_sigmoid         0.0015   no  yes     0.4   2e-4        8                sigmoid     none            full
""".strip().splitlines()[1:]
ROWS = [line.split()[0] for line in PAPER]
EVERY = (
  [(name, scale) for name in ROWS for scale in common.SCALES]
  + [("ensemble", f"imagenet,{member}") for member in range(6)]
  + [("mnist", argument) for argument in ("bn", "plain", "bn,quickstart", "plain,quickstart")]
  + [("resnet50", argument) for argument in resnet50.SCALES]
)


def get_config(name: str, *argument: str):
  return importlib.import_module(f"bn_inception.configs.{name}").get_config(*argument)


@pytest.mark.parametrize("line", PAPER, ids=ROWS)
def test_config_is_the_papers_row(line):
  name, rate, bn, lrn, dropout, l2, epochs, nonlinearity, shuffle, photometric = line.split()
  config = get_config(name)
  assert config.learning_rate == pytest.approx(float(rate))
  assert config.batch_norm.enabled == (bn == "yes")
  assert config.model.local_response_norm == (lrn == "yes")
  assert config.model.dropout_rate == float(dropout)
  assert config.weight_decay == pytest.approx(float(l2))
  assert config.learning_rate_decay == 0.96
  assert config.learning_rate_decay_epochs == pytest.approx(float(epochs), rel=1e-4)
  assert config.model.nonlinearity == nonlinearity
  assert config.data.shuffle == shuffle
  assert config.data.photometric_strength == {"full": 1.0, "half": 0.5}[photometric]
  assert config.data.interpolation == "random"
  assert (config.batch_size, config.batch_norm.group_size, config.data.image_size) == (32, 32, 224)


def differences(a, b, prefix=""):
  """Names of the fields in which two configs differ."""
  assert a.keys() == b.keys()
  for name in a:
    if hasattr(a[name], "keys"):
      yield from differences(a[name], b[name], f"{prefix}{name}.")
    elif a[name] != b[name]:
      yield prefix + name


@pytest.mark.parametrize("scale", common.SCALES)
def test_bn_baseline_is_inception_with_batch_norm_and_nothing_else(scale):
  assert list(differences(get_config("inception", scale), get_config("bn_baseline", scale))) == ["batch_norm.enabled"]


@pytest.mark.parametrize(
  "a,b,expected",
  [
    ("bn_x5", "bn_x30", {"learning_rate"}),
    ("bn_x5", "bn_x5_sigmoid", {"model.nonlinearity"}),
    ("inception", "inception_x5", {"learning_rate"}),
    ("inception", "inception_sigmoid", {"model.nonlinearity"}),
    (
      "bn_baseline",
      "bn_x5",
      {
        "learning_rate",
        "weight_decay",
        "learning_rate_decay_epochs",
        "model.dropout_rate",
        "model.local_response_norm",
        "data.shuffle",
        "data.photometric_strength",
        "num_steps",
      },
    ),
  ],
)
def test_two_curves_differ_in_what_the_paper_says_they_do(a, b, expected):
  assert set(differences(get_config(a), get_config(b))) == expected


def test_ensemble_members_are_bn_x30_with_the_changes_of_the_paper():
  """§4.2.3: larger initial weights, dropout of 5% or 10%, BN per activation in the last layers, "some of" these."""
  members = [ensemble.get_config(f"imagenet,{member}") for member in range(6)]
  allowed = {"seed", "model.init_scale", "model.dropout_rate", "batch_norm.per_activation"}
  for member, config in enumerate(members):
    changed = set(differences(get_config("bn_x30"), config))
    assert changed <= allowed and changed - {"seed"}
    assert config.seed == member and config.model.dropout_rate in (0.0, 0.05, 0.1) and config.model.init_scale >= 1
  settings = [(c.model.init_scale, c.model.dropout_rate, c.batch_norm.per_activation) for c in members]
  assert len(set(settings)) == 6


def test_mnist_is_section_4_1():
  bn, plain = mnist.get_config("bn"), mnist.get_config("plain")
  assert (bn.num_steps, bn.batch_size, bn.batch_norm.group_size, bn.model.hidden_units) == (50_000, 60, 60, 100)
  assert bn.data.photometric_strength == 0
  assert bn.data.binary and bn.data.image_size == 28 and bn.data.crop_area == (1.0, 1.0) and not bn.data.flip
  assert list(differences(bn, plain)) == ["batch_norm.enabled"]


def test_lengths_are_in_the_papers_steps_of_32_and_follow_the_batch_size():
  config = get_config("bn_x30")
  assert config.num_steps == 6_000_000  # 74.8% is reached here.
  config.batch_size = 256
  assert (config.num_steps, config.eval_every, config.checkpoint_every) == (750_000, 2_500, 2_500)
  config.num_steps = 1000  # Given, it stays.
  config.batch_size = 64
  assert config.num_steps == 1000
  assert get_config("inception").num_steps == 31_000_000


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("scale, batch_size", [("gpu8", 512), ("pod", 1024)])
def test_large_batch_is_imagenet_but_for_what_goes_with_it(name, scale, batch_size):
  config, imagenet = get_config(name, scale), get_config(name)
  lengths = {"num_steps", "eval_every", "checkpoint_every"}
  assert set(differences(imagenet, config)) - lengths == {
    "batch_size",
    "eval.batch_size",
    "dtype",
    "learning_rate_scaling",
    "learning_rate_warmup_epochs",
    "checkpoint_every_minutes",
  }
  assert (config.batch_size, config.eval.batch_size, config.batch_norm.group_size) == (batch_size, batch_size, 32)
  assert config.num_steps == -(-imagenet.num_steps * 32 // batch_size)


def test_learning_rate_of_a_large_batch_by_a_table():
  """Goyal et al., 2017, §2: k times the rate for k times the batch, reached in 5 epochs from the rate of one."""
  config, images = get_config("bn_x5", "pod"), 1_281_167
  rate = optim.learning_rate_schedule(config, images)
  epoch = images / 1024
  assert rate(0) == pytest.approx(0.0075)
  assert rate(int(2.5 * epoch)) == pytest.approx((0.0075 + 0.24 * 0.96) / 2, rel=0.05)  # A decay lies in between.
  assert rate(int(5.01 * epoch)) == pytest.approx(32 * 0.0075 * 0.96**3, rel=1e-5)  # Three decays of 4/3 epochs.
  config.batch_size = 2048  # The rate follows.
  rate = optim.learning_rate_schedule(config, images)
  assert rate(int(5.01 * epoch / 2)) == pytest.approx(0.48 * 0.96**3, rel=1e-5)


def test_large_batch_at_the_rate_of_a_small_one_is_noticed():
  config = get_config("bn_x5")
  assert not optim.keeps_a_small_rate(config)
  config.batch_size = 256
  assert optim.keeps_a_small_rate(config)
  assert not any(optim.keeps_a_small_rate(get_config("bn_x5", scale)) for scale in ("gpu8", "pod", "cifar10"))
  assert not optim.keeps_a_small_rate(mnist.get_config("bn"))


@pytest.mark.parametrize(
  "name,argument,message",
  [
    ("bn_x5", "imagnet", "'imagnet' .* is not known: give one of imagenet, gpu8, pod, cifar10, .*quickstart"),
    ("bn_x5", "cifar10,quickstart", "'quickstart' .* is a second scale"),
    ("ensemble", "imagenet,6", "'6' .* is not known: .* and one of 0, 1, 2, 3, 4, 5"),
    ("mnist", "batchnorm", "'batchnorm' .* is not known: give one of bn, plain"),
  ],
)
def test_argument_that_is_not_known_is_named_with_the_choices(name, argument, message):
  with pytest.raises(ValueError, match=message):
    get_config(name, argument)


def test_arguments_come_in_any_order_and_have_defaults():
  assert ensemble.get_config("3,cifar10").to_dict() == ensemble.get_config("cifar10,3").to_dict()
  assert ensemble.get_config().to_dict() == ensemble.get_config("imagenet,0").to_dict()
  assert get_config("bn_x5", "").to_dict() == get_config("bn_x5", "imagenet").to_dict()


def test_configs_need_nothing_but_ml_collections(repository):
  """A config can be read where no JAX is installed."""
  names = sorted({name for name, _ in EVERY})
  program = (
    f"import importlib, sys\nfor name in {names}:\n"
    "  importlib.import_module('bn_inception.configs.' + name).get_config()\nprint(*sys.modules)"
  )
  result = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
  roots = {name.split(".")[0] for name in result.stdout.split()}
  assert "ml_collections" in roots
  assert not roots & {"jax", "flax", "optax", "numpy", "tensorflow", "tensorflow_datasets"}


# ------------------------------------------------------------------------------------------------- check_config


@pytest.mark.parametrize("name,argument", EVERY)
def test_every_config_can_be_run_on_one_device(name, argument):
  config_checks.check_config(get_config(name, argument), devices=1)


@pytest.mark.parametrize("name,argument", EVERY)
def test_no_config_names_a_field_that_the_base_does_not_have(name, argument):
  """A typo in a config file makes a new field in silence."""
  known = get_config("bn_x5")
  config = get_config(name, argument)
  assert config.keys() == known.keys()
  for part in ("batch_norm", "data", "eval"):
    assert config[part].keys() == known[part].keys()
  of_model = {"mnist": mnist.get_config(), "resnet50": resnet50.get_config()}.get(name, known)
  assert config.model.keys() == of_model.model.keys()


BAD = {
  "dtype": ["float16"],
  "data.shuffle": ["yes"],
  "data.channel_order": ["gbr"],
  "model.name": ["resnet50"],
  "model.stem": ["separate"],
  "model.pool_proj_4cd": [64],
  "model.padding": ["valid"],
  "model.stem_pool": ["pad"],
  "model.reduction_pool": ["pad", "floor"],
  "model.nonlinearity": ["tanh"],
  "model.auxiliary_heads": [("4f",)],
  "batch_norm.per_activation": [("5c",)],
  "model.width": [0.0, -1.0],
  "model.dropout_rate": [1.0, -0.1],
  "num_steps": [0],
  "batch_size": [0, -32, 33],
  "log_every": [0],
  "eval_every": [0],
  "checkpoint_every": [0],
  "keep_latest": [0],
  "keep_best": [-1],
  "profile_at_step": [-1],
  "eval.batch_size": [0, 100],
  "eval.population_batches": [0],
  "data.num_classes": [0],
  "data.image_size": [0, 31],
  "learning_rate": [0.0, float("nan")],
  "learning_rate_decay": [0.0],
  "learning_rate_decay_epochs": [-1.0],
  "momentum": [-0.1, 1.0],
  "weight_decay": [-1e-4],
  "ema_decay": [1.0],
  "auxiliary_loss_weight": [-0.3],
  "batch_norm.epsilon": [0.0],
  "batch_norm.momentum": [1.0],
  "batch_norm.group_size": [-32, 24],
  "gradient_accumulation": [0, 3, 64],
  "steps_per_call": [0, 7, 128],
  "data.cache": [True],
  "eval.sigmoid_input_units": [(0,)],
  "eval.statistics": [("running", "moving"), ("population",)],
  "data.interpolation": ["lanczos"],
  "data.photometric_strength": [-0.1, 1.1, float("nan")],
  "data.crop_area": [(0.0, 1.0), (0.5, 1.1), (0.9, 0.8), (float("nan"), 1.0), (0.5,)],
  "data.crop_aspect": [(0.0, 1.0), (4 / 3, 3 / 4), (1.0, float("inf"))],
}


@pytest.mark.parametrize("name,value", [(name, value) for name, values in BAD.items() for value in values])
def test_bad_value_is_an_error_that_names_the_field(name, value):
  config = get_config("bn_x5")
  *path, field = name.split(".")
  (config[path[0]] if path else config)[field] = value
  with pytest.raises(config_checks.ConfigError, match=name):
    config_checks.check_config(config, devices=1)


@pytest.mark.parametrize(
  "devices,group_size,runs",
  [(1, 32, True), (2, 32, True), (8, 64, True), (8, 0, True), (4, 8, True), (3, 32, False), (8, 48, False)],
)
def test_groups_lie_within_a_device_or_are_made_of_whole_shares(devices, group_size, runs):
  config = get_config("bn_x5")
  config.batch_size, config.eval.batch_size, config.batch_norm.group_size = 128, 128, group_size
  if runs:
    config_checks.check_config(config, devices)
  else:
    with pytest.raises(config_checks.ConfigError, match="batch_size"):
      config_checks.check_config(config, devices)


@pytest.mark.parametrize(
  "change,message",
  [
    ({"log_every": 150}, "log_every is 150, but steps_per_call=100"),
    ({"eval_every": 50}, "eval_every is 50"),
    ({"checkpoint_every": 333}, "checkpoint_every"),
    ({"num_steps": 50_050}, "num_steps is 50050"),
    ({"profile_at_step": 100}, "profile with steps_per_call=1"),
  ],
)
def test_everything_happens_between_two_calls(change, message):
  config = mnist.get_config("bn")
  config.update(change)
  with pytest.raises(config_checks.ConfigError, match=message):
    config_checks.check_config(config, devices=1)


def test_a_warm_up_needs_a_batch_that_it_changes():
  """Of 32 and less it would change nothing, or lower the rate."""
  for batch_size in (16, 32):
    config = get_config("bn_x5", "cifar10")
    config.update({"batch_size": batch_size, "learning_rate_warmup_epochs": 0.1})
    config.batch_norm.group_size = 16
    with pytest.raises(config_checks.ConfigError, match=f"but batch_size is {batch_size}: set it to 0, or choose"):
      config_checks.check_config(config, devices=1)


def test_cached_images_are_undistorted_and_recorded_units_exist():
  for change, message in (({"flip": True}, "data.cache"), ({"crop_area": (0.9, 1.0)}, "data.cache")):
    config = mnist.get_config("bn")
    config.data.update(change)
    with pytest.raises(config_checks.ConfigError, match=message):
      config_checks.check_config(config, devices=1)
  config = mnist.get_config("bn")
  config.eval.sigmoid_input_units = (100,)
  with pytest.raises(config_checks.ConfigError, match="eval.sigmoid_input_units is 100"):
    config_checks.check_config(config, devices=1)


def test_cached_images_need_no_resizing(digits_dir):
  config = mnist.get_config("bn,quickstart")
  config.data.dir = digits_dir
  split = datasets.open_split(config.data, "train")
  config_checks.check_data(config_keys.parse(config), split)
  config.data.eval_resize = 32
  with pytest.raises(datasets.DataError, match="data.cache needs images of 28x28 pixels as stored"):
    config_checks.check_data(config_keys.parse(config), split)


def test_a_split_without_examples_is_an_error(digits_dir):
  config = mnist.get_config("bn,quickstart")
  config.data.dir = digits_dir
  with pytest.raises(datasets.DataError, match=r"has no examples in 'test\[:0\]'"):
    config_checks.check_data(config_keys.parse(config), datasets.open_split(config.data, "test[:0]"))


def test_without_batch_norm_the_group_size_does_not_matter():
  config = get_config("inception")
  config.batch_norm.group_size = 24
  config_checks.check_config(config, devices=8)


def test_pool_that_would_not_fit_beside_the_convolutions_is_an_error():
  """28 px are 14x14 in 3a, 7x7 in 4e: Caffe's border makes 3x3 of them, the convolutions 4x4."""
  config = get_config("bn_x5", "quickstart")
  config.model.reduction_pool = "ceil"
  with pytest.raises(config_checks.ConfigError, match="model.reduction_pool=ceil .* 14x14"):
    config_checks.check_config(config, devices=1)
  config = get_config("bn_x5")
  config.model.reduction_pool = "ceil"
  config_checks.check_config(config, devices=1)
