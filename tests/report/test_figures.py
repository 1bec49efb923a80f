"""What the pictures draw of runs that are unfinished, diverged or of several seeds."""

import pytest

from bn_inception.report import curves, figures, measured


@pytest.fixture
def drawn(monkeypatch):
  """The figures that were saved, to look at their lines."""
  kept = []
  save = curves.save
  monkeypatch.setattr(curves, "save", lambda figure, path: kept.append(figure) or save(figure, path))
  return kept


def line(figure, label):
  (found,) = (one for axes in figure.axes for one in axes.get_lines() if one.get_label() == label)
  return [pytest.approx(value) for value in found.get_ydata()]


def test_a_curve_is_the_mean_of_the_seeds_that_have_one(write_run, drawn, tmp_path):
  write_run("cifar10/bn_x5/seed0", [0.2, 0.4])
  write_run("cifar10/bn_x5/seed1", [0.4, 0.8])
  write_run("cifar10/bn_x5/seed2", [], status="diverged")
  root = write_run("cifar10/bn_x5/seed3", [0.9], status="running")
  figures.figure2(measured.collect(root)["cifar10"], tmp_path / "picture.png")
  assert line(drawn[0], "BN-x5") == [0.3, 0.6]


def test_a_run_under_way_is_drawn_but_moves_no_number(write_run, drawn, tmp_path):
  write_run("cifar10/bn_x5/seed0", [0.3], status="running")
  write_run("cifar10/inception/seed0", [0.1, 0.5])
  root = write_run("cifar10/inception/seed1", [0.1, 0.2], status="running")
  figures.figure2(measured.collect(root)["cifar10"], tmp_path / "picture.png")
  assert line(drawn[0], "BN-x5") == [0.3]
  assert set(map(lambda value: value.expected, line(drawn[0], "maximum of Inception"))) == {0.5}


def test_figure_1_is_drawn_of_the_seeds_that_are_there(write_run, drawn, tmp_path):
  """Another machine has only just started seed 0."""
  units = {3: [(-1, 0, 1), (-2, 0.5, 2)]}
  write_run("mnist/mnist_bn/seed0", [], status="running", units=units)
  write_run("mnist/mnist_bn/seed1", [0.8, 0.9], units=units)
  root = write_run("mnist/mnist_plain/seed0", [0.6, 0.7], units=units)
  assert figures.figure1(measured.collect(root)["mnist"], tmp_path / "picture.png").exists()
  assert line(drawn[0], "with BN") == [0.8, 0.9] and line(drawn[0], "without BN") == [0.6, 0.7]
  (median,) = (one for one in drawn[0].axes[2].get_lines() if one.get_color() == "#D55E00")
  assert list(median.get_ydata()) == [0, 0.5]
  assert figures.figure1({"mnist_bn": []}, tmp_path / "none.png") is None
