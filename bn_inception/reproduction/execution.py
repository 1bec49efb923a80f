"""Runs a plan: what is finished is left alone, what was cut resumes, and it says beforehand how long it will take.

Runs are made one after the other in this process. Several machines that see the same work directory share a plan by
`index` and `count`: each takes every count-th run and every count-th evaluation. One whose runs another machine has
still to finish is made when the command is given again.
"""

import logging
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bn_inception import (
  config_checks,
  evaluate,
  folder_lock,
  models,
  optim,
  paths,
  run_directory,
  state as state_lib,
  status,
  step as step_lib,
  tables,
  train,
)
from bn_inception.data import datasets
from bn_inception.reproduction import plans, run_cost

_log = logging.getLogger(__name__)

_MEASURED_CALLS, _MEASURED_SECONDS = 5, 5.0  # At least, both.


def reproduce(
  figure: str,
  workdir: str,
  *,
  scale: str | None = None,
  data_dir: str = "",
  seeds: int | None = None,
  num_steps: int | None = None,
  index: int = 0,
  count: int = 1,
  dry_run: bool = False,
) -> str:
  """Makes what a figure takes, as far as it is not there yet.

  Args:
    figure: a key of `plans.FIGURES`.
    workdir: holds the runs, SCALE/EXPERIMENT/seedN.
    scale: one of the figure's; None: its first, or, without its data and a `data_dir`, that of the embedded digits.
    data_dir: TFDS data_dir.
    seeds: runs of each experiment; None: the figure's own number.
    num_steps: in place of each run's own length (the schedule of the learning rate stays).
    index, count: make part `index` of `count`.
    dry_run: only say what would be made.

  Returns:
    "done", "preempted" (the same command resumes) or, of a dry run, "planned".

  Raises:
    ConfigError, DataError, CheckpointError: one sentence on what cannot be used, before the first run starts.
  """
  make_plan, scales, default_seeds = plans.FIGURES[figure]
  if scale is not None and scale not in scales:
    raise config_checks.ConfigError(f"{figure} has no scale '{scale}': choose one of {', '.join(scales)}.")
  if not 0 <= index < count:
    raise config_checks.ConfigError(f"Part {index} of {count} does not exist: give an --index from 0 to {count - 1}.")
  scale = scale or _usual_scale(figure, data_dir)
  plan = make_plan(scale, default_seeds if seeds is None else seeds)
  root = pathlib.Path(paths.local(workdir, "--workdir"))
  whole = {run.name: run.config() for run in plan.runs}
  given = {"data.dir": data_dir} | ({} if num_steps is None else {"num_steps": num_steps})
  runs = [run._replace(overrides=run.overrides | given) for run in part(plan.runs, index, count)]
  runs = [(run, run.config()) for run in runs]
  evaluations = part(plan.evaluations, index, count)
  # What can be wrong with any run is found before the first.
  for run, config in runs:
    config_checks.check_config(config, jax.device_count())
    for split in (config.data.train_split, config.data.eval_split):
      config_checks.check_data(config, datasets.open_split(config.data, split))
    _check_unchanged(root / run.name, config)
  open_runs = [(run, config) for run, config in runs if not finished(root / run.name, config)]
  _log.info("%s", _announce(figure, scale, runs, open_runs, evaluations, root, index, count))
  if dry_run:
    return "planned"

  for number, (run, config) in enumerate(open_runs, start=1):
    _log.info("Run %d of %d: %s", number, len(open_runs), run.command(workdir))
    try:
      # `_check_unchanged` has seen to what may be another.
      summary = train.train_and_evaluate(config, root / run.name, allow_config_change=True)
    except folder_lock.FolderInUseError as error:
      _log.warning("%s It is left out here.", error)
      continue
    if summary["status"] == status.PREEMPTED:
      return status.PREEMPTED
    jax.clear_caches()  # The compiled programs of a run serve no other.
  for evaluation in evaluations:
    _evaluate(evaluation, whole, root, data_dir)
  return "done"


def _usual_scale(figure: str, data_dir: str) -> str:
  make_plan, scales, _ = plans.FIGURES[figure]
  if data_dir or "quickstart" not in scales:
    return scales[0]
  data = make_plan(scales[0], 1).runs[0].config().data
  try:
    datasets.open_split(data, data.eval_split)
  except datasets.DataError as error:
    _log.warning("%s Here that is --data_dir. Until then the embedded digits serve instead: --scale=quickstart.", error)
    return "quickstart"
  return scales[0]


def part(tasks: list, index: int, count: int) -> list:
  """Every count-th run or evaluation from `index` on."""
  return tasks[index::count]


def finished(workdir: pathlib.Path, config: ConfigDict) -> bool:
  """Whether a run has come to its end, or diverged."""
  last_status = run_directory.read_status(workdir)
  return last_status.get("status") == status.DIVERGED or (
    last_status.get("status") == status.DONE and last_status["step"] >= config.num_steps
  )


def _check_unchanged(workdir: pathlib.Path, config: ConfigDict) -> None:
  """A figure must not be put together from runs of different configs."""
  changed = [name for name in run_directory.changed_fields(workdir, config) if name not in ("data.dir", "num_steps")]
  if changed:
    raise config_checks.ConfigError(
      f"{workdir} was run with another config (it differs in {', '.join(changed)}): move "
      "it away, or give another --workdir."
    )


def _evaluate(evaluation: plans.Evaluation, configs: dict[str, ConfigDict], root: pathlib.Path, data_dir: str) -> None:
  """Makes an evaluation unless it is there; only of runs of their whole length, so that it never becomes outdated."""
  output = root / evaluation.name
  diverged = [name for name in evaluation.runs if run_directory.read_status(root / name).get("status") == "diverged"]
  missing = [name for name in evaluation.runs if not finished(root / name, configs[name])]
  if diverged:
    _log.warning("%s cannot be made: %s diverged.", evaluation.name, ", ".join(diverged))
  elif missing:
    _log.info("%s waits for all steps of %s: the same command makes it then.", evaluation.name, ", ".join(missing))
  elif not (output / "metrics.json").exists():
    evaluate.evaluate_checkpoints(
      [str(root / name) for name in evaluation.runs],
      str(output),
      data_dir=data_dir or None,
      split="test" if _scale(evaluation) != "imagenet" else None,
      crops=evaluation.crops,
      statistics=evaluation.statistics,
    )


def _scale(evaluation: plans.Evaluation) -> str:
  return evaluation.name.split("/")[0]


def measure(config: ConfigDict) -> tuple[float, float]:
  """(seconds to compile, FLOP a second) of a config's training step on this machine, on no data.

  The speed is that of the median call: the first ones of a process can take several times as long.
  """
  model = models.build(config)
  image_shape = (config.data.image_size, config.data.image_size, len(config.data.mean))
  optimizer = optim.make_optimizer(config, optim.learning_rate_schedule(config, 1_000_000))
  state = jax.jit(lambda: state_lib.create(model, optimizer, config, image_shape))()
  shapes = step_lib.train_batch_shapes(config, image_shape, steps=config.steps_per_call)
  batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
  call = step_lib.make_train_call(step_lib.make_train_step(model, optimizer, config), config)
  start = time.monotonic()
  call = jax.jit(call, donate_argnums=0).lower(state, batch).compile()
  compiled = time.monotonic() - start
  seconds = []
  while len(seconds) < _MEASURED_CALLS or sum(seconds) < _MEASURED_SECONDS:
    start = time.monotonic()
    state = jax.block_until_ready(call(state, batch))
    seconds.append(time.monotonic() - start)
  return compiled, config.steps_per_call * run_cost.count_work(config).train.flop / statistics.median(seconds)


def _announce(
  figure: str,
  scale: str,
  runs: list,
  open_runs: list,
  evaluations: list[plans.Evaluation],
  root: pathlib.Path,
  index: int,
  count: int,
) -> str:
  lines = [
    f"{figure} at the scale {scale}: {len(runs)} runs"
    + (f" (part {index} of {count})" if count > 1 else "")
    + f", {len(runs) - len(open_runs)} of them finished"
    + (f", and {len(evaluations)} evaluations." if evaluations else ".")
  ]
  if not open_runs:
    return "\n".join(lines)
  compile_seconds, speed = measure(open_runs[0][1])
  total = 0.0
  width = max(len(run.name) for run, _ in open_runs)
  for run, config in open_runs:
    cost = run_cost.count_work(config)
    examples = datasets.open_split(config.data, config.data.eval_split).num_examples
    done = run_directory.read_status(root / run.name).get("step", 0) / config.num_steps
    seconds = compile_seconds + (1 - done) * run_cost.total_work(config, cost, examples).flop / speed
    total += seconds
    lines.append(
      f"  {run.name:{width}}  {config.num_steps:>10,} steps of {config.batch_size}, "
      f"{cost.train.flop / 1e9:.2f} GFLOP each  {tables.duration(seconds):>7}" + (f", {done:.0%} done" if done else "")
    )
  lines.append(
    f"It takes about {tables.duration(total)}, at the {speed / 1e9:.0f} GFLOP/s that "
    f"{open_runs[0][0].name} reached just now and {compile_seconds:.0f} s to compile each"
    + (", and the evaluations." if evaluations else ".")
  )
  return "\n".join(lines)
