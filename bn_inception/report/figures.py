"""The paper's figures from run directories, in the paper's layout; matplotlib without a display."""

from collections.abc import Sequence
import pathlib
import statistics

from matplotlib.axes import Axes

from bn_inception.report import curves, measured, paper
from bn_inception.report.measured import Result

Experiments = dict[str, list[Result]]

_NAMES = {name: row.name for name, row in paper.FIGURE_3.items()}
_COLOURS = dict(zip(paper.FIGURE_3, curves.RUN_COLOURS))


def _mean_curve(runs: Sequence[Result]) -> tuple[list[float], list[float], list[float], list[float]]:
  """(steps, mean, least, greatest accuracy) over seeds, of finished runs if there are any."""
  runs = [run for run in runs if run.accuracy]
  runs = [run for run in runs if run.finished] or runs
  by_step: dict[float, list[float]] = {}
  for run in runs:
    for step, top1 in run.accuracy:
      by_step.setdefault(step, []).append(top1)
  steps = sorted(step for step, values in by_step.items() if len(values) == len(runs))
  values = [by_step[step] for step in steps]
  return steps, list(map(statistics.fmean, values)), list(map(min, values)), list(map(max, values))


def _draw(axes: Axes, runs: Sequence[Result], label: str, colour: str, style: str = "-") -> None:
  """The mean over seeds, and the range of the seeds as a band."""
  steps, mean, least, greatest = _mean_curve(runs)
  axes.plot(steps, mean, style, color=colour, linewidth=1.3, label=label)
  if len(runs) > 1:
    axes.fill_between(steps, least, greatest, color=colour, alpha=0.15, linewidth=0)


def figure1(experiments: Experiments, output: pathlib.Path) -> pathlib.Path | None:
  """(a) test accuracy with and without BN; (b, c) the percentiles of a typical sigmoid's input, without and with BN.

  The first row has each network at its best rate, the second both at a low one.
  """
  rows = {}
  for suffix, text in (("", "best rate of each"), ("_low_rate", "low rate")):
    both = [experiments.get(f"mnist_{network}{suffix}", []) for network in ("bn", "plain")]
    both = [[run for run in runs if run.accuracy] for runs in both]
    if all(both):
      rows[text] = both
  if not rows:
    return None
  figure = curves.new_figure(11, 3.6 * len(rows))
  for axes, (text, (with_bn, without)) in zip(figure.subplots(len(rows), 3, squeeze=False), rows.items()):
    _figure1_row(axes, text, with_bn, without)
  return curves.save(figure, output)


def _figure1_row(row: Sequence[Axes], text: str, with_bn: Sequence[Result], without: Sequence[Result]) -> None:
  accuracy, plain, bn = row
  _draw(accuracy, with_bn, "with BN", "#0072B2")
  _draw(accuracy, without, "without BN", "#000000", "--")
  curves.finish_axes(accuracy, "test accuracy")
  accuracy.set(title=f"(a) {text}", xlabel="steps of 60 examples", ylim=(0.7, 1.0))
  accuracy.legend(frameon=False, fontsize=8, loc="lower right")
  for axes, runs, title in ((plain, without, "(b) without BN"), (bn, with_bn, "(c) with BN")):
    unit = measured.typical_unit(runs[0])
    series = measured.sigmoid_inputs(runs[0])[unit]
    for place, percentile in enumerate((15, 50, 85)):
      axes.plot([step for step, _ in series], [values[place] for _, values in series],
                color=("#999999", "#D55E00", "#999999")[place], linewidth=1.2, label=f"{percentile}th percentile")
    curves.finish_axes(axes, f"input of sigmoid {unit}, last hidden layer")
    axes.set(title=title, xlabel="steps of 60 examples")
  limits = [*plain.get_ylim(), *bn.get_ylim()]
  for axes in (plain, bn):
    axes.set_ylim(min(limits), max(limits))
  plain.legend(frameon=False, fontsize=8)


def figure2(experiments: Experiments, output: pathlib.Path) -> pathlib.Path | None:
  """Validation accuracy of the variants against steps; the runs that fail are dotted.

  A diamond is where a variant matches Inception's maximum, as in the paper.
  """
  names = [name for name in paper.FIGURE_3 if any(run.accuracy for run in experiments.get(name, []))]
  if not names:
    return None
  figure = curves.new_figure(9)
  axes = figure.subplots()
  for name in names:
    style = {"inception": "--", "inception_x5": ":", "inception_sigmoid": ":"}.get(name, "-")
    _draw(axes, experiments[name], _NAMES[name], _COLOURS[name], style)
  experiments = measured.finished(experiments)  # Curves may be of runs under way, numbers may not.
  baseline = measured.baseline_maximum(experiments.get("inception", []))
  if baseline is not None:
    target, own = baseline
    axes.axhline(target, color="#999999", linewidth=0.8, label="maximum of Inception")
    for name in names:
      steps = own if name == "inception" else measured.over_seeds(experiments.get(name, []),
                                                                  lambda run: measured.steps_to(run, target))
      if steps is not None:
        axes.plot(steps.mean, target, "D", color=_COLOURS[name], markersize=6)
    axes.plot([], [], "D", color="#999999", markersize=6, label="steps to match Inception")
  curves.finish_axes(axes, "validation top-1 accuracy")
  figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
  return curves.save(figure, output)


def ablation(experiments: Experiments, changes: Sequence[str], group_sizes: Sequence[int],
             output: pathlib.Path) -> pathlib.Path | None:
  """§4.2.1: maximum accuracy with each change alone, with all up to each, and for each size of the BN groups.

  Args:
    experiments: the runs of one scale.
    changes: their names, in the paper's order.
    group_sizes: m.
    output: the picture.
  """
  alone = {"BN-Baseline": "bn_baseline"} | {name: f"alone/{name}" for name in changes}
  up_to = {"BN-Baseline": "bn_baseline", changes[0]: f"alone/{changes[0]}",
           **{f"+ {name}": f"up_to/{name}" for name in changes[1:-1]}, f"+ {changes[-1]} = BN-x5": "bn_x5"}
  groups = {f"m = {size}": f"group/{size}" for size in group_sizes}
  if not any(experiments.get(name) for name in [*alone.values(), *groups.values()] if name != "bn_baseline"):
    return None
  figure = curves.new_figure(12, 4)
  panels = figure.subplots(1, 3, sharex=True)
  for axes, rows, title in zip(panels, (alone, up_to, groups),
                               ("each change alone", "one after the other", "size of the BN groups")):
    _dots(axes, {label.replace("_", " "): measured.over_seeds(experiments.get(name, []), measured.maximum)
                 for label, name in rows.items()}, "maximum validation accuracy")
    axes.set_title(title)
    if rows is not groups and (baseline := measured.over_seeds(experiments.get("bn_baseline", []), measured.maximum)):
      axes.axvline(baseline.mean, color="#999999", linewidth=0.8, zorder=0)
  return curves.save(figure, output)


def _dots(axes: Axes, rows: dict[str, measured.Spread | None], label: str) -> None:
  """A row for each label: every value as a small dot, the mean as a large one, and in figures at the right."""
  for place, spread in enumerate(rows.values()):
    if spread is not None:
      axes.plot(spread.values, [place] * len(spread.values), "o", color="#56B4E9", markersize=3.5)
      axes.plot(spread.mean, place, "o", color="#0072B2", markersize=7)
      axes.text(1.02, place, f"{spread.mean:.1%}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
  axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  curves.finish_axes(axes, "")
  axes.set_xlabel(label)


def figure4(evaluations: dict[str, tuple[dict, dict[str, float]]], output: pathlib.Path) -> pathlib.Path | None:
  """§4.2.3: top-1 errors of single networks and of the ensemble, with one crop and with many, beside the paper's."""
  kinds = {(networks, crops): found for (networks, crops, kind), found in measured.errors(evaluations).items()
           if kind == "running"}
  if not kinds:
    return None
  figure = curves.new_figure(9.5, 2.8)
  ours, theirs = figure.subplots(1, 2)
  name = lambda networks, crops: (("one network" if networks == 1 else f"ensemble of {networks}")
                                  + f", {crops} crop{'s' if crops > 1 else ''}")
  _dots(ours, {name(*kind): measured.Spread(tuple(metrics["top1_error"] for metrics in kinds[kind].values()))
               for kind in sorted(kinds)}, "top-1 error")
  ours.set_title("measured")
  _dots(theirs, {name(row.networks, row.crops): measured.Spread((row.top1_error,))
                 for row in paper.FIGURE_4 if row.name.startswith("BN-Inception")}, "top-1 error")
  theirs.set_title("the paper, on ImageNet")
  return curves.save(figure, output)


def sweep(experiments: Experiments, output: pathlib.Path) -> pathlib.Path | None:
  """Maximum accuracy on held-out training examples against the learning rate."""
  rates: dict[str, dict[float, measured.Spread]] = {}
  for name, runs in experiments.items():
    network, _, point = name.removeprefix("sweep/").partition("/")
    best = measured.over_seeds(runs, measured.maximum)
    if name.startswith("sweep/") and point.startswith("rate_") and best is not None:
      rates.setdefault(network, {})[runs[0].config["learning_rate"]] = best
  if not rates:
    return None
  figure = curves.new_figure(6)
  axes = figure.subplots()
  for (network, points), colour in zip(sorted(rates.items()), ("#0072B2", "#000000", "#D55E00")):
    points = dict(sorted(points.items()))
    axes.plot(list(points), [spread.mean for spread in points.values()], "o-", color=colour, label=network)
  curves.finish_axes(axes, "maximum held-out accuracy")
  axes.set(xscale="log", xlabel="learning rate")
  ticks = sorted({rate for points in rates.values() for rate in points})
  axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
  axes.minorticks_off()
  axes.legend(frameon=False, fontsize=8)
  return curves.save(figure, output)
