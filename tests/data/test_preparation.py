"""Preparing data: archives through the unmodified TFDS builder, TFRecord to ArrayRecord, interruptions of both."""

import csv
import io
import json
import pathlib
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from bn_inception.data import conversion, cores, imagenet_archives, preparation, working_folder
from bn_inception.data.datasets import DataError, open_split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import open_records

LABELS = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
VALIDATION_LABELS = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
# Two files that the real archive holds under these names as CMYK and PNG, and a class of ordinary ones.
CMYK, PNG, PLAIN = "n02447366_23489", "n02105855_2933", "n01440764_1"


def gradient(mode: str = "RGB") -> Image.Image:
  """A picture whose colours show which way they were read."""
  ramp = np.linspace(0, 255, 64)
  pixels = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 40)], 2)
  return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encode(image: Image.Image, file_format: str = "JPEG") -> bytes:
  """A file; a CMYK one is inverted as Adobe writes it."""
  buffer = io.BytesIO()
  image.save(buffer, file_format, **({"quality": 95} if file_format == "JPEG" else {}))
  return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
  info = tarfile.TarInfo(name)
  info.size = len(content)
  archive.addfile(info, io.BytesIO(content))


def tar(members: dict[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.USTAR_FORMAT) as archive:
    for name, content in members.items():
      add(archive, name, content)
  return buffer.getvalue()


def write_archives(folder: pathlib.Path, validation: int = 5) -> pathlib.Path:
  """Both archives with four training and a few validation images."""
  folder.mkdir(exist_ok=True)
  classes = {}
  for name, content in (
    (CMYK, encode(gradient("CMYK"))),
    (PNG, encode(gradient(), "PNG")),
    (PLAIN, encode(gradient())),
    ("n01440764_2", encode(gradient().rotate(90))),
  ):
    classes.setdefault(name.split("_")[0], {})[f"{name}.JPEG"] = content
  (folder / "ILSVRC2012_img_train.tar").write_bytes(tar({f"{c}.tar": tar(m) for c, m in classes.items()}))
  (folder / "ILSVRC2012_img_val.tar").write_bytes(
    tar({f"ILSVRC2012_val_{i:08d}.JPEG": encode(gradient().rotate(i)) for i in range(1, validation + 1)})
  )
  return folder


def run(repository: pathlib.Path, *flags: str, **kwargs) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "scripts/prepare_data.py", *flags],
    cwd=repository,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    **kwargs,
  )


def examples(data_dir: pathlib.Path, split: str) -> dict[str, dict]:
  """{file name: example}, read by TFDS itself."""
  builder = tfds.builder("imagenet2012:5.1.0", data_dir=data_dir)
  return {e["file_name"].decode(): e for e in builder.as_data_source(split)}


@pytest.fixture(scope="module", name="prepared")
def fixture_prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  root = tmp_path_factory.mktemp("prepared")
  preparation.prepare(write_archives(root / "archives"), root / "data", "imagenet2012")
  return root / "data"


def test_archives_become_arrayrecord_with_the_right_labels_and_colours(prepared: pathlib.Path) -> None:
  train, validation = examples(prepared, "train"), examples(prepared, "validation")
  assert set(train) == {f"{name}.JPEG" for name in (CMYK, PNG, PLAIN, "n01440764_2")}
  for name, example in train.items():
    assert LABELS[example["label"]] == name.split("_")[0]
    assert example["image"].shape == (64, 64, 3)
  for name in (CMYK, PNG, PLAIN):
    # A CMYK file goes through the printer's colours and two JPEG encodings.
    difference = np.abs(train[f"{name}.JPEG"]["image"].astype(float) - np.asarray(gradient()))
    assert difference.mean() < 4, name
  assert [LABELS[validation[f"ILSVRC2012_val_{i:08d}.JPEG"]["label"]] for i in range(1, 6)] == VALIDATION_LABELS[:5]
  split = open_split(ConfigDict({"name": "imagenet2012:5.*.*", "dir": str(prepared)}), "train")
  assert split.file_format == "array_record" and split.num_examples == 4 and split.num_classes == 1000
  for record in open_records(split).read(range(4)):
    encoded = tf.train.Example.FromString(record).features.feature["image"].bytes_list.value[0]
    assert Image.open(io.BytesIO(encoded)).mode == "RGB"  # As every user of the data set expects.
  assert sorted(path.name for path in prepared.iterdir()) == ["imagenet2012"]  # Nothing is left behind.


def test_a_second_run_has_nothing_to_do(
  prepared: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
  with caplog.at_level("INFO", "bn_inception"):
    preparation.prepare(write_archives(tmp_path / "archives"), prepared, "imagenet2012")
  assert "is prepared already" in caplog.text


def cut(folder: pathlib.Path) -> None:
  path = folder / "ILSVRC2012_img_train.tar"
  path.write_bytes(path.read_bytes()[:-30_000])


def drop_a_validation_image(folder: pathlib.Path) -> None:
  image = encode(gradient())
  names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (1, 2, 4)]
  (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(dict.fromkeys(names, image)))


@pytest.mark.parametrize(
  "damage, words",
  [
    (lambda folder: [path.unlink() for path in folder.iterdir()], ["holds neither", "image-net.org"]),
    (cut, ["damaged or cut off", "image-net.org", "ILSVRC2012_img_train.tar"]),
    (drop_a_validation_image, ["Image 3", "ILSVRC2012_val_00000004.JPEG", "labels would not fit"]),
    (
      lambda folder: (folder / "ILSVRC2012_img_train.tar").write_bytes(tar({"n99999999.tar": tar({})})),
      ["n99999999.tar", "no class of ILSVRC2012"],
    ),
    (lambda folder: (folder / "ILSVRC2012_img_train.tar").write_bytes(b"\0" * 10240), ["holds no image"]),
    (lambda folder: (folder / "ILSVRC2012_img_val.tar").write_bytes(b"<html>not found</html>" * 100), ["damaged"]),
  ],
)
def test_what_is_wrong_with_the_archives_is_said_in_one_sentence(
  tmp_path: pathlib.Path, damage: Callable[[pathlib.Path], None], words: list[str]
) -> None:
  archives = write_archives(tmp_path / "archives")
  damage(archives)
  with pytest.raises(DataError) as caught:
    preparation.prepare(archives, tmp_path / "data", "imagenet2012")
  text = str(caught.value)
  assert all(word in text for word in words) and "\n" not in text, text
  assert not (tmp_path / "data" / "imagenet2012").exists()


def test_what_cannot_be_begun(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  archives = write_archives(tmp_path / "archives")
  with pytest.raises(DataError, match="is not a folder"):
    preparation.prepare(tmp_path / "nowhere", tmp_path / "data", "imagenet2012")
  with pytest.raises(DataError, match="--name=imagenet2012"):
    preparation.prepare(archives, tmp_path / "data", "imagenet_v2")
  (tmp_path / "file").write_text("")
  with pytest.raises(DataError, match="Cannot write to"):
    preparation.prepare(archives, tmp_path / "file" / "data", "imagenet2012")
  (tmp_path / "half" / "imagenet2012" / "5.1.0").mkdir(parents=True)
  (tmp_path / "half" / "imagenet2012" / "5.1.0" / "leftover").write_text("")
  with pytest.raises(DataError, match="not a whole data set: remove it"):
    preparation.prepare(archives, tmp_path / "half", "imagenet2012")
  monkeypatch.setattr(working_folder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
  with pytest.raises(DataError, match="1.0 kB free, and .* needed"):
    preparation.prepare(archives, tmp_path / "data", "imagenet2012")


def test_a_finished_split_is_kept_and_a_changed_archive_is_not(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
  archives, data = write_archives(tmp_path / "archives"), tmp_path / "data"
  prepare_split = imagenet_archives.prepare_split

  def interrupted(source, work, complete, split, count):
    if split == "train":
      (work / "train").mkdir()
      (work / "train" / "leftover").write_text("x")
      raise KeyboardInterrupt
    prepare_split(source, work, complete, split, count)

  caplog.set_level("INFO", "bn_inception")
  with monkeypatch.context() as patch:
    patch.setattr(imagenet_archives, "prepare_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
      preparation.prepare(archives, data, "imagenet2012")
    assert not (data / "imagenet2012").exists()
  with monkeypatch.context() as patch:  # Another download of the validation archive.
    write_archives(tmp_path / "archives", validation=6)
    patch.setattr(imagenet_archives, "prepare_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
      preparation.prepare(archives, data, "imagenet2012")
    assert "validation: finished" not in caplog.text
  preparation.prepare(archives, data, "imagenet2012")
  assert "validation: finished by an earlier run, 6 examples" in caplog.text
  assert "train: removing what an interrupted run left" in caplog.text
  assert len(examples(data, "train")) == 4 and len(examples(data, "validation")) == 6


@pytest.mark.parametrize("there, absent", [("validation", "train"), ("train", "validation")])
def test_one_archive_alone_gives_its_split(
  tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, there: str, absent: str
) -> None:
  archives, data = write_archives(tmp_path / "archives"), tmp_path / "data"
  names = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
  missing = (archives / names[absent]).rename(tmp_path / "elsewhere")
  preparation.prepare(archives, data, "imagenet2012")
  assert f"{absent}: {names[absent]} is not in {archives}; going on without this split" in caplog.text
  assert len(examples(data, there)) == {"train": 4, "validation": 5}[there]
  config = ConfigDict({"name": "imagenet2012:5.*.*", "dir": str(data)})
  assert open_split(config, there).num_classes == 1000
  with pytest.raises(DataError, match=f"no split '{absent}': its splits are {there}"):
    open_split(config, absent)
  preparation.prepare(archives, data, "imagenet2012")
  missing.rename(archives / names[absent])  # It is no whole set any more, which is not passed over.
  with pytest.raises(DataError, match=f"was prepared without {names[absent]} and has no split '{absent}': remove it"):
    preparation.prepare(archives, data, "imagenet2012")


def test_a_finished_split_does_not_need_its_archive_any_more(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  archives, data = write_archives(tmp_path / "archives"), tmp_path / "data"
  prepare_split = imagenet_archives.prepare_split

  def interrupted(source, work, complete, split, count):
    if split == "train":
      raise KeyboardInterrupt
    prepare_split(source, work, complete, split, count)

  with monkeypatch.context() as patch:
    patch.setattr(imagenet_archives, "prepare_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
      preparation.prepare(archives, data, "imagenet2012")
  (archives / "ILSVRC2012_img_val.tar").unlink()
  preparation.prepare(archives, data, "imagenet2012")
  assert len(examples(data, "train")) == 4 and len(examples(data, "validation")) == 5


def test_two_at_once_exclude_each_other(tmp_path: pathlib.Path) -> None:
  archives = write_archives(tmp_path / "archives")
  with working_folder.exclusive(tmp_path / "imagenet2012" / "5.1.0", tmp_path):
    with pytest.raises(DataError, match="by another process"):
      preparation.prepare(archives, tmp_path, "imagenet2012")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_real_archives_interrupted_on_the_way(
  shared: pathlib.Path, repository: pathlib.Path, tmp_path: pathlib.Path, stop: signal.Signals
) -> None:
  source = shared / "data" / "ilsvrc_small"
  flags = (f"--source={source}", f"--data_dir={tmp_path}")
  process = run(repository, *flags)
  marker = tmp_path / ".imagenet2012-5.1.0.preparing" / "validation.json"
  while not marker.exists() and process.poll() is None:
    time.sleep(0.001)
  process.send_signal(stop)
  process.communicate(timeout=300)
  assert process.returncode == (130 if stop != signal.SIGKILL else -signal.SIGKILL)
  assert not (tmp_path / "imagenet2012").exists()
  again = run(repository, *flags)
  output, error = again.communicate(timeout=300)
  assert again.returncode == 0, error
  assert "validation: finished by an earlier run, 80 examples" in output
  assert [path.name for path in tmp_path.iterdir()] == ["imagenet2012"]

  with open(source / "manifest.tsv", newline="") as file:
    manifest = list(csv.DictReader(file, delimiter="\t"))
  originals = tfds.builder_from_directory(shared / "data/tfds/imagenet2012/5.1.0").as_dataset(split="train")
  originals = {e["file_name"].decode().split("_")[0]: e["image"] for e in originals.as_numpy_iterator()}
  for split in ("train", "validation"):
    expected = {row["file"]: row for row in manifest if row["split"] == split}
    found = examples(tmp_path, split)
    assert found.keys() == expected.keys() and len(found) == 80
    for name, example in found.items():
      wnid = expected[name]["wnid"]
      assert LABELS[example["label"]] == wnid
      # The same photographs, encoded once more: wrong colours would differ by tens of levels.
      assert np.abs(example["image"].astype(float) - originals[wnid]).mean() < 4, name


# TFRecord to ArrayRecord.


class Shards(tfds.core.GeneratorBasedBuilder):
  """Small random images."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": tfds.features.ClassLabel(num_classes=5)}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    return {"train": self._generate_examples(50), "test": self._generate_examples(7)}

  def _generate_examples(self, count: int):
    random = np.random.default_rng(count)
    for row in range(count):
      yield row, {"image": random.integers(0, 256, (8, 8, 3), np.uint8), "label": row % 5}


@pytest.fixture(name="tfrecord")
def fixture_tfrecord(tmp_path: pathlib.Path) -> pathlib.Path:
  """A data_dir with 'shards:1.0.0', each split in three TFRecord files."""
  config = tfds.download.DownloadConfig(num_shards=3)
  Shards(data_dir=tmp_path / "tfrecord").download_and_prepare(download_config=config)
  return tmp_path / "tfrecord"


def stored(data_dir: pathlib.Path, split: str) -> list[bytes]:
  opened = open_split(ConfigDict({"name": "shards", "dir": str(data_dir)}), split)
  return open_records(opened).read(range(opened.num_examples))


def test_conversion_keeps_every_record_in_its_place(tfrecord: pathlib.Path, tmp_path: pathlib.Path) -> None:
  preparation.prepare(tfrecord, tmp_path / "array", "shards")
  folders = [path / "shards" / "1.0.0" for path in (tfrecord, tmp_path / "array")]
  assert {p.name.replace("array_record", "tfrecord") for p in folders[1].iterdir()} == {
    p.name for p in folders[0].iterdir()
  }
  infos = [json.loads((folder / "dataset_info.json").read_text()) for folder in folders]
  assert infos[1] == infos[0] | {"fileFormat": "array_record", "splits": infos[1]["splits"]}
  for before, after in zip(infos[0]["splits"], infos[1]["splits"]):
    assert (before["shardLengths"], before["numBytes"]) == (after["shardLengths"], after["numBytes"])
  for split in ("train", "test"):
    files = sorted(folders[0].glob(f"shards-{split}.*"))
    assert stored(tmp_path / "array", split) == list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    source = tfds.builder_from_directory(folders[1]).as_data_source(split)
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    expected = tfds.builder_from_directory(folders[0]).as_dataset(split=split, read_config=in_order)
    for one, two in zip(source, expected.as_numpy_iterator(), strict=True):
      np.testing.assert_array_equal(one["image"], two["image"])
      assert one["label"] == two["label"]


def test_conversion_goes_on_after_an_interruption(
  tfrecord: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  target = tmp_path / "array"
  convert_file, converted = conversion.convert_file, []

  def third_is_killed(source, path, length, stopped):
    if len(converted) == 2:
      path.with_name(path.name + ".partial").write_bytes(b"half")
      raise KeyboardInterrupt
    converted.append(path.name)
    convert_file(source, path, length, stopped)

  monkeypatch.setattr(cores, "available", lambda: 1)
  with monkeypatch.context() as patch:
    patch.setattr(conversion, "convert_file", third_is_killed)
    with pytest.raises(KeyboardInterrupt):
      preparation.prepare(tfrecord, target, "shards")
  assert not (target / "shards").exists()

  def remember(source, path, length, stopped):
    converted.append(path.name)
    convert_file(source, path, length, stopped)

  monkeypatch.setattr(conversion, "convert_file", remember)
  preparation.prepare(tfrecord, target, "shards")
  assert len(converted) == len(set(converted)) == 6  # None twice.
  assert not list(target.rglob("*.partial"))
  for split in ("train", "test"):
    assert stored(target, split) == stored(tfrecord, split)


@pytest.mark.parametrize("place, words", [(-3, ["is damaged", "checksum"]), (2, ["damaged after 0 whole records"])])
def test_conversion_does_not_copy_damage(
  tfrecord: pathlib.Path, tmp_path: pathlib.Path, place: int, words: list[str]
) -> None:
  path = next((tfrecord / "shards" / "1.0.0").glob("*train*00001-of*"))
  content = bytearray(path.read_bytes())
  content[place] ^= 1
  path.write_bytes(content)
  with pytest.raises(DataError) as caught:
    preparation.prepare(tfrecord, tmp_path / "array", "shards")
  assert path.name in str(caught.value) and all(word in str(caught.value) for word in words)
  assert not (tmp_path / "array" / "shards").exists()


def test_a_copy_that_reads_back_otherwise_is_not_accepted(
  tfrecord: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  class Forgetful:
    def __init__(self, *arguments):
      self._writer, self._count = writer(*arguments), 0

    def write(self, record):
      self._count += 1
      self._writer.write(record[:-1] + b"?" if self._count == 5 else record)

    def close(self):
      self._writer.close()

  writer = conversion.array_record_module.ArrayRecordWriter
  monkeypatch.setattr(conversion.array_record_module, "ArrayRecordWriter", Forgetful)
  with pytest.raises(DataError, match="reads back otherwise"):
    preparation.prepare(tfrecord, tmp_path / "array", "shards")


def test_a_disk_that_is_full_meanwhile_is_a_sentence(
  tfrecord: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  class Full:
    def __init__(self, path, options):
      self._path = path

    def write(self, record):  # In ArrayRecord's words.
      raise RuntimeError(f"write() failed: No space left on device; writing {self._path}; at byte 12124160")

  monkeypatch.setattr(conversion.array_record_module, "ArrayRecordWriter", Full)
  with pytest.raises(DataError, match=r"partial cannot be read or written \(write\(\) failed: No space left on dev"):
    preparation.prepare(tfrecord, tmp_path / "array", "shards")
  monkeypatch.undo()
  preparation.prepare(tfrecord, tmp_path / "array", "shards")


def test_what_cannot_be_converted(tfrecord: pathlib.Path, tmp_path: pathlib.Path) -> None:
  with pytest.raises(DataError, match="give another --data_dir"):
    preparation.prepare(tfrecord, tfrecord, "shards")
  with pytest.raises(DataError, match="neither .* nor a prepared cifar10"):
    preparation.prepare(tfrecord, tmp_path / "array", "cifar10")
  with pytest.raises(DataError, match="neither .* nor a prepared"):
    preparation.prepare(tfrecord, tmp_path / "array", "")
  preparation.prepare(tfrecord, tmp_path / "array", "shards")
  with pytest.raises(DataError, match="nothing to convert"):
    preparation.prepare(tmp_path / "array", tmp_path / "again", "shards")
