"""The plans against what the paper did."""

import math
import shlex
import statistics
import sys

import pytest

from bn_inception import config_checks, optim
from bn_inception.configs import bn_baseline, bn_x5
from bn_inception.reproduction import archive, measured, plans
from tests.test_configs import differences

EVERY = [(figure, scale) for figure, (_, scales, _) in plans.FIGURES.items() for scale in scales]


def runs_of(figure, scale, seeds=2):
  return plans.FIGURES[figure][0](scale, seeds).runs


@pytest.mark.parametrize("figure,scale", EVERY)
def test_every_run_of_every_figure_can_be_run(figure, scale):
  runs = runs_of(figure, scale)
  assert len({run.name for run in runs}) == len(runs)
  for run in runs:
    config_checks.check_config(run.config(), devices=1)
    assert run.name.startswith(f"{scale}/")


def test_a_name_means_the_same_run_in_every_figure():
  by_name = {}
  for figure, scale in EVERY:
    for run in runs_of(figure, scale):
      assert by_name.setdefault(run.name, run) == run


def test_the_changes_are_all_that_separates_bn_x5_from_bn_baseline():
  """§4.2.1; lengths aside."""
  lengths = {"num_steps", "eval_every", "checkpoint_every"}
  for scale in ("imagenet", "cifar10", "cifar10_full", "quickstart"):
    changed = {path for paths in plans.CHANGES.values() for path in paths}
    # Changes that a scale does not have are allowed, ones that are not named are not.
    assert set(differences(bn_baseline.get_config(scale), bn_x5.get_config(scale))) - lengths <= changed
  assert set(differences(bn_baseline.get_config("imagenet"), bn_x5.get_config("imagenet"))) - {"num_steps"} == changed


def test_ablation_changes_one_thing_at_a_time_and_ends_at_bn_x5():
  runs = {run.name.split("/", 1)[1].rpartition("/")[0]: run for run in runs_of("ablation", "cifar10", 1)}
  start, end = (runs[name].config() for name in ("bn_baseline", "bn_x5"))
  for name, paths in plans.CHANGES.items():
    assert set(differences(start, runs[f"alone/{name}"].config())) <= set(paths)
  before = runs[f"alone/{next(iter(plans.CHANGES))}"].config()
  for name, paths in list(plans.CHANGES.items())[1:-1]:
    config = runs[f"up_to/{name}"].config()
    assert set(differences(before, config)) <= set(paths)
    before = config
  assert set(differences(before, end)) <= set(list(plans.CHANGES.values())[-1])


def test_at_full_lengths_the_ablation_is_each_change_alone_with_seeds():
  by_name = {plans.experiment_of(run): run.config() for run in runs_of("ablation", "cifar10_full", 1)}
  assert list(by_name) == ["bn_baseline", *(f"alone/{name}" for name in plans.CHANGES)]
  start = by_name.pop("bn_baseline")
  for name, config in by_name.items():
    changed = {*plans.CHANGES[name.removeprefix("alone/")], "num_steps"}
    assert set(differences(start, config)) <= changed and config.num_steps == 4_000


def test_precisions_differ_in_the_type_alone_and_anneal_as_far_as_bn_x5():
  runs = {plans.experiment_of(run): run.config() for run in runs_of("precision", "cifar10_full", 1)}
  assert list(differences(*runs.values())) == ["dtype"]
  ends = [
    float(optim.learning_rate_schedule(config, 50_000)(config.num_steps))
    for config in (bn_x5.get_config("cifar10_full"), *runs.values())
  ]
  assert ends == pytest.approx([ends[0]] * 3) and [config.num_steps for config in runs.values()] == [2_000, 2_000]


def test_groups_differ_in_their_size_alone():
  configs = [run.config() for run in runs_of("ablation", "cifar10", 1) if "/group/" in run.name]
  assert [config.batch_norm.group_size for config in configs] == [4, 8, 16, 32, 64]
  for config in configs[1:]:
    assert list(differences(configs[0], config)) == ["batch_norm.group_size"]
  assert configs[0].num_steps * configs[0].batch_size == bn_x5.get_config("cifar10").num_steps * 32


def test_seeds_differ_in_the_seed_alone():
  one, two = (run for run in runs_of("figure2", "cifar10") if "/bn_x30/" in run.name)
  assert list(differences(one.config(), two.config())) == ["seed"]


def test_full_lengths_are_those_of_the_paper_and_every_rate_falls_as_far_as_there():
  """§4.2: 31e6 steps at 0.96 every 8 of 775 epochs, or 6e6 at 0.96 every 8/6 of 150, are 0.019 and 0.010 in the end."""
  runs = {plans.experiment_of(run): run.config() for run in runs_of("figure2", "cifar10_full", 1)}
  for name, config in runs.items():
    slow = name in ("inception", "bn_baseline") or name.startswith("controls/")
    other = name.startswith(("controls/", "longer/"))
    length = int(name.rpartition("_")[2]) if other else 5 * 8_000 if slow else 8_000
    assert config.num_steps == length
    epochs, period = (31e6 * 32 / 1_281_167, 8) if slow else (6e6 * 32 / 1_281_167, 8 / 6)
    fall = optim.learning_rate_schedule(config, 50_000)(config.num_steps) / config.learning_rate
    # In stairs, and the paper's ratio of lengths is 5.2, ours 5.
    assert math.log(fall) == pytest.approx(epochs / period * math.log(0.96), rel=0.05)
  assert {name for name in runs if name.startswith("controls/")} == {
    "controls/inception_8000",
    "controls/inception_20000",
    "controls/inception_80000",
  }
  falls = {}
  for run in runs_of("sweep", "cifar10_full", 1):
    config = run.config()
    fall = float(optim.learning_rate_schedule(config, 45_000)(config.num_steps)) / config.learning_rate
    falls.setdefault(run.config_file, set()).add(round(fall, 4))
  assert {len(seen) for seen in falls.values()} == {1}  # Whatever the length that a network is annealed over.


def test_controls_differ_from_inception_in_length_and_rate_alone_and_failing_runs_in_where_they_end():
  """A failing run keeps the schedule of its whole length."""
  runs = {plans.experiment_of(run): run.config() for run in runs_of("figure3", "cifar10_full", 1)}
  for name, swept in (("inception_8000", 0.2), ("inception_20000", 0.5), ("inception_80000", 1.0)):
    name = f"controls/{name}"
    changed = {"num_steps", "learning_rate", "learning_rate_decay_epochs", "eval_every", "checkpoint_every"}
    assert set(differences(runs["inception"], runs[name])) <= changed
    assert runs[name].learning_rate in plans.FULL_SWEEPS["inception"][swept]
  changed = {"num_steps", "learning_rate_decay_epochs", "eval_every", "checkpoint_every"}
  assert set(differences(runs["bn_x5"], runs["longer/bn_x5_20000"])) == changed
  for name in plans.FAILING:
    whole = plans.Run("", name, "cifar10_full", {}).config()
    assert list(differences(whole, runs[name])) == ["num_steps"] and runs[name].num_steps == 4_000


@pytest.fixture(scope="module")
def swept(repository):
  """{network and steps: {rate: accuracy of each seed on the examples held out}} of the archived runs."""
  levels = {}
  for name, runs in measured.collect(repository / "results" / "sweep")["cifar10_full"].items():
    _, network, point = name.split("/")
    if point.startswith("rate_"):
      levels.setdefault(network, {})[runs[0].config["learning_rate"]] = list(map(measured.level, runs))
  return levels


def assert_is_the_best(rate, levels):
  """Inside the range, and within the binomial error of the 5,000 examples held out of the best."""
  means = {tried: statistics.fmean(of_seeds) for tried, of_seeds in levels.items()}
  best = max(means.values())
  assert means[rate] >= best - math.sqrt(best * (1 - best) / 5_000)
  assert min(means) < rate < max(means)


def test_inceptions_rates_at_full_lengths_are_the_best_of_their_sweeps(swept):
  """Twice the length has no sweep."""
  own = bn_baseline.get_config("cifar10_full").learning_rate
  for steps, rate in ((8_000, plans.CONTROL_RATES[0.2]), (20_000, plans.CONTROL_RATES[0.5]), (40_000, own)):
    assert_is_the_best(rate, swept[f"inception_{steps}"])
  assert plans.CONTROL_RATES[2.0] == own


def test_the_best_two_rates_of_inception_have_two_seeds(swept):
  runs = [run for run in runs_of("sweep", "cifar10_full", 1) if "/sweep/inception_" in run.name]
  for fraction, rates in plans.BEST_TWO_RATES["inception"].items():
    levels = swept[f"inception_{round(fraction * 40_000)}"]
    by_first_seed = sorted(levels, key=lambda rate: levels[rate][0])
    assert set(rates) == set(by_first_seed[-2:])
    for rate in levels:
      seeds = [run for run in runs if f"/inception_{round(fraction * 40_000)}/rate_{rate:g}/" in run.name]
      assert len(seeds) == (2 if rate in rates else 1)


def test_networks_with_bn_at_their_best_rates_differ_in_rate_and_length_alone(swept):
  runs = {plans.experiment_of(run): run.config() for run in runs_of("best_rate", "cifar10_full", 1)}
  assert list(runs) == ["best_rate/bn_x5", "best_rate/bn_baseline"]
  own = bn_x5.get_config("cifar10_full")
  assert list(differences(own, runs["best_rate/bn_x5"])) == ["learning_rate"]
  baseline = bn_baseline.get_config("cifar10_full")
  changed = {"num_steps", "learning_rate", "learning_rate_decay_epochs", "eval_every", "checkpoint_every"}
  assert set(differences(baseline, runs["best_rate/bn_baseline"])) == changed
  for name, config in runs.items():
    assert (config.num_steps, config.eval_every) == (own.num_steps, own.eval_every)
    before = baseline if "baseline" in name else own
    fall, before = (
      float(optim.learning_rate_schedule(of, 50_000)(of.num_steps)) / of.learning_rate for of in (config, before)
    )
    assert fall == pytest.approx(before)
    assert_is_the_best(config.learning_rate, swept[f"{name.removeprefix('best_rate/')}_8000"])


def test_rates_are_swept_without_the_test_split():
  for scale in ("mnist", "cifar10", "cifar10_full", "imagenet"):
    for run in runs_of("sweep", scale):
      config = run.config()
      assert (config.data.train_split, config.data.eval_split) == ("train[:90%]", "train[90%:]")
      if "/rate_" in run.name:
        assert f"/rate_{config.learning_rate:g}/" in run.name


def test_factors_differ_from_bn_x5_at_its_own_rate_in_what_they_name_alone():
  runs = {plans.experiment_of(run): run.config() for run in runs_of("sweep", "cifar10_full", 1)}
  own = runs["sweep/bn_x5_8000/rate_0.05"]
  wide = runs["sweep/bn_x5_8000/width_0.25"]
  assert list(differences(own, wide)) == ["model.width"] and wide.model.width == 2 * own.model.width
  plain = runs["sweep/bn_x5_8000/no_distortions"]
  assert set(differences(own, plain)) == {"data.crop_area", "data.crop_aspect", "data.photometric_strength"}
  assert (plain.data.crop_area, plain.data.crop_aspect, plain.data.photometric_strength) == ((1, 1), (1, 1), 0)


def test_figure4_averages_the_six_members():
  plan = plans.figure4("imagenet", 1)
  assert [run.config().seed for run in plan.runs] == list(range(6))
  by_name = {evaluation.name.rpartition("/")[2]: evaluation for evaluation in plan.evaluations}
  assert by_name["ensemble_144crop_running"].runs == tuple(run.name for run in plan.runs)
  assert by_name["member3_1crop_running"].runs == (plan.runs[3].name,)
  assert by_name["ensemble_1crop_population"].statistics == "population"


@pytest.mark.parametrize("figure", ["figure3", "sweep", "ablation"])
def test_the_command_of_a_run_makes_its_config(figure, repository, monkeypatch):
  """Through the flags of ml_collections, as the user's shell would give them."""
  from absl import flags
  from ml_collections import config_flags

  monkeypatch.chdir(repository)
  for run in runs_of(figure, "cifar10", 1):
    _, script, *words = shlex.split(run.command("runs"))
    assert script == "scripts/train.py"
    monkeypatch.setattr(sys, "argv", [script, *words])  # Where ml_collections looks for overrides.
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values([script, *words])
    assert config.value.to_json() == run.config().to_json()
    assert values.workdir == f"runs/{run.name}"


def test_a_field_that_no_config_has_is_an_error():
  with pytest.raises(KeyError, match="no field model.widht"):
    plans.Run("x", "bn_x5", "cifar10", {"model.widht": 2.0}).config()


def test_every_experiment_has_a_folder():
  names = {run.name.split("/", 1)[1].rpartition("/")[0] for figure, scale in EVERY for run in runs_of(figure, scale)}
  assert {archive.figure_of(name) for name in names} == {
    "figure1",
    "figure3",
    "figure4",
    "ablation",
    "best_rate",
    "precision",
    "sweep",
  }
  assert archive.figure_of("alone/shuffling") == "ablation" and archive.figure_of("bn_x30") == "figure3"
