"""From the host to the devices: batches as sharded arrays, transferred ahead of their use by a thread."""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Generator

import jax
import numpy as np

_END = object()


class DeviceBatches:
  """An iterator over batches on the devices, which a thread makes ahead; see `to_device`."""

  def __init__(self, ready: queue.Queue, thread: threading.Thread, end: Callable[[], None]):
    self._ready = ready
    # Runs once: by `close`, when the iterator is dropped or, if it is still in use then, at exit. A thread that is
    # inside JAX while the interpreter goes down would abort the process.
    self._end_once = weakref.finalize(self, end)
    thread.start()

  def __iter__(self) -> "DeviceBatches":
    return self

  def __next__(self) -> dict[str, jax.Array]:
    if not self._end_once.alive:
      raise StopIteration
    item = self._ready.get()
    if item is _END or isinstance(item, BaseException):
      self.close()
      raise StopIteration if item is _END else item
    return item

  def close(self) -> None:
    """Ends the thread, and the batches that it reads; they are not read to their end."""
    self._end_once()


def to_device(
  batches: Generator[dict[str, np.ndarray], None, None],
  sharding: jax.sharding.Sharding | dict[str, jax.sharding.Sharding],
  *,
  depth: int = 2,
) -> DeviceBatches:
  """Puts host-local batches on the devices, `depth` of them ahead of the consumer, from now on.

  Args:
    batches: this host's part of each global batch; closed with the result.
    sharding: of the global arrays; one for all leaves or one for each. E.g. PartitionSpec(None, "data") for training
      batches [micro_batches, examples, ...] and PartitionSpec("data") for evaluation.
    depth: batches that may wait on the devices.

  Returns:
    An iterator over the batches as global arrays. An exception of `batches` is raised there, after the batches before
    it. Closing it (or dropping it) ends its thread.
  """
  ready = queue.Queue(maxsize=depth)
  stopped = threading.Event()

  def put(item: object) -> bool:
    while not stopped.is_set():
      try:
        ready.put(item, timeout=0.1)
        return True
      except queue.Full:
        pass
    return False

  def transfer() -> None:
    try:
      with contextlib.closing(batches):
        for batch in batches:
          shardings = sharding if isinstance(sharding, dict) else dict.fromkeys(batch, sharding)
          arrays = {k: jax.make_array_from_process_local_data(shardings[k], v) for k, v in batch.items()}
          if not put(arrays):
            return
      put(_END)
    except BaseException as error:  # pylint: disable=broad-exception-caught  (raised again in the consumer's thread)
      put(error)

  thread = threading.Thread(target=transfer, name="to_device", daemon=True)

  def end() -> None:
    stopped.set()
    thread.join()

  return DeviceBatches(ready, thread, end)
