"""Runs side by side: a table, and their curves with the spread over seeds. Archived runs will do, in place of runs."""

import itertools
import json
import math
import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from bn_inception import config_changes, curves, paths, run_directory, run_table
from bn_inception.configs import versions

# Runs that differ in these alone are seeds of the same experiment.
_NO_EXPERIMENT = (*config_changes.FREE, "seed", "version")
# Of the keys that tell experiments apart as well as another, these are named first.
_TELLING = ("model.name", "batch_norm.enabled", "learning_rate")
_NAMED = 3  # So many keys are all named; of more, as few as tell the experiments apart.
_MISSING = "none"  # The value of a key that the network of a run does not have.
_TOP1, _LOSS = "eval/running/top1", "train/loss"


class Experiment(NamedTuple):
  """Runs that differ in their seed alone.

  Attributes:
    name: the values of their config in which they differ from the other experiments, "learning_rate=0.01".
    folders: of the runs.
    lines: of each run the lines of its metrics.jsonl.
    diverged: how many of the runs have diverged.
  """

  name: str
  folders: list[pathlib.Path]
  lines: list[list[dict[str, float]]]
  diverged: int

  def points(self, key: str) -> list[list[tuple[float, float]]]:
    """Of each run the (step of 32 examples, value) of its lines that have the key."""
    return [[(line["paper_steps"], line[key]) for line in lines if key in line] for lines in self.lines]


def compare(
  workdirs: Sequence[str | os.PathLike],
  output: str | os.PathLike | None = None,
  *,
  target: float | None = None,
  log_x: bool = False,
) -> str:
  """The table of some runs; with `output` also draws their curves.

  Args:
    workdirs: run directories, archived runs, or folders that hold such.
    output: the .png file to write.
    target: a validation accuracy; the table tells the steps to it.
    log_x: draws steps on a logarithmic axis.

  Raises:
    UserError: if there is no run in one of the folders.
    VersionError, DamagedFileError: if a run cannot be read.
  """
  experiments, other_keys = read(workdirs)
  lines = [table(experiments, target)]
  if other_keys:
    lines.append(f"They differ in {', '.join(other_keys)} too.")
  if output is not None:
    lines.append(f"Curves: {draw(experiments, pathlib.Path(paths.local(output, '--output')), log_x=log_x)}")
  return "\n".join(lines)


def read(workdirs: Sequence[str | os.PathLike]) -> tuple[list[Experiment], list[str]]:
  """The experiments of some runs, in the order of their values, and the keys that differ but are in no name.

  Arguments and errors are those of `compare`.
  """
  folders = dict.fromkeys(
    run for folder in workdirs for run in run_table.runs_below(pathlib.Path(paths.local(folder, "--workdir")))
  )
  groups: dict[str, list[pathlib.Path]] = {}
  for folder in folders:
    groups.setdefault(json.dumps(_values(folder), sort_keys=True), []).append(folder)
  configs = [json.loads(group) for group in groups]
  differing = _differing(configs)
  named = differing if len(differing) <= _NAMED else _telling(configs, differing)
  names = [", ".join(f"{key}={_text(config.get(key, _MISSING))}" for key in named) for config in configs]
  order = sorted(range(len(configs)), key=lambda i: [_sortable(configs[i].get(key, _MISSING)) for key in named])
  runs = list(groups.values())
  experiments = [_experiment(names[i] or _common_folder(runs[i]).absolute().name, runs[i]) for i in order]
  return experiments, [key for key in differing if key not in named]


def table(experiments: Sequence[Experiment], target: float | None = None) -> str:
  """Best and last validation accuracy of each experiment, mean ± standard deviation over its runs.

  With `target` also the steps of 32 examples to the first evaluation that reaches it, the mean over the runs that do.
  """
  columns = ["experiment", "runs", "best top-1", "last top-1"]
  if target is not None:
    columns.append(f"steps to {target:.1%}")
  rows = []
  for experiment in experiments:
    runs = [[value for _, value in points] for points in experiment.points(_TOP1)]
    runs = [values for values in runs if values]
    row = [
      experiment.name,
      str(len(experiment.lines)) + (f", {experiment.diverged} diverged" if experiment.diverged else ""),
      _spread([max(values) for values in runs]),
      _spread([values[-1] for values in runs]),
    ]
    if target is not None:
      row.append(_steps_to(experiment, target))
    rows.append((*row, str(_common_folder(experiment.folders))))
  return run_table.columns([(*columns, "folder"), *rows], left=(0, len(columns)))


def draw(experiments: Sequence[Experiment], output: pathlib.Path, *, log_x: bool = False) -> pathlib.Path:
  """Draws validation accuracy and training loss against steps: means over seeds, with bands of a standard deviation.

  A mean is drawn at the steps that all runs of an experiment have reached.
  """
  figure = curves.new_figure(10.5, 3.6 + 0.2 * max(0, len(experiments) - 6))
  axes = figure.subplots(1, 2)
  styles = itertools.cycle(itertools.product(("-", "--", ":"), curves.RUN_COLOURS))
  for experiment, (style, colour) in zip(experiments, styles):
    for part, key in zip(axes, (_TOP1, _LOSS)):
      steps, means, deviations = mean_and_deviation(experiment.points(key))
      part.plot(steps, means, style, color=colour, linewidth=1.2, label=experiment.name)
      if len(experiment.lines) > 1:
        low, high = ([m + sign * d for m, d in zip(means, deviations)] for sign in (-1, 1))
        part.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
  for part, label in zip(axes, ("validation top-1 accuracy", "training cross-entropy (nats)")):
    if log_x:
      part.set_xscale("log")
    curves.finish_axes(part, label)
  # Below the axes: many curves leave no free corner, and names are long.
  figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=8, ncols=2)
  return curves.save(figure, output)


def mean_and_deviation(runs: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], list[float], list[float]]:
  """(steps, means, sample standard deviations) at the steps that all runs have; a single run's deviations are 0."""
  by_step = [dict(points) for points in runs]
  steps = sorted(set.intersection(*(set(values) for values in by_step))) if by_step else []
  columns = [[values[step] for values in by_step] for step in steps]
  finite = [(step, values) for step, values in zip(steps, columns) if all(map(math.isfinite, values))]
  return (
    [step for step, _ in finite],
    [statistics.fmean(values) for _, values in finite],
    [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in finite],
  )


def _values(folder: pathlib.Path) -> dict[str, Any]:
  """What makes the experiment of a run: the values of its config without its seed and what changes no number."""
  config = versions.flatten(run_directory.read_config_tree(run_directory.config_path(folder)))
  return {key: value for key, value in config.items() if key not in _NO_EXPERIMENT}


def _differing(configs: Sequence[dict[str, Any]]) -> list[str]:
  """Keys that do not have the same value in all configs, the telling ones first."""
  keys = sorted(dict.fromkeys(key for config in configs for key in config), key=lambda key: key not in _TELLING)
  return [key for key in keys if any(config.get(key, _MISSING) != configs[0].get(key, _MISSING) for config in configs)]


def _telling(configs: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[str]:
  """A few of the keys, whose values tell all configs apart: the one that tells most, the one that adds most, ..."""

  def told_apart(chosen: Sequence[str]) -> int:
    return len({json.dumps([config.get(key, _MISSING) for key in chosen]) for config in configs})

  chosen: list[str] = []
  while told_apart(chosen) < len(configs):
    chosen.append(max(keys, key=lambda key: told_apart([*chosen, key])))
  return sorted(chosen, key=keys.index)


def _text(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:g}"
  return value if isinstance(value, str) else json.dumps(value)


def _sortable(value: Any) -> tuple[bool, float, str]:
  is_number = isinstance(value, (int, float))
  return (not is_number, value if is_number else 0.0, _text(value))


def _experiment(name: str, folders: list[pathlib.Path]) -> Experiment:
  lines = [run_directory.read_metrics(folder) for folder in folders]
  states = [run_directory.read_status(folder).get("status") for folder in folders]
  return Experiment(name, folders, lines, states.count("diverged"))


def _spread(values: Sequence[float]) -> str:
  if not values:
    return ""
  deviation = f" \N{PLUS-MINUS SIGN}{statistics.stdev(values):6.2%}" if len(values) > 1 else " " * 8
  return f"{statistics.fmean(values):.2%}{deviation}"


def _steps_to(experiment: Experiment, target: float) -> str:
  firsts = [next((step for step, value in points if value >= target), None) for points in experiment.points(_TOP1)]
  reached = [step for step in firsts if step is not None]
  if not reached:
    return "not reached"
  return f"{statistics.fmean(reached):,.0f}" + (
    f" ({len(reached)} of {len(firsts)})" if len(reached) < len(firsts) else ""
  )


def _common_folder(folders: Sequence[pathlib.Path]) -> pathlib.Path:
  """The run itself, or the deepest folder that holds all of the runs."""
  if len({folder.is_absolute() for folder in folders}) > 1:
    folders = [folder.absolute() for folder in folders]
  return pathlib.Path(os.path.commonpath(folders))
