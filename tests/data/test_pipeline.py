"""Batches on the host: exact, the same for any number of hosts, micro-batches and threads, and resumable anywhere."""

from collections.abc import Callable, Iterator
import itertools
import os
import pathlib
import subprocess
import sys

from ml_collections import ConfigDict
import numpy as np
import pytest
import tensorflow_datasets as tfds

from bn_inception.data import datasets, pipeline, stream
from bn_inception.data.datasets import DataError
from bn_inception.data.host_tf import tf


@pytest.fixture(name="data")
def fixture_data(digits_dir: str) -> ConfigDict:
  """`config.data` of the digits, with every distortion on."""
  return ConfigDict({
      "name": "digits", "dir": digits_dir, "train_split": "train", "eval_split": "test", "shuffle": "global",
      "image_size": 28, "eval_resize": 28, "on_error": "fail",
      "crop_area": (0.5, 1.0), "crop_aspect": (3 / 4, 4 / 3), "flip": True,
  })


def take(batches: Iterator[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
  """The first `count` batches, stacked."""
  taken = list(itertools.islice(batches, count))
  return {key: np.stack([batch[key] for batch in taken]) for key in taken[0]}


def assert_equal(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
  assert one.keys() == two.keys()
  for key, value in one.items():
    assert value.dtype == two[key].dtype
    np.testing.assert_array_equal(value, two[key], err_msg=key)


def stored(data: ConfigDict, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels in stored order, read by TFDS."""
  folder = os.path.dirname(datasets.open_split(data, split).files[0])
  examples = tfds.builder_from_directory(folder).as_data_source(split)
  images, labels = zip(*((example["image"], example["label"]) for example in examples))
  return np.stack(images), np.array(labels)


@pytest.mark.parametrize("shuffle", stream.SHUFFLES)
def test_training_batches_hold_what_the_stream_names(data: ConfigDict, shuffle: str) -> None:
  data.update({"shuffle": shuffle, "crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "flip": False})
  images, labels = stored(data, "train")
  batches = take(pipeline.train_batches(data, seed=7, batch_size=300, start_step=5), 20)  # Across an epoch's end.
  assert batches["image"].shape == (20, 1, 300, 28, 28, 1) and batches["image"].dtype == np.uint8
  assert batches["label"].shape == (20, 1, 300) and batches["label"].dtype == np.int32
  order = stream.record_at(np.arange(1500, 7500), shard_lengths=[4000], seed=7, shuffle=shuffle)
  np.testing.assert_array_equal(batches["label"].reshape(-1), labels[order])
  np.testing.assert_array_equal(batches["image"].reshape(-1, 28, 28, 1), images[order])


@pytest.mark.parametrize("shuffle", stream.SHUFFLES)
def test_a_run_resumes_anywhere(data: ConfigDict, shuffle: str) -> None:
  data.shuffle = shuffle
  whole = take(pipeline.train_batches(data, seed=0, batch_size=70), 60)
  for step in (1, 57):  # An epoch ends within step 57.
    resumed = take(pipeline.train_batches(data, seed=0, batch_size=70, start_step=step), 2)
    assert_equal(resumed, {key: value[step : step + 2] for key, value in whole.items()})


def test_hosts_and_micro_batches_change_nothing(data: ConfigDict) -> None:
  whole = take(pipeline.train_batches(data, seed=0, batch_size=240), 2)
  for hosts, micro_batches in ((2, 1), (3, 2), (2, 5)):
    parts = [
        take(
            pipeline.train_batches(
                data,
                seed=0,
                batch_size=240,
                micro_batches=micro_batches,
                process_index=host,
                process_count=hosts,
            ),
            2,
        )
        for host in range(hosts)
    ]
    assert parts[0]["label"].shape == (2, micro_batches, 240 // micro_batches // hosts)
    together = {key: np.concatenate([part[key] for part in parts], axis=2) for key in whole}
    assert_equal(whole, {key: value.reshape(whole[key].shape) for key, value in together.items()})


def test_batch_size_does_not_change_an_example(data: ConfigDict) -> None:
  small = take(pipeline.train_batches(data, seed=0, batch_size=30), 6)
  large = take(pipeline.train_batches(data, seed=0, batch_size=90), 2)
  assert_equal(
      {key: value.reshape(180, *value.shape[3:]) for key, value in small.items()},
      {key: value.reshape(180, *value.shape[3:]) for key, value in large.items()},
  )


def test_threads_change_nothing(data: ConfigDict, monkeypatch: pytest.MonkeyPatch) -> None:
  results = []
  for cores in (1, 2, 7):
    monkeypatch.setattr(os, "cpu_count", lambda n=cores: n)
    results.append(take(pipeline.train_batches(data, seed=0, batch_size=100), 5))
  assert_equal(results[0], results[1])
  assert_equal(results[0], results[2])


def test_seeds_and_epochs_differ(data: ConfigDict) -> None:
  data.shuffle = "none"
  first = take(pipeline.train_batches(data, seed=0, batch_size=100), 1)
  for other in (
      take(pipeline.train_batches(data, seed=1, batch_size=100), 1),
      take(pipeline.train_batches(data, seed=-1, batch_size=100), 1),
      take(pipeline.train_batches(data, seed=0, batch_size=100, start_step=40), 1),
  ):
    np.testing.assert_array_equal(first["label"], other["label"])  # The order is the stored one ...
    same = (first["image"] == other["image"]).all(axis=(3, 4, 5))
    assert same.mean() < 0.05  # ... and the crops are new.


@pytest.mark.parametrize("hosts,batch_size", [(1, 256), (1, 1000), (1, 999), (2, 256), (3, 150), (8, 1600)])
def test_evaluation_sees_every_example_once(data: ConfigDict, hosts: int, batch_size: int) -> None:
  images, labels = stored(data, "test")
  parts = [
      list(pipeline.eval_batches(data, "test", batch_size=batch_size, process_index=host, process_count=hosts))
      for host in range(hosts)
  ]
  assert {len(part) for part in parts} == {-(-1000 // batch_size)}
  batches = [
      {key: np.concatenate([part[key] for part in step]) for key in ("image", "label", "mask")} for step in zip(*parts)
  ]
  assert all(len(batch["mask"]) == batch_size for batch in batches)
  mask = np.concatenate([batch["mask"] for batch in batches])
  assert mask.dtype == bool and mask.sum() == 1000 and mask[:1000].all()
  all_images = np.concatenate([batch["image"] for batch in batches])
  all_labels = np.concatenate([batch["label"] for batch in batches])
  assert all_images.dtype == np.uint8 and all_labels.dtype == np.int32
  np.testing.assert_array_equal(all_images[:1000], images)
  np.testing.assert_array_equal(all_labels[:1000], labels)
  assert not all_images[1000:].any() and not all_labels[1000:].any()


def test_photographs_of_the_imagenet(shared: pathlib.Path) -> None:
  data = ConfigDict({
      "name": "imagenet2012:5.*.*", "dir": str(shared / "data" / "tfds"), "train_split": "train[:60%]",
      "shuffle": "within_shard", "image_size": 224, "eval_resize": 256, "on_error": "fail", "crop_area": (0.08, 1.0),
      "crop_aspect": (3 / 4, 4 / 3), "flip": True,
  })
  whole = take(pipeline.train_batches(data, seed=0, batch_size=64), 6)  # 300 images: across an epoch's end.
  assert whole["image"].shape == (6, 1, 64, 224, 224, 3)
  assert 90 < whole["image"].mean() < 140 and whole["image"].std() > 50
  assert len(np.unique(whole["label"].reshape(-1)[:300])) == 300
  assert_equal(
      take(pipeline.train_batches(data, seed=0, batch_size=64, start_step=4), 2),
      {key: value[4:] for key, value in whole.items()},
  )
  batches = list(pipeline.eval_batches(data, "validation", batch_size=128))
  assert sum(batch["mask"].sum() for batch in batches) == 500


def test_what_cannot_work_is_said_at_once(data: ConfigDict) -> None:
  with pytest.raises(DataError, match="multiple of 6"):
    pipeline.train_batches(data, seed=0, batch_size=32, micro_batches=2, process_count=3)
  with pytest.raises(DataError, match="multiple of 3"):
    pipeline.eval_batches(data, "test", batch_size=32, process_count=3)
  with pytest.raises(DataError, match="data.shuffle 'all'"):
    pipeline.train_batches(ConfigDict({**data, "shuffle": "all"}), seed=0, batch_size=32)
  with pytest.raises(DataError, match="data.eval_resize 20"):
    pipeline.eval_batches(ConfigDict({**data, "eval_resize": 20}), "test", batch_size=32)


def stored_pictures(data: ConfigDict) -> list[dict]:
  """Undecoded examples in stored order, read by TFDS."""
  folder = os.path.dirname(datasets.open_split(data, "train").files[0])
  decoders = {"image": tfds.decode.SkipDecoding()}
  return list(tfds.builder_from_directory(folder).as_dataset(split="train", decoders=decoders).as_numpy_iterator())


@pytest.mark.parametrize("batches_of", ["train", "eval"])
@pytest.mark.parametrize("problem", ["cannot be decoded", "has no label"])
def test_a_bad_example_is_named(
    prepare_pictures: Callable[..., pathlib.Path], batches_of: str, problem: str
) -> None:
  images, labels = [tf.io.encode_png(np.zeros((9, 9, 3), np.uint8)).numpy()] * 20, [1] * 20
  if problem == "has no label":
    labels[6] = -1
  else:
    images[6] = b"no image"
  data = ConfigDict({
      "name": "pictures", "dir": str(prepare_pictures(images, labels)), "train_split": "train", "shuffle": "none",
      "image_size": 8, "eval_resize": 8, "on_error": "fail", "crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0),
      "flip": False,
  })
  # TFDS stores examples in an order of its own.
  (bad,) = (row for row, e in enumerate(stored_pictures(data)) if e["label"] == -1 or e["image"] == b"no image")
  if batches_of == "train":
    batches = pipeline.train_batches(data, seed=0, batch_size=4)
  else:
    batches = pipeline.eval_batches(data, "train", batch_size=4)
  for _ in range(bad // 4):
    next(batches)
  words = rf"Record {bad} of pictures:2.3.4 train \(number {bad} in .*tfrecord-00000-of-00001\) {problem}"
  with pytest.raises(DataError, match=words) as caught:
    next(batches)
  assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_the_interpreter_ends_with_batches_in_flight(digits_dir: str, repository: pathlib.Path) -> None:
  code = """
import sys, jax
from configs import common
from bn_inception.data import device, pipeline
data = common.inception("quickstart").data
data.dir = sys.argv[1]
host = pipeline.train_batches(data, seed=0, batch_size=32)
next(host)
host_too = pipeline.train_batches(data, seed=0, batch_size=32)
placed = device.to_device(host_too, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
next(placed)
"""
  result = subprocess.run(
      [sys.executable, "-c", code, digits_dir], cwd=repository, capture_output=True, timeout=60, check=False
  )
  assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
