"""The records of a split as a random-access source for Grain (https://google-grain.readthedocs.io), by their index.

Training here does not use Grain: its input is `pipeline.py`. This is for others who want to read the same records. The
source is Grain's protocol, `__len__` and `__getitem__`, and needs no Grain itself.
"""

import operator
import threading
from typing import Any

from bn_inception.config_keys import Data
from bn_inception.data import annotations, datasets, evaluation_crops
from bn_inception.data.datasets import Split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import Records, open_records


class GrainSource:
  """A `grain.sources.RandomAccessDataSource` of a split; thread-safe, and picklable for Grain's worker processes.

  Element i is record i in stored order, a dict of `image`, `label` (int; a list of ints where an example may have any
  number of labels) and `id` (the data set's own name of it, else 'SPLIT:INDEX'). `image` is uint8 [height, width,
  channels] in RGB or gray, or with `decode=False` the bytes of its JPEG or PNG file.
  """

  def __init__(self, data: Data, split: str, *, decode: bool = True):
    """Finds the split and opens its files.

    Args:
      data: has `name` and `dir`, as for `datasets.open_split`.
      split: a name, or a slice such as 'train[:90%]'.
      decode: whether to decode the images.

    Raises:
      DataError: for data that cannot be found or files that cannot be used.
    """
    self._restore(datasets.open_split(data, split), decode)
    self._open()

  def _restore(self, split: Split, decode: bool) -> None:
    self._split, self._decode = split, decode
    self._records, self._lock = None, threading.Lock()

  def _open(self) -> Records:
    with self._lock:
      if self._records is None:
        self._records = open_records(self._split)
      return self._records

  def __getstate__(self) -> tuple[Split, bool]:
    return self._split, self._decode

  def __setstate__(self, state: tuple[Split, bool]) -> None:
    self._restore(*state)  # Each process opens the files itself, when it first reads.

  def __repr__(self) -> str:
    return f"GrainSource({self._split.name!r}, {self._split.split!r}, decode={self._decode})"

  def __len__(self) -> int:
    return self._split.num_examples

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads a record.

    Raises:
      IndexError: for an index that is not in [0, len).
      DataError: for a record that is damaged or has no label; tf.errors.InvalidArgumentError: for one that is no image.
    """
    index = operator.index(index)
    if not 0 <= index < len(self):
      raise IndexError(f"{self!r} has no element {index}: its {len(self)} have the indices from 0 on.")
    (record,) = self._open().read([index])
    example = tf.train.Example.FromString(record)
    annotation = annotations.of_example(self._split, index, example)
    image = example.features.feature[self._split.image_key].bytes_list.value[0]
    if self._decode:
      image = evaluation_crops.decode(tf.constant(image), channels=self._split.image_channels).numpy()
    return {"image": image, "label": annotation.label, "id": annotation.id}
