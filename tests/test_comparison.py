"""Runs side by side: what they are called, means and deviations over seeds, steps to a target."""

import json
import statistics

import pytest

from bn_inception import comparison, run_directory
from bn_inception.configs import bn_x5, inception
from bn_inception.errors import UserError


def write_run(folder, config, top1, status="done", scale=1.0):
  """A run directory, or archived run, with an evaluation every 10 steps and a loss that falls."""
  folder.mkdir(parents=True)
  run_directory.write_config(folder, config)
  for number, value in enumerate(top1, start=1):
    metrics = {"eval/running/top1": value, "train/loss": scale / number}
    run_directory.append_metrics(folder, 10 * number, config.batch_size, metrics)
  (folder / "status.json").write_text(json.dumps({"status": status, "step": 10 * len(top1)}))


def quickstart(config=bn_x5, **values):
  made = config.get_config("quickstart")
  for key, value in values.items():
    section, _, name = key.rpartition("__")
    (made[section] if section else made)[name] = value
  return made


@pytest.fixture
def two_rates(tmp_path):
  """Three seeds at the rate 0.1 and two, one of them diverged, at 0.03; the folders tell nothing."""
  for seed, top1 in enumerate(([0.1, 0.5, 0.4], [0.2, 0.7, 0.6], [0.3, 0.3, 0.5])):
    write_run(tmp_path / f"a/seed{seed}", quickstart(seed=seed, learning_rate=0.1), top1)
  write_run(tmp_path / "b/seed0", quickstart(learning_rate=0.03, data__dir="elsewhere", keep_latest=9), [0.1, 0.9])
  write_run(tmp_path / "b/seed1", quickstart(seed=1, learning_rate=0.03), [0.2], status="diverged")
  return tmp_path


def test_runs_are_called_by_the_values_in_which_they_differ_and_seeds_are_one(two_rates):
  experiments, others = comparison.read([two_rates])
  assert [experiment.name for experiment in experiments] == ["learning_rate=0.03", "learning_rate=0.1"]
  assert [len(experiment.lines) for experiment in experiments] == [2, 3] and not others


def test_the_table_has_best_last_and_the_steps_to_a_target(two_rates):
  experiments, _ = comparison.read([two_rates])
  header, low, high = (line.split() for line in comparison.table(experiments, target=0.5).splitlines())
  best, last = [0.5, 0.7, 0.5], [0.4, 0.6, 0.5]
  for values in (best, last):
    assert f"{statistics.fmean(values):.2%}" in high and f"{statistics.stdev(values):.2%}" in " ".join(high)
  assert "50.0%" in header
  # Steps 20, 20 and 30 of batches of 32; at the lower rate one run of two gets there.
  assert "23" in high and " ".join(low).count("20 (1 of 2)") == 1 and "2, 1 diverged" in " ".join(low)
  assert "not reached" in comparison.table(experiments, target=0.99)


def test_means_are_over_the_steps_that_all_seeds_have():
  steps, means, deviations = comparison.mean_and_deviation([[(1, 0.0), (2, 1.0), (3, 5.0)], [(1, 4.0), (2, 1.0)]])
  assert steps == [1, 2] and means == [2.0, 1.0]
  assert deviations == pytest.approx([8**0.5, 0.0])  # sqrt((2^2 + 2^2) / (2 - 1))
  assert comparison.mean_and_deviation([[(1, float("inf")), (2, 3.0)]]) == ([2], [3.0], [0.0])


def test_of_many_values_as_few_as_tell_the_runs_apart_are_named_and_the_others_stand_below(tmp_path):
  write_run(tmp_path / "one", quickstart(inception), [0.1])
  write_run(tmp_path / "two", quickstart(bn_x5), [0.2])
  experiments, others = comparison.read([tmp_path / "one", tmp_path / "two"])
  assert [experiment.name for experiment in experiments] == ["batch_norm.enabled=false", "batch_norm.enabled=true"]
  assert {"learning_rate", "weight_decay", "model.dropout_rate"} <= set(others)
  assert "They differ in learning_rate, " in comparison.compare([tmp_path])


def test_the_picture_has_a_curve_with_a_band_for_each_experiment(two_rates, monkeypatch):
  figures = []
  monkeypatch.setattr(comparison.curves, "save", lambda figure, path: figures.append(figure) or path)
  comparison.compare([two_rates], two_rates / "both.png", log_x=True)
  for axes in figures[0].axes:
    assert axes.get_xscale() == "log" and len(axes.lines) == 2
  accuracy = figures[0].axes[0]
  assert list(accuracy.lines[1].get_xdata()) == [10, 20, 30]
  assert accuracy.lines[1].get_ydata() == pytest.approx([0.2, 0.5, 0.5])
  band = accuracy.collections[1].get_datalim(accuracy.transData)
  assert (band.y0, band.y1) == pytest.approx((0.1, 0.7))  # 0.2 - 0.1 and 0.5 + 0.2


def test_runs_of_one_experiment_are_called_by_their_folder(tmp_path, monkeypatch):
  write_run(tmp_path / "slow/seed0", quickstart(), [0.1])
  write_run(tmp_path / "slow/seed1", quickstart(seed=1), [0.2])
  monkeypatch.chdir(tmp_path)
  for workdirs in (["slow"], [tmp_path / "slow/seed0", "slow/seed1"]):
    ((experiment,), others) = comparison.read(workdirs)
    assert experiment.name == "slow" and len(experiment.lines) == 2 and not others


def test_a_folder_without_runs_is_named(tmp_path):
  with pytest.raises(UserError, match="holds no run"):
    comparison.compare([tmp_path])


def test_archived_runs_are_compared(repository):
  text = comparison.compare(
    [repository / "results/figure1/mnist/mnist_bn", repository / "results/figure1/mnist/mnist_plain"]
  )
  assert "batch_norm.enabled=false" in text and "batch_norm.enabled=true" in text
