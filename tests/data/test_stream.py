"""The stream against its definition: a permutation of all records in every epoch, the same for any number of hosts."""

import numpy as np
import pytest

from bn_inception.data import stream
from bn_inception.data.datasets import DataError

SHARDS = (7, 1, 30, 13, 50)  # 101 records, a prime.


def records(positions: np.ndarray, shuffle: str, seed: int = 3, shards: tuple[int, ...] = SHARDS) -> np.ndarray:
  return stream.record_at(positions, shard_lengths=shards, seed=seed, shuffle=shuffle)


@pytest.mark.parametrize("shuffle", stream.SHUFFLES)
@pytest.mark.parametrize("shards", [SHARDS, (1,), (2,), (3, 1), (1, 1, 1), (1000, 24)])
def test_every_record_once_an_epoch(shuffle: str, shards: tuple[int, ...]) -> None:
  count = sum(shards)
  for epoch in (0, 1, 12345):
    order = records(np.arange(epoch * count, (epoch + 1) * count), shuffle, shards=shards)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


@pytest.mark.parametrize("shuffle", stream.SHUFFLES)
def test_a_position_does_not_depend_on_what_it_is_asked_with(shuffle: str) -> None:
  positions = np.arange(5 * sum(SHARDS))
  together = records(positions, shuffle)
  assert together.dtype == np.int64
  np.testing.assert_array_equal(together, [records(np.array([p]), shuffle)[0] for p in positions])
  np.testing.assert_array_equal(together[::-1], records(positions[::-1], shuffle))
  np.testing.assert_array_equal(together.reshape(5, -1), records(positions.reshape(5, -1), shuffle))


def test_none_is_the_stored_order() -> None:
  np.testing.assert_array_equal(records(np.arange(303), "none"), np.arange(303) % 101)


@pytest.mark.parametrize("shuffle", ["within_shard", "global"])
def test_epochs_and_seeds_differ(shuffle: str) -> None:
  shards = (100,) * 10
  first = records(np.arange(1000), shuffle, shards=shards)
  others = {
    "stored order": np.arange(1000),
    "next epoch": records(np.arange(1000, 2000), shuffle, shards=shards),
    "next seed": records(np.arange(1000), shuffle, seed=4, shards=shards),
    "far seed": records(np.arange(1000), shuffle, seed=3 + 2**40, shards=shards),
    "negative seed": records(np.arange(1000), shuffle, seed=-3, shards=shards),
    "next epoch of the next seed": records(np.arange(1000, 2000), shuffle, seed=4, shards=shards),
  }
  for name, other in others.items():
    # Unrelated permutations agree in one place on average (Poisson), shards in the same order make it ten.
    assert (first == other).sum() < 25, name


def test_within_shard_stays_within_shards_whose_order_changes() -> None:
  shard_of = np.repeat(np.arange(len(SHARDS)), SHARDS)
  orders = set()
  for epoch in range(40):
    shards = shard_of[records(np.arange(epoch * 101, (epoch + 1) * 101), "within_shard")]
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    assert len(starts) == len(SHARDS)  # Each shard is one run.
    orders.add(tuple(shards[starts]))
  assert len(orders) > 20  # Of 120.


def test_shards_of_equal_length_have_unrelated_orders() -> None:
  """Also in one epoch, and also where a shard comes at the same place in two epochs."""
  shards, length = 12, 60
  orders = records(np.arange(3 * shards * length), "within_shard", shards=(length,) * shards).reshape(-1, length)
  within = orders % length
  for one in range(len(within)):
    for other in range(one):
      # Unrelated permutations agree in one place on average (Poisson): more than 9 is a chance of 1e-7.
      assert (within[one] == within[other]).sum() < 10, (orders[one] // length, orders[other] // length)


@pytest.mark.parametrize("count", [2, 3, 5, 12, 101, 1024])
def test_permutations_have_no_structure(count: int) -> None:
  """Over many epochs, each record is equally likely at the first and the middle place, and so is each step between."""
  epochs = 200 * count if count < 100 else 20 * count
  starts = np.arange(epochs) * count
  at = {place: records(starts + place, "global", shards=(count,)) for place in (0, 1, count // 2)}
  for name, values in {
    "first": at[0],
    "middle": at[count // 2],
    "step": (at[1] - at[0]) % count,
    "epochs": np.diff(at[0]) % count,
  }.items():
    tally = np.bincount(values, minlength=count)
    cells = tally[1:] if name == "step" else tally  # A step of 0 cannot be.
    expected = len(values) / len(cells)
    chi_square = ((cells - expected) ** 2 / expected).sum()
    freedom = len(cells) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 1e-9, (name, chi_square, freedom)


def test_all_orders_of_a_small_set_are_equally_likely() -> None:
  orders = records(np.arange(4 * 24_000), "global", shards=(4,)).reshape(-1, 4)
  _, tally = np.unique(orders, axis=0, return_counts=True)
  assert len(tally) == 24
  assert ((tally - 1000) ** 2 / 1000).sum() < 23 + 5 * np.sqrt(2 * 23)


def test_far_positions_of_a_set_of_full_size() -> None:
  count = 1_281_167
  positions = np.arange(10**12, 10**12 + 1000)
  order = records(positions, "global", shards=(count,))
  assert len(np.unique(order)) == 1000 and order.min() >= 0 and order.max() < count
  assert abs(order.mean() / count - 0.5) < 0.05


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 5])
@pytest.mark.parametrize("shuffle", stream.SHUFFLES)
def test_hosts_together_read_every_record_once(hosts: int, micro_batches: int, shuffle: str) -> None:
  batch = 240 if hosts != 3 else 30  # 101 records: neither divides an epoch.
  supplied = []
  steps = 101  # batch * 101 examples are `batch` epochs.
  for step in range(steps):
    parts = [
      stream.local_positions(
        step, batch_size=batch, micro_batches=micro_batches, process_index=host, process_count=hosts
      )
      for host in range(hosts)
    ]
    assert {part.shape for part in parts} == {(micro_batches, batch // micro_batches // hosts)}
    together = np.concatenate(parts, axis=1)
    # The micro-batches after one another are the batch, in order.
    np.testing.assert_array_equal(together.reshape(-1), np.arange(step * batch, (step + 1) * batch))
    supplied.append(records(together, shuffle).reshape(-1))
  tally = np.bincount(np.concatenate(supplied), minlength=101)
  np.testing.assert_array_equal(tally, batch)


def test_what_does_not_divide_is_refused() -> None:
  with pytest.raises(DataError, match="multiple of 6"):
    stream.local_positions(0, batch_size=32, micro_batches=2, process_count=3)
  with pytest.raises(DataError, match="none, within_shard, global"):
    records(np.arange(3), "shuffled")
  with pytest.raises(DataError, match="no examples"):
    records(np.arange(3), "none", shards=())
