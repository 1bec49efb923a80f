"""Evaluation of what was trained: a checkpoint of a run in all its statistics, or any networks on any data set."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bn_inception import (
  config_checks,
  folder_lock,
  hosts,
  paths as path_checks,
  release,
  restore,
  run_data,
  run_directory,
  sharding,
  tables,
)
from bn_inception.configs import versions
from bn_inception.data import annotations, datasets, pipeline
from bn_inception.evaluators import classification, prediction, predictions_file
from bn_inception.evaluators.predictions_file import EvaluationError
from bn_inception.release import hub

_PROGRESS_SECONDS = 10

_log = logging.getLogger(__name__)


def evaluate_run(
  workdir: str,
  step: int | None = None,
  *,
  data_dir: str | None = None,
  batch_size: int | None = None,
  population_batches: int | None = None,
  devices: list[jax.Device] | None = None,
) -> dict[str, float]:
  """Evaluates a checkpoint with the statistics of its `eval.statistics`; writes nothing.

  Args:
    workdir: a run directory.
    step: of the checkpoint; None: the newest.
    data_dir, batch_size, population_batches: in place of the run's `data.dir`, `eval.batch_size` and
      `eval.population_batches`; None keeps these.
    devices: what to run on; None: all devices of all processes.

  Returns:
    {"step", "eval/KIND/top1", "eval/KIND/top5", "eval/KIND/loss", "eval/count"}, as a line of metrics.jsonl; with
    "eval/skipped_examples" if records were skipped.

  Raises:
    FileNotFoundError, DamagedFileError, ConfigError, VersionError, DataError, CheckpointError, EvaluationError,
      HostsDifferError: one sentence on what cannot be used.
  """
  workdir = pathlib.Path(path_checks.local(workdir, "--workdir"))
  stored = run_directory.read_config(workdir)
  if data_dir is not None:
    stored.data.dir = data_dir
  if batch_size is not None:
    stored.eval.batch_size = batch_size
  if population_batches is not None:
    stored.eval.population_batches = population_batches
  mesh = sharding.make_mesh(devices)
  with jax.set_mesh(mesh):
    config = config_checks.check_config(stored, mesh.size)
    if population_batches is not None and "population" not in classification.statistics_of(config):
      raise EvaluationError(
        f"{workdir} is not evaluated with population statistics, so --population_batches has no use: leave it out."
      )
    data = run_data.held(config.data, workdir)
    eval_source = pipeline.open_source(data, config.data.eval_split)
    run_data.check(config.data, workdir, eval_split=eval_source.split)
    config_checks.check_data(config, eval_source.split)
    alike = run_directory.fingerprint(stored) | {"data of evaluation": eval_source.split.digest}
    train_source = None
    if "population" in classification.statistics_of(config):
      train_source = pipeline.open_source(data, config.data.train_split)
      run_data.check(config.data, workdir, train_split=train_source.split)
      alike["data of training"] = train_source.split.digest
    hosts.check_alike(alike)
    with contextlib.ExitStack() as inputs:
      # The input is read while the checkpoint is restored and programs compile.
      evaluate = classification.make_evaluator(config, mesh, train_source, eval_source).start(inputs)
      state = restore.state_of_run(workdir, config, mesh, step)
      step = int(state.step)
      metrics = {f"eval/{name}": value for name, value in evaluate(state).items()}
  _log.info("%s", tables.evaluation(step, metrics))
  return {"step": step} | metrics


def evaluate_checkpoints(
  paths: Sequence[str],
  output: str | None = None,
  *,
  data_dir: str | None = None,
  dataset: str | None = None,
  split: str | None = None,
  crops: int = 1,
  batch_size: int | None = None,
  statistics: str = "running",
  folded: bool = False,
  on_error: str = "fail",
  devices: list[jax.Device] | None = None,
) -> dict[str, float]:
  """Evaluates a network, or the ensemble of several, and writes the prediction of every example.

  Class probabilities are averaged over crops and networks (§4.2.3). Evaluation that was killed continues where it
  stopped, when it is called again with the same arguments.

  Args:
    paths: of each network a run directory, a release folder, "hf://user/name" or the file of a peer.
    output: the folder of the evaluation; None: evaluations/ and what it is of.
    data_dir: TFDS data_dir; None: that of the first network's config.
    dataset: 'NAME[/CONFIG][:VERSION]'; None: the one that the networks were made for.
    split: None: the set's validation or test split, or the one that the networks' configs name.
    crops: of each image, 1, 10 or 144 (see `evaluation_crops`).
    batch_size: crops that pass a network at a time; None: 64 for each device.
    statistics: of run directories, "running" or "population".
    folded: with BN folded into the convolutions.
    on_error: what to do with a record that cannot be read: "fail", or "skip" and count it.
    devices: what to run on; None: all devices of all processes.

  Returns:
    `predictions_file.metrics`, also written to metrics.json.

  Raises:
    EvaluationError, ReleaseError, DataError, ConfigError, VersionError, CheckpointError, FolderInUseError,
      HostsDifferError: one sentence on what cannot be used.
  """
  if not paths or not all(paths):
    raise EvaluationError("A network has no path: give --checkpoint=PATH, or several with a comma between them.")
  paths = [path_checks.local_or_hub(path, "--checkpoint") for path in paths]
  mesh = sharding.make_mesh(devices)
  releases = [_read(path, statistics, data_dir) for path in paths]
  data = _common_data(paths, releases, data_dir, dataset)
  data.on_error = on_error
  source = pipeline.open_source(data, split or _split_name(data, dataset))
  opened = source.split
  if source.records is None:
    raise datasets.DataError(
      "The data set 'fake' is noise for training and has no records to read: choose another data set."
    )
  networks = [_network(path, loaded, opened, folded) for path, loaded in zip(paths, releases)]
  request = {
    "networks": [
      {"path": path, "sha256": _digest(loaded, network.program)}
      for path, loaded, network in zip(paths, releases, networks)
    ],
    "data": opened.name,
    "data_digest": opened.digest,
    "split": opened.split,
    "examples": opened.num_examples,
    "crops": crops,
    "image_size": data.image_size,
    "folded": folded,
    "statistics": _statistics_of(releases) or statistics,
  }
  batch_size = batch_size or 64 * mesh.size
  hosts.check_alike(_fingerprint(request | {"batch_size": batch_size}))
  folder = pathlib.Path(path_checks.local(output, "--output") if output else _default_output(paths, opened, crops))
  writes = jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    if writes:
      predictions_file.check_folder(folder)
    lock = stack.enter_context(folder_lock.hold_for_all(folder))
    if lock:
      stack.enter_context(hosts.before_exit(lambda *_: lock.release()))
    done = hosts.of_first(predictions_file.resume(folder, request) if writes else None)
    _log.info(
      "%s: %s images of %s %s, %d crop%s, %d network%s%s.",
      folder,
      f"{opened.num_examples:,}",
      opened.name,
      opened.split,
      crops,
      "s"[: crops > 1],
      len(networks),
      "s"[: len(networks) > 1],
      f", {done:,} images are done already" if done else "",
    )

    local_images = prediction.images_per_batch(batch_size, crops)
    batches = pipeline.crop_batches(
      data,
      source,
      crops=crops,
      batch_size=local_images * jax.process_count(),
      first=done,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    names = [release.human_name(name) for name in opened.label_names]
    progress = _Progress(done, opened.num_examples)
    # Float32 is what it says, on accelerators too.
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"), contextlib.ExitStack() as writing:
      append = writing.enter_context(predictions_file.writer(folder, names)) if writes else None
      for predicted in prediction.predict(networks, batches, mesh, batch_size):
        indices = np.arange(done, min(done + len(predicted.mask), opened.num_examples))
        if writes:
          mask = predicted.mask[: len(indices)]
          lock.check()
          append(annotations.read(opened, source.records, indices, mask), predicted.probabilities[: len(indices)], mask)
        done += len(indices)
        progress.report(done)
    if not writes:
      return {}
    lock.check()
    metrics = predictions_file.metrics(folder, opened.num_examples)
    run_directory.replace_file(
      folder / predictions_file.METRICS, json.dumps(run_directory.json_numbers(metrics), indent=2) + "\n"
    )
    _log.info("%s", tables.comparison(request, metrics, [loaded.config.release.published for loaded in releases]))
    return metrics


def _fingerprint(request: dict[str, Any]) -> dict[str, str]:
  """The values that must be the same on all hosts of an evaluation, each by its name; where a file lies may differ."""
  networks = {
    f"the content of checkpoint {number}": network["sha256"]
    for number, network in enumerate(request["networks"], start=1)
  }
  others = {name: json.dumps(value) for name, value in request.items() if name != "networks"}
  return networks | others | run_directory.software()


def _read(path: str, statistics: str, data_dir: str | None) -> release.Release:
  here = hub.local_path(path)
  if release.is_run(here):
    return release.from_run(here, statistics=statistics, data_dir=data_dir)
  loaded = release.read(here)
  if statistics == "population" and loaded.config.release.statistics == "running":
    raise EvaluationError(
      f"{path} is no run directory, from which alone population statistics can be computed; it has running averages: "
      "leave out --statistics."
    )
  return loaded


def _statistics_of(releases: Sequence[release.Release]) -> str:
  """The BN statistics that the networks have, '' for networks without BN: a release folder has those of its export."""
  return " and ".join(sorted({loaded.config.release.statistics for loaded in releases} - {"none"}))


def _common_data(
  paths: Sequence[str], releases: Sequence[release.Release], data_dir: str | None, dataset: str | None
) -> ConfigDict:
  """The `config.data` that all networks can share."""
  first = releases[0].config.data
  for path, other in zip(paths, releases):
    for name in ("image_size", "eval_resize", *([] if dataset else ["name"])):
      if other.config.data[name] != first[name]:
        raise EvaluationError(
          f"{paths[0]} and {path} do not see the same images, their data.{name} are {first[name]} and "
          f"{other.config.data[name]}: " + ("give --dataset." if name == "name" else "evaluate them apart.")
        )
  data = first.copy_and_resolve_references()
  data.name, data.dir = dataset or data.name, data_dir or data.dir
  return data


def _split_name(data: ConfigDict, dataset: str | None) -> str:
  names = datasets.split_names(data)
  wanted = ("validation", "test") if dataset else (data.eval_split,)
  known = next((name for name in wanted if name in names), None)
  if dataset and known is None:
    raise EvaluationError(
      f"{dataset} has no split that is called validation or test: give --split as one of {', '.join(names)}."
    )
  return known or data.eval_split


def _network(path: str, loaded: release.Release, split: datasets.Split, folded: bool) -> prediction.Network:
  """A release as a network on one data set; see `prediction.Network`."""
  try:
    model, variables, preprocess = release.build(loaded, folded=folded)
  except ValueError as error:
    raise EvaluationError(f"{path}: {error}") from error
  columns = output_columns(path, loaded, split)
  image = jax.ShapeDtypeStruct(
    (1, loaded.config.data.image_size, loaded.config.data.image_size, split.image_channels), np.uint8
  )
  try:
    jax.eval_shape(lambda images: model.apply(variables, preprocess(images), train=False), image)
  except Exception as error:  # Whatever the layers raise, the images do not fit them.
    raise EvaluationError(
      f"{path} does not take the images of {split.name}, which have {split.image_channels} "
      f"channel{'s'[: split.image_channels > 1]}: choose another data set."
    ) from error
  settings = ConfigDict({name: loaded.config[name] for name in ("model", "batch_norm", "data", "dtype")})
  settings = settings.copy_and_resolve_references()
  settings.data.dir = ""  # Where the data lie changes no program and no result.
  settings = versions.without_added_defaults(json.loads(settings.to_json()))
  program = json.dumps(settings, sort_keys=True) + f" {columns.tolist()}"
  return prediction.Network(model, variables, preprocess, columns, program)


def output_columns(path: str, loaded: release.Release, split: datasets.Split) -> np.ndarray:
  """The output of a network for each class of the data set, found by the classes' names."""
  if loaded.labels:
    outputs = {name: output for output, name in enumerate(loaded.labels)}
    if missing := [name for name in split.label_names if name not in outputs]:
      raise EvaluationError(
        f"{path} has no output for {missing[0]} of {split.name} ({len(missing)} of "
        f"{split.num_classes} classes are not among its own): choose a data set of its classes."
      )
    return np.array([outputs[name] for name in split.label_names])
  if loaded.config.data.num_classes != split.num_classes:
    raise EvaluationError(
      f"{path} has {loaded.config.data.num_classes} outputs, whose names it does not tell, and "
      f"{split.name} has {split.num_classes} classes: import it with --labels."
    )
  _log.warning("%s does not tell the names of its outputs; they are taken to be in the order of %s.", path, split.name)
  return np.arange(split.num_classes)


def _digest(loaded: release.Release, program: str) -> str:
  """SHA-256 of all that a network's predictions depend on: its settings, which output is which class, its variables."""
  digest = hashlib.sha256(program.encode())
  for leaf in jax.tree.leaves(loaded.variables):
    digest.update(np.ascontiguousarray(leaf).data)
  return digest.hexdigest()


def _default_output(paths: Sequence[str], split: datasets.Split, crops: int) -> str:
  names = [os.path.basename(os.path.normpath(path)).removesuffix(".xz") for path in paths]
  name = names[0] if len(names) == 1 else f"{len(names)}-networks"
  return os.path.join(
    "evaluations",
    f"{name}-{split.name.replace('/', '-').replace(':', '-')}-{split.split}-{crops}-crop{'s'[: crops > 1]}",
  )


class _Progress:
  """A line of the log every few seconds: how far, how fast, how long still."""

  def __init__(self, done: int, total: int):
    self._start = self._last = time.monotonic()
    self._first, self._total = done, total

  def report(self, done: int) -> None:
    now = time.monotonic()
    if now - self._last < _PROGRESS_SECONDS:
      return
    self._last = now
    speed = (done - self._first) / (now - self._start)
    _log.info(
      "%s/%s images  %.1f images/s  %s left",
      f"{done:,}",
      f"{self._total:,}",
      speed,
      tables.duration((self._total - done) / speed),
    )
