"""The input pipeline: batches on the host, of exactly the examples that the stream or the evaluation order names.

This module says which examples make a batch and what they become: for training, for evaluation, and in many crops.
Threads make the batches ahead (prefetch.py) from records that are decoded (decoding.py). An example depends only on
(data set, seed, position), so batches are the same whether a run came to a step or resumed there.

With `data.cache` every image is decoded once, before the first batch, and batches are gathered from memory: what a
small network on small images needs to be fast. Examples and pixels are the same.

A run finds its splits and opens their files once (`open_source`), for training, every evaluation and Algorithm 2.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from bn_inception.data import datasets, decoding, evaluation_crops, fake, prefetch, stream, train_distortions
from bn_inception.data.datasets import DataError, Split
from bn_inception.data.host_tf import tf
from bn_inception.data.prefetch import ENDLESS, Order, Read
from bn_inception.data.records import Records, digest, open_records


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """A split whose files are open, shared by all that reads it; thread-safe. See `open_source`.

  Attributes:
    split: what is known of it.
    records: its files; None for 'fake', which has none.
    in_memory: with `data.cache` what reads the decoded images, by (data.on_error, whether others stand in for bad
      records); decoded when the first batch is asked for.
    lock: held while images are decoded into memory.
  """

  split: Split
  records: Records | None
  in_memory: dict[tuple[str, bool], Read] = dataclasses.field(default_factory=dict)
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


def open_source(data_config: ConfigDict, split: str) -> Source:
  """Finds a split and opens its files.

  Args:
    data_config: `config.data`.
    split: as for `datasets.open_split`.

  Raises:
    DataError: for data that cannot be found or files that cannot be used.
  """
  opened = datasets.open_split(data_config, split)
  if opened.file_format == "fake":
    return Source(dataclasses.replace(opened, digest="fake"), None)
  records = open_records(opened)
  return Source(dataclasses.replace(opened, digest=digest(opened, records)), records)


def train_batches(
  data_config: ConfigDict,
  source: Source,
  *,
  seed: int,
  batch_size: int,
  micro_batches: int = 1,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """This host's part of the training batches from step `start_step` on, without end.

  Args:
    data_config: `config.data`.
    source: the training split.
    seed: of the order and the distortions.
    batch_size: examples in a global batch.
    micro_batches: parts a step is taken in; changes nothing in the batch but its shape.
    start_step: the first step to yield, at no cost.
    process_index: this host among `process_count`.
    process_count: number of hosts.

  Yields:
    `image` uint8 [micro_batches, local, size, size, channels], `label` int32 [micro_batches, local] and `skipped` bool
    [micro_batches, local] (True: another record stands in for a bad one), where
    local = batch_size / micro_batches / process_count.

  Raises:
    DataError: at once for a configuration that cannot be used; later for an example that cannot.
  """
  split = source.split
  _check_one_label(split)

  def positions_of(step: int) -> np.ndarray:
    return stream.local_positions(
      step, batch_size=batch_size, micro_batches=micro_batches, process_index=process_index, process_count=process_count
    )

  def records_of(positions: np.ndarray) -> np.ndarray:
    return stream.record_at(positions, shard_lengths=split.shard_lengths, seed=seed, shuffle=data_config.shuffle)

  if data_config.interpolation not in train_distortions.INTERPOLATIONS:
    raise DataError(
      f"data.interpolation '{data_config.interpolation}' is not known: give one of "
      f"{', '.join(train_distortions.INTERPOLATIONS)}."
    )

  def decode(positions: np.ndarray, serialized: list[bytes], images: np.ndarray) -> np.ndarray:
    encoded, labels = decoding.parse(split, serialized)
    train_distortions.random_crops(
      encoded,
      positions,
      images,
      seed=seed,
      crop_area=data_config.crop_area,
      crop_aspect=data_config.crop_aspect,
      flip=data_config.flip,
      interpolation=data_config.interpolation,
    )
    return labels

  records_of(positions_of(start_step))  # Raises now what is wrong with the batch size or the shuffle.
  order = Order(range(start_step, ENDLESS), positions_of, records_of, end=ENDLESS)
  image_shape = (data_config.image_size, data_config.image_size, split.image_channels)
  batches = _batches(
    source, order, lambda: decode, image_shape, data_config.on_error, stand_in=True, cache=data_config.cache
  )
  return ({key: batch[key] for key in ("image", "label", "skipped")} for batch in batches)


def eval_batches(
  data_config: ConfigDict, source: Source, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
  """This host's part of a split, every example exactly once.

  Global batch i holds examples i*batch_size ... (i+1)*batch_size - 1 in stored order, of which each host has a
  contiguous part. The last batch is padded with zeros; every host yields the same number of batches.

  Args:
    data_config: `config.data`.
    source: the split.
    batch_size: examples in a global batch.
    process_index: this host among `process_count`.
    process_count: number of hosts.

  Yields:
    `image` uint8 [local, size, size, channels], `label` int32 [local], `mask` bool [local] (False: padding or skipped)
    and `skipped` bool [local] (True: a bad record), where local = batch_size / process_count. Over the split `mask` and
    `skipped` together are True as often as it has examples.

  Raises:
    DataError: at once for a configuration that cannot be used; later for an example that cannot.
  """
  opened = source.split
  _check_one_label(opened)
  size, resize, channels = data_config.image_size, data_config.eval_resize, opened.image_channels
  if resize < size:
    raise DataError(
      f"data.eval_resize {resize} is less than data.image_size {size}, so the crop does not fit: raise "
      "data.eval_resize."
    )

  def crop(encoded: tf.Tensor) -> tf.Tensor:
    return evaluation_crops.centre_crop(encoded, size=size, resize=resize, channels=channels)

  return _batches(
    source,
    _evaluation_order(opened, batch_size=batch_size, process_index=process_index, process_count=process_count),
    lambda: decoding.decoder(opened, crop),
    (size, size, channels),
    data_config.on_error,
    cache=data_config.cache,
  )


def crop_batches(
  data_config: ConfigDict,
  source: Source,
  *,
  crops: int,
  batch_size: int,
  first: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """As `eval_batches`, but with 1, 10 or 144 crops of each image, and from example `first` on.

  Each image is decoded once. Labels are not read: an example may have several (see `annotations.read`).

  Yields:
    `image` uint8 [local, crops, size, size, channels], `mask` and `skipped` bool [local].

  Raises:
    DataError: as `eval_batches`.
  """
  opened = dataclasses.replace(source.split, label_key="")
  size, resize, channels = data_config.image_size, data_config.eval_resize, opened.image_channels

  def crop(encoded: tf.Tensor) -> tf.Tensor:
    if crops == 1:
      return evaluation_crops.centre_crop(encoded, size=size, resize=resize, channels=channels)[None]
    return evaluation_crops.multi_crop(encoded, size=size, crops=crops, channels=channels)

  batches = _batches(
    dataclasses.replace(source, split=opened),
    _evaluation_order(
      opened, first=first, batch_size=batch_size, process_index=process_index, process_count=process_count
    ),
    lambda: decoding.decoder(opened, crop),
    (crops, size, size, channels),
    data_config.on_error,
    chunk=max(1, prefetch.CHUNK // crops),
  )
  return ({key: batch[key] for key in ("image", "mask", "skipped")} for batch in batches)


def _evaluation_order(
  split: Split, *, batch_size: int, process_index: int, process_count: int, first: int = 0
) -> Order:
  """One host's part of the examples from `first` on, in stored order; positions behind the split's end are padding.

  Raises:
    DataError: if the batch does not divide over the hosts.
  """

  def positions_of(step: int) -> np.ndarray:
    positions = stream.local_positions(
      step, batch_size=batch_size, process_index=process_index, process_count=process_count
    )
    return first + positions[0]

  positions_of(0)  # Raises now.
  steps = -(-(split.num_examples - first) // batch_size)
  return Order(range(steps), positions_of, lambda positions: positions, end=split.num_examples)


def _check_one_label(split: Split) -> None:
  if split.several_labels:
    raise DataError(
      f"{split.name} has any number of labels an example, which only `scripts/evaluate.py --checkpoint` reads: "
      "choose a data set with one."
    )


def _batches(
  source: Source,
  order: Order,
  make_decoder: Callable[[], decoding.Decode],
  image_shape: tuple[int, ...],
  on_error: str,
  *,
  stand_in: bool = False,
  chunk: int = prefetch.CHUNK,
  cache: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
  """The batches of an order: from records that `make_decoder()` decodes, or with `cache` from memory.

  `on_error` and `stand_in` are as for `decoding.reader`. Nothing is read before the first batch is asked for.
  """
  decoding.check_on_error(on_error)
  records, in_memory = source.records, source.in_memory

  def make_read() -> Read:
    if records is None:
      return fake.reader(image_shape, source.split.num_classes)
    if not cache:
      return decoding.reader(source.split, records, make_decoder(), on_error, stand_in)
    with source.lock:
      if (on_error, stand_in) not in in_memory:
        in_memory[on_error, stand_in] = decoding.in_memory(source.split, records, on_error, stand_in)
    return in_memory[on_error, stand_in]

  def waiting_for() -> str | None:
    return None if records is None or cache else records.waiting_for()

  return prefetch.batches(order, make_read, image_shape, waiting_for, chunk)
