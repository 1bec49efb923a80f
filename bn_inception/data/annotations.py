"""What is known of an evaluation example beside its pixels: what it is called and how it is labelled."""

from typing import NamedTuple

import numpy as np

from bn_inception.data.datasets import DataError, Split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import Records, name_of


class Annotation(NamedTuple):
  """Of one example.

  Attributes:
    id: the data set's own name of it (of ImageNet the file name) if it is a text or a number, else 'SPLIT:INDEX'.
    label: the right class; a list of any length where an example may have several (imagenet2012_real); None if the
      example was skipped.
  """

  id: str
  label: int | list[int] | None


def read(split: Split, records: Records, indices: np.ndarray, mask: np.ndarray) -> list[Annotation]:
  """Reads the annotations of the records `indices` int64 [n] of a split; no image is decoded.

  Args:
    split: of the data set.
    records: of the split.
    indices: int64 [n].
    mask: bool [n]; records where it is False were skipped and are not read.

  Raises:
    DataError: naming a record without a label, in a data set where each should have one, or with an unknown one.
  """
  annotations = [Annotation(f"{split.split}:{index}", None) for index in indices]
  places = np.flatnonzero(mask)
  if places.size:
    for place, record in zip(places, records.read(indices[places]), strict=True):
      annotations[place] = of_example(split, indices[place], tf.train.Example.FromString(record))
  return annotations


def of_example(split: Split, index: int, example: tf.train.Example) -> Annotation:
  """The annotation of record `index` of a split.

  Raises:
    DataError: as `read`.
  """
  features = example.features.feature
  labels = list(features[split.label_key].int64_list.value)
  if len(labels) != 1 and not split.several_labels or not all(0 <= label < split.num_classes for label in labels):
    raise DataError(
      f"Record {index} of {split.name} {split.split} has no label of the {split.num_classes} there are "
      f"(it is {', '.join(map(str, labels)) or 'missing'}): choose a split that has labels."
    )
  name = name_of(example, split) or f"{split.split}:{index}"
  return Annotation(name, labels if split.several_labels else labels[0])
