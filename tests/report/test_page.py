"""The report of tiny hand-made runs holds what it must, and nothing from outside."""

import re

import pytest

from bn_inception.experiments import plans
from bn_inception.report import cost, page, paper


@pytest.fixture(autouse=True)
def cheap_full_scale(monkeypatch):
  """Tracing full Inception takes seconds; `tests/report/test_cost.py` does it."""
  monkeypatch.setattr(cost, "of", lambda config: cost.Cost(1e12, 1e10))


def text_of(html: str) -> str:
  return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_page_holds_every_figure_and_claim(write_run, tmp_path):
  curve = [0.2, 0.5, 0.7, 0.9]
  units = {0: [(-1, 0, 1)] * 4, 5: [(-1, 0, 2)] * 4}
  for name in ("mnist_bn", "mnist_plain"):
    write_run(f"mnist/{name}/seed0", curve, units=units)
  write_run("mnist/sweep/mnist_bn/rate_0.1/seed0", curve)
  for seed in range(2):
    for name in plans.VARIANTS:
      write_run(f"cifar10/{name}/seed{seed}", [value + seed / 100 for value in curve],
                population=None if name == "inception" else 0.9)
  write_run("cifar10/inception_x5/seed0", [], status="diverged")
  for name in ("alone/shuffling", "up_to/no_dropout", "group/8"):
    root = write_run(f"cifar10/{name}/seed0", curve)
  path = page.write(str(root), str(tmp_path / "report"))
  html = path.read_text()
  text = text_of(html)
  assert path == tmp_path / "report" / "report.html"
  for figure, scale in (("figure1", "mnist"), ("figure2", "cifar10"), ("ablation", "cifar10"), ("sweep", "mnist")):
    assert (tmp_path / "report" / figure / f"{scale}.png").read_bytes().startswith(b"\x89PNG")
  assert html.count("<img") == 4 and not re.search(r"src='(?!data:)", html)  # Self-contained.
  assert "/secret" not in html and str(tmp_path) not in html
  for row in paper.FIGURE_3.values():
    assert row.name in text
  for number in ("31.0M", "13.3M", "2.1M", "2.7M", "72.2%", "74.8%", "69.8%", "14 times fewer"):
    assert number in text, number
  # Inception: maxima 0.9 and 0.91 after 800 steps of 32.
  assert "Inception 31.0M 800 ± 0 (2 seeds) 72.2% 90.5% ± 0.7% (2 seeds) 0.1 done" in text
  assert "Inception at the rate of BN-x5 parameters reach" not in text and "diverged parameters reach machine" in text
  assert "python scripts/reproduce.py figure3 --workdir=runs/paper --data_dir=$TFDS_DATA_DIR" in text
  assert "0123456789 1 abacus" in text and "jax 0.0.1" in text
  assert "python scripts/train.py --config=configs/bn_x5.py:cifar10 --config.seed=1" in text
  # 1e12 FLOP x steps, three evaluations of 50,000 images every 20,000 steps, and 1,024 for the population.
  assert "--scale=imagenet" in text and "A100 hours" in text


def test_without_runs_for_them_claims_are_not_measured(write_run, tmp_path):
  root = write_run("mnist/mnist_bn/seed0", [0.5])
  text = text_of(page.write(str(root), str(tmp_path)).read_text())
  assert "0 confirmed, 0 refuted, 0 undecided, 17 not measured" in text
  with pytest.raises(FileNotFoundError, match="holds no runs"):
    (tmp_path / "empty").mkdir()
    page.write(str(tmp_path / "empty"), str(tmp_path))


def test_hours_follow_from_the_count_of_operations(write_run, tmp_path):
  text = text_of(page.write(str(write_run("mnist/mnist_bn/seed0", [0.5])), str(tmp_path)).read_text())
  steps = 31e6 + 31e6 + 3 * 6e6  # Figure 2: the two without §4.2.1's changes run as long as Inception.
  evaluations = 31e6 / 20_000 * (50_000 + 3 * 50_000 + 32 * 32) + 3 * 6e6 / 20_000 * (3 * 50_000 + 32 * 32)
  flop = steps * 1e12 + evaluations * 1e10
  hours = flop / (312e12 * page.UTILISATION) / 3600
  assert f"figure2 5 80.0M 31.2 {flop:.1e} {hours:,.0f} " in text
