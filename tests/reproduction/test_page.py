"""The report of tiny hand-made runs holds what it must, and nothing from outside."""

import html.parser
import importlib.util
import json
import re
import sys

import pytest
from matplotlib import figure

from bn_inception import curves, paper
from bn_inception.errors import UserError
from bn_inception.reproduction import claims, page, plans, run_cost


@pytest.fixture(autouse=True)
def cheap_full_scale(monkeypatch):
  """Tracing full Inception takes seconds; `test_run_cost.py` does it."""
  monkeypatch.setattr(
    run_cost, "count_work", lambda config: run_cost.Cost(run_cost.Work(1e12, 1e11), run_cost.Work(1e10, 1e8))
  )


@pytest.fixture
def cheap_pictures(monkeypatch):
  """Figures are made, but not drawn: that takes most of the time of a page, and here only text is looked at."""
  monkeypatch.setattr(curves, "save", lambda figure, path: path.write_bytes(b"a picture"))
  monkeypatch.setattr(figure.Figure, "savefig", lambda *arguments, **settings: None)


def text_of(text: str) -> str:
  return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def test_the_page_holds_every_figure_and_claim(write_run, tmp_path):
  curve = [0.2, 0.5, 0.7, 0.9]
  units = {0: [(-1, 0, 1), (-1, 0.5, 1)] * 2, 5: [(-1, 0, 2), (-1, 1, 2)] * 2}
  for name in ("mnist_bn", "mnist_plain"):
    write_run(f"mnist/{name}/seed0", curve, units=units)
  for point in ("rate_0.1", "width_0.25"):
    write_run(f"mnist/sweep/mnist_bn/{point}/seed0", curve)
  for seed in range(2):
    for name in plans.VARIANTS:
      write_run(
        f"cifar10/{name}/seed{seed}",
        [value + seed / 100 for value in curve],
        population=None if name == "inception" else 0.9,
      )
  write_run("cifar10/inception_x5/seed0", [], status="diverged")
  planned = next(run for run in plans.figure2("cifar10", 3).runs if run.name == "cifar10/bn_x5/seed2")
  write_run(planned.name, [value + 0.02 for value in curve], population=0.9, **json.loads(planned.config().to_json()))
  for name in ("alone/shuffling/seed0", "up_to/no_dropout/seed0", "group/8/seed0"):
    root = write_run(f"cifar10/{name}", curve)
  path = page.write(str(root), str(tmp_path / "report"))
  content = path.read_text()
  text = text_of(content)
  assert path == tmp_path / "report" / "report.html"
  for name, scale in (
    ("figure1", "mnist"),
    ("figure2", "cifar10"),
    ("relative", "cifar10"),
    ("ratio", "cifar10"),
    ("ablation", "cifar10"),
  ):
    assert (tmp_path / "report" / name / f"{scale}.png").read_bytes().startswith(b"\x89PNG")
  assert content.count("<img") == content.count("<source") == 5
  assert not re.search(r"(src|srcset)=.(?!data:)", content)  # Self-contained.
  assert "/secret" not in content and str(tmp_path) not in content
  for row in paper.FIGURE_3.values():
    assert row.name in text
  for number in ("31.0M", "13.3M", "2.1M", "2.7M", "72.2%", "74.8%", "69.8%", "14 times: 2.1M"):
    assert number in text, number
  # Inception: ends of 0.9 and 0.91 after 800 steps of 32.
  assert "Inception 31.0M 800 ± 0 (2 seeds) 72.2% 90.5% ± 0.7% (2 seeds) 0.1 done" in text
  assert "Inception at the rate of BN-x5 parameters reach" not in text and "diverged parameters reach machine" in text
  assert "python scripts/reproduce.py figure3 --seeds=2 --workdir=runs/paper --data_dir=$TFDS_DATA_DIR" in text
  assert "python scripts/reproduce.py figure1 --seeds=1" in text
  assert (
    "reproduce.py ablation --seeds=1 --workdir" in text
  )  # One seed, though those runs of Figure 3 that it shares have more.
  assert "0123456789 1 abacus" in text and "jax 0.0.1" in text
  assert "python scripts/train.py --config=configs/bn_x5.py:cifar10 --config.seed=2" in text
  # Of the runs only this one has the config of the plan.
  assert "--config.seed=1" not in text and text.count("made with another config") > 10
  # 1e12 FLOP x steps, three evaluations of 50,000 images every 20,000 steps, and 1,024 for the population.
  assert "mnist_bn rate 0.1 0.1 400 90.00% (one seed) mnist_bn width 0.25 0.1 400 90.00% (one seed)" in text
  assert "--scale=imagenet" in text and "A100 80 GB hours" in text


def test_a_scale_behind_the_first_shows_only_what_was_measured(write_run, tmp_path):
  for scale, names in (("cifar10_full", ("inception", "bn_x5")), ("cifar10", ("bn_x5", "bn_x30"))):
    for name in names:
      for seed in range(2):
        root = write_run(f"{scale}/{name}/seed{seed}", [0.1, 0.5 + seed / 100])
  text = page.write(str(root), str(tmp_path / "report")).read_text()
  cells = dict(re.findall(r'<tr id="(x30_higher|bn_alone|x5_higher)">(.*?)</tr>', text, re.DOTALL))
  full, quick = (
    {key: re.search(rf'data-label="{scale}">(.*?)</td>', row, re.DOTALL)[1] for key, row in cells.items()}
    for scale in ("cifar10_full", "cifar10")
  )
  assert quick["bn_alone"].strip() == quick["x5_higher"].strip() == "&ndash;" and "against" in quick["x30_higher"]
  assert "not measured" in full["bn_alone"] and "no finished run of BN-Baseline" in full["bn_alone"]
  assert "undecided" in full["x5_higher"]


class Elements(html.parser.HTMLParser):
  """What a browser would find: anchors, links, rows of claims with their cells, headings with their classes."""

  def __init__(self, text):
    super().__init__()
    self.anchors, self.links, self.opened, self.stack, self.metas = [], [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.opened.append((tag, attributes, tuple(name for name, _ in self.stack)))
    if "id" in attributes:
      self.anchors.append(attributes["id"])
    if attributes.get("href", "").startswith("#"):
      self.links.append((attributes["href"][1:], [of.get("id") for name, of in self.stack if name == "tr"]))
    if tag not in ("meta", "img", "source", "br"):
      self.stack.append((tag, attributes))

  def handle_endtag(self, tag):
    assert self.stack.pop()[0] == tag, tag  # Every element is closed, in order.


def write_some(write_run):
  """Two scales with three networks, and no more."""
  for scale in ("cifar10_full", "cifar10"):
    for seed in range(3):
      for name, end in (("inception", 0.5), ("bn_x5", 0.6), ("bn_baseline", 0.55), ("controls/inception_8000", 0.45)):
        root = write_run(
          f"{scale}/{name}/seed{seed}", [0.3, 0.4, 0.45, end + seed / 100], time="2026-11-27T01:02:03+00:00"
        )
  write_run("cifar10/alone/no_lrn/seed0", [0.3, 0.4])
  return root


@pytest.mark.usefixtures("cheap_pictures")
def test_links_lead_somewhere_and_every_measured_row_leads_to_its_runs(write_run, tmp_path):
  found = Elements(page.write(str(write_some(write_run)), str(tmp_path)).read_text())
  assert not found.stack and len(found.anchors) == len(set(found.anchors))
  assert {target for target, _ in found.links} <= set(found.anchors)
  of_rows = {row: {target for target, rows in found.links if row in rows} for row in ("speedup", "x5_higher", "lrn")}
  assert of_rows["x5_higher"] == {
    f"runs-{scale}-{name}" for scale in ("cifar10_full", "cifar10") for name in ("bn_x5", "inception")
  }
  assert of_rows["lrn"] == {"runs-cifar10-alone-no_lrn", "runs-cifar10-bn_baseline"}
  assert {claim.key for claim in claims.CLAIMS} <= set(found.anchors)
  assert {"figure2", "ratio", "claims", "runs", "cifar10", "cifar10_full"} <= set(found.anchors)


@pytest.mark.usefixtures("cheap_pictures")
def test_the_page_begins_with_the_result(write_run, tmp_path):
  content = page.write(str(write_some(write_run)), str(tmp_path)).read_text()
  head = text_of(content[content.index("<h1") : content.index("<nav>")])
  assert content[content.index("<ol") : content.index("</ol>")].count("<li>") == 5
  assert "The newest run is of 2026-11-27." in head
  assert "BN-x5 over 800 steps against Inception over 800 steps: 61.0% ± 1.0% (3 seeds) against 51.0% ± 1.0%" in head
  assert "Missing at the scale of full lengths, cifar10_full : of BN-x30, BN-x5-Sigmoid" in head
  assert (
    "Inception over 20,000 steps, Inception over 80,000 steps, BN-x5 over 20,000 steps, BN-x5 over 40,000 steps, "
    in head
  )
  assert "BN-Baseline with distortions, BN-x5 at its best rate, BN-Baseline at its best rate, BN-x5 in float32" in head
  assert "BN-x5 in float32, BN-x5 in bfloat16 there are 0 of 3 seeds" in head
  assert "of the ensemble there are 0 of 6 networks" in head
  assert "of Inception," not in head
  order = [
    content.index(f'id="{anchor}"') for anchor in ("first", "figure2", "ratio", "claims", "cifar10_full", "runs")
  ]
  assert order == sorted(order)


@pytest.mark.usefixtures("cheap_pictures")
def test_the_page_is_made_for_phones(write_run, tmp_path):
  content = page.write(str(write_some(write_run)), str(tmp_path)).read_text()
  found = Elements(content)
  assert ("meta", "width=device-width, initial-scale=1") in [(tag, of.get("content")) for tag, of, _ in found.opened]
  # Cells carry their heading, for rows that become blocks; commands are folded away; numbers stand at the right.
  assert all("data-label" in of for tag, of, _ in found.opened if tag == "td" and "class" in of)
  assert all("details" in inside for tag, _, inside in found.opened if tag == "p" and "td" in inside)
  assert '<td class="number" data-label="times fewer">' in content
  assert "scroll" not in content


def test_the_same_runs_make_the_same_bytes(write_run, tmp_path):
  write_run("cifar10/inception/seed0", [0.3, 0.4])
  root = str(write_run("cifar10/bn_x5/seed0", [0.5, 0.6]))
  first, second = (page.write(root, str(tmp_path / name)) for name in ("first", "second"))
  files = lambda folder: {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
  assert files(first.parent) == files(second.parent)


@pytest.mark.usefixtures("cheap_pictures")
def test_the_inception_that_sets_the_plateau_stands_in_the_table_of_figure_3(write_run, tmp_path):
  """Over twice the steps it ends ten points higher; a diverged seed without evaluations leaves the others' numbers."""
  for seed in range(2):
    write_run(f"cifar10/inception/seed{seed}", [0.1] * 8 + [0.5 + seed / 100] * 2)
    write_run(f"cifar10/controls/inception_4000/seed{seed}", [0.1] * 16 + [0.6 + seed / 100] * 4)
    root = write_run(f"cifar10/bn_x5/seed{seed}", [0.62 + seed / 100] * 10)
  write_run("cifar10/bn_x5/seed2", [], status="diverged", num_steps=1000)
  text = text_of(page.write(str(root), str(tmp_path)).read_text())
  table = text[text.index("steps to the plateau of Inception, 60.5%") :]
  assert "Inception over 4,000 steps 3,400 ± 0 (2 seeds) 60.5% ± 0.7% (2 seeds) 0.1 done" in table
  assert "Inception 31.0M 0 of 2 seeds 72.2% 50.5% ± 0.7% (2 seeds)" in table
  assert "BN-x5 2.1M 2 of 3 seeds, after" in table and "62.5% ± 0.7% (2 seeds) 0.1 done, diverged" in table


def test_without_jinja2_one_sentence_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "jinja2", None)
  spec = importlib.util.spec_from_file_location("page_again", page.__file__)
  with pytest.raises(UserError, match=r"The report needs jinja2.*\[report\]"):
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.slow
def test_the_report_in_results_is_that_of_its_runs(repository, tmp_path, monkeypatch):
  """After a change of runs, configs or the page: reproduce.py report --workdir=results --output=results."""
  monkeypatch.undo()  # The true costs.
  results = repository / "results"
  made = page.write(str(results), str(tmp_path))
  assert made.read_bytes() == (results / "report.html").read_bytes()
  for picture in tmp_path.rglob("*.png"):
    assert picture.read_bytes() == (results / picture.relative_to(tmp_path)).read_bytes(), picture


def test_figure_4_stands_in_the_papers_layout(write_run, write_evaluation, tmp_path):
  for member, (rate, one, many) in enumerate(((0.05, 0.30, 0.25), (0.10, 0.34, 0.29))):
    write_run(
      f"cifar10/ensemble/member{member}",
      [0.5],
      model={"name": "inception", "init_scale": 1.5, "dropout_rate": rate},
      batch_norm={"per_activation": ["5b"]},
    )
    write_evaluation(f"member{member}_1crop_running", 1, 1, one)
    write_evaluation(f"member{member}_10crop_running", 1, 10, many)
  write_evaluation("ensemble_10crop_running", 2, 10, 0.22)
  root = write_evaluation("ensemble_1crop_population", 2, 1, 0.23, statistics="population")
  text = text_of(page.write(str(root), str(tmp_path / "report")).read_text())
  assert (tmp_path / "report" / "figure4" / "cifar10.png").read_bytes().startswith(b"\x89PNG")
  assert (
    "BN-Inception single crop 1 1 25.20% 7.82% 1 moving averages 32.00% ± 2.83% (2 networks) "
    "16.00% ± 1.41% (2 networks)"
  ) in text
  assert "BN-Inception multicrop 144 1 21.99% 5.82% 10 moving averages 27.00%" in text
  assert "BN-Inception ensemble 144 6 20.10% 4.90% 10 moving averages 22.00% 11.00%" in text
  assert "the ensemble with one crop 1 population (Algorithm 2) 23.00% 11.50%" in text
  assert "member0 1.5 5% 5b 30.00% 15.00% 25.00% 12.50%" in text and "GoogLeNet ensemble 144 7 6.67%" in text
  assert "python scripts/reproduce.py figure4 --workdir" in text


@pytest.mark.usefixtures("cheap_pictures")
def test_a_seed_that_diverged_hides_no_statistics_of_the_others(write_run, tmp_path):
  for seed, top1 in enumerate((0.5, 0.52)):
    write_run(f"cifar10/bn_x5/seed{seed}", [0.1, top1], population=top1 + 0.1)
  root = write_run("cifar10/bn_x5/seed2", [], status="diverged", num_steps=200)
  text = text_of(page.write(str(root), str(tmp_path / "report")).read_text())
  assert "bn_x5 51.0% ± 1.4% (2 seeds) 61.0% ± 1.4% (2 seeds) 61.0% ± 1.4% (2 seeds)" in text


@pytest.mark.usefixtures("cheap_pictures")
def test_single_crops_are_not_shown_as_many(write_evaluation, write_run, tmp_path):
  write_run("cifar10/bn_x5/seed0", [0.5])
  root = write_evaluation("member0_1crop_running", 1, 1, 0.30)
  text = text_of(page.write(str(root), str(tmp_path / "report")).read_text())
  assert "BN-Inception single crop 1 1 25.20% 7.82% 1 moving averages 30.00% 15.00% BN-Inception multicrop" in text
  assert "BN-Inception multicrop 144 1 21.99% 5.82% BN-Inception ensemble 144 6 20.10% 4.90% At full scale" in text


@pytest.mark.usefixtures("cheap_pictures")
def test_a_scale_has_the_figures_that_are_made_of_it(write_run, tmp_path):
  write_run("cifar10_full/inception/seed0", [0.1, 0.3])
  write_run("cifar10/bn_x5/seed0", [0.3, 0.4])
  root = write_run("cifar10_full/bn_x5/seed0", [0.3, 0.4])
  text = text_of(page.write(str(root), str(tmp_path / "report")).read_text())
  assert "reproduce.py figure3 --scale=cifar10_full --seeds=1 --workdir" in text
  assert "BN-x5 took 200 (one seed) to 30.0%" in text and "One seed a side" in text
  assert "ablation --scale=cifar10_full" in text and "precision --scale=cifar10" not in text


@pytest.mark.usefixtures("cheap_pictures")
def test_without_runs_for_them_claims_are_not_measured(write_run, tmp_path):
  root = write_run("mnist/mnist_bn/seed0", [0.5])
  text = text_of(page.write(str(root), str(tmp_path)).read_text())
  assert "cifar10_full : 29 not measured. mnist : 8 not measured. imagenet : 2 not measured." in text
  assert "No run here states when it ended." in text
  with pytest.raises(FileNotFoundError, match="holds no runs"):
    (tmp_path / "empty").mkdir()
    page.write(str(tmp_path / "empty"), str(tmp_path))


@pytest.mark.usefixtures("cheap_pictures")
def test_hours_follow_from_the_count_of_operations(write_run, tmp_path):
  text = text_of(page.write(str(write_run("mnist/mnist_bn/seed0", [0.5])), str(tmp_path)).read_text())
  steps = 31e6 + 31e6 + 3 * 6e6  # Figure 2: the two without §4.2.1's changes run as long as Inception.
  evaluations = 31e6 / 20_000 * (50_000 + 3 * 50_000 + 32 * 32) + 3 * 6e6 / 20_000 * (3 * 50_000 + 32 * 32)
  flop, traffic = steps * 1e12 + evaluations * 1e10, steps * 1e11 + evaluations * 1e8
  a100 = f"{flop / 156e12 / 3600:,.0f} to {traffic / 2.039e12 / 3600:,.0f}"
  assert "ablation 19 139.0M" in text  # 31M, 12 of 6M (alone, one after the other), 6M, 5 of 3M with batches of 64.
  assert f"figure2 5 80.0M {flop:.1e} {traffic:.1e} {a100} " in text
