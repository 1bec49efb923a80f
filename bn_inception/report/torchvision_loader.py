"""A PyTorch DataLoader with torchvision's RandomResizedCrop, to measure against; both packages are optional.

The transforms are those of the ImageNet example in pytorch/examples. A file of its own, because every worker process
imports it: nothing else is imported here.
"""

from collections.abc import Iterator, Sequence
import io

from PIL import Image
import torch
from torchvision import transforms


class _Images(torch.utils.data.Dataset):
  """Encoded images in memory."""

  def __init__(self, encoded: Sequence[bytes], size: int):
    self._encoded = encoded
    self._transform = transforms.Compose([
        transforms.RandomResizedCrop(size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])

  def __len__(self) -> int:
    return len(self._encoded)

  def __getitem__(self, index: int) -> torch.Tensor:
    torch.set_num_threads(1)
    return self._transform(Image.open(io.BytesIO(self._encoded[index])).convert("RGB"))


def batches(encoded: Sequence[bytes], *, size: int, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
  """Float batches [batch_size, 3, size, size] without end, made by `workers` processes."""
  data = _Images(encoded, size)
  endless = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**9)
  # The workers are not forked: this process has threads.
  yield from torch.utils.data.DataLoader(
      data, batch_size, sampler=endless, num_workers=workers, multiprocessing_context="spawn", drop_last=True
  )
