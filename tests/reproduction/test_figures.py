"""What the pictures draw of runs that are unfinished, diverged or of several seeds."""

import itertools

import matplotlib.text
import pytest

from bn_inception import paper
from bn_inception.reproduction import figures, measured, plans, speedup


def line(figure, label):
  (found,) = (one for axes in figure.axes for one in axes.get_lines() if one.get_label() == label)
  return [pytest.approx(value) for value in found.get_ydata()]


def test_a_curve_is_the_mean_of_the_seeds_that_have_one(write_run):
  write_run("cifar10/bn_x5/seed0", [0.2, 0.4])
  write_run("cifar10/bn_x5/seed1", [0.4, 0.8])
  write_run("cifar10/bn_x5/seed2", [], status="diverged")
  root = write_run("cifar10/bn_x5/seed3", [0.9], status="running")
  figure = figures.figure2(measured.collect(root)["cifar10"])
  assert line(figure, "BN-x5") == [0.3, 0.6]


def test_a_run_under_way_is_drawn_but_moves_no_number(write_run):
  write_run("cifar10/bn_x5/seed0", [0.3], status="running")
  write_run("cifar10/inception/seed0", [0.1, 0.5])
  root = write_run("cifar10/inception/seed1", [0.1, 0.2], status="running")
  figure = figures.figure2(measured.collect(root)["cifar10"])
  assert line(figure, "BN-x5") == [0.3]
  assert set(map(lambda value: value.expected, line(figure, "plateau of Inception"))) == {0.5}


def test_the_inception_that_sets_the_plateau_and_longer_bn_x5_are_drawn(write_run):
  for name, end in (("inception", 0.4), ("controls/inception_1000", 0.3), ("controls/inception_4000", 0.6)):
    write_run(f"cifar10/{name}/seed0", [0.2, end])
  root = write_run("cifar10/longer/bn_x5_2000/seed0", [0.5, 0.7])
  figure = figures.figure2(measured.collect(root)["cifar10"])
  assert line(figure, "Inception") == [0.2, 0.4] and line(figure, "Inception over 4,000 steps") == [0.2, 0.6]
  assert line(figure, "BN-x5 over 2,000 steps") == [0.5, 0.7]
  assert "Inception over 1,000 steps" not in [one.get_label() for one in figure.axes[0].get_lines()]


def test_each_length_of_bn_x5_has_a_line_of_its_own(write_run):
  for steps in (2000, 4000, 10000):
    write_run(f"cifar10/longer/bn_x5_{steps}/seed0", [0.1, 0.5, 0.7])
  write_run("cifar10/inception/seed0", [0.1, 0.4])
  experiments = measured.collect(write_run("cifar10/bn_x5/seed0", [0.1, 0.4, 0.6]))["cifar10"]
  for draw in (figures.figure2, figures.relative, figures.ratio):
    styles = {}
    for one in draw(experiments).axes[0].get_lines():
      if one.get_label() == "BN-x5" or one.get_label().startswith("BN-x5 over"):
        styles[one.get_label()] = str(one._unscaled_dash_pattern)  # get_linestyle() says "--" for all of them.
    assert len(set(styles.values())) == len(styles) == 4, draw


def test_the_ablation_draws_what_there_are_runs_of_and_ends_at_bn_x5_of_the_same_length(write_run):
  """Evaluated every 100 steps; the changes alone had 200 steps."""
  draw = lambda: figures.ablation(
    measured.for_ablation(measured.finished(measured.collect(root)["cifar10"])), tuple(plans.CHANGES), (8, 64)
  )
  write_run("cifar10/bn_baseline/seed0", [0.1, 0.3, 0.7, 0.8])
  root = write_run("cifar10/bn_x5/seed0", [0.2, 0.4, 0.9])
  assert draw() is None
  write_run("cifar10/alone/shuffling/seed0", [0.1, 0.35])
  (axes,) = draw().axes
  assert axes.get_title() == "each change alone"
  texts = [text.get_text() for text in axes.texts]
  assert texts == ["30.0%", "35.0%", "40.0%"]
  assert [text.get_text() for text in axes.get_yticklabels()][-1] == "all = BN-x5"
  write_run("cifar10/group/64/seed0", [0.1, 0.35])
  assert [axes.get_title() for axes in draw().axes] == ["each change alone", "size of the BN groups"]
  write_run("cifar10/up_to/shuffling/seed0", [0.1, 0.35])
  assert [axes.get_title() for axes in draw().axes][1] == "one after the other"


def test_figure_1_is_drawn_of_the_seeds_that_are_there(write_run):
  """Another machine has only just started seed 0."""
  units = {3: [(-1, 0, 1), (-2, 0.5, 2)]}
  write_run("mnist/mnist_bn/seed0", [], status="running", units=units)
  write_run("mnist/mnist_bn/seed1", [0.8, 0.9], units=units)
  root = write_run("mnist/mnist_plain/seed0", [0.6, 0.7], units=units)
  figure = figures.figure1(measured.collect(root)["mnist"])
  assert line(figure, "with BN") == [0.8, 0.9] and line(figure, "without BN") == [0.6, 0.7]
  (median,) = (one for one in figure.axes[2].get_lines() if one.get_color() == "#D55E00")
  assert list(median.get_ydata()) == [0, 0.5]
  assert figures.figure1({"mnist_bn": []}) is None


def test_figure_1_needs_the_inputs_of_sigmoids(write_run):
  write_run("mnist/mnist_bn/seed0", [0.8, 0.9])
  root = write_run("mnist/mnist_plain/seed0", [0.6, 0.7])
  assert figures.figure1(measured.collect(root)["mnist"]) is None


def points(figure):
  """[(x, y)] of the marks in a figure of one panel: lines of a single point."""
  data = [(line.get_xdata(), line.get_ydata()) for line in figure.axes[0].get_lines()]
  return [(x[0], y[0]) for x, y in data if len(x) == 1]


def write_five(write_run):
  for seed, shift in enumerate((0, 0.01)):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 9 + [0.4 + shift])
    write_run(f"cifar10/bn_x5/seed{seed}", [0.42] + [0.5 + shift] * 9)
    root = write_run(f"cifar10/bn_x5_sigmoid/seed{seed}", [0.2] * 10)
  return measured.collect(root)["cifar10"]


def test_the_papers_five_points_stand_in_the_same_axes(write_run):
  figure = figures.relative(write_five(write_run))
  marks = points(figure)
  expected = [(1, 1), (13.3 / 31, 0.727 / 0.722), (2.1 / 31, 0.730 / 0.722), (2.7 / 31, 0.748 / 0.722)]
  for point in expected:
    assert any(mark == pytest.approx(point) for mark in marks), point
  # BN-x5: to 40.5% from 10% at step 0 and 42% at step 200; its end over Inception's.
  assert any(mark == pytest.approx((200 * 0.305 / 0.32 / 2000, 0.505 / 0.405)) for mark in marks)
  # Both sigmoids, the paper's and ours, never come to Inception's accuracy: they stand beyond all others.
  never = max(x for x, _ in marks)
  assert never > 1.5 and {round(y, 6) for x, y in marks if x == never} == {
    round(0.2 / 0.405, 6),
    round(0.698 / 0.722, 6),
  }
  low, high = figure.axes[0].get_ylim()
  assert all(low < y < high for _, y in marks)
  assert figures.relative({}) is None


def test_inception_is_that_which_sets_the_plateau_and_bn_x5_has_its_longer_runs(write_run):
  write_five(write_run)
  for seed in range(2):
    write_run(f"cifar10/controls/inception_4000/seed{seed}", [0.1] * 17 + [0.5] * 3)
  root = write_run("cifar10/longer/bn_x5_1000/seed0", [0.1, 0.1, 0.1, 0.5, 0.55])
  figure = figures.relative(measured.collect(root)["cifar10"])
  labels = [line.get_label() for line in figure.axes[0].get_lines()]
  assert "Inception over 4,000 steps" in labels and "Inception" not in labels
  assert line(figure, "BN-x5 over 1,000 steps") == [top1 / 0.5 for top1 in (0.1, 0.1, 0.1, 0.5, 0.55)]
  assert any(mark == pytest.approx((800 / 3600, 1.1)) for mark in points(figure))


def test_a_network_with_a_seed_that_diverged_at_once_stands_where_not_all_seeds_came(write_run):
  write_five(write_run)
  root = write_run("cifar10/bn_x5/seed2", [], status="diverged", num_steps=1000)
  marks = points(figures.relative(measured.collect(root)["cifar10"]))
  assert any(mark == pytest.approx((max(x for x, _ in marks), 0.505 / 0.405)) for mark in marks)


def test_the_ratio_is_drawn_as_it_is_computed(write_run):
  write_five(write_run)
  write_run("cifar10/best_rate/bn_x5/seed0", [0.2, 0.4, 0.45])
  experiments = measured.collect(write_run("cifar10/longer/bn_x5_20000/seed0", [0.2, 0.35, 0.45]))["cifar10"]
  figure = figures.ratio(experiments)
  curve = speedup.curve(experiments, "bn_x5")
  assert line(figure, "BN-x5") == [point.ratio for point in curve]
  longer = speedup.curve(experiments, "longer/bn_x5_20000")
  assert line(figure, "BN-x5 over 20,000 steps") == [point.ratio for point in longer] and len(longer) == len(curve)
  at_best_rate = speedup.curve(experiments, "best_rate/bn_x5")
  assert line(figure, "BN-x5 at its best rate") == [point.ratio for point in at_best_rate] and len(at_best_rate) == 21
  assert set(value.expected for value in line(figure, f"the paper: {paper.SPEEDUP} times fewer")) == {14}
  assert figures.ratio({"inception": experiments["inception"]}) is None


def test_a_network_that_comes_to_no_level_with_all_seeds_has_no_line_and_no_label(write_run):
  write_five(write_run)
  experiments = measured.collect(write_run("cifar10/best_rate/bn_x5/seed0", [0.1] * 9 + [0.2]))["cifar10"]
  (axes,) = figures.ratio(experiments).axes
  assert "BN-x5 at its best rate" not in [line.get_label() for line in axes.lines]


@pytest.mark.parametrize("narrow", [False, True])
def test_labels_do_not_run_into_each_other(write_run, write_evaluation, monkeypatch, narrow):
  """Texts of all figures, as they are drawn."""
  write_five(write_run)
  for name in ("bn_baseline", "alone/learning_rate", "alone/distortions", "up_to/no_dropout", "group/8", "group/64"):
    for seed in range(2):
      write_run(f"cifar10/{name}/seed{seed}", [0.1] * 9 + [0.342 + seed / 50])
  for rate in (0.0025, 0.005, 0.01, 0.02, 0.04):
    write_run(f"cifar10/sweep/inception/rate_{rate:g}/seed0", [0.3 + rate], learning_rate=rate)
  units = {3: [(-1, 0, 1), (-2, 0.5, 2)]}
  for name in ("mnist_bn", "mnist_plain", "mnist_bn_low_rate", "mnist_plain_low_rate"):
    root = write_run(f"mnist/{name}/seed0", [0.8, 0.9], every=25_000, units=units)
  write_evaluation("member0_1crop_running", 1, 1, 0.654)
  write_evaluation("member1_1crop_running", 1, 1, 0.662)
  write_evaluation("ensemble_10crop_running", 6, 10, 0.611)
  results = measured.collect(root)
  drawn = [
    figures.relative(results["cifar10"], narrow),
    figures.ratio(results["cifar10"], narrow),
    figures.figure1(results["mnist"], narrow),
    figures.figure2(results["cifar10"], narrow),
    figures.ablation(results["cifar10"], tuple(plans.CHANGES), plans.GROUP_SIZES, narrow),
    figures.figure4(measured.evaluations(root, "cifar10"), narrow),
    figures.sweep(results["cifar10"], narrow),
  ]
  draw = matplotlib.text.Text.draw
  for number, figure in enumerate(drawn):
    texts = []  # Only what is drawn: not the ticks outside of an axis.
    monkeypatch.setattr(matplotlib.text.Text, "draw", lambda text, *args: texts.append(text) or draw(text, *args))
    figure.canvas.draw()
    texts = [text for text in dict.fromkeys(texts) if text.get_text().strip() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) > 5
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
      assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0, f"picture {number}: {first}, {second}"
    for text, box in boxes:
      assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, f"picture {number}: {text}"
