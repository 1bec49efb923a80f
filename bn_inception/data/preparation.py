"""Prepares data sets as ArrayRecord: ImageNet from its official archives, sets that TFDS has stored as TFRecord,
folders of images, and what TFDS can download.

All but the last work in a folder beside their result (working_folder.py) and keep there what is finished: a split of
the archives, a file of a converted set; of a folder of images nothing.
"""

import pathlib
import re

from bn_inception.data import conversion, download, imagenet_archives, own_images
from bn_inception.data.datasets import DataError


def prepare(
  source: pathlib.Path | None,
  data_dir: pathlib.Path,
  name: str,
  *,
  holdout: float | None = None,
  seed: int = 0,
  on_error: str = "fail",
) -> None:
  """Prepares `name` in `data_dir` from what `source` holds.

  Args:
    source: a folder with the ILSVRC2012 archives or one of them, whose split alone is prepared then; a TFDS data_dir in
      which `name` is stored as TFRecord; or a folder of images (own_images.py). None: TFDS downloads `name`.
    data_dir: TFDS data_dir for the result.
    name: NAME[/CONFIG][:VERSION], as `config.data.name`; for the archives 'imagenet2012'.
    holdout, seed: of a folder of images, see `own_images.find`.
    on_error: what to do where one of these cannot be read: "fail", or "skip" it.

  Raises:
    DataError: one sentence on what is missing, cannot be read or does not fit, and what to do.
    KeyboardInterrupt: if interrupted; the same call goes on.
  """
  if source is None:
    return download.prepare(data_dir, name)
  if not source.is_dir():
    raise DataError(f"--source={source} is not a folder: give the one with the ILSVRC2012 archives or a TFDS data_dir.")
  try:
    if any((source / archive).exists() for archive in imagenet_archives.ARCHIVES.values()):
      return imagenet_archives.prepare(source, data_dir, name)
    if own_images.is_source(source):
      return own_images.prepare(source, data_dir, name, holdout, seed, on_error)
    if re.match(r"\w", name) and any(source.glob(f"{re.split('[/:]', name)[0]}/*")):
      return conversion.prepare(source, data_dir, name)
  except OSError as error:  # A full disk, a medium that fails.
    raise DataError(
      f"{error.filename or data_dir} cannot be read or written ({error.strerror or error}): when that is mended, the "
      "same command goes on."
    ) from error
  archives = " nor ".join(imagenet_archives.ARCHIVES.values())
  raise DataError(
    f"{source} holds neither {archives} nor a prepared {name} nor a folder of images for each "
    "class: get the archives from https://image-net.org/download-images (after registration) and give their folder "
    "as --source (for evaluation the one for validation is enough), or that of your own images."
  )
