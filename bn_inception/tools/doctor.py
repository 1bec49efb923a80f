"""Looks over what a run of a config would need, before it starts: devices, data, speed, disk, versions.

One problem does not hide the others: only speeds are not measured with a config that is not sound. Each is one sentence
with what to do.
"""

import contextlib
import importlib.metadata
import math
import os
import pathlib
import platform
import shutil
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from packaging.requirements import Requirement

from bn_inception import config_checks, program as program_lib, run_directory, sharding
from bn_inception.config_keys import Config
from bn_inception.data import cores, pipeline, stream
from bn_inception.data.datasets import DataError
from bn_inception.state import TrainState
from bn_inception.tools import contact_sheet

_MEASURE_SECONDS = 5.0  # Of the input and of the steps, each.
_SAMPLES = 32  # Images on the sheet.


class Findings(NamedTuple):
  """Sentences on what is wrong.

  Attributes:
    stops: what would stop the run.
    warnings: what would not.
  """

  stops: list[str]
  warnings: list[str]


def _say(text: str) -> None:
  if jax.process_index() == 0:
    print(text, flush=True)


def _row(name: str, text: str) -> None:
  _say(f"{name:10} {text}")


@contextlib.contextmanager
def _section(findings: Findings, name: str) -> Iterator[None]:
  """Turns what the project raises for users into a problem that would stop the run."""
  try:
    yield
  except (config_checks.ConfigError, DataError) as error:
    _row(name, "see below")
    if str(error) not in findings.stops:
      findings.stops.append(str(error))


def examine(given: ConfigDict, workdir: pathlib.Path, picture: pathlib.Path) -> bool:
  """Prints one page on what a run of a config in `workdir` would need; compiles and times its training step.

  Args:
    given: from a file in configs/.
    workdir: of the run, which need not exist.
    picture: the .png file to write, of training examples as the network gets them.

  Returns:
    Whether the run could start.
  """
  findings = Findings([], [])
  mesh = sharding.make_mesh()
  _versions(findings)
  _devices(findings, mesh)
  config = given  # One that is not sound is looked at all the same, as far as it goes.
  with _section(findings, "Config"):
    config = config_checks.check_config(given, mesh.size)
    _row("Config", f"{config.model.name}, batch of {config.batch_size}, {config.num_steps:,} steps: sound")
  config_is_sound = not findings.stops
  source = None
  with _section(findings, "Data"):
    source = _data(config, decode=config_is_sound)
  input_speed = step_speed = None
  if source and config_is_sound:
    with _section(findings, "Input"):
      input_speed = _input(findings, config, source, picture)
  if config_is_sound:
    with jax.set_mesh(mesh):
      step_speed = _steps(findings, config, mesh, workdir)
  if input_speed and step_speed:
    _compare(findings, input_speed, step_speed)
  for title, problems in (("Stops the run", findings.stops), ("Worth knowing", findings.warnings)):
    if problems:
      _say("\n".join([f"\n{title}:", *(f"  - {problem}" for problem in problems)]))
  if not findings.stops:
    _say("\nNothing stops this run.")
  return not findings.stops


def _versions(findings: Findings) -> None:
  """The Python, the code revision, and packages that are not those of requirements.txt."""
  wanted = {}
  requirements = pathlib.Path(__file__).parents[2] / "requirements.txt"
  if requirements.exists():
    for line in requirements.read_text().splitlines():
      if "==" in line and not line.startswith("#"):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
          wanted[requirement.name] = str(requirement.specifier).removeprefix("==")
  installed = {}
  for name in wanted:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      installed[name] = importlib.metadata.version(name)
  shown = ", ".join(
    f"{name} {installed[name]}" for name in ("jax", "flax", "optax", "orbax-checkpoint") if name in installed
  )
  _row("Versions", f"Python {platform.python_version()}, {shown}, code {run_directory.git_revision()}")
  others = [f"{name} {version} ({wanted[name]})" for name, version in installed.items() if version != wanted[name]]
  if others:
    findings.warnings.append(
      f"Versions differ from requirements.txt (which is what was tested): {', '.join(others)}; install it again."
    )


def _devices(findings: Findings, mesh: Mesh) -> None:
  device = mesh.devices.flat[0]
  _row(
    "Devices",
    f"{mesh.size} x {device.device_kind}, {jax.process_count()} processes, {cores.available()} cores for this one",
  )
  if device.platform == "cpu":
    findings.warnings.append("No accelerator is in use: if this host has one, install jax for it (requirements.txt).")


def _data(config: Config, *, decode: bool) -> pipeline.Source:
  """Opens both splits, decodes the first evaluation example if told so; returns the one for training."""
  sources = []
  for name in (config.data.train_split, config.data.eval_split):
    sources.append(pipeline.open_source(config.data, name))
    config_checks.check_data(config, sources[-1].split)
  train, evaluation = (source.split for source in sources)
  files = f"{len(train.files)} and {len(evaluation.files)} files of {train.file_format}"
  _row(
    "Data",
    f"{train.name}: {train.num_examples:,} {train.split}, {evaluation.num_examples:,} "
    f"{evaluation.split}, {train.num_classes:,} classes, {files}",
  )
  if decode:
    next(pipeline.eval_batches(config.data, sources[1], batch_size=1))
  return sources[0]


def _input(findings: Findings, config: Config, source: pipeline.Source, picture: pathlib.Path) -> float:
  """Draws the sheet, measures the training input of this host alone; returns the images/s of all hosts."""
  process = dict(process_index=jax.process_index(), process_count=jax.process_count())
  batches = pipeline.train_batches(config.data, source, seed=config.seed, batch_size=config.batch_size, **process)
  with contextlib.closing(batches):
    images, labels, positions = [], [], []
    while sum(map(len, labels)) < _SAMPLES:
      batch = next(batches)
      images.append(batch["image"][0])
      labels.append(batch["label"][0])
      positions.append(stream.local_positions(len(positions), batch_size=config.batch_size, **process)[0])
    if jax.process_index() == 0:
      images, labels, positions = (np.concatenate(parts)[:_SAMPLES] for parts in (images, labels, positions))
      _samples(findings, config, images, [source.split.label_names[label] for label in labels], positions, picture)
    start, count = time.monotonic(), 0
    while (elapsed := time.monotonic() - start) < _MEASURE_SECONDS:
      count += next(batches)["label"].size
  speed = count / elapsed
  _row(
    "Input", f"{speed:,.0f} images/s on this host, {speed / cores.available():,.0f} on each core, nothing else running"
  )
  return speed * jax.process_count()


def _samples(
  findings: Findings, config: Config, images: np.ndarray, names: list[str], positions: np.ndarray, picture: pathlib.Path
) -> None:
  try:
    contact_sheet.draw_labelled(contact_sheet.distorted(config, images, positions), names, picture)
    _row("Samples", f"{len(names)} training images with their labels: {picture}")
  except OSError as error:
    findings.stops.append(f"The picture {picture} cannot be written ({error.strerror}): give another --output.")


def _steps(findings: Findings, config: Config, mesh: Mesh, workdir: pathlib.Path) -> float:
  """Measures training steps on noise that is on the devices already, and the disk; returns the steps' images/s."""
  program = program_lib.build(config, mesh)
  _disk(findings, config, program.abstract_state(), workdir)
  shapes = program.batch_shapes()
  batch = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
  batch["image"] = np.random.default_rng(0).integers(0, 256, batch["image"].shape, np.uint8)
  batch = {
    name: jax.make_array_from_callback(array.shape, shapes[name].sharding, array.__getitem__)
    for name, array in batch.items()
  }
  state, train_call = program.initial_state(), program.train_call()

  def seconds() -> float:
    nonlocal state
    start = time.monotonic()
    state = jax.block_until_ready(train_call(state, batch))
    return time.monotonic() - start

  compilation = seconds()
  calls = min(1_000, max(3, math.ceil(_MEASURE_SECONDS / seconds())))
  # As many on every process: they wait for each other in each.
  calls = int(multihost_utils.broadcast_one_to_all(np.int64(calls)))
  times = [seconds() for _ in range(calls)]
  speed = config.steps_per_call * config.batch_size / statistics.median(times)
  _row(
    "Steps",
    f"{speed:,.1f} images/s in steps of {config.batch_size} (median of {calls}), compiled in {compilation:.0f} s",
  )
  return speed


def _disk(findings: Findings, config: Config, state: TrainState, workdir: pathlib.Path) -> None:
  place = next(path for path in (workdir, *workdir.parents) if path.exists())
  if not place.is_dir():
    findings.stops.append(f"{place} is not a folder: give another --workdir.")
    return
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  kept = config.keep_latest + config.keep_best
  needed = (kept + 1) * size  # One more while it is written.
  free = shutil.disk_usage(place).free
  _row(
    "Disk",
    f"{needed / 1e6:,.0f} MB for checkpoints of {size / 1e6:,.0f} MB, {kept} kept and one being written; "
    f"{free / 1e9:,.1f} GB free in {place}",
  )
  if not os.access(place, os.W_OK):
    findings.stops.append(f"{place} cannot be written to: give another --workdir.")
  if free < needed:
    findings.stops.append(
      f"{place} has {free / 1e6:,.0f} MB free, and checkpoints need {needed / 1e6:,.0f} MB: make "
      "room, lower keep_latest or keep_best, or give another --workdir."
    )


def _compare(findings: Findings, input_speed: float, step_speed: float) -> None:
  ratio = input_speed / step_speed
  if ratio >= 1:
    _row("Balance", f"the input is {ratio:.1f}x as fast as the steps")
    return
  _row("Balance", f"input-bound by {1 / ratio:.1f}x")
  findings.warnings.append(
    f"The steps could be {1 / ratio:.1f}x as fast as the input feeds them: give the host more cores, or prepare the "
    "data with smaller images."
  )
