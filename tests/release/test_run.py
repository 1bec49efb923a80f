"""From a run to a release and back: the same bits, the right statistics, labels and metrics."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bn_inception import checkpoint, models, release, run_directory, step as step_lib, train
from bn_inception.configs import bn_x5, mnist
from bn_inception.data import datasets, pipeline
from bn_inception.tools import benchmark_inference

STEPS = 8


def make_config(digits_dir):
  config = mnist.get_config("bn,quickstart")
  config.data.dir = digits_dir
  config.batch_size = config.eval.batch_size = 32
  config.batch_norm.group_size = 8
  config.num_steps, config.log_every, config.eval_every, config.checkpoint_every = STEPS, 4, 8, 4
  config.steps_per_call = 1
  config.eval.population_batches = 3
  config.ema_decay = 0.5
  return config


@pytest.fixture(scope="module")
def workdir(digits_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "mnist"
  train.train_and_evaluate(make_config(digits_dir), path, jax.devices()[:1])
  return path


def stored_state(workdir, step=STEPS):
  """The checkpoint as Orbax alone reads it."""
  with ocp.StandardCheckpointer() as checkpointer:
    return jax.tree.map(np.asarray, checkpointer.restore((workdir / "checkpoints" / str(step) / "state").absolute()))


def assert_same_bits(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def compute_logits(config, variables, images):
  model = models.build(config)
  run = jax.jit(lambda variables: model.apply(variables, step_lib.preprocess(config.data, images), train=False))
  return np.asarray(run(variables))


def loaded_logits(path, images, folded=False):
  model, variables, preprocess = release.load(path, folded=folded)
  return np.asarray(jax.jit(lambda variables: model.apply(variables, preprocess(images), train=False))(variables))


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).integers(256, size=(16, 28, 28, 1), dtype=np.uint8)


@pytest.mark.parametrize("statistics", ["running", "population"])
def test_logits_of_the_release_are_those_of_the_run_bit_for_bit(workdir, images, tmp_path, statistics):
  exported = release.from_run(workdir, statistics=statistics, devices=jax.devices()[:1])
  release.write(exported, tmp_path / "net")
  state, config = stored_state(workdir), run_directory.read_config(workdir)
  variables = {"params": state["ema_params"], "batch_stats": state["batch_stats"]}
  if statistics == "population":
    variables["batch_stats"] = exported.variables["batch_stats"]  # Checked below.
    assert not np.array_equal(variables["batch_stats"]["bn1"]["mean"], state["batch_stats"]["bn1"]["mean"])
  expected = compute_logits(config, variables, images)
  assert np.std(expected) > 0
  np.testing.assert_array_equal(loaded_logits(tmp_path / "net", images), expected)
  assert_same_bits(release.read(tmp_path / "net").variables, variables)
  np.testing.assert_allclose(loaded_logits(tmp_path / "net", images, folded=True), expected, rtol=1e-4, atol=1e-4)


def test_population_statistics_are_those_of_the_runs_evaluation(workdir):
  """The first layer sees the training batches: its moments by NumPy in float64."""
  exported, config = release.from_run(workdir, statistics="population"), run_directory.read_config(workdir)
  kernel = np.asarray(exported.variables["params"]["hidden1"]["kernel"], np.float64)
  means, variances = [], []
  source = pipeline.open_source(config.data, config.data.train_split)
  for _, batch in zip(range(3), pipeline.train_batches(config.data, source, seed=config.seed, batch_size=32)):
    u = (batch["image"].reshape(4, 8, -1) >= 128).astype(np.float64) @ kernel
    means.append(u.mean(1))
    variances.append(u.var(1, ddof=1))
  statistics = exported.variables["batch_stats"]["bn1"]
  np.testing.assert_allclose(statistics["mean"], np.concatenate(means).mean(0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(statistics["var"], np.concatenate(variances).mean(0), rtol=1e-5)
  assert exported.config.release.statistics == "population"


@pytest.mark.parametrize("statistics", ["running", "population"])
def test_metrics_are_those_of_these_weights(workdir, statistics):
  """Recomputed from the released variables over the test images."""
  exported = release.from_run(workdir, statistics=statistics)
  config = exported.config
  right = loss = seen = 0
  source = pipeline.open_source(config.data, config.data.eval_split)
  for batch in pipeline.eval_batches(config.data, source, batch_size=500):
    logits = compute_logits(config, exported.variables, batch["image"]).astype(np.float64)
    labels = batch["label"]
    right += np.sum(logits.argmax(1) == labels)
    loss += np.sum(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels])
    seen += batch["mask"].sum()
  assert exported.metrics["count"] == seen == 1000
  assert exported.metrics["top1"] == pytest.approx(right / seen, abs=0.0011)
  assert exported.metrics["loss"] == pytest.approx(loss / seen, rel=1e-5)


def test_a_step_without_evaluation_has_no_metrics(workdir):
  exported = release.from_run(workdir, step=4)
  assert exported.metrics is None and exported.config.release.step == 4
  assert_same_bits(exported.variables["params"], stored_state(workdir, 4)["ema_params"])


def test_labels_are_the_data_sets(workdir):
  exported = release.from_run(workdir)
  config = run_directory.read_config(workdir)
  assert exported.labels == datasets.open_split(config.data, "test").label_names == tuple("0123456789")


def test_other_data_of_the_same_name_do_not_name_the_classes(workdir, tmp_path, caplog):
  """A newer version may have other classes, or the same in another order."""
  moved = tmp_path / "run"
  shutil.copytree(workdir, moved)
  record = json.loads((moved / "data.json").read_text())
  record["classes"] = record["classes"][::-1]
  (moved / "data.json").write_text(json.dumps(record))
  assert release.from_run(moved).labels == ()
  assert "is not the digits:1.0.0 that the run" in caplog.text


def test_data_is_needed_for_population_statistics_only(workdir, tmp_path):
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["name"] = "other_digits"
  moved = tmp_path / "run"
  shutil.copytree(workdir, moved)
  (moved / "config.json").write_text(json.dumps(config))
  assert release.from_run(moved).labels == ()
  with pytest.raises(datasets.DataError, match="'other_digits' is not prepared"):
    release.from_run(moved, statistics="population")


def test_a_run_directory_can_be_read_and_loaded(workdir, images, tmp_path):
  assert_same_bits(release.read(workdir).variables, release.from_run(workdir).variables)
  release.write(release.from_run(workdir), tmp_path / "net")
  np.testing.assert_array_equal(loaded_logits(workdir, images), loaded_logits(tmp_path / "net", images))


def test_release_of_a_run_can_be_read_again_and_tells_nothing_of_the_machine(workdir, tmp_path):
  exported = release.from_run(workdir, statistics="population")
  release.write(exported, tmp_path / "net")
  again = release.read(tmp_path / "net")
  assert (again.labels, again.metrics, again.torch_layout) == (exported.labels, exported.metrics, ())
  assert exported.config.data.dir and again.config.data.dir == ""
  config = run_directory.read_config(workdir)
  digests = [pipeline.open_source(config.data, split).split.digest for split in ("train", "test")]
  text = (tmp_path / "net" / "README.md").read_text()
  assert all(
    fact in text
    for fact in (
      f"| trained on | digits train: 8 steps of {config.batch_size} images, "
      f"learning rate {config.learning_rate:g}, seed {config.seed} |",
      f"| SHA-256 of the data | train {digests[0][:12]}, test {digests[1][:12]} (",
      "population",
      "on all 1,000 examples of digits test",
      f"{exported.metrics['top1']:.2%}",
      "moving average over steps, decay 0.5",
      "`labels.txt`: 0, ... 9",
      "`python scripts/evaluate.py --checkpoint='this folder'`",
    )
  )
  texts = [file.read_text() for file in (tmp_path / "net").iterdir() if file.suffix != ".safetensors"]
  assert len(texts) == 5 and not any(path in text for text in texts for path in (str(workdir), config.data.dir))


@pytest.mark.parametrize(
  "arguments, error, message",
  [
    (dict(statistics="batch"), release.ReleaseError, "choose one of running, population"),
    (dict(step=5), checkpoint.CheckpointError, "no checkpoint of step 5: there are steps 4, 8"),
  ],
)
def test_what_a_run_does_not_have_is_one_sentence(workdir, arguments, error, message):
  with pytest.raises(error, match=message):
    release.from_run(workdir, **arguments)


def test_damaged_config_of_a_run_is_one_sentence(workdir, tmp_path):
  shutil.copytree(workdir, tmp_path / "run")
  for content in ("{", "[]", "{}", '{"data": 3}', "\0"):
    (tmp_path / "run" / "config.json").write_text(content)
    with pytest.raises(release.ReleaseError, match="config.json is damaged"):
      release.read(tmp_path / "run")


def test_speed_of_a_small_network_is_measured(workdir):
  speeds = benchmark_inference.folded_and_unfolded(workdir, batch_size=4, rounds=3)
  assert len(speeds.folded) == len(speeds.unfolded) == 3 and min(speeds.folded) > 0
  assert re.search(r"unfolded +[\d.]+ +[\d.]+ to [\d.]+\n +folded .*\nFolded is [\d.]+ times as fast", speeds.table())


# --------------------------------------------------------------------------------------------------------- the scripts


def run_script(repository: pathlib.Path, script: str, *arguments: str) -> tuple[int, str, str]:
  result = subprocess.run(
    [sys.executable, f"scripts/{script}.py", *arguments], cwd=repository, capture_output=True, text=True, check=False
  )
  return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--checkpoint=LICENSE", "--step=3"], ["LICENSE is no run directory", "leave out --step"]),
    ([], ["--checkpoint is missing"]),
    (["--workdir=x"], ["--workdir is now called --checkpoint: write --checkpoint=x."]),
    (["--checkpoint=x", "--format=keras"], ["onnx"]),
  ],
)
def test_export_refuses_flags_that_do_not_go_together(repository, tmp_path, arguments, words):
  code, _, error = run_script(repository, "export_checkpoint", *arguments, f"--output={tmp_path / 'net'}")
  assert code == 2 and "Traceback" not in error and not list(tmp_path.iterdir())
  assert all(word in error.strip().splitlines()[-1] for word in words), error


def test_export_of_what_is_no_run_is_one_sentence(repository, tmp_path):
  code, _, error = run_script(
    repository, "export_checkpoint", f"--checkpoint={tmp_path}", f"--output={tmp_path / 'net'}"
  )
  assert code == 2 and "no run directory either" in error and "Traceback" not in error


@pytest.mark.parametrize("script", ["export_checkpoint", "import_checkpoint"])
def test_an_output_that_exists_is_refused_before_anything_is_read(repository, tmp_path, script):
  (tmp_path / "net").write_text("")
  code, _, error = run_script(repository, script, "--checkpoint=nowhere", f"--output={tmp_path / 'net'}")
  assert code == 2 and "net exists already: give another --output" in error.strip().splitlines()[-1]


@pytest.mark.slow
def test_import_names_classes_and_refuses_another_number(repository, goldens, tmp_path):
  names = tmp_path / "names.txt"
  names.write_text("".join(f"class {n}\n" for n in range(999)))
  arguments = [f"--checkpoint={goldens['torch'].path}", f"--labels={names}", f"--output={tmp_path / 'net'}"]
  code, _, error = run_script(repository, "import_checkpoint", *arguments)
  assert code == 2 and "names 999 classes, but the network has 1000" in error and not (tmp_path / "net").exists()
  with names.open("a") as file:
    file.write("class 999\n")
  code, _, error = run_script(repository, "import_checkpoint", *arguments)
  assert code == 0, error
  assert release.read(tmp_path / "net").labels[999] == "class 999"


@pytest.mark.slow
def test_small_inception_with_heads_and_per_activation(digits_dir, tmp_path):
  """What a release leaves out and what cannot be folded."""
  config = bn_x5.get_config("quickstart").copy_and_resolve_references()
  config.data.dir, config.num_steps, config.eval_every, config.checkpoint_every = digits_dir, 2, 2, 2
  config.eval.population_batches = 1
  config.model.auxiliary_heads, config.batch_norm.per_activation = ("4a",), ("5a", "5b")
  train.train_and_evaluate(config, tmp_path / "run", jax.devices()[:1])
  images = np.random.default_rng(0).integers(256, size=(4, 28, 28, 1), dtype=np.uint8)
  for statistics in ("running", "population"):
    exported = release.from_run(tmp_path / "run", statistics=statistics, devices=jax.devices()[:1])
    release.write(exported, tmp_path / statistics)
    state = stored_state(tmp_path / "run", 2)
    variables = {"params": state["params"], "batch_stats": exported.variables["batch_stats"]}
    assert "auxiliary_4a" in state["params"] and "auxiliary_4a" not in exported.variables["params"]
    np.testing.assert_array_equal(
      loaded_logits(tmp_path / statistics, images), compute_logits(config, variables, images)
    )
    with pytest.raises(release.ReleaseError, match="inception_5a/1x1 has BN per activation"):
      release.load(tmp_path / statistics, folded=True)


@pytest.mark.slow
def test_documented_settings_train_a_network_for_pytorch(repository, shared, tmp_path):
  """The overrides of docs/released_networks.md, at 32 pixels for two steps, up to the file."""
  page = (repository / "docs" / "released_networks.md").read_text()
  overrides = re.findall(r"--config\.[\w.]+=(?:'[^']*'|\S+)", page[page.index("## Train a network for PyTorch") :])
  assert len(overrides) >= 9
  overrides = [word.replace("'", "") for word in overrides if "data.dir" not in word]
  code, _, error = run_script(
    repository,
    "train",
    "--config=configs/bn_x5.py:cifar10",
    *overrides,
    "--config.model.width=1.0",
    "--config.num_steps=2",
    "--config.eval_every=2",
    "--config.checkpoint_every=2",
    "--config.eval.batch_size=32",
    "--config.data.eval_split=test[:32]",
    "--config.eval.population_batches=1",
    f"--config.data.dir={shared / 'data' / 'tfds'}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert code == 0, error
  output = tmp_path / "net.pth"
  code, _, error = run_script(
    repository,
    "export_checkpoint",
    f"--checkpoint={tmp_path / 'run'}",
    "--statistics=population",
    "--format=torch",
    f"--output={output}",
  )
  assert code == 0, error
  back, own = (
    release.read(output),
    release.from_run(tmp_path / "run", statistics="population", devices=jax.devices()[:1]),
  )
  images = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
  logits = [compute_logits(one.config, one.variables, images) for one in (back, own)]
  np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)
