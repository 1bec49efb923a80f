"""How many times fewer steps: the ratio of Inception's steps to a network's, as a curve over levels of accuracy.

A run whose rate is annealed comes to its best near its end, so a longer baseline makes any ratio larger. Therefore the
baselines are Inception annealed over several lengths (the runs `inception` and the controls), and a network is compared
with the one of them that is fastest at each level. Levels are fractions of Inception's plateau, the mean of
`measured.level` over the seeds of the highest baseline, or of a shorter one that is as high within their spread; steps
to a level are interpolated on each run's accuracy curve. The steps of seeds are averaged by their logarithms, whose
difference is the logarithm of the ratio. How well that is known follows from the spread of the steps over the seeds of
both sides, and from that of the plateau, which sets the levels.
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
BEST_RATE = "best_rate/"  # Networks with BN at the best rate of their own sweep, in place of the paper's multiple.
_OTHER_LENGTHS = {"inception": CONTROLS, "bn_x5": LONGER}

Experiments = dict[str, list[Result]]
Steps = tuple[float | None, ...]  # Of every seed; None where it does not come to the level.


class Point(NamedTuple):
  """A network and the fastest baseline at one level.

  Attributes:
    fraction: of the plateau.
    accuracy: the level.
    baseline: the experiment that is fastest there.
    baseline_steps: over its seeds, see `fastest`.
    steps: over the seeds of the network; None where one of them does not come to the level.
    ratio: of the geometric means; None as `steps`.
    interval: its 95% confidence interval, see `log_ratio`; None with less than two seeds a side.
  """

  fraction: float
  accuracy: float
  baseline: str
  baseline_steps: Spread
  steps: Spread | None
  ratio: float | None
  interval: tuple[float, float] | None


class Length(NamedTuple):
  """A network of one length.

  Attributes:
    name: of the experiment.
    steps: of its runs.
    learning_rate: at their start.
    accuracy: `measured.level` over seeds.
    times, gain: how many times as long it is as the longest of at most half its length, and what its accuracy gains
      over that one's; None where there is none.
    reached: whether that gain is less than the deviation over seeds, the pooled one of the two; None where one of them
      has a single seed, or the gain is greater and of more than three times the length: doubling may gain nothing then.
  """

  name: str
  steps: float
  learning_rate: float
  accuracy: Spread
  times: float | None
  gain: float | None
  reached: bool | None


class Plateau(NamedTuple):
  """What steps are counted to.

  Attributes:
    name: the experiment that sets it.
    level: `measured.level` of its seeds.
  """

  name: str
  level: Spread

  @property
  def error(self) -> float:
    """The standard error of the mean level; 0 for one seed, of which it is not known."""
    return (self.level.deviation or 0.0) / math.sqrt(len(self.level.values))

  def steps(self, name: str, runs: Sequence[Result], fraction: float = 1.0, shift: float = 0.0) -> Steps:
    """Steps of each of the `runs` of experiment `name` to a fraction of the plateau; None where it does not come there.

    Of the experiment that sets the plateau each seed goes to that fraction of its own level, which it always reaches:
    seeds end at slightly different levels. `shift` is added to the mean level, and does nothing to own levels.
    """
    if name == self.name:
      return tuple(measured.steps_to(run, fraction * measured.level(run)) for run in runs)
    return tuple(measured.steps_to(run, fraction * (self.level.mean + shift)) for run in runs)


def networks(experiments: Experiments) -> list[str]:
  """Those of `experiments` whose ratio is asked for, in the order of the legend."""
  others = [name for prefix in (LONGER, BEST_RATE) for name in sorted(experiments) if name.startswith(prefix)]
  return [name for name in ("bn_baseline", "bn_x5", "bn_x30") if name in experiments] + others


def every_length(experiments: Experiments, network: str) -> dict[str, float]:
  """{experiment: steps of 32} of a network annealed over several lengths, the shortest first, whatever became of it."""
  prefix = _OTHER_LENGTHS.get(network)
  names = [name for name in experiments if name == network or prefix and name.startswith(prefix)]
  configs = {name: experiments[name][0].config for name in names}
  steps = {name: config["num_steps"] * config["batch_size"] / 32 for name, config in configs.items()}
  return dict(sorted(steps.items(), key=lambda item: item[1]))


def by_length(experiments: Experiments, network: str = "inception") -> Experiments:
  """A network annealed over several lengths, the shortest first; none of which a seed diverged or ended at chance."""
  return {
    name: experiments[name]
    for name in every_length(experiments, network)
    if not any(run.diverged or measured.ends_at_chance(run) for run in experiments[name])
  }


def plateau_of(name: str, runs: Sequence[Result]) -> Plateau:
  """The plateau that an experiment sets."""
  return Plateau(name, _level(runs))


def plateau(experiments: Experiments, network: str = "inception") -> Plateau | None:
  """That of the shortest length whose mean level is within the deviation over seeds of the greatest.

  Of two lengths that end alike the longer one would only add steps. A length of one seed sets the plateau only if there
  is none of several: its spread is not known.

  Returns:
    None where `by_length` has none.
  """
  plateaus = [plateau_of(name, runs) for name, runs in by_length(experiments, network).items()]
  plateaus = [of for of in plateaus if len(of.level.values) > 1] or plateaus
  highest = max(plateaus, key=lambda of: of.level.mean, default=None)
  return next((of for of in plateaus if of is highest or _alike(of.level, highest.level)), None)


def _pooled(one: Spread, other: Spread) -> float | None:
  """The pooled deviation over the seeds of two experiments; None where one of them has a single seed."""
  if one.deviation is None or other.deviation is None:
    return None
  return math.hypot(one.deviation, other.deviation) / math.sqrt(2)


def _alike(one: Spread, other: Spread) -> bool:
  """Whether two means differ by less than the deviation over seeds."""
  deviation = _pooled(one, other)
  return deviation is not None and abs(one.mean - other.mean) < deviation


def plateau_reached(experiments: Experiments, network: str = "inception") -> bool | None:
  """Whether doubling the length that sets a network's plateau gains less than the deviation over seeds.

  Runs at least twice as long say so, if they end alike. If they end lower, their rate may be a bad one, and nothing is
  known (None). Without longer ones that length's own row of `lengths` speaks, which is of a shorter one.
  """
  highest, rows = plateau(experiments, network), lengths(experiments, network)
  if highest is None:
    return None
  own = next(row for row in rows if row.name == highest.name)
  longer = [row.accuracy for row in rows if row.steps >= 2 * own.steps and len(row.accuracy.values) > 1]
  if longer:
    return any(_alike(own.accuracy, accuracy) for accuracy in longer) or None
  return own.reached


def lengths(experiments: Experiments, network: str = "inception") -> list[Length]:
  """The lengths of a network, the shortest first, and whether its accuracy still gains by length."""
  rows = []
  for name, runs in by_length(experiments, network).items():
    steps, accuracy = runs[0].accuracy[-1][0], _level(runs)
    half = next((row for row in reversed(rows) if row.steps <= steps / 2), None)
    times = gain = reached = None
    if half is not None:
      times, gain = steps / half.steps, accuracy.mean - half.accuracy.mean
      if (deviation := _pooled(accuracy, half.accuracy)) is not None:
        reached = gain < deviation or (None if times > 3 else False)
    rows.append(Length(name, steps, runs[0].config["learning_rate"], accuracy, times, gain, reached))
  return rows


def fastest(experiments: Experiments, highest: Plateau, fraction: float) -> tuple[str, Spread]:
  """The baseline that comes to a fraction of the `highest` plateau in the fewest steps, and its steps over seeds.

  A baseline comes there if the mean of its seeds does. A seed that does not counts with the length of its run, which is
  less than the steps that it would take.
  """
  steps = {
    name: Spread(_at_least(highest.steps(name, runs, fraction), runs))
    for name, runs in by_length(experiments).items()
    if name == highest.name
    or _level(runs).mean >= fraction * highest.level.mean
    or None not in highest.steps(name, runs, fraction)
  }
  return min(steps.items(), key=lambda item: geometric_mean(item[1].values))


def _at_least(steps: Steps, runs: Sequence[Result]) -> tuple[float, ...]:
  """Steps, and for None the length of the run."""
  return tuple(run.accuracy[-1][0] if value is None else value for run, value in zip(runs, steps))


def curve(experiments: Experiments, network: str, fractions: Sequence[float] = FRACTIONS) -> list[Point]:
  """The ratio at every level; [] where a run is missing or diverged."""
  runs = experiments.get(network, [])
  if network == "bn_baseline":  # It differs from Inception by BN alone: only the run of its own length is beside it.
    experiments = {name: of for name, of in experiments.items() if not name.startswith(CONTROLS)}
  highest = plateau(experiments)
  if not runs or any(run.diverged or not run.accuracy for run in runs) or highest is None:
    return []
  points = []
  for fraction in fractions:
    baseline, baseline_steps = fastest(experiments, highest, fraction)
    point = Point(fraction, fraction * highest.level.mean, baseline, baseline_steps, None, None, None)
    steps = highest.steps(network, runs, fraction)
    if None not in steps:
      estimate = log_ratio(highest, (baseline, experiments[baseline]), (network, runs), fraction)
      point = point._replace(
        steps=Spread(steps),
        ratio=geometric_mean(baseline_steps.values) / geometric_mean(steps),
        interval=tuple(map(math.exp, estimate.interval)) if estimate else None,
      )
    points.append(point)
  return points


def fastest_length(experiments: Experiments, network: str, highest: Plateau) -> str:
  """The experiment of a network that is fastest to a plateau.

  Where none comes there with all its seeds, it is that of which the most seeds do, and of those the longest.
  """
  steps = {name: highest.steps(name, experiments[name]) for name in {network: None} | by_length(experiments, network)}
  arrived = {name: geometric_mean(values) for name, values in steps.items() if None not in values}
  if arrived:
    return min(arrived, key=arrived.__getitem__)
  share = {name: 1 - values.count(None) / len(values) for name, values in steps.items()}
  return max(steps, key=lambda name: (share[name], experiments[name][0].config["num_steps"]))


def highest_length(experiments: Experiments, network: str) -> str:
  """The experiment of a network with the greatest mean level; `network` itself where one of its seeds has none."""
  levels = {name: _level(experiments[name]) for name in {network: None} | by_length(experiments, network)}
  return network if None in levels.values() else max(levels, key=lambda name: levels[name].mean)


def log_ratio(
  highest: Plateau, beside: tuple[str, Sequence[Result]], of: tuple[str, Sequence[Result]], fraction: float = 1.0
) -> verdicts.Estimate | None:
  """The logarithm of the ratio of the steps of `beside` to those of `of`, both to a fraction of a plateau.

  A run that does not come there counts with its length, which is less than the steps that it would take.

  Args:
    highest: the plateau.
    beside, of: names of experiments and their runs.
    fraction: of the plateau.

  Returns:
    The difference of the mean logarithms, with the variances of the seeds of each side (Welch), no less than by
    rounding to the interval between evaluations, and with that of the plateau. The plateau moves the steps of each side
    by `slope` for a change of its level. If `beside` sets it, seed i counts with log(steps_i) less what its level moves
    the steps of `of` by: the two are of the same runs. If a third experiment sets it, it is a third part. None with
    less than two seeds in one of these.
  """
  (name, runs), (_, other_runs) = beside, of
  if min(len(runs), len(other_runs), len(highest.level.values)) < 2:
    return None

  def logs(side: tuple[str, Sequence[Result]], shift: float = 0.0) -> list[float]:
    return list(map(_log, _at_least(highest.steps(*side, fraction, shift), side[1])))

  def slope(side: tuple[str, Sequence[Result]]) -> float:
    """Of the mean logarithm over the plateau's level; from below alone where a seed does not come to more."""
    if not highest.error:
      return 0.0
    below, above = highest.error, 0.0 if None in highest.steps(*side, fraction, highest.error) else highest.error
    return (statistics.fmean(logs(side, above)) - statistics.fmean(logs(side, -below))) / (above + below)

  resolution = tuple(
    measured.evaluation_interval(its_runs[0]) / math.exp(statistics.fmean(logs((its_name, its_runs))))
    for its_name, its_runs in (beside, of)
  )
  if name == highest.name:
    by_level = slope(of)
    seeds = [log - by_level * (own - highest.level.mean) for log, own in zip(logs(beside), highest.level.values)]
    return verdicts.welch(seeds, logs(of), resolution)
  estimate = verdicts.welch(logs(beside), logs(of), resolution)
  variance = ((slope(beside) - slope(of)) * highest.error) ** 2
  return estimate._replace(parts=(*estimate.parts, (variance, len(highest.level.values) - 1)))


def geometric_mean(steps: Sequence[float]) -> float:
  """exp of the mean logarithm; steps below 1 count as 1."""
  return math.exp(statistics.fmean(map(_log, steps)))


def _log(steps: float) -> float:
  return math.log(max(steps, 1))  # A level below chance is reached after no step.


def _level(runs: Sequence[Result]) -> Spread:
  return measured.over_seeds(runs, measured.level)
