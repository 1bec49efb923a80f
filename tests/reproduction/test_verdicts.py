"""The statistics behind verdicts against scipy's own tests, closed forms and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from bn_inception.reproduction import verdicts


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (2, 5), (7, 3)])
def test_welch_is_that_of_scipy(sizes):
  rng = np.random.default_rng(0)
  a, b = rng.normal(0.5, 0.01, sizes[0]), rng.normal(0.48, 0.05, sizes[1])
  estimate, peer = verdicts.welch(a, b), stats.ttest_ind(a, b, equal_var=False)
  assert estimate.difference / estimate.error == pytest.approx(peer.statistic)
  assert estimate.freedom == pytest.approx(peer.df)
  assert estimate.interval == pytest.approx(tuple(peer.confidence_interval(0.95)))
  # Confirmed or refuted exactly where the two-sided test at 5% rejects.
  for shift in np.linspace(-0.2, 0.2, 41):
    rejects = stats.ttest_ind(a + shift, b, equal_var=False).pvalue < 0.05
    assert (verdicts.decide(verdicts.welch(a + shift, b)) != verdicts.UNDECIDED) == rejects


def test_of_one_mean_the_power_is_that_of_the_noncentral_t():
  estimate = verdicts.paired([0.01, 0.03, 0.02, 0.05])
  quantile = stats.t.ppf(0.975, 3)
  assert stats.nct.sf(quantile, 3, estimate.detectable / estimate.error) == pytest.approx(0.8, abs=2e-3)


def test_paired_is_that_of_scipy():
  a, b = [0.30, 0.33, 0.29, 0.35], [0.28, 0.32, 0.28, 0.31]
  estimate, peer = verdicts.paired(np.subtract(a, b)), stats.ttest_rel(a, b)
  assert estimate.interval == pytest.approx(tuple(peer.confidence_interval(0.95)))
  assert verdicts.paired([0.1]) is None


def test_two_seeds_need_a_quantile_of_more_than_two_standard_errors():
  """The difference of 0.1 has the error 0.0316; of two degrees of freedom the quantile is 4.30, not 2."""
  a, b = (0.50, 0.50 + 0.001**0.5 * 2**0.5), (0.40, 0.40 + 0.001**0.5 * 2**0.5)
  estimate = verdicts.welch(a, b)
  assert estimate.error == pytest.approx(0.001**0.5) and estimate.difference > 3 * estimate.error
  assert verdicts.decide(estimate) == verdicts.UNDECIDED
  assert verdicts.decide(verdicts.welch(a * 3, b * 3)) == verdicts.CONFIRMED


@pytest.mark.parametrize("a,b", [((0.9,), (0.1,)), ((0.9,), (0.1, 0.1, 0.2)), ((0.9, 0.9, 0.8), (0.1,))])
def test_one_seed_decides_nothing(a, b):
  assert verdicts.welch(a, b) is None and verdicts.decide(None) == verdicts.UNDECIDED


def test_no_value_is_known_better_than_its_resolution():
  """Three runs that all took 500 steps, evaluated every 100: the deviation is that of rounding, 100 / sqrt(12)."""
  estimate = verdicts.welch((500,) * 3, (400,) * 3, resolution=(100, 100))
  assert estimate.error == pytest.approx(math.sqrt(2 * (100 / math.sqrt(12)) ** 2 / 3))
  assert estimate.freedom == pytest.approx(4)
  assert verdicts.decide(verdicts.welch((0.5,) * 3, (0.4,) * 3)) == verdicts.UNDECIDED  # No spread, no test.


@pytest.mark.parametrize(
  "low,high,threshold,verdict",
  [
    (0.001, 0.02, 0.0, "confirmed"),
    (-0.001, 0.02, 0.0, "undecided"),
    (-0.02, -0.001, 0.0, "refuted"),
    # No worse by 0.01: power counts, not the sign of what was measured.
    (-0.009, -0.001, -0.01, "confirmed"),
    (-0.03, 0.03, -0.01, "undecided"),
    (-0.03, -0.011, -0.01, "refuted"),
    (-0.03, -0.001, -0.01, "undecided"),
  ],
)
def test_the_interval_decides_against_the_threshold(low, high, threshold, verdict):
  estimate = verdicts.Estimate((low + high) / 2, ((((high - low) / 2 / stats.norm.ppf(0.975)) ** 2, math.inf),))
  assert estimate.interval == pytest.approx((low, high))
  assert verdicts.decide(estimate, threshold) == verdict


def test_proportions_have_the_binomial_error():
  """4.9% of 50,000 and 5.1% of 1,500: the difference, 0.2%, has the error 0.58%."""
  estimate = verdicts.proportions(0.051, 1_500, 0.049, 50_000)
  assert estimate.error == pytest.approx(math.sqrt(0.051 * 0.949 / 1_500 + 0.049 * 0.951 / 50_000))
  assert verdicts.decide(estimate) == verdicts.UNDECIDED
  # In closed form: of the normal distribution 1.960 + 0.842 standard errors.
  assert estimate.detectable == pytest.approx(2.8016 * estimate.error, rel=1e-4)


@pytest.mark.parametrize("seeds,deviations", [((3, 3), (1, 1)), ((2, 3), (1, 1)), ((3, 2), (1, 3)), ((6, 4), (2, 1))])
def test_the_stated_effect_is_found_in_four_of_five_simulated_experiments(seeds, deviations):
  effect = verdicts.Estimate(
    0.0, tuple((deviation**2 / count, count - 1) for count, deviation in zip(seeds, deviations))
  ).detectable
  rng = np.random.default_rng(1)
  a, b = (rng.normal(0, deviation, (20_000, count)) for count, deviation in zip(seeds, deviations))
  peer = stats.ttest_ind(a + effect, b, axis=1, equal_var=False)
  assert np.mean((peer.pvalue < 0.05) & (peer.statistic > 0)) == pytest.approx(0.8, abs=0.015)
  # Without an effect one in forty is confirmed by chance; Welch's approximation is a little worse for two seeds.
  null = stats.ttest_ind(a, b, axis=1, equal_var=False)
  assert np.mean((null.pvalue < 0.05) & (null.statistic > 0)) < 0.045


def test_all_parts_must_hold():
  assert verdicts.all_of(("confirmed", "confirmed")) == "confirmed"
  assert verdicts.all_of(("confirmed", "undecided")) == "undecided"
  assert verdicts.all_of(("undecided", "refuted")) == "refuted"


def test_a_share_of_seeds_has_the_exact_interval():
  """Three of three: the least probability p with p^3 = 2.5%."""
  assert verdicts.share(3, 3) == pytest.approx((0.025 ** (1 / 3), 1))
  assert verdicts.share(0, 2) == pytest.approx((0, 1 - 0.025 ** (1 / 2)))
