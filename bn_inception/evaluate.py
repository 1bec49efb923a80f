"""Evaluation of a checkpoint of a run, with the data and the network of the run's own config."""

import logging
import pathlib

import jax

from bn_inception import config_checks, restore, run_directory, sharding
from bn_inception.data import datasets
from bn_inception.evaluators import classification
from bn_inception.report import tables

_log = logging.getLogger(__name__)


def evaluate_run(workdir: str, step: int | None = None, *, data_dir: str | None = None, batch_size: int | None = None,
                 population_batches: int | None = None, devices: list[jax.Device] | None = None) -> dict[str, float]:
  """Evaluates a checkpoint with running, population and batch statistics; writes nothing.

  Args:
    workdir: a run directory.
    step: of the checkpoint; None: the newest.
    data_dir, batch_size, population_batches: in place of the run's `data.dir`, `eval.batch_size` and
      `eval.population_batches`; None keeps these.
    devices: what to run on; None: all devices of all processes.

  Returns:
    {"step", "eval/KIND/top1", "eval/KIND/top5", "eval/KIND/loss", "eval/count"}, as a line of metrics.jsonl.

  Raises:
    FileNotFoundError, ConfigError, DataError, CheckpointError: one sentence on what cannot be used.
  """
  config = run_directory.read_config(pathlib.Path(workdir))
  if data_dir is not None:
    config.data.dir = data_dir
  if batch_size is not None:
    config.eval.batch_size = batch_size
  if population_batches is not None:
    config.eval.population_batches = population_batches
  mesh = sharding.make_mesh(devices)
  with jax.set_mesh(mesh):
    config_checks.check_config(config, mesh.size)
    config_checks.check_data(config, datasets.open_split(config.data, config.data.eval_split))
    state = restore.restore(workdir, config, mesh, step)
    step = int(state.step)
    metrics = {f"eval/{name}": value for name, value in classification.make_evaluator(config, mesh)(state).items()}
  _log.info("%s", tables.evaluation(step, metrics))
  return {"step": step} | metrics

