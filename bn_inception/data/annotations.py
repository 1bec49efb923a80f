"""What is known of an evaluation example beside its pixels: what it is called and how it is labelled."""

from collections.abc import Sequence
from typing import NamedTuple

from bn_inception.data.datasets import Split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import Records


class Annotation(NamedTuple):
  """Of one example.

  Attributes:
    id: the data set's own name of it (of ImageNet the file name), else 'SPLIT:INDEX'.
    labels: classes that are right. One; in imagenet2012_real any number, also none.
  """

  id: str
  labels: tuple[int, ...]


def read(split: Split, records: Records, indices: Sequence[int]) -> list[Annotation]:
  """Reads the annotations of the records `indices` of a split; no image is decoded."""
  features = {split.label_key: tf.io.RaggedFeature(tf.int64)}
  if split.id_key:
    features[split.id_key] = tf.io.FixedLenFeature([], tf.string)
  examples = tf.io.parse_example(records.read(indices), features)
  labels = examples[split.label_key].to_list()
  ids = [name.decode() for name in examples[split.id_key].numpy()] if split.id_key else [
      f"{split.split}:{index}" for index in indices]
  return [Annotation(name, tuple(label)) for name, label in zip(ids, labels, strict=True)]
