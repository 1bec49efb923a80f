"""The claims of the abstract and of §4, each beside what was measured, with a verdict in plain words.

confirmed, refuted: what was measured agrees or disagrees with the claim in its direction; the sizes stand beside each
other for the reader. undecided: the difference is within two standard errors. not measured: a run that it takes is
missing or unfinished. A single run is taken to vary over seeds as those it is compared with; where both are single,
accuracies have at least the binomial error of the evaluation split, and of steps the direction counts.
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


def describe(spread: Spread, text=percent, of: str = "seed") -> str:
  """'38.1% ± 0.4% (3 seeds)'."""
  if spread.deviation is None:
    return f"{text(spread.mean)} (one {of})"
  return f"{text(spread.mean)} ± {text(spread.deviation)} ({len(spread.values)} {of}s)"


def steps_text(steps: float) -> str:
  if steps >= 1e6:
    return f"{steps / 1e6:.1f}M"
  return f"{steps:,.0f}"


def greater(a: Spread, b: Spread, single: float = 0.0) -> str:
  """The verdict on "a is greater than b".

  Args:
    a, b: values over seeds. Where one of them is a single value, it is given the deviation of the other.
    single: the deviation of the values where both are single.
  """
  known = [spread.deviation for spread in (a, b) if spread.deviation is not None]
  error = math.hypot(*((single if not known else known[0] if spread.deviation is None else spread.deviation)
                       / len(spread.values) ** 0.5 for spread in (a, b)))
  difference = a.mean - b.mean
  if difference == 0 or abs(difference) < 2 * error:
    return UNDECIDED
  return CONFIRMED if difference > 0 else REFUTED


def _binomial_deviation(probability: float, run: Result) -> float:
  """Of an accuracy on as many examples as the run was evaluated on."""
  count = max(line["eval/count"] for line in run.lines if "eval/count" in line)
  return math.sqrt(probability * (1 - probability) / count)


def _missing(claim: str, section: str, paper_value: str, command: str) -> Claim:
  return Claim(claim, section, paper_value, "", NOT_MEASURED, command)


def _higher(claim: str, section: str, paper_value: str, command: str, experiments: Experiments, a: str,
            b: str) -> Claim:
  """"The maximum of a is higher than that of b.\""""
  best = [measured.over_seeds(experiments.get(name, []), measured.maximum) for name in (a, b)]
  if None in best:
    return _missing(claim, section, paper_value, command)
  single = _binomial_deviation(best[1].mean, experiments[b][0])
  return Claim(claim, section, paper_value, f"{describe(best[0])} against {describe(best[1])}",
               greater(*best, single=single), command)


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
  if experiment.startswith("alone/"):
    return f"BN-Baseline with {experiment.removeprefix('alone/').replace('_', ' ')}"
  return paper.FIGURE_3[experiment].name


def _chance(result: Result) -> float:
  return 1 / result.config["data"]["num_classes"]


def _stays_at_chance(runs: Sequence[Result]) -> bool:
  """Never better than chance by more than three standard deviations of as many guesses."""
  def limit(run: Result) -> float:
    return _chance(run) + 3 * _binomial_deviation(_chance(run), run)
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


def _changes(experiments: Experiments, command: str) -> list[Claim]:
  """What §4.2.1 says of single changes, each beside BN-Baseline without it."""
  rest = command, experiments
  return [
      _higher("Within-shard shuffling improves validation accuracy", "§4.2.1", "about 1%", *rest, "alone/shuffling",
              "bn_baseline"),
      _sooner("Removing dropout speeds up training", "§4.2.1", "in words only", *rest, "alone/no_dropout",
              "bn_baseline"),
      _higher("A fifth of the L2 weight improves validation accuracy", "§4.2.1", "in words only", *rest,
              "alone/weight_decay", "bn_baseline"),
      _higher("BN does better without local response normalization", "§4.2.1", "not necessary", *rest, "alone/no_lrn",
              "bn_baseline"),
  ]


def _figure4(evaluations: Evaluations, experiments: Experiments, command: str) -> list[Claim]:
  kinds = measured.errors(evaluations)
  one = kinds.get((1, 1, "running"), {})
  crops = max((crops for networks, crops, _ in kinds if networks == 1), default=1)
  many = kinds.get((1, crops, "running"), {}) if crops > 1 else {}
  together = [found["ensemble"] for (networks, of, statistics), found in kinds.items()
              if networks > 1 and (of, statistics) == (crops, "running")]
  top1 = lambda found: Spread(tuple(metrics["top1_error"] for metrics in found.values()))
  claims = []
  text, value = "Many crops of an image have a smaller error than one", "25.2% to 21.99% top-1"
  if one and one.keys() == many.keys():
    gains = Spread(tuple(one[name]["top1_error"] - many[name]["top1_error"] for name in one))
    claims.append(Claim(text, "§4.2.3", value, f"{percent(top1(one).mean)} to {percent(top1(many).mean)} top-1 with "
                        f"{crops} crops, the mean of {len(one)} networks",
                        greater(gains, Spread((0.0,) * len(one))), command))
  else:
    claims.append(_missing(text, "§4.2.3", value, command))
  text, value = "The ensemble of six networks has a smaller error than any one of them", "21.99% to 20.1% top-1"
  if many and together:
    best, error = min(top1(many).values), together[0]["top1_error"]
    claims.append(Claim(text, "§4.2.3", value, f"{percent(top1(many).mean)} to {percent(error)} top-1; "
                        f"the best of the six {percent(best)}", greater(Spread((best,)), Spread((error,))), command))
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


def human(evaluations: Evaluations, command: str) -> Claim:
  """The abstract's last claim, which only ImageNet can answer: `evaluations` are those at the imagenet scale."""
  text, value = "The ensemble's top-5 error is below that of human raters", "4.9% (test 4.82%) against 5.1%"
  ensembles = [(crops, *found.values()) for (networks, crops, statistics), found in
               measured.errors(evaluations).items() if networks > 1 and statistics == "running"]
  if not ensembles:
    return _missing(text, "abstract, §4.2.3", value, command)
  crops, metrics = max(ensembles, key=lambda entry: entry[0])
  return Claim(text, "abstract, §4.2.3", value, f"{metrics['top5_error']:.2%} with {crops} crops",
               CONFIRMED if metrics["top5_error"] < paper.HUMAN_TOP5_ERROR else REFUTED, command)


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
    command: of each figure that the scale has: "figure3", and maybe "ablation" and "figure4".
  """
  experiments = measured.finished(experiments)
  figure3 = command["figure3"]
  sooner = lambda text, a, b, where, value: _sooner(text, where, value, figure3, experiments, a, b)
  higher = lambda text, a, b, value: _higher(text, "§4.2.2, Figure 3", value, figure3, experiments, a, b)
  claims = [
      sooner("The same accuracy in many times fewer training steps: BN-x5 against Inception", "bn_x5", "inception",
             "abstract, §4.2.2", f"{paper.SPEEDUP} times fewer: 2.1M against 31.0M"),
      sooner("BN alone, at the same learning rate, trains faster than Inception", "bn_baseline", "inception",
             "§4.2.2, Figure 3", "13.3M against 31.0M, less than half"),
      higher("BN-Baseline ends higher than Inception", "bn_baseline", "inception", "72.7% against 72.2%"),
      sooner("The changes of §4.2.1 speed BN up further: BN-x5 against BN-Baseline", "bn_x5", "bn_baseline",
             "§4.2.2, Figure 3", "2.1M against 13.3M"),
      higher("BN-x5 beats the original network", "bn_x5", "inception", "73.0% against 72.2%"),
      _slower_at_first(experiments, figure3),
      higher("BN-x30 ends higher than BN-x5", "bn_x30", "bn_x5", "74.8% against 73.0%"),
      sooner("BN-x30, too, is as good as Inception in far fewer steps", "bn_x30", "inception", "§4.2.2, Figure 3",
             "2.7M against 31.0M"),
      *_sigmoid(experiments, figure3),
      _diverges(experiments, figure3),
  ]
  if "ablation" in command:
    claims += _changes(experiments, command["ablation"])
  if "figure4" in command:
    claims += _figure4(evaluations, experiments, command["figure4"])
  return claims
