"""One self-contained HTML page with every figure, table and claim of the paper beside what was measured."""

import base64
from collections.abc import Sequence
import html
import json
import pathlib
import statistics

from bn_inception import run_directory
from bn_inception.experiments import plans
from bn_inception.report import claims, cost, figures, measured, paper
from bn_inception.report.measured import Result

_IMAGENET_VALIDATION = 50_000  # Images.

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .7rem; vertical-align: top; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
code { font-size: 85%; }
.wide { overflow-x: auto; }
.confirmed { color: #00664b; font-weight: 600; }
.refuted { color: #a33d00; font-weight: 600; }
.undecided, .not-measured { color: #666; font-weight: 600; }
"""


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
  parts = ["<h1>Batch Normalization, reproduced</h1>",
           "<p>Ioffe and Szegedy, 2015 (<a href='https://arxiv.org/abs/1502.03167'>arXiv:1502.03167</a>): each figure "
           "and claim beside what was measured. Accuracies are those of evaluation with moving averages; "
           "± is the standard deviation over seeds, bands in pictures their range.</p>"]
  parts += _claims(results, root)
  for scale in (scale for scale in measured.SCALES if scale in results):
    parts += _scale(scale, results[scale], measured.evaluations(root, scale), folder)
  parts += _full_scale() + _compiled(root / "accelerator_cost") + _runs(results)
  folder.mkdir(parents=True, exist_ok=True)
  page = folder / "report.html"
  run_directory.replace_file(page, "<!doctype html>\n<html lang='en'><meta charset='utf-8'>"
                             f"<title>Batch Normalization, reproduced</title><style>{_STYLE}</style>\n"
                             + "\n".join(parts) + "\n</html>\n")
  return page


def _claims(results: measured.Results, root: pathlib.Path) -> list[str]:
  """Every claim at every scale that has runs for it; a claim without any is not measured at the figure's own scale."""
  def scales(figure: str, experiments: tuple[str, ...]) -> list[str]:
    all_scales = plans.FIGURES[figure][1]
    return [scale for scale in all_scales if any(name in results.get(scale, {}) for name in experiments)] or [
        all_scales[0]]

  rows = []
  for scale in scales("figure1", ("mnist_bn", "mnist_plain")):
    experiments = results.get(scale, {})
    rows += [(scale, row) for row in claims.mnist(experiments, _command("figure1", scale, experiments))]
  for scale in scales("figure3", (*paper.FIGURE_3, "ensemble")):
    experiments = results.get(scale, {})
    commands = {figure: _command(figure, scale, experiments) for figure in ("figure3", "figure4", "ablation")
                if scale in plans.FIGURES[figure][1]}
    rows += [(scale, row) for row in claims.inception(experiments, measured.evaluations(root, scale), commands)]
  rows += [("imagenet", row) for row in claims.full_scale(measured.evaluations(root, "imagenet"),
                                                          _command("figure4", "imagenet", {}))]
  verdict = lambda text: _Html(f"<span class='{text.replace(' ', '-')}'>{text}</span>")
  counts = {text: sum(row.verdict == text for _, row in rows)
            for text in (claims.CONFIRMED, claims.REFUTED, claims.UNDECIDED, claims.NOT_MEASURED)}
  return ["<h2>The claims</h2>",
          "<p>" + ", ".join(f"{count} {text}" for text, count in counts.items()) + ". Confirmed and refuted speak of "
          "the direction at the scale of the row, the sizes stand beside each other; undecided is a difference within "
          "two standard errors, or seeds that disagree. A single run is taken to vary over seeds as those it is "
          "compared with; no accuracy is taken to vary by less than the binomial error of the evaluation split, no "
          "number of steps by less than the distance between evaluations. “No worse” is confirmed where nothing worse "
          "was measured.</p>",
          _table(["claim", "section", "paper", "scale", "measured", "verdict", "command"],
                 [[row.claim, row.section, row.paper, scale, row.measured, verdict(row.verdict), _code(row.command)]
                  for scale, row in rows])]


def _scale(scale: str, experiments: dict[str, list[Result]], evaluations: claims.Evaluations,
           output: pathlib.Path) -> list[str]:
  """Everything at one scale."""
  parts = [f"<h2>{_title(scale, experiments)}</h2>", _evaluated(experiments)]

  def picture(figure: str, heading: str, path: pathlib.Path | None, remark: str) -> list[str]:
    if path is None:
      return []
    encoded = base64.b64encode(path.read_bytes()).decode()
    return [f"<h3>{heading}</h3>", f"<img alt='{heading}' src='data:image/png;base64,{encoded}'>",
            f"<p>{remark} <code>{html.escape(_command(figure, scale, experiments))}</code></p>"]

  def file(figure: str) -> pathlib.Path:
    path = output / figure / f"{scale}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path

  parts += picture(
      "figure1", "Figure 1: the MNIST network (§4.1)", figures.figure1(experiments, file("figure1")),
      "(a) is the mean over seeds, with their range. (b, c) show the first seed's unit with the median movement of "
      "those recorded; percentiles are over the whole test split. The paper gives no numbers beside its curves: with "
      "BN the network trains faster and ends higher, and its distributions stay stable.")
  parts += picture(
      "figure2", "Figure 2: validation accuracy against steps (§4.2.2)", figures.figure2(experiments, file("figure2")),
      "Diamonds: as good as Inception's maximum. The paper's order from fast to slow is BN-x5, BN-x30, BN-Baseline, "
      "Inception.")
  experiments = measured.finished(experiments)
  parts += _figure3(scale, experiments)
  parts += picture(
      "ablation", "Ablation: from BN-Baseline to BN-x5 (§4.2.1), and the size of the BN groups",
      figures.ablation(measured.for_ablation(experiments), tuple(plans.CHANGES), plans.GROUP_SIZES, file("ablation")),
      "The paper gives a number for one of the changes: about 1% for shuffling within shards. Groups of m in batches "
      f"of {plans.GROUP_BATCH}, everything else as BN-x5.")
  parts += _ablation(measured.for_ablation(experiments))
  parts += picture("figure4", "Figure 4: crops and the ensemble (§4.2.3)",
                   figures.figure4(evaluations, file("figure4")),
                   "Small dots are the single networks, large ones their mean.")
  parts += _figure4(evaluations, experiments)
  parts += picture("sweep", "Learning rates", figures.sweep(experiments, file("sweep")),
                   "The rates in configs/ are chosen here, on training examples held out.")
  parts += _sweep(experiments)
  for figure in ("figure1", "figure2", "ablation", "figure4", "sweep"):
    if (folder := output / figure).is_dir() and not any(folder.iterdir()):
      folder.rmdir()
  return parts


def _title(scale: str, experiments: dict[str, list[Result]]) -> str:
  runs = [run for runs in experiments.values() for run in runs]
  data = sorted({run.config["data"]["name"] for run in runs})
  lengths = sorted({run.config["num_steps"] for run in runs})
  return html.escape(f"{scale}: {', '.join(data)}, runs of "
                     + " to ".join(f"{length:,}" for length in dict.fromkeys((lengths[0], lengths[-1]))) + " steps")


def _evaluated(experiments: dict[str, list[Result]]) -> str:
  """Which examples the curves and the tables of runs are of."""
  splits = {}
  for name, runs in experiments.items():
    for run in runs:
      count = next((line["eval/count"] for line in run.lines if "eval/count" in line), None)
      if count and not name.startswith("sweep/"):
        splits[run.config["data"]["eval_split"]] = count
  return "<p>Evaluated during training on " + html.escape(", ".join(
      f"{split} ({count:,.0f} examples)" for split, count in splits.items())) + ".</p>" if splits else ""


def _command(figure: str, scale: str, experiments: dict[str, list[Result]]) -> str:
  """The command for a figure with as many seeds as it was made with."""
  make_plan, scales, default_seeds = plans.FIGURES[figure]
  experiments = measured.finished(experiments)
  planned = [plans.experiment_of(run) for run in make_plan(scale, 2).runs]
  # Some runs are made once whatever the seeds; the ablation begins and ends with runs of Figure 3, which has its own.
  seeds = max((len(experiments[name]) for name in set(planned) & set(experiments) if planned.count(name) == 2
               and not (figure == "ablation" and name in plans.VARIANTS)), default=default_seeds)
  return (f"python scripts/reproduce.py {figure}" + (f" --scale={scale}" if scale != scales[0] else "")
          + (f" --seeds={seeds}" if seeds != default_seeds else "")
          + " --workdir=runs/paper --data_dir=$TFDS_DATA_DIR")


def _figure3(scale: str, experiments: dict[str, list[Result]]) -> list[str]:
  """The table of Figure 3, and the runs that §4.2.2 tells of."""
  if not any(name in experiments for name in paper.FIGURE_3):
    return []
  baseline = measured.baseline_maximum(experiments.get("inception", []))
  rows = []
  for name, row in paper.FIGURE_3.items():
    runs = experiments.get(name, [])
    best = measured.over_seeds(runs, measured.maximum)
    steps = ""
    if baseline is not None and best is not None:
      if name == "inception":
        steps = claims.describe(baseline[1], claims.steps_text)
      else:
        reached = [step for run in runs if (step := measured.steps_to(run, baseline[0])) is not None]
        if len(reached) == len(runs):
          steps = claims.describe(measured.Spread(tuple(reached)), claims.steps_text)
        else:
          steps = f"{len(reached)} of {len(runs)} seeds"
          if reached:
            steps += f", after {claims.steps_text(statistics.fmean(reached))}"
    rows.append([
        row.name, "" if row.steps is None else claims.steps_text(row.steps), steps,
        "" if row.top1 is None else claims.percent(row.top1), "" if best is None else claims.describe(best),
        f"{runs[0].config['learning_rate']:g}" if runs else "",
        ", ".join(dict.fromkeys(run.status.get("status", "") for run in runs)) or "not run", row.remark])
  heading = "steps to the maximum of Inception" + (f", {claims.percent(baseline[0])}" if baseline else "")
  return ["<h3>Figure 3: the table (§4.2.2)</h3>",
          _table(["", "paper: steps to 72.2%", heading, "paper: maximum top-1", "maximum top-1", "learning rate",
                  "status", "the paper's text"], rows),
          f"<p>Steps are mini-batches of 32, to the first evaluation that is as good as Inception's mean maximum (of "
          f"Inception, to each run's own). "
          f"<code>{html.escape(_command('figure3', scale, experiments))}</code></p>"]


def _ablation(experiments: dict[str, list[Result]]) -> list[str]:
  changes = {name: name.replace("_", " ") for name in plans.CHANGES}
  labels = {"bn_baseline": "BN-Baseline", **{f"alone/{name}": f"{text} alone" for name, text in changes.items()},
            **{f"up_to/{name}": f"all up to {text}" for name, text in changes.items()}, "bn_x5": "all: BN-x5",
            **{f"group/{size}": f"BN-x5 in groups of {size}" for size in plans.GROUP_SIZES}}
  if not any(name in experiments for name in labels if name not in plans.VARIANTS):
    return []
  rows = []
  for name, label in labels.items():
    best = measured.over_seeds(experiments.get(name, []), measured.maximum)
    last = measured.over_seeds(experiments.get(name, []), lambda run: run.accuracy[-1][1] if run.accuracy else None)
    if best is not None:
      rows.append([label, claims.describe(best), claims.describe(last)])
  return [_table(["", "maximum top-1", "at the end"], rows)]


def _figure4(evaluations: claims.Evaluations, experiments: dict[str, list[Result]]) -> list[str]:
  """The table of Figure 4, its networks one by one, and the three kinds of statistics at inference."""
  parts = []
  kinds = measured.errors(evaluations)
  if kinds:
    many = max(crops for _, crops, _ in kinds)
    paper_rows = {row.name: row for row in paper.FIGURE_4}
    found = lambda single, crops, statistics: next(
        (metrics for (networks, of, kind), metrics in kinds.items()
         if ((networks == 1) == single) and (of, kind) == (crops, statistics)), None)
    rows = [[name, *_paper_errors(row), *[""] * 4] for name, row in paper_rows.items() if "BN-Inception" not in name]
    for name, single, crops, kind in (
        ("BN-Inception single crop", True, 1, "running"), ("BN-Inception multicrop", True, many, "running"),
        ("BN-Inception ensemble", False, many, "running"), ("the ensemble with one crop", False, 1, "running"),
        ("the ensemble with one crop", False, 1, "population")):
      row = paper_rows.get(name)
      of_one_crop = many == 1 and row is not None and row.crops > 1  # Its many crops are still to be evaluated.
      metrics = None if of_one_crop else found(single, crops, kind)
      ours = [crops, {"running": "moving averages", "population": "population (Algorithm 2)"}[kind],
              *(_error(metrics, place) for place in ("top1_error", "top5_error"))] if metrics else [""] * 4
      if row or metrics:
        rows.append([name, *(_paper_errors(row) if row else [""] * 4), *ours])
    parts += [_table(["", "the paper: crops", "networks", "top-1 error", "top-5 error", "measured: crops", "statistics",
                      "top-1 error", "top-5 error"], rows),
              "<p>The paper's are of ImageNet; ± is the standard deviation over the single networks.</p>"]
    rows, all_crops = [], sorted({1, many})
    for run in experiments.get("ensemble", []):
      model, norm = run.config["model"], run.config["batch_norm"]
      rows.append([run.seed, f"{model['init_scale']:g}", f"{model['dropout_rate']:.0%}",
                   ", ".join(norm["per_activation"]) or "none",
                   *(_percent((found(True, crops, "running") or {}).get(run.seed, {}).get(place))
                     for crops in all_crops for place in ("top1_error", "top5_error"))])
    parts.append(_table(["", "factor on the initial weights", "dropout", "modules with BN per activation",
                         *(f"{place} error, {crops} crop{'s' if crops > 1 else ''}" for crops in all_crops
                           for place in ("top-1", "top-5"))], rows))
  rows = []
  for name, runs in experiments.items():
    of_kinds = [measured.over_seeds(runs, lambda run, kind=kind: (run.lines or [{}])[-1].get(f"eval/{kind}/top1"))
                for kind in ("running", "population", "batch")]
    if None not in of_kinds and not name.startswith("sweep/"):
      of = "network" if name == "ensemble" else "seed"
      rows.append([name, *(claims.describe(spread, of=of) for spread in of_kinds)])
  if rows:
    parts += ["<h3>Statistics at inference (Algorithm 2, §3.1): top-1 at the end of the runs</h3>",
              _table(["", "moving averages", "population (Algorithm 2)", "each batch's own"], rows)]
  return parts


def _paper_errors(row: paper.ErrorRow) -> list[object]:
  return [row.crops or "", row.networks or "", _percent(row.top1_error), _percent(row.top5_error)]


def _error(metrics: dict[str, dict[str, float]], place: str) -> str:
  errors = measured.Spread(tuple(of[place] for of in metrics.values()))
  return _percent(errors.mean) if len(metrics) == 1 else claims.describe(errors, _percent, of="network")


def _percent(value: float | None) -> str:
  return "" if value is None else f"{value:.2%}"


def _sweep(experiments: dict[str, list[Result]]) -> list[str]:
  """Every rate and length that was tried."""
  rows = []
  for name, runs in experiments.items():
    best = measured.over_seeds(runs, measured.maximum)
    if name.startswith("sweep/") and best is not None:
      config = runs[0].config
      rows.append([name.split("/")[1], config["learning_rate"], config["num_steps"], best])
  rows.sort(key=lambda row: row[:3])
  return [_table(["network", "learning rate", "steps", "maximum held-out top-1"],
                 [[network, f"{rate:g}", f"{steps:,}", claims.describe(best, _percent)]
                  for network, rate, steps, best in rows])] if rows else []


def _full_scale() -> list[str]:
  """The commands for ImageNet, and what they take."""
  rows = []
  for figure in ("figure2", "figure3", "ablation", "figure4", "sweep"):
    make_plan, _, _ = plans.FIGURES[figure]
    work, steps = cost.Work(0, 0), 0
    plan = make_plan("imagenet", 1)
    for run in plan.runs:
      config = run.config()
      work = work.plus(cost.total(config, cost.of(config), _IMAGENET_VALIDATION))
      steps += round(config.num_steps * config.batch_size / 32)
    inference = cost.of(plan.runs[0].config()).inference
    for evaluation in plan.evaluations:
      work = work.plus(inference.times(evaluation.crops * len(evaluation.runs) * _IMAGENET_VALIDATION))
    rows.append([figure, len(plan.runs), claims.steps_text(steps), f"{work.flop:.1e}", f"{work.bytes:.1e}",
                 *("{:,.0f} to {:,.0f}".format(*accelerator.hours(work)) for accelerator in cost.ACCELERATORS),
                 _code(f"python scripts/reproduce.py {figure} --scale=imagenet --seeds=1 --workdir=runs/paper "
                       "--data_dir=/data/tfds --index=0 --count=8")])
  return ["<h2>At full scale: ImageNet</h2>",
          _table(["figure", "runs of one seed", "steps of 32", "FLOP", "bytes",
                  *(f"{accelerator.name} hours" for accelerator in cost.ACCELERATORS),
                  "command, on each machine with its --index"], rows),
          "<p>FLOP and bytes: XLA's counts for the programs of a training step and of inference, lowered for an "
          "accelerator and before fusion, times the steps, evaluations and crops. Hours of one accelerator: from all "
          "arithmetic at its peak to all that memory traffic at its bandwidth ("
          + "; ".join(f"{name}: {flop / 1e12:.0f} TFLOP/s, {bandwidth / 1e12:.2f} TB/s"
                      for name, flop, bandwidth in cost.ACCELERATORS)
          + ", by their data sheets; in float32, whose products JAX makes of TF32 or bfloat16 there, but for crops and "
          "ensembles, which are computed exactly and take longer). Fusion saves much of the traffic; input, "
          "kernel launches and small layers come on top. Figures share runs: figure 3 includes those of figure 2. "
          "Figure 1 takes minutes on a CPU.</p>"]


def _compiled(folder: pathlib.Path) -> list[str]:
  """What scripts/accelerator_cost.py wrote: configs compiled for accelerators, narrower than the ranges above."""
  rows = []
  for path in sorted(folder.glob("*.json")):
    found = json.loads(path.read_text(encoding="utf-8"))
    least, likely = (sum(pair[i] for pair in found["hours"].values()) * found["chips"] for i in (0, 1))
    rows.append([found["config"], found["topology"], found["dtype"], f"{found['batch_size']:,}",
                 found["group_size"] or "whole batch",
                 f"{found['train']['bytes'] * found['chips'] / found['train']['images'] / 1e6:.0f}",
                 f"{found['num_steps']:,}", f"{least:,.0f} to {likely:,.0f}"])
  if not rows:
    return []
  return ["<h2>Compiled for accelerators</h2>",
          _table(["config", "topology", "type", "batch", "BN group", "MB an image", "steps", "chip hours"], rows),
          "<p>By XLA's compiler for a TPU that is not there (scripts/accelerator_cost.py), evaluations included: from "
          "the chip's data sheet to the compiler's own estimate of its schedule. Nothing was run there.</p>"]


def _runs(results: measured.Results) -> list[str]:
  """Every run, with the command that makes it again."""
  rows = []
  for scale, experiments in results.items():
    known = {run.name: run for make_plan, scales, seeds in plans.FIGURES.values() if scale in scales
             for run in make_plan(scale, max(seeds, max(map(len, experiments.values())))).runs}
    for experiment, runs in experiments.items():
      for run in runs:
        name = f"{scale}/{experiment}/{run.seed}"
        status, revision = run.status, run.status.get("git_revision") or ""  # 40 digits, and maybe "+changes".
        same = name in known and _settings(json.loads(known[name].config().to_json())) == _settings(run.config)
        rows.append([name, f"{status.get('step', 0):,}", status.get("status", ""),
                     revision[:10] + revision[40:], status.get("devices", ""),
                     _code(known[name].command("runs/paper")) if same else "made with another config"])
  packages = sorted({f"{name} {version}" for experiments in results.values() for runs in experiments.values()
                     for run in runs for name, version in run.status.get("packages", {}).items()})
  return ["<h2>The runs</h2>", f"<p>{html.escape(', '.join(packages))}</p>",
          _table(["run", "steps", "status", "revision", "devices", "command"], rows)]


def _settings(config: dict) -> dict:
  """All but where the data lie."""
  return config | {"data": config["data"] | {"dir": ""}}


class _Html(str):
  """Text that is HTML already."""


def _code(text: str) -> _Html:
  return _Html(f"<code>{html.escape(text)}</code>")


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  cell = lambda value: value if isinstance(value, _Html) else html.escape(str(value))
  lines = ["<div class='wide'><table><tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in headings) + "</tr>"]
  lines += ["<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows]
  return "\n".join(lines) + "</table></div>"
