"""What is known of an evaluation example beside its pixels: what it is called and how it is labelled."""

from typing import NamedTuple

import numpy as np

from bn_inception.data.datasets import DataError, Split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import Records


class Annotation(NamedTuple):
  """Of one example.

  Attributes:
    id: the data set's own name of it (of ImageNet the file name), else 'SPLIT:INDEX'.
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
  if not places.size:  # All were skipped.
    return annotations
  features = {split.label_key: tf.io.RaggedFeature(tf.int64)}
  if split.id_key:
    features[split.id_key] = tf.io.FixedLenFeature([], tf.string)
  examples = tf.io.parse_example(records.read(indices[places]), features)
  for row, (place, labels) in enumerate(zip(places, examples[split.label_key].to_list(), strict=True)):
    name = examples[split.id_key][row].numpy().decode() if split.id_key else annotations[place].id
    if len(labels) != 1 and not split.several_labels or not all(0 <= label < split.num_classes for label in labels):
      raise DataError(f"Record {indices[place]} of {split.name} {split.split} has no label of the {split.num_classes} "
                      f"there are (it is {', '.join(map(str, labels)) or 'missing'}): choose a split that has labels.")
    annotations[place] = Annotation(name, labels if split.several_labels else labels[0])
  return annotations
