"""A checkpoint of one of this project's runs as a release."""

import contextlib
import logging
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bn_inception import config_checks, config_keys, paths, run_directory, sharding
from bn_inception.config_dict import ConfigDict
from bn_inception.config_keys import Config
from bn_inception.configs import versions
from bn_inception.release.errors import ReleaseError
from bn_inception.release.release_type import Release

STATISTICS = ("running", "population")

_log = logging.getLogger(__name__)


def is_run(path: str | os.PathLike) -> bool:
  """Whether a path is a run directory, as far as the names of its files tell."""
  path = pathlib.Path(paths.local(path, "A checkpoint"))
  return run_directory.config_path(path).is_file() and (path / "checkpoints").is_dir()


def from_run(
  workdir: str | os.PathLike,
  step: int | None = None,
  statistics: str = "running",
  *,
  data_dir: str | os.PathLike | None = None,
  devices: list[jax.Device] | None = None,
) -> Release:
  """Makes a release of a checkpoint: the weights that evaluation uses (their moving average, if the run keeps one).

  Args:
    workdir: a run directory.
    step: of the checkpoint; None: the newest.
    statistics: "running" averages of training, or "population": Algorithm 2's, computed now over the same training
      mini-batches as in the run's evaluations. Of a network without BN there are none.
    data_dir: in place of the run's `data.dir`.
    devices: what to run on; None: all devices.

  Returns:
    The release; with the metrics of that step, if the run evaluated it. Its labels are those of the data set; () if
    that is not prepared here, which population statistics do need.

  Raises:
    FileNotFoundError, DamagedFileError, ConfigError, VersionError, DataError, CheckpointError, ReleaseError: one
      sentence on what cannot be used.
  """
  from bn_inception import restore  # Orbax is for runs, and a release is read without.

  workdir = pathlib.Path(paths.local(workdir, "--workdir"))
  if statistics not in STATISTICS:
    raise ReleaseError(f"There are no {statistics!r} statistics: choose one of {', '.join(STATISTICS)}.")
  config = read_config(workdir)
  if data_dir is not None:
    config.data.dir = os.fspath(data_dir)
  mesh = sharding.make_mesh(devices)
  computes = statistics == "population" and config.batch_norm.enabled
  checked = config_checks.check_config(config, mesh.size) if computes else config_keys.parse(config)
  labels, classes = _labels(workdir, checked, needed=computes)
  state = restore.state_of_run(workdir, checked, mesh, step)
  step, params, batch_stats = int(state.step), state.evaluated_params, state.batch_stats
  if computes:
    batch_stats = _population_statistics(workdir, params, batch_stats, checked, mesh)
  params = {name: node for name, node in params.items() if not name.startswith("auxiliary_")}  # In training only.
  batch_stats = {name: node for name, node in batch_stats.items() if not name.startswith("auxiliary_")}
  collections = {"params": params, "batch_stats": batch_stats} if config.batch_norm.enabled else {"params": params}
  metrics = _metrics(workdir, config, step, statistics)
  config.release = ConfigDict(
    {
      "source": "a run of this project",
      "step": step,
      "revision": run_directory.read_status(workdir).get("git_revision") or "unknown",
      "classes": classes,
      "published": "none",
      "statistics": statistics if config.batch_norm.enabled else "none",
    }
    | _digests(workdir)
  )
  return Release(config, jax.tree.map(np.asarray, jax.device_get(collections)), labels, metrics)


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """The config of a run, checked.

  Raises:
    FileNotFoundError, ConfigError, VersionError: as `run_directory.read_config` and `config_checks.check_config`.
    ReleaseError: if it is no config of a run.
  """
  try:
    config = run_directory.read_config(workdir)
    if "model" not in config:
      raise KeyError("model")
    config_checks.check_config(config, devices=1)
    return config
  except (FileNotFoundError, config_checks.ConfigError, versions.VersionError):
    raise
  except Exception as error:  # Whatever is missing or of another type.
    raise ReleaseError(
      f"{run_directory.config_path(workdir)} is damaged, it is no config of a run ({type(error).__name__}: {error})."
    ) from error


def _labels(workdir: pathlib.Path, config: Config, needed: bool) -> tuple[tuple[str, ...], str]:
  """The names of the run's classes, and where they are from: the run's own data, not a newer version of them."""
  from bn_inception import run_data
  from bn_inception.data import datasets

  try:
    split = datasets.open_split(run_data.held(config.data, workdir), config.data.eval_split)
    run_data.check_classes(config.data, workdir, split)
  except datasets.DataError as error:
    if needed:
      raise
    _log.warning("The names of the classes are not known: %s", error)
    return (), f"those of {config.data.name}, whose names were not at hand"
  config_checks.check_data(config, split)
  return split.label_names, f"those of {split.name}"


def _digests(workdir: pathlib.Path) -> dict[str, str]:
  """What tells others whether their data are those of the run; {} of a run that has no record of its data."""
  from bn_inception import run_data

  record = run_data.read(workdir)
  return {f"{field}_digest": record[field]["digest"] for field in ("train_split", "eval_split") if field in record}


def _population_statistics(workdir: pathlib.Path, params: Any, batch_stats: Any, config: Config, mesh: Mesh) -> Any:
  from bn_inception import population, run_data
  from bn_inception.data import pipeline

  source = pipeline.open_source(run_data.held(config.data, workdir), config.data.train_split)
  run_data.check(config.data, workdir, train_split=source.split)
  with jax.set_mesh(mesh), contextlib.closing(population.training_batches(config, mesh, source)) as batches:
    compiled_step = population.batch_statistics_step(config, mesh)
    return population.over_training_batches(compiled_step, params, batch_stats, batches, mesh)


def _metrics(workdir: pathlib.Path, config: ConfigDict, step: int, statistics: str) -> dict[str, Any] | None:
  """The run's own evaluation of a step; None if it made none."""
  kind = statistics if config.batch_norm.enabled else "running"
  lines = [line for line in run_directory.read_metrics(workdir) if line["step"] == step]
  evaluation = next((line for line in lines if f"eval/{kind}/top1" in line), None)
  if evaluation is None:
    return None
  values = {name: evaluation[f"eval/{kind}/{name}"] for name in ("top1", "top5", "loss")}
  return {name: value for name, value in values.items() if math.isfinite(value)} | {
    "count": evaluation["eval/count"],
    "data": f"{config.data.name} {config.data.eval_split}",
    "command": "python scripts/evaluate.py --checkpoint='this folder'",  # It goes to others, and the run does not.
  }
