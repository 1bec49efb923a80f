"""The mesh and the shardings: one axis, `data`, over all devices of all processes.

Images and labels are split over this axis. Everything else is on every device. With `AxisType.Auto` the program is that
of a single device with a global batch, and XLA places the communication.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bn_inception import cluster


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """A mesh of all devices, or of the given devices.

  Raises:
    UserError: if `devices` is None, and the devices of JAX are not the devices that the scheduler gave.
  """
  if devices is None:
    cluster.check_devices()
    devices = jax.devices()
  return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device has the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def examples(mesh: Mesh) -> NamedSharding:
  """[B, ...] with the examples split over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def micro_batches(mesh: Mesh) -> NamedSharding:
  """[micro-batches, B, ...] with the examples of each micro-batch split over the devices."""
  return NamedSharding(mesh, PartitionSpec(None, "data"))


def one_program_at_a_time(mesh: Mesh, result: Any) -> None:
  """Waits for `result` on a mesh of several CPU devices, because two programs under way can deadlock there.

  The collectives of each program wait for threads that the other program holds (jaxlib 0.10). Accelerators queue their
  programs.
  """
  if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
    jax.block_until_ready(result)
