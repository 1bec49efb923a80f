"""Top-1, top-5 and loss over a whole split, with three kinds of BN statistics side by side.

`running` are the averages kept during training. `population` are the statistics of Algorithm 2, over training
mini-batches with the weights frozen. `batch` are the own statistics of each mini-batch, as in training. The three
results should agree. A gap between two results is a finding about the run.
"""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bn_inception import models, population, sharding, step as step_lib
from bn_inception.config_keys import Config, Data
from bn_inception.data import datasets, device, pipeline
from bn_inception.evaluators import Evaluate, Evaluator
from bn_inception.state import Sums, TrainState


def statistics_of(config: Config) -> tuple[str, ...]:
  """The kinds of statistics of an evaluation. A network without BN has its results as "running"."""
  return tuple(config.eval.statistics) if config.batch_norm.enabled else ("running",)


def make_evaluator(
  config: Config,
  mesh: Mesh,
  train_source: pipeline.Source | None,
  eval_source: pipeline.Source,
  between_batches: Callable[[], None] = lambda: None,
) -> Evaluator:
  """Makes the evaluator of the config's evaluation split.

  The metrics do not depend on `eval.batch_size` or the devices. Every example counts once. Batch statistics are of
  groups of `batch_norm.group_size` consecutive examples (with 0: of `batch_size` examples). The last group may be
  smaller.

  Args:
    config, mesh: of the run.
    train_source: the training split; may be None without "population" in `statistics_of`.
    eval_source: the evaluation split.
    between_batches: called after every batch; an exception that it raises ends the evaluation.

  Returns:
    An evaluator. Its `start` begins to read the input, a few batches ahead, until `inputs` is closed, and returns
    `evaluate(state)`. The caller calls `evaluate` once, with a TrainState. The result is {"running/top1",
    "running/top5", "running/loss", the same for "population" and "batch" if `statistics_of` has them, "count",
    "skipped_examples"}: accuracies in [0, 1] over the counted examples, loss in nats. `evaluate` raises RuntimeError if
    it did not see or skip each example exactly once, and DataError if it skipped all examples.
  """
  split, kinds = eval_source.split, statistics_of(config)
  # Results are on every device, so that every process can read them.
  statistics_step = population.batch_statistics_step(config, mesh)
  programs = {
    "running": jax.jit(
      step_lib.make_eval_step(models.build(config), config.data), out_shardings=sharding.replicated(mesh)
    ),
    "population": statistics_step,
    "batch": statistics_step,
  }
  process = dict(process_index=jax.process_index(), process_count=jax.process_count())

  def compile_programs(state: TrainState) -> None:
    for kind, batch_size in (
      ("running", config.eval.batch_size),
      ("population", config.batch_size),
      ("batch", config.eval.batch_size),
    ):
      if kind in kinds:
        shapes = batch_shapes(config.data, mesh, batch_size, has_position=kind == "population")
        programs[kind] = programs[kind].lower(state.evaluated_params, state.batch_stats, shapes).compile()

  def start(inputs: contextlib.ExitStack) -> Evaluate:
    if "population" in kinds:
      training_batches = population.training_batches(config, mesh, train_source)
      inputs.callback(training_batches.close)
    batches = device.to_device(
      pipeline.eval_batches(config.data, eval_source, batch_size=config.eval.batch_size, **process),
      sharding.examples(mesh),
    )
    inputs.callback(batches.close)

    def evaluate(state: TrainState) -> dict[str, float]:
      params = state.evaluated_params
      statistics = {"running": state.batch_stats}
      if "population" in kinds:
        statistics["population"] = population.over_training_batches(
          programs["population"], params, state.batch_stats, training_batches, mesh, between_batches
        )
      results: dict[str, list[Sums]] = {}

      def count(kind: str, sums: Sums) -> None:
        sharding.one_program_at_a_time(mesh, sums)
        results.setdefault(kind, []).append(sums)

      for batch in batches:
        for kind, batch_stats in statistics.items():
          count(kind, programs["running"](params, batch_stats, batch))
        if "batch" in kinds:
          count("batch", programs["batch"](params, state.batch_stats, batch)[0])
        between_batches()
      return _metrics(results, split)

    return evaluate

  return Evaluator(compile_programs, start)


def batch_shapes(data: Data, mesh: Mesh, batch_size: int, *, has_position: bool = False) -> step_lib.Batch:
  """Shapes, types and shardings of an evaluation batch, or of a training batch for Algorithm 2 (`has_position`)."""
  leaves = {
    "image": ((batch_size, *data.image_shape), jnp.uint8),
    "label": ((batch_size,), jnp.int32),
    "mask": ((batch_size,), jnp.bool),
    "skipped": ((batch_size,), jnp.bool),
  }
  if has_position:
    leaves["position"] = ((batch_size,), jnp.uint32)
  return {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.examples(mesh))
    for name, (shape, dtype) in leaves.items()
  }


def _metrics(results: dict[str, list[Sums]], split: datasets.Split) -> dict[str, float]:
  metrics = {}
  for kind, sums in results.items():
    sums = jax.device_get(sums)
    seen = sum(int(s.count) for s in sums)
    skipped = sum(int(s.skipped) for s in sums)
    if seen + skipped != split.num_examples:
      raise RuntimeError(
        f"Evaluation saw {seen} examples of {split.name} {split.split} and skipped {skipped}, but "
        f"it has {split.num_examples}: its result is not to be trusted."
      )
    if not seen:
      raise datasets.DataError(f"Every record of {split.name} {split.split} was skipped: prepare the data set again.")
    for name in ("top1", "top5", "loss"):
      metrics[f"{kind}/{name}"] = sum(getattr(s, name).item() for s in sums) / seen
  return metrics | {"count": seen, "skipped_examples": skipped}
