"""Pictures of training images as the network gets them: the input pipeline's, with the device's distortions."""

import math
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from bn_inception import config_checks
from bn_inception.data import color_distortions, pipeline, stream
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
  source = pipeline.open_source(config.data, config.data.train_split)
  split = source.split
  config_checks.check_data(config, split)
  batch = next(pipeline.train_batches(config.data, source, seed=config.seed, batch_size=images))
  pixels = distorted(config, batch["image"][0], stream.local_positions(0, batch_size=images)[0])

  size, channels = pixels.shape[1], pixels.shape[3]
  rows = math.ceil(images / _COLUMNS)
  cell = size + _GAP
  sheet = np.full((rows * cell - _GAP, _COLUMNS * cell - _GAP, channels), 255, np.uint8)
  for number, image in enumerate(pixels):
    top, left = number // _COLUMNS * cell, number % _COLUMNS * cell
    sheet[top : top + size, left : left + size] = image
  encoded = tf.io.encode_png(sheet) if suffix == ".png" else tf.io.encode_jpeg(sheet, quality=quality)
  output.parent.mkdir(parents=True, exist_ok=True)
  output.write_bytes(encoded.numpy())
  return f"{output}: {images} training images of {split.name}, {sheet.shape[1]}x{sheet.shape[0]} pixels"


def draw_labelled(images: np.ndarray, names: Sequence[str], output: pathlib.Path) -> None:
  """Writes a picture of images with the names of their labels.

  Args:
    images: uint8 [n, height, width, 1 or 3].
    names: n labels.
    output: the .png file.
  """
  rows = math.ceil(len(images) / _COLUMNS)
  figure = Figure(figsize=(1.6 * _COLUMNS, 1.8 * rows), layout="constrained")
  FigureCanvasAgg(figure)
  for axes, image, name in zip(figure.subplots(rows, _COLUMNS, squeeze=False).flat, images, names):
    axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
    axes.set_title(name, fontsize=8)
  for axes in figure.axes:
    axes.set_axis_off()
  output.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(output, dpi=110, format="png")


def distorted(config: ConfigDict, images: np.ndarray, positions: np.ndarray) -> np.ndarray:
  """uint8 [n, height, width, channels] of the input at `positions` [n] with the photometric distortions of the step."""
  distort = jax.jit(
    lambda images, positions: color_distortions.distort(
      images, positions, seed=config.seed, strength=config.data.photometric_strength
    )
  )
  return np.round(np.asarray(distort(images, positions.astype(np.uint32)))).astype(np.uint8)
