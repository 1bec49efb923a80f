"""Host to device on the eight virtual devices, and normalization against NumPy in float64."""

import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from bn_inception.data.device import to_device
from bn_inception.data.preprocessing import normalize


@pytest.fixture(name="mesh")
def fixture_mesh() -> jax.sharding.Mesh:
  return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def numbered(count: int) -> Iterator[dict[str, np.ndarray]]:
  for step in range(count):
    yield {
      "image": np.full((2, 16, 4, 4, 3), step, np.uint8) + np.arange(16, dtype=np.uint8)[:, None, None, None],
      "label": np.arange(32, dtype=np.int32).reshape(2, 16) + step,
    }


def threads() -> int:
  return sum(thread.name == "to_device" for thread in threading.enumerate())


def test_batches_arrive_in_order_and_sharded(mesh: jax.sharding.Mesh) -> None:
  sharding = NamedSharding(mesh, P(None, "data"))
  arrived = list(to_device(numbered(7), sharding))
  assert len(arrived) == 7
  for expected, batch in zip(numbered(7), arrived):
    for key, value in batch.items():
      assert value.sharding == sharding and value.dtype == expected[key].dtype
      np.testing.assert_array_equal(value, expected[key])
    for shard in batch["label"].addressable_shards:
      np.testing.assert_array_equal(shard.data, expected["label"][:, shard.index[1]])
  assert not threads()


def test_each_leaf_may_have_its_own_sharding(mesh: jax.sharding.Mesh) -> None:
  shardings = {"image": NamedSharding(mesh, P(None, "data")), "label": NamedSharding(mesh, P())}
  batch = next(to_device(numbered(1), shardings))
  assert {key: value.sharding for key, value in batch.items()} == shardings


def test_only_depth_batches_are_made_ahead(mesh: jax.sharding.Mesh) -> None:
  made = []

  def counted() -> Iterator[dict[str, np.ndarray]]:
    for batch in numbered(100):
      made.append(1)
      yield batch

  def wait_for(count: int) -> None:
    deadline = time.monotonic() + 300
    while len(made) < count and time.monotonic() < deadline:
      time.sleep(0.001)
    time.sleep(0.1)  # For what there should not be.
    assert len(made) == count

  batches = to_device(counted(), NamedSharding(mesh, P(None, "data")), depth=3)
  wait_for(3 + 1)  # Waiting, and one in the thread's hands, before the first is asked for.
  next(batches)
  wait_for(1 + 3 + 1)
  batches.close()


@pytest.mark.parametrize("taken", [0, 2])
def test_what_is_read_is_closed_too(mesh: jax.sharding.Mesh, taken: int) -> None:
  closed = []

  def endless() -> Iterator[dict[str, np.ndarray]]:
    try:
      yield from numbered(10**9)
    finally:
      closed.append(threading.current_thread().name)

  batches = to_device(endless(), NamedSharding(mesh, P(None, "data")))
  for _ in range(taken):
    next(batches)
  batches.close()
  assert closed == ["to_device"] and not threads()
  assert next(batches, None) is None


def test_an_error_comes_after_the_batches_before_it(mesh: jax.sharding.Mesh) -> None:
  def failing() -> Iterator[dict[str, np.ndarray]]:
    yield from numbered(2)
    raise ZeroDivisionError("third")

  batches = to_device(failing(), NamedSharding(mesh, P(None, "data")))
  next(batches)
  next(batches)
  with pytest.raises(ZeroDivisionError, match="third"):
    next(batches)
  assert not threads()


@pytest.mark.parametrize("end", ["close", "drop", "break", "unused"])
def test_the_thread_ends_with_its_consumer(mesh: jax.sharding.Mesh, end: str) -> None:
  batches = to_device(numbered(10**9), NamedSharding(mesh, P(None, "data")))
  if end != "unused":
    next(batches)
  assert threads() == 1
  if end == "close":
    batches.close()
  elif end == "break":
    for _ in batches:
      break
  del batches
  assert not threads()


@pytest.mark.parametrize("mean,std", [((127.5,), (127.5,)), ((124.0, 117.25, 104.5), (58.5, 57.0, 57.5))])
def test_normalize(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
  images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
  result = jax.jit(lambda x: normalize(x, mean=mean, std=std))(images)
  assert result.dtype == np.float32
  expected = (images.astype(np.float64) - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_normalize_binary() -> None:
  images = np.array([0, 1, 127, 128, 255], np.uint8).reshape(1, 1, 5, 1)
  result = normalize(images, mean=(9.0,), std=(7.0,), binary=True)
  assert result.dtype == np.float32
  np.testing.assert_array_equal(np.ravel(result), [0, 0, 0, 1, 1])


def test_normalize_to_bgr_takes_the_mean_and_std_of_rgb() -> None:
  images = np.array([10, 20, 30], np.uint8).reshape(1, 1, 1, 3)
  result = normalize(images, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 3.0), channel_order="bgr")
  np.testing.assert_array_equal(np.ravel(result), [9, 9, 9])
  result = normalize(images, mean=(0.0,), std=(1.0,), channel_order="bgr")
  np.testing.assert_array_equal(np.ravel(result), [30, 20, 10])
