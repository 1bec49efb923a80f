"""Prepares a public data set with TFDS, which downloads it. Nothing else in the project downloads data."""

import logging
import pathlib

import tensorflow_datasets as tfds

from bn_inception.data.datasets import DataError

_log = logging.getLogger(__name__)


def prepare(data_dir: pathlib.Path, name: str) -> None:
  """Downloads and prepares `name` in `data_dir` as ArrayRecord, unless it is there.

  TFDS renames a complete set into place and keeps complete downloads, so the same call goes on after an interruption.

  Args:
    data_dir: TFDS data_dir.
    name: NAME[/CONFIG][:VERSION] in the catalogue of TFDS.

  Raises:
    DataError: one sentence, if TFDS knows no such set or cannot download or prepare it.
  """
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
    raise DataError(
      f"TFDS has no data set '{name}' ({_first_line(error)}): choose one of "
      "https://www.tensorflow.org/datasets/catalog/overview, or give the folder of your own images as --source."
    ) from error
  if builder.name == "imagenet2012":
    raise DataError(
      "ImageNet cannot be downloaded without registration: get the archives from "
      "https://image-net.org/download-images and give their folder as --source."
    )
  try:
    builder.download_and_prepare(file_format="array_record")
  except Exception as error:  # Whatever the network, the disk and the code of a builder raise.
    raise DataError(
      f"TFDS cannot prepare {name} in {data_dir} ({type(error).__name__}: {_first_line(error)}): when that is mended, "
      "the same command goes on."
    ) from error
  _log.info("%s is ready: --config.data.dir=%s", builder.data_path, data_dir)


def _first_line(error: Exception) -> str:
  return next(iter(str(error).strip().splitlines()), "no reason given").rstrip(".:")
