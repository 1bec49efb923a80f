"""How many times fewer steps: the ratio of Inception's steps to a network's, as a curve over levels of accuracy.

A run whose rate is annealed comes to its best near its end, so a longer baseline makes any ratio larger. Therefore the
baselines are Inception annealed over several lengths (the runs `inception` and the controls), and a network is compared
with the one of them that is fastest at each level. Levels are fractions of Inception's plateau, the greatest mean of
`measured.level` over a baseline's seeds; steps to a level are interpolated on each run's accuracy curve. The steps of
seeds are averaged by their logarithms, whose difference is the logarithm of the ratio.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from bn_inception.reproduction import measured, verdicts
from bn_inception.reproduction.measured import Result, Spread

FRACTIONS = tuple(percent / 100 for percent in range(80, 101))  # Of Inception's plateau.
CONTROLS = "controls/inception_"
LONGER = "longer/bn_x5_"  # BN-x5 annealed over more than its own steps.

Experiments = dict[str, list[Result]]


class Point(NamedTuple):
  """A network and the fastest baseline at one level.

  Attributes:
    fraction: of the plateau.
    accuracy: the level.
    baseline: the experiment that is fastest there.
    baseline_steps, steps: over seeds, of the baseline and of the network; None where a seed of the network does not
      come to the level.
    ratio: of the geometric means; None as `steps`.
    interval: its 95% confidence interval by Welch's t-test on the logarithms; None with less than two seeds a side.
  """

  fraction: float
  accuracy: float
  baseline: str
  baseline_steps: Spread
  steps: Spread | None
  ratio: float | None
  interval: tuple[float, float] | None


class Length(NamedTuple):
  """A baseline of one length.

  Attributes:
    name: of the experiment.
    steps: of its runs.
    learning_rate: at their start.
    accuracy: `measured.level` over seeds.
    times, gain: how many times as long it is as the longest of at most half its length, and what its accuracy gains
      over that one's; None where there is none.
    plateau: whether that gain is less than the deviation over seeds, the pooled one of the two; None where one of them
      has a single seed, or the gain is greater and of more than three times the length: doubling may gain nothing then.
  """

  name: str
  steps: float
  learning_rate: float
  accuracy: Spread
  times: float | None
  gain: float | None
  plateau: bool | None


def networks(experiments: Experiments) -> list[str]:
  """Those of `experiments` whose ratio is asked for, in the order of the legend."""
  longer = sorted(name for name in experiments if name.startswith(LONGER))
  return [name for name in ("bn_baseline", "bn_x5", "bn_x30") if name in experiments] + longer


def baselines(experiments: Experiments) -> Experiments:
  """Inception annealed over several lengths, none of whose seeds diverged."""
  return {
    name: runs
    for name, runs in experiments.items()
    if (name == "inception" or name.startswith(CONTROLS)) and all(run.accuracy and not run.diverged for run in runs)
  }


def reference(experiments: Experiments) -> str | None:
  """The baseline with the greatest mean level, the plateau; None without any."""
  networks = baselines(experiments)
  return max(networks, key=lambda name: _level(networks[name]).mean, default=None)


def lengths(experiments: Experiments) -> list[Length]:
  """The baselines, shortest first, and whether their accuracy still gains by length."""
  by_length = sorted(baselines(experiments).items(), key=lambda item: item[1][0].accuracy[-1][0])
  rows = []
  for name, runs in by_length:
    steps, accuracy = runs[0].accuracy[-1][0], _level(runs)
    half = next((row for row in reversed(rows) if row.steps <= steps / 2), None)
    times = gain = plateau = None
    if half is not None:
      times, gain = steps / half.steps, accuracy.mean - half.accuracy.mean
      if None not in (accuracy.deviation, half.accuracy.deviation):
        plateau = gain < math.hypot(accuracy.deviation, half.accuracy.deviation) / math.sqrt(2)
        if not plateau and times > 3:
          plateau = None
    rows.append(Length(name, steps, runs[0].config["learning_rate"], accuracy, times, gain, plateau))
  return rows


def steps_of(runs: Sequence[Result], target: float) -> tuple[float | None, ...]:
  """Of each run to an accuracy; None where it does not come to it."""
  return tuple(measured.steps_to(run, target) for run in runs)


def own_steps(runs: Sequence[Result], fraction: float = 1.0) -> tuple[float, ...]:
  """Of each run to a fraction of its own level, which it always reaches: seeds end at slightly different levels."""
  return tuple(measured.steps_to(run, fraction * measured.level(run)) for run in runs)


def fastest(experiments: Experiments, fraction: float) -> tuple[str, float, tuple[float, ...]] | None:
  """(experiment, accuracy, steps of its seeds) of the baseline that is fastest to a fraction of the plateau.

  The baseline that sets the plateau goes to that fraction of each seed's own; the others count if all their seeds come
  to the fraction of the plateau.
  """
  plateau = reference(experiments)
  if plateau is None:
    return None
  networks = baselines(experiments)
  accuracy = fraction * _level(networks[plateau]).mean
  steps = {name: steps_of(runs, accuracy) for name, runs in networks.items()} | {
    plateau: own_steps(networks[plateau], fraction)
  }
  steps = {name: values for name, values in steps.items() if None not in values}
  name = min(steps, key=lambda name: geometric_mean(steps[name]))
  return name, accuracy, steps[name]


def curve(experiments: Experiments, network: str, fractions: Sequence[float] = FRACTIONS) -> list[Point]:
  """The ratio at every level; [] where a run is missing or diverged."""
  runs = experiments.get(network, [])
  if network == "bn_baseline":  # It differs from Inception by BN alone: only the run of its own length is beside it.
    experiments = {name: of for name, of in experiments.items() if not name.startswith(CONTROLS)}
  if not runs or any(run.diverged or not run.accuracy for run in runs) or reference(experiments) is None:
    return []
  points = []
  for fraction in fractions:
    name, accuracy, baseline_steps = fastest(experiments, fraction)
    steps = steps_of(runs, accuracy)
    if None in steps:
      points.append(Point(fraction, accuracy, name, Spread(baseline_steps), None, None, None))
      continue
    estimate = log_ratio(baseline_steps, experiments[name], steps, runs)
    limits = tuple(map(math.exp, estimate.interval)) if estimate else None
    points.append(
      Point(
        fraction,
        accuracy,
        name,
        Spread(baseline_steps),
        Spread(steps),
        geometric_mean(baseline_steps) / geometric_mean(steps),
        limits,
      )
    )
  return points


def fastest_length(experiments: Experiments, network: str, accuracy: float) -> str:
  """The experiment that is fastest to an accuracy: `network`, or BN-x5 annealed over more steps.

  It is `network` itself where no other one comes there with all its seeds.
  """
  lengths = [network] + [name for name in experiments if network == "bn_x5" and name.startswith(LONGER)]
  steps = {name: steps_of(experiments[name], accuracy) for name in lengths}
  arrived = {name: geometric_mean(values) for name, values in steps.items() if None not in values}
  return min(arrived, key=arrived.__getitem__, default=network)


def log_ratio(
  steps: Sequence[float], runs: Sequence[Result], others: Sequence[float], other_runs: Sequence[Result]
) -> verdicts.Estimate | None:
  """The logarithm of the ratio of `steps` (of `runs`) to `others` (of `other_runs`); steps are known to an interval."""
  resolution = tuple(
    measured.interval(of_side[0]) / geometric_mean(values) for values, of_side in ((steps, runs), (others, other_runs))
  )
  return verdicts.welch(tuple(map(_log, steps)), tuple(map(_log, others)), resolution)


def geometric_mean(steps: Sequence[float]) -> float:
  """exp of the mean logarithm; steps below 1 count as 1."""
  return math.exp(statistics.fmean(map(_log, steps)))


def _log(steps: float) -> float:
  return math.log(max(steps, 1))  # A level below chance is reached after no step.


def _level(runs: Sequence[Result]) -> Spread:
  return measured.over_seeds(runs, measured.level)
