"""The data of a run, in whole runs of a small network: it goes on with its own, and with no others of their name."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from bn_inception import evaluate, hosts, release, run_directory, train
from bn_inception.configs import mnist
from bn_inception.errors import DataError
from bn_inception.evaluators.predictions_file import EvaluationError

BATCH = 8


def write_set(root: pathlib.Path, version: str = "1.0.0", **seeds: int) -> None:
  """Prepares 'own', in place of what is there: noise of 4x4 pixels, of a seed for each split."""
  shutil.rmtree(root / "own" / version, ignore_errors=True)
  splits = {}
  for split, seed in ({"train": 0, "test": 1} | seeds).items():
    images = np.random.default_rng(seed).integers(256, size=(3 * BATCH, 4, 4, 1), dtype=np.uint8)
    splits[split] = [(row, {"image": image, "label": row % 3}) for row, image in enumerate(images)]
  tfds.dataset_builders.store_as_tfds_dataset(
    name="own",
    version=version,
    features=tfds.features.FeaturesDict(
      {"image": tfds.features.Image(shape=(4, 4, 1)), "label": tfds.features.ClassLabel(num_classes=3)}
    ),
    data_dir=str(root),
    disable_shuffling=True,
    split_datasets=splits,
  )


def run(root: pathlib.Path, workdir: pathlib.Path, steps: int) -> None:
  """Trains the newest version of 'own' to a step, from where the run stands."""
  config = mnist.get_config("bn")
  config.data.name, config.data.dir, config.data.num_classes = "own:1.*.*", str(root), 3
  config.data.image_size = config.data.eval_resize = 4
  config.batch_size = config.batch_norm.group_size = config.eval.batch_size = BATCH
  config.model.hidden_units, config.eval.sigmoid_input_units, config.eval.population_batches = 5, (), 3
  config.num_steps, config.steps_per_call, config.log_every, config.eval_every, config.checkpoint_every = (
    steps,
    1,
    1,
    3,
    3,
  )
  train.train_and_evaluate(config, workdir, jax.devices()[:1], allow_config_change=True)


def losses(workdir: pathlib.Path) -> list[float]:
  return [line["train/loss"] for line in run_directory.read_metrics(workdir) if "train/loss" in line]


def content(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_goes_on_with_its_version_when_there_is_a_newer_one(tmp_path):
  """Against a run that was never interrupted, of the time when there was one version."""
  root, whole, cut = tmp_path / "data", tmp_path / "whole", tmp_path / "cut"
  write_set(root)
  run(root, whole, 6)
  run(root, cut, 3)
  results = evaluate.evaluate_run(whole, devices=jax.devices()[:1]), release.from_run(whole, statistics="population")
  write_set(root, "1.1.0", train=2, test=3)
  run(root, cut, 6)
  assert losses(cut) == losses(whole) and len(losses(cut)) == 6
  assert evaluate.evaluate_run(cut, devices=jax.devices()[:1]) == results[0]
  jax.tree.map(
    np.testing.assert_array_equal, release.from_run(cut, statistics="population").variables, results[1].variables
  )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_set_that_was_prepared_again_with_other_data_is_refused_and_the_run_stays_as_it_is(tmp_path, split):
  root, workdir = tmp_path / "data", tmp_path / "run"
  write_set(root)
  run(root, workdir, 3)
  write_set(root, **{split: 9})
  before = content(workdir)
  refused = f"The own:1.0.0 {split} found is not the own:1.0.0 that the run in {workdir} was made with"
  with pytest.raises(DataError, match=refused):
    run(root, workdir, 6)
  with pytest.raises(DataError, match=refused):  # For population statistics it reads training data too.
    evaluate.evaluate_run(workdir, devices=jax.devices()[:1])
  if split == "train":
    with pytest.raises(DataError, match=refused):
      release.from_run(workdir, statistics="population")
  assert content(workdir) == before
  write_set(root)
  run(root, workdir, 6)
  assert len(losses(workdir)) == 6


@pytest.mark.parametrize("split, name", [("train", "data of training"), ("test", "data of evaluation")])
def test_hosts_with_other_data_at_the_same_path_do_not_train_together(tmp_path, monkeypatch, split, name):
  """The second of two hosts has what the first says of itself, and a disk of its own."""
  root, said = tmp_path / "data", []

  def say(own):
    said.append(own)
    raise KeyboardInterrupt

  write_set(root)
  monkeypatch.setattr(hosts, "gather", say)
  with pytest.raises(KeyboardInterrupt):
    run(root, tmp_path / "run", 3)
  for seeds in ({}, {split: 9}):
    write_set(root, **seeds)
    is_compared = lambda own: isinstance(own, list) and any(isinstance(part, dict) for part in own)
    monkeypatch.setattr(hosts, "gather", lambda own: [said[0], own] if is_compared(own) else [own])
    if seeds:
      with pytest.raises(hosts.HostsDifferError, match=f"Process 1 on .* has {name} "):
        run(root, tmp_path / "run", 3)
    else:
      run(root, tmp_path / "run", 3)


def test_an_evaluation_is_not_finished_with_other_data_of_the_same_name(tmp_path):
  """Two folders with one name, one version and as many examples; a copy elsewhere is the same data."""
  write_set(tmp_path / "a")
  run(tmp_path / "a", tmp_path / "run", 3)
  write_set(tmp_path / "b", test=9)
  shutil.copytree(tmp_path / "a", tmp_path / "copy")
  evaluated = lambda place: evaluate.evaluate_checkpoints(
    [str(tmp_path / "run")], str(tmp_path / "out"), data_dir=str(tmp_path / place), devices=jax.devices()[:1]
  )
  first = evaluated("a")
  with pytest.raises(EvaluationError, match="holds another evaluation, which differs in: data_digest;"):
    evaluated("b")
  assert evaluated("copy") == first
