"""Numbers of hand-made runs against what a reader would work out on paper."""

import math

import pytest

from bn_inception.reproduction import measured


def test_steps_and_maxima_of_a_run(write_run):
  root = write_run("cifar10/bn_x5/seed0", [0.1, 0.3, 0.25, 0.4, 0.35])
  (run,) = measured.collect(root)["cifar10"]["bn_x5"]
  assert measured.level(run) == 0.35
  # Batches of 64: a step is two of the paper's.
  assert run.accuracy == [(200, 0.1), (400, 0.3), (600, 0.25), (800, 0.4), (1000, 0.35)]
  # From 10% at step 0 to 30% at step 400, and from 25% at step 600 to 40% at step 800.
  assert [measured.steps_to(run, target) for target in (0.1, 0.2, 0.3, 0.31, 0.4, 0.41)] == [
    pytest.approx(value) if value is not None else None for value in (0, 300, 400, 680, 800, None)
  ]


def test_mnist_steps_are_steps_of_60(write_run):
  root = write_run("mnist/mnist_bn/seed0", [0.5, 0.9])
  assert measured.collect(root)["mnist"]["mnist_bn"][0].accuracy == [(100, 0.5), (200, 0.9)]


def test_mean_and_spread_over_seeds():
  spread = measured.Spread((0.2, 0.4, 0.9))
  deviation = math.sqrt(((0.2 - 0.5) ** 2 + (0.4 - 0.5) ** 2 + (0.9 - 0.5) ** 2) / 2)
  assert spread.mean == pytest.approx(0.5) and spread.deviation == pytest.approx(deviation)
  assert measured.Spread((0.2,)).deviation is None


def test_runs_are_found_at_any_depth_and_once(write_run):
  write_run("results/ablation/cifar10/alone/shuffling/seed1", [0.1])
  write_run("cifar10/bn_x5/seed0", [0.1])
  write_run("copy/cifar10/bn_x5/seed0", [0.2])
  root = write_run("nowhere/bn_x5/seed0", [0.1])
  results = measured.collect(root)
  assert {scale: sorted(experiments) for scale, experiments in results.items()} == {
    "cifar10": ["alone/shuffling", "bn_x5"]
  }
  assert len(results["cifar10"]["bn_x5"]) == 1
  assert results["cifar10"]["alone/shuffling"][0].seed == "seed1"
  with pytest.raises(FileNotFoundError, match="There is no folder"):
    measured.collect(root / "missing")


def test_of_two_archives_runs_and_evaluations_count_of_the_same(write_run, write_evaluation, tmp_path):
  write_run("cifar10/bn_x5/seed0", [0.1])
  (write_evaluation("member0_1crop_running", 1, 1, 0.3) / "cifar10").rename(tmp_path / "first")
  write_run("cifar10/bn_x5/seed0", [0.2])
  root = write_evaluation("member0_1crop_running", 1, 1, 0.4)
  for folder, source in (("a", tmp_path / "first"), ("b", root / "cifar10")):
    (root / folder).mkdir()
    source.rename(root / folder / "cifar10")
  ((run,),) = measured.collect(root)["cifar10"].values()
  assert [top1 for _, top1 in run.accuracy] == [0.1]
  assert [metrics["top1_error"] for _, metrics in measured.evaluations(root, "cifar10").values()] == [0.3]


def test_a_run_without_evaluations_has_no_numbers(write_run):
  root = write_run("cifar10/bn_x5/seed0", [])
  runs = measured.collect(root)["cifar10"]["bn_x5"]
  assert measured.level(runs[0]) is None and measured.over_seeds(runs, measured.level) is None


def test_movement_of_sigmoid_inputs(write_run):
  """Unit 4's median wanders from -1 to 2 with a distance of 2 between the percentiles; unit 7 stays."""
  root = write_run(
    "mnist/mnist_bn/seed0",
    [0.5, 0.6, 0.7],
    units={
      4: [(-2, -1, 0), (1, 2, 3), (0, 1, 2)],
      7: [(-1, 0, 1), (-2, 0, 2), (-1, 0, 1)],
      9: [(0, 1, 2), (0, 1, 2), (0, 2, 2)],
    },
  )
  (run,) = measured.collect(root)["mnist"]["mnist_bn"]
  series = measured.sigmoid_inputs(run)
  assert [step for step, _ in series[4]] == [100, 200, 300]
  assert measured.movement(series[4]) == pytest.approx(1.5)
  assert measured.movement(series[7]) == 0 and measured.movement(series[9]) == pytest.approx(0.5)
  assert measured.widening(series[4]) == 1 and measured.widening(series[7]) == 2
  assert measured.typical_unit(run) == 9


def test_only_seeds_of_the_same_length_are_compared(write_run):
  """A plan that was tried with few steps leaves short runs behind."""
  write_run("cifar10/bn_x5/seed0", [0.1, 0.2, 0.3])
  write_run("cifar10/bn_x5/seed1", [0.1])
  root = write_run("cifar10/bn_x30/seed0", [0.1], status="running")
  kept = measured.finished(measured.collect(root)["cifar10"])
  assert {name: [run.seed for run in runs] for name, runs in kept.items()} == {"bn_x5": ["seed0"]}


def test_a_run_under_way_or_a_single_long_one_leaves_the_others_in(write_run):
  for seed in range(2):
    write_run(f"cifar10/bn_x5/seed{seed}", [0.1, 0.2])
    write_run(f"cifar10/bn_x30/seed{seed}", [0.1, 0.2])
  write_run("cifar10/bn_x5/seed2", [0.1] * 9, status="running")
  root = write_run("cifar10/bn_x30/seed2", [0.1] * 9)
  kept = measured.finished(measured.collect(root)["cifar10"])
  assert {name: [run.seed for run in runs] for name, runs in kept.items()} == dict.fromkeys(
    ("bn_x30", "bn_x5"), ["seed0", "seed1"]
  )


def test_the_end_of_equal_evaluations_is_reached(write_run):
  """The mean of three times 0.1 is rounded to more than 0.1."""
  root = write_run("cifar10/bn_x5/seed0", [0.05] * 27 + [0.1] * 3, data={"name": "", "num_classes": 100})
  (run,) = measured.collect(root)["cifar10"]["bn_x5"]
  assert measured.level(run) == 0.1 and measured.steps_to(run, measured.level(run)) == 5600


def test_the_newest_run_is_that_of_the_last_date(write_run):
  root = write_run("cifar10/bn_x5/seed0", [0.1], time="2026-11-26T09:00:00+00:00")
  write_run("cifar10/bn_x5/seed1", [0.1], time="2026-11-25T10:00:00+00:00")
  assert measured.newest(measured.collect(root)) == "2026-11-26"
  root = write_run("cifar10/bn_x5/seed2", [0.1])
  assert measured.newest(measured.collect(root)) == "2026-11-26"
