"""What is known of an evaluation example beside its pixels: what it is called and how it is labelled."""

from collections.abc import Sequence
from typing import NamedTuple

from bn_inception.data.datasets import DataError, Split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import Records


class Annotation(NamedTuple):
  """Of one example.

  Attributes:
    id: the data set's own name of it (of ImageNet the file name), else 'SPLIT:INDEX'.
    label: the right class; a list of any length where an example may have several (imagenet2012_real).
  """

  id: str
  label: int | list[int]


def read(split: Split, records: Records, indices: Sequence[int]) -> list[Annotation]:
  """Reads the annotations of the records `indices` of a split; no image is decoded.

  Raises:
    DataError: naming a record without a label, in a data set where each should have one.
  """
  features = {split.label_key: tf.io.RaggedFeature(tf.int64)}
  if split.id_key:
    features[split.id_key] = tf.io.FixedLenFeature([], tf.string)
  examples = tf.io.parse_example(records.read(indices), features)
  labels = examples[split.label_key].to_list()
  ids = [name.decode() for name in examples[split.id_key].numpy()] if split.id_key else [
      f"{split.split}:{index}" for index in indices]
  if not split.several_labels:
    for index, label in zip(indices, labels, strict=True):
      if len(label) != 1 or label[0] < 0:
        raise DataError(f"Record {index} of {split.name} {split.split} has no label: choose a split that has labels.")
    labels = [label for [label] in labels]
  return [Annotation(*pair) for pair in zip(ids, labels, strict=True)]
