"""Names and labels of examples, with one label and with any number."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from bn_inception.data import annotations, pipeline
from bn_inception.data.annotations import Annotation
from bn_inception.data.datasets import DataError, open_split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import open_records

LABELS = [[3], [1, 2, 9], [], [0, 5]]


def config(name, folder):
  return ConfigDict(
    {
      "name": name,
      "dir": str(folder),
      "train_split": "train",
      "shuffle": "none",
      "image_size": 4,
      "on_error": "fail",
      "eval_resize": 4,
      "crop_area": (1.0, 1.0),
      "crop_aspect": (1.0, 1.0),
      "flip": False,
      "interpolation": "bilinear",
      "cache": False,
    }
  )


def read(data, split, indices, skipped=()):
  opened = open_split(data, split)
  indices = np.array(indices)
  return annotations.read(opened, open_records(opened), indices, ~np.isin(indices, skipped))


def pngs(count):
  return [tf.io.encode_png(np.full((4, 4, 3), value, np.uint8)).numpy() for value in range(count)]


def stored_order(folder, name):
  """The images' values as TFDS itself yields them."""
  builder = tfds.builder_from_directory(folder / name / "2.3.4")
  return [int(example["image"].numpy()[0, 0, 0]) for example in builder.as_dataset(split="train", shuffle_files=False)]


def test_any_number_of_labels(prepare_pictures):
  folder = prepare_pictures(pngs(4), LABELS)
  order = stored_order(folder, "reassessed_pictures")
  data = config("reassessed_pictures", folder)
  split = open_split(data, "train")
  assert split.several_labels and split.num_classes == 10 and split.id_key == "file_name"
  expected = [Annotation(f"val_{row:04}.JPEG", LABELS[row]) for row in order]
  assert read(data, "train", range(4)) == expected
  assert read(data, "train", [2, 0]) == [expected[2], expected[0]]
  assert read(data, "train", [3, 1, 2], skipped=[1]) == [expected[3], Annotation("train:1", None), expected[2]]


def test_one_label_and_no_name(prepare_pictures):
  folder = prepare_pictures(pngs(3), [2, 0, 1])
  data, order = config("pictures", folder), stored_order(folder, "pictures")
  assert not open_split(data, "train").several_labels
  assert read(data, "train", range(3)) == [
    Annotation(f"train:{index}", [2, 0, 1][row]) for index, row in enumerate(order)
  ]


def test_an_example_without_a_label_is_named(prepare_pictures):
  folder = prepare_pictures(pngs(3), [2, -1, 1])
  row = stored_order(folder, "pictures").index(1)
  with pytest.raises(DataError, match=f"Record {row} of pictures:2.3.4 train has no label"):
    read(config("pictures", folder), "train", range(3))


def test_an_example_with_an_unknown_label_is_named(prepare_pictures):
  """Of a set whose features name fewer classes than its records."""
  for labels, classes in (([2, 0, 1], 2), (LABELS[:3], 9)):
    folder = prepare_pictures(pngs(3), labels)
    data = config("pictures" if classes == 2 else "reassessed_pictures", folder)
    split = dataclasses.replace(open_split(data, "train"), num_classes=classes)
    with pytest.raises(DataError, match=f"has no label of the {classes} there are"):
      annotations.read(split, open_records(split), np.arange(3), np.ones(3, bool))


def test_nothing_is_read_where_all_are_skipped(prepare_pictures):
  data = config("pictures", prepare_pictures(pngs(3), [2, 0, 1]))
  assert read(data, "train", [1, 2], skipped=[1, 2]) == [Annotation("train:1", None), Annotation("train:2", None)]


def test_real_sets_have_names(shared):
  data = ConfigDict({"name": "imagenet2012", "dir": str(shared / "data" / "tfds")})
  builder = tfds.builder("imagenet2012:5.1.0", data_dir=shared / "data" / "tfds")
  expected = [
    Annotation(example["file_name"].decode(), int(example["label"]))
    for example in tfds.as_numpy(
      builder.as_dataset(split="validation[:5]", decoders={"image": tfds.decode.SkipDecoding()})
    )
  ]
  assert read(data, "validation", range(5)) == expected


def test_several_labels_are_refused_where_one_is_needed(prepare_pictures):
  data = config("reassessed_pictures", prepare_pictures(pngs(4), LABELS))
  source = pipeline.open_source(data, "train")
  with pytest.raises(DataError, match="any number of labels"):
    pipeline.train_batches(data, source, seed=0, batch_size=2)
  with pytest.raises(DataError, match="any number of labels"):
    pipeline.eval_batches(data, source, batch_size=2)
  batch = next(pipeline.crop_batches(data, source, crops=1, batch_size=4))
  assert sorted(batch["image"][:, 0, 0, 0, 0]) == [0, 1, 2, 3] and batch["mask"].all()
