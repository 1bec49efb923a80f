"""A PyTorch DataLoader with torchvision's RandomResizedCrop, to measure against; both packages are optional.

The transforms are those of the ImageNet example in pytorch/examples. A program of its own, because PyTorch and
TensorFlow do not always bear each other in one process: `python -m bn_inception.tools.torchvision_loader FILE SIZE
BATCH_SIZE WORKERS WARM_UP_BATCHES SECONDS` prints images a second. FILE is a pickled list of encoded images.
"""

import io
import pathlib
import pickle
import sys
import time

import torch
from PIL import Image
from torchvision import transforms


class Images(torch.utils.data.Dataset):
  """Encoded images in memory; examples are float32 [3, size, size]."""

  def __init__(self, encoded: list[bytes], size: int):
    self._encoded = encoded
    self._transform = transforms.Compose(
      [
        transforms.RandomResizedCrop(size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
      ]
    )

  def __len__(self) -> int:
    return len(self._encoded)

  def __getitem__(self, index: int) -> torch.Tensor:
    return self._transform(Image.open(io.BytesIO(self._encoded[index])).convert("RGB"))


def images_per_second(
  encoded: list[bytes], *, size: int, batch_size: int, workers: int, warm_up_batches: int, seconds: float
) -> float:
  """The rate of a loader with `workers` processes."""
  data = Images(encoded, size)
  endless = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**7)
  loader = iter(torch.utils.data.DataLoader(data, batch_size, sampler=endless, num_workers=workers))
  for _ in range(warm_up_batches):
    next(loader)
  count, begin = 0, time.monotonic()
  while (elapsed := time.monotonic() - begin) < seconds:
    count += len(next(loader))
  return count / elapsed


if __name__ == "__main__":
  file, *numbers = sys.argv[1:]
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
