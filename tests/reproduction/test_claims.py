"""Verdicts on hand-made runs."""

import pytest

from bn_inception.reproduction import claims, judging, measured
from bn_inception.reproduction.claims import CLAIMS
from bn_inception.reproduction.judging import STATISTICS

BY_KEY = {claim.key: claim for claim in CLAIMS}


def judge(root, key, scale="cifar10", evaluations=None):
  experiments = measured.collect(root).get(scale, {}) if root else {}
  return judging.judge(BY_KEY[key], experiments, evaluations or {})


@pytest.fixture
def write_seeds(write_run):
  """A function that writes seeds of an experiment that end at given accuracies, after 10% for the steps before."""

  def write(name, ends, steps=10, **settings):
    for seed, end in enumerate(ends):
      root = write_run(f"cifar10/{name}/seed{seed}", [0.1] * (steps - 1) + [end], **settings)
    return root

  return write


def test_the_tables_fit_together():
  assert len(BY_KEY) == len(CLAIMS) and {claim.statistic for claim in CLAIMS} == set(STATISTICS)
  assert all(claim.threshold in (0, claims.NO_WORSE) for claim in CLAIMS if claim.statistic == "level")
  assert all(claim.threshold in (1, claims.MANY) for claim in CLAIMS if claim.statistic == "steps")


@pytest.mark.parametrize(
  "a,b,verdict",
  [
    ((0.50, 0.52, 0.51), (0.40, 0.42, 0.41), "confirmed"),
    ((0.40, 0.42, 0.41), (0.50, 0.52, 0.51), "refuted"),
    ((0.40, 0.42, 0.41), (0.39, 0.41, 0.40), "undecided"),
    ((0.43, 0.45), (0.40, 0.42), "undecided"),  # 2.1 standard errors: with two seeds the quantile is 4.3.
    ((0.9,), (0.1,), "undecided"),
    ((0.9,), (0.1, 0.11, 0.12), "undecided"),
  ],
)
def test_a_higher_end_is_judged_by_welch(write_seeds, a, b, verdict):
  write_seeds("bn_x5", b)
  finding = judge(write_seeds("bn_x30", a), "x30_higher")
  assert finding.verdict == verdict and finding.experiments == ("bn_x30", "bn_x5")
  assert bool(finding.power) == (verdict == "undecided")


def test_a_higher_end_is_that_of_the_length_that_ends_highest(write_run, write_seeds):
  """BN-x5 ends lower than Inception, and higher over more steps; Inception may end highest over fewer."""
  write_seeds("inception", (0.39, 0.40, 0.41))
  write_seeds("bn_x5", (0.34, 0.35, 0.36), steps=5)
  root = write_seeds("bn_x30", (0.44, 0.45, 0.46), steps=5)
  finding = judge(root, "x5_higher")
  assert finding.verdict == "undecided" and finding.measured.endswith("it is not known that BN-x5 is at its plateau")
  write_seeds("longer/bn_x5_1600", (0.49, 0.50, 0.51), steps=8)
  finding = judge(root, "x5_higher")
  assert finding.verdict == "undecided" and finding.measured.endswith("not known that Inception is at its plateau")
  write_double(write_run, end=0.4, evaluations=20)
  finding = judge(root, "x5_higher")
  assert finding.verdict == "confirmed" and finding.experiments == ("longer/bn_x5_1600", "inception")
  assert finding.measured.startswith(
    "BN-x5 over 1,600 steps against Inception over 2,000 steps: 50.0% ± 1.0% (3 seeds) against 40.0%"
  )
  # BN-x30 against BN-x5: both over as many steps.
  assert judge(root, "x30_higher").verdict == "confirmed"
  for seed in range(3):  # A longer network that diverged is none.
    write_run(f"cifar10/longer/bn_x5_1800/seed{seed}", [0.1] * 8 + [0.9], status="diverged")
  assert judge(root, "x5_higher").experiments == ("longer/bn_x5_1600", "inception")
  write_seeds("controls/inception_1200", (0.59, 0.60, 0.61), steps=6)
  finding = judge(root, "x5_higher")
  assert finding.experiments == ("longer/bn_x5_1600", "controls/inception_1200")
  assert finding.verdict == "undecided" and finding.power.startswith("it is refuted of where BN-x5 ends here, and over")
  for seed in range(3):  # Twice as long it ends alike.
    write_run(f"cifar10/longer/bn_x5_3200/seed{seed}", [0.1] * 12 + [0.49 + seed / 100] * 4)
  finding = judge(root, "x5_higher")
  assert finding.verdict == "refuted" and finding.experiments == ("longer/bn_x5_1600", "controls/inception_1200")


def test_after_as_many_steps_bn_x5_must_be_higher_at_every_length(write_run):
  for steps, inception, bn_x5 in ((8, 0.3, 0.4), (20, 0.4, 0.5), (40, 0.5, 0.5)):
    for seed, shift in enumerate((-0.01, 0, 0.01)):
      names = (
        "inception" if steps == 40 else f"controls/inception_{200 * steps}",
        "bn_x5" if steps == 8 else f"longer/bn_x5_{200 * steps}",
      )
      for name, end in zip(names, (inception, bn_x5)):
        root = write_run(f"{'quickstart' if steps == 40 else 'cifar10'}/{name}/seed{seed}", [end + shift] * steps)
  for seed in range(3):
    write_run(f"cifar10/inception/seed{seed}", [0.5 + seed / 100] * 40)
  finding = judge(root, "x5_same_steps")
  assert finding.verdict == "confirmed" and finding.seeds == "seeds 0, 1, 2 against 0, 1, 2"
  assert finding.measured.startswith(
    "after 1,600 steps 40.0% ± 1.0% (3 seeds) against 30.0% ± 1.0% (3 seeds); difference"
  )
  assert "; after 4,000 steps 50.0%" in finding.measured and "8,000" not in finding.measured
  for seed, shift in enumerate((-0.01, 0, 0.01)):
    write_run(f"cifar10/longer/bn_x5_8000/seed{seed}", [0.515 + shift] * 40)
  assert judge(root, "x5_same_steps").verdict == "undecided"
  assert judge(root, "x5_same_steps", "quickstart").verdict == "not measured"


def test_a_length_at_which_bn_x5_failed_counts_among_those_of_as_many_steps(write_run):
  for seed, shift in enumerate((-0.01, 0, 0.01)):
    for name, steps, end in (
      ("controls/inception_1600", 8, 0.3),
      ("bn_x5", 8, 0.4),
      ("inception", 20, 0.4),
      ("longer/bn_x5_4000", 20, 0.1),
    ):
      root = write_run(f"cifar10/{name}/seed{seed}", [end + (shift if end > 0.1 else 0)] * steps)
      write_run(f"quickstart/{name}/seed{seed}", [end + shift] * steps, status="diverged" if end == 0.1 else "done")
  finding = judge(root, "x5_same_steps")
  assert finding.verdict == "refuted" and "after 4,000 steps 10.0% ± 0.0% (3 seeds) against 40.0%" in finding.measured
  finding = judge(root, "x5_same_steps", "quickstart")
  assert finding.verdict == "refuted" and "3 of 3 runs of BN-x5 over 4,000 steps diverged" in finding.measured


def test_bn_baseline_stands_beside_the_inception_of_its_length(write_run, write_seeds):
  write_seeds("inception", (0.39, 0.40, 0.41))
  for seed in range(3):
    write_run(f"cifar10/controls/inception_4000/seed{seed}", [0.1] * 17 + [0.6] * 3)
  finding = judge(write_seeds("bn_baseline", (0.49, 0.50, 0.51)), "baseline_higher")
  assert finding.verdict == "confirmed" and finding.experiments == ("bn_baseline", "inception")


def test_a_verdict_names_its_seeds_and_what_they_could_have_shown(write_seeds):
  """Deviation 0.01 on each side: the error is 0.00816, the interval 2.776 times as much."""
  write_seeds("inception", (0.39, 0.40, 0.41))
  finding = judge(write_seeds("bn_x5", (0.40, 0.41, 0.42)), "x5_higher")
  assert finding.measured == (
    "BN-x5 over 2,000 steps against Inception over 2,000 steps: 41.0% ± 1.0% (3 seeds) against 40.0% ± 1.0% (3 seeds); "
    "difference +1.0 points, 95% interval -1.3 to +3.3; it is not known that Inception is at its plateau"
  )
  assert finding.seeds == "seeds 0, 1, 2 against 0, 1, 2"
  assert finding.power.startswith("these seeds could have shown it of a true difference of +3.")
  one = judge(write_seeds("bn_x30", (0.9,)), "x30_higher")
  assert one.verdict == "undecided" and one.power.startswith("one seed a side, or")


@pytest.mark.parametrize(
  "a,verdict",
  [
    ((0.398, 0.400, 0.402), "confirmed"),  # -0.2 to +0.2 points and a bit.
    ((0.36, 0.40, 0.41), "undecided"),  # What was measured is worse, and the seeds cannot tell by how much.
    ((0.37, 0.40, 0.46), "undecided"),  # What was measured is better, and the seeds cannot tell that it is not worse.
    ((0.37, 0.372, 0.371), "refuted"),
  ],
)
def test_no_worse_needs_the_power_to_tell(write_seeds, a, verdict):
  write_seeds("bn_baseline", (0.399, 0.400, 0.401))
  finding = judge(write_seeds("alone/no_lrn", a), "lrn")
  assert finding.verdict == verdict and "(margin 1)" in finding.measured


def test_the_end_is_a_mean_and_no_maximum(write_run):
  """In the last tenth of 40 evaluations are four; the highest is before."""
  root = write_run("cifar10/bn_x5/seed0", [0.1] * 35 + [0.9] + [0.4, 0.5, 0.4, 0.5])
  assert measured.level(measured.collect(root)["cifar10"]["bn_x5"][0]) == pytest.approx(0.45)


def write_speed(write_run, x5=(2, 2, 2), inception=(20, 21, 22), steps=30):
  """Inception comes to 50% at given evaluations, BN-x5 to more at others; 200 steps of 32 between evaluations."""
  for name, at, high in (("inception", inception, 0.5), ("bn_x5", x5, 0.6)):
    for seed, place in enumerate(at):
      low = [0.1 + 0.39 * number / place for number in range(1, place)]
      root = write_run(f"cifar10/{name}/seed{seed}", (low + [high] * steps)[:steps])
  return root


def write_double(write_run, end=0.5, evaluations=60, scale="cifar10"):
  """Inception over twice its steps, that ends as high within the spread of its seeds: its plateau is reached."""
  for seed, shift in enumerate((-0.002, -0.001, 0.001)):
    top1 = [0.1] * (evaluations - evaluations // 5) + [end + shift] * (evaluations // 5)
    root = write_run(f"{scale}/controls/inception_{200 * evaluations}/seed{seed}", top1)
  return root


def test_many_times_fewer_steps(write_run):
  write_speed(write_run)
  finding = judge(write_double(write_run), "speedup")
  assert finding.verdict == "confirmed" and finding.seeds == "seeds 0, 1, 2 against 0, 1, 2"
  assert "Inception took 4,200 ± 200 (3 seeds) to its own end" in finding.measured
  assert "(more than 2)" in finding.measured and "is at its plateau" not in finding.measured


@pytest.mark.parametrize("x5,text", [((2, 2, 2), "confirmed"), ((18, 18, 19), "refuted")])
def test_without_the_plateau_nothing_is_known_of_the_steps_to_it(write_run, x5, text):
  """Inception may end higher over more steps, and the ratio to there may be another."""
  root = write_speed(write_run, x5=x5)
  finding = judge(root, "speedup")
  assert finding.verdict == "undecided" and "not known that Inception is at its plateau" in finding.measured
  assert finding.power == f"it is {text} of where Inception ends here, and over more steps Inception may end higher"
  for seed in range(3):  # Half as long it ended ten points lower.
    write_run(f"cifar10/controls/inception_3000/seed{seed}", [0.1] * 13 + [0.4] * 2)
  finding = judge(root, "speedup")
  assert finding.verdict == "undecided" and "Inception still gains by length" in finding.measured


def test_twice_as_fast_is_not_many_times(write_run):
  """The ratio is 1.9 to 2.1: faster, but not surely by more than twice."""
  write_speed(write_run, x5=(11, 12, 13), inception=(20, 21, 22))
  finding = judge(write_double(write_run), "speedup")
  assert finding.verdict == "undecided" and "these seeds could have shown it of a true ratio of 2." in finding.power
  assert judge(write_speed_other(write_run), "speedup", "quickstart").verdict == "refuted"


def write_speed_other(write_run):
  for seed, place in enumerate((19, 20, 21)):
    write_run(f"quickstart/inception/seed{seed}", [0.1] * (place - 1) + [0.5] * (31 - place))
    write_run(f"quickstart/bn_x5/seed{seed}", [0.1] * (place - 1) + [0.6] * (31 - place))
  return write_double(write_run, scale="quickstart")


def test_the_fastest_control_is_what_counts(write_run):
  """Inception annealed over fewer steps comes to the same accuracy: the ratio is against that."""
  write_speed(write_run)
  for seed, place in enumerate((4, 4, 5)):
    root = write_run(f"cifar10/controls/inception_2000/seed{seed}", [0.1] * (place - 1) + [0.51] * (10 - place))
  finding = judge(root, "speedup")
  assert finding.experiments[1] == "controls/inception_2000" and "Inception over 2,000 steps took" in finding.measured
  assert finding.verdict == "undecided"
  for seed in range(3):  # BN alone is what differs: beside it is Inception with the same length.
    write_run(f"cifar10/bn_baseline/seed{seed}", [0.1] * 9 + [0.6] * 21)
  finding = judge(root, "bn_alone")
  assert finding.verdict == "confirmed" and finding.experiments == ("bn_baseline", "inception")


def test_of_two_lengths_that_end_alike_the_shorter_is_the_baseline(write_run):
  """Inception over twice its steps ends 0.2 points higher, within the spread: it would only double the ratio."""
  for seed, shift in enumerate((-0.005, 0, 0.005)):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 12 + [0.4 + shift] * 8)
    write_run(f"cifar10/controls/inception_8000/seed{seed}", [0.1] * 30 + [0.402 + shift] * 10)
    root = write_run(f"cifar10/bn_x5/seed{seed}", [0.1, 0.1, 0.1] + [0.5] * 5)
  finding = judge(root, "speedup")
  assert finding.verdict == "confirmed" and finding.experiments == ("bn_x5", "inception")
  assert "BN-x5 took 750 ± 0 (3 seeds) to 40.0%; Inception took 2,600 ± 0 (3 seeds)" in finding.measured


def test_longer_baselines_that_end_lower_say_nothing_of_the_plateau(write_run):
  """Their rate may be a bad one. One with a seed at chance is no baseline."""
  for seed, shift in enumerate((-0.005, 0, 0.005)):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 12 + [0.4 + shift] * 8)
    write_run(f"cifar10/controls/inception_2000/seed{seed}", [0.1] * 8 + [0.3 + shift] * 2)
    root = write_run(f"cifar10/bn_x5/seed{seed}", [0.1, 0.1, 0.1] + [0.5] * 5)
  assert "Inception still gains by length" in judge(root, "speedup").measured
  for seed, end in enumerate((0.1, 0.45)):
    write_run(f"cifar10/controls/inception_8000/seed{seed}", [0.1] * 30 + [end] * 10)
  assert "Inception still gains by length" in judge(root, "speedup").measured
  for seed in range(2):
    write_run(f"cifar10/controls/inception_10000/seed{seed}", [0.1] * 30 + [0.35] * 20)
  for key in ("speedup", "x5_higher"):
    finding = judge(root, key)
    assert finding.verdict == "undecided" and "it is not known that Inception is at its plateau" in finding.measured


def test_no_length_of_bn_x5_comes_there(write_run):
  """The row is of the length that came nearest: the one with the most seeds there, then the longest."""
  for seed in range(3):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 26 + [0.4] * 4)
    write_run(f"cifar10/bn_x5/seed{seed}", [0.1, 0.1, 0.39])
    root = write_run(f"cifar10/longer/bn_x5_1600/seed{seed}", [0.1] * 5 + [0.39] * 3)
  write_double(write_run, end=0.4)
  finding = judge(root, "speedup")
  assert finding.experiments[0] == "longer/bn_x5_1600" and "in 0 of 3 runs of 1,600 steps" in finding.measured
  for seed in range(3):
    write_run(f"cifar10/longer/bn_x5_1200/seed{seed}", [0.1] * 5 + [0.395 + 0.01 * seed])
  assert "BN-x5 over 1,200 steps came to 40.0% in 2 of 3 runs" in judge(root, "speedup").measured


def test_one_seed_a_side_is_fast_and_undecided(write_run):
  finding = judge(write_speed(write_run, x5=(2,), inception=(20,)), "speedup")
  assert finding.verdict == "undecided" and "times fewer" in finding.measured and finding.seeds == "seed 0 against 0"


def test_a_network_that_never_gets_there(write_run, write_seeds):
  """In runs as long as Inception's it is not faster, whatever its accuracy; shorter runs tell nothing."""
  write_seeds("inception", (0.49, 0.50, 0.51))
  write_double(write_run, evaluations=20)
  write_seeds("bn_x5", (0.19, 0.20, 0.21))
  root = write_seeds("bn_x30", (0.19, 0.20, 0.21), steps=4)
  finding = judge(root, "speedup")
  assert finding.verdict == "refuted" and "BN-x5 came to 50.0% in 0 of 3 runs of 2,000 steps" in finding.measured
  finding = judge(root, "x30_speedup")
  assert finding.verdict == "undecided" and "in 0 of 3 runs of 800 steps" in finding.measured
  assert finding.power.startswith("of a run that did not come to the level")


def test_bn_x5_counts_at_the_length_that_is_fastest(write_run):
  """Its own runs end before the plateau. Longer ones come to it, and the longest later than those."""
  for seed in range(3):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 26 + [0.4] * 4)
    write_run(f"cifar10/bn_x5/seed{seed}", [0.1, 0.1, 0.39])
    write_run(f"cifar10/longer/bn_x5_1600/seed{seed}", [0.1] * 5 + [0.45] * 3)
  root = write_double(write_run, end=0.4)
  finding = judge(root, "speedup")
  assert finding.verdict == "confirmed" and finding.experiments == ("longer/bn_x5_1600", "inception")
  assert "BN-x5 over 1,600 steps took" in finding.measured
  for seed in range(3):
    write_run(f"cifar10/longer/bn_x5_2000/seed{seed}", [0.1] * 7 + [0.45] * 3)
  assert judge(root, "speedup").experiments == ("longer/bn_x5_1600", "inception")


def test_what_learns_and_collapses_does_not_train(write_run):
  for seed in range(3):
    write_run(f"cifar10/inception_x5/seed{seed}", [0.2] + [0.1] * 9)
    root = write_run(f"cifar10/bn_x5_sigmoid/seed{seed}", [0.2] + [0.1] * 9)
  assert judge(root, "sigmoid_trains").verdict == "refuted" and judge(root, "x5_breaks").verdict == "confirmed"


def test_a_failing_run_that_was_cut_stands_beside_as_much_of_inception(write_run):
  for seed in range(2):
    write_run(f"cifar10/inception/seed{seed}", [0.3] * 4 + [0.6] * 36)
    root = write_run(f"cifar10/inception_x5/seed{seed}", [0.2] * 4)
  finding = judge(root, "x5_breaks")
  assert "came to 20.0% ± 0.0% (2 seeds) in 800 steps" in finding.measured
  assert "Inception itself came to 30.0% ± 0.0% (2 seeds) in as many" in finding.measured


def test_sigmoids_that_were_not_recorded_or_have_no_spread_are_not_measured(write_run):
  for seed in range(2):
    for network in ("plain", "bn"):
      write_run(f"mnist/mnist_{network}/seed{seed}", [0.2, 0.9])
      flat = {0: [(1.0, 1.0, 1.0), (0.0, 1.0, 2.0)]}
      root = write_run(f"quickstart/mnist_{network}/seed{seed}", [0.2, 0.9], units=flat)
  for scale in ("mnist", "quickstart"):
    for key in ("mnist_mean", "mnist_variance"):
      assert judge(root, key, scale).verdict == "not measured"


def test_what_never_got_there_may_have_taken_any_time(write_run):
  """Four of five seeds are far ahead; the fifth never comes to 40%. Its run was short: that alone decides nothing."""
  for seed in range(5):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 27 + [0.4] * 3)
    root = write_run(f"cifar10/bn_x5/seed{seed}", [0.1, 0.1, 0.41 if seed else 0.39])
  write_double(write_run, end=0.4)
  finding = judge(root, "speedup")
  assert finding.verdict == "undecided" and "in 4 of 5 runs" in finding.measured


def test_seeds_that_miss_the_target_took_at_least_their_length(write_run):
  """BN-Baseline gets there at the end of two of three seeds: however long the third takes, BN-x5 is faster."""
  for seed in range(3):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 9 + [0.4])
    write_run(f"cifar10/bn_x5/seed{seed}", [0.41] * 10)
    root = write_run(f"cifar10/bn_baseline/seed{seed}", [0.1] * 9 + ([0.41] if seed else [0.39]))
  assert judge(root, "changes_faster").verdict == "confirmed"


def test_diverged_runs_never_win(write_seeds, write_run):
  write_seeds("inception", (0.2, 0.21))
  write_seeds("bn_x5", (0.3, 0.31))
  root = write_seeds("bn_x30", (0.9, 0.91), status="diverged")
  for key in ("x30_higher", "x30_speedup", "x30_both"):
    finding = judge(root, key)
    assert finding.verdict == "refuted" and "2 of 2 runs of BN-x30 diverged" in finding.measured
  assert judge(root, "x30_slower").verdict == "confirmed"
  assert judge(root, "x30_trains").verdict == "refuted"
  write_run("cifar10/bn_x30/seed2", [0.1] * 9 + [0.9])
  finding = judge(root, "x30_higher")
  assert finding.verdict == "undecided" and "2 of 3 runs of BN-x30 diverged" in finding.measured
  assert judge(root, "x30_trains").verdict == "undecided"


def test_a_baseline_of_which_a_seed_diverged_decides_neither_steps_nor_ends(write_seeds, write_run):
  """Inception over fewer steps does not stand in for it without a word."""
  write_seeds("controls/inception_1000", (0.3, 0.31), steps=5)
  write_seeds("inception", (0.4, 0.41))
  write_run("cifar10/inception/seed2", [0.1] * 3, status="diverged", num_steps=1000)
  root = write_seeds("bn_x5", (0.5, 0.51))
  for key in ("speedup", "x5_higher"):
    finding = judge(root, key)
    assert finding.verdict == "undecided" and finding.measured == "1 of 3 runs of Inception diverged"


def test_one_seed_that_diverged_is_no_verdict_on_the_network(write_seeds):
  write_seeds("bn_x5", (0.3, 0.31))
  finding = judge(write_seeds("bn_x30", (0.9,), status="diverged"), "x30_higher")
  assert finding.verdict == "undecided" and finding.power


def test_unfinished_runs_are_not_measured(write_run, write_seeds):
  write_seeds("inception", (0.5, 0.51))
  root = write_run("cifar10/bn_x5/seed0", [0.1, 0.9], status="running")
  finding = judge(root, "x5_higher")
  assert finding.verdict == "not measured" and finding.measured == "no finished run of BN-x5"
  assert {judge(None, key).verdict for key in BY_KEY} == {"not measured"}


@pytest.mark.parametrize(
  "top1,sigmoid,with_bn",
  [
    ([0.10, 0.11], "confirmed", "refuted"),
    ([0.10, 0.128], "confirmed", "refuted"),  # 3 deviations of 1,000 guesses.
    ([0.10, 0.13], "refuted", "confirmed"),
    ([0.10, 0.5], "refuted", "confirmed"),
  ],
)
def test_chance(write_run, top1, sigmoid, with_bn):
  for name in ("inception_sigmoid", "bn_x5_sigmoid"):
    root = write_run(f"cifar10/{name}/seed0", top1)
  assert judge(root, "sigmoid_fails").verdict == judge(root, "sigmoid_trains").verdict == "undecided"  # One seed.
  for name in ("inception_sigmoid", "bn_x5_sigmoid"):
    write_run(f"cifar10/{name}/seed1", top1)
  finding = judge(root, "sigmoid_fails")
  assert finding.verdict == sigmoid and judge(root, "sigmoid_trains").verdict == with_bn
  assert finding.seeds == "seeds 0, 1" and "(95% interval)" in finding.measured


@pytest.mark.parametrize(
  "status,top1,verdict,text",
  [
    ("diverged", [], "confirmed", "2 of 2 runs diverged: loss or parameters not finite at step 0, 0"),
    (
      "done",
      [0.1, 0.4],
      "refuted",
      "2 of 2 runs stayed finite and came to 40.0% ± 0.0% (2 seeds) in 400 steps; chance",
    ),
    ("done", [0.1, 0.1], "confirmed", "(2 seeds) in 400 steps; chance is 10.0%; 2 of them ended at chance"),
  ],
)
def test_divergence(write_run, status, top1, verdict, text):
  for seed in range(2):
    root = write_run(f"cifar10/inception_x5/seed{seed}", top1, status=status)
  finding = judge(root, "x5_breaks")
  assert finding.verdict == verdict and text in finding.measured


def test_seeds_that_disagree_on_breaking_decide_nothing(write_run):
  write_run("cifar10/inception/seed0", [0.1, 0.3])
  write_run("cifar10/inception_x5/seed0", [0.1, 0.1])
  root = write_run("cifar10/inception_x5/seed1", [0.1, 0.2])
  finding = judge(root, "x5_breaks")
  assert finding.verdict == "undecided" and "1 of them ended at chance" in finding.measured
  assert (
    "Inception itself came to 30.0% (one seed) in as many" in finding.measured and finding.power == "the seeds disagree"
  )


def test_slower_at_first_looks_at_the_first_fifth(write_run):
  for seed in range(2):
    shift = seed / 200
    write_run(f"cifar10/bn_x5/seed{seed}", [0.3 + shift, 0.4] + [0.5 + shift] * 8)
    root = write_run(f"cifar10/bn_x30/seed{seed}", [0.1 + shift, 0.2] + [0.9 + shift] * 8)
  finding = judge(root, "x30_slower")
  assert finding.verdict == "confirmed" and "15.1%" in finding.measured and "35.1%" in finding.measured
  assert judge(root, "x30_higher").verdict == "confirmed"


def test_sigmoid_above_relu_is_the_opposite_of_the_paper(write_seeds):
  write_seeds("bn_x5", (0.41, 0.40, 0.42))
  root = write_seeds("bn_x5_sigmoid", (0.48, 0.47, 0.49))
  assert judge(root, "sigmoid_trains").verdict == "confirmed"
  assert judge(root, "sigmoid_lower").verdict == "refuted"


def test_bn_x30_must_be_both_higher_and_sooner(write_run):
  for seed, shift in enumerate((-0.005, 0, 0.005)):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 19 + [0.4 + shift] * 11)
    write_run(f"cifar10/bn_x30/seed{seed}", [0.1] * 4 + [0.5 + shift] * 5)
    write_run(f"quickstart/inception/seed{seed}", [0.1] * 9 + [0.4 + shift])
    write_run(f"quickstart/bn_x30/seed{seed}", [0.1] * 27 + [0.5 + shift] * 3)
  write_double(write_run, end=0.4)
  root = write_double(write_run, end=0.4, evaluations=20, scale="quickstart")
  finding = judge(root, "x30_both")
  assert finding.verdict == "confirmed"
  assert "50.0% ± 0.5% (3 seeds) against 40.0% ± 0.5% (3 seeds); difference +10.0 points" in finding.measured
  assert "BN-x30 took 950 ± 2 (3 seeds) to 40.0%; Inception took 4,000 ± 0 (3 seeds)" in finding.measured
  assert judge(root, "x30_both", "quickstart").verdict == "refuted"  # Higher, but later than Inception.


def test_changes_stand_beside_as_much_of_a_longer_baseline(write_run):
  """At full scale BN-Baseline has five times the steps of the ablation."""
  for seed, shift in enumerate((0, 0.01)):
    write_run(f"imagenet/bn_baseline/seed{seed}", [0.2, 0.3 + shift, 0.8, 0.9])
    root = write_run(f"imagenet/alone/weight_decay/seed{seed}", [0.3, 0.5 + shift])
  finding = judge(root, "weight_decay", "imagenet")
  assert finding.verdict == "confirmed" and "50.5% ± 0.7% (2 seeds) against 30.5% ± 0.7% (2 seeds)" in finding.measured


def test_without_dropout_the_steps_are_those_to_the_plateau_of_bn_baseline(write_run):
  for seed in range(2):
    write_run(f"cifar10/bn_baseline/seed{seed}", [0.1] * 27 + [0.5] * 3)
    root = write_run(f"cifar10/alone/no_dropout/seed{seed}", [0.1] * (4 + seed) + [0.6] * 25, num_steps=3000)
  finding = judge(root, "dropout_faster")
  assert finding.verdict == "confirmed"
  assert "BN-Baseline took 5,600 ± 0 (2 seeds) to its own end" in finding.measured


def test_larger_initial_weights(write_run):
  for member, (factor, top1) in enumerate(((1.0, 0.500), (1.0, 0.501), (1.5, 0.5005), (1.5, 0.502))):
    root = write_run(f"cifar10/ensemble/member{member}", [0.1, top1], model={"name": "inception", "init_scale": factor})
  finding = judge(root, "initialization")
  assert finding.verdict == "confirmed" and finding.seeds == "seeds 2, 3 against 0, 1"
  assert "weights 1.5 times as large: 50.1% ± 0.1% (2 seeds) against 50.0%" in finding.measured
  assert "differ in dropout" in finding.measured
  root = write_run(
    "cifar10/ensemble/member4", [0.1], status="diverged", num_steps=200, model={"name": "inception", "init_scale": 1.5}
  )
  assert judge(root, "initialization").verdict == "undecided"


def evaluation(crops, networks, top1_error, top5_error=0.0):
  return (
    {"crops": crops, "networks": [{}] * networks, "statistics": "running"},
    {"top1_error": top1_error, "top5_error": top5_error, "count": 10_000},
  )


def test_crops_and_ensemble():
  found = {f"member{n}_1crop_running": evaluation(1, 1, 0.30 + n / 100) for n in range(3)}
  found |= {f"member{n}_10crop_running": evaluation(10, 1, 0.28 + n / 100 + n % 2 / 1000) for n in range(3)}
  found |= {"ensemble_1crop_running": evaluation(1, 3, 0.29), "ensemble_10crop_running": evaluation(10, 3, 0.25)}
  population = evaluation(1, 3, 0.01)
  population[0]["statistics"] = "population"
  found["ensemble_1crop_population"] = population

  crops, ensemble = (judge(None, key, evaluations=found) for key in ("crops", "ensemble"))
  # Networks differ by a point, their gains by a tenth of it.
  assert crops.verdict == "confirmed" and "31.0% to 29.0%" in crops.measured and crops.seeds == "networks 0, 1, 2"
  assert ensemble.verdict == "confirmed" and "29.0% to 25.0% top-1 on 10,000 images" in ensemble.measured
  assert "the best of the 3 has 28.0%" in ensemble.measured
  # 1.3 points are 2.03 standard errors of the difference of two shares of 10,000 images, 1.2 points 1.88.
  for error, verdict in ((0.2773, "confirmed"), (0.2783, "undecided"), (0.31, "refuted")):
    found["ensemble_10crop_running"][1]["top1_error"] = error
    assert judge(None, "ensemble", evaluations=found).verdict == verdict
  # Gains of 2, -1.4 and 2 points.
  found["member1_10crop_running"][1]["top1_error"] = 0.324
  assert judge(None, "crops", evaluations=found).verdict == "undecided"
  del found["member1_10crop_running"]  # Not of the same networks.
  assert judge(None, "crops", evaluations=found).verdict == "not measured"


@pytest.mark.parametrize(
  "top5_error,verdicts_",
  [
    (0.035, ("confirmed", "confirmed")),
    (0.049, ("confirmed", "undecided")),  # 5.1% of raters is known to 1.1 points.
    (0.059, ("undecided", "undecided")),
    (0.07, ("refuted", "refuted")),
  ],
)
def test_best_published_and_human_raters_by_the_binomial_error(top5_error, verdicts_):
  found = {
    "ensemble_144crop_running": evaluation(144, 6, 0.2, top5_error),
    "ensemble_1crop_running": evaluation(1, 6, 0.2, 0.9),
    "member0_144crop_running": evaluation(144, 1, 0.2, 0.9),
  }
  for _, metrics in found.values():
    metrics["count"] = 50_000
  findings = [judge(None, key, evaluations=found) for key in claims.IMAGENET]
  assert tuple(finding.verdict for finding in findings) == verdicts_
  assert all("144 crops on 50,000 images" in finding.measured for finding in findings)


def test_what_the_paper_says_nothing_of_is_shown_with_its_interval(write_seeds):
  """Deviation 0.01 on each side: the error is 0.00816, the interval 2.776 times as much."""
  write_seeds("precision/float32", (0.50, 0.51, 0.52))
  finding = judge(write_seeds("precision/bfloat16", (0.49, 0.50, 0.51)), "precision")
  assert finding.verdict == "shown" and not finding.power
  assert finding.measured.endswith("difference -1.0 points, 95% interval -3.3 to +1.3")
  assert judge(write_seeds("bn_x5", (0.5,)), "precision", scale="mnist").verdict == "not measured"


def test_networks_at_the_best_rates_of_their_sweeps_are_shown_beside_inceptions_as_many_steps(write_seeds):
  write_seeds("inception", (0.60, 0.61, 0.62))
  write_seeds("bn_x5", (0.50, 0.51, 0.52))
  write_seeds("controls/inception_8000", (0.40, 0.41, 0.42))
  write_seeds("best_rate/bn_baseline", (0.49, 0.50, 0.51))
  root = write_seeds("best_rate/bn_x5", (0.53, 0.54, 0.55))
  for key, experiments, points in (
    ("best_rate", ("best_rate/bn_x5", "bn_x5"), 3.0),
    ("best_rates_x5", ("best_rate/bn_x5", "controls/inception_8000"), 13.0),
    ("best_rates_baseline", ("best_rate/bn_baseline", "controls/inception_8000"), 9.0),
  ):
    finding = judge(root, key)
    assert (finding.verdict, finding.experiments, finding.power) == ("shown", experiments, "")
    assert f"difference {points:+.1f} points" in finding.measured and finding.seeds == "seeds 0, 1, 2 against 0, 1, 2"


def test_what_the_paper_does_not_claim_is_shown(write_run):
  write_run("cifar10/bn_x5/seed0", [0.1, 0.5], population=0.504)
  root = write_run("cifar10/bn_x30/seed0", [0.1, 0.5], population=0.52)
  finding = judge(root, "population")
  assert finding.verdict == "shown" and "+1.2 points in top-1 on average, 2.0 apart at most" in finding.measured
  assert finding.experiments == ("bn_x30", "bn_x5")


def test_mnist(write_run):
  still, wandering = [(-1, 0, 1), (-1, 0.2, 1)] * 2, [(-1, 0, 1), (1, 2, 3), (2, 4, 6), (3, 4, 5)]
  for seed, shift in enumerate((0, 0.01)):
    less = [(low, middle * (1 + shift), high) for low, middle, high in still]
    more = [(low, middle * (1 + shift), high) for low, middle, high in wandering]
    write_run(f"mnist/mnist_plain/seed{seed}", [0.2, 0.7, 0.8, 0.9 + shift], units={0: more, 1: less})
    root = write_run(f"mnist/mnist_bn/seed{seed}", [0.8, 0.92, 0.9, 0.95 + shift], units={0: less, 1: less})
  higher, faster, mean = (judge(root, f"mnist_{key}", "mnist") for key in ("higher", "faster", "mean"))
  assert higher.verdict == "confirmed"  # 5 points are 7 errors: of two degrees of freedom the quantile is 4.3.
  assert "the network with BN took" in faster.measured
  assert "the network without took 400 ± 0 (2 seeds)" in faster.measured
  # Without BN one unit's median wanders from 0 to 4, over mean distances of 2.5; all others from 0 to 0.2, over 2.
  assert mean.verdict == "confirmed" and mean.seeds == "seeds 0, 1 against 0, 1"
  assert "times 0.10 ± 0.00 (2 seeds), without BN times 0.40 ± 0.00 (2 seeds)" in mean.measured
  assert "ratio 4.00, 95% interval" in mean.measured
  assert judge(root, "mnist_low_higher", "mnist").verdict == "not measured"


@pytest.mark.parametrize("plain,bn,verdict", [(3, 2, "confirmed"), (2, 3, "refuted")])
def test_the_spread_of_a_sigmoids_input_is_judged_by_how_many_fold_it_changes(write_run, plain, bn, verdict):
  """Whatever its unit: the distances of the network with BN are a hundred times as large."""
  for seed, shift in enumerate((0, 0.01)):
    for network, factor, unit in (("plain", plain + shift, 1), ("bn", bn + shift, 100)):
      series = [(-unit, 0, unit), (-unit * factor, 0, unit * factor)]
      root = write_run(f"mnist/mnist_{network}/seed{seed}", [0.2, 0.9], units={0: series})
  finding = judge(root, "mnist_variance", "mnist")
  assert finding.verdict == verdict
  assert f"by a factor of {bn}.0" in finding.measured and f"ratio {plain / bn:.2f}" in finding.measured


def test_sigmoids_that_were_recorded_once_tell_of_no_change(write_run):
  for seed in range(2):
    for network in ("plain", "bn"):
      root = write_run(f"mnist/mnist_{network}/seed{seed}", [0.9], units={0: [(-1, 0, 1)]})
  assert judge(root, "mnist_mean", "mnist").measured.startswith("a unit that never moved")
  assert judge(root, "mnist_variance", "mnist").verdict == "not measured"


def test_an_mnist_network_that_diverged(write_run):
  level = [(-1, 0, 1)] * 2
  for seed in range(2):
    write_run(f"mnist/mnist_plain/seed{seed}", [], status="diverged")
    root = write_run(f"mnist/mnist_bn/seed{seed}", [0.2, 0.9], units={0: level})
  higher, faster, mean = (judge(root, f"mnist_{key}", "mnist") for key in ("higher", "faster", "mean"))
  assert higher.verdict == "confirmed" and "2 of 2 runs of the network without diverged" in higher.measured
  assert faster.verdict == "confirmed" and mean.verdict == "not measured"
