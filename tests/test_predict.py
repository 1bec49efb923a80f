"""Predictions of image files: against the network applied by hand, and what an evaluation makes of the same files."""

import csv
import json
import logging
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from bn_inception import predict, release
from bn_inception.configs import bn_x5
from bn_inception.data import evaluation_crops
from tests.data.test_own_images import save_turned
from tests.release.test_features import make_release

LABELS = ("background", "n01440764", "n02119789", "cat", "dog", "a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
  """A release of a small network for colours, some of whose classes are of ImageNet."""
  config = bn_x5.get_config("quickstart").copy_and_resolve_references()
  config.model.width, config.data.eval_resize = 0.1, 32
  config.data.mean, config.data.std = (100.0, 110.0, 120.0), (60.0, 50.0, 40.0)
  path = tmp_path_factory.mktemp("release") / "small"
  release.write(make_release(config)._replace(labels=LABELS), path)
  return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("photographs")
  (folder / "inner").mkdir()
  rng = np.random.default_rng(0)
  for number, name in enumerate(("a.jpg", "inner/b.png", "c.JPG")):
    pixels = np.kron(rng.integers(256, size=(4, 6 + number, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))
    Image.fromarray(pixels).save(folder / name)
  save_turned(folder / "turned.jpg", 6, Image.open(folder / "a.jpg"))
  (folder / "notes.txt").write_text("not asked for")
  return folder


def by_hand(checkpoint, path) -> tuple[np.ndarray, np.ndarray]:
  """Probabilities without the background's, and `pooled`, of a file that is upright."""
  model, variables, preprocess = release.load(checkpoint)
  crop = evaluation_crops.centre_crop(path.read_bytes(), size=28, resize=32, channels=3).numpy()
  with jax.default_matmul_precision("highest"):
    logits = np.asarray(model.apply(variables, preprocess(crop[None]), train=False), np.float64)[0, 1:]
    pooled = release.features(model, variables, preprocess(crop[None]), ["pooled"])["pooled"][0]
  return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum(), np.asarray(pooled)


def test_predictions_are_those_of_the_network_applied_by_hand(checkpoint, photographs, tmp_path):
  assert predict.write_predictions(checkpoint, [photographs], tmp_path / "x.csv", top=3, features="pooled") == 0
  predict.write_predictions(checkpoint, [photographs], tmp_path / "x.jsonl", top=3, features="pooled")
  predict.write_predictions(checkpoint, [photographs], tmp_path / "x.npz", top=3, features="pooled")
  rows = list(csv.DictReader((tmp_path / "x.csv").open()))
  lines = [json.loads(line) for line in (tmp_path / "x.jsonl").open()]
  arrays = np.load(tmp_path / "x.npz")
  files = ["a.jpg", "c.JPG", "inner/b.png", "turned.jpg"]
  assert [row["image"] for row in rows] == [str(photographs / name) for name in files]
  for place, name in enumerate(files[:3]):
    probabilities, pooled = by_hand(checkpoint, photographs / name)
    likeliest = np.argsort(-probabilities)[:3]
    expected = [LABELS[1 + output] for output in likeliest]
    assert [rows[place][f"class_{rank}"] for rank in (1, 2, 3)] == expected
    assert lines[place]["classes"] == expected == arrays["classes"][place].tolist()
    human = {"n01440764": "tench", "n02119789": "kit fox"}
    assert lines[place]["names"] == [human.get(name, name) for name in expected]
    np.testing.assert_allclose(arrays["probabilities"][place], probabilities[likeliest], rtol=1e-4)
    np.testing.assert_allclose(float(rows[place]["probability_1"]), probabilities[likeliest[0]], rtol=1e-4)
    np.testing.assert_allclose(arrays["features"][place], pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lines[place]["features"], pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(float(rows[place]["feature_0"]), pooled[0], rtol=1e-4, atol=1e-5)
  # A picture that lies on its side is stood up: nearly that of the upright file, and another than without.
  assert lines[3]["classes"] == lines[0]["classes"]
  np.testing.assert_allclose(arrays["features"][3], arrays["features"][0], atol=0.1 * arrays["features"][0].max())
  assert np.abs(by_hand(checkpoint, photographs / "turned.jpg")[1] - arrays["features"][0]).max() > 0.2


def test_unreadable_images_are_named_and_counted(checkpoint, photographs, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("bn_inception"), "propagate", True)
  (tmp_path / "cut.jpg").write_bytes((photographs / "a.jpg").read_bytes()[:200])
  (tmp_path / "empty.png").touch()
  given = [tmp_path / "cut.jpg", photographs / "a.jpg", tmp_path / "empty.png", photographs / "notes.txt"]
  assert predict.write_predictions(checkpoint, given, tmp_path / "x.csv") == 3
  assert all(f"Skipped: {path}" in caplog.text for path in given if path.name != "a.jpg")
  assert len(list(csv.reader((tmp_path / "x.csv").open()))) == 2
  with pytest.raises(predict.PredictError, match="None of the 2 images"):
    predict.write_predictions(checkpoint, [tmp_path / "cut.jpg", tmp_path / "empty.png"], tmp_path / "y.csv")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.jpg", "empty.png", "x.csv"]


def test_batches_do_not_change_results(checkpoint, photographs, monkeypatch):
  together = predict.predict_files(checkpoint, [photographs])
  monkeypatch.setattr(predict, "_BATCH", 3)  # The last of one image.
  apart = predict.predict_files(checkpoint, [photographs])
  assert apart.images == together.images and apart.probabilities.shape == (4, 5)
  np.testing.assert_allclose(apart.probabilities, together.probabilities, rtol=1e-4)


@pytest.mark.parametrize(
  "images, output, features, words",
  [
    (".", "x.txt", None, [".csv, .jsonl, .npz"]),
    ("missing.jpg", "x.csv", None, ["missing.jpg", "does not exist"]),
    (".", "no/x.csv", None, ["does not exist"]),
    (".", "x.csv", "pool", ["no features 'pool'", "pooled"]),
    (".", "x.csv", "conv1", ["vectors", ".npz"]),
  ],
)
def test_what_cannot_be_predicted_is_said(checkpoint, photographs, tmp_path, images, output, features, words):
  with pytest.raises(predict.PredictError) as caught:
    predict.write_predictions(checkpoint, [photographs / images], tmp_path / output, features=features)
  assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
  (tmp_path / "there.csv").write_text("kept")
  with pytest.raises(predict.PredictError, match="exists already"):
    predict.write_predictions(checkpoint, [photographs], tmp_path / "there.csv")
  assert (tmp_path / "there.csv").read_text() == "kept"


@pytest.mark.slow
def test_the_script_ends_with_2_after_images_that_cannot_be_read(repository, checkpoint, photographs, tmp_path):
  (tmp_path / "bad.jpg").write_bytes(b"no image")
  for images, code in ((f"{photographs / 'a.jpg'},{tmp_path / 'bad.jpg'}", 2), (str(photographs / "a.jpg"), 0)):
    command = [sys.executable, "scripts/predict.py", f"--checkpoint={checkpoint}", f"--images={images}"]
    output = tmp_path / f"{code}.csv"
    result = subprocess.run(
      [*command, f"--output={output}"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert result.returncode == code, result.stderr
    assert ("bad.jpg is no image" in result.stdout) == (code == 2)
    assert [row["image"] for row in csv.DictReader(output.open())] == [str(photographs / "a.jpg")]


def test_an_image_that_the_pipeline_cannot_decode_is_skipped_although_pillow_can(
  checkpoint, photographs, tmp_path, caplog, monkeypatch
):
  """A PNG file without its last chunk."""
  monkeypatch.setattr(logging.getLogger("bn_inception"), "propagate", True)
  cut = tmp_path / "cut.png"
  cut.write_bytes((photographs / "inner" / "b.png").read_bytes()[:-12])
  assert np.array_equal(Image.open(cut), Image.open(photographs / "inner" / "b.png"))
  table = predict.predict_files(checkpoint, [cut, photographs / "a.jpg"])
  assert table.images == [str(photographs / "a.jpg")] and table.skipped == 1
  assert f"Skipped: {cut} is of a kind that TensorFlow cannot decode" in caplog.text
