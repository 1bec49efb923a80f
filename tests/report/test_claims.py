"""Verdicts on hand-made runs."""

import pytest

from bn_inception.report import claims, measured
from bn_inception.report.measured import Spread

COMMAND = {"figure3": "make 3", "figure4": "make 4", "ablation": "make a"}


def verdicts(root, scale="cifar10", evaluations=None):
  rows = claims.inception(measured.collect(root).get(scale, {}), evaluations or {}, COMMAND)
  return {row.claim: row for row in rows}


def find(rows, words):
  (row,) = (row for claim, row in rows.items() if words in claim)
  return row


@pytest.mark.parametrize("a,b,verdict", [
    ((0.5,), (0.4,), "confirmed"), ((0.4,), (0.5,), "refuted"), ((0.5,), (0.5,), "undecided"),
    ((0.50, 0.52), (0.40, 0.42), "confirmed"),  # 0.1 apart, standard error of the difference 0.014.
    ((0.40, 0.42), (0.38, 0.40), "undecided"),  # 1.4 standard errors.
    ((0.40, 0.42), (0.50, 0.52), "refuted")])
def test_greater_asks_for_two_standard_errors(a, b, verdict):
  assert claims.greater(Spread(a), Spread(b)) == verdict


def test_a_single_run_varies_as_those_it_is_compared_with():
  # Deviation 0.01; errors 0.01 of the one and 0.01 / sqrt(3) of the three: 0.0115 of the difference.
  three = Spread((0.39, 0.40, 0.41))
  assert claims.greater(Spread((0.424,)), three) == "confirmed"
  assert claims.greater(Spread((0.422,)), three) == "undecided"
  assert claims.greater(three, Spread((0.422,))) == "undecided"
  assert claims.greater(three, Spread((0.424,))) == "refuted"


def test_no_value_is_known_better_than_its_resolution():
  # 0.01 each: 0.0141 of the difference of two, 0.0082 of that of two means of three.
  assert claims.greater(Spread((0.43,)), Spread((0.40,)), 0.01) == "confirmed"
  assert claims.greater(Spread((0.428,)), Spread((0.40,)), 0.01) == "undecided"
  assert claims.greater(Spread((0.417,) * 3), Spread((0.40,) * 3), 0.01) == "confirmed"
  assert claims.greater(Spread((0.416,) * 3), Spread((0.40,) * 3), 0.01) == "undecided"


def test_two_single_runs_must_differ_by_more_than_the_evaluation_split_can_tell(write_run):
  """At 50% of 1,000 examples the deviation is 1.58%, that of a difference 2.24%."""
  for name, top1 in (("inception", 0.5), ("bn_baseline", 0.54), ("bn_x5", 0.55)):
    root = write_run(f"cifar10/{name}/seed0", [0.1, top1])
  rows = verdicts(root)
  assert find(rows, "BN-Baseline reaches a higher").verdict == "undecided"
  assert find(rows, "BN-x5 beats").verdict == "confirmed"


def test_speed_is_counted_to_the_mean_maximum_of_inception(write_run):
  for seed, top1 in enumerate(([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.42])):
    write_run(f"cifar10/inception/seed{seed}", top1)
  for seed, top1 in enumerate(([0.3, 0.45, 0.5, 0.5], [0.411, 0.45, 0.5, 0.6])):
    root = write_run(f"cifar10/bn_x5/seed{seed}", top1)
  row = find(verdicts(root), "many times fewer")
  # 41%: after 400 and 200 steps of 32; Inception's own maxima are after 800 each. 800 / 300.
  assert "BN-x5 took 300 ± 141 (2 seeds) to 41.0%" in row.measured
  assert "Inception took 800 ± 0 (2 seeds) to its maximum" in row.measured
  assert "2.7 times fewer" in row.measured and row.verdict == "confirmed" and row.command == "make 3"
  assert "Inception was still improving at its end" in row.measured
  assert find(verdicts(root), "BN-x5 beats").verdict == "confirmed"
  assert find(verdicts(root), "BN alone").verdict == "not measured"


def test_a_variant_that_never_gets_there_refutes(write_run):
  write_run("cifar10/inception/seed0", [0.1, 0.5])
  root = write_run("cifar10/bn_x5/seed0", [0.1, 0.2])
  row = find(verdicts(root), "many times fewer")
  assert row.verdict == "refuted" and "in 0 of 1 runs" in row.measured


def test_one_seed_that_misses_the_target_decides_nothing(write_run):
  """BN-Baseline comes to 40% at once in two of three seeds, and to 39% in the third; Inception after 10 evaluations."""
  for seed in range(3):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 9 + [0.4])
    write_run(f"cifar10/bn_x5/seed{seed}", [0.1] * 4 + [0.41] * 6)
    root = write_run(f"cifar10/bn_baseline/seed{seed}", [0.41] * 10 if seed else [0.39] * 10)
  rows = verdicts(root)
  alone = find(rows, "BN alone")
  assert alone.verdict == "undecided" and "BN-Baseline came to 40.0% in 2 of 3 runs" in alone.measured
  assert find(rows, "speed BN up further").verdict == "undecided"


def test_seeds_that_miss_the_target_took_at_least_their_length(write_run):
  """The baseline gets there at the end of two of three seeds: however long the third takes, BN-x5 is faster."""
  for seed in range(3):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 9 + [0.4])
    write_run(f"cifar10/bn_x5/seed{seed}", [0.41] * 10)
    root = write_run(f"cifar10/bn_baseline/seed{seed}", [0.1] * 9 + ([0.41] if seed else [0.39]))
  assert find(verdicts(root), "speed BN up further").verdict == "confirmed"


def test_what_never_got_there_may_have_taken_any_time(write_run):
  """Four of five seeds are far ahead, more than two standard errors; the fifth never comes to 40%."""
  for seed in range(5):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 9 + [0.4])
    root = write_run(f"cifar10/bn_x5/seed{seed}", [0.41 if seed else 0.39] * 10)
  assert find(verdicts(root), "many times fewer").verdict == "undecided"


def test_diverged_runs_never_win(write_run):
  write_run("cifar10/inception/seed0", [0.1, 0.2])
  write_run("cifar10/bn_x5/seed0", [0.2, 0.3])
  root = write_run("cifar10/bn_x30/seed0", [0.3, 0.9], status="diverged")
  rows = verdicts(root)
  for words in ("BN-x30 reaches a higher", "BN-x30, too"):
    row = find(rows, words)
    assert row.verdict == "refuted" and "1 of 1 runs of BN-x30 diverged" in row.measured
  assert find(rows, "slower than BN-x5 at first").verdict == "confirmed"
  assert find(rows, "30 times Inception's").verdict == "refuted"
  write_run("cifar10/bn_x30/seed1", [0.3, 0.9])
  write_run("cifar10/bn_x30/seed2", [], status="diverged", num_steps=200)
  rows = verdicts(root)
  row = find(rows, "BN-x30 reaches a higher")
  assert row.verdict == "undecided" and "2 of 3 runs of BN-x30 diverged" in row.measured
  assert find(rows, "30 times Inception's").verdict == "undecided"


def test_unfinished_runs_are_not_measured(write_run):
  write_run("cifar10/inception/seed0", [0.1, 0.5])
  root = write_run("cifar10/bn_x5/seed0", [0.1, 0.9], status="running")
  assert {row.verdict for row in verdicts(root).values()} == {"not measured"}
  root = write_run("cifar10/bn_x5/seed1", [0.1, 0.6])  # Of two seeds the finished one counts.
  assert "60.0% (one seed)" in find(verdicts(root), "BN-x5 beats").measured


@pytest.mark.parametrize("top1,sigmoid,with_bn", [
    ([0.10, 0.11], "confirmed", "refuted"), ([0.10, 0.128], "confirmed", "refuted"),  # 3 deviations of 1,000 guesses.
    ([0.10, 0.13], "refuted", "confirmed"), ([0.10, 0.5], "refuted", "confirmed")])
def test_chance(write_run, top1, sigmoid, with_bn):
  write_run("cifar10/inception_sigmoid/seed0", top1)
  rows = verdicts(write_run("cifar10/bn_x5_sigmoid/seed0", top1))
  assert find(rows, "stays at chance").verdict == sigmoid
  assert find(rows, "with sigmoid trains").verdict == with_bn


@pytest.mark.parametrize("status,top1,verdict,text", [
    ("diverged", [], "confirmed", "1 of 1 runs diverged: loss or parameters not finite at step 0"),
    ("done", [0.1, 0.4], "refuted", "1 of 1 runs stayed finite and came to 40.0% (one seed); chance is 10.0%"),
    ("done", [0.1, 0.1], "confirmed", "10.0% (one seed); chance is 10.0%; 1 of them learned nothing")])
def test_divergence(write_run, status, top1, verdict, text):
  row = find(verdicts(write_run("cifar10/inception_x5/seed0", top1, status=status)), "breaks Inception")
  assert row.verdict == verdict and text in row.measured


def test_seeds_that_disagree_on_breaking_decide_nothing(write_run):
  write_run("cifar10/inception/seed0", [0.1, 0.3])
  write_run("cifar10/inception_x5/seed0", [0.1, 0.1])
  root = write_run("cifar10/inception_x5/seed1", [0.1, 0.2])
  row = find(verdicts(root), "breaks Inception")
  assert row.verdict == "undecided" and "1 of them learned nothing" in row.measured
  assert row.measured.endswith("Inception itself came to 30.0% (one seed)")


def test_slower_at_first_looks_at_the_first_fifth(write_run):
  write_run("cifar10/bn_x5/seed0", [0.3, 0.4] + [0.5] * 8)
  rows = verdicts(write_run("cifar10/bn_x30/seed0", [0.1, 0.2] + [0.9] * 8))
  row = find(rows, "slower than BN-x5 at first")
  assert row.verdict == "confirmed" and "15.0%" in row.measured and "35.0%" in row.measured
  assert find(rows, "BN-x30 reaches a higher").verdict == "confirmed"


def test_bn_x30_must_be_both_higher_and_sooner(write_run):
  write_run("cifar10/inception/seed0", [0.1] * 5 + [0.4] + [0.3] * 4)
  root = write_run("cifar10/bn_x30/seed0", [0.5] + [0.4] * 9)
  row = find(verdicts(root), "to it in fewer steps")
  assert row.verdict == "confirmed"
  assert row.measured == "50.0% after 200 (one seed) against 40.0% after 1,200 (one seed)"
  write_run("quickstart/inception/seed0", [0.1] * 5 + [0.4] + [0.3] * 4)
  root = write_run("quickstart/bn_x30/seed0", [0.4] * 9 + [0.5])
  assert find(verdicts(root, "quickstart"), "to it in fewer steps").verdict == "refuted"


def test_single_changes_stand_beside_the_baseline_without_them(write_run):
  write_run("cifar10/bn_baseline/seed0", [0.2, 0.3, 0.4, 0.5])
  write_run("cifar10/alone/no_dropout/seed0", [0.5, 0.4, 0.4, 0.4])
  write_run("cifar10/alone/shuffling/seed0", [0.2, 0.3, 0.4, 0.6])
  write_run("cifar10/alone/no_lrn/seed0", [0.2, 0.3, 0.4, 0.49])
  root = write_run("cifar10/alone/weight_decay/seed0", [0.2, 0.3, 0.4, 0.41])
  rows = verdicts(root)
  dropout = find(rows, "Without dropout the network")
  assert dropout.verdict == "confirmed"
  assert "BN-Baseline with no dropout took 200 (one seed) to 50.0%" in dropout.measured
  assert "BN-Baseline took 800 (one seed) to its maximum" in dropout.measured
  assert find(rows, "shuffling").verdict == "confirmed" and find(rows, "L2").verdict == "refuted"
  assert find(rows, "local response").verdict == "confirmed"  # No worse, within what 1,000 examples tell.
  assert find(rows, "generalizes no worse").verdict == "confirmed"
  assert find(rows, "no ill effect").verdict == "not measured"


def test_changes_stand_beside_as_much_of_a_longer_baseline(write_run):
  """At full scale BN-Baseline has five times the steps of the ablation."""
  write_run("imagenet/bn_baseline/seed0", [0.2, 0.3, 0.8, 0.9])
  write_run("imagenet/alone/weight_decay/seed0", [0.3, 0.5])
  root = write_run("imagenet/alone/no_dropout/seed0", [0.3, 0.1])
  row = find(verdicts(root, "imagenet"), "L2")
  assert row.verdict == "confirmed" and row.measured == "50.0% (one seed) against 30.0% (one seed)"


def test_larger_initial_weights(write_run):
  for member, (factor, top1) in enumerate(((1.0, 0.50), (1.0, 0.52), (1.5, 0.51), (1.5, 0.505))):
    root = write_run(f"cifar10/ensemble/member{member}", [0.1, top1],
                     model={"name": "inception", "init_scale": factor})
  row = find(verdicts(root), "sensitive to its initialization")
  assert row.verdict == "confirmed"
  assert "weights 1.5 times as large: 50.8% ± 0.4% (2 networks) against 51.0%" in row.measured
  root = write_run("cifar10/ensemble/member4", [0.1], status="diverged", num_steps=200,
                   model={"name": "inception", "init_scale": 1.5})
  assert find(verdicts(root), "sensitive to its initialization").verdict == "refuted"


def test_a_scale_without_a_figure_has_no_rows_for_it():
  texts = [row.claim for row in claims.inception({}, {}, {"figure3": "make 3"})]
  assert not any("crops" in text or "shuffling" in text for text in texts) and any("BN-x30" in text for text in texts)


def evaluation(crops, networks, top1_error, top5_error=0.0):
  return ({"crops": crops, "networks": [{}] * networks, "statistics": "running"},
          {"top1_error": top1_error, "top5_error": top5_error, "count": 10_000})


def test_crops_and_ensemble():
  found = {f"member{n}_1crop_running": evaluation(1, 1, 0.30 + n / 100) for n in range(2)}
  found |= {f"member{n}_10crop_running": evaluation(10, 1, 0.28 + n / 100) for n in range(2)}
  found |= {"ensemble_1crop_running": evaluation(1, 2, 0.29), "ensemble_10crop_running": evaluation(10, 2, 0.25)}
  population = evaluation(1, 2, 0.01)
  population[0]["statistics"] = "population"
  found["ensemble_1crop_population"] = population

  def rows():
    return {row.claim: row for row in claims.inception({}, found, COMMAND)}

  crops, ensemble = find(rows(), "Many crops"), find(rows(), "ensemble of six")
  assert crops.verdict == "confirmed" and "30.5% to 28.5%" in crops.measured
  assert ensemble.verdict == "confirmed" and "28.5% to 25.0%" in ensemble.measured
  assert "the best of the 2 has 28.0%" in ensemble.measured
  # Gains of 0.6% and 1.6% over two networks; 0.6% is the standard error with the binomial one, 0.45%, of each.
  found["ensemble_10crop_running"][1]["top1_error"] = 0.274
  assert find(rows(), "ensemble of six").verdict == "undecided"
  found["ensemble_10crop_running"][1]["top1_error"] = 0.30
  assert find(rows(), "ensemble of six").verdict == "refuted"
  # Gains of 2% and -1.4%: 0.3% on average, with a standard error of 1.7%.
  found["member1_10crop_running"][1]["top1_error"] = 0.324
  assert find(rows(), "Many crops").verdict == "undecided"
  del found["member1_10crop_running"]  # Not of the same networks.
  assert find(rows(), "Many crops").verdict == "not measured"


@pytest.mark.parametrize("top5_error,verdicts_", [(0.049, ("confirmed", "confirmed")),
                                                  (0.052, ("confirmed", "refuted")), (0.06, ("refuted", "refuted"))])
def test_best_published_and_human_raters(top5_error, verdicts_):
  found = {"ensemble_144crop_running": evaluation(144, 6, 0.2, top5_error),
           "ensemble_1crop_running": evaluation(1, 6, 0.2, 0.9),
           "member0_144crop_running": evaluation(144, 1, 0.2, 0.9)}
  rows = claims.full_scale(found, "make 4")
  assert tuple(row.verdict for row in rows) == verdicts_ and all("144 crops" in row.measured for row in rows)
  assert {row.verdict for row in claims.full_scale({}, "make 4")} == {"not measured"}


def test_population_statistics_agree_within_a_point(write_run):
  root = write_run("cifar10/bn_x5/seed0", [0.1, 0.5], population=0.505)
  assert find(verdicts(root), "Population statistics").verdict == "confirmed"
  root = write_run("cifar10/bn_x30/seed0", [0.1, 0.5], population=0.52)
  row = find(verdicts(root), "Population statistics")
  assert row.verdict == "refuted" and "2.00% apart at most" in row.measured


def test_mnist(write_run):
  level, wandering = [(-1, 0, 1)] * 4, [(-1, 0, 1), (1, 2, 3), (2, 4, 6), (3, 4, 5)]
  write_run("mnist/mnist_plain/seed0", [0.2, 0.7, 0.8, 0.9], units={0: wandering})
  root = write_run("mnist/mnist_bn/seed0", [0.8, 0.92, 0.9, 0.95], units={0: level})
  higher, faster, stable = claims.mnist(measured.collect(root)["mnist"], "make 1")
  assert (higher.verdict, stable.verdict) == ("confirmed",) * 2
  # 200 against 400 steps, known to 100: 1.4 standard errors.
  assert faster.verdict == "undecided" and "the network with BN took 200 (one seed) to 90.0%" in faster.measured
  assert "the network without took 400 (one seed) to its maximum; 2.0 times fewer" in faster.measured
  # The median goes from 0 to 4; the mean distance is (2 + 2 + 4 + 2) / 4.
  assert "wanders over 0.00" in stable.measured and "1.60 (one seed)" in stable.measured
  assert [claim.verdict for claim in claims.mnist({}, "")] == ["not measured"] * 3
  # It wanders less, but its distance doubles.
  mixed = [(-1, 0, 1), (-2, 0, 2), (-1, 0, 1), (-1, 0, 1)]
  shifting = [(-1, 0, 1), (0, 1, 2), (0, 1, 2), (0, 1, 2)]
  write_run("quickstart/mnist_plain/seed0", [0.2, 0.7, 0.8, 0.9], units={0: shifting})
  root = write_run("quickstart/mnist_bn/seed0", [0.2, 0.7, 0.8, 0.9], units={0: mixed})
  assert claims.mnist(measured.collect(root)["quickstart"], "")[2].verdict == "undecided"
  write_run("mnist/mnist_plain_low_rate/seed0", [0.2, 0.7, 0.8, 0.9], units={0: level})
  root = write_run("mnist/mnist_bn_low_rate/seed0", [0.2, 0.3, 0.4, 0.5], units={0: wandering})
  both = claims.mnist(measured.collect(root)["mnist"], "make 1")
  assert [claim.verdict for claim in both] == ["confirmed", "undecided", "confirmed", "refuted", "refuted", "refuted"]
  assert both[3].claim.endswith("both at the learning rate 0.1")


def test_an_mnist_network_that_diverged(write_run):
  level = [(-1, 0, 1)] * 2
  write_run("mnist/mnist_plain/seed0", [], status="diverged")
  root = write_run("mnist/mnist_bn/seed0", [0.2, 0.9], units={0: level})
  higher, faster, stable = claims.mnist(measured.collect(root)["mnist"], "")
  assert higher.verdict == "confirmed" and "1 of 1 runs of the network without diverged" in higher.measured
  assert faster.verdict == "confirmed" and stable.verdict == "not measured"
