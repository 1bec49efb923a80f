"""Batches on the host: exact, the same for any number of hosts, micro-batches and threads, and resumable anywhere."""

import concurrent.futures
import functools
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from bn_inception.data import cores, datasets, evaluation_crops, pipeline, prefetch, stream
from bn_inception.data.datasets import DataError
from bn_inception.data.host_tf import tf
from bn_inception.data.records import TFRecordShard


@pytest.fixture(name="data")
def fixture_data(digits_dir: str) -> ConfigDict:
  """`config.data` of the digits, with every distortion on."""
  return ConfigDict(
    {
      "name": "digits",
      "dir": digits_dir,
      "train_split": "train",
      "eval_split": "test",
      "shuffle": "global",
      "image_size": 28,
      "eval_resize": 28,
      "on_error": "fail",
      "crop_area": (0.5, 1.0),
      "crop_aspect": (3 / 4, 4 / 3),
      "flip": True,
      "interpolation": "random",
      "cache": False,
    }
  )


def train_batches(data: ConfigDict, **options) -> Iterator[dict[str, np.ndarray]]:
  return pipeline.train_batches(data, pipeline.open_source(data, data.train_split), **options)


def eval_batches(data: ConfigDict, split: str, **options) -> Iterator[dict[str, np.ndarray]]:
  return pipeline.eval_batches(data, pipeline.open_source(data, split), **options)


def crop_batches(data: ConfigDict, split: str, **options) -> Iterator[dict[str, np.ndarray]]:
  return pipeline.crop_batches(data, pipeline.open_source(data, split), **options)


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
  return read_by_tfds(os.path.dirname(datasets.open_split(data, split).files[0]), split)


@functools.cache
def read_by_tfds(folder: str, split: str) -> tuple[np.ndarray, np.ndarray]:
  examples = tfds.builder_from_directory(folder).as_data_source(split)
  images, labels = zip(*((example["image"], example["label"]) for example in examples))
  return np.stack(images), np.array(labels)


@pytest.mark.parametrize("shuffle", stream.SHUFFLES)
def test_training_batches_hold_what_the_stream_names(data: ConfigDict, shuffle: str) -> None:
  data.update({"shuffle": shuffle, "crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "flip": False})
  images, labels = stored(data, "train")
  batches = take(train_batches(data, seed=7, batch_size=300, start_step=5), 20)  # Across an epoch's end.
  assert batches["image"].shape == (20, 1, 300, 28, 28, 1) and batches["image"].dtype == np.uint8
  assert batches["label"].shape == (20, 1, 300) and batches["label"].dtype == np.int32
  order = stream.record_at(np.arange(1500, 7500), shard_lengths=[4000], seed=7, shuffle=shuffle)
  np.testing.assert_array_equal(batches["label"].reshape(-1), labels[order])
  np.testing.assert_array_equal(batches["image"].reshape(-1, 28, 28, 1), images[order])


@pytest.mark.parametrize("shuffle", stream.SHUFFLES)
def test_a_run_resumes_anywhere(data: ConfigDict, shuffle: str) -> None:
  data.shuffle = shuffle
  whole = take(train_batches(data, seed=0, batch_size=70), 60)
  for step in (1, 57):  # An epoch ends within step 57.
    resumed = take(train_batches(data, seed=0, batch_size=70, start_step=step), 2)
    assert_equal(resumed, {key: value[step : step + 2] for key, value in whole.items()})


def test_hosts_and_micro_batches_change_nothing(data: ConfigDict) -> None:
  whole = take(train_batches(data, seed=0, batch_size=240), 2)
  for hosts, micro_batches in ((2, 1), (3, 2), (2, 5)):
    parts = [
      take(
        train_batches(
          data, seed=0, batch_size=240, micro_batches=micro_batches, process_index=host, process_count=hosts
        ),
        2,
      )
      for host in range(hosts)
    ]
    assert parts[0]["label"].shape == (2, micro_batches, 240 // micro_batches // hosts)
    together = {key: np.concatenate([part[key] for part in parts], axis=2) for key in whole}
    assert_equal(whole, {key: value.reshape(whole[key].shape) for key, value in together.items()})


def test_batch_size_does_not_change_an_example(data: ConfigDict) -> None:
  small = take(train_batches(data, seed=0, batch_size=30), 6)
  large = take(train_batches(data, seed=0, batch_size=90), 2)
  assert_equal(
    {key: value.reshape(180, *value.shape[3:]) for key, value in small.items()},
    {key: value.reshape(180, *value.shape[3:]) for key, value in large.items()},
  )


@pytest.mark.parametrize("shuffle", stream.SHUFFLES)
def test_memory_changes_nothing(data: ConfigDict, shuffle: str) -> None:
  data.update({"shuffle": shuffle, "crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "flip": False})
  cached = ConfigDict({**data, "cache": True})
  assert_equal(
    *(
      take(
        train_batches(d, seed=3, batch_size=120, micro_batches=2, start_step=20, process_index=1, process_count=2), 30
      )
      for d in (data, cached)
    )
  )
  assert_equal(*(take(eval_batches(d, "test[:99%]", batch_size=300), 4) for d in (data, cached)))


def test_threads_change_nothing(data: ConfigDict, monkeypatch: pytest.MonkeyPatch) -> None:
  results = []
  for count in (1, 2, 7):
    monkeypatch.setattr(cores, "available", lambda n=count: n)
    results.append(take(train_batches(data, seed=0, batch_size=100), 5))
  assert_equal(results[0], results[1])
  assert_equal(results[0], results[2])


def test_seeds_and_epochs_differ(data: ConfigDict) -> None:
  data.shuffle = "none"
  first = take(train_batches(data, seed=0, batch_size=100), 1)
  for other in (
    take(train_batches(data, seed=1, batch_size=100), 1),
    take(train_batches(data, seed=-1, batch_size=100), 1),
    take(train_batches(data, seed=0, batch_size=100, start_step=40), 1),
  ):
    np.testing.assert_array_equal(first["label"], other["label"])  # The order is the stored one ...
    same = (first["image"] == other["image"]).all(axis=(3, 4, 5))
    assert same.mean() < 0.05  # ... and the crops are new.


@pytest.mark.parametrize("hosts,batch_size", [(1, 256), (1, 1000), (1, 999), (2, 256), (3, 150), (8, 1600)])
def test_evaluation_sees_every_example_once(data: ConfigDict, hosts: int, batch_size: int) -> None:
  images, labels = stored(data, "test")
  parts = [
    list(eval_batches(data, "test", batch_size=batch_size, process_index=host, process_count=hosts))
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
  data = ConfigDict(
    {
      "name": "imagenet2012:5.*.*",
      "dir": str(shared / "data" / "tfds"),
      "train_split": "train[:60%]",
      "shuffle": "within_shard",
      "image_size": 224,
      "eval_resize": 256,
      "on_error": "fail",
      "crop_area": (0.08, 1.0),
      "crop_aspect": (3 / 4, 4 / 3),
      "flip": True,
      "interpolation": "random",
      "cache": False,
    }
  )
  whole = take(train_batches(data, seed=0, batch_size=64), 6)  # 300 images: across an epoch's end.
  assert whole["image"].shape == (6, 1, 64, 224, 224, 3)
  assert 90 < whole["image"].mean() < 140 and whole["image"].std() > 50
  assert len(np.unique(whole["label"].reshape(-1)[:300])) == 300
  assert_equal(
    take(train_batches(data, seed=0, batch_size=64, start_step=4), 2), {key: value[4:] for key, value in whole.items()}
  )
  batches = list(eval_batches(data, "validation[:150]", batch_size=64))
  assert sum(batch["mask"].sum() for batch in batches) == 150


def test_what_cannot_work_is_said_at_once(data: ConfigDict) -> None:
  with pytest.raises(DataError, match="multiple of 6"):
    train_batches(data, seed=0, batch_size=32, micro_batches=2, process_count=3)
  with pytest.raises(DataError, match="multiple of 3"):
    eval_batches(data, "test", batch_size=32, process_count=3)
  with pytest.raises(DataError, match="data.shuffle 'all'"):
    train_batches(ConfigDict({**data, "shuffle": "all"}), seed=0, batch_size=32)
  with pytest.raises(DataError, match="data.interpolation 'lanczos'"):
    train_batches(ConfigDict({**data, "interpolation": "lanczos"}), seed=0, batch_size=32)
  with pytest.raises(DataError, match="data.eval_resize 20"):
    eval_batches(ConfigDict({**data, "eval_resize": 20}), "test", batch_size=32)


def stored_pictures(data: ConfigDict) -> list[dict]:
  """Undecoded examples in stored order, read by TFDS."""
  folder = os.path.dirname(datasets.open_split(data, "train").files[0])
  decoders = {"image": tfds.decode.SkipDecoding()}
  return list(tfds.builder_from_directory(folder).as_dataset(split="train", decoders=decoders).as_numpy_iterator())


@pytest.mark.parametrize("batches_of", ["train", "eval"])
@pytest.mark.parametrize("problem", ["cannot be decoded", "has no label"])
def test_a_bad_example_is_named(prepare_pictures: Callable[..., pathlib.Path], batches_of: str, problem: str) -> None:
  images, labels = [tf.io.encode_png(np.zeros((9, 9, 3), np.uint8)).numpy()] * 20, [1] * 20
  if problem == "has no label":
    labels[6] = -1
  else:
    images[6] = b"no image"
  data = ConfigDict(
    {
      "name": "pictures",
      "dir": str(prepare_pictures(images, labels)),
      "train_split": "train",
      "shuffle": "none",
      "image_size": 8,
      "eval_resize": 8,
      "on_error": "fail",
      "crop_area": (1.0, 1.0),
      "crop_aspect": (1.0, 1.0),
      "flip": False,
      "interpolation": "bilinear",
      "cache": False,
    }
  )
  # TFDS stores examples in an order of its own.
  (bad,) = (row for row, e in enumerate(stored_pictures(data)) if e["label"] == -1 or e["image"] == b"no image")
  if batches_of == "train":
    batches = train_batches(data, seed=0, batch_size=4)
  else:
    batches = eval_batches(data, "train", batch_size=4)
  for _ in range(bad // 4):
    next(batches)
  words = rf"Record {bad} of pictures:2.3.4 train \(number {bad} in .*tfrecord-00000-of-00001\) {problem}"
  with pytest.raises(DataError, match=words) as caught:
    next(batches)
  assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_the_interpreter_ends_with_batches_in_flight(digits_dir: str, repository: pathlib.Path) -> None:
  code = """
import sys, jax
from bn_inception.configs import common
from bn_inception.data import device, pipeline
data = common.inception("quickstart").data
data.dir = sys.argv[1]
source = pipeline.open_source(data, "train")
host = pipeline.train_batches(data, source, seed=0, batch_size=32)
next(host)
host_too = pipeline.train_batches(data, source, seed=0, batch_size=32)
placed = device.to_device(host_too, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
next(placed)
"""
  result = subprocess.run(
    [sys.executable, "-c", code, digits_dir], cwd=repository, capture_output=True, timeout=300, check=False
  )
  assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.fixture(scope="module", name="numbered")
def fixture_numbered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
  """'numbered:1.0.0' in three files: 101 records (a prime), red is the number of each, green and blue are noise."""

  class Numbered(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
      features = {
        "image": tfds.features.Image(shape=(16, 16, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=101),
        "file_name": tfds.features.Text(),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for row in range(101):
        image = np.random.default_rng(row).integers(0, 256, (16, 16, 3), np.uint8)
        image[..., 0] = row
        yield row, {"image": image, "label": row, "file_name": f"picture {row}"}

  roots = {}
  for file_format in ("tfrecord", "array_record"):
    roots[file_format] = tmp_path_factory.mktemp(file_format)
    Numbered(data_dir=roots[file_format]).download_and_prepare(
      file_format=file_format, download_config=tfds.download.DownloadConfig(num_shards=3)
    )
  return roots


def numbered_config(root: pathlib.Path, shuffle: str = "global", on_error: str = "fail") -> ConfigDict:
  return ConfigDict(
    {
      "name": "numbered",
      "dir": str(root),
      "train_split": "train",
      "eval_split": "train",
      "shuffle": shuffle,
      "image_size": 12,
      "eval_resize": 12,
      "on_error": on_error,
      "crop_area": (0.3, 1.0),
      "crop_aspect": (0.75, 1.33),
      "interpolation": "random",
      "flip": True,
      "cache": False,
    }
  )


def run_hosts(data: ConfigDict, steps: int, hosts: int, start_step: int = 0) -> dict[str, np.ndarray]:
  """The batches of 24 that several hosts supply together, their parts put next to each other."""
  parts = [
    take(
      train_batches(data, seed=5, batch_size=24, start_step=start_step, process_index=host, process_count=hosts), steps
    )
    for host in range(hosts)
  ]
  return {
    key: np.concatenate([part[key] for part in parts], axis=2).reshape(steps * 24, *parts[0][key].shape[3:])
    for key in parts[0]
  }


@pytest.mark.parametrize("file_format, shuffle", [("tfrecord", "global"), ("array_record", "within_shard")])
def test_every_record_once_an_epoch_on_any_hosts_and_resumed_on_others(
  numbered: dict[str, pathlib.Path], file_format: str, shuffle: str
) -> None:
  data = numbered_config(numbered[file_format], shuffle)
  whole = run_hosts(data, 9, hosts=1)  # 216 examples: two epochs and a part.
  # Each picture is that of its label.
  np.testing.assert_array_equal(whole["image"][..., 0].min(axis=(1, 2)), whole["label"])
  for epoch in (0, 1):
    np.testing.assert_array_equal(np.sort(whole["label"][101 * epoch : 101 * (epoch + 1)]), np.arange(101))
  assert (whole["label"][:101] != whole["label"][101:202]).mean() > 0.9
  for hosts in (2, 3, 8):
    assert_equal(run_hosts(data, 9, hosts), whole)
  for start_step in (1, 5, 8):  # Steps 4 and 8 hold the ends of epochs.
    before, after = run_hosts(data, start_step, hosts=2), run_hosts(data, 9 - start_step, 3, start_step)
    assert_equal({key: np.concatenate([before[key], after[key]]) for key in before}, whole)


def damage(numbered: pathlib.Path, tmp_path: pathlib.Path, kind: str) -> tuple[pathlib.Path, list[int]]:
  """A copy of the TFRecord set whose records 40 and 41 are bad; returns it and the labels in stored order."""
  root, place = tmp_path / "damaged", 40
  shutil.copytree(numbered, root)
  labels = []
  for path in sorted((root / "numbered" / "1.0.0").glob("*tfrecord*")):
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
      for record in records:
        example = tf.train.Example.FromString(record)
        labels.append(example.features.feature["label"].int64_list.value[0])
        if len(labels) - 1 in (place, place + 1) and kind != "checksum":
          image = example.features.feature["image"].bytes_list.value
          image[0] = {"no image": b"no image", "cut": image[0][: len(image[0]) // 2]}[kind]
        writer.write(example.SerializeToString() if kind != "checksum" else record)
    if kind == "checksum" and len(labels) - len(records) <= place < place + 1 < len(labels):
      content = bytearray(path.read_bytes())
      for bad in (place, place + 1):
        content[content.index(records[bad - len(labels) + len(records)]) + 50] ^= 4
      path.write_bytes(content)
  return root, labels


@pytest.mark.parametrize("kind", ["no image", "cut", "checksum"])
def test_bad_records_fail_or_are_replaced_in_training(
  numbered: dict[str, pathlib.Path], tmp_path: pathlib.Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
  root, labels = damage(numbered["tfrecord"], tmp_path, kind)
  words = r"Record 4[01] of numbered:1.0.0 train \(.*number \d+ in .*00001-of-00003\)"
  with pytest.raises(DataError, match=words) as caught:
    take(train_batches(numbered_config(root), seed=5, batch_size=24), 5)
  assert "data.on_error=skip" in str(caught.value)
  if kind != "checksum":
    assert f"picture {labels[40]}," in str(caught.value) or f"picture {labels[41]}," in str(caught.value)

  data = numbered_config(root, on_error="skip")
  whole = run_hosts(data, 9, hosts=1)
  sound = run_hosts(numbered_config(numbered["tfrecord"]), 9, hosts=1)
  bad = np.isin(sound["label"], [labels[40], labels[41]])
  np.testing.assert_array_equal(whole["skipped"], bad)
  assert not sound["skipped"].any() and bad[:202].sum() == 4
  for key in ("image", "label"):
    np.testing.assert_array_equal(whole[key][~bad], sound[key][~bad])
  # The next good one in stored order stands in for both.
  np.testing.assert_array_equal(whole["label"][bad], labels[42])
  assert (whole["image"][bad][..., 0] == labels[42]).all()
  assert_equal(run_hosts(data, 6, hosts=3, start_step=3), {key: value[72:] for key, value in whole.items()})
  named = [record.getMessage() for record in caplog.records if "Record 40 of" in record.getMessage()]
  assert named and all("Skipped, as data.on_error says" in line and "00001-of-00003" in line for line in named)


@pytest.mark.parametrize("kind, batch_size", [("no image", 24), ("checksum", 1), ("checksum", 101)])
def test_bad_records_are_masked_and_counted_in_evaluation(
  numbered: dict[str, pathlib.Path], tmp_path: pathlib.Path, kind: str, batch_size: int
) -> None:
  root, labels = damage(numbered["tfrecord"], tmp_path, kind)
  with pytest.raises(DataError, match="Record 40 of"):
    list(eval_batches(numbered_config(root), "train", batch_size=batch_size))
  batches = list(eval_batches(numbered_config(root, on_error="skip"), "train", batch_size=batch_size))
  together = {key: np.concatenate([batch[key] for batch in batches])[:101] for key in batches[0]}
  np.testing.assert_array_equal(np.flatnonzero(together["skipped"]), [40, 41])
  np.testing.assert_array_equal(together["mask"], ~together["skipped"])
  np.testing.assert_array_equal(together["label"][together["mask"]], np.delete(labels, [40, 41]))
  assert not together["image"][together["skipped"]].any()


def test_a_set_of_bad_records_only_ends(numbered: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
  data = numbered_config(damage(numbered["tfrecord"], tmp_path, "no image")[0], "none", "skip")
  data.train_split = "train[40:42]"
  with pytest.raises(DataError, match="No record of numbered:1.0.0 train.40:42. can be used"):
    take(train_batches(data, seed=0, batch_size=2), 1)


def test_a_missing_file_is_named_before_the_first_batch(
  numbered: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
  root, _ = damage(numbered["tfrecord"], tmp_path, "no image")
  (file,) = (root / "numbered" / "1.0.0").glob("*00002-of-00003")
  file.unlink()
  for on_error in ("fail", "skip"):
    with pytest.raises(DataError, match=file.name):
      train_batches(numbered_config(root, on_error=on_error), seed=0, batch_size=24)


@pytest.mark.parametrize("cache, reading", [(False, "record 0 and 23 more of "), (True, "record 0 and ")])
def test_a_stalled_reader_is_reported(
  numbered: dict[str, pathlib.Path],
  monkeypatch: pytest.MonkeyPatch,
  caplog: pytest.LogCaptureFixture,
  cache: bool,
  reading: str,
) -> None:
  """The reader goes on when it was reported three times, however long that takes; patience doubles between reports."""
  release, read, wait, patience = threading.Event(), TFRecordShard.read, concurrent.futures.wait, []

  def hang(shard: TFRecordShard, rows: list[int]) -> list[bytes]:
    if rows[0] == 0 and "00000-of-00003" in shard._path:  # Others end, whichever of the threads begins first.
      release.wait()
    return read(shard, rows)

  def recorded(parts: list[concurrent.futures.Future], timeout: float):
    if not release.is_set():
      patience.append(timeout)
      # Reports name what is being read, so this reading must have begun, and reading that began before must be over.
      while reports() < 3 and "00000-of-00003" not in (records[-1].waiting_for() or ""):
        time.sleep(0.001)
      if reports() == 3:
        release.set()
    return wait(parts, timeout=timeout if reports() < 3 else None)

  def reports() -> int:
    return len(lines())

  def lines() -> list[str]:
    return [record.getMessage() for record in caplog.records if "is its file system responding" in record.getMessage()]

  records, open_records = [], pipeline.open_records
  monkeypatch.setattr(pipeline, "open_records", lambda split: records.append(open_records(split)) or records[-1])
  data = numbered_config(numbered["tfrecord"], "none")
  data.update({"cache": cache, "image_size": 16, "eval_resize": 16})
  source = pipeline.open_source(data, "train")  # It reads some records, for their digest.
  monkeypatch.setattr(TFRecordShard, "read", hang)
  monkeypatch.setattr(concurrent.futures, "wait", recorded)
  monkeypatch.setattr(prefetch, "_STALL_SECONDS", 0.01)
  batches = pipeline.train_batches(data, source, seed=0, batch_size=24)
  batch = next(batches)
  np.testing.assert_array_equal(batch["label"], batch["image"][..., 0].min(axis=(2, 3)))
  assert len(lines()) == 3 and patience == pytest.approx([0.01, 0.02, 0.04, 0.08])  # Rarer and rarer.
  assert all(f"waiting for {reading}" in line and "00000-of-00003 for" in line for line in lines())
  batches.close()


@pytest.mark.parametrize("shuffle", stream.SHUFFLES)
def test_fake_data_has_the_shape_of_real_data_and_repeats(shuffle: str) -> None:
  data = numbered_config(pathlib.Path("/nowhere"), shuffle)
  data.update({"name": "fake", "num_classes": 1000, "image_size": 32, "eval_resize": 32, "mean": (0.0, 0.0, 0.0)})
  split = datasets.open_split(data, "validation")
  assert (split.num_classes, split.image_channels, len(split.label_names)) == (1000, 3, 1000)
  whole = run_hosts(data, 60, hosts=1)
  assert whole["image"].shape == (1440, 32, 32, 3) and whole["image"].dtype == np.uint8
  assert whole["label"].dtype == np.int32 and 0 <= whole["label"].min() and whole["label"].max() < 1000
  pictures = [image.tobytes() for image in whole["image"]]
  assert len(set(pictures[: split.num_examples])) == split.num_examples  # Each once an epoch.
  assert set(pictures) == set(pictures[: split.num_examples])
  assert len(np.unique(whole["label"])) > 500 and abs(whole["image"].mean() - 127.5) < 1
  assert_equal(run_hosts(data, 60, hosts=3), whole)
  assert_equal(run_hosts(data, 2, hosts=2, start_step=58), {key: value[-48:] for key, value in whole.items()})
  batches = list(eval_batches(data, "validation", batch_size=100))
  assert sum(batch["mask"].sum() for batch in batches) == split.num_examples


@pytest.mark.parametrize("crops", [1, 10, 144])
def test_crop_batches_hold_the_crops_of_every_image_once(data: ConfigDict, crops: int) -> None:
  """Whatever the batch size, the number of hosts and where it begins; against one image at a time."""
  images, _ = stored(data, "test")
  for first, batch_size, hosts in ((985, 7, 1), (0, 500, 1), (993, 6, 2), (1000, 4, 1)):
    if crops == 144 and batch_size > 7:
      continue
    by_host = [
      list(
        crop_batches(
          data, "test", crops=crops, batch_size=batch_size, first=first, process_index=host, process_count=hosts
        )
      )
      for host in range(hosts)
    ]
    assert {len(batches) for batches in by_host} == {-(-(1000 - first) // batch_size)}
    parts = [batches[step] for step in range(len(by_host[0])) for batches in by_host]
    if not parts:
      continue
    result = {key: np.concatenate([part[key] for part in parts]) for key in ("image", "mask")}
    np.testing.assert_array_equal(result["mask"], np.arange(first, first + len(result["mask"])) < 1000)
    assert not result["image"][~result["mask"]].any()
    seen = result["image"][result["mask"]]
    assert seen.shape == (1000 - first, crops, 28, 28, 1)
    if crops == 1:
      np.testing.assert_array_equal(seen[:, 0], images[first:])
    else:
      for row in (0, len(seen) - 1):
        encoded = tf.io.encode_png(images[first + row])
        expected = evaluation_crops.multi_crop(encoded, size=28, crops=crops, channels=1)
        np.testing.assert_array_equal(seen[row], expected)
