"""Kinds of trouble that users of such software report, each by a small case: data, files, layers, checkpoints."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from bn_inception import config_checks, config_keys, run_data, run_directory
from bn_inception.configs import bn_x5, mnist
from bn_inception.data import annotations, datasets, pipeline, preparation
from bn_inception.errors import UserError
from bn_inception.evaluators import predictions_file
from bn_inception.release.peers.pytorch import file as torch_file


def write_set(root, name, pixels, features=None, extra=None, version="1.0.0", named=True):
  """A prepared set of one split, 'test', in root/NAME/VERSION; without a name as TFDS's `write_metadata` leaves it."""
  features = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(shape=(2, 2, 1)), "label": tfds.features.ClassLabel(num_classes=3)} | (features or {})
  )
  tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    version=version,
    features=features,
    data_dir=str(root),
    disable_shuffling=True,
    split_datasets={
      "test": [
        (row, {"image": np.full((2, 2, 1), pixel, np.uint8), "label": row % 3} | (extra or (lambda _: {}))(row))
        for row, pixel in enumerate(pixels)
      ]
    },
  )
  folder = root / name / version
  if not named:
    info = json.loads((folder / "dataset_info.json").read_text())
    info.pop("name")
    for split in info["splits"]:
      split["filepathTemplate"] = "{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    for path in folder.glob(f"{name}-*"):
      path.rename(folder / path.name.removeprefix(f"{name}-"))
    (folder / "dataset_info.json").write_text(json.dumps(info))
  return folder


def opened(root, name, split="test"):
  return pipeline.open_source(ConfigDict({"name": name, "dir": str(root)}), split)


def test_one_pixel_and_one_label_change_the_digest_and_the_place_does_not(tmp_path):
  for place, pixels in (("a", [1, 2, 3]), ("b", [1, 2, 3]), ("c", [1, 2, 4]), ("d", [1, 2, 3, 3])):
    write_set(tmp_path / place, "own", pixels)
  digests = [opened(tmp_path / place, "own").split.digest for place in "abcd"]
  assert digests[0] == digests[1] and len(set(digests)) == 3
  assert opened(tmp_path / "a", "own", "test[:2]").split.digest != digests[0]


def test_the_digest_is_that_of_the_records_in_either_format(tmp_path):
  write_set(tmp_path / "a", "own", [row % 256 for row in range(300)])
  preparation.prepare(tmp_path / "a", tmp_path / "b", "own")
  record, array = opened(tmp_path / "a", "own").split, opened(tmp_path / "b", "own").split
  assert (record.file_format, array.file_format) == ("tfrecord", "array_record") and record.digest == array.digest


def test_a_run_holds_to_its_version_and_to_its_data(tmp_path):
  write_set(tmp_path, "own", [1, 2, 3])
  data = dataclasses.replace(config_keys.parse(mnist.get_config()).data, name="own:1.*.*", dir=str(tmp_path))
  workdir = tmp_path / "run"
  workdir.mkdir()
  assert run_data.held(data, workdir).name == "own:1.*.*"
  run_data.write(
    data,
    workdir,
    eval_split=pipeline.open_source(data, "test").split,
    train_split=pipeline.open_source(data, "test").split,
  )
  write_set(tmp_path, "own", [7, 8, 9], version="1.1.0")
  newer = pipeline.open_source(data, "test").split
  with pytest.raises(UserError, match="own:1.1.0 test found is not the own:1.0.0"):
    run_data.check(data, workdir, eval_split=newer)
  same = pipeline.open_source(run_data.held(data, workdir), "test").split
  assert same.name == "own:1.0.0"
  run_data.check(data, workdir, eval_split=same)
  run_data.check(dataclasses.replace(data, name="own:1.1.0"), workdir, eval_split=newer)  # As asked for.


def test_a_set_without_a_name_has_that_of_its_folder(tmp_path):
  write_set(tmp_path, "own", [1], named=False)
  assert opened(tmp_path, "own").split.name == "own:1.0.0"


def test_an_evaluation_of_other_data_is_another_and_older_folders_still_read(tmp_path):
  request = {"data": "own:1.0.0", "data_digest": "a"}
  predictions_file.resume(tmp_path / "x", request)
  with pytest.raises(UserError, match="differs in: data_digest"):
    predictions_file.resume(tmp_path / "x", request | {"data_digest": "b"})
  predictions_file.resume(tmp_path / "old", {"data": "own:1.0.0"})
  assert predictions_file.resume(tmp_path / "old", request) == 0


@pytest.mark.parametrize(
  "feature, value, expected",
  [
    (tfds.features.Text(), "é", "é"),
    (tfds.features.Text(), b"\xff", "test:0"),
    (tfds.features.Text(), "", "test:0"),
    (tfds.features.Scalar(np.int64), 12, "12"),
    (tfds.features.Scalar(np.int32), 0, "0"),
    (tfds.features.Tensor(shape=(2,), dtype=np.int64), [1, 2], "test:0"),
    (tfds.features.Scalar(np.float32), 1, "test:0"),
    (tfds.features.Sequence(tfds.features.Text()), ["a", "b"], "test:0"),
    ({"x": tfds.features.Text()}, {"x": "a"}, "test:0"),
  ],
)
def test_an_id_of_any_type_names_an_example_or_its_place_does(tmp_path, feature, value, expected):
  write_set(tmp_path, "own", [1], {"id": feature}, lambda row: {"id": value})
  source = opened(tmp_path, "own")
  assert annotations.read(source.split, source.records, np.array([0]), np.array([True]))[0].id == expected
  assert source.records.describe(0, source.records.read([0])[0])


@pytest.mark.parametrize(
  "split", ["test[2:1]", "test[:0]", "test[1:1]", "test[-1:-2]", "test[80%:20%]", "test[:2]+test[2:1]"]
)
def test_a_slice_without_examples_is_refused_when_it_is_opened(tmp_path, split):
  write_set(tmp_path, "own", [1, 2, 3])
  with pytest.raises(datasets.DataError, match="has no examples in"):
    opened(tmp_path, "own", split)


def test_data_that_are_there_in_another_way_are_said_to_be(tmp_path):
  folder = write_set(tmp_path / "data", "own", [1])
  for place in (folder, folder.parent):
    with pytest.raises(datasets.DataError, match=f"give data.dir={tmp_path / 'data'}"):
      opened(place, "own")
  moved = folder.rename(tmp_path / "data" / "moved")
  with pytest.raises(datasets.DataError, match="is the folder of a data set itself"):
    opened(moved, "own")
  moved.rename(folder)
  (folder / "features.json").unlink()
  with pytest.raises(datasets.DataError, match="without features.json, as TFDS before 3.2.1 .* TFDS has no 'own'"):
    opened(tmp_path / "data", "own")


def test_the_command_for_an_old_set_of_tfds_writes_what_is_missing(tmp_path):
  """Also for a version that the TFDS of today does not make."""
  folder = write_set(tmp_path, "mnist", [1, 2], version="1.0.0")
  (folder / "features.json").unlink()
  with pytest.raises(datasets.DataError, match="features.json") as caught:
    opened(tmp_path, "mnist")
  exec(re.search(r'python -c "(.*)"', str(caught.value))[1])
  split = opened(tmp_path, "mnist").split
  assert (split.name, split.num_examples, split.num_classes) == ("mnist:1.0.0", 2, 10)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", [b"", b"\0" * 64, None, b"no JSON", b"[]", b"7", b'{"splits": 7}', b"\xff\xfe"])
def test_damaged_metadata_of_a_data_set_are_named(tmp_path, file, damage):
  path = write_set(tmp_path, "own", [1, 2, 3]) / file
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2] if damage is None else damage)
  with pytest.raises(datasets.DataError, match="dataset_info.json or features.json") as caught:
    opened(tmp_path, "own")
  assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "config, image_size, refused",
  [
    (mnist.get_config("bn"), 28, True),
    (bn_x5.get_config("imagenet"), 32, True),
    (bn_x5.get_config("imagenet"), 64, False),
    (bn_x5.get_config("quickstart"), 8, True),
  ],
)
def test_groups_of_one_value_are_refused(config, image_size, refused):
  config.data.image_size = config.data.eval_resize = image_size
  config.batch_norm.group_size = 1
  if refused:
    with pytest.raises(config_checks.ConfigError, match="would normalize a single value"):
      config_checks.check_config(config, devices=1)
  else:
    config_checks.check_config(config, devices=1)


@pytest.mark.parametrize(
  "config, num_examples, statistics, refused",
  [
    (mnist.get_config("bn"), 1 + 3 * 60, ("running", "batch"), True),
    (mnist.get_config("bn"), 1, ("batch",), True),
    (mnist.get_config("bn"), 2 + 3 * 60, ("batch",), False),
    (mnist.get_config("bn"), 1 + 3 * 60, ("running",), False),
    (mnist.get_config("plain"), 1 + 3 * 60, ("batch",), False),
    (bn_x5.get_config("quickstart"), 1 + 3 * 32, ("batch",), False),
  ],
)  # Its smallest map is 4x4.
def test_a_last_group_of_one_value_is_refused(config, num_examples, statistics, refused):
  config.eval.statistics = statistics
  config = config_keys.parse(config)
  split = datasets.open_split(dataclasses.replace(config.data, name="fake"), config.data.eval_split)
  split = dataclasses.replace(split, num_examples=num_examples)
  if refused:
    with pytest.raises(datasets.DataError, match="of which one is left for the last BN group"):
      config_checks.check_data(config, split)
  else:
    config_checks.check_data(config, split)


@pytest.mark.parametrize("content", [b"", b"\0\0", b"{", b"[1]", b"\xff{}", b"null"])
def test_a_damaged_config_or_status_is_named(tmp_path, content):
  for name, read in (("config.json", run_directory.read_config), ("status.json", run_directory.read_status)):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(run_directory.DamagedFileError, match=name):
      read(tmp_path)


@pytest.mark.parametrize("torn", [b"\0\0\0", b"\n", b"\n\0\n", b"{\n", b'{"step": 2, "train/lo', b"\xff\n", b"[]\n"])
def test_a_torn_end_of_the_metrics_is_repaired_and_a_torn_middle_named(tmp_path, torn):
  run_directory.append_metrics(tmp_path, 1, 32, {"train/loss": 1.0})
  path = run_directory.metrics_path(tmp_path)
  whole = path.read_bytes()
  path.write_bytes(whole + torn)
  assert [line["step"] for line in run_directory.read_metrics(tmp_path)] == [1]
  run_directory.drop_metrics_after(tmp_path, 1)
  assert path.read_bytes() == whole
  path.write_bytes(whole + torn + b"\n" + whole)
  with pytest.raises(run_directory.DamagedFileError, match="metrics.jsonl is damaged in line 2"):
    run_directory.read_metrics(tmp_path)


def test_tensorflow_that_was_used_before_does_no_harm(repository):
  program = "import tensorflow as tf; tf.constant(1) + 1; from bn_inception.data import host_tf"
  result = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("names", [("module.a.weight", "module.b"), ("module.module.a.weight", "module.module.b")])
def test_the_prefix_of_data_parallel_is_removed(names):
  tensors = {name: np.arange(3, dtype=np.float32) + row for row, name in enumerate(names)}
  read = torch_file.read(torch_file.write(tensors))
  assert list(read) == ["a.weight", "b"] and read["b"].tolist() == [1, 2, 3]
  mixed = {"module.a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}
  assert list(torch_file.read(torch_file.write(mixed))) == ["module.a", "b"]
