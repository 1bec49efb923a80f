"""The diagnosis of a checkpoint, of this project or of a peer, with a table and a picture."""

import itertools
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bn_inception import curves, diagnose, evaluate, release, step
from bn_inception.data import pipeline, stream
from bn_inception.diagnose import Diagnosis

_log = logging.getLogger(__name__)


def diagnose_checkpoint(
  path: str,
  output: str | os.PathLike | None = None,
  *,
  data_dir: str | None = None,
  dataset: str | None = None,
  batches: int = 16,
) -> Diagnosis:
  """Compares the running averages of a checkpoint with the statistics of training batches; prints what it finds.

  Args:
    path: a run directory, a release folder or the file of a peer, as of `release.read`.
    output: the picture to write, a .png; None: none.
    data_dir, dataset: TFDS data_dir and 'NAME[/CONFIG][:VERSION]'; None: those of the checkpoint's config.
    batches: of the training split, of `batch_size` examples with the config's distortions, and as many of the
      evaluation split, as far as it has whole ones.

  Raises:
    DiagnosisError, EvaluationError, ReleaseError, DataError, CheckpointError: one sentence on what cannot be used.
  """
  network = release.read(path)
  config = network.config.copy_and_resolve_references()
  if not config.batch_norm.enabled:
    raise diagnose.DiagnosisError(f"{path} has no BN layers, so there are no statistics to diagnose.")
  config.data.dir, config.data.name = data_dir or config.data.dir, dataset or config.data.name
  train_source, eval_source = (
    pipeline.open_source(config.data, name) for name in (config.data.train_split, config.data.eval_split)
  )
  model, variables, _ = release.build(network)
  columns = evaluate.output_columns(path, network, eval_source.split)

  def run(variables: Mapping[str, Any], batch: step.Batch) -> dict[str, jax.Array]:
    if "position" in batch:
      inputs = step.preprocess_for_training(config, batch["image"], batch["position"])
    else:
      inputs = step.preprocess(config, batch["image"])
    logits = model.apply(variables, inputs, train=False)[:, columns]
    return {
      "loss": jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])),
      "top-1": jnp.mean(jnp.argmax(logits, -1) == batch["label"]),
    }

  size = config.batch_size
  training, evaluation = [], []
  for number, batch in enumerate(
    itertools.islice(pipeline.train_batches(config.data, train_source, seed=config.seed, batch_size=size), batches)
  ):
    position = stream.local_positions(number, batch_size=size)[0].astype(np.uint32)
    training.append({"image": batch["image"][0], "label": batch["label"][0], "position": position})
  for batch in itertools.islice(pipeline.eval_batches(config.data, eval_source, batch_size=size), batches):
    if batch["mask"].all():  # The last may be padded, which no BN layer should see.
      evaluation.append({"image": batch["image"], "label": batch["label"]})
  diagnosis = diagnose.diagnose(run, variables, training, evaluation)
  _log.info(
    "%s: %d training batches of %d examples of %s, %d of %s.\n%s",
    path,
    len(training),
    size,
    train_source.split.name,
    len(evaluation),
    config.data.eval_split,
    diagnose.table(diagnosis),
  )
  if output is not None:
    draw(diagnosis, pathlib.Path(output))
    _log.info("Picture: %s", output)
  return diagnosis


def draw(diagnosis: Diagnosis, path: pathlib.Path) -> pathlib.Path:
  """Draws the distance of every feature's running averages from the population's, layer after layer."""
  layers = {layer.path: layer for layer in diagnosis.layers}
  order = [layers[name] for name in diagnosis.network_order]
  figure = curves.new_figure(max(7, 2.5 + 0.16 * len(order)), 6)
  top, bottom = figure.subplots(2, 1, sharex=True)
  for place, layer in enumerate(order):
    for axes, values in ((top, layer.shift), (bottom, layer.ratio)):
      axes.plot(np.full(values.shape, place), values, ".", color="#0072B2", markersize=2, alpha=0.4)
  limit = np.array([layer.batch_mean_distance for layer in order])
  top.bar(
    range(len(order)), 2 * limit, bottom=-limit, width=0.8, color="#009E73", alpha=0.25, label="means of single batches"
  )
  curves.finish_axes(top, "running - population mean (std)")
  curves.finish_axes(bottom, "running / population variance")
  top.set(xlabel="")
  top.set_yscale("symlog", linthresh=1)
  bottom.set(xlabel="", yscale="log")
  for axes in (top, bottom):  # "0.5", not "5 x 10^-1".
    axes.yaxis.set_major_formatter("{x:g}")
  bottom.yaxis.set_minor_formatter("{x:.2g}")
  top.legend(frameon=False, fontsize=8)
  bottom.set_xticks(range(len(order)), diagnosis.network_order, rotation=90, fontsize=6)
  return curves.save(figure, path)
