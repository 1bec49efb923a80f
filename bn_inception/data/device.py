"""From the host to the devices: batches as sharded arrays, transferred ahead of their use by a thread."""

from collections.abc import Iterator
import queue
import threading
from typing import Any
import weakref

import jax
import numpy as np

_END = object()


def to_device(
    batches: Iterator[dict[str, np.ndarray]], sharding: jax.sharding.Sharding | dict[str, jax.sharding.Sharding],
    *, depth: int = 2,
) -> Iterator[dict[str, jax.Array]]:
  """Puts host-local batches on the devices, `depth` of them ahead of the consumer.

  Args:
    batches: this host's part of each global batch.
    sharding: of the global arrays; one for all leaves or one for each. E.g. PartitionSpec(None, "data") for training
      batches [micro_batches, examples, ...] and PartitionSpec("data") for evaluation.
    depth: batches that may wait on the devices.

  Yields:
    The batches as global arrays. An exception of `batches` is raised here, after the batches before it. Closing the
    iterator (or dropping it) ends its thread.
  """
  ready = queue.Queue(maxsize=depth)
  stopped = threading.Event()

  def put(item: Any) -> bool:
    while not stopped.is_set():
      try:
        ready.put(item, timeout=0.1)
        return True
      except queue.Full:
        pass
    return False

  def transfer() -> None:
    try:
      for batch in batches:
        shardings = sharding if isinstance(sharding, dict) else dict.fromkeys(batch, sharding)
        arrays = {k: jax.make_array_from_process_local_data(shardings[k], v) for k, v in batch.items()}
        if not put(arrays):
          return
      put(_END)
    except BaseException as error:  # pylint: disable=broad-exception-caught  (raised again in the consumer's thread)
      put(error)

  thread = threading.Thread(target=transfer, name="to_device", daemon=True)
  thread.start()

  def end() -> None:
    stopped.set()
    thread.join()

  # Runs once: here below or, if the iterator is still in use then, at exit. A thread that is inside JAX while the
  # interpreter goes down would abort the process.
  end_once = weakref.finalize(thread, end)
  try:
    while (item := ready.get()) is not _END:
      if isinstance(item, BaseException):
        raise item
      yield item
  finally:
    end_once()
