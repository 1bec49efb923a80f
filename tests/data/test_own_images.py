"""A data set from a folder of images: against the pixels, the folders and a brute-force count."""

import logging
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from bn_inception.data import evaluation_crops, own_images, photographs, preparation
from bn_inception.errors import DataError

COLOURS = {"blue": (30, 30, 200), "green": (30, 200, 30), "red fish": (200, 30, 30)}


def picture(colour=(120, 120, 120), marked=True) -> Image.Image:
  """40 px high and 60 wide, with a white corner at the top left."""
  pixels = np.full((40, 60, 3), colour, np.uint8)
  if marked:
    pixels[:12, :12] = 255
  return Image.fromarray(pixels)


def save_turned(path: pathlib.Path, orientation: int, upright: Image.Image) -> None:
  """The file of a camera that was held so that its picture must be turned as `orientation` says, to be `upright`."""
  # What undoes each (EXIF 2.3, table of orientations).
  undo = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
  }[orientation]
  stored = upright if undo is None else upright.transpose(undo)
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored.save(path, quality=98, subsampling=0, exif=exif)


def make_folder(folder: pathlib.Path, per_class: int = 10) -> pathlib.Path:
  for name, colour in COLOURS.items():
    (folder / name).mkdir(parents=True)
    for number in range(per_class):
      picture(colour).save(folder / name / f"{number}.jpg")
  (folder / ".DS_Store").write_bytes(b"of a file manager")
  return folder


def stored(data_dir: pathlib.Path, name: str, split: str) -> dict[str, tuple[str, np.ndarray]]:
  """{file name: (class, pixels)} as TFDS reads them."""
  builder = tfds.builder_from_directory(next((data_dir / name).iterdir()))
  names = builder.info.features["label"].names
  return {
    example["file_name"].decode(): (names[example["label"]], example["image"])
    for example in builder.as_data_source(split=split)
  }


def prepare(source, data_dir, name="colours", **settings):
  preparation.prepare(source, data_dir, name, **settings)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(tmp_path, orientation):
  save_turned(tmp_path / "turned.jpg", orientation, picture())
  photograph = photographs.read(tmp_path / "turned.jpg")
  pixels = evaluation_crops.decode(photograph.encoded, channels=3).numpy()
  assert pixels.shape == (40, 60, 3) and photograph.is_turned == (orientation != 1)
  np.testing.assert_allclose(pixels, np.asarray(picture()), atol=40)  # Of JPEG, at the edge of the corner.
  assert np.abs(pixels.astype(int) - np.asarray(picture())).mean() < 3


def test_bytes_are_kept_and_other_formats_become_the_same_pixels(tmp_path):
  for suffix in ("jpg", "png"):
    picture().save(tmp_path / f"a.{suffix}")
    assert photographs.read(tmp_path / f"a.{suffix}").encoded == (tmp_path / f"a.{suffix}").read_bytes()
  for suffix in ("bmp", "tiff", "gif"):
    picture().save(tmp_path / f"a.{suffix}")
    photograph = photographs.read(tmp_path / f"a.{suffix}")
    assert photograph.is_converted
    np.testing.assert_array_equal(evaluation_crops.decode(photograph.encoded, channels=3), np.asarray(picture()))


def test_a_folder_becomes_a_data_set_that_can_be_opened(tmp_path):
  source = make_folder(tmp_path / "own")
  save_turned(source / "blue" / "3.jpg", 6, picture(COLOURS["blue"]))
  prepare(source, tmp_path / "data", holdout=0.3, seed=5)
  splits = {split: stored(tmp_path / "data", "colours", split) for split in ("train", "validation")}
  files = {path.relative_to(source).as_posix() for path in source.glob("*/*.jpg")}
  assert {*splits["train"]} | {*splits["validation"]} == files and not {*splits["train"]} & {*splits["validation"]}
  for examples, count in ((splits["train"], 7), (splits["validation"], 3)):
    for name in COLOURS:
      assert sum(of_class == name for of_class, _ in examples.values()) == count
    for file, (name, pixels) in examples.items():
      assert file.startswith(f"{name}/") and pixels.shape == (40, 60, 3)
      np.testing.assert_allclose(pixels[-5, -5], COLOURS[name], atol=6)
      np.testing.assert_allclose(pixels[3, 3], 255, atol=12)  # Upright.
  from bn_inception.data import pipeline

  opened = pipeline.open_source(
    ConfigDict({"name": "colours", "dir": str(tmp_path / "data"), "on_error": "fail", "num_classes": 3}), "train"
  )
  assert opened.split.label_names == tuple(COLOURS) and opened.split.id_key == "file_name"


def test_what_is_held_out_depends_on_the_seed_alone(tmp_path):
  source = make_folder(tmp_path / "own")
  chosen = [own_images.find(source, 0.3, seed).splits["validation"] for seed in (0, 0, 1)]
  assert chosen[0] == chosen[1] != chosen[2]
  assert "seed 1" in own_images.find(source, 0.3, 1).description


def test_splits_of_the_folder_are_kept(tmp_path):
  make_folder(tmp_path / "own" / "train", 3)
  make_folder(tmp_path / "own" / "val", 2)
  prepare(tmp_path / "own", tmp_path / "data")
  assert len(stored(tmp_path / "data", "colours", "train")) == 9
  assert {*stored(tmp_path / "data", "colours", "validation")} == {
    f"val/{name}/{number}.jpg" for name in COLOURS for number in range(2)
  }


def test_every_bad_image_is_named_before_anything_is_written(tmp_path, caplog, monkeypatch):
  source = make_folder(tmp_path / "own")
  monkeypatch.setattr(logging.getLogger("bn_inception"), "propagate", True)
  for name in ("blue/cut.jpg", "green/late.jpg"):
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source / name)
    content = (source / name).read_bytes()
    (source / name).write_bytes(content[: 300 if "cut" in name else len(content) - 200])
  (source / "green" / "notes.txt").write_text("green")
  (source / "green" / "empty.jpg").touch()
  bad = ["blue/cut.jpg", "green/late.jpg", "green/notes.txt", "green/empty.jpg"]
  with pytest.raises(DataError, match="4 bad images"):
    prepare(source, tmp_path / "data")
  assert all(str(source / name) in caplog.text for name in bad)
  assert not (tmp_path / "data" / "colours").exists()
  prepare(source, tmp_path / "data", on_error="skip")
  names = {*stored(tmp_path / "data", "colours", "train"), *stored(tmp_path / "data", "colours", "validation")}
  assert len(names) == 30 and not names & {*bad}


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda source: picture().save(source / "loose.jpg"), ["loose.jpg", "beside"]),
    (lambda source: (source / "blue" / "more").mkdir(), ["more", "within the class 'blue'"]),
    (lambda source: (source / "empty").mkdir(), ["empty", "holds no image"]),
    (lambda source: (source / " red").mkdir(), ["' red'", "rename"]),
    (lambda source: [path.unlink() for path in (source / "blue").glob("[1-9].jpg")], ["'blue'", "one image"]),
  ],
)
def test_what_is_no_folder_of_classes_is_said(tmp_path, change, words):
  source = make_folder(tmp_path / "own")
  change(source)
  with pytest.raises(DataError) as caught:
    prepare(source, tmp_path / "data")
  assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["imagenet2012", "fake", "My Flowers", "flowers:1", "../x"])
def test_names_that_mean_something_else_are_refused(tmp_path, name):
  with pytest.raises(DataError, match="--dataset"):
    prepare(make_folder(tmp_path / "own", 2), tmp_path / "data", name)


@pytest.mark.parametrize("per_class, holdout, held_out", [(10, None, 2), (2, None, 1), (3, 0.9, 2), (3, 0.01, 1)])
def test_a_part_of_each_class_is_held_out_and_a_part_is_left(tmp_path, per_class, holdout, held_out):
  """A fifth where nothing is said; never none of a class and never all."""
  splits = own_images.find(make_folder(tmp_path / "own", per_class), holdout, 0).splits
  for split, count in (("validation", held_out), ("train", per_class - held_out)):
    assert sorted(example.label for example in splits[split]) == sorted([0, 1, 2] * count)


def test_the_seed_of_what_is_held_out_is_stated(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("bn_inception"), "propagate", True)
  with caplog.at_level("INFO", "bn_inception"):
    prepare(make_folder(tmp_path / "own", 4), tmp_path / "data", seed=6)
  stated = "Held out for validation: 0.2 of each class, chosen with seed 6."
  assert stated in caplog.text
  assert stated in tfds.builder_from_directory(tmp_path / "data" / "colours" / "1.0.0").info.description


@pytest.mark.parametrize(
  "change, settings, words",
  [
    (lambda folder: None, {"holdout": 0.5}, ["splits of its own (train, val)", "leave out --holdout"]),
    (lambda folder: make_folder(folder / "validation", 2), {}, ["two folders for the validation split"]),
    (lambda folder: (folder / "val" / "blue").rename(folder / "val" / "bleu"), {}, ["'bleu'", "training has not"]),
  ],
)
def test_splits_that_contradict_are_said(tmp_path, change, settings, words):
  make_folder(tmp_path / "own" / "train", 3)
  make_folder(tmp_path / "own" / "val", 2)
  for path in (tmp_path / "own").glob("*/.DS_Store"):
    path.unlink()
  change(tmp_path / "own")
  with pytest.raises(DataError) as caught:
    prepare(tmp_path / "own", tmp_path / "data", **settings)
  assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
  assert not (tmp_path / "data" / "colours").exists()


@pytest.mark.parametrize(
  "bad, words",
  [
    ("train/blue/*", "No image for training is left of the class 'blue'"),
    ("val/*/*", "No image of the validation split"),
  ],
)
def test_what_is_left_without_bad_images_must_be_a_data_set(tmp_path, bad, words):
  make_folder(tmp_path / "own" / "train", 3)
  make_folder(tmp_path / "own" / "val", 2)
  for path in (tmp_path / "own").glob(bad):
    path.write_bytes(b"no image")
  with pytest.raises(DataError, match=words):
    prepare(tmp_path / "own", tmp_path / "data", on_error="skip")
  assert not (tmp_path / "data" / "colours").exists()


def test_an_image_that_the_pipeline_cannot_decode_is_named_although_pillow_can(tmp_path, caplog, monkeypatch):
  """A PNG file without its last chunk."""
  monkeypatch.setattr(logging.getLogger("bn_inception"), "propagate", True)
  source = make_folder(tmp_path / "own", 3)
  picture().save(source / "blue" / "whole.png")
  (source / "blue" / "cut.png").write_bytes((source / "blue" / "whole.png").read_bytes()[:-12])
  assert np.array_equal(Image.open(source / "blue" / "cut.png"), picture())
  with pytest.raises(DataError, match="has 1 bad image,"):
    prepare(source, tmp_path / "data")
  assert f"{source / 'blue' / 'cut.png'} is of a kind that TensorFlow cannot decode" in caplog.text
