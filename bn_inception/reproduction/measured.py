"""What runs come to: run directories gathered by experiment, and the numbers the paper gives of such runs.

Validation accuracy is that with running averages, which the paper tracks during training (§3.1). Steps are mini-batches
of 32, `paper_steps`; for the MNIST network (§4.1) the steps as made.
"""

import collections
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bn_inception import run_directory

SCALES = ("imagenet", "cifar10", "cifar10_full", "mnist", "quickstart")


class Result(NamedTuple):
  """A run directory.

  Attributes:
    scale, experiment, seed: of its name SCALE/EXPERIMENT/SEED; the seed as 'seed0' or 'member0'.
    config: config.json, as `run_directory.read_config_tree` has it.
    status: status.json.
    lines: metrics.jsonl.
    folder: where these are.
  """

  scale: str
  experiment: str
  seed: str
  config: dict[str, Any]
  status: dict[str, Any]
  lines: list[dict[str, float]]
  folder: pathlib.Path

  @property
  def finished(self) -> bool:
    return self.status.get("status") in ("done", "diverged")

  @property
  def diverged(self) -> bool:
    return self.status.get("status") == "diverged"

  @property
  def accuracy(self) -> list[tuple[float, float]]:
    """(step, validation accuracy) of every evaluation."""
    unit = "step" if self.config["model"]["name"] == "mnist_mlp" else "paper_steps"
    return [(line[unit], line["eval/running/top1"]) for line in self.lines if "eval/running/top1" in line]


class Spread(NamedTuple):
  """Values over seeds."""

  values: tuple[float, ...]

  @property
  def mean(self) -> float:
    return statistics.fmean(self.values)

  @property
  def deviation(self) -> float | None:
    """Sample standard deviation; None for one value."""
    return statistics.stdev(self.values) if len(self.values) > 1 else None


Results = dict[str, dict[str, list[Result]]]


def collect(root: pathlib.Path) -> Results:
  """All runs below a folder, {scale: {experiment: runs in the order of their seeds}}.

  The folder holds run directories SCALE/EXPERIMENT/SEED at any depth; the same name twice counts once.

  Raises:
    FileNotFoundError: if there is no such folder.
    VersionError: if a run's config is of a later version.
  """
  if not root.is_dir():
    raise FileNotFoundError(f"There is no folder {root}: give the --workdir of runs that were made, or their archive.")
  by_name: dict[tuple[str, str, str], Result] = {}
  for path in sorted(root.rglob("config.json")):
    parts = path.parent.relative_to(root).parts
    scale_at = next((place for place, part in enumerate(parts) if part in SCALES), None)
    if scale_at is None or len(parts) < scale_at + 3:
      continue
    scale, *experiment, seed = parts[scale_at:]
    key = (scale, "/".join(experiment), seed)
    by_name.setdefault(
      key,
      Result(
        *key,
        run_directory.read_config_tree(path),
        run_directory.read_status(path.parent),
        run_directory.read_metrics(path.parent),
        path.parent,
      ),
    )
  results: Results = {}
  for (scale, experiment, _), result in sorted(by_name.items()):
    results.setdefault(scale, {}).setdefault(experiment, []).append(result)
  return results


def finished(experiments: dict[str, list[Result]]) -> dict[str, list[Result]]:
  """The runs that came to their end or diverged, and the experiments that have any.

  Seeds of different lengths are not compared: of an experiment those of the most frequent length count, of the greater
  one where two are equally frequent.
  """
  kept = {}
  for name, runs in experiments.items():
    lengths = collections.Counter(run.config["num_steps"] for run in runs if run.finished)
    length = max(lengths, key=lambda steps: (lengths[steps], steps), default=None)
    kept[name] = [run for run in runs if run.finished and run.config["num_steps"] == length]
  return {name: runs for name, runs in kept.items() if runs}


def up_to(run: Result, steps: int) -> Result:
  """The run as it stood after so many steps."""
  return run._replace(lines=[line for line in run.lines if line["step"] <= steps])


def for_ablation(experiments: dict[str, list[Result]]) -> dict[str, list[Result]]:
  """The same, but BN-Baseline and BN-x5, without and with all changes, up to the length of the ablation's runs.

  At full scale they run ten times and twice as long. Nothing in a run depends on its length, so they are as if they had
  been made so.
  """
  steps = max(
    (
      run.config["num_steps"]
      for name, runs in experiments.items()
      if name.startswith(("alone/", "up_to/"))
      for run in runs
    ),
    default=None,
  )
  if steps is None:
    return experiments
  ends = {name: experiments[name] for name in ("bn_baseline", "bn_x5") if name in experiments}
  return experiments | {name: [up_to(run, steps) for run in runs] for name, runs in ends.items()}


def evaluations(root: pathlib.Path, scale: str) -> dict[str, tuple[dict[str, Any], dict[str, float]]]:
  """(request, metrics) of the finished evaluations of Figure 4 by name; a name that is there twice as in `collect`."""
  by_name: dict[str, tuple[dict[str, Any], dict[str, float]]] = {}
  for path in sorted(root.rglob(f"{scale}/figure4/*/metrics.json")):
    found = json.loads((path.parent / "request.json").read_text()), json.loads(path.read_text())
    by_name.setdefault(path.parent.name, found)
  return by_name


def metrics_by_kind(
  evaluations: dict[str, tuple[dict[str, Any], dict[str, float]]],
) -> dict[tuple[int, int, str], dict[str, dict[str, float]]]:
  """Evaluations of Figure 4 by what they are of, {(networks, crops, statistics): {"member0", "ensemble": metrics}}."""
  kinds: dict[tuple[int, int, str], dict[str, dict[str, float]]] = {}
  for name, (request, metrics) in evaluations.items():
    kind = len(request["networks"]), request["crops"], request["statistics"]
    kinds.setdefault(kind, {})[name.split("_")[0]] = metrics
  return kinds


def level(result: Result) -> float | None:
  """The validation accuracy that a run ends with: the mean of the evaluations in the last tenth of its steps.

  Not the maximum: that of many noisy evaluations is the higher the more there are. None before the first evaluation.
  """
  if not result.accuracy:
    return None
  end = result.accuracy[-1][0]
  last = [top1 for step, top1 in result.accuracy if step > 0.9 * end]
  return min(statistics.fmean(last), max(last))  # Of equal values the mean may be rounded up.


def chance(result: Result) -> float:
  """The accuracy of guessing."""
  return 1 / result.config["data"]["num_classes"]


def ends_at_chance(result: Result) -> bool:
  """Whether a run ends not better than chance by more than three standard deviations of as many guesses."""
  guess = chance(result)
  limit = guess + 3 * (guess * (1 - guess) / count(result)) ** 0.5
  return not result.accuracy or level(result) <= limit


def steps_to(result: Result, target: float) -> float | None:
  """Steps at which the accuracy first reaches `target`; None if it does not.

  Between evaluations it is interpolated linearly; at step 0 a network guesses.
  """
  before, low = 0.0, chance(result)
  if target <= low:
    return before
  for step, top1 in result.accuracy:
    if top1 >= target:
      return before + (step - before) * (target - low) / (top1 - low)
    before, low = step, top1
  return None


def evaluation_interval(result: Result) -> float:
  """Steps between evaluations."""
  return result.accuracy[0][0]


def count(result: Result) -> float:
  """How many examples a run is evaluated on."""
  return max((line["eval/count"] for line in result.lines if "eval/count" in line), default=math.inf)


def over_seeds(runs: Sequence[Result], function: Callable[[Result], float | None]) -> Spread | None:
  """`function` of every run; None without runs, or where it is None for one of them."""
  values = tuple(map(function, runs))
  return None if not values or None in values else Spread(values)


def newest(results: Results) -> str | None:
  """The date of the newest run, YYYY-MM-DD, as their status says; None if none of them says it."""
  return max(
    (
      run.status["time"][:10]
      for experiments in results.values()
      for runs in experiments.values()
      for run in runs
      if "time" in run.status
    ),
    default=None,
  )


def sigmoid_inputs(result: Result) -> dict[int, list[tuple[float, tuple[float, float, float]]]]:
  """For every recorded unit (step, its 15th, 50th and 85th percentile) at every evaluation (Figure 1b, c)."""
  units = result.config["eval"]["sigmoid_input_units"]
  return {
    unit: [
      (line["step"], tuple(line[f"eval/sigmoid_input/{unit}/p{p}"] for p in (15, 50, 85)))
      for line in result.lines
      if f"eval/sigmoid_input/{unit}/p50" in line
    ]
    for unit in units
  }


def movement(series: Sequence[tuple[float, tuple[float, float, float]]]) -> float:
  """How far a unit's median wanders over training, in units of its mean distance between 15th and 85th percentile."""
  medians = [percentiles[1] for _, percentiles in series]
  return (max(medians) - min(medians)) / statistics.fmean(high - low for _, (low, _, high) in series)


def widening(series: Sequence[tuple[float, tuple[float, float, float]]]) -> float:
  """The greatest distance between 15th and 85th percentile over training by the least."""
  distances = [high - low for _, (low, _, high) in series]
  return max(distances) / min(distances)


def has_spread(units: dict[int, list[tuple[float, tuple[float, float, float]]]]) -> bool:
  """Whether there are units, and each has a finite distance between its percentiles that is not zero."""
  percentiles = [values for series in units.values() for _, values in series]
  return bool(percentiles) and all(0 < high - low < math.inf for low, _, high in percentiles)


def typical_unit(result: Result) -> int:
  """The recorded unit whose movement is the (lower) median: no other choice of "one typical sigmoid" is made."""
  units = sigmoid_inputs(result)
  return sorted(units, key=lambda unit: movement(units[unit]))[(len(units) - 1) // 2]
