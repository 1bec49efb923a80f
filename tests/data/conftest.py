"""Data sets of a few given images, prepared by TFDS."""

import pathlib
from collections.abc import Callable, Sequence

import pytest
import tensorflow_datasets as tfds


class Pictures(tfds.core.GeneratorBasedBuilder):
  """Image files and their labels, given to the constructor."""

  VERSION = tfds.core.Version("2.3.4")

  def __init__(self, *, files: Sequence[pathlib.Path], labels: Sequence[int], **kwargs):
    self._files, self._labels = files, labels
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=3)}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for row, (file, label) in enumerate(zip(self._files, self._labels)):
      yield row, {"image": str(file), "label": label}


class ReassessedPictures(Pictures):
  """With names and any number of labels an image, as TFDS's imagenet2012_real."""

  def _info(self) -> tfds.core.DatasetInfo:
    label = tfds.features.ClassLabel(num_classes=10)
    features = {
      "image": tfds.features.Image(),
      "file_name": tfds.features.Text(),
      "original_label": label,
      "real_label": tfds.features.Sequence(label),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "real_label")
    )

  def _generate_examples(self):
    for row, (file, labels) in enumerate(zip(self._files, self._labels)):
      yield row, {"image": str(file), "file_name": f"val_{row:04}.JPEG", "original_label": 0, "real_label": labels}


@pytest.fixture
def prepare_pictures(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
  """A function of encoded images and labels that prepares 'pictures:2.3.4' (with lists of labels
  'reassessed_pictures:2.3.4') and returns its data_dir."""

  def prepare(images: Sequence[bytes], labels: Sequence[int | Sequence[int]]) -> pathlib.Path:
    builder = Pictures if isinstance(labels[0], int) else ReassessedPictures
    files = [tmp_path / f"{row}.image" for row in range(len(images))]
    for file, image in zip(files, images):
      file.write_bytes(image)
    builder(files=files, labels=labels, data_dir=tmp_path).download_and_prepare(file_format="tfrecord")
    return tmp_path

  return prepare
