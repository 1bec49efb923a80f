"""The words and numbers of the report: accuracies, differences, steps, spreads over seeds, names of experiments."""

from collections.abc import Callable, Sequence

from bn_inception import paper
from bn_inception.reproduction import speedup
from bn_inception.reproduction.measured import Result, Spread


def percent(value: float) -> str:
  return f"{value:.1%}"


def points(value: float) -> str:
  """A difference of accuracies, in percentage points; small ones with two digits."""
  return f"{100 * value:+.{1 if abs(value) >= 0.001 else 2}f}"


def steps_text(steps: float) -> str:
  """12,345 or, from a million on, 1.2M."""
  if steps >= 1e6:
    return f"{steps / 1e6:.1f}M"
  return f"{steps:,.0f}"


def mean_text(spread: Spread, text: Callable[[float], str] = percent) -> str:
  """'38.1% ± 0.4%'."""
  return text(spread.mean) + ("" if spread.deviation is None else f" ± {text(spread.deviation)}")


def describe(spread: Spread, text: Callable[[float], str] = percent, of: str = "seed") -> str:
  """'38.1% ± 0.4% (3 seeds)'."""
  count = f"one {of}" if len(spread.values) == 1 else f"{len(spread.values)} {of}s"
  return f"{mean_text(spread, text)} ({count})"


def name_of(experiment: str) -> str:
  """The paper's name of a network, or what it is."""
  if experiment.startswith("alone/"):
    return f"BN-Baseline with {experiment.removeprefix('alone/').replace('_', ' ')}"
  if experiment.startswith(speedup.CONTROLS):
    return f"Inception over {int(experiment.removeprefix(speedup.CONTROLS)):,} steps"
  if experiment.startswith(speedup.LONGER):
    return f"BN-x5 over {int(experiment.removeprefix(speedup.LONGER)):,} steps"
  if experiment.startswith(speedup.BEST_RATE):
    return f"{name_of(experiment.removeprefix(speedup.BEST_RATE))} at its best rate"
  if experiment.startswith("precision/"):
    return f"BN-x5 in {experiment.removeprefix('precision/')}"
  if experiment in paper.FIGURE_3:
    return paper.FIGURE_3[experiment].name
  names = {"mnist_bn": "the network with BN", "mnist_plain": "the network without", "ensemble": "the ensemble"}
  return names.get(experiment.removesuffix("_low_rate"), experiment)


def seeds_text(*sides: Sequence[Result]) -> str:
  """'seeds 0, 1, 2 against 0, 1, 2'."""
  texts = [", ".join(run.seed.removeprefix("seed").removeprefix("member") for run in runs) for runs in sides]
  return ("seeds " if max(map(len, sides)) > 1 else "seed ") + " against ".join(texts)
