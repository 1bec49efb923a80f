"""Grain over this project's own records, to measure against; the package is optional.

A program of its own, since Grain starts processes: `python -m bn_inception.tools.grain_loader FILE SIZE BATCH_SIZE
WORKERS WARM_UP_BATCHES SECONDS` prints images a second. FILE is a pickled `GrainSource(..., decode=False)`. As Grain's
own guides do, records are shuffled, mapped, batched and read ahead by worker processes; the transform is torchvision's
RandomResizedCrop and flip, with OpenCV, which decodes faster than PIL, and its pixels stay bytes.
"""

import math
import pathlib
import pickle
import time
from typing import Any

import cv2
import numpy as np
from absl import app

from bn_inception.data.grain_source import GrainSource

try:
  import grain
except ImportError as error:
  raise ImportError('Grain is not installed: pip install -e ".[grain]".') from error


class Distort(grain.transforms.RandomMap):
  """{image: the bytes of a file, label} to {image: uint8 [size, size, 3], label}."""

  def __init__(self, size: int):
    self._size = size

  def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    pixels = cv2.imdecode(np.frombuffer(element["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
    top, left, height, width = _random_box(*pixels.shape[:2], rng)
    image = cv2.resize(pixels[top : top + height, left : left + width], (self._size, self._size))
    return {"image": cv2.flip(image, 1) if rng.random() < 0.5 else image, "label": element["label"]}


def _random_box(image_height: int, image_width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
  """Top, left, height and width; the centre if none of ten random ones fits."""
  for _ in range(10):
    area = image_height * image_width * rng.uniform(0.08, 1.0)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
    if 0 < height <= image_height and 0 < width <= image_width:
      return rng.integers(image_height - height + 1), rng.integers(image_width - width + 1), height, width
  side = min(image_height, image_width)
  return (image_height - side) // 2, (image_width - side) // 2, side, side


def batches(source: GrainSource, *, size: int, batch_size: int, workers: int) -> grain.IterDataset:
  """Endless batches {image: uint8 [batch_size, size, size, 3], label}; 0 workers: in threads of this process."""
  records = grain.MapDataset.source(source).seed(0).shuffle().repeat()
  examples = records.random_map(Distort(size)).batch(batch_size, drop_remainder=True).to_iter_dataset()
  return examples.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else examples


def images_per_second(
  source: GrainSource, *, size: int, batch_size: int, workers: int, warm_up_batches: int, seconds: float
) -> float:
  """The rate of a loader with `workers` processes."""
  loader = iter(batches(source, size=size, batch_size=batch_size, workers=workers))
  for _ in range(warm_up_batches):
    next(loader)
  count, begin = 0, time.monotonic()
  while (elapsed := time.monotonic() - begin) < seconds:
    count += len(next(loader)["label"])
  return count / elapsed


def main(argv: list[str]) -> None:
  cv2.setNumThreads(1)
  _, file, *numbers = argv
  image_size, batch_size, workers, warm_up_batches = map(int, numbers[:4])
  print(
    images_per_second(
      pickle.loads(pathlib.Path(file).read_bytes()),
      size=image_size,
      batch_size=batch_size,
      workers=workers,
      warm_up_batches=warm_up_batches,
      seconds=float(numbers[4]),
    )
  )


if __name__ == "__main__":
  app.run(main)  # Grain's processes read absl's flags, which must have been parsed.
