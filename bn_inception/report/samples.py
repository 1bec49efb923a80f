"""A picture of training examples with the names of their labels."""

from collections.abc import Sequence
import math
import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

_COLUMNS = 8


def draw(images: np.ndarray, names: Sequence[str], path: pathlib.Path) -> None:
  """Draws a sheet of images, eight a row.

  Args:
    images: uint8 [n, height, width, 1 or 3].
    names: n labels.
    path: the .png file to write.
  """
  rows = math.ceil(len(images) / _COLUMNS)
  figure = Figure(figsize=(1.6 * _COLUMNS, 1.8 * rows), layout="constrained")
  FigureCanvasAgg(figure)
  for axes, image, name in zip(figure.subplots(rows, _COLUMNS, squeeze=False).flat, images, names):
    axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
    axes.set_title(name, fontsize=8)
  for axes in figure.axes:
    axes.set_axis_off()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)
