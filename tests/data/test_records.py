"""Random access against TensorFlow's own sequential readers."""

import concurrent.futures
import dataclasses
import os
import pathlib
import threading

import numpy as np
import pytest
from array_record.python import array_record_module
from ml_collections import ConfigDict

from bn_inception.data.datasets import DataError, Split, open_split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import BadRecordError, TFRecordShard, open_records

LENGTHS = (5, 1, 12)
CONTENT = [[bytes([shard]) * (1 + 37 * row) for row in range(length)] for shard, length in enumerate(LENGTHS)]


def write(folder: pathlib.Path, file_format: str) -> Split:
  """A split of three small files."""
  files = [str(folder / f"set-train.{file_format}-0000{shard}-of-00003") for shard in range(3)]
  for path, content in zip(files, CONTENT):
    if file_format == "tfrecord":
      writer, write_one = (w := tf.io.TFRecordWriter(path)), w.write
    else:
      writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
      write_one = writer.write
    for record in content:
      write_one(record)
    writer.close()
  return Split(
    name="set:1.0.0",
    split="train",
    num_examples=18,
    num_classes=2,
    label_names=("a", "b"),
    file_format=file_format,
    files=tuple(files),
    shard_starts=(0, 0, 0),
    shard_lengths=LENGTHS,
    file_lengths=LENGTHS,
    image_key="image",
    label_key="label",
    several_labels=False,
    id_key="",
    image_channels=3,
    image_side=None,
  )


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_any_order_across_files(tmp_path: pathlib.Path, file_format: str) -> None:
  records = open_records(write(tmp_path, file_format))
  flat = [record for content in CONTENT for record in content]
  assert len(records) == 18
  for indices in ([], [0], [17, 0, 5, 6, 5, 4, 17], range(18), np.random.default_rng(0).permutation(18)):
    assert records.read(indices) == [flat[i] for i in indices]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    orders = [np.random.default_rng(seed).permutation(18) for seed in range(200)]
    for order, result in zip(orders, pool.map(records.read, orders)):
      assert result == [flat[i] for i in order]
  for outside in (-1, 18):
    with pytest.raises(DataError, match="0 to 17"):
      records.read([outside])


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_slice_starts_within_a_file(tmp_path: pathlib.Path, file_format: str) -> None:
  whole = write(tmp_path, file_format)
  split = dataclasses.replace(
    whole, num_examples=6, files=whole.files[0::2], shard_starts=(3, 2), shard_lengths=(2, 4), file_lengths=(5, 12)
  )
  assert open_records(split).read(range(6)) == CONTENT[0][3:] + CONTENT[2][2:6]


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("keep", [0, 1, 100, -1, -3])
def test_a_cut_off_file_is_named(tmp_path: pathlib.Path, file_format: str, keep: int) -> None:
  split = write(tmp_path, file_format)
  damaged = pathlib.Path(split.files[2])
  damaged.write_bytes(damaged.read_bytes()[:keep])
  with pytest.raises(DataError, match=damaged.name):
    open_records(split)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_file_with_another_number_of_records_is_named(tmp_path: pathlib.Path, file_format: str) -> None:
  split = dataclasses.replace(write(tmp_path, file_format), file_lengths=(5, 1, 13))
  with pytest.raises(DataError, match="00002-of-00003 holds 12 whole records instead of 13"):
    open_records(split)
  pathlib.Path(split.files[1]).unlink()
  with pytest.raises(DataError, match="00001-of-00003"):
    open_records(split)


def test_a_garbled_length_and_trailing_bytes_are_noticed(tmp_path: pathlib.Path) -> None:
  split = write(tmp_path, "tfrecord")
  path = pathlib.Path(split.files[2])
  content = bytearray(path.read_bytes())
  path.write_bytes(content + b"more")
  with pytest.raises(DataError, match=f"{path.name}.*after 12 whole records"):
    open_records(split)
  content[3] ^= 0x40  # The first length grows by 2^30.
  path.write_bytes(content)
  with pytest.raises(DataError, match=path.name):
    open_records(split)


@pytest.mark.parametrize("name", ["cifar10", "imagenet2012"])
def test_real_files_byte_for_byte(shared: pathlib.Path, name: str) -> None:
  split = open_split(ConfigDict({"name": name, "dir": str(shared / "data" / "tfds")}), "train")
  records = open_records(split)
  sequential = list(tf.data.TFRecordDataset(split.files).take(2000).as_numpy_iterator())
  assert records.read(range(len(sequential))) == sequential


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_changed_byte_is_noticed_and_spares_the_other_records(tmp_path: pathlib.Path, file_format: str) -> None:
  split, flat = write(tmp_path, file_format), [record for content in CONTENT for record in content]
  path = pathlib.Path(split.files[2])
  # Incompressible, so that it is found in the file as it is; the seventh of its file.
  flat[13] = np.random.default_rng(0).bytes(500)
  writer = (
    tf.io.TFRecordWriter(str(path))
    if file_format == "tfrecord"
    else array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  )
  for record in flat[6:]:
    writer.write(record)
  writer.close()
  content = bytearray(path.read_bytes())
  content[content.index(flat[13][100:200])] ^= 1
  path.write_bytes(content)
  records = open_records(split)
  for indices in ([13], range(18), [17, 13, 0]):
    with pytest.raises(BadRecordError) as caught:
      records.read(indices)
    assert f"Record 13 of set:1.0.0 train (number 7 in {path})" in str(caught.value)
    assert "\n" not in str(caught.value) and "data.on_error=skip" in str(caught.value)
  good = [index for index in range(18) if index != 13]
  assert records.read(good) == [flat[index] for index in good]
  assert records.waiting_for() is None


def test_checksums_are_those_of_tensorflow(tmp_path: pathlib.Path) -> None:
  """Each single bit of a whole file, against TensorFlow's own reader."""
  path = tmp_path / "one.tfrecord"
  with tf.io.TFRecordWriter(str(path)) as writer:
    writer.write(b"content")
  whole = path.read_bytes()
  for bit in range(8 * len(whole)):
    content = bytearray(whole)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(ValueError):
      TFRecordShard(str(path)).read([0])
    with pytest.raises(tf.errors.DataLossError):
      list(tf.data.TFRecordDataset(str(path)))


def test_a_file_that_goes_away_is_not_a_bad_record(tmp_path: pathlib.Path) -> None:
  split = write(tmp_path, "tfrecord")
  records = open_records(split)
  pathlib.Path(split.files[1]).unlink()
  with pytest.raises(DataError, match="00001-of-00003 cannot be read any more .*file system") as caught:
    records.read([5])
  assert not isinstance(caught.value, BadRecordError)
  assert records.read([0]) == [CONTENT[0][0]]


def test_an_array_record_file_that_cannot_be_read_any_more_is_not_a_bad_record(tmp_path: pathlib.Path) -> None:
  split = write(tmp_path, "array_record")
  records = open_records(split)
  for link in pathlib.Path("/proc/self/fd").iterdir():
    if os.path.realpath(link) == os.path.realpath(split.files[1]):
      directory = os.open(tmp_path, os.O_RDONLY)
      os.dup2(directory, int(link.name))  # A directory cannot be read as a file; the reader closes the number itself.
      os.close(directory)
  with pytest.raises(DataError, match="00001-of-00003 cannot be read any more .*directory.*file system") as caught:
    records.read([5])
  assert not isinstance(caught.value, BadRecordError)


def test_what_a_read_waits_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  split = write(tmp_path, "tfrecord")
  records, arrived, release = open_records(split), threading.Event(), threading.Event()
  read = TFRecordShard.read

  def hang(shard, rows):
    arrived.set()
    release.wait(10)
    return read(shard, rows)

  monkeypatch.setattr(TFRecordShard, "read", hang)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    result = pool.submit(records.read, [9, 7])
    assert arrived.wait(10)
    assert records.waiting_for() == f"record 3 and 1 more of {split.files[2]} for 0 s"
    release.set()
    assert result.result() == [CONTENT[2][3], CONTENT[2][1]]
  assert records.waiting_for() is None
