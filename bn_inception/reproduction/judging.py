"""What was measured of each claim, and the verdict on it: the statistics that `claims.CLAIMS` name.

A verdict is that of `verdicts.decide`: confirmed or refuted if the 95% confidence interval lies wholly beyond the
claim's threshold, undecided if it does not, or if a side has a single seed. Beside Inception, what would change if a
network ended higher over more steps is undecided too while the network is not known to be at its plateau. Other
networks are compared at their own lengths.
"""

import functools
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

from bn_inception import paper
from bn_inception.reproduction import measured, speedup, verdicts
from bn_inception.reproduction.claims import Claim
from bn_inception.reproduction.measured import Result, Spread
from bn_inception.reproduction.verdicts import CONFIRMED, NOT_MEASURED, REFUTED, SHOWN, UNDECIDED
from bn_inception.reproduction.wording import describe, name_of, percent, points, seeds_text, steps_text

Experiments = dict[str, list[Result]]
Evaluations = dict[str, tuple[dict, dict[str, float]]]


class Finding(NamedTuple):
  """What was measured of a claim at one scale.

  Attributes:
    verdict: one of `verdicts`.
    measured: the numbers.
    seeds: which seeds they are of.
    power: of an undecided row, the smallest effect that its seeds could have shown.
    experiments: whose runs they are.
  """

  verdict: str
  measured: str
  seeds: str = ""
  power: str = ""
  experiments: tuple[str, ...] = ()


def judge(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """What the finished runs and evaluations of a scale say of a claim."""
  experiments = measured.finished(experiments)
  if claim.figure == "ablation":
    experiments = measured.for_ablation(experiments)
  return STATISTICS[claim.statistic](claim, experiments, evaluations)


def _interval_text(estimate: verdicts.Estimate | None, text: Callable[[float], str], unit: str) -> str:
  if estimate is None:
    return ""
  low, high = estimate.interval
  return f"; difference {text(estimate.difference)}{unit}, 95% interval {text(low)} to {text(high)}"


def _power(
  verdict: str, estimate: verdicts.Estimate | None, text: Callable[[float], str], threshold: float = 0.0
) -> str:
  """Of an undecided row, what true effect would have been shown in four of five such experiments."""
  if verdict != UNDECIDED:
    return ""
  if estimate is None or not estimate.error:
    return "one seed a side, or seeds that are all alike, have no spread: they could show no effect of any size"
  return (
    f"these seeds could have shown it of a true {text(threshold + estimate.detectable)} or more "
    f"(power {verdicts.POWER:.0%})"
  )


def _difference_text(value: float) -> str:
  return f"difference of {points(value)} points"


def _ratio_text(log_ratio: float) -> str:
  return f"ratio of {math.exp(log_ratio):.1f}"


def _missing(*experiments: str) -> Finding:
  return Finding(NOT_MEASURED, f"no finished run of {' and of '.join(map(name_of, experiments))}")


def _absent(claim: Claim, experiments: Experiments) -> Finding | None:
  absent = [name for name in (claim.of, claim.beside) if name and name not in experiments]
  return _missing(*absent) if absent else None


def _diverged(claim: Claim, experiments: Experiments) -> Finding | None:
  """The finding on "`of` does better than `beside`" where runs of either diverged; None if none did."""
  sides = {name: experiments[name] for name in (claim.of, claim.beside)}
  count = {name: sum(run.diverged for run in runs) for name, runs in sides.items()}
  if not any(count.values()):
    return None
  text = "; ".join(
    f"{count[name]} of {len(runs)} runs of {name_of(name)} diverged" for name, runs in sides.items() if count[name]
  )
  worse, verdict = (claim.of, REFUTED) if count[claim.of] else (claim.beside, CONFIRMED)
  if all(count.values()) or count[worse] < len(sides[worse]) or min(map(len, sides.values())) < 2:
    verdict = UNDECIDED
  power = "" if verdict != UNDECIDED else "seeds that disagree, or a single one, show nothing"
  return Finding(verdict, text, seeds_text(*sides.values()), power, tuple(sides))


def _compare(claim: Claim, experiments: Experiments, function: Callable[[Result], float], what: str) -> Finding:
  """`function` of the runs of one network against that of another's, by Welch's t-test."""
  if finding := _absent(claim, experiments) or _diverged(claim, experiments):
    return finding
  sides = [experiments[name] for name in (claim.of, claim.beside)]
  spreads = [measured.over_seeds(runs, function) for runs in sides]
  if None in spreads:
    return _missing(claim.of, claim.beside)
  estimate = verdicts.welch(
    *(spread.values for spread in spreads), resolution=tuple(1 / measured.count(runs[0]) for runs in sides)
  )
  verdict = verdicts.decide(estimate, claim.threshold)
  margin = f" (margin {-100 * claim.threshold:g})" if claim.threshold else ""
  return Finding(
    verdict,
    f"{what}{describe(spreads[0])} against {describe(spreads[1])}"
    + _interval_text(estimate, points, f" points{margin}"),
    seeds_text(*sides),
    _power(verdict, estimate, _difference_text, claim.threshold),
    (claim.of, claim.beside),
  )


def _level(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """Accuracy at the end. Beside Inception each network counts at the length at which it ends highest.

  Whichever ends lower may end higher over more steps, unless it is at its plateau.
  """
  del evaluations
  if claim.own_plateau or claim.beside != "inception":
    return _compare(claim, experiments, measured.level, "")
  if finding := _absent(claim, experiments) or _diverged(claim, experiments):
    return finding
  highest = speedup.plateau(experiments)
  if not highest:
    return _missing("inception")
  of = speedup.highest_length(experiments, claim.of)
  what = " against ".join(_with_steps(name, experiments) for name in (of, highest.name)) + ": "
  finding = _compare(claim._replace(of=of, beside=highest.name), experiments, measured.level, what)
  return _until_the_plateau(finding, experiments, claim.of if finding.verdict == REFUTED else "inception")


def _with_steps(name: str, experiments: Experiments) -> str:
  """The name of a network and the steps of its runs."""
  if name.startswith((speedup.CONTROLS, speedup.LONGER)):
    return name_of(name)
  steps = max(run.accuracy[-1][0] for run in experiments[name] if run.accuracy)
  return f"{name_of(name)} over {steps_text(steps)} steps"


def _until_the_plateau(finding: Finding, experiments: Experiments, network: str) -> Finding:
  """The finding, undecided while a network is not known to be at its plateau: over more steps it may end higher."""
  reached, name = speedup.plateau_reached(experiments, network), name_of(network)
  if reached:
    return finding
  text = f"it is not known that {name} is at its plateau" if reached is None else f"{name} still gains by length"
  power = (
    ""
    if finding.verdict == UNDECIDED
    else f"it is {finding.verdict} of where {name} ends here, and over more steps {name} may end higher"
  )
  return finding._replace(
    verdict=UNDECIDED, measured=f"{finding.measured}; {text}", power="; ".join(filter(None, (finding.power, power)))
  )


def _level_after_same_steps(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """Accuracy at the end, at every length that both networks were annealed over; it must be the higher at each."""
  del evaluations
  if finding := _absent(claim, experiments):
    return finding
  of, beside = (
    {steps: name for name, steps in speedup.every_length(experiments, network).items()}
    for network in (claim.of, claim.beside)
  )
  findings = [
    _compare(
      claim._replace(of=of[steps], beside=beside[steps]),
      experiments,
      measured.level,
      f"after {steps_text(steps)} steps ",
    )
    for steps in sorted(of.keys() & beside.keys())
  ]
  if not findings:
    return Finding(NOT_MEASURED, f"no runs of {name_of(claim.of)} and {name_of(claim.beside)} over as many steps")
  return Finding(
    verdicts.all_of([finding.verdict for finding in findings]),
    "; ".join(finding.measured for finding in findings),
    "; ".join(dict.fromkeys(finding.seeds for finding in findings)),
    "; ".join(filter(None, (finding.power for finding in findings))),
    tuple(dict.fromkeys(name for finding in findings for name in finding.experiments)),
  )


def _shown_level(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """Accuracy at the end, of what the paper says nothing of."""
  finding = _level(claim, experiments, evaluations)
  return finding if finding.verdict == NOT_MEASURED else finding._replace(verdict=SHOWN, power="")


def _early(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """Mean accuracy over the first fifth of the evaluations."""
  del evaluations
  return _compare(claim, experiments, _early_accuracy, "mean accuracy over the first fifth: ")


def _early_accuracy(run: Result) -> float | None:
  first_fifth = run.accuracy[: max(1, len(run.accuracy) // 5)]
  return statistics.fmean(top1 for _, top1 in first_fifth) if first_fifth else None


def _steps(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """Steps of `beside` to the plateau, by those of `of`, or of `of` annealed over more steps if that is faster."""
  del evaluations
  if finding := _absent(claim, experiments) or _diverged(claim, experiments):
    return finding
  beside = claim.beside
  plateau = speedup.plateau_of(beside, experiments[beside]) if claim.own_plateau else speedup.plateau(experiments)
  if not plateau:
    return _missing("inception")
  against_the_fastest = not claim.own_plateau and beside == "inception"
  if against_the_fastest:
    beside, _ = speedup.fastest(experiments, plateau, 1.0)
  of = speedup.fastest_length(experiments, claim.of, plateau)
  sides = {name: (experiments[name], plateau.steps(name, experiments[name])) for name in (of, beside)}
  (runs, steps), (other_runs, other_steps) = sides.values()
  level = percent(plateau.level.mean)
  texts = []
  for name, (its_runs, its_steps) in sides.items():
    if None in its_steps:
      arrived, length = len(its_steps) - its_steps.count(None), max(run.accuracy[-1][0] for run in its_runs)
      texts.append(
        f"{name_of(name)} came to {level} in {arrived} of {len(its_runs)} runs of {steps_text(length)} steps"
      )
    else:
      texts.append(
        f"{name_of(name)} took {describe(Spread(its_steps), steps_text)} to "
        + ("its own end" if name == plateau.name else level)
      )
  estimate = speedup.log_ratio(plateau, (beside, other_runs), (of, runs))
  threshold = math.log(claim.threshold)
  verdict = verdicts.decide(estimate, threshold)
  # A run that never got there would have taken longer than it ran: what is certain of these lengths is certain of it.
  if (None in steps and verdict == CONFIRMED) or (None in other_steps and verdict == REFUTED):
    verdict = UNDECIDED
  power = _power(verdict, estimate, _ratio_text, threshold)
  if None not in (*steps, *other_steps):
    ratio = speedup.geometric_mean(other_steps) / speedup.geometric_mean(steps)
    texts.append(f"{ratio:.1f} times fewer")
    if estimate is not None:
      low, high = map(math.exp, estimate.interval)
      texts[-1] += f", 95% interval {low:.1f} to {high:.1f}"
    if claim.threshold > 1:
      texts[-1] += f" (more than {claim.threshold:g})"
  elif verdict == UNDECIDED:
    power = "of a run that did not come to the level it is known only that it would take longer than it ran"
  names = tuple(dict.fromkeys((of, beside, plateau.name)))
  finding = Finding(verdict, "; ".join(texts), seeds_text(runs, other_runs), power, names)
  return _until_the_plateau(finding, experiments, "inception") if against_the_fastest else finding


def _level_and_steps(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """A higher end, and fewer steps to the plateau; both must hold."""
  higher = _level(claim, experiments, evaluations)
  if higher.verdict == NOT_MEASURED or any(run.diverged for name in higher.experiments for run in experiments[name]):
    return higher
  sooner = _steps(claim._replace(threshold=1.0), experiments, evaluations)
  verdict = verdicts.all_of((higher.verdict, sooner.verdict))
  power = "" if verdict != UNDECIDED else higher.power or sooner.power
  names = tuple(dict.fromkeys(higher.experiments + sooner.experiments))
  return Finding(verdict, f"{higher.measured}; {sooner.measured}", higher.seeds, power, names)


def _trains(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """Whether all seeds end above chance and stay finite."""
  return _outcomes(claim, experiments, evaluations, True)


def _fails(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """Whether all seeds diverge or end at chance; the accuracy of `beside` after as many steps stands for comparison."""
  return _outcomes(claim, experiments, evaluations, False)


def _outcomes(claim: Claim, experiments: Experiments, evaluations: Evaluations, wanted: bool) -> Finding:
  """Two seeds or more that all do the same decide."""
  del evaluations
  if claim.of not in experiments:
    return _missing(claim.of)
  runs = experiments[claim.of]
  diverged = [run for run in runs if run.diverged]
  finite = [run for run in runs if not run.diverged]
  at_chance = [run for run in finite if measured.ends_at_chance(run)]
  texts = []
  if diverged:
    texts.append(
      f"{len(diverged)} of {len(runs)} runs diverged: loss or parameters not finite at step "
      + ", ".join(f"{run.status['step']:,}" for run in diverged)
    )
  if finite and (end := measured.over_seeds(finite, measured.level)):
    texts.append(
      f"{len(finite)} of {len(runs)} runs stayed finite and came to {describe(end)} in "
      f"{steps_text(max(run.accuracy[-1][0] for run in finite if run.accuracy))} steps; chance is "
      f"{percent(measured.chance(runs[0]))}"
    )
  if at_chance:
    texts.append(f"{len(at_chance)} of them ended at chance")
  length = max(run.config["num_steps"] for run in runs)
  beside = [measured.up_to(run, length) for run in experiments.get(claim.beside, [])]
  if end := measured.over_seeds(beside, measured.level):
    texts.append(f"{name_of(claim.beside)} itself came to {describe(end)} in as many")
  failed = len(diverged) + len(at_chance)
  as_claimed = len(runs) - failed if wanted else failed
  low, high = verdicts.share(as_claimed, len(runs))
  texts.append(f"as claimed in {as_claimed} of {len(runs)}: of all seeds {low:.0%} to {high:.0%} (95% interval)")
  verdict = UNDECIDED
  if len(runs) > 1 and as_claimed in (0, len(runs)):
    verdict = CONFIRMED if as_claimed else REFUTED
  power = "" if verdict != UNDECIDED else "one seed shows nothing of others" if len(runs) == 1 else "the seeds disagree"
  return Finding(
    verdict,
    "; ".join(texts),
    seeds_text(runs),
    power,
    tuple(name for name in (claim.of, claim.beside) if name in experiments),
  )


def _initialization(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """Networks with larger initial weights against those with the usual ones."""
  del evaluations
  runs = experiments.get(claim.of, [])
  usual = [run for run in runs if run.config["model"]["init_scale"] <= 1]
  larger = [run for run in runs if run.config["model"]["init_scale"] > 1]
  if not usual or not larger:
    return Finding(NOT_MEASURED, "no finished networks of the ensemble of both kinds")
  scale = max(run.config["model"]["init_scale"] for run in runs)
  finding = _compare(
    claim._replace(of=f"initial weights {scale:g} times as large", beside="the usual initial weights"),
    {f"initial weights {scale:g} times as large": larger, "the usual initial weights": usual},
    measured.level,
    f"initial weights {scale:g} times as large: ",
  )
  measured_text = f"{finding.measured}; the networks differ in dropout and in BN per activation too"
  return finding._replace(measured=measured_text, experiments=(claim.of,))


def _errors(evaluations: Evaluations, place: str) -> tuple[int, dict, dict, dict | None]:
  """(greatest number of crops, errors of networks with one crop, with that many, of the ensemble with that many)."""
  kinds = measured.metrics_by_kind(evaluations)
  most_crops = max((crops for networks, crops, _ in kinds if networks == 1), default=1)
  ensembles = [
    metrics["ensemble"]
    for (networks, crops, statistic), metrics in kinds.items()
    if networks > 1 and (crops, statistic) == (most_crops, "running")
  ]

  def single_network_errors(crops: int) -> dict[str, float]:
    return {name: metrics[place] for name, metrics in kinds.get((1, crops, "running"), {}).items()}

  many_crops = single_network_errors(most_crops) if most_crops > 1 else {}
  return most_crops, single_network_errors(1), many_crops, ensembles[0] if ensembles else None


def _crops(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """Gains of many crops for the same networks, by the paired t-test."""
  del experiments
  crops, one_crop, many_crops, _ = _errors(evaluations, "top1_error")
  if not one_crop or one_crop.keys() != many_crops.keys():
    return Finding(NOT_MEASURED, "no evaluations of the same networks with one crop and with many")
  estimate = verdicts.paired([one_crop[name] - many_crops[name] for name in one_crop])
  verdict = verdicts.decide(estimate)
  means = [percent(statistics.fmean(errors.values())) for errors in (one_crop, many_crops)]
  return Finding(
    verdict,
    f"{' to '.join(means)} top-1 with {crops} crops, the mean of {len(one_crop)} networks"
    + _interval_text(estimate, points, " points"),
    "networks " + ", ".join(sorted(name.removeprefix("member") for name in one_crop)),
    _power(verdict, estimate, _difference_text),
    (claim.of,),
  )


def _together(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """The error of the one ensemble against the mean of its networks, by the binomial error of the images."""
  del experiments
  _, _, many, together = _errors(evaluations, "top1_error")
  if not many or together is None:
    return Finding(NOT_MEASURED, "no evaluation of the ensemble and of its networks with many crops")
  mean, error, count = statistics.fmean(many.values()), together["top1_error"], together["count"]
  estimate = verdicts.proportions(mean, count, error, count)
  verdict = verdicts.decide(estimate)
  return Finding(
    verdict,
    f"{percent(mean)} to {percent(error)} top-1 on {count:,} images; the best of the {len(many)} "
    f"has {percent(min(many.values()))}{_interval_text(estimate, points, ' points (binomial)')}",
    "networks " + ", ".join(sorted(name.removeprefix("member") for name in many)),
    _power(verdict, estimate, _difference_text),
    (claim.of,),
  )


def _population(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  """Both statistics at the end of every run that was evaluated with both."""
  del claim, evaluations
  gaps = {
    name: [
      line["eval/population/top1"] - line["eval/running/top1"]
      for run in runs
      for line in run.lines[-1:]
      if "eval/population/top1" in line
    ]
    for name, runs in experiments.items()
  }
  gaps = {name: values for name, values in gaps.items() if values}
  if not gaps:
    return Finding(NOT_MEASURED, "no finished run that was evaluated with both")
  values = [gap for of_network in gaps.values() for gap in of_network]
  return Finding(
    SHOWN,
    f"at the end of {len(values)} runs population statistics are "
    f"{points(statistics.fmean(values))} points in top-1 on average, "
    f"{100 * max(map(abs, values)):.1f} apart at most",
    "",
    "",
    tuple(gaps),
  )


def _published(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  return _below(claim, evaluations, paper.BEST_PUBLISHED, paper.VALIDATION_IMAGES)


def _human(claim: Claim, experiments: Experiments, evaluations: Evaluations) -> Finding:
  return _below(claim, evaluations, paper.HUMAN_TOP5_ERROR, paper.HUMAN_IMAGES)


def _below(claim: Claim, evaluations: Evaluations, limit: float, limit_count: int) -> Finding:
  """The ensemble's top-5 error against a published one, both with their binomial errors."""
  ensembles = [
    (crops, metrics["ensemble"]["top5_error"], metrics["ensemble"]["count"])
    for (networks, crops, statistic), metrics in measured.metrics_by_kind(evaluations).items()
    if networks > 1 and statistic == "running"
  ]
  if not ensembles:
    return Finding(NOT_MEASURED, "no evaluation of the ensemble on ImageNet")
  crops, error, count = max(ensembles)
  estimate = verdicts.proportions(limit, limit_count, error, count)
  verdict = verdicts.decide(estimate)
  return Finding(
    verdict,
    f"{error:.2%} with {crops} crops on {count:,} images, against {limit:.2%} on {limit_count:,}"
    f"{_interval_text(estimate, points, ' points (binomial)')}",
    "",
    _power(verdict, estimate, _difference_text),
    (claim.of,),
  )


def _stability(
  claim: Claim, experiments: Experiments, evaluations: Evaluations, function: Callable, text: str
) -> Finding:
  """`function` of the percentiles of a sigmoid's input over training, by the ratio; stable is what has less of it.

  Of each run the geometric mean over the recorded units counts. `text` has places for the network with BN and without.
  """
  del evaluations
  if finding := _absent(claim, experiments):
    return finding
  sides = [experiments[name] for name in (claim.of, claim.beside)]
  if not all(run.accuracy for runs in sides for run in runs):
    return Finding(NOT_MEASURED, "a run without evaluations")
  if not all(measured.has_spread(measured.sigmoid_inputs(run)) for runs in sides for run in runs):
    return Finding(NOT_MEASURED, "a run whose sigmoid inputs were not recorded, or have no spread")
  records = [series for runs in sides for run in runs for series in measured.sigmoid_inputs(run).values()]
  if any(len(series) < 2 or not function(series) for series in records):
    return Finding(NOT_MEASURED, "a unit that never moved, or whose input was recorded once")

  def over_units(run: Result) -> float:
    return statistics.geometric_mean(map(function, measured.sigmoid_inputs(run).values()))

  with_bn, without = (measured.over_seeds(runs, over_units) for runs in sides)
  estimate = verdicts.welch(*(tuple(map(math.log, spread.values)) for spread in (without, with_bn)))
  verdict = verdicts.decide(estimate)
  two_decimals = "{:.2f}".format
  return Finding(
    verdict,
    text.format(describe(with_bn, two_decimals), describe(without, two_decimals))
    + " (geometric means of the recorded units)"
    + _ratio_interval(estimate),
    seeds_text(*sides),
    _power(verdict, estimate, _ratio_text),
    (claim.of, claim.beside),
  )


def _ratio_interval(estimate: verdicts.Estimate | None) -> str:
  if estimate is None:
    return ""
  low, high = map(math.exp, estimate.interval)
  return f"; ratio {math.exp(estimate.difference):.2f}, 95% interval {low:.2f} to {high:.2f}"


STATISTICS: dict[str, Callable[[Claim, Experiments, Evaluations], Finding]] = {
  "level": _level,
  "level_after_same_steps": _level_after_same_steps,
  "steps": _steps,
  "level_and_steps": _level_and_steps,
  "shown_level": _shown_level,
  "early": _early,
  "trains": _trains,
  "fails": _fails,
  "movement": functools.partial(
    _stability,
    function=measured.movement,
    text="the median wanders over the distance between the 15th and 85th percentile times {}, without BN times {}",
  ),
  "widening": functools.partial(
    _stability,
    function=measured.widening,
    text="the distance between the 15th and 85th percentile changes by a factor of {}, without BN of {}",
  ),
  "initialization": _initialization,
  "crops": _crops,
  "together": _together,
  "population": _population,
  "published": _published,
  "human": _human,
}
