"""The input benchmark on a small data set: what is measured, and what the result holds."""

import json
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from bn_inception.configs import inception
from bn_inception.data import datasets
from bn_inception.data.host_tf import tf
from bn_inception.data.records import open_records
from bn_inception.tools import benchmark_input
from tests.data.conftest import Pictures


@pytest.fixture(scope="module", name="config")
def fixture_config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
  """40 JPEG files of noise, at 16 pixels."""
  folder = tmp_path_factory.mktemp("pictures")
  random = np.random.default_rng(0)
  files = []
  for number in range(40):
    files.append(folder / f"{number}.jpg")
    Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8)).save(files[-1])
  Pictures(files=files, labels=[number % 3 for number in range(40)], data_dir=folder).download_and_prepare(
    file_format="array_record"
  )
  config = inception.get_config("imagenet")
  config.data.update({"name": "pictures", "dir": str(folder), "image_size": 16, "num_classes": 3})
  return config


def test_result_holds_every_pipeline(
  config: ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(benchmark_input, "_ROUNDS", 2)
  monkeypatch.setattr(benchmark_input, "_SECONDS", 0.05)
  monkeypatch.setattr(benchmark_input, "_IMAGES_PER_PASS", 100)
  monkeypatch.setattr(benchmark_input.importlib.util, "find_spec", lambda name: None)  # Without grain and torch.
  result = benchmark_input.benchmark(config, max_records=30, batch_size=8, json_path=str(tmp_path / "new" / "r.json"))
  assert json.loads((tmp_path / "new" / "r.json").read_text()) == result
  assert result["records"] == 30 and [entry["epochs"] for entry in result["memory_mb"]] == [4, 8, 12]
  assert list(result["pipelines"]) == [benchmark_input.OURS, benchmark_input.DECODE, benchmark_input.FLAX]
  for row in result["pipelines"].values():
    rate = row["images_per_second"]
    assert 0 < rate["least"] <= rate["median"] <= rate["most"]
    assert row["images_per_second_and_core"] == pytest.approx(rate["median"] / result["cores"], abs=1)
  assert len(result["ratios"]) == 2


def test_flax_style_batches_are_normalized_floats(config: ConfigDict) -> None:
  split = datasets.open_split(config.data, "train")
  serialized = open_records(split).read(range(split.num_examples))
  images = next(benchmark_input._flax_style(split, serialized, 16, 8))
  assert images.shape == (8, 16, 16, 3) and images.dtype == np.float32
  assert images.min() < -1 and images.max() > 1 and abs(images.mean()) < 1
  decoded = next(benchmark_input._decode_only(split, serialized, 40)).numpy()  # A pixel of each, in stored order.
  encoded = [
    tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature([], tf.string)})["image"]
    for record in serialized
  ]
  expected = [tf.io.decode_jpeg(image, dct_method="INTEGER_ACCURATE")[0, 0].numpy() for image in encoded]
  np.testing.assert_array_equal(decoded, expected)
