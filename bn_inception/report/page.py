"""One self-contained HTML page with every figure, table and claim of the paper beside what was measured."""

import base64
from collections.abc import Sequence
import html
import pathlib
import statistics

from bn_inception import run_directory
from bn_inception.experiments import plans
from bn_inception.report import claims, cost, figures, measured, paper
from bn_inception.report.measured import Result

# Peak FLOP a second by the makers' data sheets, dense bfloat16.
ACCELERATORS = {"NVIDIA A100": 312e12, "NVIDIA H100 SXM": 989e12, "TPU v4": 275e12}
UTILISATION = 0.1  # Of the peak [assumption]: small convolutions, BN and pooling are bound by memory.
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
           "and claim beside what was measured. Accuracies are on the validation (test) split with moving averages; "
           "± is the standard deviation over seeds, bands in pictures their range.</p>"]
  parts += _claims(results, root)
  for scale in (scale for scale in measured.SCALES if scale in results):
    parts += _scale(scale, results[scale], measured.evaluations(root, scale), folder)
  parts += _full_scale() + _runs(results)
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

  rows = [(scale, row) for scale in scales("figure1", ("mnist_bn", "mnist_plain"))
          for row in claims.mnist(results.get(scale, {}), _command("figure1", scale))]
  rows += [(scale, row) for scale in scales("figure3", (*paper.FIGURE_3, "ensemble"))
           for row in claims.inception(results.get(scale, {}), measured.evaluations(root, scale),
                                       {figure: _command(figure, scale) for figure in ("figure3", "figure4",
                                                                                       "ablation")})]
  verdict = lambda text: _Html(f"<span class='{text.replace(' ', '-')}'>{text}</span>")
  counts = {text: sum(row.verdict == text for _, row in rows)
            for text in (claims.CONFIRMED, claims.REFUTED, claims.UNDECIDED, claims.NOT_MEASURED)}
  return ["<h2>The claims</h2>",
          "<p>" + ", ".join(f"{count} {text}" for text, count in counts.items()) + ". Confirmed and refuted speak of "
          "the direction at the scale of the row; undecided is a difference within two standard errors over seeds.</p>",
          _table(["claim", "section", "paper", "scale", "measured", "verdict", "command"],
                 [[row.claim, row.section, row.paper, scale, row.measured, verdict(row.verdict), _code(row.command)]
                  for scale, row in rows])]


def _scale(scale: str, experiments: dict[str, list[Result]], evaluations: claims.Evaluations,
           output: pathlib.Path) -> list[str]:
  """Everything at one scale."""
  commands = {figure: _command(figure, scale) for figure in plans.FIGURES}
  parts = [f"<h2>{_title(scale, experiments)}</h2>"]

  def picture(figure: str, heading: str, path: pathlib.Path | None, remark: str) -> list[str]:
    if path is None:
      return []
    encoded = base64.b64encode(path.read_bytes()).decode()
    return [f"<h3>{heading}</h3>", f"<img alt='{heading}' src='data:image/png;base64,{encoded}'>",
            f"<p>{remark} <code>{html.escape(commands[figure])}</code></p>"]

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
      "The paper's order from fast to slow is BN-x5, BN-x30, BN-x5-Sigmoid, BN-Baseline, Inception.")
  experiments = measured.finished(experiments)  # Curves may be of runs under way, numbers may not.
  parts += _figure3(experiments, commands["figure3"])
  parts += picture(
      "ablation", "Ablation: from BN-Baseline to BN-x5 (§4.2.1), and the size of the BN groups",
      figures.ablation(experiments, tuple(plans.CHANGES), plans.GROUP_SIZES, file("ablation")),
      "The paper gives a number for one of the changes: about 1% for shuffling within shards. Groups of m in batches "
      f"of {plans.GROUP_BATCH}, everything else as BN-x5.")
  parts += _ablation(experiments)
  parts += _figure4(scale, evaluations, experiments, commands["figure4"])
  parts += picture("sweep", "Learning rates", figures.sweep(experiments, file("sweep")),
                   "The rates in configs/ are chosen here, on training examples held out. "
                   + _best_rates(experiments))
  for figure in ("figure1", "figure2", "ablation", "sweep"):
    if (folder := output / figure).is_dir() and not any(folder.iterdir()):
      folder.rmdir()
  return parts


def _title(scale: str, experiments: dict[str, list[Result]]) -> str:
  data = sorted({run.config["data"]["name"] for runs in experiments.values() for run in runs})
  return html.escape(f"{scale} ({', '.join(data)})")


def _command(figure: str, scale: str) -> str:
  default = plans.FIGURES[figure][1][0]
  return (f"python scripts/reproduce.py {figure}" + (f" --scale={scale}" if scale != default else "")
          + " --workdir=runs/paper --data_dir=$TFDS_DATA_DIR")


def _figure3(experiments: dict[str, list[Result]], command: str) -> list[str]:
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
          f"Inception, to each run's own). <code>{html.escape(command)}</code></p>"]


def _ablation(experiments: dict[str, list[Result]]) -> list[str]:
  names = ["bn_baseline", *(f"alone/{name}" for name in plans.CHANGES), *(f"up_to/{name}" for name in plans.CHANGES),
           "bn_x5", *(f"group/{size}" for size in plans.GROUP_SIZES)]
  if not any(name in experiments for name in names if name not in plans.VARIANTS):
    return []
  rows = []
  for name in names:
    best = measured.over_seeds(experiments.get(name, []), measured.maximum)
    last = measured.over_seeds(experiments.get(name, []), lambda run: run.accuracy[-1][1] if run.accuracy else None)
    if best is not None:
      rows.append([name.replace("_", " "), claims.describe(best), claims.describe(last)])
  return [_table(["", "maximum top-1", "at the end"], rows)]


def _figure4(scale: str, evaluations: claims.Evaluations, experiments: dict[str, list[Result]],
             command: str) -> list[str]:
  statistics_rows = []
  for name, runs in experiments.items():
    kinds = [measured.over_seeds(runs, lambda run, kind=kind: (run.lines or [{}])[-1].get(f"eval/{kind}/top1"))
             for kind in ("running", "population", "batch")]
    if None not in kinds and not name.startswith("sweep/"):
      statistics_rows.append([name, *map(claims.describe, kinds)])
  parts = []
  if evaluations:
    rows = [[f"the paper: {row.name}", row.crops or "", row.networks or "", "", _percent(row.top1_error),
             _percent(row.top5_error)] for row in paper.FIGURE_4]
    rows += [[name, request["crops"], len(request["networks"]), request["statistics"],
              _percent(metrics["top1_error"]), _percent(metrics["top5_error"])]
             for name, (request, metrics) in evaluations.items()]
    parts += ["<h3>Figure 4: crops and the ensemble (§4.2.3)</h3>",
              _table(["", "crops", "networks", "BN statistics", "top-1 error", "top-5 error"], rows),
              f"<p>The paper's are of ImageNet. <code>{html.escape(command)}</code></p>"]
  if statistics_rows:
    parts += ["<h3>Statistics at inference (Algorithm 2, §3.1): top-1 at the end of the runs</h3>",
              _table(["", "moving averages", "population (Algorithm 2)", "each batch's own"], statistics_rows)]
  return parts


def _percent(value: float | None) -> str:
  return "" if value is None else f"{value:.2%}"


def _best_rates(experiments: dict[str, list[Result]]) -> str:
  best: dict[str, tuple[float, float]] = {}
  for name, runs in experiments.items():
    network, _, point = name.removeprefix("sweep/").partition("/")
    top1 = measured.over_seeds(runs, measured.maximum)
    if name.startswith("sweep/") and point.startswith("rate_") and top1 is not None:
      best[network] = max(best.get(network, (0.0, 0.0)), (top1.mean, runs[0].config["learning_rate"]))
  return " ".join(f"Best of {network}: {rate:g} ({top1:.2%})." for network, (top1, rate) in sorted(best.items()))


def _full_scale() -> list[str]:
  """The commands for ImageNet, and what they take."""
  rows = []
  for figure in ("figure2", "figure3", "ablation", "figure4"):
    make_plan, _, seeds = plans.FIGURES[figure]
    total, steps, flop = 0.0, 0, 0.0
    plan = make_plan("imagenet", 1)
    for run in plan.runs:
      config = run.config()
      one = cost.of(config)
      total += cost.total(config, one, _IMAGENET_VALIDATION)
      steps, flop = steps + config.num_steps, max(flop, one.train / config.batch_size)
    inference = cost.of(plan.runs[0].config()).inference
    total += sum(inference * evaluation.crops * len(evaluation.runs) * _IMAGENET_VALIDATION
                 for evaluation in plan.evaluations)
    rows.append([figure, len(plan.runs), claims.steps_text(steps), f"{flop / 1e9:.1f}", f"{total:.1e}",
                 *(f"{total / (peak * UTILISATION) / 3600:,.0f}" for peak in ACCELERATORS.values()),
                 _code(f"python scripts/reproduce.py {figure} --scale=imagenet --seeds=1 --workdir=runs/paper "
                       "--data_dir=/data/tfds --index=0 --count=8")])
  return ["<h2>At full scale: ImageNet</h2>",
          _table(["figure", "runs of one seed", "steps of 32", "GFLOP an image", "FLOP", *(f"{name} hours" for name in
                  ACCELERATORS), "command, on each machine with its --index"], rows),
          "<p>FLOP: XLA's count for the training step and inference times the steps, evaluations and crops. Hours: at "
          f"{UTILISATION:.0%} of the peak in dense bfloat16 of one accelerator "
          f"({', '.join(f'{name} {peak / 1e12:.0f} TFLOP/s' for name, peak in ACCELERATORS.items())}), an assumption. "
          "Figures share runs: figure 3 includes those of figure 2.</p>"]


def _runs(results: measured.Results) -> list[str]:
  """Every run, with the command that makes it again."""
  rows = []
  for scale, experiments in results.items():
    known = {run.name: run for make_plan, scales, seeds in plans.FIGURES.values() if scale in scales
             for run in make_plan(scale, max(seeds, max(map(len, experiments.values())))).runs}
    for experiment, runs in experiments.items():
      for run in runs:
        name = f"{scale}/{experiment}/{run.seed}"
        status = run.status
        rows.append([name, f"{status.get('step', 0):,}", status.get("status", ""),
                     (status.get("git_revision") or "")[:10], status.get("devices", ""),
                     _code(known[name].command("runs/paper")) if name in known else ""])
  packages = sorted({f"{name} {version}" for experiments in results.values() for runs in experiments.values()
                     for run in runs for name, version in run.status.get("packages", {}).items()})
  return ["<h2>The runs</h2>", f"<p>{html.escape(', '.join(packages))}</p>",
          _table(["run", "steps", "status", "revision", "devices", "command"], rows)]


class _Html(str):
  """Text that is HTML already."""


def _code(text: str) -> _Html:
  return _Html(f"<code>{html.escape(text)}</code>")


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  cell = lambda value: value if isinstance(value, _Html) else html.escape(str(value))
  lines = ["<div class='wide'><table><tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in headings) + "</tr>"]
  lines += ["<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows]
  return "\n".join(lines) + "</table></div>"
