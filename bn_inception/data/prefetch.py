"""Batches that threads make ahead, each example into its place.

An example depends only on (data set, seed, position), so batches are the same for any number of threads. The threads
are Python's and spend their time inside TensorFlow and OpenCV, without Python's lock. (A tf.data graph that calls back
into Python for the records is no faster, and was seen to hang or abort when the interpreter exits.)
"""

import collections
import concurrent.futures
import itertools
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bn_inception.data import cores

CHUNK = 64  # Examples a thread takes at a time: few enough to share a batch, many enough to make a call cheap.
ENDLESS = sys.maxsize  # No step and no position of a stream comes so far.

_STALL_SECONDS = 30.0  # A batch that takes longer is reported, again after twice as long, and so on.

_log = logging.getLogger(__name__)

# Of positions and record indices, int64 [n], it fills images uint8 [n, ...], given last, and returns labels int64 [n]
# and `skipped` bool [n].
Read = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Order(NamedTuple):
  """Which examples make which batch.

  Attributes:
    steps: the batches to make, range(first, ENDLESS) for a stream.
    positions_of: of a step, the positions of its examples, int64 of any shape, the same for every step.
    records_of: of positions int64 [n], the records that stand there, int64 [n].
    end: positions from here on are padding: the number of examples of a split, ENDLESS for a stream.
  """

  steps: range
  positions_of: Callable[[int], np.ndarray]
  records_of: Callable[[np.ndarray], np.ndarray]
  end: int


def batches(
  order: Order,
  make_read: Callable[[], Read],
  image_shape: tuple[int, ...],
  waiting_for: Callable[[], str | None],
  chunk: int = CHUNK,
) -> Iterator[dict[str, np.ndarray]]:
  """The batches of an order.

  Args:
    order: which examples.
    make_read: makes what reads examples; called when the first batch is asked for.
    image_shape: of an example.
    waiting_for: the file that is being read, None without; for the warning about a batch that takes long.
    chunk: examples that a thread takes at a time.

  Yields:
    `image` uint8, `label` int32, `mask` bool (False: padding or skipped) and `skipped` bool, whose shapes begin with
    that of order.positions_of(step). Padding stands at the end and is zeros.
  """
  # More than cores, for while others wait for TensorFlow's threads, the disk or Python's lock.
  threads = cores.available() + 3

  def fill(read: Read, batch: dict[str, np.ndarray], places: slice, positions: np.ndarray, indices: np.ndarray) -> None:
    batch["label"][places], skipped = read(positions[places], indices[places], batch["image"][places])
    batch["skipped"][places], batch["mask"][places] = skipped, ~skipped

  def start(
    pool: concurrent.futures.Executor, read: Read, step: int
  ) -> tuple[dict[str, np.ndarray], list[concurrent.futures.Future]]:
    positions = order.positions_of(step)
    mask = positions < order.end
    batch = {
      "image": np.zeros((*positions.shape, *image_shape), np.uint8),
      "label": np.zeros(positions.shape, np.int32),
      "mask": mask,
      "skipped": np.zeros(positions.shape, bool),
    }
    flat = {key: value.reshape(positions.size, *value.shape[positions.ndim :]) for key, value in batch.items()}
    count = mask.sum()  # What is padding stands at the end.
    positions = positions.reshape(-1)
    indices = order.records_of(positions)
    return batch, [
      pool.submit(fill, read, flat, slice(first, min(first + chunk, count)), positions, indices)
      for first in range(0, count, chunk)
    ]

  read = make_read()
  pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="decode")
  # Runs once: here below or, if the iterator is still in use then, at exit.
  end_once = weakref.finalize(pool, pool.shutdown, wait=False, cancel_futures=True)
  steps = iter(order.steps)
  # Enough to keep every thread at work while the consumer takes its time over one batch.
  ahead = 1 + -(-threads * chunk // order.positions_of(order.steps.start).size)
  started = collections.deque()
  try:
    while True:
      for step in itertools.islice(steps, ahead - len(started)):
        started.append(start(pool, read, step))
      if not started:
        return
      batch, parts = started.popleft()
      for part in parts:
        wait(part, waiting_for)
      yield batch
  finally:
    end_once()


def wait(part: concurrent.futures.Future, waiting_for: Callable[[], str | None]) -> None:
  """Waits for a part of a batch, and says what it waits for when that takes long; raises what the part raised."""
  patience, waited = _STALL_SECONDS, 0.0
  while not concurrent.futures.wait([part], timeout=patience).done:
    waited, patience = waited + patience, 2 * patience
    reading = waiting_for()
    reason = f"{reading}: is its file system responding?" if reading else "the processor, which decodes images."
    _log.warning("No batch for %.0f s: waiting for %s", waited, reason)
  part.result()
