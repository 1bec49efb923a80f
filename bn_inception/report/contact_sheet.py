"""A picture of training images as the network sees them: the input pipeline's, with the device's distortions."""

import pathlib

import jax
from ml_collections import ConfigDict
import numpy as np

from bn_inception import config_checks
from bn_inception.data import color_distortions, datasets, pipeline, stream
from bn_inception.data.host_tf import tf

_COLUMNS, _GAP = 8, 4  # Images in a row, and pixels between them.


def draw(config: ConfigDict, output: pathlib.Path, *, images: int = 64, quality: int = 80) -> str:
  """Writes the first training images of a config, distorted, as one picture.

  Args:
    config: a training config. Its batches are those of a run: the first positions of the training stream.
    output: a .png or .jpg file.
    images: how many.
    quality: of a JPEG, 1 to 100.

  Returns:
    One sentence on what was written.

  Raises:
    ConfigError, DataError: on what cannot be used, or an output of another kind.
  """
  suffix = output.suffix.lower()
  if suffix not in (".png", ".jpg"):
    raise config_checks.ConfigError(f"The picture {output} is neither a .png nor a .jpg file: give one of these.")
  config_checks.check_config(config, devices=1)
  split = datasets.open_split(config.data, config.data.train_split)
  config_checks.check_data(config, split)
  batch = next(pipeline.train_batches(config.data, seed=config.seed, batch_size=images))
  positions = stream.local_positions(0, batch_size=images)[0].astype(np.uint32)
  pixels = jax.jit(lambda images, positions: color_distortions.distort(
      images, positions, seed=config.seed, strength=config.data.photometric_strength))(batch["image"][0], positions)
  pixels = np.round(np.asarray(pixels)).astype(np.uint8)

  size, channels = pixels.shape[1], pixels.shape[3]
  rows = -(-images // _COLUMNS)
  cell = size + _GAP
  sheet = np.full((rows * cell - _GAP, _COLUMNS * cell - _GAP, channels), 255, np.uint8)
  for number, image in enumerate(pixels):
    top, left = number // _COLUMNS * cell, number % _COLUMNS * cell
    sheet[top : top + size, left : left + size] = image
  encoded = tf.io.encode_png(sheet) if suffix == ".png" else tf.io.encode_jpeg(sheet, quality=quality)
  output.parent.mkdir(parents=True, exist_ok=True)
  output.write_bytes(encoded.numpy())
  return f"{output}: {images} training images of {split.name}, {sheet.shape[1]}x{sheet.shape[0]} pixels"
