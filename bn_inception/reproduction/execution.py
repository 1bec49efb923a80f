"""Runs a plan: what is finished is left alone, what was cut resumes, and it says beforehand how long it will take.

Runs are made one after the other in this process. Several machines that see the same work directory share a plan by
`index` and `count`: each takes every count-th run and every count-th evaluation. One whose runs another machine has
still to finish is made when the command is given again.
"""

import logging
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bn_inception import (
  config_checks,
  config_keys,
  evaluate,
  folder_lock,
  hosts,
  paths,
  program as program_lib,
  run_directory,
  status,
  tables,
  train,
)
from bn_inception.data import datasets
from bn_inception.reproduction import plans, run_cost

_log = logging.getLogger(__name__)

_MEASURED_CALLS, _MEASURED_SECONDS = 5, 5.0  # At least, both.


class Task(NamedTuple):
  """A run to be made.

  Attributes:
    name: its directory below the work directory.
    config: with which it is made.
    command: what the log says when it starts: the command that makes this run alone, or the name again.
  """

  name: str
  config: ConfigDict
  command: str


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
  check_part(index, count)
  scale = scale or _usual_scale(figure, data_dir)
  plan = make_plan(scale, default_seeds if seeds is None else seeds)
  root = pathlib.Path(paths.local(workdir, "--workdir"))
  whole = {run.name: run.config() for run in plan.runs}
  given = {"data.dir": data_dir} | ({} if num_steps is None else {"num_steps": num_steps})
  runs = [run._replace(overrides=run.overrides | given) for run in part(plan.runs, index, count)]
  tasks = [Task(run.name, run.config(), run.command(workdir)) for run in runs]
  evaluations = part(plan.evaluations, index, count)
  check(tasks, root)
  title = f"{figure} at the scale {scale}{of_part(index, count)}"
  _log.info("%s", announce(title, tasks, root, evaluations=len(evaluations)))
  if dry_run:
    return "planned"
  if make(tasks, root) == status.PREEMPTED:
    return status.PREEMPTED
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


def check(tasks: Sequence[Task], root: pathlib.Path) -> None:
  """Finds what can be wrong with any of the runs before the first one starts.

  Raises:
    ConfigError, DataError, VersionError: one sentence on what cannot be used.
  """
  for task in tasks:
    config = config_checks.check_config(task.config, jax.device_count())
    for split in (config.data.train_split, config.data.eval_split):
      config_checks.check_data(config, datasets.open_split(config.data, split))
    _check_unchanged(root / task.name, task.config)


def make(tasks: Sequence[Task], root: pathlib.Path) -> str:
  """Makes the runs that are not finished, one after the other; a run that diverges stops no other one.

  A run that another program makes at this moment is left out. What is finished and what is left out, all processes of
  this program decide alike: on a file system that several machines share, one may see a file later than another.

  Returns:
    "done", or "preempted" if the program was asked to stop.
  """
  names = hosts.of_first([task.name for task in tasks if not finished(root / task.name, task.config)])
  unfinished = [task for task in tasks if task.name in names]
  for number, task in enumerate(unfinished, start=1):
    _log.info("Run %d of %d: %s", number, len(unfinished), task.command)
    try:
      # `_check_unchanged` has seen to what may be another.
      summary = train.train_and_evaluate(task.config, root / task.name, allow_config_change=True)
    except folder_lock.FolderInUseError as error:
      _log.warning("%s It is left out here.", error)
      continue
    if summary["status"] == status.PREEMPTED:
      return status.PREEMPTED
    jax.clear_caches()  # The compiled programs of a run serve no other.
  return status.DONE


def check_part(index: int, count: int) -> None:
  """Raises ConfigError unless there is a part `index` of `count`."""
  if not 0 <= index < count:
    raise config_checks.ConfigError(f"Part {index} of {count} does not exist: give an --index from 0 to {count - 1}.")


def of_part(index: int, count: int) -> str:
  return f" (part {index} of {count})" if count > 1 else ""


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
  """Makes an evaluation unless it is there; only of runs of their whole length, which are not trained any further."""
  output = root / evaluation.name
  diverged, missing, is_made = hosts.of_first(
    (
      [name for name in evaluation.runs if run_directory.read_status(root / name).get("status") == status.DIVERGED],
      [name for name in evaluation.runs if not finished(root / name, configs[name])],
      (output / "metrics.json").exists(),
    )
  )
  if diverged:
    _log.warning("%s cannot be made: %s diverged.", evaluation.name, ", ".join(diverged))
  elif missing:
    _log.info("%s waits for all steps of %s: the same command makes it then.", evaluation.name, ", ".join(missing))
  elif not is_made:
    try:
      evaluate.evaluate_checkpoints(
        [str(root / name) for name in evaluation.runs],
        str(output),
        data_dir=data_dir or None,
        split="test" if _scale(evaluation) != "imagenet" else None,
        crops=evaluation.crops,
        statistics=evaluation.statistics,
      )
    except folder_lock.FolderInUseError as error:
      _log.warning("%s It is left out here.", error)


def _scale(evaluation: plans.Evaluation) -> str:
  return evaluation.name.split("/")[0]


def measure(config: ConfigDict) -> tuple[float, float]:
  """(seconds to compile, FLOP a second) of a config's training step on this machine, on no data.

  The speed is that of the median call: the first ones of a process can take several times as long.
  """
  program = program_lib.build(config_keys.parse(config))
  state = program.initial_state()
  batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in program.batch_shapes().items()}
  start = time.monotonic()
  call = program.train_call().lower(state, batch).compile()
  compiled = time.monotonic() - start
  seconds = []
  while len(seconds) < _MEASURED_CALLS or sum(seconds) < _MEASURED_SECONDS:
    start = time.monotonic()
    state = jax.block_until_ready(call(state, batch))
    seconds.append(time.monotonic() - start)
  return compiled, config.steps_per_call * run_cost.count_work(config).train.flop / statistics.median(seconds)


def announce(title: str, tasks: Sequence[Task], root: pathlib.Path, evaluations: int = 0) -> str:
  """What `make` will make, and about how long it will take; the speed is measured with the first unfinished run."""
  unfinished = [task for task in tasks if not finished(root / task.name, task.config)]
  lines = [
    f"{title}: {len(tasks)} runs, {len(tasks) - len(unfinished)} of them finished"
    + (f", and {evaluations} evaluations." if evaluations else ".")
  ]
  if not unfinished:
    return "\n".join(lines)
  compile_seconds, speed = measure(unfinished[0].config)
  total = 0.0
  width = max(len(task.name) for task in unfinished)
  for name, config, _ in unfinished:
    cost = run_cost.count_work(config)
    examples = datasets.open_split(config.data, config.data.eval_split).num_examples
    done = run_directory.read_status(root / name).get("step", 0) / config.num_steps
    seconds = compile_seconds + (1 - done) * run_cost.total_work(config, cost, examples).flop / speed
    total += seconds
    lines.append(
      f"  {name:{width}}  {config.num_steps:>10,} steps of {config.batch_size}, "
      f"{cost.train.flop / 1e9:.2f} GFLOP each  {tables.duration(seconds):>7}" + (f", {done:.0%} done" if done else "")
    )
  lines.append(
    f"It takes about {tables.duration(total)}, at the {speed / 1e9:.0f} GFLOP/s that "
    f"{unfinished[0].name} reached just now and {compile_seconds:.0f} s to compile each"
    + (", and the evaluations." if evaluations else ".")
  )
  return "\n".join(lines)
