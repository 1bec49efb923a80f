"""The claims of the abstract and of §4, each beside what was measured, with a verdict in plain words.

confirmed, refuted: what was measured agrees or disagrees with the claim in its direction; the sizes stand beside each
other for the reader. undecided: the difference is within two standard errors (see `greater`), or the seeds disagree.
not measured: a run that it takes is missing or unfinished.
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


def greater(a: Spread, b: Spread, resolution: float = 0.0) -> str:
  """The verdict on "a is greater than b": whether the means differ by two standard errors.

  Args:
    a, b: values over seeds. Where one of them is a single value, it is given the deviation of the other.
    resolution: the least deviation that a value can have: of an accuracy the binomial one of the evaluation split, of
      steps the distance between evaluations.
  """
  known = [spread.deviation for spread in (a, b) if spread.deviation is not None]
  error = math.hypot(*(max(resolution, (known or [0.0])[0] if spread.deviation is None else spread.deviation)
                       / len(spread.values) ** 0.5 for spread in (a, b)))
  difference = a.mean - b.mean
  if difference == 0 or abs(difference) < 2 * error:
    return UNDECIDED
  return CONFIRMED if difference > 0 else REFUTED


def _not_less(verdict: str) -> str:
  """The verdict on "a is no less than b" by that on "a is greater than b"."""
  return REFUTED if verdict == REFUTED else CONFIRMED


def _binomial_deviation(probability: float, count: float) -> float:
  return math.sqrt(probability * (1 - probability) / count)


def _count(run: Result) -> float:
  """How many examples a run is evaluated on."""
  return max((line["eval/count"] for line in run.lines if "eval/count" in line), default=math.inf)


def _resolution(runs: Sequence[Result], accuracy: float) -> float:
  return max(_binomial_deviation(accuracy, _count(run)) for run in runs)


def _missing(claim: str, section: str, paper_value: str, command: str) -> Claim:
  return Claim(claim, section, paper_value, "", NOT_MEASURED, command)


def _diverged(experiments: Experiments, a: str, b: str) -> tuple[str, str] | None:
  """What was measured and the verdict on "a does better than b" where runs of either diverged; None if none did."""
  count = {name: sum(run.diverged for run in experiments[name]) for name in (a, b)}
  if not any(count.values()):
    return None
  text = "; ".join(f"{count[name]} of {len(experiments[name])} runs of {_name(name)} diverged"
                   for name in (a, b) if count[name])
  if count[a] and count[b]:
    return text, UNDECIDED
  name, verdict = (a, REFUTED) if count[a] else (b, CONFIRMED)
  return text, verdict if count[name] == len(experiments[name]) else UNDECIDED


def _higher(claim: str, section: str, paper_value: str, command: str, experiments: Experiments, a: str, b: str,
            decide=lambda verdict: verdict) -> Claim:
  """"The maximum of a is higher than that of b"; with `_not_less`, "no lower"."""
  if a not in experiments or b not in experiments:
    return _missing(claim, section, paper_value, command)
  if found := _diverged(experiments, a, b):
    return Claim(claim, section, paper_value, *found, command)
  best = [measured.over_seeds(experiments[name], measured.maximum) for name in (a, b)]
  verdict = greater(*best, resolution=_resolution(experiments[b], best[1].mean))
  return Claim(claim, section, paper_value, f"{describe(best[0])} against {describe(best[1])}", decide(verdict),
               command)


def _sooner(claim: str, section: str, paper_value: str, command: str, experiments: Experiments, a: str, b: str,
            baseline: str) -> Claim:
  """"a reaches the maximum of `baseline` in fewer steps than b" (b may be the baseline itself)."""
  if not all(name in experiments for name in (a, b, baseline)):
    return _missing(claim, section, paper_value, command)
  if found := _diverged(experiments, a, b):
    return Claim(claim, section, paper_value, *found, command)
  if (maximum := measured.baseline_maximum(experiments[baseline])) is None:
    return _missing(claim, section, paper_value, command)
  target, own = maximum
  texts, reached, at_least = [], [], []
  for name in (a, b):
    runs = experiments[name]
    steps = own.values if name == baseline else [measured.steps_to(run, target) for run in runs]
    # A run that never got there would have taken longer than it ran.
    at_least.append(Spread(tuple(run.accuracy[-1][0] if step is None else step for run, step in zip(runs, steps))))
    reached.append(sum(step is not None for step in steps))
    goal = "its maximum" if name == baseline else percent(target)
    if reached[-1] == len(runs):
      texts.append(f"{_name(name)} took {describe(at_least[-1], steps_text)} to {goal}")
    else:
      texts.append(f"{_name(name)} came to {goal} in {reached[-1]} of {len(runs)} runs")
  interval = max(run.accuracy[0][0] for name in (a, b) for run in experiments[name])
  verdict = greater(at_least[1], at_least[0], resolution=interval)
  all_of_a, all_of_b = (count == len(experiments[name]) for name, count in zip((a, b), reached))
  if all_of_a and all_of_b:
    texts.append(f"{at_least[1].mean / at_least[0].mean:.1f} times fewer")
    ends = [run.accuracy[-1][0] for run in experiments[b]]
    if b == baseline and list(own.values) == ends:
      texts.append(f"{_name(b)} was still improving at its end")
  elif all_of_a and not reached[1]:
    verdict = CONFIRMED
  elif all_of_b and not reached[0]:
    verdict = REFUTED
  elif (not all_of_a and verdict == CONFIRMED) or (not all_of_b and verdict == REFUTED):
    verdict = UNDECIDED  # What never got there might have taken any time.
  return Claim(claim, section, paper_value, "; ".join(texts), verdict, command)


_MNIST_NAMES = {"mnist_bn": "the network with BN", "mnist_plain": "the network without"}


def _name(experiment: str) -> str:
  if experiment.startswith("alone/"):
    return f"BN-Baseline with {experiment.removeprefix('alone/').replace('_', ' ')}"
  if experiment in paper.FIGURE_3:
    return paper.FIGURE_3[experiment].name
  return _MNIST_NAMES[experiment.removesuffix("_low_rate")]


def _chance(result: Result) -> float:
  return 1 / result.config["data"]["num_classes"]


def _stays_at_chance(run: Result) -> bool:
  """Never better than chance by more than three standard deviations of as many guesses."""
  limit = _chance(run) + 3 * _binomial_deviation(_chance(run), _count(run))
  return all(top1 <= limit for _, top1 in run.accuracy)


def _trains(claim: str, section: str, paper_value: str, command: str, experiments: Experiments, name: str,
            wanted: bool, beside: str | None = None) -> Claim:
  """"The network trains" or, with `wanted` False, "it does not": it diverges, or stays at chance.

  The maximum of `beside`, if it is given, is stated for comparison.
  """
  if name not in experiments:
    return _missing(claim, section, paper_value, command)
  runs = experiments[name]
  diverged = [run for run in runs if run.diverged]
  finite = [run for run in runs if not run.diverged]
  at_chance = [run for run in finite if _stays_at_chance(run)]
  texts = []
  if diverged:
    texts.append(f"{len(diverged)} of {len(runs)} runs diverged: loss or parameters not finite at step "
                 + ", ".join(f"{run.status['step']:,}" for run in diverged))
  if finite:
    best = describe(measured.over_seeds(finite, measured.maximum))
    texts.append(f"{len(finite)} of {len(runs)} runs stayed finite and came to {best}; chance is "
                 f"{percent(_chance(runs[0]))}")
  if at_chance and not wanted:
    texts.append(f"{len(at_chance)} of them learned nothing")
  if beside in experiments and (best := measured.over_seeds(experiments[beside], measured.maximum)):
    texts.append(f"{_name(beside)} itself came to {describe(best)}")
  failed = len(diverged) + len(at_chance)
  verdict = CONFIRMED if failed == (0 if wanted else len(runs)) else REFUTED if failed == (
      len(runs) if wanted else 0) else UNDECIDED
  return Claim(claim, section, paper_value, "; ".join(texts), verdict, command)


def early(runs: Sequence[Result]) -> Spread:
  """Mean accuracy of each run over the first fifth of the evaluations."""
  return measured.over_seeds(runs, lambda run: statistics.fmean(
      top1 for _, top1 in run.accuracy[:max(1, len(run.accuracy) // 5)]))


def _slower_at_first(experiments: Experiments, command: str) -> Claim:
  text, paper_value = "BN-x30 is slower than BN-x5 at first", "2.7M against 2.1M steps to 72.2%"
  if "bn_x5" not in experiments or "bn_x30" not in experiments:
    return _missing(text, "§4.2.2", paper_value, command)
  if found := _diverged(experiments, "bn_x5", "bn_x30"):
    return Claim(text, "§4.2.2", paper_value, *found, command)
  x5, x30 = early(experiments["bn_x5"]), early(experiments["bn_x30"])
  return Claim(text, "§4.2.2", paper_value, f"mean accuracy over the first fifth: {describe(x30)} against "
               f"{describe(x5)} of BN-x5", greater(x5, x30, _resolution(experiments["bn_x5"], x5.mean)), command)


def _higher_with_fewer_steps(experiments: Experiments, command: str) -> Claim:
  text = "BN-x30 comes to a higher maximum than Inception, and to it in fewer steps than Inception to its own"
  paper_value = "74.8% after 6M steps against 72.2% after 31.0M"
  best = {name: measured.baseline_maximum(experiments.get(name, [])) for name in ("bn_x30", "inception")}
  if None in best.values():
    return _missing(text, "§4.2.2", paper_value, command)
  (top1, steps), (other_top1, other_steps) = best.values()
  higher = _higher(text, "§4.2.2", paper_value, command, experiments, "bn_x30", "inception")
  interval = experiments["inception"][0].accuracy[0][0]
  verdicts = {higher.verdict, greater(other_steps, steps, resolution=interval)}
  verdict = REFUTED if REFUTED in verdicts else UNDECIDED if UNDECIDED in verdicts else CONFIRMED
  return higher._replace(measured=f"{percent(top1)} after {describe(steps, steps_text)} against {percent(other_top1)} "
                         f"after {describe(other_steps, steps_text)}", verdict=verdict)


def _changes(experiments: Experiments, command: str) -> list[Claim]:
  """What the paper says of single changes, each beside BN-Baseline without it."""
  experiments = measured.for_ablation(experiments)
  higher = lambda text, where, value, name, decide=lambda verdict: verdict: _higher(
      text, where, value, command, experiments, f"alone/{name}", "bn_baseline", decide)
  return [
      higher("5 times the learning rate has no ill effect on a network with BN", "§4.2.1", "in words only",
             "learning_rate", _not_less),
      _sooner("Without dropout the network with BN trains faster", "§4.2.1", "in words only", command, experiments,
              "alone/no_dropout", "bn_baseline", "bn_baseline"),
      higher("BN regularizes: without dropout it generalizes no worse", "abstract, §3.4, §4.2.1", "in words only",
             "no_dropout", _not_less),
      higher("A fifth of the L2 weight improves validation accuracy", "§4.2.1", "in words only", "weight_decay"),
      higher("With BN local response normalization is not necessary: no worse without", "§4.2.1", "in words only",
             "no_lrn", _not_less),
      higher("Within-shard shuffling improves validation accuracy", "§4.2.1", "about 1%", "shuffling"),
  ]


def _initialization(experiments: Experiments, command: str) -> Claim:
  text, section = "With BN the network is less sensitive to its initialization", "abstract, §4.2.3"
  runs = experiments.get("ensemble", [])
  scaled = {factor: [run for run in runs if (run.config["model"]["init_scale"] > 1) == factor]
            for factor in (False, True)}
  if not all(scaled.values()):
    return _missing(text, section, "in words only", command)
  scale = max(run.config["model"]["init_scale"] for run in runs)
  usual, larger = (measured.over_seeds(scaled[factor], measured.maximum) for factor in (False, True))
  if usual is None or larger is None or any(run.diverged for run in runs):
    return Claim(text, section, "in words only", "networks of the ensemble diverged", REFUTED, command)
  return Claim(text, section, "in words only", f"initial weights {scale:g} times as large: "
               f"{describe(larger, of='network')} against {describe(usual, of='network')}",
               _not_less(greater(larger, usual, _resolution(runs, usual.mean))), command)


def _figure4(evaluations: Evaluations, experiments: Experiments, command: str) -> list[Claim]:
  kinds = measured.errors(evaluations)
  one = kinds.get((1, 1, "running"), {})
  crops = max((crops for networks, crops, _ in kinds if networks == 1), default=1)
  many = kinds.get((1, crops, "running"), {}) if crops > 1 else {}
  together = [found["ensemble"] for (networks, of, statistics), found in kinds.items()
              if networks > 1 and (of, statistics) == (crops, "running")]
  top1 = lambda found: Spread(tuple(metrics["top1_error"] for metrics in found.values()))

  def smaller(found: dict[str, dict[str, float]], than: dict[str, dict[str, float]]) -> str:
    """Whether errors are smaller for the same networks and images."""
    gains = Spread(tuple(than[name]["top1_error"] - found[name]["top1_error"] for name in than))
    count = min(metrics["count"] for metrics in than.values())
    return greater(gains, Spread((0.0,) * len(than)), _binomial_deviation(top1(than).mean, count))

  claims = []
  text, value = "Many crops of an image have a smaller error than one", "25.2% to 21.99% top-1"
  if one and one.keys() == many.keys():
    claims.append(Claim(text, "§4.2.3", value, f"{percent(top1(one).mean)} to {percent(top1(many).mean)} top-1 with "
                        f"{crops} crops, the mean of {len(one)} networks", smaller(many, one), command))
  else:
    claims.append(_missing(text, "§4.2.3", value, command))
  text, value = "The ensemble of six networks has a smaller error than one of them", "21.99% to 20.1% top-1"
  if many and together:
    error = together[0]["top1_error"]
    claims.append(Claim(text, "§4.2.3", value, f"{percent(top1(many).mean)} to {percent(error)} top-1; the best of the "
                        f"{len(many)} has {percent(min(top1(many).values))}",
                        smaller(dict.fromkeys(many, together[0]), many), command))
  else:
    claims.append(_missing(text, "§4.2.3", value, command))
  text = "Population statistics (Algorithm 2) and moving averages agree to a point of top-1"
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
  bn, plain = (f"mnist_{network}{suffix}" for network in ("bn", "plain"))
  rows = [("The network with BN has the higher test accuracy", "§4.1, Figure 1(a)", "a curve"),
          ("The network with BN trains faster", "§4.1, Figure 1(a)", "a curve"),
          ("With BN the distribution of a sigmoid's input is more stable", "§4.1, Figure 1(b, c)", "curves")]
  rows = [(f"{text}, {rates}", section, value, command) for text, section, value in rows]
  claims = [_higher(*rows[0], experiments, bn, plain), _sooner(*rows[1], experiments, bn, plain, plain)]
  with_bn, without = experiments.get(bn, []), experiments.get(plain, [])
  if not with_bn or not without or not all(run.accuracy for run in (*with_bn, *without)):
    return claims + [_missing(*rows[2])]

  def mean_of_units(function):
    return lambda run: statistics.fmean(map(function, measured.sigmoid_inputs(run).values()))

  moved = [measured.over_seeds(runs, mean_of_units(measured.movement)) for runs in (without, with_bn)]
  widened = [measured.over_seeds(runs, mean_of_units(measured.widening)) for runs in (without, with_bn)]
  ratio = lambda value: f"{value:.2f}"
  # Stable is what neither wanders nor widens; where the two disagree it is for the reader to say.
  verdicts = {greater(*moved), greater(*widened)}
  claims.append(Claim(
      *rows[2][:3], f"mean of the recorded units: the median wanders over {describe(moved[1], ratio)} times the "
      f"distance between the 15th and 85th percentile, without BN {describe(moved[0], ratio)}; that distance changes "
      f"{describe(widened[1], ratio)}-fold, without BN {describe(widened[0], ratio)}-fold",
      verdicts.pop() if len(verdicts) == 1 else UNDECIDED, command))
  return claims


def full_scale(evaluations: Evaluations, command: str) -> list[Claim]:
  """The abstract's claims that only ImageNet can answer: `evaluations` are those at the imagenet scale."""
  ensembles = [(crops, found["ensemble"]["top5_error"]) for (networks, crops, statistics), found in
               measured.errors(evaluations).items() if networks > 1 and statistics == "running"]
  others = min(row.top5_error for row in paper.FIGURE_4 if "BN-Inception" not in row.name)
  claims = []
  for text, value, limit in (
      ("The ensemble improves upon the best published result", f"4.9% against {others:.2%} top-5 error", others),
      ("The ensemble's top-5 error is below that of human raters", "4.9% (test 4.82%) against 5.1%",
       paper.HUMAN_TOP5_ERROR)):
    if ensembles:
      crops, error = max(ensembles)
      claims.append(Claim(text, "abstract, §4.2.3", value, f"{error:.2%} with {crops} crops",
                          CONFIRMED if error < limit else REFUTED, command))
    else:
      claims.append(_missing(text, "abstract, §4.2.3", value, command))
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
  sooner = lambda text, a, b, where, value: _sooner(text, where, value, figure3, experiments, a, b, "inception")
  higher = lambda text, a, b, value: _higher(text, "§4.2.2, Figure 3", value, figure3, experiments, a, b)
  trains = lambda text, name, where, value, wanted, beside=None: _trains(
      text, where, value, figure3, experiments, name, wanted, beside)
  claims = [
      sooner("The same accuracy in many times fewer training steps: BN-x5 against Inception", "bn_x5", "inception",
             "abstract, §4.2.2", f"{paper.SPEEDUP} times fewer: 2.1M against 31.0M"),
      sooner("BN alone, at the same learning rate, trains faster than Inception", "bn_baseline", "inception",
             "§4.2.2, Figure 3", "13.3M against 31.0M, less than half"),
      higher("BN-Baseline reaches a higher maximum than Inception", "bn_baseline", "inception", "72.7% against 72.2%"),
      sooner("The changes of §4.2.1 speed BN up further: BN-x5 against BN-Baseline", "bn_x5", "bn_baseline",
             "§4.2.2, Figure 3", "2.1M against 13.3M"),
      higher("BN-x5 beats the original network", "bn_x5", "inception", "73.0% against 72.2%"),
      _slower_at_first(experiments, figure3),
      higher("BN-x30 reaches a higher maximum than BN-x5", "bn_x30", "bn_x5", "74.8% against 73.0%"),
      sooner("BN-x30, too, is as good as Inception in far fewer steps", "bn_x30", "inception", "§4.2.2, Figure 3",
             "2.7M against 31.0M"),
      _higher_with_fewer_steps(experiments, figure3),
      trains("5 times its learning rate breaks Inception without BN", "inception_x5", "§4.2.2",
             "parameters reach machine infinity", False, beside="inception"),
      trains("BN allows much higher learning rates: a network with BN trains at 30 times Inception's", "bn_x30",
             "abstract, §4.2.2", "74.8%", True),
      trains("Inception with sigmoid does not train without BN: it stays at chance", "inception_sigmoid", "§4.2.2",
             "at most 0.1%", False),
      trains("With BN the network with sigmoid trains", "bn_x5_sigmoid", "§4.2.2", "69.8%", True),
  ]
  if "ablation" in command:
    claims += _changes(experiments, command["ablation"])
  if "figure4" in command:
    claims += [_initialization(experiments, command["figure4"]),
               *_figure4(evaluations, experiments, command["figure4"])]
  return claims
