"""The statistics behind a verdict: an estimated difference with its standard error, and what it supports.

A difference of means over seeds is tested with Welch's t-test, one over the same networks with the paired t-test, one
of two error rates with the binomial error. All verdicts are at the two-sided 5% level, each for itself: they are not
corrected for how many there are.
"""

from collections.abc import Sequence
import math
import statistics
from typing import NamedTuple

from scipy import optimize, stats

CONFIRMED, REFUTED, UNDECIDED, NOT_MEASURED = "confirmed", "refuted", "undecided", "not measured"
SHOWN = "shown"  # What the paper does not claim is not judged.

CONFIDENCE, POWER = 0.95, 0.80


class Estimate(NamedTuple):
  """A difference, its standard error, and the degrees of freedom of Student's t (infinite: the normal distribution)."""

  difference: float
  error: float
  freedom: float

  @property
  def interval(self) -> tuple[float, float]:
    """The 95% confidence interval of the difference."""
    width = stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom) * self.error
    return self.difference - width, self.difference + width

  @property
  def detectable(self) -> float:
    """The smallest true difference that the test finds in 80% of such experiments, by the noncentral t."""
    # Of many degrees of freedom scipy's noncentral t is the normal distribution.
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom)
    found = lambda effect: (stats.nct.sf(quantile, self.freedom, effect) if math.isfinite(self.freedom)
                            else stats.norm.sf(quantile - effect)) - POWER
    return self.error * optimize.brentq(found, 0, 4 * quantile + 4)


def welch(a: Sequence[float], b: Sequence[float], resolution: tuple[float, float] = (0.0, 0.0)) -> Estimate | None:
  """The difference of the means of `a` and `b`, whose variances may differ; None with less than two values a side.

  Args:
    a, b: values over seeds, independent of each other.
    resolution: of each side, the distance between the values that it can have. No deviation is taken to be less than
      that of rounding to it, resolution / sqrt(12).
  """
  if min(len(a), len(b)) < 2:
    return None
  variances = [max(statistics.variance(values), step**2 / 12) / len(values)
               for values, step in zip((a, b), resolution)]
  difference = statistics.fmean(a) - statistics.fmean(b)
  if not sum(variances):
    return Estimate(difference, 0.0, min(len(a), len(b)) - 1)
  freedom = sum(variances) ** 2 / sum(variance**2 / (len(values) - 1) for variance, values in zip(variances, (a, b)))
  return Estimate(difference, math.sqrt(sum(variances)), freedom)


def paired(gains: Sequence[float]) -> Estimate | None:
  """The mean of differences that belong to the same networks; None with less than two."""
  if len(gains) < 2:
    return None
  return Estimate(statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains)), len(gains) - 1)


def proportions(first: float, first_count: float, second: float, second_count: float) -> Estimate:
  """The difference of two rates, each of so many independent examples, with its binomial error."""
  variance = first * (1 - first) / first_count + second * (1 - second) / second_count
  return Estimate(first - second, math.sqrt(variance), math.inf)


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
