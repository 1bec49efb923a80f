"""One self-contained HTML page with every figure, table and claim of the paper beside what was measured.

This module gathers what the page shows; templates/report.html says how it looks. The same runs make the same bytes.
"""

import base64
import io
import json
import pathlib
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from bn_inception import curves, paper, run_directory
from bn_inception.errors import UserError
from bn_inception.reproduction import claims, figures, measured, plans, run_cost, speedup, verdicts
from bn_inception.reproduction.claims import Claim, Finding
from bn_inception.reproduction.measured import Result

try:
  import jinja2
except ImportError as error:
  raise UserError("The report needs jinja2, the extra 'report' of this project: pip install -e '.[report]'.") from error

# Scales of §4.2 in the order of what they can tell; the first is always shown.
_SCALES = ("cifar10_full", "cifar10", "imagenet", "quickstart")
_HEADLINES = ("speedup", "bn_alone", "x5_higher", "x30_higher", "sigmoid_trains")
_LEVELS = (0.8, 0.85, 0.9, 0.95, 1.0)  # Of Inception's plateau, in the table beside the curve.


class Link(NamedTuple):
  """A cell that leads to another place of the page."""

  text: str
  target: str


class Command(NamedTuple):
  """Commands that are folded away."""

  commands: tuple[str, ...]


Cell = str | int | Link | Command


class Table(NamedTuple):
  """Rows of cells; `numeric`: which columns hold numbers."""

  headings: Sequence[str]
  rows: Sequence[Sequence[Cell]]

  @property
  def numeric(self) -> list[bool]:
    columns = [
      [str(row[place]) for row in self.rows if row[place] not in ("", None)] for place in range(len(self.headings))
    ]
    return [bool(column) and all(re.match(r"[-+]?\d|not ", text) for text in column) for column in columns]


class Picture(NamedTuple):
  """A picture for wide and one for narrow pages, as data URLs, with what there is to say of it."""

  title: str
  wide: str
  narrow: str
  remark: str
  command: Command


class Block(NamedTuple):
  """A heading with what stands below it; every part may be empty."""

  title: str
  anchor: str
  picture: Picture | None = None
  tables: Sequence[Table] = ()
  remark: str = ""
  command: Command | None = None


class Section(NamedTuple):
  """A chapter of the page."""

  title: str
  anchor: str
  blocks: Sequence[Block]
  remark: str = ""


class Group(NamedTuple):
  """Claims that are asked at the same scales: rows of (claim, findings in the order of the scales, commands)."""

  title: str
  anchor: str
  scales: Sequence[str]
  rows: Sequence[tuple[Claim, Sequence[Finding], Command]]


class RunsRow(NamedTuple):
  """The runs of an experiment."""

  anchor: str
  name: str
  seeds: str
  steps: str
  status: str
  dates: str
  revisions: str
  devices: str
  command: Command


def write(workdir: str, output: str) -> pathlib.Path:
  """Builds OUTPUT/report.html, with the pictures as OUTPUT/FIGURE/SCALE.png too.

  Args:
    workdir: holds runs SCALE/EXPERIMENT/SEED at any depth: a --workdir of `reproduce.py`, or an archive of it.
    output: the folder to write to.

  Returns:
    The page.

  Raises:
    FileNotFoundError: if `workdir` does not exist or holds no runs.
  """
  root, folder = pathlib.Path(workdir), pathlib.Path(output)
  results = measured.collect(root)
  if not results:
    raise FileNotFoundError(f"{workdir} holds no runs: make some with scripts/reproduce.py, e.g. figure1.")
  groups = _groups(results, root)
  first = next(
    (scale for scale in _SCALES if {"inception", "bn_x5"} <= measured.finished(results.get(scale, {})).keys()), None
  )
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("bn_inception.reproduction"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  text = environment.get_template("report.html").render(
    headlines=_headlines(groups),
    newest=measured.newest(results),
    missing=_missing(results),
    groups=groups,
    counts=_counts(groups),
    confidence=verdicts.CONFIDENCE,
    power=verdicts.POWER,
    margin=-100 * claims.NO_WORSE,
    many=claims.MANY,
    first=first and _first(first, measured.finished(results[first]), folder),
    scales=[
      _scale(scale, results[scale], measured.evaluations(root, scale), folder)
      for scale in (*_SCALES, "mnist")
      if scale in results
    ],
    costs=[_full_scale(), *_compiled(root / "accelerator_cost")],
    runs=_runs(results),
    packages=_packages(results),
    claim_name=claims.name_of,
    runs_anchor=_runs_anchor,
  )
  folder.mkdir(parents=True, exist_ok=True)
  page = folder / "report.html"
  run_directory.replace_file(page, text)
  return page


def _groups(results: measured.Results, root: pathlib.Path) -> list[Group]:
  """Every claim at every scale that has runs for it."""
  mnist = tuple(claim for claim in claims.CLAIMS if claim.figure == "figure1")
  imagenet = tuple(claim for claim in claims.CLAIMS if claim.key in claims.IMAGENET)
  others = tuple(claim for claim in claims.CLAIMS if claim not in mnist + imagenet)

  def has(scale: str, names: Iterable[str]) -> bool:
    return any(name in results.get(scale, {}) for name in names)

  mnist_scales = [scale for scale in ("mnist", "quickstart") if has(scale, ("mnist_bn", "mnist_plain"))] or ["mnist"]
  scales = [scale for scale in _SCALES if scale == _SCALES[0] or has(scale, (*paper.FIGURE_3, "ensemble"))]
  groups = []
  for title, anchor, group_claims, group_scales in (
    ("Inception (abstract, §4.2)", "claims-inception", others, scales),
    ("MNIST (§4.1)", "claims-mnist", mnist, mnist_scales),
    ("What only ImageNet can answer", "claims-imagenet", imagenet, ["imagenet"]),
  ):
    rows = []
    for claim in group_claims:
      findings = [
        claims.judge(claim, results.get(scale, {}), measured.evaluations(root, scale)) for scale in group_scales
      ]
      commands = [_command(claim.figure, scale, results.get(scale, {})) for scale in group_scales]
      rows.append((claim, findings, Command(tuple(line for command in commands for line in command.commands))))
    groups.append(Group(title, anchor, group_scales, rows))
  return groups


def _counts(groups: Sequence[Group]) -> list[tuple[str, str]]:
  """(scale, '3 confirmed, ...') of every column."""
  counts: dict[str, dict[str, int]] = {}
  for group in groups:
    for _, findings, _ in group.rows:
      for scale, finding in zip(group.scales, findings):
        of_scale = counts.setdefault(scale, {})
        of_scale[finding.verdict] = of_scale.get(finding.verdict, 0) + 1
  kinds = (verdicts.CONFIRMED, verdicts.REFUTED, verdicts.UNDECIDED, verdicts.NOT_MEASURED, verdicts.SHOWN)
  return [
    (scale, ", ".join(f"{of_scale[kind]} {kind}" for kind in kinds if kind in of_scale))
    for scale, of_scale in counts.items()
  ]


def _headlines(groups: Sequence[Group]) -> list[tuple[Claim, str, Finding]]:
  """Five claims, each at the first scale that has its runs: (claim, scale, finding)."""
  lines = []
  for claim, scales, findings in (
    (claim, group.scales, findings) for group in groups for claim, findings, _ in group.rows if claim.key in _HEADLINES
  ):
    place = next((place for place, finding in enumerate(findings) if finding.verdict != verdicts.NOT_MEASURED), 0)
    lines.append((claim, scales[place], findings[place]))
  return sorted(lines, key=lambda line: _HEADLINES.index(line[0].key))


def _missing(results: measured.Results) -> list[str]:
  """What the first scale still lacks: ['of BN-x5, BN-x30 there are 1 of 3 seeds']."""
  scale, seeds = _SCALES[0], plans.FIGURES["figure3"][2]
  finished = measured.finished(results.get(scale, {}))
  lacking: dict[int, list[str]] = {}
  for name in dict.fromkeys(map(plans.experiment_of, plans.figure3(scale, 1).runs)):
    if (count := len(finished.get(name, []))) < seeds:
      lacking.setdefault(count, []).append(claims.name_of(name))
  return [f"of {', '.join(names)} there are {count} of {seeds} seeds" for count, names in sorted(lacking.items())]


def _first(scale: str, experiments: dict[str, list[Result]], folder: pathlib.Path) -> Section:
  """Figure 2 in the paper's axes, and the ratio of steps, at the first scale that has them."""
  command = _command("figure3", scale, experiments)
  blocks = [
    Block(
      "",
      "figure2",
      _picture(
        figures.relative,
        (experiments,),
        "Figure 2, with the paper's five points",
        folder / "relative" / f"{scale}.png",
        f"At the scale {scale}. Lines are means over seeds, bands their range. A mark is at the steps to Inception's "
        "plateau and at the accuracy in the end, with standard deviations. The paper's, on ImageNet, are at the steps "
        "to 72.2% and at the maximum; its BN-x5-Sigmoid never came to 72.2%. A "
        "network of which not all seeds came to the plateau stands at the right.",
        command,
      ),
    )
  ]
  baselines = Table(
    [
      "baseline",
      "steps",
      "learning rate",
      "accuracy at the end",
      "against half its length or less: gain",
      "plateau reached",
    ],
    [
      [
        Link(claims.name_of(row.name), _runs_anchor(scale, row.name)),
        f"{row.steps:,.0f}",
        f"{row.learning_rate:g}",
        claims.describe(row.accuracy),
        "" if row.gain is None else f"{claims.points(row.gain)} points with {row.times:g} times the steps",
        {None: "not known", True: "yes", False: "no"}[row.plateau],
      ]
      for row in speedup.lengths(experiments)
    ],
  )
  rows = []
  for name in speedup.networks(experiments):
    for point in speedup.curve(experiments, name, _LEVELS):
      rows.append(
        [
          Link(claims.name_of(name), _runs_anchor(scale, name)),
          f"{point.fraction:.0%}",
          f"{point.accuracy:.1%}",
          claims.name_of(point.baseline),
          claims.mean_text(point.baseline_steps, claims.steps_text),
          claims.mean_text(point.steps, claims.steps_text) if point.steps else "not by all seeds",
          f"{len(point.baseline_steps.values)}, {len(experiments[name])}",
          f"{point.ratio:.1f}" if point.ratio else "",
          "{:.1f} to {:.1f}".format(*point.interval) if point.interval else "",
          f"{paper.FIGURE_3['inception'].steps / paper.FIGURE_3[name].steps:.1f}"
          if point.fraction == 1 and name in paper.FIGURE_3
          else "",
        ]
      )
  levels = Table(
    [
      "network",
      "level, of the plateau",
      "accuracy",
      "fastest baseline",
      "its steps",
      "steps",
      "seeds of both",
      "times fewer",
      "95% interval",
      "the paper, to 72.2%",
    ],
    rows,
  )
  blocks.append(
    Block(
      "How many times fewer steps",
      "ratio",
      _picture(
        figures.ratio,
        (experiments,),
        "Times fewer steps than the fastest Inception, by level of accuracy",
        folder / "ratio" / f"{scale}.png",
        "Bands are 95% intervals (on the logarithms of the steps: Welch's, with the error of the plateau); "
        "without a band a network or its baseline has a single seed. A curve ends at the last level that all seeds "
        "reach.",
        command,
      ),
      [table for table in (levels, baselines) if table.rows],
      "Levels are fractions of Inception's plateau, the best mean accuracy at the end over the lengths that it was "
      "annealed over. At each level the fastest of these baselines counts; beside BN-Baseline, which differs from "
      "Inception by BN alone, only the Inception of its own length. Steps are interpolated between evaluations. "
      "The plateau counts as reached when a run of twice the length gains less than the deviation over seeds.",
    )
  )
  return Section("Figure 2 and the ratio of steps (§4.2.2)", "first", blocks)


def _picture(
  draw: Callable[..., Figure | None],
  arguments: tuple[Any, ...],
  title: str,
  path: pathlib.Path,
  remark: str,
  command: Command,
) -> Picture | None:
  """Draws a figure of figures.py for wide and narrow pages, and keeps the wide one as a file; None without runs."""
  figure = draw(*arguments)
  if figure is None:
    return None
  path.parent.mkdir(parents=True, exist_ok=True)
  curves.save(figure, path)
  narrow = io.BytesIO()
  draw(*arguments, narrow=True).savefig(narrow, dpi=130)
  return Picture(title, _data_url(path.read_bytes()), _data_url(narrow.getvalue()), remark, command)


def _data_url(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode()


def _scale(
  scale: str, experiments: dict[str, list[Result]], evaluations: claims.Evaluations, folder: pathlib.Path
) -> Section:
  """Everything at one scale."""
  blocks = []

  def add(
    anchor: str,
    title: str,
    figure: str,
    draw: Callable[..., Figure | None] | None,
    arguments: tuple[Any, ...],
    remark: str = "",
    tables: Sequence[Table] = (),
  ) -> None:
    command = _command(figure, scale, experiments)
    picture = draw and _picture(draw, arguments, title, folder / anchor / f"{scale}.png", remark, command)
    tables = [table for table in tables if table.rows]
    if picture or tables:
      blocks.append(
        Block(title, f"{scale}-{anchor}", picture, tables, "" if picture else remark, None if picture else command)
      )

  add(
    "figure1",
    "Figure 1: the MNIST network (§4.1)",
    "figure1",
    figures.figure1,
    (experiments,),
    "(a) is the mean over seeds, with their range. (b, c) show the first seed's unit with the median movement of "
    "those recorded; percentiles are over the whole test split. The paper gives no numbers beside its curves: with "
    "BN the network trains faster and ends higher, and its distributions stay stable.",
  )
  finished = measured.finished(experiments)
  ablation = measured.for_ablation(finished)
  add(
    "figure2",
    "Figures 2 and 3: validation accuracy against steps (§4.2.2)",
    "figure3",
    figures.figure2,
    (experiments,),
    "The paper's order from fast to slow is BN-x5, BN-x30, BN-Baseline, Inception. Steps are mini-batches of 32 to "
    "the plateau of Inception (of Inception, to each run's own), interpolated between evaluations; accuracy at the "
    "end is the mean of the evaluations in the last tenth of the steps.",
    [_figure3(scale, finished)],
  )
  add(
    "ablation",
    "Ablation: from BN-Baseline to BN-x5 (§4.2.1), and the size of the BN groups",
    "ablation",
    figures.ablation,
    (ablation, tuple(plans.CHANGES), plans.GROUP_SIZES),
    "The paper gives a number for one of the changes: about 1% for shuffling within shards. Groups of m in batches "
    f"of {plans.GROUP_BATCH}, everything else as BN-x5. Small dots are seeds, bars standard deviations.",
    [_ablation(scale, ablation)],
  )
  add(
    "figure4",
    "Figure 4: crops and the ensemble (§4.2.3)",
    "figure4",
    figures.figure4,
    (evaluations,),
    "Small dots are the single networks, large ones their mean with the standard deviation. The paper's are of "
    "ImageNet.",
    _figure4(evaluations, finished),
  )
  add(
    "statistics",
    "Statistics at inference (Algorithm 2, §3.1): top-1 at the end of the runs",
    "figure4",
    None,
    (),
    "",
    [_statistics(scale, finished)],
  )
  add(
    "sweep",
    "Learning rates",
    "sweep",
    figures.sweep,
    (finished,),
    "On training examples held out. Inception and the MNIST networks have in configs/ what was chosen here; the other "
    "networks have the paper's multiples of Inception's rate.",
    _sweep(scale, finished),
  )
  return Section(_title(scale, experiments), scale, blocks, _evaluated(experiments))


def _title(scale: str, experiments: dict[str, list[Result]]) -> str:
  runs = [run for runs in experiments.values() for run in runs]
  data = sorted({run.config["data"]["name"] for run in runs})
  lengths = sorted({run.config["num_steps"] for run in runs})
  return (
    f"{scale}: {', '.join(data)}, runs of "
    + " to ".join(f"{length:,}" for length in dict.fromkeys((lengths[0], lengths[-1])))
    + " steps"
  )


def _evaluated(experiments: dict[str, list[Result]]) -> str:
  """Which examples the curves and the tables of runs are of."""
  splits = {}
  for name, runs in experiments.items():
    for run in runs:
      count = next((line["eval/count"] for line in run.lines if "eval/count" in line), None)
      if count and not name.startswith("sweep/"):
        splits[run.config["data"]["eval_split"]] = count
  return (
    "Evaluated during training on "
    + ", ".join(f"{split} ({count:,.0f} examples)" for split, count in splits.items())
    + "."
    if splits
    else ""
  )


def _command(figure: str, scale: str, experiments: dict[str, list[Result]]) -> Command:
  """The command for a figure with as many seeds as it was made with; none where it is not planned at that scale."""
  make_plan, scales, default_seeds = plans.FIGURES[figure]
  if scale not in scales:
    return Command(())
  experiments = measured.finished(experiments)
  planned = [plans.experiment_of(run) for run in make_plan(scale, 2).runs]
  # Some runs are made once whatever the seeds; the ablation begins and ends with runs of Figure 3, which has its own.
  seeds = max(
    (
      len(experiments[name])
      for name in set(planned) & set(experiments)
      if planned.count(name) == 2 and not (figure == "ablation" and name in plans.VARIANTS)
    ),
    default=default_seeds,
  )
  return Command(
    (
      f"python scripts/reproduce.py {figure}"
      + (f" --scale={scale}" if scale != scales[0] else "")
      + (f" --seeds={seeds}" if seeds != default_seeds else "")
      + " --workdir=runs/paper --data_dir=$TFDS_DATA_DIR",
    )
  )


def _figure3(scale: str, experiments: dict[str, list[Result]]) -> Table:
  """The table of Figure 3, and the runs that §4.2.2 tells of."""
  plateau = speedup.plateau(experiments)
  rows = []
  for name, row in paper.FIGURE_3.items():
    runs = experiments.get(name, [])
    end = measured.over_seeds(runs, measured.level)
    steps = ""
    if plateau and end is not None:
      reached = [steps_of_run for steps_of_run in plateau.steps(name, runs) if steps_of_run is not None]
      if len(reached) == len(runs):
        steps = claims.describe(measured.Spread(tuple(reached)), claims.steps_text)
      else:
        steps = f"{len(reached)} of {len(runs)} seeds" + (
          f", after {claims.steps_text(statistics.fmean(reached))}" if reached else ""
        )
    rows.append(
      [
        Link(row.name, _runs_anchor(scale, name)) if runs else row.name,
        "" if row.steps is None else claims.steps_text(row.steps),
        steps,
        "" if row.top1 is None else claims.percent(row.top1),
        "" if end is None else claims.describe(end),
        f"{runs[0].config['learning_rate']:g}" if runs else "",
        ", ".join(dict.fromkeys(run.status.get("status", "") for run in runs)) or "not run",
        row.remark,
      ]
    )
  heading = "steps to the plateau of Inception" + (f", {claims.percent(plateau.level.mean)}" if plateau else "")
  return Table(
    [
      "",
      "paper: steps to 72.2%",
      heading,
      "paper: maximum top-1",
      "top-1 at the end",
      "learning rate",
      "status",
      "the paper's text",
    ],
    rows if any(name in experiments for name in paper.FIGURE_3) else [],
  )


def _ablation(scale: str, experiments: dict[str, list[Result]]) -> Table:
  changes = {name: name.replace("_", " ") for name in plans.CHANGES}
  labels = {
    "bn_baseline": "BN-Baseline",
    **{f"alone/{name}": f"{text} alone" for name, text in changes.items()},
    **{f"up_to/{name}": f"all up to {text}" for name, text in changes.items()},
    "bn_x5": "all: BN-x5",
    **{f"group/{size}": f"BN-x5 in groups of {size}" for size in plans.GROUP_SIZES},
  }
  ends = {name: end for name in labels if (end := measured.over_seeds(experiments.get(name, []), measured.level))}
  rows = [[Link(labels[name], _runs_anchor(scale, name)), claims.describe(end)] for name, end in ends.items()]
  return Table(["", "top-1 at the end"], rows if any(name not in plans.VARIANTS for name in ends) else [])


def _figure4(evaluations: claims.Evaluations, experiments: dict[str, list[Result]]) -> list[Table]:
  """The table of Figure 4, and its networks one by one."""
  kinds = measured.metrics_by_kind(evaluations)
  if not kinds:
    return []
  many = max(crops for _, crops, _ in kinds)
  paper_rows = {row.name: row for row in paper.FIGURE_4}

  def metrics_of(single: bool, crops: int, statistics: str) -> dict[str, dict[str, float]] | None:
    for (networks, its_crops, its_statistics), metrics in kinds.items():
      if (networks == 1, its_crops, its_statistics) == (single, crops, statistics):
        return metrics
    return None

  rows = [[name, *_paper_errors(row), *[""] * 4] for name, row in paper_rows.items() if "BN-Inception" not in name]
  for name, single, crops, kind in (
    ("BN-Inception single crop", True, 1, "running"),
    ("BN-Inception multicrop", True, many, "running"),
    ("BN-Inception ensemble", False, many, "running"),
    ("the ensemble with one crop", False, 1, "running"),
    ("the ensemble with one crop", False, 1, "population"),
  ):
    row = paper_rows.get(name)
    of_one_crop = many == 1 and row is not None and row.crops > 1  # Its many crops are still to be evaluated.
    metrics = None if of_one_crop else metrics_of(single, crops, kind)
    ours = (
      [
        crops,
        {"running": "moving averages", "population": "population (Algorithm 2)"}[kind],
        *(_error(metrics, place) for place in ("top1_error", "top5_error")),
      ]
      if metrics
      else [""] * 4
    )
    if row or metrics:
      rows.append([name, *(_paper_errors(row) if row else [""] * 4), *ours])
  table = Table(
    [
      "",
      "the paper: crops",
      "networks",
      "top-1 error",
      "top-5 error",
      "measured: crops",
      "statistics",
      "top-1 error",
      "top-5 error",
    ],
    rows,
  )
  rows, all_crops = [], sorted({1, many})
  for run in experiments.get("ensemble", []):
    model, norm = run.config["model"], run.config["batch_norm"]
    rows.append(
      [
        run.seed,
        f"{model['init_scale']:g}",
        f"{model['dropout_rate']:.0%}",
        ", ".join(norm["per_activation"]) or "none",
        *(
          _percent((metrics_of(True, crops, "running") or {}).get(run.seed, {}).get(place))
          for crops in all_crops
          for place in ("top1_error", "top5_error")
        ),
      ]
    )
  return [
    table,
    Table(
      [
        "",
        "factor on the initial weights",
        "dropout",
        "modules with BN per activation",
        *(
          f"{place} error, {crops} crop{'s' if crops > 1 else ''}"
          for crops in all_crops
          for place in ("top-1", "top-5")
        ),
      ],
      rows,
    ),
  ]


def _statistics(scale: str, experiments: dict[str, list[Result]]) -> Table:
  """The three kinds of statistics at inference, of the runs that were evaluated with all."""
  rows = []
  for name, runs in experiments.items():
    of_kinds = [
      measured.over_seeds(runs, lambda run, kind=kind: (run.lines or [{}])[-1].get(f"eval/{kind}/top1"))
      for kind in ("running", "population", "batch")
    ]
    if None not in of_kinds and not name.startswith("sweep/"):
      of = "network" if name == "ensemble" else "seed"
      rows.append([Link(name, _runs_anchor(scale, name)), *(claims.describe(spread, of=of) for spread in of_kinds)])
  return Table(["", "moving averages", "population (Algorithm 2)", "each batch's own"], rows)


def _paper_errors(row: paper.ErrorRow) -> list[object]:
  return [row.crops or "", row.networks or "", _percent(row.top1_error), _percent(row.top5_error)]


def _error(metrics: dict[str, dict[str, float]], place: str) -> str:
  errors = measured.Spread(tuple(of_network[place] for of_network in metrics.values()))
  return _percent(errors.mean) if len(metrics) == 1 else claims.describe(errors, _percent, of="network")


def _percent(value: float | None) -> str:
  return "" if value is None else f"{value:.2%}"


def _sweep(scale: str, experiments: dict[str, list[Result]]) -> list[Table]:
  """The best rate of each network, and every rate, length and other change that was tried."""
  best = []
  for network, points in figures.sweep_points(experiments).items():
    if len(points) == 1:
      continue  # Of a single rate nothing is best.
    rate = max(points, key=lambda rate: points[rate].mean)
    best.append(
      [
        network,
        f"{rate:g}",
        f"{min(points):g} to {max(points):g}",
        "yes" if min(points) < rate < max(points) else "no",
        claims.describe(points[rate], _percent),
      ]
    )
  rows = []
  for name, runs in experiments.items():
    end = measured.over_seeds(runs, measured.level)
    if name.startswith("sweep/") and end is not None:
      config = runs[0].config
      _, network, point = name.split("/")
      rows.append([network, config["learning_rate"], config["num_steps"], point.replace("_", " "), end, name])
  rows.sort(key=lambda row: row[:4])
  return [
    Table(["network", "best rate", "tried", "inside the range", "held-out top-1 at the end"], best),
    Table(
      ["network", "tried", "learning rate", "steps", "held-out top-1 at the end"],
      [
        [Link(network, _runs_anchor(scale, name)), tried, f"{rate:g}", f"{steps:,}", claims.describe(end, _percent)]
        for network, rate, steps, tried, end, name in rows
      ],
    ),
  ]


def _full_scale() -> Block:
  """The commands for ImageNet, and what they take."""
  rows = []
  for figure in ("figure2", "figure3", "ablation", "figure4", "sweep"):
    make_plan, _, _ = plans.FIGURES[figure]
    work, steps = run_cost.Work(0, 0), 0
    plan = make_plan("imagenet", 1)
    for run in plan.runs:
      config = run.config()
      work = work.plus(run_cost.total_work(config, run_cost.count_work(config), paper.VALIDATION_IMAGES))
      steps += round(config.num_steps * config.batch_size / 32)
    inference = run_cost.count_work(plan.runs[0].config()).inference
    for evaluation in plan.evaluations:
      work = work.plus(inference.times(evaluation.crops * len(evaluation.runs) * paper.VALIDATION_IMAGES))
    rows.append(
      [
        figure,
        len(plan.runs),
        claims.steps_text(steps),
        f"{work.flop:.1e}",
        f"{work.bytes:.1e}",
        *("{:,.0f} to {:,.0f}".format(*accelerator.hours(work)) for accelerator in run_cost.ACCELERATORS),
        Command(
          (
            f"python scripts/reproduce.py {figure} --scale=imagenet --seeds=1 --workdir=runs/paper "
            "--data_dir=/data/tfds --index=0 --count=8",
          )
        ),
      ]
    )
  return Block(
    "At full scale: ImageNet",
    "full-scale",
    None,
    [
      Table(
        [
          "figure",
          "runs of one seed",
          "steps of 32",
          "FLOP",
          "bytes",
          *(f"{accelerator.name} hours" for accelerator in run_cost.ACCELERATORS),
          "command, on each machine with its --index",
        ],
        rows,
      )
    ],
    "FLOP and bytes: XLA's counts for the programs of a training step and of inference, lowered for an "
    "accelerator and before fusion, times the steps, evaluations and crops. Hours of one accelerator: from all "
    "arithmetic at its peak to all that memory traffic at its bandwidth ("
    + "; ".join(
      f"{name}: {flop / 1e12:.0f} TFLOP/s, {bandwidth / 1e12:.2f} TB/s"
      for name, flop, bandwidth in run_cost.ACCELERATORS
    )
    + ", by their data sheets; in float32, whose products JAX makes of TF32 or bfloat16 there, but for crops and "
    "ensembles, which are computed exactly and take longer). Fusion saves much of the traffic; input, "
    "kernel launches and small layers come on top. Figures share runs: figure 3 includes those of figure 2. "
    "Figure 1 takes minutes on a CPU.",
  )


def _compiled(folder: pathlib.Path) -> list[Block]:
  """What scripts/accelerator_cost.py wrote: configs compiled for accelerators, narrower than the ranges above."""
  rows = []
  for path in sorted(folder.glob("*.json")):
    cost = json.loads(path.read_text(encoding="utf-8"))
    least, likely = (sum(pair[i] for pair in cost["hours"].values()) * cost["chips"] for i in (0, 1))
    rows.append(
      [
        cost["config"],
        cost["topology"],
        cost["dtype"],
        f"{cost['batch_size']:,}",
        cost["group_size"] or "whole batch",
        f"{cost['train']['bytes'] * cost['chips'] / cost['train']['images'] / 1e6:.0f}",
        f"{cost['num_steps']:,}",
        f"{least:,.0f} to {likely:,.0f}",
      ]
    )
  if not rows:
    return []
  return [
    Block(
      "Compiled for accelerators",
      "compiled",
      None,
      [Table(["config", "topology", "type", "batch", "BN group", "MB an image", "steps", "chip hours"], rows)],
      "By XLA's compiler for a TPU that is not there (scripts/accelerator_cost.py), evaluations included: from the "
      "chip's data sheet to the compiler's own estimate of its schedule. Nothing was run there.",
    )
  ]


def _runs(results: measured.Results) -> list[RunsRow]:
  """Every experiment, with the commands that make its runs again."""
  rows = []
  for scale, experiments in results.items():
    known = {
      run.name: run
      for make_plan, scales, seeds in plans.FIGURES.values()
      if scale in scales
      for run in make_plan(scale, max(seeds, max(map(len, experiments.values())))).runs
    }
    for experiment, runs in experiments.items():
      commands = []
      for run in runs:
        name = f"{scale}/{experiment}/{run.seed}"
        same = name in known and _settings(json.loads(known[name].config().to_json())) == _settings(run.config)
        commands.append(known[name].command("runs/paper") if same else f"{name} was made with another config")
      rows.append(
        RunsRow(
          _runs_anchor(scale, experiment),
          f"{scale}/{experiment}",
          _distinct(run.seed for run in runs),
          _distinct(f"{run.status.get('step', 0):,}" for run in runs),
          _distinct(run.status.get("status", "") for run in runs),
          _distinct(run.status.get("time", "")[:10] for run in runs),
          _distinct(_revision(run.status) for run in runs),
          _distinct(run.status.get("devices", "") for run in runs),
          Command(tuple(commands)),
        )
      )
  return rows


def _distinct(values: Iterable[str]) -> str:
  return ", ".join(dict.fromkeys(values))


def _revision(status: dict[str, Any]) -> str:
  revision = status.get("git_revision") or ""  # 40 digits, and maybe "+changes".
  return revision[:10] + revision[40:]


def _packages(results: measured.Results) -> str:
  return ", ".join(
    sorted(
      {
        f"{name} {version}"
        for experiments in results.values()
        for runs in experiments.values()
        for run in runs
        for name, version in run.status.get("packages", {}).items()
      }
    )
  )


def _runs_anchor(scale: str, experiment: str) -> str:
  return f"runs-{scale}-{experiment}".replace("/", "-")


def _settings(config: dict) -> dict:
  """All but where the data lie."""
  return config | {"data": config["data"] | {"dir": ""}}
