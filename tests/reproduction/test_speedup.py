"""The ratio of steps on runs whose accuracy is a known function of the step."""

import math

import pytest

from bn_inception.reproduction import measured, speedup


def saturating(plateau, scale, steps, every, rise=0.0):
  """plateau (1 - exp(-step / scale)) + rise where the run is annealed, its last tenth; from chance 10% on."""
  return [
    0.1 + (plateau - 0.1) * (1 - math.exp(-step / scale)) + (rise if step > 0.9 * steps else 0)
    for step in range(every, steps + 1, every)
  ]


@pytest.fixture
def write_networks(write_run):
  """Inception over 8,000 and 40,000 steps, BN-x5 over 8,000; seeds differ by a factor on the time that they take."""

  def write(seeds=(0.97, 1.0, 1.03)):
    for seed, factor in enumerate(seeds):
      for name, scale, steps, every in (
        ("inception", 8_000, 40_000, 500),
        ("bn_x5", 600, 8_000, 100),
        ("controls/inception_8000", 3_000, 8_000, 250),
      ):
        plateau = 0.6 if name == "controls/inception_8000" else 0.7
        root = write_run(
          f"cifar10_full/{name}/seed{seed}",
          saturating(plateau, scale * factor, steps, every),
          every=every,
          batch_size=32,
        )
    return measured.finished(measured.collect(root)["cifar10_full"])

  return write


def test_at_its_best_rate_bn_baseline_is_beside_the_fastest_inception_and_at_its_own_beside_the_same_length(
  write_networks, write_run
):
  for seed, factor in enumerate((0.97, 1.0, 1.03)):
    for name in ("bn_baseline", "best_rate/bn_baseline"):
      root = write_run(
        f"cifar10_full/{name}/seed{seed}", saturating(0.7, 2_000 * factor, 8_000, 100), every=100, batch_size=32
      )
  write_networks()
  experiments = measured.finished(measured.collect(root)["cifar10_full"])
  assert speedup.networks(experiments) == ["bn_baseline", "bn_x5", "best_rate/bn_baseline"]
  for name, baseline in (("bn_baseline", "inception"), ("best_rate/bn_baseline", "controls/inception_8000")):
    (point,) = speedup.curve(experiments, name, (0.8,))
    assert point.baseline == baseline


def time_to(level, plateau, scale):
  return -scale * math.log(1 - (level - 0.1) / (plateau - 0.1))


def test_the_curve_is_that_of_the_closed_form(write_networks):
  experiments = write_networks()
  assert speedup.plateau(experiments).name == "inception"
  plateau = measured.over_seeds(experiments["inception"], measured.level).mean
  assert plateau == pytest.approx(0.7 - 0.6 * math.exp(-38_000 / 8_000), abs=1e-3)
  points = speedup.curve(experiments, "bn_x5", (0.8, 0.9, 0.95, 1.0))
  # To 80% and less the short baseline is faster: its own plateau is 0.6 - 0.5 exp(-8/3) = 0.565.
  assert [point.baseline for point in points] == ["controls/inception_8000", "inception", "inception", "inception"]
  for point in points:
    of = (0.6, 3_000) if point.baseline != "inception" else (0.7, 8_000)
    expected = time_to(point.accuracy, *of) / time_to(point.accuracy, 0.7, 600)
    assert point.accuracy == pytest.approx(point.fraction * plateau)
    assert point.ratio == pytest.approx(expected, rel=0.02)
    assert point.interval[0] < expected < point.interval[1]


def test_beside_bn_baseline_is_only_the_inception_of_its_length(write_networks):
  experiments = write_networks()
  experiments["bn_baseline"] = experiments["bn_x5"]
  assert speedup.curve(experiments, "bn_x5", (0.8,))[0].baseline == "controls/inception_8000"
  assert speedup.curve(experiments, "bn_baseline", (0.8,))[0].baseline == "inception"


def test_the_spread_is_that_of_the_logarithms(write_networks):
  """Inception and BN-x5 vary over seeds by the same factors, so log steps deviate by those of log factors."""
  (point,) = speedup.curve(write_networks((0.9, 1.0, 1.1)), "bn_x5", (0.9,))
  logs = [math.log(factor) for factor in (0.9, 1.0, 1.1)]
  mean = sum(logs) / 3
  error = math.sqrt(2 * sum((value - mean) ** 2 for value in logs) / 2 / 3)
  width = 2.776 * error  # Student's t, four degrees of freedom.
  # Slower seeds end a little lower.
  assert math.log(point.interval[1] / point.interval[0]) == pytest.approx(2 * width, rel=0.1)


def test_the_spread_of_the_plateau_widens_the_interval(write_run):
  """Seeds of Inception come to all fractions of their ends at the same steps, and end at 0.49, 0.50 and 0.51.

  BN-x5 goes straight from chance, all seeds alike: d log(steps) / d level is 1 / (level - chance).
  """
  for seed, end in enumerate((0.49, 0.50, 0.51)):
    write_run(f"cifar10_full/inception/seed{seed}", [0.1] * 800 + [end] * 200, batch_size=32)
    root = write_run(
      f"cifar10_full/bn_x5/seed{seed}", [0.1 + 0.5 * step / 1000 for step in range(1, 1001)], batch_size=32
    )
  (point,) = speedup.curve(measured.collect(root)["cifar10_full"], "bn_x5", (0.9,))
  error = 0.9 * 0.01 / math.sqrt(3) / (0.45 - 0.1)
  # Student's t, two degrees of freedom; evaluations are so many that rounding to their interval adds little.
  assert math.log(point.interval[1] / point.interval[0]) == pytest.approx(2 * 4.303 * error, rel=0.02)


def test_the_plateau_of_a_third_network_is_a_third_part(write_run):
  """BN-Baseline comes to all levels at one step, BN-x5 goes straight from chance: the level moves one side."""
  for seed, end in enumerate((0.49, 0.50, 0.51)):
    write_run(f"cifar10_full/inception/seed{seed}", [end] * 1000, batch_size=32)
    write_run(f"cifar10_full/bn_baseline/seed{seed}", [0.1] * 700 + [0.9] * 300, batch_size=32)
    root = write_run(
      f"cifar10_full/bn_x5/seed{seed}", [0.1 + 0.5 * step / 1000 for step in range(1, 1001)], batch_size=32
    )
  runs = measured.collect(root)["cifar10_full"]
  sides = [(name, runs[name]) for name in ("bn_baseline", "bn_x5")]
  low, high = speedup.log_ratio(speedup.plateau(runs), *sides, fraction=0.9).interval
  assert high - low == pytest.approx(2 * 4.303 * 0.9 * 0.01 / math.sqrt(3) / (0.45 - 0.1), rel=0.02)
  one_level = speedup.plateau_of("inception", runs["inception"][:1])
  assert speedup.log_ratio(one_level, *sides) is None  # Its spread is not known.


def test_a_run_that_ends_just_above_the_level_knows_it_no_better(write_run):
  """BN-x5 goes straight from chance and ends above the plateau by less than the plateau's error, or far above."""
  widths = []
  for scale, steps in (("cifar10_full", 810), ("cifar10", 1000)):
    for seed, end in enumerate((0.45, 0.50, 0.55)):
      write_run(f"{scale}/inception/seed{seed}", [0.1] * 800 + [end] * 200, batch_size=32)
      rising = [0.1 + 0.5 * step / 1000 for step in range(1, steps + 1)]
      root = write_run(f"{scale}/bn_x5/seed{seed}", rising, batch_size=32)
    (point,) = speedup.curve(measured.collect(root)[scale], "bn_x5", (1.0,))
    widths.append(math.log(point.interval[1] / point.interval[0]))
  assert widths[0] == pytest.approx(widths[1], rel=0.1)


def test_a_baseline_counts_where_its_mean_comes_and_seeds_that_miss_count_with_their_length(write_run):
  """Inception over 20,000 steps ends at 0.49, 0.50 and 0.51, over 80,000 at 0.60: up to 0.5 the short one counts."""
  for seed, shift in enumerate((-0.01, 0, 0.01)):
    write_run(f"cifar10_full/inception/seed{seed}", [0.1] * 160 + [0.5 + shift] * 40, batch_size=32)
    write_run(f"cifar10_full/controls/inception_80000/seed{seed}", [0.1] * 500 + [0.6] * 300, batch_size=32)
    root = write_run(f"cifar10_full/bn_x5/seed{seed}", [0.1] * 19 + [0.7] * 61, batch_size=32)
  experiments = measured.collect(root)["cifar10_full"]
  below, at, above = speedup.curve(experiments, "bn_x5", (0.81, 0.5 / 0.6, 0.84))
  assert [point.baseline for point in (below, at, above)] == ["inception", "inception", "controls/inception_80000"]
  assert at.baseline_steps.values == pytest.approx((20_000, 16_100, 16_000 + 100 * 0.40 / 0.41))


def test_one_seed_has_a_ratio_but_no_interval(write_networks):
  (point,) = speedup.curve(write_networks((1.0,)), "bn_x5", (0.9,))
  assert point.ratio == pytest.approx(time_to(point.accuracy, 0.7, 8_000) / time_to(point.accuracy, 0.7, 600), rel=0.02)
  assert point.interval is None


def test_a_level_that_a_seed_never_reaches_has_no_ratio(write_run):
  for seed in range(2):
    write_run(f"cifar10/inception/seed{seed}", [0.2, 0.4, 0.5, 0.5])
    root = write_run(f"cifar10/bn_x5/seed{seed}", [0.45, 0.46] if seed else [0.45, 0.6])
  low, high = speedup.curve(measured.collect(root)["cifar10"], "bn_x5", (0.8, 1.0))
  assert low.ratio > 1 and (high.ratio, high.steps, high.interval) == (None, None, None)
  assert speedup.curve(measured.collect(root)["cifar10"], "bn_x30") == []


def test_a_baseline_that_diverged_sets_no_level(write_run):
  write_run("cifar10/inception/seed0", [0.3, 0.5])
  root = write_run("cifar10/controls/inception_100/seed0", [0.9], status="diverged")
  assert list(speedup.by_length(measured.collect(root)["cifar10"])) == ["inception"]


def test_the_plateau_is_reached_when_twice_the_steps_gain_less_than_the_seeds_spread(write_run):
  """Levels 0.50, 0.60 and 0.61 with deviations of 0.02: five times as long gained 10 points, twice as long 1."""
  for name, steps, base in (
    ("controls/inception_800", 8, 0.50),
    ("controls/inception_2000", 20, 0.60),
    ("inception", 40, 0.61),
  ):
    for seed, shift in enumerate((-0.02, 0, 0.02)):
      root = write_run(f"cifar10/{name}/seed{seed}", [base + shift] * steps, batch_size=32)
  first, second, third = speedup.lengths(measured.finished(measured.collect(root)["cifar10"]))
  assert (first.gain, first.reached) == (None, None)
  assert (second.times, second.reached) == (2.5, False) and second.gain == pytest.approx(0.10)
  assert (third.times, third.reached) == (2.0, True) and third.gain == pytest.approx(0.01)
  assert third.accuracy.deviation == pytest.approx(0.02) and third.learning_rate == 0.1


def test_steps_are_interpolated_between_evaluations(write_run):
  """From chance, 10% at step 0, straight to 30% at step 200; the level between them is reached between them."""
  root = write_run("cifar10/bn_x5/seed0", [0.3, 0.4, 0.35, 0.5])  # Every 200 steps of 32.
  (run,) = measured.collect(root)["cifar10"]["bn_x5"]
  assert [measured.steps_to(run, target) for target in (0.2, 0.3, 0.35, 0.45, 0.5, 0.51, 0.05)] == [
    pytest.approx(value) if value is not None else None for value in (100, 200, 300, 600 + 200 * 2 / 3, 800, None, 0)
  ]


def test_a_gain_over_five_times_the_length_does_not_deny_the_plateau(write_run):
  """The longer run may have been at its plateau for long."""
  for seed, end in enumerate((0.40, 0.41)):
    write_run(f"cifar10/controls/inception_2000/seed{seed}", [0.1] * 9 + [end])
    root = write_run(f"cifar10/inception/seed{seed}", [0.1] * 45 + [end + 0.2] * 5)
  _, longest = speedup.lengths(measured.finished(measured.collect(root)["cifar10"]))
  assert (longest.times, longest.reached) == (5, None) and longest.gain == pytest.approx(0.2)


def test_a_longer_run_that_ends_no_higher_shows_the_plateau(write_run):
  """And one seed of a longer run sets none."""
  for name, steps, base in (("controls/inception_2000", 10, 0.50), ("inception", 20, 0.60)):
    for seed, shift in enumerate((-0.01, 0, 0.01)):
      root = write_run(f"cifar10/{name}/seed{seed}", [base + shift] * steps)
  experiments = lambda: measured.finished(measured.collect(root)["cifar10"])
  assert speedup.plateau_reached(experiments()) is False
  write_run("cifar10/controls/inception_8000/seed0", [0.65] * 40)
  assert speedup.plateau(experiments()).name == "inception" and speedup.plateau_reached(experiments()) is False
  for seed in range(2):
    write_run(f"cifar10/controls/inception_9000/seed{seed}", [0.598] * 45)
  assert speedup.plateau(experiments()).name == "inception" and speedup.plateau_reached(experiments())


def test_seeds_that_end_higher_later_and_set_higher_levels_have_no_spread_of_the_ratio(write_run):
  """All seeds of Inception go straight up alike and stop at 0.45, 0.50 and 0.55; so does BN-x5, twice as fast.

  Seed i takes (level_i - chance) / rate. What a higher level adds to one side of the ratio it adds to the other, so
  hardly any spread is left.
  """
  for seed, end in enumerate((0.45, 0.50, 0.55)):
    rising = [min(0.1 + 0.5 * step / 1000, end) for step in range(1, 1201)]
    write_run(f"cifar10_full/inception/seed{seed}", rising, batch_size=32)
    root = write_run(
      f"cifar10_full/bn_x5/seed{seed}", [0.1 + 0.5 * step / 500 for step in range(1, 501)], batch_size=32
    )
  (point,) = speedup.curve(measured.collect(root)["cifar10_full"], "bn_x5", (1.0,))
  assert point.ratio == pytest.approx(2, rel=0.01)
  assert math.log(point.interval[1] / point.interval[0]) < 0.1  # Of 0.9, if the two were independent.
