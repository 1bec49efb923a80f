"""The sections of the page: Figure 2 with the ratio of steps, everything at one scale, and what ImageNet would take."""

import json
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from bn_inception import paper
from bn_inception.reproduction import figures, judging, measured, plans, run_cost, speedup, wording
from bn_inception.reproduction.measured import Result
from bn_inception.reproduction.parts import Block, Command, Link, Section, Table, command_for, draw_picture, runs_anchor

_LEVELS = (0.8, 0.85, 0.9, 0.95, 1.0)  # Of Inception's plateau, in the table beside the curve.


def first(scale: str, experiments: dict[str, list[Result]], folder: pathlib.Path) -> Section:
  """Figure 2 in the paper's axes, and the ratio of steps, at the first scale that has them."""
  command = command_for("figure3", scale, experiments)
  blocks = [
    Block(
      "",
      "figure2",
      draw_picture(
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
      "less than the deviation",
    ],
    [
      [
        Link(wording.name_of(row.name), runs_anchor(scale, row.name)),
        f"{row.steps:,.0f}",
        f"{row.learning_rate:g}",
        wording.describe(row.accuracy),
        "" if row.gain is None else f"{wording.points(row.gain)} points with {row.times:g} times the steps",
        "" if row.gain is None else {None: "not known", True: "yes", False: "no"}[row.reached],
      ]
      for row in speedup.lengths(experiments)
    ],
  )
  rows = []
  for name in speedup.networks(experiments):
    for point in speedup.curve(experiments, name, _LEVELS):
      rows.append(
        [
          Link(wording.name_of(name), runs_anchor(scale, name)),
          f"{point.fraction:.0%}",
          f"{point.accuracy:.1%}",
          wording.name_of(point.baseline),
          wording.mean_text(point.baseline_steps, wording.steps_text),
          wording.mean_text(point.steps, wording.steps_text) if point.steps else "not by all seeds",
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
      draw_picture(
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
      "annealed over, or that of a shorter one which is as good within the deviation over seeds. At each level the "
      "fastest of these baselines counts whose mean comes to the level (a seed that does not counts with the steps of "
      "its run), so the curve rises where the next shorter baseline ends. Beside BN-Baseline, which differs from "
      "Inception by BN alone, only the Inception of its own length counts. Steps are interpolated between evaluations. "
      "The plateau counts as reached when a run of twice the length gains less than the deviation over seeds. "
      "Inception's longest run has the rate of the next shorter one; the other lengths have a sweep each. "
      "Networks with BN have the paper's multiples of Inception's rate; those at the best rate of their own sweep are "
      "made by reproduce.py best_rate.",
    )
  )
  return Section("Figure 2 and the ratio of steps (§4.2.2)", "first", blocks)


def of_scale(
  scale: str, experiments: dict[str, list[Result]], evaluations: judging.Evaluations, folder: pathlib.Path
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
    command = command_for(figure, scale, experiments)
    picture = draw and draw_picture(draw, arguments, title, folder / anchor / f"{scale}.png", remark, command)
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
    "the plateau of Inception (of the Inception that sets it, to each run's own), interpolated between evaluations; "
    "accuracy at the "
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
    "On training examples held out. Inception has in configs/ the rate that was chosen here, and both MNIST networks "
    "have the best one of the network without BN; the other networks have the paper's multiples of Inception's rate.",
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


def _figure3(scale: str, experiments: dict[str, list[Result]]) -> Table:
  """The table of Figure 3, the runs that §4.2.2 tells of, and Inception and BN-x5 over other lengths."""
  plateau = speedup.plateau(experiments)
  named = dict(paper.FIGURE_3)
  for name in (*speedup.by_length(experiments), *speedup.networks(experiments)):
    named.setdefault(name, paper.VariantRow(wording.name_of(name), None, None))
  rows = []
  for name, row in named.items():
    runs = experiments.get(name, [])
    end = measured.over_seeds([run for run in runs if run.accuracy], measured.level)
    steps = ""
    if plateau and end is not None:
      reached = [steps_of_run for steps_of_run in plateau.steps(name, runs) if steps_of_run is not None]
      if len(reached) == len(runs):
        steps = wording.describe(measured.Spread(tuple(reached)), wording.steps_text)
      else:
        steps = f"{len(reached)} of {len(runs)} seeds" + (
          f", after {wording.steps_text(statistics.fmean(reached))}" if reached else ""
        )
    rows.append(
      [
        Link(row.name, runs_anchor(scale, name)) if runs else row.name,
        "" if row.steps is None else wording.steps_text(row.steps),
        steps,
        "" if row.top1 is None else wording.percent(row.top1),
        "" if end is None else wording.describe(end),
        f"{runs[0].config['learning_rate']:g}" if runs else "",
        ", ".join(dict.fromkeys(run.status.get("status", "") for run in runs)) or "not run",
        row.remark,
      ]
    )
  heading = "steps to the plateau of Inception" + (f", {wording.percent(plateau.level.mean)}" if plateau else "")
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
  rows = [[Link(labels[name], runs_anchor(scale, name)), wording.describe(end)] for name, end in ends.items()]
  return Table(["", "top-1 at the end"], rows if any(name not in plans.VARIANTS for name in ends) else [])


def _figure4(evaluations: judging.Evaluations, experiments: dict[str, list[Result]]) -> list[Table]:
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
  keys = [f"eval/{kind}/top1" for kind in ("running", "population", "batch")]
  for name, runs in experiments.items():
    # A run that diverged ends with a step of training; the others of its network were evaluated all the same.
    runs = [run for run in runs if run.lines and all(key in run.lines[-1] for key in keys)]
    of_kinds = [measured.over_seeds(runs, lambda run, key=key: run.lines[-1][key]) for key in keys]
    if runs and not name.startswith("sweep/"):
      of = "network" if name == "ensemble" else "seed"
      rows.append([Link(name, runs_anchor(scale, name)), *(wording.describe(spread, of=of) for spread in of_kinds)])
  return Table(["", "moving averages", "population (Algorithm 2)", "each batch's own"], rows)


def _paper_errors(row: paper.ErrorRow) -> list[object]:
  return [row.crops or "", row.networks or "", _percent(row.top1_error), _percent(row.top5_error)]


def _error(metrics: dict[str, dict[str, float]], place: str) -> str:
  errors = measured.Spread(tuple(of_network[place] for of_network in metrics.values()))
  return _percent(errors.mean) if len(metrics) == 1 else wording.describe(errors, _percent, of="network")


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
        wording.describe(points[rate], _percent),
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
        [Link(network, runs_anchor(scale, name)), tried, f"{rate:g}", f"{steps:,}", wording.describe(end, _percent)]
        for network, rate, steps, tried, end, name in rows
      ],
    ),
  ]


def full_scale() -> Block:
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
        wording.steps_text(steps),
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


def compiled(folder: pathlib.Path) -> list[Block]:
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
