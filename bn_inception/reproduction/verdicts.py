"""The statistics behind a verdict: an estimated difference, how well it is known, and what that supports.

A difference of means over seeds is tested with Welch's t-test, one over the same networks with the paired t-test, one
of two error rates with the binomial error. All verdicts are at the two-sided 5% level, each for itself: they are not
corrected for how many there are.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

CONFIRMED, REFUTED, UNDECIDED, NOT_MEASURED = "confirmed", "refuted", "undecided", "not measured"
SHOWN = "shown"  # What the paper does not claim is not judged.

CONFIDENCE, POWER = 0.95, 0.80


class Estimate(NamedTuple):
  """A difference and what it is known by.

  Attributes:
    difference: of two means, the first less the second.
    parts: of each mean its variance and the degrees of freedom that this variance was estimated with; infinite, if it
      is known.
  """

  difference: float
  parts: tuple[tuple[float, float], ...]

  @property
  def error(self) -> float:
    """The standard error."""
    return math.sqrt(sum(variance for variance, _ in self.parts))

  @property
  def freedom(self) -> float:
    """Degrees of freedom of Student's t (Welch and Satterthwaite); infinite: the normal distribution."""
    return float(_freedom([variance for variance, _ in self.parts], [freedom for _, freedom in self.parts]))

  @property
  def interval(self) -> tuple[float, float]:
    """The 95% confidence interval of the difference."""
    width = _quantile(self.freedom) * self.error if self.error else 0.0
    return float(self.difference - width), float(self.difference + width)

  @property
  def detectable(self) -> float:
    """The smallest true difference that the test finds in 80% of such experiments.

    If the variances are those that were estimated. In another experiment they are estimated anew, and the quantile with
    them: the power is the mean over what they would be, by their chi-squared distributions.
    """
    middle = (np.arange(64) + 0.5) / 64

    def relative(freedom: float) -> np.ndarray:
      return stats.chi2.ppf(middle, freedom) / freedom if math.isfinite(freedom) else np.ones(1)

    drawn = np.meshgrid(*(variance * relative(freedom) for variance, freedom in self.parts))
    limits = _quantile(_freedom(drawn, [freedom for _, freedom in self.parts])) * np.sqrt(sum(drawn))

    def lacking(effect: float) -> float:
      return np.mean(stats.norm.sf((limits - effect) / self.error)) - POWER

    return float(optimize.brentq(lacking, 0, np.max(limits) + 5 * self.error))


def _freedom(variances: Sequence[float | np.ndarray], freedoms: Sequence[float]) -> float | np.ndarray:
  below = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms))
  return sum(variances) ** 2 / below if np.all(below) else math.inf


def _quantile(freedom: float | np.ndarray) -> float | np.ndarray:
  return stats.t.ppf((1 + CONFIDENCE) / 2, freedom)


def welch(a: Sequence[float], b: Sequence[float], resolution: tuple[float, float] = (0.0, 0.0)) -> Estimate | None:
  """The difference of the means of `a` and `b`, whose variances may differ; None with less than two values a side.

  Args:
    a, b: values over seeds, independent of each other.
    resolution: of each side, the distance between the values that it can have. No deviation is taken to be less than
      that of rounding to it, resolution / sqrt(12).
  """
  if min(len(a), len(b)) < 2:
    return None
  variances = [max(statistics.variance(values), step**2 / 12) / len(values) for values, step in zip((a, b), resolution)]
  return Estimate(
    statistics.fmean(a) - statistics.fmean(b),
    tuple((variance, len(values) - 1) for variance, values in zip(variances, (a, b))),
  )


def paired(gains: Sequence[float]) -> Estimate | None:
  """The mean of differences that belong to the same networks; None with less than two."""
  if len(gains) < 2:
    return None
  return Estimate(statistics.fmean(gains), ((statistics.variance(gains) / len(gains), len(gains) - 1),))


def proportions(first: float, first_count: float, second: float, second_count: float) -> Estimate:
  """The difference of two rates, each of so many independent examples, with its binomial error."""
  return Estimate(
    first - second,
    tuple((rate * (1 - rate) / count, math.inf) for rate, count in ((first, first_count), (second, second_count))),
  )


def decide(estimate: Estimate | None, threshold: float = 0.0) -> str:
  """The verdict on "the difference is greater than `threshold`", by the 95% confidence interval.

  With the threshold 0 that is superiority, with a negative threshold non-inferiority by that margin. Lack of power is
  no evidence: an interval that holds the threshold decides nothing, nor do single values.
  """
  if estimate is None or not estimate.error:
    return UNDECIDED
  low, high = estimate.interval
  return CONFIRMED if low > threshold else REFUTED if high < threshold else UNDECIDED


def all_of(verdicts: Sequence[str]) -> str:
  """The verdict on a claim of several parts: confirmed if each is, refuted if one is."""
  return next((verdict for verdict in (REFUTED, UNDECIDED) if verdict in verdicts), CONFIRMED)


def share(count: int, of: int) -> tuple[float, float]:
  """The exact (Clopper and Pearson) 95% confidence interval of a probability, of `count` successes in `of` trials."""
  interval = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
  return float(interval.low), float(interval.high)
