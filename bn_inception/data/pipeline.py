"""The input pipeline: batches on the host, of exactly the examples that the stream or the evaluation order names.

Threads read and decode chunks of a batch, each into its place. An example depends only on (data set, seed, position),
so batches are the same for any number of threads, and the same whether a run came to a step or resumed there.

The threads are Python's and spend their time inside TensorFlow and OpenCV, without Python's lock. (A tf.data graph that
calls back into Python for the records is no faster, and was seen to hang or abort when the interpreter exits.)

With `data.cache` every image is decoded once, before the first batch, and batches are gathered from memory: what a
small network on small images needs to be fast. Examples and pixels are the same.

A run finds its splits and opens their files once (`open_source`), for training, every evaluation and Algorithm 2.

A record that is damaged or cannot be decoded ends the run, unless `data.on_error` is "skip". Then in training the next
good record in stored order stands in for it, distorted as its position in the stream says: batches and BN groups stay
full, and what a position holds still depends on nothing else, so that hosts, threads and resuming change nothing. In
evaluation nothing stands in; its place is masked and counted. A file that cannot be read (a disk or network fault,
which may pass) always ends the run: skipping would make the batches depend on when it happened.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import logging
import re
import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
from google.protobuf import message

from bn_inception.config_keys import Data
from bn_inception.data import cores, datasets, evaluation_crops, fake, stream, train_distortions
from bn_inception.data.datasets import DataError, Split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import BadRecordError, Records, digest, open_records

_log = logging.getLogger(__name__)

ON_ERROR = ("fail", "skip")

_CHUNK = 64  # Examples a thread takes at a time: few enough to share a batch, many enough to make a call cheap.
_STALL_SECONDS = 30.0  # A batch that takes longer is reported, again after twice as long, and so on.

# Of positions and record indices, int64 [n], it fills images uint8 [n, ...], given last, and returns labels int64 [n]
# and `skipped` bool [n].
_Read = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

# Of positions int64 [n] and n serialized records it fills images uint8 [n, (crops,) size, size, channels], given last,
# and returns labels int64 [n].
_Decode = Callable[[np.ndarray, list[bytes], np.ndarray], np.ndarray]


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
  in_memory: dict[tuple[str, bool], _Read] = dataclasses.field(default_factory=dict)
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


def open_source(data_config: Data, split: str) -> Source:
  """Finds a split and opens its files.

  Args:
    data_config: `config.data`.
    split: as for `datasets.open_split`.

  Raises:
    DataError: for data that cannot be found or files that cannot be used.
  """
  found = datasets.open_split(data_config, split)
  if found.file_format == "fake":
    return Source(dataclasses.replace(found, digest="fake"), None)
  records = open_records(found)
  return Source(dataclasses.replace(found, digest=digest(found, records)), records)


def train_batches(
  data_config: Data,
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
    encoded, labels = _parse(split, serialized)
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
  image_shape = (data_config.image_size, data_config.image_size, split.image_channels)
  batches = _batches(
    source,
    positions_of,
    records_of,
    lambda: decode,
    image_shape,
    data_config.on_error,
    start_step,
    cache=data_config.cache,
  )
  return ({key: batch[key] for key in ("image", "label", "skipped")} for batch in batches)


def eval_batches(
  data_config: Data, source: Source, *, batch_size: int, process_index: int = 0, process_count: int = 1
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

  positions_of = functools.partial(
    _eval_positions, batch_size=batch_size, process_index=process_index, process_count=process_count
  )
  positions_of(0)  # Raises now what is wrong with the batch size.
  last = -(-opened.num_examples // batch_size)
  return _batches(
    source,
    positions_of,
    lambda positions: positions,
    lambda: _decoder(opened, crop),
    (size, size, channels),
    data_config.on_error,
    0,
    last,
    cache=data_config.cache,
  )


def crop_batches(
  data_config: Data,
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

  positions_of = functools.partial(
    _eval_positions, first=first, batch_size=batch_size, process_index=process_index, process_count=process_count
  )
  positions_of(0)
  last = -(-(opened.num_examples - first) // batch_size)
  batches = _batches(
    dataclasses.replace(source, split=opened),
    positions_of,
    lambda positions: positions,
    lambda: _decoder(opened, crop),
    (crops, size, size, channels),
    data_config.on_error,
    0,
    last,
    chunk=max(1, _CHUNK // crops),
  )
  return ({key: batch[key] for key in ("image", "mask", "skipped")} for batch in batches)


def _eval_positions(
  step: int, *, batch_size: int, process_index: int, process_count: int, first: int = 0
) -> np.ndarray:
  """The examples of one host in evaluation batch `step`, int64 [local]; those behind the split's end are padding."""
  return (
    first
    + stream.local_positions(step, batch_size=batch_size, process_index=process_index, process_count=process_count)[0]
  )


def _check_one_label(split: Split) -> None:
  if split.several_labels:
    raise DataError(
      f"{split.name} has any number of labels an example, which only `scripts/evaluate.py --checkpoint` reads: "
      "choose a data set with one."
    )


def _batches(
  source: Source,
  positions_of: Callable[[int], np.ndarray],
  records_of: Callable[[np.ndarray], np.ndarray],
  make_decoder: Callable[[], _Decode],
  image_shape: tuple[int, ...],
  on_error: str,
  start_step: int,
  stop_step: int | None = None,
  chunk: int = _CHUNK,
  cache: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
  """The batches of steps start_step ... stop_step - 1 (None: without end), made ahead by threads.

  Checks now; makes the decoder and reads when iterated. `image`, `label`, `mask` and `skipped` begin with the shape of
  positions_of(step); where stop_step is given, positions that the split does not have are padding, and nothing stands
  in for a bad record.
  """
  if on_error not in ON_ERROR:
    raise DataError(f"data.on_error '{on_error}' is not known: give one of {', '.join(ON_ERROR)}.")
  split, stand_in = source.split, stop_step is None

  def make_reader() -> _Read:
    if split.file_format == "fake":
      return fake.reader(image_shape, split.num_classes)
    if cache:
      return _from_memory(source, on_error, stand_in)
    return _reader(split, source.records, make_decoder(), on_error, stand_in)

  waiting_for = lambda: None if source.records is None or cache else source.records.waiting_for()
  # More than cores, for while others wait for TensorFlow's threads, the disk or Python's lock.
  threads = cores.available() + 3

  def fill(
    read: _Read, batch: dict[str, np.ndarray], places: slice, positions: np.ndarray, indices: np.ndarray
  ) -> None:
    batch["label"][places], skipped = read(positions[places], indices[places], batch["image"][places])
    batch["skipped"][places] = skipped
    if stop_step is not None:
      batch["mask"][places] = ~skipped

  def start(pool: concurrent.futures.Executor, read: _Read, step: int) -> tuple[dict[str, np.ndarray], list]:
    positions = positions_of(step)
    mask = np.ones(positions.shape, bool) if stop_step is None else positions < split.num_examples
    batch = {
      "image": np.zeros((*positions.shape, *image_shape), np.uint8),
      "label": np.zeros(positions.shape, np.int32),
      "mask": mask,
      "skipped": np.zeros(positions.shape, bool),
    }
    flat = {key: value.reshape(positions.size, *value.shape[positions.ndim :]) for key, value in batch.items()}
    # What is padding stands at the end.
    chunks = [slice(first, min(first + chunk, mask.sum())) for first in range(0, mask.sum(), chunk)]
    positions = positions.reshape(-1)
    indices = records_of(positions)
    return batch, [pool.submit(fill, read, flat, part, positions, indices) for part in chunks]

  def iterate() -> Iterator[dict[str, np.ndarray]]:
    read = make_reader()
    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")
    # Runs once: here below or, if the iterator is still in use then, at exit.
    end_once = weakref.finalize(pool, lambda: pool.shutdown(wait=False, cancel_futures=True))
    steps = itertools.count(start_step) if stop_step is None else iter(range(start_step, stop_step))
    # Enough to keep every thread at work while the consumer takes its time over one batch.
    ahead = 1 + -(-threads * chunk // positions_of(start_step).size)
    started = collections.deque()
    try:
      while True:
        for step in itertools.islice(steps, ahead - len(started)):
          started.append(start(pool, read, step))
        if not started:
          return
        batch, chunks = started.popleft()
        for part in chunks:
          _wait(part, waiting_for)
        yield batch
    finally:
      end_once()

  return iterate()


def _wait(part: concurrent.futures.Future, waiting_for: Callable[[], str | None]) -> None:
  """Waits for a part of a batch, and says what it waits for when that takes long; raises what the part raised."""
  patience, waited = _STALL_SECONDS, 0.0
  while not concurrent.futures.wait([part], timeout=patience).done:
    waited, patience = waited + patience, 2 * patience
    reading = waiting_for()
    reason = f"{reading}: is its file system responding?" if reading else "the processor, which decodes images."
    _log.warning("No batch for %.0f s: waiting for %s", waited, reason)
  part.result()


def _parse(split: Split, serialized: list[bytes]) -> tuple[list[bytes], np.ndarray]:
  """Encoded images and labels int64 [n] (0 if none are read) of serialized records.

  Protobuf's own parser takes a fifth of the time of TensorFlow's operation and makes fewer copies of the images.

  Raises:
    _ParseError: for a record that is no tf.train.Example, or has not one image and one label.
  """
  images, labels = [], np.zeros(len(serialized), np.int64)
  for row, record in enumerate(serialized):
    try:
      features = tf.train.Example.FromString(record).features.feature
    except message.DecodeError as error:
      raise _ParseError("it is no tf.train.Example") from error
    image, label = features[split.image_key].bytes_list.value, features[split.label_key].int64_list.value
    if len(image) != 1 or (split.label_key and len(label) != 1):
      raise _ParseError(f"it has {len(image)} values of '{split.image_key}' and {len(label)} of '{split.label_key}'")
    images.append(image[0])
    if split.label_key:
      labels[row] = label[0]
  return images, labels


class _ParseError(ValueError):
  """A record that is not an example of the data set; the text says why."""


def _decoder(split: Split, to_pixels: Callable[[tf.Tensor], tf.Tensor]) -> _Decode:
  """Makes a decoder of a TensorFlow function of an encoded image that does not depend on the position."""

  @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
  def graph(encoded: tf.Tensor) -> tf.Tensor:
    # One at a time: chunks are decoded in parallel already.
    return tf.map_fn(to_pixels, encoded, fn_output_signature=tf.uint8, parallel_iterations=1)

  graph.get_concrete_function()  # Traced here once, not by several threads.

  def decode(positions: np.ndarray, serialized: list[bytes], images: np.ndarray) -> np.ndarray:
    del positions
    encoded, labels = _parse(split, serialized)
    images[:] = graph(tf.constant(encoded))
    return labels

  return decode


def _reader(split: Split, records: Records, decode: _Decode, on_error: str, stand_in: bool) -> _Read:
  """A function of positions and records, int64 [n], that fills images uint8 [n, ...] and returns labels int64 [n] and
  `skipped` bool [n].

  It raises BadRecordError, or with on_error="skip" marks the record and names it once in the log. Then its image is
  that of the next good record, or (stand_in=False) zeros.
  """
  named = set()

  def read_good(positions: np.ndarray, indices: np.ndarray, images: np.ndarray) -> np.ndarray:
    serialized = records.read(indices)
    try:
      labels = decode(positions, serialized, images)
    except (tf.errors.InvalidArgumentError, _ParseError) as error:
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


def _from_memory(source: Source, on_error: str, stand_in: bool) -> _Read:
  """As `_reader`, from the source's memory, which holds the whole split, decoded, from the first call on."""
  with source.lock:
    if (on_error, stand_in) not in source.in_memory:
      source.in_memory[on_error, stand_in] = _decode_all(source, on_error, stand_in)
  return source.in_memory[on_error, stand_in]


def _decode_all(source: Source, on_error: str, stand_in: bool) -> _Read:
  """Decodes a split, whose images need no resizing (`config_checks.check_data`)."""
  split, records = source.split, source.records
  side, channels, count = split.image_side, split.image_channels, split.num_examples
  as_stored = functools.partial(evaluation_crops.centre_crop, size=side, resize=side, channels=channels)
  read = _reader(split, records, _decoder(split, as_stored), on_error, stand_in)
  images, labels = np.zeros((count, side, side, channels), np.uint8), np.zeros(count, np.int64)
  skipped = np.zeros(count, bool)

  def fill(first: int) -> None:
    part = slice(first, min(first + _CHUNK, count))
    indices = np.arange(part.start, part.stop)
    labels[part], skipped[part] = read(indices, indices, images[part])

  with concurrent.futures.ThreadPoolExecutor(cores.available()) as pool:
    for part in [pool.submit(fill, first) for first in range(0, count, _CHUNK)]:
      _wait(part, records.waiting_for)

  def gather(positions: np.ndarray, indices: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    del positions
    np.take(images, indices, axis=0, out=out)
    return labels[indices], skipped[indices]

  return gather
