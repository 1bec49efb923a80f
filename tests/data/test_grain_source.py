"""The random-access source for Grain: its protocol, its elements against TFDS, and Grain's own loading of it."""

import importlib
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from bn_inception.data import pipeline
from bn_inception.data.datasets import DataError
from bn_inception.data.grain_source import GrainSource
from bn_inception.data.host_tf import tf
from bn_inception.tools import benchmark_input


@pytest.fixture(name="data")
def fixture_data(digits_dir: str) -> ConfigDict:
  return ConfigDict({"name": "digits", "dir": digits_dir})


def test_elements_are_those_of_tfds(data, digits_dir):
  source = GrainSource(data, "test")
  expected = tfds.builder("digits:1.0.0", data_dir=digits_dir).as_data_source("test")
  assert len(source) == len(expected) == 1000
  for index in (0, 7, 999, np.int64(500)):
    element = source[index]
    assert element.keys() == {"image", "label", "id"} and type(element["label"]) is int
    assert element["image"].dtype == np.uint8 and element["image"].shape == (28, 28, 1)
    np.testing.assert_array_equal(element["image"], expected[int(index)]["image"])
    assert element["label"] == expected[int(index)]["label"]
    raw = GrainSource(data, "test", decode=False)[index]
    np.testing.assert_array_equal(tf.io.decode_image(raw["image"]), element["image"])
    assert (raw["label"], raw["id"]) == (element["label"], element["id"])


def test_a_slice_and_its_bounds(data):
  whole, part = GrainSource(data, "train"), GrainSource(data, "train[1000:1003]")
  assert len(part) == 3
  np.testing.assert_array_equal(part[2]["image"], whole[1002]["image"])
  assert [element["id"] for element in part] == [f"train[1000:1003]:{row}" for row in range(3)]
  for index in (-1, 3):
    with pytest.raises(IndexError, match=f"has no element {index}"):
      part[index]
  with pytest.raises(TypeError):
    part[0.5]
  with pytest.raises(DataError, match="'fake' is noise"):
    GrainSource(ConfigDict({"name": "fake", "num_classes": 3, "mean": (0.0,), "image_size": 8}), "train")


def test_worker_processes_open_the_files_themselves(data, monkeypatch):
  source = GrainSource(data, "test")
  content = pickle.dumps(source)
  assert len(content) < 10_000  # No records, no open files.
  opened, open_records = [], pipeline.open_records
  monkeypatch.setattr(
    "bn_inception.data.grain_source.open_records", lambda split: opened.append(split.name) or open_records(split)
  )
  copy = pickle.loads(content)
  assert repr(copy) == repr(source) == "GrainSource('digits:1.0.0', 'test', decode=True)"
  assert len(copy) == 1000 and not opened
  np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])
  assert copy[4]["label"] == source[4]["label"] and opened == ["digits:1.0.0"]


def test_grain_reads_it(data):
  grain = pytest.importorskip("grain", reason="needs the extra 'grain'")
  source = GrainSource(data, "test")
  assert isinstance(source, grain.sources.RandomAccessDataSource)
  examples = grain.MapDataset.source(source).shuffle(seed=0).batch(100)
  labels = np.concatenate([batch["label"] for batch in examples])
  assert sorted(labels) == sorted(element["label"] for element in source)


def test_the_loader_that_is_measured_makes_distorted_batches(data):
  pytest.importorskip("grain", reason="needs the extra 'grain'")
  from bn_inception.tools import grain_loader

  batches = iter(grain_loader.batches(GrainSource(data, "train", decode=False), size=20, batch_size=16, workers=0))
  images = [next(batches)["image"] for _ in range(3)]
  assert images[0].shape == (16, 20, 20, 3) and images[0].dtype == np.uint8
  assert (images[0] != images[1]).any() and images[0].max() > 128


def test_without_grain_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(benchmark_input.importlib.util, "find_spec", lambda name: None)
  assert benchmark_input.missing("grain") == 'grain is not installed: pip install -e ".[grain]".'
  monkeypatch.setitem(sys.modules, "grain", None)
  monkeypatch.delitem(sys.modules, "bn_inception.tools.grain_loader", raising=False)
  with pytest.raises(ImportError, match=r'pip install -e "\.\[grain\]"'):
    importlib.import_module("bn_inception.tools.grain_loader")
