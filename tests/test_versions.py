"""A config that was stored before a key was added, renamed or removed is the config that it was."""

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import pytest

from bn_inception import config_checks, config_keys, evaluate, release, run_directory, train
from bn_inception.configs import mnist, versions
from bn_inception.configs.versions import Added, Removed, Renamed, VersionError
from bn_inception.data import pipeline
from bn_inception.release import folder as release_folder
from bn_inception.reproduction import archive, execution, measured, page, plans

# Of 2026-11-22; its config has neither a version nor the four keys that came with 1.
ARCHIVED = "mnist/sweep/mnist_bn/rate_3/seed0"
NEW = Added(versions.VERSION + 1, "model.fictitious", (3, 4), model="mnist_mlp")


@pytest.fixture(name="archived")
def fixture_archived(repository: pathlib.Path) -> pathlib.Path:
  return repository / "results" / "sweep" / ARCHIVED


def with_field(part: type, name: str, kind: type) -> type:
  """A part of the config with a key more."""
  return dataclasses.make_dataclass(part.__name__, [(name, kind)], bases=(part,), frozen=True)


@pytest.fixture(name="new_key")
def fixture_new_key(monkeypatch: pytest.MonkeyPatch) -> None:
  """The code of tomorrow: the next version has a key more."""
  get_config = mnist.get_config

  def with_key(argument="bn"):
    config = get_config(argument)
    config.model.fictitious = (3, 4)
    return config

  monkeypatch.setattr(versions, "VERSION", NEW.version)
  tomorrow = with_field(config_keys.MnistMlp, "fictitious", tuple[config_keys.CountOrNone, config_keys.CountOrNone])
  monkeypatch.setitem(config_keys.Config.__annotations__, "model", config_keys.Inception | tomorrow)
  monkeypatch.setattr(versions, "CHANGES", (*versions.CHANGES, NEW))
  monkeypatch.setattr(mnist, "get_config", with_key)


def planned(name: str = ARCHIVED):
  return next(run for run in plans.sweep("mnist", 1).runs if run.name == name).config()


def small(digits_dir: str):
  """Four steps on the digits."""
  config = mnist.get_config("bn,quickstart")
  config.data.dir, config.eval.population_batches = digits_dir, 1
  config.num_steps = config.log_every = config.eval_every = config.checkpoint_every = config.steps_per_call = 4
  return config


def edit(path: pathlib.Path, change) -> None:
  config = json.loads(path.read_text())
  change(config)
  path.write_text(json.dumps(config))


def as_before_versions(config: dict) -> None:
  """Removes all that came with version 1."""
  del config["version"], config["data"]["on_error"], config["data"]["interpolation"]
  del config["data"]["photometric_strength"], config["eval"]["statistics"]


def test_all_archived_runs_of_a_plan_are_runs_of_it(repository):
  """As they are stored; the report says the same of each."""
  configs = {
    run.name: run.config()
    for make_plan, scales, _ in plans.FIGURES.values()
    for scale in scales
    for run in make_plan(scale, 3).runs
  }
  compared, lacking = 0, 0
  for path in (repository / "results").rglob("config.json"):
    name = "/".join(path.parent.relative_to(repository / "results").parts[1:])
    if name in configs:
      compared += 1
      lacking += "on_error" not in json.loads(path.read_text())["data"]
      assert run_directory.changed_fields(path.parent, configs[name]) == [], name
      execution._check_unchanged(path.parent, configs[name])  # pylint: disable=protected-access
  assert compared >= 100 and lacking >= 12
  text = str(page._runs(measured.collect(repository / "results" / "sweep")))  # pylint: disable=protected-access
  assert "mnist/sweep/mnist_bn/rate_3" in text and "made with another config" not in text


def test_an_archived_run_is_the_same_plan_after_a_key_is_added(archived, new_key):
  assert json.loads(run_directory.config_path(archived).read_text()).get("version") is None
  assert run_directory.changed_fields(archived, planned()) == []
  config = run_directory.read_config(archived)
  assert config.version == NEW.version and config.model.fictitious == (3, 4)
  assert (config.data.interpolation, config.eval.statistics) == ("bilinear", ("running", "population", "batch"))
  config_checks.check_config(config, 1)


@pytest.mark.parametrize(
  "change, expected",
  [
    (lambda config: config["model"].update(fictitious=[3, 5]), ["model.fictitious"]),
    (lambda config: config.update(learning_rate=7.0), ["learning_rate"]),
    (lambda config: config["data"].pop("shuffle"), ["data.shuffle"]),
    (lambda config: config["data"].update(surprise=1), ["data.surprise"]),
    (lambda config: config["data"].update(on_error="skip"), ["data.on_error"]),
    (
      lambda config: config.update(version=1),
      ["data.interpolation", "data.on_error", "data.photometric_strength", "eval.statistics"],
    ),  # Version 1 has them.
  ],
)
def test_nothing_else_is_taken_for_the_same(archived, tmp_path, new_key, change, expected):
  shutil.copytree(archived, tmp_path / "run")
  edit(tmp_path / "run" / "config.json", change)
  assert run_directory.changed_fields(tmp_path / "run", planned()) == expected
  with pytest.raises(config_checks.ConfigError, match=re.escape(f"differs in {', '.join(expected)})")):
    execution._check_unchanged(tmp_path / "run", planned())  # pylint: disable=protected-access


def test_a_key_of_one_network_is_not_given_to_another(repository, new_key):
  path = next((repository / "results" / "figure3").rglob("config.json"))
  assert "fictitious" not in run_directory.read_config(path.parent).model


def test_keys_are_renamed_and_removed(archived, monkeypatch):
  monkeypatch.setattr(versions, "VERSION", 3)
  monkeypatch.setattr(
    versions,
    "CHANGES",
    (*versions.CHANGES, Renamed(2, "data.cache", "input.in_memory"), Removed(3, "model.init_std", 0.1)),
  )
  config = planned()
  config.version = 3
  del config.data["cache"], config.model["init_std"]
  config.input = {"in_memory": True}
  assert run_directory.changed_fields(archived, config) == []
  config.input.in_memory = False
  assert run_directory.changed_fields(archived, config) == ["input.in_memory"]
  monkeypatch.setattr(versions, "CHANGES", (*versions.CHANGES[:-1], Removed(3, "model.init_std", 0.2)))
  with pytest.raises(VersionError, match=r"config.json has model.init_std=0.1, but this code can only do what 0.2 did"):
    run_directory.read_config(archived)


def test_a_run_made_before_a_key_resumes_and_is_evaluated_and_released(digits_dir, tmp_path, monkeypatch):
  """A real run: made today, its config as it was before version 1, then read by the code of today and of tomorrow."""
  device, run, exported = jax.devices()[:1], tmp_path / "run", tmp_path / "released"
  train.train_and_evaluate(small(digits_dir), run, device)
  edit(run / "config.json", as_before_versions)
  today = evaluate.evaluate_run(run, devices=device)
  release_folder.write(release.from_run(run, devices=device), exported)
  edit(exported / "config.json", as_before_versions)
  source = pipeline.open_source(small(digits_dir).data, "test")

  def digest() -> str:
    one = release.read(exported)
    network = evaluate._network("run", one, source.split, False)  # pylint: disable=protected-access
    return evaluate._digest(one, network.program)  # pylint: disable=protected-access

  before = digest()

  # Tomorrow a key is added, in a section that every config has.
  tomorrow = with_field(config_keys.Data, "fictitious", tuple[float, float])
  monkeypatch.setitem(config_keys.Config.__annotations__, "data", tomorrow)
  monkeypatch.setattr(versions, "VERSION", NEW.version)
  monkeypatch.setattr(versions, "CHANGES", (*versions.CHANGES, Added(NEW.version, "data.fictitious", (0.5, 1))))
  assert evaluate.evaluate_run(run, devices=device) == today
  assert release.read(exported).config.data.fictitious == (0.5, 1)
  assert release.from_run(run, devices=device).config.data.fictitious == (0.5, 1)
  assert digest() == before  # An evaluation of it goes on.
  config = small(digits_dir)
  config.data.fictitious, config.num_steps = (0.5, 1), 8
  assert run_directory.changed_fields(run, config) == ["num_steps"]
  summary = train.train_and_evaluate(config, run, device, allow_config_change=True)
  assert (summary["status"], summary["step"]) == ("done", 8)
  stored = json.loads((run / "config.json").read_text())
  assert stored["version"] == NEW.version and stored["data"]["fictitious"] == [0.5, 1]
  assert run_directory.changed_fields(run, config) == []


def test_a_config_of_a_later_version_is_one_sentence(archived, tmp_path):
  run = tmp_path / ARCHIVED
  shutil.copytree(archived, run)
  edit(run / "config.json", lambda config: config.update(version=versions.VERSION + 1))
  sentence = rf"config.json has the config version {versions.VERSION + 1}, and this code knows none after"
  with pytest.raises(VersionError, match=sentence):
    evaluate.evaluate_run(run)
  with pytest.raises(VersionError, match=sentence):
    measured.collect(tmp_path)
  (run / "checkpoints").mkdir()
  with pytest.raises(VersionError, match=sentence):
    release.from_run(run)
  (run / "model.safetensors").write_text("")
  with pytest.raises(release.ReleaseError, match=sentence):
    release.read(run)


def test_a_run_of_a_later_version_is_not_resumed(digits_dir, tmp_path):
  text = json.dumps({"version": versions.VERSION + 1})
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(VersionError, match="this code knows none after"):
    train.train_and_evaluate(small(digits_dir), tmp_path, jax.devices()[:1])
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
  assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("content", ["[]", "3", '{"version": "1"}', '{"version": -1}', '{"data": 3}'])
def test_what_is_no_config_is_damaged(tmp_path, content):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(run_directory.DamagedFileError, match="config.json is damaged"):
    run_directory.read_config(tmp_path)
  with pytest.raises(run_directory.DamagedFileError, match="config.json is damaged"):
    evaluate.evaluate_run(str(tmp_path))


def test_the_archive_keeps_configs_as_they_ran(archived, tmp_path):
  shutil.copytree(archived, tmp_path / "runs" / ARCHIVED)
  archive.archive(str(tmp_path / "runs"), str(tmp_path / "kept"))
  for name in ("config.json", "status.json", "metrics.jsonl"):
    assert (tmp_path / "kept" / "sweep" / ARCHIVED / name).read_bytes() == (archived / name).read_bytes()
