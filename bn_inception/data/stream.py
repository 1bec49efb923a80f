"""The training stream: which record stands at which position, as pure functions of (seed, position).

Position 0, 1, 2, ... counts the training examples over all epochs without end: step t of a run with batches of B takes
positions t*B ... t*B + B - 1. Nothing here has state, and a position costs the same wherever it lies, so a run resumes
anywhere and every host can work out its own share.

The permutations are computed, not stored: a Feistel network over an a x b grid just large enough for the records, with
cycle walking over the few cells in excess (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It is
plain integer arithmetic of ours, so that the order never changes with a library's version.
"""

from collections.abc import Sequence

import numpy as np

from bn_inception.data.datasets import DataError

SHUFFLES = ("none", "within_shard", "global")

_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads consecutive integers.


def record_at(positions: np.ndarray, *, shard_lengths: Sequence[int], seed: int, shuffle: str) -> np.ndarray:
  """Maps positions in the training stream to records.

  Args:
    positions: int64 of any shape, all >= 0. Epoch e is positions e*N ... (e+1)*N - 1 for N records.
    shard_lengths: number of records in each shard, in stored order; only 'within_shard' looks at the boundaries.
    seed: any integer.
    shuffle: 'none': the stored order in every epoch; 'within_shard' (paper §4.2.1): in every epoch the shards in a new
      order, and new orders within them; 'global': one permutation of all records, another in every epoch.

  Returns:
    int64 of the same shape: record indices in [0, N). Every record comes exactly once in every epoch.

  Raises:
    DataError: for an unknown shuffle or no records.
  """
  lengths = np.asarray(shard_lengths, np.int64)
  num_records = int(lengths.sum())
  if num_records == 0:
    raise DataError("The training split holds no examples: choose another split.")
  if shuffle not in SHUFFLES:
    raise DataError(f"data.shuffle '{shuffle}' is not known: give one of {', '.join(SHUFFLES)}.")
  positions = np.asarray(positions, np.int64)
  epochs, offsets = np.divmod(positions.reshape(-1), num_records)
  if shuffle == "none":
    records = offsets
  elif shuffle == "global":
    records = _permute(offsets, num_records, key(seed, epochs))
  else:
    records = np.empty_like(offsets)
    for epoch in np.unique(epochs):  # One, or two where a batch lies across an epoch's end.
      in_epoch = epochs == epoch
      records[in_epoch] = _within_shards(offsets[in_epoch], lengths, seed, epoch)
  return records.reshape(positions.shape)


def local_positions(
  step: int, *, batch_size: int, micro_batches: int = 1, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
  """The positions one host supplies for one step.

  Micro-batch a of step t is positions t*B + a*B/A ... t*B + (a+1)*B/A - 1 (B = batch_size, A = micro_batches); each
  host owns a contiguous part of every micro-batch. So the global batch holds the same examples in the same order
  whatever the numbers of hosts and micro-batches.

  Returns:
    int64 [micro_batches, batch_size / micro_batches / process_count].

  Raises:
    DataError: if the batch does not divide evenly.
  """
  parts = micro_batches * process_count
  if batch_size <= 0 or parts <= 0 or batch_size % parts:
    raise DataError(
      f"A batch of {batch_size} does not divide into {micro_batches} micro-batches on {process_count} hosts: "
      f"make batch_size a multiple of {parts}."
    )
  first = np.arange(micro_batches, dtype=np.int64)[:, None] * (batch_size // micro_batches)
  local = batch_size // parts
  return step * batch_size + first + process_index * local + np.arange(local, dtype=np.int64)


def key(*words: int | np.ndarray) -> np.ndarray:
  """One 64-bit key from several integers; order and every bit of each matter.

  Arrays of integers broadcast: uint64 of their common shape, at least [1].
  """
  mixed = np.zeros(1, np.uint64)
  for word in words:
    if isinstance(word, int):
      word %= 1 << 64  # Negative seeds are as good as others.
    mixed = _mix(mixed + np.atleast_1d(np.asarray(word)).astype(np.uint64))
  return mixed


def _within_shards(offsets: np.ndarray, lengths: np.ndarray, seed: int, epoch: int) -> np.ndarray:
  """Records at `offsets` of one epoch: shards in a permuted order, records permuted within each."""
  # The shards' order has key (seed, epoch, 0), the records of shard s (seed, epoch, s + 1).
  order = _permute(np.arange(len(lengths)), len(lengths), key(seed, epoch, 0))
  ends = np.cumsum(lengths[order])
  slots = np.searchsorted(ends, offsets, side="right")
  shards = order[slots]
  within = offsets - (ends[slots] - lengths[shards])
  starts = np.cumsum(lengths) - lengths
  return starts[shards] + _permute(within, lengths[shards], key(seed, epoch, shards + 1))


def _permute(indices: np.ndarray, sizes: np.ndarray | int, keys: np.ndarray) -> np.ndarray:
  """The images of `indices` [n] under permutations of range(size), each with its key; `sizes`, `keys`: [n] or one."""
  values = indices.astype(np.uint64)
  sizes = np.broadcast_to(np.asarray(sizes, np.uint64), values.shape)
  keys = np.broadcast_to(keys, values.shape)
  # A permutation of the grid's columns * rows >= size cells. Walking on from a cell in excess until one is in range
  # makes it a permutation of the range; columns * rows exceeds size by less than its square root.
  columns = np.ceil(np.sqrt(sizes)).astype(np.uint64)
  rows = -(-sizes.astype(np.int64) // columns.astype(np.int64)).astype(np.uint64)
  pending = np.arange(len(values))
  while len(pending):
    moved = _feistel(values[pending], columns[pending], rows[pending], keys[pending])
    values[pending] = moved
    pending = pending[moved >= sizes[pending]]
  return values.astype(np.int64)


def _feistel(cells: np.ndarray, columns: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
  """A keyed permutation of range(columns * rows): each round moves one coordinate by a hash of the other."""
  column, row = cells % columns, cells // columns
  for number in range(_ROUNDS):
    round_keys = _mix(keys + np.uint64(number + 1))
    if number % 2:
      column = (column + _mix(round_keys + row) % columns) % columns
    else:
      row = (row + _mix(round_keys + column) % rows) % rows
  return row * columns + column


def _mix(words: np.ndarray) -> np.ndarray:
  """SplitMix64 (Steele, Lea and Flood, 2014): a bijection of uint64 that changes half of the bits for any one."""
  words = words + _GOLDEN
  words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return words ^ (words >> np.uint64(31))
