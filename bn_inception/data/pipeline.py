"""The input pipeline: batches on the host, of exactly the examples that the stream or the evaluation order names.

A tf.data graph reads the records of a step in one go and decodes them one by one, in parallel. Its output is in order
and every example depends only on (data set, seed, position), so batches are the same for any number of threads, and the
same whether a run came to a step or resumed there.
"""

from collections.abc import Callable, Iterator
import os

from ml_collections import ConfigDict
import numpy as np

from bn_inception.data import datasets, evaluation_crops, stream, train_distortions
from bn_inception.data.datasets import DataError, Split
from bn_inception.data.host_tf import tf
from bn_inception.data.records import open_records

# Maps a step to this host's (positions, record indices) in it, both int64 [n].
_Schedule = Callable[[int], tuple[np.ndarray, np.ndarray]]


# More steps than any run has.
_FOREVER = 1 << 62


def train_batches(
    data_config: ConfigDict,
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
    seed: of the order and the distortions.
    batch_size: examples in a global batch.
    micro_batches: parts a step is taken in; divides the batch, changes nothing in it.
    start_step: the first step to yield, at no cost.
    process_index: this host among `process_count`.
    process_count: number of hosts.

  Yields:
    `image` uint8 [micro_batches, local, size, size, channels], `label` int32 [micro_batches, local], where
    local = batch_size / micro_batches / process_count.

  Raises:
    DataError: now, for a configuration or data that cannot be used; later, for an example that cannot.
  """
  split = datasets.open_split(data_config, data_config.train_split)
  seed_words = seed % (1 << 63)  # As TensorFlow's seeds are signed.

  def schedule(step: int) -> tuple[np.ndarray, np.ndarray]:
    positions = stream.local_positions(
        step,
        batch_size=batch_size,
        micro_batches=micro_batches,
        process_index=process_index,
        process_count=process_count,
    ).reshape(-1)
    return positions, stream.record_at(
        positions, shard_lengths=split.shard_lengths, seed=seed, shuffle=data_config.shuffle
    )

  def distort(encoded: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    return train_distortions.random_crop_and_flip(
        encoded,
        tf.stack([tf.constant(seed_words, tf.int64), position]),
        size=data_config.image_size,
        channels=split.image_channels,
        crop_area=tuple(data_config.crop_area),
        crop_aspect=tuple(data_config.crop_aspect),
        flip=data_config.flip,
    )

  schedule(start_step)  # Raises what is wrong with the batch size or the shuffle now.
  batches = _batches(split, schedule, distort, start_step=start_step, stop_step=_FOREVER)
  return (
      {key: value.reshape(micro_batches, -1, *value.shape[1:]) for key, value in batch.items()} for batch in batches
  )


def eval_batches(
    data_config: ConfigDict, split: str, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
  """This host's part of a split, every example exactly once.

  Global batch i holds examples i*batch_size ... in stored order, each host a contiguous part. The last batch is padded
  with zeros; every host yields the same number of batches.

  Yields:
    `image` uint8 [local, size, size, channels], `label` int32 [local], `mask` bool [local] (False: padding), where
    local = batch_size / process_count.

  Raises:
    DataError: now, for a configuration or data that cannot be used; later, for an example that cannot.
  """
  opened = datasets.open_split(data_config, split)
  if data_config.eval_resize < data_config.image_size:
    raise DataError(
        f"data.eval_resize {data_config.eval_resize} is less than data.image_size {data_config.image_size}: the crop "
        "would not fit; raise data.eval_resize."
    )

  def schedule(step: int) -> tuple[np.ndarray, np.ndarray]:
    positions = stream.local_positions(
        step, batch_size=batch_size, process_index=process_index, process_count=process_count
    ).reshape(-1)
    return positions, np.minimum(positions, opened.num_examples - 1)  # Padding is the last example, blanked below.

  def crop(encoded: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    del position  # Nothing here is random.
    return evaluation_crops.centre_crop(
        encoded, size=data_config.image_size, resize=data_config.eval_resize, channels=opened.image_channels
    )

  def masked(step: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    mask = schedule(step)[0] < opened.num_examples
    if not mask.all():
      batch = {key: np.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, 0) for key, value in batch.items()}
    return {**batch, "mask": mask}

  schedule(0)  # Raises what is wrong with the batch size now.
  num_steps = -(-opened.num_examples // batch_size)
  batches = _batches(opened, schedule, crop, start_step=0, stop_step=num_steps)
  return (masked(step, batch) for step, batch in enumerate(batches))


def _batches(
    split: Split,
    schedule: _Schedule,
    to_pixels: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    *,
    start_step: int,
    stop_step: int,
) -> Iterator[dict[str, np.ndarray]]:
  """The examples of each step as one flat batch. Opens the files now and reads when iterated."""
  records = open_records(split)
  features = {
      split.image_key: tf.io.FixedLenFeature([], tf.string),
      split.label_key: tf.io.FixedLenFeature([], tf.int64),
  }

  @tf.function(input_signature=[tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.string)], autograph=False)
  def decode(position: tf.Tensor, record: tf.Tensor) -> dict[str, tf.Tensor]:
    example = tf.io.parse_single_example(record, features)
    return {
        "image": to_pixels(example[split.image_key], position),
        "label": tf.cast(example[split.label_key], tf.int32),
    }

  def read(step: np.int64) -> tuple[np.ndarray, np.ndarray]:
    positions, indices = schedule(int(step))
    return positions, np.array(records.read(indices), object)

  def examples_of_step(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    positions, serialized = tf.numpy_function(read, [step], [tf.int64, tf.string], stateful=False)
    return tf.ensure_shape(positions, [None]), tf.ensure_shape(serialized, [None])

  def explain(step: int, error: Exception) -> DataError:
    """Finds the example of a failed step that cannot be read or decoded."""
    for position, index in zip(*schedule(step)):
      try:
        decode(position, records.read([index])[0])
      except DataError as cause:
        return cause
      except tf.errors.OpError as cause:
        return DataError(
            f"Record {index} of {split.name} {split.split} cannot be decoded ({cause.message.splitlines()[0]}): "
            "prepare the data set again."
        )
    return DataError(f"Reading step {step} of {split.name} {split.split} failed: {error}")

  cores = len(os.sched_getaffinity(0))
  options = tf.data.Options()
  options.deterministic = True
  options.threading.private_threadpool_size = cores
  options.threading.max_intra_op_parallelism = 1  # Examples are processed in parallel instead.
  size = len(schedule(start_step)[0])
  dataset = (
      tf.data.Dataset.range(start_step, stop_step)
      .map(examples_of_step, num_parallel_calls=2)
      .unbatch()
      .map(decode, num_parallel_calls=cores)
      .batch(size, drop_remainder=True)
      .prefetch(2)
      .with_options(options)
  )

  def iterate() -> Iterator[dict[str, np.ndarray]]:
    iterator = dataset.as_numpy_iterator()
    for step in range(start_step, stop_step):
      try:
        batch = next(iterator)
      except tf.errors.OpError as error:
        raise explain(step, error) from error
      if batch["label"].min() < 0:
        index = schedule(step)[1][batch["label"].argmin()]
        raise DataError(f"Record {index} of {split.name} {split.split} has no label: choose a split that has labels.")
      yield batch

  return iterate()
