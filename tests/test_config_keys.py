"""The closed set of a config's keys: misspelt, missing, of the wrong type, out of range."""

import dataclasses
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from bn_inception import config_checks, config_keys, models
from bn_inception.configs import bn_x5, mnist
from bn_inception.data import train_distortions
from bn_inception.models import layers


def refused(config, *words):
  with pytest.raises(config_checks.ConfigError) as caught:
    config_checks.check_config(config, devices=1)
  assert all(word in str(caught.value) for word in words), caught.value
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "get_config, section, wrong, right",
  [
    (bn_x5.get_config, "", "learing_rate", "learning_rate"),
    (mnist.get_config, "", "bach_size", "batch_size"),
    (bn_x5.get_config, "data", "shufle", "data.shuffle"),
    (bn_x5.get_config, "model", "widht", "model.width"),
    (mnist.get_config, "model", "hidden_unit", "model.hidden_units"),
    (mnist.get_config, "batch_norm", "group", "batch_norm.group_size"),
    (mnist.get_config, "", "group_size", "batch_norm.group_size"),
    (mnist.get_config, "eval", "batchsize", "eval.batch_size"),
  ],
)
def test_a_misspelt_key_is_refused_with_the_right_one(get_config, section, wrong, right):
  config = get_config()
  (config[section] if section else config)[wrong] = 1
  refused(config, wrong, f"did you mean {right}?")


@pytest.mark.parametrize(
  "key",
  ["seed", "num_steps", "data.dir", "batch_norm.epsilon", "model.init_std", "model.name", "model", "data", "eval"],
)
def test_a_missing_key_is_named(key):
  config = mnist.get_config()
  *section, name = key.split(".")
  del (config[section[0]] if section else config)[name]
  refused(config, key)


@pytest.mark.parametrize(
  "key, values",
  {
    "seed": [2**63, -(2**63) - 1, 1.0, "0", True],
    "batch_size": [32.0, "32", None, True, 2**31],
    "num_steps": [2**31, float("inf")],
    "learning_rate": [float("inf"), 1e39, "0.1", None, True, 1e-46],
    "weight_decay": [float("inf"), float("nan")],
    "momentum": [1 - 1e-9],
    "batch_norm.epsilon": [1e-60],
    "learning_rate_decay_epochs": [float("inf")],
    "batch_norm.enabled": [1, "yes", None],
    "data.flip": ["False"],
    "data.name": [3, None, ()],
    "data.crop_area": [("0.5", "1"), (0.5, None), 0.5, [0.5, 1.0], ((0.5,), 1.0)],
    "data.crop_aspect": [("3/4", 1.0), (1.0, 1e39)],
    "data.mean": [(), 127.5, ("127.5",), (float("nan"),), (True,)],
    "data.std": [(0.0,), (-1.0,), (float("inf"),), (1e-42,)],
    "eval.statistics": ["running", ("running", 1), None],
    "eval.sigmoid_input_units": [(0.0,), ("0",), (-1,), 3],
    "model": [{"hidden_units": 5}, 3, None],
    "data": [None, "digits"],
    "batch_norm": [True],
    "model.hidden_units": [0, 1.5, (100,)],
  }.items(),
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_refused(key, values):
  for value in values:
    config = mnist.get_config().copy_and_resolve_references().to_dict()
    *section, name = key.split(".")
    (config[section[0]] if section else config)[name] = value
    with_lists = ConfigDict(config, convert_dict=True)
    refused(with_lists, key.partition(".")[0] if key == "model" else key)


@pytest.mark.parametrize(
  "key, value", [("seed", 2**63 - 1), ("seed", -(2**63)), ("learning_rate", 3), ("weight_decay", 0), ("data.std", (1,))]
)
def test_a_value_at_the_end_of_its_range_and_a_whole_number_for_another_are_taken(key, value):
  config = mnist.get_config().to_dict()
  *section, name = key.split(".")
  (config[section[0]] if section else config)[name] = value
  config_checks.check_config(ConfigDict(config), devices=1)


@pytest.mark.parametrize(
  "body, words",
  [
    ("config.learing_rate = 0.1; return config", ["learing_rate", "did you mean learning_rate?"]),
    ("del config.data.dir; return config", ["lacks data.dir"]),
    ("config.model.hidden_units_ = 3; return config", ["model.hidden_units"]),
    ("return {'batch_size': 3}", ["must return a ConfigDict"]),
    ("return confg", ["NameError", "'confg'"]),
    ("return (", ["never closed"]),
    ("return 1 / 0", ["ZeroDivisionError"]),
  ],
)
def test_a_config_file_is_refused_in_one_sentence_by_every_script(repository, tmp_path, body, words):
  path = tmp_path / "own.py"
  path.write_text(
    f"from bn_inception.configs import mnist\ndef get_config():\n  config = mnist.get_config()\n  {body}\n"
  )
  result = subprocess.run(
    [sys.executable, "scripts/describe.py", f"--config={path}"],
    cwd=repository,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2 and not result.stdout
  assert len(result.stderr.strip().splitlines()) == 1, result.stderr
  assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize("get_config", [bn_x5.get_config, mnist.get_config])
def test_the_typed_config_has_the_values_under_the_same_names(get_config):
  config = get_config()
  typed = config_keys.parse(config)
  assert dataclasses.asdict(typed) == config.to_dict()
  with pytest.raises(dataclasses.FrozenInstanceError):
    typed.data.flip = True


@pytest.mark.parametrize(
  "part, key, implemented",
  [
    (config_keys.Inception, "stem_pool", layers.POOL_PADDING),
    (config_keys.Inception, "nonlinearity", layers.NONLINEARITIES),
    (config_keys.Data, "interpolation", train_distortions.INTERPOLATIONS),
  ],
)
def test_every_choice_is_implemented_and_no_other(part, key, implemented):
  assert set(config_keys.key_of(part.__annotations__[key]).choices) == set(implemented)


def test_every_network_has_its_keys():
  assert {part.__annotations__["name"].__args__[0] for part in config_keys.Model.__args__} == set(models.MODELS)
