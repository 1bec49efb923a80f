"""Decoding: from records to pixels and labels, and what happens to a record that cannot be used.

A record that is damaged or cannot be decoded ends the run, unless `data.on_error` is "skip". Then in training the next
good record in stored order stands in for it, distorted as its position in the stream says: batches and BN groups stay
full, and what a position holds still depends on nothing else, so that hosts, threads and resuming change nothing. In
evaluation nothing stands in; its place is masked and counted. A file that cannot be read (a disk or network fault,
which may pass) always ends the run: skipping would make the batches depend on when it happened.
"""

import concurrent.futures
import contextlib
import functools
import logging
import re
from collections.abc import Callable

import numpy as np
from google.protobuf import message

from bn_inception.data import cores, evaluation_crops, prefetch
from bn_inception.data.datasets import DataError, Split
from bn_inception.data.host_tf import tf
from bn_inception.data.prefetch import Read
from bn_inception.data.records import BadRecordError, Records

ON_ERROR = ("fail", "skip")

# Of positions int64 [n] and n serialized records it fills images uint8 [n, (crops,) size, size, channels], given last,
# and returns labels int64 [n].
Decode = Callable[[np.ndarray, list[bytes], np.ndarray], np.ndarray]

_log = logging.getLogger(__name__)


def check_on_error(on_error: str) -> None:
  """Raises DataError for what is not one of ON_ERROR."""
  if on_error not in ON_ERROR:
    raise DataError(f"data.on_error '{on_error}' is not known: give one of {', '.join(ON_ERROR)}.")


def parse(split: Split, serialized: list[bytes]) -> tuple[list[bytes], np.ndarray]:
  """Encoded images and labels int64 [n] (0 if none are read) of serialized records.

  Protobuf's own parser takes a fifth of the time of TensorFlow's operation and makes fewer copies of the images.

  Raises:
    ParseError: for a record that is no tf.train.Example, or has not one image and one label.
  """
  images, labels = [], np.zeros(len(serialized), np.int64)
  for row, record in enumerate(serialized):
    try:
      features = tf.train.Example.FromString(record).features.feature
    except message.DecodeError as error:
      raise ParseError("it is no tf.train.Example") from error
    image, label = features[split.image_key].bytes_list.value, features[split.label_key].int64_list.value
    if len(image) != 1 or (split.label_key and len(label) != 1):
      raise ParseError(f"it has {len(image)} values of '{split.image_key}' and {len(label)} of '{split.label_key}'")
    images.append(image[0])
    if split.label_key:
      labels[row] = label[0]
  return images, labels


class ParseError(ValueError):
  """A record that is not an example of the data set; the text says why."""


def decoder(split: Split, to_pixels: Callable[[tf.Tensor], tf.Tensor]) -> Decode:
  """Makes a decoder of a TensorFlow function of an encoded image that does not depend on the position."""

  @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
  def graph(encoded: tf.Tensor) -> tf.Tensor:
    # One at a time: chunks are decoded in parallel already.
    return tf.map_fn(to_pixels, encoded, fn_output_signature=tf.uint8, parallel_iterations=1)

  graph.get_concrete_function()  # Traced here once, not by several threads.

  def decode(positions: np.ndarray, serialized: list[bytes], images: np.ndarray) -> np.ndarray:
    del positions
    encoded, labels = parse(split, serialized)
    images[:] = graph(tf.constant(encoded))
    return labels

  return decode


def reader(split: Split, records: Records, decode: Decode, on_error: str, stand_in: bool) -> Read:
  """What reads records of a split and decodes them.

  Args:
    split: of the records.
    records: its open files.
    decode: what makes images of records.
    on_error: what happens at a bad record: "fail" raises BadRecordError; "skip" marks the record and names it once in
      the log.
    stand_in: whether the next good record stands in for a skipped one; else the image of a skipped one is zeros.
  """
  named = set()

  def read_good(positions: np.ndarray, indices: np.ndarray, images: np.ndarray) -> np.ndarray:
    serialized = records.read(indices)
    try:
      labels = decode(positions, serialized, images)
    except (tf.errors.InvalidArgumentError, ParseError) as error:
      if len(indices) > 1:  # Not known which of them it is; `read` finds it.
        raise BadRecordError("A record cannot be decoded.") from error
      # Without what TensorFlow says about where in its graph it was.
      reason = re.sub(r"{{.*?}} *| *\[Op:.*", "", str(error).partition("\n\t [[")[0].splitlines()[-1]).rstrip(".")
      raise BadRecordError(
        f"{records.describe(indices[0], serialized[0])} cannot be decoded ({reason}): prepare the data set again, or "
        "set data.on_error=skip."
      ) from error
    if (unknown := (labels < 0) | (labels >= split.num_classes)).any():
      place = unknown.argmax()
      raise DataError(
        f"{records.describe(indices[place], serialized[place])} has no label of the {split.num_classes} there are "
        f"(it is {labels[place]}): choose a split that has labels."
      )
    return labels

  def read_one(position: np.ndarray, index: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, bool]:
    try:
      return read_good(position, index, image), False
    except BadRecordError as error:
      if on_error == "fail":
        raise
      if index[0] not in named:
        named.add(index[0])
        _log.warning("Skipped, as data.on_error says: %s", error)
    if stand_in:
      for distance in range(1, len(records)):
        with contextlib.suppress(BadRecordError):
          return read_good(position, (index + distance) % len(records), image), True
      raise DataError(f"No record of {split.name} {split.split} can be used: prepare the data set again.")
    image[:] = 0  # A decoder may have begun to fill it.
    return np.zeros(1, np.int64), True

  def read(positions: np.ndarray, indices: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
      return read_good(positions, indices, images), np.zeros(len(indices), bool)
    except BadRecordError:
      places = [slice(place, place + 1) for place in range(len(indices))]
      labels, skipped = zip(*(read_one(positions[place], indices[place], images[place]) for place in places))
    return np.concatenate(labels), np.array(skipped)

  return read


def in_memory(split: Split, records: Records, on_error: str, stand_in: bool) -> Read:
  """Decodes a whole split, whose images need no resizing (`config_checks.check_data`), and reads it from memory.

  Args and errors are those of `reader`.
  """
  side, channels, count = split.image_side, split.image_channels, split.num_examples
  as_stored = functools.partial(evaluation_crops.centre_crop, size=side, resize=side, channels=channels)
  read = reader(split, records, decoder(split, as_stored), on_error, stand_in)
  images, labels = np.zeros((count, side, side, channels), np.uint8), np.zeros(count, np.int64)
  skipped = np.zeros(count, bool)

  def fill(first: int) -> None:
    part = slice(first, min(first + prefetch.CHUNK, count))
    indices = np.arange(part.start, part.stop)
    labels[part], skipped[part] = read(indices, indices, images[part])

  with concurrent.futures.ThreadPoolExecutor(cores.available()) as pool:
    for part in [pool.submit(fill, first) for first in range(0, count, prefetch.CHUNK)]:
      prefetch.wait(part, records.waiting_for)

  def gather(positions: np.ndarray, indices: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    del positions
    np.take(images, indices, axis=0, out=out)
    return labels[indices], skipped[indices]

  return gather
