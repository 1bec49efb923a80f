"""Evaluation of networks and ensembles from their files to the written predictions, on the embedded digits."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from bn_inception import models, release
from bn_inception.configs import bn_x5, mnist
from bn_inception.data import datasets
from bn_inception.evaluate import evaluate_checkpoints, evaluate_run
from bn_inception.evaluators import prediction
from bn_inception.evaluators.predictions_file import EvaluationError
from tests.data.conftest import prepare_pictures  # noqa: F401

DIGITS = tuple(map(str, range(10)))


def make_release(folder, seed, names=DIGITS, classes=10, network="plain", init_std=0.4, **data):
  """A network with random weights, large enough to have an opinion."""
  config = mnist.get_config(f"{network},quickstart").copy_and_resolve_references()
  config.data.binary = False
  config.data.num_classes = classes
  config.data.update(data)
  config.model.init_std = init_std
  config.model.hidden_units = 12
  config.release = ConfigDict({"source": "a test", "classes": "digits", "statistics": "running", "published": "none"})
  size, channels = config.data.image_size, len(config.data.mean)
  variables = models.build(config).init(jax.random.key(seed), jnp.zeros((1, size, size, channels)), train=False)
  variables = jax.tree.map(np.asarray, {name: variables.get(name, {}) for name in ("params", "batch_stats")})
  release.write(release.Release(config, variables, names), folder)
  return str(folder)


def make_inception(folder, **batch_norm):
  """A narrow Inception for the digits."""
  config = bn_x5.get_config("quickstart").copy_and_resolve_references()
  config.batch_norm.update(batch_norm)
  config.release = ConfigDict({"source": "a test", "classes": "digits", "statistics": "running", "published": "none"})
  variables = models.build(config).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
  variables = {name: variables[name] for name in ("params", "batch_stats")}
  release.write(release.Release(config, variables, DIGITS), folder)
  return str(folder)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
  folder = tmp_path_factory.mktemp("networks")
  return [make_release(folder / "a", 0), make_release(folder / "b", 1, network="bn")]


def lines(folder):
  return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def stored_test_split(digits_dir):
  split = datasets.open_split(ConfigDict({"name": "digits", "dir": digits_dir}), "test")
  examples = tfds.builder_from_directory(os.path.dirname(split.files[0])).as_data_source("test")
  return [(example["image"][..., 0], int(example["label"])) for example in examples]


def logits_by_hand(one, pixels):
  """Of one crop, [H, W] in 0 to 255, by a network that was read; NumPy float64."""
  parameters = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), one.variables["params"])
  x = ((pixels - 127.5) / 127.5).reshape(-1)
  for layer in (1, 2, 3):
    dense = parameters[f"hidden{layer}"]
    x = x @ dense["kernel"] + dense.get("bias", 0)
    if f"bn{layer}" in parameters:
      norm, statistics = parameters[f"bn{layer}"], one.variables["batch_stats"][f"bn{layer}"]
      x = norm["gamma"] * (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-3) + norm["beta"]
    x = 1 / (1 + np.exp(-x))
  return x @ parameters["logits"]["kernel"] + parameters["logits"]["bias"]


def softmax(logits):
  return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def crops_by_hand(image):
  """10 crops of a 28x28 image: 32x32 by PIL, corners and centre, mirrored."""
  whole = np.asarray(Image.fromarray(image.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR))
  whole = np.clip(np.round(whole), 0, 255)
  crops = [whole[top : top + 28, left : left + 28] for top, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
  return crops + [crop[:, ::-1] for crop in crops]


@pytest.mark.parametrize("crops", [1, 10])
def test_ensemble_is_the_mean_of_probabilities_one_crop_at_a_time(paths, digits_dir, tmp_path, crops):
  metrics = evaluate_checkpoints(paths, str(tmp_path), data_dir=digits_dir, split="test[:60]", crops=crops)
  result = lines(tmp_path)
  networks = [release.read(path) for path in paths]
  right1 = right5 = 0
  for (image, label), line in zip(stored_test_split(digits_dir), result):
    views = [image] if crops == 1 else crops_by_hand(image)
    mean = np.mean([softmax(logits_by_hand(one, view)) for view in views for one in networks], axis=0)
    order = np.argsort(-mean)
    right1 += label == order[0]
    right5 += label in order[:5]
    # A pixel that PIL and TensorFlow round differently moves a probability by 1e-4.
    tolerance = 2e-6 if crops == 1 else 2e-4
    assert line["label"] == label
    np.testing.assert_allclose(line["probability"], np.sort(mean)[::-1][:5], atol=tolerance)
    np.testing.assert_allclose(line["label_probability"], mean[label], atol=tolerance)
    if np.diff(np.sort(mean)).min() > 1e-3:
      assert line["top5"] == order[:5].tolist()
  assert len(result) == metrics["count"] == 60
  assert metrics["top1_error"] == pytest.approx(1 - right1 / 60, abs=1 / 59 if crops == 10 else 1e-9)
  assert metrics["top5_error"] == pytest.approx(1 - right5 / 60, abs=1 / 59 if crops == 10 else 1e-9)
  assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


@pytest.fixture(scope="module")
def of_203(paths, digits_dir, tmp_path_factory):
  """An evaluation of 203 examples with the usual batches on all devices: its folder and its metrics."""
  folder = tmp_path_factory.mktemp("of_203")
  return folder, evaluate_checkpoints(paths, str(folder), data_dir=digits_dir, split="test[:203]", crops=10)


@pytest.mark.parametrize("batch_size,devices", [(size, devices) for size in (1, 7, 64) for devices in (1, 4, 8)])
def test_metrics_do_not_depend_on_batch_size_or_devices(paths, digits_dir, tmp_path, of_203, batch_size, devices):
  """203 is divided by no batch."""
  metrics = evaluate_checkpoints(
    paths,
    str(tmp_path),
    data_dir=digits_dir,
    split="test[:203]",
    crops=10,
    batch_size=batch_size,
    devices=jax.devices()[:devices],
  )
  folder, expected = of_203
  assert metrics["count"] == 203
  assert (metrics["top1_error"], metrics["top5_error"]) == (expected["top1_error"], expected["top5_error"])
  assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-6)
  for one, two in zip(lines(tmp_path), lines(folder), strict=True):
    assert one["id"] == two["id"] and one["top5"] == two["top5"]
    np.testing.assert_allclose(one["probability"], two["probability"], atol=1e-6)


def permuted(path, folder, order, names):
  """The same network with its outputs in another order, and a background output before them."""
  one = release.read(path)
  kernel, bias = (one.variables["params"]["logits"][name] for name in ("kernel", "bias"))
  logits = {
    "kernel": np.concatenate([np.ones((12, 1), np.float32), kernel[:, order]], 1),
    "bias": np.concatenate([np.full(1, 5, np.float32), bias[order]]),
  }
  one.config.data.num_classes = len(names)
  variables = one.variables | {"params": one.variables["params"] | {"logits": logits}}
  release.write(one._replace(variables=variables, labels=names), folder)
  return str(folder)


def test_outputs_are_found_by_their_names(paths, digits_dir, tmp_path):
  """A background output and an order of its own change nothing: probabilities are those of the set's classes."""
  order = np.random.default_rng(0).permutation(10)
  other = permuted(paths[0], tmp_path / "other", order, ("background", *(str(digit) for digit in order)))
  arguments = {"data_dir": digits_dir, "split": "test[:50]"}
  expected = evaluate_checkpoints(paths[:1], str(tmp_path / "one"), **arguments)
  assert evaluate_checkpoints([other], str(tmp_path / "two"), **arguments)["loss"] == pytest.approx(
    expected["loss"], rel=1e-6
  )
  # As members of one ensemble, too.
  both = evaluate_checkpoints([paths[0], other], str(tmp_path / "three"), **arguments)
  assert both["loss"] == pytest.approx(expected["loss"], rel=1e-6)
  assert both["top1_error"] == expected["top1_error"]


@pytest.mark.parametrize("others", [0, 1])
def test_an_address_on_the_hub_is_evaluated_as_its_snapshot(paths, digits_dir, tmp_path, monkeypatch, others):
  monkeypatch.chdir(tmp_path)  # Where the default --output is.
  hub = types.SimpleNamespace(snapshot_download=lambda *_, **__: paths[0])
  monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
  arguments = {"data_dir": digits_dir, "split": "test[:50]"}
  others = paths[1 : 1 + others]
  expected = evaluate_checkpoints([paths[0], *others], "here", **arguments)
  assert evaluate_checkpoints(["hf://user/net", *others], **arguments) == expected
  (folder,) = (tmp_path / "evaluations").iterdir()
  assert others or folder.name.startswith("net-digits-")
  networks = json.loads((folder / "request.json").read_text())["networks"]
  assert networks[0]["path"] == "hf://user/net"
  assert [network["sha256"] for network in networks] == [
    network["sha256"] for network in json.loads((tmp_path / "here" / "request.json").read_text())["networks"]
  ]


def test_folded_networks_predict_the_same(paths, digits_dir, tmp_path):
  arguments = {"data_dir": digits_dir, "split": "test[:50]"}
  expected = evaluate_checkpoints(paths, str(tmp_path / "one"), **arguments)
  folded = evaluate_checkpoints(paths, str(tmp_path / "two"), folded=True, **arguments)
  assert folded["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_resumption_predicts_no_example_twice(paths, digits_dir, tmp_path, monkeypatch):
  arguments = {"data_dir": digits_dir, "split": "test[:90]", "batch_size": 16}
  expected = evaluate_checkpoints(paths, str(tmp_path / "whole"), **arguments)
  seen = []
  predict = prediction.predict

  def watched(networks, batches, mesh, batch_size, stop):
    for number, part in enumerate(predict(networks, batches, mesh, batch_size)):
      if number == stop:
        raise KeyboardInterrupt
      seen.append(int(part.mask.sum()))
      yield part

  for stop in (2, 1, None):
    monkeypatch.setattr(prediction, "predict", lambda *args, stop=stop: watched(*args, stop))
    try:
      metrics = evaluate_checkpoints(paths, str(tmp_path / "cut"), **arguments)
    except KeyboardInterrupt:
      # As a kill in the middle of a line.
      with (tmp_path / "cut" / "predictions.jsonl").open("a") as file:
        file.write('{"id": "test:')
  assert metrics == expected and sum(seen) == 90
  assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
  # Done: nothing is predicted again.
  assert evaluate_checkpoints(paths, str(tmp_path / "cut"), **arguments) == expected and sum(seen) == 90


def test_another_network_or_question_does_not_continue_an_evaluation(paths, digits_dir, tmp_path):
  arguments = {"data_dir": digits_dir, "split": "test[:10]"}
  evaluate_checkpoints(paths[:1], str(tmp_path / "out"), **arguments)
  changes = (
    ({"crops": 10}, "crops"),
    ({"split": "test[:11]"}, "data_digest, split, examples"),
    ({"folded": True}, "folded"),
  )
  for change, name in changes:
    with pytest.raises(EvaluationError, match=f"another evaluation, which differs in: {name}"):
      evaluate_checkpoints(paths[:1], str(tmp_path / "out"), **arguments | change)
  with pytest.raises(EvaluationError, match="differs in: networks"):
    evaluate_checkpoints(paths[1:], str(tmp_path / "out"), **arguments)


def test_what_does_not_fit_is_said_before_anything_is_written(paths, digits_dir, tmp_path, prepare_pictures):  # noqa: F811
  out = str(tmp_path / "out")
  other_size = make_release(tmp_path / "size", 2, image_size=20, eval_resize=20)
  with pytest.raises(EvaluationError, match="do not see the same images, their data.image_size are 28 and 20"):
    evaluate_checkpoints([paths[0], other_size], out, data_dir=digits_dir)
  other_names = make_release(tmp_path / "names", 2, names=("cat", *DIGITS[1:]))
  with pytest.raises(EvaluationError, match=r"names has no output for 0 of digits:1.0.0 \(1 of 10 classes"):
    evaluate_checkpoints([other_names], out, data_dir=digits_dir)
  unnamed = make_release(tmp_path / "few", 2, names=(), classes=4)
  image = Image.fromarray(np.zeros((28, 28, 3), np.uint8))
  image.save(tmp_path / "image.png")
  folder = prepare_pictures([(tmp_path / "image.png").read_bytes()], [0])
  with pytest.raises(EvaluationError, match="does not take the images of pictures:2.3.4, which have 3 channels"):
    evaluate_checkpoints([paths[0]], out, data_dir=str(folder), dataset="pictures", split="train")
  with pytest.raises(EvaluationError, match="no split that is called validation or test: give --split as one of train"):
    evaluate_checkpoints([paths[0]], out, data_dir=str(folder), dataset="pictures")
  with pytest.raises(EvaluationError, match="has 4 outputs, whose names it does not tell"):
    evaluate_checkpoints([unnamed], out, data_dir=digits_dir)
  with pytest.raises(EvaluationError, match="is no run directory, .* has running averages: leave out --statistics"):
    evaluate_checkpoints([paths[0]], out, data_dir=digits_dir, statistics="population")
  assert not (tmp_path / "out").exists()


def test_an_evaluation_is_of_the_statistics_that_a_release_has(digits_dir, tmp_path):
  path = make_inception(tmp_path / "inception")
  config = json.loads((tmp_path / "inception" / "config.json").read_text())
  config["release"]["statistics"] = "population"  # As `export_checkpoint.py --statistics=population` writes it.
  (tmp_path / "inception" / "config.json").write_text(json.dumps(config))
  for statistics in ("running", "population"):
    evaluate_checkpoints(
      [path], str(tmp_path / statistics), data_dir=digits_dir, split="test[:10]", statistics=statistics
    )
    assert json.loads((tmp_path / statistics / "request.json").read_text())["statistics"] == "population"


def test_noise_cannot_be_evaluated(paths, tmp_path):
  with pytest.raises(datasets.DataError, match="'fake' is noise"):
    evaluate_checkpoints(paths, str(tmp_path / "out"), dataset="fake", split="test")
  assert not (tmp_path / "out").exists()


def test_what_cannot_be_folded_or_has_no_path_is_one_sentence(paths, digits_dir, tmp_path):
  out = str(tmp_path / "out")
  for wrong in ([], [paths[0], ""]):
    with pytest.raises(EvaluationError, match="A network has no path"):
      evaluate_checkpoints(wrong, out, data_dir=digits_dir)
  inception_path = make_inception(tmp_path / "inception", per_activation=("5b",))
  with pytest.raises(EvaluationError, match="inception: inception_5b/1x1 has BN per activation, .* unfolded.$"):
    evaluate_checkpoints([inception_path], out, data_dir=digits_dir, folded=True)
  assert not (tmp_path / "out").exists()


def test_a_record_that_is_no_image_is_skipped_and_counted(tmp_path, prepare_pictures):  # noqa: F811
  """Also where it is the only one of its batch."""
  path = make_release(tmp_path / "rgb", 0, names=("0", "1", "2"), classes=3, mean=(127.5,) * 3, std=(127.5,) * 3)
  Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(tmp_path / "image.png")
  image = (tmp_path / "image.png").read_bytes()
  data_dir = str(prepare_pictures([image, b"no image", image, b"neither"], [0, 1, 2, 0]))
  arguments = {"data_dir": data_dir, "dataset": "pictures", "split": "train", "crops": 10}
  with pytest.raises(datasets.DataError, match="cannot be decoded"):
    evaluate_checkpoints([path], str(tmp_path / "out"), **arguments)
  for batch_size in (1, 40):
    metrics = evaluate_checkpoints(
      [path],
      str(tmp_path / f"out{batch_size}"),
      on_error="skip",
      batch_size=batch_size,
      devices=jax.devices()[:1],
      **arguments,
    )
    assert (metrics["count"], metrics["skipped"]) == (2, 2)


def test_metrics_are_json_also_where_a_label_has_no_probability_at_all(digits_dir, tmp_path):
  """JSON has no number for an infinite loss: a strict reader, as jq or a browser, refuses `Infinity`."""
  certain = make_release(tmp_path / "certain", 0, init_std=1e4)
  metrics = evaluate_checkpoints([certain], str(tmp_path / "out"), data_dir=digits_dir, split="test[:20]")
  assert 0 in [line["label_probability"] for line in lines(tmp_path / "out")] and metrics["loss"] == np.inf

  def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")

  written = json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=refuse)
  assert written == metrics | {"loss": "inf"}


def test_a_network_whose_settings_changed_does_not_continue_an_evaluation(paths, digits_dir, tmp_path):
  """The same weights at the same place, but another preprocessing, or other names of the outputs."""
  arguments = {"data_dir": digits_dir, "split": "test[:10]"}
  evaluate_checkpoints([make_release(tmp_path / "net", 0)], str(tmp_path / "out"), **arguments)
  for change in ({"mean": (100.0,)}, {"names": DIGITS[::-1]}):
    shutil.rmtree(tmp_path / "net")
    with pytest.raises(EvaluationError, match="differs in: networks"):
      evaluate_checkpoints([make_release(tmp_path / "net", 0, **change)], str(tmp_path / "out"), **arguments)


def test_any_number_of_labels(tmp_path, prepare_pictures):  # noqa: F811
  """As imagenet2012_real: right is any of them, and examples without do not count."""
  path = make_release(tmp_path / "rgb", 0, mean=(127.5,) * 3, std=(127.5,) * 3)
  rng = np.random.default_rng(0)
  labels = [rng.permutation(10)[:count].tolist() for count in (1, 0, 3, 2, 0, 5, 4, 1)]
  files = []
  for number in range(len(labels)):
    Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).save(tmp_path / f"{number}.png")
    files.append((tmp_path / f"{number}.png").read_bytes())
  data_dir = str(prepare_pictures(files, labels))
  metrics = evaluate_checkpoints(
    [path], str(tmp_path / "out"), data_dir=data_dir, dataset="reassessed_pictures", split="train"
  )
  by_id = {line["id"]: line for line in lines(tmp_path / "out")}
  assert [by_id[f"val_{row:04}.JPEG"]["label"] for row in range(8)] == labels
  right = [by_id[f"val_{row:04}.JPEG"]["top5"][0] in labels[row] for row in range(8) if labels[row]]
  assert metrics["top1_error"] == pytest.approx(1 - np.mean(right))
  assert (metrics["count"], metrics["without_label"]) == (6, 2) and "loss" not in metrics


def test_batches_for_statistics_that_are_not_evaluated_are_refused(tmp_path):
  """Before the data or a checkpoint is looked for."""
  (tmp_path / "config.json").write_text(mnist.get_config("plain,quickstart").to_json())
  with pytest.raises(EvaluationError, match="--population_batches has no use: leave it out"):
    evaluate_run(str(tmp_path), population_batches=4, devices=jax.devices()[:1])


def script(repository, *arguments, **kwargs):
  return [sys.executable, "scripts/evaluate.py", *arguments], {
    "cwd": repository,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.PIPE,
    "text": True,
    "env": os.environ | {"PYTHONPATH": str(repository)},
    **kwargs,
  }


@pytest.mark.parametrize(
  "arguments,sentence",
  [
    ([], "Give either --workdir or --checkpoint."),
    (["--workdir=a", "--checkpoint=b"], "Give either --workdir or --checkpoint."),
    (
      ["--workdir=a", "--crops=10"],
      "--crops goes with --checkpoint: write --checkpoint in place of --workdir, or leave --crops out.",
    ),
    (
      ["--checkpoint=a", "--step=3"],
      "--step goes with --workdir: write --workdir in place of --checkpoint, or leave --step out.",
    ),
    (["--checkpoint="], "A path of --checkpoint is empty: give a path."),
    (["--workdir="], "--workdir is empty: give a path."),
    (["--checkpoint=a", "--crops=9"], "should be one of <1|10|144>"),
    (["--checkpoint=nowhere"], "nowhere cannot be read: No such file or directory."),
  ],
)
def test_script_says_in_one_sentence_what_is_wrong(repository, arguments, sentence):
  command, options = script(repository, *arguments)
  result = subprocess.run(command, check=False, **options)
  assert result.returncode == 2 and "Traceback" not in result.stderr
  assert sentence in result.stderr.strip().splitlines()[-1]


@pytest.mark.slow  # Resumption within a process is tested above.
def test_killed_script_resumes(repository, paths, digits_dir, tmp_path):
  """SIGKILL while it predicts; then the same command ends with every example once."""
  command, options = script(
    repository,
    f"--checkpoint={','.join(paths)}",
    f"--data_dir={digits_dir}",
    "--batch_size=1",
    "--crops=10",
    f"--output={tmp_path / 'out'}",
  )
  predictions = tmp_path / "out" / "predictions.jsonl"
  process = subprocess.Popen(command, **options)
  deadline = time.monotonic() + 300
  while not (predictions.exists() and predictions.read_bytes().count(b"\n") > 20):
    assert time.monotonic() < deadline and process.poll() is None, process.communicate()
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  before = predictions.read_bytes().count(b"\n")
  assert 20 < before < 1000
  result = subprocess.run(command, check=False, **options)
  assert result.returncode == 0, result.stderr
  assert f"{before} images are done already" in result.stdout
  assert [line["id"] for line in lines(tmp_path / "out")] == [f"test:{index}" for index in range(1000)]
  assert "1,000 examples" in result.stdout and "top-5" in result.stdout


def two_processes(repository, paths, digits_dir, output, own) -> list[subprocess.Popen]:
  """The script as two processes of two devices each; `own` are the arguments of each alone."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  started = []
  for process, argument in enumerate(own):
    command, options = script(
      repository,
      f"--checkpoint={','.join(paths)}",
      f"--data_dir={digits_dir}",
      "--split=test[:101]",
      "--crops=10",
      f"--output={output}",
      argument,
      f"--coordinator=127.0.0.1:{port}",
      "--processes=2",
      f"--process_id={process}",
    )
    options["env"]["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    started.append(subprocess.Popen(command, **options))
  return started


@pytest.mark.slow
def test_two_processes_that_were_started_differently_end_before_anything_is_written(
  repository, paths, digits_dir, tmp_path
):
  own = ["--batch_size=60", "--batch_size=40"]
  for process in two_processes(repository, paths, digits_dir, tmp_path / "out", own):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "has batch_size 40, but process 0 on" in output, output + errors
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_predict_as_one(repository, paths, digits_dir, tmp_path):
  """Each on its own images, resumed once, beside one process on one device."""
  arguments = {"data_dir": digits_dir, "split": "test[:101]", "crops": 10}
  expected = evaluate_checkpoints(paths, str(tmp_path / "alone"), devices=jax.devices()[:1], **arguments)
  (tmp_path / "together").mkdir()
  (tmp_path / "together" / "request.json").write_text((tmp_path / "alone" / "request.json").read_text())
  half = (tmp_path / "alone" / "predictions.jsonl").read_text().splitlines(keepends=True)[:50]
  (tmp_path / "together" / "predictions.jsonl").write_text("".join(half))
  for process in two_processes(repository, paths, digits_dir, tmp_path / "together", ["--batch_size=60"] * 2):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
  metrics = json.loads((tmp_path / "together" / "metrics.json").read_text())
  assert metrics == pytest.approx(expected, rel=1e-6) and metrics["count"] == 101
  for one, two in zip(lines(tmp_path / "together"), lines(tmp_path / "alone"), strict=True):
    assert one["id"] == two["id"] and one["top5"] == two["top5"]


def test_predictions_have_the_names_that_people_use_and_the_table_is_shown(tmp_path, caplog):
  """Of a set whose classes are WordNet ids, with a network that has them in another order."""
  rng = np.random.default_rng(0)
  tfds.dataset_builders.store_as_tfds_dataset(
    name="animals",
    version="1.0.0",
    features=tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(28, 28, 1)),
        "label": tfds.features.ClassLabel(names=["n01440764", "n02119789"]),
      }
    ),
    data_dir=str(tmp_path),
    split_datasets={
      "test": [
        (row, {"image": rng.integers(256, size=(28, 28, 1), dtype=np.uint8), "label": row % 2}) for row in range(12)
      ]
    },
  )
  network = make_release(tmp_path / "net", 0, names=("n02119789", "n01440764"), classes=2)
  with caplog.at_level("INFO", "bn_inception"):
    metrics = evaluate_checkpoints([network], str(tmp_path / "out"), data_dir=str(tmp_path), dataset="animals")
  for line in lines(tmp_path / "out"):
    assert line["names"] == [("tench", "kit fox")[label] for label in line["top5"]] and len(line["names"]) == 2
  error = metrics["top1_error"]
  assert 0 < error < 1 and metrics["count"] == 12
  (row,) = (text for text in caplog.text.splitlines() if f"{1 - error:.2%}" in text)
  assert f"{error:.2%} \N{PLUS-MINUS SIGN}{np.sqrt(error * (1 - error) / 12):.2%}" in row
