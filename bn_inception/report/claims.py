"""The claims of the abstract and of §4, each beside what was measured, with a verdict in plain words.

confirmed, refuted: what was measured agrees or disagrees with the claim in its direction; the sizes stand beside each
other for the reader. undecided: the difference is within two standard errors of its mean over seeds. not measured: a
run that it takes is missing or unfinished. One seed has no spread: its direction counts, and the row says so.
"""

from collections.abc import Sequence
import math
import statistics
from typing import NamedTuple

from bn_inception.report import measured, paper
from bn_inception.report.measured import Result, Spread

CONFIRMED, REFUTED, UNDECIDED, NOT_MEASURED = "confirmed", "refuted", "undecided", "not measured"

Experiments = dict[str, list[Result]]
Evaluations = dict[str, tuple[dict, dict[str, float]]]


class Claim(NamedTuple):
  """A row of the table: what the paper claims (where), its number, ours, the verdict, the command that measures it."""

  claim: str
  section: str
  paper: str
  measured: str
  verdict: str
  command: str


def percent(value: float) -> str:
  return f"{value:.1%}"


def describe(spread: Spread, text=percent) -> str:
  """'38.1% ± 0.4% (3 seeds)'."""
  if spread.deviation is None:
    return f"{text(spread.mean)} (one seed)"
  return f"{text(spread.mean)} ± {text(spread.deviation)} ({len(spread.values)} seeds)"


def steps_text(steps: float) -> str:
  if steps >= 1e6:
    return f"{steps / 1e6:.1f}M"
  return f"{steps:,.0f}"


def greater(a: Spread, b: Spread) -> str:
  """The verdict on "a is greater than b"."""
  difference, error = a.mean - b.mean, math.hypot(a.error, b.error)
  if difference == 0 or abs(difference) < 2 * error:
    return UNDECIDED
  return CONFIRMED if difference > 0 else REFUTED


def _missing(claim: str, section: str, paper_value: str, command: str) -> Claim:
  return Claim(claim, section, paper_value, "", NOT_MEASURED, command)


def _higher(claim: str, section: str, paper_value: str, command: str, experiments: Experiments, a: str,
            b: str) -> Claim:
  """"The maximum of a is higher than that of b.\""""
  best = [measured.over_seeds(experiments.get(name, []), measured.maximum) for name in (a, b)]
  if None in best:
    return _missing(claim, section, paper_value, command)
  return Claim(claim, section, paper_value, f"{describe(best[0])} against {describe(best[1])}", greater(*best), command)


def _sooner(claim: str, section: str, paper_value: str, command: str, experiments: Experiments, a: str,
            b: str) -> Claim:
  """"a reaches the maximum of Inception in fewer steps than b" (b may be Inception itself)."""
  baseline = measured.baseline_maximum(experiments.get("inception", []))
  runs = [experiments.get(name, []) for name in (a, b)]
  if baseline is None or not all(runs):
    return _missing(claim, section, paper_value, command)
  target, own = baseline
  steps = [own if name == "inception" else measured.over_seeds(these, lambda run: measured.steps_to(run, target))
           for name, these in zip((a, b), runs)]
  texts = []
  for name, these, spread in zip((a, b), runs, steps):
    if spread is None:
      reached = sum(measured.steps_to(run, target) is not None for run in these)
      texts.append(f"{_name(name)} came to {percent(target)} in {reached} of {len(these)} runs")
    else:
      goal = "its maximum" if name == "inception" else percent(target)
      texts.append(f"{_name(name)} took {describe(spread, steps_text)} to {goal}")
  if steps[0] is None and steps[1] is None:
    verdict = UNDECIDED
  elif None in steps:
    verdict = REFUTED if steps[0] is None else CONFIRMED
  else:
    texts.append(f"{steps[1].mean / steps[0].mean:.1f} times fewer")
    verdict = greater(steps[1], steps[0])
  return Claim(claim, section, paper_value, "; ".join(texts), verdict, command)


def _name(experiment: str) -> str:
  return paper.FIGURE_3[experiment].name if experiment in paper.FIGURE_3 else experiment


def _chance(result: Result) -> float:
  return 1 / result.config["data"]["num_classes"]


def _stays_at_chance(runs: Sequence[Result]) -> bool:
  """Never better than chance by more than three standard deviations of as many guesses."""
  def limit(run: Result) -> float:
    count = max(line["eval/count"] for line in run.lines if "eval/count" in line)
    return _chance(run) + 3 * math.sqrt(_chance(run) * (1 - _chance(run)) / count)
  return all(measured.maximum(run) <= limit(run) for run in runs)


def _sigmoid(experiments: Experiments, command: str) -> list[Claim]:
  claims = []
  for name, text, paper_value, at_chance, above in (
      ("inception_sigmoid", "Inception with sigmoid does not train without BN: it stays at chance", "at most 0.1%",
       CONFIRMED, REFUTED),
      ("bn_x5_sigmoid", "With BN the network with sigmoid trains", "69.8%", REFUTED, CONFIRMED)):
    runs = experiments.get(name, [])
    best = measured.over_seeds(runs, measured.maximum)
    if best is None:
      claims.append(_missing(text, "§4.2.2", paper_value, command))
    else:
      claims.append(Claim(text, "§4.2.2", paper_value, f"{describe(best)}; chance is {percent(_chance(runs[0]))}",
                          at_chance if _stays_at_chance(runs) else above, command))
  return claims


def _diverges(experiments: Experiments, command: str) -> Claim:
  text, paper_value = "5 times its learning rate breaks Inception without BN", "parameters reach machine infinity"
  runs = experiments.get("inception_x5", [])
  if not runs:
    return _missing(text, "§4.2.2", paper_value, command)
  diverged = [run for run in runs if run.status["status"] == "diverged"]
  if len(diverged) == len(runs):
    steps = ", ".join(f"{run.status['step']:,}" for run in diverged)
    return Claim(text, "§4.2.2", paper_value, f"loss or parameters not finite at step {steps}", CONFIRMED, command)
  finite = [run for run in runs if run not in diverged]
  measured_text = f"{len(finite)} of {len(runs)} runs stayed finite and came to " + ", ".join(
      percent(measured.maximum(run)) for run in finite)
  # A network that learns nothing is broken, though not in the paper's way: the row says which it was.
  at_chance = _stays_at_chance(finite)
  if at_chance:
    measured_text += ": they learn nothing and stay at chance, without reaching infinity"
  return Claim(text, "§4.2.2", paper_value, measured_text, CONFIRMED if at_chance else REFUTED, command)


def early(a: Sequence[Result], b: Sequence[Result]) -> tuple[Spread, Spread] | None:
  """Mean accuracy of each run over the first fifth of the evaluations."""
  def mean(run: Result) -> float | None:
    first = [top1 for _, top1 in run.accuracy[:max(1, len(run.accuracy) // 5)]]
    return statistics.fmean(first) if first else None
  spreads = measured.over_seeds(a, mean), measured.over_seeds(b, mean)
  return None if None in spreads else spreads


def _slower_at_first(experiments: Experiments, command: str) -> Claim:
  text, paper_value = "BN-x30 is slower than BN-x5 at first", "2.7M against 2.1M steps to 72.2%"
  means = early(experiments.get("bn_x5", []), experiments.get("bn_x30", []))
  if means is None:
    return _missing(text, "§4.2.2", paper_value, command)
  return Claim(text, "§4.2.2", paper_value, "mean accuracy over the first fifth: "
               f"{describe(means[1])} against {describe(means[0])} of BN-x5", greater(*means), command)


def _shuffling(experiments: Experiments, command: str) -> Claim:
  return _higher("Within-shard shuffling improves validation accuracy", "§4.2.1", "about 1%", command, experiments,
                 "alone/shuffling", "bn_baseline")


def _smaller(a: float, b: float) -> str:
  """The verdict on errors over the same images."""
  return UNDECIDED if a == b else CONFIRMED if a < b else REFUTED


def _figure4(evaluations: Evaluations, experiments: Experiments, command: str) -> list[Claim]:
  one = {name: metrics for name, (_, metrics) in evaluations.items()
         if name.startswith("member") and name.endswith("_1crop_running")}
  many = {name: metrics for name, (_, metrics) in evaluations.items()
          if name.startswith("member") and "_1crop" not in name}
  ensembles = {request["crops"]: metrics for name, (request, metrics) in evaluations.items()
               if name.startswith("ensemble") and name.endswith("_running")}
  errors = lambda found: Spread(tuple(metrics["top1_error"] for metrics in found.values()))
  claims = []
  text, value = "Many crops of an image have a smaller error than one", "25.2% to 21.99% top-1"
  if one and many:
    claims.append(Claim(text, "§4.2.3", value, f"{percent(errors(one).mean)} to {percent(errors(many).mean)} top-1, "
                        f"the mean of {len(one)} networks",
                        _smaller(errors(many).mean, errors(one).mean), command))
  else:
    claims.append(_missing(text, "§4.2.3", value, command))
  text, value = "The ensemble of six networks has a smaller error than one of them", "21.99% to 20.1% top-1"
  if many and max(ensembles, default=1) > 1:
    together = ensembles[max(ensembles)]["top1_error"]
    claims.append(Claim(text, "§4.2.3", value, f"{percent(errors(many).mean)} to {percent(together)} top-1; the best "
                        f"of the six {percent(min(errors(many).values))}",
                        _smaller(together, min(errors(many).values)), command))
  else:
    claims.append(_missing(text, "§4.2.3", value, command))
  text = "Population statistics (Algorithm 2) and moving averages agree"
  pairs = [(line["eval/population/top1"], line["eval/running/top1"]) for runs in experiments.values() for run in runs
           for line in run.lines[-1:] if "eval/population/top1" in line]
  if pairs:
    gaps = [population - running for population, running in pairs]
    worst = max(map(abs, gaps))
    claims.append(Claim(text, "§3.1", "both are used", f"at the end of {len(gaps)} runs population statistics are "
                        f"{statistics.fmean(gaps):+.2%} in top-1 on average, {worst:.2%} apart at most",
                        CONFIRMED if worst < 0.01 else REFUTED, command))
  else:
    claims.append(_missing(text, "§3.1", "both are used", command))
  return claims


def mnist(experiments: Experiments, command: str) -> list[Claim]:
  """The claims of §4.1, by the runs that are finished: each network at its best rate, then both at a low one."""
  experiments = measured.finished(experiments)
  claims = _mnist(experiments, command, "", "each at its best learning rate")
  if any(name.endswith("_low_rate") for name in experiments):
    rate = experiments[next(name for name in experiments if name.endswith("_low_rate"))][0].config["learning_rate"]
    claims += _mnist(experiments, command, "_low_rate", f"both at the learning rate {rate:g}")
  return claims


def _mnist(experiments: Experiments, command: str, suffix: str, rates: str) -> list[Claim]:
  with_bn, without = (experiments.get(f"mnist_{network}{suffix}", []) for network in ("bn", "plain"))
  rows = [("The network with BN has the higher test accuracy", "§4.1, Figure 1(a)", "a curve"),
          ("The network with BN trains faster", "§4.1, Figure 1(a)", "a curve"),
          ("With BN the distribution of a sigmoid's input is more stable", "§4.1, Figure 1(b, c)", "curves")]
  rows = [(f"{text}, {rates}", section, value) for text, section, value in rows]
  claims = [_higher(*rows[0], command, experiments, f"mnist_bn{suffix}", f"mnist_plain{suffix}")]
  if not with_bn or not without:
    return claims + [_missing(*row, command) for row in rows[1:]]
  target = measured.over_seeds(without, measured.maximum).mean
  own = measured.over_seeds(without, lambda run: measured.steps_to(run, measured.maximum(run)))
  steps = measured.over_seeds(with_bn, lambda run: measured.steps_to(run, target))
  if steps is None:
    claims.append(Claim(*rows[1], f"not every run came to the {target:.2%} of the network without", REFUTED, command))
  else:
    claims.append(Claim(*rows[1], f"{describe(steps, steps_text)} steps to the {target:.2%} that the network without "
                        f"takes {describe(own, steps_text)} for", greater(own, steps), command))

  def mean_of_units(function):
    return lambda run: statistics.fmean(map(function, measured.sigmoid_inputs(run).values()))

  moved = [measured.over_seeds(runs, mean_of_units(measured.movement)) for runs in (without, with_bn)]
  widened = [measured.over_seeds(runs, mean_of_units(measured.widening)) for runs in (without, with_bn)]
  ratio = lambda value: f"{value:.2f}"
  # Stable is what neither wanders nor widens; where the two disagree it is for the reader to say.
  verdicts = {greater(*moved), greater(*widened)}
  claims.append(Claim(
      *rows[2], f"mean of the recorded units: the median wanders over {describe(moved[1], ratio)} times the distance "
      f"between the 15th and 85th percentile, without BN {describe(moved[0], ratio)}; that distance changes "
      f"{describe(widened[1], ratio)}-fold, without BN {describe(widened[0], ratio)}-fold",
      verdicts.pop() if len(verdicts) == 1 else UNDECIDED, command))
  return claims


def inception(experiments: Experiments, evaluations: Evaluations, command: dict[str, str]) -> list[Claim]:
  """The claims of the abstract and of §4.2 at one scale.

  Args:
    experiments: the runs of the scale; only finished ones count.
    evaluations: those of Figure 4.
    command: of each figure, {"figure3", "ablation", "figure4"}.
  """
  experiments = measured.finished(experiments)
  figure3 = command["figure3"]
  higher = lambda text, a, b, value: _higher(text, "§4.2.2, Figure 3", value, figure3, experiments, a, b)
  return [
      _sooner("The same accuracy in many times fewer training steps: BN-x5 against Inception", "abstract, §4.2.2",
              f"{paper.SPEEDUP} times fewer: 2.1M against 31.0M", figure3, experiments, "bn_x5", "inception"),
      _sooner("BN alone, at the same learning rate, trains faster than Inception", "§4.2.2, Figure 3",
              "13.3M against 31.0M, less than half", figure3, experiments, "bn_baseline", "inception"),
      higher("BN-Baseline ends higher than Inception", "bn_baseline", "inception", "72.7% against 72.2%"),
      _sooner("The changes of §4.2.1 speed BN up further: BN-x5 against BN-Baseline", "§4.2.2, Figure 3",
              "2.1M against 13.3M", figure3, experiments, "bn_x5", "bn_baseline"),
      higher("BN-x5 beats the original network", "bn_x5", "inception", "73.0% against 72.2%"),
      _slower_at_first(experiments, figure3),
      higher("BN-x30 ends higher than BN-x5", "bn_x30", "bn_x5", "74.8% against 73.0%"),
      *_sigmoid(experiments, figure3),
      _diverges(experiments, figure3),
      _shuffling(experiments, command["ablation"]),
      *_figure4(evaluations, experiments, command["figure4"]),
  ]
